"""Who carries the SMS: one file a provider, found by name."""

from __future__ import annotations

from importlib import import_module

from chalicelib.providers.base import Provider, UnknownProvider

# Those that carry texts to people, and the sandbox, which does not.
CARRIERS = ("telnyx", "twilio")
NAMES = (*CARRIERS, "sandbox")


def provider_named(name: str, api_url: str | None = None) -> Provider:
    """The provider of this name, speaking to `api_url` if one is given.

    Raises UnknownProvider. Only the file asked for is imported.
    """
    if name not in NAMES:
        raise UnknownProvider("no such provider")
    provider: Provider = import_module(f"chalicelib.providers.{name}").PROVIDER(api_url)
    return provider

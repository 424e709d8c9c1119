"""What the simulator must be told: whose webhook it calls, and with which credentials and keys."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


class BadConfiguration(Exception):
    """The text names the field that is wrong and what belongs there, never its value."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """`webhook` is the base URL of Spillway. A provider without `secrets` is not simulated.

    `credentials`: "user:password" of each provider that comes through the door with Basic
    credentials. `secrets`: twilio {"account_sid", "auth_tokens": newest first}, telnyx {"api_key",
    "public_keys", "private_key": the 32 bytes of an Ed25519 seed in base64}. With a real account's
    public keys there is no private key: the simulated Telnyx then accepts sends and calls nobody.
    `gates`: a port for each service that is to be able to be down (gates.py).
    """

    webhook: str
    credentials: Mapping[str, str]
    secrets: Mapping[str, Mapping[str, Any]]
    gates: Mapping[str, int] = field(default_factory=dict)


def parse(text: str | None) -> Configuration:
    """The configuration in the environment variable SIMULATOR. Raises BadConfiguration."""
    if not text:
        raise BadConfiguration("is not set: `spillway run` sets it for the process that it starts")
    try:
        given = json.loads(text)
    except ValueError:
        raise BadConfiguration("is not JSON") from None
    _require(isinstance(given, dict), "must be a JSON object")
    webhook = given.get("webhook")
    _require(
        isinstance(webhook, str)
        and urlsplit(webhook).scheme in ("http", "https")
        and bool(urlsplit(webhook).hostname),
        "webhook: must be the base URL of the webhook, for example http://127.0.0.1:8000",
    )
    credentials, secrets = given.get("credentials", {}), given.get("secrets")
    _require(_is_table(credentials, str), "credentials: must be an object of texts")
    _require(_is_table(secrets, dict) and secrets, "secrets: must be an object, one per provider")
    for provider, values in secrets.items():
        _require(provider in _CHECKS, f"secrets: only {' and '.join(_CHECKS)} are simulated")
        _CHECKS[provider](values, credentials)
    gates = given.get("gates", {})
    _require(_is_table(gates, int), "gates: must be an object of ports, by service")
    return Configuration(webhook.rstrip("/"), credentials, secrets, gates)


def _twilio(secrets: Mapping[str, Any], credentials: Mapping[str, str]) -> None:
    _require(_is_text(secrets.get("account_sid")), "secrets.twilio.account_sid: must be a text")
    tokens = secrets.get("auth_tokens")
    _require(
        isinstance(tokens, list) and tokens and all(_is_text(token) for token in tokens),
        "secrets.twilio.auth_tokens: must be a list of texts, newest first",
    )
    user, colon, password = credentials.get("twilio", "").partition(":")
    _require(user and colon and password, 'credentials.twilio: must be "user:password"')


def _telnyx(secrets: Mapping[str, Any], _credentials: Mapping[str, str]) -> None:
    _require(_is_text(secrets.get("api_key")), "secrets.telnyx.api_key: must be a text")
    if "private_key" not in secrets:
        return
    try:
        seed = base64.b64decode(secrets["private_key"], validate=True)
        key = Ed25519PrivateKey.from_private_bytes(seed)
    except (TypeError, ValueError):
        raise BadConfiguration("secrets.telnyx.private_key: must be 32 bytes in base64") from None
    public = base64.b64encode(key.public_key().public_bytes_raw()).decode()
    _require(
        isinstance(secrets.get("public_keys"), list) and public in secrets["public_keys"],
        "secrets.telnyx.public_keys: must hold the private key's public key; where they are a "
        "real account's, leave private_key out",
    )


_CHECKS = {"twilio": _twilio, "telnyx": _telnyx}


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_table(value: object, kind: type) -> bool:
    return isinstance(value, dict) and all(isinstance(one, kind) for one in value.values())


def _require(holds: object, otherwise: str) -> None:
    if not holds:
        raise BadConfiguration(otherwise)

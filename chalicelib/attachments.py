"""Attachments: a picture is fetched from the provider, whose links die, and kept in the archive.

Where a request may go is in the provider's file (`media_places`, `media_path`): over HTTPS, to the
names on its list, each redirect judged like the first address, our credentials to its API alone. Of
an answer neither the length nor the address is believed: it is cut off where it gets too large, and
its type must be one that phones send.

What goes wrong, and what becomes of the message then:

    a death anywhere          it comes again, and writes the same objects: a key is made of the
                              message's id alone
    the provider is down,     it waits, for `WAITS` in all; then it is stored without, `unavailable`
    slow, or refuses us
    it will never be had      it is stored at once, and says why
    the archive is down       it waits, as for its own line

A `replay` does not fetch again what its item names: the provider may have forgotten it.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx

from chalicelib.archive import Archive
from chalicelib.batches import Defer
from chalicelib.config import Settings
from chalicelib.messages import InboundMessage, Media, MessageId
from chalicelib.observing import count, log
from chalicelib.providers import provider_named
from chalicelib.providers.base import Provider, Unavailable, retry_after
from chalicelib.runtime import Runtime, is_transient, within
from chalicelib.vault import Vault

# Bytes of one attachment. Carriers pass at most 5 MB a message. With `TOGETHER` of a message and
# `runtime.THREADS` messages at a time, 600 MB may be in memory at once, of the function's 1024.
# https://www.twilio.com/docs/messaging/api/media-resource
LARGEST = 6_000_000
TOGETHER = 4
# Of one message; Twilio and Telnyx pass ten.
MOST = 10
# Seconds for which a message waits for its attachments, from its coming to the queue on.
WAITS = 3600.0
# Seconds after which what is not there is gone: Twilio may tell of a picture before it has it.
# https://github.com/chatwoot/chatwoot/pull/15504
YOUNG = 60.0
# Seconds for all attachments of a message, and for one answer. The last may begin to be asked for
# just before the end: a connection and its TLS have 3 seconds each (`runtime.within`). Then it has
# to be written.
FETCHING = 12.0
ANSWERING = 6.0
LONGEST = FETCHING + 2 * 3.0 + 9.0
# Requests for one attachment: Twilio redirects once.
HOPS = 4

# What phones send, as far as no browser would run it.
# https://www.twilio.com/docs/messaging/guides/accepted-mime-types
_KINDS = ("image/", "audio/", "video/")
_TYPES = frozenset(
    {
        "application/ogg",
        "application/pdf",
        "application/vcard",
        "text/calendar",
        "text/directory",
        "text/plain",
        "text/vcard",
        "text/x-vcard",
    }
)
_SCRIPTED = frozenset({"image/svg+xml"})
# Who says one of these says nothing: then the webhook's word counts.
_UNSAID = frozenset({"", "application/octet-stream", "binary/octet-stream"})
_TYPE = re.compile(r"[a-z]+/[a-z0-9.+-]{1,60}", re.ASCII)

# An address in which everybody reads the same host: no user, no brackets, no backslash, nothing
# beyond ASCII. A host on a list is compared as a name, so an IP address is never one.
_ADDRESS = re.compile(
    r"(https?)://([a-z0-9.-]+(?::[0-9]{1,5})?)(/[!-\[\]-~]*)", re.ASCII | re.IGNORECASE
)
_CLIMBS = re.compile(r"\.\.|%2e|%2f|%5c|/\.(?:/|$)", re.IGNORECASE)

Kept = dict[str, Any]

_LATER = frozenset({401, 403, 408, 425, 429})


class _Never(Exception):
    """It will never be had: why, in a word of ours."""


class _Later(Exception):
    """It may be had later."""

    def __init__(self, why: str, after: float | None = None) -> None:
        super().__init__(why)
        self.why = why
        self.after = after


@dataclass(frozen=True, slots=True)
class _Failure:
    """`why`: a word of ours; where it may still come, `code`: what failed, and `after`: in how many
    seconds, if that was said."""

    why: str
    code: str = ""
    after: float | None = None


class Attachments:
    """Those of one deployment."""

    def __init__(
        self, runtime: Runtime, settings: Settings, *, vault: Vault, archive: Archive
    ) -> None:
        self._runtime = runtime
        self._vault = vault
        self._archive = archive
        self._settings = settings

    def keep(
        self, id_: MessageId, message: InboundMessage, since: float, known: Mapping[str, Kept]
    ) -> list[Kept]:
        """Of each attachment {"url", "content_type"} and, where it is kept, {"key", "bytes",
        "sha256"}, else {"error": why}. `since` (unix seconds): when the message came to the queue;
        `known`: by address, what is kept already.

        Raises Defer where one may be had later, and what botocore raises.
        """
        age = self._runtime.now() - since
        fetched = self._runtime.together(
            [
                partial(self._known_or_kept, known, id_.part(number), message.provider, one, age)
                for number, one in enumerate(message.media[:MOST], start=1)
            ],
            TOGETHER,
        )
        late = [one for one in fetched if isinstance(one, _Failure) and one.why == "unavailable"]
        if late and age < WAITS:
            after = max((one.after for one in late if one.after is not None), default=None)
            # (No provider may name a time that is longer than we would wait.)
            raise Defer(f"media: {late[0].code}", after and min(after, max(1.0, WAITS - age)))
        fetched += [_Failure("too_many")] * len(message.media[MOST:])
        return [
            self._described(str(id_), message.provider, medium, one)
            for medium, one in zip(message.media, fetched, strict=True)
        ]

    def _described(self, id_: str, provider: str, medium: Media, fetched: Kept | _Failure) -> Kept:
        said = {"url": medium.url, "content_type": medium.content_type}
        if not isinstance(fetched, _Failure):
            return {**said, **fetched}
        count("MediaFailures", provider=provider, reason=fetched.why, id=id_)
        log(
            "WARNING",
            "media_not_kept",
            id=id_,
            provider=provider,
            reason=fetched.why,
            code=fetched.code,
        )
        return {**said, "error": fetched.why}

    def _known_or_kept(
        self, known: Mapping[str, Kept], name: str, provider: str, medium: Media, age: float
    ) -> Kept | _Failure:
        if medium.url in known:
            return known[medium.url]
        try:
            if provider not in self._settings.providers:
                raise _Later("no_provider")
            carrier = provider_named(provider, self._settings.api_url(provider))
            body, content_type = self._fetched(carrier, medium, age)
        except _Never as never:
            return _Failure(str(never))
        except _Later as later:
            return _Failure("unavailable", later.why, later.after)
        return {
            "content_type": content_type,
            "key": self._archive.keep_medium(name, body, content_type),
            "bytes": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
        }

    def _fetched(self, provider: Provider, medium: Media, age: float) -> tuple[bytes, str]:
        """The bytes, and of what type they are. Raises _Never or _Later."""
        end = self._runtime.now() + FETCHING
        address = medium.url
        for _ in range(HOPS):
            checked, is_api = _checked(address, provider)
            try:
                with self._runtime.http.stream(
                    "GET",
                    checked,
                    auth=self._credentials(provider) if is_api else None,
                    # What is packed would have to be unpacked, to nobody knows how much.
                    headers={"Accept-Encoding": "identity"},
                    timeout=within(min(ANSWERING, self._left(end))),
                ) as response:
                    if is_api and response.status_code in (401, 403):
                        self._look_again(provider)
                    if not response.has_redirect_location:
                        return self._body(response, medium, age, end)
                    address = urljoin(checked, response.headers["Location"])
            except httpx.HTTPError as error:
                raise _Later(type(error).__name__) from None
            except (httpx.InvalidURL, ValueError):
                raise _Never("refused_host") from None
        raise _Never("redirects")

    def _body(
        self, response: httpx.Response, medium: Media, age: float, end: float
    ) -> tuple[bytes, str]:
        status = response.status_code
        if status == 410 or (status == 404 and age >= YOUNG):
            raise _Never("gone")
        if status == 404 or status in _LATER or status >= 500:
            raise _Later(str(status), retry_after(response))
        if status != 200:
            raise _Never("refused")
        content_type = _type(response, medium)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise _Never("wrong_type")
        declared = response.headers.get("Content-Length", "")
        if declared.isdecimal() and int(declared) > LARGEST:
            raise _Never("too_large")
        body = io.BytesIO()
        for chunk in response.iter_bytes():
            self._left(end)
            body.write(chunk)
            if body.tell() > LARGEST:
                raise _Never("too_large")
        return body.getvalue(), content_type

    def _left(self, end: float) -> float:
        left = end - self._runtime.now()
        if left < 0.5:
            raise _Later("too_slow")
        return left

    def _credentials(self, provider: Provider) -> tuple[str, str] | None:
        """A picture must not hold up its text for want of a secret."""
        try:
            return provider.media_credentials(self._vault.secrets(provider.name))
        except Unavailable:
            raise _Later("credentials") from None
        except Exception as error:
            if not is_transient(error):
                raise
            raise _Later("credentials") from None

    def _look_again(self, provider: Provider) -> None:
        """The secret may have been rotated; the next try has it as it is now."""
        try:
            self._vault.refreshed(provider.name)
        except Exception as error:
            if not is_transient(error):
                raise


def _checked(address: str, provider: Provider) -> tuple[str, bool]:
    """The address as it may be asked for, and whether it is the provider's API. Raises _Never."""
    match = _ADDRESS.fullmatch(address)
    if match is None or _CLIMBS.search(match[3].partition("?")[0]):
        raise _Never("refused_host")
    checked = f"{match[1].lower()}://{match[2].lower()}{match[3]}"
    if provider.media_path and checked.startswith(provider.api_url + provider.media_path):
        return checked, True
    if any(_is_within(checked, place) for place in provider.media_places):
        return checked, False
    # (The local run, whose providers are at one address with all that they have.)
    api = urlsplit(provider.api_url)
    own = f"{api.scheme}://{api.netloc}/"
    if provider.api_url != provider.default_api_url and checked.startswith(own):
        return checked, False
    raise _Never("refused_host")


def _is_within(address: str, place: str) -> bool:
    host, _, path = place.partition("/")
    scheme, _, rest = address.partition("://")
    its_host, _, its_path = rest.partition("/")
    named = its_host.endswith(host) if host.startswith(".") else its_host == host
    return scheme == "https" and named and its_path.startswith(path)


def _type(response: httpx.Response, medium: Media) -> str:
    """Raises _Never for one that phones do not send."""
    said: str = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if said in _UNSAID:
        said = medium.content_type.partition(";")[0].strip().lower()
    known = said in _TYPES or (said.startswith(_KINDS) and said not in _SCRIPTED)
    if not known or not _TYPE.fullmatch(said):
        raise _Never("wrong_type")
    return said

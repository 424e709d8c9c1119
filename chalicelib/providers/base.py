"""The contract between Spillway and whoever carries the SMS, and the errors it is told in.

One file a provider, both directions; this one holds what they share. A provider translates and
decides nothing: whether a send is repeated is the sender's decision, and it takes it by which of
these errors was raised.

    SignatureError        not from this provider, or not as it sent it
    PayloadError          signed, and not to be read
    UnknownProvider       no such file
    SendError
      Rejected            the provider refused it: permanent
      Throttled           the provider wants it later: it was not taken
      Unavailable         it never reached the provider: safe to repeat
      OutcomeUnknown      it may have been sent: never repeated blindly
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias
from urllib.parse import parse_qsl, urlsplit

from chalicelib.messages import Headers, InboundMessage, WebhookRequest

if TYPE_CHECKING:
    # The receiver imports this module, and must not pay for an HTTP client that it never uses.
    import httpx

    from chalicelib.messages import DeliveryReceipt, Part, Response

Secrets = Mapping[str, Any]
Http: TypeAlias = "httpx.Client"  # noqa: TID251 -- its type; Runtime makes it


class SignatureError(Exception):
    """The request does not prove that it comes from the provider. The text names no value."""


class PayloadError(Exception):
    """The request is the provider's, and cannot be read. The text names no value."""


class UnknownProvider(LookupError):
    """There is no provider of this name."""


class SendError(Exception):
    """A send that did not end in an acceptance. `reason` is a short word without personal data;
    `code` is the provider's own, "" where it gave none."""

    def __init__(self, reason: str, code: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code


class Rejected(SendError):
    """The provider refused it, and will refuse it again. `reason` is one of `REASONS`."""


class Throttled(SendError):
    """The provider did not take it and wants it later: in `retry_after` seconds, if it said."""

    def __init__(self, reason: str, code: str = "", retry_after: float | None = None) -> None:
        super().__init__(reason, code)
        self.retry_after = retry_after


class Unavailable(SendError):
    """It was never handed over (no connection, or our credentials were refused): safe to repeat.

    `reason` is `no_connection` or `credentials`.
    """


class OutcomeUnknown(SendError):
    """It may have been sent: time-out while reading or writing, protocol error, 5xx."""


# Telnyx answers a repeated key as it did the first time for 24 hours; an hour is kept for clocks.
REPEATABLE = 23 * 3600.0

# Why a provider refuses, in our words. What a provider's table does not have is "rejected".
REASONS = frozenset(
    {
        "opted_out",
        "invalid_number",
        "landline",
        "filtered",
        "unregistered",
        "not_permitted",
        "too_long",
        "invalid_request",
        "rejected",
    }
)


@dataclass(frozen=True, slots=True)
class Sent:
    """The provider has it. `id` is the provider's."""

    id: str


@dataclass(frozen=True, slots=True)
class NotSent:
    """The provider answers that it has no such message."""


@dataclass(frozen=True, slots=True)
class CannotTell:
    """The provider cannot say, or names more than one candidate."""


class Provider(ABC):
    """What every provider's file implements.

    `signed`: its webhooks carry a signature that `verify` checks. `idempotent`: within `REPEATABLE`
    seconds the provider never sends the same reference twice, if the request is byte for byte the
    same, and answers one that it took as it did then. `answers_stop`: the provider itself confirms
    STOP, START and HELP. `max_length`: of one text, in UTF-16 code units; `max_segments`: likewise,
    None where the provider names no such limit. `reasons`: by the provider's code for a refusal,
    one of `REASONS`. `lists_texts`: it can be asked which texts it received. `api_url`: replaced in
    the local run. `media_places`: where attachments may be fetched, as host/ or host/path, all
    hosts below one that begins with a dot; `media_path`: likewise on its API, which wants our
    credentials.
    """

    name: ClassVar[str]
    signed: ClassVar[bool]
    idempotent: ClassVar[bool]
    answers_stop: ClassVar[bool]
    max_length: ClassVar[int]
    max_segments: ClassVar[int | None] = None
    reasons: ClassVar[Mapping[str, str]]
    lists_texts: ClassVar[bool] = False
    media_places: ClassVar[tuple[str, ...]] = ()
    media_path: ClassVar[str] = ""
    default_api_url: ClassVar[str]

    def __init__(self, api_url: str | None = None) -> None:
        self.api_url = (api_url or self.default_api_url).rstrip("/")

    @abstractmethod
    def verify(self, request: WebhookRequest, secrets: Secrets) -> None:
        """Returns if the signature is the provider's over this very request.

        Raises SignatureError otherwise, whatever the request holds. Constant time.
        """

    def can_verify(self, secrets: Secrets) -> bool:
        """Whether these secrets hold any key that `verify` could use: a refusal for want of one
        would be our own fault."""
        return bool(secrets)

    @abstractmethod
    def parse(self, request: WebhookRequest) -> list[InboundMessage | DeliveryReceipt]:
        """Every event in the request; none for an event that is neither a text nor a receipt.

        Raises PayloadError where it cannot be read.
        """

    def webhook_of(self, raw: Mapping[str, Any], received_at: float) -> WebhookRequest:
        """The webhook of a text, unsigned, from what is kept of it (`InboundMessage.raw`): where a
        provider does not say otherwise, its body in JSON."""
        return WebhookRequest("POST", "", Headers({}), json.dumps(raw).encode(), received_at)

    def read(self, raw: Mapping[str, Any], received_at: float) -> InboundMessage:
        """A text from what is kept of it, as it is read today. Raises PayloadError."""
        for one in self.parse(self.webhook_of(raw, received_at)):
            if isinstance(one, InboundMessage):
                return one
        raise PayloadError("no text in it")

    def reason_of(self, code: str) -> str:
        """Why a send was refused, in our words, by the code in an answer or in a receipt."""
        return self.reasons.get(code, "rejected")

    @abstractmethod
    def acknowledge(self) -> Response:
        """What tells the provider that we have it."""

    def request(self, part: Part) -> str:
        """The body of the request that hands this part over, where its bytes must be the same at
        each repetition: it is kept, and comes back as `part.request`. "" elsewhere."""
        return ""

    @abstractmethod
    def send(self, part: Part, secrets: Secrets, http: Http) -> Sent:
        """Hands one part over, once. Raises one of the SendErrors."""

    @abstractmethod
    def find_sent(self, part: Part, secrets: Secrets, http: Http) -> Sent | NotSent | CannotTell:
        """Asks the provider whether it has this part, begun at `part.started_at`.

        It may be recognised by its text alone: whether another part of the same text was begun as
        well is the caller's to find out. Raises one of the SendErrors where the question itself
        failed.
        """

    def texts(
        self, ours: str, since: float, secrets: Secrets, http: Http
    ) -> Iterator[InboundMessage]:
        """Every text that people wrote to this number of ours since then (unix seconds), the newest
        first, as if its webhook had come when the provider received it; without its attachments.

        Where `lists_texts`. Raises one of the SendErrors where the question failed.
        """
        raise NotImplementedError

    def with_media(self, message: InboundMessage, secrets: Secrets, http: Http) -> InboundMessage:
        """A text from `texts` with its attachments. Raises likewise."""
        raise NotImplementedError

    def media_credentials(self, secrets: Secrets) -> tuple[str, str]:
        """User and password for attachments on its API (`media_path`). Raises Unavailable."""
        raise NotImplementedError


def post(http: Http, url: str, **arguments: Any) -> httpx.Response:
    """One POST to a provider that may send something, with every failure sorted.

    Returns an answer below 500 that is neither 401 nor 429. httpx keeps connect, pool, write
    and read failures apart, which is what tells "never handed over" from "may have been sent"
    (https://www.python-httpx.org/exceptions/).
    """
    import httpx

    try:
        response = http.post(url, **arguments)
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout):
        # Without its cause, whose text can hold a header.
        raise Unavailable("no_connection") from None
    except httpx.HTTPError as error:
        raise OutcomeUnknown(_words(type(error).__name__)) from None
    if response.status_code == 429:
        raise Throttled("throttled", retry_after=retry_after(response))
    if response.status_code == 401:
        raise Unavailable("credentials", "401")
    if response.status_code >= 500:
        raise OutcomeUnknown("server_error", str(response.status_code))
    return response


def retry_after(response: httpx.Response) -> float | None:
    """The seconds of a `Retry-After` header, from 1 to 12 hours, or None. A date is not honoured:
    clocks differ."""
    value = response.headers.get("retry-after", "")
    if not (value.isascii() and value.isdigit()):
        return None
    return min(max(float(value), 1.0), 43_200.0)


def answer_of(response: httpx.Response) -> dict[str, Any]:
    """The JSON object of an answer, empty where it has none."""
    try:
        answer = response.json()
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def reference_in(url: str) -> str:
    """Our reference, as the call-back URL of a receipt echoes it; "" where it does not."""
    return dict(parse_qsl(urlsplit(url).query)).get("reference", "")


def _words(name: str) -> str:
    """ReadTimeout -> read_timeout."""
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")

"""The domain: what a provider hands us, what we hand back, and the keys under which both are kept.

Standard library only: every function imports this module, the receiver on its way to an
acknowledgement that has two seconds in all.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["queued", "sent", "delivered", "undelivered", "failed", "unconfirmed"]
ConsentEvent = Literal["stop", "start", "help"]

# A status never moves to a lower or equal rank. `unconfirmed` means that the carrier never said:
# a later word from it still counts.
STATUS_RANK: Mapping[str, int] = {
    "queued": 1,
    "sent": 2,
    "unconfirmed": 3,
    "delivered": 4,
    "undelivered": 4,
    "failed": 4,
}


class Headers:
    """The headers of a request, without regard to case; repeated ones are kept.

    Repeated headers read as one, joined by ", " (RFC 9110, section 5.3), so that a signature
    header that was sent twice never verifies.
    """

    def __init__(self, headers: Mapping[str, str | Iterable[str]]) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in headers.items():
            values = [value] if isinstance(value, str) else list(value)
            self._values.setdefault(name.lower(), []).extend(values)

    def get(self, name: str, default: str = "") -> str:
        """The header's value, or `default` where it is absent."""
        values = self._values.get(name.lower())
        return default if values is None else ", ".join(values)

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._values

    def __repr__(self) -> str:
        # Values are credentials and signatures: names only.
        return f"Headers({sorted(self._values)})"


@dataclass(frozen=True, slots=True)
class WebhookRequest:
    """One HTTP request as the provider made it.

    `url` has the scheme, host and path that the provider requested (stage path and custom domain
    included), since some sign it. `body` is raw. `received_at` is in unix seconds.
    """

    method: str
    url: str
    headers: Headers
    body: bytes
    received_at: float

    def __post_init__(self) -> None:
        if not isinstance(self.headers, Headers):
            object.__setattr__(self, "headers", Headers(self.headers))


@dataclass(frozen=True, slots=True)
class Media:
    """One attachment, where the provider keeps it. `content_type` is "" where it was not said."""

    url: str
    content_type: str


@dataclass(frozen=True, slots=True)
class Concatenated:
    """Which piece of a long text this is, at providers that do not join them. `index` from 1."""

    reference: str
    index: int
    total: int


@dataclass(frozen=True, slots=True)
class InboundMessage:
    """One text from a person, in our words. Times are unix seconds.

    `account` and `id` are the provider's; `sent_at` and `segments` are None where the provider
    does not say; `consent_hint` is the provider's own reading of a keyword. `group` is true for a
    message with several recipients, which is stored and never answered automatically. `raw` is the
    payload as parsed, kept for the archive.
    """

    provider: str
    account: str
    id: str
    sender: str
    recipient: str
    text: str
    received_at: float
    media: tuple[Media, ...] = ()
    segments: int | None = None
    sent_at: float | None = None
    consent_hint: ConsentEvent | None = None
    part: Concatenated | None = None
    group: bool = False
    raw: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ours(self) -> str:
        """Our side of the conversation."""
        return self.recipient

    @property
    def theirs(self) -> str:
        """The person's side of the conversation."""
        return self.sender

    def said_at(self, first_received_at: float) -> float:
        """When the person wrote it, as far as that is known: never later than we first had it."""
        return min(self.sent_at or first_received_at, first_received_at)


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """One text that a client of ours asked us to send. `media` holds URLs."""

    provider: str
    ours: str
    theirs: str
    text: str
    media: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DeliveryReceipt:
    """What a provider says became of something we sent.

    `reference` is ours, echoed ("" where the provider does not echo it); `error` is the provider's
    code, "" where there is none. `occurred_at` is in unix seconds, None where it is not said.
    """

    provider: str
    id: str
    reference: str
    status: Status
    error: str = ""
    occurred_at: float | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """One SMS of a reply, ready for a provider.

    `reference` is ours, in [A-Za-z0-9-], and serves as idempotency key where the provider has one.
    `callback_url` is where receipts go, with the reference in it. `media` holds URLs.
    `started_at` (unix seconds) and `known_ids` narrow `find_sent`: when the attempt began, and the
    provider's ids that are already accounted for in this conversation. `request` is what
    `Provider.request` made of the part at its first attempt, "" where there was none. `validity` is
    for how many seconds from now anybody wants it, None where that is not said.
    """

    reference: str
    sender: str
    recipient: str
    text: str
    callback_url: str
    media: tuple[str, ...] = ()
    started_at: float | None = None
    known_ids: frozenset[str] = frozenset()
    request: str = ""
    validity: int | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """What the caller gets. `body` is text; the content type is among the headers."""

    status: int
    headers: Mapping[str, str]
    body: str


NumberKind = Literal["e164", "short_code", "alphanumeric"]

_E164 = re.compile(r"\+[1-9][0-9]{6,14}", re.ASCII)
_SHORT_CODE = re.compile(r"[0-9]{3,8}", re.ASCII)
_ALPHANUMERIC = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9 &_.+-]{1,11}", re.ASCII)


def number_kind(number: str) -> NumberKind | None:
    """What sort of address this is by its form alone, or None where it is none.

    E.164 with its plus sign, a short code of 3 to 8 digits, or an alphanumeric sender of at most
    11 characters. Number plans change; a form does not.
    """
    if _E164.fullmatch(number):
        return "e164"
    if _SHORT_CODE.fullmatch(number):
        return "short_code"
    if _ALPHANUMERIC.fullmatch(number):
        return "alphanumeric"
    return None


def answerable(message: InboundMessage) -> bool:
    """Whether an answer can reach the sender and nobody else."""
    kinds = ("e164", "short_code")
    return (
        number_kind(message.sender) in kinds
        and number_kind(message.recipient) in kinds
        and not message.group
    )


def mask(number: str) -> str:
    """A number as it may be shown: its last two digits."""
    return f"…{number[-2:]}" if len(number) > 4 else "…"


class Keys:
    """Names for conversations, messages and numbers that give nothing away.

    Each is a keyed hash: unkeyed hashes of telephone numbers are reversed by counting.
    `hash_key` is made at the first deploy and never rotated. 96 bits in hexadecimal.
    """

    def __init__(self, hash_key: str) -> None:
        self._key = hash_key.encode()

    def conversation(self, ours: str, theirs: str) -> str:
        return self._hash("conversation", ours, theirs)

    def message(self, source: str, account: str, id_: str) -> str:
        """Of a provider, its account and its id; or of "api", a principal and its key."""
        return self._hash("message", source, account, id_)

    def message_id(self, message: InboundMessage) -> MessageId:
        """Of a text, whichever way it comes to us."""
        return MessageId(
            self.conversation(message.ours, message.theirs),
            self.message(message.provider, message.account, message.id),
        )

    def number(self, number: str) -> str:
        return self._hash("number", number)

    def batch(self, message_ids: Iterable[str]) -> str:
        """Of the messages that one archive object holds, in any order."""
        return self._hash("batch", *sorted(message_ids))

    def _hash(self, *fields: str) -> str:
        # Lengths keep ("ab", "c") and ("a", "bc") apart. A lone surrogate is hashed, not refused.
        text = "".join(f"{len(one)}:{one}" for one in fields)
        digest = hmac.new(self._key, text.encode("utf-8", "surrogatepass"), hashlib.sha256)
        return digest.hexdigest()[:24]


_MESSAGE_ID = re.compile(r"[0-9a-f]{24}-[0-9a-f]{24}", re.ASCII)
_REFERENCE = re.compile(r"([0-9a-f]{24})-([0-9a-f]{24})-([1-9][0-9]?)", re.ASCII)


@dataclass(frozen=True, slots=True)
class MessageId:
    """`{conversation hash}-{message hash}`: whoever has it finds the item by key alone."""

    conversation: str
    message: str

    def __str__(self) -> str:
        return f"{self.conversation}-{self.message}"

    def part(self, number: int) -> str:
        """The reference of a part; parts count from 1."""
        return f"{self}-{number}"

    @classmethod
    def parse(cls, text: str) -> MessageId | None:
        if not _MESSAGE_ID.fullmatch(text):
            return None
        conversation, message = text.split("-")
        return cls(conversation, message)


def parse_reference(reference: str) -> tuple[MessageId, int] | None:
    """The message and the part's number that a reference names, or None for a stranger's."""
    match = _REFERENCE.fullmatch(reference)
    if not match:
        return None
    return MessageId(match[1], match[2]), int(match[3])

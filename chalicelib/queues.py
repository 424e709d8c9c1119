"""The two SQS queues, and what travels on them.

Nothing else talks to SQS. A message's body is one `Envelope` in ASCII JSON: control characters and
lone surrogates, which SQS refuses, travel as escapes. The conversation is in the body too, since
not every event source passes the message group.
https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, get_args

from chalicelib.messages import (
    Concatenated,
    DeliveryReceipt,
    InboundMessage,
    Media,
    MessageId,
    OutgoingMessage,
    parse_reference,
)
from chalicelib.runtime import NotReady, Runtime

T = TypeVar("T")
Kind = Literal[
    "inbound",
    "outgoing",
    "receipt",
    "consent",
    "unreadable",
    "settle",
    "resume",
    "replay",
    "event",
]

PROCESSING = "processing"
OUTBOUND = "outbound.fifo"
DEAD_LETTERS: Mapping[str, str] = {PROCESSING: "processing-dlq", OUTBOUND: "outbound-dlq.fifo"}

# SQS takes 1 MiB; what is left is for attributes.
LARGEST_BODY = 1_000_000
_BATCH = 10
_END_OF_TIME = 1e11  # unix seconds that a date can be made of
_CONVERSATION = re.compile(r"([0-9a-f]{24})?", re.ASCII)


class QueueRefused(NotReady):
    """SQS took the call and refused a message in it."""


class EnvelopeError(ValueError):
    """A body on a queue is not an envelope of ours."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message on a queue.

    `conversation` is its hash and the FIFO group; `id` is the message's id, "" for receipts and
    unreadable payloads; `received_at` (unix seconds) is when our door had it; `callback_url` is
    where this provider's receipts go, without the reference. `payload` is the message as data:
    read it with `inbound`, `outgoing` or `receipt`; that of `consent`, which is of no conversation,
    with `statements.read`. `redriven_at` (unix seconds) is when somebody put it back on its queue:
    age counts from then.

    Two kinds speak of a reply and carry no words, since the ledger has them: `settle`, for
    processing, that a part is unknown (`payload` says which, for whoever reads the queue: the
    ledger's state decides); `resume`, for the sender, that parts wait behind one that was settled.

    A `replay` is a text that was stored before, to be examined once more by processing: its payload
    is that of `inbound`, and `archived_in`, the object of the archive that has its line.
    """

    kind: Kind
    conversation: str
    id: str
    received_at: float
    payload: Mapping[str, Any]
    callback_url: str = ""
    redriven_at: float | None = None

    def body(self) -> str:
        # (Not asdict: it copies the payload, which is data already.)
        content = {one.name: getattr(self, one.name) for one in fields(self)}
        return json.dumps(content, separators=(",", ":"))

    @property
    def log_id(self) -> str:
        """What a log calls it: the message's id, or a receipt's reference; "" where it has neither.
        Nothing else passes, since anybody may have written there."""
        id_ = self.id or self.payload.get("reference")
        known = isinstance(id_, str) and (MessageId.parse(id_) or parse_reference(id_))
        return str(id_) if known else ""

    def inbound(self) -> InboundMessage:
        content = {name: value for name, value in self.payload.items() if name != "archived_in"}
        content["media"] = tuple(Media(**one) for one in content.get("media", ()))
        if content.get("part"):
            content["part"] = Concatenated(**content["part"])
        return InboundMessage(**content)

    def outgoing(self) -> OutgoingMessage:
        return OutgoingMessage(**{**self.payload, "media": tuple(self.payload["media"])})

    def receipt(self) -> DeliveryReceipt:
        return DeliveryReceipt(**self.payload)

    @classmethod
    def parse(cls, body: str) -> Envelope:
        """Raises EnvelopeError."""
        try:
            found = json.loads(body)
            # What another version of this code added is not for this one.
            envelope = cls(**{name: found[name] for name in cls.__slots__ if name in found})
        except (ValueError, TypeError, RecursionError):
            raise EnvelopeError("not an envelope") from None
        # One that passes must not be able to fail the batch it comes in.
        texts = (envelope.conversation, envelope.id, envelope.callback_url)
        if (
            envelope.kind not in get_args(Kind)
            or not isinstance(envelope.payload, dict)
            or not all(isinstance(text, str) for text in texts)
            # It becomes the group of a dead letter, which not every text can be.
            or not _CONVERSATION.fullmatch(envelope.conversation)
            or not _is_time(envelope.received_at)
            or not (envelope.redriven_at is None or _is_time(envelope.redriven_at))
        ):
            raise EnvelopeError("not an envelope")
        return envelope


class Queues:
    """The queues of a stage, by the names in this module. Raises what botocore raises."""

    def __init__(self, runtime: Runtime, stage: str) -> None:
        self._runtime = runtime
        self._stage = stage
        self._urls: dict[str, str] = {}

    def url(self, queue: str) -> str:
        """The queue's URL. Asked once: at INIT, where it also opens the connection."""
        if queue not in self._urls:
            name = f"spillway-{self._stage}-{queue}"
            answer = self._runtime.sqs.get_queue_url(QueueName=name)
            self._urls[queue] = answer["QueueUrl"]
        return self._urls[queue]

    def account(self) -> str:
        """The AWS account, which a queue's URL names."""
        return self.url(PROCESSING).split("/")[-2]

    def depth(self, queue: str) -> int:
        """How many messages are on the queue: visible, in flight and delayed. An estimate, up to a
        minute old.

        https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_GetQueueAttributes.html
        """
        answer = self._runtime.sqs.get_queue_attributes(
            QueueUrl=self.url(queue),
            AttributeNames=[
                "ApproximateNumberOfMessages",
                "ApproximateNumberOfMessagesNotVisible",
                "ApproximateNumberOfMessagesDelayed",
            ],
        )
        return sum(map(int, answer["Attributes"].values()))

    def send(
        self, queue: str, envelopes: Sequence[tuple[Envelope, str]], *, delay: int = 0
    ) -> None:
        """Puts (envelope, deduplication id) pairs on a queue, in order.

        FIFO queues swallow a deduplication id that they saw in the last 5 minutes; a standard
        queue has none, but can delay. Raises QueueRefused where only some were taken.
        """
        for chunk in _chunks(envelopes):
            entries = [
                self._entry(queue, str(number), envelope, deduplication, delay)
                for number, (envelope, deduplication) in enumerate(chunk)
            ]
            if len(entries) == 1:
                del entries[0]["Id"]
                self._runtime.sqs.send_message(QueueUrl=self.url(queue), **entries[0])
            else:
                answer = self._runtime.sqs.send_message_batch(
                    QueueUrl=self.url(queue),
                    Entries=entries,  # type: ignore[arg-type]
                )
                if answer.get("Failed"):
                    raise QueueRefused(f"{len(answer['Failed'])} of {len(entries)} not taken")

    def dead_letter(
        self, queue: str, body: str, *, group: str, source_id: str, history: Mapping[str, str]
    ) -> None:
        """Puts a copy on the queue's dead-letter queue, with what happened to it as attributes.

        The SQS message id of the source is its deduplication id: a copy made twice is one.
        """
        target = DEAD_LETTERS[queue]
        fifo: dict[str, Any] = {}
        if target.endswith(".fifo"):
            fifo = {"MessageGroupId": group, "MessageDeduplicationId": source_id}
        self._runtime.sqs.send_message(
            QueueUrl=self.url(target),
            MessageBody=body,
            MessageAttributes={
                name: {"DataType": "String", "StringValue": value}
                for name, value in history.items()
            },
            **fifo,
        )

    def set_visibility(self, queue: str, entries: Sequence[tuple[str, int]]) -> int:
        """For (receipt handle, seconds) pairs: when each is received again. Returns how many SQS
        refused; those come back when their old visibility ends."""
        refused = 0
        for chunk in _tens(entries):
            answer = self._runtime.sqs.change_message_visibility_batch(
                QueueUrl=self.url(queue),
                Entries=[
                    {"Id": str(number), "ReceiptHandle": handle, "VisibilityTimeout": seconds}
                    for number, (handle, seconds) in enumerate(chunk)
                ],
            )
            refused += len(answer.get("Failed", []))
        return refused

    def delete(self, queue: str, handles: Sequence[str]) -> int:
        """Deletes by receipt handle. Returns how many SQS refused."""
        refused = 0
        for chunk in _tens(handles):
            answer = self._runtime.sqs.delete_message_batch(
                QueueUrl=self.url(queue),
                Entries=[
                    {"Id": str(number), "ReceiptHandle": handle}
                    for number, handle in enumerate(chunk)
                ],
            )
            refused += len(answer.get("Failed", []))
        return refused

    def _entry(
        self, queue: str, id_: str, envelope: Envelope, deduplication: str, delay: int
    ) -> dict[str, Any]:
        entry: dict[str, Any] = {"Id": id_, "MessageBody": envelope.body()}
        if queue.endswith(".fifo"):
            entry["MessageGroupId"] = envelope.conversation
            entry["MessageDeduplicationId"] = deduplication
        elif delay:
            entry["DelaySeconds"] = delay
        return entry


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value < _END_OF_TIME


def _chunks(envelopes: Sequence[tuple[Envelope, str]]) -> list[list[tuple[Envelope, str]]]:
    """At most ten, and at most what one call may carry."""
    chunks: list[list[tuple[Envelope, str]]] = []
    size = 0
    for pair in envelopes:
        length = len(pair[0].body())
        if not chunks or len(chunks[-1]) == _BATCH or size + length > LARGEST_BODY:
            chunks.append([])
            size = 0
        chunks[-1].append(pair)
        size += length
    return chunks


def _tens(values: Sequence[T]) -> list[Sequence[T]]:
    return [values[start : start + _BATCH] for start in range(0, len(values), _BATCH)]

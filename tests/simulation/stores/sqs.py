"""SQS in memory: standard and FIFO queues, as AWS's developer guide describes them.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/welcome.html
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

from botocore.exceptions import ClientError

from tests.simulation.stores import ACCOUNT, REGION, must_be, nothing_else, refusal

T = TypeVar("T")

LARGEST = 1_048_576  # bytes of a message, and of all messages of a batch
LONGEST_VISIBILITY = 43_200  # seconds from the receive
LONGEST_DELAY = 900
DEDUPLICATED = 300.0  # seconds from the first send
MOST_ATTRIBUTES = 10

# The characters of XML 1.0.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_GROUP = re.compile(r"""[A-Za-z0-9!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]{1,128}""")
_ENTRY_ID = re.compile("[A-Za-z0-9_-]{1,80}")
_SYSTEM_ATTRIBUTES = frozenset(
    {
        "All",
        "ApproximateReceiveCount",
        "ApproximateFirstReceiveTimestamp",
        "SentTimestamp",
        "MessageGroupId",
        "MessageDeduplicationId",
        "SequenceNumber",
    }
)


class QueueDoesNotExist(ClientError):
    pass


class ReceiptHandleIsInvalid(ClientError):
    pass


class MessageNotInflight(ClientError):
    pass


class InvalidMessageContents(ClientError):
    pass


@dataclass(eq=False)
class Receipt:
    """One receive of a message, which its handle stands for."""

    message: Message
    received_at: float
    until: float  # when what was received is no longer hidden


@dataclass(eq=False)
class Message:
    """One message on a queue. Times are unix seconds; `group`, `deduplication` and `sequence` are
    "" on a standard queue; `attributes` are the sender's own."""

    id: str
    body: str
    attributes: Mapping[str, Mapping[str, Any]]
    sent_at: float
    visible_at: float
    group: str = ""
    deduplication: str = ""
    sequence: str = ""
    receives: int = 0
    first_received_at: float = 0.0
    receipt: Receipt | None = None  # the latest
    deleted: bool = False


@dataclass(eq=False)
class _Queue:
    name: str
    fifo: bool
    visibility: int
    retention: int
    delay: int
    messages: dict[str, Message] = field(default_factory=dict)  # by id, in the order of sending
    groups: dict[str, dict[str, Message]] = field(default_factory=dict)  # FIFO: the same by group
    receipts: dict[str, Receipt] = field(default_factory=dict)  # by handle
    # (group, deduplication id) -> when it was first sent, and what the answer was
    sent: dict[tuple[str, str], tuple[float, dict[str, str]]] = field(default_factory=dict)


class _Refused(Exception):
    """What is wrong with one message or entry; a batch call lists it, a single call raises it."""

    def __init__(self, code: str, message: str, kind: type[ClientError] = ClientError) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.kind = kind


class Sqs:
    """A client of SQS. `now` gives unix seconds. With probability `reorder` a receive from a
    standard queue takes any messages in any order, else the oldest first.

    `dropped` has every (queue, message) that retention took.
    """

    class exceptions:
        QueueDoesNotExist = QueueDoesNotExist
        ReceiptHandleIsInvalid = ReceiptHandleIsInvalid
        MessageNotInflight = MessageNotInflight
        InvalidMessageContents = InvalidMessageContents

    def __init__(self, now: Callable[[], float], random: Random, *, reorder: float = 0.0) -> None:
        self._now = now
        self._random = random
        self._queues: dict[str, _Queue] = {}
        self._count = 0
        self.reorder = reorder
        self.dropped: list[tuple[str, Message]] = []

    # -- for whoever sets the scene, and looks on --------------------------------------------------

    def add(self, name: str, *, fifo: bool, visibility: int, retention: int, delay: int = 0) -> str:
        """Makes a queue; returns its URL. All times in seconds."""
        if fifo != name.endswith(".fifo"):
            raise ValueError("the name of a FIFO queue, and of no other, ends in .fifo")
        if fifo and delay:
            raise NotImplementedError("a delay of all messages of a FIFO queue")
        self._queues[name] = _Queue(name, fifo, visibility, retention, delay)
        return self._url(name)

    def messages(self, queue: str) -> list[Message]:
        """All messages of a queue (name or URL), in the order of sending: not to be changed."""
        return list(self._kept(self._found("messages", queue)).values())

    def next_visible(self, queue: str) -> float | None:
        """When the next message can be received, unix seconds (past: now), None where there is
        none. A group of a FIFO queue waits for the last of its messages that are in flight."""
        found = self._found("next_visible", queue)
        kept = self._kept(found)
        if not kept:
            return None
        if not found.fifo:
            return min(message.visible_at for message in kept.values())
        return min(
            max(message.visible_at for message in group.values()) for group in found.groups.values()
        )

    def deliver_again(self, queue: str, message_id: str) -> None:
        """A standard queue delivers a message in flight once more; its first receiver's handle
        goes on to work. A FIFO queue does so only as the visibility ends: `expire`."""
        found = self._found("deliver_again", queue)
        self._reappear(found, message_id, ends=found.fifo)

    def expire(self, queue: str, message_id: str) -> None:
        """The visibility of a message ends now, if it is there and in flight."""
        self._reappear(self._found("expire", queue), message_id, ends=True)

    def lose(self, queue: str, message_id: str) -> None:
        """Somebody deletes a message by mistake."""
        found = self._found("lose", queue)
        self._remove(found, found.messages[message_id])

    def _reappear(self, queue: _Queue, message_id: str, *, ends: bool) -> None:
        now = self._now()
        message = self._kept(queue).get(message_id)
        if message and message.receipt and message.visible_at > now:
            message.visible_at = now
            if ends:
                message.receipt.until = now

    # -- the client's operations -------------------------------------------------------------------

    def get_queue_url(self, *, QueueName: str, **other: Any) -> dict[str, Any]:
        nothing_else("get_queue_url", other)
        return {"QueueUrl": self._url(self._found("GetQueueUrl", QueueName).name)}

    def get_queue_attributes(
        self, *, QueueUrl: str, AttributeNames: Sequence[str], **other: Any
    ) -> dict[str, Any]:
        nothing_else("get_queue_attributes", other)
        queue = self._found("GetQueueAttributes", QueueUrl)
        now = self._now()
        kept = self._kept(queue).values()
        hidden = [message for message in kept if message.visible_at > now]
        delayed = sum(1 for message in hidden if not message.receives)
        every = {
            "ApproximateNumberOfMessages": len(kept) - len(hidden),
            "ApproximateNumberOfMessagesNotVisible": len(hidden) - delayed,
            "ApproximateNumberOfMessagesDelayed": delayed,
            "QueueArn": f"arn:aws:sqs:{REGION}:{ACCOUNT}:{queue.name}",
            "VisibilityTimeout": queue.visibility,
            "MessageRetentionPeriod": queue.retention,
            "DelaySeconds": queue.delay,
        }
        asked = every if "All" in AttributeNames else AttributeNames
        if unknown := set(asked) - set(every):
            raise NotImplementedError(f"get_queue_attributes of {', '.join(sorted(unknown))}")
        return {"Attributes": {name: str(every[name]) for name in asked}}

    def send_message(self, *, QueueUrl: str, **message: Any) -> dict[str, Any]:
        queue = self._found("SendMessage", QueueUrl)
        return self._single("SendMessage", lambda: self._send(queue, **message))

    def send_message_batch(
        self, *, QueueUrl: str, Entries: Sequence[Mapping[str, Any]], **other: Any
    ) -> dict[str, Any]:
        nothing_else("send_message_batch", other)
        queue = self._found("SendMessageBatch", QueueUrl)
        if sum(_size(entry) for entry in Entries) > LARGEST:
            raise refusal(
                "SendMessageBatch",
                "AWS.SimpleQueueService.BatchRequestTooLong",
                f"Batch requests cannot be longer than {LARGEST} bytes.",
            )
        return self._batch("SendMessageBatch", Entries, lambda entry: self._send(queue, **entry))

    def receive_message(
        self,
        *,
        QueueUrl: str,
        MaxNumberOfMessages: int = 1,
        VisibilityTimeout: int | None = None,
        WaitTimeSeconds: int = 0,
        AttributeNames: Sequence[str] = (),
        MessageSystemAttributeNames: Sequence[str] = (),
        MessageAttributeNames: Sequence[str] = (),
        **other: Any,
    ) -> dict[str, Any]:
        nothing_else("receive_message", other)
        if WaitTimeSeconds:
            raise NotImplementedError("a receive that waits: nothing here sleeps")
        must_be(int, "MaxNumberOfMessages", MaxNumberOfMessages)
        queue = self._found("ReceiveMessage", QueueUrl)
        if not 1 <= MaxNumberOfMessages <= 10:
            raise refusal(
                "ReceiveMessage",
                "InvalidParameterValue",
                f"Value {MaxNumberOfMessages} for parameter MaxNumberOfMessages is invalid. "
                "Reason: Must be between 1 and 10, if provided.",
            )
        hide = queue.visibility
        if VisibilityTimeout is not None:
            hide = self._single("ReceiveMessage", lambda: _visibility(VisibilityTimeout))
        names = {*AttributeNames, *MessageSystemAttributeNames}
        if not names <= _SYSTEM_ATTRIBUTES:
            raise NotImplementedError(f"attributes {sorted(names - _SYSTEM_ATTRIBUTES)}")
        found = (self._next_of_groups if queue.fifo else self._next)(queue, MaxNumberOfMessages)
        if not found:
            return {}
        return {
            "Messages": [
                self._received(queue, message, hide, names, MessageAttributeNames)
                for message in found
            ]
        }

    def delete_message(self, *, QueueUrl: str, ReceiptHandle: str, **other: Any) -> dict[str, Any]:
        nothing_else("delete_message", other)
        queue = self._found("DeleteMessage", QueueUrl)
        return self._single("DeleteMessage", lambda: self._delete(queue, ReceiptHandle))

    def delete_message_batch(
        self, *, QueueUrl: str, Entries: Sequence[Mapping[str, Any]], **other: Any
    ) -> dict[str, Any]:
        nothing_else("delete_message_batch", other)
        queue = self._found("DeleteMessageBatch", QueueUrl)
        return self._batch(
            "DeleteMessageBatch", Entries, lambda entry: self._delete(queue, **entry)
        )

    def change_message_visibility(
        self, *, QueueUrl: str, ReceiptHandle: str, VisibilityTimeout: int, **other: Any
    ) -> dict[str, Any]:
        nothing_else("change_message_visibility", other)
        queue = self._found("ChangeMessageVisibility", QueueUrl)
        return self._single(
            "ChangeMessageVisibility",
            lambda: self._change(queue, ReceiptHandle, VisibilityTimeout),
        )

    def change_message_visibility_batch(
        self, *, QueueUrl: str, Entries: Sequence[Mapping[str, Any]], **other: Any
    ) -> dict[str, Any]:
        nothing_else("change_message_visibility_batch", other)
        queue = self._found("ChangeMessageVisibilityBatch", QueueUrl)
        return self._batch(
            "ChangeMessageVisibilityBatch", Entries, lambda entry: self._change(queue, **entry)
        )

    # -- how one and how many are answered ---------------------------------------------------------

    def _single(self, operation: str, work: Callable[[], T]) -> T:
        try:
            return work()
        except _Refused as error:
            raise refusal(operation, error.code, error.message, error.kind) from None

    def _batch(
        self,
        operation: str,
        entries: Sequence[Mapping[str, Any]],
        work: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> dict[str, Any]:
        _check_entries(operation, entries)
        done: list[dict[str, Any]] = []
        failed: list[dict[str, Any]] = []
        for entry in entries:
            rest = dict(entry)
            id_ = rest.pop("Id")
            try:
                done.append({"Id": id_, **work(rest)})
            except _Refused as error:
                failed.append(
                    {"Id": id_, "SenderFault": True, "Code": error.code, "Message": error.message}
                )
        answer = {"Successful": done, "Failed": failed}
        return {name: entries for name, entries in answer.items() if entries}

    # -- what is done to one message ---------------------------------------------------------------

    def _send(
        self,
        queue: _Queue,
        *,
        MessageBody: str,
        MessageAttributes: Mapping[str, Mapping[str, Any]] | None = None,
        DelaySeconds: int | None = None,
        MessageGroupId: str | None = None,
        MessageDeduplicationId: str | None = None,
        **other: Any,
    ) -> dict[str, Any]:
        nothing_else("send_message", other)
        must_be(str, "MessageBody", MessageBody)
        attributes = MessageAttributes or {}
        _check_content(MessageBody, attributes)
        now = self._now()
        answer = {"MD5OfMessageBody": hashlib.md5(MessageBody.encode()).hexdigest()}
        if not queue.fifo:
            if MessageGroupId is not None or MessageDeduplicationId is not None:
                raise NotImplementedError("groups on a standard queue")
            delay = queue.delay if DelaySeconds is None else _delay(DelaySeconds)
            message = self._new(queue, MessageBody, attributes, now, now + delay)
            return {**answer, "MessageId": message.id}
        if DelaySeconds:
            raise _Refused(
                "InvalidParameterValue",
                f"Value {DelaySeconds} for parameter DelaySeconds is invalid. Reason: The request "
                "include parameter that is not valid for this queue type.",
            )
        key = _fifo_key(MessageGroupId, MessageDeduplicationId)
        first = queue.sent.get(key)
        if first is None or now >= first[0] + DEDUPLICATED:
            message = self._new(queue, MessageBody, attributes, now, now)
            message.group, message.deduplication = key
            message.sequence = f"{18_850_000_000_000_000_000 + self._count}"
            queue.groups.setdefault(message.group, {})[message.id] = message
            first = now, {"MessageId": message.id, "SequenceNumber": message.sequence}
            queue.sent[key] = first
        return {**answer, **first[1]}

    def _new(
        self,
        queue: _Queue,
        body: str,
        attributes: Mapping[str, Mapping[str, Any]],
        now: float,
        visible_at: float,
    ) -> Message:
        self._count += 1
        id_ = f"{self._count:08d}-0000-4000-8000-000000000000"
        copied = {name: dict(value) for name, value in attributes.items()}
        message = queue.messages[id_] = Message(id_, body, copied, now, visible_at)
        return message

    def _next(self, queue: _Queue, most: int) -> list[Message]:
        now = self._now()
        visible = [message for message in self._kept(queue).values() if message.visible_at <= now]
        if self.reorder and len(visible) > 1 and self._random.random() < self.reorder:
            self._random.shuffle(visible)
        return visible[:most]

    def _next_of_groups(self, queue: _Queue, most: int) -> list[Message]:
        """As many as there is room for of the group with the oldest message, then of the next."""
        now = self._now()
        self._kept(queue)
        found: list[Message] = []
        for group in queue.groups.values():
            if any(message.visible_at > now for message in group.values()):
                continue
            found += list(group.values())[: most - len(found)]
            if len(found) == most:
                break
        return found

    def _received(
        self,
        queue: _Queue,
        message: Message,
        hide: int,
        names: set[str],
        attribute_names: Sequence[str],
    ) -> dict[str, Any]:
        now = self._now()
        self._count += 1
        handle = f"{message.id[:8]}-handle-{self._count}"
        message.receives += 1
        message.first_received_at = message.first_received_at or now
        message.visible_at = now + hide
        message.receipt = queue.receipts[handle] = Receipt(message, now, now + hide)
        answer: dict[str, Any] = {
            "MessageId": message.id,
            "ReceiptHandle": handle,
            "MD5OfBody": hashlib.md5(message.body.encode()).hexdigest(),
            "Body": message.body,
        }
        if names:
            every = {
                "ApproximateReceiveCount": str(message.receives),
                "ApproximateFirstReceiveTimestamp": str(int(message.first_received_at * 1000)),
                "SentTimestamp": str(int(message.sent_at * 1000)),
            }
            if queue.fifo:
                every["MessageGroupId"] = message.group
                every["MessageDeduplicationId"] = message.deduplication
                every["SequenceNumber"] = message.sequence
            answer["Attributes"] = (
                every
                if "All" in names
                else {name: value for name, value in every.items() if name in names}
            )
        if message.attributes and attribute_names:
            asked = {
                name: dict(value)
                for name, value in message.attributes.items()
                if name in attribute_names or "All" in attribute_names
            }
            if asked:
                answer["MessageAttributes"] = asked
        return answer

    def _delete(self, queue: _Queue, ReceiptHandle: str, **other: Any) -> dict[str, Any]:
        nothing_else("delete_message", other)
        message = self._receipt(queue, ReceiptHandle).message
        self._remove(queue, message)
        return {}

    def _change(
        self, queue: _Queue, ReceiptHandle: str, VisibilityTimeout: int, **other: Any
    ) -> dict[str, Any]:
        nothing_else("change_message_visibility", other)
        seconds = _visibility(VisibilityTimeout)
        receipt = self._receipt(queue, ReceiptHandle)
        message = receipt.message
        now = self._now()
        if message.deleted:
            raise _Refused(
                "InvalidParameterValue",
                f"Value {ReceiptHandle} for parameter ReceiptHandle is invalid. Reason: Message "
                "does not exist or is not available for visibility timeout change.",
            )
        if now >= max(receipt.until, message.visible_at):
            raise _Refused(
                "AWS.SimpleQueueService.MessageNotInflight",
                "The message is not in flight.",
                MessageNotInflight,
            )
        if now + seconds > receipt.received_at + LONGEST_VISIBILITY:
            raise _Refused(
                "InvalidParameterValue",
                f"Value {seconds} for parameter VisibilityTimeout is invalid. Reason: Total "
                "VisibilityTimeout for the message is beyond the limit "
                f"[{LONGEST_VISIBILITY} seconds].",
            )
        receipt.until = message.visible_at = now + seconds
        return {}

    def _receipt(self, queue: _Queue, handle: str) -> Receipt:
        """The receive that a handle stands for. On a FIFO queue it ends with the visibility; on a
        standard queue an older one goes on to work (AWS: generally).
        https://repost.aws/knowledge-center/sqs-receipt-handle-error
        """
        must_be(str, "ReceiptHandle", handle)
        self._kept(queue)
        receipt = queue.receipts.get(handle)
        if receipt is None:
            raise _Refused(
                "ReceiptHandleIsInvalid",
                f'The input receipt handle "{handle}" is not a valid receipt handle.',
                ReceiptHandleIsInvalid,
            )
        if queue.fifo and not receipt.message.deleted and self._now() >= receipt.until:
            raise _Refused(
                "InvalidParameterValue",
                f"Value {handle} for parameter ReceiptHandle is invalid. Reason: The receipt "
                "handle has expired.",
            )
        return receipt

    # -- the queues --------------------------------------------------------------------------------

    def _found(self, operation: str, queue: str) -> _Queue:
        found = self._queues.get(queue.rpartition("/")[2])
        if found is None:
            raise refusal(
                operation,
                "AWS.SimpleQueueService.NonExistentQueue",
                "The specified queue does not exist.",
                QueueDoesNotExist,
            )
        return found

    def _kept(self, queue: _Queue) -> dict[str, Message]:
        """The messages of a queue, without those that are older than it keeps them."""
        end = self._now() - queue.retention
        # In the order of sending: where the first is young enough, all are.
        while queue.messages and (first := next(iter(queue.messages.values()))).sent_at < end:
            self._remove(queue, first)
            self.dropped.append((queue.name, first))
        return queue.messages

    def _remove(self, queue: _Queue, message: Message) -> None:
        if queue.messages.pop(message.id, None) is None:
            return
        message.deleted = True
        if queue.fifo:
            group = queue.groups[message.group]
            del group[message.id]
            if not group:
                del queue.groups[message.group]

    @staticmethod
    def _url(name: str) -> str:
        return f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/{name}"


def _check_entries(operation: str, entries: Sequence[Mapping[str, Any]]) -> None:
    """A batch call as a whole: one to ten entries with an id of their own each."""
    code = ""
    ids = [entry["Id"] for entry in entries]
    if not ids:
        code, message = "EmptyBatchRequest", "There should be at least one entry in the request."
    elif len(ids) > 10:
        code, message = "TooManyEntriesInBatchRequest", "Maximum number of entries is 10."
    elif len(set(ids)) < len(ids):
        code, message = "BatchEntryIdsNotDistinct", "Two or more entries have the same Id."
    elif not all(_ENTRY_ID.fullmatch(id_) for id_ in ids):
        code, message = "InvalidBatchEntryId", "An Id is not 1 to 80 letters, digits, - and _."
    if code:
        raise refusal(operation, f"AWS.SimpleQueueService.{code}", message)


def _check_content(body: str, attributes: Mapping[str, Mapping[str, Any]]) -> None:
    texts: Iterable[str] = (body, *(str(one.get("StringValue", "")) for one in attributes.values()))
    if any(map(_FORBIDDEN.search, texts)):
        raise _Refused(
            "InvalidMessageContents", "Invalid characters found.", InvalidMessageContents
        )
    if not body:
        raise _Refused("MissingParameter", "The request must contain the parameter MessageBody.")
    if len(attributes) > MOST_ATTRIBUTES:
        raise _Refused(
            "InvalidParameterValue", f"Number of message attributes [{len(attributes)}] exceeds 10."
        )
    for name, value in attributes.items():
        if set(value) != {"DataType", "StringValue"} or value["DataType"] != "String":
            raise NotImplementedError("an attribute that is no String")
        must_be(str, f"MessageAttributes.{name}.StringValue", value["StringValue"])
        if not value["StringValue"]:
            raise _Refused(
                "InvalidParameterValue",
                f"Message (user) attribute '{name}' must contain a non-empty value of type "
                "'String'.",
            )
    if _size({"MessageBody": body, "MessageAttributes": attributes}) > LARGEST:
        raise _Refused(
            "InvalidParameterValue",
            f"One or more parameters are invalid. Reason: Message must be shorter than {LARGEST} "
            "bytes.",
        )


def _size(message: Mapping[str, Any]) -> int:
    """Bytes, of which the attributes' names and types are a part."""
    size = len(message["MessageBody"].encode("utf-8", "surrogatepass"))
    for name, value in (message.get("MessageAttributes") or {}).items():
        size += len(name.encode()) + sum(len(text.encode()) for text in value.values())
    return size


def _fifo_key(group: str | None, deduplication: str | None) -> tuple[str, str]:
    if group is None:
        raise _Refused("MissingParameter", "The request must contain the parameter MessageGroupId.")
    if deduplication is None:
        raise _Refused(
            "InvalidParameterValue",
            "The queue should either have ContentBasedDeduplication enabled or "
            "MessageDeduplicationId provided explicitly",
        )
    for name, value in (("MessageGroupId", group), ("MessageDeduplicationId", deduplication)):
        must_be(str, name, value)
        if not _GROUP.fullmatch(value):
            raise _Refused(
                "InvalidParameterValue",
                f"Value {value} for parameter {name} is invalid. Reason: {name} can only include "
                "alphanumeric and punctuation characters. 1 to 128 in length.",
            )
    return group, deduplication


def _visibility(seconds: int) -> int:
    return _between("VisibilityTimeout", seconds, LONGEST_VISIBILITY)


def _delay(seconds: int) -> int:
    return _between("DelaySeconds", seconds, LONGEST_DELAY)


def _between(name: str, seconds: int, most: int) -> int:
    must_be(int, name, seconds)
    if not 0 <= seconds <= most:
        raise _Refused(
            "InvalidParameterValue",
            f"Value {seconds} for parameter {name} is invalid. Reason: Must be >= 0 and <= {most}, "
            "if provided.",
        )
    return seconds

"""What travels on the queues comes out as it went in, and every call is one that SQS takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from chalicelib.messages import (
    Concatenated,
    DeliveryReceipt,
    InboundMessage,
    Media,
    OutgoingMessage,
)
from chalicelib.queues import (
    DEAD_LETTERS,
    LARGEST_BODY,
    OUTBOUND,
    PROCESSING,
    Envelope,
    EnvelopeError,
    Kind,
    QueueRefused,
    Queues,
)
from tests.fakes import FakeRuntime

quiet = examples(deadline=None)
URL = "https://sqs.us-east-1.amazonaws.com/123456789012/spillway-test-"

# --- envelopes -----------------------------------------------------------------------------------


def joined(text: str) -> str:
    """Two surrogates that make a character are that character, as in any JSON."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


# NULs, lone surrogates and all else that SQS refuses.
texts = st.text(st.characters() | st.sampled_from("\x00\x0b\x1f\ud83d\ude00\ufffe\uffff")).map(
    joined
)
times = st.floats(0, 4e9)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)
inbound_messages = st.builds(
    InboundMessage,
    provider=st.sampled_from(["twilio", "telnyx"]),
    account=texts,
    id=texts,
    sender=texts,
    recipient=texts,
    text=texts,
    received_at=times,
    media=st.lists(st.builds(Media, texts, texts), max_size=3).map(tuple),
    segments=st.none() | st.integers(1, 10),
    sent_at=st.none() | times,
    consent_hint=st.sampled_from([None, "stop", "start", "help"]),
    part=st.none() | st.builds(Concatenated, texts, st.integers(1, 9), st.integers(1, 9)),
    group=st.booleans(),
    raw=st.dictionaries(texts, json_values, max_size=3),
)
outgoing_messages = st.builds(
    OutgoingMessage, texts, texts, texts, texts, st.lists(texts, max_size=3).map(tuple)
)
receipts = st.builds(
    DeliveryReceipt,
    provider=texts,
    id=texts,
    reference=texts,
    status=st.sampled_from(["queued", "sent", "delivered", "undelivered", "failed", "unconfirmed"]),
    error=texts,
    occurred_at=st.none() | times,
)


def through_the_queue(kind: Kind, payload: dict[str, Any], received_at: float = 1.5) -> Envelope:
    envelope = Envelope(kind, "c" * 24, "an id", received_at, payload, "https://sms.example.com/x")
    body = envelope.body()
    assert all(" " <= character <= "\x7f" for character in body)
    parsed = Envelope.parse(body)
    for name in ("kind", "conversation", "id", "received_at", "callback_url"):
        assert getattr(parsed, name) == getattr(envelope, name)
    return parsed


@quiet
@given(inbound_messages)
def test_an_inbound_message_comes_out_as_it_went_in(message: InboundMessage) -> None:
    parsed = through_the_queue("inbound", asdict(message), message.received_at)
    assert parsed.inbound() == message


@quiet
@given(outgoing_messages)
def test_an_outgoing_message_comes_out_as_it_went_in(message: OutgoingMessage) -> None:
    assert through_the_queue("outgoing", asdict(message)).outgoing() == message


@quiet
@given(receipts)
def test_a_receipt_comes_out_as_it_went_in(receipt: DeliveryReceipt) -> None:
    assert through_the_queue("receipt", asdict(receipt)).receipt() == receipt


@quiet
@given(st.dictionaries(texts, json_values, max_size=5))
def test_an_unreadable_payload_comes_out_as_it_went_in(payload: dict[str, Any]) -> None:
    assert through_the_queue("unreadable", payload).payload == payload


def test_a_message_without_its_raw_payload_is_whole() -> None:
    message = InboundMessage("twilio", "AC1", "SM1", "a", "b", "hello", 1.5, raw={"From": "a"})
    payload = asdict(message)
    del payload["raw"]
    parsed = through_the_queue("inbound", payload).inbound()
    assert (parsed.text, parsed.raw) == ("hello", {})


GOOD: dict[str, Any] = {
    "kind": "inbound",
    "conversation": "",
    "id": "",
    "received_at": 1,
    "payload": {},
    "callback_url": "",
}


def without(name: str) -> dict[str, Any]:
    return {other: value for other, value in GOOD.items() if other != name}


def test_what_the_bad_ones_are_made_of_is_good() -> None:
    assert Envelope.parse(json.dumps(GOOD)) == Envelope("inbound", "", "", 1, {})
    assert Envelope.parse(json.dumps(without("callback_url"))) == Envelope("inbound", "", "", 1, {})


def test_a_field_of_another_version_is_passed_over() -> None:
    assert Envelope.parse(json.dumps({**GOOD, "heron": 1})) == Envelope.parse(json.dumps(GOOD))


def test_when_it_was_redriven_travels_along() -> None:
    envelope = Envelope("settle", "c" * 24, "an id", 1, {"part": 1, "attempt": 0}, redriven_at=7.5)
    assert Envelope.parse(envelope.body()) == envelope
    assert Envelope.parse(json.dumps(GOOD)).redriven_at is None


@pytest.mark.parametrize(
    "body",
    [
        "",
        "hello",
        "null",
        "1",
        "[]",
        "{}",
        '"inbound"',
        "{",
        "[" * 100_000,
        '{"a":' * 100_000,
        "1" * 10_000,
        *(json.dumps(without(name)) for name in GOOD if name != "callback_url"),
        *(
            json.dumps({**GOOD, name: value})
            for name, value in [
                ("kind", "settled"),
                ("kind", ""),
                ("kind", None),
                ("kind", ["inbound"]),
                ("kind", {}),
                ("conversation", None),
                ("conversation", 5),
                ("conversation", ["c"]),
                ("conversation", "c" * 23),
                ("conversation", "C" * 24),
                ("conversation", "c" * 24 + "\n"),
                ("conversation", "a b"),
                ("id", None),
                ("id", 5),
                ("id", {"a": "b"}),
                ("received_at", None),
                ("received_at", "1"),
                ("received_at", float("nan")),
                ("received_at", float("inf")),
                ("received_at", -1),
                ("received_at", 1e300),
                ("received_at", 10**400),
                ("redriven_at", "1"),
                ("redriven_at", -1),
                ("redriven_at", float("nan")),
                ("payload", None),
                ("payload", []),
                ("payload", "{}"),
                ("callback_url", None),
                ("callback_url", ["https://sms.example.com"]),
            ]
        ),
    ],
    ids=lambda body: body[:60],
)
def test_what_is_no_envelope_is_refused(body: str) -> None:
    with pytest.raises(EnvelopeError, match=r"^not an envelope$") as caught:
        Envelope.parse(body)
    # The error's causes may quote the body.
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


nearly = st.fixed_dictionaries({name: json_values | st.just(value) for name, value in GOOD.items()})


@quiet
@given(st.text() | json_values.map(json.dumps) | nearly.map(json.dumps))
def test_any_body_is_an_envelope_or_an_envelope_error(body: str) -> None:
    try:
        envelope = Envelope.parse(body)
    except EnvelopeError:
        return
    assert envelope.kind in get_args(Kind)
    assert isinstance(envelope.payload, dict)
    for text in (envelope.conversation, envelope.id, envelope.callback_url):
        assert isinstance(text, str)
    assert 0 <= envelope.received_at < 1e11


# --- sending -------------------------------------------------------------------------------------


class Sqs:
    """Every call with its arguments. `failed` is how many entries of each batch SQS refuses."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.failed = 0

    def __getattr__(self, name: str) -> Callable[..., dict[str, Any]]:
        def call(**arguments: Any) -> dict[str, Any]:
            self.calls.append((name, arguments))
            if name == "get_queue_url":
                stem = URL.rpartition("/")[0]
                return {"QueueUrl": f"{stem}/{arguments['QueueName']}"}
            if name == "get_queue_attributes":
                counts = enumerate(arguments["AttributeNames"])
                return {"Attributes": {count: str(10**place) for place, count in counts}}
            entries = arguments.get("Entries", [])
            refused = [{"Id": entry["Id"]} for entry in entries[: self.failed]]
            return {"Successful": [], **({"Failed": refused} if refused else {})}

        return call

    def made(self) -> list[tuple[str, dict[str, Any]]]:
        """The calls but for the questions after URLs."""
        return [call for call in self.calls if call[0] != "get_queue_url"]

    def entries(self) -> list[list[dict[str, Any]]]:
        return [arguments["Entries"] for _, arguments in self.made()]


@pytest.fixture
def sqs() -> Sqs:
    return Sqs()


@pytest.fixture
def queues(sqs: Sqs) -> Queues:
    runtime = FakeRuntime()
    runtime.__dict__["sqs"] = sqs
    return Queues(runtime, "test")


def numbered(how_many: int, text: str = "") -> list[tuple[Envelope, str]]:
    return [
        (Envelope("inbound", f"c{n}", f"id{n}", 1.5, {"n": n, "text": text}), f"d{n}")
        for n in range(how_many)
    ]


@pytest.mark.parametrize("queue", [PROCESSING, OUTBOUND, *DEAD_LETTERS.values()])
def test_a_queues_url_is_asked_for_once(queue: str, queues: Queues, sqs: Sqs) -> None:
    for _ in range(2):
        assert queues.url(queue) == URL + queue
    assert sqs.calls == [("get_queue_url", {"QueueName": f"spillway-test-{queue}"})]


def test_the_account_is_read_from_a_url(queues: Queues) -> None:
    assert queues.account() == "123456789012"


def test_the_depth_of_a_queue_is_all_that_stands_on_it(queues: Queues, sqs: Sqs) -> None:
    assert queues.depth(OUTBOUND) == 111
    ((_, arguments),) = sqs.made()
    assert arguments["QueueUrl"] == URL + OUTBOUND
    assert set(arguments["AttributeNames"]) == {
        "ApproximateNumberOfMessages",
        "ApproximateNumberOfMessagesNotVisible",
        "ApproximateNumberOfMessagesDelayed",
    }


def test_nothing_to_send_is_no_call(queues: Queues, sqs: Sqs) -> None:
    queues.send(PROCESSING, [])
    assert sqs.calls == []


@pytest.mark.parametrize(
    ("queue", "delay", "more"),
    [
        (PROCESSING, 0, {}),
        (PROCESSING, 60, {"DelaySeconds": 60}),
        (OUTBOUND, 0, {"MessageGroupId": "c0", "MessageDeduplicationId": "d0"}),
        # A FIFO queue takes no delay of a single message.
        (OUTBOUND, 60, {"MessageGroupId": "c0", "MessageDeduplicationId": "d0"}),
    ],
)
@pytest.mark.parametrize("how_many", [1, 2])
def test_what_a_message_is_sent_with(
    queue: str, delay: int, more: dict[str, Any], how_many: int, queues: Queues, sqs: Sqs
) -> None:
    messages = numbered(how_many)
    queues.send(queue, messages, delay=delay)
    entry = {"MessageBody": messages[0][0].body(), **more}
    ((name, arguments),) = sqs.made()
    assert arguments["QueueUrl"] == URL + queue
    if how_many == 1:
        assert name == "send_message"
        assert arguments == {"QueueUrl": URL + queue, **entry}
    else:
        assert name == "send_message_batch"
        assert arguments["Entries"][0] == {"Id": "0", **entry}


@pytest.mark.parametrize(
    ("how_many", "calls"),
    [(2, [2]), (10, [10]), (12, [10, 2]), (20, [10, 10]), (33, [10, 10, 10, 3])],
)
@pytest.mark.parametrize("queue", [PROCESSING, OUTBOUND])
def test_at_most_ten_a_call_and_in_order(
    how_many: int, calls: list[int], queue: str, queues: Queues, sqs: Sqs
) -> None:
    messages = numbered(how_many)
    queues.send(queue, messages)
    assert [len(entries) for entries in sqs.entries()] == calls
    sent = [entry["MessageBody"] for entries in sqs.entries() for entry in entries]
    assert sent == [envelope.body() for envelope, _ in messages]
    for entries in sqs.entries():
        ids = [entry["Id"] for entry in entries]
        assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("sizes", "calls"),
    [
        ([400_000, 400_000, 400_000], [2, 1]),
        ([600_000, 600_000], [1, 1]),
        ([10, LARGEST_BODY, 10], [1, 1, 1]),
        ([LARGEST_BODY // 2, LARGEST_BODY // 2, 200], [2, 1]),
        ([90_000] * 12, [10, 2]),
        ([110_000] * 12, [9, 3]),
    ],
)
def test_no_call_carries_more_than_sqs_takes(
    sizes: list[int], calls: list[int], queues: Queues, sqs: Sqs
) -> None:
    messages = [sized(size) for size in sizes]
    queues.send(OUTBOUND, messages)
    bodies = [
        [entry["MessageBody"] for entry in arguments.get("Entries", [arguments])]
        for _, arguments in sqs.made()
    ]
    assert [len(one) for one in bodies] == calls
    assert all(sum(map(len, one)) <= LARGEST_BODY for one in bodies)
    assert [body for one in bodies for body in one] == [envelope.body() for envelope, _ in messages]


def sized(size: int) -> tuple[Envelope, str]:
    """An envelope whose body has `size` bytes, or as few as it can."""
    empty = len(Envelope("inbound", "c", "i", 1.5, {"text": ""}).body())
    text = "x" * max(0, size - empty)
    return Envelope("inbound", "c", "i", 1.5, {"text": text}), "d"


@pytest.mark.parametrize("failed", [1, 3])
def test_a_batch_that_is_taken_in_part_is_refused(failed: int, queues: Queues, sqs: Sqs) -> None:
    sqs.failed = failed
    with pytest.raises(QueueRefused, match=f"^{failed} of 3 not taken$"):
        queues.send(OUTBOUND, numbered(3))


def test_nothing_is_sent_after_a_refusal(queues: Queues, sqs: Sqs) -> None:
    sqs.failed = 1
    with pytest.raises(QueueRefused):
        queues.send(OUTBOUND, numbered(25))
    assert len(sqs.made()) == 1


# --- dead letters --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("queue", "target", "more"),
    [
        (PROCESSING, "processing-dlq", {}),
        (
            OUTBOUND,
            "outbound-dlq.fifo",
            {"MessageGroupId": "a conversation", "MessageDeduplicationId": "an SQS id"},
        ),
    ],
)
def test_a_dead_letter_is_a_copy_with_its_history(
    queue: str, target: str, more: dict[str, Any], queues: Queues, sqs: Sqs
) -> None:
    queues.dead_letter(
        queue,
        "the body as it came",
        group="a conversation",
        source_id="an SQS id",
        history={"reason": "never_ended", "receives": "7"},
    )
    assert sqs.made() == [
        (
            "send_message",
            {
                "QueueUrl": URL + target,
                "MessageBody": "the body as it came",
                "MessageAttributes": {
                    "reason": {"DataType": "String", "StringValue": "never_ended"},
                    "receives": {"DataType": "String", "StringValue": "7"},
                },
                **more,
            },
        )
    ]


# --- visibility and deletion ---------------------------------------------------------------------


def set_visibility(queues: Queues, handles: Sequence[str]) -> int:
    return queues.set_visibility(PROCESSING, [(handle, 60) for handle in handles])


def delete(queues: Queues, handles: Sequence[str]) -> int:
    return queues.delete(PROCESSING, handles)


@pytest.mark.parametrize(
    ("act", "operation", "more"),
    [
        (set_visibility, "change_message_visibility_batch", {"VisibilityTimeout": 60}),
        (delete, "delete_message_batch", {}),
    ],
)
@pytest.mark.parametrize(
    ("how_many", "calls", "failed", "refused"),
    [
        (0, [], 0, 0),
        (1, [1], 0, 0),
        (10, [10], 0, 0),
        (23, [10, 10, 3], 0, 0),
        (10, [10], 4, 4),
        (23, [10, 10, 3], 2, 6),
    ],
)
def test_handles_go_in_tens_and_what_is_refused_is_counted(
    act: Callable[[Queues, Sequence[str]], int],
    operation: str,
    more: dict[str, Any],
    how_many: int,
    calls: list[int],
    failed: int,
    refused: int,
    queues: Queues,
    sqs: Sqs,
) -> None:
    sqs.failed = failed
    handles = [f"h{number}" for number in range(how_many)]
    assert act(queues, handles) == refused
    assert all(name == operation for name, _ in sqs.made())
    assert [len(entries) for entries in sqs.entries()] == calls
    sent = [entry for entries in sqs.entries() for entry in entries]
    assert [entry["ReceiptHandle"] for entry in sent] == handles
    assert all(more.items() <= entry.items() for entry in sent)
    for entries in sqs.entries():
        assert len({entry["Id"] for entry in entries}) == len(entries)

"""What becomes of each message of a batch, and who has to wait for whom."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import Barrier
from typing import Any, TypeVar

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    ParamValidationError,
    ReadTimeoutError,
)

from chalicelib.batches import (
    LONGEST,
    MOST_STARTS,
    SUSPECT_STARTS,
    Batch,
    BatchFailed,
    Defer,
    GiveUp,
    Record,
)
from chalicelib.messages import MessageId
from chalicelib.queues import DEAD_LETTERS, OUTBOUND, PROCESSING, Envelope, Kind, Queues
from chalicelib.runtime import NotReady, Runtime
from chalicelib.table import ReadIncomplete, Table
from chalicelib.vault import SecretError
from tests.fakes import (
    NOW,
    THEIRS,
    Context,
    FakeRuntime,
    Lost,
    aws_error,
    events,
    logged,
    no_answer,
    sqs_event,
    tapped,
)

pytestmark = pytest.mark.usefixtures("says_nothing")

T = TypeVar("T")


def body(name: str, conversation: str) -> str:
    """An envelope whose payload says which message it is; its conversation is "aaa...a" for "a"."""
    id_ = MessageId("c" * 24, name.encode().hex().rjust(24, "0"))
    payload = {"name": name, "text": f"heron {THEIRS}"}
    return Envelope("inbound", conversation * 24, str(id_), NOW, payload).body()


def of(*names: str, receives: int = 1) -> dict[str, Any]:
    """Lambda's event for these messages. The conversation of "a1" is that of "a"; message
    ids are m0, m1, and so on, receipt handles h0, h1."""
    return sqs_event([body(name, name[0]) for name in names], receives=receives)


def batch(
    runtime: FakeRuntime,
    event: dict[str, Any],
    *,
    queue: str = OUTBOUND,
    seconds: float = 60,
    reporting: bool = True,
    give_up_after: float | None = None,
    but_never: Sequence[Kind] = (),
) -> Batch:
    return Batch(
        runtime,
        Queues(runtime, "test"),
        Table(runtime, "test"),
        queue,
        event,
        Context(runtime, seconds),
        reporting=reporting,
        give_up_after=give_up_after,
        but_never=but_never,
    )


class Work:
    """What is done with a message: it takes so many seconds, and some messages fail."""

    def __init__(self, runtime: FakeRuntime, **fails: BaseException) -> None:
        self._runtime = runtime
        self.seconds = 0.0
        self.fails = fails
        self.begun: list[str] = []
        self.done: list[str] = []

    def __call__(self, envelope: Envelope, record: Record) -> str:
        name = envelope.payload["name"]
        self.begun.append(name)
        self._runtime.clock += self.seconds
        if name in self.fails:
            raise self.fails[name]
        self.done.append(name)
        return f"done {name}"


def handle(runtime: FakeRuntime, event: dict[str, Any], work: Work, **options: Any) -> list[str]:
    """One invocation, conversations in order; what it reports as not done."""
    one = batch(runtime, event, **options)
    one.each(work, needs=10, ordered=True)
    return reported(one.finish())


def reported(report: dict[str, Any] | None) -> list[str]:
    assert report is not None
    return [entry["itemIdentifier"] for entry in report["batchItemFailures"]]


def starts(runtime: FakeRuntime, id_: str = "m0") -> int:
    item = Table(runtime, "test").get((f"S#{id_}", "START")) or {}
    return len(item.get("starts", ()))


def begin(runtime: FakeRuntime, times: int, *ids: str) -> None:
    """Lets these messages be begun so often, from the second receive on, and never end."""
    for receive in range(2, 2 + times):
        begun = batch(runtime, of(*ids, receives=receive))
        begun.each(Work(runtime, **{one: ValueError("heron") for one in ids}), needs=0)


def dead(runtime: FakeRuntime, queue: str = OUTBOUND) -> list[dict[str, Any]]:
    """What was put on the dead-letter queue."""
    return runtime.queues.sent[DEAD_LETTERS[queue]]


def history(message: dict[str, Any]) -> dict[str, str]:
    return {name: one["StringValue"] for name, one in message["MessageAttributes"].items()}


# --- order -------------------------------------------------------------------------------------


def test_the_messages_of_a_conversation_come_in_order(runtime: FakeRuntime) -> None:
    work = Work(runtime)
    one = batch(runtime, of("a1", "b1", "a2", "b2", "a3"))
    results = one.each(work, needs=10, ordered=True)
    assert [id_ for id_ in work.done if id_[0] == "a"] == ["a1", "a2", "a3"]
    assert [id_ for id_ in work.done if id_[0] == "b"] == ["b1", "b2"]
    assert {record.id: result for record, result in results.items()} == {
        "m0": "done a1",
        "m1": "done b1",
        "m2": "done a2",
        "m3": "done b2",
        "m4": "done a3",
    }
    assert one.finish() == {"batchItemFailures": []}


@pytest.mark.parametrize(
    ("ids", "ordered"), [(("a1", "b1"), True), (("a1", "a2"), False)], ids=["ordered", "unordered"]
)
def test_what_need_not_wait_is_worked_on_side_by_side(
    runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch, ids: Sequence[str], ordered: bool
) -> None:
    # GIVEN real threads, and work that ends only when both messages are worked on at once
    monkeypatch.setattr(runtime, "together", lambda tasks: Runtime.together(runtime, tasks))
    both = Barrier(2)

    def work(envelope: Envelope, record: Record) -> str:
        both.wait(timeout=10)
        return str(envelope.payload["name"])

    one = batch(runtime, of(*ids))
    results = one.each(work, needs=10, ordered=ordered)
    assert sorted(results.values()) == sorted(ids)


def test_a_second_step_takes_what_the_first_left(runtime: FakeRuntime) -> None:
    # GIVEN a first step that defers one message and dead-letters another
    one = batch(runtime, of("a1", "b1", "c1", receives=2))
    first = one.each(Work(runtime, a1=Defer("later"), b1=GiveUp("never")), needs=10)

    # THEN the second has what is left, and each start was written down once
    second = Work(runtime)
    one.each(second, first, needs=10)
    assert second.done == ["c1"]
    assert (starts(runtime, "m0"), starts(runtime, "m2")) == (0, 1)
    assert reported(one.finish()) == ["m0"]


# --- deferral ----------------------------------------------------------------------------------


def test_a_deferral_hides_a_message_and_its_successors_alike(runtime: FakeRuntime) -> None:
    # GIVEN a message in the middle of its conversation that has to wait
    work = Work(runtime, a2=Defer("later", 30))
    not_done = handle(runtime, of("a1", "b1", "a2", "b2", "a3", "a4"), work)

    # THEN so do its successors, as long, and nobody else
    assert not_done == ["m2", "m4", "m5"]
    assert runtime.queues.hidden == {"h2": 30, "h4": 30, "h5": 30}
    assert work.done == ["a1", "b1", "b2"]
    assert work.begun == ["a1", "a2", "b1", "b2"]


def test_a_deferral_outside_an_order_hides_one_message(runtime: FakeRuntime) -> None:
    one = batch(runtime, of("a1", "a2"), queue=PROCESSING)
    one.each(Work(runtime, a1=Defer("later", 30)), needs=10)
    assert reported(one.finish()) == ["m0"]
    assert runtime.queues.hidden == {"h0": 30}


@pytest.mark.parametrize(
    ("after", "receives", "hidden"),
    [
        (7.0, 1, 7),
        (0.0, 1, 0),
        (-5.0, 1, 0),
        (13 * 3600.0, 1, LONGEST),
        # Backoff: a second, and half (as chance has it here) of what doubles up to 120.
        (None, 1, 2),
        (None, 2, 3),
        (None, 4, 9),
        (None, 6, 33),
        (None, 7, 61),
        (None, 900, 61),
    ],
)
def test_how_long_a_deferral_lasts(
    runtime: FakeRuntime, after: float | None, receives: int, hidden: int
) -> None:
    handle(runtime, of("a1", receives=receives), Work(runtime, a1=Defer("later", after)))
    assert runtime.queues.hidden == {"h0": hidden}


@pytest.mark.parametrize(("after", "hidden"), [(30, 10), (30.4, 11), (20, 0), (7, 0)])
def test_a_deferral_begins_when_its_reason_does(
    runtime: FakeRuntime, after: float, hidden: int
) -> None:
    # GIVEN a batch that goes on for 20 s after a message was deferred
    work = Work(runtime, a1=Defer("later", after))
    one = batch(runtime, of("a1", "b1", "a2"))
    one.each(work, needs=10, ordered=True)
    runtime.clock += 20
    one.finish()
    assert runtime.queues.hidden == {"h0": hidden, "h2": hidden}


def test_jitter_is_full(runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = []
    for chance in (0.0, 0.999):
        monkeypatch.setattr(runtime, "random", lambda chance=chance: chance)
        handle(runtime, of("a1", receives=6), Work(runtime, a1=Defer("later")))
        hidden.append(runtime.queues.hidden["h0"])
    assert hidden == [1, 65]


def named(error: Exception) -> str:
    """The error's code, or else its type, as the name of a case."""
    if isinstance(error, ClientError):
        return error.response["Error"]["Code"]
    return type(error).__name__


SOMEWHERE = "https://dynamodb.example.com"


@pytest.mark.parametrize(
    "error",
    [
        EndpointConnectionError(endpoint_url=SOMEWHERE),
        ConnectTimeoutError(endpoint_url=SOMEWHERE),
        ReadTimeoutError(endpoint_url=SOMEWHERE),
        aws_error("ProvisionedThroughputExceededException"),
        aws_error("ThrottlingException"),
        aws_error("RequestLimitExceeded"),
        aws_error("InternalServerError"),
        aws_error("ServiceUnavailable"),
        aws_error("AccessDeniedException"),
        aws_error("ResourceNotFoundException"),
        aws_error("ExpiredTokenException"),
        NotReady("the secret of a heron"),
        SecretError("the secret of a heron"),
        ReadIncomplete("3 keys unread"),
    ],
    ids=named,
)
def test_a_service_that_fails_is_no_fault_of_the_message(
    runtime: FakeRuntime, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    not_done = handle(runtime, of("a1", "a2", "b1", receives=3), Work(runtime, a1=error))
    assert not_done == ["m0", "m1"]
    assert runtime.queues.hidden == {"h0": 5, "h1": 5}
    assert starts(runtime, "m0") == starts(runtime, "m1") == 0
    assert events(logged(capsys)) == ["deferred"]


@pytest.mark.parametrize(
    "error",
    [
        ValueError(f"heron {THEIRS}"),
        KeyError(THEIRS),
        aws_error("ValidationException"),
        ParamValidationError(report="heron"),
    ],
    ids=named,
)
def test_an_unexpected_error_is_counted_against_the_message(
    runtime: FakeRuntime, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    not_done = handle(runtime, of("a1", "a2", "b1", receives=9), Work(runtime, a1=error))
    assert not_done == ["m0", "m1"]
    assert (starts(runtime, "m0"), starts(runtime, "m1")) == (1, 0)
    lines = logged(capsys)
    assert events(lines) == ["unexpected_error"]
    assert [line["UnexpectedErrors"] for line in lines if "UnexpectedErrors" in line] == [1]

    # AND it comes soon, however often it was received: the conversation waits for it
    assert runtime.queues.hidden == {"h0": 5, "h1": 5}


@pytest.mark.parametrize(
    ("age", "buried"), [(3599, False), (3601, True)], ids=["young enough", "too old"]
)
def test_what_is_deferred_for_too_long_is_given_up(
    runtime: FakeRuntime, age: float, buried: bool
) -> None:
    # GIVEN a queue that gives up after an hour
    runtime.clock = NOW + age
    work = Work(runtime, a1=Defer("lookup: line"))
    not_done = handle(runtime, of("a1", "a2"), work, queue=PROCESSING, give_up_after=3600)

    assert not_done == ([] if buried else ["m0", "m1"])
    assert work.done == (["a2"] if buried else [])
    assert [history(one)["reason"] for one in dead(runtime, PROCESSING)] == (
        ["too_old: lookup: line"] if buried else []
    )


def test_a_kind_that_ends_by_itself_is_not_given_up(runtime: FakeRuntime) -> None:
    runtime.clock = NOW + 7200
    work = Work(runtime, a1=Defer("lookup: line"))
    options: dict[str, Any] = {"queue": PROCESSING, "give_up_after": 3600}
    assert handle(runtime, of("a1"), work, but_never=["inbound"], **options) == ["m0"]
    assert handle(runtime, of("a1"), work, but_never=["settle"], **options) == []


def test_age_counts_from_when_it_was_redriven(runtime: FakeRuntime) -> None:
    # GIVEN a message that is two hours old and was put back a moment ago
    runtime.clock = NOW + 7200
    envelope = replace(Envelope.parse(body("a1", "a")), redriven_at=NOW + 7100)
    work = Work(runtime, a1=Defer("lookup: line"))
    event = sqs_event([envelope.body()])
    assert handle(runtime, event, work, queue=PROCESSING, give_up_after=3600) == ["m0"]
    runtime.clock = NOW + 7100 + 3601
    assert handle(runtime, event, work, queue=PROCESSING, give_up_after=3600) == []
    assert [history(one)["reason"] for one in dead(runtime, PROCESSING)] == [
        "too_old: lookup: line"
    ]


def test_without_such_a_limit_a_deferral_has_no_end(runtime: FakeRuntime) -> None:
    runtime.clock = NOW + 14 * 86_400
    assert handle(runtime, of("a1", receives=900), Work(runtime, a1=Defer("x"))) == ["m0"]
    assert dead(runtime) == []


def test_one_step_for_several_is_taken_or_they_are_deferred(runtime: FakeRuntime) -> None:
    # GIVEN an archive that is down for two of three messages
    one = batch(runtime, of("a1", "a2", "a3"), queue=PROCESSING)

    def archive() -> str:
        raise aws_error("SlowDown", "PutObject")

    assert one.all_or_none(archive, one.records[:2]) is None
    assert one.all_or_none(lambda: "key", one.records[2:]) == "key"
    assert reported(one.finish()) == ["m0", "m1"]
    assert runtime.queues.hidden == {"h0": 2, "h1": 2}


# --- dead letters ------------------------------------------------------------------------------


def test_what_is_given_up_leaves_a_copy_and_the_way_free(runtime: FakeRuntime) -> None:
    runtime.clock = NOW + 60
    event = of("a1", "a2", receives=4)
    work = Work(runtime, a1=GiveUp("unexpected_kind"))
    assert handle(runtime, event, work) == []
    assert work.done == ["a2"]

    (copy,) = dead(runtime)
    assert copy["MessageBody"] == event["Records"][0]["body"]
    assert (copy["MessageGroupId"], copy["MessageDeduplicationId"]) == ("a" * 24, "m0")
    assert history(copy) == {
        "reason": "unexpected_kind",
        "receives": "4",
        "starts": "1",
        "first_sent_at": str(int(NOW)),
        "dead_lettered_at": str(int(NOW) + 60),
    }


def test_a_copy_on_a_standard_queue(runtime: FakeRuntime) -> None:
    assert handle(runtime, of("a1"), Work(runtime, a1=GiveUp("x")), queue=PROCESSING) == []
    (copy,) = dead(runtime, PROCESSING)
    assert not {"MessageGroupId", "MessageDeduplicationId"} & set(copy)


@pytest.mark.parametrize(
    "text",
    [
        "hello",
        "",
        "null",
        "7",
        "[]",
        "{}",
        '{"kind": "inbound"}',
        json.dumps({**json.loads(body("a1", "a")), "kind": "gossip"}),
        json.dumps({**json.loads(body("a1", "a")), "payload": "heron"}),
        json.dumps({**json.loads(body("a1", "a")), "conversation": ["a"]}),
        json.dumps({**json.loads(body("a1", "a")), "conversation": "a b"}),
        json.dumps({**json.loads(body("a1", "a")), "received_at": "now"}),
        "[" * 20_000,
    ],
    ids=lambda text: text[:20] or "empty",
)
def test_what_is_no_envelope_is_dead_lettered_at_once(runtime: FakeRuntime, text: str) -> None:
    work = Work(runtime)
    event = sqs_event([text, body("a2", "a")], group="a")
    assert handle(runtime, event, work) == []
    assert work.begun == ["a2"]
    (copy,) = dead(runtime)
    assert (copy["MessageBody"], copy["MessageGroupId"]) == (text, "a")
    assert history(copy)["reason"] == "not_an_envelope"


@pytest.mark.parametrize(
    ("kind", "payload", "counted"),
    [
        ("inbound", {"text": "STOP"}, True),
        ("inbound", {"text": "Please stop texting me\r\n"}, True),
        ("inbound", {"text": "A heron?", "consent_hint": "stop"}, True),
        ("inbound", {"text": "A heron?", "consent_hint": None}, False),
        ("inbound", {"text": "STOP", "consent_hint": "help"}, False),
        ("inbound", {"text": "START"}, False),
        # What cannot be read as a message is dead-lettered all the same.
        ("inbound", {"consent_hint": "stop"}, True),
        ("inbound", {"text": 7}, False),
        ("inbound", {}, False),
        # Ours to them.
        ("outgoing", {"text": "STOP"}, False),
        ("settle", {"part": 1}, False),
        # Said by another way than a text.
        ("consent", {"event": "stop"}, True),
        ("consent", {"event": "start"}, False),
        ("consent", {"text": "STOP"}, False),
    ],
)
def test_a_stop_among_the_dead_letters_is_counted(
    runtime: FakeRuntime,
    capsys: pytest.CaptureFixture[str],
    kind: Kind,
    payload: dict[str, Any],
    counted: bool,
) -> None:
    id_ = str(MessageId("c" * 24, "d" * 24))
    event = sqs_event([Envelope(kind, "c" * 24, id_, NOW, payload).body()])
    one = batch(runtime, event)
    one.each(lambda envelope, record: raise_(GiveUp("never")), needs=0)
    assert reported(one.finish()) == []
    assert len(dead(runtime)) == 1
    stops = [line for line in logged(capsys) if "StopsDeadLettered" in line]
    assert [(line["StopsDeadLettered"], line["id"]) for line in stops] == [(1, id_)] * counted


def raise_(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("reference", "id_"),
    [
        (MessageId("c" * 24, "d" * 24).part(2), f"{'c' * 24}-{'d' * 24}-2"),
        ("", None),
        # Anybody who knows the provider's secret may have put anything there.
        (f"heron {THEIRS}", None),
        (7, None),
    ],
)
def test_what_is_said_of_a_receipt_has_its_reference(
    runtime: FakeRuntime, capsys: pytest.CaptureFixture[str], reference: object, id_: str | None
) -> None:
    receipt = Envelope("receipt", "", "", NOW, {"reference": reference})
    for error in (Defer("later"), ValueError("heron"), GiveUp("never")):
        batch(runtime, sqs_event([receipt.body()])).each(lambda *_, e=error: raise_(e), needs=0)
    lines = logged(capsys)
    assert events(lines) == ["deferred", "unexpected_error", "dead_lettered"]
    assert len(lines) == 6
    assert {line.get("id") for line in lines} == {id_}


def test_the_group_is_in_the_body_or_else_in_the_attributes(runtime: FakeRuntime) -> None:
    event = sqs_event([body("a1", "a"), "no envelope", body("b1", "")])
    event["Records"][1]["attributes"]["MessageGroupId"] = "a"
    event["Records"][2]["attributes"]["MessageGroupId"] = "b"
    assert [record.group for record in batch(runtime, event).records] == ["a" * 24, "a", "b"]

    # AND where neither says, each message stands for itself
    event = sqs_event(["no envelope", body("b1", "")])
    assert [record.group for record in batch(runtime, event).records] == ["m0", "m1"]


def test_a_message_stays_while_the_dead_letter_queue_refuses(
    runtime: FakeRuntime, capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN a dead-letter queue that takes nothing
    runtime.queues.refuses["outbound-dlq.fifo"] = aws_error("AccessDenied", "SendMessage")
    work = Work(runtime, a1=GiveUp("x"))
    assert handle(runtime, of("a1", "a2"), work) == ["m0", "m1"]
    assert runtime.queues.hidden == {"h0": 2, "h1": 2}
    assert events(logged(capsys)) == ["could_not_defer"]

    # WHEN it takes messages again
    runtime.queues.refuses.clear()
    assert handle(runtime, of("a1", "a2", receives=2), work) == []
    assert (len(dead(runtime)), work.done) == (1, ["a2"])


# --- starts ------------------------------------------------------------------------------------


def test_a_first_receive_writes_nothing(runtime: FakeRuntime) -> None:
    handle(runtime, of("a1", "b1", "c1"), Work(runtime, a1=ValueError("heron"), b1=Defer("x")))
    assert tapped(runtime).calls == []


def test_a_start_is_written_from_the_second_receive_on(runtime: FakeRuntime) -> None:
    handle(runtime, of("a1", "b1", receives=2), Work(runtime, a1=ValueError("heron")))
    assert (starts(runtime, "m0"), starts(runtime, "m1")) == (1, 1)
    item = Table(runtime, "test").get(("S#m0", "START"))
    assert item is not None
    assert item["expires_at"] == NOW + 15 * 86_400  # longer than the queue keeps the message


def test_a_deferral_takes_its_start_back_and_those_before_it(runtime: FakeRuntime) -> None:
    # Starts of which the taking back failed, or came before the start itself, are among them.
    begin(runtime, 2, "a1")
    handle(runtime, of("a1", receives=4), Work(runtime, a1=Defer("x")))
    assert starts(runtime) == 0


def test_a_taking_back_is_tried_three_times(runtime: FakeRuntime) -> None:
    # GIVEN a table that refuses two writes after the start, THEN the third is heard
    down = aws_error("ProvisionedThroughputExceededException")
    for refusals, left in ((2, 0), (3, 1)):
        tapped(runtime).next["update_item"] = iter([None, *[down] * refusals])
        handle(runtime, of("a1", receives=2), Work(runtime, a1=Defer("x")))
        assert starts(runtime) == left


def test_a_start_whose_answer_was_lost_is_taken_back(runtime: FakeRuntime) -> None:
    # GIVEN a message whose start is written each time, and never heard of
    for receive in range(2, 2 + MOST_STARTS + 1):
        tapped(runtime).next["update_item"] = iter([Lost(no_answer())])
        assert handle(runtime, of("a1", receives=receive), Work(runtime)) == ["m0"]
    # THEN it could not be worked on, and nobody takes it for one that kills
    assert (starts(runtime), dead(runtime)) == (0, [])


def test_what_was_not_begun_writes_nothing(runtime: FakeRuntime) -> None:
    # GIVEN a second receive of messages, of which the second waits for the first
    handle(runtime, of("a1", "a2", receives=2), Work(runtime, a1=Defer("x")))
    # AND another for which there is no time
    handle(runtime, of("b1", receives=2), Work(runtime), seconds=9)
    assert {one["Key"]["pk"]["S"] for _, one in tapped(runtime).calls} == {"S#m0"}
    assert starts(runtime) == 0


def test_a_start_whose_answer_was_lost_counts_once(runtime: FakeRuntime) -> None:
    # GIVEN a table so slow that the same start is written several times
    tapped(runtime).next["update_item"] = iter([Lost(no_answer()), Lost(no_answer())])
    for _ in range(3):
        handle(runtime, of("a1", receives=2), Work(runtime, a1=ValueError("heron")))
    assert starts(runtime) == 1


def test_after_five_starts_that_never_ended_it_is_dead_lettered_unbegun(
    runtime: FakeRuntime,
) -> None:
    begin(runtime, MOST_STARTS - 1, "a1")
    work = Work(runtime, a1=ValueError("heron"))
    assert handle(runtime, of("a1", "a2", receives=6), work) == ["m0", "m1"]
    assert (work.begun, dead(runtime)) == (["a1"], [])

    assert handle(runtime, of("a1", "a2", receives=7), work) == []
    assert (work.begun, work.done) == (["a1", "a2"], ["a2"])
    (copy,) = dead(runtime)
    assert history(copy).items() >= {"reason": "never_ended", "starts": "6"}.items()


def test_a_suspect_is_worked_on_last_and_alone(
    runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a message with three starts, and one that was received as often without fault
    begin(runtime, SUSPECT_STARTS, "a1")
    side_by_side: list[int] = []

    def together(tasks: Sequence[Callable[[], T]], limit: int = 1) -> list[T]:
        side_by_side.append(len(tasks))
        return [task() for task in tasks]

    monkeypatch.setattr(runtime, "together", together)
    work = Work(runtime)
    assert handle(runtime, of("a1", "b1", "a2", "c1", receives=5), work) == []

    # THEN its conversation comes after all others, and nothing runs beside it
    assert work.done == ["b1", "c1", "a1", "a2"]
    assert side_by_side == [2]


def test_one_suspect_at_a_time(runtime: FakeRuntime) -> None:
    # GIVEN a batch whose messages were begun together again and again, and one that kills
    queue = Fifo(runtime, "a1", "b1", "c1", "d1", "e1", "f1")
    work = Work(runtime, e1=Died())
    queue.drain(lambda event: handle(runtime, event, work))
    # THEN the killer alone is dead-lettered, although it was not the first
    assert [copy["MessageGroupId"] for copy in dead(runtime)] == ["e" * 24]
    assert set(work.done) == {"a1", "b1", "c1", "d1", "f1"}


def test_one_suspect_of_a_conversation_at_a_time(runtime: FakeRuntime) -> None:
    # GIVEN a conversation in which the second message kills, and takes what was done with it along
    queue = Fifo(runtime, "a1", "a2", "a3")
    work = Work(runtime, a2=Died())
    queue.drain(lambda event: handle(runtime, event, work))
    # THEN it alone is dead-lettered
    (copy,) = dead(runtime)
    assert json.loads(copy["MessageBody"])["id"].endswith(b"a2".hex())
    assert set(work.done) == {"a1", "a3"}


def test_a_start_makes_no_suspect_at_the_second_step(runtime: FakeRuntime) -> None:
    # GIVEN two messages for which this is the third start
    begin(runtime, SUSPECT_STARTS - 1, "a1")
    begin(runtime, SUSPECT_STARTS - 1, "a1", "b1")
    one = batch(runtime, of("a1", "b1", receives=SUSPECT_STARTS + 1))
    # WHEN both have ended the first step of it
    done = one.each(Work(runtime), needs=10)
    # THEN neither is put off at the second
    work = Work(runtime)
    one.each(work, list(done), needs=10)
    assert work.done == ["a1", "b1"]
    assert reported(one.finish()) == []


def test_a_function_that_never_has_the_time_does_not_spin(
    runtime: FakeRuntime, capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN a time-out that is shorter than what the work wants
    assert handle(runtime, of("a1", "b1"), Work(runtime), seconds=5) == ["m0", "m1"]
    # THEN they wait, and it is said
    assert set(runtime.queues.hidden.values()) == {2}
    lines = logged(capsys)
    assert events(lines) == ["time_out_too_short"] * 2
    # AND each that is handed back can be found
    ids = [json.loads(body(name, name[0]))["id"] for name in ("a1", "b1")]
    assert [line["id"] for line in lines if "HandedBack" in line] == ids
    assert [line["id"] for line in lines if "event" in line] == ids


def test_two_starts_make_no_suspect(runtime: FakeRuntime) -> None:
    begin(runtime, SUSPECT_STARTS - 1, "a1")
    work = Work(runtime)
    handle(runtime, of("a1", "b1", receives=4), work)
    assert work.done == ["a1", "b1"]


@pytest.mark.parametrize(
    "error",
    [
        aws_error("InternalServerError"),
        ReadIncomplete("1 key"),
        aws_error("ValidationException"),
        RuntimeError(THEIRS),
    ],
)
def test_while_the_table_does_not_say_everybody_is_a_suspect(
    runtime: FakeRuntime, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    tapped(runtime).next["batch_get_item"] = iter([error])
    event = of("a1", "b1", receives=1)
    event["Records"][0]["attributes"]["ApproximateReceiveCount"] = "4"
    work = Work(runtime)
    assert handle(runtime, event, work) == []
    assert work.done == ["b1", "a1"]
    assert "suspects_not_read" in events(logged(capsys))


# --- time --------------------------------------------------------------------------------------


def test_what_cannot_be_begun_in_time_is_handed_back(
    runtime: FakeRuntime, capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN a minute, work that takes 28 s and wants 10
    work = Work(runtime)
    work.seconds = 28
    not_done = handle(runtime, of("a1", "a2", "a3", "b1", receives=2), work, seconds=60)

    # THEN what does not fit comes again at once, uncounted
    assert work.begun == ["a1", "a2"]
    assert not_done == ["m2", "m3"]
    assert runtime.queues.hidden == {"h2": 0, "h3": 0}
    assert (starts(runtime, "m2"), starts(runtime, "m3")) == (0, 0)
    assert sum(line.get("HandedBack", 0) for line in logged(capsys)) == 2


def test_the_deadline_is_lambdas(runtime: FakeRuntime) -> None:
    one = batch(runtime, of("a1"), seconds=60)
    runtime.clock += 13
    assert (one.deadline, one.remaining()) == (NOW + 60, 47)


# --- the answer to Lambda ----------------------------------------------------------------------


def test_where_reports_are_taken_nothing_is_deleted_here(runtime: FakeRuntime) -> None:
    assert handle(runtime, of("a1", "b1"), Work(runtime, a1=Defer("x"))) == ["m0"]
    assert runtime.queues.deleted == []


def test_where_reports_are_not_taken_what_is_done_is_deleted_and_the_rest_raised(
    runtime: FakeRuntime,
) -> None:
    work = Work(runtime, a1=Defer("x", 30), c1=GiveUp("never"))
    one = batch(runtime, of("a1", "b1", "c1", "a2"), reporting=False)
    one.each(work, needs=10, ordered=True)
    with pytest.raises(BatchFailed, match="2 of 4 not done"):
        one.finish()
    assert runtime.queues.deleted == ["h1", "h2"]
    assert runtime.queues.hidden == {"h0": 30, "h3": 30}


def test_where_reports_are_not_taken_a_batch_that_is_done_needs_nothing(
    runtime: FakeRuntime,
) -> None:
    one = batch(runtime, of("a1", "b1"), reporting=False)
    one.each(Work(runtime), needs=10, ordered=True)
    assert one.finish() is None
    assert runtime.queues.deleted == []


def test_where_nothing_is_done_nothing_is_deleted(runtime: FakeRuntime) -> None:
    one = batch(runtime, of("a1"), reporting=False)
    one.each(Work(runtime, a1=Defer("x")), needs=10)
    with pytest.raises(BatchFailed):
        one.finish()
    assert runtime.queues.deleted == []


@pytest.mark.parametrize(
    ("operation", "event"),
    [
        ("change_message_visibility_batch", "visibility_refused"),
        ("delete_message_batch", "delete_refused"),
    ],
)
def test_refused_entries_are_logged_and_change_nothing(
    runtime: FakeRuntime,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    operation: str,
    event: str,
) -> None:
    # GIVEN SQS, which refuses one entry of several
    refused = {"Failed": [{"Id": "0", "Code": "ReceiptHandleIsInvalid", "Message": THEIRS}]}
    monkeypatch.setattr(runtime.queues, operation, lambda **_: refused)
    work = Work(runtime, a1=Defer("x"))
    one = batch(runtime, of("a1", "a2", "b1", "c1"), reporting=False)
    one.each(work, needs=10, ordered=True)

    with pytest.raises(BatchFailed):
        one.finish()
    lines = [line for line in logged(capsys) if line.get("event") == event]
    assert [line["count"] for line in lines] == [1]


def test_what_is_not_done_is_reported_even_if_sqs_is_down(
    runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def down(**_: object) -> None:
        raise EndpointConnectionError(endpoint_url="https://sqs.example.com")

    monkeypatch.setattr(runtime.queues, "change_message_visibility_batch", down)
    assert handle(runtime, of("a1", "b1"), Work(runtime, a1=Defer("x"))) == ["m0"]
    assert "visibility_not_set" in events(logged(capsys))


@pytest.mark.parametrize("error", [aws_error("AccessDenied"), RuntimeError(THEIRS)])
def test_what_cannot_be_deleted_comes_again_and_the_error_stays_here(
    runtime: FakeRuntime,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    def fails(**_: object) -> None:
        raise error

    monkeypatch.setattr(runtime.queues, "delete_message_batch", fails)
    one = batch(runtime, of("a1", "b1"), reporting=False)
    one.each(Work(runtime, a1=Defer("x")), needs=10)
    with pytest.raises(BatchFailed, match="1 of 2 not done") as raised:
        one.finish()
    assert raised.value.__context__ is None
    assert "not_deleted" in events(logged(capsys))


# --- stories, with a queue ---------------------------------------------------------------------


class Died(BaseException):
    """The end of a process: nothing after it is run."""


@dataclass
class Message:
    id: str
    body: str
    group: str
    visible_at: float
    receives: int = 0


class Fifo:
    """A FIFO queue and Lambda's mapping on it, as far as order and visibility go: no message of a
    group is received while an earlier one is hidden."""

    VISIBILITY = 360.0

    def __init__(self, runtime: FakeRuntime, *ids: str) -> None:
        self._runtime = runtime
        self.messages = [Message(one, body(one, one[0]), one[0], NOW) for one in ids]
        self.timed_out: set[str] = set()

    def drain(self, handler: Callable[[dict[str, Any]], list[str]]) -> None:
        """Invokes the handler until the queue is empty, and lets time pass where all is hidden."""
        for _ in range(300):
            if not self.messages:
                return
            received = self._receive()
            if not received:
                self._runtime.clock = min(message.visible_at for message in self.messages)
                continue
            try:
                failed = handler({"Records": [self._record(message) for message in received]})
            except Died:
                failed = [message.id for message in received]
            self._settle(received, failed)
        raise AssertionError("never empty")

    def _receive(self) -> list[Message]:
        received: list[Message] = []
        locked = set()
        for message in self.messages:
            if message.visible_at > self._runtime.clock:
                locked.add(message.group)
            elif message.group not in locked and len(received) < 10:
                received.append(message)
        for message in received:
            message.receives += 1
            message.visible_at = self._runtime.clock + self.VISIBILITY
        return received

    def _settle(self, received: Sequence[Message], failed: Sequence[str]) -> None:
        for message in received:
            handle = f"{message.id}/{message.receives}"
            if message.id not in failed:
                self.messages.remove(message)
            elif handle in self._runtime.queues.hidden:
                message.visible_at = self._runtime.clock + self._runtime.queues.hidden[handle]
            else:
                self.timed_out.add(message.id)

    def _record(self, message: Message) -> dict[str, Any]:
        return {
            "messageId": message.id,
            "receiptHandle": f"{message.id}/{message.receives}",
            "body": message.body,
            "attributes": {
                "ApproximateReceiveCount": str(message.receives),
                "SentTimestamp": str(int(NOW * 1000)),
                "MessageGroupId": message.group,
            },
        }


def test_a_poison_message_is_put_aside_and_its_conversation_goes_on(runtime: FakeRuntime) -> None:
    # GIVEN a conversation that begins with a message which always fails, and another conversation
    queue = Fifo(runtime, "a1", "a2", "b1", "a3", "b2")
    work = Work(runtime, a1=ValueError(f"heron {THEIRS}"))
    queue.drain(lambda event: handle(runtime, event, work))

    # THEN the poison is on the dead-letter queue with its history
    (copy,) = dead(runtime)
    assert (copy["MessageBody"], copy["MessageGroupId"]) == (body("a1", "a"), "a" * 24)
    assert history(copy) == {
        "reason": "never_ended",
        "receives": "7",
        "starts": "6",
        "first_sent_at": str(int(NOW)),
        "dead_lettered_at": str(int(runtime.clock)),
    }
    # AND the good ones were done once, in order, the other conversation's at once
    assert work.done == ["b1", "b2", "a2", "a3"]
    # AND none waited for a visibility time-out
    assert queue.timed_out == set()
    assert runtime.clock < NOW + 60


def test_a_message_that_takes_the_process_with_it_ends_up_alone_and_then_aside(
    runtime: FakeRuntime,
) -> None:
    # GIVEN a message that kills whatever works on it
    queue = Fifo(runtime, "a1", "b1", "a2", "c1")
    work = Work(runtime, a1=Died())
    queue.drain(lambda event: handle(runtime, event, work))

    # THEN the others are done before it is tried for the last times, its successor after it
    assert list(dict.fromkeys(work.done)) == ["b1", "c1", "a2"]
    assert work.done.count("a2") == 1
    last = len(work.begun) - 1 - work.begun[::-1].index("a1")
    assert work.begun[: last + 1].count("a1") == 1 + MOST_STARTS
    assert work.begun.index("b1") < last
    assert [history(copy)["starts"] for copy in dead(runtime)] == ["6"]


def test_deferrals_keep_the_order_and_are_no_fault(runtime: FakeRuntime) -> None:
    # GIVEN a provider that wants nothing for an hour, far more often than five times
    queue = Fifo(runtime, "a1", "a2", "b1", "a3")
    work = Work(runtime, a1=Defer("provider: throttled"))

    def until_it_opens(event: dict[str, Any]) -> list[str]:
        if runtime.clock > NOW + 3600:
            work.fails.clear()
        return handle(runtime, event, work)

    queue.drain(until_it_opens)
    assert work.done == ["b1", "a1", "a2", "a3"]
    assert work.begun.count("a1") > 30
    assert (dead(runtime), queue.timed_out) == ([], set())


def test_a_batch_without_time_for_all_loses_and_counts_nothing(runtime: FakeRuntime) -> None:
    # GIVEN work that takes so long that each invocation has time for two messages
    queue = Fifo(runtime, *(f"a{number}" for number in range(1, 10)))
    work = Work(runtime)
    work.seconds = 28
    queue.drain(lambda event: handle(runtime, event, work))
    assert work.done == [f"a{number}" for number in range(1, 10)]
    assert (dead(runtime), queue.timed_out) == ([], set())

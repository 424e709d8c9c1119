"""A worker against a queue in memory: what it gathers, calls, deletes and leaves."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from spillway.local.worker import Context, Function, Poller, load

URL = "http://127.0.0.1/queue"
ARN = "arn:aws:sqs:us-east-1:000000000000:queue"

Answer = Callable[[list[str]], Any]


class Queue:
    """As much of SQS as a poller asks for. A long poll of an empty queue is cut short."""

    def __init__(self, messages: int, *, undeletable: frozenset[str] = frozenset()) -> None:
        self.waiting = [f"m{number}" for number in range(messages)]
        self.in_flight: list[str] = []
        self.deleted: list[str] = []
        self.handed_back: list[str] = []
        self.asked: list[tuple[int, int]] = []
        self._undeletable = undeletable

    def receive_message(
        self, *, MaxNumberOfMessages: int, WaitTimeSeconds: int, **_: Any
    ) -> dict[str, Any]:
        self.asked.append((MaxNumberOfMessages, WaitTimeSeconds))
        taken, self.waiting = (
            self.waiting[:MaxNumberOfMessages],
            self.waiting[MaxNumberOfMessages:],
        )
        self.in_flight += taken
        if not taken:
            time.sleep(0.05)
            return {}
        return {"Messages": [message(one) for one in taken]}

    def delete_message_batch(self, *, Entries: list[dict[str, Any]], **_: Any) -> dict[str, Any]:
        assert 1 <= len(Entries) <= 10
        assert len({entry["Id"] for entry in Entries}) == len(Entries)
        handles = [entry["ReceiptHandle"] for entry in Entries]
        self.deleted += [handle for handle in handles if handle not in self._undeletable]
        failed = [{"Code": "ReceiptHandleIsInvalid"} for one in handles if one in self._undeletable]
        return {"Failed": failed} if failed else {}

    def change_message_visibility_batch(self, *, Entries: list[dict[str, Any]], **_: Any) -> None:
        assert 1 <= len(Entries) <= 10
        assert all(entry["VisibilityTimeout"] == 0 for entry in Entries)
        self.handed_back += [entry["ReceiptHandle"] for entry in Entries]


def message(id_: str) -> dict[str, Any]:
    # The handle is the id, so that a test reads which message an entry means.
    return {
        "MessageId": id_,
        "ReceiptHandle": id_,
        "Body": "",
        "MD5OfBody": "",
        "Attributes": {"ApproximateReceiveCount": "1"},
    }


def function(answer: Answer, *, batch_size: int = 10, window: float = 0.0) -> Function:
    def handler(event: dict[str, Any], context: Any) -> Any:
        assert context.get_remaining_time_in_millis() > 0
        return answer([one["messageId"] for one in event["Records"]])

    return Function("spillway-local-send", handler, "queue", batch_size, window, 60, 512, True)


def poller(queue: Queue, answer: Answer, **how: Any) -> Poller:
    return Poller(queue, URL, ARN, function(answer, **how), threading.Event())


def failing(*identifiers: str) -> Answer:
    entries = [{"itemIdentifier": one} for one in identifiers]
    return lambda ids: {"batchItemFailures": entries}


def broken(ids: list[str]) -> Any:
    raise ValueError("+14155550100 said hello")


@pytest.mark.parametrize(
    ("answer", "deleted", "worked"),
    [
        (lambda ids: None, ["m0", "m1", "m2"], True),
        (failing(), ["m0", "m1", "m2"], True),
        (failing("m1"), ["m0", "m2"], True),
        (failing("m0", "m1", "m2"), [], True),
        (failing("somebody else's"), [], False),
        (failing(""), [], False),
        (lambda ids: "fine", [], False),
        (lambda ids: object(), [], False),
        (broken, [], False),
    ],
)
def test_what_is_deleted(answer: Answer, deleted: list[str], worked: bool) -> None:
    queue = Queue(3)
    this = poller(queue, answer)
    assert this.invoke(this.gather()) is worked
    assert queue.deleted == deleted


@pytest.mark.parametrize(
    ("batch_size", "window", "waiting", "gathered", "asked_for"),
    [
        (10, 0.0, 25, 10, [10]),
        (10, 0.0, 3, 3, [10]),
        (100, 1.0, 250, 100, [10] * 10),
        (95, 1.0, 250, 95, [10] * 9 + [5]),
    ],
)
def test_how_much_is_gathered(
    batch_size: int, window: float, waiting: int, gathered: int, asked_for: list[int]
) -> None:
    queue = Queue(waiting)
    found = poller(queue, broken, batch_size=batch_size, window=window).gather()
    assert [one["MessageId"] for one in found] == [f"m{number}" for number in range(gathered)]
    assert [most for most, _ in queue.asked] == asked_for


def test_a_window_ends_though_the_batch_is_not_full() -> None:
    queue = Queue(12)
    began = time.monotonic()
    found = poller(queue, broken, batch_size=100, window=0.4).gather()
    assert len(found) == 12
    assert 0.4 <= time.monotonic() - began < 0.8
    assert all(wait == 0 for _, wait in queue.asked[1:])


def test_a_delete_that_fails_is_logged_and_the_others_are_deleted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    queue = Queue(25, undeletable=frozenset({"m3"}))
    this = poller(queue, failing(), batch_size=100, window=0.2)
    with caplog.at_level(logging.ERROR, "worker"):
        assert this.invoke(this.gather())
    assert len(queue.deleted) == 24
    assert [one.getMessage() for one in caplog.records] == [
        "queue queue: not deleted: ReceiptHandleIsInvalid"
    ]


def test_an_error_is_logged_with_its_place_and_without_its_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    this = poller(Queue(1), broken)
    with caplog.at_level(logging.ERROR, "worker"):
        this.invoke(this.gather())
    assert "ValueError" in caplog.text
    assert "test_worker.py:" in caplog.text
    assert "hello" not in caplog.text


@pytest.mark.parametrize(("answer", "calls"), [(broken, 1), (failing(), 3)])
def test_a_failed_batch_is_followed_by_a_pause(answer: Answer, calls: int) -> None:
    queue, stopping, called = Queue(3), threading.Event(), []

    def counted(ids: list[str]) -> Any:
        called.append(ids)
        return answer(ids)

    this = Poller(queue, URL, ARN, function(counted, batch_size=1), stopping)
    thread = threading.Thread(target=this.run)
    thread.start()
    time.sleep(0.5)
    stopping.set()
    thread.join(2)
    assert not thread.is_alive()
    assert len(called) == calls


def test_a_queue_that_fails_does_not_end_the_worker() -> None:
    queue, stopping = Queue(0), threading.Event()
    receive, calls = queue.receive_message, []

    def sometimes(**how: Any) -> dict[str, Any]:
        calls.append(how)
        if len(calls) == 1:
            raise ConnectionError("no way there")
        stopping.set()
        return receive(**how)

    queue.receive_message = sometimes  # type: ignore[method-assign]
    Poller(queue, URL, ARN, function(broken), stopping).run()
    assert len(calls) == 2


def test_what_arrives_after_the_order_to_end_is_handed_back() -> None:
    queue, stopping = Queue(3), threading.Event()
    receive = queue.receive_message

    def late(**how: Any) -> dict[str, Any]:
        stopping.set()
        return receive(**how)

    queue.receive_message = late  # type: ignore[method-assign]
    Poller(queue, URL, ARN, function(broken), stopping).run()
    assert queue.handed_back == ["m0", "m1", "m2"]
    assert queue.deleted == []


def test_the_context_counts_down_to_the_time_out_and_not_below() -> None:
    now = time.monotonic()
    running = Context("spillway-local-send", "512", "arn", deadline=now + 60)
    assert 59_000 < running.get_remaining_time_in_millis() <= 60_000
    assert Context("spillway-local-send", "512", "arn", now).get_remaining_time_in_millis() == 0
    assert running.aws_request_id != Context("f", "1", "arn", now).aws_request_id


@pytest.mark.parametrize(
    ("child", "name", "queue", "batch_size", "window"),
    [
        ("processing", "spillway-local-process", "spillway-test-processing", 100, 1),
        ("outbound", "spillway-local-send", "spillway-test-outbound.fifo", 10, 0),
    ],
)
def test_a_worker_reads_its_function_from_the_app(
    child: str, name: str, queue: str, batch_size: int, window: float
) -> None:
    found = load(child)
    assert (found.name, found.queue) == (name, queue)
    assert (found.batch_size, found.window) == (batch_size, window)
    assert found.timeout >= 10
    assert found.memory >= 256

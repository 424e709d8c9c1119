"""The queues of the simulation against what they stand for: the same assertions for
those in memory and MiniStack (moto's differ from SQS too much).

Where an emulator is known to differ from AWS, the assertion is skipped for it, with the reason; it
is never weaker for the others.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from botocore.exceptions import ClientError, ParamValidationError

from chalicelib.queues import OUTBOUND, PROCESSING, Envelope, Queues
from spillway.aws import of_emulator
from tests.fakes import (
    NOW,
    FakeRuntime,
)
from tests.simulation.contract import Clock, Kind, code, differs
from tests.simulation.stores.sqs import Sqs

FOURTEEN_DAYS = 14 * 86_400


@dataclass
class QueueBed:
    """A client of SQS under test. `wait` lets so many seconds go by."""

    kind: Kind
    client: Any
    wait: Callable[[float], object]
    make: Callable[[str, bool, int], str]

    def add(self, *, fifo: bool = False, visibility: int = 30) -> str:
        """A new queue's URL."""
        name = f"queue-{next(_numbers)}" + (".fifo" if fifo else "")
        return self.make(name, fifo, visibility)

    def send(self, url: str, *bodies: str, group: str = "", **more: Any) -> list[str]:
        """Sends these bodies, each under itself as deduplication id; the messages' ids."""
        if not group:
            return [self.send_one(url, MessageBody=body, **more)["MessageId"] for body in bodies]
        return [
            self.send_one(
                url,
                MessageBody=body,
                MessageGroupId=group,
                MessageDeduplicationId=body,
                **more,
            )["MessageId"]
            for body in bodies
        ]

    def send_one(self, url: str, **message: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self.client.send_message(QueueUrl=url, **message)
        return answer

    def receive(self, url: str, most: int = 10, **more: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.client.receive_message(
            QueueUrl=url,
            MaxNumberOfMessages=most,
            MessageSystemAttributeNames=["All"],
            MessageAttributeNames=["All"],
            **more,
        ).get("Messages", [])
        return found

    def bodies(self, url: str, most: int = 10, **more: Any) -> list[str]:
        return [one["Body"] for one in self.receive(url, most, **more)]

    def delete(self, url: str, *messages: Mapping[str, Any]) -> list[str]:
        """Deletes them; what was said of each that was refused."""
        entries = [
            {"Id": str(n), "ReceiptHandle": one["ReceiptHandle"]} for n, one in enumerate(messages)
        ]
        answer = self.client.delete_message_batch(QueueUrl=url, Entries=entries)
        return [one["Code"] for one in answer.get("Failed", [])]

    def hide(self, url: str, seconds: int, *messages: Mapping[str, Any]) -> list[str]:
        """Changes their visibility; what was said of each that was refused."""
        entries = [
            {"Id": str(n), "ReceiptHandle": one["ReceiptHandle"], "VisibilityTimeout": seconds}
            for n, one in enumerate(messages)
        ]
        answer = self.client.change_message_visibility_batch(QueueUrl=url, Entries=entries)
        return [one["Code"] for one in answer.get("Failed", [])]

    def counts(self, url: str) -> tuple[int, int, int]:
        """How many messages are visible, in flight, delayed."""
        names = ["", "NotVisible", "Delayed"]
        names = [f"ApproximateNumberOfMessages{name}" for name in names]
        found = self.client.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
        visible, in_flight, delayed = (int(found[name]) for name in names)
        return visible, in_flight, delayed


_numbers = itertools.count()


@pytest.fixture(scope="module", params=["memory", "ministack"])
def queues(request: pytest.FixtureRequest) -> Iterator[QueueBed]:
    if request.param == "memory":
        yield _memory_queues()
        return
    client = of_emulator(request.getfixturevalue("ministack")).client("sqs")

    def make(name: str, fifo: bool, visibility: int) -> str:
        attributes = {
            "VisibilityTimeout": str(visibility),
            "MessageRetentionPeriod": str(FOURTEEN_DAYS),
        }
        if fifo:
            attributes |= {
                "FifoQueue": "true",
                "ContentBasedDeduplication": "false",
                "DeduplicationScope": "messageGroup",
                "FifoThroughputLimit": "perMessageGroupId",
            }
        url: str = client.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]
        return url

    yield QueueBed("ministack", client, time.sleep, make)
    client.close()


def _memory_queues() -> QueueBed:
    clock = Clock()
    sqs = Sqs(clock, Random(0))

    def wait(seconds: float) -> None:
        clock.now += seconds

    def make(name: str, fifo: bool, visibility: int) -> str:
        return sqs.add(name, fifo=fifo, visibility=visibility, retention=FOURTEEN_DAYS)

    return QueueBed("memory", sqs, wait, make)


def test_a_message_comes_as_it_went(queues: QueueBed) -> None:
    url = queues.add()
    body = "é\n👋 \t" + "x" * 1000
    history = {"reason": {"DataType": "String", "StringValue": "too_old"}}
    sent = queues.send_one(url, MessageBody=body, MessageAttributes=history)
    (found,) = queues.receive(url)
    assert found["Body"] == body
    assert found["MessageId"] == sent["MessageId"]
    assert found["MD5OfBody"] == sent["MD5OfMessageBody"]
    assert found["MessageAttributes"] == history
    assert found["Attributes"]["ApproximateReceiveCount"] == "1"
    first = int(found["Attributes"]["ApproximateFirstReceiveTimestamp"])
    assert int(found["Attributes"]["SentTimestamp"]) <= first
    assert "MessageGroupId" not in found["Attributes"]


def test_only_what_is_asked_for_comes_with_a_message(queues: QueueBed) -> None:
    url = queues.add()
    history = {name: {"DataType": "String", "StringValue": name} for name in ("one", "two")}
    queues.send_one(url, MessageBody="a", MessageAttributes=history)
    (bare,) = queues.client.receive_message(QueueUrl=url, VisibilityTimeout=0)["Messages"]
    assert not {"Attributes", "MessageAttributes"} & set(bare)
    (some,) = queues.client.receive_message(
        QueueUrl=url, AttributeNames=["SentTimestamp"], MessageAttributeNames=["two"]
    )["Messages"]
    assert set(some["Attributes"]) == {"SentTimestamp"}
    assert set(some["MessageAttributes"]) == {"two"}


def test_an_empty_queue_answers_without_messages(queues: QueueBed) -> None:
    answer = queues.client.receive_message(QueueUrl=queues.add())
    assert "Messages" not in answer


@pytest.mark.parametrize("fifo", [False, True])
def test_what_is_received_is_hidden_until_its_visibility_ends(queues: QueueBed, fifo: bool) -> None:
    url = queues.add(fifo=fifo, visibility=1)
    queues.send(url, "a", group="g" if fifo else "")
    (first,) = queues.receive(url)
    assert queues.counts(url) == (0, 1, 0)
    assert queues.receive(url) == []

    queues.wait(1.1)

    assert queues.counts(url) == (1, 0, 0)
    (second,) = queues.receive(url)
    assert second["MessageId"] == first["MessageId"]
    assert second["ReceiptHandle"] != first["ReceiptHandle"]
    assert second["Attributes"]["ApproximateReceiveCount"] == "2"
    for name in ("SentTimestamp", "ApproximateFirstReceiveTimestamp"):
        assert second["Attributes"][name] == first["Attributes"][name]


def test_a_receive_may_say_how_long_it_hides(queues: QueueBed) -> None:
    url = queues.add(visibility=1)
    queues.send(url, "a")
    assert queues.bodies(url, VisibilityTimeout=0) == ["a"]
    assert queues.bodies(url, VisibilityTimeout=30) == ["a"]
    queues.wait(1.1)
    assert queues.bodies(url) == []


@pytest.mark.parametrize("fifo", [False, True])
def test_what_is_deleted_never_comes_again(queues: QueueBed, fifo: bool) -> None:
    url = queues.add(fifo=fifo, visibility=1)
    queues.send(url, "a", "b", group="g" if fifo else "")
    a, b = queues.receive(url)
    queues.client.delete_message(QueueUrl=url, ReceiptHandle=a["ReceiptHandle"])
    assert queues.delete(url, b) == []
    queues.wait(1.1)
    assert queues.bodies(url) == []
    assert queues.counts(url) == (0, 0, 0)


@pytest.mark.parametrize("fifo", [False, True])
def test_deleting_again_is_no_error(queues: QueueBed, fifo: bool) -> None:
    # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_DeleteMessage.html
    differs(queues.kind, ministack="it knows no handle of a deleted message")
    url = queues.add(fifo=fifo)
    queues.send(url, "a", group="g" if fifo else "")
    (a,) = queues.receive(url)
    assert queues.delete(url, a) == []
    assert queues.delete(url, a) == []


def test_a_delayed_message_waits(queues: QueueBed) -> None:
    url = queues.add()
    queues.send(url, "later", DelaySeconds=1)
    queues.send(url, "now", DelaySeconds=0)
    assert queues.counts(url) == (1, 0, 1)
    assert queues.bodies(url) == ["now"]
    queues.wait(1.1)
    assert queues.bodies(url) == ["later"]


@pytest.mark.parametrize("fifo", [False, True])
def test_a_changed_visibility_counts_from_the_change(queues: QueueBed, fifo: bool) -> None:
    url = queues.add(fifo=fifo, visibility=30)
    queues.send(url, "a", group="g" if fifo else "")

    # GIVEN a message that is handed back
    (a,) = queues.receive(url)
    queues.client.change_message_visibility(
        QueueUrl=url, ReceiptHandle=a["ReceiptHandle"], VisibilityTimeout=0
    )
    # THEN it comes at once
    (a,) = queues.receive(url)

    # GIVEN that it is deferred
    assert queues.hide(url, 1, a) == []
    assert queues.bodies(url) == []
    # THEN it comes when that has passed
    queues.wait(1.1)
    assert queues.bodies(url) == ["a"]


def test_a_changed_visibility_may_be_longer(queues: QueueBed) -> None:
    url = queues.add(visibility=1)
    queues.send(url, "a")
    (a,) = queues.receive(url)
    assert queues.hide(url, 30, a) == []
    queues.wait(1.1)
    assert queues.counts(url) == (0, 1, 0)
    # AND the handle goes on to work
    assert queues.delete(url, a) == []


def test_at_most_so_many_are_received(queues: QueueBed) -> None:
    url = queues.add()
    queues.send(url, *"abcdefghijkl")
    assert len(queues.client.receive_message(QueueUrl=url)["Messages"]) == 1
    assert len(queues.receive(url, most=10)) == 10
    assert len(queues.receive(url, most=10)) == 1


def test_a_batch_of_sends_says_of_each_what_became_of_it(queues: QueueBed) -> None:
    url = queues.add()
    answer = queues.client.send_message_batch(
        QueueUrl=url,
        Entries=[
            {"Id": "good", "MessageBody": "a"},
            {"Id": "bad", "MessageBody": "\x00"},
            {"Id": "fine", "MessageBody": "b", "DelaySeconds": 0},
        ],
    )
    assert [one["Id"] for one in answer["Successful"]] == ["good", "fine"]
    (failed,) = answer["Failed"]
    assert (failed["Id"], failed["Code"]) == ("bad", "InvalidMessageContents")
    assert failed["SenderFault"] is True
    assert sorted(queues.bodies(url)) == ["a", "b"]


def test_a_batch_of_deletes_and_changes_says_of_each_what_became_of_it(queues: QueueBed) -> None:
    url = queues.add()
    queues.send(url, "a", "b")
    a, b = queues.receive(url)
    stranger = {"ReceiptHandle": "nonsense"}
    assert queues.hide(url, 0, a, stranger) == ["ReceiptHandleIsInvalid"]
    assert queues.delete(url, stranger, b) == ["ReceiptHandleIsInvalid"]
    assert queues.bodies(url) == ["a"]
    with pytest.raises(queues.client.exceptions.ReceiptHandleIsInvalid):
        queues.client.delete_message(QueueUrl=url, ReceiptHandle="nonsense")


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        ([], "EmptyBatchRequest"),
        ([str(number) for number in range(11)], "TooManyEntriesInBatchRequest"),
        (["1", "1"], "BatchEntryIdsNotDistinct"),
        (["a b"], "InvalidBatchEntryId"),
    ],
)
def test_a_batch_that_is_none_is_refused_as_a_whole(
    queues: QueueBed, ids: list[str], reason: str
) -> None:
    url = queues.add()
    batches: dict[str, dict[str, Any]] = {
        "send_message_batch": {"MessageBody": "a"},
        "delete_message_batch": {"ReceiptHandle": "a"},
        "change_message_visibility_batch": {"ReceiptHandle": "a", "VisibilityTimeout": 1},
    }
    for operation, entry in batches.items():
        with pytest.raises(ClientError) as caught:
            getattr(queues.client, operation)(
                QueueUrl=url, Entries=[{"Id": id_, **entry} for id_ in ids]
            )
        assert code(caught).endswith(reason)
    assert queues.counts(url) == (0, 0, 0)


def test_a_batch_is_not_larger_than_one_message_may_be(queues: QueueBed) -> None:
    url = queues.add()
    with pytest.raises(ClientError) as caught:
        queues.client.send_message_batch(
            QueueUrl=url,
            Entries=[{"Id": str(n), "MessageBody": "x" * 600_000} for n in range(2)],
        )
    assert code(caught) == "AWS.SimpleQueueService.BatchRequestTooLong"
    assert queues.counts(url) == (0, 0, 0)


FIFO_SEND = {"MessageBody": "a", "MessageGroupId": "g", "MessageDeduplicationId": "d"}
NO_CHECK = {"ministack": "it does not check that"}


@pytest.mark.parametrize(
    ("message", "reason", "reasons"),
    [
        ({"MessageBody": "a\x00"}, "InvalidMessageContents", {}),
        ({"MessageBody": "a\x0b"}, "InvalidMessageContents", {}),
        ({"MessageBody": "a\ufffe"}, "InvalidMessageContents", {}),
        ({"MessageBody": ""}, "MissingParameter", {}),
        ({"MessageBody": "é" * 524_289}, "InvalidParameterValue", {}),
        ({"MessageBody": "a", "DelaySeconds": 901}, "InvalidParameterValue", NO_CHECK),
        ({"MessageBody": "a", "DelaySeconds": -1}, "InvalidParameterValue", NO_CHECK),
    ],
)
def test_what_cannot_be_sent_is_refused(
    queues: QueueBed, message: dict[str, Any], reason: str, reasons: dict[str, str]
) -> None:
    differs(queues.kind, **reasons)
    url = queues.add()
    with pytest.raises(ClientError) as caught:
        queues.send_one(url, **message)
    assert code(caught) == reason
    assert queues.counts(url) == (0, 0, 0)


def test_an_attribute_says_something(queues: QueueBed) -> None:
    differs(queues.kind, ministack="it takes an empty one")
    attributes = {"reason": {"DataType": "String", "StringValue": ""}}
    with pytest.raises(ClientError) as caught:
        queues.send_one(queues.add(), MessageBody="a", MessageAttributes=attributes)
    assert code(caught) == "InvalidParameterValue"


@pytest.mark.parametrize(
    ("change", "reason", "reasons"),
    [
        ({"DelaySeconds": 1}, "InvalidParameterValue", {}),
        ({"MessageGroupId": None}, "MissingParameter", {}),
        ({"MessageDeduplicationId": None}, "InvalidParameterValue", {}),
        ({"MessageGroupId": "g g"}, "InvalidParameterValue", NO_CHECK),
        ({"MessageGroupId": "g" * 129}, "InvalidParameterValue", NO_CHECK),
        ({"MessageDeduplicationId": "é"}, "InvalidParameterValue", NO_CHECK),
    ],
)
def test_what_a_fifo_queue_does_not_take_is_refused(
    queues: QueueBed, change: dict[str, Any], reason: str, reasons: dict[str, str]
) -> None:
    differs(queues.kind, **reasons)
    url = queues.add(fifo=True)
    message = {name: value for name, value in {**FIFO_SEND, **change}.items() if value is not None}
    with pytest.raises(ClientError) as caught:
        queues.send_one(url, **message)
    assert code(caught) == reason
    assert queues.counts(url) == (0, 0, 0)


def test_other_calls_that_cannot_be_are_refused(queues: QueueBed) -> None:
    url = queues.add()
    queues.send(url, "a")
    with pytest.raises(ClientError) as caught:
        queues.receive(url, most=11)
    assert code(caught) == "InvalidParameterValue"
    with pytest.raises(queues.client.exceptions.QueueDoesNotExist):
        queues.client.get_queue_url(QueueName="nowhere")
    with pytest.raises(queues.client.exceptions.QueueDoesNotExist):
        queues.send(url + "-nowhere", "a")
    (a,) = queues.receive(url)
    with pytest.raises(ParamValidationError):
        queues.hide(url, 1.5, a)  # type: ignore[arg-type]
    with pytest.raises(ParamValidationError):
        queues.send_one(url, MessageBody=b"a")


def test_a_queue_has_its_url_and_its_account(queues: QueueBed) -> None:
    url = queues.add()
    name = url.rpartition("/")[2]
    assert queues.client.get_queue_url(QueueName=name)["QueueUrl"] == url
    assert url.split("/")[-2].isdigit()
    attributes = queues.client.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])
    assert attributes["Attributes"]["QueueArn"].endswith(f":{name}")
    assert attributes["Attributes"]["VisibilityTimeout"] == "30"


@pytest.mark.parametrize("fifo", [False, True])
def test_the_depth_of_a_queue_is_all_that_stands_on_it(queues: QueueBed, fifo: bool) -> None:
    # GIVEN messages of which one is visible, one in flight, one deleted, and (where a queue can do
    # that) one delayed
    url = queues.add(fifo=fifo)
    queues.send(url, "a", "b", group="g" if fifo else "")
    gone, _ = queues.receive(url, most=2)
    queues.delete(url, gone)
    queues.send(url, "c", group="h" if fifo else "")
    delayed = 0 if fifo else len(queues.send(url, "d", DelaySeconds=60))
    # THEN each counts as what it is, but for the one that is gone
    assert queues.counts(url) == (1, 1, delayed)
    # AND only what is asked for is answered
    answer = queues.client.get_queue_attributes(
        QueueUrl=url, AttributeNames=["ApproximateNumberOfMessages"]
    )
    assert answer["Attributes"] == {"ApproximateNumberOfMessages": "1"}
    with pytest.raises(queues.client.exceptions.QueueDoesNotExist):
        queues.counts(url + "-nowhere")


def test_an_older_handle_of_a_standard_queue_deletes(queues: QueueBed) -> None:
    # https://repost.aws/knowledge-center/sqs-receipt-handle-error: "sometimes"; the harder case.
    differs(queues.kind, ministack="it knows the latest handle alone")
    url = queues.add(visibility=1)
    queues.send(url, "a")
    (first,) = queues.receive(url)
    queues.wait(1.1)
    queues.receive(url)
    assert queues.delete(url, first) == []
    queues.wait(1.1)
    assert queues.bodies(url) == []


@pytest.mark.parametrize("received_again", [False, True])
def test_what_is_late_for_a_standard_queue_still_deletes_or_is_not_in_flight(
    queues: QueueBed, received_again: bool
) -> None:
    differs(
        queues.kind, ministack="it changes what is not in flight, and knows the latest handle alone"
    )
    url = queues.add(visibility=1)
    queues.send(url, "a")
    (first,) = queues.receive(url)
    queues.wait(1.1)
    if received_again:
        queues.receive(url)
        assert queues.hide(url, 0, first) == []
        assert queues.bodies(url) == ["a"]
    else:
        assert queues.hide(url, 30, first) == ["AWS.SimpleQueueService.MessageNotInflight"]
        with pytest.raises(queues.client.exceptions.MessageNotInflight):
            queues.client.change_message_visibility(
                QueueUrl=url, ReceiptHandle=first["ReceiptHandle"], VisibilityTimeout=1
            )
        assert queues.bodies(url) == ["a"]


@pytest.mark.parametrize("fifo", [False, True])
def test_the_visibility_of_what_is_deleted_cannot_be_changed(queues: QueueBed, fifo: bool) -> None:
    url = queues.add(fifo=fifo)
    queues.send(url, "a", group="g" if fifo else "")
    (a,) = queues.receive(url)
    queues.delete(url, a)
    assert len(queues.hide(url, 1, a)) == 1
    differs(queues.kind, ministack="it knows no handle of a deleted message: another code")
    assert queues.hide(url, 1, a) == ["InvalidParameterValue"]


@pytest.mark.parametrize("fifo", [False, True])
def test_nothing_is_hidden_for_more_than_12_hours_after_the_receive(
    queues: QueueBed, fifo: bool
) -> None:
    differs(queues.kind, ministack="it does not check the sum, and its clock cannot be moved")
    url = queues.add(fifo=fifo, visibility=43_200)
    queues.send(url, "a", group="g" if fifo else "")
    (a,) = queues.receive(url)
    assert queues.hide(url, 43_200, a) == []
    queues.wait(11 * 3600)
    assert queues.hide(url, 3601, a) == ["InvalidParameterValue"]
    assert queues.hide(url, 3600, a) == []
    # AND counts again from the next receive
    queues.wait(3600)
    (a,) = queues.receive(url)
    assert queues.hide(url, 43_200, a) == []


@pytest.mark.parametrize("seconds", [-1, 43_201])
def test_no_visibility_is_longer_than_12_hours(queues: QueueBed, seconds: int) -> None:
    differs(queues.kind, ministack="it takes any number")
    url = queues.add()
    queues.send(url, "a")
    (a,) = queues.receive(url)
    assert queues.hide(url, seconds, a) == ["InvalidParameterValue"]
    with pytest.raises(ClientError) as caught:
        queues.receive(url, VisibilityTimeout=seconds)
    assert code(caught) == "InvalidParameterValue"


def test_a_queue_forgets_what_is_too_old(queues: QueueBed) -> None:
    differs(queues.kind, ministack="SQS keeps a message for at least a minute")
    url = queues.add()
    queues.send(url, "old")
    (old,) = queues.receive(url)
    queues.wait(FOURTEEN_DAYS)
    queues.send(url, "young")
    # Not one that is in flight either, nor with a handle that is good.
    assert queues.bodies(url) == ["old", "young"]
    queues.wait(1)
    assert queues.counts(url) == (0, 1, 0)
    assert queues.delete(url, old) == []


# --- FIFO queues


def test_a_group_comes_in_order(queues: QueueBed) -> None:
    url = queues.add(fifo=True)
    queues.client.send_message_batch(
        QueueUrl=url,
        Entries=[
            {
                "Id": body,
                "MessageBody": body,
                "MessageGroupId": "g",
                "MessageDeduplicationId": body,
            }
            for body in "cab"
        ],
    )
    queues.send(url, "d", group="g")
    found = queues.receive(url)
    assert [one["Body"] for one in found] == list("cabd")
    sequence = [one["Attributes"]["SequenceNumber"] for one in found]
    assert sequence == sorted(set(sequence))
    assert {len(one) for one in sequence} == {20}
    assert [one["Attributes"]["MessageDeduplicationId"] for one in found] == list("cabd")
    assert {one["Attributes"]["MessageGroupId"] for one in found} == {"g"}


def test_one_receive_takes_of_several_groups(queues: QueueBed) -> None:
    url = queues.add(fifo=True)
    for body in ("g1", "h1", "g2", "h2"):
        queues.send(url, body, group=body[0])
    found = queues.bodies(url)
    for group in "gh":
        assert [body for body in found if body[0] == group] == [f"{group}1", f"{group}2"]


def test_a_group_is_locked_while_any_message_of_it_is_in_flight(queues: QueueBed) -> None:
    url = queues.add(fifo=True)
    queues.send(url, "g1", "g2", "g3", group="g")
    queues.send(url, "h1", group="h")

    # GIVEN two of a group in flight
    one, two = queues.receive(url, most=2)
    assert [one["Body"], two["Body"]] == ["g1", "g2"]
    # THEN what comes is of another group
    assert queues.bodies(url) == ["h1"]

    # WHEN one of the two is done, THEN the other locks the group still
    queues.delete(url, one)
    assert queues.bodies(url) == []
    # AND if both are, the next comes
    queues.delete(url, two)
    assert queues.bodies(url) == ["g3"]


def test_what_is_handed_back_comes_before_its_successors(queues: QueueBed) -> None:
    url = queues.add(fifo=True)
    queues.send(url, "1", "2", "3", group="g")
    one, two = queues.receive(url, most=2)
    queues.hide(url, 0, two)
    assert queues.bodies(url) == []
    queues.hide(url, 0, one)
    assert queues.bodies(url) == ["1", "2", "3"]


def test_a_deferred_group_comes_again_in_order(queues: QueueBed) -> None:
    # GIVEN a group of which the first is done and the rest deferred alike
    url = queues.add(fifo=True)
    queues.send(url, "1", "2", "3", group="g")
    one, two, three = queues.receive(url)
    queues.delete(url, one)
    assert queues.hide(url, 1, two, three) == []
    # WHEN another comes meanwhile, THEN it waits with them
    queues.send(url, "4", group="g")
    assert queues.bodies(url) == []
    queues.wait(1.1)
    assert queues.bodies(url) == ["2", "3", "4"]


def test_a_group_whose_visibilities_end_apart_waits_for_the_last(queues: QueueBed) -> None:
    url = queues.add(fifo=True)
    queues.send(url, "1", "2", group="g")
    one, two = queues.receive(url)
    queues.hide(url, 0, one)
    queues.hide(url, 1, two)
    assert queues.bodies(url) == []
    queues.wait(1.1)
    assert queues.bodies(url) == ["1", "2"]


def test_the_same_deduplication_id_is_taken_once(queues: QueueBed) -> None:
    url = queues.add(fifo=True)
    first = queues.send_one(url, **FIFO_SEND)
    # WHEN it is sent again, in a batch too, whatever it says
    again = queues.send_one(url, **{**FIFO_SEND, "MessageBody": "another"})
    batch = queues.client.send_message_batch(QueueUrl=url, Entries=[{"Id": "0", **FIFO_SEND}])
    # THEN the answer is the first one's
    for answer in (again, *batch["Successful"]):
        assert answer["MessageId"] == first["MessageId"]
        assert answer["SequenceNumber"] == first["SequenceNumber"]
    (found,) = queues.receive(url)
    assert found["Body"] == "a"

    # AND so it is when the first is long deleted
    queues.delete(url, found)
    assert queues.send_one(url, **FIFO_SEND)["MessageId"] == first["MessageId"]
    assert queues.counts(url) == (0, 0, 0)


def test_deduplication_is_within_a_group(queues: QueueBed) -> None:
    url = queues.add(fifo=True)
    queues.send_one(url, **FIFO_SEND)
    queues.send_one(url, **{**FIFO_SEND, "MessageGroupId": "h"})
    assert queues.counts(url) == (2, 0, 0)


def test_deduplication_ends_five_minutes_after_the_first_send(queues: QueueBed) -> None:
    differs(queues.kind, ministack="its clock cannot be moved")
    url = queues.add(fifo=True)
    first = queues.send_one(url, **FIFO_SEND)["MessageId"]
    queues.wait(299)
    assert queues.send_one(url, **FIFO_SEND)["MessageId"] == first
    queues.wait(1)
    assert queues.send_one(url, **FIFO_SEND)["MessageId"] != first
    assert queues.counts(url) == (2, 0, 0)


def test_a_fifo_handle_ends_with_the_visibility(queues: QueueBed) -> None:
    # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_DeleteMessage.html
    differs(queues.kind, ministack="its handles live until the next receive")
    url = queues.add(fifo=True, visibility=1)
    queues.send(url, "a", group="g")
    (late,) = queues.receive(url)
    queues.wait(1.0)
    assert queues.delete(url, late) == ["InvalidParameterValue"]
    assert queues.hide(url, 30, late) == ["InvalidParameterValue"]
    with pytest.raises(ClientError) as caught:
        queues.client.delete_message(QueueUrl=url, ReceiptHandle=late["ReceiptHandle"])
    assert "expired" in str(caught.value)
    assert queues.bodies(url) == ["a"]


def test_an_older_handle_of_a_fifo_queue_is_refused(queues: QueueBed) -> None:
    url = queues.add(fifo=True, visibility=1)
    queues.send(url, "a", "b", group="g")
    late, _ = queues.receive(url)
    queues.wait(1.1)
    again, b = queues.receive(url)
    # GIVEN one entry of a batch with it, THEN that one fails
    assert len(queues.delete(url, late, b)) == 1
    assert len(queues.hide(url, 0, late, again)) == 1
    assert queues.bodies(url) == ["a"]


# --- what the simulation asks of its own queues


@pytest.fixture
def memory() -> QueueBed:
    return _memory_queues()


def test_whoever_looks_on_sees_all_messages(memory: QueueBed) -> None:
    url = memory.add(fifo=True, visibility=30)
    ids = memory.send(url, "a", "b", group="g")
    memory.wait(5)
    memory.receive(url, most=1)
    a, b = memory.client.messages(url)
    assert [a.id, b.id] == ids
    assert (a.body, a.group, a.receives, a.sent_at, a.visible_at) == ("a", "g", 1, NOW, NOW + 35)
    assert (b.receives, b.visible_at) == (0, NOW)
    # By its name too, and without those that were deleted.
    memory.delete(url, {"ReceiptHandle": _handle(memory, url)})
    assert [one.body for one in memory.client.messages(url.rpartition("/")[2])] == ["b"]


def _handle(bed: QueueBed, url: str) -> str:
    """The handle of what is received next."""
    bed.wait(30)
    found: str = bed.receive(url, most=1)[0]["ReceiptHandle"]
    return found


def test_a_poller_knows_when_to_look_again(memory: QueueBed) -> None:
    url = memory.add(visibility=30)
    assert memory.client.next_visible(url) is None
    memory.send(url, "later", DelaySeconds=60)
    assert memory.client.next_visible(url) == NOW + 60
    memory.send(url, "now")
    assert memory.client.next_visible(url) == NOW
    (now,) = memory.receive(url)
    assert memory.client.next_visible(url) == NOW + 30
    memory.hide(url, 90, now)
    assert memory.client.next_visible(url) == NOW + 60


def test_a_poller_of_a_fifo_queue_knows_of_locked_groups(memory: QueueBed) -> None:
    url = memory.add(fifo=True, visibility=30)
    memory.send(url, "g1", "g2", "g3", group="g")
    one, two = memory.receive(url, most=2)
    memory.hide(url, 60, two)
    assert memory.client.next_visible(url) == NOW + 60
    memory.delete(url, two)
    assert memory.client.next_visible(url) == NOW + 30
    memory.send(url, "h1", group="h")
    assert memory.client.next_visible(url) == NOW
    memory.delete(url, one)
    assert memory.bodies(url) == ["g3", "h1"] or memory.bodies(url) == ["h1", "g3"]


@pytest.mark.parametrize("operation", ["deliver_again", "expire"])
@pytest.mark.parametrize("fifo", [False, True])
def test_a_message_in_flight_comes_once_more(memory: QueueBed, fifo: bool, operation: str) -> None:
    url = memory.add(fifo=fifo)
    (id_,) = memory.send(url, "a", group="g" if fifo else "")
    (first,) = memory.receive(url)
    getattr(memory.client, operation)(url, id_)
    assert memory.client.next_visible(url) == NOW
    # On a standard queue the first receiver goes on; on a FIFO queue it is too late.
    if fifo:
        assert memory.delete(url, first) == ["InvalidParameterValue"]
        assert memory.bodies(url) == ["a"]
        return
    expected = [] if operation == "deliver_again" else ["AWS.SimpleQueueService.MessageNotInflight"]
    assert memory.hide(url, 0, first) == expected
    assert memory.bodies(url) == ["a"]
    assert memory.delete(url, first) == []
    # Nobody minds if it is gone by then.
    getattr(memory.client, operation)(url, id_)
    assert memory.client.messages(url) == []


def test_receives_of_a_standard_queue_may_come_in_any_order() -> None:
    def seen(reorder: float, seed: int, fifo: bool = False) -> list[str]:
        sqs = Sqs(Clock(), Random(seed), reorder=reorder)
        url = sqs.add("q.fifo" if fifo else "q", fifo=fifo, visibility=30, retention=60)
        for body in "abcdefgh":
            group = {"MessageGroupId": "g", "MessageDeduplicationId": body} if fifo else {}
            sqs.send_message(QueueUrl=url, MessageBody=body, **group)
        found = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10)["Messages"]
        return [one["Body"] for one in found]

    assert seen(0.0, 1) == list("abcdefgh")
    assert seen(1.0, 1) != list("abcdefgh")
    assert sorted(seen(1.0, 1)) == list("abcdefgh")
    assert seen(1.0, 1) == seen(1.0, 1) != seen(1.0, 2)
    assert seen(1.0, 1, fifo=True) == list("abcdefgh")


def test_what_was_dropped_is_told(memory: QueueBed) -> None:
    url = memory.add()
    memory.send(url, "old")
    memory.wait(FOURTEEN_DAYS + 1)
    assert memory.client.next_visible(url) is None
    ((name, message),) = memory.client.dropped
    assert (name, message.body) == (url.rpartition("/")[2], "old")


@pytest.mark.parametrize(
    ("operation", "parameters"),
    [
        ("receive_message", {"WaitTimeSeconds": 1}),
        ("receive_message", {"ReceiveRequestAttemptId": "a"}),
        ("receive_message", {"MessageSystemAttributeNames": ["SenderId"]}),
        ("send_message", {"MessageBody": "a", "MessageSystemAttributes": {}}),
        ("send_message", {"MessageBody": "a", "MessageGroupId": "g"}),
        (
            "send_message",
            {"MessageBody": "a", "MessageAttributes": {"n": {"DataType": "Number"}}},
        ),
        ("get_queue_attributes", {"AttributeNames": ["Policy"]}),
        ("delete_message", {"ReceiptHandle": "a", "x": 1}),
        ("delete_message_batch", {"Entries": [{"Id": "0", "ReceiptHandle": "a", "x": 1}]}),
    ],
)
def test_queues_in_memory_refuse_what_they_do_not_know(
    memory: QueueBed, operation: str, parameters: dict[str, Any]
) -> None:
    with pytest.raises(NotImplementedError):
        getattr(memory.client, operation)(QueueUrl=memory.add(), **parameters)


def test_spillways_queues_work_on_them(memory: QueueBed) -> None:
    # GIVEN the queues of a stage
    runtime = FakeRuntime()
    runtime.__dict__["sqs"] = memory.client
    for name in (PROCESSING, "processing-dlq", OUTBOUND, "outbound-dlq.fifo"):
        memory.make(f"spillway-test-{name}", name.endswith(".fifo"), 30)
    queues = Queues(runtime, "test")
    assert queues.account() == "123456789012"
    envelopes = [(Envelope("inbound", "c" * 24, f"c-{n}", NOW, {}), f"d{n}") for n in range(12)]

    # WHEN messages are sent, one of them twice
    queues.send(OUTBOUND, [*envelopes, envelopes[0]])
    queues.send(PROCESSING, envelopes[:1], delay=5)

    # THEN the conversation has each once, in order
    found = memory.receive(queues.url(OUTBOUND))
    assert [Envelope.parse(one["Body"]).id for one in found] == [f"c-{n}" for n in range(10)]
    assert (queues.depth(OUTBOUND), queues.depth(PROCESSING)) == (12, 1)
    # AND it can be deferred, deleted and dead-lettered, as late as may be
    handles = [one["ReceiptHandle"] for one in found]
    assert queues.set_visibility(OUTBOUND, [(handle, 60) for handle in handles]) == 0
    memory.wait(59)
    assert queues.delete(OUTBOUND, handles[:9]) == 0
    memory.wait(1)
    assert queues.delete(OUTBOUND, handles) == 1
    for _ in range(2):
        queues.dead_letter(
            OUTBOUND, found[9]["Body"], group="c", source_id="m", history={"reason": "too_old"}
        )
    (letter,) = memory.receive(queues.url("outbound-dlq.fifo"))
    assert letter["MessageAttributes"]["reason"]["StringValue"] == "too_old"

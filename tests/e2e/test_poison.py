"""A message that always fails, followed by good ones of the same conversation."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.stack import Stack, running, until

VISIBILITY = 75.0  # of the local stack's queues, in seconds


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("spillway")) as stack:
        yield stack


def test_the_poison_is_dead_lettered_and_the_good_ones_are_answered_in_order(stack: Stack) -> None:
    ours, theirs = stack.local["numbers"]["twilio"], "+14155550131"
    conversation = stack.stores.keys.conversation(ours, theirs)
    # GIVEN a message on the outbound queue on which the handler fails whenever it tries
    poison = {
        "kind": "inbound",
        "conversation": conversation,
        "id": f"{conversation}-{'0' * 24}",
        "received_at": time.time(),
        "payload": {"provider": "twilio", "no_such_field": True},
    }
    stack.stores.aws.client("sqs").send_message(
        QueueUrl=stack.stores.urls["outbound.fifo"],
        MessageBody=json.dumps(poison),
        MessageGroupId=conversation,
        MessageDeduplicationId="poison",
    )
    # AND good ones behind it, in the same conversation
    words = [f"good {number}" for number in range(8)]
    began = time.monotonic()
    for one in words:
        assert stack.inbound(one, sender=theirs)["status"] == 200
    # AND somebody else's conversation
    assert stack.inbound("somebody else", sender="+14155550132")["status"] == 200

    # THEN somebody else's is answered at once
    until(lambda: "somebody else" in stack.answers(), 20)
    # AND the poison ends in the dead-letter queue, with its history
    [dead] = until(lambda: dead_letters(stack), VISIBILITY)
    assert json.loads(dead["Body"]) == poison
    history = {name: value["StringValue"] for name, value in dead["MessageAttributes"].items()}
    assert history["reason"] == "never_ended"
    assert int(history["starts"]) > 5
    # AND the good ones are answered in order, sooner than any visibility time-out
    until(lambda: words[-1] in stack.answers(), VISIBILITY)
    assert time.monotonic() - began < VISIBILITY
    assert [text for text in stack.answers() if text.startswith("good")] == words


def test_what_is_no_message_of_ours_is_dead_lettered_at_once(stack: Stack) -> None:
    stack.stores.aws.client("sqs").send_message(
        QueueUrl=stack.stores.urls["processing"], MessageBody="not an envelope"
    )
    [dead] = until(lambda: dead_letters(stack, "processing-dlq"), 20)
    assert dead["Body"] == "not an envelope"
    assert dead["MessageAttributes"]["reason"]["StringValue"] == "not_an_envelope"


def dead_letters(stack: Stack, queue: str = "outbound-dlq.fifo") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (
        stack.stores.aws.client("sqs")
        .receive_message(QueueUrl=stack.stores.urls[queue], MessageAttributeNames=["All"])
        .get("Messages", [])
    )
    return found

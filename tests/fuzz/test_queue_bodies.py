"""The queue handlers, whatever stands on the queues: a report or BatchFailed and nothing else;
every message leaves its queue in the end, and what is none of ours is on the dead-letter queue."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chalicelib.processing import Processing
from chalicelib.queues import DEAD_LETTERS, OUTBOUND, PROCESSING, Envelope, EnvelopeError
from chalicelib.sending import Sender
from tests.fakes import NOW, inbound, outgoing, settings
from tests.fuzz import examples
from tests.fuzz.memory import Answers, Handler, Memory, runs_without_error
from tests.fuzz.values import BOTTOMLESS, DEEP, ODD_JSON, changed, damaged, values, written

# Long examples are what some of these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

RECEIPT = Envelope(
    "receipt",
    "c" * 24,
    "",
    NOW,
    {"provider": "twilio", "id": "SM1", "reference": f"{'c' * 24}-{'d' * 24}-1", "status": "sent"},
)
UNREADABLE = Envelope(
    "unreadable",
    "",
    "",
    NOW,
    {"provider": "twilio", "url": "https://x", "content_type": "x/y", "body": "AAAA"},
)
CONSENT = Envelope(
    "consent",
    "",
    f"{'c' * 24}-{'d' * 24}",
    NOW,
    {"number": "+13125558841", "event": "stop", "at": NOW, "source": "telephone", "note": "x"},
)
SETTLE = replace(inbound(), kind="settle", payload={"part": 1, "attempt": 0})
RESUME = replace(outgoing(), kind="resume", payload={})
REPLAY = replace(
    inbound(id_="SM3"), kind="replay", payload={**inbound().payload, "archived_in": "messages/x"}
)
# As they are on the queue.
GOOD = [
    json.loads(one.body())
    for one in (
        inbound(),
        inbound("STOP", id_="SM2"),
        outgoing(),
        RECEIPT,
        CONSENT,
        UNREADABLE,
        SETTLE,
        RESUME,
        REPLAY,
    )
]


def fails(_: httpx.Request) -> httpx.Response:
    """A provider whose every answer leaves the outcome unknown."""
    return httpx.Response(500)


def refuses(_: httpx.Request) -> httpx.Response:
    return httpx.Response(400, json={"code": 21610})


# What SQS takes as a body.
taken = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1).filter(
    lambda text: not set(text) & {"\ufffe", "\uffff"}
)


def sqs_takes(body: str) -> bool:
    return bool(body) and all(
        one in "\t\n\r" or " " <= one <= "\ud7ff" or "\ue000" <= one <= "\ufffd" or one > "\uffff"
        for one in body
    )


damaged_envelopes = (
    st.sampled_from(GOOD)
    .flatmap(lambda good: damaged(good, st.sampled_from(ODD_JSON + DEEP + BOTTOMLESS)))
    .map(written)
)
garbage = (
    taken
    | values.map(json.dumps)
    | st.sampled_from([json.dumps(one) for one in GOOD]).flatmap(
        lambda one: changed(one.encode()).map(lambda other: other.decode("latin-1"))
    )
    | st.sampled_from([str(one) for one in ODD_JSON + DEEP + BOTTOMLESS])
)
bodies = st.lists(
    (damaged_envelopes | damaged_envelopes | garbage).filter(sqs_takes),
    min_size=1,
    max_size=4,
)


def is_envelope(body: str) -> bool:
    try:
        Envelope.parse(body)
    except EnvelopeError:
        return False
    return True


def handler_of(queue: str, memory: Memory, **variables: str) -> Handler:
    if queue == PROCESSING:
        return Processing(memory, settings("processing", **variables)).handle
    return Sender(memory, settings("sender", **variables)).handle


@examples(80)
@given(
    bodies,
    st.sampled_from([PROCESSING, OUTBOUND]),
    st.sampled_from(["true", "false"]),
    st.sampled_from([runs_without_error, fails, refuses]),
)
def test_every_body_leaves_its_queue(
    found: list[str], queue: str, reporting: str, network: Answers
) -> None:
    # GIVEN two good messages with them
    memory = Memory(network)
    memory.put(queue, [inbound(id_="SM8").body(), *found, inbound(id_="SM9").body()])

    # WHEN the handlers get them, and what they send each other, however often that takes
    handlers = {
        one: handler_of(one, memory, REPORT_BATCH_ITEM_FAILURES=reporting)
        for one in (queue, OUTBOUND, PROCESSING, OUTBOUND)
    }
    for one in (queue, OUTBOUND, PROCESSING, OUTBOUND):
        memory.drain(one, handlers[one])

    # THEN what is no envelope is on the dead-letter queue, once and as it was
    dead = [message.body for message in memory.on(DEAD_LETTERS[queue])]
    for body in found:
        if not is_envelope(body):
            assert dead.count(body) == found.count(body)
    # AND the good ones are not: they were worked on
    assert inbound(id_="SM8").body() not in dead
    assert inbound(id_="SM9").body() not in dead
    items = memory.table.scan(TableName="spillway-test", ConsistentRead=True)["Items"]
    prefix = "IN#" if queue == PROCESSING else "OUT#"
    assert sum(item["sk"]["S"].startswith(prefix) for item in items) >= 2


@examples(40)
@given(bodies, st.sampled_from([PROCESSING, OUTBOUND]))
def test_what_is_said_of_a_dead_letter_says_nothing_of_its_body(
    found: list[str], queue: str
) -> None:
    memory = Memory()
    memory.put(queue, found)
    memory.drain(queue, handler_of(queue, memory))
    for message in memory.on(DEAD_LETTERS[queue]):
        told: dict[str, Any] = {n: v["StringValue"] for n, v in message.attributes.items()}
        assert told.pop("reason") in (
            "not_an_envelope",
            "unexpected_kind",
            "unreadable_statement",
            "never_ended",
            "too_old: receipt_overtaken",
        )
        assert all(value.isdigit() for value in told.values())


@pytest.mark.parametrize("conversation", ["a b", "x" * 200, "\u00e9"])
def test_a_body_with_a_strange_conversation_leaves_its_queue(conversation: str) -> None:
    memory = Memory()
    body = json.dumps({**GOOD[0], "id": "", "conversation": conversation})
    memory.put(OUTBOUND, [body])
    memory.drain(OUTBOUND, handler_of(OUTBOUND, memory), most=30)
    assert [message.body for message in memory.on(DEAD_LETTERS[OUTBOUND])] == [body]

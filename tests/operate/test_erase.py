"""A person's erasure, from stores that the real functions filled: what goes, what stays, and what a
death anywhere leaves for the next run."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any
from urllib.parse import urlencode

import pytest
from botocore.client import BaseClient
from typer.testing import CliRunner

from chalicelib.archive import Archive
from chalicelib.consent import is_personal
from chalicelib.ledger import DAY, draft
from chalicelib.messages import DeliveryReceipt, MessageId
from chalicelib.queues import Envelope
from chalicelib.table import Table
from spillway import cli, stores
from spillway.aws import EMULATED_REGION
from spillway.operate import erase, erasure, trace
from spillway.operate.erasure import RECENT, Erased, Erasure
from spillway.problem import Problem
from spillway.stage import Stage
from spillway.stores import Depth
from tests.emulated import ACCOUNT, environment
from tests.fakes import (
    NOW,
    OURS,
    Context,
    FakeRuntime,
    aws_error,
    begun,
    inbound,
    outgoing,
    sqs_event,
)
from tests.iam import Pair, covers, grants
from tests.operate.conftest import SETTINGS
from tests.operate.world import DEAD, KEYS, NAME, PERSON, QUEUES, World
from tests.pages import DOCS
from tests.signing import twilio_event

RETIRED = "+14155550188"  # one of our numbers, no longer in NUMBERS
OTHER = "+14155550143"
# A number of which the person's has all digits, and one that has all of the person's.
SHORTER, LONGER = "+1415555014", "+141555501420"


class Died(BaseException):
    """The end of the command: nothing after it is run."""


def erased(world: World, number: str = PERSON, *, wait: float = 5.0) -> Erased:
    return Erasure(world.stage, number, wait=wait).run()


def counts(**of: int) -> dict[str, int]:
    return {kind: of.get(kind, 0) for kind in erasure.KINDS}


# --- a person with everything --------------------------------------------------------------------


def live(world: World, person: str = PERSON, name: str = "p") -> list[str]:
    """All that a person can leave behind, most of it in one object of the archive with somebody
    else's; returns their words and ours."""
    words = [f"{name} the heron is {what}" for what in ("awake", "lost", "orphaned", "aside")]
    # A text with its answer, in one batch with another's, long ago.
    world.runtime.clock = NOW - 100 * DAY
    world.text(words[0], f"SM-{name}-1", person)
    world.text(f"{name} other heron", f"SM-{name}-2", OTHER)
    world.work()
    world.runtime.clock = NOW
    # One whose answer is lost, and listed for a person.
    world.refused = f"You wrote: {words[1]}"
    world.text(words[1], f"SM-{name}-3", person)
    world.work()
    world.runtime.sqs.purge_queue(QueueUrl=world.url("processing"))  # (It would be looked for.)
    # A line that no item names.
    archive = Archive(
        world.runtime, KEYS, stage=NAME, account=world.stage.stores.bucket.split("-")[-4]
    )
    orphan = {"id": "x", "from": person, "to": OURS, "text": words[2], "received_at": NOW}
    archive.store(
        {f"{name} x": orphan, f"{name} y": {**orphan, "id": "y", "from": OTHER, "text": "heron"}}
    )
    # What could not be read.
    event = twilio_event({"SmsStatus": "heron", "From": person})
    assert world.receiver.webhook("twilio", event, signed_door=True).status == 200
    # A STOP, and what is refused because of it; and a text at a number that is ours no more.
    world.text("stop texting me", f"SM-{name}-4", person, To=RETIRED)
    world.post(f"{name} heron sale", f"k-{name}", person)
    world.work()
    # What was put aside.
    world.put_aside(
        "processing-dlq",
        inbound(words[3], id_=f"SM-{name}-5", theirs=person),
        inbound(f"{name} other aside", id_=f"SM-{name}-6", theirs=OTHER),
    )
    world.put_aside(
        "outbound-dlq.fifo",
        inbound(words[3], id_=f"SM-{name}-5", theirs=person),
        outgoing(f"{name} heron late", key=f"k2-{name}", theirs=person),
    )
    return [*words, "stop texting me", f"{name} heron late"]


def test_nothing_of_a_person_is_left_and_nothing_of_another_is_touched(world: World) -> None:
    # GIVEN a person, and others whose numbers have theirs in them
    words = live(world)
    for number, theirs in enumerate((SHORTER, LONGER)):
        world.text("another heron", f"SM-o-{number}", theirs)
    world.work()
    items, objects = world.items(), world.objects()
    said = world.everything()
    assert [one for one in (*words, PERSON, PERSON.replace("+", "%2B")) if one not in said] == []

    # WHEN they are erased
    found = erased(world)

    # THEN a search finds nothing, neither the command's nor ours
    assert found.good
    assert found.removed == counts(
        texts=3, replies=4, consent=1, archive=4, quarantine=1, dead_letters=3
    )
    assert found.left == counts()
    assert set(found.unseen.values()) | set(found.mentioned.values()) == {0}
    left = world.everything()
    assert not re.search(rf"(?<!\d){PERSON[1:]}(?!\d)", left)
    assert not [one for one in words if one in left]

    # AND what is another's is as it was, byte for byte
    now = world.items()
    others = {key for key, item in items.items() if is_others(item)}
    assert len(others) == 6
    assert {key: now[key] for key in others} == {key: items[key] for key in others}
    left_there = world.objects()
    for key, content in objects.items():
        lines = [] if key.startswith("quarantine/") else content.splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)["from"] != PERSON]
        assert left_there.get(key, b"") == b"".join(kept)
    assert [json.loads(body)["payload"]["sender"] for body in world.letters()] == [OTHER]

    # AND the opt-out stays, with what proves it
    (consent,) = (item for (_, sk), item in now.items() if sk == "CONSENT")
    before = items[consent["pk"], "CONSENT"]
    assert before["number"] == PERSON
    assert consent == {**before, "words": "", "number": "", "version": before["version"] + 1}
    assert (consent["event"], consent["source"]) == ("stop", "twilio")
    assert world.consent.opted_out(PERSON)

    # AND each message says what became of it
    replies = [item for item in now.values() if "erased_at" in item and item["sk"][:3] == "OUT"]
    states = sorted(world.ledger.find(id_of(item)).state for item in replies)  # type: ignore[union-attr]
    assert states == ["erased", "no_reply: stop", "refused: opted_out", "sent"]
    for item in now.values():
        if "erased_at" in item and item["sk"].startswith("IN#"):
            assert set(item) <= erasure._KEPT
            was = items[item["pk"], item["sk"]]
            assert {n: item[n] for n in item if n != "erased_at"} == {
                n: was[n] for n in item if n != "erased_at"
            }

    # WHEN it is done again, THEN there is nothing to remove
    again = erased(world)
    assert (again.good, again.removed) == (True, counts())
    assert world.items() == now


def test_a_persons_pictures_go_whoever_names_them(world: World) -> None:
    # GIVEN two people with pictures, one of which is named by nobody: whoever fetched it died
    picture = {"MediaUrl0": "https://mms.twiliocdn.com/heron", "MediaContentType0": "image/png"}
    for number, theirs in enumerate((PERSON, OTHER)):
        world.text("heron", f"SM-m-{number}", theirs, **picture)
    world.work()
    archive = Archive(
        world.runtime, KEYS, stage=NAME, account=world.stage.stores.bucket.split("-")[-4]
    )
    orphan = MessageId(KEYS.conversation(OURS, PERSON), "f" * 24)
    archive.keep_medium(orphan.part(1), b"a picture", "image/png")
    theirs = KEYS.conversation(OURS, OTHER)
    kept = [item["media"][0]["key"] for (_, sk), item in world.items().items() if sk[:2] == "IN"]
    assert len(kept) == 2

    # WHEN the first is erased
    found = erased(world)

    # THEN theirs are gone, and the other's is there
    assert (found.good, found.removed["media"]) == (True, 2)
    left = [key for key in world.objects() if key.startswith("media/")]
    assert [key.removeprefix("media/").partition("-")[0] for key in left] == [theirs]


def is_others(item: Mapping[str, Any]) -> bool:
    return {item.get("from"), item.get("theirs")} & {OTHER, SHORTER, LONGER} != set()


def id_of(item: Mapping[str, Any]) -> MessageId:
    return MessageId(item["pk"].partition("#")[2], item["sk"].partition("#")[2])


def test_what_was_erased_is_neither_stored_nor_answered_again(world: World) -> None:
    # GIVEN a person who was erased after some texts
    live(world)
    assert erased(world).good
    kept, sent = world.items(), world.sent
    # WHEN all that ever was on a queue comes again, a day later
    world.runtime.clock += DAY
    for queue, function in world.functions:
        for body in world.delivered[queue]:
            assert function.handle(sqs_event([body]), Context()) == {"batchItemFailures": []}
    assert len(world.delivered["outbound.fifo"]) == 5
    # AND what became of the answers
    replies = [item for item in kept.values() if "parts" in item and "erased_at" in item]
    for item in replies:
        receipt = {"MessageSid": "SM-x", "MessageStatus": "undelivered", "ErrorCode": "21610"}
        event = twilio_event(receipt, reference=id_of(item).part(1))
        assert world.receiver.webhook("twilio", event, signed_door=True).status == 200
    world.work()
    # THEN nobody is sent anything, and nothing of theirs is back (but what cannot be read)
    assert world.sent == sent
    found = erased(world)
    assert (found.good, found.removed) == (True, counts(quarantine=1))
    assert PERSON[1:] not in world.everything()
    # AND whoever asks is told what became of it
    now = world.items()
    assert "SM-x" not in str([now[item["pk"], item["sk"]] for item in replies])
    answers = [world.receiver.get_message(str(id_of(item))).body for item in replies]
    assert {json.loads(answer)["state"] for answer in answers} == {"undelivered", "erased"}


# --- deaths --------------------------------------------------------------------------------------


@contextmanager
def dying(stage: Stage, after: int) -> Iterator[list[str]]:
    """From the nth call of AWS on nobody hears the answer; what was called."""
    made: list[str] = []

    def count(model: Any, parsed: Any, **_: object) -> None:
        made.append(f"{model.service_model.service_name}:{model.name}")
        if len(made) >= after:
            if "Body" in parsed:
                parsed["Body"].close()
            raise Died

    clients = [stage.aws.client(name) for name in ("dynamodb", "s3", "sqs", "secretsmanager")]
    for client in clients:
        client.meta.events.register("after-call", count)
    try:
        yield made
    finally:
        for client in clients:
            client.meta.events.unregister("after-call", count)


def test_a_death_after_any_call_is_made_good_by_the_next_run(stage: Stage, world: World) -> None:
    key = (f"P#default#{KEYS.number(PERSON)}", "CONSENT")
    for after in itertools.count(1):
        # GIVEN a person whose STOP is in a dead letter alone: it must outlive the letter
        world.clear()
        words = live(world)
        world.runtime.dynamodb.delete_item(
            TableName=f"spillway-{NAME}", Key={"pk": {"S": key[0]}, "sk": {"S": key[1]}}
        )
        world.put_aside("processing-dlq", inbound("STOP", id_="SM-s", theirs=PERSON))
        # WHEN it dies after one of its calls
        try:
            with dying(stage, after) as made:
                assert erased(world).good
            break
        except Died:
            pass
        # THEN the next run leaves nothing but the opt-out
        found = erased(world)
        assert found.good, (made[-1], found)
        said = world.everything()
        assert [one for one in (*words, PERSON[1:]) if one in said] == []
        there = world.table.get(key)
        assert there is not None, made[-1]
        assert (there["event"], there["words"]) == ("stop", "")
    assert after > 40


# --- what may be theirs --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "theirs"),
    [
        ("+14155550100", True),
        ("14155550100", True),
        ("From=%2B14155550100&To=x", True),
        ("From= 14155550100", True),
        ("tel:+14155550100;", True),
        ('"+14155550100"', True),
        ("\\u002b14155550100", True),
        ("&#43;14155550100", True),
        ("00+14155550100", True),
        ("+1415555010", False),
        ("+141555501001", False),
        ("214155550100", False),
        ("%2B141555501000", False),
        ("+14155550101", False),
        ("4155550100", False),
        ("", False),
        (None, False),
        (14155550100, False),
    ],
)
def test_a_number_is_known_in_every_form_and_within_no_other(
    stage: Stage, text: object, theirs: bool
) -> None:
    assert Erasure(stage, "+14155550100", wait=0)._is_theirs(text) is theirs


ID = MessageId(KEYS.conversation(OURS, PERSON), "d" * 24)
UNREADABLE = {
    "provider": "twilio",
    "url": "https://sms.example.com/webhooks/twilio/signed",
    "content_type": "",
    "body": base64.b64encode(b"heron").decode(),
}


def about(kind: Any, payload: Any, conversation: str = ID.conversation) -> Envelope:
    return Envelope(kind, conversation, str(ID), NOW, payload)


def of_receipt(error: str = "", reference: str = ID.part(1)) -> Envelope:
    told = DeliveryReceipt("twilio", "SM-1", reference, "undelivered", error)
    return about("receipt", asdict(told))


def of_statement(number: str = PERSON, event: str = "stop") -> Envelope:
    said = {
        "number": number,
        "event": event,
        "at": NOW - 60,
        "source": "telephone",
        "note": "heron",
    }
    return Envelope("consent", "", f"{'e' * 24}-{'f' * 24}", NOW, said)


def unreadable(body: bytes = b"heron", url: str = "") -> Envelope:
    payload = {**UNREADABLE, "body": base64.b64encode(body).decode()}
    return about("unreadable", payload | ({"url": url} if url else {}), "")


GONE: dict[str, Envelope | str] = {
    "their text": inbound("heron", theirs=PERSON),
    "a text to them": outgoing("heron", theirs=PERSON),
    "a receipt": of_receipt(),
    "what they said by telephone": of_statement(),
    "a look": about("settle", {"part": 1, "attempt": 0}),
    "a resume": about("resume", {}),
    "what cannot be read": unreadable(urlencode({"From": PERSON}).encode()),
    "what cannot be read, by its address": unreadable(url=f"https://a.example/{PERSON}"),
    "no message of ours": f"heron {PERSON}",
    "none of ours in our form": about("inbound", {"sender": PERSON}),
}
STAYS: dict[str, Envelope | str] = {
    "another's text": inbound("heron", theirs=OTHER),
    "a longer number's": inbound("heron", theirs=LONGER),
    "a shorter number's": outgoing("heron", theirs=SHORTER),
    "another's receipt": about(
        "receipt", asdict(DeliveryReceipt("twilio", "SM-1", "", "sent")), "e" * 24
    ),
    "what nobody can read": unreadable(),
    "no message at all": "heron",
    "another's, who names them": inbound(f"heron, call {PERSON}", id_="SM2", theirs=OTHER),
    "none of ours with nothing in it": about("inbound", {"sender": 7}),
    "unreadable with nothing in it": about("unreadable", {}, ""),
}


@pytest.mark.parametrize("queue", DEAD)
@pytest.mark.parametrize("what", [*GONE, *STAYS])
def test_letters_about_a_person_go_and_others_stay(world: World, queue: str, what: str) -> None:
    letter = {**GONE, **STAYS}[what]
    world.put_aside(queue, letter)
    found = erased(world)
    assert (found.good, found.removed["dead_letters"]) == (True, what in GONE)
    assert found.mentioned["dead_letters"] == (what == "another's, who names them")
    assert world.letters() == ([] if what in GONE else [body_of(letter)])


def body_of(letter: Envelope | str) -> str:
    return letter if isinstance(letter, str) else letter.body()


@pytest.mark.parametrize("queue", DEAD)
@pytest.mark.parametrize(
    ("before", "letters", "event", "at"),
    [
        pytest.param([], [inbound("STOP", theirs=PERSON)], "stop", NOW, id="a STOP"),
        pytest.param(
            [],
            [inbound("please stop texting me", theirs=PERSON)],
            "stop",
            NOW,
            id="in their own words",
        ),
        pytest.param(
            [],
            [inbound("heron", theirs=PERSON, consent_hint="stop")],
            "stop",
            NOW,
            id="by the provider",
        ),
        pytest.param(
            [("stop", NOW - 60)], [inbound("START", theirs=PERSON)], "start", NOW, id="a START"
        ),
        pytest.param(
            [("stop", NOW - 60)], [inbound("Yes!", theirs=PERSON)], "start", NOW, id="a YES"
        ),
        pytest.param([], [inbound("Yes!", theirs=PERSON)], None, 0, id="a YES to something else"),
        pytest.param(
            [("stop", NOW + 60)],
            [inbound("START", theirs=PERSON)],
            "stop",
            NOW + 60,
            id="a START that a later STOP beats",
        ),
        pytest.param(
            [],
            [
                inbound("STOP", theirs=PERSON, id_="SM2", received_at=NOW + 60),
                inbound("START", theirs=PERSON),
            ],
            "stop",
            NOW + 60,
            id="both, in the wrong order",
        ),
        pytest.param([], [inbound("HELP", theirs=PERSON)], None, 0, id="a HELP"),
        pytest.param([], [outgoing("STOP", theirs=PERSON)], None, 0, id="a text of ours"),
        pytest.param([], [of_receipt("21610")], "stop", NOW, id="a receipt that says opted out"),
        pytest.param([], [of_receipt("30003")], None, 0, id="another receipt"),
        pytest.param(
            [], [of_receipt("21610", ID.part(2))], None, 0, id="a receipt of what was never sent"
        ),
        pytest.param([], [of_receipt("21610", "")], None, 0, id="a receipt of nothing"),
        pytest.param([], [of_statement()], "stop", NOW - 60, id="a STOP by telephone"),
        pytest.param(
            [("stop", NOW - 120)],
            [of_statement(event="start")],
            "start",
            NOW - 60,
            id="a START by telephone",
        ),
        pytest.param([], [of_statement(event="heron")], None, 0, id="nothing by telephone"),
        pytest.param([], [of_statement(number=OTHER)], None, 0, id="another's by telephone"),
    ],
)
def test_what_a_letter_says_of_consent_outlives_it(
    world: World,
    queue: str,
    before: list[tuple[Any, float]],
    letters: list[Envelope],
    event: str | None,
    at: float,
) -> None:
    # GIVEN a reply of which one part was sent, and what the list has already
    reply = begun(world.ledger, ID, theirs=PERSON)
    reply = draft(reply, [("heron 1", ()), ("heron 2", ())])
    part = world.ledger.claim(reply, (reply.parts or ())[0], owner="me", lease_until=NOW + 65)
    world.ledger.sent(reply, part, "SM-1")
    for said, when in before:
        world.consent.record(PERSON, said, when, words="heron", source="test", id_="before")
    world.put_aside(queue, *letters)
    # WHEN they are erased
    assert erased(world).good
    # THEN the list has what was said last, with neither number nor words
    entry = world.table.get((f"P#default#{KEYS.number(PERSON)}", "CONSENT"))
    assert (entry and (entry["event"], entry["at"])) == (event and (event, at))
    assert entry is None or not is_personal(entry)
    left = [letter for letter in letters if letter.payload.get("number") == OTHER]
    assert world.letters() == [letter.body() for letter in left]


def test_a_duplicate_among_the_letters_says_it_no_later(world: World) -> None:
    # GIVEN a STOP that our door had first an hour before the copy that was put aside
    stop = inbound("STOP", theirs=PERSON)
    id_ = MessageId.parse(stop.id)
    assert id_ is not None
    begun(world.ledger, id_, theirs=PERSON)
    world.put_aside("outbound-dlq.fifo", inbound("STOP", theirs=PERSON, received_at=NOW + 3600))
    assert erased(world).good
    entry = world.table.get((f"P#default#{KEYS.number(PERSON)}", "CONSENT"))
    assert entry is not None
    assert (entry["at"], entry["id"]) == (NOW, stop.id)


def test_a_letter_that_was_looked_at_for_too_long_is_looked_at_again(world: World) -> None:
    # GIVEN a STOP that takes longer to be recorded than its letter is hidden
    world.put_aside("outbound-dlq.fifo", inbound("STOP", theirs=PERSON))
    client, refusals = world.stage.aws.client("sqs"), [aws_error("InvalidParameterValue")]

    def expired(**_: object) -> None:
        if refusals:
            raise refusals.pop()

    client.meta.events.register("before-call.sqs.DeleteMessage", expired)
    try:
        found = erased(world)
    finally:
        client.meta.events.unregister("before-call.sqs.DeleteMessage", expired)
    # THEN it counts once, when it is deleted
    assert not refusals
    assert (found.good, found.removed["dead_letters"]) == (True, 1)
    assert world.consent.opted_out(PERSON)


def test_more_letters_of_one_conversation_than_sqs_shows_at_once(world: World) -> None:
    letters = [inbound(f"heron {n}", id_=f"SM{n}", theirs=PERSON) for n in range(23)]
    world.put_aside("outbound-dlq.fifo", *letters)
    found = erased(world)
    assert (found.good, found.removed["dead_letters"]) == (True, 23)
    assert world.letters() == []


def test_a_conversation_that_the_tenth_letter_cuts_off_is_seen_as_a_whole(world: World) -> None:
    # GIVEN letters of four others, of whom some are shown at once and the rest is locked by these
    others = [OTHER, *(f"+1415555018{n}" for n in range(3))]
    letters = [
        inbound(f"heron {n}", id_=f"{theirs}-{n}", theirs=theirs)
        for theirs in others
        for n in range(7)
    ]
    world.put_aside("outbound-dlq.fifo", *letters)
    # THEN an erasure sees all of them, and leaves them
    assert erased(world).good
    # ... and each conversation's come in their order
    seen = [one.body for one in world.stage.stores.dead_letters("outbound-dlq.fifo")]
    assert len(seen) == 28
    for theirs in others:
        mine = [one.body() for one in letters if one.payload["sender"] == theirs]
        assert [body for body in seen if body in mine] == mine


# --- what goes on meanwhile ----------------------------------------------------------------------


@pytest.fixture
def now(world: World, monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    """The command's clock is that of the functions, and stands still unless it waits."""
    monkeypatch.setattr(Stage, "runtime", lambda self: world.runtime)
    return world.runtime


@pytest.mark.parametrize(
    ("state", "after"),
    [("no words", "erased"), ("claimed", "erased"), ("unknown", "erased"), ("sent", "sent")],
)
def test_what_is_recent_is_waited_for(
    world: World, now: FakeRuntime, state: str, after: str
) -> None:
    # GIVEN a reply that somebody works on, or did a moment ago
    reply = world.ledger.open(
        ID,
        kind="inbound",
        provider="twilio",
        ours=OURS,
        theirs=PERSON,
        callback_url="",
        received_at=NOW if state == "no words" else NOW - 3600,
    )
    if state != "no words":
        reply = draft(reply, [("heron", ())])
        part = world.ledger.claim(reply, (reply.parts or ())[0], owner="me", lease_until=NOW + 65)
        if state == "sent":
            world.ledger.sent(reply, part, "SM-1")
        elif state == "unknown":
            world.ledger.unknown(reply, part, reason="read_timeout")
    before = world.items()
    # WHEN nobody has the time, THEN it is left as it is, and told
    now.clock = NOW + 10
    found = erased(world, wait=RECENT - 20)
    assert (found.good, found.removed, found.left) == (False, counts(), counts(replies=1))
    assert world.items() == before
    # WHEN somebody has, THEN it is erased as soon as nobody can have it in hand
    now.clock = NOW + 10
    found = erased(world, wait=RECENT)
    assert (found.good, found.removed) == (True, counts(replies=1))
    assert NOW + RECENT <= now.clock < NOW + RECENT + 1
    reply = world.ledger.find(ID) or reply
    assert (reply.state, reply.theirs, reply.listed) == (after, "", False)


def test_what_moves_on_while_it_is_waited_for_is_erased_as_it_is_then(
    world: World, now: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a claim whose owner writes its outcome down while the command waits
    reply = begun(world.ledger, ID, theirs=PERSON)
    reply = draft(reply, [("heron", ())])
    part = world.ledger.claim(reply, (reply.parts or ())[0], owner="me", lease_until=NOW + 65)
    monkeypatch.setattr(now, "sleep", lambda seconds: move_on())

    def move_on() -> None:
        world.ledger.sent(reply, part, "SM-1")
        now.clock += RECENT

    assert erased(world).good
    assert (world.ledger.find(ID) or reply).state == "sent"


def test_a_text_that_comes_meanwhile_is_told_and_the_next_run_removes_it(world: World) -> None:
    live(world)

    def meanwhile(what: str, done: int, total: int) -> None:
        if what == "reading the quarantine" and not came:
            came.append(what)
            world.text("one more heron", "SM-new")
            world.work()

    came: list[str] = []
    found = Erasure(world.stage, PERSON, wait=5, tell=meanwhile).run()
    assert came
    # (Its line is in an object of its own, which was not there when the others were listed.)
    assert (found.good, found.left) == (False, counts(texts=1, replies=1, archive=1))
    found = erased(world)
    assert (found.good, found.removed) == (True, counts(texts=1, replies=1, archive=1))


@pytest.mark.parametrize("queue", QUEUES)
def test_what_is_on_a_queue_is_told(world: World, queue: str) -> None:
    # GIVEN texts that nobody has worked on yet, on one of the queues
    live(world)
    for number in range(3):
        world.text(f"heron {number}", f"SM-new-{number}")
    other = QUEUES[1 - QUEUES.index(queue)]
    world.runtime.sqs.purge_queue(QueueUrl=world.url(other))
    # THEN all else is removed, and what could not be seen is counted
    found = erased(world, wait=0.1)
    assert not found.good
    assert (found.unseen[queue], found.unseen[other], found.left) == (3, 0, counts())
    # WHEN they are worked on, THEN the next run is good
    world.work()
    found = erased(world)
    assert (found.good, found.removed["replies"]) == (True, 3 if queue == "outbound.fifo" else 0)


def test_of_a_queue_no_more_is_unseen_than_were_left_at_its_best(
    world: World, now: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def depths(*totals: int) -> None:
        left = iter(totals)
        monkeypatch.setattr(
            world.stage.stores,
            "depth",
            lambda queue: Depth(next(left) if queue == "processing" else 0, 0, 0),
        )

    def seen(wait: float) -> int:
        return erasure.wait_for_queues(world.stage, wait, lambda *_: None)["processing"]

    monkeypatch.setattr(erasure, "LOOKS", 3)
    monkeypatch.setattr(erasure, "BETWEEN_LOCALLY", 10.0)
    # It was seen empty three times, if not in a row, or for how many nobody can speak.
    depths(7, 0, 4, 0, 9, 0)
    assert seen(wait=50) == 0
    depths(7, 2, 0, 0, 9, 5)
    assert seen(wait=50) == 1
    depths(7, 3, 4, 5, 6, 9)
    assert seen(wait=50) == 3
    depths(7)
    assert seen(wait=0) == 7


def test_a_letter_that_somebody_else_looks_at_is_told(world: World) -> None:
    world.put_aside("processing-dlq", inbound("heron", theirs=PERSON))
    assert len(world.receive("processing-dlq", seconds=2)) == 1
    found = erased(world, wait=0.1)
    assert (found.good, found.unseen["processing-dlq"], found.left) == (False, 1, counts())
    # WHEN it shows again, THEN it is waited for
    found = erased(world, wait=5)
    assert (found.good, found.removed["dead_letters"]) == (True, 1)


def test_processing_repeats_a_batch_and_the_next_run_finds_it(world: World) -> None:
    # GIVEN a batch of which processing died between archive and table
    world.text("heron", "SM-1")
    world.text("another heron", "SM-2", OTHER)
    world.runtime.sqs.purge_queue(QueueUrl=world.url("outbound.fifo"))
    (first, second) = world.receive("processing", seconds=0)
    batch = [
        {"messageId": "m", "receiptHandle": "h", "body": one["Body"]} for one in (first, second)
    ]

    def die(self: Table, item: object) -> None:
        raise Died

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Table, "insert", die)
        with pytest.raises(Died):
            world.processing.handle({"Records": batch}, Context())
    (key,) = world.objects()
    # WHEN the person is erased in between
    found = erased(world, wait=0.1)
    assert (found.removed, found.unseen["processing"]) == (counts(archive=1), 2)
    assert len(world.objects()[key].splitlines()) == 1
    # THEN the batch makes it whole again, and the next run finds it
    world.work()
    assert len(world.objects()[key].splitlines()) == 2
    found = erased(world)
    assert (found.good, found.removed) == (True, counts(texts=1, archive=1))


@pytest.mark.parametrize("rest", ["another's line", "nothing"])
def test_of_two_who_rewrite_one_object_neither_brings_a_line_back(
    world: World, monkeypatch: pytest.MonkeyPatch, rest: str
) -> None:
    # GIVEN an object with lines of two, both of whom are erased at the same moment
    archive = Archive(world.runtime, KEYS, stage=NAME, account=ACCOUNT)
    lines = {
        name: {"id": name, "from": number, "to": OURS, "received_at": NOW}
        for name, number in (("a", PERSON), ("b", LONGER), ("c", OTHER))
        if rest == "another's line" or name != "c"
    }
    key = archive.store(lines)
    read = stores.Stores.object

    def between(self: stores.Stores, key: str) -> tuple[bytes, str] | None:
        found = read(self, key)
        if not done:
            done.append(key)
            assert Erasure(world.stage, LONGER, wait=5)._archive([key], erase=True).theirs == 1
        return found

    done: list[str] = []
    monkeypatch.setattr(stores.Stores, "object", between)
    assert Erasure(world.stage, PERSON, wait=5)._archive([key], erase=True).theirs == 1
    monkeypatch.undo()
    left = [json.loads(line)["id"] for line in world.objects().get(key, b"").splitlines()]
    assert left == (["c"] if rest == "another's line" else [])


# --- where is looked -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "days", "read"),
    [
        # Since a month before their first message, and from before the table's memory.
        (100, [0, 99, 100, 101, 128, 129], True),
        (100, [130, 200, 398], False),
        (100, [400, 401, 500], True),
        (1, [0, 29, 400], True),
        (1, [31, 100], False),
        # All, where the table knows of none.
        (None, [0, 31, 100, 398, 400, 500], True),
    ],
)
def test_the_archive_is_read_since_their_first_message(
    world: World,
    now: FakeRuntime,
    monkeypatch: pytest.MonkeyPatch,
    first: int | None,
    days: list[int],
    read: bool,
) -> None:
    # (The end of a day belongs to it.)
    now.clock = NOW - NOW % DAY + DAY - 1
    keys = [f"messages/{erasure._day(now.clock - day * DAY)}/a.jsonl.gz" for day in days]
    monkeypatch.setattr(stores.Stores, "objects", lambda self, prefix: iter(keys))
    looked = Erasure(world.stage, PERSON, wait=0)._objects(
        None if first is None else now.clock - first * DAY
    )
    assert looked == (keys if read else [])


def test_a_message_of_another_that_names_the_person_is_told_and_stays(world: World) -> None:
    world.text(f"call the heron at {PERSON}", "SM-1", OTHER)
    world.work()
    before = world.items(), world.objects()
    found = erased(world)
    assert found.good
    # (The text, and the answer that repeats it.)
    assert found.mentioned == {"table": 2, "archive": 1, "dead_letters": 0}
    assert (world.items(), world.objects()) == before


@pytest.mark.parametrize("number", ["", "72345", "4155550100", "HERON", "+1415", "+14155550100 "])
def test_only_a_persons_number_is_taken(stage: Stage, number: str) -> None:
    with pytest.raises(Problem, match="NUMBER must be a person's number"):
        Erasure(stage, number, wait=0)


def test_our_own_numbers_are_refused_those_of_before_too(world: World) -> None:
    with pytest.raises(Problem, match=r"…23 is one of our own numbers \(NUMBERS\)"):
        Erasure(world.stage, OURS, wait=0)
    live(world)
    before = world.items(), world.objects()
    with pytest.raises(Problem, match="…88 is one of our own numbers: people wrote to it"):
        erased(world, RETIRED)
    assert (world.items(), world.objects()) == before


# --- the command ---------------------------------------------------------------------------------


def spillway(
    world: World, monkeypatch: pytest.MonkeyPatch, *arguments: str, typed: str = ""
) -> Any:
    @contextmanager
    def found(name: str) -> Iterator[Stage]:
        yield world.stage

    monkeypatch.setattr(erase, "stage_named", found)
    arguments = ("erase", PERSON, "--wait", "0", *arguments)
    result = CliRunner().invoke(cli.app, arguments, input=typed)
    # (What a terminal shows it in another form than it was typed in.)
    assert PERSON[4:] not in result.output
    assert "heron" not in result.output
    return result


def test_the_command_asks_first_and_says_what_it_will_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    live(world)
    before = world.items(), world.objects()
    result = spillway(world, monkeypatch, typed="n\n")
    assert result.exit_code == 1
    assert re.search(r"the table has \d+ items, [\d.]+ MB, as AWS counted", result.output)
    assert "Erase …42 for good? [y/N]" in result.output
    assert (world.items(), world.objects()) == before

    result = spillway(world, monkeypatch, typed="y\n")
    assert result.exit_code == 0, result.output
    assert "A second search finds nothing of theirs." in result.output
    assert re.search(r"lines of the archive +4 +0", result.output)
    assert PERSON[1:] not in world.everything()


def test_the_command_as_json(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    live(world)
    world.text("one more heron", "SM-json")
    result = spillway(world, monkeypatch, "--yes", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["removed"]["replies"] == 4
    assert (found["number"], found["good"], found["left"]) == ("…42", False, counts())
    assert found["unseen"]["outbound.fifo"] == 1
    world.work()
    found = json.loads(spillway(world, monkeypatch, "--yes", "--json").stdout)
    assert found == {
        "stage": NAME,
        "number": "…42",
        "removed": counts(texts=1, replies=1, archive=1),
        "left": counts(),
        "mentioned": {"table": 0, "archive": 0, "dead_letters": 0},
        "unseen": dict.fromkeys(stores.QUEUES, 0),
        "good": True,
    }


def test_the_command_says_what_is_left_and_what_it_could_not_see(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Erasure,
        "run",
        lambda self: Erased(
            "prod",
            "…42",
            removed=counts(),
            left=counts(replies=1),
            mentioned={"table": 3},
            unseen={"processing": 2},
        ),
    )
    result = spillway(world, monkeypatch, "--yes")
    assert result.exit_code == 1
    for said in (
        "table: 3 messages of others have the number in them; they stay",
        "! processing: 2 messages could not be looked into, which may be theirs",
        "! Something is left: it came meanwhile, or is under way",
        "Run it again",
    ):
        assert said in result.output


def test_the_life_of_what_was_erased_is_told_without_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "_local_lines", lambda id_: [])
    live(world)
    ids = trace.find(world.stage, PERSON, "", 10)
    assert erased(world).good
    # WHEN somebody who knows the number, or an id, asks
    assert trace.find(world.stage, PERSON, "", 10) == ids
    for id_ in ids:
        told = trace.life(world.stage, id_, texts=True)
        assert told is not None
        # THEN what became of it is told, and that the rest is gone
        assert (told.ours, told.theirs, told.texts) == ("", "", [])
        assert told.state in ("sent", "erased", "refused: opted_out")
        assert "erased: numbers and words are gone" in [event.what for event in told.events]


# --- who may run it ------------------------------------------------------------------------------


def pairs(service: str, operation: str, arguments: Mapping[str, Any]) -> list[Pair]:
    """What a call of the command needs to be allowed.

    https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazons3.html
    https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-deletes.html
    https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonsqs.html
    """
    here = f"{EMULATED_REGION}:{ACCOUNT}"
    if service == "s3":
        bucket = f"arn:aws:s3:::{arguments['Bucket']}"
        if operation == "ListObjectsV2":
            return [("s3:ListBucket", bucket)]
        # Whoever writes under a condition must be allowed to read, too.
        names = {operation, "GetObject"} if "IfMatch" in arguments else {operation}
        return [(f"s3:{name}", f"{bucket}/{arguments['Key']}") for name in names]
    if service == "sqs":
        name = arguments.get("QueueName") or arguments["QueueUrl"].rpartition("/")[2]
        # Who may do it to one message may do it to ten.
        operation = operation.removesuffix("Batch")
    elif service == "dynamodb":
        name = f"table/{arguments['TableName']}"
    elif service == "secretsmanager":
        name = f"secret:{arguments['SecretId']}-a1B2c3"
    else:
        name = f"function:{arguments['FunctionName']}"
    return [(f"{service}:{operation}", f"arn:aws:{service}:{here}:{name}")]


@pytest.fixture
def deployed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage as one that is deployed, as far as the command asks for its functions."""
    for name, value in environment(stage.aws.endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(erasure, "BETWEEN", 0.02)
    code = io.BytesIO()
    with zipfile.ZipFile(code, "w") as file:
        file.writestr("app.py", "")
    for role, name in (("receiver", ""), ("sender", "-send")):
        stage.aws.client("lambda").create_function(
            FunctionName=f"spillway-{NAME}{name}",
            Runtime="python3.12",
            Role="arn:aws:iam::000000000000:role/r",
            Handler="app.app",
            Code={"ZipFile": code.getvalue()},
            Environment={"Variables": {**SETTINGS, "SPILLWAY_FUNCTION": role}},
        )


@pytest.mark.usefixtures("deployed")
def test_the_page_names_the_permissions_that_it_needs_and_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    (policy,) = re.findall(r"```json\n(.+?)```", (DOCS / "RETENTION.md").read_text(), re.DOTALL)
    allowed = grants(json.loads(policy.replace("prod", NAME)))
    # GIVEN a person with everything, with a STOP that a letter alone has
    live(world, LONGER)
    world.put_aside("outbound-dlq.fifo", inbound("STOP", id_="SM-s", theirs=LONGER))
    world.put_aside("processing-dlq", inbound("STOP", id_="SM-s", theirs=PERSON))
    live(world)
    key = {"pk": {"S": f"P#default#{KEYS.number(PERSON)}"}, "sk": {"S": "CONSENT"}}
    world.runtime.dynamodb.delete_item(TableName=f"spillway-{NAME}", Key=key)
    # WHEN somebody erases them
    made: set[Pair] = set()
    client: Any = BaseClient
    call = client._make_api_call

    def noted(self: Any, operation: str, arguments: dict[str, Any]) -> Any:
        made.update(pairs(self.meta.service_model.service_name, operation, arguments))
        return call(self, operation, arguments)

    monkeypatch.setattr(client, "_make_api_call", noted)
    result = CliRunner().invoke(
        cli.app, ["erase", PERSON, "--stage", NAME, "--yes", "--json"], catch_exceptions=False
    )
    assert (result.exit_code, json.loads(result.stdout)["good"]) == (0, True)
    # THEN each of its calls is allowed, and each allowance is needed
    assert [one for one in made if not any(covers(grant, one) for grant in allowed)] == []
    assert [grant for grant in allowed if not any(covers(grant, one) for one in made)] == []

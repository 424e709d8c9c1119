"""The ledger against a model that fits on a page: several owners, in any order, some of whose
answers are lost, some of whom are slow or dead, a person who settles what is unknown, and one who
erases it.

The model knows what the ledger must never get wrong: who was given which attempt, what the provider
took, and what was once said of a part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from botocore.exceptions import ReadTimeoutError
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from chalicelib.ledger import Busy, Ledger, PartEntry, Reply, draft
from chalicelib.messages import STATUS_RANK, DeliveryReceipt, MessageId, Status
from chalicelib.table import Table
from tests.fakes import NOW, OURS, THEIRS, Lost, no_answer
from tests.fuzz import examples
from tests.fuzz.memory import Memory

T = TypeVar("T")
ID = MessageId("c" * 24, "d" * 24)
LEASE = 60.0
Words = list[tuple[str, tuple[str, ...]]]
WORDS: Words = [("Is the heron", ("https://media.example.org/1.png",)), ("awake?", ())]
OTHER_WORDS: Words = [("Something", ()), ("else", ())]

owners = st.sampled_from(["a", "b", "c"])
lost = st.sampled_from([False, False, False, True])
# (The rest is none of any table: such a status is a mistake of ours.)
statuses: st.SearchStrategy[Status] = st.sampled_from(
    ["queued", "sent", "unconfirmed", "delivered", "undelivered", "failed"]
)


class LedgerMachine(RuleBasedStateMachine):
    """One reply of two parts, and those who work on it."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory()
        self.ledger = Ledger(Table(self.memory, "test"), self.memory, keep_days=400)
        self.claims = 0
        self.given: dict[tuple[int, int], str] = {}  # (part, attempt) -> whose claim succeeded
        self.held: dict[str, PartEntry] = {}
        self.took: dict[str, bool] = {}  # owner -> whether the provider took what it was handed
        self.wrote: dict[str, str] = {}  # owner -> what it says came of it
        self.verdicts: list[tuple[str, Reply, PartEntry]] = []  # of unknown parts, as they were
        self.taken: Counter[int] = Counter()
        self.allowed: Counter[int] = Counter({1: 1, 2: 1})
        self.words: tuple[str, ...] = ()
        self.outcome = ""
        self.states: dict[int, str] = {}
        self.ranks: dict[int, int] = {}

    def step(self, work: Callable[[], T], lose: bool) -> T | None:
        """What the ledger says, or None where it is Busy or its answer is lost."""
        turn = iter([Lost(no_answer())] if lose else [])
        self.memory.tap.next = {"put_item": turn, "update_item": turn}
        try:
            return work()
        except (Busy, ReadTimeoutError):
            return None
        finally:
            self.memory.tap.next = {}

    def reply(self, words: Words = WORDS) -> Reply:
        """As an owner has it: what is there, with words of its own where there are none."""
        reply = self.ledger.find(ID)
        assert reply is not None
        return reply if reply.parts is not None else draft(reply, words)

    def state(self) -> str:
        """That of the part which is to be sent next."""
        part = self.reply().current
        return part.state if part else ""

    def open(self, lose: bool) -> None:
        made = self.step(
            lambda: self.ledger.open(
                ID,
                kind="inbound",
                provider="twilio",
                ours=OURS,
                theirs=THEIRS,
                callback_url="https://sms.example.com/x",
                received_at=NOW,
            ),
            lose,
        )
        assert made is None or made == self.ledger.find(ID)

    # -- what owners do ----------------------------------------------------------------------------

    @initialize(lose=lost, words=st.sampled_from([WORDS, OTHER_WORDS]))
    def begin(self, lose: bool, words: Words) -> None:
        self.open(lose)
        self.claim("a", words, None, lose)

    @precondition(lambda self: self.state() == "waiting")
    @rule(
        owner=owners,
        words=st.sampled_from([WORDS, OTHER_WORDS]),
        first=st.sampled_from([None, None, WORDS, OTHER_WORDS]),
        lose=lost,
    )
    def claim(self, owner: str, words: Words, first: Words | None, lose: bool) -> None:
        self.open(lose=False)
        reply = self.reply(words)
        if first is not None:
            # Somebody is between this owner's look and its claim, and dies with it.
            self.take("x", self.reply(first), 0.0, lose=False)
        entry = self.take(owner, reply, self.memory.clock + LEASE, lose)
        if entry is not None:
            self.held[owner] = entry
            self.took.pop(owner, None)
            self.wrote.pop(owner, None)

    def take(self, owner: str, reply: Reply, until: float, lose: bool) -> PartEntry | None:
        part = reply.current
        assert part is not None
        self.claims += 1
        name = f"{owner}{self.claims}"
        entry = self.step(
            lambda: self.ledger.claim(reply, part, owner=name, lease_until=until), lose
        )
        if entry is not None:
            assert self.given.setdefault((entry.number, entry.attempt), name) == name
        return entry

    @precondition(lambda self: bool(self.held))
    @rule(data=st.data(), takes=st.booleans())
    def call_the_provider(self, data: st.DataObject, takes: bool) -> None:
        owner = data.draw(st.sampled_from(sorted(self.held)))
        part = self.held[owner]
        assert part.lease_until is not None
        # After its lease, Lambda has ended this invocation.
        if owner not in self.took | self.wrote and self.memory.clock < part.lease_until:
            self.took[owner] = takes
            self.taken[part.number] += takes

    @precondition(lambda self: bool(self.held))
    @rule(data=st.data(), lose=lost)
    def write_the_outcome(self, data: st.DataObject, lose: bool) -> None:
        owner = data.draw(st.sampled_from(sorted(self.held)))
        part, reply = self.held[owner], self.reply()
        possible = {None: ["put_back"], True: ["sent", "unknown"], False: ["failed", "put_back"]}
        what = self.wrote.get(owner)  # the same again: its answer was lost
        if what is None:
            what = data.draw(st.sampled_from([*possible[self.took.get(owner)], "unknown"]))
        if what == "unknown" and owner not in self.took:
            return
        steps: dict[str, Callable[[], PartEntry]] = {
            "sent": lambda: self.ledger.sent(reply, part, "SM1"),
            "failed": lambda: self.ledger.failed(reply, part, reason="filtered", code="30007"),
            "put_back": lambda: self.ledger.put_back(reply, part),
            "unknown": lambda: self.ledger.unknown(reply, part, reason="read_timeout"),
        }
        self.wrote[owner] = what
        entry = self.step(steps[what], lose)
        if entry is not None:
            assert entry.attempt >= part.attempt
            del self.held[owner]

    # -- what others do ----------------------------------------------------------------------------

    @precondition(lambda self: self.state() == "sending")
    @rule(late=st.booleans(), lose=lost)
    def give_up_a_dead_claim(self, late: bool, lose: bool) -> None:
        self.memory.clock += LEASE / 2 + LEASE * late
        reply = self.reply()
        part = reply.current
        assert part is not None
        if (part.lease_until or 0.0) < self.memory.clock:
            self.step(lambda: self.ledger.unknown(reply, part, reason="lease_ended"), lose)

    @precondition(lambda self: self.state() == "unknown")
    @rule(how=st.sampled_from(["look", "look", "resend", "note", "give_up"]))
    def judge(self, how: str) -> None:
        """A look or a person judges what is unknown now; when they say so is another matter."""
        self.memory.clock += LEASE + 1  # nobody can still be about to call
        reply = self.reply()
        part = reply.current
        assert part is not None
        if how == "look":
            how = "found" if self.taken[part.number] else "not_sent"
        self.verdicts.append((how, reply, part))

    @precondition(lambda self: bool(self.verdicts))
    @rule(data=st.data(), lose=lost)
    def settle(self, data: st.DataObject, lose: bool) -> None:
        how, reply, part = data.draw(st.sampled_from(self.verdicts[::-1]))
        steps: dict[str, Callable[[], Reply]] = {
            "found": lambda: self.ledger.found(reply, part, "SM1"),
            "not_sent": lambda: self.ledger.not_sent(reply, part),
            "resend": lambda: self.ledger.resend(reply, part),
            "note": lambda: self.ledger.note(reply, part, "not_found"),
            "give_up": lambda: self.ledger.give_up(reply, part),
        }
        said = self.step(steps[how], lose)
        self.allowed[part.number] += how == "resend" and (lose or said is not None)

    @precondition(lambda self: self.state() == "waiting" and self.memory.clock > NOW + 4 * LEASE)
    @rule(lose=lost)
    def close(self, lose: bool) -> None:
        self.step(lambda: self.ledger.close(self.reply(), "expired"), lose)

    @precondition(lambda self: self.memory.clock > NOW + 8 * LEASE)
    @rule(lose=lost)
    def erase(self, lose: bool) -> None:
        self.memory.clock += LEASE + 1  # no claim is alive
        reply = self.ledger.find(ID)
        assert reply is not None
        self.step(lambda: self.ledger.erase(reply), lose)

    @rule(number=st.sampled_from([1, 1, 1, 2, 3]), status=statuses, lose=lost)
    def receipt(self, number: int, status: Status, lose: bool) -> None:
        receipt = DeliveryReceipt("twilio", "SM1", ID.part(number), status)
        told = self.step(lambda: self.ledger.receive(receipt), lose)
        if told is not None and told.result == "recorded":
            parts = self.reply().parts or ()
            assert parts[number - 1].status == status
            assert parts[number - 1].state == "sent"

    # -- what always holds -------------------------------------------------------------------------

    @invariant()
    def nothing_is_taken_twice(self) -> None:
        assert all(count <= self.allowed[number] for number, count in self.taken.items())

    @invariant()
    def what_was_said_stays(self) -> None:
        reply = self.ledger.find(ID)
        if reply is None:
            return
        # (Of a part that was given up, an owner may still say why it failed.)
        outcome = reply.outcome.partition(":")[0]
        assert self.outcome in ("", outcome)
        self.outcome = outcome
        words = tuple(part.text for part in reply.parts or ())
        if reply.theirs:
            assert self.words in ((), words)
            self.words = words
        else:
            # What was erased is never sent, nor anything said of it again.
            assert not any(words)
            assert not any(part.provider_id or part.owner for part in reply.parts or ())
            assert reply.outcome or self.state() == ""
        for part in reply.parts or ():
            before = self.states.get(part.number, "waiting")
            assert before not in ("sent", "failed") or part.state == before
            self.states[part.number] = part.state
            rank = STATUS_RANK.get(part.status, 0)
            assert rank >= self.ranks.get(part.number, 0)
            self.ranks[part.number] = rank

    @invariant()
    def an_attempt_has_one_owner_and_its_part_is_the_current_one(self) -> None:
        reply = self.ledger.find(ID)
        ahead = True
        for part in (reply.parts or ()) if reply else ():
            if part.state == "sending":
                assert part.owner == self.given.get((part.number, part.attempt), part.owner)
            # What is behind one that is not sent was handed to nobody.
            assert ahead or part.state in ("waiting", "sent")
            ahead = part.state == "sent"


TestLedger = LedgerMachine.TestCase
TestLedger.settings = examples(200, steps=30)

"""What must hold, after every step and at rest. Each violation is raised where it happens, so that
the trace ends with the step that broke the promise."""

from __future__ import annotations

import base64
import gzip
import json
import marshal
from collections import Counter, defaultdict
from collections.abc import Callable
from collections.abc import Mapping as Mapping_
from functools import lru_cache
from itertools import pairwise
from typing import Any

import httpx
from boto3.dynamodb.types import TypeDeserializer

from chalicelib.attachments import WAITS
from chalicelib.consent import KEPT, events_of
from chalicelib.ledger import DAY
from chalicelib.messages import STATUS_RANK
from spillway.operate.reconciliation import AT_ONCE, Reconciled
from tests.simulation import outside
from tests.simulation.functions import Mapping
from tests.simulation.hearing import Hearing
from tests.simulation.outside import KEYS, Accepted, Call, Door, Outside, Text
from tests.simulation.person import GARBAGE, Erasures
from tests.simulation.runtime import Cloud, reference_of
from tests.simulation.traffic import Rules
from tests.simulation.world import Process, Task, Violation

Item = dict[str, Any]

_READER = TypeDeserializer()
_STEPS = {
    None: {"waiting", "sending"},
    "waiting": {"waiting", "sending"},
    "sending": {"sending", "waiting", "sent", "failed", "unknown"},
    "unknown": {"unknown", "sent", "failed", "waiting"},
    "sent": {"sent"},
    "failed": {"failed"},
}


class Invariants:
    """Watches one world."""

    def __init__(self, cloud: Cloud, out: Outside, brand: str) -> None:
        self._cloud = cloud
        self._out = out
        self._brand = brand
        # By reference: how often the provider took it, and how often it may.
        self._taken: Counter[str] = Counter()
        self._allowed: Counter[str] = Counter()
        self._by_person: Counter[str] = Counter()
        self.resend = False
        # By conversation, the messages in the order in which they first stood on the queue.
        self._queued: dict[str, list[str]] = defaultdict(list)
        self._tried: set[str] = set()  # messages of which a part was claimed
        self._passed: dict[str, str] = {}  # message -> the later one that was tried before it
        self._dead: set[str] = set()  # messages that were on a dead-letter queue
        self._lost: set[str] = set()  # and that somebody deleted from the outbound queue
        self._redriven: set[str] = set()  # letters that our own redrive has sent
        # When (unix seconds) a message's envelopes were received, by queue.
        self.received: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self._opted_out: dict[str, int] = {}  # person's key -> since which step
        self._ever_opted_out: set[str] = set()
        self.held_back = Rules()
        self.hearing: Hearing | None = None
        # By person's key: which statement or message opted them out ("" where none did), since
        # which step.
        self._opted_out_by: dict[str, list[tuple[int, str]]] = defaultdict(list)
        self.loop_limit = 0
        self.reply_max_age = 0
        self.lookup_max_age = 0
        # By conversation and message: when the text came to which the answer went out.
        self._claims: list[str] = []  # of the call that is being served
        self._knew: dict[str, int] = {}  # the step at which its sender last looked at the table
        self._claimer: dict[str, tuple[Process, float]] = {}
        self._settles: set[str] = set()  # messages that were asked to be settled
        self._unknown: set[tuple[str, int]] = set()  # references and attempts that were unknown
        self._owners: dict[tuple[str, str], int] = {}  # reference and owner -> its attempt
        self._stored_at: dict[str, float] = {}  # when the table first had a text
        self._replays: dict[str, set[str]] = defaultdict(set)  # texts, and where they were read
        self._replaced_at: dict[str, float] = {}  # when what the table says of a text was replaced
        self._pictures: set[str] = set()  # texts whose picture was kept
        self.dropped: list[tuple[str, str]] = []  # letters: their queue and their body
        self._opened_at: dict[str, float] = {}  # when the ledger first had a message
        self._waited_at: dict[str, float] = {}  # when a part of a message last waited
        self._states: dict[str, list[tuple[float, str]]] = defaultdict(list)
        self.resumed: dict[str, float] = {}  # when a message was last sent for
        self.lookups = False
        self.visibility = 0
        self.listed: set[str] = set()  # references of which a person was told
        self.on_unknown: Callable[[], None] = lambda: None
        self.on_partly_sent: Callable[[str], None] = lambda id_: None
        self.answers_stop = False
        self._answered_at: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
        self._forgotten: set[str] = set()  # what the loop guard counts no more
        self.erased: Mapping_[str, Erasures] = {}
        self._step = 0
        self._claimed = False  # by the call that is being served
        out.on_accepted = self._on_accepted
        cloud.http_watchers.append(self._on_http)
        cloud.watchers.append(self._on_call)
        cloud.stores["dynamodb"].observers.append(self._on_change)

    def allow(self, reference: str) -> None:
        """Somebody takes it upon themselves to send this part once more."""
        self._allowed[reference] += 1
        self._by_person[reference] += 1

    def lose(self, id_: str) -> None:
        """Somebody loses a message from the outbound queue."""
        self._lost.add(id_)

    # -- after every step -------------------------------------------------------------------------

    def _on_call(
        self, task: Task, service: str, operation: str, arguments: dict[str, Any], answer: Any
    ) -> None:
        self._step += 1
        if service == "sqs" and operation.startswith("send_message"):
            failed = isinstance(answer, Exception) or answer is None
            if not failed:
                for entry in arguments.get("Entries", [arguments]):
                    self._on_queued(task, arguments["QueueUrl"], entry)
        if service == "dynamodb":
            if self._claimed:
                # "Immediately before the claim": what was known when this task last looked at all.
                self._claimed = False
                for reference in self._claims:
                    self._claimer[reference] = (task.process, self._cloud.world.now)
                    self._knew[reference] = task.notes.get("last_table_call", 0)
                self._claims.clear()
            task.notes["last_table_call"] = self._step

    def _on_queued(self, task: Task, url: str, entry: dict[str, Any]) -> None:
        queue = url.rpartition("/")[2].removeprefix("spillway-test-")
        if entry["MessageBody"] in GARBAGE:
            return
        envelope = json.loads(entry["MessageBody"])
        id_ = envelope["id"]
        if not id_:
            return
        if envelope["kind"] == "replay":
            self._replays[id_].add(envelope["payload"]["archived_in"])
        if envelope["kind"] == "settle" and "dlq" not in queue:
            self._settles.add(id_)
            part = (f"{id_}-{envelope['payload']['part']}", envelope["payload"]["attempt"])
            if part not in self._unknown:
                raise Violation("only unknown sends are looked for", self._name(id_), (id_,))
        if envelope["kind"] == "resume" and "dlq" not in queue:
            self._is_waited_for(task, id_)
        if queue == "outbound.fifo" and task.process.name.startswith("redriver"):
            self._in_its_turn(entry)
        if "dlq" in queue:
            self._dead.add(id_)
        elif envelope["kind"] in ("inbound", "outgoing"):
            self.received[id_][queue].append(envelope["received_at"])
            if queue == "outbound.fifo" and id_ not in self._queued[envelope["conversation"]]:
                self._queued[envelope["conversation"]].append(id_)

    def _in_its_turn(self, entry: dict[str, Any]) -> None:
        """A letter is sent after those that were put aside before it in its conversation."""
        waiting = {
            letter.id: json.loads(letter.body) | {"redriven_at": None}
            for letter in self._cloud.stores["sqs"].messages(
                f"spillway-test-{_DLQ['outbound.fifo']}"
            )
            if letter.group == entry["MessageGroupId"] and letter.id not in self._redriven
        }
        message = json.loads(entry["MessageBody"]) | {"redriven_at": None}
        if message not in waiting.values():
            return  # somebody else has sent it, too
        first, content = next(iter(waiting.items()))
        if content != message:
            raise Violation(
                "a redrive keeps the order", self._name(message["id"]), (message["id"],)
            )
        self._redriven.add(first)

    def _is_waited_for(self, task: Task, id_: str) -> None:
        """Who is sent for has something to do, or had when that was seen."""
        now = self._cloud.world.now
        self.resumed[id_] = now
        while "parent" in task.notes:
            task = task.notes["parent"]
        began = task.notes.get("began", now - 10)
        conversation, _, message = id_.partition("-")
        item = self._item(f"C#{conversation}", f"OUT#{message}") or {}
        waited_at = self._waited_at.get(id_, 0.0)
        world = self._cloud.world
        moved = task.process is world.outside or task.process.name.startswith(_MOVES)
        held_up = task.process.troubled_at >= began or moved
        if not _waits(item) and waited_at < began - 1 and not held_up:
            raise Violation("nobody is sent for in vain", self._name(id_), (id_,))

    def _on_http(self, task: Task, request: httpx.Request) -> None:
        """A request leaves us."""
        if request.method != "POST" or not request.url.host.startswith("api."):
            return
        if task.process.name.startswith("processing"):
            # Without a claim: a provider that knows a repeated request is asked again.
            self._knew[reference_of(request)] = task.notes.get("last_table_call", 0)
        self._attempted(reference_of(request).rpartition("-")[0])

    def _attempted(self, id_: str) -> None:
        """An attempt begins with the claim, whether or not its owner lives to make the call."""
        conversation = id_.partition("-")[0]
        if id_ in self._tried:
            return
        self._tried.add(id_)
        if id_ in self._passed and id_ not in self._dead | self._lost:
            raise Violation(
                "first attempts are in order",
                f"{self._name(self._passed[id_])} was tried before {self._name(id_)}",
                (id_, self._passed[id_]),
            )
        order = self._queued[conversation]
        for earlier in order[: order.index(id_)] if id_ in order else []:
            if earlier not in self._tried:
                self._passed.setdefault(earlier, id_)

    def _on_accepted(self, task: Task, accepted: Accepted) -> None:
        """A provider takes a text."""
        self._taken[accepted.reference] += 1
        id_ = accepted.reference.rpartition("-")[0]
        text = self._out.texts.get(id_)
        if text is None:
            raise Violation("answers answer something", f"nobody wrote {id_}", (id_,))
        if (accepted.sender, accepted.recipient) != (text.ours, text.person):
            raise Violation("answers go to whom they belong", text.name, (id_,))
        if self._taken[accepted.reference] > 1 + self._allowed[accepted.reference]:
            raise Violation("no part is sent twice", f"{text.name}: {accepted.words}", (id_,))
        item = self._item(f"C#{text.id.conversation}", f"OUT#{text.id.message}") or {}
        if not _fits(text, accepted.words):
            raise Violation("answers answer something", f"{text.name}: {accepted.words}", (id_,))
        number = accepted.reference.rpartition("-")[2]
        stored = (item.get("parts") or {}).get(number, {}).get("text")
        if stored != accepted.words:
            raise Violation("what is sent is what was stored", text.name, (id_,))
        if item.get("confirmation"):
            self._confirmed(text, accepted)
            return
        if text.kind not in (outside.OUTGOING, outside.HELP):
            self._in_no_loop(text, float(item["received_at"]))
        since = self._opted_out.get(f"P#{self._brand}#{KEYS.number(text.person)}")
        knew = self._knew[accepted.reference]
        if since is not None and since < knew:
            raise Violation("nothing is sent after an opt-out", text.name, (id_,))

    def _in_no_loop(self, text: Text, received_at: float) -> None:
        answered = self._answered_at[text.id.conversation]
        now = self._cloud.world.now
        answered[str(text.id)] = (received_at, now)
        # (Neither texts that came over an hour and were answered at once, nor the reverse; nor one
        # that came first and was overtaken: on its way to the queue, or since it was put aside.)
        order = self._queued[text.id.conversation]
        aside = self._dead | self._lost
        before = [one for one in order[: order.index(str(text.id))] if one not in aside]
        counted = [
            one
            for one in (*before, str(text.id))
            if one.partition("-")[2][:8] not in self._forgotten
        ]
        near = sum(
            received_at - 599 < at <= received_at and now - 599 < then
            for at, then in (answered[id_] for id_ in counted if id_ in answered)
        )
        if 0 < self.loop_limit < near:
            raise Violation("robots are parted", f"{near} answers in ten minutes", (str(text.id),))

    def _confirmed(self, text: Text, accepted: Accepted) -> None:
        if text.kind != outside.STOP or self.answers_stop:
            raise Violation("only a STOP is confirmed", text.name, (str(text.id),))
        knew = self._knew[accepted.reference]
        changes = self._opted_out_by[f"P#{self._brand}#{KEYS.number(text.person)}"]
        # (Of a claim that arrives late nobody can say what its sender knew.)
        if knew and [by for step, by in changes if step < knew][-1:] != [str(text.id)]:
            raise Violation("only who opts out by it is told so", text.name, (str(text.id),))
        first = min(self.received[str(text.id)]["outbound.fifo"])
        # (It may be on its way for a while; and a late duplicate may be the first to be begun.)
        if accepted.at - first > 300 + 120 and str(text.id) not in self._lost:
            raise Violation("a confirmation comes at once", text.name, (str(text.id),))

    def _on_change(self, key: tuple[str, str], old: Item | None, new: Item | None) -> None:
        pk, sk = key
        if pk.startswith("P#") and new is not None:
            self._is_in_force(pk, old, new)
            self._is_evidence(pk, self._plain(old), self._plain(new) or {})
            out = new["event"]["S"] == "stop"
            by = new["since_id"]["S"] if out else ""
            self._opted_out_by[pk].append((self._step, by))
            if out:
                self._opted_out.setdefault(pk, self._step)
                self._ever_opted_out.add(pk)
            else:
                self._opted_out.pop(pk, None)
        if sk.startswith("IN#"):
            self._on_text(
                f"{pk.partition('#')[2]}-{sk.partition('#')[2]}", self._plain(old), self._plain(new)
            )
        if sk.startswith("IN#") and new is not None and new.get("keyword", {}).get("S") == "stop":
            self._stop_is_listed(f"{pk.partition('#')[2]}-{sk.partition('#')[2]}")
        if sk == "LOOP" and old is not None and "replies" not in (new or {}):
            # Held: when that is over the count begins anew.
            counted = old.get("replies", {}).get("SS", [])
            self._forgotten |= {entry.partition("-")[2] for entry in counted}
        if sk.startswith("OUT#"):
            before, after = self._plain(old) or {}, self._plain(new) or {}
            self._on_reply(f"{pk.partition('#')[2]}-{sk.partition('#')[2]}", before, after)

    def _on_text(self, id_: str, old: Item | None, new: Item | None) -> None:
        """A text is stored once; a replay replaces what it was read from, and its life stays."""
        now = self._cloud.world.now
        if old is None:
            self._stored_at[id_] = now
        elif new is not None and self._cloud.world.current().process.name.startswith("processing"):
            self._replaced_at[id_] = now
            if old.get("archive_key") not in self._replays[id_]:
                raise Violation("a replay replaces what it was read from", self._name(id_), (id_,))
            if any(old[name] != new[name] for name in ("id", "expires_at", "from", "to")):
                raise Violation("a replay replaces what it was read from", self._name(id_), (id_,))
            self._has_its_day(str(new["archive_key"]), float(new["received_at"]))
        if new is not None and any("key" in one for one in new.get("media") or ()):
            self._pictures.add(id_)

    def _has_its_day(self, key: str, received_at: float) -> None:
        """What is replayed is in an object of its own day: an erasure goes back by its date."""
        day = received_at // DAY
        lines = self._lines(dict(outside.objects(self._cloud.stores["s3"]))[key])
        if any(float(line["received_at"]) // DAY != day for line in lines):
            raise Violation("an object of replayed texts has one day", key)

    def _is_in_force(self, pk: str, old: Item | None, new: Item) -> None:
        """The list holds what counts: of one kind the latest, else the later, STOP by a tie."""
        entry, was = self._plain(new) or {}, self._plain(old)
        if was is not None:
            at, before = float(entry["at"]), float(was["at"])
            if entry["event"] == was["event"]:
                holds = at >= before
            else:
                holds = at > before + 2 if entry["event"] == "start" else at >= before - 2
            if not holds:
                raise Violation("the list says what was said last", "an older event replaced it")
        self._is_said_in_time(entry)
        if entry["event"] == "stop":
            caused = any(
                f"P#{self._brand}#{KEYS.number(text.person)}" == pk
                and (
                    text.kind == outside.STOP
                    or text.rejected in outside.OPTED_OUT_CODES
                    or text.person in self._out.unwanted_at_all
                )
                for text in self._out.texts.values()
            )
            caused = caused or any(
                call.event == "stop" and f"P#{self._brand}#{KEYS.number(call.person)}" == pk
                for call in self._out.calls
            )
            if not caused:
                raise Violation("nobody is opted out for nothing", str(entry.get("source")))

    def _is_evidence(self, pk: str, old: Item | None, new: Item) -> None:
        """Each change leaves what was there, once; and an erasure all but number and words."""
        before, after = _events(old), _events(new)
        name = str(new["id"])
        if after == [{**one, "words": ""} for one in before]:
            if new["number"]:
                raise Violation("what is erased is gone", name)
            return
        if after[:-1] != before[1 - KEPT :]:
            raise Violation("evidence is kept of each change", name)
        for one in reversed(before):
            if one["event"] != new["event"]:
                break
            if one["id"] == new["id"]:
                raise Violation("what is said once is evidence once", name)
        number = str(new["number"])
        if (number and f"P#{self._brand}#{KEYS.number(number)}" != pk) or (
            bool(number) != (new["event"] == "stop" and pk != _NOBODY)
        ):
            raise Violation("the list has the numbers of who is opted out", name)

    def _is_said_in_time(self, entry: Item) -> None:
        """A late duplicate says nothing later, once the first is in the ledger."""
        conversation, _, message = str(entry["id"]).partition("-")
        item = self._item(f"C#{conversation}", f"OUT#{message}")
        known_since = self._opened_at.get(str(entry["id"]))
        if item is None or known_since is None:
            return
        task = self._cloud.world.current()
        while "parent" in task.notes:
            task = task.notes["parent"]
        knew = known_since < task.notes.get("began", 0.0)
        if entry["words"] and knew and float(entry["at"]) > float(item["received_at"]) + 1:
            raise Violation("a duplicate says nothing later", self._name(str(entry["id"])))

    def _stop_is_listed(self, id_: str) -> None:
        """A STOP does not wait for its turn in the conversation."""
        text = self._out.texts[id_]
        entry = self._item(f"P#{self._brand}#{KEYS.number(text.person)}", "CONSENT") or {}
        first = min(text.at, *(min(times) for times in self.received[id_].values()))
        if entry.get("event") != "stop" and float(entry.get("at", 0.0)) < first - 5:
            raise Violation("a STOP is heard at once", text.name, (id_,))

    def _on_reply(self, id_: str, before: Item, after: Item) -> None:
        name = self._name(id_)
        self._states[id_].append((self._cloud.world.now, _state(after)))
        self._opened_at.setdefault(id_, self._cloud.world.now)
        if _waits(before) or _waits(after):
            self._waited_at[id_] = self._cloud.world.now
        if _state(after) == "sending" and _waits(after):
            self.on_partly_sent(id_)
        if after.get("erased_at") != before.get("erased_at"):
            self._on_erased(id_, before, after)
            return
        for field in ("received_at", "outcome", "kind", "theirs", "ours"):
            if field in before and before[field] != after.get(field):
                raise Violation("what is recorded stays", f"{name}: {field}", (id_,))
        if "outcome" in before and before.get("not_before") != after.get("not_before"):
            raise Violation("what has ended does not wait", name, (id_,))
        if "outcome" in after and "outcome" not in before:
            self._has_cause(id_, after)
            under_way = [p for p in (after.get("parts") or {}).values() if p["state"] == "sending"]
            if under_way:
                raise Violation("a reply ends when nothing is under way", name, (id_,))
        old, new = before.get("parts") or {}, after.get("parts") or {}
        if new and not old and "outcome" in before:
            raise Violation("what has ended is not sent", f"{name}: words", (id_,))
        if old and set(old) != set(new):
            raise Violation("the words stay", name, (id_,))
        for number, part in new.items():
            was = old.get(number, {})
            if was and was["text"] != part["text"]:
                raise Violation("the words stay", name, (id_,))
            # (A part that was put back, and of which a receipt says that it was sent after all.)
            proven = was.get("attempt", 0) > 0 and part["state"] == "sent"
            if part["state"] not in _STEPS[was.get("state")] and not proven:
                raise Violation(
                    "states move forward", f"{name}: {was['state']} -> {part['state']}", (id_,)
                )
            if part["state"] == "sending" and was.get("state") != "sending":
                if "outcome" in after:
                    raise Violation("what has ended is not sent", name, (id_,))
                self._is_one_claim(f"{id_}-{number}", after["provider"], part)
                self._claimed = True
                self._claims.append(f"{id_}-{number}")
                self._attempted(id_)
            if part["state"] == "unknown":
                self._unknown.add((f"{id_}-{number}", int(part["attempt"])))
                if was.get("state") != "unknown":
                    self.on_unknown()
            if was.get("request", "") not in ("", part.get("request")):
                raise Violation("the words stay", f"{name}: the request", (id_,))
            self._error_is_true(f"{id_}-{number}", was.get("error"), part.get("error"))
            if part["state"] == "unknown" and was.get("state") == "sending":
                self._is_in_doubt(f"{id_}-{number}", name)
            again = part["state"] == "waiting" and was.get("state") in ("sending", "unknown")
            if was and part["attempt"] < was["attempt"] + again:
                raise Violation("states move forward", f"{name}: attempt", (id_,))
            rank, had = STATUS_RANK.get(part.get("status"), 0), was.get("status")
            if had and rank <= STATUS_RANK[had] and part["status"] != had:
                raise Violation(
                    "statuses never move backwards", f"{name}: {had} -> {part['status']}", (id_,)
                )
            if part["state"] == "waiting" and was.get("state") == "unknown":
                self._is_freed(f"{id_}-{number}", was, part)

    def _on_erased(self, id_: str, before: Item, after: Item) -> None:
        """Words and numbers are gone, what became of it is there, and nobody was busy with it."""
        text = self._out.texts[id_]
        now = self._cloud.world.now
        if text.person not in self.erased:
            raise Violation("only who is to be erased is", text.name, (id_,))
        begun = [float(p.get("started_at", 0)) for p in (before.get("parts") or {}).values()]
        if max(float(before["received_at"]), *begun, 0.0) > now - 300:
            raise Violation("what is under way is not erased", text.name, (id_,))
        kept = ("kind", "provider", "received_at", "expires_at", "confirmation", "redriven_at")
        if any(before.get(name) != after.get(name) for name in kept):
            raise Violation("an erasure leaves what became of it", text.name, (id_,))
        old, new = before.get("parts") or {}, after.get("parts") or {}
        states = {number: (part["state"], part["attempt"]) for number, part in old.items()}
        ended = "outcome" in before or (states and all(s == "sent" for s, _ in states.values()))
        outcome = before.get("outcome", None if ended else "erased")
        for number, (state, attempt) in states.items():
            states[number] = ("failed" if state in ("sending", "unknown") else state, attempt)
        left = {number: (part["state"], part["attempt"]) for number, part in new.items()}
        told = [
            [part.get(n) for n in ("status", "rank")] for part in (*old.values(), *new.values())
        ]
        if (
            (outcome, states) != (after.get("outcome"), left)
            or told[: len(old)] != told[len(old) :]
            or "unknown_bucket" in after
        ):
            raise Violation("an erasure leaves what became of it", text.name, (id_,))
        names = {name for part in new.values() for name in part} | set(after)
        words = any(part["text"] or part["media"] or part["provider_id"] for part in new.values())
        if words or names & {"theirs", "ours", "callback_url", "request", "owner", "lease_until"}:
            raise Violation("what is erased is gone", text.name, (id_,))

    def _is_erased(self, text: Text) -> bool:
        """Whether it may be missing: it came before an erasure was over."""
        found = self.erased.get(text.person)
        return found is not None and (found.running > 0 or text.at <= found.until)

    def nothing_is_left(self, person: str) -> None:
        """No store has a person's number or words."""
        sqs = self._cloud.stores["sqs"]
        held = [
            json.dumps(i)
            for i in self._cloud.stores["dynamodb"].scan(
                TableName="spillway-test", ConsistentRead=True
            )["Items"]
        ]
        held += [
            one.body
            for queue in ("processing", "outbound.fifo", *_DLQ.values())
            for one in sqs.messages(f"spillway-test-{queue}")
        ]
        for key, body in outside.objects(self._cloud.stores["s3"]):
            if key.startswith("media/"):
                if any(
                    text.person == person and f"{text.id}-" in key
                    for text in self._out.texts.values()
                ):
                    raise Violation("what is erased is gone", key)
                continue
            packed = not key.startswith("quarantine/")
            held.append(gzip.decompress(body).decode() if packed else outside.quarantined(body))
        # (What cannot be read says nowhere whose it is: a provider that names nobody.)
        of_theirs = [
            text
            for text in self._out.texts.values()
            if text.person == person and text.kind != outside.UNREADABLE
        ]
        words = {f"{text.name} is the heron" for text in of_theirs}
        words |= {f"{text.name} v" for text in of_theirs} | {f"{t.name} beep" for t in of_theirs}
        for one in (person.removeprefix("+"), *sorted(words)):
            for content in held:
                if one in content:
                    raise Violation("what is erased is gone", f"{one}: {content[:300]}")

    def nothing_is_left_of_before(self, person: str, began: float) -> None:
        """What a person wrote or was written before an erasure that went well is nowhere."""
        found = [
            self._plain(item) or {}
            for item in self._cloud.stores["dynamodb"].scan(
                TableName="spillway-test", ConsistentRead=True
            )["Items"]
        ]
        for key, body in outside.objects(self._cloud.stores["s3"]):
            if key.startswith("messages/"):
                found += self._lines(body)
        for queue in _DLQ.values():
            for letter in self._cloud.stores["sqs"].messages(f"spillway-test-{queue}"):
                if letter.body not in GARBAGE:
                    envelope = json.loads(letter.body)
                    payload = envelope["payload"]
                    who = payload.get("sender", payload.get("theirs", payload.get("number")))
                    found.append({"from": who, "received_at": envelope["received_at"]})
        for one in found:
            theirs = person in (one.get("from"), one.get("theirs"))
            if theirs and float(one["received_at"]) < began - 1:
                raise Violation("what is erased is gone", f"{person}: {one}")

    def agree(self, found: Reconciled) -> None:
        """When nothing is to be put right any more, the stores agree, but in what is among the dead
        letters, and in what came to one queue alone, which nobody acknowledged."""
        letters = {id_ for queue in _DLQ.values() for id_ in self._letters(queue)}
        letters |= {json.loads(body)["id"] for _, body in self.dropped}
        crowded = self._crowded()
        for kind, ids in found.open.items():
            for id_ in ids:
                if kind == "dead_lettered" and id_.partition("-")[0] in crowded:
                    continue  # SQS does not show whether it is one of them
                text = self._out.texts.get(id_)
                unstored = text is not None and (not text.acknowledged or id_ in letters)
                put_aside = kind in ("dead_lettered", "words_lost") and id_ in letters
                allowed = put_aside or (kind == "not_stored" and unstored)
                if not allowed:
                    raise Violation("the stores agree", f"{self._name(id_)}: {kind}", (id_,))

    def _letters(self, queue: str) -> list[str]:
        """The messages that a queue has, each as often as it does."""
        letters = self._cloud.stores["sqs"].messages(f"spillway-test-{queue}")
        return [json.loads(one.body)["id"] for one in letters if one.body not in GARBAGE]

    def _crowded(self) -> set[str]:
        """The conversations of which SQS may not show all dead letters of the sender."""
        letters = Counter(id_.partition("-")[0] for id_ in self._letters("outbound-dlq.fifo"))
        return {conversation for conversation, number in letters.items() if number >= AT_ONCE}

    def replayed(self, began: float) -> None:
        """Nobody came between, and nothing is on its way any more: what is stored was found out
        anew, but what is put aside or erased."""
        aside = self._letters("processing-dlq")
        for id_, text in self._out.texts.items():
            item = self._item(f"C#{text.id.conversation}", f"IN#{text.id.message}") or {}
            there = "archive_key" in item and id_ not in aside and not self._is_erased(text)
            if there and self._replaced_at.get(id_, 0.0) < began:
                raise Violation("a replay replaces what it was read from", text.name, (id_,))

    def answered(self, person: str) -> list[Text]:
        """The person's texts of which the stores still know that they came and were answered."""
        found = []
        for text in self._out.texts.values():
            keys = [f"{kind}#{text.id.message}" for kind in ("IN", "OUT")]
            pk = f"C#{text.id.conversation}"
            there = [
                self._item(pk, sk) for sk in keys if text.kind != outside.OUTGOING or sk[0] == "O"
            ]
            if text.person == person and text.kind != outside.UNREADABLE and all(there):
                found.append(text)
        return found

    def _is_freed(self, reference: str, was: Item, part: Item) -> None:
        """An unknown part may be sent again: since somebody wants that, or it was not sent."""
        world = self._cloud.world
        if part.get("lost", 0) > was.get("lost", 0):
            self._allowed[reference] += self.resend
            self._is_allowed(reference, part)
        elif world.current().process.name.startswith("processing"):
            taken = [one for one in self._out.accepted if one.reference == reference]
            if any(one.listed_at < world.now - 60 for one in taken):
                raise Violation("what can be found is found", f"{reference}: it was sent")

    def _is_allowed(self, reference: str, part: Item) -> None:
        """Sent again blindly is only what a person or the setting wants so; by the setting twice,
        and not before it would be on a list."""
        world = self._cloud.world
        if not world.current().process.name.startswith("processing"):
            return
        age = world.now - float(part["started_at"])
        lost = part["lost"] - self._by_person[reference]
        if lost > (2 if self.resend else 0) or (lost > 0 and age < 299):
            raise Violation("nobody resends what is held", reference, (reference,))

    def _is_one_claim(self, reference: str, provider: str, part: Item) -> None:
        """Each claim has its own owner, and what a repetition will need."""
        seen = self._owners.setdefault((reference, part["owner"]), int(part["attempt"]))
        if seen != part["attempt"]:
            raise Violation("a claim is made once", reference, (reference,))
        if bool(part.get("request")) != (provider == "telnyx"):
            raise Violation("a request can be repeated", reference, (reference,))

    def _error_is_true(self, reference: str, was: str | None, error: str | None) -> None:
        of = {"repeat_refused": self._out.refused, "idempotency_mismatch": self._out.mismatched}
        if error != was and error in of and reference not in of[error]:
            raise Violation("reasons are true", f"{reference}: {error}", (reference,))

    def _is_in_doubt(self, reference: str, name: str) -> None:
        """What is called unknown is so: an answer did not come, or its owner had a mishap."""
        process, claimed_at = self._claimer[reference]
        unsure = self._cloud.uncertain | self._out.mismatched
        known = reference not in unsure and process is not self._cloud.world.outside
        if known and not process.dead and process.troubled_at < claimed_at - 1:
            raise Violation("unknown is what cannot be known", name, (reference,))

    def _has_cause(self, id_: str, item: Item) -> None:
        """A reason for not answering must be the true one."""
        text = self._out.texts[id_]
        outcome, kind = item["outcome"], text.kind
        age = self._cloud.world.now + 1 - float(item["received_at"])
        limit = 36_000.0 if kind == outside.OUTGOING else self.reply_max_age
        if "redriven_at" not in item:
            limit += float(item.get("waited", 0.0))  # what it was told to wait is no age
        opted_out = f"P#{self._brand}#{KEYS.number(text.person)}" in self._ever_opted_out
        true = {
            "no_reply": kind in (outside.SILENT, outside.FICKLE),
            "no_reply: stop": kind == outside.STOP,
            "no_reply: start": self.answers_stop
            and (kind == outside.START_AGAIN or (kind == outside.YES and opted_out)),
            "no_reply: help": kind == outside.HELP and self.answers_stop,
            "refused_by_reply_api: 422": kind in (outside.REFUSED, outside.FICKLE),
            "refused: opted_out": opted_out,
            "refused: loop": self.loop_limit > 0,
            "failed: invalid_number": bool(text.rejected),
            "failed: not_permitted": bool(text.rejected),
            "failed: opted_out": text.rejected in outside.OPTED_OUT_CODES,
            "failed: given_up": True,
            **dict.fromkeys(self.held_back.causes(text.person), True),
        }.get(outcome)
        if outcome.startswith("expired"):
            true = age > (300 if item.get("confirmation") else limit)
            parts = (item.get("parts") or {}).values()
            sent = sum(part["state"] == "sent" for part in parts)
            true = true and outcome == (
                f"expired: after {sent} of its parts" if sent else "expired"
            )
        if not true:
            raise Violation("reasons are true", f"{text.name} ({kind}): {outcome}", (id_,))

    # -- at rest ----------------------------------------------------------------------------------

    def at_rest(self, mappings: dict[str, Mapping], littered: bool) -> None:
        """Everything that was acknowledged is somewhere, and nothing waits."""
        sqs = self._cloud.stores["sqs"]
        dead: dict[str, set[str]] = {}
        unheard: set[str] = set()
        for queue in ("processing", "outbound.fifo"):
            left = sqs.messages(f"spillway-test-{queue}")
            if left:
                raise Violation("the system comes to rest", f"{len(left)} left on {queue}")
            letters = sqs.messages(f"spillway-test-{_DLQ[queue]}")
            ours = [letter for letter in letters if letter.body not in GARBAGE]
            bodies = [json.loads(letter.body) for letter in ours]
            dead[queue] = {body["id"] for body in bodies if body["kind"] != "event"}
            unheard |= {body["id"] for body in bodies}
            for letter in ours:
                self._justified(letter, mappings[queue])
            if littered and not {letter.body for letter in letters}.issuperset(GARBAGE):
                raise Violation("what is not ours is put aside", queue)
        # What was dropped is nowhere any more; but nobody drops what the list would need.
        needed = {queue: set(ids) for queue, ids in dead.items()}
        for queue, body in self.dropped:
            envelope = json.loads(body)
            source = next(name for name, dlq in _DLQ.items() if dlq == queue)
            unheard.add(envelope["id"])
            if envelope["kind"] != "event":
                dead[source].add(envelope["id"])
            if not self._says_stop(envelope):
                needed[source].add(envelope["id"])
        # What was lost comes back by its text, unless that is put aside as well, or erased, or it
        # may be put aside itself for all that anybody sees.
        crowded = self._crowded()
        dead["outbound.fifo"] |= {
            id_
            for id_ in self._lost
            if id_ in dead["processing"]
            or self._is_erased(self._out.texts[id_])
            or id_.partition("-")[0] in crowded
        }
        # (Whoever ended a reply, died, and whose message was lost, has told nobody.)
        unheard |= self._lost
        archived = self._archived()
        aside = [self._payload(one) for one in sqs.messages(f"spillway-test-{_DLQ['processing']}")]
        for text in self._out.texts.values():
            if text.kind == outside.UNREADABLE:
                kept = text.provider_id in archived[""] or any(text.provider_id in p for p in aside)
                if text.acknowledged and not kept:
                    raise Violation("what cannot be read is kept", text.name)
                continue
            if self._is_erased(text):
                continue
            if text.acknowledged and text.kind != outside.OUTGOING:
                self._stored(text, archived, dead["processing"])
            if text.acknowledged and text.kind not in outside.UNANSWERABLE:
                self._answered(text, dead)
                self._told_of(text, dead["processing"] | dead["outbound.fifo"])
        self._one_confirmation()
        self._heard(dead["processing"])
        self._last_word(needed)
        self._providers_word()
        for call in self._out.calls:
            self._is_recorded(call, needed["processing"])
        if self.hearing is not None and "" not in unheard:
            self._all_was_heard(self.hearing, unheard)

    def _says_stop(self, envelope: dict[str, Any]) -> bool:
        text = self._out.texts.get(envelope["id"])
        told = envelope["kind"] == "consent" and envelope["payload"].get("event") == "stop"
        return told or (text is not None and text.kind == outside.STOP)

    def _all_was_heard(self, hearing: Hearing, unheard: set[str]) -> None:
        """Of all that is stored, ended, told and consented to the business has heard, but of what
        is among the dead letters."""
        for id_, text in self._out.texts.items():
            if id_ in unheard or self._is_erased(text):
                continue
            pk = f"C#{text.id.conversation}"
            if self._item(pk, f"IN#{text.id.message}") is not None:
                hearing.stored(id_)
            item = self._item(pk, f"OUT#{text.id.message}")
            if item is None:
                continue
            states = [part["state"] for part in (item.get("parts") or {}).values()]
            if item.get("outcome") or (states and set(states) == {"sent"}):
                hearing.ended(id_, item)
            elif "outcome" not in item:
                hearing.goes_on(id_)
        for reference, statuses in self._out.told.items():
            id_ = reference.rpartition("-")[0]
            if id_ not in unheard and not self._is_erased(self._out.texts[id_]):
                for status in statuses:
                    hearing.told(reference, status)
        for person in {text.person for text in self._out.texts.values()} - set(self.erased):
            entry = self._item(f"P#{self._brand}#{KEYS.number(person)}", "CONSENT")
            for event in events_of(entry):
                if event["id"] not in unheard:
                    hearing.consented(event)

    def _stored(self, text: Text, archived: dict[str, dict[str, Any]], dead: set[str]) -> None:
        id_ = str(text.id)
        item = self._item(f"C#{text.id.conversation}", f"IN#{text.id.message}")
        if item is None:
            if id_ not in dead:
                raise Violation("what is acknowledged is stored", text.name, (id_,))
        elif id_ not in archived[item["archive_key"]]:
            raise Violation("what is stored is archived", text.name, (id_,))
        elif item["from"] != text.person or (
            item["text"] != text.words and text.kind not in (outside.EMPTY, outside.HUGE)
        ):
            raise Violation("what is stored is what was said", text.name, (id_,))
        elif item["reasons"] != outside.INVALID.get(text.kind, []):
            raise Violation("what is stored is judged", f"{text.name}: {item['reasons']}", (id_,))
        elif item["lookups"] != (
            {"line": {"line_type": "mobile", "country": "US"}}
            if self.lookups and not item["reasons"] and text.kind != outside.NAMED
            else {}
        ):
            raise Violation("what is stored is complete", f"{text.name}: {item['lookups']}", (id_,))
        elif not archived[item["archive_key"]][id_].get("raw"):
            raise Violation("the archive has the whole payload", text.name, (id_,))
        elif text.picture:
            self._illustrated(text, item["media"])

    def _illustrated(self, text: Text, media: list[Item]) -> None:
        """A picture is kept as it was sent, or its item truly says why it is not."""
        id_ = str(text.id)
        (medium,) = media
        may_be_had = not outside.PICTURES[text.picture]
        if "key" not in medium and id_ in self._pictures:
            raise Violation("a picture is kept as it was sent", f"{text.name}: it was", (id_,))
        if "key" in medium:
            there = dict(outside.objects(self._cloud.stores["s3"])).get(medium["key"])
            if not may_be_had or there != text.picture_itself:
                raise Violation("a picture is kept as it was sent", text.name, (id_,))
        elif medium["error"] == "unavailable":
            # (It was waited for, and nobody waits so long in a calm world.)
            first = min(self.received[id_]["processing"])
            again = id_ in self._replaced_at  # (Then it was waited for anew.)
            if not again and self._stored_at[id_] - first < WAITS - 2:
                raise Violation("a picture is waited for", text.name, (id_,))
        elif medium["error"] == "gone" and self._out.pictures_gone:
            pass  # (It could not be had while it was there.)
        elif medium["error"] != outside.PICTURES[text.picture]:
            raise Violation("a picture is kept as it was sent", f"{text.name}: {medium}", (id_,))

    def _answered(self, text: Text, dead: dict[str, set[str]]) -> None:
        id_ = str(text.id)
        item = self._item(f"C#{text.id.conversation}", f"OUT#{text.id.message}")
        if item is None or ("parts" not in item and "outcome" not in item):
            if id_ not in dead["outbound.fifo"]:
                raise Violation("every message is answered or has a reason", text.name, (id_,))
            return
        states = [part["state"] for part in (item.get("parts") or {}).values()]
        listed = "unknown_bucket" in item
        if "unknown" in states and not listed:
            raise Violation("unknown sends are listed", text.name, (id_,))
        # (Or what was looked for, and whoever looked died each time before saying so; or what was
        # put back by an owner who was taken for dead, and whose message is put aside.)
        aside = dead["processing"] | dead["outbound.fifo"]
        if listed and "unknown" not in states and id_ not in aside:
            raise Violation("only unknown sends are listed", f"{text.name}: {states}", (id_,))
        # (Or its own message, which would bring somebody to look, is put aside or lost.)
        if listed and id_ not in self._settles | dead["outbound.fifo"] | self._lost:
            raise Violation("unknown sends are looked for", text.name, (id_,))
        if item.get("outcome") or listed or id_ in dead["outbound.fifo"]:
            return
        if any(state != "sent" for state in states):
            raise Violation(
                "every message is answered or has a reason", f"{text.name}: {states}", (id_,)
            )
        if not all(self._taken[f"{id_}-{number}"] for number in item["parts"]):
            raise Violation("what is called sent was taken", text.name, (id_,))

    def _told_of(self, text: Text, dead: set[str]) -> None:
        """Whoever has to decide about an unknown send was told of it, or lost what would tell."""
        item = self._item(f"C#{text.id.conversation}", f"OUT#{text.id.message}") or {}
        for number, part in (item.get("parts") or {}).items():
            told = f"{text.id}-{number}" in self.listed or str(text.id) in dead | self._lost
            if part["state"] == "unknown" and not told:
                raise Violation("unknown sends are looked for", text.name, (str(text.id),))

    def was(self, id_: str, since: float) -> set[str]:
        """What a question about a message may be answered between then and now."""
        states = self._states[id_]
        before = [state for at, state in states if at <= since]
        return {*before[-1:], *(state for at, state in states if at > since)}

    def _heard(self, dead: set[str]) -> None:
        """What providers said of a part, and we acknowledged, is what the ledger says."""
        if "" in dead:
            return  # receipts are among the dead letters
        for reference, told in self._out.told.items():
            id_, _, number = reference.rpartition("-")
            conversation, _, message = id_.partition("-")
            item = self._item(f"C#{conversation}", f"OUT#{message}") or {}
            part = item["parts"][number]
            best = max(STATUS_RANK[status] for status in told)
            if part["state"] == "sent" and STATUS_RANK.get(part.get("status"), 0) < best:
                raise Violation("receipts are heard", f"{self._name(id_)}: {told}", (id_,))
            if part["state"] not in ("sent", "failed"):
                raise Violation("receipts are heard", f"{self._name(id_)}: {told}", (id_,))

    def asked_for(self, door: Door) -> None:
        """`GET /messages/{id}` says what became of each message, and the door is open."""
        texts = list(self._out.texts.items())
        for provider in sorted({"twilio", "telnyx"} - self._out.lost):
            if not self._out.probe(provider, door):
                raise Violation("a good request is taken", f"{provider}, when all is well again")
        for id_, text in texts:
            item = self._item(f"C#{text.id.conversation}", f"OUT#{text.id.message}")
            status, body = door.post(f"/messages/{id_}", {})
            said = json.loads(body).get("state") if status == 200 else ""
            expected = _state(item) if item else ""
            if (status, said) != (200 if item else 404, expected):
                raise Violation("a question is answered", f"{text.name}: {said or status}", (id_,))

    def _one_confirmation(self) -> None:
        """Of one opt-out, one."""
        for person in {text.person for text in self._out.texts.values()}:
            stops = starts = 0
            for text in self._out.texts.values():
                if text.person == person:
                    starts += text.kind in (outside.START_AGAIN, outside.YES)
                    item = self._item(f"C#{text.id.conversation}", f"OUT#{text.id.message}") or {}
                    stops += bool(item.get("confirmation"))
            starts += sum(c.event == "start" and c.person == person for c in self._out.calls)
            if stops > 1 + starts:
                raise Violation("an opt-out is confirmed once", f"{stops} times")

    def _last_word(self, dead: dict[str, set[str]]) -> None:
        """The list says what each person said last, where no doubt is which that was."""
        said: dict[str, list[tuple[float, float, Text]]] = defaultdict(list)
        for text in self._out.texts.values():
            if text.kind in _CONSENT and text.acknowledged:
                times = self.received[str(text.id)]
                first = min(min(each) for each in times.values())
                last = max(min(each) for each in times.values())
                if text.provider == "telnyx":
                    first = last = text.at
                if any(str(text.id) in ids for ids in dead.values()):
                    last = float("inf")
                said[text.person].append((first, last, text))
        # What was never acknowledged may have been heard all the same.
        doubtful = {
            text.person
            for text in self._out.texts.values()
            if text.rejected in outside.OPTED_OUT_CODES
            or (text.kind in _CONSENT and not text.acknowledged)
        }
        for person, events in said.items():
            if person in doubtful or person in self._out.unwanted_at_all:
                continue
            if any(str(text.id) in self._lost for *_, text in events):
                continue  # a late duplicate says it anew
            called = [call for call in self._out.calls if call.person == person]
            if any(not call.timed and not call.by_hand for call in called):
                continue
            if all(t.provider == "telnyx" and t.kind != outside.YES for *_, t in events):
                self._by_the_clock(person, [text for *_, text in events], dead)
                continue
            if called:
                continue
            events.sort(key=lambda one: one[0])
            if any(a[1] + 4 > b[0] for a, b in pairwise(events)):
                continue
            if events[-1][1] == float("inf"):
                continue
            says_yes = any(text.kind == outside.YES for *_, text in events)
            at_once = all(
                len(times) == 1
                for *_, text in events
                for times in self.received[str(text.id)].values()
            )
            if says_yes and (len({text.ours for *_, text in events}) > 1 or not at_once):
                continue  # which was there first, nobody can say
            expected = None
            for *_, text in events:
                if text.kind != outside.YES:
                    expected = text.kind
                elif expected == outside.STOP:
                    expected = outside.START_AGAIN
            item = self._item(f"P#{self._brand}#{KEYS.number(person)}", "CONSENT") or {}
            if expected == "start" and self._is_of_a_duplicate(item):
                continue
            if item.get("event") != expected:
                raise Violation(
                    "the list says what was said last",
                    f"{expected}; the list says {item.get('event')}",
                    tuple(str(one[2].id) for one in events),
                )

    def _is_of_a_duplicate(self, item: Item) -> bool:
        """A STOP of which the second copy was there before anybody had begun the first: nobody
        could know that it was not said later. (It errs on the side of silence.)"""
        if item.get("event") != outside.STOP:
            return False
        times = [min(each) for each in self.received[str(item["id"])].values()]
        return float(item["at"]) > min(times) + 1

    def _by_the_clock(self, person: str, texts: list[Text], dead: dict[str, set[str]]) -> None:
        """Where the provider says when each was said, the rule leaves no doubt."""
        if any(str(text.id) in ids for text in texts for ids in dead.values()):
            return
        every = [
            one for one in self._out.texts.values() if one.person == person and one.kind in _CONSENT
        ]
        called = [call for call in self._out.calls if call.person == person]
        if any(call.ids & dead["processing"] or not call.acknowledged for call in called):
            return
        stops = [one.at for one in every if one.kind == outside.STOP]
        starts = [one.at for one in every if one.kind == outside.START_AGAIN]
        stop = max(stops + [call.at for call in called if call.event == "stop"], default=0.0)
        start = max(starts + [call.at for call in called if call.event == "start"], default=0.0)
        if len(every) != len(texts) or abs(start - stop - 2) < 1.2:
            return
        expected = "start" if start > stop + 2 else "stop"
        item = self._item(f"P#{self._brand}#{KEYS.number(person)}", "CONSENT") or {}
        if item.get("event") != expected:
            raise Violation(
                "the list says what was said last",
                f"it says {item.get('event')}, not {expected}",
                tuple(str(one.id) for one in every),
            )

    def _is_recorded(self, call: Call, dead: set[str]) -> None:
        """What somebody said otherwise, and was acknowledged, is on the list or put aside; or
        something that beats it is on the list."""
        if not call.acknowledged or call.ids & dead:
            return
        entry = self._item(f"P#{self._brand}#{KEYS.number(call.person)}", "CONSENT")
        at = float((entry or {}).get("at", 0.0)) + 1  # (clocks differ)
        if entry is None:
            holds = False
        elif entry["event"] == call.event:
            holds = at >= call.since
        else:
            holds = at > call.since + 2 if call.event == "stop" else at >= call.since - 2
        if not holds:
            raise Violation("what is said otherwise is recorded", call.name, tuple(call.ids))

    def _providers_word(self) -> None:
        """Whom a provider calls opted out is so on our list, unless they said START."""
        for text in self._out.texts.values():
            item = self._item(f"C#{text.id.conversation}", f"OUT#{text.id.message}") or {}
            again = any(
                one.kind in (outside.START_AGAIN, outside.YES) and one.person == text.person
                for one in self._out.texts.values()
            ) or any(c.event == "start" and c.person == text.person for c in self._out.calls)
            told = item.get("outcome") == "failed: opted_out" or text.person in self._out.unwanted
            # (A receipt that came after an erasure was nobody's.)
            if told and not again and not self._is_erased(text):
                listed = self._item(f"P#{self._brand}#{KEYS.number(text.person)}", "CONSENT") or {}
                if listed.get("event") != "stop":
                    raise Violation("a provider's word is heard", text.name, (str(text.id),))

    def _justified(self, letter: Any, mapping: Mapping) -> None:
        """Nothing healthy is put aside: only what was worked on often without an end, or was too
        old for its look-ups."""
        reason = letter.attributes.get("reason", {}).get("StringValue", "")
        first = float(letter.attributes["first_sent_at"]["StringValue"])
        last = float(letter.attributes["dead_lettered_at"]["StringValue"])
        if reason == "never_ended" and self.visibility < 60:
            return  # deliveries at once may look like that; AWS allows no such queue
        if reason == "never_ended":
            ends = mapping.bad_ends.get(letter.body, 0)
            text = self._out.texts.get(json.loads(letter.body)["id"])
            if text is not None and text.kind == outside.BROKEN:
                ends += text.asked
            if text is None or not text.poison:
                # Three times it may be blamed for what another one did; then it is worked on alone.
                others = mapping.poisoned_ends.get(letter.body, 0)
                ends -= max(0, others - 3)
            if ends < 5:
                raise Violation("nothing healthy is dead-lettered", reason, (letter.id,))
        elif not reason.startswith("too_old") or last - first < self.lookup_max_age - 1:
            raise Violation("nothing healthy is dead-lettered", reason, (letter.id,))

    def _payload(self, letter: Any) -> str:
        """What could not be read, in a dead letter; "" in any other."""
        if letter.body in GARBAGE:
            return ""
        envelope = json.loads(letter.body)
        unreadable = envelope["kind"] == "unreadable"
        return base64.b64decode(envelope["payload"]["body"]).decode() if unreadable else ""

    # -- what is there ----------------------------------------------------------------------------

    def _archived(self) -> dict[str, dict[str, Any]]:
        """The lines by id in each object; under "" the provider ids in quarantine."""
        found: dict[str, dict[str, Any]] = defaultdict(dict)
        for key, body in outside.objects(self._cloud.stores["s3"]):
            if key.startswith("quarantine/"):
                payload = outside.quarantined(body)
                for text in self._out.texts.values():
                    if text.provider_id in payload:
                        found[""][text.provider_id] = payload
            elif key.startswith("messages/"):
                found[key] = {line["id"]: line for line in self._lines(body)}
        return found

    def _lines(self, body: bytes) -> list[Item]:
        return list(map(json.loads, gzip.decompress(body).splitlines()))

    def _item(self, pk: str, sk: str) -> Item | None:
        answer = self._cloud.stores["dynamodb"].get_item(
            TableName="spillway-test", Key={"pk": {"S": pk}, "sk": {"S": sk}}, ConsistentRead=True
        )
        return self._plain(answer.get("Item"))

    def _plain(self, item: Item | None) -> Item | None:
        return None if item is None else _read(marshal.dumps(item))

    def _name(self, id_: str) -> str:
        return self._out.texts[id_].name if id_ in self._out.texts else id_


@lru_cache(512)
def _read(packed: bytes) -> Item:
    """An item as Python has it. (What it is now it was a moment ago, mostly: nobody changes it.)"""
    return {name: _READER.deserialize(value) for name, value in marshal.loads(packed).items()}


def _state(item: Item) -> str:
    """What became of a reply, in a word, from its item."""
    if item.get("outcome"):
        return str(item["outcome"])
    parts = list((item.get("parts") or {}).values())
    states = [part["state"] for part in parts]
    for state in ("unknown", "failed", "sending"):
        if state in states:
            return state
    if "waiting" in states:
        return "sending" if "sent" in states else "waiting"
    worst = ("failed", "undelivered", "unconfirmed", "queued", "sent", "delivered")
    said = min((part.get("status") or "sent" for part in parts), key=worst.index, default="waiting")
    return "sent" if said == "queued" else said


def _events(entry: Item | None) -> list[Item]:
    """What an entry of the list holds, the oldest first."""
    names = ("event", "at", "words", "source", "id")
    return [*entry["earlier"], {name: entry[name] for name in names}] if entry else []


def _waits(item: Item) -> bool:
    """Whether a part is there to be sent next."""
    states = [part["state"] for part in (item.get("parts") or {}).values()]
    return "outcome" not in item and next((s for s in states if s != "sent"), "") == "waiting"


def _fits(text: Text, words: str) -> bool:
    """Whether these words can be an answer to that text."""
    if text.kind == outside.STOP:
        return words == outside.STOP_TEXT
    if text.kind == outside.HELP:
        return words == outside.HELP_TEXT
    if text.kind == outside.OUTGOING:
        return words == text.words
    return words.startswith(f"{text.name} v")


_NOBODY = f"P#default#{KEYS.number('')}"  # who sends without a number
_CONSENT = (outside.STOP, outside.START_AGAIN, outside.YES)
_MOVES = ("redriver", "reconciler")
_DLQ = {"processing": "processing-dlq", "outbound.fifo": "outbound-dlq.fifo"}

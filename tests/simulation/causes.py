"""What our code says of itself is true, and what it does it has a cause for: nobody waits for
nothing, nobody is asked in vain, and what can be repaired is tried. Each task's notes say what
happened to it; each log line is held against them."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import httpx
from botocore.exceptions import ClientError

from tests.simulation.hearing import HOST
from tests.simulation.outside import INVALID_CODES, KEYS, NUMBERS, OPTED_OUT_CODES, Outside
from tests.simulation.runtime import Cloud, reference_of
from tests.simulation.traffic import Rules
from tests.simulation.world import Process, Task, Violation

Item = dict[str, Any]

_PROVIDERS = {"api.twilio.com": "twilio", "api.telnyx.com": "telnyx"}
DEPTH_KEPT = 10.0  # seconds for which a queue's depth counts, once it was read
FRESH = 1.0  # seconds for which a breaker's state counts, once it was read
SKEW = 0.5  # seconds that a clock may be off
PAUSE = 2.0  # seconds between two looks at the vault for a new secret
# What a claim, a call and the writing of its outcome may take together, with what is between.
LOOKS = 3180.0  # seconds over which an unknown send is looked for
ENOUGH = 2 * 9.0 + 17.0 + 3.5


class Causes:
    """Watches one world."""

    def __init__(self, cloud: Cloud, out: Outside, *, calm: bool, may_lack: bool) -> None:
        self._cloud = cloud
        self._out = out
        self._calm = calm
        self.held_back = Rules()
        self._may_lack = may_lack  # a provider's settings or its secret
        # By provider: since when its breaker is open, and until when; when that last changed.
        self._open: dict[str, tuple[float, float]] = {}
        self._changed: dict[str, float] = defaultdict(lambda: float("-inf"))
        self._items: dict[str, Item] = {}  # replies, by message id
        self._sent: dict[str, float] = {}  # when a part of a reply ceased to be under way
        self._known: dict[str, float] = {}  # when a part of a reply ceased to be unknown
        self._waiting: dict[str, tuple[Process, float]] = {}  # replies that somebody freed
        self.resumed: dict[str, float] = {}  # when a message was last sent for
        self._fetched: dict[tuple[Process, str], float] = {}
        self._opted_out: dict[Process, list[tuple[str, float]]] = {}  # who was refused what
        self._refused: dict[Process, float] = {}  # when its credentials were refused
        # Repetitions that were refused: reference and attempt -> by whom, when, how.
        self._repeats: dict[tuple[str, str], tuple[Process, float, int]] = {}
        self.listed: set[str] = set()  # what was handed over to a person, by reference
        self.reply_max_age = 0.0
        # Who changed a reply, and when last; whom our own redrive has made younger.
        self._writers: dict[str, dict[Task, float]] = defaultdict(dict)
        self._redriven: set[str] = set()
        # When each process last read the breakers, and the depth of a queue.
        self._read_at: dict[tuple[Process, str], float] = {}
        # Claims that have not ended, by who made them.
        self._claims: dict[Process, set[str]] = defaultdict(set)
        cloud.watchers.append(self._on_call)
        cloud.http_watchers.append(self._on_request)
        cloud.on_failure = self._on_failure
        cloud.on_end = self._on_end
        cloud.on_answer = self._on_answer
        cloud.stores["dynamodb"].observers.append(self._on_change)

    # -- what happens to a task -------------------------------------------------------------------

    def _on_call(
        self, task: Task, service: str, operation: str, arguments: dict[str, Any], answer: Any
    ) -> None:
        now = self._cloud.world.now
        refused = isinstance(answer, ClientError)
        if refused and answer.response["Error"]["Code"] == "ConditionalCheckFailedException":
            _mark(task, "conflict", now)
        if service == "dynamodb":
            self._takes_no_slot_in_vain(task, arguments)
            self._reads_consent_before_claims(task, arguments)
        if task.process is not self._cloud.world.outside:
            self._looks_rarely(task, operation, arguments)
        if service == "sqs" and operation.startswith("send_message"):
            self._on_sent(task, arguments)
        if service == "secretsmanager":
            name = arguments["SecretId"].rpartition("/")[2]
            self._is_fetched_in_time(task, name)
            self._fetched[task.process, name] = now

    def _looks_rarely(self, task: Task, operation: str, arguments: dict[str, Any]) -> None:
        role = task.process.name.partition("-")[0]
        breakers = operation == "batch_get_item" and "BREAKER" in json.dumps(arguments)
        if role == "sender" and breakers:
            self._is_read_rarely(task, "breakers", FRESH)
        elif role == "receiver" and operation == "get_queue_attributes":
            self._is_read_rarely(task, "depth", DEPTH_KEPT)

    def _is_read_rarely(self, task: Task, what: str, kept: float) -> None:
        """An environment looks how things stand, and goes by that for a while."""
        now = self._cloud.world.now
        last = self._read_at.get((task.process, what), float("-inf"))
        if now - last < kept - 0.2 and task.process.troubled_at < last - 120:
            raise Violation("what is known is not asked again", what)
        self._read_at[task.process, what] = now

    def _on_sent(self, task: Task, arguments: dict[str, Any]) -> None:
        """A message goes on a queue."""
        queue, now = arguments["QueueUrl"].rpartition("-")[2], self._cloud.world.now
        for entry in arguments.get("Entries", [arguments]):
            if task.process.name.startswith("redriver"):
                self._redriven.add(json.loads(entry["MessageBody"])["id"])
            posted = queue == "outbound.fifo" and '"kind":"outgoing"' in entry["MessageBody"]
            if not posted or not task.process.name.startswith("receiver"):
                continue
            looked = self._read_at.get((task.process, "depth"), float("-inf"))
            troubled = task.process.troubled_at >= now - 120
            if now - looked > DEPTH_KEPT + 5 and not troubled:
                raise Violation("our own clients do not fill a queue", "nobody looked")

    def _takes_no_slot_in_vain(self, task: Task, arguments: dict[str, Any]) -> None:
        """Who is let through by nobody just now takes no slot from others."""
        key = arguments.get("Key", {}).get("pk", {}).get("S", "")
        values = arguments.get("ExpressionAttributeValues", {})
        pace = key.removeprefix("R#")
        provider = NUMBERS.get(pace, "")
        takes = ":cost" in values or (":end" in values and ":back" not in values)
        # (What is taken by the batch is taken before anybody is asked for.)
        last = task.notes.get("last_key", "")
        by_one = last == "CONSENT" or last.startswith("OUT#")
        known = pace != key and provider and takes and by_one
        if known and self._is_known_to_be_open(task, provider):
            raise Violation("an open breaker lets nobody through", f"{provider}: a slot")

    def _is_fetched_in_time(self, task: Task, name: str) -> None:
        """The door has what it needs before anybody comes, and the sender before it asks."""
        last = self._fetched.get((task.process, name))
        role = task.process.name.partition("-")[0]
        untroubled = task.process.troubled_at == float("-inf") and not self._may_lack
        if role == "receiver" and last is None and "parent" not in task.notes and untroubled:
            raise Violation("what is needed is fetched at the start", name)
        fresh = last is None or self._cloud.world.now - last < 500
        asked = task.notes.get("asked")
        if role == "sender" and asked and fresh and task.process.troubled_at < asked:
            raise Violation("nobody is asked in vain", f"without the secret {name}")

    def _on_failure(
        self, task: Task, site: str, operation: str, arguments: dict[str, Any], began: float
    ) -> None:
        """A call of a store failed, its repetitions included."""
        now = self._cloud.world.now
        what = (operation, json.dumps(arguments, default=str, sort_keys=True))
        before = task.notes.get("failed_call")
        hurried = before is not None and before[0] == what and began < before[1] + 0.1
        # (The slots of a number are asked for in the same words by the next message.)
        slots = operation == "update_item" and arguments["Key"]["pk"]["S"].startswith("R#")
        if hurried and operation in ("update_item", "put_item") and not slots:
            raise Violation("what fails is given time", site)
        same = before is not None and before[0] == what
        task.notes["failed_times"] = task.notes.get("failed_times", 0) + 1 if same else 1
        task.notes["failed_call"] = (what, now)
        _mark(task, "failed", now)

    def _on_request(self, task: Task, request: httpx.Request) -> None:
        """A request leaves us."""
        host, now = request.url.host, self._cloud.world.now
        _mark(task, "http", now)
        if host == "replies.example.com":
            provider = self._out.texts[json.loads(request.content)["id"]].provider
            if self._is_known_to_be_open(task, provider):
                raise Violation("nobody is asked in vain", f"{provider}'s breaker is open")
            task.notes["asked"] = now
        if host in _PROVIDERS and request.method == "POST":
            sends = task.process.name.startswith("sender")
            if sends and self._is_known_to_be_open(task, _PROVIDERS[host]):
                raise Violation("an open breaker lets nobody through", host)
            self._is_repeatable(task, reference_of(request))
        if host in _PROVIDERS:
            task.notes["looked"] = now

    def _is_known_to_be_open(self, task: Task, provider: str) -> bool:
        """Whether somebody knows that a breaker is open, who is then to call nobody: it is read
        before a batch begins, and whenever what was read is a second old."""
        since, until = self._open.get(provider, (0.0, 0.0))
        now = self._cloud.world.now
        began = _root(task).notes["began"]
        knew = since + FRESH + 2 * SKEW < began and self._changed[provider] + FRESH < began
        return knew and until > now + 2 * SKEW + 1 and task.process.troubled_at < began - FRESH

    def _is_repeatable(self, task: Task, reference: str) -> None:
        if not task.process.name.startswith("processing"):
            return
        attempt = task.notes["repeated"] = self._part(reference)["attempt"]
        process, at, _ = self._repeats.get((reference, attempt), (task.process, 0.0, 0))
        seen = _root(task).notes["began"] > at + 3
        if at and seen and not process.dead and process.troubled_at < at - 1:
            raise Violation("what was refused is not repeated", reference, (reference,))

    def _on_answer(self, task: Task, request: httpx.Request, status: int) -> None:
        """Somebody outside answered, or (0) there was no answer."""
        host, now = request.url.host, self._cloud.world.now
        if status >= 400 or status == 0:
            _mark(task, f"{_PROVIDERS.get(host, host)} failed", now)
        reference = reference_of(request) if request.method == "POST" else ""
        if status == 400 and host in _PROVIDERS:
            self._opted_out.setdefault(task.process, []).append((reference, now))
        if status == 401 and host in _PROVIDERS:
            self._refused[task.process] = now
        repeated = request.method == "POST" and task.process.name.startswith("processing")
        if status in (400, 422) and host in _PROVIDERS and repeated:
            self._repeats[reference, task.notes["repeated"]] = (task.process, now, status)

    def _on_change(self, key: tuple[str, str], old: Item | None, new: Item | None) -> None:
        pk, sk = key
        now = self._cloud.world.now
        if sk == "BREAKER":
            provider = pk.partition("#")[2]
            self._changed[provider] = now
            until = float((new or {}).get("open_until", {}).get("N", 0))
            self._open[provider] = (now, until)
        elif sk.startswith("OUT#") and new is not None:
            id_ = f"{pk.partition('#')[2]}-{sk.partition('#')[2]}"
            self._items[id_] = new
            task = self._cloud.world.current()
            process = task.process
            self._writers[id_][task] = now
            self._on_claims(process, id_, old or {}, new)
            if current_state(old or {}) == "unknown" != current_state(new):
                self._known[id_] = now
            if current_state(old or {}) == "sending" != current_state(new):
                self._sent[id_] = now
            waits = "unknown_bucket" in new and "outcome" not in new
            freed = current_state(new) == "waiting" != current_state(old or {})
            if waits and freed and process.name.startswith("processing"):
                self._waiting[id_] = (process, now)

    def _on_claims(self, process: Process, id_: str, old: Item, new: Item) -> None:
        before = _parts(old)
        for number, part in _parts(new).items():
            now_so = part["M"]["state"]["S"] == "sending"
            was_so = number in before and before[number]["M"]["state"]["S"] == "sending"
            if now_so and not was_so:
                self._claims[process].add(f"{id_}-{number}")
            elif was_so and not now_so:
                for claims in self._claims.values():
                    claims.discard(f"{id_}-{number}")

    def _reads_consent_before_claims(self, task: Task, arguments: dict[str, Any]) -> None:
        values = arguments.get("ExpressionAttributeValues", {})
        is_claim = ":lease" in values or (
            ":parts" in values and '"sending"' in json.dumps(values, default=str)
        )
        key = arguments.get("Key", {}).get("sk", {}).get("S", "")
        if is_claim and task.process is not self._cloud.world.outside:
            if task.notes.get("last_key") not in ("CONSENT", key):
                raise Violation("consent is read just before each claim", key)
            task.notes["claimed_as"] = _owner(values)
            task.notes.pop("asked", None)
        task.notes["last_key"] = key

    # -- what our code says -----------------------------------------------------------------------

    def on_line(self, task: Task, line: dict[str, Any]) -> None:
        """A line of the log."""
        event = line["event"]
        if event in ("deferred", "closed", "unexpected_error"):
            task.notes.pop("asked", None)
        if event == "deferred":
            id_, seconds = str(line.get("id", "")), float(line["seconds"])
            self._has_cause(task, str(line["reason"]), id_, seconds)
            task.notes.pop("conflict", None)
        elif event == "closed":
            item = self._items.get(str(line["id"]), {})
            said = ": ".join(str(line[n]) for n in ("reason", "code") if line.get(n))
            if not said or item.get("outcome", {}).get("S") not in (said, "erased"):
                raise Violation("reasons are true", f"closed: {said}", (str(line["id"]),))
        elif event == "replayed":
            if task.notes.pop("conflict", None) is None and line.get("reason") == "overtaken":
                raise Violation("a replay replaces what it was read from", str(line["id"]))
        elif event == "time_out_too_short":
            root = _root(task)
            slow = not root.notes["warm"] or task.process.troubled_at >= root.notes["began"]
            if not slow or _knows(root, "http", root.notes["began"]):
                raise Violation("there is time to begin", f"{line.get('seconds')} s")
        elif event == "could_not_defer":
            left = _root(task).notes["deadline"] - self._cloud.world.now
            if task.notes.get("failed_times", 0) < 3 and left > 12 and _is_start(task):
                raise Violation("what can be repaired is tried", "a start that is not taken back")
        elif event in ("consent_stop", "consent_start") and "code" not in line:
            if line.get("reason") == "effective":
                self._is_in_force(event.removeprefix("consent_"), str(line["id"]))
        elif event == "unknown_listed":
            self._was_looked_for(task, str(line["id"]))
            self.listed.add(str(line["id"]))

    def _is_in_force(self, event: str, id_: str) -> None:
        """What is said to have taken effect is on the list, or what beats it."""
        text = self._out.texts.get(id_)
        if text is None or text.provider != "telnyx":
            return  # who does not say when it was said, or not in a text
        item = consent_of(self._cloud, text.person)
        at = float(item.get("at", {"N": 0})["N"])
        if item.get("event", {}).get("S") == event:
            holds = at > text.at - SKEW - 0.1
        else:
            at += SKEW + 0.1
            holds = at > text.at + 2 if event == "stop" else at >= text.at - 2
        if not holds:
            raise Violation("the list says what was said last", text.name, (id_,))

    def _has_cause(self, task: Task, reason: str, id_: str, seconds: float) -> None:
        text = self._out.texts.get(id_)
        gone = text is not None and (text.picture == "gone" or self._out.pictures_gone)
        if reason == "media: 404" and gone:
            return  # a provider may not have it yet
        if self._calm:
            raise Violation("where nothing is wrong nobody waits", f"{reason} {id_}", (id_,))
        now, root = self._cloud.world.now, _root(task)
        began = root.notes["began"]
        what, _, detail = reason.partition(": ")
        item = self._items.get(id_, {})
        provider = item.get("provider", {}).get("S", "")
        frozen = task.process.troubled_at >= began
        states = [part["M"]["state"]["S"] for part in _parts(item).values()]
        if what in ("held_by_another", "settle_overtaken", "receipt_overtaken"):
            true = "conflict" in task.notes and self._has_moved(task, id_, began)
            if what == "held_by_another" and self._is_alone(task, id_, began):
                raise Violation("what was done is known", id_, (id_,))
        elif what == "transient":
            lacks = detail in ("NotReady", "SecretError") and self._may_lack
            partly = detail == "QueueRefused"  # (which is no failure of a call)
            true = lacks or partly or _knows(task, "failed", began)
            self._is_written_in_time(task, item)
        elif what == "no_time_left":
            true = root.notes["deadline"] - now < ENOUGH
            if not states and "outcome" not in item:
                raise Violation("a slow reply API is asked once", reason, (id_,))
        elif what in ("provider", "lookup", "reply_api"):
            whose = {
                "provider": f"{provider} failed",
                "lookup": "lookups.example.com failed",
                "reply_api": "replies.example.com failed",
            }
            true = _knows(task, whose[what], began)
        elif what == "media" and detail in ("credentials", "no_provider"):
            true = self._may_lack or _knows(task, "failed", began)
        elif what == "media":
            hosts = (self._out.texts[id_].provider, "mms.twiliocdn.com", "media.telnyx.com")
            failed = any(_knows(task, f"{host} failed", began) for host in hosts)
            slow = frozen or _knows(task, "http", began)
            true = failed or (detail == "too_slow" and slow)
        elif what == "breaker":
            _, until = self._open.get(provider, (0.0, 0.0))
            true = until > 0 or now - self._changed[provider] < 3
            self._is_in_time(item, id_, reason, seconds)
        elif what == "claimed":
            true = "sending" in states or now - self._sent.get(id_, 0.0) < 3 or frozen
            if "sending" not in states:  # (Whose claim it is may live for longer than the reply.)
                self._is_in_time(item, id_, reason, seconds)
        elif what == "events":
            true = _knows(task, f"{HOST} failed", began) or detail in ("failing", "InternalFailure")
        elif what == "pacing":
            true = bool(self.held_back.pace_of(item.get("ours", {}).get("S", "")))
            told = _is_told(item, now + seconds) or self._has_moved(task, id_, began)
            true = true and (detail == "contended" or told)
        elif what == "quiet_hours":
            night = self.held_back.quiet or (0.0, 0.0)
            true = night[0] - SKEW <= now and began < night[1] + SKEW
            told = _is_told(item, now + seconds) or self._has_moved(task, id_, began)
            true = true and told
        elif what == "paused":
            spans = self.held_back.pauses
            true = any(begins <= now for begins, _ in spans)
        elif what == "outcome_unknown":
            true = "unknown" in states or frozen or now - self._known.get(id_, 0.0) < 60
        else:
            true = False
        if not true:
            raise Violation("deferrals have a cause", f"{reason}: {states}", (id_,))

    def _has_moved(self, task: Task, id_: str, began: float) -> bool:
        """Whether somebody else was busy with a reply, or it cannot be told."""
        if task.process.troubled_at >= began - 1 or not id_:
            return True
        id_ = id_ if id_ in self._writers else id_.rpartition("-")[0]
        return any(at >= began - 1 for who, at in self._writers[id_].items() if who != task)

    def _is_alone(self, task: Task, id_: str, began: float) -> bool:
        """Whether nobody else has touched a reply, and this process has."""
        lately = [who.process for who, at in self._writers[id_].items() if at >= began - 1]
        return bool(lately) and all(process is task.process for process in lately)

    def _is_in_time(self, item: Item, id_: str, reason: str, seconds: float) -> None:
        """Nothing waits for longer than it may be sent at all: it is to be recorded so."""
        if id_ in self._redriven or "redriven_at" in item or "received_at" not in item:
            return
        longest = 36_000.0 if item["kind"]["S"] == "outgoing" else self.reply_max_age
        if item.get("confirmation", {}).get("BOOL"):
            longest = 300.0
        waited = float(item.get("waited", {"N": 0})["N"])
        left = float(item["received_at"]["N"]) + longest + waited - self._cloud.world.now
        if left > 0 and seconds > left + 2 + 2 * SKEW:
            raise Violation("what is too old is recorded so", f"{reason}: {seconds:.0f} s", (id_,))

    def _is_written_in_time(self, task: Task, item: Item) -> None:
        """What came of a claim is tried for as long as the claim lives."""
        now = self._cloud.world.now
        for part in _parts(item).values():
            entry = part["M"]
            if entry["state"]["S"] != "sending" or "lease_until" not in entry:
                continue
            mine = task.notes.get("claimed_as") == entry.get("owner", {}).get("S")
            if mine and float(entry["lease_until"]["N"]) - 5 - now > ENOUGH:
                raise Violation("what can be repaired is tried", "an outcome that is not written")

    def _was_looked_for(self, task: Task, reference: str) -> None:
        """Whoever is asked to decide is asked because looking did not help."""
        now, root = self._cloud.world.now, _root(task)
        began = root.notes["began"]
        item = self._items.get(reference.rpartition("-")[0], {})
        since = float(item.get("unknown_since", {"N": now})["N"])
        if "unknown_since" in item and now - since < LOOKS - 32:
            raise Violation("unknown sends are looked for", f"{now - since:.0f} s", (reference,))
        provider = item.get("provider", {}).get("S", "")
        if self._may_lack or task.process.troubled_at >= began:
            return
        if provider == "twilio" and task.notes.get("looked", began - 1) < began:
            raise Violation("unknown sends are looked for", reference, (reference,))
        if provider == "twilio" and not _knows(task, f"{provider} failed", began):
            taken = [one for one in self._out.accepted if one.reference == reference]
            words = [
                one
                for one in self._out.accepted
                if taken and (one.recipient, one.words) == (taken[0].recipient, taken[0].words)
            ]
            alone = len(taken) == 1 == len(words) and not self._is_said_elsewhere(reference)
            if alone and taken[0].listed_at < began - 1:
                raise Violation("what can be found is found", reference, (reference,))
            age = now - float(self._part(reference)["started_at"])
            if not self._out.accepted and age > 400:
                raise Violation("what can be found is found", f"{reference}: not sent")

    def _is_said_elsewhere(self, reference: str) -> bool:
        """Whether the conversation has another reply in the same words: which of them the provider
        has nobody can tell."""
        id_ = reference.rpartition("-")[0]
        words = self._part(reference)["text"]
        return any(
            part["M"]["text"]["S"] == words
            for other, item in self._items.items()
            if other != id_ and other.partition("-")[0] == id_.partition("-")[0]
            for part in _parts(item).values()
        )

    def _on_end(self, process: Process, began: float) -> None:
        """An invocation has ended, of itself."""
        left = self._claims.pop(process, None)
        if left and process.troubled_at < began:
            raise Violation("a claim has an end", f"{left}")
        for (reference, attempt), (who, at, status) in self._repeats.items():
            untroubled = process.troubled_at < began
            if who is not process or at < began or status != 400 or not untroubled:
                continue
            id_ = reference.rpartition("-")[0]
            part, text = self._part(reference), self._out.texts[id_]
            if self._items[id_].get("outcome", {}).get("S") in ("failed: given_up", "erased"):
                continue  # somebody was faster
            # Who opted out may have done so since; a number that is none was none before.
            ends = text.rejected in INVALID_CODES
            if part["attempt"] == attempt and part["state"] == ("unknown" if ends else "failed"):
                raise Violation("a refusal is understood", f"{text.rejected}: {part['state']}")
        for reference, at in self._opted_out.pop(process, []):
            text = self._out.texts[reference.rpartition("-")[0]]
            said = text.rejected in OPTED_OUT_CODES and process.troubled_at < began <= at
            if said and not consent_of(self._cloud, text.person):
                raise Violation("a provider's word is heard", text.name, (str(text.id),))
        for id_, (who, at) in self._waiting.items():
            late = self.resumed.get(id_, 0.0) < at
            if who is process and at >= began and late and process.troubled_at < began:
                raise Violation("who waits is sent for", id_, (id_,))
        refused_at = self._refused.pop(process, None)
        if refused_at is None or process.troubled_at >= began or self._may_lack:
            return
        fetched = [when for (who, _), when in self._fetched.items() if who is process]
        if max(fetched, default=0.0) < refused_at - PAUSE - 2 * SKEW:
            raise Violation("refused credentials are fetched anew", process.name)

    def _part(self, reference: str) -> dict[str, Any]:
        id_, _, number = reference.rpartition("-")
        entry = _parts(self._items.get(id_, {})).get(number, {"M": {}})["M"]
        return {name: next(iter(value.values())) for name, value in entry.items()}


def _parts(item: Item) -> dict[str, Any]:
    found: dict[str, Any] = item.get("parts", {}).get("M", {})
    return found


def _is_told(item: Item, until: float) -> bool:
    """Whether a reply has it written down that it is to wait until then. (Its sender counts from
    before that was written, which may have taken its time.)"""
    return abs(float(item.get("not_before", {"N": 0})["N"]) - until) < 10


def _owner(values: Item) -> str:
    """The owner in the arguments of a claim."""
    if ":owner" in values:
        return str(values[":owner"]["S"])
    owners = [part["M"].get("owner", {}).get("S") for part in values[":parts"]["M"].values()]
    return next(str(owner) for owner in owners if owner)


def consent_of(cloud: Cloud, person: str) -> Item:
    """What the list of consent has of somebody, as a raw item; {} where it has nothing."""
    key = {"pk": {"S": f"P#default#{KEYS.number(person)}"}, "sk": {"S": "CONSENT"}}
    answer = cloud.stores["dynamodb"].get_item(
        TableName="spillway-test", Key=key, ConsistentRead=True
    )
    found: Item = answer.get("Item", {})
    return found


def current_state(item: Item) -> str:
    """The state of the first part that is not sent, "" where all are; from a raw item."""
    parts = sorted(_parts(item).items(), key=lambda one: int(one[0]))
    states = [part["M"]["state"]["S"] for _, part in parts]
    return next((state for state in states if state != "sent"), "")


def _root(task: Task) -> Task:
    """The task of the whole invocation."""
    while "parent" in task.notes:
        task = task.notes["parent"]
    return task


def _mark(task: Task, fact: str, now: float) -> None:
    """Something happened to a task."""
    task.notes[fact] = now
    while "parent" in task.notes:
        task = task.notes["parent"]
        task.notes[f"child {fact}"] = now


def _knows(task: Task, fact: str, since: float) -> bool:
    """Whether it happened to a task, to those it waited for, or to who asked it to tell."""
    parent = task.notes.get("parent", task)
    known = (task.notes.get(fact), task.notes.get(f"child {fact}"), parent.notes.get(fact))
    return any(at is not None and at >= since for at in known)


def _is_start(task: Task) -> bool:
    (_, arguments), _ = task.notes.get("failed_call", (("", ""), 0.0))
    return '"START"' in str(arguments)

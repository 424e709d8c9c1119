"""The ledger: one item a reply, which says what was claimed, sent, refused or is unknown.

A reply's words are stored with the claim of its first part, so that a retry sends the same words.
Each part goes `waiting -> sending -> sent | failed | unknown`; every step is one conditional write,
and a step whose answer was lost is recognised when it is taken again. Nothing here decides whether
to send: it makes sure that two who decide alike do not both send.

    who                         may move                under the condition
    the owner of a claim        sending, unknown        owner and attempt are its own
                                -> any
    whoever finds a dead claim  sending -> unknown      owner and attempt are those it read
    a receipt                   any but failed          the part's state is the one it read, and
                                -> sent                 the part was claimed at least once
    a look, a person            unknown -> sent,        the part is unknown, and its attempt is the
                                waiting, failed         one that was read
    an erasure                  sending, unknown        every part's state and attempt are those
                                -> failed               that were read

No part is claimed before those ahead of it are sent. So at most one of a reply's parts is neither
sent nor untouched: the `current` one. A reply is listed (`unknown_bucket`) from when that part is
unknown until the last part is sent, the next one is claimed, or the reply has an outcome: as long
as it is, no message on the outbound queue may stand for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from chalicelib.messages import STATUS_RANK, DeliveryReceipt, MessageId, parse_reference
from chalicelib.runtime import Runtime
from chalicelib.table import Conflict, Item, Key, Table

State = Literal["waiting", "sending", "sent", "failed", "unknown"]
UNKNOWN_BUCKETS = 16
DAY = 86_400.0


class Busy(Exception):
    """Somebody else holds the part, or the item has moved on: look again later."""


@dataclass(frozen=True, slots=True)
class PartEntry:
    """One part as the ledger has it. Times are unix seconds, None before the first claim.

    `request` is what the provider was sent, where it tells a repeated request from a new one.
    `lost` counts the attempts that were given up without knowing: each may be at the provider,
    under an id that is not here.
    """

    number: int
    text: str
    media: tuple[str, ...]
    state: State
    attempt: int
    owner: str
    lease_until: float | None
    started_at: float | None
    provider_id: str
    status: str
    error: str
    first_started_at: float | None = None
    request: str = ""
    lost: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """One ledger item. `parts` is None until there are words; `outcome` is "" unless the reply
    ended in something else than its parts say (no_reply, refused: opted_out, expired, …).

    Of one that was erased (`theirs` is "") numbers, words and the provider's ids are empty.
    `drafted`: its words are not in the table yet; the first claim stores them. `redriven_at`: when
    somebody last wanted it sent all the same. `not_before`: until when it was told to wait, and
    `has_slot` whether that is a slot of its own; `waited`: seconds that it was told to wait, in
    all. `counted_on`: the day (YYYYMMDD) for whose cap what is left of it is counted already.
    `listed` since `unknown_since`: somebody may have to see to it. `ended_by_receipt`: nobody may
    know yet that it has ended but who had that receipt.
    """

    id: MessageId
    kind: str
    provider: str
    ours: str
    theirs: str
    callback_url: str
    received_at: float
    outcome: str
    confirmation: bool
    parts: tuple[PartEntry, ...] | None
    drafted: bool = False
    redriven_at: float | None = None
    not_before: float | None = None
    has_slot: bool = False
    waited: float = 0.0
    counted_on: str = ""
    listed: bool = False
    unknown_since: float | None = None
    ended_by_receipt: bool = False

    @property
    def current(self) -> PartEntry | None:
        """The first part that is not sent; None where there is none."""
        return next((part for part in self.parts or () if part.state != "sent"), None)

    def with_sent(self, part: PartEntry) -> Reply:
        """As it is when this part was sent: whoever sent the first stored the others with it."""
        sent = replace(part, state="sent")
        parts = tuple(sent if one.number == part.number else one for one in self.parts or ())
        return replace(self, parts=parts, drafted=False)

    @property
    def ended(self) -> bool:
        """Whether nothing of it will be sent any more."""
        return bool(self.outcome) or (self.parts is not None and self.current is None)

    @property
    def to_be_resumed(self) -> bool:
        """Whether a part waits behind an unknown one that was settled: nobody will send it before
        somebody says so."""
        current = self.current
        waits = current is not None and current.state == "waiting"
        return self.listed and waits and not self.outcome

    @property
    def state(self) -> str:
        """What became of it, in a word or two, for whoever asks."""
        if self.outcome:
            return self.outcome
        if not self.parts:
            return "waiting"
        states = {part.state for part in self.parts}
        for state in ("unknown", "failed", "sending"):
            if state in states:
                return state
        if "waiting" in states:
            return "sending" if "sent" in states else "waiting"
        statuses = {part.status or "sent" for part in self.parts}
        for status in ("failed", "undelivered", "unconfirmed", "queued", "sent", "delivered"):
            if status in statuses:
                return "sent" if status == "queued" else status
        return "sent"


@dataclass(frozen=True, slots=True)
class Received:
    """What became of a receipt, and the reply as it is then.

    `stale`: it says nothing new. `stranger`: nothing of ours has its reference; `reply` is None.
    """

    result: Literal["recorded", "stale", "stranger"]
    reply: Reply | None = None


class Ledger:
    """The ledger of a stage, on its table. Raises what the table raises."""

    def __init__(self, table: Table, runtime: Runtime, *, keep_days: int) -> None:
        self._table = table
        self._runtime = runtime
        self._keep = keep_days * DAY

    def alive(self, received_at: float) -> bool:
        """Whether an item for a message this old is certain to be there still, if it ever was."""
        return self._runtime.now() < received_at + self._keep - DAY

    def open(
        self,
        id_: MessageId,
        *,
        kind: str,
        provider: str,
        ours: str,
        theirs: str,
        callback_url: str,
        received_at: float,
    ) -> Reply:
        """The reply's item, made if it is not there yet."""
        pk, sk = _key(id_)
        item: Item = {
            "pk": pk,
            "sk": sk,
            "kind": kind,
            "provider": provider,
            "ours": ours,
            "theirs": theirs,
            "callback_url": callback_url,
            "received_at": received_at,
            "expires_at": int(received_at + self._keep),
        }
        return reply_of(self._table.insert(item) or item)

    def find(self, id_: MessageId) -> Reply | None:
        item = self._table.get(_key(id_))
        return None if item is None else reply_of(item)

    def conversation(self, name: str) -> list[tuple[MessageId, PartEntry]]:
        """Every part of every reply of a conversation, each with its reply's id."""
        replies = map(reply_of, self._table.query(f"C#{name}", "OUT#"))
        return [(reply.id, part) for reply in replies for part in reply.parts or ()]

    def close(self, reply: Reply, outcome: str) -> Reply:
        """Ends a reply of which no part is under way or unknown. An outcome that is there already
        stays.

        Raises Busy where a part was claimed in between.
        """
        untouched = "attribute_not_exists(parts)"
        names: dict[str, str] = {}
        values: dict[str, Any] = {":outcome": outcome}
        current = None if reply.drafted else reply.current
        if current is not None:
            untouched = "parts.#n.#state = :waiting"
            names = {"#n": str(current.number), "#state": "state"}
            values[":waiting"] = "waiting"
        try:
            item = self._table.update(
                _key(reply.id),
                f"SET outcome = :outcome REMOVE {_LISTED}",
                condition=f"attribute_exists(pk) AND attribute_not_exists(outcome) AND {untouched}",
                names=names,
                values=values,
            )
        except Conflict as conflict:
            there = _there(conflict)
            if not there.outcome:
                raise Busy from None
            return there
        return reply_of(item)

    def store_words(self, reply: Reply) -> None:
        """Stores the words of a draft that cannot be claimed now. Words that are there stay."""
        with suppress(Conflict):
            self._table.update(
                _key(reply.id),
                "SET parts = :parts, confirmation = :confirmation",
                condition="attribute_exists(pk) AND attribute_not_exists(parts)"
                " AND attribute_not_exists(outcome)",
                values={":parts": _drafted_parts(reply), ":confirmation": reply.confirmation},
            )

    def wait(self, reply: Reply, until: float, *, slot: bool) -> None:
        """Writes down that it is to wait, with the words of a draft, of which a part waits anyhow.
        Raises Busy."""
        now = self._runtime.now()
        update = "SET not_before = :until, has_slot = :slot, waited = :waited"
        condition = "attribute_exists(pk) AND attribute_not_exists(outcome)"
        names: dict[str, str] = {}
        values: dict[str, Any] = {
            ":until": until,
            ":slot": slot,
            ":waited": reply.waited + max(0.0, until - now),
        }
        current = reply.current
        if reply.drafted or current is None:
            update += ", parts = :parts, confirmation = :confirmation"
            condition += " AND attribute_not_exists(parts)"
            values |= {":parts": _drafted_parts(reply), ":confirmation": reply.confirmation}
        else:
            condition += " AND parts.#n.#state = :waiting AND parts.#n.attempt = :attempt"
            names = {"#n": str(current.number), "#state": "state"}
            values |= {":waiting": "waiting", ":attempt": current.attempt}
        try:
            self._table.update(
                _key(reply.id), update, condition=condition, names=names, values=values
            )
        except Conflict as conflict:
            there = _there(conflict)
            # (Its own write, of which the answer was lost.)
            if (there.not_before, there.has_slot) != (until, slot) or there.outcome:
                raise Busy from None

    def claim(
        self,
        reply: Reply,
        part: PartEntry,
        *,
        owner: str,
        lease_until: float,
        request: str = "",
    ) -> PartEntry:
        """Takes a waiting part for `owner` alone, and stores the words of a draft. Raises Busy.

        The request of the first claim is that of every later one: a provider that knows a repeated
        request by its key refuses it with other bytes.
        """
        now = self._runtime.now()
        if reply.drafted:
            return self._claim_draft(reply, part, owner, lease_until, request, now)
        update = (
            "SET parts.#n.#state = :sending, parts.#n.#owner = :owner,"
            " parts.#n.lease_until = :lease, parts.#n.started_at = :now,"
            " parts.#n.first_started_at = if_not_exists(parts.#n.first_started_at, :now)"
        )
        values = {
            ":sending": "sending",
            ":waiting": "waiting",
            ":owner": owner,
            ":lease": lease_until,
            ":now": now,
            ":attempt": part.attempt,
        }
        if request:
            update += ", parts.#n.#request = if_not_exists(parts.#n.#request, :request)"
            values[":request"] = request
        update += _claimed_with(reply, values)
        return self._move(
            reply,
            part.number,
            # (A slot is good for one attempt.)
            f"{update} REMOVE {_LISTED}, has_slot",
            condition="attribute_not_exists(outcome) AND parts.#n.#state = :waiting"
            " AND parts.#n.attempt = :attempt",
            names={"#request": "request"},
            values=values,
            done=lambda there: there.state == "sending" and there.owner == owner,
        )

    def _claim_draft(
        self,
        reply: Reply,
        part: PartEntry,
        owner: str,
        lease_until: float,
        request: str,
        now: float,
    ) -> PartEntry:
        parts = _drafted_parts(reply)
        parts[str(part.number)] |= {
            "state": "sending",
            "owner": owner,
            "lease_until": lease_until,
            "started_at": now,
            "first_started_at": now,
            **({"request": request} if request else {}),
        }
        values = {":parts": parts, ":confirmation": reply.confirmation}
        update = "SET parts = :parts, confirmation = :confirmation" + _claimed_with(reply, values)
        return self._move(
            reply,
            part.number,
            update,
            condition="attribute_exists(pk) AND attribute_not_exists(parts)"
            " AND attribute_not_exists(outcome)",
            values=values,
            done=lambda there: there.state == "sending" and there.owner == owner,
        )

    def sent(self, reply: Reply, part: PartEntry, provider_id: str) -> PartEntry:
        """The provider has it. Right even if the claim was given up for dead meanwhile, or a
        receipt came first."""
        return self._move(
            reply,
            part.number,
            "SET parts.#n.#state = :sent, parts.#n.provider_id = :id"
            " REMOVE parts.#n.lease_until" + _unlisted(reply, part),
            condition=f"{_OWN} AND parts.#n.#state <> :failed",
            values={":sent": "sent", ":failed": "failed", ":id": provider_id, **_own(part)},
            # (Failed: somebody gave it up just before.)
            done=lambda now: now.state in ("sent", "failed"),
        )

    def failed(self, reply: Reply, part: PartEntry, *, reason: str, code: str) -> PartEntry:
        """The provider refused it: the reply ends here."""
        return self._move(
            reply,
            part.number,
            "SET parts.#n.#state = :failed, parts.#n.#error = :code, outcome = :outcome"
            f" REMOVE parts.#n.lease_until, {_LISTED}",
            condition=f"{_OWN} AND parts.#n.#state <> :sent",
            names={"#error": "error"},
            values={
                ":failed": "failed",
                ":sent": "sent",
                ":code": code,
                ":outcome": f"failed: {reason}",
                **_own(part),
            },
            done=lambda now: now.state in ("failed", "sent"),
        )

    def put_back(self, reply: Reply, part: PartEntry) -> PartEntry:
        """It was never handed over: the next attempt may take it at once. True even where the
        claim was given up for dead meanwhile."""
        return self._move(
            reply,
            part.number,
            "SET parts.#n.#state = :waiting, parts.#n.attempt = :next"
            " REMOVE parts.#n.#owner, parts.#n.lease_until",
            condition=f"{_OWN} AND parts.#n.#state IN (:sending, :unknown)",
            values={
                ":waiting": "waiting",
                ":sending": "sending",
                ":unknown": "unknown",
                ":next": part.attempt + 1,
                **_own(part),
            },
            done=lambda now: now.attempt > part.attempt or now.state == "sent",
        )

    def unknown(self, reply: Reply, part: PartEntry, *, reason: str) -> PartEntry:
        """It may have been sent, by this claim or by a dead one: listed, and never repeated
        blindly."""
        return self._move(
            reply,
            part.number,
            "SET parts.#n.#state = :unknown, parts.#n.#error = :reason,"
            " unknown_bucket = :bucket, unknown_since = :now REMOVE parts.#n.lease_until",
            condition=f"{_OWN} AND parts.#n.#state = :sending",
            names={"#error": "error"},
            values={
                ":unknown": "unknown",
                ":sending": "sending",
                ":reason": reason,
                ":bucket": f"U#{int(reply.id.message, 16) % UNKNOWN_BUCKETS:02d}",
                ":now": self._runtime.now(),
                **_own(part),
            },
            done=lambda now: now.state in ("unknown", "sent"),
        )

    # -- settling: what a look or a person says of an unknown part. Each raises Busy where the part
    # is not unknown any more, or in another attempt.

    def found(self, reply: Reply, part: PartEntry, provider_id: str) -> Reply:
        """The provider has it, under this id."""
        return self._settle(
            reply,
            part,
            "SET parts.#n.#state = :sent, parts.#n.provider_id = :id"
            " REMOVE parts.#n.#error" + _unlisted(reply, part),
            {":sent": "sent", ":id": provider_id},
        )

    def taken_for_sent(self, reply: Reply, part: PartEntry) -> Reply:
        """Somebody knows that it was sent, but not under which id."""
        return self._settle(
            reply,
            part,
            "SET parts.#n.#state = :sent, parts.#n.lost = :lost"
            " REMOVE parts.#n.#error" + _unlisted(reply, part),
            {":sent": "sent", ":lost": part.lost + 1},
        )

    def not_sent(self, reply: Reply, part: PartEntry) -> Reply:
        """The provider certainly does not have it: the next attempt may take it. The reply stays
        listed until then."""
        return self._free(reply, part, "", {})

    def resend(self, reply: Reply, part: PartEntry, *, redriven_at: float | None = None) -> Reply:
        """Nobody knows, and it is sent again all the same, which counts once more. The reply stays
        listed until then."""
        update = ", parts.#n.lost = :lost"
        values: dict[str, Any] = {":lost": part.lost + 1}
        if redriven_at is not None:
            update += ", redriven_at = :redriven"
            values[":redriven"] = redriven_at
        return self._free(reply, part, update, values, removed=", counted_on")

    def refused(self, reply: Reply, part: PartEntry, *, reason: str, code: str) -> Reply:
        """It was certainly refused: the reply ends here."""
        return self._fail(reply, part, reason, ", parts.#n.#error = :code", {":code": code})

    def give_up(self, reply: Reply, part: PartEntry) -> Reply:
        """Nobody knows, and nobody is to ask any more: the reply ends here."""
        return self._fail(
            reply, part, "given_up", ", parts.#n.lost = :lost", {":lost": part.lost + 1}
        )

    def note(self, reply: Reply, part: PartEntry, reason: str) -> Reply:
        """Why it is unknown, anew."""
        return self._settle(reply, part, "SET parts.#n.#error = :reason", {":reason": reason})

    def _free(
        self,
        reply: Reply,
        part: PartEntry,
        update: str,
        values: Mapping[str, Any],
        removed: str = "",
    ) -> Reply:
        return self._settle(
            reply,
            part,
            f"SET parts.#n.#state = :waiting, parts.#n.attempt = :next{update}"
            f" REMOVE parts.#n.#owner{removed}",
            {":waiting": "waiting", ":next": part.attempt + 1, **values},
        )

    def _fail(
        self, reply: Reply, part: PartEntry, reason: str, update: str, values: Mapping[str, Any]
    ) -> Reply:
        return self._settle(
            reply,
            part,
            f"SET parts.#n.#state = :failed, outcome = :outcome{update} REMOVE {_LISTED}",
            {":failed": "failed", ":outcome": f"failed: {reason}", **values},
        )

    # -- erasing

    def erase(self, reply: Reply) -> Reply:
        """Takes out who it was for and what it said. What became of it stays, with its times: it
        is never answered again. A reply that has not ended ends here, `erased`.

        Only for a reply of which no claim is alive: an attempt whose outcome is not known is given
        up. Raises Busy where it has moved on since it was read.
        """
        sets = ["erased_at = :now"]
        removes = ["ours", "theirs", "callback_url", _LISTED]
        condition = ["attribute_exists(pk)"]
        names: dict[str, str] = {}
        values: dict[str, Any] = {":now": self._runtime.now()}
        parts = reply.parts or ()
        if parts:
            names |= {"#text": "text", "#state": "state", "#owner": "owner", "#request": "request"}
            values |= {":empty": "", ":none": []}
        else:
            condition.append("attribute_not_exists(parts)")
        for part in parts:
            number = part.number
            at = f"parts.#p{number}"
            names[f"#p{number}"] = str(number)
            values |= {f":s{number}": part.state, f":a{number}": part.attempt}
            condition.append(f"{at}.#state = :s{number} AND {at}.attempt = :a{number}")
            # (The provider's id is emptied, not removed: a later receipt writes it where none is.)
            sets += [f"{at}.#text = :empty", f"{at}.media = :none", f"{at}.provider_id = :empty"]
            removes += [f"{at}.#owner", f"{at}.lease_until", f"{at}.#request"]
            if part.state in ("sending", "unknown"):
                sets.append(f"{at}.#state = :failed")
                values[":failed"] = "failed"
        if not reply.outcome and (reply.current is not None or not parts):
            sets.append("outcome = :outcome")
            values[":outcome"] = "erased"
            condition.append("attribute_not_exists(outcome)")
        try:
            item = self._table.update(
                _key(reply.id),
                f"SET {', '.join(sets)} REMOVE {', '.join(removes)}",
                condition=" AND ".join(condition),
                names=names,
                values=values,
            )
        except Conflict:
            raise Busy from None
        return reply_of(item)

    def _settle(
        self, reply: Reply, part: PartEntry, update: str, values: Mapping[str, Any]
    ) -> Reply:
        condition = "parts.#n.#state = :unknown AND parts.#n.attempt = :attempt"
        every = {"#n": str(part.number), "#state": "state", "#owner": "owner", "#error": "error"}
        try:
            item = self._table.update(
                _key(reply.id),
                update,
                condition=condition,
                names={name: value for name, value in every.items() if name in update + condition},
                values={":unknown": "unknown", ":attempt": part.attempt, **values},
            )
        except Conflict:
            raise Busy from None
        return reply_of(item)

    # -- receipts

    def receive(self, receipt: DeliveryReceipt) -> Received:
        """What a receipt says. A status never moves backwards; a receipt proves that the provider
        has the part, whatever we thought.

        Raises Busy where others keep coming between.
        """
        named = parse_reference(receipt.reference)
        if named is None:
            return Received("stranger")
        id_, number = named
        # Nearly always the part is `sent`; where not, the refusal says what it is.
        expected: State = "sent"
        last = False
        for _ in range(4):
            try:
                item = self._record(id_, number, receipt, expected, last=last)
            except Conflict as conflict:
                part = _part(conflict.item, number)
                if part is None:
                    return Received("stranger")
                if part["state"] in ("failed", expected):
                    return Received("stale", _there(conflict))
                if part["state"] == "waiting" and not part.get("attempt"):
                    # Never handed to anybody: whoever says otherwise is mistaken.
                    return Received("stranger")
                expected = part["state"]
                last = _part(conflict.item, number + 1) is None
            else:
                return Received("recorded", reply_of(item))
        raise Busy

    def _record(
        self,
        id_: MessageId,
        number: int,
        receipt: DeliveryReceipt,
        expected: State,
        *,
        last: bool,
    ) -> Item:
        # (A part that was `sent` before was taken off the list then.)
        ended = f", ended_by_receipt = :true REMOVE {_LISTED}" if last else ""
        return self._table.update(
            _key(id_),
            "SET parts.#n.#state = :sent, parts.#n.#status = :status, parts.#n.#rank = :rank,"
            " parts.#n.#error = :error,"
            " parts.#n.provider_id = if_not_exists(parts.#n.provider_id, :id)" + ended,
            condition="parts.#n.#state = :expected"
            " AND (attribute_not_exists(parts.#n.#rank) OR parts.#n.#rank < :rank)",
            names={
                "#n": str(number),
                "#state": "state",
                "#status": "status",
                "#rank": "rank",
                "#error": "error",
            },
            values={
                ":sent": "sent",
                ":expected": expected,
                ":status": receipt.status,
                ":rank": STATUS_RANK[receipt.status],
                ":error": receipt.error,
                ":id": receipt.id,
                **({":true": True} if last else {}),
            },
        )

    def _move(
        self,
        reply: Reply,
        number: int,
        update: str,
        *,
        condition: str,
        values: Mapping[str, Any],
        done: Any,
        names: Mapping[str, str] | None = None,
    ) -> PartEntry:
        """One step of a part. `done` tells a step that was taken already (its answer was lost)
        from one that somebody else made impossible."""
        every = {"#n": str(number), "#state": "state", "#owner": "owner", **(names or {})}
        used = {name: value for name, value in every.items() if name in update + condition}
        try:
            item = self._table.update(
                _key(reply.id), update, condition=condition, names=used, values=values
            )
        except Conflict as conflict:
            there = _part(conflict.item, number)
            if there is None or not done(_part_entry(number, there)):
                raise Busy from None
            return _part_entry(number, there)
        return _part_entry(number, item["parts"][str(number)])


def draft(
    reply: Reply, words: Sequence[tuple[str, Sequence[str]]], *, confirmation: bool = False
) -> Reply:
    """The reply with these parts, as (text, media URLs), which its first claim will store."""
    parts = tuple(
        _part_entry(number, {"text": text, "media": media, "state": "waiting", "attempt": 0})
        for number, (text, media) in enumerate(words, start=1)
    )
    return replace(reply, parts=parts, confirmation=confirmation, drafted=True)


def _drafted_parts(reply: Reply) -> dict[str, dict[str, Any]]:
    return {
        str(one.number): {
            "text": one.text,
            "media": list(one.media),
            "state": "waiting",
            "attempt": 0,
        }
        for one in reply.parts or ()
    }


def _claimed_with(reply: Reply, values: dict[str, Any]) -> str:
    """What of an update writes down with a claim why and for which day it was made."""
    update = ""
    for name, value in (("redriven_at", reply.redriven_at), ("counted_on", reply.counted_on)):
        if value:
            update += f", {name} = :{name}"
            values[f":{name}"] = value
    return update


_LISTED = "unknown_bucket, unknown_since"
_OWN = "parts.#n.#owner = :owner AND parts.#n.attempt = :attempt"


def _own(part: PartEntry) -> dict[str, Any]:
    return {":owner": part.owner, ":attempt": part.attempt}


def _key(id_: MessageId) -> Key:
    return f"C#{id_.conversation}", f"OUT#{id_.message}"


def _unlisted(reply: Reply, part: PartEntry) -> str:
    """What of an update takes the reply off the list when this part is sent: while others wait
    behind it, somebody has to see to them."""
    return f", {_LISTED}" if part.number == len(reply.parts or ()) else ""


def _part(item: Item | None, number: int) -> dict[str, Any] | None:
    return _parts(item).get(str(number))


def _parts(item: Item | None) -> dict[str, Any]:
    return (item or {}).get("parts") or {}


def _there(conflict: Conflict) -> Reply:
    if conflict.item is None:
        # Opened and gone: only a person or the end of its life removes an item.
        raise Busy
    return reply_of(conflict.item)


def reply_of(item: Item) -> Reply:
    """A reply as an item of the table has it."""
    parts = item.get("parts")
    return Reply(
        id=MessageId(item["pk"].partition("#")[2], item["sk"].partition("#")[2]),
        kind=item["kind"],
        provider=item["provider"],
        ours=item.get("ours", ""),
        theirs=item.get("theirs", ""),
        callback_url=item.get("callback_url", ""),
        received_at=item["received_at"],
        outcome=item.get("outcome", ""),
        confirmation=item.get("confirmation", False),
        redriven_at=item.get("redriven_at"),
        not_before=item.get("not_before"),
        has_slot=item.get("has_slot", False),
        waited=item.get("waited", 0.0),
        counted_on=item.get("counted_on", ""),
        listed="unknown_bucket" in item,
        unknown_since=item.get("unknown_since"),
        ended_by_receipt=item.get("ended_by_receipt", False),
        parts=None
        if parts is None
        else tuple(_part_entry(int(number), parts[number]) for number in sorted(parts, key=int)),
    )


def _part_entry(number: int, part: Mapping[str, Any]) -> PartEntry:
    return PartEntry(
        number=number,
        text=part["text"],
        media=tuple(part["media"]),
        state=part["state"],
        attempt=part["attempt"],
        owner=part.get("owner", ""),
        lease_until=part.get("lease_until"),
        started_at=part.get("started_at"),
        provider_id=part.get("provider_id", ""),
        status=part.get("status", ""),
        error=part.get("error", ""),
        first_started_at=part.get("first_started_at"),
        request=part.get("request", ""),
        lost=part.get("lost", 0),
    )

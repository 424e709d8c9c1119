"""The ledger: one item a reply, which says what was claimed, sent, refused or is unknown.

A reply's words are stored before its first part is claimed, so that a retry sends the same words.
Each part goes `waiting -> sending -> sent | failed | unknown`; every step is one conditional write,
and a step whose answer was lost is recognised when it is taken again. Nothing here decides whether
to send: it makes sure that two who decide alike do not both send.

    who                         may move            under the condition
    the owner of a claim        sending -> any      owner and attempt are its own
    whoever finds a dead claim  sending -> unknown  owner and attempt are those it read
    a receipt                   any but failed      the part's state is the one it read, and the
                                -> sent             part was claimed at least once
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    """One part as the ledger has it. Times are unix seconds, None before the first claim."""

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


@dataclass(frozen=True, slots=True)
class Reply:
    """One ledger item. `parts` is None until the words are stored; `outcome` is "" unless the reply
    ended in something else than its parts say (no_reply, refused: opted_out, expired, …)."""

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
        return _reply(self._table.insert(item) or item)

    def find(self, id_: MessageId) -> Reply | None:
        item = self._table.get(_key(id_))
        return None if item is None else _reply(item)

    def store_words(
        self,
        reply: Reply,
        words: Sequence[tuple[str, Sequence[str]]],
        *,
        confirmation: bool = False,
    ) -> Reply:
        """Stores the parts as (text, media URLs). Words that are there already stay."""
        parts = {
            str(number): {"text": text, "media": list(media), "state": "waiting", "attempt": 0}
            for number, (text, media) in enumerate(words, start=1)
        }
        try:
            item = self._table.update(
                _key(reply.id),
                "SET parts = :parts, confirmation = :confirmation",
                condition="attribute_exists(pk) AND attribute_not_exists(parts)"
                " AND attribute_not_exists(outcome)",
                values={":parts": parts, ":confirmation": confirmation},
            )
        except Conflict as conflict:
            return _there(conflict)
        return _reply(item)

    def close(self, reply: Reply, outcome: str) -> Reply:
        """Ends a reply of which no part is under way. An outcome that is there already stays.

        Raises Busy where a part was claimed in between.
        """
        untouched = "attribute_not_exists(parts)"
        names: dict[str, str] = {}
        values: dict[str, Any] = {":outcome": outcome}
        waiting = _first_waiting(reply)
        if waiting is not None:
            untouched = "parts.#n.#state = :waiting"
            names = {"#n": str(waiting.number), "#state": "state"}
            values[":waiting"] = "waiting"
        try:
            item = self._table.update(
                _key(reply.id),
                "SET outcome = :outcome",
                condition=f"attribute_exists(pk) AND attribute_not_exists(outcome) AND {untouched}",
                names=names,
                values=values,
            )
        except Conflict as conflict:
            there = _there(conflict)
            if not there.outcome:
                raise Busy from None
            return there
        return _reply(item)

    def claim(self, reply: Reply, part: PartEntry, *, owner: str, lease_until: float) -> PartEntry:
        """Takes a waiting part for `owner` alone. Raises Busy."""
        return self._move(
            reply,
            part.number,
            "SET parts.#n.#state = :sending, parts.#n.#owner = :owner,"
            " parts.#n.lease_until = :lease, parts.#n.started_at = :now",
            condition="attribute_not_exists(outcome) AND parts.#n.#state = :waiting"
            " AND parts.#n.attempt = :attempt",
            values={
                ":sending": "sending",
                ":waiting": "waiting",
                ":owner": owner,
                ":lease": lease_until,
                ":now": self._runtime.now(),
                ":attempt": part.attempt,
            },
            done=lambda now: now.state == "sending" and now.owner == owner,
        )

    def sent(self, reply: Reply, part: PartEntry, provider_id: str) -> PartEntry:
        """The provider has it. Right even if the claim was given up for dead meanwhile, or a
        receipt came first."""
        return self._move(
            reply,
            part.number,
            "SET parts.#n.#state = :sent, parts.#n.provider_id = :id"
            " REMOVE parts.#n.lease_until, unknown_bucket, unknown_since",
            condition=_OWN,
            values={":sent": "sent", ":id": provider_id, **_own(part)},
            done=lambda now: now.state == "sent",
        )

    def failed(self, reply: Reply, part: PartEntry, *, reason: str, code: str) -> PartEntry:
        """The provider refused it: the reply ends here."""
        return self._move(
            reply,
            part.number,
            "SET parts.#n.#state = :failed, parts.#n.#error = :code, outcome = :outcome"
            " REMOVE parts.#n.lease_until, unknown_bucket, unknown_since",
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
        """It was never handed over: the next attempt may take it at once."""
        return self._move(
            reply,
            part.number,
            "SET parts.#n.#state = :waiting, parts.#n.attempt = :next"
            " REMOVE parts.#n.#owner, parts.#n.lease_until",
            condition=f"{_OWN} AND parts.#n.#state = :sending",
            values={
                ":waiting": "waiting",
                ":sending": "sending",
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

    def receive(self, receipt: DeliveryReceipt) -> Literal["recorded", "stale", "stranger"]:
        """What a receipt says. A status never moves backwards; a receipt proves that the provider
        has the part, whatever we thought.

        `stranger`: nothing of ours has this reference.
        """
        named = parse_reference(receipt.reference)
        if named is None:
            return "stranger"
        id_, number = named
        # Nearly always the part is `sent`; where not, the refusal says what it is.
        expected: State = "sent"
        left = False
        for _ in range(4):
            try:
                self._record(id_, number, receipt, expected, listed=left)
            except Conflict as conflict:
                part = _part(conflict.item, number)
                if part is None:
                    return "stranger"
                if part["state"] in ("failed", expected):
                    return "stale"
                if part["state"] == "waiting" and not part.get("attempt"):
                    # Never handed to anybody: whoever says otherwise is mistaken.
                    return "stranger"
                expected = part["state"]
                left = any(one["state"] == "waiting" for one in _parts(conflict.item).values())
            else:
                return "recorded"
        raise Busy

    def _record(
        self,
        id_: MessageId,
        number: int,
        receipt: DeliveryReceipt,
        expected: State,
        *,
        listed: bool,
    ) -> None:
        # A receipt for one part says nothing about another that is unknown; and a reply of which
        # parts are left stays `listed`, since its message has left the queue.
        settled = expected == "unknown" and not listed
        found = " REMOVE unknown_bucket, unknown_since" if settled else ""
        self._table.update(
            _key(id_),
            "SET parts.#n.#state = :sent, parts.#n.#status = :status, parts.#n.#rank = :rank,"
            " parts.#n.#error = :error,"
            " parts.#n.provider_id = if_not_exists(parts.#n.provider_id, :id)" + found,
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


_OWN = "parts.#n.#owner = :owner AND parts.#n.attempt = :attempt"


def _own(part: PartEntry) -> dict[str, Any]:
    return {":owner": part.owner, ":attempt": part.attempt}


def _key(id_: MessageId) -> Key:
    return f"C#{id_.conversation}", f"OUT#{id_.message}"


def _first_waiting(reply: Reply) -> PartEntry | None:
    return next((part for part in reply.parts or () if part.state == "waiting"), None)


def _part(item: Item | None, number: int) -> dict[str, Any] | None:
    return _parts(item).get(str(number))


def _parts(item: Item | None) -> dict[str, Any]:
    return (item or {}).get("parts") or {}


def _there(conflict: Conflict) -> Reply:
    if conflict.item is None:
        # Opened and gone: only a person or the end of its life removes an item.
        raise Busy
    return _reply(conflict.item)


def _reply(item: Item) -> Reply:
    parts = item.get("parts")
    return Reply(
        id=MessageId(item["pk"].partition("#")[2], item["sk"].partition("#")[2]),
        kind=item["kind"],
        provider=item["provider"],
        ours=item["ours"],
        theirs=item["theirs"],
        callback_url=item["callback_url"],
        received_at=item["received_at"],
        outcome=item.get("outcome", ""),
        confirmation=item.get("confirmation", False),
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
    )

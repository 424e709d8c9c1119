"""The loop guard: two robots that answer each other are parted.

Each automatic reply of a conversation is written down, in one item, under the time at which the
text that it answers came to us. A text with which more than the limit came within ten minutes gets
no reply: the conversation is held, until ten minutes have passed in which nothing was held back in
it, or somebody lets it go. So a robot that keeps on writing stays held, and does not get as many
replies again every ten minutes.

    count     adds to a set: what is tried again, or twice at once, is the same entry still
    hold      only ever later; a death before it finds the count as high at the next try
"""

from __future__ import annotations

from chalicelib.ledger import DAY
from chalicelib.messages import MessageId
from chalicelib.observing import count, log
from chalicelib.runtime import Runtime
from chalicelib.table import Conflict, Item, Key, Table

WINDOW = 600.0  # seconds


class LoopGuard:
    """The guard of a stage, on its table. `limit`: automatic replies in a window; 0 for no guard.
    Raises what the table raises."""

    def __init__(self, table: Table, runtime: Runtime, limit: int) -> None:
        self._table = table
        self._runtime = runtime
        self._limit = limit

    def holds_back(self, id_: MessageId, received_at: float) -> bool:
        """Counts the automatic reply to this message, and says whether it is one too many.

        One write, until the conversation is held. `received_at`: the ledger's, which is the same
        at every try.
        """
        if not self._limit:
            return False
        try:
            item = self._count(id_, received_at)
        except Conflict:
            held = True
        else:
            held = self._in_window(item, received_at) > self._limit
            if not held:
                self._forget(id_, item, received_at)
        if held:
            self._hold(id_)
            count("LoopsHeld", id=str(id_))
            log("WARNING", "loop_held", id=str(id_))
        return held

    def clear(self, conversation: str) -> None:
        """Lets a conversation (its hash) go at once, with a count that begins anew."""
        self._table.update(_key(conversation), "REMOVE held_until, replies")

    def _count(self, id_: MessageId, received_at: float) -> Item:
        """Raises Conflict where the conversation is held."""
        now = self._runtime.now()
        return self._table.update(
            _key(id_.conversation),
            "ADD replies :this SET expires_at = :end",
            condition="attribute_not_exists(held_until) OR held_until <= :now",
            values={
                # Short, since every write pays for the whole set.
                ":this": {f"{int(received_at)}-{id_.message[:8]}"},
                ":end": int(now + DAY),
                ":now": now,
            },
        )

    def _in_window(self, item: Item, received_at: float) -> int:
        """Neither what is older nor what came later, if this one comes late."""
        return sum(-WINDOW < _time(one) - int(received_at) <= 0 for one in item["replies"])

    def _forget(self, id_: MessageId, item: Item, received_at: float) -> None:
        """Drops what no window needs any more, once there is as much of it as the limit."""
        old = {one for one in item["replies"] if _time(one) <= int(received_at) - WINDOW}
        if len(old) > self._limit:
            self._table.update(_key(id_.conversation), "DELETE replies :old", values={":old": old})

    def _hold(self, id_: MessageId) -> None:
        now = self._runtime.now()
        try:
            self._table.update(
                _key(id_.conversation),
                "SET held_until = :until, expires_at = :end REMOVE replies",
                condition="attribute_not_exists(held_until) OR held_until < :until",
                values={":until": now + WINDOW, ":end": int(now + DAY)},
            )
        except Conflict:
            return  # it is held for longer


def _key(conversation: str) -> Key:
    return f"C#{conversation}", "LOOP"


def _time(entry: str) -> int:
    return int(entry.partition("-")[0])

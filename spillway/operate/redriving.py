"""A redrive: dead letters go back to their queues, each sent first and deleted then.

Killed anywhere it loses nothing, and is run again. What each line leaves behind:

    receive    a letter that is hidden for half a minute
    send       a message on its queue, and the letter still there: the next run sends it once more,
               and of the two copies the ledger answers one
    delete     all is done

A send whose answer is lost is such a death, too; a deletion that comes too late leaves the letter,
and a run does not send what it has sent. So does everybody who redrives at the same time.

Each copy has a deduplication id of its own: FIFO swallows one that it saw in the last 5 minutes,
even of a message that is deleted. And it has `redriven_at`, from which its age counts, and by which
a run knows what it has redriven itself: a letter that comes again has failed again, and is left, as
is whatever was put aside after the run had begun.

A conversation's letters are sent in their order, one after the other: SQS shows them so, and shows
no more of them while one is in hand. Processing comes first, so that a STOP is recorded before
answers go out.
https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/using-messagededuplicationid-property.html
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from chalicelib.ledger import Ledger
from chalicelib.queues import OUTBOUND
from chalicelib.table import Table
from spillway.operate.letters import (
    PATIENCE,
    PATIENCE_OF_A_LOOK,
    SOURCES,
    Letter,
    work_through,
)
from spillway.stage import Stage

Tell = Callable[[str, int, int], None]

# Why a letter that was meant is left where it is.
NOT_OURS, CAME_AGAIN, TOO_OLD = "not_ours", "came_again", "too_old"


@dataclass(slots=True)
class Redriven:
    """`sent`: by dead-letter queue, how many letters went back (`dry`: would have). `left`: by
    reason, the ids of those that were meant and stay. `unseen`: by queue, how many SQS did not
    show."""

    stage: str
    dry: bool
    sent: dict[str, int] = field(default_factory=dict)
    left: dict[str, list[str]] = field(default_factory=dict)
    unseen: dict[str, int] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        return not self.left and not any(self.unseen.values())


class Redrive:
    """Of the letters that are `wanted`, on these queues; at most `rate` a second. `tell` is told
    the queue, how many were sent, and of how many."""

    def __init__(
        self,
        stage: Stage,
        queues: Sequence[str],
        wanted: Callable[[Letter], bool],
        *,
        rate: float,
        dry: bool = False,
        tell: Tell = lambda queue, done, total: None,
    ) -> None:
        self._stage = stage
        self._queues = queues
        self._wanted = wanted
        self._rate = rate
        self._tell = tell
        self._runtime = stage.runtime()
        self._began = self._runtime.now()
        self._sent: set[str] = set()  # SQS's ids of the letters, deleted or not
        self._held: set[str] = set()  # conversations of which a letter came meanwhile
        keep_days = stage.settings("sender").message_days
        table = Table(self._runtime, stage.name)
        self._ledger = Ledger(table, self._runtime, keep_days=keep_days)
        self._done = Redriven(stage.name, dry)

    def run(self) -> Redriven:
        """Raises what AWS raises: then it is to be run again."""
        left: dict[str, str] = {}
        for queue in self._queues:
            total = self._stage.stores.depth(queue).total
            before = len(self._sent)

            def work(letter: Letter, total: int = total, before: int = before) -> bool:
                if not self._wanted(letter):
                    return False
                reason = self._reason_against(letter)
                if reason:
                    left[letter.id] = reason
                    return False
                busy = self._moved(letter)
                self._tell(letter.queue, len(self._sent) - before, total)
                return busy

            patience = PATIENCE_OF_A_LOOK if self._done.dry else PATIENCE
            self._done.unseen[queue] = work_through(self._stage, queue, work, patience=patience)
            self._done.sent[queue] = len(self._sent) - before
        for id_, reason in left.items():
            self._done.left.setdefault(reason, []).append(id_)
        return self._done

    def _reason_against(self, letter: Letter) -> str:
        """Why a letter is not to be sent; "" where it is."""
        if letter.envelope is None:
            return NOT_OURS
        since = max(letter.put_aside_at, letter.envelope.redriven_at or 0.0)
        # (Clocks differ: what stands behind it may look older.)
        if since >= self._began or letter.raw.group in self._held:
            self._held.update(filter(None, [letter.raw.group]))
            return CAME_AGAIN
        if SOURCES[letter.queue] == OUTBOUND and not self._ledger.alive(letter.received_at):
            return TOO_OLD
        return ""

    def _moved(self, letter: Letter) -> bool:
        """Sends a letter, if this run has not done so, and deletes it; whether there was anything
        to do. One whose deletion comes too late is met again by the next walk."""
        if self._done.dry:
            self._sent.add(letter.id)
            return False
        if letter.id in self._sent:
            self._stage.stores.delete(letter.raw)
            return True
        self._runtime.sleep(1 / self._rate)
        # As it is but for this: another version of our code may have put more into it.
        body = json.loads(letter.raw.body) | {"redriven_at": self._runtime.now()}
        self._stage.stores.send(
            SOURCES[letter.queue],
            json.dumps(body, separators=(",", ":")),
            group=letter.raw.group,
            id_=self._runtime.new_id(),
        )
        self._sent.add(letter.id)
        self._stage.stores.delete(letter.raw)
        return True

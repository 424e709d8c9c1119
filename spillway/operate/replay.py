"""`spillway replay`: texts are processed again, from what the provider sent, as the archive has it.

Each payload is read by today's parser and goes on the processing queue as a `replay`: processing
examines the text as if it had just come, writes it a new line and lets its item name that
(chalicelib/processing.py). Nothing goes on the outbound queue, so nothing is sent; a STOP or START
that is seen for the first time counts from when it was said (a START if the sender has had the
text: else the sender records it). The line of before is left over, and `spillway reconcile` takes
it out.

A payload of the quarantine that can be read today was never stored: its texts go on the processing
queue as new ones, its receipts as receipts, and then the object is deleted. Whether they are
answered is not decided here: they are stored and have no reply, which `spillway reconcile` finds
and hands to the sender, for which they are too old by then, or not.

A death repeats what was under way: a replay is done once for the line that it was read from, and a
text of the quarantine is stored once.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Annotated

import typer
from rich.console import Console

from chalicelib.ledger import DAY
from chalicelib.messages import DeliveryReceipt, Headers, MessageId, WebhookRequest
from chalicelib.providers import provider_named
from chalicelib.providers.base import PayloadError, UnknownProvider
from chalicelib.queues import PROCESSING, Envelope, Queues
from chalicelib.receiving import inbound, receipt
from chalicelib.table import Item
from spillway.operate.progress import Tell, bars
from spillway.operate.times import moment
from spillway.problem import Problem
from spillway.stage import LOCAL, Stage, StageOption, stage_named

_AT_ONCE = 10  # as many as one call takes


@dataclass(slots=True)
class Replayed:
    """What came of it. `texts`, `receipts`: how many were put on the processing queue. By id or
    key: `unknown`, what is not in the table; `unreadable`, what today's parser cannot read either;
    `changed`, what it reads as another message."""

    stage: str
    texts: int = 0
    receipts: int = 0
    unknown: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not (self.unknown or self.unreadable or self.changed)


def replay(
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID", help="These messages, whenever they came."),
    ] = None,
    stage: StageOption = LOCAL,
    since: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="All that came since then: 2026-11-24, 2026-11-24T06:30Z, 36h, 14d.",
        ),
    ] = "",
    until: Annotated[
        str, typer.Option(metavar="TIME", help="... and before then, if not until now.")
    ] = "",
    quarantine: Annotated[
        bool,
        typer.Option(
            "--quarantine", help="Instead, what could not be read then, if it can be read now."
        ),
    ] = False,
    rate: Annotated[int, typer.Option(metavar="N", min=1, help="How many a second, at most.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="The result as one JSON object.")] = False,
) -> None:
    """Process texts again, from the archive: for a new look-up, or a mended bug.

    Deploy first: your parser reads the payload here, and the deployed
    processing examines the text, asks the look-ups and stores what it finds in
    place of what is there. Nobody is sent anything, and a STOP or START counts
    from when it was said.

      spillway replay --since 7d --stage prod
      spillway replay 3f0c...-91ab... --stage prod
      spillway replay --quarantine --stage prod

    When the processing queue is empty: spillway reconcile, which takes the
    lines of before out of the archive and, of what was in quarantine, has the
    sender record that it is too old.

    Exit code: 0 when all went on the queue, 1 when something is not in the
    table, or cannot be read, or reads as another message than it was.
    """
    console = Console(highlight=False, stderr=as_json)
    progress, tell = bars(console)
    start = moment("--since", since) if since else None
    end = moment("--until", until) if until else None
    if [bool(ids), start is not None, quarantine].count(True) != 1 or (end and start is None):
        raise Problem("Say one of: ID ..., --since TIME (with --until TIME or not), --quarantine")
    with stage_named(stage) as found, progress:
        again = Replay(found, rate=rate, tell=tell)
        if quarantine:
            again.quarantined()
        elif start is not None:
            again.since(start, end)
        else:
            again.messages(ids or [])
    done = again.done
    if as_json:
        print(json.dumps({**asdict(done), "good": done.good}, indent=2))
    else:
        _show(console, done)
    if not done.good:
        raise typer.Exit(1)


class Replay:
    """One run. `rate`: messages a second, so that what comes meanwhile is not held up."""

    def __init__(
        self, stage: Stage, *, rate: float, tell: Tell = lambda what, done, total: None
    ) -> None:
        self._stage = stage
        self._stores = stage.stores
        self._runtime = stage.runtime()
        self._rate = rate
        self._tell = tell
        self._queues = Queues(self._runtime, stage.name)
        self._keys = stage.stores.keys
        self._next = 0.0
        self.done = Replayed(stage.name)

    def messages(self, ids: Iterable[str]) -> None:
        """These, by id. Raises Problem for what is none."""
        parsed = [(text, MessageId.parse(text)) for text in ids]
        if any(id_ is None for _, id_ in parsed):
            raise Problem("ID: must be a message id, as log lines and spillway trace have it")
        self._send(self._replays_of([id_ for _, id_ in parsed if id_ is not None]))

    def since(self, start: float, end: float | None) -> None:
        """All that was received since then, and before then (unix seconds)."""
        # (What this run itself makes processing write is not to be read again.)
        began = self._runtime.now()
        keys = self._stores.objects("messages/", start - DAY, began)
        self._send(
            envelope
            for number, key in enumerate(keys, start=1)
            for envelope in self._replays_in(key, start, began if end is None else end, number)
        )

    def quarantined(self) -> None:
        """All of the quarantine that can be read."""
        for number, key in enumerate(self._stores.objects("quarantine/"), start=1):
            self._tell("reading the quarantine", number, 0)
            there = self._stores.object(key)
            if there is None:
                continue
            try:
                envelopes = list(self._parsed(json.loads(there[0]), self._stores.written(key)))
            except (PayloadError, UnknownProvider, ValueError, KeyError, TypeError, RecursionError):
                self.done.unreadable.append(key)
                continue
            self._send(envelopes)
            self._stores.replace(key, b"", there[1])

    def _replays_of(self, ids: Iterable[MessageId]) -> Iterator[Envelope]:
        for id_ in ids:
            item, _ = self._stores.message(id_)
            key = None if item is None else item.get("archive_key")
            there = self._stores.object(key) if key else None
            lines = there[0].splitlines() if there else []
            line = next((one for one in map(json.loads, lines) if one["id"] == str(id_)), None)
            if line is None:
                self.done.unknown.append(str(id_))
            else:
                yield from self._replay(line, str(key))

    def _replays_in(self, key: str, start: float, end: float, number: int) -> Iterator[Envelope]:
        self._tell("reading the archive", number, 0)
        there = self._stores.object(key)
        for line in map(json.loads, there[0].splitlines() if there else []):
            if start <= line["received_at"] < end:
                yield from self._replay(line, key)

    def _replay(self, line: Item, key: str) -> Iterator[Envelope]:
        id_ = line["id"]
        try:
            message = provider_named(line["provider"]).read(line["raw"], line["received_at"])
        except (PayloadError, UnknownProvider, RecursionError):
            self.done.unreadable.append(id_)
            return
        read_as = self._keys.message_id(message)
        if str(read_as) != id_:
            # Another person's, or another message: its item and its reply are under the old name.
            self.done.changed.append(id_)
            return
        payload = {**asdict(message), "archived_in": key}
        yield Envelope("replay", read_as.conversation, id_, line["received_at"], payload)

    def _parsed(self, payload: Item, received_at: float) -> Iterator[Envelope]:
        """What a payload of the quarantine holds. Raises PayloadError."""
        request = WebhookRequest(
            "POST",
            payload["url"],
            Headers({"Content-Type": payload["content_type"]}),
            base64.b64decode(payload["body"], validate=True),
            received_at,
        )
        for one in provider_named(payload["provider"]).parse(request):
            if isinstance(one, DeliveryReceipt):
                yield receipt(one, received_at)
            else:
                yield inbound(one, self._keys.message_id(one), "")

    def _send(self, envelopes: Iterable[Envelope]) -> None:
        some: list[Envelope] = []
        for envelope in envelopes:
            some.append(envelope)
            if len(some) == _AT_ONCE:
                self._send_some(some)
                some = []
        if some:
            self._send_some(some)

    def _send_some(self, some: list[Envelope]) -> None:
        now = self._runtime.now()
        if now < self._next:
            self._runtime.sleep(self._next - now)
        self._next = max(now, self._next) + len(some) / self._rate
        self._queues.send(PROCESSING, [(envelope, "") for envelope in some])
        receipts = sum(envelope.kind == "receipt" for envelope in some)
        self.done.receipts += receipts
        self.done.texts += len(some) - receipts


def _show(console: Console, done: Replayed) -> None:
    console.print(
        f"{done.texts:,} texts and {done.receipts:,} receipts are on the processing queue"
    )
    for what, ids in (
        ("not in the table, or without a line in the archive (spillway reconcile)", done.unknown),
        ("cannot be read today, either: mend the parser", done.unreadable),
        ("read as another message than it was: nothing was done with it", done.changed),
    ):
        for id_ in ids:
            console.print(f"[bold red]![/bold red] {id_}  {what}", soft_wrap=True)
    if done.good:
        console.print("When the queue is empty: spillway reconcile")

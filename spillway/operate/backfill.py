"""`spillway backfill`: texts that the provider has and that never came to us are taken up.

The provider lists what it received, and each text of which neither table nor ledger has an item
goes on the queues as the receiver would have put it there, under the id that its webhook would have
made: a webhook that still comes is a duplicate. First on the processing queue, then on the outbound
queue, as the receiver does; a death in between leaves what `spillway reconcile` puts right, and a
second run takes up the rest.

Two times belong to such a text. That we have it is now, and so it is stored. But nobody wants
yesterday's question answered today, and yesterday's STOP must not beat this morning's START: its
reply's age and its say about consent count from when the provider received it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Annotated, Any

import typer
from rich.console import Console

from chalicelib.ledger import DAY
from chalicelib.messages import InboundMessage, MessageId, answerable
from chalicelib.providers import NAMES, provider_named
from chalicelib.providers.base import SendError
from chalicelib.queues import OUTBOUND, PROCESSING, Queues
from chalicelib.receiving import inbound
from chalicelib.runtime import NotReady
from chalicelib.table import Key, Table
from chalicelib.vault import Vault
from spillway.operate.progress import Tell, bars
from spillway.operate.times import moment
from spillway.problem import Problem
from spillway.stage import LOCAL, Stage, StageOption, stage_named

# Seconds for which a text is left to its own webhook, with the provider's repetitions.
UNDER_WAY = 300.0
# How many texts are looked up in the table, and put on the queues, at a time.
_AT_ONCE = 50


@dataclass(slots=True)
class Backfilled:
    """What came of it. `listed`: how many texts the provider has; `known`: how many of these had
    come; `under_way`: how many may still come by themselves. `taken_up`, `to_be_stored`: ids of
    those that never came, and of those that were answered and never stored."""

    stage: str
    provider: str
    dry_run: bool
    listed: int = 0
    known: int = 0
    under_way: int = 0
    taken_up: list[str] = field(default_factory=list)
    to_be_stored: list[str] = field(default_factory=list)


def backfill(
    provider: Annotated[str, typer.Option(metavar="NAME", help="Who is asked: twilio.")],
    since: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="For what it received since then: 2026-11-24, 2026-11-24T06:30Z, 36h, 14d.",
        ),
    ],
    stage: StageOption = LOCAL,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what never came, and do nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The result as one JSON object.")] = False,
) -> None:
    """Take up texts that the provider received and whose webhooks never came.

    Asks the provider for the texts to our numbers (NUMBERS), and puts those
    that are in neither table nor ledger on the queues, as their webhooks would
    have. They are stored; a STOP or START counts from when it was said; a
    question is answered if it is younger than REPLY_MAX_AGE, and recorded as
    expired if not. The last five minutes are left to the webhooks themselves.

    Safe at any time, twice, and while webhooks come: what has come, or still
    stands on a queue, is one message. After a death run it again, and then
    spillway reconcile.

    Twilio only: Telnyx has no list of texts (its detail records have no words),
    and repeats its webhooks by itself.

    Exit code: 0 when all that never came is taken up; 1 with --dry-run when
    something never came.
    """
    console = Console(highlight=False, stderr=as_json)
    progress, tell = bars(console)
    start = moment("--since", since)
    with stage_named(stage) as found, progress:
        done = fill(found, provider, start, dry_run=dry_run, tell=tell)
    if as_json:
        print(json.dumps(asdict(done), indent=2))
    else:
        _show(console, done)
    if dry_run and (done.taken_up or done.to_be_stored):
        raise typer.Exit(1)


def fill(
    stage: Stage,
    name: str,
    since: float,
    *,
    dry_run: bool = False,
    tell: Tell = lambda what, done, total: None,
) -> Backfilled:
    """Takes up what this provider received since then (unix seconds). Raises Problem."""
    if name not in NAMES or not provider_named(name).lists_texts:
        able = ", ".join(one for one in NAMES if provider_named(one).lists_texts)
        raise Problem(
            f"--provider {name if name in NAMES else '…'}: must be one that lists the texts it "
            f"received: {able}. Telnyx keeps detail records of them, which have no words; what it "
            "could not deliver to us is in its portal, and it repeats webhooks by itself."
        )
    return _Filling(stage, name, since, dry_run, tell).run()


@dataclass(frozen=True, slots=True)
class _Missing:
    """A text that is not stored. `unanswered`: nobody has begun to answer it, either."""

    id: MessageId
    message: InboundMessage
    unanswered: bool


class _Filling:
    """One run. What never came is held in memory: some kilobytes a text."""

    def __init__(self, stage: Stage, name: str, since: float, dry_run: bool, tell: Tell) -> None:
        settings = stage.settings("receiver")
        sending = stage.settings("sender")
        self._runtime = stage.runtime()
        oldest = self._runtime.now() - (sending.message_days - 1) * DAY
        if since < oldest:
            raise Problem(
                f"--since: must not be more than {sending.message_days - 1} days ago: what is "
                "older the table has forgotten (MESSAGE_DAYS), and it would be taken for new."
            )
        self._numbers = [number for number, of in settings.numbers.items() if of == name]
        if not self._numbers:
            raise Problem(f"NUMBERS: has none of {name}'s in stage {stage.name}.")
        self._stage = stage
        self._since = since
        self._tell = tell
        self._provider = provider_named(name, sending.api_url(name))
        self._keys = stage.stores.keys
        self._vault = Vault(self._runtime, stage.name)
        self._table = Table(self._runtime, stage.name)
        self._queues = Queues(self._runtime, stage.name)
        self._done = Backfilled(stage.name, name, dry_run)

    def run(self) -> Backfilled:
        try:
            missing = [one for number in self._numbers for one in self._missing(number)]
            # In a conversation they are answered in the order in which they were written.
            missing.sort(key=lambda one: one.message.received_at)
            for start in range(0, len(missing), _AT_ONCE):
                some = missing[start : start + _AT_ONCE]
                if not self._done.dry_run:
                    self._take_up(some)
                for one in some:
                    done = self._done.taken_up if one.unanswered else self._done.to_be_stored
                    done.append(str(one.id))
                self._tell("taking up", start + len(some), len(missing))
        except NotReady as error:
            raise Problem(f"{error}. {self._mend}") from None
        except SendError as error:
            why = f"{error.reason} {error.code}".rstrip()
            mend = self._mend if error.reason == "credentials" else ""
            raise Problem(
                f"{self._provider.name} gave no list: {why}. {mend} What was taken up stays; run "
                "it again."
            ) from None
        return self._done

    def _missing(self, number: str) -> Iterator[_Missing]:
        texts = self._provider.texts(number, self._since, self._secrets(), self._runtime.http)
        while some := list(islice(texts, _AT_ONCE)):
            yield from self._missing_of(some)
            self._tell("reading the provider's list", self._done.listed, 0)

    def _missing_of(self, texts: Sequence[InboundMessage]) -> Iterator[_Missing]:
        ids = [self._keys.message_id(one) for one in texts]
        items = {id_: _keys(id_) for id_ in ids}
        there = self._table.get_many([key for pair in items.values() for key in pair])
        for id_, one in zip(ids, texts, strict=True):
            stored, replied = items[id_]
            self._done.listed += 1
            if stored in there:
                self._done.known += 1
            elif self._runtime.now() - one.received_at < UNDER_WAY:
                self._done.under_way += 1
            else:
                yield _Missing(id_, one, unanswered=replied not in there)

    def _take_up(self, some: Sequence[_Missing]) -> None:
        url = f"{self._public_url}/webhooks/{self._provider.name}/signed"
        whole = [
            (one.id, self._provider.with_media(one.message, self._secrets(), self._runtime.http))
            for one in some
        ]
        now = self._runtime.now()
        self._queues.send(
            PROCESSING,
            [(inbound(replace(text, received_at=now), id_, url), "") for id_, text in whole],
        )
        self._queues.send(
            OUTBOUND,
            [
                (inbound(text, id_, url, raw=False), self._runtime.new_id())
                for (id_, text), one in zip(whole, some, strict=True)
                if one.unanswered and answerable(text)
            ],
        )

    def _secrets(self) -> Mapping[str, Any]:
        return self._vault.secrets(self._provider.name)

    @property
    def _mend(self) -> str:
        return f"Set it: spillway secret set {self._provider.name} --stage {self._stage.name}."

    @cached_property
    def _public_url(self) -> str:
        return self._stage.api().public


def _keys(id_: MessageId) -> tuple[Key, Key]:
    """Of a text's item and of its reply's."""
    pk = f"C#{id_.conversation}"
    return (pk, f"IN#{id_.message}"), (pk, f"OUT#{id_.message}")


def _show(console: Console, done: Backfilled) -> None:
    console.print(
        f"{done.provider} has {done.listed:,} texts to our numbers: {done.known:,} had come, "
        f"{done.under_way:,} may still come by themselves",
        soft_wrap=True,
    )
    verb = "would be" if done.dry_run else "are"
    if done.taken_up:
        console.print(f"{len(done.taken_up):,} never came, and {verb} taken up")
    if done.to_be_stored:
        console.print(
            f"{len(done.to_be_stored):,} are in the ledger and not in the table, and {verb} stored"
        )
    if not done.taken_up and not done.to_be_stored:
        if not done.under_way:
            console.print("[green]All of them came.[/green]")
    elif not done.dry_run:
        console.print("When the queues are empty: spillway reconcile")

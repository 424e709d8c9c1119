"""`spillway trace`: the life of one message through both pipelines, from what is kept of it.

Its item says how it was stored, its ledger item what became of its reply, the dead-letter queues
whether it was put aside, and every log line about it has its id: the message's id is the one
correlation id from webhook to receipt.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from chalicelib.ledger import Reply, reply_of
from chalicelib.messages import MessageId, mask, number_kind, parse_reference
from chalicelib.queues import DEAD_LETTERS
from chalicelib.table import Item
from spillway.local.folder import Folder
from spillway.operate.letters import Letter, read
from spillway.problem import Problem
from spillway.stage import LOCAL, ROLES, Stage, StageOption, stage_named

# The log file of each function in the local run.
_LOG_FILES = {"receiver": "webhook", "processing": "processing", "sender": "outbound"}
# What is told by a metric alone, which carries the id as well.
_METRICS = ("Acknowledged", "Queued")
# A message's last line comes with its last receipt: carriers take up to 72 hours.
_LINES_UNTIL = 4 * 86_400.0


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. `at`: unix seconds, None where nobody wrote the time down."""

    at: float | None
    where: str
    what: str


@dataclass(slots=True)
class Life:
    """One message. `state`: what became of it, in a word or two; `texts` where they are asked
    for."""

    id: str
    provider: str
    ours: str
    theirs: str
    received_at: float
    state: str
    events: list[Event] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


def trace(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT", help="A message id or reference, a provider's id, or a number."
        ),
    ],
    stage: StageOption = LOCAL,
    number: Annotated[
        str,
        typer.Option(
            metavar="NUMBER", help="The person's number, where WHAT is a provider's own id."
        ),
    ] = "",
    last: Annotated[
        int, typer.Option(metavar="N", min=1, help="How many messages of a number, newest last.")
    ] = 3,
    texts: Annotated[
        bool, typer.Option("--texts", help="Show numbers and words, too: mind who is looking.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The same as a JSON list.")] = False,
) -> None:
    """Tell the life of a message: webhook, queues, stores, reply, receipts.

    By our message id or a reference (log lines and GET /messages have it), by
    the provider's id of it or of its answer with --number, or by a number: its
    last messages, at whichever of our numbers.

      spillway trace 3f0c…-91ab… --stage prod
      spillway trace SM0123… --number +14155550100 --stage prod
      spillway trace +14155550100

    Exit code: 0 when there is such a message, 1 when not.
    """
    console = Console(highlight=False)
    with stage_named(stage) as found:
        lives = [life(found, id_, texts=texts) for id_ in find(found, what, number, last)]
    known = [one for one in lives if one is not None]
    if as_json:
        print(json.dumps([asdict(one) for one in known], indent=2))
    else:
        for one in known:
            _show(console, one)
    if not known:
        raise Problem(
            "No such message in this stage. A text that is not stored yet is not found; what "
            "waits: spillway status"
        )


def find(stage: Stage, what: str, number: str, last: int) -> list[MessageId]:
    """The messages that are meant, oldest first. Raises Problem where that cannot be said."""
    id_ = MessageId.parse(what)
    if id_ is None and (named := parse_reference(what)):
        id_ = named[0]
    if id_ is not None:
        return [id_]
    theirs = number or what
    if number_kind(theirs) not in ("e164", "short_code"):
        raise Problem(
            "WHAT must be a message id, a reference, or a number such as +14155550100. A "
            "provider's own id needs the person's number beside it: --number +14155550100"
        )
    items = [
        item
        for ours in stage.settings("receiver").numbers
        for item in stage.stores.conversation(ours, theirs)
        if item["sk"].startswith(("IN#", "OUT#"))
    ]
    if number:
        items = [item for item in items if what in _provider_ids(item)]
    newest: dict[MessageId, float] = {}
    for item in items:
        key = MessageId(item["pk"].partition("#")[2], item["sk"].partition("#")[2])
        newest[key] = float(item["received_at"])
    return sorted(newest, key=lambda one: newest[one])[-last:]


def life(stage: Stage, id_: MessageId, *, texts: bool = False) -> Life | None:
    """All that is known of a message; None where nothing is."""
    stored, replied = stage.stores.message(id_)
    letters = list(_letters(stage, id_))
    item = stored or replied
    if item is None and not letters:
        return None
    reply = reply_of(replied) if replied else None
    shown = (lambda value: value) if texts else mask
    told = Life(
        id=str(id_),
        provider=item["provider"] if item else "",
        ours=shown(reply.ours if reply else item.get("to", "") if item else ""),
        theirs=shown(reply.theirs if reply else item.get("from", "") if item else ""),
        received_at=float(item["received_at"]) if item else min(one.received_at for one in letters),
        state=_state(stored, reply, letters),
    )
    told.events = sorted(
        [
            *of_text(stored),
            *of_reply(replied),
            *_erased(stored, replied),
            *map(_put_aside, letters),
            *_logged(stage, id_, told.received_at),
        ],
        key=lambda event: event.at or told.received_at,
    )
    if texts:
        said = [stored.get("text", "")] if stored else []
        said += [part.text for part in (reply and reply.parts) or ()]
        told.texts = [words for words in said if words]
    return told


def _provider_ids(item: Item) -> set[str]:
    parts = item.get("parts") or {}
    return {item.get("provider_id", ""), *(part.get("provider_id") for part in parts.values())}


def _state(stored: Item | None, reply: Reply | None, letters: list[Letter]) -> str:
    if letters:
        return "dead-lettered"
    if reply is not None:
        return reply.state
    return "stored, no reply yet" if stored else ""


def of_text(item: Item | None) -> Iterator[Event]:
    """What a message's item says."""
    if item is None or "erased_at" in item:
        return
    judged = "valid" if item["valid"] else f"not valid: {', '.join(item['reasons'])}"
    said = f", says {item['keyword']}" if item.get("keyword") else ""
    asked = f", looked up: {', '.join(sorted(item['lookups']))}" if item.get("lookups") else ""
    yield Event(
        None, "table", f"stored, {judged}{said}{asked}; {item['segments']} segments received"
    )
    yield Event(None, "archive", str(item["archive_key"]))


def _erased(*items: Item | None) -> Iterator[Event]:
    for item in items:
        if item is not None and "erased_at" in item:
            where = "table" if item["sk"].startswith("IN#") else "ledger"
            yield Event(float(item["erased_at"]), where, "erased: numbers and words are gone")


def of_reply(item: Item | None) -> Iterator[Event]:
    """What its reply's item in the ledger says."""
    if item is None:
        return
    reply = reply_of(item)
    for part in reply.parts or ():
        name = f"part {part.number}"
        if part.started_at is not None:
            yield Event(part.started_at, "ledger", f"{name} claimed, attempt {part.attempt + 1}")
        said = f"{name} {part.state}"
        if part.provider_id:
            said += f", the provider's id {part.provider_id}"
        if part.status:
            said += f", {part.status} by receipt"
        if part.error:
            said += f", {part.error}"
        yield Event(part.started_at, "ledger", said)
    if reply.unknown_since is not None:
        yield Event(reply.unknown_since, "ledger", "listed: its outcome is unknown")
    if reply.outcome:
        yield Event(None, "ledger", f"closed: {reply.outcome}")


def _letters(stage: Stage, id_: MessageId) -> Iterator[Letter]:
    for queue in DEAD_LETTERS.values():
        for letter in stage.stores.dead_letters(queue):
            if str(id_) in letter.body:
                yield read(letter)


def _put_aside(letter: Letter) -> Event:
    history = letter.raw.history
    at = float(history.get("dead_lettered_at", 0)) or None
    why = history.get("reason", "SQS received it too often")
    return Event(at, letter.queue, f"put aside: {why}")


def _logged(stage: Stage, id_: MessageId, since: float) -> Iterator[Event]:
    lines = _local_lines(id_) if stage.local is not None else _lines(stage, id_, since)
    for role, at, text in lines:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        what = line.get("event") or next((m for m in _METRICS if m in line), "")
        if what:
            names = ("provider", "reason", "code", "error", "seconds")
            said = " ".join(str(line[name]) for name in names if name in line)
            yield Event(_time(line) or at, role, f"{what.lower()} {said}".rstrip())


def _local_lines(id_: MessageId) -> Iterator[tuple[str, float | None, str]]:
    for role, name in _LOG_FILES.items():
        for line in Folder().log(name).read_text(errors="replace").splitlines():
            if str(id_) in line:
                yield role, None, line


def _lines(stage: Stage, id_: MessageId, since: float) -> Iterator[tuple[str, float | None, str]]:
    logs = stage.aws.client("logs")
    for role in ROLES:
        if role == "authorizer":
            continue
        try:
            pages = logs.get_paginator("filter_log_events").paginate(
                logGroupName=f"/aws/lambda/{stage.function(role)}",
                filterPattern=f'"{id_}"',
                startTime=max(0, int((since - 60) * 1000)),
                endTime=int((since + _LINES_UNTIL) * 1000),
            )
            for page in pages:
                for event in page["events"]:
                    yield role, event["timestamp"] / 1000, event["message"]
        except logs.exceptions.ResourceNotFoundException:
            continue


def _time(line: Item) -> float | None:
    try:
        if "_aws" in line:
            return float(line["_aws"]["Timestamp"]) / 1000
        return datetime.fromisoformat(line["timestamp"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return None


def _show(console: Console, one: Life) -> None:
    began = datetime.fromtimestamp(one.received_at, UTC)
    head = f"{one.id}  {one.provider}  {one.theirs} to {one.ours}  {one.state}"
    console.print(Text(head, "bold"), soft_wrap=True)
    console.print(Text(f"  {began:%Y-%m-%d %H:%M:%S} UTC  received"), soft_wrap=True)
    for event in one.events:
        after = "" if event.at is None else f"{event.at - one.received_at:+10.3f} s"
        line = Text.assemble(f"  {after:>12}  ", (f"{event.where:<12}", "cyan"), event.what)
        console.print(line, soft_wrap=True)
    for words in one.texts:
        console.print(Text(f"  {'':>12}  {'text':<12}{words}"), soft_wrap=True)

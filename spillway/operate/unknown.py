"""`spillway unknown`: sends of which nobody knows whether the provider took them, and a person's
word on them.

A decision is about one attempt of one part, as the person saw it. In between a receipt may come, or
a look may have it sent again; then what the person knows is of another attempt, and the decision is
refused (chalicelib/settling.py, `decide`). So whoever does not name the attempt is shown the one
that is unknown now, and asked. Killed anywhere, the same decision with its --attempt is taken again
and finishes what was left.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table as Shown
from rich.text import Text

from chalicelib.ledger import Busy, Ledger, PartEntry, Reply, reply_of
from chalicelib.messages import MessageId, mask, parse_reference
from chalicelib.providers import provider_named
from chalicelib.providers.base import REPEATABLE, NotSent, SendError, Sent
from chalicelib.queues import Queues
from chalicelib.runtime import is_transient
from chalicelib.settling import LISTED_AFTER, LOOKS, Decision, ask, decide, resume
from chalicelib.table import Table
from chalicelib.vault import Vault
from spillway.operate.words import moment, printable, span
from spillway.problem import Problem
from spillway.stage import LOCAL, Stage, StageOption, stage_named

# How many other sends of the conversation are shown, those that are nearest in time.
NEIGHBOURS = 6

app = typer.Typer(
    no_args_is_help=True,
    help="Sends of unknown outcome: what is known of them, and your decision.",
)

IdArgument = Annotated[
    str, typer.Argument(metavar="ID", help="A message's id, or the reference of a part of it.")
]
TextsOption = Annotated[
    bool, typer.Option("--texts", help="Show numbers and words, too: mind who is looking.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="The same as one JSON object.")]


@dataclass(frozen=True, slots=True)
class Listed:
    """A reply that is listed, by its part that is unknown or waits. Times are unix seconds.

    `attempt` counts from 1. `state` is the part's: `unknown`, or `waiting` where it waits behind
    one that was settled. `looks_left`: how often it is looked for by itself yet; 0 is for a person.
    """

    reference: str
    part: int
    parts: int
    attempt: int
    state: str
    provider: str
    ours: str
    theirs: str
    since: float
    reason: str
    looks_left: int
    next_look_at: float | None

    @classmethod
    def of(cls, reply: Reply, now: float, *, texts: bool = False) -> Listed:
        """Of a reply that has a part which is not sent."""
        part = reply.current
        assert part is not None
        since = reply.unknown_since or 0.0
        looks = [since + look for look in LOOKS if since + look > now]
        if part.state != "unknown":
            looks = []
        shown = (lambda value: value) if texts else mask
        return cls(
            reference=reply.id.part(part.number),
            part=part.number,
            parts=len(reply.parts or ()),
            attempt=part.attempt + 1,
            state=part.state,
            provider=reply.provider,
            ours=shown(reply.ours),
            theirs=shown(reply.theirs),
            since=since,
            reason=part.error,
            looks_left=len(looks),
            next_look_at=looks[0] if looks else None,
        )

    def standing(self, now: float) -> str:
        """What happens next, or who has to act."""
        if self.state != "unknown":
            return "waits behind a part that was settled; where nobody sends it: settle --resend"
        if self.next_look_at is None:
            return "for you to decide"
        looks = "look" if self.looks_left == 1 else "looks"
        return f"{self.looks_left} {looks} left, the next in {span(self.next_look_at - now)}"


@app.command(name="list")
def list_(
    stage: StageOption = LOCAL, texts: TextsOption = False, as_json: JsonOption = False
) -> None:
    """List the replies with a part of unknown outcome, or one that waits behind it.

    By itself each is looked for six times in 53 minutes, by receipts and by
    asking the provider; what is still unknown then is for you to decide:
    spillway unknown show ID, then settle.

    Exit code: 0; whether there are any is what spillway status checks.
    """
    with stage_named(stage) as found:
        now = found.runtime().now()
        replies = map(reply_of, found.stores.unknown())
        listed = [Listed.of(reply, now, texts=texts) for reply in replies if reply.current]
    listed.sort(key=lambda one: one.since)
    if as_json:
        print(json.dumps({"stage": stage, "listed": [asdict(one) for one in listed]}, indent=2))
        return
    # As wide as it gets: an id that is cut is of no use.
    console = Console(highlight=False, width=1000)
    if not listed:
        console.print("Nothing is of unknown outcome.")
        return
    table = Shown(box=None, pad_edge=False)
    for heading in ("id", "to", "provider", "unknown for", "attempt", "reason", "what is next"):
        table.add_column(heading, no_wrap=True)
    for one in listed:
        table.add_row(
            one.reference,
            one.theirs,
            one.provider,
            span(max(0.0, now - one.since)),
            str(one.attempt),
            one.reason,
            one.standing(now),
            style="" if one.looks_left or one.state != "unknown" else "bold",
        )
    console.print(table)


@app.command()
def show(
    id_: IdArgument,
    stage: StageOption = LOCAL,
    texts: TextsOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show the evidence about a send: attempts, receipts, what the provider says now.

    The provider is asked as the looks ask it, with the stage's own secret; it
    sends nothing by it. Beside it stand the conversation's other sends, which
    may be what the provider's console shows.

    Exit code: 0 when there is such a reply, 1 when not.
    """
    with stage_named(stage) as found:
        told = evidence(found, _found(found, id_), texts=texts)
    if as_json:
        print(json.dumps(told, indent=2))
    else:
        _show(Console(highlight=False), told, stage)


@app.command()
def settle(
    id_: IdArgument,
    stage: StageOption = LOCAL,
    sent: Annotated[
        bool, typer.Option("--sent", help="It was sent. What waits behind it goes on.")
    ] = False,
    resend: Annotated[
        bool,
        typer.Option(
            "--resend", help="Send it again; its age counts from now. If it was sent, it is double."
        ),
    ] = False,
    give_up: Annotated[
        bool,
        typer.Option("--give-up", help="Send neither it nor what waits behind it; the reply ends."),
    ] = False,
    attempt: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="The attempt that you looked at: then nobody is asked."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Decide about a part of unknown outcome.

    The decision is about one attempt. Without --attempt the one that is unknown
    now is shown, and you are asked. Where the part has moved on since (a
    receipt came, it was sent again) nothing is changed, and you are told.
    Deciding the same again, with --attempt, is harmless and finishes what was
    interrupted.

      spillway unknown settle 3f0c…-91ab…-1 --resend --attempt 1 --stage prod

    Before it is sent again the list of opt-outs is read. Where a part only
    waits behind one that was settled, --resend has the sender go on with it.

    Exit code: 0 when it is as you decided, 1 when it has moved on.
    """
    decisions: dict[Decision, bool] = {"sent": sent, "resend": resend, "give_up": give_up}
    chosen = [decision for decision, wanted in decisions.items() if wanted]
    if len(chosen) != 1:
        raise Problem("Say one of --sent, --resend and --give-up.")
    decision = chosen[0]
    with stage_named(stage) as found:
        reply = _found(found, id_)
        part = _meant(reply, id_, attempt, decision)
        again = f"spillway unknown settle {reply.id.part(part.number)} {_option(decision)}"
        seen = part.attempt + 1 if attempt is None else attempt
        if not as_json:
            typer.echo(f"{again} --attempt {seen} --stage {stage}", err=True)
        if attempt is None and part.state == "unknown":
            begun = moment(part.started_at or 0.0)
            typer.confirm(
                f"Part {part.number}, attempt {seen}, begun {begun} UTC, {part.error}: "
                f"{decision.replace('_', ' ')}?",
                abort=True,
                err=True,
            )
        reply = _settled(found, reply, part, seen - 1, decision)
    said = {
        "stage": stage,
        "reference": reply.id.part(part.number),
        "attempt": seen,
        "decision": decision,
        "state": reply.state,
        "resumed": reply.to_be_resumed,
    }
    if as_json:
        print(json.dumps(said, indent=2))
    else:
        goes_on = "; the sender goes on with it now" if reply.to_be_resumed else ""
        typer.echo(f"Decided: the reply is {reply.state}{goes_on}. spillway trace {reply.id}")


def evidence(stage: Stage, reply: Reply, *, texts: bool = False) -> dict[str, Any]:
    """All that is known of a reply that may be unknown, and what its provider says just now."""
    shown = (lambda value: value) if texts else mask
    runtime = stage.runtime()
    ledger = _ledger(stage)
    current = reply.current
    return {
        "stage": stage.name,
        "id": str(reply.id),
        "state": reply.state,
        "kind": reply.kind,
        "provider": reply.provider,
        "ours": shown(reply.ours),
        "theirs": shown(reply.theirs),
        "received_at": reply.received_at,
        "listed": asdict(Listed.of(reply, runtime.now(), texts=texts))
        if reply.listed and current
        else None,
        "parts": [_told(part, texts=texts) for part in reply.parts or ()],
        "provider_says": _asked(stage, ledger, reply, current)
        if current is not None and current.state == "unknown"
        else None,
        "neighbours": list(_neighbours(ledger, reply, texts=texts)),
    }


def _told(part: PartEntry, *, texts: bool) -> dict[str, Any]:
    """`given_up_unknown`: how many attempts were given up without knowing."""
    return {
        "part": part.number,
        "state": part.state,
        "attempt": part.attempt + 1,
        "first_started_at": part.first_started_at,
        "started_at": part.started_at,
        "reason": part.error,
        "given_up_unknown": part.lost,
        "provider_id": part.provider_id,
        "receipt": part.status,
        **({"text": part.text, "media": list(part.media)} if texts else {}),
    }


def _asked(stage: Stage, ledger: Ledger, reply: Reply, part: PartEntry) -> dict[str, Any]:
    """The provider's word: `answer` is found, not_sent, not_listed, cannot_tell, or not_asked."""
    settings = stage.settings("processing")
    if reply.provider not in settings.providers:
        return _word("not_asked", f"{reply.provider} is not in PROVIDERS")
    provider = provider_named(reply.provider, settings.api_url(reply.provider))
    runtime = stage.runtime()
    try:
        with closing(runtime.http), _unlogged():
            secrets = Vault(runtime, stage.name).secrets(reply.provider)
            answer = ask(ledger, reply, part, provider, secrets, runtime.http)
    except SendError as error:
        return _word("not_asked", f"the question failed: {error.reason} {error.code}".rstrip())
    except Exception as error:
        if not is_transient(error):
            raise
        return _word("not_asked", f"its secret or the table cannot be read: {error}")
    age = runtime.now() - (part.started_at or 0.0)
    if isinstance(answer, Sent):
        return _word("found", f"it has this part, as {answer.id}: --sent is right")
    if isinstance(answer, NotSent) and age >= LISTED_AFTER:
        return _word("not_sent", "it certainly does not have it: --resend sends it once")
    if isinstance(answer, NotSent):
        left = span(LISTED_AFTER - age)
        return _word("not_listed", f"it does not list it, which proves nothing for {left} yet")
    if provider.idempotent and part.request and part.error != "idempotency_mismatch":
        until = (part.first_started_at or 0.0) + REPEATABLE
        if runtime.now() < until:
            return _word(
                "cannot_tell",
                "it cannot be asked, but answers a repeated request as it did the first: until "
                f"{moment(until)} UTC --resend sends nothing twice",
            )
    return _word("cannot_tell", "it cannot tell: look into its console, by number and time")


def _word(answer: str, said: str) -> dict[str, Any]:
    return {"answer": answer, "said": said}


def _neighbours(ledger: Ledger, reply: Reply, *, texts: bool) -> Iterator[dict[str, Any]]:
    """The conversation's other sends, in their order."""
    mine = reply.current or next(iter(reply.parts or ()), None)
    if mine is None or mine.started_at is None:
        return
    others = [
        (part.started_at, id_.part(part.number), part)
        for id_, part in ledger.conversation(reply.id.conversation)
        if part.started_at is not None and id_ != reply.id
    ]
    at = mine.started_at
    nearest = sorted(others, key=lambda one: abs(one[0] - at))[:NEIGHBOURS]
    for _, reference, part in sorted(nearest, key=lambda one: one[0]):
        told = _told(part, texts=texts)
        yield {"reference": reference, **told, "same_words": part.text == mine.text}


def _found(stage: Stage, id_: str) -> Reply:
    """Raises Problem where there is no such reply."""
    named = parse_reference(id_)
    parsed = named[0] if named else MessageId.parse(id_)
    if parsed is None:
        raise Problem("ID must be a message's id or a reference: spillway unknown list has them.")
    reply = _ledger(stage).find(parsed)
    if reply is None:
        raise Problem(f"The ledger has no reply {parsed}: spillway unknown list")
    return reply


def _meant(reply: Reply, id_: str, attempt: int | None, decision: Decision) -> PartEntry:
    """The part that is to be decided about. Raises Problem where nothing is to be decided."""
    named = parse_reference(id_)
    number = named[1] if named else 0
    parts = reply.parts or ()
    part = next((one for one in parts if one.number == number), None)
    if part is None and not named:
        unknown = [one for one in parts if one.state == "unknown"]
        part = next(iter(unknown), None) or reply.current or next(iter(parts[-1:]), None)
    if part is None:
        raise Problem(f"The reply is {reply.state} and has no such part.")
    waits = reply.to_be_resumed and part == reply.current and decision == "resend"
    if attempt is None and part.state != "unknown" and not waits:
        raise Problem(
            f"Part {part.number} is {part.state}, the reply {reply.state}: there is nothing to "
            "decide. To finish a decision that was interrupted, repeat it with its --attempt."
        )
    return part


def _settled(
    stage: Stage, reply: Reply, part: PartEntry, attempt: int, decision: Decision
) -> Reply:
    """The reply as it was decided. Raises Problem where it has moved on."""
    runtime = stage.runtime()
    ledger, queues = _ledger(stage), Queues(runtime, stage.name)
    with _unlogged():
        if part.state == "waiting" and attempt == part.attempt and reply.to_be_resumed:
            resume(runtime, queues, reply)
            return reply
        try:
            return decide(
                runtime,
                ledger,
                queues,
                reply.id,
                part=part.number,
                attempt=attempt,
                decision=decision,
                events=stage.events(),
            )
        except Busy:
            now = ledger.find(reply.id)
            parts = (now and now.parts) or (part,)
            entry = next(one for one in parts if one.number == part.number)
            raise Problem(
                f"Nothing was changed. Part {part.number} is {entry.state} now, in attempt "
                f"{entry.attempt + 1}, and not unknown in attempt {attempt + 1}. Look again: "
                f"spillway unknown show {reply.id}"
            ) from None


def _ledger(stage: Stage) -> Ledger:
    runtime = stage.runtime()
    keep_days = stage.settings("processing").message_days
    return Ledger(Table(runtime, stage.name), runtime, keep_days=keep_days)


@contextmanager
def _unlogged() -> Iterator[None]:
    """Without the functions' log lines, which are for CloudWatch."""
    with redirect_stdout(io.StringIO()):
        yield


def _option(decision: Decision) -> str:
    return f"--{decision.replace('_', '-')}"


def _show(console: Console, told: dict[str, Any], stage: str) -> None:
    def line(what: str, said: str) -> None:
        console.print(Text.assemble((f"  {what:<12}", "cyan"), said), soft_wrap=True)

    head = f"{told['id']}  {told['provider']}  {told['ours']} to {told['theirs']}  {told['state']}"
    console.print(Text(head, "bold"), soft_wrap=True)
    line("came", f"{moment(told['received_at'])} UTC")
    for part in told["parts"]:
        line(f"part {part['part']}", _of(part))
        if part["first_started_at"] not in (None, part["started_at"]):
            line("", f"the first attempt was begun {moment(part['first_started_at'])} UTC")
        if part["given_up_unknown"]:
            line("", f"attempts given up without knowing: {part['given_up_unknown']}")
        if "text" in part:
            line("", printable(part["text"]))
    for one in told["neighbours"]:
        same = ", the same words" if one["same_words"] else ""
        line("beside it", f"{one['reference']}: {_of(one)}{same}")
        if "text" in one:
            line("", printable(one["text"]))
    if told["provider_says"]:
        line(told["provider"], told["provider_says"]["said"])
    listed = told["listed"]
    if listed and listed["state"] == "unknown":
        left = listed["looks_left"]
        line("looks left", str(left) if left else "none: it is for you to decide")
        command = f"spillway unknown settle {listed['reference']} --attempt {listed['attempt']}"
        line("decide", f"{command} --stage {stage} and one of --sent, --resend, --give-up")


def _of(part: dict[str, Any]) -> str:
    """A part in a line."""
    begun = "" if part["started_at"] is None else f", begun {moment(part['started_at'])} UTC"
    said = f"{part['state']}, attempt {part['attempt']}{begun}"
    for name, word in (("reason", "{}"), ("provider_id", "as {}"), ("receipt", "receipt: {}")):
        if part[name]:
            said += f", {word.format(part[name])}"
    return said

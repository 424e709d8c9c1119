"""`spillway burst`: thousands of signed webhooks as fast as the door takes them, and the count.

Every message has words and a provider's id of its own, so that what became of it is counted for
each message and not for each number: in the table, in the archive, in the outbox.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import secrets
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import httpx
import typer
from botocore.exceptions import BotoCoreError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from chalicelib.queues import OUTBOUND, PROCESSING
from chalicelib.table import Item
from spillway.local.folder import Folder
from spillway.problem import Problem
from spillway.simulator import telnyx, twilio
from spillway.traffic.stores import LocalStores

CLIENTS = 32
TRIES = 4  # a provider repeats a webhook that got a 5xx or no answer
STUCK = 120.0  # seconds without any progress, then the count is taken as it is


@dataclass(slots=True)
class Sent:
    """One message of the burst and what the door said. Times are unix seconds."""

    provider: str
    id: str
    sender: str
    text: str
    duplicate: bool
    acknowledged_at: float | None = None
    seconds: float = 0.0


@dataclass(slots=True)
class Traffic:
    """How the sending goes, for others to see while it does; `stopped` ends it."""

    advance: Callable[[], None] = lambda: None
    delivered: int = 0
    under_way: int = 0
    requests: int = 0
    stopped: bool = False


@dataclass(slots=True)
class Count:
    """What became of the messages. Rates are a second, times in seconds."""

    messages: int
    duplicates: int
    conversations: int
    acknowledged: int = 0
    refused: int = 0
    stored: int = 0
    stored_twice: int = 0
    archived: int = 0
    archived_twice: int = 0
    answered: int = 0
    answered_twice: int = 0
    unanswered_with_reason: int = 0
    unknown: int = 0
    dead_lettered: int = 0
    lost: int = 0
    acknowledgement_p50: float = 0.0
    acknowledgement_p99: float = 0.0
    reply_p50: float = 0.0
    webhooks_per_second: float = 0.0
    messages_per_second: float = 0.0
    sending_seconds: float = 0.0
    drain_seconds: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Whether all went as it should: an unknown send is listed, and none of these."""
        return not (self.lost or self.answered_twice or self.stored_twice or self.refused)


def burst(
    messages: Annotated[
        int, typer.Option(metavar="N", min=1, max=1_000_000, help="How many texts.")
    ] = 1000,
    conversations: Annotated[
        int | None,
        typer.Option(metavar="M", min=1, help="Between how many pairs of numbers. [N / 10]"),
    ] = None,
    duplicates: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            min=0,
            max=1,
            help="How many come twice: 0.05 is 5 %.",
            show_default="0, with --faults 0.05",
        ),
    ] = None,
    provider: Annotated[str, typer.Option(metavar="NAME", help="twilio, telnyx, or mix.")] = "mix",
    faults: Annotated[
        bool, typer.Option("--faults", help="Let everything fail meanwhile, in turn.")
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="With --faults: the same plan of faults again."),
    ] = None,
    within: Annotated[
        float, typer.Option(metavar="MINUTES", min=1, help="With --faults: after this, count.")
    ] = 25.0,
    as_json: Annotated[bool, typer.Option("--json", help="The count as one JSON object.")] = False,
) -> None:
    """Send many texts at once, wait until all is quiet, and count.

    Signed webhooks go to the local stack as fast as its door takes them; then
    each message is looked for in the table, the archive and the outbox. Ends
    with 1 if one that was acknowledged is lost or was answered twice, or if
    the door refused one. Needs a local run (make run).

    With --faults the texts come at 20 a second, 5 % of them twice, while the
    providers, the look-ups and the reply API are slow, throttled, failing and
    down in turn and the workers are killed (kill -9); each of it is told as it
    happens. Then it waits until nothing is under way and every send of unknown
    outcome was settled, which takes some ten minutes more, and ends with 1 as
    above, or if anything is open still. All faults end by themselves, whatever
    becomes of this command. 10,000 texts take 17 minutes. A plan is repeated
    with its --seed, a run is not: a kill hits what a worker does just then.
    """
    local = Folder().running()
    names = list(local["numbers"]) if provider == "mix" else [provider]
    if not set(names) <= set(local["numbers"]):
        raise Problem(
            f"--provider {provider}: must be mix, or one of {', '.join(local['numbers'])}."
        )
    console = Console(highlight=False, stderr=as_json)
    if duplicates is None:
        duplicates = 0.05 if faults else 0.0
    made = make(messages, conversations or -(-messages // 10), duplicates, names)
    if faults:
        _with_faults(local, made, names, seed, within * 60, console, as_json=as_json)
        return
    count = run(local, made, console=console)
    if as_json:
        print(json.dumps({**asdict(count), "good": count.good}))
    else:
        show(console, count)
    if not count.good:
        raise typer.Exit(1)


def _with_faults(
    local: Mapping[str, Any],
    messages: list[Sent],
    names: list[str],
    seed: int | None,
    within: float,
    console: Console,
    *,
    as_json: bool,
) -> None:
    from spillway.traffic import faultrun
    from spillway.traffic.faults import draw

    plan = draw(seed or random.randrange(1, 1_000_000), len(messages), names)
    needed = plan.seconds + faultrun.SETTLING
    if within < needed:
        raise Problem(
            f"--within {within / 60:g}: {len(messages):,} texts and their settling need "
            f"{needed / 60:.0f} minutes or more."
        )
    console.print(
        f"{len(messages):,} texts in {plan.seconds / 60:.0f} minutes, {len(plan.faults)} faults, "
        f"{len(plan.kills)} kills; this plan again: --seed {plan.seed}\n"
        "time, after the start, webhooks delivered, what was done and seen"
    )
    report = faultrun.run(local, messages, plan, within=within, console=console)
    if as_json:
        print(json.dumps(report.as_dict()))
    else:
        faultrun.show(console, report)
    if not report.good:
        raise typer.Exit(1)


def make(messages: int, conversations: int, duplicates: float, providers: list[str]) -> list[Sent]:
    """The messages, in an order of chance; the share `duplicates` of them is to come twice."""
    tag = secrets.token_hex(4)
    first = random.randrange(2_000_000, 9_000_000)
    made = []
    for number in range(messages):
        conversation = number % conversations
        name = providers[conversation % len(providers)]
        made.append(
            Sent(
                provider=name,
                id=f"SM{secrets.token_hex(16)}" if name == "twilio" else _uuid(),
                # Ten digits after +1: always a possible number, and a new one for each burst.
                sender=f"+1646{(first + conversation) % 10_000_000:07d}",
                text=f"burst {tag} {number}",
                duplicate=random.random() < duplicates,
            )
        )
    random.shuffle(made)
    return made


def run(local: Mapping[str, Any], messages: list[Sent], *, console: Console) -> Count:
    """Sends, waits and counts."""
    began = time.time()
    with (
        closing(LocalStores(local)) as stores,
        Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        ) as progress,
    ):
        total = len(messages) + sum(one.duplicate for one in messages)
        sending = progress.add_task("sending", total=total)
        traffic = Traffic(lambda: progress.advance(sending))
        asyncio.run(send_all(local, messages, traffic))
        sent_at = time.time()
        _wait(stores, progress)
        quiet_at = time.time()
        count = take(stores, messages, began)
    count.sending_seconds = round(sent_at - began, 1)
    count.drain_seconds = round(quiet_at - sent_at, 1)
    count.webhooks_per_second = round(traffic.requests / (sent_at - began), 1)
    count.messages_per_second = round(len(messages) / (quiet_at - began), 1)
    return count


def take(stores: LocalStores, messages: list[Sent], since: float) -> Count:
    """Counts what became of each message, from the stores and the outbox."""
    acknowledged = [one for one in messages if one.acknowledged_at is not None]
    items = {(item["pk"], item["sk"]): item for item in stores.items()}
    inbound = [item for (_, sk), item in items.items() if sk.startswith("IN#")]
    stored = {item["provider_id"]: item for item in inbound}
    times_stored = Counter(item["provider_id"] for item in inbound)
    archived = Counter(line["provider_id"] for line in stores.archived(since))
    outbox = stores.outbox()
    answers = Counter(entry["text"] for entry in outbox)
    answered_at = {entry["text"]: entry["at"] for entry in reversed(outbox)}
    depths = stores.depths()
    count = Count(
        messages=len(messages),
        duplicates=sum(one.duplicate for one in messages),
        conversations=len({one.sender for one in messages}),
        acknowledged=len(acknowledged),
        refused=len(messages) - len(acknowledged),
        dead_lettered=sum(depths[n].total for n in depths if n not in (PROCESSING, OUTBOUND)),
    )
    reasons: Counter[str] = Counter()
    for one in acknowledged:
        kept = one.id in stored and archived[one.id] > 0
        count.stored += one.id in stored
        count.stored_twice += times_stored[one.id] > 1
        count.archived += archived[one.id] > 0
        count.archived_twice += archived[one.id] > 1
        count.answered += answers[one.text] > 0
        count.answered_twice += answers[one.text] > 1
        reason = "" if answers[one.text] else _reason(items, stored.get(one.id))
        if reason == "unknown":
            count.unknown += 1
        elif reason:
            count.unanswered_with_reason += 1
            reasons[reason] += 1
        count.lost += not (kept and (answers[one.text] or reason))
    count.reasons = dict(reasons)
    if acknowledged:
        taken = sorted(one.seconds for one in acknowledged)
        count.acknowledgement_p50 = round(statistics.median(taken), 4)
        count.acknowledgement_p99 = round(taken[min(len(taken) - 1, len(taken) * 99 // 100)], 4)
    waits = [
        answered_at[one.text] - one.acknowledged_at
        for one in acknowledged
        if one.acknowledged_at is not None and one.text in answered_at
    ]
    count.reply_p50 = round(statistics.median(waits), 3) if waits else 0.0
    return count


def _reason(items: Mapping[tuple[str, str], Item], inbound: Item | None) -> str:
    """Why a message has no answer, as the ledger records it, or ""."""
    if inbound is None:
        return ""
    reply = items.get((inbound["pk"], inbound["sk"].replace("IN#", "OUT#")), {})
    states = {part["state"] for part in reply.get("parts", {}).values()}
    return "unknown" if "unknown" in states else str(reply.get("outcome", ""))


def deliveries(messages: list[Sent]) -> list[Sent]:
    """Each message as often as it is delivered: a duplicate right after the first, so that both are
    under way at once, or at any time later."""
    order = [(float(number), one) for number, one in enumerate(messages)]
    last = float(len(messages))
    for number, one in enumerate(messages):
        if one.duplicate:
            at_once = random.random() < 0.5
            order.append((number + 0.5 if at_once else random.uniform(number + 1, last), one))
    return [one for _, one in sorted(order, key=lambda entry: entry[0])]


async def send_all(
    local: Mapping[str, Any], messages: list[Sent], traffic: Traffic, *, spread: float = 0.0
) -> None:
    """Delivers every webhook, the duplicates too, spread over so many seconds or as fast as the
    door takes them."""
    order = deliveries(messages)
    queue = iter(enumerate(order))
    pause = spread / len(order)
    began = time.monotonic()
    limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)
    async with httpx.AsyncClient(timeout=20.0, limits=limits, trust_env=False) as http:

        async def one_client() -> None:
            for number, message in queue:
                due = began + number * pause
                while not traffic.stopped and (left := due - time.monotonic()) > 0:
                    await asyncio.sleep(min(left, 0.2))
                if traffic.stopped:
                    return
                traffic.under_way += 1
                try:
                    tries = await _deliver(http, local, message)
                finally:
                    traffic.under_way -= 1
                traffic.requests += tries
                traffic.delivered += 1
                traffic.advance()

        await asyncio.gather(*(one_client() for _ in range(CLIENTS)))


async def _deliver(http: httpx.AsyncClient, local: Mapping[str, Any], message: Sent) -> int:
    """One delivery of a webhook, repeated as providers do; returns how many tries it took."""
    tries = 0
    for tries in range(1, TRIES + 1):
        began = time.perf_counter()
        url, headers, body = _webhook(local, message)
        try:
            response = await http.post(url, headers=headers, content=body)
        except httpx.HTTPError:
            if not Folder().local.exists():
                raise Problem("The local run has ended meanwhile.") from None
        else:
            if response.status_code < 300:
                if message.acknowledged_at is None:
                    message.seconds = time.perf_counter() - began
                    message.acknowledged_at = time.time()
                return tries
            if response.status_code < 500:
                return tries
        await asyncio.sleep(0.2 * 2**tries)
    return tries


def _webhook(local: Mapping[str, Any], message: Sent) -> tuple[str, dict[str, str], bytes]:
    module = {"twilio": twilio, "telnyx": telnyx}[message.provider]
    url, headers, body = module.inbound(
        webhook=local["public_url"],
        secrets=local["secrets"][message.provider],
        sender=message.sender,
        recipient=local["numbers"][message.provider],
        text=message.text,
        id=message.id,
        now=time.time(),
    )
    # Signed for the public address, and delivered here.
    url = local["webhook"] + url.removeprefix(local["public_url"])
    headers = dict(headers)
    credentials = local["credentials"].get(message.provider)
    if credentials:
        headers["Authorization"] = "Basic " + base64.b64encode(credentials.encode()).decode()
    return url, headers, body


def _wait(stores: LocalStores, progress: Progress) -> None:
    """Until nothing is left on both queues but looks for unknown sends, which go on for an hour,
    three times in a row (a receipt may still come), or stuck."""
    first = _total(stores)
    draining = progress.add_task("draining", total=first)
    quiet, best, moved = 0, first, time.monotonic()
    while quiet < 3:
        left = _total(stores)
        first = max(first, left)  # receipts come in on the way
        progress.update(draining, total=first, completed=first - left)
        quiet = quiet + 1 if left == 0 or (left == best and left <= _unknown(stores)) else 0
        if left < best:
            best, moved = left, time.monotonic()
        if time.monotonic() - moved > STUCK and left:
            return
        time.sleep(0.5)


def _unknown(stores: LocalStores) -> int:
    """How many replies have a send of unknown outcome."""
    return sum("unknown_bucket" in item for item in stores.items())


def _total(stores: LocalStores) -> int:
    try:
        depths = stores.depths()
    except BotoCoreError:
        raise Problem(
            "The local run has ended meanwhile, and with it what there was to count."
        ) from None
    return depths[PROCESSING].total + depths[OUTBOUND].total


def show(console: Console, count: Count) -> None:
    """The count as a table, and the verdict."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(justify="right")
    table.add_column()
    for number, what in (
        (
            count.acknowledged,
            f"acknowledged, of {count.messages:,} ({count.duplicates:,} came twice)",
        ),
        (count.refused, "refused by the door"),
        (count.stored, "stored in the table"),
        (count.archived, f"archived ({count.archived_twice} in two objects)"),
        (count.answered, f"answered, in {count.conversations} conversations"),
        (count.unanswered_with_reason, f"not answered, with a reason {_listed(count.reasons)}"),
        (count.unknown, "sent with unknown outcome"),
        (count.dead_lettered, "in a dead-letter queue"),
        (count.answered_twice, "[bold]answered twice[/bold]"),
        (count.lost, "[bold]lost[/bold]"),
    ):
        table.add_row(f"{number:,}", what)
    console.print(table)
    console.print(
        f"acknowledged in {count.acknowledgement_p50 * 1000:.0f} ms (p50), "
        f"{count.acknowledgement_p99 * 1000:.0f} ms (p99); {count.webhooks_per_second:.0f} "
        f"webhooks a second for {count.sending_seconds:.0f} s, drained "
        f"{count.drain_seconds:.0f} s later: {count.messages_per_second:.0f} messages a second "
        "from end to end"
    )
    if count.good:
        console.print("[green]Nothing lost, nothing answered twice.[/green]")
    elif count.lost or count.answered_twice:
        console.print("[bold red]Messages were lost or answered twice.[/bold red]")
    else:
        console.print("[bold red]Messages were refused: see .spillway/logs/webhook.log[/bold red]")


def _listed(reasons: Mapping[str, int]) -> str:
    return f"({', '.join(f'{why}: {n}' for why, n in reasons.items())})" if reasons else ""


def _uuid() -> str:
    digits = secrets.token_hex(16)
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))

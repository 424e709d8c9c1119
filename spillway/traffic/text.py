"""`spillway text`: one text from a person, followed on its way until the answer is there."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console

from chalicelib.messages import number_kind
from chalicelib.table import Item
from spillway.local.folder import Folder
from spillway.problem import Problem
from spillway.traffic.stores import LocalStores

POLL = 0.02


def text(
    words: Annotated[str, typer.Argument(metavar="TEXT", help='What to say, e.g. "hello".')],
    sender: Annotated[
        str, typer.Option("--from", metavar="NUMBER", help="The person's number.")
    ] = "+14155550100",
    provider: Annotated[
        str, typer.Option(metavar="NAME", help="Who carries it: twilio or telnyx.")
    ] = "twilio",
    seconds: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", help="How long to wait for the answer.")
    ] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="The steps as one JSON object.")] = False,
) -> None:
    """Send one text and watch it being answered.

    It goes through a simulated provider to the local stack; each step is shown
    with the time since it was sent. Ends with 1 if the text was refused, or
    has no answer, nor a reason for none, in time. Needs a local run (make run).
    """
    local = Folder().running()
    if provider not in local["numbers"]:
        raise Problem(
            f"--provider {provider}: the local run simulates {' and '.join(local['numbers'])}."
        )
    if number_kind(sender) is None:
        raise Problem(
            "--from: must be a number such as +14155550100, a short code, or a short name."
        )
    console = Console(highlight=False)
    steps = []
    complete = False
    with closing(LocalStores(local)) as stores:
        ours = local["numbers"][provider]
        for step in follow(stores, ours, provider, sender, words, seconds):
            steps.append(step)
            complete = complete or step["step"] in ("answered", "no answer")
            if not as_json:
                _show(console, step)
        waiting = ", ".join(f"{name} {depth.total}" for name, depth in stores.depths().items())
    if as_json:
        console.print_json(json.dumps({"complete": complete, "steps": steps}))
    if not complete:
        if not as_json and steps[-1]["step"] not in ("refused", "unknown"):
            console.print(
                f"[red]No answer within {seconds:.0f} s.[/red] In the queues now: {waiting}. What "
                "the functions say: .spillway/logs/processing.log, outbound.log"
            )
        raise typer.Exit(1)


def follow(
    stores: LocalStores, ours: str, provider: str, theirs: str, words: str, seconds: float
) -> Iterator[dict[str, Any]]:
    """Each step as it is seen: {"step", "seconds" since the text was sent, and what there is to
    say about it}."""

    def step(name: str, **what: Any) -> dict[str, Any]:
        return {"step": name, "seconds": round(time.monotonic() - began, 3), **what}

    # Only this text makes new items in its conversation: by these its answer is known before
    # processing has stored it.
    before = {item["sk"] for item in stores.conversation(ours, theirs)}
    began = time.monotonic()
    request = {"provider": provider, "from": theirs, "to": ours, "text": words}
    try:
        answer = stores.http.post(f"{stores.page}/provider/inbound", json=request).json()
    except (httpx.HTTPError, ValueError):
        raise Problem("The simulated providers do not answer. See .spillway/logs/") from None
    if answer.get("status") not in (200, 204):
        yield step("refused", status=answer.get("status"), error=answer.get("error"))
        return
    yield step("acknowledged", status=answer["status"], door=answer["door"])
    seen: set[str] = set()
    while time.monotonic() - began < seconds:
        new = [i for i in stores.conversation(ours, theirs) if i["sk"] not in before]
        inbound = next((item for item in new if item["sk"].startswith("IN#")), None)
        reply = next((item for item in new if item["sk"].startswith("OUT#")), None)
        if inbound and "stored" not in seen:
            seen.add("stored")
            yield step("stored", reasons=inbound["reasons"], keyword=inbound.get("keyword"))
            yield step("archived", object=inbound["archive_key"])
        for name, what in _reached(reply) if reply else ():
            if name not in seen:
                seen.add(name)
                yield step(name, **what)
        if inbound and number_kind(theirs) == "alphanumeric" and "no answer" not in seen:
            seen.add("no answer")
            yield step("no answer", why="an alphanumeric sender is never answered")
        final = {"delivered", "undelivered", "no answer", "unknown"}
        if seen & final and "stored" in seen:
            return
        time.sleep(POLL)


def _reached(reply: Item) -> Iterator[tuple[str, dict[str, Any]]]:
    """How far the reply is, by its ledger item."""
    parts = [reply.get("parts", {})[n] for n in sorted(reply.get("parts", {}), key=int)]
    if reply.get("outcome"):
        yield "no answer", {"why": reply["outcome"]}
        return
    if parts:
        yield "decided", {}
    for part in parts:
        if part["state"] == "unknown":
            yield "unknown", {"why": part["error"]}
    if parts and all(part["state"] == "sent" for part in parts):
        yield "answered", {"text": [part["text"] for part in parts]}
        statuses = {part.get("status") for part in parts}
        for status in ("undelivered", "delivered"):
            if statuses == {status}:
                yield status, {}


def _show(console: Console, step: dict[str, Any]) -> None:
    bad = ("refused", "undelivered", "unknown")
    colour = "red" if step["step"] in bad else "green"
    console.print(f"{step['seconds']:8.3f} s  [{colour}]{step['step']:<13}[/{colour}]", end="")
    console.print(_said(step), markup=False)


def _said(step: dict[str, Any]) -> str:
    match step["step"]:
        case "refused":
            return f"by our door: {step['error'] or step['status'] or 'it could not be reached'}"
        case "acknowledged":
            return f"{step['status']}, at the {step['door']} door"
        case "stored":
            reasons = ", ".join(step["reasons"])
            return f"in the table, not valid: {reasons}" if reasons else "in the table"
        case "archived":
            return str(step["object"])
        case "decided":
            return "the words are in the ledger"
        case "answered":
            return " | ".join(step["text"])
        case "no answer" | "unknown":
            return str(step["why"])
        case _:
            return "says the provider"

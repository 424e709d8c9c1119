"""A seed's story told again, cut down to what a violation is about."""

from __future__ import annotations

import json
import re
from typing import Any

from botocore.exceptions import ClientError

from tests.simulation.world import START

_HASHES = re.compile(r"[0-9a-f]{24}")
_DEATH = re.compile("KILLED|TIME-OUT")
_MOST = 120


def told(outcome: Any, violation: Any, *, everything: bool = False) -> str:
    """The lines of a seed, one an event: seconds, who, what. Names stand for hashes."""
    world = outcome.world
    names: dict[str, str] = outcome.names
    lines = [(at, f"{at:10.2f}  {who:14} {what}") for at, who, what in world.trace]
    for at, who, site, operation, arguments, answer in world.calls:
        said = f"{site.partition(': ')[2]}: {_call(operation, arguments)} -> {_answer(answer)}"
        lines.append((at - START, f"{at - START:10.2f}  {who:14} {said}"))
    lines.sort(key=lambda line: line[0])
    about = {names.get(part, part) for id_ in violation.about for part in id_.split("-")[1:2]}
    told_lines = []
    for _, line in lines:
        short = _HASHES.sub(lambda match: names.get(match[0], match[0][:6]), line)
        if everything or not about or _DEATH.search(short) or _names(short) & about:
            told_lines.append(short)
    cut = told_lines if everything else told_lines[-_MOST:]
    left = len(told_lines) - len(cut)
    head = [f"  … {left} lines before"] if left else []
    return "\n".join([*head, *cut])


def _names(line: str) -> set[str]:
    return set(re.findall(r"\bm[0-9]+\b", line))


def _call(operation: str, arguments: dict[str, Any]) -> str:
    if "Key" in arguments and isinstance(arguments["Key"], dict):
        key = "/".join(value["S"] for value in arguments["Key"].values())
        update = arguments.get("UpdateExpression", "")
        states = re.findall(
            r"'S': '(waiting|sending|sent|failed|unknown|stop|start)'", str(arguments)
        )
        return f"{operation} {key} {update[:48]} {' '.join(states)}"
    if "Item" in arguments:
        return f"{operation} {arguments['Item']['pk']['S']}/{arguments['Item']['sk']['S']}"
    if "QueueUrl" in arguments and {"Entries", "MessageBody"} & set(arguments):
        queue = arguments["QueueUrl"].rpartition("/")[2].removeprefix("spillway-test-")
        entries = arguments.get("Entries", [arguments])
        return f"{operation} {queue} " + ", ".join(_entry(one) for one in entries)
    if operation == "batch_get_item":
        keys = next(iter(arguments["RequestItems"].values()))["Keys"]
        return f"{operation} " + ", ".join(f"{k['pk']['S']}/{k['sk']['S']}" for k in keys)
    return operation


def _entry(entry: dict[str, Any]) -> str:
    if "MessageBody" in entry:
        try:
            body = json.loads(entry["MessageBody"])
        except ValueError:
            body = {}
        if not body.get("payload"):
            return str(entry["MessageBody"])[:20]
        said = body["payload"].get("status") or body["payload"].get("reference", "")
        return f"{body['kind']} {body['id']} {said}"
    return f"{entry['ReceiptHandle'][:14]} {entry.get('VisibilityTimeout', '')}"


def _answer(answer: Any) -> str:
    if isinstance(answer, ClientError):
        return str(answer.response["Error"]["Code"])
    if isinstance(answer, dict) and answer.get("Failed"):
        return f"{len(answer['Failed'])} failed"
    if isinstance(answer, dict) and "Item" in answer:
        item = answer["Item"]
        return str(item.get("event", item.get("outcome", "found")))
    return "ok"

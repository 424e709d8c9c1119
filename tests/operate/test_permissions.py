"""docs/OPERATING.md says what each of these commands needs to be allowed: all of that is used, and
nothing else."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from botocore.client import BaseClient
from typer.testing import CliRunner

from chalicelib.ledger import DAY
from chalicelib.messages import MessageId
from chalicelib.table import Table
from spillway import cli
from spillway.operate import consent, dlq, unknown
from spillway.operate.backfill import fill
from spillway.operate.reconciliation import Reconciliation
from spillway.operate.replay import Replay
from spillway.stage import Stage
from tests.fakes import SECRETS, inbound
from tests.operate.world import NAME, PERSON, World
from tests.pages import DOCS
from tests.signing import twilio_event

HOUR = 3600.0
# Where an action is not called as the operation is.
ACTIONS = {
    "ListObjectsV2": "ListBucket",
    "GetBucketLifecycleConfiguration": "GetLifecycleConfiguration",
    "HeadObject": "GetObject",
    "SendMessageBatch": "SendMessage",
    "ChangeMessageVisibilityBatch": "ChangeMessageVisibility",
}


def documented(command: str) -> set[str]:
    page = (DOCS / "OPERATING.md").read_text().partition("\n## Who may run these\n")[2]
    (row,) = re.findall(rf"^\| `{command}` \| (.+) \|$", page, re.MULTILINE)
    return set(re.findall(r"`(\S+)`", row))


@pytest.fixture
def made(world: World, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The actions of all calls from now on."""
    found: set[str] = set()
    call = BaseClient._make_api_call  # type: ignore[attr-defined]

    def noted(self: Any, operation: str, arguments: dict[str, Any]) -> Any:
        service = self.meta.service_model.service_name
        found.add(f"{service}:{ACTIONS.get(operation, operation)}")
        return call(self, operation, arguments)

    monkeypatch.setattr(BaseClient, "_make_api_call", noted)
    monkeypatch.setattr(Stage, "runtime", lambda self: world.runtime)
    world.runtime.clock = time.time() - HOUR
    return found


def forget(stage: Stage) -> None:
    """What an earlier command has asked for is asked for again."""
    for name in ("keys", "urls"):
        stage.stores.__dict__.pop(name, None)


def spillway(monkeypatch: pytest.MonkeyPatch, stage: Stage, *arguments: str) -> Any:
    """A command on the stage; what it says as JSON, if it was asked to."""

    @contextmanager
    def named(name: str) -> Iterator[Stage]:
        yield stage

    for module in (consent, dlq, unknown):
        monkeypatch.setattr(module, "stage_named", named)
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout) if "--json" in arguments else None


def quarantine_and_texts(world: World) -> list[MessageId]:
    for number in range(3):
        world.text(f"heron {number}", f"SM-{number}")
        world.work()
    event = twilio_event({"SmsStatus": "heron"})
    assert world.receiver.webhook("twilio", event, signed_door=True).status == 200
    world.work()
    world.runtime.clock += 3 * HOUR
    return [
        MessageId(pk.partition("#")[2], sk.partition("#")[2])
        for pk, sk in world.items()
        if sk.startswith("IN#")
    ]


def test_what_a_reconciliation_needs(world: World, made: set[str]) -> None:
    # GIVEN something of all that it does
    first, second, third = quarantine_and_texts(world)
    table = Table(world.runtime, NAME)
    items = world.items()
    keys = {one: (f"C#{one.conversation}", f"IN#{one.message}") for one in (first, second, third)}
    s3, bucket = world.stage.aws.client("s3"), world.stage.stores.bucket
    # (One line twice, one item lost, one that names no object, one without an object and a reply.)
    for name in ("again", "other"):
        s3.copy_object(
            Bucket=bucket,
            Key=f"messages/2026/11/20/{name}.jsonl.gz",
            CopySource={"Bucket": bucket, "Key": items[keys[first]]["archive_key"]},
        )
    body = s3.get_object(Bucket=bucket, Key=items[keys[second]]["archive_key"])["Body"].read()
    s3.put_object(
        Bucket=bucket,
        Key="messages/2026/11/20/two.jsonl.gz",
        Body=body
        + s3.get_object(Bucket=bucket, Key=items[keys[first]]["archive_key"])["Body"].read(),
        ContentEncoding="gzip",
    )
    table.update(
        keys[second],
        "SET archive_key = :key",
        values={":key": "messages/2026/11/20/two.jsonl.gz"},
    )
    table.update(keys[first], "SET archive_key = :key", values={":key": "messages/no"})
    for kind in ("IN", "OUT"):
        world.runtime.dynamodb.delete_item(
            TableName=f"spillway-{NAME}",
            Key={"pk": {"S": keys[third][0]}, "sk": {"S": f"{kind}#{third.message}"}},
        )
    lost = {**items[keys[third]], "pk": "C#" + "0" * 24, "archive_key": "messages/no"}
    table.insert(lost)
    world.put_aside("processing-dlq", "heron")
    # WHEN it is run, THEN it makes these calls
    made.clear()
    found = Reconciliation(world.stage, wait=0.1).run()
    assert all(found.put_right[kind] for kind in ("surplus_line", "not_in_table", "wrong_object"))
    assert found.put_right["never_answered"]
    assert found.open["not_archived"]
    assert made == documented("reconcile")


def test_what_a_backfill_needs(world: World, made: set[str]) -> None:
    listed = {
        "sid": "SM-x",
        "account_sid": "AC" + "0" * 32,
        "from": "+14155550142",
        "to": "+14155550123",
        "body": "heron",
        "direction": "inbound",
        "date_created": "Tue, 24 Nov 2026 06:30:00 +0000",
    }
    world.runtime._answer = lambda request: httpx.Response(200, json={"messages": [listed]})
    forget(world.stage)
    world.runtime.clock = 1_795_600_000.0
    secrets = world.stage.aws.client("secretsmanager")
    world.runtime.__dict__["secretsmanager"], kept = secrets, world.runtime.vault
    secrets.create_secret(
        Name=f"spillway/{NAME}/twilio",
        SecretString='{"account_sid": "AC1", "auth_tokens": ["x"]}',
    )
    made.clear()
    try:
        done = fill(world.stage, "twilio", world.runtime.clock - 7 * DAY)
    finally:
        world.runtime.__dict__["secretsmanager"] = kept
        secrets.delete_secret(SecretId=f"spillway/{NAME}/twilio", ForceDeleteWithoutRecovery=True)
    assert len(done.taken_up) == 1
    assert made - {"secretsmanager:DeleteSecret"} == documented("backfill")


def test_what_a_replay_needs(world: World, made: set[str]) -> None:
    first, *_ = quarantine_and_texts(world)
    s3 = world.stage.aws.client("s3")
    (key,) = (key for key in world.objects() if key.startswith("quarantine/"))
    # (One that can be read now, of no kind that is kept.)
    body = (
        s3.get_object(Bucket=world.stage.stores.bucket, Key=key)["Body"]
        .read()
        .replace(b'"provider": "twilio"', b'"provider": "sandbox"')
    )
    s3.put_object(
        Bucket=world.stage.stores.bucket,
        Key=key,
        Body=re.sub(rb'"body": "[^"]*"', b'"body": "eyJldmVudHMiOiBbXX0="', body),
    )
    forget(world.stage)
    made.clear()
    one = Replay(world.stage, rate=1000.0)
    one.since(world.runtime.clock - DAY, None)
    one.messages([str(first)])
    one.quarantined()
    assert one.done.good
    assert made == documented("replay")


def test_what_dead_letters_need(
    world: World, made: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN one to be put back, and one to be dropped
    again, never = (inbound("heron", id_=name, received_at=world.runtime.clock) for name in "ab")
    world.put_aside("processing-dlq", again, never)
    world.runtime.clock += 2 * HOUR
    forget(world.stage)
    made.clear()
    spillway(monkeypatch, world.stage, "dlq", "list")
    spillway(monkeypatch, world.stage, "dlq", "show", never.id)
    spillway(monkeypatch, world.stage, "dlq", "drop", "--id", never.id, "--yes")
    spillway(monkeypatch, world.stage, "dlq", "redrive")
    assert world.letters() == []
    assert made == documented("dlq")


def test_what_unknown_sends_need(
    world: World, made: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a send whose answer was lost, and a Twilio that lists nothing
    world.refused = "You wrote: heron"
    world.text("heron", "SM-1")
    world.work()
    world.runtime.clock += 2 * HOUR
    answers = httpx.MockTransport(lambda request: httpx.Response(200, json={"messages": []}))
    secrets = world.stage.aws.client("secretsmanager")
    monkeypatch.setitem(world.runtime.__dict__, "http", httpx.Client(transport=answers))
    monkeypatch.setitem(world.runtime.__dict__, "secretsmanager", secrets)
    name = f"spillway/{NAME}/twilio"
    secrets.create_secret(Name=name, SecretString=json.dumps(SECRETS["twilio"]))
    forget(world.stage)
    made.clear()
    try:
        told = spillway(monkeypatch, world.stage, "unknown", "list", "--json")
        (reference,) = (one["reference"] for one in told["listed"])
        said = spillway(monkeypatch, world.stage, "unknown", "show", reference, "--json")
        assert said["provider_says"]["answer"] == "not_sent"
        spillway(
            monkeypatch,
            world.stage,
            *("unknown", "settle", reference, "--resend", "--attempt", "1", "--json"),
        )
    finally:
        secrets.delete_secret(SecretId=name, ForceDeleteWithoutRecovery=True)
    assert made - {"secretsmanager:DeleteSecret"} == documented("unknown")


def test_what_the_list_of_consent_needs(
    world: World, made: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # GIVEN a stage of which somebody hears, and the functions whose settings are asked for
    assert world.stage.local is not None
    settings = {
        role: {**variables, "EVENT_BUS": "spillway-ops"}
        for role, variables in world.stage.local["settings"].items()
    }
    heard = replace(world.stage, local={**world.stage.local, "settings": settings})
    asked: set[str] = set()
    variables = Stage.variables

    def noted(self: Stage, role: str) -> dict[str, str]:
        asked.add(role)
        return variables(self, role)

    monkeypatch.setattr(Stage, "variables", noted)
    numbers = tmp_path / "list.txt"
    numbers.write_text(f"{PERSON}\n")
    at = ("--source", "mail", "--at", str(world.runtime.clock))
    forget(world.stage)
    made.clear()
    # WHEN it is only read, THEN that is little
    spillway(monkeypatch, heard, "consent", "show", PERSON)
    assert (made, asked) == (
        {"dynamodb:GetItem", "secretsmanager:GetSecretValue"},
        {"sender"},
    )
    made.clear()
    asked.clear()
    spillway(monkeypatch, heard, "consent", "export", str(tmp_path / "out.csv"))
    assert (made, asked) == ({"dynamodb:DescribeTable", "dynamodb:Scan"}, {"sender"})
    # WHEN it is added to, THEN the rest is needed
    forget(world.stage)
    spillway(monkeypatch, heard, "consent", "show", PERSON)
    spillway(monkeypatch, heard, "consent", "stop", PERSON, *at)
    world.runtime.clock += HOUR
    spillway(monkeypatch, heard, "consent", "start", PERSON, "--yes", "--source", "mail")
    spillway(monkeypatch, heard, "consent", "import", str(numbers), "--event", "stop", *at)
    assert made == documented("consent")
    assert asked == {"sender", "processing"}

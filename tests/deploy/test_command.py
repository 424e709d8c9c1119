"""A deployment as a whole, against an emulated account; the app in it is a small one, which takes
Chalice no time. The real one is deployed by tests/e2e."""

from __future__ import annotations

import io
import itertools
import json
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from spillway.aws import Aws, of_emulator
from spillway.cli import app
from spillway.deploy import command, package
from spillway.deploy.command import Deployment
from spillway.deploy.stacks import Stack
from spillway.problem import Problem
from spillway.project import PROJECT
from tests import emulated, stages

NUMBERS = "+14155550123=twilio,+14155550199=telnyx"


def function(name: str, queue: str) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "FunctionName": {"Fn::Sub": f"spillway-${{Stage}}{name}"},
        "Handler": "app.handler",
        "Runtime": "python3.11",
        "CodeUri": "./deployment.zip",
    }
    if queue:
        properties["Environment"] = {"Variables": {"REPORTS": {"Ref": "ReportBatchItemFailures"}}}
        arn = "arn:${AWS::Partition}:sqs:${AWS::Region}:${AWS::AccountId}:spillway-${Stage}-"
        properties["Events"] = {
            "Queue": {
                "Type": "SQS",
                "Properties": {
                    "Queue": {"Fn::Sub": arn + queue},
                    "BatchSize": 10,
                    "FunctionResponseTypes": ["ReportBatchItemFailures"],
                },
            }
        }
    return {"Type": "AWS::Serverless::Function", "Properties": properties}


TEMPLATE: dict[str, Any] = {
    "Transform": "AWS::Serverless-2016-10-31",
    "Parameters": {
        "Stage": {"Type": "String"},
        "AlarmEmail": {"Type": "String", "Default": ""},
        "ReportBatchItemFailures": {"Type": "String", "Default": "true"},
    },
    "Resources": {
        "APIHandler": function("", ""),
        "Process": function("-process", "processing"),
        "Send": function("-send", "outbound.fifo"),
        "Alarms": {
            "Type": "AWS::SNS::Topic",
            "Properties": {"DisplayName": {"Fn::Sub": "told: ${AlarmEmail}"}},
        },
    },
    "Outputs": {"EndpointURL": {"Value": "https://api.example.com/api/"}},
}


def validated(template: dict[str, Any]) -> dict[str, Any]:
    """The template with what the overlay of Step Functions has, as far as a deployment sees it."""
    made = deepcopy(template)
    made["Parameters"]["Providers"] = {"Type": "String"}
    made["Resources"]["Validation"] = {
        "Type": "AWS::SNS::Topic",
        "Properties": {"DisplayName": {"Ref": "Providers"}},
    }
    return made


class World:
    """A project, its emulated account, and what the console said."""

    def __init__(self, aws: Aws, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.aws = aws
        self.project = project
        self.template = deepcopy(TEMPLATE)
        self.said = ""
        zip_ = project / "deployment.zip"
        with zipfile.ZipFile(zip_, "w") as archive:
            archive.writestr("app.py", "def handler(event, context):\n    return None\n")
        monkeypatch.setattr(
            package,
            "build",
            lambda *_, validation: package.Package(
                validated(self.template) if validation else deepcopy(self.template), zip_
            ),
        )

    def deploy(self, stage: str, alarm_email: str | None = None, **how: Any) -> dict[str, Any]:
        console = Console(file=io.StringIO(), width=200)
        one = Deployment(self.project, stage, self.aws, console, pause=0.05, **how)
        try:
            return one.run(alarm_email)
        finally:
            assert isinstance(console.file, io.StringIO)
            self.said = console.file.getvalue()

    def reports(self, stage: str) -> list[str]:
        """What the functions behind the queues were told of reporting."""
        found = []
        for name in ("process", "send"):
            settings = self.aws.client("lambda").get_function_configuration(
                FunctionName=f"spillway-{stage}-{name}"
            )
            found.append(settings["Environment"]["Variables"]["REPORTS"])
        return found

    def stacks(self) -> set[str]:
        pages = self.aws.client("cloudformation").get_paginator("describe_stacks").paginate()
        return {stack["StackName"] for page in pages for stack in page["Stacks"]}


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    with emulated.ministack(tmp_path_factory.mktemp("ministack")) as endpoint:
        account = of_emulator(endpoint)
        yield account
        account.close()


@pytest.fixture
def world(aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """The project's own templates and settings, with every stage that a test names filled in."""
    (tmp_path / "infra").mkdir()
    for name in ("data.yaml", "account.yaml"):
        (tmp_path / "infra" / name).write_text((PROJECT / "infra" / name).read_text())
    (tmp_path / ".chalice").mkdir()
    shutil.copy(PROJECT / ".chalice" / "config.json", tmp_path / ".chalice")
    shutil.copytree(PROJECT / "infra" / "policies", tmp_path / "infra" / "policies")
    write_config(tmp_path)
    return World(aws, tmp_path, monkeypatch)


def write_config(project: Path, **values: str) -> None:
    for stage in (
        "one",
        "two",
        "three",
        "four",
        "five",
        "five-yes",
        "six",
        "seven",
        "ten",
        "eleven",
    ):
        stages.add(project, stage)
        filled = {"NUMBERS": NUMBERS, "CREDENTIAL_HASHES": "{}", "SEND_ONLY_TO": "*", **values}
        stages.set_variables(project, stage, **filled)


def test_a_stage_is_deployed_and_deployed_again(world: World) -> None:
    stages.set_variables(world.project, "one", EVENTS_URL="https://events.example.com/hook")
    # GIVEN an account in which nothing is, and in which API Gateway may not write logs
    # WHEN a dry run is made, THEN everything would be added, and nothing is
    dry = world.deploy("one", dry_run=True)
    assert {name: bool(changes) for name, changes in dry["changes"].items()} == {
        "spillway-one-data": True,
        "spillway-account": True,
        "spillway-one": True,
    }
    assert world.stacks() == set()
    assert "Nothing was changed." in world.said
    # WHEN it is deployed, THEN both stacks are there, and the account's own
    result = world.deploy("one")
    assert world.stacks() == {"spillway-one-data", "spillway-account", "spillway-one"}
    # AND it says what to enter, and what is missing
    assert result["webhooks"] == {
        "twilio": "https://api.example.com/api/webhooks/twilio/signed#rc=3&rp=5xx,ct,rt",
        "telnyx": "https://api.example.com/api/webhooks/telnyx/signed",
    }
    assert all(url in world.said for url in result["webhooks"].values())
    assert [note.partition(",")[0] for note in result["notes"]] == [
        "EVENTS_URL is set and there is no key to sign with",
        "twilio has no secret yet",
        "telnyx has no secret yet",
    ]
    # AND the hash key was made, which the next deployment leaves alone
    secrets = world.aws.client("secretsmanager")
    key = secrets.get_secret_value(SecretId="spillway/one/keys")["SecretString"]
    assert len(json.loads(key)["hash_key"]) == 64
    secrets.create_secret(Name="spillway/one/twilio", SecretString="{}")
    again = world.deploy("one")
    assert set(map(tuple, again["changes"].values())) == {()}
    assert secrets.get_secret_value(SecretId="spillway/one/keys")["SecretString"] == key
    assert [note.partition(" ")[0] for note in again["notes"]] == ["EVENTS_URL", "telnyx"]


def test_the_archive_lives_for_as_long_as_the_table(world: World) -> None:
    stack = Stack(world.aws, "spillway-eleven-data", pause=0.05)

    def lives(days: int, **how: Any) -> tuple[str, str]:
        stages.set_variables(world.project, "eleven", MESSAGE_DAYS=str(days))
        world.deploy("eleven", **how)
        found = stack.parameters()
        return found["ArchiveDays"], found["ArchiveColdDays"]

    # GIVEN a stage whose messages are kept for other than usual, from its first deployment on
    assert lives(120) == ("120", "90")
    # AND a parameter of its data that somebody changed by hand
    plan = stack.plan(
        (world.project / "infra" / "data.yaml").read_text(),
        {"Stage": "eleven", "ArchiveDays": "120", "DeletionProtection": "false"},
    )
    assert plan is not None
    plan.execute(lambda event: None)
    # WHEN it is deployed for a longer life, THEN the archive's is longer, and that parameter stays
    # (MiniStack alone does not know that a bucket stays when its lifecycle changes.)
    assert lives(130, yes=True) == ("130", "90")
    assert stack.parameters()["DeletionProtection"] == "false"
    # WHEN it is for a shorter one, THEN nothing is deleted unasked
    for days in (90, 31):
        with pytest.raises(Problem, match=rf"MESSAGE_DAYS is {days}, .* Nothing was changed"):
            lives(days)
        assert stack.parameters()["ArchiveDays"] != str(days)
        assert lives(days, dry_run=True) != (str(days), str(days - 1))
        assert f"MESSAGE_DAYS is {days}, and the archive keeps" in world.said
        assert lives(days, yes=True) == (str(days), str(days - 1))


def test_whoever_is_told_of_alarms_stays_told(world: World) -> None:
    def told() -> str:
        (found,) = world.aws.client("cloudformation").describe_stacks(StackName="spillway-two")[
            "Stacks"
        ]
        values = {one["ParameterKey"]: one["ParameterValue"] for one in found["Parameters"]}
        return str(values["AlarmEmail"])

    world.deploy("two", "somebody@example.com")
    world.deploy("two")
    assert told() == "somebody@example.com"
    world.deploy("two", "")
    assert told() == ""


def test_step_functions_validates_while_it_is_asked_for(world: World) -> None:
    # GIVEN a stage that is deployed with the option, THEN it knows the stage's providers
    world.deploy("seven", validation=True)
    (found,) = world.aws.client("cloudformation").describe_stacks(StackName="spillway-seven")[
        "Stacks"
    ]
    values = {one["ParameterKey"]: one["ParameterValue"] for one in found["Parameters"]}
    assert values["Providers"] == "twilio,telnyx"
    # WHEN it is deployed without, THEN it goes, and the list of changes says so
    without = world.deploy("seven")
    assert without["changes"]["spillway-seven"] == ["Remove Validation"]
    assert "Remove  Validation (AWS::SNS::Topic)" in world.said
    # AND once gone it is no change
    assert world.deploy("seven")["changes"]["spillway-seven"] == []


@pytest.mark.parametrize(
    ("options", "asked"), [([], False), (["--validate-with-step-functions"], True)]
)
def test_step_functions_is_off_unless_asked_for(
    aws: Aws, monkeypatch: pytest.MonkeyPatch, options: list[str], asked: bool
) -> None:
    made: list[bool] = []

    class Noted(Deployment):
        def run(self, alarm_email: str | None = None) -> dict[str, Any]:
            made.append(self.validation)
            return {}

    monkeypatch.setattr(command, "Deployment", Noted)
    monkeypatch.setattr("spillway.aws.of_environment", lambda: aws)
    done = CliRunner().invoke(app, ["deploy", "--stage", "one", *options])
    assert (done.exit_code, made) == (0, [asked])


def test_functions_report_when_their_mappings_have_been_seen_to_listen(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a new stack, THEN both are there from the beginning
    world.deploy("three")
    assert world.reports("three") == ["true", "true"]
    # GIVEN a stack whose mapping takes no reports, as a plain `chalice deploy` leaves it
    (process, *_) = world.aws.client("lambda").list_event_source_mappings(
        FunctionName="spillway-three-process"
    )["EventSourceMappings"]
    lambda_ = world.aws.client("lambda")
    lambda_.update_event_source_mapping(UUID=process["UUID"], FunctionResponseTypes=[])
    # WHEN it is deployed
    seen: list[list[str]] = []
    wait = Deployment._wait_for_mappings

    def mended(self: Deployment) -> None:
        seen.append(world.reports("three"))
        lambda_.update_event_source_mapping(
            UUID=process["UUID"], FunctionResponseTypes=["ReportBatchItemFailures"]
        )
        wait(self)

    monkeypatch.setattr(Deployment, "_wait_for_mappings", mended)
    result = world.deploy("three")
    # THEN nobody reports until the mapping listens, and then both do
    assert seen == [["false", "false"]]
    assert world.reports("three") == ["true", "true"]
    assert len(result["changes"]["spillway-three"]) == 4


def test_a_mapping_that_never_listens_leaves_them_as_they_are(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.deploy("four")
    monkeypatch.setattr(Deployment, "_mappings_listen", lambda self: False)
    monkeypatch.setattr(command, "_SEEN_WITHIN", 0.0)
    with pytest.raises(Problem, match="do not ask for partial reports"):
        world.deploy("four")
    assert world.reports("four") == ["false", "false"]


@pytest.mark.parametrize(("yes", "goes"), [(False, False), (True, True)])
def test_nothing_that_holds_data_goes_unasked(world: World, yes: bool, goes: bool) -> None:
    # GIVEN a deployed stage, and a template of its data that lacks a queue
    stage = f"five{'-yes' if yes else ''}"
    world.deploy(stage)
    data = world.project / "infra" / "data.yaml"
    text = data.read_text()
    begin, end = text.index("  CodeBucket:"), text.index("Outputs:")
    output = text.index("  CodeBucketName:"), text.index("  ProcessingQueueUrl:")
    data.write_text(text[:begin] + text[end : output[0]] + text[output[1] :])
    before = resources(world, f"spillway-{stage}-data")
    # WHEN it is deployed where nobody can be asked, THEN it says what would go, and nothing goes
    if goes:
        with pytest.raises(KeyError):  # (what comes after it wants that bucket)
            world.deploy(stage, yes=True)
    else:
        with pytest.raises(Problem, match=r"replace or delete CodeBucket \(AWS::S3::Bucket\)"):
            world.deploy(stage)
    after = resources(world, f"spillway-{stage}-data")
    assert before - after == ({"CodeBucket"} if goes else set())


def resources(world: World, stack: str) -> set[str]:
    found = world.aws.client("cloudformation").describe_stack_resources(StackName=stack)
    return {one["LogicalResourceId"] for one in found["StackResources"]}


class Killed(BaseException):
    """Whoever runs the command is gone."""


@contextmanager
def hooked(aws: Aws, when: str, hook: Callable[..., None]) -> Iterator[None]:
    """Calls it at each call to AWS that a destruction makes."""
    services = ("cloudformation", "dynamodb", "s3", "sqs", "secretsmanager")
    events = [aws.client(service).meta.events for service in services]
    for one in events:
        one.register(when, hook)
    yield
    for one in events:
        one.unregister(when, hook)


def with_data(world: World, stage: str) -> None:
    """A stage's data stack, with something in it."""
    text = (PROJECT / "infra" / "data.yaml").read_text()
    plan = Stack(world.aws, f"spillway-{stage}-data", pause=0.05).plan(text, {"Stage": stage})
    assert plan is not None
    plan.execute(lambda event: None)
    for bucket in (one for one in left(world, stage) if one.endswith(world.aws.region)):
        world.aws.client("s3").put_object(Bucket=bucket, Key="messages/x", Body=b"x")
    world.aws.client("secretsmanager").create_secret(
        Name=f"spillway/{stage}/keys", SecretString="{}"
    )


def left(world: World, stage: str) -> set[str]:
    """What there is of a stage."""
    aws = world.aws
    found = {stack for stack in world.stacks() if stack.startswith(f"spillway-{stage}")}
    found |= set(aws.client("dynamodb").list_tables()["TableNames"])
    found |= {one["Name"] for one in aws.client("s3").list_buckets()["Buckets"]}
    found |= set(aws.client("sqs").list_queues().get("QueueUrls", ()))
    found |= {one["Name"] for one in aws.client("secretsmanager").list_secrets()["SecretList"]}
    return {one for one in found if re.search(rf"spillway[-/]{stage}($|[-/])", one)}


def destroy(world: World, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spillway.aws.of_environment", lambda: world.aws)
    command.destroy(stage, data=True, confirm=stage, yes=True)


def test_a_destruction_goes_on_where_one_before_it_was_interrupted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def dies(model: Any, **_: Any) -> None:
        if re.match("Delete|Update", model.name):
            done.append(model.name)
            if len(done) == dies_after:
                raise Killed

    # GIVEN a stage whose destruction dies after its first change, or its second, …
    for dies_after in itertools.count(1):
        stage = f"killed-{dies_after}"
        with_data(world, stage)
        assert len(left(world, stage)) == 9
        done.clear()
        with hooked(world.aws, "after-call", dies), suppress(Killed):
            destroy(world, stage, monkeypatch)
        # WHEN it is run again, THEN nothing is left
        destroy(world, stage, monkeypatch)
        assert left(world, stage) == set()
        if len(done) < dies_after:
            break
    # (The stack, the table twice, two buckets twice each, four queues, the secret.)
    assert len(done) == 12


def test_a_table_is_deleted_when_it_is_not_being_changed_any_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a table that is being changed for a while after it was told to let itself be deleted
    with_data(world, "eight")
    seen: list[str] = []

    def changes(model: Any, parsed: Any, **_: Any) -> None:
        if model.name == "DescribeTable" and "Table" in parsed and "UpdateTable" in seen:
            if seen.count("UPDATING") < 1:
                parsed["Table"]["TableStatus"] = "UPDATING"
            seen.append(parsed["Table"]["TableStatus"])
        elif model.name in ("UpdateTable", "DeleteTable"):
            seen.append(model.name)

    # WHEN it is destroyed, THEN it is waited for
    with hooked(world.aws, "after-call.dynamodb", changes):
        destroy(world, "eight", monkeypatch)
    assert seen[:4] == ["UpdateTable", "UPDATING", "ACTIVE", "DeleteTable"]
    assert left(world, "eight") == set()


def test_a_table_that_is_being_deleted_is_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a table that somebody before deleted, and that is not gone yet
    with_data(world, "nine")
    seen: list[str] = []

    def deleting(model: Any, parsed: Any, **_: Any) -> None:
        seen.append(model.name)
        if seen == ["DescribeTable"]:
            parsed["Table"]["TableStatus"] = "DELETING"
            world.aws.client("dynamodb").update_table(
                TableName="spillway-nine", DeletionProtectionEnabled=False
            )
            world.aws.client("dynamodb").delete_table(TableName="spillway-nine")

    with hooked(world.aws, "after-call.dynamodb", deleting):
        destroy(world, "nine", monkeypatch)
    assert seen == ["DescribeTable", "UpdateTable", "DeleteTable", "DescribeTable"]
    assert left(world, "nine") == set()


def test_a_stage_that_was_destroyed_can_be_deployed_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in emulated.environment(world.aws.endpoint).items():
        monkeypatch.setenv(name, value)
    client = world.aws.client("secretsmanager")

    def stored(name: str) -> Any:
        found = client.get_secret_value(SecretId=f"spillway/ten/{name}")
        return json.loads(found["SecretString"])

    def secret(token: str) -> dict[str, Any]:
        value = {"account_sid": "AC" + "0" * 32, "auth_tokens": [token * 32]}
        done = CliRunner().invoke(
            app, ["secret", "set", "twilio", "--stage", "ten"], input=json.dumps(value)
        )
        assert done.exit_code == 0, done.output
        return value

    # GIVEN a stage with its secrets that is destroyed with its data
    world.deploy("ten")
    secret("a")
    key = stored("keys")
    destroy(world, "ten", monkeypatch)
    assert left(world, "ten") == set()
    # WHEN it is deployed again within seven days, THEN it has the key by which lists and backups of
    # it know people, and its providers' secrets are to be set
    result = world.deploy("ten")
    assert stored("keys") == key
    assert any(note.startswith("twilio has no secret yet") for note in result["notes"])
    # AND they can be
    new = secret("b")
    assert stored("twilio") == new
    # AND the same once more
    destroy(world, "ten", monkeypatch)
    world.deploy("ten")
    assert stored("keys") == key


def test_a_lost_hash_key_is_not_made_anew(world: World) -> None:
    # GIVEN a stage with data, whose key somebody deletes
    world.deploy("six")
    world.aws.client("secretsmanager").delete_secret(SecretId="spillway/six/keys")
    # WHEN it is deployed, THEN it says what hangs on it, and makes no other
    with pytest.raises(Problem, match=r"spillway/six/keys is gone.*restore-secret"):
        world.deploy("six")
    assert "DeletedDate" in world.aws.client("secretsmanager").describe_secret(
        SecretId="spillway/six/keys"
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"NUMBERS": "FILL IN: …", "CREDENTIAL_HASHES": "FILL IN: …"},
            ["api_handler: NUMBERS: still to be filled in", "authorize: CREDENTIAL_HASHES: still"],
        ),
        ({"REPLY_TIMEOUT": "31"}, ["send: REPLY_TIMEOUT: out of range; it must be a number"]),
        ({"PROVIDERS": "pigeon"}, ["api_handler: PROVIDERS", "process: PROVIDERS"]),
    ],
)
def test_wrong_settings_are_named_before_anything_happens(
    world: World, values: dict[str, str], expected: list[str]
) -> None:
    write_config(world.project, **values)
    before = world.stacks()
    with pytest.raises(Problem) as raised:
        world.deploy("one")
    assert all(line in str(raised.value) for line in expected)
    assert world.stacks() == before


def test_a_provider_whose_secret_nobody_may_read_is_named(world: World) -> None:
    # GIVEN a provider more in PROVIDERS, and policies that do not know of it
    stages.set_variables(world.project, "one", PROVIDERS="twilio,telnyx,sandbox")
    before = world.stacks()
    with pytest.raises(Problem) as raised:
        world.deploy("one")
    for name in ("api_handler", "process", "send"):
        line = f"{name}-one.json: arn:aws:secretsmanager:*:*:secret:spillway/one/sandbox-??????"
        assert line in str(raised.value)
    assert world.stacks() == before
    # WHEN they do, THEN it is deployed
    stages.let_read(world.project, "one", "sandbox")
    assert "sandbox" in world.deploy("one", dry_run=True)["webhooks"]


def test_a_stage_that_is_not_there_is_named_with_those_that_are(world: World) -> None:
    with pytest.raises(Problem, match="has no stage nowhere; it has local, dev, prod"):
        world.deploy("nowhere")

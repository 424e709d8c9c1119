"""What data.yaml and the app become when they are deployed, to a real emulator, and what templates
and settings must agree on.

MiniStack ignores the table's TTL, point-in-time recovery and encryption and the bucket's lifecycle
when they come through CloudFormation; those are held against the template itself.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cfnlint.decode import decode

from spillway.aws import of_emulator
from spillway.deploy import command
from tests import emulated
from tests.fakes import settings as load
from tests.iam import policy

PROJECT = Path(__file__).parent.parent
DATA = PROJECT / "infra" / "data.yaml"
CONFIG = json.loads((PROJECT / ".chalice" / "config.json").read_text())
STAGES = sorted(CONFIG["stages"])
STACK = "spillway-local-data"
ACCOUNT = "000000000000"
REGION = "us-east-1"
ARCHIVE = f"spillway-local-archive-{ACCOUNT}-{REGION}"

# The batching window of the processing queue, in app.py.
WINDOW = 1

TEMPLATE: dict[str, Any] = decode(str(DATA))[0]
DEFAULTS = {
    name: parameter["Default"]
    for name, parameter in TEMPLATE["Parameters"].items()
    if "Default" in parameter
}


def properties(resource: str) -> Any:
    return TEMPLATE["Resources"][resource]["Properties"]


# --- what the files must agree on ------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameter", "function", "window"),
    [("ProcessingVisibility", "process", WINDOW), ("OutboundVisibility", "send", 0)],
)
def test_a_message_stays_hidden_for_six_time_outs(
    parameter: str, function: str, window: int
) -> None:
    # https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-configure.html
    time_out = CONFIG["lambda_functions"][function]["lambda_timeout"]
    assert DEFAULTS[parameter] >= 6 * time_out + window


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "local"])
@pytest.mark.parametrize("function", ["process", "send"])
def test_the_archive_outlives_what_the_table_says_of_it(stage: str, function: str) -> None:
    settings = CONFIG["stages"][stage]["lambda_functions"][function]["environment_variables"]
    assert DEFAULTS["ArchiveDays"] >= int(settings["MESSAGE_DAYS"])


def test_every_message_days_is_a_life_that_the_archive_may_have() -> None:
    parameters = TEMPLATE["Parameters"]
    load("sender", MESSAGE_DAYS=str(parameters["ArchiveDays"]["MinValue"]))
    # (Where it is fewer, `spillway deploy` lets objects move a day before they are deleted.)
    assert DEFAULTS["ArchiveColdDays"] == command._COLD_DAYS
    assert parameters["ArchiveColdDays"]["MinValue"] < parameters["ArchiveDays"]["MinValue"]


def test_nothing_that_holds_data_goes_with_its_stack() -> None:
    assert {
        name: (resource.get("DeletionPolicy"), resource.get("UpdateReplacePolicy"))
        for name, resource in TEMPLATE["Resources"].items()
    } == dict.fromkeys(TEMPLATE["Resources"], ("RetainExceptOnCreate", "Retain"))


@pytest.mark.parametrize(
    ("resource", "name", "expected"),
    [
        ("Table", "TimeToLiveSpecification", {"AttributeName": "expires_at", "Enabled": True}),
        ("Table", "PointInTimeRecoverySpecification", {"PointInTimeRecoveryEnabled": True}),
        ("Table", "SSESpecification", {"SSEEnabled": True}),
    ],
)
def test_what_the_emulator_ignores_is_in_the_template(
    resource: str, name: str, expected: object
) -> None:
    assert properties(resource)[name] == expected


def test_the_archive_grows_cold_expires_and_keeps_no_half_uploads() -> None:
    rules = {
        rule["Id"]: rule for rule in properties("ArchiveBucket")["LifecycleConfiguration"]["Rules"]
    }
    assert {rule["Status"] for rule in rules.values()} == {"Enabled"}
    assert rules["cold"]["Transitions"] == [
        {"StorageClass": "STANDARD_IA", "TransitionInDays": {"Ref": "ArchiveColdDays"}}
    ]
    assert rules["expired"]["ExpirationInDays"] == {"Ref": "ArchiveDays"}
    assert rules["abandoned-uploads"]["AbortIncompleteMultipartUpload"] == {
        "DaysAfterInitiation": 1
    }
    assert DEFAULTS["ArchiveColdDays"] < DEFAULTS["ArchiveDays"]


# --- on the emulator ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A MiniStack of our own on a free port, with the data stack of stage `local` in it."""
    variables = {
        # Its events do not say under which domain name a request came.
        "PUBLIC_URL": "https://sms.example.com",
        "PROVIDERS": "twilio,telnyx",
        "NUMBERS": "+14155550123=twilio",
        "SEND_ONLY_TO": "*",
        "CREDENTIAL_HASHES": json.dumps({"api": ["0" * 64]}),
    }
    with emulated.ministack(tmp_path_factory.mktemp("emulator"), variables) as url:
        create_stack(url, STACK, DATA.read_text(), Stage="local", DeletionProtection="false")
        for name, secret in SECRETS.items():
            of_emulator(url).client("secretsmanager").create_secret(
                Name=f"spillway/local/{name}", SecretString=json.dumps(secret)
            )
        yield url


# The receiver fetches them when it starts.
SECRETS = {
    "keys": {"hash_key": "0" * 64},
    "twilio": {"account_sid": "AC" + "0" * 32, "auth_tokens": ["0" * 32]},
    "telnyx": {"api_key": "KEY0", "public_keys": ["A" * 43 + "="]},
}


def create_stack(endpoint: str, name: str, template: str, **parameters: str) -> None:
    cloudformation = of_emulator(endpoint).client("cloudformation")
    cloudformation.create_stack(
        StackName=name,
        TemplateBody=template,
        Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
        Parameters=[
            {"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()
        ],
    )
    deadline = time.monotonic() + 30
    while (stack := cloudformation.describe_stacks(StackName=name)["Stacks"][0])[
        "StackStatus"
    ].endswith("IN_PROGRESS"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert stack["StackStatus"] == "CREATE_COMPLETE", stack


def outputs(endpoint: str) -> dict[str, str]:
    stacks = (
        of_emulator(endpoint).client("cloudformation").describe_stacks(StackName=STACK)["Stacks"]
    )
    return {output["OutputKey"]: output["OutputValue"] for output in stacks[0]["Outputs"]}


KEPT = {
    "MessageRetentionPeriod": str(14 * 86_400),
    "MaximumMessageSize": str(1024 * 1024),
    "SqsManagedSseEnabled": "true",
}
PER_CONVERSATION = {
    "FifoQueue": "true",
    "ContentBasedDeduplication": "false",
    "DeduplicationScope": "messageGroup",
    "FifoThroughputLimit": "perMessageGroupId",
}


@pytest.mark.parametrize(
    ("queue", "expected"),
    [
        ("processing", {**KEPT, "VisibilityTimeout": "361"}),
        ("processing-dlq", KEPT),
        ("outbound.fifo", {**KEPT, **PER_CONVERSATION, "VisibilityTimeout": "360"}),
        ("outbound-dlq.fifo", {**KEPT, **PER_CONVERSATION}),
    ],
)
def test_queues(endpoint: str, queue: str, expected: dict[str, str]) -> None:
    assert expected.items() <= attributes(endpoint, queue).items()


@pytest.mark.parametrize(
    ("queue", "dead_letters"),
    [("processing", "processing-dlq"), ("outbound.fifo", "outbound-dlq.fifo")],
)
def test_a_queue_and_its_dead_letter_queue_know_each_other(
    endpoint: str, queue: str, dead_letters: str
) -> None:
    source, target = attributes(endpoint, queue), attributes(endpoint, dead_letters)
    redrive = json.loads(source["RedrivePolicy"])
    assert redrive["deadLetterTargetArn"] == target["QueueArn"]
    assert int(redrive["maxReceiveCount"]) == 1000
    assert json.loads(target["RedriveAllowPolicy"]) == {
        "redrivePermission": "byQueue",
        "sourceQueueArns": [source["QueueArn"]],
    }


def attributes(endpoint: str, queue: str) -> dict[str, str]:
    sqs = of_emulator(endpoint).client("sqs")
    url = sqs.get_queue_url(QueueName=f"spillway-local-{queue}")["QueueUrl"]
    found: dict[str, str] = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])[
        "Attributes"
    ]
    return found


def test_the_table(endpoint: str) -> None:
    table = (
        of_emulator(endpoint).client("dynamodb").describe_table(TableName="spillway-local")["Table"]
    )
    assert table["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
    assert table["DeletionProtectionEnabled"] is False
    assert table["KeySchema"] == [
        {"AttributeName": "pk", "KeyType": "HASH"},
        {"AttributeName": "sk", "KeyType": "RANGE"},
    ]
    assert {
        one["AttributeName"]: one["AttributeType"] for one in table["AttributeDefinitions"]
    } == {
        "pk": "S",
        "sk": "S",
        "unknown_bucket": "S",
        "unknown_since": "N",
    }
    (index,) = table["GlobalSecondaryIndexes"]
    assert index["IndexName"] == "unknown"
    assert [key["AttributeName"] for key in index["KeySchema"]] == [
        "unknown_bucket",
        "unknown_since",
    ]
    assert index["Projection"]["ProjectionType"] == "ALL"


def test_the_bucket_is_encrypted_and_private(endpoint: str) -> None:
    s3 = of_emulator(endpoint).client("s3")
    (encryption,) = s3.get_bucket_encryption(Bucket=ARCHIVE)["ServerSideEncryptionConfiguration"][
        "Rules"
    ]
    assert encryption["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    blocks = s3.get_public_access_block(Bucket=ARCHIVE)["PublicAccessBlockConfiguration"]
    assert len(blocks) == 4
    assert all(blocks.values())
    (owner,) = s3.get_bucket_ownership_controls(Bucket=ARCHIVE)["OwnershipControls"]["Rules"]
    assert owner["ObjectOwnership"] == "BucketOwnerEnforced"
    assert "Status" not in s3.get_bucket_versioning(Bucket=ARCHIVE)


def test_the_bucket_refuses_plain_http_but_on_the_emulator(endpoint: str) -> None:
    s3 = of_emulator(endpoint).client("s3")
    (statement,) = json.loads(s3.get_bucket_policy(Bucket=ARCHIVE)["Policy"])["Statement"]
    assert statement["Effect"] == "Deny"
    assert statement["Principal"] == "*"
    assert statement["Action"] == "s3:*"
    assert set(statement["Resource"]) == {f"arn:aws:s3:::{ARCHIVE}", f"arn:aws:s3:::{ARCHIVE}/*"}
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    # MiniStack speaks plain HTTP and does not enforce this; the local run depends on that.
    s3.put_object(Bucket=ARCHIVE, Key="2026-01-01/test", Body=b"{}")


def test_the_outputs_name_what_the_stack_made(endpoint: str) -> None:
    found = outputs(endpoint)
    assert found.pop("TableName") == "spillway-local"
    assert found.pop("ArchiveBucketName") == ARCHIVE
    assert found.pop("CodeBucketName") == ARCHIVE.replace("-archive-", "-code-")
    assert {name: url.rsplit("/", 1)[1] for name, url in found.items()} == {
        "ProcessingQueueUrl": "spillway-local-processing",
        "ProcessingDeadLetterQueueUrl": "spillway-local-processing-dlq",
        "OutboundQueueUrl": "spillway-local-outbound.fifo",
        "OutboundDeadLetterQueueUrl": "spillway-local-outbound-dlq.fifo",
    }


# --- the app, deployed -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what Chalice reads, so that what it writes stays out of the work tree."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("app.py", "requirements.txt"):
        shutil.copy(PROJECT / name, folder)
    for name in ("chalicelib", "infra", ".chalice"):
        ignored = shutil.ignore_patterns("__pycache__", "deployments", "deployed")
        shutil.copytree(PROJECT / name, folder / name, ignore=ignored)
    return folder


def chalice(project: Path, endpoint: str, *arguments: str) -> None:
    # The stage `local` is the one that MiniStack can run: it has the architecture of this machine.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    done = subprocess.run(
        [Path(sys.executable).with_name("chalice"), *arguments, "--stage", "local"],
        cwd=project,
        env={**kept, **emulated.environment(endpoint), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def packaged_api(endpoint: str, project: Path) -> str:
    """The base URL of the API, deployed as `chalice package` packs it."""
    chalice(project, endpoint, "package", "out")
    s3 = of_emulator(endpoint).client("s3")
    s3.create_bucket(Bucket="code")
    s3.upload_file(str(project / "out" / "deployment.zip"), "code", "deployment.zip")
    # As `aws cloudformation package` does it.
    template = (project / "out" / "sam.json").read_text()
    template = template.replace('"./deployment.zip"', '"s3://code/deployment.zip"')
    create_stack(endpoint, "spillway-local", template)
    (stack,) = (
        of_emulator(endpoint)
        .client("cloudformation")
        .describe_stacks(StackName="spillway-local")["Stacks"]
    )
    (api,) = (o["OutputValue"] for o in stack["Outputs"] if o["OutputKey"] == "RestAPIId")
    return f"{endpoint}/_aws/execute-api/{api}/api"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200),
        ("POST", "/webhooks/twilio", 401),
        ("POST", "/messages", 401),
        ("GET", "/messages/x", 401),
        ("POST", "/consent", 401),
        # It has no authorizer: the receiver itself refuses what nobody signed.
        ("POST", "/webhooks/twilio/signed", 403),
    ],
)
def test_the_packaged_template_deploys_and_guards_its_routes(
    packaged_api: str, method: str, path: str, status: int
) -> None:
    request = urllib.request.Request(
        f"{packaged_api}{path}", method=method, data=b"" if method == "POST" else None
    )
    assert status_of(request) == status


def status_of(request: urllib.request.Request) -> int:
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            found: int = answer.status
    except urllib.error.HTTPError as error:
        found = error.code
    return found


def test_chalice_deploy(endpoint: str, project: Path) -> None:
    # MiniStack's ImportRestApi makes an empty API, so its routes are the previous test's.
    chalice(project, endpoint, "deploy")
    functions = {
        function["FunctionName"]: (function["MemorySize"], function["Timeout"])
        for function in of_emulator(endpoint).client("lambda").list_functions()["Functions"]
    }
    assert (
        functions.items()
        >= {
            "spillway-local": (512, 10),
            "spillway-local-authorize": (256, 5),
            "spillway-local-process": (1024, 60),
            "spillway-local-send": (512, 60),
        }.items()
    )
    # (Their bounds, too: docs/OPERATING.md has what it lacks.)
    mapped = {
        (mapping["EventSourceArn"].split(":")[-1], mapping["FunctionArn"].split(":")[-1]): (
            mapping["BatchSize"],
            mapping["ScalingConfig"],
        )
        for mapping in of_emulator(endpoint)
        .client("lambda")
        .list_event_source_mappings()["EventSourceMappings"]
    }
    assert (
        mapped.items()
        >= {
            ("spillway-local-processing", "spillway-local-process"): (
                100,
                {"MaximumConcurrency": 200},
            ),
            ("spillway-local-outbound.fifo", "spillway-local-send"): (
                10,
                {"MaximumConcurrency": 250},
            ),
        }.items()
    )
    iam = of_emulator(endpoint).client("iam")
    for function in CONFIG["lambda_functions"]:
        role = f"spillway-local-{function}"
        (name,) = iam.list_role_policies(RoleName=role)["PolicyNames"]
        document = iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
        assert document == policy(function, "local")
    # What Chalice makes no log group for has to make its own: its policy says so.
    made = json.loads((project / ".chalice" / "deployed" / "local.json").read_text())["resources"]
    assert {one["log_group_name"] for one in made if one["resource_type"] == "log_group"} == {
        f"/aws/lambda/spillway-local-{name}" for name in ("authorize", "process", "send")
    }

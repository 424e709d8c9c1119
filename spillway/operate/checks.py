"""What `spillway doctor` looks at: each check yields findings, and each finding its mend.

A check reads and changes nothing; what a finding's `fix` does is done by `--mend` alone.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from chalicelib.config import SettingError
from chalicelib.queues import DEAD_LETTERS, OUTBOUND, PROCESSING
from spillway import project as project_
from spillway.deploy import account as account_
from spillway.deploy import secrets as secrets_
from spillway.local.folder import Folder
from spillway.operate import probe
from spillway.problem import Problem
from spillway.stage import ROLES, Api, Stage

Level = Literal["good", "note", "bad"]

# The oldest boto3 with everything that we call (ReturnValuesOnConditionCheckFailure of UpdateItem
# and PutItem). https://github.com/boto/boto3/blob/develop/CHANGELOG.rst
OLDEST_BOTO3 = (1, 28)
CHALLENGE = "gatewayresponse.header.WWW-Authenticate"
REPORTS = "ReportBatchItemFailures"
MAPPED = {PROCESSING: "processing", OUTBOUND: "sender"}
# Calls a second that a FIFO queue takes in high-throughput mode, by region; elsewhere the least of
# what AWS names. https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
FIFO_CALLS: Mapping[str, int] = {
    "us-east-1": 70_000,
    "us-west-2": 70_000,
    "eu-west-1": 70_000,
    "us-east-2": 19_000,
    "eu-central-1": 19_000,
}
FIFO_CALLS_ELSEWHERE = 2_400
# Writes for a text with a reply of one part: the message, the ledger's four, and a receipt.
WRITES = 6
# Requests a second that Lambda takes for each unit of concurrency of a function.
# https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html
CALLS_PER_CONCURRENCY = 10
STORED_WITHIN = 30.0  # seconds that a probe may take through processing


@dataclass(frozen=True, slots=True)
class Finding:
    """`mend`: what to do about it, "" where it is good. `fix` does it, where an API call can."""

    level: Level
    about: str
    said: str
    mend: str = ""
    fix: Callable[[], None] | None = None


Check = Callable[[Stage], Iterator[Finding]]


def settings(stage: Stage) -> Iterator[Finding]:
    """Whether each function's settings can be read, and are those of .chalice/config.json."""
    redeploy = f"spillway deploy --stage {stage.name}"
    for role in ROLES:
        if stage.local is not None and role == "authorizer":
            continue
        try:
            stage.settings(role)
        except SettingError as error:
            yield Finding(
                "bad", "settings", f"{role}: {error}", f".chalice/config.json; {redeploy}"
            )
        else:
            yield Finding("good", "settings", f"{role}: all can be read")
    if stage.local is not None:
        return
    for function, role in zip(project_.FUNCTIONS, ROLES, strict=True):
        try:
            wanted = project_.variables(project_.PROJECT, stage.name, function)
        except Problem:
            yield Finding("note", "settings", ".chalice/config.json here does not have this stage")
            return
        has = stage.variables(role)
        # (The overlay sets this one.)
        other = sorted(
            name
            for name in set(wanted) | set(has)
            if name != "REPORT_BATCH_ITEM_FAILURES" and wanted.get(name) != has.get(name)
        )
        if other:
            said = f"{role}: {', '.join(other)} not as in .chalice/config.json"
            yield Finding("note", "settings", said, redeploy)


def functions(stage: Stage) -> Iterator[Finding]:
    """Whether the functions are there and can be called; locally, whether the processes live."""
    if stage.local is not None:
        for name, pid in stage.local["pids"].items():
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                log = f".spillway/logs/{name}.log"
                yield Finding("bad", "processes", f"{name} has ended", f"it is restarted; {log}")
            else:
                yield Finding("good", "processes", f"{name} runs")
        return
    lambda_ = stage.aws.client("lambda")
    for role in ROLES:
        found = lambda_.get_function_configuration(FunctionName=stage.function(role))
        state, update = found.get("State", "Active"), found.get("LastUpdateStatus", "Successful")
        if (state, update) == ("Active", "Successful"):
            yield Finding("good", "functions", f"{role} is active")
        else:
            why = found.get("StateReason") or found.get("LastUpdateStatusReason", "")
            said = f"{role} is {state}, its last update {update}: {why}"
            yield Finding("bad", "functions", said, f"spillway deploy --stage {stage.name}")


def mappings(stage: Stage) -> Iterator[Finding]:
    """Whether each queue has exactly one mapping, to its function, enabled, which asks for reports
    where the function makes them."""
    if stage.local is not None:
        return
    lambda_, sqs = stage.aws.client("lambda"), stage.aws.client("sqs")
    for queue, role in MAPPED.items():
        arn = _arn(sqs, stage.stores.urls[queue])
        found = lambda_.list_event_source_mappings(EventSourceArn=arn)["EventSourceMappings"]
        if len(found) != 1:
            names = ", ".join(one["FunctionArn"].rpartition(":")[2] for one in found) or "none"
            yield Finding(
                "bad",
                "mappings",
                f"{queue} has {len(found)} mappings ({names}), not one: "
                + ("they take each other's messages" if found else "nobody works on it"),
                "delete those that are too many (aws lambda delete-event-source-mapping)"
                if found
                else f"spillway deploy --stage {stage.name}",
            )
            continue
        (mapping,) = found
        yield from _mapping(stage, queue, role, mapping)


def _mapping(stage: Stage, queue: str, role: str, mapping: Mapping[str, Any]) -> Iterator[Finding]:
    lambda_ = stage.aws.client("lambda")
    target = mapping["FunctionArn"].split(":function:")[1]
    if target != stage.function(role):
        yield Finding("bad", "mappings", f"{queue} goes to {target}", "delete that mapping")
        return
    if mapping["State"] not in ("Enabled", "Enabling", "Updating"):
        uuid = mapping["UUID"]
        yield Finding(
            "bad",
            "mappings",
            f"{queue}: the mapping is {mapping['State']}, so nobody works on it",
            f"aws lambda update-event-source-mapping --uuid {uuid} --enabled",
            lambda: lambda_.update_event_source_mapping(UUID=uuid, Enabled=True),
        )
        return
    asks = REPORTS in mapping.get("FunctionResponseTypes", ())
    makes = stage.variables(role).get("REPORT_BATCH_ITEM_FAILURES") == "true"
    if makes and not asks:
        yield Finding(
            "bad",
            "mappings",
            f"{queue}: the function reports what is not done and the mapping does not listen: the "
            "whole batch is deleted. Messages are being lost",
            "spillway doctor --mend",
            lambda: _listen(stage, mapping["UUID"]),
        )
    elif not asks or not makes:
        yield Finding(
            "note",
            "mappings",
            f"{queue}: no partial reports, so the function deletes what is done by itself and "
            "raises for the rest, which makes Lambda poll less",
            "spillway doctor --mend",
            lambda: _report(stage, role, mapping["UUID"]),
        )
    else:
        yield Finding("good", "mappings", f"{queue}: one, enabled, with partial reports")


def _listen(stage: Stage, uuid: str) -> None:
    """Has a mapping ask for reports, and waits until it is seen to."""
    lambda_ = stage.aws.client("lambda")
    lambda_.update_event_source_mapping(UUID=uuid, FunctionResponseTypes=[REPORTS])
    for _ in range(60):
        found = lambda_.get_event_source_mapping(UUID=uuid)
        if REPORTS in found.get("FunctionResponseTypes", ()) and found["State"] == "Enabled":
            return
        time.sleep(1.0)
    raise Problem("The mapping does not ask for reports yet; nothing else was changed.")


def _report(stage: Stage, role: str, uuid: str) -> None:
    """First the mapping, then, when it is seen to listen, the function: else what is reported
    between the two is ignored, and the batch deleted."""
    _listen(stage, uuid)
    lambda_ = stage.aws.client("lambda")
    variables = {**stage.variables(role), "REPORT_BATCH_ITEM_FAILURES": "true"}
    lambda_.update_function_configuration(
        FunctionName=stage.function(role), Environment={"Variables": variables}
    )


def gateway(stage: Stage) -> Iterator[Finding]:
    """Whether the door behind the authorizer asks for credentials, which Twilio and Bandwidth wait
    for; and whether the alarms watch this API."""
    if stage.local is not None:
        return
    api = stage.api()
    client = stage.aws.client("apigateway")
    name = client.get_rest_api(restApiId=api.id)["name"]
    for watched in sorted(_watched(stage) - {name}):
        yield Finding(
            "bad",
            "gateway",
            f"the API is named {name}, and alarms watch {watched}: they see nothing",
            f"aws apigateway update-rest-api --rest-api-id {api.id} "
            f"--patch-operations op=replace,path=/name,value={watched}",
        )
    found: dict[str, Any] = {}
    with suppress(client.exceptions.NotFoundException):
        found = client.get_gateway_response(restApiId=api.id, responseType="UNAUTHORIZED")
    if CHALLENGE in (found.get("responseParameters") or {}):
        yield Finding("good", "gateway", "a 401 asks for Basic credentials")
        return
    yield Finding(
        "bad",
        "gateway",
        "a 401 does not ask for credentials: Twilio and Bandwidth never send theirs",
        "spillway doctor --mend",
        lambda: _challenge(stage, api),
    )


def _watched(stage: Stage) -> set[str]:
    """The names of the APIs that the stage's alarms watch; none after a plain `chalice deploy`."""
    return {
        dimension["Value"]
        for alarm in _alarms(stage)
        for dimension in alarm.get("Dimensions", ())
        if dimension["Name"] == "ApiName"
    }


def _challenge(stage: Stage, api: Api) -> None:
    client = stage.aws.client("apigateway")
    client.put_gateway_response(
        restApiId=api.id,
        responseType="UNAUTHORIZED",
        statusCode="401",
        responseParameters={CHALLENGE: "'Basic realm=\"spillway\"'"},
        responseTemplates={"application/json": '{"error": "credentials_wanted"}'},
    )
    client.create_deployment(restApiId=api.id, stageName=api.stage)


def secrets(stage: Stage) -> Iterator[Finding]:
    """Whether the hash key, each provider's secret and the keys for events are there and can be
    what they are."""
    client = stage.aws.client("secretsmanager")
    providers = stage.settings("receiver").providers
    events = ["events"] if stage.settings("processing").events_url else []
    for name in ("keys", *events, *providers):
        full = f"spillway/{stage.name}/{name}"
        try:
            value = json.loads(client.get_secret_value(SecretId=full)["SecretString"])
        except client.exceptions.ResourceNotFoundException:
            mend = (
                "restore it: aws secretsmanager restore-secret; a new one knows nobody's opt-out"
                if name == "keys"
                else f"spillway secret set {name} --stage {stage.name}"
            )
            yield Finding("bad", "secrets", f"{full} is missing", mend)
            continue
        except (ValueError, KeyError):
            value = None
        try:
            if name == "keys":
                good = isinstance(value, dict) and len(str(value.get("hash_key", ""))) >= 32
                if not good:
                    raise Problem("must be a JSON object with a hash_key of 32 characters or more")
            elif not isinstance(value, dict):
                raise Problem("is not a JSON object")
            else:
                secrets_.check(name, value)
        except Problem as problem:
            mend = f"spillway secret set {name} --stage {stage.name}" if name != "keys" else ""
            yield Finding("bad", "secrets", f"{full}: {problem}", mend or "restore it")
        else:
            yield Finding("good", "secrets", full)


def bus(stage: Stage) -> Iterator[Finding]:
    """Whether the bus for events is there: AWS takes what is put on one that is not, says that all
    is well, and drops it. https://github.com/aws/aws-sdk/issues/186"""
    # (Processing publishes what the sender announced, too.)
    name = stage.settings("processing").event_bus
    if not name:
        return
    client = stage.aws.client("events")
    try:
        client.describe_event_bus(Name=name)
    except client.exceptions.ResourceNotFoundException:
        mend = f"aws events create-event-bus --name {name}"
        yield Finding("bad", "events", f"no bus {name}: AWS drops every event", mend)
    else:
        yield Finding("good", "events", f"bus {name}")


def data(stage: Stage) -> Iterator[Finding]:
    """Whether queues and table are as infra/data.yaml makes them, where messages hang on it."""
    sqs = stage.aws.client("sqs")
    for queue, role in MAPPED.items():
        found = sqs.get_queue_attributes(QueueUrl=stage.stores.urls[queue], AttributeNames=["All"])[
            "Attributes"
        ]
        policy = json.loads(found.get("RedrivePolicy", "{}"))
        name = f"spillway-{stage.name}-{DEAD_LETTERS[queue]}"
        redeploy = f"spillway deploy --stage {stage.name}"
        if policy.get("deadLetterTargetArn", "").rpartition(":")[2] != name:
            yield Finding("bad", "queues", f"{queue} does not end on {name}", redeploy)
        elif int(policy.get("maxReceiveCount", 0)) < 1000:
            said = f"{queue}: maxReceiveCount {policy['maxReceiveCount']}: what waits is put aside"
            yield Finding("bad", "queues", said, redeploy)
        elif stage.local is None and not _visible_for_long(stage, queue, role, found):
            said = f"{queue}: hidden for {found['VisibilityTimeout']} s, less than six time-outs"
            yield Finding("bad", "queues", said, redeploy)
        else:
            yield Finding("good", "queues", f"{queue}: visibility and dead-letter queue")
    if stage.local is not None:
        return
    table = f"spillway-{stage.name}"
    dynamodb = stage.aws.client("dynamodb")
    described = dynamodb.describe_table(TableName=table)["Table"]
    backups = dynamodb.describe_continuous_backups(TableName=table)["ContinuousBackupsDescription"]
    points = backups.get("PointInTimeRecoveryDescription", {})
    live = dynamodb.describe_time_to_live(TableName=table)["TimeToLiveDescription"]
    for good, said in (
        (described.get("DeletionProtectionEnabled", False), "protected against deletion"),
        (points.get("PointInTimeRecoveryStatus") == "ENABLED", "point-in-time recovery"),
        (live.get("TimeToLiveStatus") in ("ENABLED", "ENABLING"), "old items expire"),
    ):
        level: Level = "good" if good else "note"
        yield Finding(
            level,
            "table",
            said if good else f"not {said}",
            "" if good else "infra/data.yaml; spillway deploy",
        )


def _visible_for_long(stage: Stage, queue: str, role: str, attributes: Mapping[str, str]) -> bool:
    function = stage.aws.client("lambda").get_function_configuration(
        FunctionName=stage.function(role)
    )
    return int(attributes["VisibilityTimeout"]) >= 6 * int(function["Timeout"])


def alarms(stage: Stage) -> Iterator[Finding]:
    """Whether somebody hears of it when something goes wrong."""
    if stage.local is not None:
        return
    every = _alarms(stage)
    if not every:
        said = "there are no alarms: chalice deploy makes none"
        yield Finding("note", "alarms", said, f"spillway deploy --stage {stage.name}")
        return
    ringing = [alarm["AlarmName"] for alarm in every if alarm["StateValue"] == "ALARM"]
    for name in ringing:
        yield Finding("bad", "alarms", f"{name} rings", "its description names the page to read")
    topics = {action for alarm in every for action in alarm["AlarmActions"]}
    sns = stage.aws.client("sns")
    told = [
        one
        for topic in topics
        for one in sns.list_subscriptions_by_topic(TopicArn=topic)["Subscriptions"]
        if one["SubscriptionArn"].startswith("arn:")
    ]
    if told:
        yield Finding("good", "alarms", f"{len(every)} alarms, {len(told)} who are told")
    else:
        yield Finding(
            "bad",
            "alarms",
            "nobody is told of an alarm, or nobody has confirmed it",
            f"spillway deploy --stage {stage.name} --alarm-email ADDRESS, and confirm AWS's mail",
        )


def _alarms(stage: Stage) -> list[dict[str, Any]]:
    pages = (
        stage.aws.client("cloudwatch")
        .get_paginator("describe_alarms")
        .paginate(AlarmNamePrefix=f"spillway-{stage.name}-", AlarmTypes=["MetricAlarm"])
    )
    return [alarm for page in pages for alarm in page["MetricAlarms"]]


def quotas(stage: Stage) -> Iterator[Finding]:
    """Whether the account can do what the stage lets in: the requests a second of its API."""
    if stage.local is not None:
        return
    api = stage.api()
    client = stage.aws.client("apigateway")
    settings_ = client.get_stage(restApiId=api.id, stageName=api.stage).get("methodSettings", {})
    limit = settings_.get("*/*", {}).get("throttlingRateLimit")
    if not limit or limit < 0:
        said = "the API lets in what the account does (10,000 requests a second by default)"
        yield Finding("note", "quotas", said, "spillway deploy sets a limit (infra/app.yaml)")
        limit = 10_000.0
    account = account_.read(stage.aws)
    lambda_ = stage.aws.client("lambda")
    most = account.unreserved
    reserved = lambda_.get_function_concurrency(FunctionName=stage.function("receiver")).get(
        "ReservedConcurrentExecutions"
    )
    takes = (reserved or most) * CALLS_PER_CONCURRENCY
    calls = FIFO_CALLS.get(account.region, FIFO_CALLS_ELSEWHERE)
    warm = (
        stage.aws.client("dynamodb")
        .describe_table(TableName=f"spillway-{stage.name}")["Table"]
        .get("WarmThroughput", {})
        .get("WriteUnitsPerSecond", 4000)
    )
    ask = "Service Quotas, AWS Lambda, Concurrent executions (L-B99A9384)"
    for what, has, wants, mend in (
        ("requests a second that the receiver's concurrency takes", takes, limit, ask),
        (
            f"calls a second of the FIFO queue in {account.region}",
            calls,
            limit,
            "a region with more, or a lower RequestsPerSecond in infra/app.yaml",
        ),
        (
            "writes a second that the table takes at once",
            warm,
            WRITES * limit,
            "before a known burst: aws dynamodb update-table --warm-throughput; else it grows by "
            "itself, and what is throttled waits",
        ),
    ):
        said = f"{what}: {has:,.0f}, for {wants:,.0f} that the API lets in"
        yield (
            Finding("good", "quotas", said)
            if has >= wants
            else Finding("note", "quotas", said, mend)
        )


def probes(stage: Stage) -> Iterator[Finding]:
    """Whether a signed text is acknowledged, stored, not answered; and an unsigned one refused."""
    settings_ = stage.settings("receiver")
    api = stage.api()
    client = stage.aws.client("secretsmanager")
    logs = "spillway trace; the receiver's log says why (event refused, not_taken, no_secrets)"
    for provider in settings_.providers:
        refused = probe.unsigned(api, provider)
        if refused.status == 403:
            yield Finding("good", "probe", f"{provider}: unsigned is refused")
        else:
            said = f"{provider}: unsigned is answered {refused.status or 'by nobody'}, not 403"
            yield Finding("bad", "probe", said, logs)
        ours = next((n for n, by in settings_.numbers.items() if by == provider), "")
        if not ours:
            said = f"{provider}: no number of ours in NUMBERS"
            yield Finding("note", "probe", said, ".chalice/config.json")
            continue
        secret = _secret(client, stage, provider)
        probed = probe.signed(api, provider, secret, ours) if secret else None
        if probed is None:
            yield Finding("note", "probe", f"{provider}: only the provider can sign one")
        elif probed.status != 200:
            said = f"{provider}: a signed text is answered {probed.status or 'by nobody'}"
            yield Finding("bad", "probe", said, logs)
        else:
            said = f"{provider}: acknowledged in {1000 * probed.seconds:.0f} ms"
            yield Finding("good", "probe", said)
            yield _stored(stage, ours, probed.id, provider)


def _stored(stage: Stage, ours: str, id_: str, provider: str) -> Finding:
    end = time.monotonic() + STORED_WITHIN
    while time.monotonic() < end:
        items = stage.stores.conversation(ours, probe.SENDER)
        mine = [item for item in items if item.get("provider_id") == id_]
        if mine:
            replies = [item for item in items if item["sk"].startswith("OUT#")]
            if replies:
                return Finding(
                    "bad", "probe", f"{provider}: the probe was answered", "a bug: tell us"
                )
            return Finding("good", "probe", f"{provider}: stored, and not answered")
        time.sleep(0.2)
    return Finding(
        "bad",
        "probe",
        f"{provider}: acknowledged, and not stored within {STORED_WITHIN:.0f} s",
        f"spillway status --stage {stage.name}; the log of processing",
    )


def _secret(client: Any, stage: Stage, provider: str) -> dict[str, Any]:
    if stage.local is not None:
        # With the key that the simulated provider signs with.
        found: dict[str, Any] = dict(stage.local["secrets"].get(provider, {}))
        return found
    try:
        text = client.get_secret_value(SecretId=f"spillway/{stage.name}/{provider}")["SecretString"]
        value = json.loads(text)
    except (client.exceptions.ResourceNotFoundException, ValueError, KeyError):
        return {}
    return value if isinstance(value, dict) else {}


def runtime(stage: Stage) -> Iterator[Finding]:
    """Whether the boto3 that the runtime brings knows all that is called. (After the probes: they
    start the functions whose first line says it.)"""
    for role in ROLES:
        if role == "authorizer":
            continue  # it has none
        said = _started(stage, role)
        version = re.search(r"boto3 (\d+)\.(\d+)\.\d+", said)
        if version is None:
            yield Finding("note", "runtime", f"{role}: has not started lately")
        elif (int(version[1]), int(version[2])) < OLDEST_BOTO3:
            mend = (
                "a newer Python runtime (deploy with a newer Python), or boto3 in requirements.txt"
            )
            yield Finding("bad", "runtime", f"{role}: {version[0]} is too old", mend)
        else:
            yield Finding("good", "runtime", f"{role}: {version[0]}")


def _started(stage: Stage, role: str) -> str:
    """The newest line in which a function said that it started."""
    if stage.local is not None:
        names = {"receiver": "webhook", "processing": "processing", "sender": "outbound"}
        path: Path = Folder().log(names[role])
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        return next((line for line in reversed(lines) if '"started"' in line), "")
    logs = stage.aws.client("logs")
    try:
        pages = logs.get_paginator("filter_log_events").paginate(
            logGroupName=f"/aws/lambda/{stage.function(role)}",
            filterPattern='"started"',
            startTime=int((time.time() - 86_400) * 1000),
        )
        return max(
            ((event["timestamp"], event["message"]) for page in pages for event in page["events"]),
            default=(0, ""),
        )[1]
    except logs.exceptions.ResourceNotFoundException:
        return ""


def _arn(sqs: Any, url: str) -> str:
    found = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]
    return str(found["QueueArn"])


ALL: tuple[Check, ...] = (
    settings,
    functions,
    mappings,
    gateway,
    secrets,
    bus,
    data,
    alarms,
    quotas,
    probes,
    runtime,
)

"""Least privilege: what each function may do in its stage is what it does, and nothing else.

One test walks the policies. Another lets the real functions do everything that they do, in the
simulation, and holds each call against its function's policy, and each allowance against the calls.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import chain, count, islice
from typing import Any

import botocore.session
import pytest
from botocore import xform_name

import app as app_module
from chalicelib.credentials import hash_of
from chalicelib.providers import CARRIERS
from tests.iam import CONFIG, PROJECT, Pair, covers, deployed, grants, policy
from tests.simulation.outside import UNREADABLE
from tests.simulation.run import Simulation, run_seed
from tests.simulation.runtime import SimulatedRuntime
from tests.simulation.stores import ACCOUNT, REGION

POLICIES = PROJECT / "infra" / "policies"
STAGES = sorted(CONFIG["stages"])
FUNCTIONS = sorted(CONFIG["lambda_functions"])


def test_every_policy_file_is_somebodys() -> None:
    named = [
        (PROJECT / ".chalice" / settings["iam_policy_file"]).resolve()
        for stage in CONFIG["stages"].values()
        for settings in stage["lambda_functions"].values()
    ]
    assert sorted(named) == sorted(path.resolve() for path in POLICIES.iterdir())


# --- the policies, walked ----------------------------------------------------------------------
# Chalice reads a policy as it is and fills in nothing, so each names its stage, and account and
# region, which a literal cannot know, are wildcards. (Another account's queue of the same name
# would still have to let us in.) A new stage: copy the files of prod and replace the stage. A new
# provider: its secret in the policies of the three functions that have it in PROVIDERS.

LOG = {"logs:CreateLogStream", "logs:PutLogEvents"}
PUT = {"sqs:GetQueueUrl", "sqs:SendMessage"}
CONSUME = {
    "sqs:GetQueueUrl",
    "sqs:GetQueueAttributes",
    "sqs:ReceiveMessage",
    "sqs:ChangeMessageVisibility",
    "sqs:DeleteMessage",
}
KEEP = {"dynamodb:GetItem", "dynamodb:BatchGetItem", "dynamodb:PutItem", "dynamodb:UpdateItem"}

ALLOWED: Mapping[str, Mapping[str, set[str]]] = {
    "authorize": {"logs": LOG},
    "api_handler": {
        # Chalice makes the log groups of the others.
        "logs": LOG | {"logs:CreateLogGroup"},
        "processing": PUT,
        "outbound": PUT | {"sqs:GetQueueAttributes"},
        "table": {"dynamodb:GetItem"},
    },
    "process": {
        "logs": LOG,
        "processing": CONSUME | {"sqs:SendMessage"},
        "outbound": PUT,
        "processing-dlq": PUT,
        "bus": {"events:PutEvents"},
        "table": KEEP | {"dynamodb:Query"},
        "messages": {"s3:PutObject"},
        "media": {"s3:PutObject"},
        "quarantine": {"s3:PutObject"},
    },
    "send": {
        "logs": LOG,
        "processing": PUT,
        "outbound": CONSUME,
        "outbound-dlq": PUT,
        "table": KEEP,
    },
}


def resource(name: str, function: str, stage: str) -> str:
    lambda_name = f"spillway-{stage}" + ("" if function == "api_handler" else f"-{function}")
    archive = f"arn:aws:s3:::spillway-{stage}-archive-*"
    return {
        # With ":*", as for all that is done in a group:
        # https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/iam-access-control-overview-cwl.html
        "logs": f"arn:aws:logs:*:*:log-group:/aws/lambda/{lambda_name}:*",
        "processing": f"arn:aws:sqs:*:*:spillway-{stage}-processing",
        "outbound": f"arn:aws:sqs:*:*:spillway-{stage}-outbound.fifo",
        "processing-dlq": f"arn:aws:sqs:*:*:spillway-{stage}-processing-dlq",
        "outbound-dlq": f"arn:aws:sqs:*:*:spillway-{stage}-outbound-dlq.fifo",
        "bus": f"arn:aws:events:*:*:event-bus/spillway-{stage}",
        "table": f"arn:aws:dynamodb:*:*:table/spillway-{stage}",
        "messages": f"{archive}/messages/*",
        "media": f"{archive}/media/*",
        "quarantine": f"{archive}/quarantine/*",
    }[name]


def secrets(function: str, stage: str) -> list[str]:
    """The secrets that a function reads. Their ARNs end in a hyphen and six characters."""
    if function == "authorize":
        return []
    variables = CONFIG["stages"][stage]["lambda_functions"][function]["environment_variables"]
    # (`spillway run` sets those of stage `local`.)
    providers = variables.get("PROVIDERS", ",".join(CARRIERS)).split(",")
    return [
        f"arn:aws:secretsmanager:*:*:secret:spillway/{stage}/{name}-??????"
        for name in ("keys", *(["events"] if function == "process" else []), *providers)
    ]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_may_do_this_in_its_stage_and_nothing_else(function: str, stage: str) -> None:
    allowed = [
        (action, resource(name, function, stage))
        for name, actions in ALLOWED[function].items()
        for action in actions
    ]
    allowed += [("secretsmanager:GetSecretValue", arn) for arn in secrets(function, stage)]
    assert sorted(grants(policy(function, stage))) == sorted(allowed)


# --- what the functions do ---------------------------------------------------------------------

# What SQS has no permission of its own for:
# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-batch-api.html
# All other operations of ours need the action of their own name:
# https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonsqs.html
# https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazondynamodb.html
# https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazons3.html
# https://docs.aws.amazon.com/service-authorization/latest/reference/list_awssecretsmanager.html
BATCHES = {
    "SendMessageBatch": "SendMessage",
    "DeleteMessageBatch": "DeleteMessage",
    "ChangeMessageVisibilityBatch": "ChangeMessageVisibility",
}


@cache
def operations(service: str) -> dict[str, str]:
    """A service's operations, by the names of the client's methods."""
    model = botocore.session.get_session().get_service_model(service)
    return {xform_name(name): name for name in model.operation_names}


def pairs(service: str, operation: str, arguments: Mapping[str, Any]) -> list[Pair]:
    """What a call needs to be allowed."""
    action = f"{service}:{BATCHES.get(operation, operation)}"
    here = f"{REGION}:{ACCOUNT}"
    if service == "sqs":
        name = arguments.get("QueueName") or arguments["QueueUrl"].rpartition("/")[2]
        return [(action, f"arn:aws:sqs:{here}:{name}")]
    if service == "dynamodb":
        tables = arguments.get("RequestItems") or [arguments["TableName"]]
        within = f"/index/{arguments['IndexName']}" if "IndexName" in arguments else ""
        return [(action, f"arn:aws:dynamodb:{here}:table/{name}{within}") for name in tables]
    if service == "s3":
        return [(action, f"arn:aws:s3:::{arguments['Bucket']}/{arguments['Key']}")]
    if service == "secretsmanager":
        return [(action, f"arn:aws:secretsmanager:{here}:secret:{arguments['SecretId']}-a1B2c3")]
    if service == "events":
        buses = [entry["EventBusName"] for entry in arguments["Entries"]]
        return [(action, f"arn:aws:events:{here}:event-bus/{name}") for name in buses]
    raise NotImplementedError(service)


ROLES = {"receiver": "api_handler", "processing": "process", "sender": "send"}
SEEDS = 60


def played() -> Iterator[int]:
    """Seeds in which the functions do all that they do: the first, and since what cannot be read
    comes in a few of a hundred only, three that have it in their story."""
    stories = ((seed, Simulation(seed).story) for seed in count(SEEDS))
    unreadable = (
        seed for seed, story in stories if any(text.kind == UNREADABLE for text in story.texts)
    )
    return chain(range(SEEDS), islice(unreadable, 3))


@pytest.fixture(scope="module")
def made() -> dict[str, set[Pair]]:
    """What the functions' calls in stage `test` need, by function: all of them, served or not."""
    found: dict[str, set[Pair]] = {function: set() for function in FUNCTIONS}
    call = SimulatedRuntime.call

    def noted(
        self: SimulatedRuntime, service: str, operation: str, arguments: dict[str, Any]
    ) -> Any:
        if self.role in ROLES:
            name = operations(service)[operation]
            found[ROLES[self.role]].update(pairs(service, name, arguments))
        return call(self, service, operation, arguments)

    def noted_of_any_client(client: Any, operation: str, arguments: dict[str, Any]) -> Any:
        service = client.meta.service_model.service_name
        found["authorize"].update(pairs(service, operation, arguments))
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SimulatedRuntime, "call", noted)
        for seed in played():
            assert not run_seed(seed).violations
        # The authorizer has no runtime.
        patch.setattr("botocore.client.BaseClient._make_api_call", noted_of_any_client)
        patch.setenv("CREDENTIAL_HASHES", json.dumps({"api": [hash_of("token")]}))
        for credentials in ("Bearer token", "Bearer another", "Basic !", ""):
            arn = f"arn:aws:execute-api:{REGION}:{ACCOUNT}:abcdef1234/api/POST/messages"
            request = {"type": "TOKEN", "authorizationToken": credentials, "methodArn": arn}
            app_module.authorize(request, None)
    return found


def by_lambda(function: str, how: str) -> set[Pair]:
    """What Lambda itself does in a function's name, deployed in this way."""
    here = f"{REGION}:{ACCOUNT}"
    name = "spillway-test" + ("" if function == "api_handler" else f"-{function}")
    group = f"arn:aws:logs:{here}:log-group:/aws/lambda/{name}"
    queue = f"arn:aws:sqs:{here}:spillway-test-"
    source = {"process": f"{queue}processing", "send": f"{queue}outbound.fifo"}.get(function)
    # https://docs.aws.amazon.com/lambda/latest/dg/monitoring-cloudwatchlogs.html
    done = {
        ("logs:CreateLogStream", f"{group}:log-stream:2026/11/24/[$LATEST]0"),
        ("logs:PutLogEvents", f"{group}:log-stream:2026/11/24/[$LATEST]0"),
    }
    told = "log_retention_in_days" in CONFIG["lambda_functions"][function]
    if how == "chalice deploy" and not told:
        # `spillway deploy` makes all log groups before their functions; a plain `chalice deploy`
        # those that it is told how long to keep, which it cannot be told for the API handler's.
        # (CloudWatch asks for a group as for a stream without a name.)
        done.add(("logs:CreateLogGroup", f"{group}:log-stream:"))
    if source:
        # What the event source mapping needs:
        # https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-configure.html
        # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-configure-lambda-function-trigger.html
        for action in ("ReceiveMessage", "DeleteMessage", "GetQueueAttributes"):
            done.add((f"sqs:{action}", source))
    return done


def of_test(function: str) -> Any:
    """The policy of stage prod, as that of stage `test`."""
    text = json.dumps(policy(function, "prod"))
    return json.loads(text.replace("spillway-prod", "spillway-test").replace("/prod/", "/test/"))


def refused(allowed: list[Pair], calls: set[Pair]) -> list[Pair]:
    """The calls that nothing allows."""
    return sorted(call for call in calls if not any(covers(grant, call) for grant in allowed))


def unused(allowed: list[Pair], calls: set[Pair]) -> list[Pair]:
    """What is allowed and no call needs."""
    return sorted(grant for grant in allowed if not any(covers(grant, call) for call in calls))


@pytest.mark.parametrize("how", ["chalice deploy", "spillway deploy"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_a_function_does_is_allowed_and_what_is_allowed_it_does(
    function: str, how: str, made: dict[str, set[Pair]]
) -> None:
    document = of_test(function)
    if how == "spillway deploy":
        document = deployed(document, ACCOUNT, REGION)
    calls = made[function] | by_lambda(function, how)
    assert refused(grants(document), calls) == []
    assert unused(grants(document), calls) == []


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_is_taken_out_is_missed_and_what_is_added_is_seen(
    function: str, made: dict[str, set[Pair]]
) -> None:
    allowed = grants(of_test(function))
    calls = made[function] | by_lambda(function, "chalice deploy")
    for number, (action, _) in enumerate(allowed):
        missed = refused(allowed[:number] + allowed[number + 1 :], calls)
        assert {wanted for wanted, _ in missed} == {action}
    archive = f"arn:aws:s3:::spillway-test-archive-{ACCOUNT}-{REGION}"
    for added in (
        ("dynamodb:DeleteItem", "arn:aws:dynamodb:*:*:table/spillway-test"),
        ("sqs:SendMessage", "arn:aws:sqs:*:*:spillway-dev-processing"),
        ("sqs:PurgeQueue", "arn:aws:sqs:*:*:spillway-test-*"),
        ("s3:GetObject", f"{archive}/*"),
        ("secretsmanager:GetSecretValue", "arn:aws:secretsmanager:*:*:secret:other-??????"),
        ("logs:PutLogEvents", "arn:aws:logs:*:*:log-group:/aws/lambda/other:*"),
    ):
        assert unused([*allowed, added], calls) == [added]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_deployed_policy_names_its_account_and_region(function: str, stage: str) -> None:
    for _, arn in grants(deployed(policy(function, stage), ACCOUNT, REGION)):
        _, _, service, region, account, name = arn.split(":", 5)
        assert [region, account] == (["", ""] if service == "s3" else [REGION, ACCOUNT])
        if service == "s3":
            assert name.startswith(f"spillway-{stage}-archive-{ACCOUNT}-{REGION}/")

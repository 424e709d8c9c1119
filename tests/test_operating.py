"""docs/OPERATING.md, the alarms and the dashboard: each alarm has its heading there, with commands
that exist, and watches a metric that is counted; and what all of it costs."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

import botocore.session
import httpx
import pytest
import typer.main
from botocore import xform_name
from cfnlint.decode import decode
from chalice.package import YAMLTemplateSerializer

from chalicelib.observing import count
from chalicelib.processing import Processing
from chalicelib.providers.base import REASONS
from chalicelib.receiving import Receiver
from chalicelib.sending import Sender
from spillway import cli
from spillway.aws import Aws, of_emulator
from tests import emulated
from tests.fakes import Context, FakeRuntime, delivered, logged, settings
from tests.pages import DOCS, ROOT, rows
from tests.signing import twilio_event

PAGE = DOCS / "OPERATING.md"
CONFIG = json.loads((ROOT / ".chalice" / "config.json").read_text())
# (That packaging leaves all of this as it is, is a test of tests/test_package.py.)
OVERLAY: dict[str, Any] = YAMLTemplateSerializer().load_template(
    (ROOT / "infra" / "app.yaml").read_text()
)
DATA: dict[str, Any] = decode(str(ROOT / "infra" / "data.yaml"))[0]
STAGE = "prod"


def filled(value: Any) -> Any:
    """With the stage in its place, as CloudFormation would have it."""
    if isinstance(value, dict):
        if value == {"Ref": "Stage"}:
            return STAGE
        if set(value) == {"Fn::Sub"}:
            return value["Fn::Sub"].replace("${Stage}", STAGE)
        return {name: filled(one) for name, one in value.items()}
    return [filled(one) for one in value] if isinstance(value, list) else value


def of_type(template: dict[str, Any], type_: str) -> list[dict[str, Any]]:
    """The properties of a template's resources of a type, with the stage in its place."""
    return [
        filled(resource["Properties"])
        for resource in template["Resources"].values()
        if resource.get("Type") == type_
    ]


ALARMS = of_type(OVERLAY, "AWS::CloudWatch::Alarm")
FILTERS = [
    made
    for one in of_type(OVERLAY, "AWS::Logs::MetricFilter")
    for made in one["MetricTransformations"]
]
(DASHBOARD,) = of_type(OVERLAY, "AWS::CloudWatch::Dashboard")


def named(alarm: dict[str, Any]) -> str:
    """An alarm's name, as the page has it."""
    return str(alarm["AlarmName"]).removeprefix(f"spillway-{STAGE}-")


def the(name: str) -> dict[str, Any]:
    (found,) = (alarm for alarm in ALARMS if named(alarm) == name)
    return found


def dimensions(alarm: dict[str, Any]) -> dict[str, str]:
    return {one["Name"]: one["Value"] for one in alarm["Dimensions"]}


each_alarm = pytest.mark.parametrize("alarm", ALARMS, ids=named)

# --- the page ----------------------------------------------------------------------------------


def sections() -> dict[str, str]:
    """What stands under each heading of "When an alarm rings", by the anchor that GitHub gives."""
    part = PAGE.read_text().partition("\n## When an alarm rings\n")[2].partition("\n## ")[0]
    found = {}
    for section in part.split("\n### ")[1:]:
        heading, _, text = section.partition("\n")
        found[re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")] = text
    return found


SECTIONS = sections()


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a page's blocks that are `spillway` or `aws`, as their words."""
    block = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
    for line in block.replace("\\\n", " ").splitlines():
        inner = re.findall(r"\$\(((?:aws|spillway) [^()]*)\)", line)
        for one in (*inner, re.sub(r"\$\([^()]*\)", "X", line)):
            words = shlex.split(one)
            if "&&" in words:
                words = words[words.index("&&") + 1 :]
            if words[:1] in (["aws"], ["spillway"]):
                yield words


def anchor(alarm: dict[str, Any]) -> str:
    """The heading that an alarm's description names, at its end."""
    found = re.search(r"\. docs/OPERATING\.md#([\w-]+)$", alarm["AlarmDescription"])
    assert found, alarm["AlarmDescription"]
    return found[1]


@each_alarm
def test_an_alarm_has_its_heading_and_is_named_there(alarm: dict[str, Any]) -> None:
    assert f"`{named(alarm)}`" in SECTIONS[anchor(alarm)]


def test_every_heading_is_an_alarms() -> None:
    assert set(SECTIONS) == {anchor(alarm) for alarm in ALARMS}


@pytest.mark.parametrize("heading", SECTIONS)
def test_a_heading_says_where_to_look_what_to_do_and_when_it_is_over(heading: str) -> None:
    text = SECTIONS[heading]
    assert text.index("**Look**") < text.index("**Do") < text.index("**Over**")
    assert list(commands(text.partition("**Look**")[2].partition("**Do")[0]))


COMMANDS = list(commands(PAGE.read_text()))


@pytest.mark.parametrize(
    "words", [words for words in COMMANDS if words[0] == "spillway"], ids=" ".join
)
def test_a_command_of_ours_exists_with_its_options(words: list[str]) -> None:
    command: Any = typer.main.get_command(cli.app)
    rest = words[1:]
    while hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]
    # Raises for an option that there is not, and for an argument that is missing.
    command.make_context(command.name, rest)


# Of the command line alone: https://docs.aws.amazon.com/cli/latest/reference/logs/tail.html,
# https://docs.aws.amazon.com/cli/latest/reference/s3/
ONLY_OF_THE_CLI = {
    ("logs", "tail"): {"--since", "--filter-pattern"},
    ("s3", "ls"): {"--recursive"},
    ("s3", "cp"): set[str](),
}
# https://docs.aws.amazon.com/cli/latest/userguide/cli-configure-options.html
OF_EVERY_COMMAND = {"--query", "--output"}


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] == "aws"], ids=" ".join)
def test_a_command_of_aws_exists_with_its_options(words: list[str]) -> None:
    service, operation = words[1:3]
    known = ONLY_OF_THE_CLI.get((service, operation))
    if known is None:
        model = botocore.session.get_session().get_service_model(service)
        (found,) = (name for name in model.operation_names if xform_name(name, "-") == operation)
        shape: Any = model.operation_model(found).input_shape
        known = {f"--{xform_name(name, '-')}" for name in shape.members}
    options = {word for word in words if word.startswith("--")}
    assert options <= known | OF_EVERY_COMMAND


def test_what_is_searched_for_is_said() -> None:
    patterns = " ".join(words[-1] for words in COMMANDS if "--filter-pattern" in words)
    events = re.findall(r'\$\.event = "(\w+)"', patterns)
    assert len(events) > 10
    assert set(events) <= WORDS
    assert set(re.findall(r"\$\.([A-Z]\w+)", patterns)) <= COUNTED


def test_what_is_searched_for_in_the_access_log_is_in_it_as_it_is() -> None:
    """A text, such as the status is there, is nothing that a number is compared with.
    https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/FilterAndPatternSyntax.html
    """
    format_ = OVERLAY["Resources"]["RestAPI"]["Properties"]["AccessLogSetting"]["Format"]["Fn::Sub"]
    texts = {name for name, value in json.loads(format_).items() if isinstance(value, str)}
    patterns = [words[-1] for words in COMMANDS if any("/access" in word for word in words)]
    assert patterns
    for pattern in patterns:
        compared = re.findall(r"\$\.(\w+) (\S+) (\S)", pattern)
        assert compared
        assert [one for one in compared if one[0] not in texts or one[2] != '"'] == [], pattern


def test_links_lead_to_headings() -> None:
    for page, heading in re.findall(r"\]\((\w*(?:\.md)?)#([\w-]+)\)", PAGE.read_text()):
        headings = re.findall(r"^##+ (.*)$", (DOCS / (page or PAGE.name)).read_text(), re.MULTILINE)
        assert heading in {
            re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings
        }


# --- what is watched ---------------------------------------------------------------------------


def sources() -> Iterator[ast.Module]:
    for source in (ROOT / "app.py", *(ROOT / "chalicelib").rglob("*.py")):
        yield ast.parse(source.read_text())


def counted() -> set[str]:
    """Every metric that our code counts."""
    return {
        ast.literal_eval(call.args[0])
        for tree in sources()
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id == "count"
        and isinstance(call.args[0], ast.Constant)
    }


COUNTED = counted()
# What is written in our code: of "lookup: line" only what stands before the colon is counted.
WORDS = {
    node.value.partition(":")[0]
    for tree in sources()
    for node in ast.walk(tree)
    if isinstance(node, ast.Constant) and isinstance(node.value, str)
}
SQS = "https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-available-cloudwatch-metrics.html"
LAMBDA = "https://docs.aws.amazon.com/lambda/latest/dg/monitoring-metrics-types.html"
API = "https://docs.aws.amazon.com/apigateway/latest/developerguide/api-gateway-metrics-and-dimensions.html"
TABLE = "https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/metrics-dimensions.html"
# AWS's metrics with the dimensions under which we want them, and the page that has both.
OF_AWS = {
    ("AWS/SQS", "ApproximateNumberOfMessagesVisible"): ({"QueueName"}, SQS),
    ("AWS/SQS", "ApproximateNumberOfMessagesNotVisible"): ({"QueueName"}, SQS),
    ("AWS/SQS", "ApproximateAgeOfOldestMessage"): ({"QueueName"}, SQS),
    ("AWS/Lambda", "Errors"): ({"FunctionName"}, LAMBDA),
    ("AWS/Lambda", "Throttles"): ({"FunctionName"}, LAMBDA),
    ("AWS/Lambda", "ConcurrentExecutions"): ({"FunctionName"}, LAMBDA),
    ("AWS/ApiGateway", "Latency"): ({"ApiName", "Stage"}, API),
    ("AWS/ApiGateway", "4XXError"): ({"ApiName", "Stage"}, API),
    ("AWS/ApiGateway", "5XXError"): ({"ApiName", "Stage"}, API),
    ("AWS/DynamoDB", "ReadThrottleEvents"): ({"TableName"}, TABLE),
    ("AWS/DynamoDB", "WriteThrottleEvents"): ({"TableName"}, TABLE),
}
# What there is to be watched, by dimension. (Chalice makes the functions and the API, so that the
# overlay has no type of theirs.)
MADE = {
    "QueueName": {one["QueueName"] for one in of_type(DATA, "AWS::SQS::Queue")},
    "TableName": {one["TableName"] for one in of_type(DATA, "AWS::DynamoDB::Table")},
    "FunctionName": {
        filled(resource["Properties"]["FunctionName"])
        for resource in OVERLAY["Resources"].values()
        if "FunctionName" in resource.get("Properties", {})
    },
    "ApiName": {filled(OVERLAY["Resources"]["RestAPI"]["Properties"]["Name"])},
    "Stage": {stage["api_gateway_stage"] for stage in CONFIG["stages"].values()},
}


def series(lines: list[dict[str, Any]]) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    """The metrics that CloudWatch makes of lines in the embedded format: name, and dimensions.
    https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
    """
    return {
        (metric["Name"], tuple((name, line[name]) for name in sorted(dimension)))
        for line in lines
        for directive in line.get("_aws", {}).get("CloudWatchMetrics", [])
        if directive["Namespace"] == "Spillway"
        for metric in directive["Metrics"]
        for dimension in directive["Dimensions"]
    }


@pytest.mark.parametrize(
    "alarm", [alarm for alarm in ALARMS if alarm["Namespace"] == "Spillway"], ids=named
)
def test_an_alarm_watches_what_we_count(
    alarm: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    metric, watched = alarm["MetricName"], dimensions(alarm)
    assert alarm["Statistic"] == "Sum"
    if metric in {one["MetricName"] for one in FILTERS}:
        assert watched == {"stage": STAGE}
        return
    assert metric in COUNTED
    assert watched.get("reason", "") in {"", *WORDS}
    # It is among what CloudWatch makes of a line, whoever the provider is.
    monkeypatch.setenv("SPILLWAY_STAGE", STAGE)
    count(metric, provider="twilio", reason=watched.get("reason", ""), id="a-b")
    assert (metric, tuple(sorted(watched.items()))) in series(logged(capsys))


@pytest.mark.parametrize(
    "alarm", [alarm for alarm in ALARMS if alarm["Namespace"] != "Spillway"], ids=named
)
def test_an_alarm_watches_what_aws_has(alarm: dict[str, Any]) -> None:
    names, page = OF_AWS[alarm["Namespace"], alarm["MetricName"]]
    assert page.startswith("https://docs.aws.amazon.com/")
    assert set(dimensions(alarm)) == names
    for name, value in dimensions(alarm).items():
        assert value in MADE[name]


@each_alarm
def test_an_alarm_tells_somebody_and_not_for_want_of_data(alarm: dict[str, Any]) -> None:
    assert alarm["AlarmActions"] == [{"Ref": "Alarms"}]
    assert alarm.get("OKActions", alarm["AlarmActions"]) == alarm["AlarmActions"]
    assert alarm["TreatMissingData"] == "notBreaching"
    assert alarm["ComparisonOperator"] == "GreaterThanOrEqualToThreshold"
    # https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/API_PutMetricAlarm.html
    assert alarm["Period"] % 60 == 0
    assert alarm["Period"] * alarm["EvaluationPeriods"] <= 86_400


@pytest.mark.parametrize("prefix", ["dead-letters-of-", "in-flight-in-"])
def test_no_queue_is_forgotten(prefix: str) -> None:
    watched = {
        dimensions(alarm)["QueueName"] for alarm in ALARMS if named(alarm).startswith(prefix)
    }
    dead = {name for name in MADE["QueueName"] if "-dlq" in name}
    assert watched == (dead if prefix.startswith("dead") else MADE["QueueName"] - dead)


@pytest.mark.parametrize("metric", ["Errors", "Throttles"])
def test_no_function_is_forgotten(metric: str) -> None:
    found = [dimensions(alarm) for alarm in ALARMS if alarm["MetricName"] == metric]
    assert {one["FunctionName"] for one in found} == MADE["FunctionName"]
    assert len(MADE["FunctionName"]) == 4


def test_no_reason_of_a_provider_is_forgotten() -> None:
    # Each is alarmed, or is a person's number: nobody's alarm.
    alarmed = {
        dimensions(alarm)["reason"] for alarm in ALARMS if alarm["MetricName"] == "SendsRejected"
    }
    assert alarmed | {"opted_out", "invalid_number", "landline"} == REASONS


def test_a_stop_is_told_at_once() -> None:
    alarm = the("stop-dead-lettered")
    assert (alarm["Period"], alarm["EvaluationPeriods"], alarm["Threshold"]) == (60, 1, 1)
    assert "DatapointsToAlarm" not in alarm


@pytest.mark.parametrize("stage", [stage for stage in CONFIG["stages"] if stage != "local"])
def test_late_answers_are_told_while_somebody_can_still_act(stage: str) -> None:
    functions = CONFIG["stages"][stage]["lambda_functions"]
    longest = int(functions["send"]["environment_variables"]["REPLY_MAX_AGE"])
    assert the("answers-late")["Threshold"] <= longest / 2


def test_slow_acknowledgements_are_told_before_telnyx_gives_up() -> None:
    # https://developers.telnyx.com/docs/messaging/messages/receiving-webhooks
    assert the("acknowledgements-slow")["Threshold"] < 2000


def test_messages_in_flight_are_told_before_sqs_hands_out_no_more() -> None:
    # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
    for name in ("in-flight-in-processing", "in-flight-in-sending"):
        assert the(name)["Threshold"] == 100_000


def test_the_front_doors_throttles_are_found_in_its_log() -> None:
    setting = OVERLAY["Resources"]["RestAPI"]["Properties"]["AccessLogSetting"]
    said = {"status": "503", "error.responseType": "THROTTLED"}
    said |= {"requestTimeEpoch": "1790000000000", "responseLength": "22"}
    line = json.loads(
        re.sub(
            r"\$context\.([\w.]+)", lambda found: said.get(found[1], "-"), filled(setting["Format"])
        )
    )
    assert (line["stage"], line["refusal"], line["status"]) == (STAGE, "THROTTLED", "503")
    (filter_,) = of_type(OVERLAY, "AWS::Logs::MetricFilter")
    assert filter_["FilterPattern"] == '{ $.refusal = "THROTTLED" }'
    assert filter_["LogGroupName"] == {"Ref": "AccessLogGroup"}
    assert [one["Dimensions"] for one in FILTERS] == [[{"Key": "stage", "Value": "$.stage"}]]


# --- the dashboard -----------------------------------------------------------------------------

WIDGETS = [one["properties"] for one in json.loads(DASHBOARD["DashboardBody"])["widgets"]]
SEARCH = re.compile(
    rf"SEARCH\('\{{Spillway,stage,reason\}} stage=\"{STAGE}\" MetricName=\"(\w+)\"', 'Sum'\)"
)


def shown() -> Iterator[tuple[str, str, dict[str, str]]]:
    """The metrics of the dashboard, with their dimensions; of a search the metric alone."""
    for widget in WIDGETS:
        above: list[str] = []
        for metric in widget["metrics"]:
            if "expression" in metric[0]:
                found = SEARCH.fullmatch(metric[0]["expression"])
                assert found, metric
                yield "Spillway", found[1], {}
                continue
            words = [word for word in metric if isinstance(word, str)]
            # A dot is what stands there in the line above.
            above = [above[n] if word == "." else word for n, word in enumerate(words)]
            yield above[0], above[1], dict(zip(above[2::2], above[3::2], strict=True))


SHOWN = list(shown())


def test_the_dashboard_shows_all_that_we_count() -> None:
    ours = {metric for namespace, metric, _ in SHOWN if namespace == "Spillway"}
    assert ours == COUNTED | {one["MetricName"] for one in FILTERS}


def test_the_dashboard_shows_what_there_is() -> None:
    for namespace, metric, found in SHOWN:
        if namespace == "Spillway":
            assert found in ({}, {"stage": STAGE})
            continue
        assert set(found) == OF_AWS[namespace, metric][0]
        for name, value in found.items():
            assert value in MADE[name]


def test_the_dashboard_shows_all_that_is_watched() -> None:
    shown_metrics = {(namespace, metric) for namespace, metric, _ in SHOWN}
    assert {(alarm["Namespace"], alarm["MetricName"]) for alarm in ALARMS} <= shown_metrics


def test_a_widget_has_what_aws_wants() -> None:
    for widget in WIDGETS:
        assert widget.keys() >= {"title", "region", "metrics", "stat", "period"}
        assert widget["region"] == "${AWS::Region}"


# --- on the emulator ---------------------------------------------------------------------------

OURS = ("AWS::CloudWatch::", "AWS::SNS::", "AWS::Logs::")


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    with emulated.ministack(tmp_path_factory.mktemp("ministack")) as endpoint:
        account = of_emulator(endpoint)
        yield account
        account.close()


@pytest.mark.parametrize(
    ("email", "told"), [("", []), ("heron@example.com", ["heron@example.com"])]
)
def test_alarms_topic_and_dashboard_are_deployed(aws: Aws, email: str, told: list[str]) -> None:
    # GIVEN what of the overlay is for seeing (the rest needs Chalice's template)
    stage = "told" if email else "quiet"
    resources = {
        name: resource
        for name, resource in OVERLAY["Resources"].items()
        if resource.get("Type", "").startswith(OURS)
    }
    template = {name: OVERLAY[name] for name in ("Parameters", "Conditions")}
    # WHEN it is deployed
    cloudformation = aws.client("cloudformation")
    cloudformation.create_stack(
        StackName=stage,
        TemplateBody=json.dumps({**template, "Resources": resources}),
        Parameters=[
            {"ParameterKey": "Stage", "ParameterValue": stage},
            {"ParameterKey": "AlarmEmail", "ParameterValue": email},
        ],
    )
    cloudformation.get_waiter("stack_create_complete").wait(
        StackName=stage, WaiterConfig={"Delay": 1, "MaxAttempts": 20}
    )
    # THEN every alarm is there and tells the topic, and the topic tells whom it should
    cloudwatch = aws.client("cloudwatch")
    alarms = cloudwatch.describe_alarms(AlarmNamePrefix=f"spillway-{stage}-", MaxRecords=100)
    found = {alarm["AlarmName"]: alarm["AlarmActions"] for alarm in alarms["MetricAlarms"]}
    topic = f"arn:aws:sns:{aws.region}:{emulated.ACCOUNT}:spillway-{stage}-alarms"
    assert found == {f"spillway-{stage}-{named(alarm)}": [topic] for alarm in ALARMS}
    subscribers = aws.client("sns").list_subscriptions_by_topic(TopicArn=topic)["Subscriptions"]
    assert [one["Endpoint"] for one in subscribers] == told
    # AND the dashboard is of this stage
    body = cloudwatch.get_dashboard(DashboardName=f"spillway-{stage}")["DashboardBody"]
    widgets = json.loads(body)["widgets"]
    assert len(widgets) == len(WIDGETS)
    assert {one["properties"]["region"] for one in widgets} == {aws.region}
    assert f"spillway-{stage}" in body
    assert "${" not in body
    # AND whoever listens hears of an alarm, with the place to read
    sqs = aws.client("sqs")
    listener = sqs.create_queue(QueueName=stage)["QueueUrl"]
    arn = f"arn:aws:sqs:{aws.region}:{emulated.ACCOUNT}:{stage}"
    aws.client("sns").subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
    # (By hand: the emulator's own judgement of a metric passes over its dimensions.)
    cloudwatch.set_alarm_state(
        AlarmName=f"spillway-{stage}-stop-dead-lettered", StateValue="ALARM", StateReason="a test"
    )
    (message,) = sqs.receive_message(QueueUrl=listener, WaitTimeSeconds=5)["Messages"]
    heard = json.loads(json.loads(message["Body"])["Message"])
    assert heard["NewStateValue"] == "ALARM"
    assert heard["AlarmDescription"] == the("stop-dead-lettered")["AlarmDescription"]


# --- what it costs -----------------------------------------------------------------------------

# Dollars a month in us-east-1: AWS's price list, AmazonCloudWatch, 2026-09-22 (an alarm's metric
# EVETVUGEN3MUTMXM, a custom metric KG586CTNGQ4VRZKZ, a GB of logs S8QGXX5R2BKKMDSJ); the dashboard:
# https://aws.amazon.com/cloudwatch/pricing/
ALARM, METRIC, LOG_GB, BOARD = 0.10, 0.30, 0.50, 3.00
PROVIDERS = 2


def calm_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All lines about a text that is answered and delivered."""
    monkeypatch.setenv("SPILLWAY_STAGE", STAGE)
    taken = httpx.Response(201, json={"sid": "SM-1"})
    runtime = FakeRuntime(lambda request: taken)
    receiver = Receiver(runtime, settings("receiver"))
    processing = Processing(runtime, settings("processing"))
    sender = Sender(runtime, settings("sender"))
    webhook = twilio_event({"Body": "hello", "MessageSid": "SM1"})
    receiver.webhook("twilio", webhook, signed_door=True)
    sender.handle(delivered(runtime, "outbound.fifo"), Context())
    id_ = json.loads(runtime.queues.sent["outbound.fifo"][0]["MessageBody"])["id"]
    for status in ("sent", "delivered"):
        receipt = {"MessageSid": "SM-1", "MessageStatus": status}
        receiver.webhook("twilio", twilio_event(receipt, reference=f"{id_}-1"), signed_door=True)
    processing.handle(delivered(runtime, "processing"), Context())
    return capsys.readouterr().out.splitlines()


def test_what_it_costs_is_on_the_page(
    stores: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = calm_lines(capsys, monkeypatch)
    found = series([json.loads(line) for line in lines])
    each = sum("provider" in dict(dimensions_) for _, dimensions_ in found)
    shared = len(found) - each
    metrics = shared + PROVIDERS * each
    kilobytes = sum(len(line) + 1 for line in lines) / 1000
    searches = sum(dimensions_ == {} for _, _, dimensions_ in SHOWN)
    metrics_shown = len(SHOWN) - searches
    assert metrics_shown <= 50  # above that none is free
    expected = [
        (str(len(ALARMS)), ALARM * len(ALARMS)),
        (str(metrics), METRIC * metrics),
        (f"1, with {metrics_shown} metrics and {searches} searches", BOARD),
        (f"{kilobytes:.1f} KB a text", LOG_GB * kilobytes),
    ]
    page = rows(PAGE, "What it costs to be seen")
    assert [(many, cost) for _, many, cost in page] == [
        (many, f"${cost:.2f}") for many, cost in expected
    ]
    text = " ".join(PAGE.read_text().split())
    assert f"of the stage and its reasons {shared}, of each provider {each}." in text
    total = ALARM * len(ALARMS) + METRIC * metrics + BOARD
    assert (
        f"{len(ALARMS)} × $0.10 + ({shared} + {PROVIDERS} × {each}) × $0.30 + $3.00 = ${total:.2f}"
        in text
    )

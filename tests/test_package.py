"""What `chalice package` makes of the project: the zip that Lambda gets and the SAM template.

Chalice downloads the wheels for Lambda with pip, so these tests need a package index (or pip's own
cache): without one, Chalice ends with the requirement that it could not satisfy, and they fail with
its words. Where the index has no wheel for the architecture, Chalice only warns and packs the rest,
which is why the zip's distributions are compared with requirements.txt.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from chalice.package import TemplateDeepMerger, YAMLTemplateSerializer

from chalicelib.config import SettingError, Settings, load
from spillway.deploy.package import VALIDATION, lay_over

PROJECT = Path(__file__).parent.parent
LIMIT = 15_000_000
OVERLAY: dict[str, Any] = YAMLTemplateSerializer().load_template(
    (PROJECT / "infra" / "app.yaml").read_text()
)

# https://refspecs.linuxfoundation.org/elf/gabi4+/ch4.eheader.html: e_machine
ELF_MACHINE = {"x86_64": 62, "arm64": 183}

# Each architecture packages another stage, so that two runs show both.
STAGE = {"x86_64": "dev", "arm64": "prod"}


@dataclass(frozen=True)
class Package:
    """What one run of `chalice package` left; and the template with infra/app.yaml laid over it, by
    what Chalice does that with where it is told to (`--merge-template`)."""

    architecture: str
    stage: str
    zip: Path
    template_file: Path
    overlaid_file: Path

    @property
    def template(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.template_file.read_text())
        return found

    @property
    def overlaid(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.overlaid_file.read_text())
        return found

    @property
    def names(self) -> list[str]:
        with ZipFile(self.zip) as archive:
            return archive.namelist()

    def function(self, name: str) -> dict[str, Any]:
        """The properties of one function. The API's is `APIHandler`, the others `Name`."""
        properties: dict[str, Any] = self.template["Resources"][name]["Properties"]
        return properties


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Package]:
    """The project, packaged for both architectures at the same time."""
    running = {}
    for architecture, stage in STAGE.items():
        project = tmp_path_factory.mktemp(architecture) / "project"
        # All of it: what must not be in the zip has to be there to get into it.
        shutil.copytree(PROJECT, project, ignore=shutil.ignore_patterns(*NOT_SOURCE))
        config = project / ".chalice" / "config.json"
        settings = json.loads(config.read_text())
        settings["stages"][stage]["lambda_architecture"] = architecture
        config.write_text(json.dumps(settings))
        running[architecture] = (
            project,
            subprocess.Popen(
                [Path(sys.executable).with_name("chalice"), "package", "--stage", stage, "out"],
                cwd=project,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            ),
        )
    made = {}
    for architecture, (project, process) in running.items():
        printed, _ = process.communicate(timeout=120)
        assert process.returncode == 0, printed
        out = project / "out"
        made[architecture] = package = Package(
            architecture,
            STAGE[architecture],
            out / "deployment.zip",
            out / "sam.json",
            out / "overlaid.json",
        )
        overlaid = TemplateDeepMerger().merge(OVERLAY, package.template)
        package.overlaid_file.write_text(json.dumps(overlaid))
    return made


# Bytecode too: Chalice packs whatever it finds in chalicelib/.
NOT_SOURCE = (
    ".venv",
    ".git",
    ".spillway",
    "__pycache__",
    "*.egg-info",
    ".*_cache",
    ".hypothesis",
    "build",
    "deployments",
    "deployed",
)


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return {
        **kept,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@pytest.fixture(params=STAGE)
def package(packages: dict[str, Package], request: pytest.FixtureRequest) -> Package:
    return packages[request.param]


# --- the zip -----------------------------------------------------------------------------------


def test_the_zip_is_small(package: Package) -> None:
    assert package.zip.stat().st_size < LIMIT


def test_the_zip_holds_our_code_and_nothing_of_the_tools(package: Package) -> None:
    ours = {
        str(path.relative_to(PROJECT))
        for path in (PROJECT / "chalicelib").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    packed = {name for name in package.names if name.startswith("chalicelib/")}
    assert packed == ours
    assert {name for name in package.names if name.startswith("chalice/")} == {
        "chalice/__init__.py",
        "chalice/app.py",
    }
    assert "app.py" in package.names
    tops = {name.split("/")[0] for name in package.names}
    forbidden = {
        "boto3",
        "botocore",
        "s3transfer",
        "spillway",
        "tests",
        "infra",
        "bench",
        "docs",
        ".chalice",
        "vendor",
        "pyproject.toml",
    }
    assert not tops & forbidden


def test_the_zip_holds_exactly_the_pinned_distributions(package: Package) -> None:
    pinned = set()
    for line in (PROJECT / "requirements.txt").read_text().splitlines():
        requirement = line.partition("#")[0].strip()
        if requirement:
            name, _, version = requirement.partition("==")
            pinned.add((normal(name), version))
    found = set()
    for name in package.names:
        match = re.fullmatch(r"([^/]+)-([^/-]+)\.dist-info/METADATA", name)
        if match:
            found.add((normal(match.group(1)), match.group(2)))
    assert found == pinned


def normal(name: str) -> str:
    # https://packaging.python.org/en/latest/specifications/name-normalization/
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_extension_module_is_for_the_architecture(package: Package) -> None:
    machines = {}
    with ZipFile(package.zip) as archive:
        for name in package.names:
            if ".so" in Path(name).suffixes:
                header = archive.open(name).read(20)
                assert header[:4] == b"\x7fELF"
                machines[name] = struct.unpack_from("<H", header, 18)[0]
    assert set(machines.values()) == {ELF_MACHINE[package.architecture]}
    assert {name.split("/")[0].split(".")[0] for name in machines} >= {
        "cryptography",
        "pydantic_core",
        "_cffi_backend",
    }


# --- the template --------------------------------------------------------------------------------

FUNCTIONS = {
    "APIHandler": "api_handler",
    "Authorize": "authorize",
    "Process": "process",
    "Send": "send",
}


@pytest.mark.parametrize(
    ("resource", "memory", "time_out", "role"),
    [
        ("Authorize", 256, 5, "authorizer"),
        ("APIHandler", 512, 10, "receiver"),
        ("Process", 1024, 60, "processing"),
        ("Send", 512, 60, "sender"),
    ],
)
def test_functions(package: Package, resource: str, memory: int, time_out: int, role: str) -> None:
    function = package.function(resource)
    variables = function["Environment"]["Variables"]
    assert function["MemorySize"] == memory
    assert function["Timeout"] == time_out
    assert function["Architectures"] == [package.architecture]
    assert variables["SPILLWAY_FUNCTION"] == role
    assert variables["SPILLWAY_STAGE"] == package.stage


EVERYWHERE = {"SPILLWAY_FUNCTION", "SPILLWAY_STAGE", "LOG_LEVEL"}


@pytest.mark.parametrize(
    ("resource", "names"),
    [
        ("Authorize", {"CREDENTIAL_HASHES"}),
        ("APIHandler", {"PROVIDERS", "PUBLIC_URL", "NUMBERS"}),
        (
            "Process",
            {
                "PROVIDERS",
                "NUMBERS",
                "BRAND",
                "REPLY_MAX_AGE",
                "MESSAGE_MAX_AGE",
                "SEND_ONLY_TO",
                "SEND_TO_COUNTRIES",
                "UNKNOWN_SENDS",
                "LOOKUP_URLS",
                "LOOKUP_MAX_AGE",
                "EVENT_BUS",
                "EVENTS_URL",
                "MESSAGE_DAYS",
                "REPORT_BATCH_ITEM_FAILURES",
            },
        ),
        (
            "Send",
            {
                "PROVIDERS",
                "NUMBERS",
                "BRAND",
                "REPLY_API_URL",
                "REPLY_TIMEOUT",
                "REPLY_MAX_AGE",
                "MESSAGE_MAX_AGE",
                "LOOP_LIMIT",
                "MAX_PARTS",
                "PACING",
                "DAILY_SEND_CAP",
                "SEND_ONLY_TO",
                "SEND_TO_COUNTRIES",
                "EVENT_BUS",
                "EVENTS_URL",
                "STOP_TEXT",
                "HELP_TEXT",
                "MESSAGE_DAYS",
                "REPORT_BATCH_ITEM_FAILURES",
            },
        ),
    ],
)
def test_a_function_gets_the_settings_that_it_needs_and_no_other(
    package: Package, resource: str, names: set[str]
) -> None:
    assert set(package.function(resource)["Environment"]["Variables"]) == names | EVERYWHERE


FILLED = {
    "NUMBERS": "+14155550123=twilio,+14155550199=telnyx",
    "CREDENTIAL_HASHES": json.dumps({"twilio": ["0" * 64], "api": ["f" * 64]}),
    "SEND_ONLY_TO": "+14155550100",
}


@pytest.mark.parametrize("resource", FUNCTIONS)
def test_a_function_starts_once_the_marked_settings_are_filled_in(
    package: Package, resource: str
) -> None:
    variables = package.function(resource)["Environment"]["Variables"]
    marked = {name for name, value in variables.items() if value.startswith("FILL IN")}
    # (The stage prod may write to everybody.)
    needed = set(FILLED) - ({"SEND_ONLY_TO"} if package.stage == "prod" else set())
    assert marked == set(variables) & needed
    assert isinstance(load({**variables, **{name: FILLED[name] for name in marked}}), Settings)
    if marked:
        with pytest.raises(SettingError) as refused:
            load(variables)
        assert set(re.findall(r"^([A-Z_]+): ", str(refused.value), re.MULTILINE)) == marked


def test_both_pipelines_work_with_the_same_settings(package: Package) -> None:
    process, send = (
        package.function(resource)["Environment"]["Variables"] for resource in ("Process", "Send")
    )
    shared = set(process) & set(send) - {"SPILLWAY_FUNCTION"}
    assert shared >= {"PROVIDERS", "BRAND", "REPLY_MAX_AGE", "MESSAGE_MAX_AGE", "MESSAGE_DAYS"}
    assert {name: process[name] for name in shared} == {name: send[name] for name in shared}


def test_failures_are_not_reported_where_the_mapping_does_not_ask_for_them(
    package: Package,
) -> None:
    # A list that is returned without FunctionResponseTypes is ignored, and the batch deleted.
    for resource in ("Process", "Send"):
        (mapping,) = package.function(resource)["Events"].values()
        asked = "ReportBatchItemFailures" in mapping["Properties"].get("FunctionResponseTypes", [])
        variables = package.function(resource)["Environment"]["Variables"]
        assert variables["REPORT_BATCH_ITEM_FAILURES"] == ("true" if asked else "false")


@pytest.mark.parametrize(
    ("resource", "queue", "batch", "window"),
    [("Process", "processing", 100, 1), ("Send", "outbound.fifo", 10, 0)],
)
def test_mappings(package: Package, resource: str, queue: str, batch: int, window: int) -> None:
    (mapping,) = package.function(resource)["Events"].values()
    arn = (
        "arn:${AWS::Partition}:sqs:${AWS::Region}:${AWS::AccountId}"
        f":spillway-{package.stage}-{queue}"
    )
    assert mapping["Type"] == "SQS"
    assert mapping["Properties"]["Queue"] == {"Fn::Sub": arn}
    assert mapping["Properties"]["BatchSize"] == batch
    assert mapping["Properties"]["MaximumBatchingWindowInSeconds"] == window


@pytest.mark.parametrize("resource", FUNCTIONS)
def test_a_function_has_a_role_of_its_own_with_its_policy_file(
    package: Package, resource: str
) -> None:
    role = package.function(resource)["Role"]["Fn::GetAtt"][0]
    (policy,) = package.template["Resources"][role]["Properties"]["Policies"]
    config = json.loads((PROJECT / ".chalice" / "config.json").read_text())
    settings = config["stages"][package.stage]["lambda_functions"][FUNCTIONS[resource]]
    file = PROJECT / ".chalice" / settings["iam_policy_file"]
    assert policy["PolicyDocument"] == json.loads(file.read_text())


@pytest.mark.parametrize(
    ("method", "path", "guarded"),
    [
        ("post", "/webhooks/{provider}", True),
        ("post", "/webhooks/{provider}/signed", False),
        ("post", "/messages", True),
        ("get", "/messages/{id}", True),
        ("post", "/consent", True),
        ("get", "/health", False),
    ],
)
def test_the_authorizer_is_on_the_right_routes(
    package: Package, method: str, path: str, guarded: bool
) -> None:
    operation = routes(package)[method, path]
    assert operation.get("security") == ([{"authorize": []}] if guarded else None)


def test_no_route_is_without_a_decision_about_its_authorizer(package: Package) -> None:
    assert set(routes(package)) == {
        ("post", "/webhooks/{provider}"),
        ("post", "/webhooks/{provider}/signed"),
        ("post", "/messages"),
        ("get", "/messages/{id}"),
        ("post", "/consent"),
        ("get", "/health"),
    }


def test_the_authorizer_is_asked_for_the_authorization_header_and_cached(package: Package) -> None:
    (scheme,) = api(package)["securityDefinitions"].values()
    authorizer = scheme["x-amazon-apigateway-authorizer"]
    assert (scheme["in"], scheme["name"]) == ("header", "Authorization")
    assert authorizer["type"] == "token"
    assert authorizer["authorizerResultTtlInSeconds"] == 300
    assert "${Authorize.Arn}" in authorizer["authorizerUri"]["Fn::Sub"]


def api(package: Package) -> dict[str, Any]:
    body: dict[str, Any] = package.template["Resources"]["RestAPI"]["Properties"]["DefinitionBody"]
    return body


def routes(package: Package) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method, path): operation
        for path, operations in api(package)["paths"].items()
        for method, operation in operations.items()
    }


def test_no_intrinsic_function_shares_its_object(package: Package) -> None:
    for template in (package.template, package.overlaid):
        shared = [
            mapping
            for mapping in mappings_in(template)
            if len(mapping) > 1 and any(key == "Ref" or key.startswith("Fn::") for key in mapping)
        ]
        assert shared == []


def mappings_in(value: object) -> Iterator[Mapping[str, object]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from mappings_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from mappings_in(inner)


def test_the_overlay_adds_what_chalice_cannot_make_as_it_is(package: Package) -> None:
    added = {
        name: resource
        for name, resource in OVERLAY["Resources"].items()
        if name not in package.template["Resources"]
    }
    assert {resource["Type"] for resource in added.values()} == {
        *("AWS::CloudWatch::Alarm", "AWS::CloudWatch::Dashboard"),
        *("AWS::SNS::Topic", "AWS::SNS::Subscription"),
        *("AWS::Logs::LogGroup", "AWS::Logs::MetricFilter"),
    }
    assert package.overlaid["Resources"].items() >= added.items()


def overlaid(package: Package, resource: str) -> Any:
    return package.overlaid["Resources"][resource]["Properties"]


@pytest.mark.parametrize(
    ("resource", "queue", "at_most"),
    [("Process", "processing", 200), ("Send", "outbound.fifo", 250)],
)
def test_a_mapping_takes_reports_and_is_bounded(
    package: Package, resource: str, queue: str, at_most: int
) -> None:
    (mapping,) = overlaid(package, resource)["Events"].values()
    assert mapping["Properties"]["Queue"]["Fn::Sub"].endswith(f":spillway-{package.stage}-{queue}")
    assert mapping["Properties"]["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert mapping["Properties"]["ScalingConfig"] == {"MaximumConcurrency": at_most}
    # AND the function reports when a parameter says that its mapping has been seen to listen
    variables = overlaid(package, resource)["Environment"]["Variables"]
    assert variables["REPORT_BATCH_ITEM_FAILURES"] == {"Ref": "ReportBatchItemFailures"}
    assert package.overlaid["Parameters"]["ReportBatchItemFailures"]["Default"] == "true"


def test_the_front_door_of_prod_has_concurrency_of_its_own(packages: dict[str, Package]) -> None:
    reserved = {
        package.stage: {
            name: properties["ReservedConcurrentExecutions"]
            for name in FUNCTIONS
            if "ReservedConcurrentExecutions" in (properties := overlaid(package, name))
        }
        for package in packages.values()
    }
    assert reserved == {"dev": {}, "prod": {"Authorize": 100, "APIHandler": 300}}
    # AND what a usual account has is enough for both mappings besides, and Lambda's hundred
    at_most = sum(
        mapping["Properties"]["ScalingConfig"]["MaximumConcurrency"]
        for name in ("Process", "Send")
        for mapping in overlaid(packages["arm64"], name)["Events"].values()
    )
    assert sum(reserved["prod"].values()) + at_most + 100 <= 1000


def test_prod_runs_on_arm64(packages: dict[str, Package]) -> None:
    config = json.loads((PROJECT / ".chalice" / "config.json").read_text())
    assert config["stages"]["prod"]["lambda_architecture"] == "arm64"
    for name in FUNCTIONS:
        assert overlaid(packages["arm64"], name)["Architectures"] == ["arm64"]


@pytest.mark.parametrize(
    ("resource", "group", "name"),
    [
        ("Authorize", "AuthorizeLogGroup", "-authorize"),
        ("APIHandler", "ApiHandlerLogGroup", ""),
        ("Process", "ProcessLogGroup", "-process"),
        ("Send", "SendLogGroup", "-send"),
    ],
)
def test_logs_are_json_kept_for_a_while_and_without_the_platforms(
    package: Package, resource: str, group: str, name: str
) -> None:
    everybodys = package.overlaid["Globals"]["Function"]["LoggingConfig"]
    assert everybodys["LogFormat"] == "JSON"
    assert everybodys["SystemLogLevel"] == "WARN"
    function = overlaid(package, resource)
    assert function["FunctionName"] == {"Fn::Sub": f"spillway-${{Stage}}{name}"}
    assert function["LoggingConfig"] == {"LogGroup": {"Ref": group}}
    assert overlaid(package, group) == {
        "LogGroupName": {"Fn::Sub": f"/aws/lambda/spillway-${{Stage}}{name}"},
        "RetentionInDays": 30,
    }


def test_a_401_asks_for_credentials_and_no_fault_of_ours_is_a_4xx(package: Package) -> None:
    body = overlaid(package, "RestAPI")["DefinitionBody"]
    responses = body["x-amazon-apigateway-gateway-responses"]
    # Twilio and Bandwidth send their credentials only after this.
    assert responses["UNAUTHORIZED"]["responseParameters"] == {
        "gatewayresponse.header.WWW-Authenticate": "'Basic realm=\"spillway\"'"
    }
    # https://docs.aws.amazon.com/apigateway/latest/developerguide/supported-gateway-response-types.html
    statuses = {kind: response.get("statusCode") for kind, response in responses.items()}
    ours = (
        *("THROTTLED", "QUOTA_EXCEEDED", "AUTHORIZER_FAILURE", "AUTHORIZER_CONFIGURATION_ERROR"),
        *("API_CONFIGURATION_ERROR", "INTEGRATION_FAILURE", "INTEGRATION_TIMEOUT", "DEFAULT_5XX"),
    )
    assert statuses == {
        "UNAUTHORIZED": 401,
        "ACCESS_DENIED": 403,
        "MISSING_AUTHENTICATION_TOKEN": 404,
        "DEFAULT_4XX": None,
        **dict.fromkeys(ours, 503),
    }
    for kind, response in responses.items():
        assert set(json.loads(response["responseTemplates"]["application/json"])) == {"error"}
        again = response.get("responseParameters", {}).get("gatewayresponse.header.Retry-After")
        assert (again is not None) is (kind in ours)


def test_the_api_has_the_one_name_that_alarms_and_dashboard_watch(package: Package) -> None:
    # (What is imported may name the API after its title.)
    name = overlaid(package, "RestAPI")["Name"]
    assert overlaid(package, "RestAPI")["DefinitionBody"]["info"]["title"] == name
    watched = [
        mapping["Value"]
        for mapping in mappings_in(package.overlaid)
        if mapping.get("Name") == "ApiName"
    ]
    assert watched == [name] * 2
    dashboard = json.dumps(overlaid(package, "Dashboard"))
    on_it = re.findall(r'\\"ApiName\\", \\"([^"\\]*)', dashboard)
    assert on_it
    assert set(on_it) == {name["Fn::Sub"]}


def test_the_stage_is_throttled_and_is_the_only_one(package: Package) -> None:
    (settings,) = overlaid(package, "RestAPI")["MethodSettings"]
    assert (settings["ResourcePath"], settings["HttpMethod"]) == ("/*", "*")
    assert settings["ThrottlingRateLimit"] == {"Ref": "RequestsPerSecond"}
    assert settings["ThrottlingBurstLimit"] == {"Ref": "RequestsAtOnce"}
    # Within what an account has, for all its APIs.
    parameters = package.overlaid["Parameters"]
    assert parameters["RequestsPerSecond"]["Default"] <= 10_000
    assert parameters["RequestsAtOnce"]["Default"] <= 5_000
    # Execution logs would hold bodies.
    assert (settings["LoggingLevel"], settings["DataTraceEnabled"]) == ("OFF", False)
    assert package.overlaid["Globals"]["Api"] == {"OpenApiVersion": "2.0"}


# What API Gateway knows that tells nobody who wrote, or what.
# https://docs.aws.amazon.com/apigateway/latest/developerguide/api-gateway-variables-for-access-logging.html
HARMLESS = {
    *("$context.requestId", "$context.requestTimeEpoch", "$context.httpMethod"),
    *("$context.resourcePath", "$context.status", "$context.responseLength"),
    *("$context.responseLatency", "$context.integrationLatency", "$context.integration.status"),
    *("$context.authorizer.status", "$context.error.responseType"),
}


def test_the_access_log_says_nothing_of_anybody(package: Package) -> None:
    format_ = overlaid(package, "RestAPI")["AccessLogSetting"]["Format"]["Fn::Sub"]
    said = set(re.findall(r"\$[A-Za-z.]+", format_))
    assert "$context.status" in said
    assert said <= HARMLESS
    # AND each line is JSON, with a hyphen for whatever there is not
    assert isinstance(json.loads(re.sub(r"\$[A-Za-z.]+", "-", format_)), dict)


def test_the_templates_are_lint_clean(package: Package) -> None:
    assert lint(package.template_file, package.overlaid_file) == ""


def lint(*templates: Path) -> str:
    """What cfn-lint says of them."""
    done = subprocess.run(
        [Path(sys.executable).with_name("cfn-lint"), *templates],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


# --- with Step Functions before the receiver -----------------------------------------------------


@pytest.fixture
def validated(package: Package, tmp_path: Path) -> Package:
    """What `spillway deploy --validate-with-step-functions` makes of a package."""
    file = tmp_path / "template.json"
    file.write_text(json.dumps(lay_over(package.overlaid, PROJECT / VALIDATION)))
    return replace(package, template_file=file, overlaid_file=file)


def test_the_template_with_both_overlays_is_lint_clean(validated: Package) -> None:
    assert lint(validated.template_file) == ""


def test_nothing_of_chalices_integration_is_left_in_a_webhooks(validated: Package) -> None:
    by_route = {
        route: operation["x-amazon-apigateway-integration"]
        for route, operation in routes(validated).items()
    }
    doors = ("/webhooks/{provider}", "/webhooks/{provider}/signed")
    for (_, path), integration in by_route.items():
        assert integration["type"] == ("aws" if path in doors else "aws_proxy")
    for path in doors:
        assert by_route["post", path] == by_route["post", doors[0]]
    assert by_route["post", doors[0]].keys() == {
        "contentHandling",
        "credentials",
        "httpMethod",
        "passthroughBehavior",
        "requestParameters",
        "requestTemplates",
        "responses",
        "timeoutInMillis",
        "type",
        "uri",
    }


def test_no_overlay_shares_an_intrinsic_functions_object(validated: Package) -> None:
    test_no_intrinsic_function_shares_its_object(validated)


def test_the_doors_are_guarded_as_without_it(package: Package, validated: Package) -> None:
    assert {route: one.get("security") for route, one in routes(validated).items()} == {
        route: one.get("security") for route, one in routes(package).items()
    }


def test_each_waits_longer_than_what_is_behind_it(validated: Package) -> None:
    # ... and not as long as Twilio, which waits for 15 s.
    # https://www.twilio.com/docs/usage/webhooks/webhooks-connection-overrides
    receiver = validated.function("APIHandler")["Timeout"]
    machine = definition(validated)["TimeoutSeconds"]
    door = routes(validated)["post", "/webhooks/{provider}/signed"]
    gateway = door["x-amazon-apigateway-integration"]["timeoutInMillis"] / 1000
    # One throttle is tried again, within a second: Telnyx waits for 2.
    (retry,) = definition(validated)["States"]["Receive"]["Retry"]
    assert retry == {
        "ErrorEquals": ["Lambda.TooManyRequestsException"],
        "IntervalSeconds": 1,
        "MaxAttempts": 1,
        "JitterStrategy": "FULL",
    }
    assert receiver + 1 < machine < gateway < 15


def definition(validated: Package) -> dict[str, Any]:
    found: dict[str, Any] = validated.function("ValidationMachine")["Definition"]
    return found


def test_the_state_machine_keeps_nothing_of_what_it_sees(validated: Package) -> None:
    machine = validated.function("ValidationMachine")
    assert machine["StateMachineType"] == "EXPRESS"
    logging = machine["LoggingConfiguration"]
    assert (logging["Level"], logging["IncludeExecutionData"]) == ("ERROR", False)
    assert machine["TracingConfiguration"] == {"Enabled": False}


@pytest.mark.parametrize(
    ("role", "principal", "allowed"),
    [
        (
            "ValidationRole",
            "states.amazonaws.com",
            {"lambda:InvokeFunction": {"Fn::GetAtt": ["APIHandler", "Arn"]}},
        ),
        (
            "ValidationApiRole",
            "apigateway.amazonaws.com",
            {"states:StartSyncExecution": {"Ref": "ValidationMachine"}},
        ),
    ],
)
def test_its_roles_may_do_one_thing(
    validated: Package, role: str, principal: str, allowed: dict[str, Any]
) -> None:
    properties = validated.function(role)
    (trust,) = properties["AssumeRolePolicyDocument"]["Statement"]
    assert trust["Principal"] == {"Service": principal}
    (policy,) = properties["Policies"]
    may = {
        action: resource
        for statement in policy["PolicyDocument"]["Statement"]
        for action in statement["Action"]
        for resource in statement["Resource"]
    }
    # What logs to CloudWatch Logs needs cannot be restricted.
    assert {k: v for k, v in may.items() if not k.startswith("logs:")} == allowed
    assert {v for k, v in may.items() if k.startswith("logs:")} <= {"*"}

"""Who decides about a variable of a child, and what never reaches one."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from chalicelib.config import SettingError
from chalicelib.config import load as settings_of
from spillway.local import emulator
from spillway.local.environment import Environments
from spillway.local.keys import Keys, load
from spillway.local.ports import Ports
from spillway.problem import Problem
from spillway.project import PROJECT

CONFIG = {
    "version": "2.0",
    "app_name": "spillway",
    "lambda_functions": {"send": {"lambda_timeout": 45}},
    "stages": {
        "local": {
            "environment_variables": {"SPILLWAY_STAGE": "local", "BRAND": "of the stage"},
            "lambda_functions": {
                "api_handler": {"environment_variables": {"SPILLWAY_FUNCTION": "receiver"}},
                "process": {"environment_variables": {"SPILLWAY_FUNCTION": "processing"}},
                "send": {
                    "environment_variables": {
                        "SPILLWAY_FUNCTION": "sender",
                        "BRAND": "of the sender",
                        "NUMBERS": "of the sender",
                        "HOUSE_RULE": "ours",
                    }
                },
            },
        },
        "prod": {"environment_variables": {"BRAND": "of another stage"}},
    },
}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return load(tmp_path_factory.mktemp("keys") / "secrets.json")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / ".chalice").mkdir()
    (tmp_path / ".chalice" / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def environments(project: Path, keys: Keys, **caller: str) -> Environments:
    return Environments(project, Ports(8001, 8081, 4567), keys, caller)


@pytest.mark.parametrize(
    ("child", "caller", "variable", "value"),
    [
        # .chalice/config.json, the function before the stage
        ("processing", {}, "BRAND", "of the stage"),
        ("outbound", {}, "BRAND", "of the sender"),
        ("outbound", {}, "SPILLWAY_FUNCTION", "sender"),
        # what the run generates goes before it
        ("outbound", {}, "SEND_ONLY_TO", "*"),
        ("outbound", {"TWILIO_API_URL": "", "SEND_ONLY_TO": "+1"}, "SEND_ONLY_TO", "+1"),
        ("outbound", {"TWILIO_API_URL": "http://127.0.0.1:9/twilio"}, "SEND_ONLY_TO", "*"),
        ("outbound", {}, "NUMBERS", "+14155550123=twilio,+14155550199=telnyx"),
        ("outbound", {}, "TWILIO_API_URL", "http://127.0.0.1:8081/provider/twilio"),
        ("outbound", {}, "REPORT_BATCH_ITEM_FAILURES", "true"),
        ("webhook", {}, "PUBLIC_URL", "http://127.0.0.1:8001"),
        ("webhook", {}, "AWS_ENDPOINT_URL", "http://127.0.0.1:4567"),
        # the caller goes before both, with nothing too
        ("outbound", {"NUMBERS": "+1=x"}, "NUMBERS", "+1=x"),
        ("outbound", {"BRAND": "mine"}, "BRAND", "mine"),
        ("outbound", {"HOUSE_RULE": "mine"}, "HOUSE_RULE", "mine"),
        ("outbound", {"REPLY_API_URL": ""}, "REPLY_API_URL", ""),
        ("webhook", {"LOG_LEVEL": "DEBUG"}, "LOG_LEVEL", "DEBUG"),
        ("webhook", {"PATH": "/bin"}, "PATH", "/bin"),
        (
            "processing",
            {"AWS_ENDPOINT_URL_DYNAMODB": "http://127.0.0.1:1"},
            "AWS_ENDPOINT_URL_DYNAMODB",
            "http://127.0.0.1:1",
        ),
        # but not about who the child is, nor on which AWS account it works
        ("processing", {"SPILLWAY_FUNCTION": "sender"}, "SPILLWAY_FUNCTION", "processing"),
        ("processing", {"SPILLWAY_STAGE": "prod"}, "SPILLWAY_STAGE", "local"),
        ("processing", {"AWS_ACCESS_KEY_ID": "AKIA"}, "AWS_ACCESS_KEY_ID", "test"),
        ("processing", {"AWS_SECRET_ACCESS_KEY": "real"}, "AWS_SECRET_ACCESS_KEY", "test"),
        ("processing", {"AWS_REGION": "eu-west-1"}, "AWS_REGION", "us-east-1"),
        ("processing", {"AWS_DEFAULT_REGION": "eu-west-1"}, "AWS_DEFAULT_REGION", "us-east-1"),
        ("processing", {"AWS_CONFIG_FILE": "/home/me/c"}, "AWS_CONFIG_FILE", os.devnull),
        ("processing", {}, "AWS_SHARED_CREDENTIALS_FILE", os.devnull),
        ("processing", {}, "AWS_EC2_METADATA_DISABLED", "true"),
        # nor may a proxy come between processes of one machine
        ("outbound", {"NO_PROXY": "intra"}, "NO_PROXY", "intra,127.0.0.1"),
    ],
)
def test_who_decides(
    project: Path, keys: Keys, child: str, caller: dict[str, str], variable: str, value: str
) -> None:
    assert environments(project, keys, **caller).function(child)[variable] == value


@pytest.mark.parametrize(
    "variable",
    [
        "AWS_PROFILE",
        "AWS_DEFAULT_PROFILE",
        "AWS_SESSION_TOKEN",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_CHALICE_CLI_MODE",
    ],
)
def test_the_callers_aws_reaches_no_child(project: Path, keys: Keys, variable: str) -> None:
    made = environments(project, keys, **{variable: "mine"})
    for environment in (made.function("webhook"), made.function("outbound"), made.simulator()):
        assert variable not in environment


@pytest.mark.parametrize("url", ["", "https://api.telnyx.com"])
def test_of_a_real_provider_somebody_has_to_say_to_whom_it_writes(
    project: Path, keys: Keys, url: str
) -> None:
    real = environments(project, keys, TELNYX_API_URL=url).settings("outbound")
    assert not {"SEND_ONLY_TO", "SEND_TO_COUNTRIES"} & set(real)
    with pytest.raises(SettingError, match="SEND_ONLY_TO: not set"):
        settings_of(real)


def test_only_the_way_to_the_webhook_and_its_keys_reach_the_simulator(
    project: Path, keys: Keys
) -> None:
    environment = environments(project, keys, PUBLIC_URL="http://127.0.0.1:9").simulator()
    assert json.loads(environment["SIMULATOR"]) == {
        "webhook": "http://127.0.0.1:9",
        "credentials": {"twilio": keys.credentials["twilio"]},
        "secrets": {name: keys.secrets[name] for name in ("twilio", "telnyx")},
        "gates": {},
    }
    assert not any(name.startswith("AWS_") for name in environment)


def test_each_outside_service_is_at_its_own_gate(project: Path, keys: Keys) -> None:
    gates = {"twilio": 1, "telnyx": 2, "reply": 3, "customer": 4, "line": 5}
    made = Environments(project, Ports(8001, 8081, 4567, gates), keys, {})
    settings = made.settings("outbound")
    assert settings["TWILIO_API_URL"] == "http://127.0.0.1:1/provider/twilio"
    assert settings["TELNYX_API_URL"] == "http://127.0.0.1:2/provider/telnyx"
    assert settings["REPLY_API_URL"] == "http://127.0.0.1:3/sample/reply"
    assert json.loads(settings["LOOKUP_URLS"]) == {
        "customer": "http://127.0.0.1:4/sample/lookups/customer",
        "line": "http://127.0.0.1:5/sample/lookups/line",
    }
    assert json.loads(made.simulator()["SIMULATOR"])["gates"] == gates


def test_the_run_says_what_the_caller_replaced(project: Path, keys: Keys) -> None:
    made = environments(
        project,
        keys,
        PATH="/bin",
        AWS_PROFILE="me",
        AWS_ENDPOINT_URL_SQS="http://127.0.0.1:1",
        MAX_PARTS="2",
        HOUSE_RULE="mine",
        SPILLWAY_FUNCTION="sender",
    )
    assert made.replaced() == ["AWS_ENDPOINT_URL_SQS", "HOUSE_RULE", "MAX_PARTS"]


def test_a_shell_reads_the_file_back(project: Path, keys: Keys, tmp_path: Path) -> None:
    made = environments(project, keys, HELP_TEXT="Don't panic: $HOME `id`\nsecond line")
    (tmp_path / "env").write_text(made.shell_file())
    shown = subprocess.run(
        ["/bin/sh", "-c", "set -a; . ./env; env -0"],
        cwd=tmp_path,
        env={},
        capture_output=True,
        check=True,
        timeout=10,
    ).stdout.decode()
    found = dict(entry.split("=", 1) for entry in shown.split("\0") if entry)
    settings = made.settings("webhook")
    assert {name: found[name] for name in settings} == settings
    assert found["HELP_TEXT"] == "Don't panic: $HOME `id`\nsecond line"


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        (None, {"twilio": "+14155550123", "telnyx": "+14155550199"}),
        ("+15550001=telnyx, +15550002=telnyx", {"telnyx": "+15550001"}),
        ("nonsense", {}),
    ],
)
def test_one_number_for_each_provider(
    project: Path, keys: Keys, numbers: str | None, expected: dict[str, str]
) -> None:
    caller = {} if numbers is None else {"NUMBERS": numbers}
    assert environments(project, keys, **caller).numbers() == expected


@pytest.mark.parametrize("text", [None, "{"])
def test_a_config_that_cannot_be_read_is_named(project: Path, keys: Keys, text: str | None) -> None:
    path = project / ".chalice" / "config.json"
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(Problem, match=r"config\.json"):
        environments(project, keys).function("webhook")


@pytest.mark.parametrize(
    ("child", "function"),
    [("webhook", "receiver"), ("processing", "processing"), ("outbound", "sender")],
)
def test_each_process_gets_the_function_of_the_real_config(
    keys: Keys, child: str, function: str
) -> None:
    assert environments(PROJECT, keys).function(child)["SPILLWAY_FUNCTION"] == function


def test_the_emulator_listens_on_this_machine_only(tmp_path: Path) -> None:
    made = emulator.environment(4567, tmp_path, {"BIND_HOST": "0.0.0.0", "PATH": "/bin"})
    assert made["BIND_HOST"] == "127.0.0.1"
    assert made["IOT_MTLS_ENABLED"] == "0"

"""What the doctor finds, where something is wrong. (That all is well, and what is mended, is seen
of a deployed stage in tests/deployed.)"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from inspect import isfunction
from types import SimpleNamespace
from typing import Any

import pytest

from spillway.operate import checks, probe
from spillway.operate.checks import Finding
from spillway.operate.probe import Probed
from spillway.project import PROJECT
from spillway.stage import Api, Stage
from tests.operate.conftest import SETTINGS
from tests.operate.world import NAME


def bad(found: Iterator[Finding]) -> list[str]:
    every = list(found)
    assert all(one.mend for one in every if one.level != "good")
    return [one.said for one in every if one.level == "bad"]


def test_the_doctor_makes_every_check() -> None:
    public = [one for name, one in vars(checks).items() if not name.startswith("_")]
    made = {one for one in public if isfunction(one) and one.__module__ == checks.__name__}
    assert set(checks.ALL) == made


def test_wrong_settings_are_named(stage: Stage) -> None:
    assert bad(checks.settings(stage)) == []
    assert stage.local is not None
    wrong = {**SETTINGS, "SPILLWAY_FUNCTION": "sender", "REPLY_TIMEOUT": "31"}
    other = replace(stage, local={**stage.local, "settings": {"sender": wrong}})
    found = bad(checks.settings(other))
    assert len(found) == 3
    assert found[2].startswith("sender: REPLY_TIMEOUT: out of range")


def test_secrets_that_are_missing_or_none(stage: Stage) -> None:
    client = stage.aws.client("secretsmanager")
    twilio = {"account_sid": "AC" + "0" * 32, "auth_tokens": ["f" * 32]}
    client.create_secret(Name=f"spillway/{NAME}/twilio", SecretString=json.dumps(twilio))
    assert bad(checks.secrets(stage)) == [f"spillway/{NAME}/telnyx is missing"]
    for text, said in (
        ("heron", "is not a JSON object"),
        ("[]", "is not a JSON object"),
        ('{"api_key": "KEY0123456789"}', "The secret of telnyx is a JSON object with"),
        ('{"api_key": "heron", "public_keys": ["heron"]}', "telnyx: that is no API key"),
    ):
        name = f"spillway/{NAME}/telnyx"
        try:
            client.put_secret_value(SecretId=name, SecretString=text)
        except client.exceptions.ResourceNotFoundException:
            client.create_secret(Name=name, SecretString=text)
        (found,) = bad(checks.secrets(stage))
        assert said in found
        assert "heron" not in found


def test_events_that_are_to_be_signed_need_a_key(stage: Stage) -> None:
    assert stage.local is not None
    processing = {**SETTINGS, "SPILLWAY_FUNCTION": "processing", "EVENTS_URL": "https://h.example"}
    local = {**stage.local, "settings": {**stage.local["settings"], "processing": processing}}
    found = bad(checks.secrets(replace(stage, local=local)))
    assert f"spillway/{NAME}/events is missing" in found


def test_a_bus_that_is_not_there_is_told(stage: Stage) -> None:
    assert stage.local is not None
    assert list(checks.bus(stage)) == []
    processing = {**SETTINGS, "SPILLWAY_FUNCTION": "processing", "EVENT_BUS": "heron"}
    local = {**stage.local, "settings": {**stage.local["settings"], "processing": processing}}
    other = replace(stage, local=local)
    assert bad(checks.bus(other)) == ["no bus heron: AWS drops every event"]
    stage.aws.client("events").create_event_bus(Name="heron")
    assert bad(checks.bus(other)) == []


def test_a_lost_hash_key_is_never_to_be_made_anew(stage: Stage) -> None:
    other = replace(stage, name="elsewhere")
    (keys, *_) = checks.secrets(other)
    assert (keys.level, keys.said) == ("bad", "spillway/elsewhere/keys is missing")
    assert "restore" in keys.mend


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"maxReceiveCount": 5}, "maxReceiveCount 5: what waits is put aside"),
        ({"dlq": "outbound-dlq.fifo"}, f"does not end on spillway-{NAME}-processing-dlq"),
    ],
)
def test_a_queue_that_is_not_as_it_was_made(
    stage: Stage, policy: dict[str, Any], said: str
) -> None:
    sqs, url = stage.aws.client("sqs"), stage.stores.urls["processing"]
    assert bad(checks.data(stage)) == []
    was = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["RedrivePolicy"])["Attributes"]
    changed = json.loads(was["RedrivePolicy"])
    if "dlq" in policy:
        target = stage.stores.urls[policy["dlq"]]
        changed["deadLetterTargetArn"] = checks._arn(sqs, target)
    else:
        changed |= policy
    # (No emulator and no AWS takes a FIFO queue there: as it would be read.)
    real = sqs.get_queue_attributes

    def read(QueueUrl: str, AttributeNames: list[str]) -> dict[str, Any]:
        answer: dict[str, Any] = real(QueueUrl=QueueUrl, AttributeNames=AttributeNames)
        if QueueUrl == url and AttributeNames == ["All"]:
            answer["Attributes"]["RedrivePolicy"] = json.dumps(changed)
        return answer

    stubbed = SimpleNamespace(client=lambda name: SimpleNamespace(get_queue_attributes=read))
    (found,) = bad(checks.data(replace(stage, aws=stubbed)))  # type: ignore[arg-type]
    assert said in found


@pytest.mark.parametrize(
    ("unsigned", "signed", "said"),
    [
        (403, 200, []),
        (200, 200, ["twilio: unsigned is answered 200, not 403"]),
        (503, 200, ["twilio: unsigned is answered 503, not 403"]),
        (0, 0, ["twilio: unsigned is answered by nobody, not 403", "twilio: a signed text is"]),
        (403, 403, ["twilio: a signed text is answered 403"]),
        (403, 503, ["twilio: a signed text is answered 503"]),
    ],
)
def test_what_a_probe_shows(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
    unsigned: int,
    signed: int,
    said: list[str],
) -> None:
    local = {**(stage.local or {}), "webhook": "http://h", "public_url": "http://h"}
    local["settings"] = {"receiver": {**SETTINGS, "SPILLWAY_FUNCTION": "receiver"}}
    local["settings"]["receiver"]["PROVIDERS"] = "twilio"
    local["settings"]["receiver"]["NUMBERS"] = "+14155550123=twilio"
    local["secrets"] = {"twilio": {"account_sid": "AC", "auth_tokens": ["f"]}}
    monkeypatch.setattr(probe, "unsigned", lambda *_: Probed("", unsigned, 0.1))
    monkeypatch.setattr(probe, "signed", lambda *_: Probed("SM1", signed, 0.1))
    stored = Finding("good", "probe", "twilio: stored")
    monkeypatch.setattr(checks, "_stored", lambda *_: stored)
    found = bad(checks.probes(replace(stage, local=local)))
    assert [one[: len(begins)] for one, begins in zip(found, said, strict=True)] == said


def test_a_probe_that_is_not_stored_is_told(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "STORED_WITHIN", 0.0)
    found = checks._stored(stage, "+14155550123", "SM1", "twilio")
    assert (found.level, "not stored" in found.said) == ("bad", True)


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("", "note"),
        ('{"event":"started","code":"boto3 1.43.106"}', "good"),
        ('{"event":"started","code":"boto3 1.28.0"}', "good"),
        ('{"event":"started","code":"boto3 2.0.0"}', "good"),
        ('{"event":"started","code":"boto3 1.27.165"}', "bad"),
        ('{"event":"started","code":"boto3 1.9.253"}', "bad"),
    ],
)
def test_the_boto3_of_the_runtime(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, line: str, level: str
) -> None:
    monkeypatch.setattr(checks, "_started", lambda *_: line)
    assert {one.level for one in checks.runtime(stage)} == {level}


class Lambda:
    """Lambda's API, as far as mappings are asked for."""

    def __init__(self, *mappings: dict[str, Any], reports: str = "true") -> None:
        self.mappings = [
            {
                "UUID": "u",
                "State": "Enabled",
                "FunctionArn": f"arn:aws:lambda:r:1:function:spillway-{NAME}-process",
                "FunctionResponseTypes": ["ReportBatchItemFailures"],
                **mapping,
            }
            for mapping in mappings
        ]
        self.reports = reports

    def list_event_source_mappings(self, EventSourceArn: str) -> dict[str, Any]:
        return {"EventSourceMappings": self.mappings}

    def get_function_configuration(self, FunctionName: str) -> dict[str, Any]:
        variables = {**SETTINGS, "REPORT_BATCH_ITEM_FAILURES": self.reports}
        return {"Environment": {"Variables": variables}}


@pytest.mark.parametrize(
    ("lambda_", "level", "said", "fixable"),
    [
        (Lambda({}), "good", "one, enabled", False),
        (Lambda(), "bad", "0 mappings (none), not one: nobody works on it", False),
        (Lambda({}, {}), "bad", "2 mappings", False),
        (Lambda({"State": "Disabled"}), "bad", "the mapping is Disabled", True),
        (
            Lambda({"FunctionArn": "arn:aws:lambda:r:1:function:other"}),
            "bad",
            "processing goes to other",
            False,
        ),
        (Lambda({"FunctionResponseTypes": []}), "bad", "Messages are being lost", True),
        (Lambda({"FunctionResponseTypes": []}, reports="false"), "note", "no partial", True),
        (Lambda({}, reports="false"), "note", "no partial reports", True),
    ],
)
def test_a_mapping_that_is_not_as_it_has_to_be(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
    lambda_: Lambda,
    level: str,
    said: str,
    fixable: bool,
) -> None:
    monkeypatch.setattr(checks, "MAPPED", {"processing": "processing"})
    client: Callable[[str], Any] = lambda name: (  # noqa: E731
        lambda_ if name == "lambda" else stage.aws.client(name)
    )
    deployed = replace(stage, local=None, aws=SimpleNamespace(client=client))  # type: ignore[arg-type]
    (found,) = checks.mappings(deployed)
    assert (found.level, said in found.said) == (level, True), found
    assert (found.fix is not None) is fixable


def test_the_regions_whose_queue_takes_what_api_gateway_does_are_said() -> None:
    text = " ".join((PROJECT / "README.md").read_text().split())
    said = re.search(r"regions other than (.*) the FIFO queue's ceiling lies below", text)
    assert said
    enough = {region for region, calls in checks.FIFO_CALLS.items() if calls >= 10_000}
    assert set(re.findall(r"[a-z]+-[a-z]+-\d", said[1])) == enough
    assert checks.FIFO_CALLS_ELSEWHERE < 10_000


@pytest.mark.parametrize(
    ("name", "watched", "said"),
    [
        (f"spillway-{NAME}", [f"spillway-{NAME}"] * 2, []),
        (
            "spillway",
            [f"spillway-{NAME}"] * 2,
            [f"named spillway, and alarms watch spillway-{NAME}"],
        ),
        # A plain `chalice deploy` makes no alarms.
        ("spillway", [], []),
    ],
)
def test_alarms_that_watch_another_api(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    watched: list[str],
    said: list[str],
) -> None:
    api = stage.aws.client("apigateway")
    id_ = api.create_rest_api(name=name)["id"]
    challenge = {checks.CHALLENGE: "'Basic realm=\"spillway\"'"}
    api.put_gateway_response(
        restApiId=id_, responseType="UNAUTHORIZED", responseParameters=challenge
    )
    alarms = [
        {
            "AlarmName": f"{n}",
            "Dimensions": [{"Name": "ApiName", "Value": one}, {"Name": "Stage", "Value": "api"}],
        }
        for n, one in enumerate(watched)
    ]
    monkeypatch.setattr(checks, "_alarms", lambda stage: [*alarms, {"AlarmName": "of several"}])
    deployed = replace(stage, local=None)
    monkeypatch.setattr(Stage, "api", lambda self: Api("", "", id_, "api"))
    found = list(checks.gateway(deployed))
    wrong = [one for one in found if one.level == "bad"]
    assert len(wrong) == len(said)
    for one, words in zip(wrong, said, strict=True):
        assert words in one.said
        assert f"--rest-api-id {id_} " in one.mend
    assert [one.said for one in found if one.level == "good"] == [
        "a 401 asks for Basic credentials"
    ]


def test_the_api_is_the_one_that_may_call_the_receiver(stage: Stage) -> None:
    assert stage.local is not None
    local = {**stage.local, "webhook": "http://a", "public_url": "https://b"}
    assert replace(stage, local=local).api() == Api("http://a", "https://b")

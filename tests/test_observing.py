"""What a log line and a metric look like, and that neither can say what it must not."""

from __future__ import annotations

import inspect
import json
import logging
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from chalicelib.observing import Level, count, log

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPILLWAY_FUNCTION", "sender")
    monkeypatch.setenv("SPILLWAY_STAGE", "test")
    monkeypatch.delenv("LOG_LEVEL", raising=False)


def lines(capsys: Output) -> list[dict[str, Any]]:
    out, err = capsys.readouterr()
    assert err == ""
    assert out.isascii()
    assert out == "" or out.endswith("\n")
    return [json.loads(line) for line in out.splitlines()]


ORIGIN = {"function": "sender", "stage": "test"}


@pytest.mark.parametrize(
    ("fields", "written"),
    [
        ({}, {}),
        ({"id": "", "provider": "", "reason": "", "code": "", "count": None}, {}),
        ({"id": "a-b", "provider": "twilio"}, {"id": "a-b", "provider": "twilio"}),
        ({"reason": "not_possible", "code": "21614"}, {"reason": "not_possible", "code": "21614"}),
        ({"count": 0, "receives": 0, "starts": 0}, {"count": 0, "receives": 0, "starts": 0}),
        ({"seconds": 0.0}, {"seconds": 0.0}),
        ({"seconds": 1.23456}, {"seconds": 1.235}),
        ({"code": "line one\nline two"}, {"code": "line one\nline two"}),
        ({"code": "é\ud800\x00"}, {"code": "é\ud800\x00"}),
    ],
)
def test_a_line_is_json_and_has_what_was_said(
    fields: dict[str, Any], written: dict[str, Any], capsys: Output
) -> None:
    log("INFO", "sent", **fields)
    (line,) = lines(capsys)
    # (As Lambda's own JSON lines have it.)
    at = datetime.strptime(line.pop("timestamp"), "%Y-%m-%dT%H:%M:%S.%f%z")
    assert abs(datetime.now(UTC) - at) < timedelta(minutes=1)
    assert line == {"level": "INFO", "event": "sent", **ORIGIN, **written}


LEVELS: list[Level] = ["DEBUG", "INFO", "WARNING", "ERROR"]


@pytest.mark.parametrize(
    ("least", "written"),
    [
        (None, LEVELS[1:]),
        ("", LEVELS[1:]),
        ("nonsense", LEVELS[1:]),
        ("DEBUG", LEVELS),
        ("INFO", LEVELS[1:]),
        ("WARNING", LEVELS[2:]),
        ("ERROR", LEVELS[3:]),
    ],
)
def test_levels(
    least: str | None, written: list[Level], capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    if least is not None:
        monkeypatch.setenv("LOG_LEVEL", least)
    for level in LEVELS:
        log(level, "event")
    assert [line["level"] for line in lines(capsys)] == written


def fail(text: str) -> None:
    raise ValueError(text)


def test_of_an_error_only_its_type_and_place_are_written(capsys: Output) -> None:
    # GIVEN an error that says too much, caused by one that says more
    try:
        try:
            fail("heron at +14155550100")
        except ValueError as error:
            raise LookupError("heron's password") from error
    except LookupError as caught:
        caught.add_note("heron")
        log("ERROR", "failed", error=caught)

    # THEN its text is nowhere
    (line,) = lines(capsys)
    assert line["error"] == "LookupError"
    assert "heron" not in str(line)
    assert all(re.fullmatch(r"tests/test_observing\.py:[0-9]+", place) for place in line["where"])


def test_the_place_is_the_last_lines_of_code(capsys: Output) -> None:
    def deeper(depth: int) -> None:
        if depth:
            deeper(depth - 1)
        fail("heron")

    try:
        deeper(10)
    except ValueError as error:
        log("ERROR", "failed", error=error)
    (line,) = lines(capsys)
    assert len(line["where"]) == 4
    _, raised_at = inspect.getsourcelines(fail)
    assert line["where"][-1] == f"tests/test_observing.py:{raised_at + 1}"


def test_an_error_that_was_never_raised_has_no_place(capsys: Output) -> None:
    log("ERROR", "failed", error=ValueError("heron"))
    (line,) = lines(capsys)
    assert (line["error"], line["where"]) == ("ValueError", [])


def test_there_is_no_field_for_a_number_a_text_or_a_credential() -> None:
    # A field more is a decision: it must be one that can hold none of these.
    assert set(inspect.signature(log).parameters) == {
        *("level", "event", "id", "provider", "reason", "code", "error"),
        *("count", "seconds", "receives", "starts"),
    }
    assert set(inspect.signature(count).parameters) == {
        *("metric", "number", "provider", "reason", "id"),
    }


@pytest.mark.parametrize(
    ("fields", "dimensions"),
    [
        ({}, [["stage"]]),
        ({"provider": "twilio"}, [["stage"], ["stage", "provider"]]),
        ({"reason": "signature"}, [["stage"], ["stage", "reason"]]),
        (
            {"provider": "twilio", "reason": "x"},
            [["stage"], ["stage", "provider"], ["stage", "reason"]],
        ),
        ({"provider": "", "reason": "", "id": ""}, [["stage"]]),
        # An id is for whoever searches the log: as a dimension each would be billed for itself.
        ({"id": "a-b"}, [["stage"]]),
        ({"number": 7}, [["stage"]]),
    ],
)
def test_a_metric_is_in_the_embedded_format(
    fields: dict[str, Any], dimensions: list[list[str]], capsys: Output
) -> None:
    count("Refused", **fields)
    (line,) = lines(capsys)
    embedded = line.pop("_aws")
    # Every dimension and every metric that is announced is a member of the line.
    said = {name: value for name, value in fields.items() if value and name != "number"}
    assert line == {**ORIGIN, **said, "Refused": fields.get("number", 1)}
    assert embedded.pop("Timestamp") > 1_700_000_000_000
    assert embedded == {
        "CloudWatchMetrics": [
            {
                "Namespace": "Spillway",
                "Dimensions": dimensions,
                "Metrics": [{"Name": "Refused", "Unit": "Count"}],
            }
        ]
    }


def test_metrics_are_written_whatever_the_level(
    capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOG_LEVEL", "ERROR")
    count("Refused")
    assert len(lines(capsys)) == 1


@pytest.mark.parametrize("library", ["boto3", "botocore", "httpcore", "httpx", "urllib3"])
def test_libraries_that_see_numbers_do_not_speak(
    library: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    quiet = logging.getLogger(f"{library}.any.part").getEffectiveLevel()
    assert quiet >= logging.WARNING

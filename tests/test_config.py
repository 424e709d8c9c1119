"""What each variable may be, what is said of a wrong one, and what docs/SETTINGS.md says of all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest

from chalicelib.config import _TABLE, Function, Pace, SettingError, load

HASH = "9f" * 32
REQUIRED = {
    "authorizer": {"CREDENTIAL_HASHES": "{}"},
    "receiver": {"SPILLWAY_STAGE": "dev", "PROVIDERS": "twilio"},
    "processing": {"SPILLWAY_STAGE": "dev", "PROVIDERS": "twilio", "SEND_ONLY_TO": "*"},
    "sender": {"SPILLWAY_STAGE": "dev", "PROVIDERS": "twilio", "SEND_ONLY_TO": "*"},
}
FIELDS = {variable: field for field, (variable, *_) in _TABLE.items()}

GOOD: list[tuple[str, str, Any]] = [
    ("SPILLWAY_STAGE", "prod", "prod"),
    ("SPILLWAY_STAGE", "a", "a"),
    ("SPILLWAY_STAGE", "eu-2-abcdefghijk", "eu-2-abcdefghijk"),
    ("CREDENTIAL_HASHES", "{}", {}),
    ("CREDENTIAL_HASHES", f'{{"twilio": ["{HASH}"]}}', {"twilio": (HASH,)}),
    ("CREDENTIAL_HASHES", f'{{"api": "{HASH}"}}', {"api": (HASH,)}),
    ("CREDENTIAL_HASHES", f'{{"api": ["{HASH}", "{"0" * 64}"]}}', {"api": (HASH, "0" * 64)}),
    ("PROVIDERS", "twilio", ("twilio",)),
    ("PROVIDERS", " twilio , telnyx ,", ("twilio", "telnyx")),
    ("PUBLIC_URL", "", ""),
    ("PUBLIC_URL", "https://sms.example.com/", "https://sms.example.com"),
    ("PUBLIC_URL", "http://127.0.0.1:8000", "http://127.0.0.1:8000"),
    ("PUBLIC_URL", "https://example.com/base/path", "https://example.com/base/path"),
    ("NUMBERS", "+14155550123=twilio", {"+14155550123": "twilio"}),
    (
        "NUMBERS",
        " 72345=telnyx, +14155550123=twilio,",
        {"72345": "telnyx", "+14155550123": "twilio"},
    ),
    ("BRAND", " heron ", "heron"),
    ("REPLY_API_URL", "https://r.example.com/v1?a=b", "https://r.example.com/v1?a=b"),
    ("REPLY_TIMEOUT", "0.5", 0.5),
    ("REPLY_MAX_AGE", "60", 60.0),
    ("MESSAGE_MAX_AGE", "36000", 36_000.0),
    ("LOOP_LIMIT", "0", 0),
    ("LOOP_LIMIT", "100", 100),
    ("MAX_PARTS", "1", 1),
    ("MAX_PARTS", "9", 9),
    ("PACING", "{}", {}),
    ("PACING", '{"+14155550199": {}}', {"+14155550199": Pace("+14155550199", 1.0)}),
    ("PACING", '{"+18885550199": {}}', {"+18885550199": Pace("+18885550199", 3.0)}),
    ("PACING", '{"72345": {}}', {"72345": Pace("72345", 100.0)}),
    (
        "PACING",
        '{"heron": {"numbers": ["+14155550123", "72345"], "per_second": 0.5, "per_day": 9}}',
        {"+14155550123": Pace("heron", 0.5, 9), "72345": Pace("heron", 0.5, 9)},
    ),
    ("DAILY_SEND_CAP", "0", 0),
    ("DAILY_SEND_CAP", "5000", 5000),
    ("SEND_ONLY_TO", "*", ("*",)),
    ("SEND_ONLY_TO", " +14155550100, +1415555*,72345,", ("+14155550100", "+1415555*", "72345")),
    ("SEND_TO_COUNTRIES", "", ()),
    ("SEND_TO_COUNTRIES", "US, CA", ("US", "CA")),
    ("SEND_TO_COUNTRIES", "*", ("*",)),
    ("LOOKUP_URLS", "{}", {}),
    (
        "LOOKUP_URLS",
        '{"line": "http://127.0.0.1:1/x", "customer": ""}',
        {"line": "http://127.0.0.1:1/x"},
    ),
    ("LOOKUP_MAX_AGE", "43200", 43_200.0),
    ("EVENT_BUS", "", ""),
    ("EVENT_BUS", "spillway-prod", "spillway-prod"),
    ("EVENTS_URL", "https://hooks.example.com/x", "https://hooks.example.com/x"),
    ("STOP_TEXT", "Good-bye.", "Good-bye."),
    ("HELP_TEXT", "Ask.", "Ask."),
    ("UNKNOWN_SENDS", "hold", "hold"),
    ("UNKNOWN_SENDS", "resend", "resend"),
    ("MESSAGE_DAYS", "31", 31),
    ("REPORT_BATCH_ITEM_FAILURES", "true", True),
    ("REPORT_BATCH_ITEM_FAILURES", "false", False),
    (
        "TWILIO_API_URL",
        "http://127.0.0.1:8080/provider/twilio",
        "http://127.0.0.1:8080/provider/twilio",
    ),
    ("TELNYX_API_URL", "https://api.telnyx.com", "https://api.telnyx.com"),
    ("LOG_LEVEL", "ERROR", "ERROR"),
]


@pytest.mark.parametrize(("variable", "text", "value"), GOOD)
def test_good_values(variable: str, text: str, value: Any) -> None:
    assert getattr(load(environ("sender", **{variable: text})), FIELDS[variable]) == value


def test_every_variable_has_a_good_value_here() -> None:
    assert {variable for variable, _, _ in GOOD} == set(FIELDS)


# The value, and a piece of the fix that the error must name.
BAD: list[tuple[str, str, str]] = [
    ("SPILLWAY_STAGE", "Prod-heron", "e.g. prod"),
    ("SPILLWAY_STAGE", "2heron", "e.g. prod"),
    ("SPILLWAY_STAGE", "heron-of-the-long", "at most 16"),
    ("SPILLWAY_STAGE", "heron_1", "hyphens"),
    ("CREDENTIAL_HASHES", "heron:secret", '"api"'),
    ("CREDENTIAL_HASHES", '["heron"]', '"api"'),
    ("CREDENTIAL_HASHES", '{"api": "heron:secret"}', "64 hex digits"),
    ("CREDENTIAL_HASHES", '{"api": ["heron:secret"]}', "64 hex digits"),
    ("CREDENTIAL_HASHES", '{"api": [["heron"]]}', "64 hex digits"),
    ("CREDENTIAL_HASHES", f'{{"api": "{HASH.upper()}"}}', "64 hex digits"),
    ("CREDENTIAL_HASHES", f'{{"heron": "{HASH}"}}', "neither a provider nor api"),
    ("CREDENTIAL_HASHES", 'FILL IN: {"twilio": ["heron"]}', "not JSON"),
    ("PROVIDERS", ",", "e.g. twilio"),
    ("PROVIDERS", "heron", "telnyx, twilio"),
    ("PROVIDERS", "twilio;telnyx", "separated by commas"),
    ("PUBLIC_URL", "sms.heron.example", "http or https"),
    ("PUBLIC_URL", "ftp://heron", "http or https"),
    ("PUBLIC_URL", "https://heron?secret", "without query"),
    ("PUBLIC_URL", "https://heron#secret", "without query"),
    ("PUBLIC_URL", "https:///heron", "http or https"),
    ("PUBLIC_URL", "https://[heron]/", "http or https"),
    ("PUBLIC_URL", "https://heron:secret/", "http or https"),
    ("NUMBERS", "+14155550123", "=twilio"),
    ("NUMBERS", "+14155550123=heron", "=twilio"),
    ("NUMBERS", "4155550123=twilio", "=twilio"),
    ("NUMBERS", "Heron=twilio", "=twilio"),
    ("NUMBERS", "+14155550123:twilio", "=twilio"),
    ("NUMBERS", "FILL IN: our numbers and who carries each", "=twilio"),
    ("PACING", "heron", "per_second"),
    ("PACING", '{"heron": {}}', "neither a number nor a campaign"),
    ("PACING", '{"heron": 1}', "per_second"),
    ("PACING", '{"heron": {"numbers": []}}', "neither a number nor a campaign"),
    ("PACING", '{"heron": {"numbers": "+14155550123"}}', "neither a number nor a campaign"),
    ("PACING", '{"heron": {"numbers": [1]}}', "neither a number nor a campaign"),
    ("PACING", '{"+14155550123": {"per_minute": 60}}', "per_second"),
    ("PACING", '{"+14155550123": {"per_second": 0}}', "not above 0"),
    ("PACING", '{"+14155550123": {"per_second": true}}', "not above 0"),
    ("PACING", '{"+14155550123": {"per_second": NaN}}', "not above 0"),
    ("PACING", '{"+14155550123": {"per_second": "9"}}', "not above 0"),
    ("PACING", '{"+14155550123": {"per_day": 1.5}}', "no whole number"),
    ("PACING", '{"+14155550123": {"per_day": -1}}', "no whole number"),
    ("PACING", '{"+14155550123": {}, "heron": {"numbers": ["+14155550123"]}}', "twice"),
    ("DAILY_SEND_CAP", "-1", "0 for no cap"),
    ("DAILY_SEND_CAP", "heron", "0 for no cap"),
    ("SEND_ONLY_TO", "heron", "e.g. +12025550147"),
    ("SEND_ONLY_TO", "+1*5", "asterisk"),
    ("SEND_ONLY_TO", "FILL IN: heron", "asterisk"),
    ("SEND_TO_COUNTRIES", "usa", "two-letter"),
    ("EVENT_BUS", "the heron's bus", "e.g. spillway-prod"),
    ("EVENTS_URL", "hooks.heron.example", "http or https"),
    ("SEND_TO_COUNTRIES", "us", "two-letter"),
    ("REPLY_API_URL", "replies.heron.example/v1", "http or https"),
    ("REPLY_API_URL", "https://", "http or https"),
    ("REPLY_API_URL", "https://heron/a\x7fb", "http or https"),
    ("REPLY_API_URL", "https://heron/a b", "http or https"),
    ("REPLY_API_URL", "https://h\xe9ron/", "http or https"),
    ("REPLY_API_URL", "https://user:secret@[heron]/", "http or https"),
    ("REPLY_API_URL", "https://heron:66000/", "http or https"),
    ("REPLY_TIMEOUT", "heron", "above 0"),
    ("REPLY_TIMEOUT", "30.5", "at most 30"),
    ("CREDENTIAL_HASHES", f'{{"api": "{HASH}", "twilio": ["{HASH}"]}}', "two principals"),
    ("REPLY_TIMEOUT", "0", "above 0"),
    ("REPLY_TIMEOUT", "-2.5", "above 0"),
    ("REPLY_TIMEOUT", "nan", "above 0"),
    ("REPLY_TIMEOUT", "inf", "above 0"),
    ("REPLY_MAX_AGE", "15 min", "above 0"),
    ("MESSAGE_MAX_AGE", "+14155550100", "above 0"),
    ("LOOP_LIMIT", "-1", "from 0"),
    ("LOOP_LIMIT", "101", "to 100"),
    ("LOOP_LIMIT", "heron", "to 100"),
    ("MAX_PARTS", "0", "1 to 9"),
    ("MAX_PARTS", "10", "1 to 9"),
    ("MAX_PARTS", "heron", "1 to 9"),
    ("MAX_PARTS", "2.5", "1 to 9"),
    ("LOOKUP_URLS", "https://heron", '"customer"'),
    ("LOOKUP_URLS", "[" * 4_000, '"customer"'),
    ("LOOKUP_URLS", '["https://heron"]', '"customer"'),
    ("LOOKUP_URLS", '{"customer": 4155550100}', '"customer"'),
    ("LOOKUP_URLS", '{"customer": "heron"}', '"customer"'),
    ("LOOKUP_URLS", '{"customer": "https://heron:secret/"}', '"customer"'),
    ("LOOKUP_MAX_AGE", "0", "above 0"),
    ("LOOKUP_MAX_AGE", "43201", "at most 43200"),
    ("LOOKUP_MAX_AGE", "nan", "above 0"),
    ("UNKNOWN_SENDS", "heron", "hold"),
    ("UNKNOWN_SENDS", "RESEND", "resend"),
    ("MESSAGE_DAYS", "30", "at least 31"),
    ("MESSAGE_DAYS", "heron", "at least 31"),
    ("REPORT_BATCH_ITEM_FAILURES", "heron", "true or false"),
    ("REPORT_BATCH_ITEM_FAILURES", "True", "true or false"),
    ("TWILIO_API_URL", "heron", "http or https"),
    ("TELNYX_API_URL", "heron", "http or https"),
    ("LOG_LEVEL", "heron", "DEBUG, INFO, WARNING or ERROR"),
    ("LOG_LEVEL", "info", "DEBUG, INFO, WARNING or ERROR"),
]


@pytest.mark.parametrize(("variable", "text", "fix"), BAD)
def test_bad_values_are_refused_by_name_with_the_fix_and_never_shown(
    variable: str, text: str, fix: str
) -> None:
    with pytest.raises(SettingError) as caught:
        load(environ("sender", **{variable: text}))
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{variable}: ")
    assert fix in line
    # Whatever would say it in a stack trace counts as well.
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    for told in ("heron", "secret", "415555010", "66000", "15 min", "-2.5", HASH.upper()):
        assert told.lower() not in line.lower().replace("+14155550123=twilio", "")


def test_every_variable_that_can_be_wrong_is_wrong_here() -> None:
    assert set(FIELDS) - {variable for variable, _, _ in BAD} == {"BRAND", "STOP_TEXT", "HELP_TEXT"}


def test_all_that_is_wrong_is_said_at_once() -> None:
    wrong = {
        "SPILLWAY_STAGE": "",
        "PROVIDERS": "heron",
        "NUMBERS": "heron",
        "MAX_PARTS": "heron",
        "LOG_LEVEL": "heron",
    }
    with pytest.raises(SettingError) as caught:
        load(environ("sender", **wrong))
    lines = str(caught.value).splitlines()
    assert {line.partition(":")[0] for line in lines} == set(wrong)
    assert len(lines) == len(wrong)


def test_the_receiver_knows_the_provider_of_each_of_our_numbers() -> None:
    numbers = "+14155550123=twilio,72345=telnyx"
    assert load(environ("receiver", NUMBERS=numbers, PROVIDERS="telnyx,twilio")).numbers
    with pytest.raises(SettingError, match=r"^NUMBERS: [a-zA-Z ;]*$"):
        load(environ("receiver", NUMBERS=numbers, PROVIDERS="twilio"))


def test_events_go_to_one_of_both() -> None:
    with pytest.raises(SettingError, match=r"^EVENTS_URL: set beside EVENT_BUS"):
        load(environ("sender", EVENT_BUS="spillway-prod", EVENTS_URL="https://h.example.com"))


@pytest.mark.parametrize("function", ["", "recieve", "RECEIVER"])
def test_the_function_must_be_one_of_the_four(function: str) -> None:
    with pytest.raises(SettingError, match=r"^SPILLWAY_FUNCTION: .*config\.json$") as caught:
        load({"SPILLWAY_FUNCTION": function, "PROVIDERS": "heron"})
    assert all(name in str(caught.value) for name in get_args(Function))


@pytest.mark.parametrize(
    ("function", "variable"),
    [(function, variable) for function in REQUIRED for variable in REQUIRED[function]],
)
@pytest.mark.parametrize("blank", [None, "", "  "])
def test_what_a_function_cannot_start_without(
    function: str, variable: str, blank: str | None
) -> None:
    variables = environ(function)
    del variables[variable]
    if blank is not None:
        variables[variable] = blank
    with pytest.raises(SettingError, match=rf"^{variable}: not set; it must be .+"):
        load(variables)


@pytest.mark.parametrize("function", get_args(Function))
def test_nothing_else_is_required_and_everything_has_its_default(function: str) -> None:
    settings = load(environ(function))
    assert settings.function == function
    given = REQUIRED[function]
    for field, (variable, read, default, _) in _TABLE.items():
        assert getattr(settings, field) == read(given.get(variable, default))


def test_where_a_providers_api_is() -> None:
    settings = load(environ("sender", TWILIO_API_URL="http://127.0.0.1:8080/provider/twilio"))
    assert settings.api_url("twilio") == "http://127.0.0.1:8080/provider/twilio"
    assert settings.api_url("telnyx") is None
    assert settings.api_url("heron") is None


# --- docs/SETTINGS.md ---------------------------------------------------------------------------

Row = tuple[str, str, str, str]


def documented() -> dict[str, Row]:
    """What the page says of each variable: what it is, functions, default, example."""
    page = Path(__file__).parent.parent / "docs" / "SETTINGS.md"
    rows = {}
    for line in page.read_text().splitlines():
        if line.startswith("| `"):
            variable, what, functions, default, example = (
                cell.strip() for cell in line.strip("|").split("|")
            )
            assert variable not in rows
            rows[variable.strip("`")] = (what, functions, default.strip("`"), example.strip("`"))
    return rows


def test_the_page_has_exactly_the_variables() -> None:
    assert set(documented()) == {*FIELDS, "SPILLWAY_FUNCTION"}


@pytest.mark.parametrize(("variable", "field"), FIELDS.items())
def test_the_page_says_what_is_so(variable: str, field: str) -> None:
    what, functions, default, example = documented()[variable]
    _, read, real_default, needed_by = _TABLE[field]
    assert what
    assert default == real_default
    read(example)
    assert example != default
    assert set(re.findall(r"\*\*(\w+)\*\*", functions)) == set(needed_by)
    assert set(re.findall(r"\w+", functions)) <= set(get_args(Function))


def environ(function: str, **variables: str) -> dict[str, str]:
    """The least environment of a function, with these variables."""
    return {"SPILLWAY_FUNCTION": function, **REQUIRED[function], **variables}

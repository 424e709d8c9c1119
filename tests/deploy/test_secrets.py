"""`spillway secret`, against an emulated Secrets Manager."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from chalicelib.providers import NAMES
from spillway.aws import Aws
from spillway.deploy import secrets
from spillway.deploy.secrets import FIELDS, app, check
from spillway.problem import Problem
from tests import emulated
from tests.fakes import SECRETS

OLD, NEW, NEWER = "a" * 32, "b" * 32, "c" * 32
ACCOUNT = "AC" + "0" * 32
TWILIO = {"account_sid": ACCOUNT, "auth_tokens": [OLD]}


@pytest.fixture(autouse=True)
def _account(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in emulated.environment(aws.endpoint).items():
        monkeypatch.setenv(name, value)


def spillway(*arguments: str, typed: str) -> Result:
    """The command, with this on standard input (which is no terminal)."""
    return CliRunner().invoke(app, arguments, input=typed)


def stored(aws: Aws, stage: str, provider: str = "twilio") -> Any:
    found = aws.client("secretsmanager").get_secret_value(SecretId=f"spillway/{stage}/{provider}")
    return json.loads(found["SecretString"])


def test_a_secret_is_stored_and_not_shown(aws: Aws) -> None:
    for tokens in ([OLD], [NEW]):
        value = {"account_sid": ACCOUNT, "auth_tokens": tokens}
        result = spillway("set", "twilio", "--stage", "stored", typed=json.dumps(value))
        assert (result.exit_code, stored(aws, "stored")) == (0, value)
        assert not {OLD, NEW, ACCOUNT} & set(result.output.split())


def test_a_rotation_has_both_until_it_is_ended(aws: Aws) -> None:
    spillway("set", "twilio", "--stage", "rotated", typed=json.dumps(TWILIO))

    def rotate(*options: str, typed: str = "") -> list[str]:
        result = spillway("rotate", "twilio", "--stage", "rotated", *options, typed=typed)
        assert result.exit_code == 0, result.output
        assert not {OLD, NEW, NEWER} & set(result.output.split())
        assert stored(aws, "rotated")["account_sid"] == ACCOUNT
        found: list[str] = stored(aws, "rotated")["auth_tokens"]
        return found

    assert rotate(typed=f"{NEW}\n") == [NEW, OLD]
    # Typed in twice, it is the same rotation still.
    assert rotate(typed=NEW) == [NEW, OLD]
    assert rotate("--drop-old") == [NEW]
    assert rotate(typed=NEWER) == [NEWER, NEW]
    # A second rotation without an end of the first keeps two.
    assert rotate(typed=OLD) == [OLD, NEWER]


def test_a_signing_key_is_made_and_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    (field,) = FIELDS["events"]
    made = {secrets._ask(field) for _ in range(3)}
    assert len(made) == 3
    check("events", {"signing_secrets": sorted(made)})
    shown = capsys.readouterr().out
    assert all(shown.count(one) == 1 for one in made)
    # The other that is ours to make is nobody else's.
    secrets._ask(FIELDS["sandbox"][0])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("arguments", [("rotate", "twilio"), ("rotate", "twilio", "--drop-old")])
def test_what_was_never_set_cannot_be_rotated(arguments: tuple[str, ...]) -> None:
    result = spillway(*arguments, "--stage", "never", typed=NEW)
    assert isinstance(result.exception, Problem)
    assert "First: spillway secret set" in str(result.exception)


@pytest.mark.parametrize("provider", ["", "carrier-pigeon", "keys"])
def test_only_providers_have_such_a_secret(provider: str) -> None:
    result = spillway("set", provider, "--stage", "x", typed="{}")
    assert isinstance(result.exception, Problem)
    assert str(result.exception).startswith("PROVIDER must be one of twilio")


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"account_sid": ACCOUNT},
        {**TWILIO, "auth_token": OLD},
        {**TWILIO, "auth_tokens": OLD},
        {**TWILIO, "auth_tokens": []},
        {**TWILIO, "auth_tokens": [OLD, ""]},
        {**TWILIO, "auth_tokens": [f"{OLD} "]},
        {**TWILIO, "auth_tokens": [7]},
        {**TWILIO, "account_sid": OLD},
        {**TWILIO, "account_sid": None},
    ],
    ids=str,
)
def test_what_cannot_be_a_secret_is_refused_and_not_shown(value: dict[str, Any]) -> None:
    with pytest.raises(Problem) as raised:
        check("twilio", value)
    assert not any(one in str(raised.value) for one in (OLD, ACCOUNT))


@pytest.mark.parametrize("typed", ["", "[]", "null", "{", '"AC"'])
def test_what_is_no_object_is_refused(typed: str) -> None:
    result = spillway("set", "twilio", "--stage", "x", typed=typed)
    assert str(result.exception) == "Standard input is not a JSON object."


def test_every_provider_has_its_fields_and_those_of_the_tests_pass() -> None:
    assert set(FIELDS) == {*NAMES, "events"}
    check("twilio", {**SECRETS["twilio"], "account_sid": ACCOUNT, "auth_tokens": [OLD]})
    check("telnyx", {"api_key": "KEY0123456789", "public_keys": ["A" * 43 + "="]})
    check("sandbox", {"keys": ["0" * 64]})
    check("events", {"signing_secrets": ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]})
    for fields in FIELDS.values():
        assert sum(field.rotates for field in fields) == 1

"""`spillway credential`: shown once, its hash in the project's settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from chalicelib.config import load
from chalicelib.credentials import principal_of
from spillway.deploy import credentials
from spillway.problem import Problem
from spillway.project import PROJECT, variables


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project's settings, as they are delivered: still to be filled in."""
    (tmp_path / ".chalice").mkdir()
    text = (PROJECT / ".chalice" / "config.json").read_text()
    (tmp_path / ".chalice" / "config.json").write_text(text)
    monkeypatch.setattr(credentials, "PROJECT", tmp_path)
    return tmp_path


def spillway(*arguments: str) -> Result:
    return CliRunner().invoke(credentials.app, [*arguments, "--stage", "prod"])


def made(principal: str) -> str:
    result = spillway("new", principal, "--json")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert shown["principal"] == principal
    return str(shown["credential"])


def who(project: Path, credential: str) -> str | None:
    """Whom the authorizer of this stage takes somebody for."""
    settings = load({**variables(project, "prod", "authorize")})
    return principal_of(f"Bearer {credential}", settings.credential_hashes)


def test_a_credential_is_good_and_its_text_is_nowhere(project: Path) -> None:
    token, basic = made("api"), made("twilio")
    assert who(project, token) == "api"
    assert who(project, basic) == "twilio"
    assert basic.startswith("spillway:")
    assert min(len(token), len(basic.partition(":")[2])) >= 43
    text = (project / ".chalice" / "config.json").read_text()
    assert token not in text
    assert basic.partition(":")[2] not in text


def test_the_older_ones_stay_good_until_they_are_retired(project: Path) -> None:
    first, other, second = made("api"), made("twilio"), made("api")
    assert [who(project, one) for one in (first, second, other)] == ["api", "api", "twilio"]
    assert spillway("retire", "api").exit_code == 0
    assert [who(project, one) for one in (first, second, other)] == [None, "api", "twilio"]
    assert "has no older credential" in str(spillway("retire", "api").exception)


def test_nothing_else_in_the_file_changes(project: Path) -> None:
    file = project / ".chalice" / "config.json"
    before = file.read_text()
    made("api")
    changed = [
        line
        for line, was in zip(file.read_text().splitlines(), before.splitlines(), strict=True)
        if line != was
    ]
    assert [line.split('"')[1] for line in changed] == ["CREDENTIAL_HASHES"]


def test_for_people_it_is_printed_alone(project: Path) -> None:
    result = spillway("new", "api")
    (line,) = result.stdout.splitlines()
    assert who(project, line) == "api"


@pytest.mark.parametrize("command", ["new", "retire"])
def test_a_stranger_gets_none(project: Path, command: str) -> None:
    error = spillway(command, "carrier-pigeon").exception
    assert isinstance(error, Problem)
    assert str(error).startswith("PRINCIPAL must be one of api, ")


@pytest.mark.parametrize("text", ["[]", "no", '{"api": 7}'])
def test_what_is_no_list_of_hashes_is_left_alone(project: Path, text: str) -> None:
    file = project / ".chalice" / "config.json"
    settings = json.loads(file.read_text())
    authorize = settings["stages"]["prod"]["lambda_functions"]["authorize"]
    authorize["environment_variables"]["CREDENTIAL_HASHES"] = text
    file.write_text(json.dumps(settings))
    error = spillway("new", "api").exception
    assert isinstance(error, Problem)
    assert "CREDENTIAL_HASHES is not a JSON object" in str(error)
    assert json.loads(file.read_text()) == settings

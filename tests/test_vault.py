"""How long a secret is kept, what happens while Secrets Manager is away, and what errors say."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from chalicelib.messages import Keys
from chalicelib.runtime import NotReady
from chalicelib.vault import KEEP, PAUSE, SecretError, Vault
from tests.fakes import HASH_KEY, SECRETS, FakeRuntime, aws_error, events, logged

OLD = SECRETS["twilio"]
NEW = {**OLD, "auth_tokens": ["a newer token of the tests"]}
RETRY = 30.0  # seconds until Secrets Manager is asked again after it was away


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def vault(runtime: FakeRuntime) -> Vault:
    return Vault(runtime, "test")


def away() -> Exception:
    return EndpointConnectionError(endpoint_url="https://secretsmanager.example.com/heron")


def test_a_secret_is_read_once_and_each_by_its_own_name(runtime: FakeRuntime, vault: Vault) -> None:
    for _ in range(3):
        assert vault.secrets("twilio") == SECRETS["twilio"]
        assert vault.secrets("telnyx") == SECRETS["telnyx"]
    assert runtime.vault.reads == {"twilio": 1, "telnyx": 1}


def test_a_secret_is_read_again_after_a_while(runtime: FakeRuntime, vault: Vault) -> None:
    vault.secrets("twilio")
    runtime.vault.held["twilio"] = NEW

    runtime.clock += KEEP - 1
    assert vault.secrets("twilio") == OLD
    runtime.clock += 1
    assert vault.secrets("twilio") == NEW
    assert runtime.vault.reads["twilio"] == 2


@pytest.mark.parametrize(
    "error",
    [
        away(),
        aws_error("InternalServiceError", "GetSecretValue"),
        aws_error("ThrottlingException", "GetSecretValue"),
        aws_error("AccessDeniedException", "GetSecretValue"),
    ],
    ids=["no_connection", "server_error", "throttled", "denied"],
)
def test_while_secrets_manager_is_away_the_old_secret_serves(
    runtime: FakeRuntime, vault: Vault, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN a secret that was read and has expired
    vault.secrets("twilio")
    runtime.clock += KEEP
    runtime.vault.held["twilio"] = NEW

    # WHEN Secrets Manager is away
    runtime.vault.fails = error

    # THEN the old one serves, and not every message asks
    for _ in range(3):
        assert vault.secrets("twilio") == OLD
    assert runtime.vault.reads["twilio"] == 2
    assert events(logged(capsys)) == ["secret_not_refreshed"]
    runtime.clock += RETRY
    assert vault.secrets("twilio") == OLD
    assert runtime.vault.reads["twilio"] == 3

    # AND soon after it is back the new one does
    runtime.vault.fails = None
    runtime.clock += RETRY
    assert vault.secrets("twilio") == NEW


def test_what_was_never_read_cannot_be_bridged(runtime: FakeRuntime, vault: Vault) -> None:
    runtime.vault.fails = away()
    with pytest.raises(EndpointConnectionError):
        vault.secrets("twilio")
    runtime.vault.fails = None
    assert vault.secrets("twilio") == OLD


def test_a_request_that_is_wrong_is_not_bridged(runtime: FakeRuntime, vault: Vault) -> None:
    vault.secrets("twilio")
    runtime.clock += KEEP
    runtime.vault.fails = aws_error("ValidationException", "GetSecretValue")
    with pytest.raises(type(runtime.vault.fails)):
        vault.secrets("twilio")


# --- one fresh look before a refusal -------------------------------------------------------------


@pytest.mark.parametrize(
    ("since_last_read", "held", "found", "reads"),
    [
        (0.0, NEW, None, 1),  # a flood of bad signatures is not one of calls
        (PAUSE - 0.1, NEW, None, 1),
        (PAUSE, OLD, None, 2),
        (PAUSE, NEW, NEW, 2),
        (KEEP + 1, OLD, None, 2),
        (KEEP + 1, NEW, NEW, 2),
    ],
)
def test_a_fresh_look(
    runtime: FakeRuntime,
    vault: Vault,
    since_last_read: float,
    held: dict[str, Any],
    found: dict[str, Any] | None,
    reads: int,
) -> None:
    vault.secrets("twilio")
    runtime.clock += since_last_read
    runtime.vault.held["twilio"] = held
    assert vault.refreshed("twilio") == found
    assert runtime.vault.reads["twilio"] == reads


def test_what_a_fresh_look_found_is_kept_and_starts_the_pause(
    runtime: FakeRuntime, vault: Vault
) -> None:
    vault.secrets("twilio")
    runtime.vault.held["twilio"] = NEW
    runtime.clock += PAUSE
    assert vault.refreshed("twilio") == NEW
    for _ in range(3):
        assert vault.refreshed("twilio") is None
        assert vault.secrets("twilio") == NEW
    assert runtime.vault.reads["twilio"] == 2


def test_a_look_that_takes_long_counts_from_its_beginning(
    runtime: FakeRuntime, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a secret that is changed while it is read, and whose old value comes back late
    read = runtime.vault.get_secret_value

    def slowly(**names: str) -> dict[str, str]:
        answer = read(**names)
        runtime.vault.held["twilio"] = NEW
        runtime.clock += PAUSE
        return answer

    monkeypatch.setattr(runtime.vault, "get_secret_value", slowly)
    assert vault.secrets("twilio") == OLD
    # WHEN the first signature by the new one comes, THEN it is found
    assert vault.refreshed("twilio") == NEW


def test_a_look_at_what_was_never_read_is_fresh(vault: Vault) -> None:
    assert vault.refreshed("twilio") == OLD


def test_a_fresh_look_that_fails_says_so_and_keeps_the_old(
    runtime: FakeRuntime, vault: Vault
) -> None:
    vault.secrets("twilio")
    runtime.clock += PAUSE
    runtime.vault.fails = away()
    with pytest.raises(EndpointConnectionError):
        vault.refreshed("twilio")
    assert vault.secrets("twilio") == OLD


# --- our own keys, and what errors say -----------------------------------------------------------


def test_the_keys_are_those_of_the_hash_key(vault: Vault) -> None:
    assert vault.keys().number("x") == Keys(HASH_KEY).number("x")


@pytest.mark.parametrize(
    "held",
    [
        {},
        {"hash_key": ""},
        {"hash_key": "heron" * 6 + "x"},  # 31 characters
        {"hash_key": None},
        {"hash_key": ["heron" * 8]},
        {"HASH_KEY": "heron" * 8},
    ],
)
def test_a_hash_key_that_is_none_or_short_is_refused(
    runtime: FakeRuntime, vault: Vault, held: dict[str, Any]
) -> None:
    runtime.vault.held["keys"] = held
    with pytest.raises(SecretError, match=r"^spillway/test/keys: .*`hash_key` of at least 32 char"):
        vault.keys()


def test_a_hash_key_of_32_characters_is_taken(runtime: FakeRuntime, vault: Vault) -> None:
    runtime.vault.held["keys"] = {"hash_key": "x" * 32}
    assert vault.keys().number("1") == Keys("x" * 32).number("1")


@pytest.mark.parametrize(
    "held", ["", "heron", '{"api_key": "heron"', '["heron"]', '"heron"', "null"]
)
@pytest.mark.parametrize("read", [Vault.secrets, Vault.refreshed])
def test_a_secret_that_is_no_json_object_is_named_and_not_shown(
    runtime: FakeRuntime, vault: Vault, held: str, read: Any
) -> None:
    runtime.vault.held["telnyx"] = held
    with pytest.raises(SecretError) as caught:
        read(vault, "telnyx")
    assert str(caught.value) == "spillway/test/telnyx: must be a JSON object"
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_secret_in_binary_is_no_json_object(
    runtime: FakeRuntime, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = {"SecretBinary": b'{"api_key": "heron"}'}
    monkeypatch.setattr(runtime.vault, "get_secret_value", lambda **_: answer)
    with pytest.raises(SecretError, match=r"^spillway/test/telnyx: must be a JSON object$"):
        vault.secrets("telnyx")


def test_a_secret_that_is_missing_is_named_with_what_to_do(
    runtime: FakeRuntime, vault: Vault
) -> None:
    del runtime.vault.held["telnyx"]
    with pytest.raises(SecretError, match=r"^spillway/test/telnyx: .*create it$"):
        vault.secrets("telnyx")


def test_messages_wait_for_a_person_to_mend_a_secret() -> None:
    assert issubclass(SecretError, NotReady)

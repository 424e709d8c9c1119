"""The keys of a local run: made once, kept, completed where somebody put real ones."""

from __future__ import annotations

import base64
import hashlib
import json
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from spillway.local.keys import load
from spillway.problem import Problem


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "secrets.json"


def test_they_are_private_and_the_same_at_the_next_run(path: Path) -> None:
    first = load(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load(path) == first


def test_two_folders_have_nothing_in_common(tmp_path: Path) -> None:
    one, other = load(tmp_path / "one"), load(tmp_path / "other")
    assert one.hash_key != other.hash_key
    assert one.credentials["api"] != other.credentials["api"]
    assert one.secrets["telnyx"]["private_key"] != other.secrets["telnyx"]["private_key"]


def test_the_telnyx_keys_belong_together(path: Path) -> None:
    telnyx = load(path).secrets["telnyx"]
    private = Ed25519PrivateKey.from_private_bytes(base64.b64decode(telnyx["private_key"]))
    public = base64.b64encode(private.public_key().public_bytes_raw()).decode()
    assert telnyx["public_keys"] == [public]


def test_the_authorizer_gets_hashes_and_the_functions_no_signing_key(path: Path) -> None:
    keys = load(path)
    assert json.loads(keys.credential_hashes()) == {
        principal: [hashlib.sha256(credential.encode()).hexdigest()]
        for principal, credential in keys.credentials.items()
    }
    stored = keys.stored()
    assert set(stored) == {"keys", "twilio", "telnyx", "events"}
    assert set(stored["telnyx"]) == {"api_key", "public_keys"}
    assert stored["keys"] == {"hash_key": keys.hash_key}


def test_a_real_accounts_secrets_are_kept_as_they_are(path: Path) -> None:
    first = load(path)
    content = json.loads(path.read_text())
    content["secrets"]["telnyx"] = {"api_key": "real", "public_keys": ["real"]}
    del content["secrets"]["twilio"]
    path.write_text(json.dumps(content))
    path.chmod(0o644)
    second = load(path)
    assert second.secrets["telnyx"] == {"api_key": "real", "public_keys": ["real"]}
    assert set(second.secrets["twilio"]) == {"account_sid", "auth_tokens"}
    assert second.hash_key == first.hash_key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["", "{", "[]", '{"credentials": 7}', '"text"'])
def test_another_kind_of_file_is_named_and_left_alone(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(Problem, match=r"secrets\.json"):
        load(path)
    assert path.read_text() == text


def test_they_do_not_show_themselves(path: Path) -> None:
    keys = load(path)
    assert keys.hash_key not in repr(keys)

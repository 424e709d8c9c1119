"""A stage with its data in an emulated account, and no functions."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from spillway import stores
from spillway.aws import of_emulator
from spillway.deploy.stacks import Stack
from spillway.operate import erasure
from spillway.project import PROJECT
from spillway.stage import Stage
from spillway.stores import Stores
from tests import emulated
from tests.fakes import HASH_KEY
from tests.operate.world import NAME, World

SETTINGS = {
    "SPILLWAY_STAGE": NAME,
    "PROVIDERS": "twilio,telnyx",
    "NUMBERS": "+14155550123=twilio,+14155550199=telnyx",
    "SEND_ONLY_TO": "*",
}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """What a local run would say of itself, without the run."""
    with emulated.ministack(tmp_path_factory.mktemp("ministack")) as endpoint:
        aws = of_emulator(endpoint)
        plan = Stack(aws, f"spillway-{NAME}-data", pause=0.05).plan(
            (PROJECT / "infra" / "data.yaml").read_text(),
            {"Stage": NAME, "DeletionProtection": "false"},
        )
        assert plan is not None
        plan.execute(lambda event: None)
        aws.client("secretsmanager").create_secret(
            Name=f"spillway/{NAME}/keys", SecretString=json.dumps({"hash_key": HASH_KEY})
        )
        local = {
            "settings": {
                role: {**SETTINGS, "SPILLWAY_FUNCTION": role}
                for role in ("receiver", "processing", "sender")
            },
            "webhook": "http://127.0.0.1:8000",
            "public_url": "https://sms.example.com",
            "pids": {},
            "secrets": {},
        }
        one = Stage(NAME, aws, Stores(aws, NAME), local)
        yield one
        one.stores.close()


@pytest.fixture(scope="module")
def whole(stage: Stage) -> World:
    return World(stage)


@pytest.fixture
def world(whole: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(erasure, "BETWEEN_LOCALLY", 0.02)
    monkeypatch.setattr(erasure, "LOOKS", 1)
    # (For what somebody who died was looking at.)
    monkeypatch.setattr(stores, "_LOOK", 1)
    yield whole
    whole.clear()

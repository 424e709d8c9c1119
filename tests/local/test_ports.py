"""Which ports are chosen, and what is said about one that is taken."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from spillway.local import ports
from spillway.local.ports import choose
from spillway.problem import Problem


@pytest.fixture(params=["127.0.0.1", "0.0.0.0"])
def taken(request: pytest.FixtureRequest) -> Iterator[int]:
    with socket.create_server((request.param, 0)) as server:
        yield server.getsockname()[1]


def free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def test_asked_for_and_free() -> None:
    webhook, page, aws = free(), free(), free()
    chosen = choose(webhook, page, aws)
    assert (chosen.webhook, chosen.page, chosen.aws) == (webhook, page, aws)


def test_zero_is_any_and_never_the_same_twice() -> None:
    chosen = choose(0, 0, 0)
    assert 0 not in (chosen.webhook, chosen.page, chosen.aws)
    assert list(chosen.gates) == ["twilio", "telnyx", "reply", "customer", "line"]
    assert len({chosen.webhook, chosen.page, chosen.aws, *chosen.gates.values()}) == 8


@pytest.mark.parametrize(
    ("position", "option"), [(0, "--webhook-port"), (1, "--page-port"), (2, "--aws-port")]
)
def test_a_taken_port_is_named_with_its_option_and_the_fix(
    taken: int, position: int, option: str
) -> None:
    wanted = [0, 0, 0]
    wanted[position] = taken
    with pytest.raises(Problem) as problem:
        choose(*wanted)
    assert str(taken) in str(problem.value)
    assert f"spillway run {option} 0" in str(problem.value)


def test_the_same_port_twice_is_taken_the_second_time() -> None:
    port = free()
    with pytest.raises(Problem, match="--page-port"):
        choose(port, port, 0)


def test_the_emulator_moves_where_nobody_named_its_port(
    monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    monkeypatch.setattr(ports, "EMULATOR", taken)
    assert choose(0, 0, None).aws not in (0, taken)


def test_the_emulators_own_port_is_used_where_it_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free()
    monkeypatch.setattr(ports, "EMULATOR", port)
    assert choose(0, 0, None).aws == port

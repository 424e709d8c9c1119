"""The simulator as the process that `spillway run` starts, on a free port of this machine."""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, cast

import httpx
import pytest

from tests.simulator.conftest import ACCOUNT, OURS, SETTINGS, THEIRS

_ROOT = Path(__file__).parents[2]


def _start(port: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "spillway.simulator", "--port", str(port)],
        cwd=_ROOT,
        env={"PATH": os.environ["PATH"], **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return cast(int, one.getsockname()[1])


@pytest.fixture(scope="module")
def gate() -> int:
    """The port at which the simulated Twilio can be down."""
    return _free_port()


@pytest.fixture(scope="module")
def process(gate: int) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    port = _free_port()
    settings = copy.deepcopy(SETTINGS)
    # Receipts and texts go to the simulator itself: to nobody's webhook, but over real connections.
    settings["webhook"] = f"http://127.0.0.1:{port}"
    settings["gates"] = {"twilio": gate}
    environment = {"SIMULATOR": json.dumps(settings), "SPILLWAY_PARENT_PIPE": "1"}
    with _start(port, environment) as one:
        base = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=base, trust_env=False, timeout=30.0) as http:
            while True:
                try:
                    http.get("/health").raise_for_status()
                    break
                except httpx.ConnectError:
                    assert one.poll() is None, _output(one)
                    time.sleep(0.05)
            yield one, http
        cast(IO[bytes], one.stdin).close()
        assert one.wait(10) == 0


def _output(process: subprocess.Popen[bytes]) -> str:
    return cast(IO[bytes], process.stdout).read().decode()


def _to_twilio(http: httpx.Client, timeout: float = 30.0, **form: str) -> httpx.Response:
    return http.post(
        f"/provider/twilio/2010-04-01/Accounts/{ACCOUNT}/Messages.json",
        data={"To": THEIRS, "From": OURS, "Body": "hi", **form},
        auth=(ACCOUNT, "newest"),
        timeout=timeout,
    )


def _to_telnyx(http: httpx.Client, key: str, timeout: float = 30.0) -> httpx.Response:
    return http.post(
        "/provider/telnyx/v2/messages",
        json={"to": THEIRS, "from": OURS, "text": "hi"},
        headers={"Authorization": "Bearer KEY", "Idempotency-Key": key},
        timeout=timeout,
    )


def _outbox(http: httpx.Client) -> list[dict[str, Any]]:
    return cast(list[dict[str, Any]], http.get("/provider/outbox").json())


Process = tuple[subprocess.Popen[bytes], httpx.Client]


@pytest.mark.parametrize("fail", ["no_answer", "failed_answer"])
def test_what_is_taken_and_not_answered_is_in_the_outbox_once(process: Process, fail: str) -> None:
    _, http = process
    before = len(_outbox(http))
    for provider in ("twilio", "telnyx"):
        http.put(f"/provider/behaviour/{provider}", json={"fail": fail, "for": 30})
    # WHEN sends are taken, and not answered or answered 500
    if fail == "no_answer":
        with pytest.raises(httpx.ReadTimeout):
            _to_twilio(http, timeout=0.3)
        with pytest.raises(httpx.ReadTimeout):
            _to_telnyx(http, fail, timeout=0.3)
    else:
        assert _to_twilio(http).status_code == _to_telnyx(http, fail).status_code == 500
    # THEN both were taken
    assert len(_outbox(http)) == before + 2
    # AND the same key is the same message, which is answered now
    for provider in ("twilio", "telnyx"):
        http.put(f"/provider/behaviour/{provider}", json={})
    assert _to_telnyx(http, fail).status_code == 200
    assert len(_outbox(http)) == before + 2


def test_who_gave_up_waiting_may_have_been_heard(process: Process) -> None:
    _, http = process
    before = len(_outbox(http))
    for provider in ("twilio", "telnyx"):
        http.put(f"/provider/behaviour/{provider}", json={"delay": 0.5, "for": 5})
    # WHEN a slow provider's client goes before the answer
    with pytest.raises(httpx.ReadTimeout):
        _to_twilio(http, timeout=0.2)
    with pytest.raises(httpx.ReadTimeout):
        _to_telnyx(http, "slow", timeout=0.2)
    # THEN both are taken all the same
    deadline = time.monotonic() + 5
    while len(_outbox(http)) < before + 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_is_down_refuses_connections_until_it_is_up_by_itself(
    process: Process, gate: int
) -> None:
    _, http = process
    with httpx.Client(base_url=f"http://127.0.0.1:{gate}", trust_env=False) as through:
        # GIVEN a connection that is open, and one on which an answer is waited for
        assert _to_twilio(through).status_code == 201
        before = len(_outbox(http))
        http.put("/provider/behaviour/twilio", json={"fail": "no_answer"})
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(_to_twilio, through)
            while len(_outbox(http)) == before:
                time.sleep(0.01)
            # WHEN it is down for a while, THEN both are cut
            http.put("/provider/behaviour/twilio", json={})
            http.put("/provider/behaviour/twilio", json={"fail": "down", "for": 0.5})
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                waiting.result(5)
        # AND none can be made, while all others can
        with pytest.raises(httpx.ConnectError):
            _to_twilio(through)
        assert _to_telnyx(http, "meanwhile").status_code == 200
        # AND it is up by itself
        deadline = time.monotonic() + 5
        while True:
            try:
                assert _to_twilio(through).status_code == 201
                break
            except httpx.ConnectError:
                assert time.monotonic() < deadline
                time.sleep(0.02)


def test_a_lost_answer_is_accepted_and_the_connection_cut(process: Process) -> None:
    _, http = process
    before = len(_outbox(http))
    for provider in ("twilio", "telnyx"):
        http.put(f"/provider/behaviour/{provider}", json={"fail": "lost_answer"})
    # WHEN an answer is lost, THEN the client sees a connection that ends
    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        _to_twilio(http)
    for _ in range(2):
        with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
            _to_telnyx(http, "lost")
    # AND it was accepted, the repeat with the same key only once
    assert len(_outbox(http)) == before + 2
    for provider in ("twilio", "telnyx"):
        http.put(f"/provider/behaviour/{provider}", json={})
    assert _to_telnyx(http, "lost").status_code == 200
    assert len(_outbox(http)) == before + 2


def test_many_sends_at_once(process: Process) -> None:
    _, http = process
    before = len(_outbox(http))
    callback = f"{http.base_url}/sample/reply?reference=a-b-1"

    def send(number: int) -> int:
        return _to_twilio(http, To=f"+1415556{number:04}", StatusCallback=callback).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(send, range(200))) == {201}
    entries = _outbox(http)[before:]
    assert len({entry["to"] for entry in entries}) == len(entries) == 200
    # Receipts go on in the background, and end.
    deadline = time.monotonic() + 30
    while http.get("/health").json()["receipts"]["waiting"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_text_over_a_real_connection(process: Process) -> None:
    _, http = process
    given = {"provider": "telnyx", "from": THEIRS, "to": OURS, "text": "hello"}
    answer = http.post("/provider/inbound", json=given).json()
    # There is no such path here: the provider tries three times and tells how it went.
    assert answer.items() >= {"status": 404, "attempts": 3, "door": "signed"}.items()
    assert answer["seconds"] > 1


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "SIMULATOR is not set"),
        ({"SIMULATOR": "{"}, "SIMULATOR is not JSON"),
        ({"SIMULATOR": "{}"}, "SIMULATOR webhook: must be"),
    ],
)
def test_a_bad_setting_is_said_clearly(environment: dict[str, str], said: str) -> None:
    with _start(_free_port(), environment) as one:
        assert one.wait(20) == 1
        output = _output(one)
    assert said in output
    assert "Traceback" not in output


def test_a_taken_port_is_said_clearly() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with _start(port, {"SIMULATOR": json.dumps(SETTINGS)}) as one:
            assert one.wait(20) != 0
            output = _output(one)
    assert "address already in use" in output
    assert "Traceback" not in output


def test_it_outlives_a_closed_input_unless_told_otherwise() -> None:
    port = _free_port()
    with _start(port, {"SIMULATOR": json.dumps(SETTINGS)}) as one:
        cast(IO[bytes], one.stdin).close()
        deadline = time.monotonic() + 20
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False)
                break
            except httpx.ConnectError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        one.terminate()
        one.wait(10)
        assert _output(one) == ""

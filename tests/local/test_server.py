"""The webhook's server: what it adds to Chalice's local one."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from chalice import local
from chalice.app import AuthRequest, AuthResponse, Chalice, Response
from chalice.config import Config

from spillway.local.server import Handler, Server


def sample() -> Chalice:
    app = Chalice("sample")

    @app.authorizer()
    def authorize(request: AuthRequest) -> AuthResponse:
        if request.token == "broken":
            raise ValueError(f"+1415555{99 + 1:04}")
        return AuthResponse(routes=["*"] if request.token == "good" else [], principal_id="one")

    @app.route("/guarded", methods=["POST"], authorizer=authorize, content_types=["*/*"])
    def guarded() -> dict[str, str]:
        return {}

    @app.route("/headers", methods=["POST"], content_types=["*/*"])
    def headers() -> Any:
        event = app.current_request._event_dict  # type: ignore[union-attr]
        return {"multi": event["multiValueHeaders"], "single": event["headers"]}

    @app.route("/unauthorized", methods=["POST"], content_types=["*/*"])
    def unauthorized() -> Response:
        return Response("the app's own", status_code=401)

    return app


@pytest.fixture
def port() -> Iterator[int]:
    app = sample()
    server = local.LocalDevServer(app, Config(), "127.0.0.1", 0, Handler, Server)
    thread = threading.Thread(target=server.server.serve_forever, args=(0.05,))
    thread.start()
    yield server.server.server_address[1]
    server.shutdown()
    thread.join(5)
    server.server.server_close()


def post(port: int, path: str, *headers: tuple[str, str]) -> tuple[int, Any, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.putrequest("POST", path)
        for name, value in (*headers, ("Content-Length", "2")):
            connection.putheader(name, value)
        connection.endheaders(b"{}")
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("headers", "status", "challenge"),
    [
        ([], 401, 'Basic realm="spillway"'),
        ([("Authorization", "wrong")], 403, None),
        ([("Authorization", "good")], 200, None),
        ([("Authorization", "broken")], 502, None),
    ],
)
def test_a_request_without_credentials_is_asked_for_them(
    port: int, headers: list[tuple[str, str]], status: int, challenge: str | None
) -> None:
    answer = post(port, "/guarded", *headers)
    assert answer[0] == status
    assert answer[1]["WWW-Authenticate"] == challenge


def test_repeated_headers_are_kept(port: int) -> None:
    signatures = [("X-Signature", "first"), ("x-signature", "second")]
    _, _, body = post(port, "/headers", *signatures)
    event = json.loads(body)
    assert event["multi"]["x-signature"] == ["first", "second"]
    assert event["single"]["x-signature"] == "second"


def test_one_connection_carries_several_requests(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    for number in ("1", "2"):
        connection.request("POST", "/headers", body="{}", headers={"X-Number": number})
        answer = json.loads(connection.getresponse().read())
        assert answer["multi"]["x-number"] == [number]
    connection.close()


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/headers?From=%2B14155550100", []),
        ("/nowhere/+14155550100", []),
        ("/guarded", [("Authorization", "broken")]),
        ("/guarded", [("Authorization", "+14155550100")]),
    ],
)
def test_the_log_has_status_and_time_and_nothing_of_the_request(
    port: int, capsys: pytest.CaptureFixture[str], path: str, headers: list[tuple[str, str]]
) -> None:
    post(port, path, *headers)
    written = "".join(capsys.readouterr())
    assert " ms\n" in written
    assert "4155550100" not in written
    assert path.split("?")[0] not in written


def test_a_line_that_is_not_http_is_not_logged(
    port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"+14155550100 hello\r\n\r\n")
        while connection.recv(4096):
            pass
    assert "4155550100" not in "".join(capsys.readouterr())


def test_a_burst_of_connections_is_not_reset(port: int) -> None:
    assert Server.request_queue_size == 1024
    connections = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(200)]
    for connection in connections:
        connection.sendall(b"POST /headers HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
    answers = [connection.recv(12) for connection in connections]
    for connection in connections:
        connection.close()
    assert answers == [b"HTTP/1.1 200"] * 200

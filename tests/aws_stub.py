"""The two AWS calls that functions make when they start, answered on loopback, so that a function
can be started for real in a process of its own."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.fakes import HASH_KEY


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["content-length"])))
        action = self.headers["x-amz-target"].rpartition(".")[2]
        answer = {
            "GetQueueUrl": lambda: {
                "QueueUrl": f"http://127.0.0.1/123456789012/{question['QueueName']}"
            },
            "GetSecretValue": lambda: {"SecretString": json.dumps({"hash_key": HASH_KEY})},
        }[action]()
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-amz-json-1.0")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@contextmanager
def aws_stub() -> Iterator[str]:
    """The endpoint's URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def function_environment(function: str, endpoint: str) -> dict[str, str]:
    """The environment in which a function starts, with nothing of the developer's own."""
    return {
        "SPILLWAY_FUNCTION": function,
        "SPILLWAY_STAGE": "test",
        "PROVIDERS": "twilio,telnyx",
        "SEND_ONLY_TO": "*",
        "SEND_TO_COUNTRIES": "US",
        "CREDENTIAL_HASHES": json.dumps({"api": ["0" * 64]}),
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }

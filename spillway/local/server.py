"""The webhook: Chalice's own local server, made fit for a burst and nearer to API Gateway.

    python -m spillway.local.server PORT

It is started in the project's folder with the receiver's environment. Against `chalice local`: a
listen backlog that a burst does not overflow, a 401 that asks for credentials, repeated headers,
an answer for every failure, and a log without paths or headers.
"""

from __future__ import annotations

import logging
import signal
import socketserver
import sys
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from chalice import local
from chalice.app import Chalice
from chalice.cli.factory import CLIFactory
from chalice.config import Config

from chalicelib.config import SettingError
from spillway.local.environment import STAGE
from spillway.local.parent import exit_with_parent
from spillway.local.ports import LOOPBACK


class Failed(local.LocalGatewayException):
    """The function or the authorizer raised: API Gateway answers 502."""

    CODE = 502


class Gateway(local.LocalGateway):
    """API Gateway for one connection. `repeated` has the headers of the request in hand."""

    repeated: dict[str, list[str]]

    def _generate_lambda_event(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        event = super()._generate_lambda_event(*args, **kwargs)
        event["multiValueHeaders"] = self.repeated
        return event

    def handle_request(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            return super().handle_request(*args, **kwargs)
        except local.LocalGatewayException:
            raise
        except Exception as error:
            # Its text may hold anything: the lines of code only.
            traceback.print_tb(error.__traceback__)
            print(type(error).__name__, flush=True)
            headers = {"Content-Type": "application/json"}
            raise Failed(headers, b'{"message": "Internal server error"}') from None


class Handler(local.ChaliceRequestHandler):
    """One connection."""

    # Headers and body leave in one packet, at once: else each keep-alive answer waits 40 ms for
    # an acknowledgement that the other side delays.
    wbufsize = -1
    disable_nagle_algorithm = True

    def __init__(
        self, request: Any, client_address: Any, server: Any, app_object: Chalice, config: Config
    ) -> None:
        self.local_gateway: Gateway = Gateway(app_object, config)
        BaseHTTPRequestHandler.__init__(self, request, client_address, server)

    def _parse_payload(self) -> tuple[dict[str, str], bytes | None]:
        self._began = time.monotonic()
        repeated: dict[str, list[str]] = {}
        for name, value in self.headers.items():
            repeated.setdefault(name.lower(), []).append(value)
        self.local_gateway.repeated = repeated
        _, body = super()._parse_payload()
        # Of repeated headers API Gateway's `headers` has the last.
        return {name: values[-1] for name, values in repeated.items()}, body

    def _send_error_response(self, error: local.LocalGatewayException) -> None:
        if error.CODE == 401:
            # Twilio and Bandwidth send their credentials only after this; on AWS it is a gateway
            # response.
            error.headers["WWW-Authenticate"] = 'Basic realm="spillway"'
        super()._send_error_response(error)

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        began = getattr(self, "_began", None)
        taken = f" {1000 * (time.monotonic() - began):.0f} ms" if began else ""
        print(f"{int(code)}{taken}", flush=True)

    def log_message(self, *_: Any) -> None:
        """Nothing: the standard library would log the request line."""


class Server(local.ThreadedHTTPServer):
    """A thread for each connection. The backlog's default of 5 resets the clients of a burst."""

    request_queue_size = 1024

    def server_bind(self) -> None:
        # http.server asks DNS for the name of the address, which can take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError):
            traceback.print_tb(error.__traceback__ if error else None)
            print(type(error).__name__, flush=True)


def create(project: Path, port: int) -> local.LocalDevServer:
    """The server, bound and not yet serving."""
    # A copy of the environment: Chalice would write config.json over what the run decided.
    factory = CLIFactory(str(project), environ={})
    config = factory.create_config_obj(chalice_stage_name=STAGE)
    app = config.chalice_app
    # As chalice.local.create_local_server does: a request of its own for each thread.
    local.CustomLocalChalice.__bases__ = (local.LocalChalice, app.__class__)
    app.__class__ = local.CustomLocalChalice
    return local.LocalDevServer(app, config, LOOPBACK, port, Handler, Server)


def main(port: int) -> None:
    exit_with_parent()
    logging.basicConfig(stream=sys.stdout, level=logging.WARNING, format="%(message)s")
    try:
        server = create(Path.cwd(), port)
    except SettingError as error:
        sys.exit(str(error))
    # `shutdown` waits for the loop that the signal interrupts.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]))

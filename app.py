"""Spillway: the routes, the authorizer and the queue handlers, as one Chalice app.

What they do is in chalicelib/. SPILLWAY_FUNCTION, set for each function, says which of them this
is: it alone is imported and made ready when the function starts. Chalice's command line imports
this module too; nothing is made then, and in `chalice local` at the first request.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from typing import Any

from chalice.app import AuthRequest, AuthResponse, AuthRoute, Chalice, Response, SQSEvent

from chalicelib.config import load
from chalicelib.credentials import paths_of, principal_of
from chalicelib.observing import count, log

STAGE = os.environ.get("SPILLWAY_STAGE", "dev")
ANY_TYPE = ["*/*"]  # the receiver judges

app = Chalice(app_name="spillway")


@cache
def function(module: str) -> Any:
    """The receiver, processing or the sender, made ready."""
    return import_module(f"chalicelib.{module}").start()


@app.authorizer(ttl_seconds=300)
def authorize(request: AuthRequest) -> AuthResponse:
    hashes = load({**os.environ, "SPILLWAY_FUNCTION": "authorizer"}).credential_hashes
    principal = principal_of(request.token, hashes)
    if principal is None:
        count("Refused", reason="credentials")
        log("WARNING", "refused", reason="credentials")
        return AuthResponse(routes=[], principal_id="nobody")
    routes = [AuthRoute(path, [method]) for method, path in paths_of(principal)]
    return AuthResponse(routes=[*routes], principal_id=principal)


@app.route("/webhooks/{provider}", methods=["POST"], authorizer=authorize, content_types=ANY_TYPE)
def webhook(provider: str) -> Response:
    return _response(function("receiving").webhook(provider, _event(), signed_door=False))


@app.route("/webhooks/{provider}/signed", methods=["POST"], content_types=ANY_TYPE)
def signed_webhook(provider: str) -> Response:
    return _response(function("receiving").webhook(provider, _event(), signed_door=True))


@app.route("/messages", methods=["POST"], authorizer=authorize, content_types=ANY_TYPE)
def post_message() -> Response:
    return _response(function("receiving").post_message(_event()))


@app.route("/messages/{id}", methods=["GET"], authorizer=authorize)
def get_message(id: str) -> Response:  # noqa: A002 -- Chalice passes it by the route's name
    return _response(function("receiving").get_message(id))


@app.route("/consent", methods=["POST"], authorizer=authorize, content_types=ANY_TYPE)
def post_consent() -> Response:
    return _response(function("receiving").post_consent(_event()))


@app.route("/health", methods=["GET"])
def health() -> dict[str, str]:
    return {"status": "ok"}


# What a queue's mapping may have at once, so that neither takes the other's share of the account's
# concurrency, nor the front door's, and none receives more than it can work on.
@app.on_sqs_message(
    queue=f"spillway-{STAGE}-processing",
    batch_size=100,
    maximum_batching_window_in_seconds=1,
    maximum_concurrency=200,
)
def process(event: SQSEvent) -> Any:
    return function("processing").handle(event.to_dict(), event.context)


@app.on_sqs_message(queue=f"spillway-{STAGE}-outbound.fifo", batch_size=10, maximum_concurrency=250)
def send(event: SQSEvent) -> Any:
    return function("sending").handle(event.to_dict(), event.context)


def _event() -> dict[str, Any]:
    # Chalice's request keeps one of several headers of a name; the event keeps them all.
    assert app.current_request is not None
    event: dict[str, Any] = app.current_request._event_dict
    return event


def _response(answer: Any) -> Response:
    return Response(answer.body, headers=dict(answer.headers), status_code=answer.status)


if "AWS_CHALICE_CLI_MODE" not in os.environ:
    STARTED = {"receiver": "receiving", "processing": "processing", "sender": "sending"}
    settings = load(os.environ)
    if settings.function in STARTED:
        function(STARTED[settings.function])

"""The seam: what passes, how things run side by side, and that nobody goes around it."""

from __future__ import annotations

import ast
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ParamValidationError,
    ReadTimeoutError,
)

from chalicelib.batches import Defer
from chalicelib.queues import EnvelopeError
from chalicelib.runtime import THREADS, NotReady, Runtime, is_transient, within
from chalicelib.table import Conflict, ReadIncomplete
from chalicelib.vault import SecretError

ENDPOINT = "https://sqs.example.com"


def refusal(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "heron"}}, "Operation")


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        # No connection, and time-outs.
        (EndpointConnectionError(endpoint_url=ENDPOINT), True),
        (ConnectTimeoutError(endpoint_url=ENDPOINT), True),
        (ReadTimeoutError(endpoint_url=ENDPOINT), True),
        (ConnectionClosedError(endpoint_url=ENDPOINT), True),
        (NoCredentialsError(), True),
        # Throttling and faults of the service.
        (refusal("ThrottlingException"), True),
        (refusal("ProvisionedThroughputExceededException"), True),
        (refusal("RequestLimitExceeded"), True),
        (refusal("SlowDown"), True),
        (refusal("InternalServerError"), True),
        (refusal("ServiceUnavailable"), True),
        (refusal("500"), True),
        # What a mended deployment would lift.
        (refusal("ResourceNotFoundException"), True),
        (refusal("NoSuchBucket"), True),
        (refusal("AWS.SimpleQueueService.NonExistentQueue"), True),
        (refusal("AccessDenied"), True),
        (refusal("AccessDeniedException"), True),
        (refusal("ExpiredTokenException"), True),
        (refusal("KMS.DisabledException"), True),
        (NotReady("NUMBERS"), True),
        (SecretError("spillway/test/keys"), True),
        (ReadIncomplete("3 keys unread"), True),
        (ClientError({}, "Operation"), True),
        # What speaks of the request.
        (refusal("ValidationException"), False),
        (refusal("ConditionalCheckFailedException"), False),
        (refusal("SerializationException"), False),
        (refusal("InvalidMessageContents"), False),
        (refusal("InvalidParameterValue"), False),
        (refusal("AWS.SimpleQueueService.BatchRequestTooLong"), False),
        (refusal("EntityTooLarge"), False),
        (ParamValidationError(report="heron"), False),
        # What is no service's.
        (ValueError("heron"), False),
        (KeyError("heron"), False),
        (OSError("heron"), False),
        (TimeoutError(), False),
        (EnvelopeError("not an envelope"), False),
        (Conflict(None), False),
        (Defer("claimed"), False),
    ],
    ids=repr,
)
def test_what_is_transient(error: Exception, transient: bool) -> None:
    assert is_transient(error) is transient


# --- side by side --------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 3, THREADS])
@pytest.mark.parametrize("how_many", [0, 1, 2, 7])
def test_all_tasks_are_run_and_the_results_keep_their_order(how_many: int, limit: int) -> None:
    tasks: list[Callable[[], int]] = [lambda n=n: n for n in range(how_many)]  # type: ignore[misc]
    assert Runtime().together(tasks, limit) == list(range(how_many))


def test_tasks_run_at_the_same_time() -> None:
    all_there = threading.Barrier(THREADS, timeout=10)
    assert len(Runtime().together([all_there.wait] * THREADS)) == THREADS


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_no_more_than_the_limit_at_a_time(limit: int) -> None:
    # GIVEN tasks that note how many of them are under way, and leave in companies of `limit`
    lock = threading.Lock()
    company = threading.Barrier(limit, timeout=10)
    under_way = 0
    most = 0

    def task() -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        company.wait()
        with lock:
            under_way -= 1

    Runtime().together([task] * (limit * 4), limit)
    assert most == limit


@pytest.mark.parametrize("limit", [1, 2, THREADS])
def test_what_the_first_raised_is_raised_after_all_have_ended(limit: int) -> None:
    # GIVEN an early failure, a later one, and tasks that end after both
    ended: list[str] = []
    failed = threading.Event()

    def well(name: str) -> Callable[[], None]:
        def task() -> None:
            if limit > 1:
                assert failed.wait(10)
            ended.append(name)

        return task

    def badly(error: Exception) -> Callable[[], None]:
        def task() -> None:
            failed.set()
            raise error

        return task

    tasks = [badly(ValueError("first")), badly(KeyError("second")), well("third"), well("fourth")]
    with pytest.raises(ValueError, match="first"):
        Runtime().together(tasks, limit)
    assert sorted(ended) == ["fourth", "third"]


# --- clients -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hurry", "times"), [(True, (0.4, 0.7, 2)), (False, (1.0, 2.0, 3))])
def test_the_time_outs_of_a_client(hurry: bool, times: tuple[float, float, int]) -> None:
    runtime = Runtime(hurry=hurry)
    config: Any = runtime.sqs.meta.config
    attempts = config.retries["total_max_attempts"]
    assert (config.connect_timeout, config.read_timeout, attempts) == times
    assert config.max_pool_connections >= THREADS
    assert runtime.sqs is runtime.sqs


CLIENTS = {"dynamodb", "s3", "secretsmanager", "sqs"}


@pytest.mark.parametrize("name", sorted(CLIENTS))
def test_warm_makes_the_clients_that_it_is_told_and_no_other(name: str) -> None:
    runtime = Runtime()
    runtime.warm(name)
    assert CLIENTS & set(vars(runtime)) == {name}
    assert vars(runtime)[name].meta.service_model.service_name == name


def test_the_http_client_goes_where_it_is_told_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.com:3128")
    client = Runtime().http
    assert not client.follow_redirects
    assert not client.trust_env


# --- nobody goes around it -----------------------------------------------------------------------

CHALICELIB = Path(__file__).parent.parent / "chalicelib"
FORBIDDEN_MODULES = {
    *("time", "random", "uuid", "secrets", "threading", "concurrent", "multiprocessing", "asyncio"),
    *("queue", "sched", "socket", "subprocess", "boto3", "botocore.session"),
}
# What a module may do all the same, and why: a metric's line wants a time, and nothing is decided
# by it; the table's types are no client.
ALLOWED = {
    ("observing.py", "time"),
    ("table.py", "boto3.dynamodb.types"),
}
FORBIDDEN_CALLS = {
    *("datetime.now", "datetime.utcnow", "datetime.today", "date.today", "os.urandom"),
    *("httpx.Client", "httpx.AsyncClient", "httpx.get", "httpx.post", "httpx.request"),
    *("urllib.request.urlopen", "importlib.import_module"),
}
# Providers are found by name.
ALLOWED_CALLS = {("providers/__init__.py", "importlib.import_module")}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(CHALICELIB.rglob("*.py")):
        name = path.relative_to(CHALICELIB).as_posix()
        if name != "runtime.py":
            yield name, ast.parse(path.read_text())


def imported(tree: ast.Module) -> Iterator[str]:
    """Every module that is imported anywhere but for the type checker alone."""
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def violations(name: str, tree: ast.Module) -> set[tuple[str, str]]:
    def forbidden(module: str) -> bool:
        return any(module == one or module.startswith(f"{one}.") for one in FORBIDDEN_MODULES)

    found = {(name, module) for module in imported(tree) if forbidden(module)} - ALLOWED
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return found | {(name, call) for call in calls & FORBIDDEN_CALLS} - ALLOWED_CALLS


def test_nothing_but_runtime_reads_a_clock_or_makes_a_client() -> None:
    found = set()
    for name, tree in modules():
        found |= violations(name, tree)
    assert found == set()


def test_what_is_allowed_is_still_there_to_be_allowed() -> None:
    there = {(name, module) for name, tree in modules() for module in imported(tree)}
    assert there >= ALLOWED


@pytest.mark.parametrize(
    "code",
    [
        "import time",
        "import time as t",
        "from time import time",
        "from concurrent.futures import ThreadPoolExecutor",
        "import concurrent.futures",
        "def f():\n    import boto3",
        "def f():\n    from boto3.session import Session",
        "from uuid import uuid4",
        "x = datetime.now(UTC)",
        "client = httpx.Client(timeout=1)",
        "if True:\n    import random",
    ],
)
def test_it_would_be_seen(code: str) -> None:
    assert violations("sending.py", ast.parse(code))


def test_what_is_for_the_type_checker_alone_is_not_counted() -> None:
    assert not violations("sending.py", ast.parse("if TYPE_CHECKING:\n    import time"))


# --- HTTP ----------------------------------------------------------------------------------------


class Dripping(BaseHTTPRequestHandler):
    """Answers a byte now and then, each sooner than any read time-out, for five seconds."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "50")
        self.end_headers()
        for _ in range(50):
            time.sleep(0.1)
            try:
                self.wfile.write(b" ")
                self.wfile.flush()
            except OSError:
                return

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def test_an_answer_that_drips_ends_in_time_as_a_whole() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Dripping)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    runtime = Runtime()
    try:
        with pytest.raises(httpx.ReadTimeout):
            runtime.http.get(f"http://127.0.0.1:{server.server_port}/", timeout=within(0.5))
    finally:
        runtime.http.close()
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_connection_is_kept_for_the_next_call() -> None:
    ports = []

    class Door(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            ports.append(self.client_address[1])
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        log_message = Dripping.log_message

    server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    runtime = Runtime()
    try:
        for _ in range(3):
            runtime.http.get(f"http://127.0.0.1:{server.server_port}/")
    finally:
        runtime.http.close()
        server.shutdown()
        server.server_close()
        thread.join()
    assert len(set(ports)) == 1

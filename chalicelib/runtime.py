"""The one door to whatever is not deterministic: clock, chance, ids, threads, stores, HTTP.

Nothing else in chalicelib reads a clock, draws a number, starts a thread or makes a client (a lint
rule sees to it), so that the very same code runs on Lambda, on the local stack and under a
simulation that decides each of these.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import httpx
    from types_boto3_dynamodb.client import DynamoDBClient
    from types_boto3_s3.client import S3Client
    from types_boto3_secretsmanager.client import SecretsManagerClient
    from types_boto3_sqs.client import SQSClient

T = TypeVar("T")

# How many threads a batch is worked on with; every client keeps as many connections.
THREADS = 25


class NotReady(Exception):
    """The deployment lacks something that a person has to mend; messages wait for it."""


class Runtime:
    """The real one. `hurry` is set in the receiver, which has 2 seconds for everything: short
    time-outs and one repetition."""

    def __init__(self, *, hurry: bool = False) -> None:
        self._hurry = hurry

    def now(self) -> float:
        """Unix seconds."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def random(self) -> float:
        """From 0 up to 1."""
        return random.random()  # noqa: S311 -- for jitter

    def new_id(self) -> str:
        return uuid.uuid4().hex

    def together(self, tasks: Sequence[Callable[[], T]], limit: int = THREADS) -> list[T]:
        """Runs the tasks side by side, at most `limit` at a time; returns when all have ended.

        Raises what the first of them raised, after all have ended.
        """
        if len(tasks) < 2:
            return [task() for task in tasks]
        with ThreadPoolExecutor(max_workers=min(limit, len(tasks))) as pool:
            futures = [pool.submit(task) for task in tasks]
        return [future.result() for future in futures]

    def warm(self, *clients: str) -> None:
        """Makes these clients now: at INIT there is more processor than later."""
        for client in clients:
            getattr(self, client)

    @property
    def boto3(self) -> str:
        """Which boto3 this is: on Lambda the runtime brings it, and changes it when it likes."""
        import boto3

        return f"boto3 {boto3.__version__}"

    @cached_property
    def sqs(self) -> SQSClient:
        client: SQSClient = self._client("sqs")
        return client

    @cached_property
    def dynamodb(self) -> DynamoDBClient:
        client: DynamoDBClient = self._client("dynamodb")
        return client

    @cached_property
    def s3(self) -> S3Client:
        client: S3Client = self._client("s3")
        return client

    @cached_property
    def secretsmanager(self) -> SecretsManagerClient:
        client: SecretsManagerClient = self._client("secretsmanager")
        return client

    @cached_property
    def events(self) -> Any:
        """Of EventBridge."""
        return self._client("events")

    @cached_property
    def http(self) -> httpx.Client:
        """One client for all: connections are kept. It repeats nothing by itself, since a request
        that failed may have been served. The time-outs are each caller's."""
        from http.cookiejar import CookieJar, DefaultCookiePolicy

        import httpx

        return httpx.Client(
            transport=_bounded(
                httpx.Limits(max_connections=None, max_keepalive_connections=THREADS)
            ),
            timeout=within(10.0),
            follow_redirects=False,
            # No proxy or netrc of the environment: secrets go where the settings say.
            trust_env=False,
            # A cookie that is not ASCII would fail every later request to its host.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )

    def _client(self, service: str) -> Any:
        import boto3
        from botocore.config import Config

        # Repeating is safe, even where the first request was served and its answer lost: every
        # write to the table is conditional or recognises itself, an object is put as it was, and a
        # message that is on a queue twice changes nothing.
        config = Config(
            connect_timeout=0.4 if self._hurry else 1.0,
            read_timeout=0.7 if self._hurry else 2.0,
            retries={"mode": "standard", "total_max_attempts": 2 if self._hurry else 3},
            max_pool_connections=2 * THREADS,
            s3={"addressing_style": "path"},
        )
        return boto3.client(service, config=config)


def within(seconds: float) -> httpx.Timeout:
    """The time-outs of one HTTP call: `seconds` until the answer is there, and at most 3 more for
    the connection."""
    import httpx

    return httpx.Timeout(seconds, connect=min(seconds, 3.0), pool=min(seconds, 3.0))


def at_most(seconds: float) -> float:
    """How long a call with the time-outs of `within(seconds)` can take until its answer begins:
    TCP and then TLS have the time for the connection each."""
    return seconds + 2 * min(seconds, 3.0)


def _bounded(limits: httpx.Limits) -> httpx.BaseTransport:
    """A transport whose answers end in time as a whole.

    httpx bounds each read; a peer that sends a byte now and then would hold a function until
    Lambda ends it. No connection is tried a second time by the transport: whoever calls knows
    what a repetition is worth, and by when it has to have an answer.
    """
    import httpx

    class Body(httpx.SyncByteStream):
        def __init__(self, body: httpx.SyncByteStream, end: float) -> None:
            self._body = body
            self._end = end

        def __iter__(self) -> Iterator[bytes]:
            for chunk in self._body:
                if time.monotonic() > self._end:
                    raise httpx.ReadTimeout("the answer took too long as a whole")
                yield chunk

        def close(self) -> None:
            self._body.close()

    class Transport(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            end = time.monotonic() + request.extensions["timeout"]["read"]
            response = super().handle_request(request)
            assert isinstance(response.stream, httpx.SyncByteStream)
            response.stream = Body(response.stream, end)
            return response

    return Transport(limits=limits, trust_env=False, retries=0)


def is_transient(error: BaseException) -> bool:
    """Whether a store or a service failed in a way that the message has no part in.

    No connection, time-outs, throttling, 5xx, and refusals that a mended deployment would lift
    (permissions, a missing table). Not: a request that the service calls invalid.
    """
    from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

    if isinstance(error, ClientError):
        return error.response.get("Error", {}).get("Code", "") not in _INVALID
    if isinstance(error, NotReady):
        return True
    return isinstance(error, BotoCoreError) and not isinstance(error, ParamValidationError)


# Codes that speak of the request and not of the service.
_INVALID = frozenset(
    {
        "ValidationException",
        "ConditionalCheckFailedException",
        "SerializationException",
        "InvalidMessageContents",
        "InvalidParameterValue",
        "AWS.SimpleQueueService.BatchRequestTooLong",
        "EntityTooLarge",
    }
)

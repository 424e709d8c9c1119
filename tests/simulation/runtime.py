"""The Runtime that the simulation gives to the real code: every call is a place where tasks switch,
where a process can die, and where a store or the network can fail in each of its ways."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import httpx
from botocore.exceptions import BotoCoreError, ClientError, ConnectTimeoutError, ReadTimeoutError

from chalicelib.runtime import Runtime
from tests.simulation.faults import HTTP_FAULTS, STORE_EXTRAS, STORE_FAULTS, Faults, site_of
from tests.simulation.world import Process, Task, World

T = TypeVar("T")

READ_TIMEOUT = 2.0
_PARTIAL = frozenset(
    {"send_message_batch", "delete_message_batch", "change_message_visibility_batch"}
)
_THROTTLES = {
    "sqs": "RequestThrottled",
    "dynamodb": "ProvisionedThroughputExceededException",
    "s3": "SlowDown",
    "secretsmanager": "ThrottlingException",
    "events": "ThrottlingException",
}

# What an answer says of the next page, and how that is asked for.
_TOKENS = {
    "scan": ("LastEvaluatedKey", "ExclusiveStartKey"),
    "list_objects_v2": ("NextContinuationToken", "ContinuationToken"),
}

Watcher = Callable[[Task, str, str, dict[str, Any], Any], None]


class Cloud:
    """The stores, and what else is in one world for all its processes."""

    def __init__(self, world: World, faults: Faults, stores: dict[str, Any]) -> None:
        self.world = world
        self.faults = faults
        self.stores = stores
        # Unix seconds between which a store or a host answers nobody.
        self.outages: dict[str, list[tuple[float, float]]] = {}
        # Seconds that a host takes at most to answer.
        self.slowness: dict[str, float] = {}
        self.frozen = 0.0  # seconds that a frozen one stands still at least
        # By reference or address: requests of which the answer did not come.
        self.uncertain: set[str] = set()
        # Called after each call that a store served: task, service, operation, arguments, answer.
        self.watchers: list[Watcher] = []
        self.network: Callable[[Task, httpx.Request], httpx.Response] = _nobody
        # Called before each request leaves: task, request. And after: with the status of the
        # answer that was heard, or 0.
        self.http_watchers: list[Callable[[Task, httpx.Request], None]] = []
        self.on_answer: Callable[[Task, httpx.Request, int], None] = lambda *_: None
        # Called where a store's call failed for good: task, site, operation, arguments, since when.
        self.on_failure: Callable[[Task, str, str, dict[str, Any], float], None] = lambda *_: None
        # Called where an invocation ended of itself: its process, and when it began.
        self.on_end: Callable[[Process, float], None] = lambda *_: None

    def down(self, what: str) -> bool:
        return any(start <= self.world.now < end for start, end in self.outages.get(what, ()))


class SimulatedRuntime(Runtime):
    """One process's runtime. Its clock is off by `skew` seconds."""

    def __init__(self, cloud: Cloud, process: Process, role: str, skew: float) -> None:
        super().__init__(hurry=role == "receiver")
        self.cloud = cloud
        self.world = cloud.world
        self.process = process
        self.role = role
        self.skew = skew
        self.attempts = 2 if role == "receiver" else 3
        for service, store in cloud.stores.items():
            self.__dict__[service] = _Client(self, service, store)
        transport = _Network(self)
        self.__dict__["http"] = httpx.Client(transport=transport, trust_env=False)

    def now(self) -> float:
        return self.world.now + self.skew

    def sleep(self, seconds: float) -> None:
        self.world.sleep(seconds)

    def random(self) -> float:
        return self.world.random.random()

    def new_id(self) -> str:
        return f"{self.world.random.getrandbits(128):032x}"

    def together(self, tasks: Sequence[Callable[[], T]], limit: int = 25) -> list[T]:
        if len(tasks) < 2:
            return [task() for task in tasks]
        mine = self.world.current()
        waiting = list(tasks)
        running: list[Task] = []
        while waiting or any(not task.done for task in running):
            while waiting and sum(not task.done for task in running) < limit:
                task = self.world.spawn(waiting.pop(0), self.process)
                task.notes["parent"] = mine
                task.waiters.append(mine)
                running.append(task)
            self.world.park()
        for task in running:
            if task.error is not None:
                raise task.error
        return [task.result for task in running]

    def call(self, service: str, operation: str, arguments: dict[str, Any]) -> Any:
        """One call of the AWS client, with the client's own repetitions."""
        site, began = site_of(self.role), self.world.now
        try:
            return self._called(service, operation, arguments, site)
        except (BotoCoreError, ClientError) as error:
            if not _is_an_answer(error):
                task = self.world.current()
                self.cloud.on_failure(task, site, operation, arguments, began)
            raise

    def _called(self, service: str, operation: str, arguments: dict[str, Any], site: str) -> Any:
        world, faults = self.world, self.cloud.faults
        store = getattr(self.cloud.stores[service], operation)
        error: Exception = ConnectTimeoutError(endpoint_url=service)
        for attempt in range(self.attempts):
            if attempt:
                world.sleep(0.05 * 2**attempt * world.random.random())
            fault = faults.draw(site, STORE_FAULTS + STORE_EXTRAS)
            if fault not in ("", "slow") or self.cloud.down(service):
                self.process.troubled_at = world.now
            self._die(fault == "killed before", site)
            if fault == "frozen":
                world.note(self.process.name, f"{site}: frozen")
                least = self.cloud.frozen
                world.sleep(least + (100 - least) * world.random.random() ** 2)
            world.sleep(self._latency())
            down = self.cloud.down(service)
            if down or fault in ("throttled", "server error"):
                code = "InternalServerError" if fault == "server error" else _THROTTLES[service]
                error = ClientError({"Error": {"Code": code, "Message": ""}}, operation)
                world.note(self.process.name, f"{site}: {'down' if down else fault}")
                if not down and faults.lasting():
                    raise error
                continue
            if fault == "arrives late":
                later = 0.5 + 8 * world.random.random()
                world.spawn(lambda: self._served(service, operation, arguments, None), after=later)
                world.note(self.process.name, f"{site}: arrives {later:.1f} s late")
                world.sleep(READ_TIMEOUT)
                error = ReadTimeoutError(endpoint_url=service)
                continue
            if fault == "partly done" and operation in _PARTIAL and len(arguments["Entries"]) > 1:
                return self._partly(service, operation, arguments, site)
            refusal: ClientError | None = None
            answer = None
            try:
                answer = store(**arguments)
            except ClientError as refused:
                refusal = refused
            self._seen(service, operation, arguments, answer, refusal, site)
            self._die(fault == "killed after", site)
            if fault == "response lost":
                world.note(self.process.name, f"{site}: its response is lost")
                world.sleep(READ_TIMEOUT)
                error = ReadTimeoutError(endpoint_url=service)
                if faults.lasting():
                    raise error
                continue
            world.sleep(READ_TIMEOUT * 0.9 if fault == "slow" else self._latency())
            if refusal is not None:
                raise refusal
            return answer
        raise error

    def _partly(
        self, service: str, operation: str, arguments: dict[str, Any], site: str
    ) -> dict[str, Any]:
        entries = list(arguments["Entries"])
        kept = [one for one in entries if self.world.chance(0.5)]
        failed = [one["Id"] for one in entries if one not in kept]
        answer: dict[str, Any] = {"Successful": [], "Failed": []}
        if kept:
            some = {**arguments, "Entries": kept}
            answer = getattr(self.cloud.stores[service], operation)(**some)
            self._seen(service, operation, some, answer, None, site)
        self.world.note(self.process.name, f"{site}: {len(failed)} of {len(entries)} refused")
        refusals = [{"Id": id_, "Code": "InternalError", "SenderFault": False} for id_ in failed]
        return {**answer, "Failed": [*answer.get("Failed", []), *refusals]}

    def _served(
        self, service: str, operation: str, arguments: dict[str, Any], site: str | None
    ) -> None:
        """For a request that its caller has given up already."""
        answer, refusal = None, None
        try:
            answer = getattr(self.cloud.stores[service], operation)(**arguments)
        except ClientError as refused:
            refusal = refused
        self._seen(service, operation, arguments, answer, refusal, site or "late")

    def _seen(
        self,
        service: str,
        operation: str,
        arguments: dict[str, Any],
        answer: Any,
        refusal: ClientError | None,
        site: str,
    ) -> None:
        task = self.world.current()
        what = refusal if refusal is not None else answer
        self.world.calls.append(
            (self.world.now, self.process.name, site, operation, arguments, what)
        )
        for watch in self.cloud.watchers:
            watch(task, service, operation, arguments, what)

    def _die(self, now: bool, site: str) -> None:
        if now:
            self.world.note(self.process.name, f"dies at {site}")
            self.world.kill(self.process)
            self.world.sleep(0)

    def _latency(self) -> float:
        return 0.002 + 0.03 * self.world.random.random() ** 2


class _Client:
    """A boto3 client, as far as ours are used."""

    def __init__(self, runtime: SimulatedRuntime, service: str, store: Any) -> None:
        self._runtime = runtime
        self._service = service
        self.exceptions = getattr(store, "exceptions", None)
        self.meta = getattr(store, "meta", None)

    def get_paginator(self, operation: str) -> _Pages:
        return _Pages(getattr(self, operation), *_TOKENS[operation])

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            return self._runtime.call(self._service, operation, arguments)

        self.__dict__[operation] = call
        return call


class _Pages:
    """What boto3's paginators do: call after call, until an answer says that it is the last."""

    def __init__(self, call: Callable[..., Any], told: str, asked: str) -> None:
        self._call = call
        self._told, self._asked = told, asked

    def paginate(self, **arguments: Any) -> Iterator[Any]:
        following: dict[str, Any] = {}
        while True:
            page = self._call(**arguments, **following)
            yield page
            if self._told not in page:
                return
            following = {self._asked: page[self._told]}


class _Network(httpx.BaseTransport):
    """httpx's way out: whatever may happen between a request and its answer, happens here."""

    def __init__(self, runtime: SimulatedRuntime) -> None:
        self._runtime = runtime

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        task = self._runtime.world.current()
        try:
            response = self._answer(request)
        except httpx.HTTPError:
            self._runtime.cloud.on_answer(task, request, 0)
            raise
        self._runtime.cloud.on_answer(task, request, response.status_code)
        return response

    def _answer(self, request: httpx.Request) -> httpx.Response:
        runtime = self._runtime
        world, cloud = runtime.world, runtime.cloud
        host = request.url.host
        site = f"{site_of(runtime.role)} > {host}"
        who = runtime.process.name
        timeout = float(request.extensions["timeout"]["read"])
        fault = cloud.faults.draw(site, HTTP_FAULTS)
        runtime._die(fault == "killed before", site)
        world.sleep(runtime._latency())
        task = world.current()
        request.read()
        slow = cloud.slowness.get(host, 0.0) * world.random.random()
        if slow > timeout and not fault:
            fault = "response lost"
        for watch in cloud.http_watchers:
            watch(task, request)
        certain = ("", "throttled", "no connection")
        if fault not in certain or cloud.down(host):
            cloud.uncertain.add(reference_of(request))
        if cloud.down(host) and not (fault := _in_an_outage(cloud, host)):
            return httpx.Response(503)
        if fault:
            world.note(who, f"{site}: {fault}")
        if fault == "no connection":
            raise httpx.ConnectError("no connection")
        if fault == "throttled":
            world.sleep(slow)
            retry_after = {"Retry-After": "20"} if world.chance(0.5) else {}
            return httpx.Response(429, headers=retry_after)
        if fault == "refused with 5xx":
            return httpx.Response(world.random.choice((500, 502, 503)))
        if fault == "lost on the way":
            world.sleep(timeout)
            raise httpx.ReadTimeout("lost")
        if fault == "arrives late":
            later = timeout + 60 * world.random.random() ** 3
            world.spawn(lambda: cloud.network(task, request), after=later)
            world.sleep(timeout)
            raise httpx.ReadTimeout("late")
        response = cloud.network(task, request)
        runtime._die(fault == "killed after", site)
        if fault == "response lost":
            world.sleep(timeout)
            raise httpx.ReadTimeout("lost")
        if fault == "answer broken":
            raise httpx.RemoteProtocolError("broken")
        if fault == "accepted with 5xx":
            return httpx.Response(500)
        world.sleep(0.02 + 0.2 * world.random.random() + slow)
        if "means" in response.extensions:
            # (Who hears it, knows it.)
            those, what = response.extensions["means"]
            those.add(what)
        return response


def _is_an_answer(error: BotoCoreError | ClientError) -> bool:
    """Whether a store said no, instead of failing."""
    return isinstance(error, ClientError) and error.response["Error"]["Code"] in (
        "ConditionalCheckFailedException",
        "ResourceNotFoundException",
        "ValidationException",
    )


def reference_of(request: httpx.Request) -> str:
    """Our reference, in a request to a provider."""
    if "Idempotency-Key" in request.headers:
        return str(request.headers["Idempotency-Key"])
    found = re.search(rb"reference%3D([0-9a-f-]+)", request.content)
    return found[1].decode() if found else ""


def _in_an_outage(cloud: Cloud, host: str) -> str:
    """How somebody fails who is down: each host in its own way, "" by a 503."""
    ways = ("no connection", "lost on the way", "", "throttled")
    return ways[(cloud.world.seed + len(host)) % len(ways)]


def _nobody(task: Task, request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("nobody there")

"""A worker: polls one queue and calls the function behind it, as Lambda's mapping would.

    python -m spillway.local.worker processing|outbound

It is started in the project's folder with the function's environment. Batch size and window are
those of the handler in app.py; time-out and memory those of `.chalice/config.json`.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chalicelib.config import SettingError
from spillway.local import mapping
from spillway.local.environment import FUNCTIONS, STAGE
from spillway.local.parent import exit_with_parent
from spillway.project import function_config

# Batches at a time. Lambda would scale; on one machine, more of them only queue at the emulator.
THREADS = {"processing": 4, "outbound": 4}

# Seconds of a long poll. SQS allows 20; this is how long a worker needs to end or to be reloaded.
WAIT = 1

# Seconds that batches in hand have after SIGTERM. The run kills what has not ended after 5.
GRACE = 4.0

# The line that tells the run that a worker is at work.
READY = "polling"

_log = logging.getLogger("worker")


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the app, and what Lambda knows of it. Times are seconds."""

    name: str
    handler: Callable[[dict[str, Any], Any], Any]
    queue: str
    batch_size: int
    window: float
    timeout: float
    memory: int
    reports: bool


@dataclass(frozen=True)
class Context:
    """The part of Lambda's context object that a function may use.

    https://docs.aws.amazon.com/lambda/latest/dg/python-context.html
    """

    function_name: str
    memory_limit_in_mb: str
    invoked_function_arn: str
    deadline: float
    aws_request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    function_version: str = "$LATEST"
    log_group_name: str = ""
    log_stream_name: str = ""
    identity: None = None
    client_context: None = None

    def get_remaining_time_in_millis(self) -> int:
        return max(0, int((self.deadline - time.monotonic()) * 1000))


class Poller:
    """Takes one batch after the other from a queue until `stopping` is set."""

    def __init__(
        self,
        sqs: Any,
        queue_url: str,
        queue_arn: str,
        function: Function,
        stopping: threading.Event,
    ) -> None:
        self._sqs = sqs
        self._queue_url = queue_url
        self._queue_arn = queue_arn
        self._function = function
        self._stopping = stopping

    def run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                messages = self.gather()
                if self._stopping.is_set():
                    self._hand_back(messages)
                elif messages:
                    failures = 0 if self.invoke(messages) else failures + 1
            except Exception as error:
                # Of the emulator or of the way to it; its text may hold a body.
                _log.error("queue %s: %s", self._function.queue, type(error).__name__)
                failures += 1
            if failures:
                self._stopping.wait(min(0.5 * 2**failures, 10.0))

    def gather(self) -> list[dict[str, Any]]:
        """A batch: what is there at once, and what comes within the window after the first."""
        batch = self._receive(self._function.batch_size, WAIT)
        closes = time.monotonic() + self._function.window
        while batch and not self._stopping.is_set():
            room, left = self._function.batch_size - len(batch), closes - time.monotonic()
            if room <= 0 or left <= 0:
                break
            wait = round(left)
            found = self._receive(room, wait)
            if not found and not wait:
                # Less is left than a long poll can be told.
                self._stopping.wait(min(left, 0.1))
            batch += found
        return batch

    def invoke(self, messages: Sequence[dict[str, Any]]) -> bool:
        """Calls the function with a batch and deletes what succeeded; says whether the call did."""
        function = self._function
        event = {"Records": [mapping.record(message, self._queue_arn) for message in messages]}
        context = Context(
            function_name=function.name,
            memory_limit_in_mb=str(function.memory),
            invoked_function_arn=_function_arn(self._queue_arn, function.name),
            deadline=time.monotonic() + function.timeout,
        )
        ids = [message["MessageId"] for message in messages]
        try:
            answer = function.handler(event, context)
            # Lambda passes the answer on as JSON, and fails where it is none.
            answer = json.loads(json.dumps(answer))
            done = mapping.succeeded(answer, ids, reports=function.reports)
        except mapping.BadAnswer as error:
            _log.error("%s: the whole batch fails: %s", function.name, error)
            return False
        except Exception as error:
            where = _where(error)
            _log.error(
                "%s: the whole batch fails: %s %s", function.name, type(error).__name__, where
            )
            return False
        if context.get_remaining_time_in_millis() == 0:
            _log.warning(
                "%s: took longer than its time-out; AWS would have ended it", function.name
            )
        self._delete([message for message in messages if message["MessageId"] in done])
        return True

    def _receive(self, room: int, wait: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._sqs.receive_message(
            QueueUrl=self._queue_url,
            MaxNumberOfMessages=min(10, room),
            WaitTimeSeconds=wait,
            MessageSystemAttributeNames=["All"],
            MessageAttributeNames=["All"],
        ).get("Messages", [])
        return found

    def _delete(self, messages: Sequence[dict[str, Any]]) -> None:
        for entries in _entries(messages):
            answer = self._sqs.delete_message_batch(QueueUrl=self._queue_url, Entries=entries)
            for failed in answer.get("Failed", []):
                # Its receipt handle has expired, so it comes again; the function recognises it.
                _log.error("queue %s: not deleted: %s", self._function.queue, failed.get("Code"))

    def _hand_back(self, messages: Sequence[dict[str, Any]]) -> None:
        """Makes visible at once what came in while this worker was told to end."""
        for entries in _entries(messages):
            self._sqs.change_message_visibility_batch(
                QueueUrl=self._queue_url,
                Entries=[{**entry, "VisibilityTimeout": 0} for entry in entries],
            )


def _entries(messages: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The messages as entries of batch calls, which take ten each."""
    entries = [
        {"Id": str(number), "ReceiptHandle": message["ReceiptHandle"]}
        for number, message in enumerate(messages)
    ]
    return [entries[start : start + 10] for start in range(0, len(entries), 10)]


def _function_arn(queue_arn: str, name: str) -> str:
    _, partition, _, region, account, _ = queue_arn.split(":")
    return f"arn:{partition}:lambda:{region}:{account}:function:{name}"


def _where(error: BaseException) -> str:
    """The lines of code that an error went through, without its text."""
    places, frame = [], error.__traceback__
    while frame:
        code = frame.tb_frame.f_code
        places.append(f"{os.path.basename(code.co_filename)}:{frame.tb_lineno}")
        frame = frame.tb_next
    return " > ".join(places[-5:])


def load(child: str) -> Function:
    """The function that works on the queue of one of the two workers, from app.py."""
    app = importlib.import_module("app")
    handler_name = FUNCTIONS[child]
    config = function_config(Path.cwd(), STAGE, handler_name)
    source = next(
        source for source in app.app.event_sources if source.handler_string == f"app.{handler_name}"
    )
    return Function(
        name=f"{app.app.app_name}-{STAGE}-{source.name}",
        handler=getattr(app, handler_name),
        queue=source.queue,
        batch_size=source.batch_size,
        window=source.maximum_batching_window_in_seconds,
        timeout=config.lambda_timeout or 60,
        memory=config.lambda_memory_size or 128,
        reports=os.environ.get("REPORT_BATCH_ITEM_FAILURES") == "true",
    )


def _sqs(threads: int) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=2,
        read_timeout=WAIT + 10,
        max_pool_connections=threads,
        retries={"mode": "standard", "total_max_attempts": 3},
    )
    return boto3.client("sqs", config=config)


def main(child: str) -> None:
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    exit_with_parent()
    # As on Lambda: an HTTP client's lines at INFO have URLs with numbers in them.
    logging.basicConfig(stream=sys.stdout, level=logging.WARNING, format="%(message)s")
    _log.setLevel(logging.INFO)
    try:
        function = load(child)
    except SettingError as error:
        sys.exit(str(error))
    sqs = _sqs(THREADS[child])
    queue_url = sqs.get_queue_url(QueueName=function.queue)["QueueUrl"]
    queue_arn = sqs.get_queue_attributes(QueueUrl=queue_url, AttributeNames=["QueueArn"])[
        "Attributes"
    ]["QueueArn"]
    pollers = [
        threading.Thread(
            target=Poller(sqs, queue_url, queue_arn, function, stopping).run, daemon=True
        )
        for _ in range(THREADS[child])
    ]
    for poller in pollers:
        poller.start()
    _log.info("%s %s", READY, function.queue)
    stopping.wait()
    deadline = time.monotonic() + GRACE
    for poller in pollers:
        poller.join(max(0.0, deadline - time.monotonic()))
    sys.stdout.flush()
    # A batch that has not ended comes again; waiting for its threads could take a minute.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])

"""What the local stack holds, read from where it is kept: table, archive, queues, outbox.

Everything is counted here from the stores themselves, never from what a function said of itself.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import httpx
from boto3.dynamodb.types import TypeDeserializer

from chalicelib.messages import Keys
from chalicelib.queues import DEAD_LETTERS, OUTBOUND, PROCESSING
from spillway.aws import of_emulator

STAGE = "local"
Item = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Depth:
    """How many messages a queue holds: waiting, being worked on, delayed."""

    waiting: int
    in_flight: int
    delayed: int

    @property
    def total(self) -> int:
        return self.waiting + self.in_flight + self.delayed


class Stores:
    """The stores of a running local stack; `local` is what local.json says."""

    def __init__(self, local: Mapping[str, Any]) -> None:
        self._local = local
        self._aws = of_emulator(local["aws"])
        self.page = local["page"]
        self.http = httpx.Client(timeout=10.0, trust_env=False)

    def close(self) -> None:
        """Closes every connection."""
        self.http.close()
        self._aws.close()

    def aws(self, service: str) -> Any:
        """The emulator's client of a service."""
        return self._aws.client(service)

    @cached_property
    def keys(self) -> Keys:
        found = self.aws("secretsmanager").get_secret_value(SecretId=f"spillway/{STAGE}/keys")
        return Keys(json.loads(found["SecretString"])["hash_key"])

    def conversation(self, ours: str, theirs: str) -> list[Item]:
        """All items of a conversation."""
        pk = {"S": f"C#{self.keys.conversation(ours, theirs)}"}
        answer = self.aws("dynamodb").query(
            TableName=f"spillway-{STAGE}",
            KeyConditionExpression="pk = :pk",
            ExpressionAttributeValues={":pk": pk},
            ConsistentRead=True,
        )
        return [_plain(item) for item in answer["Items"]]

    def items(self) -> Iterator[Item]:
        """Every item of the table."""
        for page in (
            self.aws("dynamodb")
            .get_paginator("scan")
            .paginate(TableName=f"spillway-{STAGE}", ConsistentRead=True)
        ):
            yield from map(_plain, page["Items"])

    def archived(self, since: float) -> Iterator[Item]:
        """Every line of the archive's objects that were written since then (unix seconds)."""
        bucket = self._bucket
        s3 = self.aws("s3")
        start = datetime.fromtimestamp(int(since), UTC)
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="messages/"):
            for found in page.get("Contents", []):
                if found["LastModified"] >= start:
                    body = s3.get_object(Bucket=bucket, Key=found["Key"])["Body"].read()
                    yield from map(json.loads, gzip.decompress(body).splitlines())

    def depths(self) -> dict[str, Depth]:
        """The two queues and their dead-letter queues, by name."""
        return {name: self._depth(name) for name in (PROCESSING, OUTBOUND, *DEAD_LETTERS.values())}

    def outbox(self) -> list[Item]:
        """What the simulated providers took, newest last."""
        found: list[Item] = self.http.get(f"{self.page}/provider/outbox", timeout=60).json()
        return found

    @cached_property
    def urls(self) -> dict[str, str]:
        """The queues' URLs, by name."""
        return {
            name: self.aws("sqs").get_queue_url(QueueName=f"spillway-{STAGE}-{name}")["QueueUrl"]
            for name in (PROCESSING, OUTBOUND, *DEAD_LETTERS.values())
        }

    @cached_property
    def _bucket(self) -> str:
        account = self.urls[PROCESSING].split("/")[-2]
        region = self.aws("sqs").meta.region_name
        return f"spillway-{STAGE}-archive-{account}-{region}"

    def _depth(self, name: str) -> Depth:
        found = self.aws("sqs").get_queue_attributes(
            QueueUrl=self.urls[name], AttributeNames=["All"]
        )["Attributes"]
        return Depth(
            int(found["ApproximateNumberOfMessages"]),
            int(found["ApproximateNumberOfMessagesNotVisible"]),
            int(found["ApproximateNumberOfMessagesDelayed"]),
        )


def _plain(item: Mapping[str, Any]) -> Item:
    read = TypeDeserializer().deserialize
    return {name: read(value) for name, value in item.items()}

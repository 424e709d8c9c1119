"""What a stage holds, read from where it is kept: table, archive, queues.

Everything is read from the stores themselves, never from what a function said of itself.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from chalicelib.breaker import PAUSE
from chalicelib.ledger import UNKNOWN_BUCKETS
from chalicelib.messages import Keys, MessageId
from chalicelib.queues import DEAD_LETTERS, OUTBOUND, PROCESSING
from chalicelib.table import Item, read_item
from spillway.aws import Aws
from spillway.problem import Problem

# Where dead letters are kept that somebody dropped.
DROPPED = "quarantine/dropped/"
QUEUES = (PROCESSING, OUTBOUND, *DEAD_LETTERS.values())
# Seconds for which a dead letter that is looked at is hidden from whoever looks next.
_LOOK = 30
# What SQS says of a handle whose time is over, on a FIFO queue alone.
_TOO_LATE = ("InvalidParameterValue", "ReceiptHandleIsInvalid")
_NEVER = 1e11  # unix seconds
# What S3 says where an object is not as it was read, or gone.
_CHANGED = ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey")


@dataclass(frozen=True, slots=True)
class Depth:
    """How many messages a queue holds: waiting, being worked on, delayed."""

    waiting: int
    in_flight: int
    delayed: int

    @property
    def total(self) -> int:
        return self.waiting + self.in_flight + self.delayed


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message on a dead-letter queue. `history`: what was done with it before, by name; nothing
    where SQS itself put it aside. `sent_at`: unix seconds; `group`: "" on a standard queue."""

    queue: str
    id: str
    receipt_handle: str
    body: str
    history: Mapping[str, str]
    sent_at: float
    group: str


class Stores:
    """The stores of one stage."""

    def __init__(self, aws: Aws, stage: str) -> None:
        self.aws = aws
        self.stage = stage

    def close(self) -> None:
        """Closes every connection."""
        self.aws.close()

    @cached_property
    def keys(self) -> Keys:
        """The keyed hashes of this stage. Raises Problem where its key is missing."""
        client = self.aws.client("secretsmanager")
        name = f"spillway/{self.stage}/keys"
        try:
            found = client.get_secret_value(SecretId=name)
        except client.exceptions.ResourceNotFoundException:
            raise Problem(f"There is no secret {name}: is stage {self.stage} deployed?") from None
        return Keys(json.loads(found["SecretString"])["hash_key"])

    # -- the table ----------------------------------------------------------------------------

    def conversation(self, ours: str, theirs: str) -> list[Item]:
        """All items of a conversation."""
        return self.partition(f"C#{self.keys.conversation(ours, theirs)}")

    def partition(self, pk: str) -> list[Item]:
        """All items under a partition key."""
        pages = self._dynamodb.get_paginator("query").paginate(
            TableName=self._table,
            KeyConditionExpression="pk = :pk",
            ExpressionAttributeValues={":pk": {"S": pk}},
            ConsistentRead=True,
        )
        return [read_item(item) for page in pages for item in page["Items"]]

    def message(self, id_: MessageId) -> tuple[Item | None, Item | None]:
        """A message's item and its reply's, each None where it is not there."""
        pk = f"C#{id_.conversation}"
        return self._item(pk, f"IN#{id_.message}"), self._item(pk, f"OUT#{id_.message}")

    def breaker(self, provider: str) -> Item:
        """How a provider's breaker stands; empty where it is closed."""
        return self._item(f"B#{provider}", "BREAKER") or {}

    def pause(self) -> Item | None:
        """Since when sending is paused, and why; None where it is not."""
        return self._item(*PAUSE)

    def items(self) -> Iterator[Item]:
        """Every item of the table."""
        for page in self._dynamodb.get_paginator("scan").paginate(
            TableName=self._table, ConsistentRead=True
        ):
            yield from map(read_item, page["Items"])

    def consent(self, brand: str) -> Iterator[Item]:
        """Every entry of a brand's list of consent; all of the table is read for them."""
        for page in self._dynamodb.get_paginator("scan").paginate(
            TableName=self._table,
            FilterExpression="begins_with(pk, :brand) AND sk = :consent",
            ExpressionAttributeValues={
                ":brand": {"S": f"P#{brand}#"},
                ":consent": {"S": "CONSENT"},
            },
            ConsistentRead=True,
        ):
            yield from map(read_item, page["Items"])

    def unknown(self) -> Iterator[Item]:
        """Every reply with a part of unknown outcome, or one that waits behind it."""
        for bucket in range(UNKNOWN_BUCKETS):
            pages = self._dynamodb.get_paginator("query").paginate(
                TableName=self._table,
                IndexName="unknown",
                KeyConditionExpression="unknown_bucket = :bucket",
                ExpressionAttributeValues={":bucket": {"S": f"U#{bucket:02d}"}},
            )
            for page in pages:
                yield from map(read_item, page["Items"])

    def size(self) -> tuple[int, int]:
        """How many items the table has, and of how many bytes: as AWS counted them last, some hours
        ago. https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_TableDescription.html
        """
        found = self._dynamodb.describe_table(TableName=self._table)["Table"]
        return found["ItemCount"], found["TableSizeBytes"]

    # -- the archive --------------------------------------------------------------------------

    def archived(self, since: float) -> Iterator[Item]:
        """Every line of the archive's objects that were written since then (unix seconds)."""
        for key in self.objects("messages/", since):
            yield from self.lines(key)

    def objects(self, prefix: str, since: float = 0.0, until: float = _NEVER) -> Iterator[str]:
        """The keys of the archive's objects that were written since then, and before then (unix
        seconds), in their order."""
        start = datetime.fromtimestamp(int(since), UTC)
        end = datetime.fromtimestamp(until, UTC)
        pages = self._s3.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self.bucket, Prefix=prefix):
            for found in page.get("Contents", []):
                if start <= found["LastModified"] < end:
                    yield found["Key"]

    def lines(self, key: str) -> list[Item]:
        """The lines of one object of messages."""
        body = self._s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return [json.loads(line) for line in gzip.decompress(body).splitlines()]

    def object(self, key: str) -> tuple[bytes, str] | None:
        """An object's content, unpacked, and its ETag; None where it is gone."""
        try:
            found = self._s3.get_object(Bucket=self.bucket, Key=key)
        except self._s3.exceptions.NoSuchKey:
            return None
        body: bytes = found["Body"].read()
        packed = found.get("ContentEncoding") == "gzip"
        return gzip.decompress(body) if packed else body, found["ETag"]

    def keep(self, key: str, content: Item) -> None:
        """Writes an object of JSON."""
        self._s3.put_object(
            Bucket=self.bucket,
            Key=key,
            Body=json.dumps(content, sort_keys=True).encode(),
            ContentType="application/json",
        )

    def written(self, key: str) -> float:
        """When an object was written, in unix seconds."""
        at: datetime = self._s3.head_object(Bucket=self.bucket, Key=key)["LastModified"]
        return at.timestamp()

    def replace(self, key: str, content: bytes, etag: str) -> bool:
        """Writes an object of messages anew, or deletes it where nothing is left of it; whether it
        was still as it was read.

        https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-requests.html
        """
        from botocore.exceptions import ClientError

        where = {"Bucket": self.bucket, "Key": key, "IfMatch": etag}
        try:
            if content:
                self._s3.put_object(
                    **where,
                    Body=gzip.compress(content, mtime=0),
                    ContentType="application/x-ndjson",
                    ContentEncoding="gzip",
                )
            else:
                self._s3.delete_object(**where)
        except ClientError as error:
            if error.response["Error"]["Code"] not in _CHANGED:
                raise
            return False
        return True

    def remove(self, key: str) -> None:
        """Deletes an object, if it is there."""
        self._s3.delete_object(Bucket=self.bucket, Key=key)

    @cached_property
    def bucket(self) -> str:
        """The archive."""
        account = self.urls[PROCESSING].split("/")[-2]
        return f"spillway-{self.stage}-archive-{account}-{self.aws.region}"

    # -- the queues ---------------------------------------------------------------------------

    @cached_property
    def urls(self) -> dict[str, str]:
        """The queues' URLs, by name. Raises Problem where there are none."""
        sqs = self.aws.client("sqs")
        try:
            return {
                name: sqs.get_queue_url(QueueName=f"spillway-{self.stage}-{name}")["QueueUrl"]
                for name in QUEUES
            }
        except sqs.exceptions.QueueDoesNotExist:
            raise Problem(
                f"Stage {self.stage} has no queues in {self.aws.region}. Deploy it: "
                f"spillway deploy --stage {self.stage}"
            ) from None

    def depths(self) -> dict[str, Depth]:
        """The two queues and their dead-letter queues, by name."""
        return {name: self.depth(name) for name in QUEUES}

    def dead_letters(self, queue: str, hide: int = 0) -> Iterator[DeadLetter]:
        """Every message of a dead-letter queue, as far as SQS shows them: each is hidden from
        others for half a minute (or `hide` seconds) meanwhile, and counted as received once more.
        """
        sqs = self.aws.client("sqs")
        seen: set[str] = set()
        while True:
            found = sqs.receive_message(
                QueueUrl=self.urls[queue],
                MaxNumberOfMessages=10,
                VisibilityTimeout=hide or _LOOK,
                MessageAttributeNames=["All"],
                MessageSystemAttributeNames=["SentTimestamp", "MessageGroupId"],
            ).get("Messages", [])
            new = [one for one in found if one["MessageId"] not in seen]
            if cut := _cut_off(found, new):
                # What is here of that conversation locks the rest of it: all of it comes next.
                self._show(queue, [one["ReceiptHandle"] for one in cut])
                new = [one for one in new if one not in cut]
            for one in new:
                seen.add(one["MessageId"])
                history = {
                    name: value.get("StringValue", "")
                    for name, value in one.get("MessageAttributes", {}).items()
                }
                told = one["Attributes"]
                yield DeadLetter(
                    queue,
                    one["MessageId"],
                    one["ReceiptHandle"],
                    one["Body"],
                    history,
                    int(told["SentTimestamp"]) / 1000,
                    told.get("MessageGroupId", ""),
                )
            if not new:
                return

    def send(self, queue: str, body: str, *, group: str, id_: str) -> None:
        """Puts a message on a queue, as it is. `group` and `id_` (for SQS, to tell it from others)
        count on a FIFO queue."""
        fifo = {"MessageGroupId": group, "MessageDeduplicationId": id_}
        self.aws.client("sqs").send_message(
            QueueUrl=self.urls[queue], MessageBody=body, **(fifo if queue.endswith(".fifo") else {})
        )

    def delete(self, letter: DeadLetter) -> bool:
        """Deletes a dead letter that is looked at; whether it was not looked at for too long."""
        from botocore.exceptions import ClientError

        try:
            self.aws.client("sqs").delete_message(
                QueueUrl=self.urls[letter.queue], ReceiptHandle=letter.receipt_handle
            )
        except ClientError as error:
            if error.response["Error"]["Code"] not in _TOO_LATE:
                raise
            return False
        return True

    def show(self, letters: Sequence[DeadLetter]) -> None:
        """Shows dead letters that were looked at to others again, at once."""
        for start in range(0, len(letters), 10):
            some = letters[start : start + 10]
            self._show(some[0].queue, [letter.receipt_handle for letter in some])

    def _show(self, queue: str, handles: Sequence[str]) -> None:
        # (What SQS refuses was looked at for too long: it shows by itself.)
        self.aws.client("sqs").change_message_visibility_batch(
            QueueUrl=self.urls[queue],
            Entries=[
                {"Id": str(number), "ReceiptHandle": handle, "VisibilityTimeout": 0}
                for number, handle in enumerate(handles)
            ],
        )

    def depth(self, name: str) -> Depth:
        """One queue's."""
        found = self.aws.client("sqs").get_queue_attributes(
            QueueUrl=self.urls[name], AttributeNames=["All"]
        )["Attributes"]
        return Depth(
            int(found["ApproximateNumberOfMessages"]),
            int(found["ApproximateNumberOfMessagesNotVisible"]),
            int(found["ApproximateNumberOfMessagesDelayed"]),
        )

    @property
    def _table(self) -> str:
        return f"spillway-{self.stage}"

    @property
    def _dynamodb(self) -> Any:
        return self.aws.client("dynamodb")

    @property
    def _s3(self) -> Any:
        return self.aws.client("s3")

    def _item(self, pk: str, sk: str) -> Item | None:
        found = self._dynamodb.get_item(
            TableName=self._table, Key={"pk": {"S": pk}, "sk": {"S": sk}}, ConsistentRead=True
        ).get("Item")
        return None if found is None else read_item(found)


def _cut_off(found: Sequence[Any], new: Sequence[Any]) -> list[Any]:
    """Of ten letters, which are as many as come at once, those of the last conversation, of which
    there may be more; none where nothing new is of another."""
    groups = [one["Attributes"].get("MessageGroupId", one["MessageId"]) for one in found]
    if len(found) < 10 or groups[-1] == found[-1]["MessageId"]:
        return []
    cut = [one for one, group in zip(found, groups, strict=True) if group == groups[-1]]
    return cut if any(one not in cut for one in new) else []

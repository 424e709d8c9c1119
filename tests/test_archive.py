"""The archive: one object a batch, with the same key and bytes however often it is written."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from itertools import permutations
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws

from chalicelib.archive import Archive
from chalicelib.messages import Keys
from tests.fakes import HASH_KEY, FakeRuntime

BUCKET = "spillway-test-archive-123456789012-us-east-1"
KEYS = Keys(HASH_KEY)
# 2026-03-01 00:00:00 UTC
MIDNIGHT = 1_772_323_200.0


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    with mock_aws():
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket=BUCKET)
        yield client


@pytest.fixture
def archive(bucket: Any) -> Archive:
    """The archive, empty."""
    for found in bucket.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        bucket.delete_object(Bucket=BUCKET, Key=found["Key"])
    return Archive(FakeRuntime(), KEYS, stage="test", account="123456789012")


def lines(*times: float) -> dict[str, dict[str, Any]]:
    return {f"id{n}": {"id": f"id{n}", "received_at": at} for n, at in enumerate(times)}


def stored(client: Any, key: str) -> bytes:
    body: bytes = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    return body


def count_of(client: Any) -> int:
    found: int = client.list_objects_v2(Bucket=BUCKET)["KeyCount"]
    return found


def test_a_batch_is_one_object_of_compressed_json_lines(archive: Archive, bucket: Any) -> None:
    # GIVEN what texts may hold
    texts = ["hello", "two\nlines", "\x00\ud800", "😀" * 1600, '"}']
    batch = {
        f"id{n}": {
            "id": f"id{n}",
            "received_at": MIDNIGHT + n,
            "text": text,
            "raw": {"a": [1, None]},
        }
        for n, text in enumerate(texts)
    }
    # WHEN it is archived
    key = archive.store(batch)
    # THEN one object has a line for each, in the order of the ids
    assert count_of(bucket) == 1
    found = gzip.decompress(stored(bucket, key)).decode("ascii")
    assert [json.loads(line) for line in found.splitlines()] == list(batch.values())
    assert found.endswith("\n")
    # AND it says what it is
    head = bucket.head_object(Bucket=BUCKET, Key=key)
    assert head["ContentType"] == "application/x-ndjson"
    assert head["ContentEncoding"] == "gzip"


@pytest.mark.parametrize(
    ("times", "day"),
    [
        ([MIDNIGHT], "2026/03/01"),
        ([MIDNIGHT - 0.001], "2026/02/28"),
        ([MIDNIGHT + 86_399.999], "2026/03/01"),
        ([MIDNIGHT + 86_400], "2026/03/02"),
        # The earliest gives the day.
        ([MIDNIGHT + 100_000, MIDNIGHT - 5, MIDNIGHT + 5], "2026/02/28"),
        ([1, MIDNIGHT], "1970/01/01"),
    ],
)
def test_the_key_is_the_day_and_the_ids(times: list[float], day: str, archive: Archive) -> None:
    batch = lines(*times)
    assert archive.store(batch) == f"messages/{day}/{KEYS.batch(batch)}.jsonl.gz"


def test_the_same_batch_in_any_order_is_the_same_object(archive: Archive, bucket: Any) -> None:
    batch = lines(MIDNIGHT, MIDNIGHT + 1, MIDNIGHT + 2)
    key = archive.store(batch)
    body = stored(bucket, key)
    for order in permutations(batch):
        assert archive.store({id_: batch[id_] for id_ in order}) == key
        assert stored(bucket, key) == body
    assert count_of(bucket) == 1
    # A time in the header would be another one tomorrow.
    assert body[4:8] == bytes(4)


def test_other_ids_are_another_object(archive: Archive, bucket: Any) -> None:
    keys = {archive.store(lines(*[MIDNIGHT] * n)) for n in (1, 2, 3)}
    assert len(keys) == count_of(bucket) == 3


PAYLOAD = {"provider": "twilio", "url": "https://sms.example.com/x", "body": "\ud800\x00"}


def test_what_could_not_be_read_is_kept_apart(archive: Archive, bucket: Any) -> None:
    key = archive.quarantine(PAYLOAD, MIDNIGHT)
    assert key.startswith("quarantine/2026/03/01/")
    assert key.endswith(".json")
    assert json.loads(stored(bucket, key)) == PAYLOAD
    head = bucket.head_object(Bucket=BUCKET, Key=key)
    assert head["ContentType"] == "application/json"
    assert head.get("ContentEncoding", "") in ("", "aws-chunked")


def test_the_same_payload_again_is_the_same_object(archive: Archive, bucket: Any) -> None:
    keys = {
        archive.quarantine(PAYLOAD, MIDNIGHT),
        archive.quarantine(dict(reversed(PAYLOAD.items())), MIDNIGHT + 5),
    }
    assert len(keys) == count_of(bucket) == 1
    archive.quarantine({**PAYLOAD, "body": "another"}, MIDNIGHT)
    assert count_of(bucket) == 2


def test_keys_give_no_content_away(archive: Archive) -> None:
    keys = archive.quarantine({"body": "heron"}, 1.0), archive.store(lines(1.0))
    assert all("heron" not in key and "id0" not in key for key in keys)


@pytest.mark.parametrize(
    "write",
    [
        lambda archive: archive.store(lines(MIDNIGHT)),
        lambda archive: archive.quarantine(PAYLOAD, MIDNIGHT),
    ],
    ids=["store", "quarantine"],
)
@pytest.mark.usefixtures("bucket")
def test_what_s3_says_is_raised(write: Callable[[Archive], str]) -> None:
    nowhere = Archive(FakeRuntime(), KEYS, stage="gone", account="123456789012")
    with pytest.raises(ClientError, match="NoSuchBucket"):
        write(nowhere)

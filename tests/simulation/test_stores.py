"""Archive and secrets of the simulation against what they stand for: the same assertions for
those in memory, moto and MiniStack.

Where an emulator is known to differ from AWS, the assertion is skipped for it, with the reason; it
is never weaker for the others.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws

from chalicelib.archive import Archive
from chalicelib.messages import Keys
from spillway.aws import of_emulator
from tests.fakes import (
    HASH_KEY,
    NOW,
    FakeRuntime,
)
from tests.simulation.contract import Clock, Kind, code, differs
from tests.simulation.stores.s3 import S3
from tests.simulation.stores.secrets import Secrets

BUCKET = "spillway-test-archive-123456789012-us-east-1"
KEYS = Keys(HASH_KEY)


@pytest.fixture(scope="module", params=["memory", "moto", "ministack"])
def s3(request: pytest.FixtureRequest) -> Iterator[tuple[Kind, Any]]:
    """A client of S3 with the archive's bucket."""
    if request.param == "memory":
        yield "memory", S3(Clock())
    elif request.param == "moto":
        with mock_aws():
            client: Any = boto3.client("s3", region_name="us-east-1")
            client.create_bucket(Bucket=BUCKET)
            yield "moto", client
    else:
        client = of_emulator(request.getfixturevalue("ministack")).client("s3")
        client.create_bucket(Bucket=BUCKET)
        yield "ministack", client
        client.close()


@pytest.fixture
def bucket(s3: tuple[Kind, Any]) -> Any:
    """The same, emptied."""
    _, client = s3
    for one in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=one["Key"])
    return client


def test_an_object_comes_back_as_it_went(bucket: Any) -> None:
    for body in (b"first", b"\x00\xff" * 1000, b""):
        put_ = bucket.put_object(
            Bucket=BUCKET,
            Key="messages/a b/é.gz",
            Body=body,
            ContentType="application/x-ndjson",
            ContentEncoding="gzip",
        )
        got = bucket.get_object(Bucket=BUCKET, Key="messages/a b/é.gz")
        assert got["Body"].read() == body
        head = bucket.head_object(Bucket=BUCKET, Key="messages/a b/é.gz")
        for answer in (got, head):
            assert answer["ContentLength"] == len(body)
            assert answer["ContentType"] == "application/x-ndjson"
            assert answer["ContentEncoding"] == "gzip"
            assert answer["ETag"] == put_["ETag"]
            assert answer["LastModified"].tzinfo is not None
    assert bucket.list_objects_v2(Bucket=BUCKET)["KeyCount"] == 1


def test_an_object_has_no_encoding_where_none_was_given(bucket: Any) -> None:
    bucket.put_object(Bucket=BUCKET, Key="a", Body=b"x")
    head = bucket.head_object(Bucket=BUCKET, Key="a")
    assert "ContentEncoding" not in head


def test_an_object_is_bytes_where_nothing_else_was_said(s3: tuple[Kind, Any], bucket: Any) -> None:
    differs(s3[0], ministack="application/octet-stream")
    bucket.put_object(Bucket=BUCKET, Key="a", Body=b"x")
    head = bucket.head_object(Bucket=BUCKET, Key="a")
    assert head["ContentType"] == "binary/octet-stream"


def test_what_is_not_in_the_bucket_is_refused(bucket: Any) -> None:
    with pytest.raises(bucket.exceptions.NoSuchKey):
        bucket.get_object(Bucket=BUCKET, Key="nothing")
    with pytest.raises(ClientError) as caught:
        bucket.head_object(Bucket=BUCKET, Key="nothing")
    assert code(caught) == "404"
    # Deleting it is none the less done.
    bucket.delete_object(Bucket=BUCKET, Key="nothing")


@pytest.mark.parametrize(
    ("operation", "parameters"),
    [
        ("put_object", {"Key": "a", "Body": b"x"}),
        ("get_object", {"Key": "a"}),
        ("delete_object", {"Key": "a"}),
        ("list_objects_v2", {}),
    ],
)
def test_another_bucket_is_not_there(
    bucket: Any, operation: str, parameters: dict[str, Any]
) -> None:
    with pytest.raises(ClientError) as caught:
        getattr(bucket, operation)(Bucket="nowhere-at-all", **parameters)
    assert code(caught) == "NoSuchBucket"


def test_objects_are_listed_in_order_by_prefix_and_page(bucket: Any) -> None:
    keys = ["messages/1", "messages/10", "messages/2", "messages/é", "messages", "quarantine/1"]
    for key in keys:
        bucket.put_object(Bucket=BUCKET, Key=key, Body=key.encode())
    found: list[tuple[str, int]] = []
    token: dict[str, str] = {}
    while True:
        answer = bucket.list_objects_v2(Bucket=BUCKET, Prefix="messages/", MaxKeys=3, **token)
        assert answer["KeyCount"] == len(answer["Contents"]) <= 3
        found += [(one["Key"], one["Size"]) for one in answer["Contents"]]
        if not answer["IsTruncated"]:
            break
        token = {"ContinuationToken": answer["NextContinuationToken"]}
    assert found == [(key, len(key.encode())) for key in keys[:4]]
    assert "Contents" not in bucket.list_objects_v2(Bucket=BUCKET, Prefix="nothing")


def test_several_objects_are_deleted_at_once(bucket: Any) -> None:
    for key in "abc":
        bucket.put_object(Bucket=BUCKET, Key=key, Body=b"x")
    objects = [{"Key": key} for key in ("a", "c", "nothing")]
    answer = bucket.delete_objects(Bucket=BUCKET, Delete={"Objects": objects})
    assert sorted(one["Key"] for one in answer["Deleted"]) == ["a", "c", "nothing"]
    (left,) = bucket.list_objects_v2(Bucket=BUCKET)["Contents"]
    assert left["Key"] == "b"


@pytest.mark.parametrize("operation", ["put_object", "delete_object"])
def test_an_object_is_changed_only_as_it_was_read(bucket: Any, operation: str) -> None:
    read = bucket.put_object(Bucket=BUCKET, Key="a", Body=b"as it was read")["ETag"]
    body = {"Body": b"changed"} if operation == "put_object" else {}
    change = getattr(bucket, operation)
    # WHEN somebody comes between, THEN nothing happens
    bucket.put_object(Bucket=BUCKET, Key="a", Body=b"another's")
    with pytest.raises(ClientError) as caught:
        change(Bucket=BUCKET, Key="a", IfMatch=read, **body)
    assert code(caught) == "PreconditionFailed"
    assert bucket.get_object(Bucket=BUCKET, Key="a")["Body"].read() == b"another's"
    # WHEN nobody does, THEN it is done
    now = bucket.head_object(Bucket=BUCKET, Key="a")["ETag"]
    change(Bucket=BUCKET, Key="a", IfMatch=now, **body)
    left = bucket.list_objects_v2(Bucket=BUCKET).get("Contents", [])
    assert [one["Size"] for one in left] == ([len(b"changed")] if body else [])
    # WHEN it is gone, THEN that is told
    bucket.delete_object(Bucket=BUCKET, Key="a")
    with pytest.raises(ClientError) as caught:
        change(Bucket=BUCKET, Key="a", IfMatch=now, **body)
    assert code(caught) == "NoSuchKey"
    assert bucket.list_objects_v2(Bucket=BUCKET)["KeyCount"] == 0


def test_spillways_archive_works_on_it(bucket: Any) -> None:
    runtime = FakeRuntime()
    runtime.__dict__["s3"] = bucket
    archive = Archive(runtime, KEYS, stage="test", account="123456789012")
    lines = {"id": {"id": "id", "received_at": NOW}}
    key = archive.store(lines)
    assert archive.store(lines) == key
    assert archive.quarantine({"a": 1}, NOW).startswith("quarantine/")
    body = bucket.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    assert json.loads(gzip.decompress(body)) == lines["id"]
    assert bucket.list_objects_v2(Bucket=BUCKET)["KeyCount"] == 2


@pytest.mark.parametrize(
    ("operation", "parameters"),
    [
        ("put_object", {"Key": "a", "Body": b"x", "IfNoneMatch": "*"}),
        ("get_object", {"Key": "a", "Range": "bytes=0-1"}),
        ("list_objects_v2", {"Delimiter": "/"}),
        ("delete_objects", {"Delete": {"Objects": [], "Quiet": True}}),
    ],
)
def test_the_bucket_in_memory_refuses_what_it_does_not_know(
    operation: str, parameters: dict[str, Any]
) -> None:
    with pytest.raises(NotImplementedError):
        getattr(S3(Clock()), operation)(Bucket=BUCKET, **parameters)


@pytest.fixture(params=["memory", "moto", "ministack"])
def secrets(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A client of Secrets Manager with one secret."""
    name, secret = "spillway/test/keys", {"hash_key": HASH_KEY}
    if request.param == "memory":
        yield Secrets({name: secret})
    elif request.param == "moto":
        with mock_aws():
            client: Any = boto3.client("secretsmanager", region_name="us-east-1")
            client.create_secret(Name=name, SecretString=json.dumps(secret))
            yield client
    else:
        client = of_emulator(request.getfixturevalue("ministack")).client("secretsmanager")
        with suppress(client.exceptions.ResourceExistsException):
            client.create_secret(Name=name, SecretString=json.dumps(secret))
        yield client
        client.close()


def test_a_secret_is_read_by_its_name(secrets: Any) -> None:
    answer = secrets.get_secret_value(SecretId="spillway/test/keys")
    assert json.loads(answer["SecretString"]) == {"hash_key": HASH_KEY}
    assert answer["Name"] == "spillway/test/keys"
    with pytest.raises(secrets.exceptions.ResourceNotFoundException) as caught:
        secrets.get_secret_value(SecretId="spillway/test/nothing")
    assert code(caught) == "ResourceNotFoundException"


def test_a_secret_can_be_rotated() -> None:
    secrets = Secrets()
    secrets.put("a", "no JSON")
    assert secrets.get_secret_value(SecretId="a")["SecretString"] == "no JSON"
    secrets.put("a", {"b": 1})
    assert secrets.get_secret_value(SecretId="a")["SecretString"] == '{"b": 1}'
    with pytest.raises(NotImplementedError):
        secrets.get_secret_value(SecretId="a", VersionStage="AWSPREVIOUS")

"""One S3 bucket in memory.

https://docs.aws.amazon.com/AmazonS3/latest/API/Welcome.html
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from botocore.exceptions import ClientError

from tests.simulation.stores import ACCOUNT, REGION, must_be, nothing_else, refusal

MOST_KEYS = 1000


class NoSuchBucket(ClientError):
    pass


class NoSuchKey(ClientError):
    pass


@dataclass(frozen=True)
class _Object:
    body: bytes
    modified_at: float
    headers: Mapping[str, str]

    @property
    def etag(self) -> str:
        return f'"{hashlib.md5(self.body).hexdigest()}"'

    @property
    def modified(self) -> datetime:
        return datetime.fromtimestamp(int(self.modified_at), UTC)


class S3:
    """A client of S3 with one bucket. `now` gives unix seconds, for LastModified alone."""

    class exceptions:
        NoSuchBucket = NoSuchBucket
        NoSuchKey = NoSuchKey

    def __init__(
        self,
        now: Callable[[], float] = lambda: 0.0,
        *,
        bucket: str = f"spillway-test-archive-{ACCOUNT}-{REGION}",
    ) -> None:
        self._now = now
        self._bucket = bucket
        self._objects: dict[str, _Object] = {}
        self.meta = SimpleNamespace(region_name=REGION)

    def get_bucket_lifecycle_configuration(self, *, Bucket: str, **other: Any) -> dict[str, Any]:
        """It has none: what is in it stays."""
        nothing_else("get_bucket_lifecycle_configuration", other)
        operation = "GetBucketLifecycleConfiguration"
        self._check(operation, Bucket)
        raise refusal(
            operation,
            "NoSuchLifecycleConfiguration",
            "The lifecycle configuration does not exist",
            BucketName=Bucket,
        )

    def put_object(
        self,
        *,
        Bucket: str,
        Key: str,
        Body: bytes,
        ContentType: str = "binary/octet-stream",
        ContentEncoding: str | None = None,
        ContentDisposition: str | None = None,
        IfMatch: str = "",
        **other: Any,
    ) -> dict[str, Any]:
        nothing_else("put_object", other)
        must_be(bytes, "Body", Body)
        self._check("PutObject", Bucket)
        self._check_match("PutObject", Key, IfMatch)
        headers = {"ContentType": ContentType}
        if ContentEncoding is not None:
            headers["ContentEncoding"] = ContentEncoding
        if ContentDisposition is not None:
            headers["ContentDisposition"] = ContentDisposition
        found = self._objects[Key] = _Object(Body, self._now(), headers)
        return {"ETag": found.etag}

    def get_object(self, *, Bucket: str, Key: str, **other: Any) -> dict[str, Any]:
        nothing_else("get_object", other)
        self._check("GetObject", Bucket)
        found = self._objects.get(Key)
        if found is None:
            raise refusal(
                "GetObject", "NoSuchKey", "The specified key does not exist.", NoSuchKey, Key=Key
            )
        return {**_head(found), "Body": io.BytesIO(found.body)}

    def head_object(self, *, Bucket: str, Key: str, **other: Any) -> dict[str, Any]:
        nothing_else("head_object", other)
        if Bucket != self._bucket or Key not in self._objects:
            # The answer to HEAD has no body that could say more.
            raise refusal("HeadObject", "404", "Not Found")
        return _head(self._objects[Key])

    def list_objects_v2(
        self,
        *,
        Bucket: str,
        Prefix: str = "",
        ContinuationToken: str = "",
        MaxKeys: int = MOST_KEYS,
        **other: Any,
    ) -> dict[str, Any]:
        nothing_else("list_objects_v2", other)
        self._check("ListObjectsV2", Bucket)
        keys = sorted(
            key for key in self._objects if key.startswith(Prefix) and key > ContinuationToken
        )
        page = keys[: min(MaxKeys, MOST_KEYS)]
        answer: dict[str, Any] = {"KeyCount": len(page), "IsTruncated": len(page) < len(keys)}
        if page:
            answer["Contents"] = [
                {
                    "Key": key,
                    "LastModified": self._objects[key].modified,
                    "ETag": self._objects[key].etag,
                    "Size": len(self._objects[key].body),
                }
                for key in page
            ]
        if len(page) < len(keys):
            answer["NextContinuationToken"] = page[-1]
        return answer

    def delete_object(
        self, *, Bucket: str, Key: str, IfMatch: str = "", **other: Any
    ) -> dict[str, Any]:
        nothing_else("delete_object", other)
        self._check("DeleteObject", Bucket)
        self._check_match("DeleteObject", Key, IfMatch)
        self._objects.pop(Key, None)
        return {}

    def delete_objects(
        self, *, Bucket: str, Delete: Mapping[str, Any], **other: Any
    ) -> dict[str, Any]:
        nothing_else("delete_objects", {**other, **_without(Delete, "Objects")})
        self._check("DeleteObjects", Bucket)
        keys = [one["Key"] for one in Delete["Objects"]]
        for key in keys:
            self._objects.pop(key, None)
        return {"Deleted": [{"Key": key} for key in keys]}

    def _check(self, operation: str, bucket: str) -> None:
        if bucket != self._bucket:
            raise refusal(
                operation,
                "NoSuchBucket",
                "The specified bucket does not exist",
                NoSuchBucket,
            )

    def _check_match(self, operation: str, key: str, etag: str) -> None:
        """https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-requests.html"""
        if not etag:
            return
        found = self._objects.get(key)
        if found is None:
            missing = "The specified key does not exist."
            raise refusal(operation, "NoSuchKey", missing, NoSuchKey, Key=key)
        if found.etag != etag:
            raise refusal(
                operation,
                "PreconditionFailed",
                "At least one of the pre-conditions you specified did not hold",
            )


def _head(found: _Object) -> dict[str, Any]:
    return {
        "ContentLength": len(found.body),
        "ETag": found.etag,
        "LastModified": found.modified,
        **found.headers,
    }


def _without(parameters: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in parameters.items() if key != name}

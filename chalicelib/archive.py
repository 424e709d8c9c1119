"""The archive in S3: each batch of messages as one compressed object of JSON lines, each attachment
as it was sent.

Nothing else talks to S3. A key is made of the date and the ids, so that writing the same batch
again writes the same object. https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from chalicelib.messages import Keys
from chalicelib.runtime import Runtime


class Archive:
    """The bucket of a stage. Raises what botocore raises."""

    def __init__(self, runtime: Runtime, keys: Keys, *, stage: str, account: str) -> None:
        self._runtime = runtime
        self._keys = keys
        self._bucket = f"spillway-{stage}-archive-{account}-{runtime.s3.meta.region_name}"

    def store(self, lines: Mapping[str, Mapping[str, Any]]) -> str:
        """Writes one object with a line for each message, by id; returns its key.

        Each line has `received_at` in unix seconds; the earliest gives the date.
        """
        earliest = min(line["received_at"] for line in lines.values())
        key = f"messages/{_day(earliest)}/{self._keys.batch(lines)}.jsonl.gz"
        text = "".join(json.dumps(lines[id_]) + "\n" for id_ in sorted(lines))
        self._put(key, gzip.compress(text.encode(), mtime=0), "application/x-ndjson", "gzip")
        return key

    def quarantine(self, payload: Mapping[str, Any], received_at: float) -> str:
        """Keeps a payload that could not be read, as JSON; returns its key."""
        text = json.dumps(payload, sort_keys=True)
        key = f"quarantine/{_day(received_at)}/{self._keys.batch([text])}.json"
        self._put(key, text.encode(), "application/json")
        return key

    def keep_medium(self, name: str, body: bytes, content_type: str) -> str:
        """Keeps an attachment, named by its message and its number; returns its key.

        Neither date nor type is in the key: whenever it is fetched again it is the same object, and
        a conversation's are found by how their keys begin. What a stranger sent is never shown by
        the address of a bucket of ours: whoever opens it downloads it.
        """
        key = f"media/{name}"
        self._put(key, body, content_type, disposition="attachment")
        return key

    def _put(
        self,
        key: str,
        body: bytes,
        content_type: str,
        encoding: str = "",
        disposition: str = "",
    ) -> None:
        arguments: dict[str, Any] = {"ContentEncoding": encoding} if encoding else {}
        if disposition:
            arguments["ContentDisposition"] = disposition
        self._runtime.s3.put_object(
            Bucket=self._bucket, Key=key, Body=body, ContentType=content_type, **arguments
        )


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y/%m/%d")

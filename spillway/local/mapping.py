"""What Lambda's event source mapping does between a queue and a function, as pure functions.

https://docs.aws.amazon.com/lambda/latest/dg/with-sqs.html (the event) and
https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-errorhandling.html (partial batches).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any


class BadAnswer(Exception):
    """The function's answer cannot be used, so the whole batch counts as failed."""


def record(message: Mapping[str, Any], queue_arn: str) -> dict[str, Any]:
    """One record of the event, from a message as ReceiveMessage gives it."""
    made = {
        "messageId": message["MessageId"],
        "receiptHandle": message["ReceiptHandle"],
        "body": message["Body"],
        "attributes": dict(message["Attributes"]),
        "messageAttributes": {
            name: _attribute(value) for name, value in message.get("MessageAttributes", {}).items()
        },
        "md5OfBody": message["MD5OfBody"],
        "eventSource": "aws:sqs",
        "eventSourceARN": queue_arn,
        "awsRegion": queue_arn.split(":")[3],
    }
    if "MD5OfMessageAttributes" in message:
        made["md5OfMessageAttributes"] = message["MD5OfMessageAttributes"]
    return made


def _attribute(value: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {
        "dataType": value["DataType"],
        "stringListValues": [],
        "binaryListValues": [],
    }
    if "StringValue" in value:
        made["stringValue"] = value["StringValue"]
    if "BinaryValue" in value:
        made["binaryValue"] = base64.b64encode(value["BinaryValue"]).decode()
    return made


def succeeded(answer: object, message_ids: Sequence[str], *, reports: bool) -> set[str]:
    """The ids of the messages to delete, from what the function returned.

    `reports` says whether the mapping has ReportBatchItemFailures; without it any answer is a
    success of the whole batch. Raises BadAnswer where the whole batch counts as failed.
    """
    everything = set(message_ids)
    if not reports or answer is None:
        return everything
    if not isinstance(answer, dict):
        raise BadAnswer("the answer is not an object")
    failures = answer.get("batchItemFailures")
    if failures is None:
        return everything
    if not isinstance(failures, list):
        raise BadAnswer("batchItemFailures is not a list")
    failed = set()
    for failure in failures:
        identifier = failure.get("itemIdentifier") if isinstance(failure, dict) else None
        if not isinstance(identifier, str) or not identifier:
            raise BadAnswer("an entry of batchItemFailures has no itemIdentifier")
        if identifier not in everything:
            raise BadAnswer("an itemIdentifier is not in the batch")
        failed.add(identifier)
    return everything - failed

"""The mapping between queue and function: the event, and what an answer deletes."""

from __future__ import annotations

from typing import Any

import pytest

from spillway.local.mapping import BadAnswer, record, succeeded

BATCH = ["a", "b", "c"]
ARN = "arn:aws:sqs:us-east-1:000000000000:spillway-local-outbound.fifo"


def failures(*entries: object) -> dict[str, object]:
    return {"batchItemFailures": list(entries)}


@pytest.mark.parametrize(
    ("answer", "deleted"),
    [
        (None, {"a", "b", "c"}),
        ({}, {"a", "b", "c"}),
        ({"batchItemFailures": None}, {"a", "b", "c"}),
        (failures(), {"a", "b", "c"}),
        (failures({"itemIdentifier": "b"}), {"a", "c"}),
        (failures({"itemIdentifier": "b"}, {"itemIdentifier": "b"}), {"a", "c"}),
        (failures(*({"itemIdentifier": one} for one in BATCH)), set()),
    ],
)
def test_what_a_reported_answer_deletes(answer: object, deleted: set[str]) -> None:
    assert succeeded(answer, BATCH, reports=True) == deleted


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "done",
        [],
        True,
        {"batchItemFailures": "b"},
        {"batchItemFailures": {"itemIdentifier": "b"}},
        failures("b"),
        failures({"itemIdentifier": ""}),
        failures({"itemIdentifier": None}),
        failures({"itemIdentifier": 7}),
        failures({"itemidentifier": "b"}),
        failures({"itemIdentifier": "not in the batch"}),
        failures({"itemIdentifier": "b"}, {"itemIdentifier": "not in the batch"}),
    ],
)
def test_an_answer_that_fails_the_whole_batch(answer: object) -> None:
    with pytest.raises(BadAnswer):
        succeeded(answer, BATCH, reports=True)


@pytest.mark.parametrize("answer", [None, "done", failures({"itemIdentifier": "b"})])
def test_without_the_report_switch_every_answer_deletes_everything(answer: object) -> None:
    assert succeeded(answer, BATCH, reports=False) == {"a", "b", "c"}


def test_a_record_is_the_one_that_lambda_passes() -> None:
    attributes = {
        "ApproximateReceiveCount": "1",
        "SentTimestamp": "1790000000000",
        "ApproximateFirstReceiveTimestamp": "1790000000001",
        "MessageGroupId": "group",
        "MessageDeduplicationId": "once",
        "SequenceNumber": "1",
        "SenderId": "000000000000",
    }
    message: dict[str, Any] = {
        "MessageId": "id",
        "ReceiptHandle": "handle",
        "Body": "body",
        "MD5OfBody": "md5",
        "Attributes": attributes,
        "MessageAttributes": {
            "text": {"DataType": "String", "StringValue": "x"},
            "bytes": {"DataType": "Binary", "BinaryValue": b"\x00\xff"},
        },
        "MD5OfMessageAttributes": "md5 of them",
    }
    assert record(message, ARN) == {
        "messageId": "id",
        "receiptHandle": "handle",
        "body": "body",
        "attributes": attributes,
        "messageAttributes": {
            "text": {
                "dataType": "String",
                "stringValue": "x",
                "stringListValues": [],
                "binaryListValues": [],
            },
            "bytes": {
                "dataType": "Binary",
                "binaryValue": "AP8=",
                "stringListValues": [],
                "binaryListValues": [],
            },
        },
        "md5OfBody": "md5",
        "md5OfMessageAttributes": "md5 of them",
        "eventSource": "aws:sqs",
        "eventSourceARN": ARN,
        "awsRegion": "us-east-1",
    }

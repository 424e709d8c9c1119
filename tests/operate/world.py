"""The three functions on a stage's real stores, in one process, and all that these hold."""

from __future__ import annotations

import base64
import gzip
import json
import re
from typing import Any

import httpx

from chalicelib.consent import ConsentList
from chalicelib.ledger import Ledger
from chalicelib.messages import Keys
from chalicelib.processing import Processing
from chalicelib.queues import Envelope
from chalicelib.receiving import Receiver
from chalicelib.sending import Sender
from chalicelib.table import Table, read_item
from spillway.stage import Stage
from tests.fakes import HASH_KEY, NOW, Context, FakeRuntime, settings
from tests.signing import api_event, twilio_event

NAME = "ops"
KEYS = Keys(HASH_KEY)
PERSON = "+14155550142"
ROLES = ("receiver", "processing", "sender")
QUEUES = ("processing", "outbound.fifo")
DEAD = ("processing-dlq", "outbound-dlq.fifo")


class World:
    """The three functions on a stage's real stores, and all that these hold."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.refused = ""
        self.runtime = FakeRuntime(self._provider)
        for service in ("dynamodb", "s3", "sqs"):
            self.runtime.__dict__[service] = stage.aws.client(service)
        functions = {role: settings(role, SPILLWAY_STAGE=NAME, LOOP_LIMIT="0") for role in ROLES}
        self.receiver = Receiver(self.runtime, functions["receiver"])
        self.processing = Processing(self.runtime, functions["processing"])
        self.sender = Sender(self.runtime, functions["sender"])
        self.functions: list[tuple[str, Processing | Sender]] = [
            ("processing", self.processing),
            ("outbound.fifo", self.sender),
        ]
        self.table = Table(self.runtime, NAME)
        self.ledger = Ledger(self.table, self.runtime, keep_days=400)
        self.consent = ConsentList(self.table, KEYS, "default")
        self.sent = 0
        self.round = 0  # (What has one name is one message to SQS, for five minutes.)
        self.delivered: dict[str, list[str]] = {queue: [] for queue in QUEUES}

    def _provider(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            headers = {"Content-Type": "image/png"}
            return httpx.Response(200, content=b"a picture", headers=headers)
        form = dict(httpx.QueryParams(request.content.decode()))
        if form["Body"] == self.refused:
            raise httpx.ReadTimeout("lost")
        self.sent += 1
        return httpx.Response(201, json={"sid": f"SM-out-{self.sent}"})

    # -- what comes ---------------------------------------------------------------------------

    def text(self, words: str, sid: str, theirs: str = PERSON, **fields: str) -> None:
        sid = f"{sid}-{self.round}"
        event = twilio_event({"Body": words, "MessageSid": sid, "From": theirs, **fields})
        assert self.receiver.webhook("twilio", event, signed_door=True).status == 200

    def post(self, words: str, key: str, theirs: str = PERSON) -> str:
        body = json.dumps({"to": theirs, "text": words})
        headers = {"Idempotency-Key": f"{key}-{self.round}"}
        event = api_event("POST", "/messages", body, headers, principal="api")
        id_: str = json.loads(self.receiver.post_message(event).body)["id"]
        return id_

    def work(self) -> None:
        for queue, function in self.functions:
            while found := self.receive(queue):
                event = {
                    "Records": [
                        {
                            "messageId": one["MessageId"],
                            "receiptHandle": one["ReceiptHandle"],
                            "body": one["Body"],
                            "attributes": one["Attributes"],
                        }
                        for one in found
                    ]
                }
                self.delivered[queue] += [one["Body"] for one in found]
                assert function.handle(event, Context()) == {"batchItemFailures": []}
                for one in found:
                    self.runtime.sqs.delete_message(
                        QueueUrl=self.url(queue), ReceiptHandle=one["ReceiptHandle"]
                    )

    def receive(self, queue: str, seconds: int = 60) -> list[Any]:
        answer: Any = self.runtime.sqs.receive_message(
            QueueUrl=self.url(queue),
            MaxNumberOfMessages=10,
            AttributeNames=["All"],
            VisibilityTimeout=seconds,
        )
        found: list[Any] = answer.get("Messages", [])
        return found

    def put_aside(self, queue: str, *bodies: str | Envelope) -> None:
        for body in bodies:
            fifo: dict[str, Any] = {}
            text = body if isinstance(body, str) else body.body()
            if queue.endswith(".fifo"):
                group = ("" if isinstance(body, str) else body.conversation) or "heron"
                fifo = {"MessageGroupId": group, "MessageDeduplicationId": self.runtime.new_id()}
            self.runtime.sqs.send_message(QueueUrl=self.url(queue), MessageBody=text, **fifo)

    def url(self, queue: str) -> str:
        return self.stage.stores.urls[queue]

    # -- what is there ------------------------------------------------------------------------

    def items(self) -> dict[tuple[str, str], dict[str, Any]]:
        found = self.runtime.dynamodb.scan(TableName=f"spillway-{NAME}", ConsistentRead=True)
        return {(i["pk"]["S"], i["sk"]["S"]): read_item(i) for i in found["Items"]}

    def objects(self) -> dict[str, bytes]:
        """By key, unpacked."""
        s3, bucket = self.stage.aws.client("s3"), self.stage.stores.bucket
        found = {}
        for one in s3.list_objects_v2(Bucket=bucket).get("Contents", []):
            answer = s3.get_object(Bucket=bucket, Key=one["Key"])
            body = answer["Body"].read()
            packed = answer.get("ContentEncoding") == "gzip"
            found[one["Key"]] = gzip.decompress(body) if packed else body
        return found

    def letters(self) -> list[str]:
        return [one["Body"] for queue in DEAD for one in self.receive(queue, seconds=0)]

    def everything(self) -> str:
        """All that the stores hold, as text, with what is packed in it."""
        said = [str(item) for item in self.items().values()] + self.letters()
        for key, content in self.objects().items():
            said += [key, content.decode()]
        said += [unpacked(one) for one in list(said)]
        return "\n".join(said)

    def clear(self) -> None:
        client, s3 = self.runtime.dynamodb, self.stage.aws.client("s3")
        for pk, sk in self.items():
            client.delete_item(TableName=f"spillway-{NAME}", Key={"pk": {"S": pk}, "sk": {"S": sk}})
        for key in self.stage.stores.objects(""):
            s3.delete_object(Bucket=self.stage.stores.bucket, Key=key)
        for queue in QUEUES + DEAD:
            self.runtime.sqs.purge_queue(QueueUrl=self.url(queue))
        self.runtime.clock = NOW
        self.refused = ""
        self.round += 1
        for bodies in self.delivered.values():
            bodies.clear()


def unpacked(text: str) -> str:
    """What payloads that could not be read hold."""
    bodies = re.findall(r'"body":\s*"([A-Za-z0-9+/=]+)"', text)
    return "\n".join(base64.b64decode(body).decode("latin-1") for body in bodies)

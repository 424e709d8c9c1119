"""The option `--validate-with-step-functions`, from the caller to the receiver and back: the real
mapping templates on a Velocity engine (MiniStack's API Gateway has no such integration), the real
state machine on MiniStack, and the real receiver behind it, all deployed by `spillway deploy`.

Where MiniStack is not Step Functions: it takes input of any size and keeps no time for a machine as
a whole (tests/test_package.py holds what those rest on), it reads NaN as JSON, gives a failed
execution an output, waits without jitter, and says Lambda.Unknown for a throttled function.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from chalicelib.providers import NAMES
from chalicelib.providers.sandbox import signature
from spillway.aws import Aws, of_emulator
from spillway.deploy.command import Deployment
from spillway.operate import probe
from spillway.project import PROJECT
from tests import emulated, stages
from tests.fakes import OURS, SECRETS
from tests.signing import (
    TelnyxKey,
    api_event,
    carried,
    event_of,
    telnyx_event,
    twilio_event,
    vectors,
)
from tests.velocity import Answer, Integration, Request, TemplateFailed

STAGE = "validated"
FUNCTION = f"spillway-{STAGE}"
MACHINE = f"spillway-{STAGE}-validation"
SANDBOX_KEY = "a key of the tests"
# 180 KiB; of 256 KiB for an execution's input, and for a state's.
# https://docs.aws.amazon.com/step-functions/latest/dg/service-quotas.html
LARGEST_BODY = 184_320
LARGEST_INPUT = 262_144

Event = dict[str, Any]
TWILIO_VECTORS = [vector for vector in vectors("twilio") if not carried(vector)]


class World:
    """A deployed stage: its front door, as API Gateway would work it, and its receiver."""

    def __init__(self, aws: Aws, project: Path) -> None:
        self.aws = aws
        self.project = project
        self.said = ""

    def deploy(self, *, validation: bool) -> dict[str, Any]:
        console = Console(file=io.StringIO(), width=200)
        # MiniStack believes that another body of an API may need another API, which is asked about.
        one = Deployment(
            self.project, STAGE, self.aws, console, validation=validation, yes=True, pause=0.05
        )
        result = one.run()
        assert isinstance(console.file, io.StringIO)
        self.said = console.file.getvalue()
        # What the receiver sends is the test's to look at.
        lambda_ = self.aws.client("lambda")
        for mapping in lambda_.list_event_source_mappings()["EventSourceMappings"]:
            lambda_.update_event_source_mapping(UUID=mapping["UUID"], Enabled=False)
        return result

    def machines(self) -> dict[str, str]:
        """ARN by name."""
        found = self.aws.client("stepfunctions").list_state_machines()["stateMachines"]
        return {one["name"]: one["stateMachineArn"] for one in found}

    def api(self) -> dict[str, Any]:
        """The API's definition, as SAM leaves it and CloudFormation has it."""
        found: Any = self.aws.client("cloudformation").get_template(
            StackName=FUNCTION, TemplateStage="Processed"
        )["TemplateBody"]
        api: dict[str, Any] = found["Resources"]["RestAPI"]["Properties"]["Body"]
        return api

    def integration(self, resource: str) -> Integration:
        settings = self.api()["paths"][resource]["post"]["x-amazon-apigateway-integration"]
        templates = {
            kind: template["Fn::Sub"].replace("${ValidationMachine}", self.machines()[MACHINE])
            for kind, template in settings["requestTemplates"].items()
        }
        return Integration({**settings, "requestTemplates": templates})

    def post(self, event: Event) -> Answer:
        """The answer through API Gateway and the state machine to the request that an event of the
        proxy integration tells of."""
        request = request_of(event)
        integration = self.integration(request.resource_path)
        call = json.loads(integration.request(request))
        assert len(call["input"].encode()) <= LARGEST_INPUT
        status, body = self.start(call, integration)
        try:
            return integration.answer(status, body)
        except TemplateFailed:
            return self.gateway_response("DEFAULT_5XX")

    def start(self, call: Any, integration: Integration) -> tuple[int, str]:
        """StartSyncExecution, as API Gateway does it: status and body."""
        sent = integration.settings["requestParameters"]["integration.request.header.Content-Type"]
        assert integration.settings["uri"]["Fn::Sub"].endswith(":states:action/StartSyncExecution")
        request = urllib.request.Request(
            self.aws.endpoint,
            method=integration.settings["httpMethod"],
            data=json.dumps(call).encode(),
            headers={
                "Content-Type": sent.strip("'"),
                "X-Amz-Target": "AWSStepFunctions.StartSyncExecution",
                "Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/states/"
                "aws4_request, SignedHeaders=host, Signature=0",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def gateway_response(self, kind: str) -> Answer:
        one = self.api()["x-amazon-apigateway-gateway-responses"][kind]
        headers = {
            name.removeprefix("gatewayresponse.header."): value.strip("'")
            for name, value in one["responseParameters"].items()
        }
        return Answer(
            one["statusCode"],
            {"Content-Type": "application/json", **headers},
            one["responseTemplates"]["application/json"],
        )

    def invoke(self, event: Event) -> Answer:
        """The answer of the receiver itself, as API Gateway's proxy integration gets it."""
        event = {
            **event,
            "body": raw(event).decode(errors="replace"),
            "multiValueHeaders": {name: [value] for name, value in event["headers"].items()},
        }
        answer = self.aws.client("lambda").invoke(
            FunctionName=FUNCTION, Payload=json.dumps(event).encode()
        )
        found = json.loads(answer["Payload"].read())
        return Answer(found["statusCode"], found["headers"], found["body"])

    def taken(self) -> list[Any]:
        """What lies on the processing queue, without what differs from time to time; it is empty
        then."""
        sqs = self.aws.client("sqs")
        url = sqs.get_queue_url(QueueName=f"spillway-{STAGE}-processing")["QueueUrl"]
        found = []
        while messages := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages"):
            for message in messages:
                sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
                found.append(without_times(json.loads(message["Body"])))
        return found

    @contextmanager
    def receiver(self, code: str, *, time_out: int = 10) -> Iterator[None]:
        """Another function in the receiver's place: `code` defines `app(event, context)`."""
        lambda_ = self.aws.client("lambda")
        own = (self.project / "build" / "package" / STAGE / "deployment.zip").read_bytes()
        lambda_.update_function_code(FunctionName=FUNCTION, ZipFile=zipped(code))
        lambda_.update_function_configuration(FunctionName=FUNCTION, Timeout=time_out)
        try:
            yield
        finally:
            lambda_.update_function_code(FunctionName=FUNCTION, ZipFile=own)
            lambda_.update_function_configuration(FunctionName=FUNCTION, Timeout=10)

    @contextmanager
    def machine(self, change: Callable[[str], str]) -> Iterator[None]:
        """Another definition of the state machine."""
        client = self.aws.client("stepfunctions")
        arn = self.machines()[MACHINE]
        own = client.describe_state_machine(stateMachineArn=arn)["definition"]
        assert change(own) != own
        client.update_state_machine(stateMachineArn=arn, definition=change(own))
        try:
            yield
        finally:
            client.update_state_machine(stateMachineArn=arn, definition=own)


def request_of(event: Event) -> Request:
    context = event["requestContext"]
    return Request(
        method=context["httpMethod"],
        path=context["path"],
        resource_path=context["resourcePath"],
        domain_name=context["domainName"],
        headers=event["headers"],
        parameters=event["pathParameters"],
        # Of a repeated one a template sees the last.
        query={n: v[-1] for n, v in (event["multiValueQueryStringParameters"] or {}).items()},
        body=raw(event),
        principal=context["authorizer"].get("principalId", ""),
    )


def raw(event: Event) -> bytes:
    body = event["body"] or b""
    return body.encode() if isinstance(body, str) else body


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k != "received_at"}
    return value


def zipped(code: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("app.py", code)
    return made.getvalue()


@pytest.fixture
def world(stage: World) -> World:
    """The stage, with an empty queue."""
    stage.taken()
    return stage


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    project = tmp_path_factory.mktemp("project")
    for name in ("app.py", "requirements.txt"):
        shutil.copy(PROJECT / name, project)
    for name in ("chalicelib", "infra", ".chalice"):
        ignored = shutil.ignore_patterns("__pycache__", "deployments", "deployed")
        shutil.copytree(PROJECT / name, project / name, ignore=ignored)
    stages.add(project, STAGE, anywhere=True)
    stages.let_read(project, STAGE, "sandbox")
    stages.set_variables(
        project,
        STAGE,
        SEND_ONLY_TO="*",
        PROVIDERS=",".join(NAMES),
        NUMBERS=f"{OURS}=twilio",
        CREDENTIAL_HASHES="{}",
    )
    with emulated.ministack(tmp_path_factory.mktemp("ministack")) as endpoint:
        aws = of_emulator(endpoint)
        for name, secret in secrets().items():
            aws.client("secretsmanager").create_secret(
                Name=f"spillway/{STAGE}/{name}", SecretString=json.dumps(secret)
            )
        world = World(aws, project)
        world.deploy(validation=True)
        yield world
        aws.close()


def secrets() -> dict[str, Any]:
    return {
        "keys": SECRETS["keys"],
        "twilio": {
            **SECRETS["twilio"],
            "auth_tokens": [
                *SECRETS["twilio"]["auth_tokens"],
                *{vector["secret"] for vector in TWILIO_VECTORS},
            ],
        },
        "telnyx": {**SECRETS["telnyx"], "public_keys": [TelnyxKey.public]},
        "sandbox": {"keys": [SANDBOX_KEY]},
    }


# --- what providers send -------------------------------------------------------------------------


def text(body: str, door: str = "/signed", **more: str) -> Event:
    return twilio_event({"MessageSid": "SM1", "Body": body, **more}, door=door)


def telnyx(**how: Any) -> Event:
    event = telnyx_event(at=time.time(), **how)
    return {**event, "body": raw(event).decode()}


def sandbox(body: bytes) -> Event:
    at = int(time.time())
    return api_event(
        "POST",
        "/webhooks/sandbox/signed",
        body,
        {
            "Content-Type": "application/json",
            "Sandbox-Signature": f"{at}.{signature(SANDBOX_KEY, at, body)}",
        },
        resource="/webhooks/{provider}/signed",
        parameters={"provider": "sandbox"},
    )


def with_headers(event: Event, **headers: str) -> Event:
    return {**event, "headers": {**event["headers"], **headers}}


# Quotes of three kinds, line ends, what separates forms, what ends JSON at one level and at two,
# what Velocity, API Gateway, JSONata and CloudFormation would evaluate.
HOSTILE = [
    "\"'`“”",
    "a\nb\r\nc\td",
    "100% %41 %zz % a&b=c+d;e",
    "é ñ 中文 \u2028 😀👩‍👩‍👧",
    "\x00\x01\x7f",
    '"}',
    '\\"}',
    '\\\\\\"}", "stateMachineArn": "arn:aws:states:us-east-1:000000000000:stateMachine:other"',
    "@@",
    "#set($x=1)$x #if(true)#end ## #* *#",
    "$context.apiId ${context.apiId} $!context.apiId",
    "$util.base64Encode($input.body) $input.params()",
    "{% $states.input %} $states",
    "${AWS::AccountId} ${ValidationMachine}",
    "__proto__ constructor",
]

FILLED = "x" * 150_000

IN_LINES = json.dumps(json.loads(telnyx_event()["body"]), indent=2).encode() + b"\r\n"
AS_THEY_ARE = json.dumps(
    json.loads(telnyx_event(text="".join(HOSTILE))["body"]), ensure_ascii=False
).encode()

VALID: dict[str, Callable[[], Event]] = {
    "a text of Twilio's": lambda: text("hello"),
    "a picture of Twilio's": lambda: text("", NumMedia="1", MediaUrl0="https://example.com/1.png"),
    "a text behind the authorizer": lambda: principal(text("hello", door="")),
    "150 kB of Twilio's": lambda: text(FILLED),
    "a receipt of Twilio's": lambda: twilio_event(
        {"MessageSid": "SM2", "MessageStatus": "delivered"}, reference="r-1_2"
    ),
    "a text of Telnyx's": telnyx,
    "a text in lines": lambda: telnyx(body=IN_LINES),
    "letters as they are": lambda: telnyx(body=AS_THEY_ARE),
    "150 kB of Telnyx's": lambda: telnyx(text=FILLED),
    "another event of Telnyx's": lambda: telnyx(body=b'{"data": {"event_type": "10dlc.brand"}}'),
    "a content type in capitals": lambda: with_headers(
        telnyx(), **{"Content-Type": "Application/JSON ; charset=UTF-8"}
    ),
    "a content type in small letters": lambda: small_letters(telnyx()),
    "events of the sandbox": lambda: sandbox(b'{"events": []}'),
}


def principal(event: Event) -> Event:
    event["requestContext"]["authorizer"] = {"principalId": "twilio"}
    return event


def small_letters(event: Event) -> Event:
    return {**event, "headers": {name.lower(): v for name, v in event["headers"].items()}}


@pytest.mark.parametrize("name", VALID)
def test_an_answer_is_the_receivers_byte_for_byte(world: World, name: str) -> None:
    it_is_the_same(world, VALID[name]())


@pytest.mark.parametrize("words", HOSTILE)
def test_whatever_is_in_a_text(world: World, words: str) -> None:
    it_is_the_same(world, text(words))
    it_is_the_same(world, telnyx(text=words))


def it_is_the_same(world: World, event: Event) -> None:
    # GIVEN a request, and what the receiver itself makes of it
    direct = world.invoke(event)
    queued = world.taken()
    assert direct.status == 200
    # WHEN it comes through the state machine, THEN both are the same
    assert world.post(event) == direct
    assert world.taken() == queued


# What is no text and no receipt: the receiver takes these for its quarantine.
NO_TEXT = {
    "sdk-test-default": (400, "incomplete"),
    "sdk-test-port-removed-https": (400, "incomplete"),
    "sdk-test-port-443-added": (400, "incomplete"),
    "sdk-test-duplicate-params": (400, "incomplete"),
    "sdk-test-json-bodySHA256": (415, "wrong_content_type"),
    "docs-example-form": (400, "incomplete"),
    "json-body": (415, "wrong_content_type"),
    "json-body-tampered": (415, "wrong_content_type"),
}


@pytest.mark.parametrize("vector", TWILIO_VECTORS, ids=itemgetter("name"))
def test_twilios_vectors(world: World, vector: dict[str, Any]) -> None:
    event = event_of(vector, "twilio")
    answer = world.post(event)
    if vector["name"] in NO_TEXT:
        assert answer == refusal(*NO_TEXT[vector["name"]])
    else:
        assert answer == world.invoke(event)
        # (Here every vector's token is one of ours, that of the wrong one, too.)
        valid = vector["valid"] or vector["name"] == "inbound-sms-wrong-token"
        assert answer.status == (200 if valid else 403)


@pytest.mark.parametrize(
    "vector", [one for one in vectors("telnyx") if one["valid"]], ids=itemgetter("name")
)
def test_telnyxs_vectors_signed_now(world: World, vector: dict[str, Any]) -> None:
    event = telnyx(body=vector["body"].encode())
    answer = world.post(event)
    assert answer == world.invoke(event)
    assert answer.status == 200


def refusal(status: int, error: str) -> Answer:
    return Answer(status, {"Content-Type": "application/json"}, json.dumps({"error": error}))


# --- signatures hold behind it -------------------------------------------------------------------


def changed(event: Event, old: str, new: str) -> Event:
    found = json.dumps(event)
    assert old in found
    changed: Event = json.loads(found.replace(old, new))
    return changed


TAMPERED: dict[str, Callable[[], Event]] = {
    "Twilio, the text": lambda: changed(text("hello"), "Body=hello", "Body=hullo"),
    "Twilio, a field more": lambda: changed(text("hello"), "Body=hello", "Body=hello&MediaUrl0=x"),
    "Twilio, the signature": lambda: with_headers(text("hello"), **{"X-Twilio-Signature": "AAAA"}),
    "Twilio, no signature": lambda: changed(text("hello"), "X-Twilio-Signature", "X-Signature"),
    "Twilio, another address": lambda: changed(text("hello"), "sms.example.com", "example.com"),
    "Twilio, another path": lambda: changed(text("hello"), '"path": "', '"path": "/stage'),
    "Twilio, a query": lambda: {
        **text("hello"),
        "multiValueQueryStringParameters": {"reference": ["x"]},
    },
    "Telnyx, the text": lambda: changed(telnyx(), "hello", "hullo"),
    "Telnyx, a space": lambda: {**telnyx(), "body": telnyx()["body"] + " "},
    "Telnyx, the signature": lambda: with_headers(
        telnyx(), **{"telnyx-signature-ed25519": "A" * 86 + "=="}
    ),
    "Telnyx, long ago": lambda: telnyx_event(at=time.time() - 400),
    "the sandbox, the events": lambda: {**sandbox(b'{"events": []}'), "body": '{"events": [] }'},
}


@pytest.mark.parametrize("name", TAMPERED)
def test_what_nobody_signed_is_refused_by_the_receiver(world: World, name: str) -> None:
    event = TAMPERED[name]()
    assert world.post(event) == world.invoke(event) == refusal(403, "signature")
    assert world.taken() == []


@pytest.mark.parametrize("provider", NAMES)
def test_the_doctors_unsigned_probe_gets_to_the_receiver(world: World, provider: str) -> None:
    content_type, body = probe.UNSIGNED[provider]
    assert world.post(of(provider, body, content_type)) == refusal(403, "signature")


# --- what never gets to the receiver -------------------------------------------------------------


def of(provider: str, body: str | bytes, content_type: str = "application/json") -> Event:
    headers = {"Content-Type": content_type} if content_type else {}
    return api_event(
        "POST",
        f"/webhooks/{provider}/signed",
        body,
        headers,
        resource="/webhooks/{provider}/signed",
        parameters={"provider": provider},
    )


def form(body: str | bytes, content_type: str = "application/x-www-form-urlencoded") -> Event:
    return of("twilio", body, content_type)


STRANGERS = [
    "pigeon",
    "TWILIO",
    "twilio ",
    "twilio,telnyx",
    "toString",
    "__proto__",
    "..",
    "{provider}",
    "twilio\x00",
    *HOSTILE,
]
DEEP = "[" * 80_000 + "]" * 80_000


@pytest.mark.parametrize(
    ("event", "status", "error"),
    [
        *((of(name, "{}"), 404, "unknown_provider") for name in STRANGERS),
        # The size, before anything is read.
        (form("MessageSid=SM1&Body=" + "x" * LARGEST_BODY), 413, "too_large"),
        (of("telnyx", json.dumps({"data": "x" * LARGEST_BODY})), 413, "too_large"),
        (of("telnyx", json.dumps({"data": "x" * 2_000_000})), 413, "too_large"),
        (form("😀" * (LARGEST_BODY // 4 + 1)), 413, "too_large"),
        (form(b"\xff" * (LARGEST_BODY // 3 + 1)), 413, "too_large"),
        # The content type.
        (form("MessageSid=SM1&Body=a", "application/json"), 415, "wrong_content_type"),
        (
            form("MessageSid=SM1&Body=a", "multipart/form-data; boundary=x"),
            415,
            "wrong_content_type",
        ),
        (form("MessageSid=SM1&Body=a", ""), 415, "wrong_content_type"),
        (form("MessageSid=SM1&Body=a", "image/png"), 415, "wrong_content_type"),
        (of("telnyx", "{}", "text/json"), 415, "wrong_content_type"),
        (of("telnyx", "{}", "application/x-www-form-urlencoded"), 415, "wrong_content_type"),
        (of("telnyx", "{}", "application/json-patch"), 415, "wrong_content_type"),
        (of("sandbox", "{}", "text/plain"), 415, "wrong_content_type"),
        # A form that is none.
        (form(""), 400, "incomplete"),
        (form("\x00"), 400, "malformed"),
        (form("MessageSid=SM1&Body=a b"), 400, "malformed"),
        (form("MessageSid=SM1&Body=a\nb"), 400, "malformed"),
        (form("MessageSid=SM1&Body=é"), 400, "malformed"),
        (form("MessageSid=SM1&Body=100%"), 400, "malformed"),
        (form("MessageSid=SM1&Body=100%2"), 400, "malformed"),
        (form("MessageSid=SM1&Body=%zz"), 400, "malformed"),
        (form("MessageSid=SM1&Body=%4z"), 400, "malformed"),
        (form("MessageSid=SM1&Body=%%41"), 400, "malformed"),
        (form(b"\xff\xfe"), 400, "malformed"),
        *((form(words), 400, "malformed") for words in HOSTILE if set(words) - set('@\\"}')),
        # A form that lacks something.
        (form("{}"), 400, "incomplete"),
        (form("Body=a"), 400, "incomplete"),
        (form("MessageSid=&Body=a"), 400, "incomplete"),
        (form("XMessageSid=SM1&Body=a"), 400, "incomplete"),
        (form("MessageSid=SM1"), 400, "incomplete"),
        (form("MessageSid=SM1&XBody=a"), 400, "incomplete"),
        (form("Body=MessageSid=SM1"), 400, "incomplete"),
        # JSON that is none.
        (of("telnyx", "{"), 400, "malformed"),
        (of("telnyx", "MessageSid=SM1&Body=a"), 400, "malformed"),
        (of("telnyx", "{} {}"), 400, "malformed"),
        (of("telnyx", "{'data': 1}"), 400, "malformed"),
        (of("telnyx", b"\xff{}"), 400, "malformed"),
        (of("telnyx", DEEP), 400, "malformed"),
        *((of("telnyx", words), 400, "malformed") for words in HOSTILE),
        # JSON that lacks something.
        (of("telnyx", ""), 400, "incomplete"),
        (of("telnyx", "null"), 400, "incomplete"),
        (of("telnyx", "1"), 400, "incomplete"),
        (of("telnyx", "[]"), 400, "incomplete"),
        (of("telnyx", "{}"), 400, "incomplete"),
        (of("telnyx", '[{"data": {"event_type": "x"}}]'), 400, "incomplete"),
        (of("telnyx", '{"data": [{"event_type": "x"}]}'), 400, "incomplete"),
        (of("telnyx", '{"data": {"event_type": ""}}'), 400, "incomplete"),
        (of("telnyx", '{"data": {"event_type": 1}}'), 400, "incomplete"),
        (of("telnyx", '{"data": {"event_type": null}}'), 400, "incomplete"),
        (of("telnyx", '{"data": {"event_type": "message.received"}}'), 400, "incomplete"),
        (
            of("telnyx", '{"data": {"event_type": "message.received", "payload": {"id": 1}}}'),
            400,
            "incomplete",
        ),
        (of("sandbox", '{"event": []}'), 400, "incomplete"),
        (of("sandbox", "[]"), 400, "incomplete"),
    ],
)
def test_what_no_provider_sends_is_refused(
    world: World, event: Event, status: int, error: str
) -> None:
    assert world.post(event) == refusal(status, error)
    assert world.taken() == []


@pytest.mark.parametrize("provider", NAMES)
def test_every_provider_of_the_stage_is_known(world: World, provider: str) -> None:
    # A new provider needs its lines in infra/validation.yaml.
    answer = world.post(of(provider, "", "text/plain"))
    assert answer == refusal(415, "wrong_content_type")


@pytest.mark.parametrize(("more", "status"), [(0, 200), (1, 413)])
def test_the_limit_is_of_the_body(world: World, more: int, status: int) -> None:
    # GIVEN a body as large as it may be, and one byte larger, with as much beside it as API Gateway
    # takes. https://docs.aws.amazon.com/apigateway/latest/developerguide/api-gateway-execution-service-limits-table.html
    body = b'{"events": [], "filler": "'
    event = sandbox(body + b"x" * (LARGEST_BODY - len(body) - 2 + more) + b'"}')
    assert len(raw(event)) == LARGEST_BODY + more
    line = len(event["requestContext"]["path"]) + sum(map(len, event["headers"].values()))
    names = [f"X-Header-Of-A-Proxy-{number}" for number in range(30)]
    room, rest = divmod(10_240 - line, len(names))
    headers = dict.fromkeys(names, "x" * room)
    headers[names[0]] += "x" * rest
    # WHEN it comes, THEN the machine is asked (`post` holds the size of its input) and the receiver
    assert world.post(with_headers(event, **headers)).status == status


# --- hostile everywhere --------------------------------------------------------------------------

ECHO = """
import json

def app(event, context):
    headers = {"Content-Type": "application/json"}
    return {"statusCode": 200, "headers": headers, "body": json.dumps(event)}
"""


def test_the_receiver_gets_the_event_of_the_proxy_integration(world: World) -> None:
    events = [principal(telnyx())]
    for number, words in enumerate(HOSTILE):
        event = with_headers(telnyx(text=words), **{f"X-{words}": words, "get": words})
        event["multiValueQueryStringParameters"] = {words: [words], "reference": [words]}
        event["requestContext"] |= {"path": f"/api/{words}", "domainName": words}
        events.append(principal(event) if number % 2 else event)
    with world.receiver(ECHO):
        for event in events:
            answer = world.post(event)
            assert answer.status == 200, answer
            got = json.loads(answer.body)
            assert base64.b64decode(got["body"]) == raw(event)
            request = request_of(event)
            context = {
                **event["requestContext"],
                "requestId": request.request_id,
                "authorizer": {"principalId": request.principal},
            }
            assert got == {
                "resource": context["resourcePath"],
                "path": context["path"],
                "httpMethod": "POST",
                "headers": event["headers"],
                "multiValueQueryStringParameters": event["multiValueQueryStringParameters"] or {},
                "pathParameters": {"provider": "telnyx"},
                "stageVariables": None,
                "requestContext": context,
                "body": got["body"],
                "isBase64Encoded": True,
            }


ANSWERS = [
    (200, {"Content-Type": "text/xml"}, '<?xml version="1.0"?>\n<Response a="\'"/>\n\n  '),
    (204, {"Content-Type": "application/json"}, ""),
    (503, {"Content-Type": "application/json", "Retry-After": "7"}, '{"error": "try_again"}'),
    *((200, {"Content-Type": "text/plain; charset=utf-8"}, words) for words in HOSTILE),
]


def test_whatever_the_receiver_answers_goes_back_as_it_is(world: World) -> None:
    code = f"""
import base64

ANSWERS = {ANSWERS!r}

def app(event, context):
    status, headers, body = ANSWERS[int(event["headers"]["X-Number"])]
    return {{"statusCode": status, "headers": headers, "multiValueHeaders": {{}}, "body": body}}
"""
    with world.receiver(code):
        for number, answer in enumerate(ANSWERS):
            event = with_headers(telnyx(), **{"X-Number": str(number)})
            assert world.post(event) == Answer(*answer)


# --- what fails is a 503 -------------------------------------------------------------------------

TRY_AGAIN = Answer(
    503, {"Content-Type": "application/json", "Retry-After": "5"}, '{"error": "try_again"}'
)


@pytest.mark.parametrize(
    "code",
    [
        "def app(event, context): raise RuntimeError",
        "def app(event, context): raise SystemExit(1)",
        "import os\ndef app(event, context): os._exit(1)",
        "raise ImportError",
        "import time\ndef app(event, context): time.sleep(60)",
        "def app(event, context): return None",
        "def app(event, context): return ''",
        "def app(event, context): return []",
        "def app(event, context): return {}",
        "def app(event, context): return {'statusCode': 200}",
        "def app(event, context): return {'statusCode': 200, 'headers': {}, 'body': ''}",
        "def app(event, context): return {'headers': {'Content-Type': 'a/b'}, 'body': ''}",
    ],
)
def test_a_receiver_that_fails(world: World, code: str) -> None:
    with world.receiver(code, time_out=1):
        assert world.post(telnyx()) == TRY_AGAIN
        # AND what is refused needs no receiver
        assert world.post(of("telnyx", "{")) == refusal(400, "malformed")


@pytest.mark.parametrize("status", ['"200"', "99", "600", "2.5", "None", "True"])
def test_an_answer_with_no_status(world: World, status: str) -> None:
    code = f"""
def app(event, context):
    return {{"statusCode": {status}, "headers": {{"Content-Type": "a/b"}}, "body": ""}}
"""
    with world.receiver(code):
        assert world.post(telnyx()).status == 503


def test_a_receiver_that_is_not_there(world: World) -> None:
    with world.machine(lambda definition: definition.replace(f":{FUNCTION}", ":gone")):
        assert world.post(telnyx()) == TRY_AGAIN


def test_a_receiver_that_is_throttled(world: World) -> None:
    lambda_ = world.aws.client("lambda")
    lambda_.put_function_concurrency(FunctionName=FUNCTION, ReservedConcurrentExecutions=0)
    try:
        assert world.post(telnyx()) == TRY_AGAIN
    finally:
        lambda_.delete_function_concurrency(FunctionName=FUNCTION)


THROTTLED = """
from pathlib import Path

def app(event, context):
    calls = Path("{calls}")
    calls.write_text(calls.read_text() + "x")
    if len(calls.read_text()) <= {throttles}:
        raise RuntimeError
    return {{"statusCode": 200, "headers": {{"Content-Type": "text/plain"}}, "body": ""}}
"""


@pytest.mark.parametrize(("throttles", "status"), [(1, 200), (2, 503)])
def test_one_throttle_is_tried_again(
    world: World, tmp_path: Path, throttles: int, status: int
) -> None:
    # (An error ends MiniStack's process of a function: the count is kept in a file.)
    calls = tmp_path / "calls"
    calls.write_text("")
    code = THROTTLED.format(calls=calls, throttles=throttles)

    # MiniStack does not say so of a throttle; of an error it says this.
    def renamed(definition: str) -> str:
        return definition.replace("Lambda.TooManyRequestsException", "Runtime.HandlerError")

    with world.receiver(code), world.machine(renamed):
        assert world.post(telnyx()).status == status


def test_a_state_machine_that_fails_by_itself(world: World) -> None:
    with world.machine(lambda definition: definition.replace("$split(", "$splut(")):
        assert world.post(telnyx()) == TRY_AGAIN


def test_a_state_machine_that_is_not_there(world: World) -> None:
    integration = world.integration("/webhooks/{provider}/signed")
    call = json.loads(integration.request(request_of(telnyx())))
    status, body = world.start(
        {**call, "stateMachineArn": call["stateMachineArn"] + "-x"}, integration
    )
    assert (status, "StateMachineDoesNotExist" in body) == (400, True)
    assert integration.answer(status, body) == TRY_AGAIN


OUTPUT = json.dumps(
    {"statusCode": 200, "contentType": "text/xml", "retryAfter": "", "body": "<Response/>"}
)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, {"status": "FAILED", "error": "States.Runtime", "cause": "…"}),
        (200, {"status": "FAILED", "output": OUTPUT}),
        (200, {"status": "TIMED_OUT"}),
        (200, {"status": "TIMED_OUT", "output": OUTPUT}),
        (200, {"status": "ABORTED", "output": OUTPUT}),
        (200, {"output": OUTPUT}),
        (200, {}),
        (400, {"__type": "ExecutionLimitExceeded", "message": "…"}),
        (400, {"__type": "AccessDeniedException", "Message": "…"}),
        (500, {"__type": "InternalServerException"}),
        (503, {}),
    ],
)
def test_what_is_no_success_of_step_functions(world: World, status: int, body: Any) -> None:
    integration = world.integration("/webhooks/{provider}")
    assert integration.answer(status, json.dumps(body)) == TRY_AGAIN


@pytest.mark.parametrize(
    "body",
    [
        "",
        "<Unavailable/>",
        json.dumps({"status": "SUCCEEDED"}),
        json.dumps({"status": "SUCCEEDED", "output": "<Response/>"}),
        json.dumps({"status": "SUCCEEDED", "output": OUTPUT[:-1]}),
    ],
)
def test_what_cannot_be_read_is_the_gateways_own_503(world: World, body: str) -> None:
    integration = world.integration("/webhooks/{provider}")
    with pytest.raises(TemplateFailed):
        integration.answer(200, body)
    assert world.gateway_response("DEFAULT_5XX") == TRY_AGAIN


def test_an_output_without_a_status_is_no_answer(world: World) -> None:
    integration = world.integration("/webhooks/{provider}")
    body = json.dumps({"status": "SUCCEEDED", "output": "{}"})
    assert integration.answer(200, body).status == 503


# --- on and off ----------------------------------------------------------------------------------


def test_deploying_again_changes_nothing_and_without_the_option_takes_it_out(world: World) -> None:
    # WHEN it is deployed with the option again, THEN nothing changes
    again = world.deploy(validation=True)
    assert again["changes"] == {f"{FUNCTION}-data": [], FUNCTION: []}
    # WHEN it is deployed without it, THEN it says that it goes, and it is gone
    without = world.deploy(validation=False)
    assert set(without["changes"][FUNCTION]) >= {
        "Remove ValidationMachine",
        "Remove ValidationRole",
        "Remove ValidationApiRole",
        "Remove ValidationLogGroup",
    }
    assert "Remove  ValidationMachine (AWS::StepFunctions::StateMachine)" in world.said
    assert world.machines() == {}
    doors = [
        path["post"]["x-amazon-apigateway-integration"]
        for name, path in world.api()["paths"].items()
        if name.startswith("/webhooks/")
    ]
    assert [door["type"] for door in doors] == ["aws_proxy", "aws_proxy"]
    # WHEN it comes back, THEN it works as before
    world.deploy(validation=True)
    assert world.post(text("hello")).status == 200

"""No number, text or secret in anything that is written for people: logs, metrics, errors, answers.

A story goes through the whole pipeline, with every kind of failure, at every log level, while all
libraries are told to log all they have. Whatever can be seen from outside is kept with where it was
seen, and searched for what was planted, in each form in which it might show. Not searched is what
holds these things by design: the stores' contents, the queues' bodies, the calls to providers, to
the reply API and to the look-ups.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, quote_plus

import httpx
import pytest
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    ParamValidationError,
    ReadTimeoutError,
)

import app as app_module
from chalicelib import observing
from chalicelib import processing as processing_module
from chalicelib import sending as sending_module
from chalicelib.batches import BatchFailed
from chalicelib.config import _TABLE, SettingError, load
from chalicelib.credentials import hash_of
from chalicelib.lookups import LookUps
from chalicelib.messages import Keys
from chalicelib.processing import Processing
from chalicelib.providers.telnyx import Telnyx
from chalicelib.providers.twilio import Twilio
from chalicelib.queues import DEAD_LETTERS, OUTBOUND, PROCESSING
from chalicelib.receiving import Receiver
from chalicelib.runtime import Runtime
from chalicelib.sending import Sender
from chalicelib.yours.lookups import LOOKUPS
from spillway import cli
from spillway.local.folder import Folder
from spillway.stores import Depth
from spillway.traffic import burst as burst_module
from spillway.traffic import text as text_module
from spillway.traffic.burst import Count
from tests.fakes import HASH_KEY, NOW, SECRETS, Context, FakeRuntime, settings, sqs_event
from tests.fuzz.memory import DAY, Answers, Memory
from tests.signing import TelnyxKey, api_event, telnyx_event, twilio_event

# --- what is planted, and how it is found --------------------------------------------------------

# (Not the numbers of the other tests: ours stand in error messages as examples.)
OURS, ALSO_OURS, THEIRS, OTHERS = "+13125557710", "+13125557720", "+13125558841", "+13125556632"
TEXT = "The heron keeps its tangerine below the bridge"
ANSWER = "Tell the heron: the bridge is watched"
PERSON = "Heron Q. Tangerine"
MEDIA = "https://mms.twiliocdn.com/heron-below-the-bridge.png"
KEY = "key-of-the-heron-api-7f3a"
TOKEN = SECRETS["twilio"]["auth_tokens"][0]
API_KEY = "KEY017F3A-of-the-tests"
BASIC = "twilio-user:twilio-password-4711"
BEARER = "a-bearer-token-of-the-tests-4711"

NUMBERS = {
    "their number": THEIRS,
    "another's number": OTHERS,
    "our number": OURS,
    "our other number": ALSO_OURS,
}
TEXTS = {"their text": TEXT, "our answer": ANSWER, "a name": PERSON, "an attachment": MEDIA}
CREDENTIALS = {
    "the hash key": HASH_KEY,
    "an auth token": TOKEN,
    "an API key": API_KEY,
    "the authorizer's credentials": BASIC,
    "a bearer token": BEARER,
    "an idempotency key": KEY,
}
# What a library, a provider or a careless line of code might say.
ECHO = f"to {THEIRS} from {OURS}: {TEXT!r} {ANSWER!r} {PERSON} {MEDIA} {TOKEN} {API_KEY} {HASH_KEY}"


def in_base64(text: str) -> Iterator[str]:
    """How a text shows in the base64 of something longer, wherever in it the text begins."""
    content = text.encode()
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + content).decode()
        # The first and the last characters hold bits of what stands beside it.
        yield encoded[4 if before else 0 : len(encoded) // 4 * 4 - 4]


def forms() -> dict[str, str]:
    """Each form in which something planted can show, and what it is."""
    found: dict[str, str] = {}
    for what, text in {**NUMBERS, **TEXTS, **CREDENTIALS}.items():
        found |= dict.fromkeys([text, quote(text, safe=""), quote_plus(text)], what)
        found |= dict.fromkeys(in_base64(text), f"{what} in base64")
        found |= dict.fromkeys([text.encode().hex(), text.encode("utf-16-le").hex()], what)
        found |= dict.fromkeys([json.dumps(text)[1:-1], repr(text)[1:-1]], what)
    for what, number in NUMBERS.items():
        digits = number.removeprefix("+")
        national = digits.removeprefix("1")
        spaced = f"{national[:3]}-{national[3:6]}-{national[6:]}"
        found |= dict.fromkeys([digits, national, spaced, spaced.replace("-", " ")], what)
        found |= dict.fromkeys(in_base64(national), f"{what} in base64")
    for word in ("heron", "tangerine"):
        found[word] = "a word of a text"
    return {form.lower(): what for form, what in found.items()}


FORMS = forms()


@dataclass
class Seen:
    """What could be seen from outside, by where."""

    found: list[tuple[str, str]] = field(default_factory=list)
    signatures: list[str] = field(default_factory=list)

    def add(self, where: str, what: object) -> None:
        self.found.append((where, str(what)))

    def add_error(self, where: str, error: BaseException) -> None:
        """As Lambda prints it, with its causes."""
        self.add(f"what {where} raised", "".join(traceback.format_exception(error)))

    def leaks(self) -> list[str]:
        """Where something planted shows, what, and in which line."""
        unsaid = {**FORMS, **dict.fromkeys((s.lower() for s in self.signatures), "a signature")}
        any_of_them = re.compile("|".join(map(re.escape, sorted(unsaid, key=len, reverse=True))))
        return [
            f"{where}: {unsaid[match[0]]} ({match[0]!r}) in {line[:300]!r}"
            for where, text in self.found
            for line in text.splitlines()
            if (match := any_of_them.search(line.lower()))
        ]

    def everything(self) -> str:
        return "\n".join(text for _, text in self.found)


class Listening(logging.Handler):
    """All that anybody logs, with tracebacks, as a handler of Lambda's would write it."""

    def __init__(self, seen: Seen) -> None:
        super().__init__(logging.DEBUG)
        self._seen = seen

    def emit(self, record: logging.LogRecord) -> None:
        self._seen.add(f"the log of {record.name}", self.format(record))


@contextmanager
def watched(capsys: pytest.CaptureFixture[str]) -> Iterator[Seen]:
    """Everything that is written meanwhile, by anybody, at DEBUG."""
    seen = Seen()
    listening = Listening(seen)
    level = logging.root.level
    logging.root.setLevel(logging.DEBUG)
    # (Chalice's logger does not hand on what it logs.)
    loggers = [logging.root, app_module.app.log]
    for logger in loggers:
        logger.addHandler(listening)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            yield seen
    finally:
        logging.root.setLevel(level)
        for logger in loggers:
            logger.removeHandler(listening)
    for warning in warned:
        seen.add("a warning", warning.message)
    output = capsys.readouterr()
    seen.add("standard output", output.out)
    seen.add("standard error", output.err)


# --- the story -----------------------------------------------------------------------------------


def takes_everything(request: httpx.Request) -> httpx.Response:
    """Providers, reply API and look-ups on a good day."""
    match request.url.host:
        case "api.twilio.com":
            return httpx.Response(201, json={"sid": "SM" + "1" * 32, "body": ANSWER, "to": THEIRS})
        case "api.telnyx.com":
            return httpx.Response(200, json={"data": {"id": "40a1", "text": ANSWER}})
        case "replies.example.com":
            # (To each its own: two texts that are alike cannot be told apart in a list.)
            text = f"{ANSWER} {request.headers['idempotency-key'][-4:]}"
            return httpx.Response(200, json={"text": text, "media": [MEDIA]})
        case "crm.example.com":
            return httpx.Response(200, json={"known": True, "name": PERSON})
        case _:
            return httpx.Response(200, json={"line_type": "mobile", "country": "US"})


def twilio_text(id_: str, *, token: str = TOKEN, door: str = "/signed", **more: str) -> Any:
    fields = {"From": THEIRS, "To": OURS, "Body": TEXT, "MessageSid": id_, **more}
    return twilio_event(fields, token=token, door=door)


def telnyx_text(at: float = NOW) -> Any:
    event = json.loads(telnyx_event(text=TEXT)["body"])
    event["data"]["payload"]["from"] = {"phone_number": THEIRS}
    event["data"]["payload"]["to"] = [{"phone_number": ALSO_OURS}]
    return telnyx_event(body=json.dumps(event).encode(), at=at)


class World(Memory):
    """The pipeline, and what is to go wrong in it."""

    def __init__(self, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(self.answer)
        self.seen = seen
        self.patch = monkeypatch
        self.fails: dict[str, Answers] = {}  # by host
        self.seconds = 360.0  # of each invocation
        self.variables = {
            "NUMBERS": f"{OURS}=twilio,{ALSO_OURS}=telnyx",
            "REPLY_API_URL": f"https://replies.example.com/v1?key={quote(API_KEY)}",
            "LOOKUP_URLS": json.dumps(
                {"customer": "https://crm.example.com/x", "line": "https://lines.example.com/y"}
            ),
        }
        self.vault.held |= {
            "telnyx": {"api_key": API_KEY, "public_keys": [TelnyxKey.public]},
            "keys": {"hash_key": HASH_KEY},
        }
        self.functions: dict[str, Any] = {}
        monkeypatch.setattr(app_module, "function", self.functions.__getitem__)
        hashes = {"twilio": [hash_of(BASIC)], "api": [hash_of(BEARER)]}
        monkeypatch.setenv("CREDENTIAL_HASHES", json.dumps(hashes))

    def answer(self, request: httpx.Request) -> httpx.Response:
        return self.fails.get(request.url.host, takes_everything)(request)

    # -- steps, each of which shows what Lambda or a caller would see ------------------------------

    def attempt(self, where: str, work: Callable[[], Any]) -> Any:
        try:
            answer = work()
        except Exception as error:
            self.seen.add_error(where, error)
            return None
        self.seen.add(f"the answer of {where}", answer)
        return answer

    def start(self) -> None:
        """What each function does at INIT."""
        made: list[tuple[str, Callable[[], Any]]] = [
            ("receiving", lambda: Receiver(self, settings("receiver", **self.variables))),
            ("processing", lambda: Processing(self, settings("processing", **self.variables))),
            ("sending", lambda: Sender(self, settings("sender", **self.variables))),
        ]
        for name, make in made:
            function = self.attempt(f"the start of {name}", make)
            if function is not None:
                self.functions[name] = function

    def request(self, where: str, event: Mapping[str, Any]) -> Any:
        for name, values in event["multiValueHeaders"].items():
            if "signature" in name.lower():
                self.seen.signatures += values
        return self.attempt(where, lambda: app_module.app(dict(event), None))

    def receive(self) -> None:
        """Texts, receipts, and what else comes to the doors."""
        for id_ in ("SM1", "SM1", "SM2"):
            self.request("the signed door", twilio_text(id_, MediaUrl0=MEDIA, ProfileName=PERSON))
        self.request("the door", twilio_text("SM3", door=""))
        self.request("the signed door", telnyx_text())
        self.request("the signed door", twilio_text("SM4", From=OTHERS, Body="STOP"))
        # Signed, and not to be read.
        self.request("the signed door", twilio_event({"Nothing": f"{THEIRS} {TEXT}"}))
        self.request("the signed door", telnyx_event(body=f"{THEIRS} {TEXT}".encode()))
        # Not signed.
        self.request("the signed door", twilio_text("SM5", token="another"))
        self.request("the signed door", telnyx_text(at=NOW - 999))
        # To somebody who does not exist.
        nobody = twilio_text("SM6")
        nobody["pathParameters"] = {"provider": THEIRS}
        self.request("nobody's door", nobody)

    def ask(self) -> None:
        """What our own clients do."""
        message = {"to": THEIRS, "from": OURS, "text": TEXT, "media": [MEDIA]}
        for body in (message, {**message, "to": f"{THEIRS} "}, {**message, "from": THEIRS}, ECHO):
            headers = {"Idempotency-Key": KEY, "Authorization": f"Bearer {BEARER}"}
            event = api_event("POST", "/messages", json.dumps(body), headers, principal="api")
            self.request("POST /messages", event)
        # (Of somebody who is opted out anyhow.)
        good = {
            "number": OTHERS,
            "event": "stop",
            "source": "telephone",
            "note": f"{PERSON}: {TEXT}",
        }
        for said in (
            good,
            {**good, "number": f"{THEIRS} "},
            {**good, "at": TEXT},
            {THEIRS: 1},
            ECHO,
        ):
            headers = {"Authorization": f"Bearer {BEARER}"}
            event = api_event("POST", "/consent", json.dumps(said), headers, principal="api")
            self.request("POST /consent", event)
        for id_ in (THEIRS, f"{'a' * 24}-{'b' * 24}", *self.ids()):
            event = api_event(
                "GET",
                f"/messages/{id_}",
                None,
                {},
                resource="/messages/{id}",
                parameters={"id": id_},
            )
            self.request("GET /messages", event)

    def ids(self) -> list[str]:
        """The ids of the replies that the ledger has."""
        items = self.table.scan(TableName="spillway-test", ConsistentRead=True)["Items"]
        return [
            f"{item['pk']['S'][2:]}-{item['sk']['S'][4:]}"
            for item in items
            if item["sk"]["S"].startswith("OUT#")
        ]

    def present(self) -> None:
        """Credentials, good and bad, to the authorizer."""
        basic = base64.b64encode(BASIC.encode()).decode()
        wrong = base64.b64encode(f"{BASIC}-{THEIRS}".encode()).decode()
        for token in (f"Bearer {BEARER}", f"Basic {basic}", f"Basic {wrong}", f"Bearer {API_KEY}"):
            arn = "arn:aws:execute-api:us-east-1:123456789012:abcdef1234/prod/POST/messages"
            event = {"type": "TOKEN", "authorizationToken": token, "methodArn": arn}
            self.attempt("the authorizer", partial(app_module.authorize, event, None))

    def work(self) -> None:
        """Both queues, for as long as it takes: retries, giving up by age, dead-lettering."""
        for handler, queue in ((app_module.send, OUTBOUND), (app_module.process, PROCESSING)):
            for turn in range(14):
                at = self.messages.next_visible(f"spillway-test-{queue}")
                if at is None:
                    break
                # In the end, so late that everything is given up.
                self.clock = max(self.clock, at) + (DAY / 2 if turn == 12 else 0)
                shown = partial(self._shown, handler)
                self.attempt(f"the handler of {queue}", lambda: self.poll(queue, shown))  # noqa: B023

    def _shown(self, handler: Any, event: Any, _: Context) -> Any:
        try:
            report = handler(event, Context(self, self.seconds))
        except BatchFailed as error:
            self.seen.add_error("a handler", error)
            raise
        self.seen.add("a report", report)
        return report

    def confirm(self) -> None:
        """Receipts of what was sent, with a reason that says too much."""
        for id_ in self.ids():
            fields = {"MessageSid": "SM" + "1" * 32, "MessageStatus": "delivered", "To": THEIRS}
            self.request("the signed door", twilio_event(fields, reference=f"{id_}-1"))
            fields |= {"MessageStatus": "failed", "ErrorCode": f"30007 {THEIRS}"}
            self.request("the signed door", twilio_event(fields, reference=f"{id_}-1"))
        fields = {"MessageSid": THEIRS, "MessageStatus": "sent"}
        self.request("the signed door", twilio_event(fields, reference="a-stranger"))

    def look_at_names(self) -> None:
        """Names and attributes, which show in consoles, access logs and traces."""
        for queue in DEAD_LETTERS.values():
            for message in self.on(queue):
                self.seen.add(f"an attribute on {queue}", message.attributes)
                self.seen.add(f"the group on {queue}", message.group)
        for item in self.table.scan(TableName="spillway-test", ConsistentRead=True)["Items"]:
            key = {name: item.get(name) for name in ("pk", "sk", "unknown_bucket", "archive_key")}
            self.seen.add("a key of the table", key)
        listed = self.bucket.list_objects_v2(Bucket="spillway-test-archive-123456789012-us-east-1")
        for one in listed.get("Contents", []):
            self.seen.add("a key of the bucket", one["Key"])

    def tell(self) -> None:
        """The whole story."""
        self.start()
        self.present()
        if {"receiving"} <= set(self.functions):
            self.receive()
            for queue in (PROCESSING, OUTBOUND):
                for message in self.on(queue):
                    self.seen.add(f"the group on {queue}", message.group)
                    self.seen.add(f"the deduplication id on {queue}", message.deduplication)
            self.ask()
        if {"processing", "sending"} <= set(self.functions):
            self.work()
        if {"receiving", "processing"} <= set(self.functions):
            self.confirm()
            self.work()
            self.ask()
        self.look_at_names()


# --- the failures --------------------------------------------------------------------------------


class Broken:
    """A client of a store, one operation of which fails each time."""

    def __init__(self, client: Any, operation: str, error: Callable[[str], BaseException]) -> None:
        self._client = client
        self._operation = operation
        self._error = error
        self.exceptions = client.exceptions if hasattr(client, "exceptions") else None

    def __getattr__(self, name: str) -> Any:
        if name != self._operation:
            return getattr(self._client, name)

        def fail(**_: Any) -> Any:
            raise self._error(name)

        return fail


def bug() -> RuntimeError:
    """A bug of anybody's, whose text and whose cause say too much."""
    error = RuntimeError(ECHO)
    error.__cause__ = ValueError(f"caused by {ECHO}")
    error.add_note(f"and noted: {ECHO}")
    return error


STORE_ERRORS: dict[str, Callable[[str], BaseException]] = {
    "throttled": lambda operation: ClientError(
        {"Error": {"Code": "ThrottlingException", "Message": ECHO}}, operation
    ),
    "invalid": lambda operation: ClientError(
        {"Error": {"Code": "ValidationException", "Message": ECHO}, "Item": {"a": {"S": ECHO}}},  # type: ignore[typeddict-unknown-key]
        operation,
    ),
    "wrong parameter": lambda _: ParamValidationError(report=f"Invalid value: {ECHO}"),
    "no answer": lambda _: ReadTimeoutError(endpoint_url=f"https://example.com/{ECHO}"),
    "no connection": lambda _: EndpointConnectionError(endpoint_url=ECHO),
    "a bug": lambda _: bug(),
}
GETTING = ("dynamodb", "batch_get_item")
OPERATIONS = [
    ("sqs", "send_message"),
    ("sqs", "send_message_batch"),
    ("sqs", "change_message_visibility_batch"),
    ("dynamodb", "get_item"),
    GETTING,
    ("dynamodb", "put_item"),
    ("dynamodb", "update_item"),
    ("s3", "put_object"),
]


def store_fails(service: str, operation: str, kind: str) -> Callable[[World], None]:
    def fail(world: World) -> None:
        client = world.__dict__[service]
        world.__dict__[service] = Broken(client, operation, STORE_ERRORS[kind])

    return fail


def answers(status: int, body: Any = ECHO, **headers: str) -> Answers:
    text = body if isinstance(body, str) else json.dumps(body)
    return lambda request: httpx.Response(status, text=text, headers=headers)


def breaks(error: type[Exception]) -> Answers:
    def fail(request: httpx.Request) -> httpx.Response:
        raise error(f"{ECHO} at {request.url} with {request.headers.get('authorization')}")

    return fail


PROVIDERS = ("api.twilio.com", "api.telnyx.com")


def network_fails(*hosts: str, by: Answers) -> Callable[[World], None]:
    return lambda world: world.fails.update(dict.fromkeys(hosts, by))


def own_code(given: Callable[[Any], Any]) -> Callable[[World], None]:
    """The adopter's own reply function, which does as it pleases."""

    def use(world: World) -> None:
        world.variables["REPLY_API_URL"] = ""
        world.patch.setattr(sending_module, "own_reply", given)

    return use


def raises(error: Callable[[], BaseException]) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error()

    return fail


def code_fails(owner: Any, name: str) -> Callable[[World], None]:
    return lambda world: world.patch.setattr(owner, name, raises(bug))


def secret(name: str, held: Any) -> Callable[[World], None]:
    def hold(world: World) -> None:
        world.vault.held.pop(name, None)
        if held is not None:
            world.vault.held[name] = held

    return hold


def secrets_fail(world: World) -> None:
    # It names the secret, and never what is in it.
    what = "not authorized to perform: secretsmanager:GetSecretValue on spillway/test/keys"
    error = {"Error": {"Code": "AccessDeniedException", "Message": what}}
    world.vault.fails = ClientError(error, "GetSecretValue")  # type: ignore[arg-type]


def hurried(world: World) -> None:
    world.seconds = 5.0


def unreported(world: World) -> None:
    world.variables["REPORT_BATCH_ITEM_FAILURES"] = "false"
    world.fails |= dict.fromkeys([*PROVIDERS, LINE], answers(500))


def all_of(*failures: Callable[[World], None]) -> Callable[[World], None]:
    def fail(world: World) -> None:
        for one in failures:
            one(world)

    return fail


# As Twilio lists what it has, and as nobody may see it.
LISTED = {
    "sid": "SM" + "2" * 32,
    "to": THEIRS,
    "from": OURS,
    "body": ANSWER,
    "direction": "outbound-api",
    "date_created": format_datetime(datetime.fromtimestamp(NOW + 3600, UTC)),
}


def looked_for(by: Answers | None) -> Callable[[World], None]:
    """Sends of unknown outcome, and what Twilio says when it is asked about them. None: that it has
    the first of them."""
    lost = breaks(httpx.ReadTimeout)
    sent: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            sent.extend(parse_qs(request.content.decode()).get("Body", []))
            return lost(request)
        return (
            by(request) if by else answers(200, {"messages": [LISTED | {"body": sent[0]}]})(request)
        )

    return network_fails(*PROVIDERS, by=answer)


REPLIES, CUSTOMER, LINE = "replies.example.com", "crm.example.com", "lines.example.com"
TWILIO_REFUSAL = {"code": 21610, "message": ECHO, "more_info": ECHO}
# What goes wrong, and a word that only shows if it did.
FAILURES: dict[str, tuple[Callable[[World], None], str]] = {
    "nothing": (lambda world: None, '"event":"sent"'),
    # -- providers
    "provider: rejected": (network_fails(*PROVIDERS, by=answers(400)), '"event":"rejected"'),
    "provider: opted out": (
        network_fails("api.twilio.com", by=answers(400, TWILIO_REFUSAL)),
        '"opted_out"',
    ),
    "provider: a code that is none": (
        network_fails(*PROVIDERS, by=answers(400, {"code": ECHO, "errors": [{"code": ECHO}]})),
        '"event":"rejected"',
    ),
    "provider: throttled": (network_fails(*PROVIDERS, by=answers(429)), "provider: throttled"),
    "provider: 401": (network_fails(*PROVIDERS, by=answers(401)), "provider: credentials"),
    "provider: 403": (network_fails(*PROVIDERS, by=answers(403)), "provider: credentials"),
    "provider: 500": (network_fails(*PROVIDERS, by=answers(500)), '"server_error"'),
    "provider: unreadable": (network_fails(*PROVIDERS, by=answers(200)), '"unreadable_answer"'),
    "provider: a redirect": (
        network_fails(*PROVIDERS, by=answers(301, Location=f"https://x.example/{quote(ECHO)}")),
        '"unexpected_answer"',
    ),
    "provider: no connection": (
        network_fails(*PROVIDERS, by=breaks(httpx.ConnectError)),
        "provider: no_connection",
    ),
    "provider: no answer": (
        network_fails(*PROVIDERS, by=breaks(httpx.ReadTimeout)),
        "read_timeout",
    ),
    "provider: cut off": (
        network_fails(*PROVIDERS, by=breaks(httpx.RemoteProtocolError)),
        "remote_protocol_error",
    ),
    "provider: our own header": (
        network_fails(*PROVIDERS, by=breaks(httpx.LocalProtocolError)),
        "local_protocol_error",
    ),
    "provider: a bug": (network_fails(*PROVIDERS, by=raises(bug)), '"unexpected_error"'),
    "provider: a bug in send": (code_fails(Twilio, "send"), '"unexpected_error"'),
    "provider: a bug in parse": (
        all_of(code_fails(Twilio, "parse"), code_fails(Telnyx, "parse")),
        '"not_taken"',
    ),
    "provider: a bug in verify": (code_fails(Twilio, "verify"), '"not_taken"'),
    # -- a look at what the provider has
    **{
        f"look: {kind}": (looked_for(by), shows)
        for kind, by, shows in (
            ("500", answers(500), '"look_failed"'),
            ("401", answers(401), '"look_failed"'),
            ("no JSON", answers(200), '"look_failed"'),
            ("other JSON", answers(200, {"messages": [ECHO]}), '"look_failed"'),
            ("another page", answers(200, {"messages": [], "next_page_uri": ECHO}), "look_failed"),
            ("no connection", breaks(httpx.ConnectError), '"look_failed"'),
            ("a bug", raises(bug), ""),
            ("nothing there", answers(200, {"messages": []}), '"reason":"not_sent"'),
            ("found", None, '"reason":"found"'),
            ("several", answers(200, {"messages": [LISTED, LISTED]}), '"unknown_listed"'),
        )
    },
    # -- the reply API
    "reply API: 400": (network_fails(REPLIES, by=answers(400)), "refused_by_reply_api"),
    "reply API: 401": (network_fails(REPLIES, by=answers(401)), "reply_api: 401"),
    "reply API: 429": (
        network_fails(REPLIES, by=answers(429, **{"Retry-After": ECHO})),
        "api: 429",
    ),
    "reply API: 500": (network_fails(REPLIES, by=answers(500)), "reply_api: 500"),
    "reply API: no JSON": (network_fails(REPLIES, by=answers(200)), "reply_api: invalid_answer"),
    "reply API: other JSON": (
        network_fails(REPLIES, by=answers(200, {"text": {"to": ECHO}, "media": [ECHO]})),
        "reply_api: invalid_answer",
    ),
    "reply API: too long": (
        network_fails(REPLIES, by=answers(200, {"text": f"{ECHO} " * 60})),
        '"too_long"',
    ),
    "reply API: no connection": (
        network_fails(REPLIES, by=breaks(httpx.ConnectError)),
        "reply_api: ConnectError",
    ),
    "reply API: no answer": (
        network_fails(REPLIES, by=breaks(httpx.ReadTimeout)),
        "reply_api: ReadTimeout",
    ),
    "reply API: no address": (network_fails(REPLIES, by=breaks(httpx.InvalidURL)), "InvalidURL"),
    "reply API: a bug": (network_fails(REPLIES, by=raises(bug)), '"never_ended"'),
    # -- look-ups
    **{
        f"look-up {name}: {kind}": (network_fails(host, by=by), '"lookup_failed"')
        for name, host in (("customer", CUSTOMER), ("line", LINE))
        for kind, by in (
            ("400", answers(400)),
            ("500", answers(500)),
            ("no JSON", answers(200)),
            ("other JSON", answers(200, {"known": ECHO, "line_type": ECHO})),
            ("no connection", breaks(httpx.ConnectError)),
            ("no answer", breaks(httpx.ReadTimeout)),
        )
    },
    "look-up: given up": (network_fails(LINE, by=answers(500)), '"too_old: lookup: line"'),
    "look-up: a bug": (network_fails(LINE, by=raises(bug)), '"never_ended"'),
    # -- the adopter's own code, and bugs of ours
    "own code: raises": (own_code(raises(bug)), '"never_ended"'),
    "own code: a group": (
        own_code(raises(lambda: ExceptionGroup(ECHO, [bug(), bug()]))),
        '"ExceptionGroup"',
    ),
    "own code: a key": (own_code(raises(lambda: KeyError(ECHO))), '"KeyError"'),
    "own code: what is no answer": (
        own_code(lambda message: [{"text": message.text}]),
        '"ValidationError"',
    ),
    "own code: something else": (own_code(lambda message: object()), '"TypeError"'),
    "own code: bytes": (own_code(lambda message: message.text.encode()), '"ValidationError"'),
    "a bug in the matching": (code_fails(sending_module, "event_in"), '"never_ended"'),
    "a bug in the validation": (code_fails(processing_module, "reasons_against"), '"never_ended"'),
    # -- secrets
    "secrets: no hash key": (secret("keys", None), "no such secret"),
    "secrets: a short hash key": (secret("keys", {"hash_key": TOKEN}), "at least 32 characters"),
    "secrets: a hash key that is no JSON": (
        secret("keys", f"{HASH_KEY} {TOKEN}"),
        "must be a JSON object",
    ),
    "secrets: no JSON": (secret("twilio", f"{TOKEN} {API_KEY}"), "SecretError"),
    "secrets: no object": (secret("twilio", [TOKEN, API_KEY]), "SecretError"),
    "secrets: other names": (secret("twilio", {TOKEN: API_KEY}), "NotReady"),
    "secrets: of another type": (
        secret("twilio", {"account_sid": 7, "auth_tokens": TOKEN}),
        "NotReady",
    ),
    "secrets: pasted with more": (
        secret("telnyx", {"api_key": f"{API_KEY}\n", "public_keys": [TelnyxKey.public]}),
        "provider: credentials",
    ),
    "secrets: refused": (secrets_fail, "AccessDeniedException"),
    # -- Lambda
    "too little time": (hurried, '"time_out_too_short"'),
    "a batch that cannot be reported": (unreported, "BatchFailed"),
    # -- stores
    **{
        f"{service}.{operation}: {kind}": (store_fails(service, operation, kind), "")
        for service, operation in OPERATIONS
        for kind in STORE_ERRORS
    },
}
FAILURES |= {
    # A message that was received often is looked for among those that never ended.
    **{
        f"looking for suspects: {kind}": (
            all_of(network_fails(REPLIES, by=answers(500)), store_fails(*GETTING, kind)),
            '"suspects_not_read"',
        )
        for kind in STORE_ERRORS
    },
    **{
        f"deleting what is done: {kind}": (
            all_of(unreported, store_fails("sqs", "delete_message_batch", kind)),
            '"not_deleted"',
        )
        for kind in STORE_ERRORS
    },
    "a bug in the keys": (code_fails(Keys, "conversation"), '"not_taken"'),
}


def table() -> Iterator[Any]:
    """Each failure at DEBUG, which writes all that there is, and at one of the other levels."""
    for number, name in enumerate(FAILURES):
        for level in ("DEBUG", ("INFO", "WARNING", "ERROR")[number % 3]):
            yield pytest.param(level, *FAILURES[name], id=f"{name}, {level}")


@pytest.mark.parametrize(("level", "fail", "shows"), list(table()))
def test_nothing_planted_shows(
    level: str,
    fail: Callable[[World], None],
    shows: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOG_LEVEL", level)
    with watched(capsys) as seen:
        world = World(seen, monkeypatch)
        fail(world)
        world.tell()
    # It went wrong, as it should have, or this would say nothing.
    assert level != "DEBUG" or shows in seen.everything()
    assert seen.leaks() == []


@pytest.mark.parametrize(
    "careless",
    [
        pytest.param(lambda: print(f"a text from {THEIRS}"), id="standard output"),
        pytest.param(lambda: sys.stderr.write(THEIRS[1:]), id="standard error"),
        pytest.param(lambda: logging.getLogger("a.library").debug("%s", TEXT), id="a library"),
        pytest.param(lambda: app_module.app.log.error("%s", TEXT.upper()), id="Chalice"),
        pytest.param(lambda: warnings.warn(API_KEY, stacklevel=1), id="a warning"),
        pytest.param(lambda: print(quote_plus(f"To={THEIRS}")), id="in a form"),
        pytest.param(lambda: print(base64.b64encode(f"..{THEIRS}.".encode())), id="in base64"),
        pytest.param(lambda: print(base64.b64encode(f"a{TEXT}z".encode())), id="a text in base64"),
        pytest.param(lambda: print(json.dumps({"to": OURS})), id="in JSON"),
        pytest.param(lambda: print("(312) 555-8841".replace(") ", "-")), id="as people write it"),
        pytest.param(lambda: observing.log("ERROR", "x", reason=TOKEN), id="a log line"),
        pytest.param(lambda: observing.count("X", reason=THEIRS), id="a metric"),
    ],
)
def test_what_shows_is_seen(
    careless: Callable[[], object], capsys: pytest.CaptureFixture[str]
) -> None:
    with watched(capsys) as seen:
        careless()
    assert len(seen.leaks()) >= 1


def test_a_signature_and_an_error_with_its_causes_are_seen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with watched(capsys) as seen:
        world = World(seen, monkeypatch)
        world.tell()
        assert seen.leaks() == []
        print(twilio_text("SM1", MediaUrl0=MEDIA, ProfileName=PERSON)["headers"])
        world.attempt("something", raises(bug))
    assert {leak.partition(":")[0] for leak in seen.leaks()} == {
        "standard output",
        "what something raised",
    }


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["authorizer", "receiver", "processing", "sender"])
@pytest.mark.parametrize(
    "planted",
    [
        ECHO,
        THEIRS,
        f"{THEIRS}=nobody",
        f"https://{quote(TOKEN)}:{quote(API_KEY)}@example.com:x/{THEIRS}",
        f"https://{THEIRS}/?{quote(TEXT)}#x",
        json.dumps({"twilio": [BASIC]}),
        json.dumps({THEIRS: hash_of(BASIC)}),
        json.dumps({"customer": f"ftp://{BEARER}"}),
        json.dumps([ECHO]),
    ],
    ids=map(str, range(9)),
)
def test_a_wrong_setting_is_not_shown(function: str, planted: str) -> None:
    wrong = {variable: planted for variable, *_ in _TABLE.values()}
    with pytest.raises(SettingError) as raised:
        load({**wrong, "SPILLWAY_FUNCTION": function})
    seen = Seen()
    seen.add_error("a start", raised.value)
    assert seen.leaks() == []


def test_a_wrong_name_of_a_look_up_is_not_shown() -> None:
    with pytest.raises(SettingError) as raised:
        LookUps(Memory(), LOOKUPS, {API_KEY: "https://crm.example.com/x"})
    seen = Seen()
    seen.add_error("a start", raised.value)
    assert seen.leaks() == []


# --- real libraries ------------------------------------------------------------------------------


class _Outside(BaseHTTPRequestHandler):
    """Providers, reply API and look-ups on loopback, whose answers repeat what they were asked."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["content-length"]))
        fails = self.server.fails  # type: ignore[attr-defined]
        answer = {
            "sid": "SM1",
            "text": ANSWER,
            "known": True,
            "line_type": "mobile",
            "country": "US",
        }
        body = json.dumps({**answer, "asked": asked.decode()}).encode()
        self.send_response(500 if fails else 200 if "Messages.json" not in self.path else 201)
        self.send_header("X-Echo", ECHO.encode("ascii", "replace").decode())
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@contextmanager
def outside(*, fails: bool) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Outside)
    server.fails = fails  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def go_through(base: str) -> None:
    """One text through the three functions, with boto3 and httpx as they are on Lambda."""
    variables = {
        "NUMBERS": f"{OURS}=twilio",
        "PROVIDERS": "twilio",
        "TWILIO_API_URL": base,
        "REPLY_API_URL": f"{base}/replies?key={quote(API_KEY)}",
        "LOOKUP_URLS": json.dumps({"customer": f"{base}/customer", "line": f"{base}/line"}),
    }
    runtime = FakeRuntime()
    with Runtime().http as runtime.__dict__["http"]:
        receiver = Receiver(runtime, settings("receiver", **variables))
        processing = Processing(runtime, settings("processing", **variables))
        sender = Sender(runtime, settings("sender", **variables))
        receiver.webhook("twilio", twilio_text("SM1", MediaUrl0=MEDIA), signed_door=True)
        for receives in (1, 2):
            for handler, queue in ((processing, PROCESSING), (sender, OUTBOUND)):
                bodies = [message["MessageBody"] for message in runtime.queues.sent[queue]]
                handler.handle(sqs_event(bodies, receives=receives), Context())


LIBRARIES = ("boto3", "botocore", "httpcore", "httpx", "urllib3")


@pytest.mark.parametrize("fails", [False, True], ids=["it goes well", "it fails"])
def test_libraries_say_nothing_at_debug(
    fails: bool, stores: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with outside(fails=fails) as base, watched(capsys) as seen:
        go_through(base)
    assert seen.leaks() == []


def test_libraries_would_say_it_if_they_were_let(
    stores: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the test before this one would prove nothing."""
    levels = {name: logging.getLogger(name).level for name in LIBRARIES}
    assert set(levels.values()) == {logging.WARNING}
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.NOTSET)
    try:
        with outside(fails=False) as base, watched(capsys) as seen:
            go_through(base)
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
    wheres = {leak.partition(":")[0].split(" ")[-1].split(".")[0] for leak in seen.leaks()}
    assert {"botocore", "httpcore", "httpx"} <= wheres


# --- the command line ----------------------------------------------------------------------------

LOCAL = {
    "page": "http://127.0.0.1:8080",
    "webhook": "http://127.0.0.1:8000",
    "numbers": {"twilio": OURS},
    "secrets": {"twilio": {"account_sid": "AC1", "auth_tokens": [TOKEN]}},
    "credentials": {"twilio": BASIC, "api": BEARER},
}


class FakeStores:
    """The local run, as far as `spillway text` looks at it."""

    def __init__(self, answer: Answers, items: list[dict[str, Any]]) -> None:
        self.page = LOCAL["page"]
        self.http = httpx.Client(transport=httpx.MockTransport(answer))
        self._items = items
        self._looks = 0

    def conversation(self, ours: str, theirs: str) -> list[dict[str, Any]]:
        self._looks += 1
        return self._items if self._looks > 1 else []

    def depths(self) -> dict[str, Depth]:
        return {"processing": Depth(1, 0, 0)}

    def close(self) -> None:
        self.http.close()


STORED = {"sk": "IN#1", "reasons": ["sender_not_a_number"], "archive_key": "k", "from": THEIRS}
UNKNOWN = {
    "sk": "OUT#1",
    "theirs": THEIRS,
    "parts": {"1": {"state": "unknown", "error": "read_timeout", "text": ANSWER}},
}
TAKEN = {"status": 200, "door": "signed", "id": "SM1"}


@pytest.mark.parametrize(
    ("arguments", "answer", "items", "shows"),
    [
        pytest.param(
            ["--from", THEIRS],
            answers(200, {"status": 403, "error": None, "from": THEIRS}),
            [],
            "403",
            id="the door refuses",
        ),
        pytest.param(
            ["--from", THEIRS],
            answers(200, {"status": None}),
            [],
            "could not be reached",
            id="no door",
        ),
        pytest.param(["--from", THEIRS], answers(500), [], "do not answer", id="no JSON"),
        pytest.param(
            ["--from", THEIRS], breaks(httpx.ConnectError), [], "do not answer", id="nobody there"
        ),
        pytest.param(["--from", f"{THEIRS}x"], answers(200), [], "--from: must", id="no number"),
        pytest.param(["--name", "pigeon"], answers(200), [], "--provider", id="no provider"),
        pytest.param(
            ["--from", THEIRS, "--wait", "0.1"],
            answers(200, TAKEN),
            [STORED],
            "No answer within",
            id="no answer",
        ),
        pytest.param(
            ["--from", THEIRS],
            answers(200, TAKEN),
            [STORED, UNKNOWN],
            "read_timeout",
            id="an unknown send",
        ),
    ],
)
@pytest.mark.parametrize("as_json", [False, True], ids=["for people", "as JSON"])
def test_the_command_line_shows_no_number_as_it_fails(
    arguments: list[str],
    answer: Answers,
    items: list[dict[str, Any]],
    shows: str,
    as_json: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ["--provider" if one == "--name" else one for one in arguments]
    monkeypatch.setattr(Folder, "running", lambda self: LOCAL)
    monkeypatch.setattr(text_module, "LocalStores", lambda local: FakeStores(answer, items))
    monkeypatch.setattr(
        sys, "argv", ["spillway", "text", TEXT, *arguments, *(["--json"] if as_json else [])]
    )
    with watched(capsys) as seen, pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert as_json or shows in " ".join(seen.everything().split())
    assert seen.leaks() == []


def test_a_burst_shows_no_number_as_it_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Folder, "running", lambda self: LOCAL)
    monkeypatch.setattr(
        burst_module, "run", lambda local, made, console: Count(9, 0, 3, refused=2, lost=1)
    )
    monkeypatch.setattr(sys, "argv", ["spillway", "burst", "--messages", "9"])
    with watched(capsys) as seen, pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert "refused by the door" in seen.everything()
    assert seen.leaks() == []

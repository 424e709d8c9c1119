"""Everybody who is not Spillway: the people who write, the providers who carry, the business's own
APIs, and the operator. None of them uses a line of chalicelib but its keyed hashes, which name
things in reports."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

import httpx

from chalicelib.attachments import LARGEST
from chalicelib.messages import Keys, MessageId
from tests.fakes import HASH_KEY, SECRETS
from tests.signing import TelnyxKey, api_event, twilio_event
from tests.simulation.functions import Function
from tests.simulation.runtime import Cloud
from tests.simulation.world import Task

KEYS = Keys(HASH_KEY)
NUMBERS = {"+14155550123": "twilio", "+14155550199": "telnyx"}
ACCOUNT = {"twilio": "AC" + "0" * 32, "telnyx": "org"}
HOURS = 3600.0
URL = "https://sms.example.com"  # of our webhooks, up to their path
STOP_TEXT = "you get no more"
HELP_TEXT = "help is near"
OPTED_OUT_CODES = ("21610", "40300")
INVALID_CODES = ("21211", "40310")

# What a text is, and what its answer will be.
PLAIN, LONG, SILENT, REFUSED = "plain", "long", "silent", "refused"
# (FICKLE: the reply API says something else each time; BROKEN: own code fails each time.)
FICKLE, BROKEN = "fickle", "broken"
STOP, START_AGAIN, HELP, YES = "stop", "start", "help", "yes"
GROUP, UNREADABLE, OUTGOING = "group", "unreadable", "outgoing"
EMPTY, HUGE, NAMED, IMPOSSIBLE = "empty", "huge", "named", "impossible"
NAMELESS = "nameless"
# What is wrong with a text, in our words; it is stored all the same.
INVALID = {
    EMPTY: ["empty"],
    HUGE: ["text_too_large"],
    NAMED: [],
    IMPOSSIBLE: ["sender_not_a_number"],
    NAMELESS: ["no_sender"],
}
SENDERS = {NAMED: "HERON", IMPOSSIBLE: "+1415555", NAMELESS: ""}
# What a text's picture is: it can be had, after a redirect or not; or it never can, in our words.
PICTURES = {
    "there": "",
    "redirected": "",
    "gone": "gone",
    "too large": "too_large",
    "a page": "wrong_type",
    "led astray": "refused_host",
}
# Nobody could answer these.
UNANSWERABLE = (GROUP, NAMED, NAMELESS)


@dataclass(eq=False)
class Text:
    """One message of the story: from a person to us, or (OUTGOING) from a client of ours."""

    name: str
    kind: str
    person: str
    ours: str
    at: float
    words: str
    poison: bool = False
    encoded: bool = False  # API Gateway hands over its body in Base64
    rejected: str = ""  # how the provider refuses every answer to it ...
    rejected_from: int = 1  # ... from this try on
    tries: int = 0
    picture: str = ""  # one of PICTURES, "" for none
    acknowledged: bool = False
    asked: int = 0  # how often the reply API was asked about it
    provider_id: str = field(init=False)
    id: MessageId = field(init=False)

    def move(self, ours: str, at: float) -> None:
        """Another number of ours, another time."""
        self.ours, self.at = ours, at
        self.__post_init__()

    def __post_init__(self) -> None:
        self.provider_id = f"in-{self.name}"
        source = (
            ("api", "api", self.name)
            if self.kind == OUTGOING
            else (self.provider, ACCOUNT[self.provider], self.provider_id)
        )
        self.id = MessageId(KEYS.conversation(self.ours, self.person), KEYS.message(*source))

    @property
    def provider(self) -> str:
        return NUMBERS[self.ours]

    @property
    def picture_at(self) -> str:
        """Where its provider has its picture."""
        if self.provider == "telnyx":
            return f"https://media.telnyx.com/{self.name}"
        return f"https://api.twilio.com/2010-04-01/Accounts/{ACCOUNT['twilio']}/{self.name}"

    @property
    def picture_itself(self) -> bytes:
        return f"the picture of {self.name} ".encode() * 2000


@dataclass(eq=False)
class Call:
    """Somebody says otherwise than by a text that they want our texts no more, or again, and a
    client of ours (or a person in charge, `by_hand`) hands it in, perhaps later."""

    name: str
    person: str
    event: Literal["stop", "start"]
    at: float  # when it is said
    handed_in: float
    timed: bool  # whether the client says when that was
    by_hand: bool
    acknowledged: bool = False
    ids: set[str] = field(default_factory=set)  # of the statements that it became

    @property
    def since(self) -> float:
        """No statement of it is of an earlier time."""
        return self.at if self.timed or self.by_hand else self.handed_in - 1


@dataclass(frozen=True)
class Accepted:
    """One text that a provider took from us, and will charge."""

    at: float
    provider: str
    id: str
    reference: str
    sender: str
    recipient: str
    words: str
    listed_at: float


class Door:
    """API Gateway before the receiver."""

    def __init__(self, cloud: Cloud, receiver: Function) -> None:
        self._cloud = cloud
        self._receiver = receiver
        self.surprises: list[BaseException] = []
        self.troubled = False  # whether something went wrong at the last post

    def post(self, path: str, event: dict[str, Any]) -> tuple[int, str]:
        """Status and body; (502, "") where the function died."""
        if path == "/messages":
            work: Callable[[Any, Any], Any] = lambda receiver, _: receiver.post_message(event)  # noqa: E731
        elif path == "/consent":
            work = lambda receiver, _: receiver.post_consent(event)  # noqa: E731
        elif path.startswith("/messages/"):
            work = lambda receiver, _: receiver.get_message(path.rpartition("/")[2])  # noqa: E731
        else:
            name = event["pathParameters"]["provider"]
            work = lambda receiver, _: receiver.webhook(name, event, signed_door=True)  # noqa: E731
        invocation = self._receiver.invoke(work)
        if invocation.error is not None and not may_happen(invocation.error):
            self.surprises.append(invocation.error)
        # (What a function of ours suffers is not its caller's fault.)
        self.troubled = invocation.died or invocation.troubled_at >= invocation.began
        if invocation.died:
            return 502, ""
        return invocation.value.status, invocation.value.body


class Outside:
    """All of them, on one world."""

    def __init__(self, cloud: Cloud, door: Door) -> None:
        self.world = cloud.world
        self.cloud = cloud
        self.door = door
        self.texts: dict[str, Text] = {}  # by message id
        self.calls: list[Call] = []
        self.accepted: list[Accepted] = []
        self.on_accepted: Callable[[Task, Accepted], None] = lambda task, accepted: None
        self.on_provider: Callable[[Task, str], None] = lambda task, reference: None
        self.calls_of: dict[str, int] = defaultdict(int)
        self._answers: dict[str, tuple[bytes, httpx.Response]] = {}  # Telnyx, by key
        self.receipts_fail = 0.0  # how likely a receipt is never told
        self.receipts_from = 0.0  # seconds that a receipt takes at least ...
        self.receipts_after = 8.0  # ... and at most, besides
        self.mismatches = 0.0  # how likely Telnyx does not recognise a repeated request
        self.doubles = 0.0  # how likely a provider tells of a text twice
        # What providers answered, and we heard: mismatches by reference, refusals by text.
        self.mismatched: set[str] = set()
        self.refused: set[str] = set()
        self._receipts_double = self.world.random.choice((0.0, 0.1, 0.5))
        self._receipts_early = self.world.chance(0.3)
        self._undelivered = self.world.random.choice((0.0, 0.0, 0.2))
        # Whether the carriers say of what they do not deliver that nobody wants it.
        self._unwanted = self.world.chance(0.2)
        self.unwanted: set[str] = set()  # people of whom they said so, and we acknowledged it
        self.unwanted_at_all: set[str] = set()
        self._slow_list = self.world.random.choice((0.0, 5.0, 120.0))
        self.token = SECRETS["twilio"]["auth_tokens"][0]  # what Twilio signs with, and expects
        # By reference: what providers said, and we acknowledged.
        self.told: dict[str, list[str]] = defaultdict(list)
        self.rotated_at = float("-inf")
        self.lost: set[str] = set()  # providers whose secret is gone
        self.pictures_gone = False  # as after a month, or a year: nobody has them any more
        self.robot = ""
        self.mended = False  # the bug in the adopter's own function
        self._robots_left = 12
        cloud.network = self._serve

    # -- webhooks ---------------------------------------------------------------------------------

    def write(self, text: Text) -> None:
        """A person's text reaches its provider now, which tells us, several times if need be."""
        self.texts[str(text.id)] = text
        world = self.world
        repeats = (0.0, 0.5, 20.0, 180.0)
        if world.chance(self.doubles):
            # Twice at once; minutes later; the next day.
            after = world.random.choice((0.0, 0.01, 90.0, 400.0, 22 * HOURS))
            world.spawn(lambda: self._tell(text), after=after)
        for pause in repeats:
            world.sleep(pause)
            if self._tell(text):
                return

    def _tell(self, text: Text) -> bool:
        if text.kind == OUTGOING:
            body = {"to": text.person, "from": text.ours, "text": text.words}
            headers = {"Content-Type": "application/json", "Idempotency-Key": text.name}
            event = api_event("POST", "/messages", json.dumps(body), headers, principal="api")
            status, answer = self.door.post("/messages", event)
            good = status == 202 and json.loads(answer)["id"] == str(text.id)
        else:
            event = _inbound(text, self.world.now, self.token)
            if text.encoded:
                # (Some hand it over as bytes.)
                raw = base64.b64encode(event["body"].encode())
                either = raw if self.world.chance(0.5) else raw.decode()
                event = {**event, "body": either, "isBase64Encoded": True}
            began = self.world.now
            status, _ = self.door.post(f"/webhooks/{text.provider}/signed", event)
            good = status == 200
            if status == 403 and text.provider == "twilio" and self._just_rotated(began):
                return False
        self.world.note("door", f"{text.name} ({text.kind}): {status}")
        if 400 <= status < 500:
            raise AssertionError(f"a good request of {text.name} was answered {status}")
        text.acknowledged = text.acknowledged or good
        return good

    def state(self, call: Call) -> None:
        """A client of ours hands in what somebody said, again until it is taken."""
        self.calls.append(call)
        said: dict[str, Any] = {"number": call.person, "event": call.event, "source": "telephone"}
        if call.timed:
            said |= {"at": call.at, "note": call.name}
        for pause in (0.0, 0.5, 20.0, 180.0):
            self.world.sleep(pause)
            event = api_event("POST", "/consent", json.dumps(said), {}, principal="api")
            status, answer = self.door.post("/consent", event)
            self.world.note("door", f"{call.name} ({call.event} by {call.person}): {status}")
            if 400 <= status < 500:
                raise AssertionError(f"a good statement of {call.name} was answered {status}")
            if status == 202:
                call.ids.add(json.loads(answer)["id"])
                call.acknowledged = True
                if not self.world.chance(0.2):
                    return

    def probe(self, provider: str, door: Door) -> bool:
        """Whether a text gets in. (It is nobody's in this story: it is to a group.)"""
        ours = next(number for number, name in NUMBERS.items() if name == provider)
        text = Text(f"probe-{provider}", GROUP, "+14155550108", ours, self.world.now, "x")
        self.texts[str(text.id)] = text
        event = _inbound(text, self.world.now, self.token)
        return door.post(f"/webhooks/{provider}/signed", event)[0] == 200

    def knock(self) -> None:
        """What nobody may get in with, and what no client may ask for."""
        text = Text("x0", PLAIN, "+14155550109", self.world.random.choice(list(NUMBERS)), 0, "x")
        event = _inbound(text, self.world.now, self.token)
        forged = self.world.random.choice(("unsigned", "altered", "other key"))
        if forged == "altered":
            event["body"] += " "
        for name in list(event["multiValueHeaders"]):
            if "signature" in name.lower() and forged != "altered":
                event["multiValueHeaders"][name] = [] if forged == "unsigned" else ["c2VjcmV0"]
        path = f"/webhooks/{text.provider}/signed"
        if text.provider not in self.lost:
            self._refused_with(403, path, event)
        good = {"to": text.person, "from": text.ours, "text": "x"}
        wrong = self.world.random.choice(
            (
                {**good, "to": "nobody"},
                {**good, "from": "+14155550111"},
                {**good, "text": " "},
                {**good, "text": 1},
                {**good, "media": "x"},
                {**good, "media": ["ftp://example.com"]},
                {**good, "strange": 1},
                [good],
            )
        )
        if text.provider not in self.lost:
            # A receipt of something that another system of this account sent.
            sent = Accepted(0.0, text.provider, "out-x", "", text.ours, text.person, "x", 0.0)
            receipt = _receipt(sent, "delivered", False, self.world.now, self.token)
            began = self.world.now
            status, _ = self.door.post(path, receipt)
            rotated = status == 403 and self._just_rotated(began)
            if status != 200 and not self.door.troubled and not rotated:
                raise AssertionError(f"a receipt of another system's was answered {status}")
        headers = {"Idempotency-Key": "x1"}
        self._refused_with(
            400, "/messages", api_event("POST", "/messages", json.dumps(wrong), headers)
        )
        self._refused_with(400, "/messages", api_event("POST", "/messages", json.dumps(good), {}))
        self._refused_with(404, "/messages/x", {})
        said = {"number": text.person, "event": "stop", "source": "telephone"}
        wrong = self.world.random.choice(
            (
                {**said, "number": "nobody"},
                {**said, "event": "help"},
                {**said, "event": "start"},
                {**said, "at": self.world.now + 100},
                {**said, "source": ""},
                {**said, "strange": 1},
            )
        )
        self._refused_with(400, "/consent", api_event("POST", "/consent", json.dumps(wrong), {}))

    def _refused_with(self, expected: int, path: str, event: dict[str, Any]) -> None:
        status, _ = self.door.post(path, event)
        # (Where a function dies or a store fails it is our fault, and nobody else's.)
        if status != expected and not (self.door.troubled and status in (502, 503)):
            raise AssertionError(f"{path}: a bad request was answered {status}")

    def rotate(self) -> None:
        """Twilio's token is changed, in the vault and then at Twilio."""
        self.world.note("operator", "changes Twilio's token")
        new = f"the tests' token of {self.world.now}"
        secret = {**SECRETS["twilio"], "auth_tokens": [new]}
        self.cloud.stores["secretsmanager"].put("spillway/test/twilio", secret)
        self.token, self.rotated_at = new, self.world.now
        for _ in range(4):
            self.world.spawn(self.knock, after=10 * self.world.random.random())

    def mend(self) -> None:
        """The adopter's own function has no bug any more."""
        self.world.note("operator", "mends the reply function")
        self.mended = True

    def lose_secret(self, provider: str) -> None:
        """A provider's secret is deleted by mistake, and nobody notices."""
        self.world.note("operator", f"deletes {provider}'s secret")
        self.cloud.stores["secretsmanager"].remove(f"spillway/test/{provider}")
        self.lost.add(provider)

    def _just_rotated(self, began: float) -> bool:
        """A request is signed, on its way or repeated while the token changes; and only one look
        in two seconds is taken at the vault."""
        return began - 3 < self.rotated_at <= self.world.now or began < self.rotated_at + 3

    # -- the network ------------------------------------------------------------------------------

    def _serve(self, task: Task, request: httpx.Request) -> httpx.Response:
        self.calls_of[request.url.host] += 1
        if request.url.host == "replies.example.com":
            return self._reply(task, request)
        if request.url.host == "lookups.example.com":
            return self._look_up(task, request)
        if request.url.host in ("mms.twiliocdn.com", "media.telnyx.com"):
            if "Authorization" in request.headers:
                raise AssertionError("credentials are shown to a stranger")
            return self._show(request)
        if request.url.host not in ("api.twilio.com", "api.telnyx.com"):
            raise AssertionError(f"a stranger is asked: {request.url.host}")
        if request.url.host == "api.twilio.com":
            basic = request.headers["Authorization"].removeprefix("Basic ")
            if base64.b64decode(basic).decode().partition(":")[2] != self.token:
                return httpx.Response(401, json={"code": 20003})
            if request.method == "GET" and "Messages" not in request.url.path:
                return self._show(request)
            if request.method == "GET":
                return self._list(request)
            form = dict(parse_qsl(request.content.decode(), keep_blank_values=True))
            return self._take_twilio(task, form)
        return self._take_telnyx(task, request)

    def _reply(self, task: Task, request: httpx.Request) -> httpx.Response:
        text = self.texts[json.loads(request.content)["id"]]
        self._poison(text, task)
        text.asked += 1
        if text.kind == SILENT:
            return httpx.Response(204)
        if text.kind == REFUSED:
            return httpx.Response(422)
        if text.kind == FICKLE and self.world.chance(0.6):
            return httpx.Response(self.world.random.choice((204, 422)))
        return httpx.Response(200, json={"texts": _words(text)})

    def own_reply(self, message: Any) -> list[str] | None:
        """The adopter's own function, where there is no reply API."""
        (text,) = (t for t in self.texts.values() if t.provider_id == message.id)
        text.asked += 1
        if text.kind == BROKEN and not self.mended:
            raise OwnCodeBroke
        return None if text.kind == SILENT else _words(text)

    def _look_up(self, task: Task, request: httpx.Request) -> httpx.Response:
        text = self.texts[json.loads(request.content)["id"]]
        self._poison(text, task)
        return httpx.Response(200, json={"line_type": "mobile", "country": "US"})

    def _show(self, request: httpx.Request) -> httpx.Response:
        """A picture, as its provider has it."""
        name = request.url.path.rpartition("/")[2]
        (text,) = (one for one in self.texts.values() if one.name == name)
        headers = {"Content-Type": "text/html" if text.picture == "a page" else "image/jpeg"}
        if text.picture == "gone" or self.pictures_gone:
            return httpx.Response(404)
        if text.picture == "led astray":
            return httpx.Response(302, headers={"Location": "http://169.254.169.254/latest"})
        if text.picture == "redirected" and request.url.host == "api.twilio.com":
            headers = {"Location": f"https://mms.twiliocdn.com/{name}?Signature=x"}
            return httpx.Response(307, headers=headers)
        body = bytes(LARGEST + 1) if text.picture == "too large" else text.picture_itself
        return httpx.Response(200, headers=headers, content=body)

    def _poison(self, text: Text, task: Task) -> None:
        """What this text makes of our code: it takes the whole process with it, until mended."""
        if text.poison:
            self.world.note(task.process.name, f"{text.name} is poison")
            task.process.poisoned = True
            self.world.kill(task.process)

    def _take_twilio(self, task: Task, form: dict[str, str]) -> httpx.Response:
        callback = form["StatusCallback"].partition("#")[0]
        if code := self._refusal(callback):
            return _refused({"code": int(code), "message": form["To"]}, self.refused, callback)
        accepted = self._accept(task, "twilio", form["From"], form["To"], form["Body"], callback)
        return httpx.Response(201, json={"sid": accepted.id, "status": "queued"})

    def _take_telnyx(self, task: Task, request: httpx.Request) -> httpx.Response:
        key, body = request.headers["Idempotency-Key"], request.content
        if key in self._answers:
            first, answer = self._answers[key]
            if first != body or self.world.chance(self.mismatches):
                return httpx.Response(
                    422,
                    json={"errors": [{"code": "10027"}]},
                    extensions={"means": (self.mismatched, key)},
                )
            return httpx.Response(answer.status_code, content=answer.content)
        message = json.loads(body)
        if code := self._refusal(message["webhook_url"]):
            errors = {"errors": [{"code": code}]}
            return _refused(errors, self.refused, message["webhook_url"])
        accepted = self._accept(
            task, "telnyx", message["from"], message["to"], message["text"], message["webhook_url"]
        )
        answer = httpx.Response(200, json={"data": {"id": accepted.id}})
        self._answers[key] = (body, answer)
        return httpx.Response(200, content=answer.content)

    def _refusal(self, callback: str) -> str:
        text = self.texts.get(_reference(callback).rpartition("-")[0])
        if text is None or not text.rejected:
            return ""
        text.tries += 1
        return text.rejected if text.tries >= text.rejected_from else ""

    def _accept(
        self, task: Task, provider: str, sender: str, recipient: str, words: str, callback: str
    ) -> Accepted:
        world = self.world
        base = f"{URL}/webhooks/{provider}/signed?reference="
        if not callback.startswith(base):
            raise AssertionError("receipts have nowhere to go")
        number = len(self.accepted)
        accepted = Accepted(
            world.now,
            provider,
            f"out-{number}",
            _reference(callback),
            sender,
            recipient,
            words,
            world.now + self._slow_list * world.random.random(),
        )
        self.accepted.append(accepted)
        self.on_accepted(task, accepted)
        self._answer_back(accepted)
        early = self.receipts_from + (0.0 if self._receipts_early else 0.3)
        story = ["queued", "sent", "delivered"]
        if world.chance(self._undelivered):
            story[2] = "undelivered"
        elif world.chance(0.1):
            story.append("undelivered")  # a provider that changes its mind: too late
        for step, status in enumerate(story):
            if world.chance(self.receipts_fail):
                continue
            copies = 2 if world.chance(self._receipts_double) else 1
            for _ in range(copies):
                after = early + (step + 1) * self.receipts_after * world.random.random() ** 3
                world.spawn(
                    lambda status=status: self._tell_receipt(accepted, status, callback),  # type: ignore[misc]
                    after=after,
                )
        return accepted

    def _answer_back(self, accepted: Accepted) -> None:
        """A robot answers whatever it gets."""
        if accepted.recipient != self.robot or self._robots_left <= 0 or self.cloud.faults.calm:
            return
        self._robots_left -= 1
        name = f"r{self._robots_left}"
        ours = accepted.sender
        at = self.world.now + 2.0
        text = Text(name, PLAIN, accepted.recipient, ours, at, f"{name} beep")
        self.world.spawn(lambda: self.write(text), after=2.0)

    def _list(self, request: httpx.Request) -> httpx.Response:
        query = dict(request.url.params)
        found = [
            {
                "sid": one.id,
                "to": one.recipient,
                "from": one.sender,
                "body": one.words,
                "direction": "outbound-api",
                "date_created": format_datetime(datetime.fromtimestamp(int(one.at), UTC)),
            }
            for one in reversed(self.accepted)
            if one.provider == "twilio"
            and (one.recipient, one.sender) == (query["To"], query["From"])
            and one.listed_at <= self.world.now
        ]
        return httpx.Response(200, json={"messages": found, "next_page_uri": None})

    def _tell_receipt(self, accepted: Accepted, status: str, callback: str) -> None:
        for pause in (0.0, 1.0, 30.0):
            self.world.sleep(pause)
            event = _receipt(accepted, status, self._unwanted, self.world.now, self.token)
            if status == "undelivered" and self._unwanted:
                self.unwanted_at_all.add(accepted.recipient)
            began = self.world.now
            code, _ = self.door.post(f"/webhooks/{accepted.provider}/signed", event)
            self.world.note("door", f"receipt {status} of {accepted.reference}: {code}")
            if code == 403 and accepted.provider == "twilio" and self._just_rotated(began):
                continue
            if 400 <= code < 500:
                raise AssertionError(f"a good receipt was answered {code}")
            if code == 200:
                self.told[accepted.reference].append(status)
                if status == "undelivered" and self._unwanted:
                    self.unwanted.add(accepted.recipient)
                return


class OwnCodeBroke(Exception):
    """A bug of the adopter's."""


def _refused(answer: dict[str, Any], those: set[str], callback: str) -> httpx.Response:
    means = {"means": (those, _reference(callback))}
    return httpx.Response(400, json=answer, extensions=means)


def _words(text: Text) -> list[str]:
    """Other words each time: what was stored first is what may be sent."""
    return [f"{text.name} v{text.asked} p{n}" for n in range(1, 4 if text.kind == LONG else 2)]


def objects(s3: Any) -> Iterator[tuple[str, bytes]]:
    """Everything in the archive: key and body."""
    bucket = f"spillway-test-archive-123456789012-{s3.meta.region_name}"
    for one in s3.list_objects_v2(Bucket=bucket).get("Contents", []):
        answer = s3.get_object(Bucket=bucket, Key=one["Key"])
        yield one["Key"], answer["Body"].read()


def quarantined(body: bytes) -> str:
    """The payload in an object of the quarantine."""
    return base64.b64decode(json.loads(body)["body"]).decode()


def _reference(callback: str) -> str:
    return dict(parse_qsl(urlsplit(callback).query)).get("reference", "")


def may_happen(error: BaseException) -> bool:
    """What may leave a function's start: then Lambda starts it anew."""
    from botocore.exceptions import BotoCoreError, ClientError

    from chalicelib.runtime import NotReady

    return isinstance(error, (BotoCoreError, ClientError, NotReady))


def _inbound(text: Text, now: float, token: str) -> dict[str, Any]:
    if text.provider == "twilio":
        fields = {"MessageSid": text.provider_id, "From": text.person, "To": text.ours}
        if text.kind == NAMELESS:
            fields["From"] = ""
        if text.kind == UNREADABLE:
            return twilio_event({"SmsStatus": text.provider_id}, token=token)
        if text.kind == STOP and len(text.name) % 2:
            fields["OptOutType"] = "STOP"
        if text.picture:
            fields["MediaUrl0"], fields["MediaContentType0"] = text.picture_at, "image/jpeg"
        return twilio_event({**fields, "Body": text.words}, token=token)
    payload = {
        "id": text.provider_id,
        "direction": "inbound",
        "from": {"phone_number": text.person},
        "to": [{"phone_number": text.ours}],
        "text": text.words,
        "organization_id": ACCOUNT["telnyx"],
        "received_at": datetime.fromtimestamp(text.at, UTC).isoformat(),
    }
    if text.picture:
        payload["media"] = [{"url": text.picture_at, "content_type": "image/jpeg"}]
    if text.kind == GROUP:
        payload["to"] = [{"phone_number": text.ours}, {"phone_number": "+14155550177"}]
    if text.kind == UNREADABLE:
        payload["from"] = text.provider_id
    event = {"id": "e1", "event_type": "message.received", "payload": payload}
    return _telnyx_event({"data": event}, now)


def _receipt(
    accepted: Accepted, status: str, unwanted: bool, now: float, token: str
) -> dict[str, Any]:
    codes = {"twilio": ("30003", "21610"), "telnyx": ("40001", "40300")}
    code = codes[accepted.provider][unwanted] if status == "undelivered" else ""
    if accepted.provider == "twilio":
        fields = {"MessageSid": accepted.id, "MessageStatus": status}
        if code:
            fields["ErrorCode"] = code
        return twilio_event(fields, reference=accepted.reference, token=token)
    word = "delivery_failed" if status == "undelivered" else status
    payload: dict[str, Any] = {
        "id": accepted.id,
        "direction": "outbound",
        "to": [{"phone_number": accepted.recipient, "status": word}],
        "errors": [{"code": code}] if code else [],
    }
    event = {
        "event_type": "message.finalized",
        "occurred_at": datetime.fromtimestamp(now, UTC).isoformat(),
        "payload": payload,
    }
    return _telnyx_event({"data": event}, now, reference=accepted.reference)


def _telnyx_event(payload: dict[str, Any], now: float, reference: str = "") -> dict[str, Any]:
    body = json.dumps(payload)
    signature = TelnyxKey.private.sign(f"{int(now)}|{body}".encode())
    return api_event(
        "POST",
        "/webhooks/telnyx/signed",
        body,
        {
            "Content-Type": "application/json",
            "telnyx-signature-ed25519": base64.b64encode(signature).decode(),
            "telnyx-timestamp": str(int(now)),
        },
        resource="/webhooks/{provider}/signed",
        parameters={"provider": "telnyx"},
        query={"reference": [reference]} if reference else None,
    )

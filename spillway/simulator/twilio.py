"""A simulated Twilio: its Messages API, and webhooks with its signatures and credentials.

https://www.twilio.com/docs/messaging/api/message-resource for the API,
https://www.twilio.com/docs/usage/security for signatures and Basic credentials,
https://www.twilio.com/docs/usage/webhooks/webhooks-connection-overrides for time-outs and retries.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import re
import secrets as entropy
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import islice
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

import httpx
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from spillway.simulator.carrier import (
    Carrier,
    Delivery,
    Door,
    Media,
    Text,
    Unanswered,
    Webhook,
    World,
    is_web_address,
    post,
    status,
)
from spillway.simulator.segments import segments
from spillway.simulator.web import CutConnection, Json, NoAnswer

Fields = Sequence[tuple[str, str]]

# What our README tells users to add to the address of their webhook. Without it Twilio tries again
# only where there was no connection.
_OVERRIDES = "#rc=3&rp=5xx,ct,rt"

_TIMEOUT = httpx.Timeout(15.0, connect=5.0, pool=None)
_FIRST_PAUSE = 0.2

# https://www.twilio.com/docs/api/errors
_ERRORS = {
    20001: (400, "A filter is not valid"),
    20003: (401, "Authenticate"),
    20404: (404, "The requested resource was not found"),
    20429: (429, "Too Many Requests"),
    20500: (500, "An internal server error has occurred"),
    21211: (400, "Invalid 'To' Phone Number"),
    21212: (400, "Invalid 'From' Phone Number"),
    21602: (400, "Message body is required"),
    21603: (400, "A 'From' phone number is required"),
    21604: (400, "A 'To' phone number is required"),
    21609: (400, "The 'StatusCallback' URL is not a valid URL"),
    21610: (400, "Attempt to send to unsubscribed recipient"),
    21612: (400, "Message cannot be sent with the current combination of 'To' and 'From'"),
    21617: (400, "The concatenated message body exceeds the 1600 character limit"),
    21620: (400, "Invalid media URL(s)"),
    21623: (400, "Number of media files exceeds allowed limit"),
}
_FAILURES = {"throttled": 20429, "server_error": 20500, "rejected": 21612}

# A single word only: "STOP PLEASE" does not block.
_STOP = {"STOP", "STOPALL", "UNSUBSCRIBE", "CANCEL", "END", "QUIT", "REVOKE", "OPTOUT"}
_START = {"START", "YES", "UNSTOP"}

_E164 = re.compile(r"\+[1-9][0-9]{6,14}", re.ASCII)
_SHORT_CODE = re.compile(r"[0-9]{3,8}", re.ASCII)
_SENDER_ID = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9 &_+-]{1,11}", re.ASCII)


def new_id(media: Sized = ()) -> str:
    return ("MM" if media else "SM") + entropy.token_hex(16)


def signature(token: str, url: str, fields: Fields) -> str:
    """X-Twilio-Signature: HMAC-SHA1 over the URL and each distinct name with value, sorted."""
    signed = url + "".join(name + value for name, value in sorted(set(fields)))
    digest = hmac.new(token.encode(), signed.encode(), hashlib.sha1).digest()
    return base64.b64encode(digest).decode()


def inbound(
    *,
    webhook: str,
    secrets: Mapping[str, Any],
    sender: str,
    recipient: str,
    text: str,
    id: str,  # noqa: A002
    now: float,
    media: Media = (),
    door: Door = "basic",
) -> Webhook:
    """The webhook of a text from a person, signed with the newest auth token.

    `webhook` is the base URL of Spillway. Twilio's webhooks carry no time: `now` is there because
    Telnyx's do. At the basic door the caller adds the Authorization header.
    """
    url = f"{webhook}/webhooks/twilio" + ("/signed" if door == "signed" else "")
    fields = [
        ("ToCountry", "US"),
        ("ToState", ""),
        ("SmsMessageSid", id),
        ("NumMedia", str(len(media))),
        ("ToCity", ""),
        ("FromZip", ""),
        ("SmsSid", id),
        ("FromState", ""),
        ("SmsStatus", "received"),
        ("FromCity", ""),
        ("Body", text),
        ("FromCountry", "US"),
        ("To", recipient),
        ("ToZip", ""),
        ("NumSegments", str(segments(text)[1])),
        ("MessageSid", id),
        ("AccountSid", secrets["account_sid"]),
        ("From", sender),
        ("ApiVersion", "2010-04-01"),
    ]
    for number, one in enumerate(media):
        fields.append((f"MediaContentType{number}", one["content_type"]))
        fields.append((f"MediaUrl{number}", one["url"]))
    return _signed(secrets, url, fields)


def _signed(secrets: Mapping[str, Any], url: str, fields: Fields) -> Webhook:
    # A form is UTF-8: what has no form in it (a lone surrogate) becomes a question mark.
    fields = [(name, value.encode("utf-8", "replace").decode()) for name, value in fields]
    headers = {
        "Content-Type": "application/x-www-form-urlencoded; charset=UTF-8",
        "X-Twilio-Signature": signature(secrets["auth_tokens"][0], url, fields),
        "User-Agent": "TwilioProxy/1.1",
    }
    return url, headers, urlencode(fields).encode("ascii")


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a webhook as Twilio's customers configure it, taken apart.

    Credentials and connection overrides are part of the configured address and neither requested
    nor signed. `retries` and `policies` are the overrides rc and rp.
    """

    url: str
    credentials: str
    retries: int
    policies: frozenset[str]

    @classmethod
    def parse(cls, configured: str) -> Address:
        parts = urlsplit(configured)
        userinfo, _, host = parts.netloc.rpartition("@")
        overrides = parse_qs(parts.fragment)
        retries = overrides.get("rc", ["1"])[0]
        return cls(
            url=parts._replace(netloc=host, fragment="").geturl(),
            credentials=unquote(userinfo),
            retries=min(int(retries), 5) if retries.isascii() and retries.isdigit() else 1,
            policies=frozenset(overrides.get("rp", ["ct"])[0].split(",")),
        )

    def wants_another_try(self, outcome: httpx.Response | Unanswered) -> bool:
        if outcome == "not_connected":
            policy = "ct"
        elif outcome == "not_read":
            policy = "rt"
        else:
            assert isinstance(outcome, httpx.Response)
            policy = f"{outcome.status_code // 100}xx"
        return policy in self.policies or ("all" in self.policies and policy not in ("2xx", "3xx"))


@dataclass(frozen=True, slots=True)
class Message:
    """A message resource, either direction. `number` counts from 0; `media` has the content type of
    each attachment; `at` is in whole seconds, as Twilio's times are."""

    number: int
    sid: str
    outbound: bool
    sender: str
    recipient: str
    body: str
    media: tuple[str, ...]
    at: int


class Twilio(Carrier):
    """The account and its messages."""

    name = "twilio"
    doors = ("basic", "signed")

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._account = self.secrets["account_sid"]
        self._messages: list[Message] = []
        self._messages_of: dict[str, list[Message]] = {}
        self._received: set[str] = set()
        # Of our number and theirs: Twilio blocks for each number by itself.
        self._opted_out: set[tuple[str, str]] = set()

    def routes(self) -> list[Route]:
        path = "/2010-04-01/Accounts/{sid}/Messages.json"
        return [
            Route(path, self.send, methods=["POST"]),
            Route(path, self.list_messages, methods=["GET"]),
            Route(path.replace(".json", "/{message}/Media.json"), self.list_media, methods=["GET"]),
            Route(path.replace(".json", "/{message}/Media/{media}"), self.media, methods=["GET"]),
            Route("/cdn/{picture}", self.show, methods=["GET"]),
        ]

    def new_id(self, media: Media) -> str:
        return new_id(media)

    def keep(self, text_id: str, number: int, content_type: str, content: bytes) -> str:
        self._pictures[_picture(text_id, f"ME{number:032x}")] = (content_type, content)
        return f"{self._path.removesuffix('.json')}/{quote(text_id, safe='')}/Media/ME{number:032x}"

    # Texts from people

    async def deliver(self, text: Text) -> Delivery:
        self._note(text)
        webhook = self.world.configuration.webhook
        url, headers, body = inbound(
            webhook=webhook,
            secrets=self.secrets,
            sender=text.sender,
            recipient=text.recipient,
            text=text.text,
            id=text.id,
            now=self.world.now(),
            media=text.media,
            door=text.door,
        )
        credentials = self.world.configuration.credentials["twilio"]
        overrides = Address.parse(_OVERRIDES)
        address = Address(
            url=url,
            credentials=credentials if text.door == "basic" else "",
            retries=overrides.retries,
            policies=overrides.policies,
        )
        return await self._post(address, (url, headers, body))

    def _note(self, text: Text) -> None:
        word = text.text.strip().upper()
        if word in _STOP:
            self._opted_out.add((text.recipient, text.sender))
        elif word in _START:
            self._opted_out.discard((text.recipient, text.sender))
        if text.id not in self._received:
            self._received.add(text.id)
            self._keep(
                text.id,
                outbound=False,
                sender=text.sender,
                recipient=text.recipient,
                body=text.text,
                media=tuple(one["content_type"] for one in text.media),
            )

    async def _post(self, address: Address, webhook: Webhook) -> Delivery:
        url, headers, body = webhook
        requests = 0
        for attempt in range(1 + address.retries):
            if attempt:
                await asyncio.sleep(_FIRST_PAUSE * 2 ** (attempt - 1))
                headers.setdefault("I-Twilio-Idempotency-Token", entropy.token_hex(16))
            outcome = await post(self.world.http, (url, headers, body), _TIMEOUT)
            requests += 1
            # Credentials are kept back until the server asks for them.
            if address.credentials and _is_challenge(outcome):
                known = {**headers, "Authorization": basic_credentials(address.credentials)}
                outcome = await post(self.world.http, (url, known, body), _TIMEOUT)
                requests += 1
            if not address.wants_another_try(outcome):
                break
        return Delivery(status(outcome), requests)

    # The Messages API

    async def send(self, request: Request) -> Response:
        if not self._authentic(request):
            return _error(20003)
        behaviour = self.behaviour
        body = await request.body()
        # What is in is worked on, whether the client is still there by then or not.
        await asyncio.sleep(behaviour.delay)
        form = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
        one = {name: values[0] for name, values in form.items()}
        media = form.get("MediaUrl", [])
        if error := _FAILURES.get(behaviour.fail or "") or self._refusal(one, media):
            return _error(error, behaviour.retry_after)
        message = self._keep(
            new_id(media),
            outbound=True,
            sender=one["From"],
            recipient=one["To"],
            body=one.get("Body", ""),
            media=("",) * len(media),
        )
        callback = one.get("StatusCallback", "")
        self.accept(
            id=message.sid,
            sender=message.sender,
            recipient=message.recipient,
            text=message.body,
            media=media,
            callback=callback,
        )
        if callback and behaviour.receipts:
            self.world.receipts.post(lambda: self._post_receipts(Address.parse(callback), message))
        if behaviour.fail == "lost_answer":
            return CutConnection()
        if behaviour.fail == "no_answer":
            return NoAnswer()
        if behaviour.fail == "failed_answer":
            return _error(20500)
        return Json({**self._resource(message), "status": "queued", "date_sent": None}, 201)

    def _refusal(self, form: Mapping[str, str], media: Sequence[str]) -> int | None:
        """The error that Twilio answers, or None where it accepts."""
        ours, theirs, body = form.get("From", ""), form.get("To", ""), form.get("Body", "")
        callback = form.get("StatusCallback", "")
        checks = (
            (not theirs, 21604),
            (not (_E164.fullmatch(theirs) or _SHORT_CODE.fullmatch(theirs)), 21211),
            (not ours, 21603),
            (ours.startswith("+") and not _E164.fullmatch(ours), 21212),
            (not any(p.fullmatch(ours) for p in (_E164, _SHORT_CODE, _SENDER_ID)), 21212),
            (not body and not media, 21602),
            (len(body.encode("utf-16-le")) > 2 * 1600, 21617),
            (len(media) > 10, 21623),
            (not all(is_web_address(url) for url in media), 21620),
            (bool(callback) and not is_web_address(callback), 21609),
            ((ours, theirs) in self._opted_out, 21610),
        )
        return next((code for wrong, code in checks if wrong), None)

    async def _post_receipts(self, address: Address, message: Message) -> bool:
        taken = True
        for word in ("sent", "delivered"):
            fields = [
                ("ApiVersion", "2010-04-01"),
                ("MessageStatus", word),
                ("SmsSid", message.sid),
                ("SmsStatus", word),
                ("To", message.recipient),
                ("From", message.sender),
                ("MessageSid", message.sid),
                ("AccountSid", self._account),
            ]
            delivery = await self._post(address, _signed(self.secrets, address.url, fields))
            taken = taken and delivery.taken
        return taken

    async def list_messages(self, request: Request) -> Response:
        """Newest first. Paged by what was seen last: newer messages do not shift a page."""
        if not self._authentic(request):
            return _error(20003)
        query = dict(request.query_params)
        try:
            size = min(int(query.get("PageSize", "50")), 1000)
            page = int(query.get("Page", "0"))
            last_seen = query.get("PageToken", "").removeprefix("PA")
            before = int(last_seen) if last_seen else len(self._messages)
            found = list(islice(self._matching(query, before), size + 1))
        except ValueError:
            return _error(20001)
        following = None
        if len(found) > size >= 1:
            token = {"Page": str(page + 1), "PageToken": f"PA{found[size - 1].number}"}
            following = f"{self._path}?{urlencode({**query, 'PageSize': str(size), **token})}"
        return Json(
            {
                "messages": [self._resource(message) for message in found[:size]],
                "page": page,
                "page_size": size,
                "start": page * size,
                "end": page * size + max(len(found[:size]) - 1, 0),
                "uri": f"{self._path}?{request.url.query}",
                "first_page_uri": f"{self._path}?PageSize={size}&Page=0",
                "next_page_uri": following,
                "previous_page_uri": None,
            }
        )

    async def list_media(self, request: Request) -> Response:
        """The attachments of a message. https://www.twilio.com/docs/messaging/api/media-resource"""
        if not self._authentic(request):
            return _error(20003)
        sid = request.path_params["message"]
        message = next((one for one in self._messages if one.sid == sid), None)
        if message is None:
            return _error(20404)
        path = f"{self._path.removesuffix('.json')}/{sid}/Media"
        found = [
            {
                "account_sid": self._account,
                "content_type": content_type,
                "parent_sid": sid,
                "sid": f"ME{number:032x}",
                "uri": f"{path}/ME{number:032x}.json",
            }
            for number, content_type in enumerate(message.media)
        ]
        return Json({"media_list": found, "next_page_uri": None})

    async def media(self, request: Request) -> Response:
        """Redirects whoever shows credentials, as where an account enforces them, to an address
        that needs none. https://help.twilio.com/articles/223183748"""
        if not self._authentic(request):
            return _error(20003)
        name = _picture(request.path_params["message"], request.path_params["media"])
        if name not in self._pictures:
            return _error(20404)
        elsewhere = f"{request.scope['root_path']}/cdn/{name}"
        return Response(status_code=307, headers={"Location": elsewhere})

    def _matching(self, query: Mapping[str, str], before: int) -> Iterator[Message]:
        """The messages that a query asks for, newest first. Raises ValueError for a bad date."""
        earliest = _moment(query["DateSent>"]) if "DateSent>" in query else 0
        latest = _moment(query["DateSent<"]) if "DateSent<" in query else None
        if "DateSent" in query:
            day = datetime.strptime(query["DateSent"], "%Y-%m-%d").replace(tzinfo=UTC)
            earliest = int(day.timestamp())
            latest = int((day + timedelta(days=1)).timestamp()) - 1
        numbers = [query[name] for name in ("To", "From") if name in query]
        # In a burst, one side of a conversation has few messages and the other has all of them.
        lists = [self._messages_of.get(number, []) for number in numbers]
        return (
            message
            for message in reversed(min(lists, key=len, default=self._messages))
            if message.number < before
            and message.at >= earliest
            and (latest is None or message.at <= latest)
            and query.get("To", message.recipient) == message.recipient
            and query.get("From", message.sender) == message.sender
        )

    def _keep(
        self,
        sid: str,
        *,
        outbound: bool,
        sender: str,
        recipient: str,
        body: str,
        media: tuple[str, ...],
    ) -> Message:
        number, at = len(self._messages), int(self.world.now())
        message = Message(number, sid, outbound, sender, recipient, body, media, at)
        self._messages.append(message)
        for one in {sender, recipient}:
            self._messages_of.setdefault(one, []).append(message)
        return message

    def _resource(self, message: Message) -> dict[str, Any]:
        """As the API shows it once the carrier has it, which here is at once."""
        at = format_datetime(datetime.fromtimestamp(message.at, UTC))
        uri = f"{self._path.removesuffix('.json')}/{message.sid}"
        return {
            "account_sid": self._account,
            "api_version": "2010-04-01",
            "body": message.body,
            "date_created": at,
            "date_sent": at,
            "date_updated": at,
            "direction": "outbound-api" if message.outbound else "inbound",
            "error_code": None,
            "error_message": None,
            "from": message.sender,
            "messaging_service_sid": None,
            "num_media": str(len(message.media)),
            "num_segments": str(segments(message.body)[1]),
            "price": None,
            "price_unit": "USD",
            "sid": message.sid,
            "status": "delivered" if message.outbound else "received",
            "subresource_uris": {"media": f"{uri}/Media.json"},
            "to": message.recipient,
            "uri": f"{uri}.json",
        }

    @property
    def _path(self) -> str:
        return f"/2010-04-01/Accounts/{self._account}/Messages.json"

    def _authentic(self, request: Request) -> bool:
        scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
        try:
            user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return False
        return (
            scheme.lower() == "basic"
            and user == self._account == request.path_params["sid"]
            and password in self.secrets["auth_tokens"]
        )


def _picture(message: str, media: str) -> str:
    """The name of an attachment, which nobody guesses who does not know its message's id."""
    return hashlib.sha256(f"{message} {media}".encode("utf-8", "replace")).hexdigest()


def basic_credentials(credentials: str) -> str:
    """The Authorization header of "user:password"."""
    return f"Basic {base64.b64encode(credentials.encode()).decode()}"


def _is_challenge(outcome: httpx.Response | Unanswered) -> bool:
    if isinstance(outcome, str) or outcome.status_code != 401:
        return False
    challenge = outcome.headers.get("www-authenticate", "").lower()
    return challenge.startswith("basic ") and "realm=" in challenge


def _moment(text: str) -> int:
    """Unix seconds of a date, or of a date with a time, in UTC."""
    form = "%Y-%m-%dT%H:%M:%SZ" if "T" in text else "%Y-%m-%d"
    return int(datetime.strptime(text, form).replace(tzinfo=UTC).timestamp())


def _error(code: int, retry_after: int | None = None) -> Json:
    http_status, message = _ERRORS[code]
    more = f"https://www.twilio.com/docs/errors/{code}"
    answer = Json(
        {"code": code, "message": message, "more_info": more, "status": http_status}, http_status
    )
    if http_status == 401:
        answer.headers["WWW-Authenticate"] = 'Basic realm="Twilio API"'
    if http_status == 429 and retry_after is not None:
        answer.headers["Retry-After"] = str(retry_after)
    return answer

"""Twilio's Programmable Messaging: forms in, forms out, and a signature that covers the URL.

A send has no idempotency key, so one whose answer was lost is looked up in the list of messages.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qsl, urlencode

from chalicelib.messages import (
    ConsentEvent,
    DeliveryReceipt,
    Headers,
    InboundMessage,
    Media,
    Part,
    Response,
    Status,
    WebhookRequest,
)
from chalicelib.providers.base import (
    CannotTell,
    Http,
    NotSent,
    OutcomeUnknown,
    PayloadError,
    Provider,
    Rejected,
    Secrets,
    Sent,
    SignatureError,
    Throttled,
    Unavailable,
    answer_of,
    post,
    reference_in,
    retry_after,
)
from chalicelib.text import decode_base64

if TYPE_CHECKING:
    import httpx

# Without it Twilio repeats a webhook only where there was no connection. A fragment is not part of
# what is signed. https://www.twilio.com/docs/usage/webhooks/webhooks-connection-overrides
RETRIES = "#rc=3&rp=5xx,ct,rt"

# https://www.twilio.com/docs/messaging/api/message-resource#message-status-values
# What is not here (`received`, `partially_delivered`, a status made up tomorrow) is no receipt.
STATUSES: Mapping[str, Status] = {
    "accepted": "queued",
    "scheduled": "queued",
    "queued": "queued",
    "sending": "queued",
    "sent": "sent",
    "delivered": "delivered",
    "read": "delivered",
    "undelivered": "undelivered",
    "failed": "failed",
    "canceled": "failed",
}

# https://www.twilio.com/docs/api/errors
REASON_OF_CODE: Mapping[str, str] = {
    "21610": "opted_out",
    "21211": "invalid_number",
    "21614": "invalid_number",
    "30005": "invalid_number",
    "30006": "landline",
    "30004": "filtered",
    "30007": "filtered",
    "30450": "filtered",
    "30032": "unregistered",
    "30034": "unregistered",
    "21408": "not_permitted",
    "21606": "not_permitted",
    "21608": "not_permitted",
    "21612": "not_permitted",
    "30002": "not_permitted",
    "30024": "not_permitted",
    "21617": "too_long",
    "21602": "invalid_request",
    "21603": "invalid_request",
    "21604": "invalid_request",
}

# Too many requests, a queue of ten hours (of the number: 21611, of the service: 30001), the
# account's limits a second and a day. Each refuses to create the message: it was not taken. A 30001
# that comes after the creation is a receipt, and never passes here.
THROTTLING_CODES = frozenset({"20429", "21611", "30001", "63017", "63038"})

# https://www.twilio.com/docs/messaging/tutorials/advanced-opt-out
CONSENT: Mapping[str, ConsentEvent] = {"STOP": "stop", "START": "start", "HELP": "help"}

# https://www.twilio.com/docs/usage/webhooks/webhook-shared-keys
_SETTINGS_HEADER = "X-Twilio-Webhooks-Signature-Settings"

_URL = re.compile(
    r"(https?)://(?:[^/?#]*@)?(\[[^\]/?#]*\]|[^:/?#\[]*)(?::([0-9]+))?([/?#].*)?", re.S
)
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_FORM = "application/x-www-form-urlencoded"
_SEGMENTS = re.compile(r"[0-9]{1,4}", re.ASCII)
_CODE = re.compile(r"[0-9]{1,6}", re.ASCII)
_ACCOUNT = re.compile(r"[A-Za-z0-9]+", re.ASCII)  # it is part of a path

_PAGE_SIZE = 1000
_MAX_PAGES = 3
# Between our clock and theirs, whose times are in whole seconds.
_CLOCK_MARGIN = 5.0
# The list has its own order: by when a message was sent, which is not when it was created.
_LIST_MARGIN = 86_400.0


class Twilio(Provider):
    """https://www.twilio.com/docs/messaging/api"""

    name: ClassVar[str] = "twilio"
    signed: ClassVar[bool] = True
    idempotent: ClassVar[bool] = False
    answers_stop: ClassVar[bool] = True
    # https://www.twilio.com/docs/glossary/what-sms-character-limit (error 21617 beyond it)
    max_length: ClassVar[int] = 1600
    reasons: ClassVar[Mapping[str, str]] = REASON_OF_CODE
    lists_texts: ClassVar[bool] = True
    # Its API redirects to one of these, for four hours: the first where credentials are enforced,
    # the second where they are not.
    # https://help.twilio.com/articles/223183748
    media_places: ClassVar[tuple[str, ...]] = (
        "mms.twiliocdn.com/",
        "s3-external-1.amazonaws.com/media.twiliocdn.com/",
        "media.twiliocdn.com/",
    )
    media_path: ClassVar[str] = "/2010-04-01/Accounts/"
    default_api_url: ClassVar[str] = "https://api.twilio.com"

    def verify(self, request: WebhookRequest, secrets: Secrets) -> None:
        """`X-Twilio-Signature`: an HMAC over the URL and the sorted parameters of the form.

        HMAC-SHA1 with one of `auth_tokens`; or, where a header asks for it, HMAC-SHA256 with one
        of `shared_keys` or `auth_tokens`. https://www.twilio.com/docs/usage/security
        """
        given = _bytes(request.headers.get("X-Twilio-Signature"))
        digest, keys = _scheme(request, secrets)
        parameters = _signed_parameters(request)
        valid = False
        for url in _url_variants(request.url):
            for key in keys:
                mac = hmac.new(_bytes(key), _bytes(url) + parameters, digest)
                valid |= hmac.compare_digest(base64.b64encode(mac.digest()), given)
        if not valid:
            raise SignatureError("the signature does not match")

    def can_verify(self, secrets: Secrets) -> bool:
        return bool(_keys(secrets, "auth_tokens") + _keys(secrets, "shared_keys"))

    def parse(self, request: WebhookRequest) -> list[InboundMessage | DeliveryReceipt]:
        """One text or one receipt. https://www.twilio.com/docs/messaging/guides/webhook-request

        Of a repeated field the first value counts; `raw` keeps them all. There is no timestamp.
        Numbers stay as they came, the prefix of another channel ("whatsapp:") included.
        """
        raw = _parameters(request)
        params = {name: v if isinstance(v, str) else v[0] for name, v in raw.items()}
        if not params.get("MessageSid"):
            raise PayloadError("no MessageSid")
        status = params.get("MessageStatus", "received")
        if status not in ("received", "receiving"):
            return _receipts(params, status, request)
        if "Body" not in params and "NumMedia" not in params:
            raise PayloadError("neither a text nor a status")
        return [_message(params, raw, request)]

    def webhook_of(self, raw: Mapping[str, Any], received_at: float) -> WebhookRequest:
        body = urlencode(raw, doseq=True, errors="replace").encode()
        return WebhookRequest("POST", "", Headers({"Content-Type": _FORM}), body, received_at)

    def read(self, raw: Mapping[str, Any], received_at: float) -> InboundMessage:
        """Of a text that came from the list of messages, too."""
        if "sid" not in raw:
            return super().read(raw, received_at)
        try:
            return replace(self._listed(raw), received_at=received_at)
        except (OutcomeUnknown, KeyError):
            raise PayloadError("no message of the list") from None

    def acknowledge(self) -> Response:
        """TwiML that answers nothing: the reply is sent later, by us."""
        twiml = '<?xml version="1.0" encoding="UTF-8"?><Response/>'
        return Response(200, {"Content-Type": "text/xml"}, twiml)

    def send(self, part: Part, secrets: Secrets, http: Http) -> Sent:
        """https://www.twilio.com/docs/messaging/api/message-resource#create-a-message-resource"""
        account, token = _credentials(secrets)
        fields = [
            ("To", part.recipient),
            ("From", part.sender),
            ("Body", part.text),
            *(("MediaUrl", url) for url in part.media),
            ("StatusCallback", part.callback_url + RETRIES),
            ("ValidityPeriod", _validity(part)),
        ]
        response = post(
            http,
            f"{self.api_url}/2010-04-01/Accounts/{account}/Messages.json",
            # A lone surrogate has no UTF-8: a question mark is better than no reply.
            content=urlencode([(n, v) for n, v in fields if v], errors="replace").encode(),
            headers={"Content-Type": _FORM},
            auth=(account, token),
        )
        return _outcome(response)

    def find_sent(self, part: Part, secrets: Secrets, http: Http) -> Sent | NotSent | CannotTell:
        """Looks through what we sent from this number to that one since the attempt began.

        The list can be filtered by `DateSent`, but a message that still waits in Twilio's queue
        has no such date and may be missed: the whole list of the two numbers is read, up to
        `_MAX_PAGES`. A message whose id is not known and whose text is another's forbids
        *NotSent*: Twilio puts words before the text of a trial account, and can be told to change
        characters. https://www.twilio.com/docs/messaging/api/message-resource
        """
        if part.started_at is None:
            return CannotTell()
        since = part.started_at - _CLOCK_MARGIN
        unexplained = []
        pages = self._pages({"To": part.recipient, "From": part.sender}, secrets, http)
        for number, (page, is_last) in enumerate(pages, start=1):
            unexplained += [
                one for one in page if _is_ours(one, part) and _created_at(one) >= since
            ]
            if number == _MAX_PAGES and not is_last:
                return CannotTell()
        same = [one["sid"] for one in unexplained if one.get("body") == part.text]
        if len(same) == 1:
            return Sent(same[0])
        return CannotTell() if unexplained else NotSent()

    def texts(
        self, ours: str, since: float, secrets: Secrets, http: Http
    ) -> Iterator[InboundMessage]:
        """From the list of messages to this number, which has the newest first.

        `DateSent` of a text is when its webhook was requested, so what has lost its webhook may
        have none: the list is not filtered by it, but read until a whole page is older than what is
        asked for by a day. https://www.twilio.com/docs/messaging/api/message-resource
        """
        for page, _ in self._pages({"To": ours}, secrets, http):
            for one in page:
                if one.get("direction") == "inbound" and _created_at(one) >= since:
                    yield self._listed(one)
            if page and all(_created_at(one) < since - _LIST_MARGIN for one in page):
                return

    def with_media(self, message: InboundMessage, secrets: Secrets, http: Http) -> InboundMessage:
        """https://www.twilio.com/docs/messaging/api/media-resource"""
        if message.raw.get("num_media", "0") in ("0", None):
            return message
        credentials = _credentials(secrets)
        answer = _ask(http, f"{self._media_url(message.raw)}.json", auth=credentials)
        return self._listed({**message.raw, "media_list": answer.get("media_list")})

    def media_credentials(self, secrets: Secrets) -> tuple[str, str]:
        """https://www.twilio.com/docs/messaging/api/media-resource"""
        return _credentials(secrets)

    def _listed(self, one: Mapping[str, Any]) -> InboundMessage:
        """A text as the list of messages has it, with its attachments where `with_media` put them.

        Of the webhook it lacks what Twilio makes of STOP words (`OptOutType`); it knows when the
        text came. Raises OutcomeUnknown where it cannot be read.
        """
        names = ("sid", "account_sid", "from", "to", "body")
        sid, account, sender, recipient, body = (one.get(name) or "" for name in names)
        media = one.get("media_list", [])
        if (
            not all(isinstance(text, str) for text in (sid, account, sender, recipient, body))
            or not isinstance(media, list)
            or not all(isinstance(entry, dict) for entry in media)
        ):
            raise OutcomeUnknown("unreadable_answer")
        segments = str(one.get("num_segments"))
        at = _created_at(one)
        return InboundMessage(
            provider=self.name,
            account=account,
            id=sid,
            sender=sender,
            recipient=recipient,
            text=decode_base64(body) or body,
            received_at=at,
            sent_at=at,
            # The addresses that the webhook would have had.
            media=tuple(
                Media(f"{self._media_url(one)}/{entry.get('sid')}", entry.get("content_type") or "")
                for entry in media
            ),
            segments=int(segments) if _SEGMENTS.fullmatch(segments) else None,
            raw=one,
        )

    def _media_url(self, one: Mapping[str, Any]) -> str:
        path = f"/2010-04-01/Accounts/{one.get('account_sid')}/Messages/{one.get('sid')}/Media"
        return self.api_url + path

    def _pages(
        self, query: Mapping[str, str], secrets: Secrets, http: Http
    ) -> Iterator[tuple[list[dict[str, Any]], bool]]:
        """Pages of the list of messages, each with whether it is the last."""
        account, token = _credentials(secrets)
        path = f"/2010-04-01/Accounts/{account}/Messages.json"
        next_page: object = f"{path}?{urlencode({**query, 'PageSize': str(_PAGE_SIZE)})}"
        while next_page:
            # Credentials go with the request: a path beside ours is not followed.
            if not isinstance(next_page, str) or not next_page.startswith(path):
                raise OutcomeUnknown("unreadable_answer")
            answer = _ask(http, self.api_url + next_page, auth=(account, token))
            next_page = answer.get("next_page_uri")
            yield _messages(answer), not next_page


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _scheme(
    request: WebhookRequest, secrets: Secrets
) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """The digest that the request was signed with, and the keys that it may have been."""
    tokens = _keys(secrets, "auth_tokens")
    if _SETTINGS_HEADER not in request.headers:
        return hashlib.sha1, tokens
    pairs = (pair.partition("=") for pair in request.headers.get(_SETTINGS_HEADER).split(","))
    settings = {name.strip(): value.strip() for name, _, value in pairs}
    if settings.get("algorithm") != "HMAC_SHA256":
        raise SignatureError("unknown algorithm")
    return hashlib.sha256, _keys(secrets, "shared_keys") + tokens


def _keys(secrets: Secrets, name: str) -> tuple[str, ...]:
    """The usable keys of a list. An empty one would let anybody sign."""
    keys = secrets.get(name)
    return tuple(k for k in keys if isinstance(k, str) and k) if isinstance(keys, list) else ()


def _signed_parameters(request: WebhookRequest) -> bytes:
    """What is signed behind the URL: each name and value of a form once, sorted.

    Nothing of a GET, whose parameters are in the URL; nothing of a body whose hash is in the URL.
    """
    if request.method.upper() == "GET":
        return b""
    expected = dict(_query(request.url)).get("bodySHA256")
    if expected is not None:
        body_hash = hashlib.sha256(request.body).hexdigest()
        if not hmac.compare_digest(_bytes(body_hash), _bytes(expected)):
            raise SignatureError("the body's hash does not match")
        return b""
    if _is_form(request):
        # Latin-1 carries each byte through as it is, whatever its encoding.
        text = request.body.decode("latin-1")
        pairs = parse_qsl(text, keep_blank_values=True, encoding="latin-1")
        return "".join(name + value for name, value in sorted(set(pairs))).encode("latin-1")
    if request.body:
        raise SignatureError("the signature does not cover the body")
    return b""


def _url_variants(url: str) -> tuple[str, ...]:
    """The URL as requested, and the same with its port taken away or added.

    Twilio signs the port for some kinds of request and not for others; its SDK tries both.
    """
    match = _URL.fullmatch(url)
    if not match:
        raise SignatureError("not an HTTP URL")
    scheme, host, port, rest = match.groups(default="")
    bare = f"{scheme}://{host}{rest}"
    return bare, f"{scheme}://{host}:{port or _DEFAULT_PORTS[scheme]}{rest}"


def _query(url: str) -> list[tuple[str, str]]:
    return parse_qsl(url.partition("#")[0].partition("?")[2], keep_blank_values=True)


def _is_form(request: WebhookRequest) -> bool:
    return request.headers.get("Content-Type").partition(";")[0].strip().lower() == _FORM


def _parameters(request: WebhookRequest) -> dict[str, str | list[str]]:
    """The parameters by name; those that are repeated as a list."""
    if request.method.upper() == "GET":
        pairs = _query(request.url)
    elif _is_form(request):
        pairs = parse_qsl(request.body.decode("utf-8", "replace"), keep_blank_values=True)
    else:
        raise PayloadError("not a form")
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    return {name: v[0] if len(v) == 1 else v for name, v in values.items()}


def _receipts(
    params: Mapping[str, str], status: str, request: WebhookRequest
) -> list[InboundMessage | DeliveryReceipt]:
    if status not in STATUSES:
        return []
    return [
        DeliveryReceipt(
            provider=Twilio.name,
            id=params["MessageSid"],
            reference=reference_in(request.url),
            status=STATUSES[status],
            error=_code({"code": params.get("ErrorCode", "")}),
        )
    ]


def _message(
    params: Mapping[str, str], raw: Mapping[str, Any], request: WebhookRequest
) -> InboundMessage:
    segments = params.get("NumSegments", "")
    body = params.get("Body", "")
    return InboundMessage(
        provider=Twilio.name,
        account=params.get("AccountSid", ""),
        id=params["MessageSid"],
        sender=params.get("From", ""),
        recipient=params.get("To", ""),
        text=decode_base64(body) or body,
        received_at=request.received_at,
        media=tuple(_media(params)),
        segments=int(segments) if _SEGMENTS.fullmatch(segments) else None,
        consent_hint=CONSENT.get(params.get("OptOutType", "").upper()),
        raw=raw,
    )


def _media(params: Mapping[str, str]) -> Iterator[Media]:
    """MediaUrl0, MediaUrl1, ... as far as they go, whatever NumMedia counts."""
    index = 0
    while url := params.get(f"MediaUrl{index}"):
        yield Media(url, params.get(f"MediaContentType{index}", ""))
        index += 1


def _credentials(secrets: Secrets) -> tuple[str, str]:
    account, tokens = secrets.get("account_sid"), _keys(secrets, "auth_tokens")
    if (
        not isinstance(account, str)
        or not _ACCOUNT.fullmatch(account)
        or not tokens
        or not tokens[0].isascii()
    ):
        raise Unavailable("credentials")
    return account, tokens[0]


def _validity(part: Part) -> str:
    """For how long Twilio may hold it in its queue; "" for as long as it likes (10 hours).

    1 to 36,000 seconds.
    https://www.twilio.com/docs/messaging/api/message-resource#create-a-message-resource
    """
    return "" if part.validity is None else str(min(max(part.validity, 1), 36_000))


def _outcome(response: httpx.Response) -> Sent:
    answer = answer_of(response)
    if response.is_success:
        sid = answer.get("sid")
        if isinstance(sid, str) and sid:
            return Sent(sid)
        raise OutcomeUnknown("unreadable_answer", str(response.status_code))
    if not response.is_client_error or response.status_code == 408:
        raise OutcomeUnknown("unexpected_answer", str(response.status_code))
    code = _code(answer) or str(response.status_code)
    if code in THROTTLING_CODES:
        raise Throttled("throttled", code, retry_after(response))
    if response.status_code == 403 and code not in REASON_OF_CODE:
        raise Unavailable("credentials", code)
    raise Rejected(REASON_OF_CODE.get(code, "rejected"), code)


def _code(answer: Mapping[str, Any]) -> str:
    """Twilio's number of an error; "" for anything else, which may say more than a log may hold."""
    code = answer.get("code")
    text = str(code) if isinstance(code, str | int) else ""
    return text if _CODE.fullmatch(text) else ""


def _ask(http: Http, url: str, auth: tuple[str, str]) -> dict[str, Any]:
    """The answer to a question, which can be asked again however it failed."""
    import httpx

    try:
        response = http.get(url, auth=auth)
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError):
        # Without its cause, whose request has the numbers in its URL.
        raise Unavailable("no_connection") from None
    if response.status_code == 429:
        raise Throttled("throttled", retry_after=retry_after(response))
    if response.status_code in (401, 403):
        raise Unavailable("credentials", str(response.status_code))
    if response.status_code != 200:
        raise OutcomeUnknown("unexpected_answer", str(response.status_code))
    return answer_of(response)


def _messages(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    messages = answer.get("messages")
    if not isinstance(messages, list):
        raise OutcomeUnknown("unreadable_answer")
    for one in messages:
        if not isinstance(one, dict) or not isinstance(one.get("sid"), str):
            raise OutcomeUnknown("unreadable_answer")
    return messages


def _created_at(message: Mapping[str, Any]) -> float:
    """Unix seconds of `date_created`, which is in RFC 2822."""
    try:
        created = parsedate_to_datetime(message["date_created"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise OutcomeUnknown("unreadable_answer") from None
    return (created if created.tzinfo else created.replace(tzinfo=UTC)).timestamp()


def _is_ours(message: Mapping[str, Any], part: Part) -> bool:
    """Whether it was sent by us, between the part's numbers, and is not accounted for already."""
    return (
        message.get("direction") == "outbound-api"
        and message.get("to") == part.recipient
        and message.get("from") == part.sender
        and message.get("sid") not in part.known_ids
    )


PROVIDER = Twilio

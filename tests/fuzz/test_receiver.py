"""The doors, whatever bytes come: an answer of ours and never an exception; nothing unsigned goes
on a queue; and of what a provider signed nothing is refused, nor lost further on."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chalicelib.messages import NumberKind, number_kind
from chalicelib.processing import Processing
from chalicelib.queues import DEAD_LETTERS, OUTBOUND, PROCESSING
from chalicelib.receiving import Receiver
from chalicelib.sending import Sender
from tests.fakes import OURS, SECRETS, THEIRS, settings
from tests.fuzz import examples
from tests.fuzz.memory import Memory
from tests.fuzz.values import (
    BOTTOMLESS,
    DEEP,
    ODD_JSON,
    changed,
    damaged,
    deep,
    texts,
    values,
    written,
)
from tests.signing import HOST, api_event, telnyx_event, twilio_event

# Long examples are what some of these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

INBOUND = json.loads(telnyx_event()["body"])
odd = st.sampled_from(ODD_JSON + DEEP + BOTTOMLESS)


def at_rest(memory: Memory) -> None:
    """Lets processing and the sender finish what stands on the queues."""
    processing = Processing(memory, settings("processing"))
    sender = Sender(memory, settings("sender"))
    memory.drain(PROCESSING, processing.handle)
    memory.drain(OUTBOUND, sender.handle)


def kept(memory: Memory) -> dict[str, int]:
    """Where what was acknowledged is at rest."""
    listed = memory.bucket.list_objects_v2(Bucket="spillway-test-archive-123456789012-us-east-1")
    keys = [one["Key"] for one in listed.get("Contents", [])]
    items = memory.table.scan(TableName="spillway-test", ConsistentRead=True)["Items"]
    return {
        "archive": sum(key.startswith("messages/") for key in keys),
        "quarantine": sum(key.startswith("quarantine/") for key in keys),
        "table": sum(item["sk"]["S"].startswith("IN#") for item in items),
        "dead": len(memory.on(DEAD_LETTERS[PROCESSING])),
        "unanswered": len(memory.on(DEAD_LETTERS[OUTBOUND])),
    }


def is_taken(event: dict[str, Any], provider: str) -> dict[str, int]:
    """Acknowledges a signed webhook, sees it through to its end, and says where that is."""
    memory = Memory()
    receiver = Receiver(memory, settings("receiver"))
    answer = receiver.webhook(provider, event, signed_door=True)
    assert answer == receiver._providers[provider].acknowledge()
    queued = [json.loads(message.body)["kind"] for message in memory.on(PROCESSING)]
    at_rest(memory)
    found = kept(memory)
    # Each is where it belongs: what can be read in both stores, what cannot in quarantine.
    assert found["dead"] == found["unanswered"] == 0
    assert found["archive"] == found["table"] == queued.count("inbound")
    assert found["quarantine"] == queued.count("unreadable")
    return found


# --- what a provider signed ----------------------------------------------------------------------

bodies = (
    st.binary(max_size=200)
    | damaged(INBOUND, odd).map(lambda one: written(one).encode("utf-8", "surrogatepass"))
    | changed(json.dumps(INBOUND).encode())
    | values.map(json.dumps).map(str.encode)
)


@examples(120)
@given(bodies.filter(bool))
def test_whatever_telnyx_signed_is_kept(body: bytes) -> None:
    event = telnyx_event(body=body)
    event |= {"body": base64.b64encode(body).decode(), "isBase64Encoded": True}
    is_taken(event, "telnyx")


@pytest.mark.parametrize("opening", ["[", '{"a":'], ids=["lists", "objects"])
def test_a_payload_of_any_depth_that_telnyx_signed_is_kept(opening: str) -> None:
    """From some 400 levels on, one step after the other can follow them no further."""
    for levels in [*range(400, 520, 3), *range(520, 1_040, 20)]:
        inner = deep(opening, "]" if opening == "[" else "}", levels)
        found = is_taken(telnyx_event(body=written({**INBOUND, "meta": inner}).encode()), "telnyx")
        assert found["archive"] + found["quarantine"] == 1


field_names = st.sampled_from(
    ["Body", "From", "To", "NumMedia", "MediaUrl0", "MessageStatus", "OptOutType", "MessageSid", ""]
)
field_values = texts.map(lambda text: text.encode("utf-8", "replace").decode()) | st.sampled_from(
    [
        "",
        "SM2",
        "delivered",
        "STOP",
        "x" * 15_000,
        THEIRS,
        "VGhl" * 40,
        "x" * 30_000,
        "whatsapp:" + THEIRS,
    ]
)


@examples(100)
@given(st.dictionaries(field_names, field_values, max_size=7), st.booleans())
def test_whatever_twilio_signed_is_kept(fields: dict[str, str], whole: bool) -> None:
    form = {"MessageSid": "SM1", "Body": "hi", "From": THEIRS, "To": OURS} if whole else {}
    is_taken(twilio_event({**form, **fields}), "twilio")


def test_a_text_longer_than_an_answer_may_be_is_kept() -> None:
    is_taken(twilio_event({"MessageSid": "SM1", "Body": "x" * 30_000}), "twilio")


@examples(60)
@given(st.binary(max_size=200), st.sampled_from(["application/json", "text/xml", ""]) | texts)
def test_whatever_twilio_signed_by_its_hash_is_kept(body: bytes, content_type: str) -> None:
    path, digest = "/webhooks/twilio/signed", hashlib.sha256(body).hexdigest()
    url = f"https://{HOST}{path}?bodySHA256={digest}"
    token = SECRETS["twilio"]["auth_tokens"][0].encode()
    signature = base64.b64encode(hmac.new(token, url.encode(), "sha1").digest()).decode()
    event = api_event(
        "POST",
        path,
        base64.b64encode(body).decode(),
        {"Content-Type": content_type, "X-Twilio-Signature": signature},
        resource="/webhooks/{provider}/signed",
        parameters={"provider": "twilio"},
        query={"bodySHA256": [digest]},
    )
    is_taken(event | {"isBase64Encoded": True}, "twilio")


# --- what nobody signed --------------------------------------------------------------------------

EVENTS = {"twilio": twilio_event({"Body": "hello", "MessageSid": "SM1"}), "telnyx": telnyx_event()}
header_names = st.sampled_from(
    [
        "X-Twilio-Signature",
        "x-twilio-webhooks-signature-settings",
        "telnyx-timestamp",
        "Telnyx-Signature-Ed25519",
        "Content-Type",
    ]
)


@examples(200)
@given(
    data=st.data(),
    provider=st.sampled_from(["twilio", "telnyx"]) | texts,
    signed_door=st.booleans(),
    headers=st.dictionaries(header_names, st.lists(texts, max_size=2), max_size=4),
    query=st.none() | st.dictionaries(st.text("abc"), st.lists(st.text("abc-_")), max_size=2),
)
def test_nothing_unsigned_goes_on_a_queue(
    data: st.DataObject, provider: str, signed_door: bool, headers: Any, query: Any
) -> None:
    good = EVENTS.get(provider, EVENTS["telnyx"])
    memory = Memory()
    receiver = Receiver(memory, settings("receiver"))
    body = data.draw(st.binary(max_size=100) | changed(_bytes(good["body"])))
    event = good | {
        "body": base64.b64encode(body).decode(),
        "isBase64Encoded": True,
        # The good signature, over other bytes; or other headers.
        "multiValueHeaders": data.draw(
            st.just(good["multiValueHeaders"]) | st.just({**good["multiValueHeaders"], **headers})
        )
        if data.draw(st.booleans())
        else headers,
        "multiValueQueryStringParameters": query,
    }

    answer = receiver.webhook(provider, event, signed_door=signed_door)

    if answer.status == 200:
        # Twilio signs what a form says, not how it is written: tests/fuzz/test_signatures.py.
        assert provider == "twilio"
        return
    assert answer.status == (403 if provider in EVENTS else 404)
    assert json.loads(answer.body)["error"] in ("signature", "unknown_provider")
    assert not memory.on(PROCESSING)
    assert not memory.on(OUTBOUND)


def _bytes(body: str | bytes) -> bytes:
    return body.encode() if isinstance(body, str) else body


# --- our own clients -----------------------------------------------------------------------------

# (Not the number that stands in an error message as an example.)
SOMEBODY = "+13125558841"
MESSAGE = {"to": SOMEBODY, "from": OURS, "text": "hello", "media": ["https://example.com/1.png"]}
client_bodies = (
    damaged(MESSAGE, st.sampled_from(ODD_JSON + DEEP + BOTTOMLESS)).map(
        lambda one: written(one).encode("utf-8", "surrogatepass")
    )
    | changed(json.dumps(MESSAGE).encode())
    | st.binary(max_size=60)
)
keys = st.text(st.characters(codec="latin-1"), max_size=300) | st.sampled_from(
    ["k", "", "k\n", "é"]
)
REACHED: tuple[NumberKind, ...] = ("e164", "short_code")


@examples(200)
@given(client_bodies, keys, st.booleans())
def test_what_a_client_posts_is_queued_or_a_bad_request(
    body: bytes, key: str, with_key: bool
) -> None:
    memory = Memory()
    receiver = Receiver(memory, settings("receiver"))
    headers = {"Idempotency-Key": key} if with_key else {}
    event = api_event(
        "POST", "/messages", base64.b64encode(body).decode(), headers, principal="api"
    )
    answer = receiver.post_message(event | {"isBase64Encoded": True})

    queued = [json.loads(message.body) for message in memory.on(OUTBOUND)]
    if answer.status == 400:
        assert not queued
        assert SOMEBODY[1:] not in answer.body
        assert OURS[1:] not in answer.body
        return
    assert answer.status == 202
    [envelope] = queued
    payload = envelope["payload"]
    assert json.loads(answer.body)["id"] == envelope["id"]
    assert number_kind(payload["theirs"]) in REACHED
    assert payload["ours"] == OURS
    assert payload["text"].strip() or payload["media"]
    # AND the sender is done with it, in one go
    at_rest(memory)
    assert not memory.on(DEAD_LETTERS[OUTBOUND])
    assert len(memory.requests) <= 3


STATEMENT = {"number": SOMEBODY, "event": "stop", "at": 1.79e9, "source": "mail", "note": "x"}
statements = (
    damaged(STATEMENT, st.sampled_from(ODD_JSON + DEEP + BOTTOMLESS)).map(
        lambda one: written(one).encode("utf-8", "surrogatepass")
    )
    | changed(json.dumps(STATEMENT).encode())
    | st.binary(max_size=60)
)


@examples(200)
@given(statements)
def test_what_a_client_states_is_recorded_or_a_bad_request(body: bytes) -> None:
    memory = Memory()
    receiver = Receiver(memory, settings("receiver"))
    event = api_event("POST", "/consent", base64.b64encode(body).decode(), {}, principal="api")
    answer = receiver.post_consent(event | {"isBase64Encoded": True})

    queued = [json.loads(message.body) for message in memory.on(PROCESSING)]
    if answer.status == 400:
        assert not queued
        assert SOMEBODY[1:] not in answer.body
        return
    assert answer.status == 202
    [envelope] = queued
    assert json.loads(answer.body)["id"] == envelope["id"]
    # AND processing is done with it, in one go
    at_rest(memory)
    assert not memory.on(DEAD_LETTERS[PROCESSING])
    [entry] = memory.table.scan(TableName="spillway-test", ConsistentRead=True)["Items"]
    assert entry["event"]["S"] == envelope["payload"]["event"]


@examples(100)
@given(texts | st.from_regex(r"[0-9a-f]{23,25}-[0-9a-f]{23,25}"))
def test_whatever_is_asked_for_is_not_there(id_: str) -> None:
    memory = Memory()
    receiver = Receiver(memory, settings("receiver"))
    answer = receiver.get_message(id_)
    assert answer.status == 404
    assert json.loads(answer.body)["error"] in ("not_a_message_id", "not_seen_yet")


def test_a_good_webhook_is_kept_whole() -> None:
    """Else `is_taken` would prove nothing."""
    for provider, event in EVENTS.items():
        assert is_taken(event, provider) == {
            "archive": 1,
            "quarantine": 0,
            "table": 1,
            "dead": 0,
            "unanswered": 0,
        }
    assert is_taken(twilio_event({"Nothing": ""}), "twilio")["quarantine"] == 1

"""The HTTP routes and queue handlers as Lambda calls them: doors, credentials, bad input."""

from __future__ import annotations

import base64
import json
from operator import itemgetter
from typing import Any
from urllib.parse import urlencode

import pytest
from botocore.exceptions import ConnectTimeoutError

import app as app_module
from chalicelib.credentials import hash_of
from chalicelib.messages import Keys
from chalicelib.providers.twilio import Twilio
from chalicelib.queues import QueueRefused
from chalicelib.receiving import Receiver
from tests.fakes import NOW, OURS, THEIRS, FakeRuntime, settings
from tests.signing import (
    HOST,
    TelnyxKey,
    api_event,
    carried,
    event_of,
    telnyx_event,
    twilio_event,
    vectors,
)

TWILIO = "twilio-user:twilio-password"
TOKEN = "a token of our own client"


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    """A receiver behind the app's routes; its world is the test's."""
    runtime = FakeRuntime()
    runtime.vault.held["telnyx"] = {"api_key": "KEY", "public_keys": [TelnyxKey.public]}
    restart(runtime, monkeypatch)
    monkeypatch.setenv(
        "CREDENTIAL_HASHES", json.dumps({"twilio": [hash_of(TWILIO)], "api": [hash_of(TOKEN)]})
    )
    return runtime


def restart(runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh receiver, which has seen no secret yet."""
    receiver = Receiver(runtime, settings("receiver"))
    monkeypatch.setattr(app_module, "function", {"receiving": receiver}.__getitem__)


def call(event: dict[str, Any]) -> tuple[int, dict[str, str], str]:
    """What API Gateway gets back for an event: status, headers, body."""
    answer = app_module.app(event, None)
    return answer["statusCode"], answer["headers"], answer["body"]


def sent(runtime: FakeRuntime, queue: str) -> list[dict[str, Any]]:
    return [json.loads(message["MessageBody"]) for message in runtime.queues.sent[queue]]


# -- the signature vectors, through the whole route ----------------------------------------


@pytest.mark.parametrize("encoded", [False, True], ids=["text", "base64"])
@pytest.mark.parametrize("vector", vectors("twilio"), ids=itemgetter("name"))
def test_twilio_vectors(
    vector: dict[str, Any],
    encoded: bool,
    runtime: FakeRuntime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if why := carried(vector):
        pytest.skip(why)
    runtime.vault.held["twilio"] = {"account_sid": "AC", "auth_tokens": [vector["secret"]]}
    restart(runtime, monkeypatch)
    event = event_of(vector, "twilio")
    if encoded:
        event["body"] = base64.b64encode(vector["body"].encode()).decode()
        event["isBase64Encoded"] = True
    status, _, _ = call(event)
    assert status == (200 if vector["valid"] else 403)
    assert bool(sent(runtime, "processing")) == vector["valid"]


@pytest.mark.parametrize("vector", vectors("telnyx"), ids=itemgetter("name"))
def test_telnyx_vectors(
    vector: dict[str, Any], runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why := carried(vector):
        pytest.skip(why)
    runtime.vault.held["telnyx"] = {"api_key": "KEY", "public_keys": [vector["public_key"]]}
    runtime.clock = float(vector["now"])
    restart(runtime, monkeypatch)
    status, _, _ = call(event_of(vector, "telnyx"))
    assert status == (200 if vector["valid"] else 403)
    assert bool(sent(runtime, "processing")) == vector["valid"]


# -- doors and credentials ----------------------------------------


def authorize(authorization: str, method: str = "POST", path: str = "webhooks/twilio") -> Any:
    arn = f"arn:aws:execute-api:us-east-1:123456789012:abcdef1234/prod/{method}/{path}"
    request = {"type": "TOKEN", "authorizationToken": authorization, "methodArn": arn}
    return app_module.authorize(request, None)


def basic(credentials: str) -> str:
    return "Basic " + base64.b64encode(credentials.encode()).decode()


@pytest.mark.parametrize(
    ("authorization", "principal", "opens"),
    [
        (basic(TWILIO), "twilio", ["POST/webhooks/twilio"]),
        (f"Bearer {TWILIO}", "twilio", ["POST/webhooks/twilio"]),
        (f"Bearer {TOKEN}", "api", ["POST/messages", "GET/messages/*", "POST/consent"]),
        (f"bearer  {TOKEN} ", "api", ["POST/messages", "GET/messages/*", "POST/consent"]),
        (basic(TWILIO + "x"), "nobody", []),
        (basic(""), "nobody", []),
        ("Basic !!!", "nobody", []),
        ("Basic", "nobody", []),
        (f"Digest {TOKEN}", "nobody", []),
        ("Bearer ", "nobody", []),
        ("Bearer \udcff", "nobody", []),
    ],
)
def test_the_authorizer_opens_a_principals_own_paths(
    authorization: str, principal: str, opens: list[str], runtime: FakeRuntime
) -> None:
    answer = authorize(authorization)
    prefix = "arn:aws:execute-api:us-east-1:123456789012:abcdef1234/prod/"
    resources = answer["policyDocument"]["Statement"][0]["Resource"]
    assert answer["principalId"] == principal
    assert resources == [prefix + path for path in opens]


def test_the_doors_are_guarded_as_designed() -> None:
    guarded = {
        (route, method): entry.authorizer is not None
        for route, methods in app_module.app.routes.items()
        for method, entry in methods.items()
    }
    assert guarded == {
        ("/webhooks/{provider}", "POST"): True,
        ("/webhooks/{provider}/signed", "POST"): False,
        ("/messages", "POST"): True,
        ("/messages/{id}", "GET"): True,
        ("/consent", "POST"): True,
        ("/health", "GET"): False,
    }


def test_health() -> None:
    status, _, body = call(api_event("GET", "/health", None, {}))
    assert (status, json.loads(body)) == (200, {"status": "ok"})


# -- webhooks: what is taken, refused, quarantined ----------------------------------------


@pytest.mark.parametrize("door", ["", "/signed"])
def test_both_doors_verify(
    door: str, runtime: FakeRuntime, capsys: pytest.CaptureFixture[str]
) -> None:
    good = twilio_event({"Body": "hello", "MessageSid": "SM1"}, door=door)
    bad = twilio_event({"Body": "hello", "MessageSid": "SM1"}, door=door, token="another")
    assert call(good)[0] == 200
    capsys.readouterr()
    assert call(bad)[0] == 403
    assert len(sent(runtime, "processing")) == 1
    # AND the refusal is counted and logged
    metric, line = map(json.loads, capsys.readouterr().out.splitlines())
    assert (metric["Refused"], metric["reason"]) == (1, "signature")
    assert (line["event"], line["reason"], line["provider"]) == ("refused", "signature", "twilio")


def test_processing_gets_it_before_outbound_and_with_the_raw_payload(runtime: FakeRuntime) -> None:
    call(twilio_event({"Body": "hello", "MessageSid": "SM1", "Extra": "kept"}))
    [processing], [outbound] = sent(runtime, "processing"), sent(runtime, "outbound.fifo")
    assert processing["payload"].pop("raw")["Extra"] == "kept"
    # (the sender has no use for it)
    assert processing["payload"] == outbound["payload"]
    assert processing["id"] == outbound["id"]
    assert outbound["callback_url"] == f"https://{HOST}/webhooks/twilio/signed"
    [message] = runtime.queues.sent["outbound.fifo"]
    assert message["MessageGroupId"] == outbound["conversation"]
    assert message["MessageDeduplicationId"] == outbound["id"].partition("-")[2]


def test_a_rotated_secret_is_found_before_anything_is_refused(runtime: FakeRuntime) -> None:
    # GIVEN a receiver that has seen the old token
    assert call(twilio_event({"Body": "hello", "MessageSid": "SM1"}))[0] == 200
    # WHEN the token is rotated and a text comes, signed with the new one
    runtime.vault.held["twilio"] = {"account_sid": "AC", "auth_tokens": ["new"]}
    runtime.clock += 10
    # THEN it is taken
    assert call(twilio_event({"Body": "hello", "MessageSid": "SM2"}, token="new"))[0] == 200
    # AND a flood of bad signatures does not become a flood of look-ups
    before = runtime.vault.reads["twilio"]
    for _ in range(50):
        assert call(twilio_event({"Body": "x", "MessageSid": "SM3"}, token="bad"))[0] == 403
    assert runtime.vault.reads["twilio"] - before <= 1


@pytest.mark.parametrize("refused", ["processing", "outbound.fifo"])
def test_a_queue_that_refuses_makes_the_provider_come_again(
    refused: str, runtime: FakeRuntime, capsys: pytest.CaptureFixture[str]
) -> None:
    runtime.queues.refuses[refused] = ConnectTimeoutError(endpoint_url="https://sqs")
    event = twilio_event({"Body": "a secret text", "MessageSid": "SM1"})
    status, headers, _ = call(event)
    assert (status, headers["Retry-After"]) == (503, "5")
    # AND what was taken before was processing's: "stored, not answered" can be repaired
    taken = len(sent(runtime, "processing")), len(sent(runtime, "outbound.fifo"))
    assert taken == (int(refused != "processing"), 0)
    # AND when it does come again, the message is on each queue (processing may have it twice)
    del runtime.queues.refuses[refused]
    assert call(event)[0] == 200
    assert len(sent(runtime, "outbound.fifo")) == 1
    assert_says_nothing(capsys.readouterr().out)


def test_a_secret_that_is_not_there_yet_is_no_refusal(
    runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a deployment that lacks one provider's secret
    held = runtime.vault.held.pop("twilio")
    restart(runtime, monkeypatch)
    # THEN that provider is to come again, and the others are served
    event = twilio_event({"Body": "hello", "MessageSid": "SM1"})
    assert call(event)[0] == 503
    assert call(telnyx_event())[0] == 200
    # AND once the secret is there, it is served too
    runtime.vault.held["twilio"] = held
    assert call(event)[0] == 200


@pytest.mark.parametrize(
    "secret", [{}, {"auth_token": "x"}, {"auth_tokens": "x"}, {"auth_tokens": [""]}]
)
def test_a_secret_without_a_key_is_no_refusal(
    secret: dict[str, Any], runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    # (a provider drops a text for good that got a 403)
    runtime.vault.held["twilio"] = secret
    restart(runtime, monkeypatch)
    assert call(twilio_event({"Body": "hello", "MessageSid": "SM1"}))[0] == 503


def test_secrets_manager_down_is_no_refusal(runtime: FakeRuntime) -> None:
    runtime.vault.fails = ConnectTimeoutError(endpoint_url="https://secrets")
    runtime.clock += 3600
    assert call(twilio_event({"Body": "hello", "MessageSid": "SM1"}))[0] == 200
    assert call(twilio_event({"Body": "hello", "MessageSid": "SM2"}, token="bad"))[0] == 503


def assert_says_nothing(output: str) -> None:
    for told in (THEIRS, OURS, THEIRS[1:], "a secret text", "a token of the tests"):
        assert told not in output


INBOUND = [
    # name, fields, what goes on (processing, outbound)
    ("no sender", {"From": ""}, (1, 0)),
    ("a sender that is not a number", {"From": "+1 (415) 555-0100"}, (1, 0)),
    ("an alphanumeric sender", {"From": "ACME"}, (1, 0)),
    ("a short code", {"From": "72345"}, (1, 1)),
    ("empty text with media", {"Body": "", "NumMedia": "1", "MediaUrl0": "https://x/1"}, (1, 1)),
    ("1,600 characters of emoji", {"Body": "😀" * 1600}, (1, 1)),
    ("NULs and control characters", {"Body": "a\x00b\x1b[31mc\ufffe"}, (1, 1)),
    ("a status for a message nobody knows", {"MessageStatus": "delivered"}, (1, 0)),
    ("a status that we do not know", {"MessageStatus": "pondering"}, (0, 0)),
]


@pytest.mark.parametrize(("name", "fields", "queued"), INBOUND, ids=[one[0] for one in INBOUND])
def test_odd_input_is_acknowledged_and_queued(
    name: str, fields: dict[str, str], queued: tuple[int, int], runtime: FakeRuntime
) -> None:
    event = twilio_event({"Body": "hello", "MessageSid": "SM1", **fields})
    assert call(event)[0] == 200
    counts = (len(sent(runtime, "processing")), len(sent(runtime, "outbound.fifo")))
    assert counts == queued


def test_lone_surrogates_in_json(runtime: FakeRuntime) -> None:
    assert call(telnyx_event(text="a\ud800b\x00c"))[0] == 200
    [envelope] = sent(runtime, "processing")
    assert envelope["payload"]["text"] == "a\ud800b\x00c"


def test_the_same_message_twice_at_once_is_one_on_the_outbound_queue(runtime: FakeRuntime) -> None:
    event = twilio_event({"Body": "hello", "MessageSid": "SM1"})
    assert [call(event)[0], call(event)[0]] == [200, 200]
    assert len(sent(runtime, "outbound.fifo")) == 1


def test_group_messages_are_kept_and_not_answered(runtime: FakeRuntime) -> None:
    assert call(telnyx_event(text="hi all", to=[OURS, "+14155550177"]))[0] == 200
    assert len(sent(runtime, "processing")) == 1
    assert len(sent(runtime, "outbound.fifo")) == 0


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(telnyx_event(body=b"{not json"), id="not the declared format"),
        pytest.param(telnyx_event(body=b"\xff\xfe\x00"), id="not UTF-8"),
        pytest.param(telnyx_event(body=b'{"data": []}'), id="another shape"),
        pytest.param(twilio_event({"Surprise": "yes"}), id="a form of something else"),
    ],
)
def test_a_signed_payload_that_cannot_be_read_is_kept_and_acknowledged(
    event: dict[str, Any], runtime: FakeRuntime
) -> None:
    assert call(event)[0] == 200
    [envelope] = sent(runtime, "processing")
    assert envelope["kind"] == "unreadable"
    body = event["body"].encode() if isinstance(event["body"], str) else event["body"]
    assert base64.b64decode(envelope["payload"]["body"]) == body
    assert not sent(runtime, "outbound.fifo")


def test_a_body_over_the_queues_limit_is_refused(
    runtime: FakeRuntime, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, body = call(telnyx_event(text="x" * 1_100_000))
    assert (status, json.loads(body)) == (413, {"error": "too_large"})
    assert not sent(runtime, "processing")
    assert "too_large" in capsys.readouterr().out


@pytest.mark.parametrize("provider", ["nobody", "api", "base", "..", ""])
@pytest.mark.parametrize("door", ["", "/signed"])
def test_an_unknown_provider(provider: str, door: str, runtime: FakeRuntime) -> None:
    event = api_event(
        "POST",
        f"/webhooks/{provider}{door}",
        "x",
        {},
        resource=f"/webhooks/{{provider}}{door}",
        parameters={"provider": provider},
    )
    assert call(event)[0] == 404


def test_a_provider_that_does_not_sign_is_refused_at_the_signed_door(
    runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Twilio, "signed", False)
    event = twilio_event({"Body": "hello", "MessageSid": "SM1"}, token="bad")
    assert call(event)[0] == 403
    assert not sent(runtime, "processing")


def test_every_refusal_is_logged(runtime: FakeRuntime, capsys: pytest.CaptureFixture[str]) -> None:
    authorize(basic("a-secret:text"))
    call(post({"to": THEIRS}))
    call(api_event("POST", "/webhooks/x", "", {}, parameters={"provider": f"x{THEIRS}"}))
    output = capsys.readouterr().out
    reasons = [json.loads(line)["reason"] for line in output.splitlines() if '"event"' in line]
    assert reasons == ["credentials", "bad_request"]
    assert_says_nothing(output)


def test_a_provider_that_is_not_configured_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = Receiver(FakeRuntime(), settings("receiver", PROVIDERS="telnyx", NUMBERS=""))
    monkeypatch.setattr(app_module, "function", {"receiving": receiver}.__getitem__)
    assert call(twilio_event({"Body": "hello", "MessageSid": "SM1"}))[0] == 404


def test_repeated_signature_headers_never_verify(runtime: FakeRuntime) -> None:
    event = twilio_event({"Body": "hello", "MessageSid": "SM1"})
    event["multiValueHeaders"]["X-Twilio-Signature"] *= 2
    assert call(event)[0] == 403


# -- POST /messages, GET /messages/{id} ----------------------------------------


def post(body: Any, *, key: str = "k1", principal: str = "api") -> dict[str, Any]:
    text = body if isinstance(body, str) else json.dumps(body)
    headers = {"Content-Type": "application/json", **({"Idempotency-Key": key} if key else {})}
    return api_event("POST", "/messages", text, headers, principal=principal)


def test_an_outgoing_text_is_queued_once(runtime: FakeRuntime) -> None:
    answers = [call(post({"to": THEIRS, "text": "hello"})) for _ in range(2)]
    assert [status for status, _, _ in answers] == [202, 202]
    assert answers[0][2] == answers[1][2]
    [envelope] = sent(runtime, "outbound.fifo")
    assert envelope["payload"] == {
        "provider": "twilio",
        "ours": OURS,
        "theirs": THEIRS,
        "text": "hello",
        "media": [],
    }
    assert envelope["id"] == json.loads(answers[0][2])["id"]
    assert not sent(runtime, "processing")


def test_two_principals_may_use_the_same_key(runtime: FakeRuntime) -> None:
    for principal in ("api", "another"):
        call(post({"to": THEIRS, "text": "hello"}, principal=principal))
    assert len({envelope["id"] for envelope in sent(runtime, "outbound.fifo")}) == 2


def test_a_receipt_carries_the_conversation_of_its_reference(runtime: FakeRuntime) -> None:
    conversation = "c" * 24
    fields = {"MessageSid": "SM9", "MessageStatus": "sent"}
    call(twilio_event(fields, reference=f"{conversation}-{'a' * 24}-1"))
    [envelope] = sent(runtime, "processing")
    assert envelope["conversation"] == conversation


@pytest.mark.parametrize(
    ("body", "key", "names"),
    [
        ({"to": THEIRS, "text": "x"}, "", "Idempotency-Key"),
        ({"to": THEIRS, "text": "x"}, "k" * 256, "Idempotency-Key"),
        ("not json", "k", "JSON"),
        ("[]", "k", "JSON"),
        ("\udcff", "k", "JSON"),
        ({"text": "x"}, "k", "to:"),
        ({"to": "4155550100 x", "text": "x"}, "k", "to:"),
        ({"to": "ACME", "text": "x"}, "k", "to:"),
        ({"to": 14155550100, "text": "x"}, "k", "to:"),
        ({"to": THEIRS, "from": "+19995550100", "text": "x"}, "k", "from:"),
        ({"to": THEIRS}, "k", "text:"),
        ({"to": THEIRS, "text": " "}, "k", "text:"),
        ({"to": THEIRS, "text": 7}, "k", "text:"),
        ({"to": THEIRS, "text": "x" * 20_001}, "k", "text:"),
        ({"to": THEIRS, "media": "https://x"}, "k", "media:"),
        ({"to": THEIRS, "media": ["file:///etc/passwd"]}, "k", "media:"),
        *(
            ({"to": THEIRS, "media": [url]}, "k", "media:")
            for url in ("http://[", "http://?x", "http://:80/", "http://x:0/", "http://x y/")
        ),
        ({"to": THEIRS, "text": "x", "cc": "y"}, "k", "may have"),
    ],
)
def test_a_bad_request_of_our_own_client(
    body: Any, key: str, names: str, runtime: FakeRuntime
) -> None:
    event = post("{}" if body == "\udcff" else body, key=key)
    if body == "\udcff":
        event["body"] = b"\xff"
    status, _, answer = call(event)
    assert status == 400
    assert names in json.loads(answer)["error"]
    assert not sent(runtime, "outbound.fifo")


def test_a_queue_that_refuses_an_outgoing_text(
    runtime: FakeRuntime, capsys: pytest.CaptureFixture[str]
) -> None:
    runtime.queues.refuses["outbound.fifo"] = ConnectTimeoutError(endpoint_url="https://sqs")
    assert call(post({"to": THEIRS, "text": "x"}))[0] == 503
    refused = lines(capsys)
    # AND when it comes again, it has the id under which it was refused
    del runtime.queues.refuses["outbound.fifo"]
    id_ = json.loads(call(post({"to": THEIRS, "text": "x"}))[2])["id"]
    assert [line["id"] for line in (*refused, *lines(capsys))] == [id_] * 3


@pytest.mark.parametrize(
    ("error", "unexpected"),
    [
        (ConnectTimeoutError(endpoint_url="https://sqs"), []),
        (QueueRefused("1 of 2 not taken"), []),
        (RuntimeError(THEIRS), [1]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_fault_that_nobody_expects_is_counted(
    runtime: FakeRuntime,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    unexpected: list[int],
) -> None:
    runtime.queues.refuses["processing"] = error
    assert call(twilio_event({"Body": "a secret text", "MessageSid": "SM1"}))[0] == 503
    said = lines(capsys)
    assert [line["Faults"] for line in said if "Faults" in line] == [1]
    assert [line["UnexpectedErrors"] for line in said if "UnexpectedErrors" in line] == unexpected


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_campaign_hides_no_replies(
    runtime: FakeRuntime, capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN an outbound queue with room for one more
    runtime.queues.depth = 19_999
    assert call(post({"to": THEIRS, "text": "a secret text"}, key="k1"))[0] == 202
    # WHEN it is full, and has been looked at since, THEN our own clients are to come again later
    runtime.clock += 10
    capsys.readouterr()
    status, headers, body = call(post({"to": THEIRS, "text": "a secret text"}, key="k2"))
    assert (status, json.loads(body)) == (429, {"error": "queue_full"})
    assert headers["Retry-After"] == "30"
    assert len(sent(runtime, "outbound.fifo")) == 1
    # AND that is counted, in one metric for all providers, and logged
    output = capsys.readouterr().out
    metric, line = map(json.loads, output.splitlines())
    assert (metric["Refused"], metric["reason"], "provider" in metric) == (1, "queue_full", False)
    assert (line["event"], line["reason"]) == ("refused", "queue_full")
    assert_says_nothing(output)
    # AND a bad request is told so
    assert call(post({"to": THEIRS}, key="k2"))[0] == 400
    # AND what people write to us is taken
    assert call(twilio_event({"Body": "STOP", "MessageSid": "SM1"}))[0] == 200
    assert call(telnyx_event())[0] == 200
    assert len(sent(runtime, "outbound.fifo")) == 3
    # AND when it has room again, the same request is taken, once it has been looked at
    runtime.queues.depth = 0
    runtime.clock += 30
    assert call(post({"to": THEIRS, "text": "a secret text"}, key="k2"))[0] == 202


def test_the_depth_is_looked_at_every_ten_seconds_and_for_no_webhook(runtime: FakeRuntime) -> None:
    call(twilio_event({"Body": "hello", "MessageSid": "SM1"}))
    assert runtime.queues.depth_reads == 0
    for number in range(40):
        runtime.queues.depth = 20_000 if number < 15 else 0
        # What was seen last counts for ten seconds: refused at 0 to 19, taken from 20 on.
        assert call(post({"to": THEIRS, "text": "x"}, key=f"k{number}"))[0] == (
            429 if number < 20 else 202
        )
        runtime.clock += 1
    assert runtime.queues.depth_reads == 4


def test_a_depth_that_cannot_be_read_refuses_nobody(
    runtime: FakeRuntime, capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN a full queue that cannot be asked any more
    runtime.queues.depth = 20_000
    assert call(post({"to": THEIRS, "text": "x"}))[0] == 429
    runtime.queues.depth = ConnectTimeoutError(endpoint_url="https://sqs")
    runtime.clock += 10
    capsys.readouterr()
    # THEN SQS decides itself, and is not asked again each time
    assert call(post({"to": THEIRS, "text": "x"}, key="k1"))[0] == 202
    assert call(post({"to": THEIRS, "text": "x"}, key="k2"))[0] == 202
    assert runtime.queues.depth_reads == 2
    assert capsys.readouterr().out.count("depth_not_read") == 1
    runtime.queues.refuses["outbound.fifo"] = ConnectTimeoutError(endpoint_url="https://sqs")
    assert call(post({"to": THEIRS, "text": "x"}, key="k3"))[0] == 503


def test_a_fault_of_ours_with_an_outgoing_text(
    runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise RuntimeError(THEIRS)

    monkeypatch.setattr(Keys, "conversation", fail)
    assert call(post({"to": THEIRS, "text": "x"}))[0] == 503


@pytest.mark.parametrize(
    ("id_", "error"),
    [("nonsense", "not_a_message_id"), ("0" * 24 + "-" + "1" * 24, "not_seen_yet")],
)
def test_asking_for_a_message_that_is_not_there(
    id_: str, error: str, stores: None, runtime: FakeRuntime
) -> None:
    event = api_event(
        "GET", f"/messages/{id_}", None, {}, resource="/messages/{id}", parameters={"id": id_}
    )
    status, _, body = call(event)
    assert (status, json.loads(body)) == (404, {"error": error})


# -- POST /consent ----------------------------------------

SAID = {"number": THEIRS, "event": "stop", "source": "telephone", "note": "heron at 10:31"}


def state(body: Any) -> dict[str, Any]:
    text = body if isinstance(body, str) else json.dumps(body)
    headers = {"Content-Type": "application/json"}
    return api_event("POST", "/consent", text, headers, principal="api")


def test_what_somebody_said_otherwise_is_queued_for_processing(
    runtime: FakeRuntime, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = [call(state({**SAID, "at": "2026-09-20T12:00:00+02:00"})) for _ in range(2)]
    # THEN a repetition is the same statement, whatever the queue makes of two messages
    assert [status for status, _, _ in answers] == [202, 202]
    first, second = sent(runtime, "processing")
    assert first == second
    assert first["payload"] == {**SAID, "at": 1_789_898_400.0}
    assert (first["kind"], first["conversation"]) == ("consent", "")
    assert json.loads(answers[0][2]) == {"id": first["id"]}
    assert not sent(runtime, "outbound.fifo")
    # AND each line about it has its id, and says nothing of whom it is about
    output = capsys.readouterr().out
    assert [json.loads(line)["id"] for line in output.splitlines()] == [first["id"]] * 2
    assert_says_nothing(output)


def test_a_stop_without_a_time_is_said_now(runtime: FakeRuntime) -> None:
    for _ in range(2):
        assert call(state(SAID))[0] == 202
        runtime.clock += 9
    first, second = (envelope["payload"] for envelope in sent(runtime, "processing"))
    assert (first["at"], second["at"]) == (NOW, NOW + 9)


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ("not json", "JSON"),
        ("[]", "JSON"),
        ({**SAID, "number": "heron"}, "number:"),
        ({**SAID, "at": "yesterday"}, "at:"),
        ({**SAID, "strange": 1}, "may have"),
    ],
)
def test_a_bad_statement_of_our_own_client(
    body: Any, names: str, runtime: FakeRuntime, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, answer = call(state(body))
    assert status == 400
    assert names in json.loads(answer)["error"]
    assert not sent(runtime, "processing")
    assert_says_nothing(capsys.readouterr().out)


def test_a_queue_that_refuses_a_statement(
    runtime: FakeRuntime, capsys: pytest.CaptureFixture[str]
) -> None:
    runtime.queues.refuses["processing"] = ConnectTimeoutError(endpoint_url="https://sqs")
    status, headers, _ = call(state({**SAID, "at": NOW}))
    assert (status, headers["Retry-After"]) == (503, "5")
    refused = lines(capsys)
    # AND when it comes again, it has the id under which it was refused
    del runtime.queues.refuses["processing"]
    id_ = json.loads(call(state({**SAID, "at": NOW}))[2])["id"]
    assert [line["id"] for line in (*refused, *lines(capsys))] == [id_] * 3


# -- the address that was called ----------------------------------------


@pytest.mark.parametrize(
    ("path", "public", "door"),
    [
        ("/prod/webhooks/twilio/signed", "", f"https://{HOST}/prod/webhooks/twilio/signed"),
        ("/webhooks/twilio/signed", "", f"https://{HOST}/webhooks/twilio/signed"),
        ("/sms/v1/webhooks/twilio/signed", "", f"https://{HOST}/sms/v1/webhooks/twilio/signed"),
        ("/messages/webhooks/twilio/signed", "", f"https://{HOST}/messages/webhooks/twilio/signed"),
        (
            "/prod/webhooks/twilio/signed",
            "https://tunnel.example.com/base",
            "https://tunnel.example.com/base/webhooks/twilio/signed",
        ),
    ],
)
def test_receipts_come_back_to_the_address_that_was_called(
    path: str, public: str, door: str
) -> None:
    runtime = FakeRuntime()
    receiver = Receiver(runtime, settings("receiver", PUBLIC_URL=public))
    event = twilio_event({"Body": "hello", "MessageSid": "SM1"}, url=door)
    event["requestContext"]["path"] = path
    assert receiver.webhook("twilio", event, signed_door=True).status == 200
    assert sent(runtime, "outbound.fifo")[0]["callback_url"] == door


def test_form_encoding_is_read_as_twilio_writes_it(runtime: FakeRuntime) -> None:
    event = twilio_event({"Body": "a+b & c=d é 😀", "MessageSid": "SM1"})
    assert urlencode({"Body": "a+b & c=d é 😀"}) in event["body"]
    call(event)
    assert sent(runtime, "outbound.fifo")[0]["payload"]["text"] == "a+b & c=d é 😀"

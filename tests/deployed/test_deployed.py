"""The whole system as it is deployed: packaged, in stacks, behind API Gateway, in Lambda. A story:
each test goes on where the one before it ended.

    make e2e                        in an emulated account
    make aws-proof STAGE=proof      in the account of your environment
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from tests.deployed.target import OURS, SOON, TWILIOS, Target, states, until

PERSON = "+14155550100"


def test_it_is_deployed_from_nothing(target: Target) -> None:
    # GIVEN credentials for those who call, which the settings keep as hashes
    for principal in ("sandbox", "twilio", "api"):
        made = json.loads(target.spillway("credential", "new", principal, "--json").stdout)
        target.credentials[principal] = made["credential"]
    # WHEN it is deployed, THEN it says where the webhooks are, and what is missing
    result = target.deploy("first")
    assert set(result["changes"]) >= {
        f"spillway-{target.stage}-data",
        f"spillway-{target.stage}",
    }
    assert result["webhooks"]["sandbox"].endswith("/webhooks/sandbox/signed")
    assert [note for note in result["notes"] if "sandbox has no secret yet" in note]
    # WHEN its secret is set, THEN nothing is missing, and nothing changes any more
    secret = json.dumps({"keys": [target.key]})
    target.spillway("secret", "set", "sandbox", typed=secret)
    if target.emulator:
        # Its events do not say under which address they came.
        target.set(PUBLIC_URL=target.api.address)
        assert target.deploy("settings")["changes"][f"spillway-{target.stage}"]
    again = target.deploy("again")
    assert set(map(tuple, again["changes"].values())) == {()}


def test_health(target: Target) -> None:
    answer = target.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_who_shows_no_credentials_is_asked_for_them(target: Target) -> None:
    # What Twilio and Bandwidth wait for, before they send theirs.
    answer = target.post("/webhooks/sandbox")
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="spillway"'
    assert answer.json() == {"error": "credentials_wanted"}


@pytest.mark.parametrize(
    ("path", "who", "status", "error"),
    [
        ("/webhooks/sandbox", "nobody", 403, "credentials_refused"),
        ("/webhooks/sandbox", "api", 403, "credentials_refused"),
        ("/webhooks/sandbox", "twilio", 403, "credentials_refused"),
        ("/webhooks/telnyx", "sandbox", 403, "credentials_refused"),
        ("/messages", "sandbox", 403, "credentials_refused"),
        ("/consent", "sandbox", 403, "credentials_refused"),
        # Who may come in is not believed yet.
        ("/webhooks/sandbox", "sandbox", 403, "signature"),
        ("/webhooks/sandbox/signed", "", 403, "signature"),
        ("/webhooks/carrier-pigeon/signed", "", 404, "unknown_provider"),
        ("/messages", "api", 400, "the header Idempotency-Key must have 1 to 255 visible"),
        ("/consent", "api", 400, "number: must be a number such as"),
    ],
)
def test_whom_nobody_lets_in(target: Target, path: str, who: str, status: int, error: str) -> None:
    target.credentials["nobody"] = "spillway:guessed"
    answer = target.post(path, who=who)
    assert answer.status_code == status
    assert answer.json()["error"].startswith(error)


def test_a_question_without_credentials_is_not_answered(target: Target) -> None:
    assert target.get(f"/messages/{'0' * 24}-{'0' * 24}").status_code == 401
    assert target.get(f"/messages/{'0' * 24}-{'0' * 24}", who="sandbox").status_code == 403
    assert target.get(f"/messages/{'0' * 24}-{'0' * 24}", who="api").status_code == 404


@pytest.mark.parametrize("door", ["basic", "signed"])
def test_a_text_goes_all_the_way(target: Target, door: str) -> None:
    # GIVEN a text at either door
    sender = PERSON if door == "basic" else "+14155550101"
    answer = target.text(f"way-{door}", sender, f"hello at the {door} door", door=door)
    assert (answer.status_code, answer.text) == (200, "{}")
    # THEN it is stored, archived and answered
    (reply,) = target.answered(sender, 1)
    ((stored,), _) = target.items(sender)
    assert (stored["text"], stored["valid"]) == (f"hello at the {door} door", True)
    lines = {line["id"]: line for line in target.stores.lines(stored["archive_key"])}
    id_ = f"{stored['pk'].partition('#')[2]}-{stored['sk'].partition('#')[2]}"
    assert lines[id_]["raw"]["text"] == f"hello at the {door} door"
    (part,) = reply["parts"].values()
    assert part["text"] == f"You wrote: hello at the {door} door"
    assert part["provider_id"] == f"sandbox-{id_}-1"
    # WHEN the provider says that it arrived, THEN whoever asks is told so
    receipt = {"id": part["provider_id"], "reference": f"{id_}-1", "status": "delivered"}
    assert target.event(receipt).status_code == 200
    until(lambda: state_of(target, id_) == "delivered", SOON)
    # AND its life can be told, log lines of all functions included
    told = json.loads(target.spillway("trace", id_, "--json").stdout)
    assert told[0]["state"] == "delivered"
    where = {event["where"] for event in told[0]["events"]}
    assert where >= {"table", "archive", "ledger", "receiver", "processing", "sender"}


def test_a_duplicate_changes_nothing(target: Target) -> None:
    sender = "+14155550102"
    for _ in range(3):
        assert target.text("twice", sender).status_code == 200
    target.answered(sender, 1)


def test_our_own_clients_send(target: Target) -> None:
    body = {"to": "+14155550103", "from": OURS, "text": "It is ready."}
    answers = [
        target.post("/messages", body, who="api", headers={"Idempotency-Key": "order-7"})
        for _ in range(2)
    ]
    assert [answer.status_code for answer in answers] == [202, 202]
    (id_,) = {answer.json()["id"] for answer in answers}
    until(lambda: state_of(target, id_) == "sent", SOON)
    (_, (reply,)) = target.items("+14155550103")
    assert [part["text"] for part in reply["parts"].values()] == ["It is ready."]


def test_who_says_stop_gets_no_more(target: Target) -> None:
    sender = "+14155550104"
    assert target.text("stop", sender, "STOP").status_code == 200
    target.answered(sender, 1)
    body = {"to": sender, "from": OURS, "text": "But wait!"}
    answer = target.post("/messages", body, who="api", headers={"Idempotency-Key": "late"})
    until(lambda: state_of(target, answer.json()["id"]) == "refused: opted_out", SOON)


def test_a_simulated_provider_carries_it(target: Target, simulator: str) -> None:
    # GIVEN Twilio, which shows its credentials only when it is asked for them
    target.set("process", "send", TWILIO_API_URL=f"{simulator}/provider/twilio")
    target.deploy("simulated provider")
    said = target.http.post(
        f"{simulator}/provider/inbound",
        json={"provider": "twilio", "from": PERSON, "to": TWILIOS, "text": "hello, Twilio"},
    ).json()
    assert (said["status"], said["door"]) == (200, "basic")
    # THEN the answer is in its outbox, and its receipt in the ledger

    def delivered() -> bool:
        _, replies = target.items(PERSON, TWILIOS)
        return any(states(reply) and first(reply).get("status") == "delivered" for reply in replies)

    until(delivered, SOON)
    outbox = target.http.get(f"{simulator}/provider/outbox").json()
    assert [entry["text"] for entry in outbox] == ["You wrote: hello, Twilio"]


def test_what_is_no_message_is_put_aside_and_seen(target: Target) -> None:
    sqs = target.aws.client("sqs")
    url = target.stores.urls["processing"]
    assert "Nothing wants attention" in target.spillway("status").stdout
    sqs.send_message(QueueUrl=url, MessageBody="heron")
    until(lambda: target.stores.depths()["processing-dlq"].total, SOON)
    (letter,) = target.stores.dead_letters("processing-dlq")
    assert (letter.body, letter.history["reason"]) == ("heron", "not_an_envelope")
    # THEN the status says so, until somebody has seen to it
    done = target.spillway("status", good=False)
    assert (done.returncode, "1 on processing-dlq" in done.stdout) == (1, True)
    dead = target.stores.urls["processing-dlq"]
    sqs.delete_message(QueueUrl=dead, ReceiptHandle=letter.receipt_handle)
    until(lambda: not target.stores.depths()["processing-dlq"].total, SOON)


def test_the_doctor_finds_nothing_bad(target: Target) -> None:
    findings = examined(target)
    # (Whoever is told of alarms has to confirm it by mail.)
    assert {one["about"] for one in findings if one["level"] == "bad"} <= {"alarms"}
    assert {one["about"] for one in findings} >= {
        "settings",
        "functions",
        "mappings",
        "gateway",
        "secrets",
        "queues",
        "table",
        "alarms",
        "quotas",
        "probe",
        "runtime",
    }
    said = {one["said"] for one in findings if one["level"] == "good"}
    assert "sandbox: stored, and not answered" in said
    assert "sandbox: unsigned is refused" in said


def test_the_doctor_finds_and_mends_what_chalice_cannot_set(target: Target) -> None:
    # GIVEN what a plain `chalice deploy` leaves: no reports on a mapping, no challenge
    lambda_, gateway = target.aws.client("lambda"), target.aws.client("apigateway")
    (mapping,) = lambda_.list_event_source_mappings(FunctionName=f"spillway-{target.stage}-send")[
        "EventSourceMappings"
    ]
    lambda_.update_event_source_mapping(UUID=mapping["UUID"], FunctionResponseTypes=[])
    gateway.delete_gateway_response(restApiId=target.api.id, responseType="UNAUTHORIZED")
    # THEN both are found
    bad = {one["about"] for one in examined(target) if one["level"] == "bad"}
    assert bad - {"alarms"} == {"mappings", "gateway"}
    # WHEN they are mended, THEN all is well again
    bad = {one["about"] for one in examined(target, "--mend") if one["level"] == "bad"}
    assert bad <= {"alarms"}
    answer = target.post("/webhooks/sandbox")
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="spillway"'


def test_an_update_loses_nothing(target: Target) -> None:
    # GIVEN texts that keep coming while the code is changed and deployed
    count, senders = 40, [f"+1415555{number}" for number in range(200, 204)]
    code = target.project / "chalicelib" / "yours" / "replies.py"
    code.write_text(code.read_text().replace("You wrote:", "You wrote now:"))
    refused: list[int] = []
    ended = threading.Event()

    def write() -> None:
        for number in range(count):
            for _ in range(5):
                answer = target.text(f"update-{number}", senders[number % 4], f"text {number}")
                if answer.status_code == 200:
                    break
                # As a provider does: what was not acknowledged comes again.
                refused.append(answer.status_code)
                ended.wait(1.0)
            ended.wait(0.05)

    writing = threading.Thread(target=write)
    writing.start()
    result = target.deploy("update")
    writing.join()
    changed = result["changes"][f"spillway-{target.stage}"]
    assert {"Modify Process", "Modify Send", "Modify APIHandler"} <= set(changed)
    # THEN nothing was refused for good, and each is stored and answered once
    assert all(status >= 500 for status in refused)
    for sender in senders:
        replies = target.answered(sender, count // 4)
        texts = [first(reply)["text"].partition(": ")[2] for reply in replies]
        assert len(set(texts)) == count // 4
    # AND the new code answers by now
    assert target.text("new", "+14155550210", "hello").status_code == 200
    (reply,) = target.answered("+14155550210", 1)
    assert first(reply)["text"] == "You wrote now: hello"


def test_step_functions_analyses_what_comes_if_it_is_asked_to(target: Target) -> None:
    if target.emulator:
        pytest.skip("MiniStack's API Gateway has no such integration: tests/test_validation.py")
    door = "/webhooks/sandbox/signed"
    changes = target.deploy("validation", "--validate-with-step-functions")["changes"]
    assert "Add ValidationMachine" in changes[f"spillway-{target.stage}"]
    # WHEN nonsense comes, THEN the receiver does not get it
    until(lambda: target.post(door, b"{").status_code == 400, SOON)
    for body, content_type, status, error in (
        (b"{", "application/json", 400, "malformed"),
        (b"", "application/json", 400, "incomplete"),
        (b'{"event": []}', "application/json", 400, "incomplete"),
        (b"{}", "text/plain", 415, "wrong_content_type"),
        (b"x" * 184_321, "application/json", 413, "too_large"),
        # What could be a webhook, but nobody signed it.
        (b'{"events": []}', "application/json", 403, "signature"),
    ):
        answer = target.post(door, body, headers={"Content-Type": content_type})
        assert (answer.status_code, answer.json()) == (status, {"error": error})
    # AND a text goes through byte for byte, whatever is in it
    words = '"\'`“” \\" é 中文 😀 100% a&b=c+d\r\n\t #set($x=1)$x $context.apiId {% $states %} ${x}'
    answer = target.text("validated", "+14155550105", words)
    assert (answer.status_code, answer.text) == (200, "{}")
    assert answer.headers["Content-Type"] == "application/json"
    target.answered("+14155550105", 1)
    ((stored,), _) = target.items("+14155550105")
    assert stored["text"] == words
    # WHEN it is deployed without, THEN it goes
    assert (
        "Remove ValidationMachine"
        in target.deploy("no validation")["changes"][f"spillway-{target.stage}"]
    )


def test_destroying_it_keeps_the_data_until_told_twice(target: Target) -> None:
    # WHEN the app is destroyed, THEN its data is there still
    target.spillway("destroy", "--yes")
    assert len(target.items("+14155550210")[0]) == 1
    assert target.stores.depths()["outbound.fifo"].total == 0
    # AND deployed again it goes on with it: a late duplicate is known
    target.deploy("anew")
    if target.emulator:
        target.set(PUBLIC_URL=target.api.address)
        target.deploy("anew, settings")
    assert target.text("new", "+14155550210", "hello").status_code == 200
    assert target.text("newer", "+14155550210", "again").status_code == 200
    replies = target.answered("+14155550210", 2)
    assert len(replies) == 2
    # WHEN the data is to go, THEN once is not enough
    done = target.spillway("destroy", "--yes", "--data", good=False)
    assert (done.returncode, "Say so twice" in done.stderr) == (1, True)
    assert len(target.items("+14155550210")[0]) == 2
    # WHEN it is said twice, THEN nothing is left
    target.spillway("destroy", "--yes", "--data", "--confirm", target.stage)
    tables = target.aws.client("dynamodb").list_tables()["TableNames"]
    assert f"spillway-{target.stage}" not in tables
    names = target.aws.client("sqs").list_queues(QueueNamePrefix=f"spillway-{target.stage}-")
    assert not names.get("QueueUrls")
    buckets = [one["Name"] for one in target.aws.client("s3").list_buckets()["Buckets"]]
    assert not [name for name in buckets if name.startswith(f"spillway-{target.stage}-")]


def state_of(target: Target, id_: str) -> str:
    answer = target.get(f"/messages/{id_}", who="api")
    return str(answer.json()["state"]) if answer.status_code == 200 else ""


def first(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    part: Mapping[str, Any] = reply["parts"]["1"]
    return part


def examined(target: Target, *options: str) -> list[dict[str, Any]]:
    done = target.spillway("doctor", "--json", *options, good=False)
    findings: list[dict[str, Any]] = json.loads(done.stdout)
    assert done.returncode == any(one["level"] == "bad" for one in findings), done.stderr
    return findings

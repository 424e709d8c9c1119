"""A message's whole way through the local stack: real processes, the emulator, both providers."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from chalicelib.messages import Keys
from spillway.simulator import twilio
from tests.e2e.stack import PROJECT, Stack, free_port, running, until

HEARD: list[tuple[dict[str, str], bytes]] = []


class Business(BaseHTTPRequestHandler):
    """The business's own system: it takes events, but for the first two."""

    refused = count()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        taken = next(self.refused) >= 2
        self.send_response(204 if taken else 503)
        self.end_headers()
        if taken:
            HEARD.append(({name.lower(): value for name, value in self.headers.items()}, body))

    def log_message(self, *_: object) -> None:
        """Nothing is said."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Business)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/events"
        folder = tmp_path_factory.mktemp("spillway")
        with running(folder, variables={"EVENTS_URL": url}) as stack:
            yield stack
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def spillway(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "spillway.cli", *arguments],
        cwd=PROJECT,
        env=stack.environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.parametrize(
    ("provider", "door"), [("twilio", "basic"), ("twilio", "signed"), ("telnyx", "signed")]
)
def test_a_text_is_answered_and_its_receipt_recorded(
    stack: Stack, provider: str, door: str
) -> None:
    # GIVEN a text with a picture that came through a door and was acknowledged
    words = f"hello, {provider} at the {door} door: é 😀"
    picture = f"a picture at the {door} door".encode()
    media = [{"content": base64.b64encode(picture).decode(), "content_type": "image/png"}]
    sent = stack.inbound(words, provider=provider, door=door, sender="+14155550111", media=media)
    assert sent["status"] == 200
    # (Twilio shows its credentials only after a challenge)
    assert sent["attempts"] == (2 if door == "basic" else 1)

    # THEN the internal API's answer goes out
    until(lambda: words in stack.answers(), 20)
    # AND the message is in both stores
    ours = stack.local["numbers"][provider]

    def stored() -> list[dict[str, Any]]:
        items = stack.stores.conversation(ours, "+14155550111")
        return [i for i in items if i.get("text") == words]

    [item] = until(stored, 20)
    assert item["valid"]
    assert set(item["lookups"]) == {"customer", "line"}
    lines = [line for line in stack.stores.archived(0) if line["text"] == words]
    assert [line["provider_id"] for line in lines] == [sent["id"]]
    # AND its picture is in the archive
    (medium,) = item["media"]
    found = stack.stores.object(medium["key"])
    assert found is not None
    assert found[0] == picture

    # AND its receipt reaches the ledger
    def delivered() -> bool:
        replies = stack.stores.conversation(ours, "+14155550111")
        return any(
            part["text"] == words and part.get("status") == "delivered"
            for reply in replies
            for part in reply.get("parts", {}).values()
        )

    until(delivered, 20)


def test_duplicates_at_once_and_later_are_answered_once(stack: Stack) -> None:
    def deliver(_: int) -> int:
        url, headers, body = twilio.inbound(
            webhook=stack.local["webhook"],
            secrets=stack.local["secrets"]["twilio"],
            sender="+14155550112",
            recipient=stack.local["numbers"]["twilio"],
            text="only once",
            id="SM" + "d" * 32,
            now=0,
            door="signed",
        )
        return stack.http.post(url, headers=dict(headers), content=body).status_code

    # GIVEN the same webhook eight times at once
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(deliver, range(8))) == {200}
    until(lambda: "only once" in stack.answers(), 20)
    # WHEN it comes again after everything is done, with the queue's own memory of it gone
    until(lambda: all(depth.total == 0 for depth in stack.stores.depths().values()), 20)
    queue_forgets(stack, "SM" + "d" * 32)
    # THEN nothing more is sent, and it is one item in the table and one line an object names
    until(lambda: all(depth.total == 0 for depth in stack.stores.depths().values()), 20)
    assert Counter(stack.answers())["only once"] == 1
    ours = stack.local["numbers"]["twilio"]
    items = stack.stores.conversation(ours, "+14155550112")
    kinds = sorted(item["sk"].partition("#")[0] for item in items)
    assert kinds == ["IN", "LOOP", "OUT"]


def queue_forgets(stack: Stack, provider_id: str) -> None:
    """Puts a message on the outbound queue again under another deduplication id: what the receiver
    does when a duplicate comes more than 5 minutes later."""
    keys: Keys = stack.stores.keys
    ours, theirs = stack.local["numbers"]["twilio"], "+14155550112"
    account = stack.local["secrets"]["twilio"]["account_sid"]
    conversation = keys.conversation(ours, theirs)
    message = keys.message("twilio", account, provider_id)
    body = {
        "kind": "inbound",
        "conversation": conversation,
        "id": f"{conversation}-{message}",
        "received_at": time.time(),
        "callback_url": "",
        "payload": {
            "provider": "twilio",
            "account": account,
            "id": provider_id,
            "sender": theirs,
            "recipient": ours,
            "text": "only once",
            "received_at": time.time(),
        },
    }
    stack.stores.aws.client("sqs").send_message(
        QueueUrl=stack.stores.urls["outbound.fifo"],
        MessageBody=json.dumps(body),
        MessageGroupId=conversation,
        MessageDeduplicationId="later",
    )


def test_our_own_clients_send_and_ask(stack: Stack) -> None:
    webhook, token = stack.local["webhook"], stack.local["credentials"]["api"]
    request = {"to": "+14155550113", "text": "your table is ready"}
    headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": "table-7"}
    for _ in range(2):
        answer = stack.http.post(f"{webhook}/messages", json=request, headers=headers)
        assert answer.status_code == 202
    id_ = answer.json()["id"]

    def state() -> bool:
        answer = stack.http.get(f"{webhook}/messages/{id_}", headers=headers)
        return answer.status_code == 200 and answer.json()["state"] == "delivered"

    until(state, 20)
    assert Counter(stack.answers())["your table is ready"] == 1


def test_an_opted_out_number_gets_nothing(stack: Stack) -> None:
    assert stack.inbound("STOP", sender="+14155550114")["status"] == 200
    assert stack.inbound("are you there?", sender="+14155550114")["status"] == 200
    webhook, token = stack.local["webhook"], stack.local["credentials"]["api"]
    headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": "after-stop"}
    request = {"to": "+14155550114", "text": "buy now"}
    id_ = stack.http.post(f"{webhook}/messages", json=request, headers=headers).json()["id"]

    def refused() -> bool:
        answer = stack.http.get(f"{webhook}/messages/{id_}", headers=headers)
        return bool(answer.json().get("state") == "refused: opted_out")

    until(refused, 20)
    assert not {"buy now", "are you there?"} & set(stack.answers())


def test_what_is_said_on_the_telephone_counts(stack: Stack) -> None:
    webhook, token = stack.local["webhook"], stack.local["credentials"]["api"]
    headers = {"Authorization": f"Bearer {token}"}
    said = {"number": "+14155550116", "event": "stop", "source": "telephone", "note": "at 10:31"}
    assert stack.http.post(f"{webhook}/consent", json=said, headers=headers).status_code == 202

    def shown() -> dict[str, Any]:
        done = spillway(stack, "consent", "show", "+14155550116", "--json")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    until(lambda: shown()["state"] == "opted_out", 20)
    assert [(one["source"], one["words"]) for one in shown()["events"]] == [
        ("telephone", "at 10:31")
    ]

    # AND who is asked at the counter, and wants our texts again, can have them
    arguments = ("consent", "start", "+14155550116", "--source", "counter", "--yes", "--json")
    assert json.loads(spillway(stack, *arguments).stdout)["state"] == "opted_in"


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/webhooks/twilio", {}, 401),
        ("/webhooks/twilio", {"Authorization": "Basic eDp5"}, 403),
        ("/messages", {}, 401),
        ("/messages", {"Authorization": "Bearer twilio"}, 403),
        ("/consent", {}, 401),
        ("/consent", {"Authorization": "Bearer twilio"}, 403),
        ("/webhooks/twilio/signed", {}, 403),
        ("/webhooks/telnyx/signed", {}, 403),
        ("/webhooks/nobody/signed", {}, 404),
    ],
)
def test_the_doors_refuse(stack: Stack, path: str, headers: dict[str, str], status: int) -> None:
    answer = stack.http.post(stack.local["webhook"] + path, headers=headers, content=b"x=1")
    assert answer.status_code == status
    if status == 401:
        assert answer.headers["WWW-Authenticate"].startswith("Basic realm=")


def test_a_principal_may_use_its_own_paths_only(stack: Stack) -> None:
    credentials = base64.b64encode(stack.local["credentials"]["twilio"].encode()).decode()
    answer = stack.http.post(
        f"{stack.local['webhook']}/messages",
        json={"to": "+14155550115", "text": "x"},
        headers={"Authorization": f"Basic {credentials}", "Idempotency-Key": "k"},
    )
    assert answer.status_code == 403


def test_the_text_command_shows_each_step(stack: Stack) -> None:
    done = spillway(stack, "text", "hello there", "--provider", "telnyx", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    steps = [step["step"] for step in found["steps"]]
    assert found["complete"]
    assert steps[0] == "acknowledged"
    assert set(steps) == {
        "acknowledged",
        "decided",
        "answered",
        "stored",
        "archived",
        "delivered",
    }


def test_the_text_command_speaks_for_the_number_given(stack: Stack) -> None:
    done = spillway(stack, "text", "from another number", "--from", "+14155550118")
    assert done.returncode == 0, done.stdout + done.stderr
    [entry] = [e for e in stack.stores.outbox() if e["text"] == "from another number"]
    assert entry["to"] == "+14155550118"


def test_the_text_command_fails_where_there_is_no_answer(stack: Stack) -> None:
    stack.delay(reply=3)
    try:
        done = spillway(stack, "text", "too slow", "--wait", "1")
    finally:
        stack.delay()
    assert done.returncode == 1
    assert "No answer within 1 s" in done.stdout
    # (a sender that nobody can answer has a reason for none)
    done = spillway(stack, "text", "hi", "--from", "ACME")
    assert done.returncode == 0
    assert "never answered" in done.stdout


def test_a_burst_loses_nothing_and_answers_once(stack: Stack) -> None:
    done = spillway(stack, "burst", "--messages", "300", "--duplicates", "0.1", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    count = json.loads(done.stdout)
    assert (count["lost"], count["answered_twice"]) == (0, 0)
    assert count["acknowledged"] == count["stored"] == count["archived"] == 300
    assert count["answered"] == 300
    assert count["conversations"] == 30


def test_a_command_for_a_stack_that_does_not_run_says_so(tmp_path: Path, stack: Stack) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "spillway.cli", "text", "hello"],
        cwd=PROJECT,
        env={**stack.environment(), "SPILLWAY_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "make run" in done.stderr


def test_chalice_local_alone_serves_webhooks(stack: Stack) -> None:
    # GIVEN `chalice local` by itself, in the environment that the run left for a shell
    port = free_port()
    chalice = Path(sys.executable).with_name("chalice")
    command = f"set -a; . {stack.folder}/env; exec {chalice} local --stage local --port {port}"
    process = subprocess.Popen(
        ["/bin/sh", "-c", f"{command} --no-autoreload"],
        cwd=PROJECT,
        env=stack.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        base = f"http://127.0.0.1:{port}"

        def up() -> bool:
            try:
                return stack.http.get(f"{base}/health").status_code == 200
            except Exception:
                return False

        until(up, 30)
        # WHEN a text comes to it
        url, headers, body = twilio.inbound(
            webhook=stack.local["webhook"],
            secrets=stack.local["secrets"]["twilio"],
            sender="+14155550116",
            recipient=stack.local["numbers"]["twilio"],
            text="through chalice local",
            id="SM" + "e" * 32,
            now=0,
            door="signed",
        )
        url = url.replace(stack.local["webhook"], base)
        answer = stack.http.post(url, headers=dict(headers), content=body)
        # THEN it is taken (signed for PUBLIC_URL, as behind a tunnel) and answered by the workers
        assert answer.status_code == 200
        until(lambda: "through chalice local" in stack.answers(), 20)
    finally:
        process.terminate()
        process.wait(timeout=20)


def test_the_business_hears_of_it(stack: Stack) -> None:
    # GIVEN a text that is answered, and a STOP
    words, sender = "does the business hear?", "+14155550166"
    stack.inbound(words, sender=sender)
    until(lambda: words in stack.answers(), 20)
    stack.inbound("STOP", sender=sender)

    # THEN its own system hears of both, of the answer and its receipts, though it failed at first
    def heard() -> list[dict[str, Any]]:
        events = [json.loads(body) for _, body in HEARD]
        return [one for one in events if sender in json.dumps(one)]

    def received() -> set[str]:
        return {one["data"]["id"] for one in heard() if one["data"].get("text") == words}

    # (each is waited for by itself: what was refused at first comes after what follows it)
    (text,) = until(received, 60)
    ended = until(lambda: [x["data"] for x in heard() if x["id"] == f"reply.ended.{text}"], 60)[0]
    assert (ended["outcome"], ended["parts"][0]["text"]) == ("sent", words)
    until(lambda: any(f"receipt.received.{text}-1.delivered" in str(b) for _, b in HEARD), 60)

    def changed() -> dict[str, Any]:
        return {one["id"]: one["data"] for one in heard() if one["type"] == "consent.changed"}

    (stop,) = until(changed, 60).values()
    assert (stop["number"], stop["event"], stop["words"]) == (sender, "stop", "STOP")
    # AND each is signed with the stage's key
    (secret,) = stack.local["secrets"]["events"]["signing_secrets"]
    key = base64.b64decode(secret.removeprefix("whsec_"))
    for headers, body in HEARD:
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        digest = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        assert headers["webhook-signature"] == f"v1,{digest}"

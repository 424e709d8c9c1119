"""A backfill, from a simulated Twilio whose webhooks were lost: each text arrives once, a STOP
counts from when it was said, a question is answered if it is young, and otherwise expires."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from typer.testing import CliRunner

from chalicelib.ledger import DAY
from chalicelib.messages import MessageId
from chalicelib.queues import OUTBOUND, Queues
from spillway import cli
from spillway.operate import backfill
from spillway.operate.backfill import UNDER_WAY, Backfilled, fill
from spillway.operate.reconciliation import RECENT, Reconciliation
from spillway.problem import Problem
from spillway.simulator import twilio
from spillway.simulator.app import application
from spillway.simulator.carrier import Receipts
from spillway.simulator.carrier import World as Providers
from spillway.simulator.configuration import Configuration
from spillway.simulator.outbox import Outbox
from spillway.stage import Stage
from tests.fakes import OURS, SECRETS, FakeRuntime
from tests.operate.world import KEYS, PERSON, World
from tests.signing import HOST, api_event

OTHER = "+14155550143"
HOUR = 3600.0


class Died(BaseException):
    """The end of the command: nothing after it is run."""


class Twilio:
    """The simulated Twilio, before the door of a stage. While it is `cut` no webhook comes through;
    with `refuses` each is answered 503."""

    def __init__(self, world: World, portal: BlockingPortal) -> None:
        self.world = world
        self._portal = portal
        self.cut = False
        self.refuses = False
        self.asked: list[str] = []
        providers = Providers(
            Configuration(f"https://{HOST}", {"twilio": "u:p"}, {"twilio": SECRETS["twilio"]}),
            httpx.AsyncClient(transport=httpx.MockTransport(self._door)),
            Outbox(),
            Receipts(),
            now=world.runtime.now,
        )
        self.app = application(providers)
        self._http = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app), base_url="http://providers"
        )

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        return self._portal.call(partial(self._http.request, method, path, **more))

    def _door(self, request: httpx.Request) -> httpx.Response:
        if self.cut:
            raise httpx.ConnectError("cut")
        if self.refuses:
            return httpx.Response(503)
        answer = self.world.receiver.webhook(
            "twilio",
            api_event(
                "POST",
                request.url.path,
                request.content,
                dict(request.headers),
                resource="/webhooks/{provider}/signed",
                parameters={"provider": "twilio"},
                query={"reference": [request.url.params["reference"]]}
                if "reference" in request.url.params
                else None,
            ),
            signed_door=True,
        )
        return httpx.Response(answer.status)

    def api(self, request: httpx.Request) -> httpx.Response:
        """Twilio's API, as the functions and the command reach it."""
        path = request.url.raw_path.decode()
        self.asked.append(f"{request.method} {path}")
        answer = self.ask(
            request.method,
            f"/provider/twilio{path}",
            headers={n: v for n, v in request.headers.items() if n == "authorization"},
            content=request.content,
        )
        told = {n: v for n, v in answer.headers.items() if n in ("content-type", "location")}
        return httpx.Response(answer.status_code, headers=told, content=answer.content)

    def text(self, words: str, theirs: str = PERSON, **more: Any) -> MessageId:
        """A text from a person; its id, whether its webhook came or not."""
        given = {"provider": "twilio", "from": theirs, "to": OURS, "text": words, "door": "signed"}
        sid = self.ask("POST", "/provider/inbound", json=given | more).json()["id"]
        account = SECRETS["twilio"]["account_sid"]
        return MessageId(KEYS.conversation(OURS, theirs), KEYS.message("twilio", account, sid))

    def missed(self, words: str, **more: Any) -> MessageId:
        """A text whose webhook never came; its id."""
        self.cut = True
        id_ = self.text(words, **more)
        self.cut = False
        return id_

    def receipts(self, wanted: bool) -> None:
        self.ask("PUT", "/provider/behaviour/twilio", json={"receipts": wanted})

    def wait_for_receipts(self) -> None:
        while self.ask("GET", "/health").json()["receipts"]["waiting"]:
            time.sleep(0.01)

    def sent(self) -> list[str]:
        return [one["text"] for one in self.ask("GET", "/provider/outbox").json()]


@pytest.fixture
def provider(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Twilio]:
    monkeypatch.setattr(Stage, "runtime", lambda self: world.runtime)
    monkeypatch.setattr(twilio, "_FIRST_PAUSE", 0.0)
    world.runtime.clock = time.time() - HOUR
    with start_blocking_portal() as portal:
        one = Twilio(world, portal)
        monkeypatch.setattr(world.runtime, "_answer", one.api)
        lifespan = one.app.router.lifespan_context(one.app)
        with portal.wrap_async_context_manager(lifespan):
            one.receipts(False)
            yield one


@pytest.fixture
def now(provider: Twilio) -> FakeRuntime:
    return provider.world.runtime


def filled(world: World, *, since: float = DAY, **more: Any) -> Backfilled:
    return fill(world.stage, "twilio", world.runtime.clock - since, **more)


def reply(world: World, id_: MessageId) -> str:
    found = world.ledger.find(id_)
    return "" if found is None else found.state


def agree(world: World) -> bool:
    world.runtime.clock += 2 * HOUR
    found = Reconciliation(world.stage, wait=0.1).run()
    return not any({**found.put_right, **found.open}.values())


@pytest.mark.parametrize("how", ["cut", "refuses"])
def test_what_never_came_arrives_once(world: World, provider: Twilio, how: str) -> None:
    # GIVEN texts of which some never came
    came = provider.text("the heron is awake")
    setattr(provider, how, True)
    lost = provider.text("is the heron lost")
    lost_too = provider.text("is the heron found", OTHER)
    setattr(provider, how, False)
    world.work()
    world.runtime.clock += UNDER_WAY + 1
    # WHEN somebody asks the provider
    done = filled(world)
    # THEN these are taken up, and no other
    assert (done.listed, done.known, done.under_way) == (3, 1, 0)
    assert sorted(done.taken_up) == sorted(map(str, (lost, lost_too)))
    # AND are answered once, with an address for receipts, and all that the webhook would have said
    provider.receipts(True)
    world.work()
    provider.wait_for_receipts()
    world.work()
    assert [reply(world, id_) for id_ in (came, lost, lost_too)] == [
        "sent",
        "delivered",
        "delivered",
    ]
    assert sorted(provider.sent()) == [
        f"You wrote: {words}"
        for words in ("is the heron found", "is the heron lost", "the heron is awake")
    ]
    first, second = (
        world.items()[f"C#{id_.conversation}", f"IN#{id_.message}"] for id_ in (came, lost)
    )
    assert set(second) - set(first) == {"sent_at"}
    assert (second["account"], second["segments"]) == (first["account"], first["segments"])
    # AND a second run finds all of it, and so does whoever looks at the stores
    again = filled(world)
    assert (again.known, again.taken_up, again.to_be_stored) == (3, [], [])
    assert agree(world)


def test_a_webhook_that_still_comes_is_a_duplicate(world: World, provider: Twilio) -> None:
    id_ = provider.missed("is the heron lost", id="SM-late")
    world.runtime.clock += UNDER_WAY + 1
    filled(world)
    filled(world)  # (Before anybody has worked on it.)
    world.work()
    assert provider.text("is the heron lost", id="SM-late") == id_
    world.work()
    assert provider.sent() == ["You wrote: is the heron lost"]
    assert agree(world)


@pytest.mark.parametrize(("age", "state"), [(600.0, "sent"), (1000.0, "expired")])
def test_a_question_is_answered_if_it_is_young(
    world: World, provider: Twilio, age: float, state: str
) -> None:
    id_ = provider.missed("is the heron lost")
    world.runtime.clock += age
    filled(world)
    world.work()
    assert reply(world, id_) == state
    assert len(provider.sent()) == (state == "sent")


@pytest.mark.parametrize(
    ("lost", "later", "opted_out"),
    [("stop", "", True), ("stop", "start", False), ("start", "stop", True), ("start", "", False)],
)
def test_consent_goes_by_when_it_was_said(
    world: World, provider: Twilio, lost: str, later: str, opted_out: bool
) -> None:
    # GIVEN a word that never came, and one that came later
    if lost == "start":
        provider.text("stop")
        world.work()
        world.runtime.clock += 60
    id_ = provider.missed(lost)
    said_at = world.runtime.clock
    world.runtime.clock += 2 * HOUR
    if later:
        provider.text(later)
        world.work()
    world.runtime.clock += 20 * HOUR
    # WHEN it is taken up, THEN what was said last holds
    assert filled(world, since=2 * DAY).taken_up == [str(id_)]
    world.work()
    assert world.consent.opted_out(PERSON) is opted_out
    (entry,) = (item for (_, sk), item in world.items().items() if sk == "CONSENT")
    if not later:
        assert entry["at"] == int(said_at)


def test_the_last_minutes_are_left_to_the_webhooks(world: World, provider: Twilio) -> None:
    provider.cut = True
    provider.text("is the heron late")
    world.runtime.clock += UNDER_WAY - 2
    assert (filled(world).under_way, filled(world).taken_up) == (1, [])
    world.runtime.clock += 3
    assert len(filled(world).taken_up) == 1


def test_since_is_kept_and_numbers_that_are_not_ours_are_not_asked_about(
    world: World, provider: Twilio
) -> None:
    provider.cut = True
    old = provider.text("the old heron")
    world.runtime.clock += HOUR
    new = provider.text("the new heron")
    provider.text("another's heron", to="+14155550177")
    world.runtime.clock += HOUR
    assert filled(world, since=HOUR + 60).taken_up == [str(new)]
    assert filled(world, since=3 * HOUR, dry_run=True).taken_up == [str(old), str(new)]
    assert all("To=%2B14155550123" in path for path in provider.asked)


def test_what_was_answered_and_never_stored_is_stored(world: World, provider: Twilio) -> None:
    id_ = provider.text("is the heron stored")
    world.runtime.sqs.purge_queue(QueueUrl=world.url("processing"))
    world.work()
    world.runtime.clock += HOUR
    done = filled(world)
    assert (done.taken_up, done.to_be_stored) == ([], [str(id_)])
    assert world.receive("outbound.fifo") == []
    world.work()
    assert len(provider.sent()) == 1
    assert agree(world)


def test_what_is_never_answered_is_stored_alone(world: World, provider: Twilio) -> None:
    provider.cut = True
    provider.text("who are you", "HERON")
    world.runtime.clock += HOUR
    assert len(filled(world).taken_up) == 1
    assert world.receive("outbound.fifo") == []
    world.work()
    assert agree(world)


def test_what_sqs_swallows_of_a_webhook_it_does_not_swallow_here(
    world: World, provider: Twilio
) -> None:
    # GIVEN a text that was on the outbound queue moments ago, and that both queues lost
    id_ = provider.text("is the heron lost")
    for queue in ("processing", "outbound.fifo"):
        world.runtime.sqs.purge_queue(QueueUrl=world.url(queue))
    world.runtime.clock += UNDER_WAY + 1
    filled(world)
    world.work()
    assert reply(world, id_) == "sent"


def test_it_is_stored_as_of_now_and_was_said_then(world: World, provider: Twilio) -> None:
    provider.cut = True
    id_ = provider.text("is the heron lost")
    said_at = world.runtime.clock
    provider.cut = False
    world.runtime.clock += HOUR
    filled(world)
    world.work()
    item = world.items()[f"C#{id_.conversation}", f"IN#{id_.message}"]
    assert (item["sent_at"], item["received_at"]) == (int(said_at), world.runtime.clock)
    found = world.ledger.find(id_)
    assert found is not None
    assert found.received_at == int(said_at)


def test_attachments_are_taken_up_too(world: World, provider: Twilio) -> None:
    provider.cut = True
    media = [{"url": "https://media.example.com/heron", "content_type": "image/png"}]
    id_ = provider.text("", id="MM1", media=media)
    world.runtime.clock += HOUR
    provider.cut = False
    filled(world)
    world.runtime.clock += 61  # (the simulation has no such picture, and by now it will have none)
    world.work()
    item = world.items()[f"C#{id_.conversation}", f"IN#{id_.message}"]
    account = SECRETS["twilio"]["account_sid"]
    (one,) = item["media"]
    assert one["content_type"] == "image/png"
    assert one["url"].startswith(
        f"https://api.twilio.com/2010-04-01/Accounts/{account}/Messages/MM1/Media/ME"
    )
    assert item["valid"]


@pytest.mark.parametrize("queue", ["processing", "outbound.fifo"])
def test_a_death_after_either_queue_is_made_good(
    world: World, provider: Twilio, monkeypatch: pytest.MonkeyPatch, queue: str
) -> None:
    # GIVEN texts that never came, and a backfill that dies when one of the queues has them
    provider.cut = True
    ids = [provider.text(f"is heron {number} lost") for number in range(3)]
    provider.cut = False
    world.runtime.clock += HOUR
    send = Queues.send

    def dying(self: Queues, to: str, *arguments: Any, **more: Any) -> None:
        send(self, to, *arguments, **more)
        if to == queue:
            raise Died

    with monkeypatch.context() as patch:
        patch.setattr(Queues, "send", dying)
        with pytest.raises(Died):
            filled(world)
    world.work()
    # WHEN it is run again, and then a reconciliation
    filled(world)
    world.work()
    world.runtime.clock += HOUR
    Reconciliation(world.stage, wait=0.1).run()
    world.work()
    # THEN each has ended, once
    assert [reply(world, id_) for id_ in ids] == ["expired"] * 3
    assert agree(world)


def test_an_old_question_is_not_answered_by_a_reconciliation(
    world: World, provider: Twilio, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a text of 20 hours ago, and a backfill that dies before the sender's queue has it
    id_ = provider.missed("is the heron lost")
    asked_at = world.runtime.clock
    world.runtime.clock += 20 * HOUR
    send = Queues.send

    def dying(self: Queues, to: str, *arguments: Any, **more: Any) -> None:
        if to == OUTBOUND:
            raise Died
        send(self, to, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Queues, "send", dying)
        with pytest.raises(Died):
            filled(world)
    world.work()
    # WHEN a reconciliation comes as soon as it judges what was taken up then
    world.runtime.clock += RECENT + 60
    found = Reconciliation(world.stage, wait=0.1).run()
    world.work()
    # THEN nothing is sent: nobody waits for the answer any more
    assert found.put_right["never_answered"] == [str(id_)]
    ended = world.ledger.find(id_)
    assert ended is not None
    assert (ended.state, ended.received_at) == ("expired", int(asked_at))
    assert provider.sent() == []


def test_in_a_conversation_they_are_answered_in_order(world: World, provider: Twilio) -> None:
    provider.cut = True
    for number in range(60):
        provider.text(f"heron {number}")
        world.runtime.clock += 2
    provider.cut = False
    world.runtime.clock += UNDER_WAY
    assert len(filled(world).taken_up) == 60
    world.work()
    assert provider.sent() == [f"You wrote: heron {number}" for number in range(60)]


# --- the command ---------------------------------------------------------------------------------


def spillway(world: World, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    @contextmanager
    def named(name: str) -> Iterator[Stage]:
        yield world.stage

    monkeypatch.setattr(backfill, "stage_named", named)
    result = CliRunner().invoke(cli.app, ["backfill", "--provider", "twilio", *arguments])
    assert "415555" not in result.output
    assert "heron" not in result.output
    return result


def test_the_command_first_says_and_then_does(
    world: World, provider: Twilio, monkeypatch: pytest.MonkeyPatch
) -> None:
    id_ = provider.missed("is the heron lost")
    world.runtime.clock = time.time() + UNDER_WAY
    result = spillway(world, monkeypatch, "--since", "3h", "--dry-run")
    assert result.exit_code == 1
    assert "1 never came, and would be taken up" in result.output
    world.work()
    assert reply(world, id_) == ""
    result = spillway(world, monkeypatch, "--since", "3h", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "stage": "ops",
        "provider": "twilio",
        "dry_run": False,
        "listed": 1,
        "known": 0,
        "under_way": 0,
        "taken_up": [str(id_)],
        "to_be_stored": [],
    }
    world.work()
    result = spillway(world, monkeypatch, "--since", "3h")
    assert (result.exit_code, "All of them came." in result.output) == (0, True)


@pytest.mark.parametrize(
    ("name", "days", "told"),
    [
        ("telnyx", 1, r"--provider telnyx: must be one that lists .* twilio\. Telnyx keeps detail"),
        ("heron", 1, r"--provider …: must be one that lists the texts it received: twilio"),
        ("twilio", 400, r"--since: must not be more than 399 days ago.*MESSAGE_DAYS"),
    ],
)
def test_what_cannot_be_asked_is_told(
    world: World, provider: Twilio, name: str, days: int, told: str
) -> None:
    with pytest.raises(Problem, match=told):
        fill(world.stage, name, world.runtime.clock - days * DAY)
    assert provider.asked == []


@pytest.mark.parametrize(
    ("secret", "told"),
    [
        (None, "twilio: no such secret .* Set it: spillway secret set twilio --stage ops"),
        (
            {**SECRETS["twilio"], "auth_tokens": ["another"]},
            "twilio gave no list: credentials 401. Set it: spillway secret set twilio",
        ),
    ],
)
def test_credentials_that_are_missing_or_wrong_are_told(
    world: World, provider: Twilio, monkeypatch: pytest.MonkeyPatch, secret: Any, told: str
) -> None:
    held = {"twilio": secret} if secret else {}
    monkeypatch.setattr(world.runtime.vault, "held", {"keys": SECRETS["keys"], **held})
    with pytest.raises(Problem, match=told):
        filled(world)


def test_a_list_that_breaks_off_is_told(world: World, provider: Twilio) -> None:
    world.runtime._answer = lambda request: httpx.Response(429)
    with pytest.raises(Problem, match=r"twilio gave no list: throttled\..*run it again"):
        filled(world)


def test_a_stage_without_a_number_of_the_provider(
    world: World, provider: Twilio, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert world.stage.local is not None
    monkeypatch.setitem(world.stage.local["settings"]["receiver"], "NUMBERS", "+14155550199=telnyx")
    with pytest.raises(Problem, match="NUMBERS: has none of twilio's in stage ops"):
        filled(world)

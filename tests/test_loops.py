"""The loop guard: how many automatic replies a conversation gets, and when it gets them again."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from chalicelib.loops import WINDOW, LoopGuard
from chalicelib.messages import MessageId
from chalicelib.table import Item, Table
from tests.fakes import NOW, FakeRuntime, Lost, aws_error, events, logged, no_answer, tapped

pytestmark = pytest.mark.usefixtures("says_nothing")

LIMIT = 3
CONVERSATION = "c" * 24


class Conversation:
    """One that is guarded with a low limit. Times are seconds from its beginning."""

    def __init__(self, runtime: FakeRuntime, limit: int = LIMIT, hash_: str = CONVERSATION) -> None:
        self.runtime = runtime
        self.table = Table(runtime, "test")
        self.guard = LoopGuard(self.table, runtime, limit)
        self.hash = hash_

    def text(self, at: float, *, now: float | None = None, number: int = 0) -> bool:
        """A text came at that time, and is answered automatically now; whether it may not be."""
        self.runtime.clock = NOW + (at if now is None else now)
        message = f"{int(at * 100):016x}{number:08x}"[::-1]
        return self.guard.holds_back(MessageId(self.hash, message), NOW + at)

    def texts(self, *times: float) -> list[bool]:
        return [self.text(at) for at in times]

    def item(self) -> Item:
        found = self.table.get((f"C#{self.hash}", "LOOP"))
        assert found is not None
        return found


@pytest.fixture
def guarded(runtime: FakeRuntime) -> Conversation:
    return Conversation(runtime)


@pytest.mark.parametrize(
    ("times", "held"),
    [
        pytest.param([0, 1, 2], [], id="as many as may be"),
        pytest.param([0, 1, 2, 3], [3], id="one more"),
        pytest.param([0, 0, 0, 0], [3], id="all at once"),
        pytest.param([0, 200, 400, 599], [3], id="just within the window"),
        pytest.param([0, 200, 400, 600], [], id="just outside"),
        pytest.param(list(range(0, 6000, 200)), [], id="as many as may be, for ever"),
        pytest.param([0, 1, 2, 3, 603], [3], id="ten quiet minutes"),
        pytest.param([0, 1, 2, 3, 602], [3, 4], id="less than these"),
        pytest.param([0, 1, 2, *range(3, 6003, 300)], list(range(3, 23)), id="it keeps on writing"),
        pytest.param([0, 1, 2, 3, 604, 605, 606, 607], [3, 7], id="and begins again"),
    ],
)
def test_when_a_conversation_is_held(
    guarded: Conversation, times: list[float], held: list[int]
) -> None:
    texts = [guarded.text(at, number=number) for number, at in enumerate(times)]
    assert [number for number, one in enumerate(texts) if one] == held


def test_a_reply_that_is_tried_again_counts_once(guarded: Conversation) -> None:
    # GIVEN a reply that is deferred a hundred times before its words are stored
    assert not any(guarded.text(0, now=10 * again) for again in range(100))
    # THEN it is one of three
    assert guarded.texts(1, 2, 3) == [False, False, True]


@pytest.mark.parametrize("landed", [False, True])
def test_a_count_whose_answer_was_lost_counts_once(guarded: Conversation, landed: bool) -> None:
    error = no_answer()
    for _ in range(2 * LIMIT):
        tapped(guarded.runtime).next["update_item"] = iter([Lost(error) if landed else error])
        with pytest.raises(type(error)):
            guarded.text(0)
    assert guarded.texts(0, 1, 2, 3) == [False, False, False, True]


class Died(BaseException):
    """The end of a process."""


@pytest.mark.parametrize("landed", [False, True])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_death_at_a_write_does_not_let_the_reply_go(
    guarded: Conversation, nth: int, landed: bool
) -> None:
    # GIVEN the one that is too many, and a process that dies as it counts or holds
    guarded.texts(0, 1, 2)

    def die() -> None:
        raise Died

    turn: Lost | Callable[[], None] = Lost(Died()) if landed else die
    tapped(guarded.runtime).next["update_item"] = iter([*[None] * (nth - 1), turn])
    with pytest.raises(Died):
        guarded.text(3)
    # THEN it is too many at the next try as well
    assert guarded.text(3, now=33)
    assert guarded.text(4, now=34)


def test_two_tries_at_once_are_one(guarded: Conversation) -> None:
    guarded.texts(0, 1)
    both: list[bool] = []
    tapped(guarded.runtime).next["update_item"] = iter([lambda: both.append(guarded.text(2))])
    both.append(guarded.text(2))
    assert both == [False, False]


def test_a_text_that_comes_late_is_counted_at_its_own_time(guarded: Conversation) -> None:
    guarded.texts(1000, 1001, 1002)
    # (out of a dead-letter queue, say)
    assert not guarded.text(0, now=1003)


def test_texts_that_waited_together_count_by_when_they_came(guarded: Conversation) -> None:
    # GIVEN half an hour without the reply API, and a text every five minutes
    assert not any(guarded.text(at, now=1800) for at in range(0, 1800, 300))


def test_a_conversation_is_held_alone(guarded: Conversation) -> None:
    guarded.texts(0, 1, 2, 3)
    assert not Conversation(guarded.runtime, hash_="d" * 24).text(4)


def test_by_hand_it_goes_on_at_once(guarded: Conversation) -> None:
    assert guarded.texts(0, 1, 2, 3)[-1]
    guarded.guard.clear(CONVERSATION)
    assert guarded.texts(4, 5, 6) == [False, False, False]
    # AND likewise if it is not held yet
    guarded.guard.clear(CONVERSATION)
    assert guarded.texts(7, 8, 9, 10) == [False, False, False, True]


def test_a_clock_that_is_behind_lets_nothing_go_sooner(guarded: Conversation) -> None:
    guarded.texts(0, 1, 2, 3)
    until = guarded.item()["held_until"]
    assert guarded.text(4, now=2)
    assert guarded.item()["held_until"] == until


def test_without_a_limit_nothing_is_counted(runtime: FakeRuntime) -> None:
    assert not any(Conversation(runtime, limit=0).texts(*range(50)))
    assert tapped(runtime).calls == []


def test_a_reply_costs_one_write(runtime: FakeRuntime) -> None:
    # GIVEN somebody who writes once a minute, for hours
    conversation = Conversation(runtime, limit=30)
    conversation.texts(*range(0, 30_000, 60))
    # THEN what is too old is dropped now and then, and the item stays small
    names = [name for name, _ in tapped(runtime).calls]
    assert set(names) == {"update_item"}
    assert len(names) <= 500 * (1 + 1 / 30)
    assert len(conversation.item()["replies"]) <= 2 * 30 + 1


def test_what_is_held_costs_two_writes(guarded: Conversation) -> None:
    guarded.texts(0, 1, 2, 3)
    tapped(guarded.runtime).calls.clear()
    guarded.text(4)
    assert [name for name, _ in tapped(guarded.runtime).calls] == ["update_item"] * 2


def test_it_is_logged_and_counted(
    guarded: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    guarded.texts(0, 1, 2)
    assert logged(capsys) == []
    guarded.texts(3)
    lines = logged(capsys)
    assert events(lines) == ["loop_held"]
    assert [line["level"] for line in lines if "event" in line] == ["WARNING"]
    assert sum(line.get("LoopsHeld", 0) for line in lines) == 1


def test_the_item_holds_hashes_and_times_and_ends(guarded: Conversation) -> None:
    guarded.text(0)
    found = guarded.item()
    assert found == {
        "pk": f"C#{CONVERSATION}",
        "sk": "LOOP",
        "replies": {f"{int(NOW)}-00000000"},
        "expires_at": int(NOW + 86_400),
    }
    guarded.texts(1, 2, 3)
    found = guarded.item()
    assert "replies" not in found
    assert found["held_until"] == NOW + 3 + WINDOW


def test_where_the_table_refuses_nothing_is_decided(guarded: Conversation) -> None:
    tapped(guarded.runtime).next["update_item"] = iter([aws_error("InternalServerError")])
    with pytest.raises(Exception, match="InternalServerError"):
        guarded.text(0)

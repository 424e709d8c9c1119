"""Items by key, inserts that never overwrite, updates under a condition, reads of many."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from botocore.exceptions import ReadTimeoutError

from chalicelib.runtime import is_transient
from chalicelib.table import Conflict, ReadIncomplete, Table
from tests.fakes import (
    NOW,
    FakeRuntime,
    Lost,
    aws_error,
    no_answer,
    tapped,
)

pytestmark = pytest.mark.usefixtures("says_nothing")

KEY = ("P", "S")


@pytest.fixture
def table(runtime: FakeRuntime) -> Table:
    return Table(runtime, "test")


def item(**attributes: Any) -> dict[str, Any]:
    return {"pk": KEY[0], "sk": KEY[1], **attributes}


def test_an_insert_never_overwrites_and_says_what_is_there(table: Table) -> None:
    assert table.get(KEY) is None
    assert table.insert(item(by="first")) is None
    assert table.insert(item(by="second")) == item(by="first")
    assert table.get(KEY) == item(by="first")


def test_an_insert_whose_answer_was_lost_finds_itself(runtime: FakeRuntime, table: Table) -> None:
    # GIVEN an insert that landed, but nobody heard of it
    tapped(runtime).next["put_item"] = iter([Lost(no_answer())])
    with pytest.raises(ReadTimeoutError):
        table.insert(item(by="me"))

    # WHEN it is repeated, THEN the answer is the item
    assert table.insert(item(by="me")) == item(by="me")


def test_an_update_returns_the_whole_item_as_it_is_then(table: Table) -> None:
    table.insert(item(by="first", count=1))
    changed = table.update(
        KEY,
        "SET #by = :by ADD #count :one",
        condition="#by = :first",
        names={"#by": "by", "#count": "count"},
        values={":by": "second", ":first": "first", ":one": 1},
    )
    assert changed == table.get(KEY) == item(by="second", count=2)


def test_an_update_without_a_condition_makes_the_item(table: Table) -> None:
    assert table.update(KEY, "SET weight = :one", values={":one": 1}) == item(weight=1)
    assert table.update(KEY, "REMOVE weight") == item()


@pytest.mark.parametrize(
    "there", [pytest.param(None, id="nothing"), pytest.param(item(weight=3), id="something else")]
)
def test_a_conflict_carries_what_is_there(table: Table, there: dict[str, Any] | None) -> None:
    if there is not None:
        table.insert(there)
    with pytest.raises(Conflict) as caught:
        table.update(
            KEY, "SET weight = :new", condition="weight = :old", values={":old": 1, ":new": 2}
        )
    assert caught.value.item == there
    assert table.get(KEY) == there


def test_an_update_whose_answer_was_lost_conflicts_with_itself(
    runtime: FakeRuntime, table: Table
) -> None:
    # GIVEN a conditional update that landed, but nobody heard of it
    table.insert(item(weight=1))
    step: dict[str, Any] = {"condition": "weight = :old", "values": {":old": 1, ":new": 2}}
    tapped(runtime).next["update_item"] = iter([Lost(no_answer())])
    with pytest.raises(ReadTimeoutError):
        table.update(KEY, "SET weight = :new", **step)

    # WHEN it is repeated, THEN the conflict shows the caller its own work
    with pytest.raises(Conflict) as caught:
        table.update(KEY, "SET weight = :new", **step)
    assert caught.value.item == item(weight=2)


def test_a_query_finds_all_of_a_partition_that_begin_so(
    runtime: FakeRuntime, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [item(sk=f"OUT#{number}", text="heron" * 100) for number in range(5)]
    for one in [*wanted, item(sk="IN#0"), item(sk="OUT"), item(pk="Q", sk="OUT#0")]:
        table.insert(one)
    # GIVEN a table that answers page by page
    tap = tapped(runtime)
    query = tap._client.query
    monkeypatch.setattr(tap._client, "query", lambda **asked: query(**asked, Limit=2))
    assert table.query("P", "OUT#") == wanted
    assert [asked["ConsistentRead"] for _, asked in tap.calls if "ConsistentRead" in asked] == [
        True
    ] * 3
    assert table.query("R", "OUT#") == []


@pytest.mark.parametrize("code", ["ProvisionedThroughputExceededException", "ValidationException"])
def test_other_refusals_pass_as_they_are(runtime: FakeRuntime, table: Table, code: str) -> None:
    tap = tapped(runtime)
    tap.next["put_item"] = tap.next["update_item"] = iter([aws_error(code), aws_error(code)])
    with pytest.raises(Exception, match=code):
        table.insert(item())
    with pytest.raises(Exception, match=code):
        table.update(KEY, "SET weight = :one", condition="weight = :one", values={":one": 1})


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (0, int),
        (-7, int),
        (NOW, int),
        (0.1, float),
        (NOW + 0.123456, float),
        (Decimal("1.5"), float),
        (Decimal("12"), int),
        (True, bool),
        ("", str),
        ("é\n👋", str),
        (b"\x00\xff", object),
        ([1, 0.5, {"a": 0.25, "b": []}], list),
        ({"deep": {"deeper": [1.25, None, False]}}, dict),
    ],
)
def test_values_come_back_as_they_went(table: Table, value: Any, kind: type) -> None:
    table.insert(item(value=value))
    found = table.get(KEY)
    assert found is not None
    assert found["value"] == value
    assert isinstance(found["value"], kind)


def test_what_is_none_is_not_written(table: Table) -> None:
    table.insert(item(value=None))
    assert table.get(KEY) == item()


def test_tuples_are_lists(table: Table) -> None:
    table.insert(item(value=("a", 0.5)))
    assert table.get(KEY) == item(value=["a", 0.5])


def test_every_read_is_consistent(runtime: FakeRuntime, table: Table) -> None:
    table.get(KEY)
    table.get_many([KEY])
    (_, one), (_, many) = tapped(runtime).calls
    assert one["ConsistentRead"] is True
    assert many["RequestItems"]["spillway-test"]["ConsistentRead"] is True


def test_many_items_are_read_a_hundred_at_a_time_and_once(
    runtime: FakeRuntime, table: Table
) -> None:
    # GIVEN 210 keys, each named twice, of which every third has an item
    keys = [(f"P{number}", "S") for number in range(210)]
    for pk, sk in keys[::3]:
        runtime.dynamodb.put_item(
            TableName="spillway-test", Item={"pk": {"S": pk}, "sk": {"S": sk}, "n": {"N": "0.5"}}
        )
    tapped(runtime).calls.clear()

    found = table.get_many(keys + keys)

    # THEN those that exist are there, and no call was larger than DynamoDB takes
    assert found == {key: {"pk": key[0], "sk": key[1], "n": 0.5} for key in keys[::3]}
    assert sizes(runtime) == [100, 100, 10]


def test_no_keys_are_no_call(runtime: FakeRuntime, table: Table) -> None:
    assert table.get_many([]) == {}
    assert sizes(runtime) == []


def test_what_a_call_left_unread_is_asked_for_again(runtime: FakeRuntime, table: Table) -> None:
    # GIVEN a table that reads at most two keys a call
    keys = [(f"P{number}", "S") for number in range(5)]
    for pk, sk in keys:
        table.insert({"pk": pk, "sk": sk})
    throttled = Throttled(runtime, most=2)

    # THEN all are read, after a pause before each further round
    assert set(table.get_many(keys)) == set(keys)
    assert throttled.asked == [5, 3, 1]
    assert runtime.clock > NOW


def test_keys_that_stay_unread_are_no_missing_items(runtime: FakeRuntime, table: Table) -> None:
    # GIVEN a table that reads nothing for the time being
    table.insert(item())
    throttled = Throttled(runtime, most=0)

    # THEN there is no answer rather than a wrong one, and the messages wait
    with pytest.raises(ReadIncomplete) as caught:
        table.get_many([KEY])
    assert throttled.asked == [1, 1, 1, 1]
    assert is_transient(caught.value)


class Throttled:
    """A table that reads at most so many keys a call, and says which it left."""

    def __init__(self, runtime: FakeRuntime, most: int) -> None:
        self._client: Any = runtime.dynamodb
        self._most = most
        self.asked: list[int] = []
        runtime.__dict__["dynamodb"] = self

    def batch_get_item(self, *, RequestItems: dict[str, Any]) -> dict[str, Any]:
        ((name, asked),) = RequestItems.items()
        self.asked.append(len(asked["Keys"]))
        read, left = asked["Keys"][: self._most], asked["Keys"][self._most :]
        responses: dict[str, Any] = {}
        if read:
            question = {name: {**asked, "Keys": read}}
            responses = self._client.batch_get_item(RequestItems=question)["Responses"]
        unread = {name: {**asked, "Keys": left}} if left else {}
        return {"Responses": responses, "UnprocessedKeys": unread}


def sizes(runtime: FakeRuntime) -> list[int]:
    """How many keys each call for many asked for."""
    return [
        len(arguments["RequestItems"]["spillway-test"]["Keys"])
        for name, arguments in tapped(runtime).calls
        if name == "batch_get_item"
    ]

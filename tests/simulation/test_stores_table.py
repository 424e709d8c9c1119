"""The table of the simulation against what it stands for: the same assertions for
the one in memory, moto and MiniStack.

Where an emulator is known to differ from AWS, the assertion is skipped for it, with the reason; it
is never weaker for the others.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal as D
from typing import Any

import boto3
import pytest
from boto3.dynamodb.types import TypeDeserializer
from botocore.exceptions import ClientError, ParamValidationError
from moto import mock_aws
from moto.dynamodb.parsing.reserved_keywords import ReservedKeywords

from spillway.aws import of_emulator
from tests.fakes import (
    NOW,
)
from tests.simulation.contract import Clock, Item, Kind, case, code, differs, wire
from tests.simulation.stores.dynamodb import DynamoDb
from tests.simulation.stores.expressions import RESERVED

TABLE = "spillway-test"


@dataclass
class TableBed:
    """A client of DynamoDB under test, whose table is empty."""

    kind: Kind
    client: Any

    def put(self, *items: Mapping[str, Any]) -> None:
        for item in items:
            self.client.put_item(TableName=TABLE, Item=item)

    def get(self, key: Mapping[str, Any]) -> Item | None:
        answer = self.client.get_item(TableName=TABLE, Key=key, ConsistentRead=True)
        found: Item | None = answer.get("Item")
        return found and ordered(found)

    def update(self, update: str, values: Item | None = None, **parameters: Any) -> dict[str, Any]:
        """Updates the item of KEY; a name #x in an expression is that of the attribute x."""
        if values:
            parameters["ExpressionAttributeValues"] = values
        answer: dict[str, Any] = self.client.update_item(
            TableName=TABLE,
            Key=KEY,
            UpdateExpression=update,
            **names(update, parameters.get("ConditionExpression", "")),
            **parameters,
        )
        return answer

    def all(self) -> list[Item]:
        answer = self.client.scan(TableName=TABLE, ConsistentRead=True)
        return [ordered(item) for item in answer["Items"]]


def names(*expressions: str) -> dict[str, Any]:
    found = {name: name[1:] for text in expressions for name in re.findall(r"#\w+", text)}
    return {"ExpressionAttributeNames": found} if found else {}


def item(pk: str = "P", sk: str = "S", **attributes: Any) -> Item:
    """An item as it travels, from plain values."""
    return {name: wire(value) for name, value in {"pk": pk, "sk": sk, **attributes}.items()}


KEY = item()


def ordered(found: Item) -> Item:
    """Sets have no order: here they get one."""

    def one(value: Item) -> Item:
        ((kind, content),) = value.items()
        if kind == "M":
            return {kind: {name: one(inner) for name, inner in content.items()}}
        if kind == "L":
            return {kind: [one(inner) for inner in content]}
        return {kind: sorted(content) if kind in ("SS", "NS", "BS") else content}

    return {name: one(value) for name, value in found.items()}


def make_table(client: Any) -> None:
    """As infra/data.yaml has it."""
    client.create_table(
        TableName=TABLE,
        BillingMode="PAY_PER_REQUEST",
        KeySchema=[
            {"AttributeName": "pk", "KeyType": "HASH"},
            {"AttributeName": "sk", "KeyType": "RANGE"},
        ],
        AttributeDefinitions=[
            {"AttributeName": "pk", "AttributeType": "S"},
            {"AttributeName": "sk", "AttributeType": "S"},
            {"AttributeName": "unknown_bucket", "AttributeType": "S"},
            {"AttributeName": "unknown_since", "AttributeType": "N"},
        ],
        GlobalSecondaryIndexes=[
            {
                "IndexName": "unknown",
                "KeySchema": [
                    {"AttributeName": "unknown_bucket", "KeyType": "HASH"},
                    {"AttributeName": "unknown_since", "KeyType": "RANGE"},
                ],
                "Projection": {"ProjectionType": "ALL"},
            }
        ],
    )


@pytest.fixture(scope="module", params=["memory", "moto", "ministack"])
def dynamodb_client(request: pytest.FixtureRequest) -> Iterator[tuple[Kind, Any]]:
    if request.param == "memory":
        yield "memory", DynamoDb(Clock())
    elif request.param == "moto":
        with mock_aws():
            client: Any = boto3.client("dynamodb", region_name="us-east-1")
            make_table(client)
            yield "moto", client
    else:
        client = of_emulator(request.getfixturevalue("ministack")).client("dynamodb")
        make_table(client)
        yield "ministack", client
        client.close()


@pytest.fixture
def table(dynamodb_client: tuple[Kind, Any]) -> TableBed:
    bed = TableBed(*dynamodb_client)
    for one in bed.all():
        bed.client.delete_item(TableName=TABLE, Key={"pk": one["pk"], "sk": one["sk"]})
    return bed


@pytest.mark.parametrize(
    "value",
    [
        *(
            "",
            "é\n👋\x00",
            0,
            -7,
            D("1790000000.123456"),
            D("1e-7"),
            True,
            False,
            None,
            b"\x00\xff",
        ),
        *({"a", "b"}, {1, D("2.5")}, {b"x"}, [], [1, ["a"]], {}, {"deep": {"deeper": [None]}}),
    ],
    # (A set has no order, and its test must have one name in every process.)
    ids=lambda value: repr(sorted(value, key=str)) if isinstance(value, set) else repr(value),
)
def test_a_value_comes_back_as_it_went(table: TableBed, value: Any) -> None:
    table.put(item(value=value))
    found = table.get(KEY)
    assert found is not None
    assert TypeDeserializer().deserialize(found["value"]) == value
    assert table.all() == [found]


@pytest.mark.parametrize(
    ("given", "spelt"),
    [
        ("1.50", "1.5"),
        ("1E+2", "100"),
        ("-0", "0"),
        ("0012", "12"),
        ("1e-7", "0.0000001"),
        ("1e30", "1" + 30 * "0"),
    ],
)
def test_a_number_has_one_spelling(table: TableBed, given: str, spelt: str) -> None:
    differs(table.kind, moto="it keeps the spelling that it was given")
    table.put({**KEY, "value": {"N": given}, "set": {"NS": [given]}})
    assert table.get(KEY) == {**KEY, "value": {"N": spelt}, "set": {"NS": [spelt]}}
    table.update("REMOVE a", {":v": {"N": given}}, ConditionExpression="#value = :v")


def test_what_is_not_there_is_not_there(table: TableBed) -> None:
    table.put(item())
    assert table.get(item(sk="other")) is None
    assert table.get(item(pk="other")) is None


def test_a_put_replaces_the_whole_item(table: TableBed) -> None:
    table.put(item(a=1), item(b=2))
    assert table.get(KEY) == item(b=2)
    answer = table.client.put_item(TableName=TABLE, Item=KEY, ReturnValues="ALL_OLD")
    assert answer["Attributes"] == item(b=2)


def test_a_delete_takes_the_whole_item(table: TableBed) -> None:
    delete: dict[str, Any] = {"TableName": TABLE, "Key": KEY, "ReturnValues": "ALL_OLD"}
    assert "Attributes" not in table.client.delete_item(**delete)
    table.put(item(a=1), item(sk="T"))
    with pytest.raises(table.client.exceptions.ConditionalCheckFailedException):
        table.client.delete_item(**delete, ConditionExpression="attribute_not_exists(a)")
    assert table.client.delete_item(**delete)["Attributes"] == item(a=1)
    assert table.all() == [item(sk="T")]


def test_an_insert_finds_what_is_there(table: TableBed) -> None:
    insert: dict[str, Any] = {
        "TableName": TABLE,
        "ConditionExpression": "attribute_not_exists(pk)",
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }
    table.client.put_item(Item=item(a=1), **insert)
    with pytest.raises(table.client.exceptions.ConditionalCheckFailedException) as caught:
        table.client.put_item(Item=item(a=2), **insert)
    assert code(caught) == "ConditionalCheckFailedException"
    assert caught.value.response["Item"] == item(a=1)
    assert table.get(KEY) == item(a=1)


@pytest.mark.parametrize("asked", [{}, {"ReturnValuesOnConditionCheckFailure": "NONE"}])
def test_what_is_there_is_shown_only_where_it_is_asked_for(
    table: TableBed, asked: dict[str, Any]
) -> None:
    table.put(KEY)
    with pytest.raises(table.client.exceptions.ConditionalCheckFailedException) as caught:
        table.update("REMOVE a", ConditionExpression="attribute_not_exists(pk)", **asked)
    assert "Item" not in caught.value.response


def test_where_nothing_is_there_nothing_is_shown(table: TableBed) -> None:
    with pytest.raises(table.client.exceptions.ConditionalCheckFailedException) as caught:
        table.update(
            "SET a = :one",
            {":one": wire(1)},
            ConditionExpression="attribute_exists(pk)",
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
        )
    assert not caught.value.response.get("Item")
    assert table.get(KEY) is None


NO_ITEM = "it makes an item in order to take something away from it"
WAITING = {"state": "waiting", "media": []}
SENDING = {"state": "sending", "owner": "me"}


@pytest.mark.parametrize(
    ("before", "update", "after", "values", "reasons"),
    [
        case(None, "SET a = :v", {"a": 1}, v=1),
        case({}, "set a=:v", {"a": 1}, v=1),
        case({"a": 1, "b": 2}, "SET a = :v", {"a": "x", "b": 2}, v="x"),
        case({"a": 1}, "SET b = a", {"a": 1, "b": 1}),
        case({}, "SET b = pk", {"b": "P"}, moto="it knows no key attribute in a SET"),
        case({"a": 1, "b": 2}, "SET a = b, b = a", {"a": 2, "b": 1}),
        case({"a": {"b": 1}}, "SET a.c = :v", {"a": {"b": 1, "c": 2}}, v=2),
        case({"a": {"b": 1}}, "SET c = a.b", {"a": {"b": 1}, "c": 1}),
        case(
            {"parts": {"1": WAITING, "2": WAITING}},
            "SET parts.#1.#state = :v, parts.#1.#owner = :w REMOVE parts.#1.media, nothing",
            {"parts": {"1": SENDING, "2": WAITING}},
            v="sending",
            w="me",
        ),
        case({"a": 1}, "SET a = a + :v", {"a": D("1.5")}, v=D("0.5")),
        case({"a": 1}, "SET a = a - :v", {"a": D("0.5")}, v=D("0.5")),
        case({"a": 1}, "SET a = :v - a", {"a": 0}, v=1),
        case({"a": D("0.1")}, "SET a = a + :v", {"a": D("0.3")}, v=D("0.2")),
        case({}, "SET a = if_not_exists(a, :v)", {"a": 1}, v=1),
        case({"a": 0}, "SET a = if_not_exists(a, :v)", {"a": 0}, v=1),
        case({"a": {"b": ""}}, "SET a.c = if_not_exists(a.b, :v)", {"a": {"b": "", "c": ""}}, v=1),
        case({}, "SET c = if_not_exists(a.b, :v)", {"c": 1}, v=1),
        case(None, "SET a = if_not_exists(a, :z) + :v", {"a": 1}, z=0, v=1),
        case({"a": {"b": 1, "c": 2}}, "SET a.b = :v REMOVE a.c", {"a": {"b": 3}}, v=3),
        case({"a": 1, "b": 2}, "REMOVE a", {"b": 2}),
        case({"b": 2}, "REMOVE a", {"b": 2}),
        case({"a": {"b": 1}}, "REMOVE a.b", {"a": {}}),
        case({"a": {"b": 1}}, "REMOVE a.c", {"a": {"b": 1}}),
        case({"a": 1}, "REMOVE a SET b = a", {"b": 1}),
        case(None, "ADD a :v", {"a": 2}, v=2),
        case({"a": 1}, "ADD a :v", {"a": D("-1.5")}, v=D("-2.5")),
        case(None, "ADD a :v", {"a": {2}}, v={2}),
        case({"a": {1, 2}}, "ADD a :v", {"a": {1, 2, 3}}, v={2, 3}),
        case({"a": {"x"}}, "ADD a :v SET b = :w", {"a": {"x", "y"}, "b": 1}, v={"x", "y"}, w=1),
        case({"a": {1, 2}}, "DELETE a :v", {"a": {1}}, v={2, 3}),
        case({"a": {1}, "b": 1}, "DELETE a :v", {"b": 1}, v={1}),
        case({"b": 1}, "DELETE a :v", {"b": 1}, v={1}),
        case(None, "REMOVE a", None, moto=NO_ITEM, ministack=NO_ITEM),
        case(None, "REMOVE a.b", None, moto=NO_ITEM, ministack=NO_ITEM),
        case(None, "DELETE a :v", None, v={1}, moto=NO_ITEM, ministack=NO_ITEM),
    ],
)
def test_an_update_makes_of_an_item(
    table: TableBed,
    before: Item | None,
    update: str,
    after: Item | None,
    values: Item,
    reasons: dict[str, str],
) -> None:
    differs(table.kind, **reasons)
    if before is not None:
        table.put(item(**before))
    answer = table.update(update, values, ReturnValues="ALL_NEW")
    if after is None:
        assert table.get(KEY) is None
        assert "Attributes" not in answer
    else:
        assert table.get(KEY) == ordered(answer["Attributes"]) == ordered(item(**after))


def test_an_update_answers_with_what_is_asked_for(table: TableBed) -> None:
    assert "Attributes" not in table.update("SET a = :v", {":v": wire(1)})
    assert "Attributes" not in table.update("SET a = :v", {":v": wire(1)}, ReturnValues="NONE")
    assert table.update("REMOVE a", ReturnValues="ALL_OLD")["Attributes"] == item(a=1)


ITEM = ordered(
    item(
        a=5,
        b="bb",
        bool=True,
        m={"x": 10, "y": "yy", "z": None},
        set={1, 2},
        words={"one", "two"},
        list=[1, "x"],
    )
)
TYPES = "it orders values of different types, or fails"
UNSET = "what is not there is equal to what is not there"


@pytest.mark.parametrize(
    ("condition", "holds", "values", "reasons"),
    [
        case("attribute_exists(a)", True),
        case("attribute_exists(pk)", True),
        case("attribute_exists(m.x)", True),
        case("attribute_exists(m.z)", True),
        case("attribute_exists(m.w)", False),
        case("attribute_exists(c)", False),
        case("attribute_exists(c.d)", False),
        case("attribute_exists(a.d)", False),
        case("attribute_not_exists(c)", True),
        case("attribute_not_exists(m.x)", False),
        case("a = :v", True, v=5),
        case("a = :v", False, v=6),
        case("a = :v", False, v="5"),
        case(":v = a", True, v=5),
        case("c = :v", False, v=5),
        case("c = d", False, moto=UNSET, ministack=UNSET),
        case("#set = :v", True, v={2, 1}),
        case("#set = :v", False, v={1}),
        case("m.z = :v", True, v=None),
        case("m = :v", True, v={"z": None, "y": "yy", "x": 10}),
        case("#bool = :v", True, v=True),
        case("#bool = :v", False, v=False),
        case("a <> :v", True, v=6),
        case("a <> :v", False, v=5),
        case("a <> :v", True, v="5"),
        case("c <> :v", True, v=5),
        case("c <> d", True, moto=UNSET, ministack=UNSET),
        case("a < m.x", True),  # as numbers: as texts, 10 comes before 5
        case("a < :v", False, v=5),
        case("a <= :v", True, v=5),
        case("a > :v", True, v=D("4.99")),
        case("a >= :v", False, v=D("5.01")),
        case("a > :v", True, v=-6),
        case("b < :v", True, v="bc"),
        case("b < :v", False, v="bb"),
        case("b >= :v", True, v="B"),
        case("a < :v", False, v="6", moto=TYPES),
        case("a > :v", False, v="1", moto=TYPES),
        case("#bool < :v", False, v=6, moto=TYPES),
        case("c < :v", False, v=6),
        case("c >= :v", False, v=6),
        case("c < d", False),
        case("NOT c < :v", True, v=6),
        case("attribute_exists(a) AND a = :v", True, v=5),
        case("attribute_exists(a) AND a = :v", False, v=6),
        case("attribute_exists(c) OR a = :v", True, v=5),
        case("attribute_exists(c) OR a = :v", False, v=6),
        case("attribute_exists(a) OR attribute_exists(c) AND attribute_exists(d)", True),
        case("(attribute_exists(a) OR attribute_exists(c)) AND attribute_exists(d)", False),
        case("NOT attribute_exists(c) AND attribute_exists(a)", True),
        case("NOT (attribute_exists(a) AND attribute_exists(c))", True),
        case("NOT NOT attribute_exists(a)", True, moto="it takes one NOT"),
        case("not attribute_exists(c) and (attribute_exists(a) or a = :v)", True, v=0),
        case("begins_with(b, :v)", True, v="b"),
        case("begins_with(b, :v)", False, v="c"),
        case("begins_with(c, :v)", False, v="c"),
        case(
            "begins_with(a, :v)",
            False,
            v="5",
            ministack="it fails for an attribute that is no text",
        ),
        case("contains(#set, :v)", True, v=2),
        case("contains(#set, :v)", False, v="2"),
        case("contains(words, :v)", True, v="two"),
        case("contains(words, :v)", False, v="tw"),
        case("contains(b, :v)", True, v="b"),
        case("contains(#list, :v)", True, v="x"),
        case("contains(#list, :v)", False, v=2),
        case("contains(c, :v)", False, v=2),
        case("a IN (:v, :w)", True, v=1, w=5),
        case("a IN (:v, :w)", False, v=1, w="5"),
        case("c IN (:v)", False, v=1),
    ],
)
def test_a_condition_holds_or_not(
    table: TableBed, condition: str, holds: bool, values: Item, reasons: dict[str, str]
) -> None:
    differs(table.kind, **reasons)
    table.put(ITEM)
    if holds:
        table.update("REMOVE a", values, ConditionExpression=condition)
        assert "a" not in (table.get(KEY) or {"a": 0})
    else:
        with pytest.raises(table.client.exceptions.ConditionalCheckFailedException):
            table.update("REMOVE a", values, ConditionExpression=condition)
        assert table.get(KEY) == ITEM


LENIENT = "it takes that"
FAILS = "it calls that a condition that does not hold, or fails in another way"


@pytest.mark.parametrize(
    ("update", "condition", "values", "reasons"),
    [
        # placeholders
        case("SET a = :v", None, v=1, w=1),
        case("SET a = :v, b = :w", None, w=1),
        case("SET a = :v", None),
        case("SET a = :v", "a = :v", v=1, w=1),
        case("SET a = :v", "a = :w", v=1, moto=LENIENT),
        # the language
        case("", None),
        case("REMOVE a", "", moto=LENIENT),
        case("PUT a = :v", None, v=1),
        case("SET a = :v SET b = :v", None, v=1, ministack=LENIENT),
        case("SET a = :v,", None, v=1, ministack=LENIENT),
        case("SET a = :v, REMOVE b", None, v=1, moto=LENIENT, ministack=LENIENT),
        case("SET a = :v + :v + :v", None, v=1, moto=LENIENT, ministack=LENIENT),
        case("SET a = f(a, :v)", None, v=1),
        case("SET a = IF_NOT_EXISTS(a, :v)", None, v=1, ministack=LENIENT),
        case("SET a-b = :v", None, v=1, ministack=LENIENT),
        case("SET _a = :v", None, v=1, ministack=LENIENT),
        case("SET a = 'x'", None),
        case("SET a = 1", None, ministack=LENIENT),
        case("SET :v = :v", None, v=1, ministack=LENIENT),
        case("REMOVE a", "((attribute_exists(a)))"),
        case("REMOVE a", "(attribute_exists(a)", moto=LENIENT),
        case("REMOVE a", "a", moto=FAILS),
        case("REMOVE a", "a == :v", v=5, moto=FAILS),
        case("REMOVE a", "attribute_exists(:v)", v="a", moto=FAILS),
        case("REMOVE a", "attribute_exists(status)"),
        # paths
        case("SET a = :v, a = :v", None, v=1, ministack=LENIENT),
        case("SET m = :v, m.x = :v", None, v=1),
        case("SET m.x = :v REMOVE m", None, v=1, ministack=LENIENT),
        case("SET c.d = :v", None, v=1),
        case("SET a.d = :v", None, v=1, moto=FAILS),
        case("SET m.c.d = :v", None, v=1),
        case("REMOVE c.d", None, ministack=LENIENT),
        case("REMOVE a.d", None, moto=FAILS, ministack=LENIENT),
        case("SET pk = :v", None, v="x"),
        case("REMOVE sk", None),
        # operands
        case("SET c = d", None),
        case("SET c = c + :v", None, v=1),
        case("SET c = :v, d = c", None, v=1),
        case("SET a = b + :v", None, v=1, ministack=FAILS),
        case("SET a = a + :v", None, v="1", ministack=FAILS),
        case("ADD a :v", None, v="1"),
        case("ADD a :v", None, v=[1]),
        case("ADD b :v", None, v=1),
        case("ADD words :v", None, v={1}),
        case("DELETE #set :v", None, v=1),
        case("DELETE words :v", None, v={1}),
        case("DELETE a :v", None, v={1}),
        case("REMOVE a", "a < :v", v=[], moto=FAILS, ministack=LENIENT),
        case("REMOVE a", ":v >= a", v=True, moto=FAILS, ministack=LENIENT),
        case("REMOVE a", "begins_with(b, :v)", v=1, moto=FAILS),
        # values
        case("SET unknown_bucket = :v", None, v=1),
        case("SET unknown_since = :v", None, v="1"),
        case("SET unknown_bucket = :v", None, v=""),
        case("SET c = :v", None, v="é" * 205_000),
        case("SET a = :v + :w", None, v=D("1e38"), w=1, moto=LENIENT, ministack=LENIENT),
    ],
)
def test_what_dynamodb_calls_invalid_is_refused(
    table: TableBed, update: str, condition: str | None, values: Item, reasons: dict[str, str]
) -> None:
    differs(table.kind, **reasons)
    table.put(ITEM)
    more = {} if condition is None else {"ConditionExpression": condition}
    with pytest.raises(ClientError) as caught:
        table.update(update, values, **more)
    assert code(caught) == "ValidationException"
    assert table.get(KEY) == ITEM


@pytest.mark.parametrize(
    ("placeholders", "reasons"),
    [
        ({"#a": "a", "#b": "b"}, {}),
        ({"#b": "b"}, {}),
        ({}, {"moto": LENIENT}),
        ({"#a": "a", "b": "b"}, {}),
    ],
)
def test_names_that_are_undefined_or_unused_are_refused(
    table: TableBed, placeholders: dict[str, str], reasons: dict[str, str]
) -> None:
    differs(table.kind, **reasons)
    with pytest.raises(ClientError) as caught:
        table.client.update_item(
            TableName=TABLE,
            Key=KEY,
            UpdateExpression="REMOVE #a",
            ExpressionAttributeNames=placeholders,
        )
    assert code(caught) == "ValidationException"


@pytest.mark.parametrize(
    ("value", "reasons"),
    [
        ({"SS": []}, {"moto": LENIENT}),
        ({"NS": []}, {}),
        ({"SS": ["x", "x"]}, {"moto": LENIENT}),
        ({"NS": ["1", "1.0"]}, {"moto": LENIENT}),
        ({"N": "x"}, {"moto": LENIENT}),
        ({"N": "Infinity"}, {"moto": LENIENT}),
        ({"N": "1" * 39}, {"moto": LENIENT}),
        ({"N": "1e126"}, {"moto": LENIENT}),
        ({"N": "1e-131"}, {"moto": LENIENT}),
        (json.loads('{"L":[' * 33 + '{"NULL":true}' + "]}" * 33), {"moto": LENIENT}),
    ],
)
def test_a_value_that_cannot_be_is_refused(
    table: TableBed, value: Item, reasons: dict[str, str]
) -> None:
    differs(table.kind, **reasons)
    for call in (
        lambda: table.put({**KEY, "c": value}),
        lambda: table.put({**KEY, "c": {"M": {"d": value}}}),
        lambda: table.update("SET c = :v", {":v": value}),
    ):
        with pytest.raises(ClientError) as caught:
            call()
        assert code(caught) == "ValidationException"
    assert table.all() == []


BAD_KEYS: list[Item] = [
    {"pk": {"S": ""}, "sk": {"S": "S"}},
    {"pk": {"S": "P"}, "sk": {"S": ""}},
    {"pk": {"S": "P"}},
    {"pk": {"S": "P"}, "sk": {"N": "1"}},
    {"pk": {"S": "é" * 1025}, "sk": {"S": "S"}},
    {"pk": {"S": "P"}, "sk": {"S": "x" * 1025}},
]


@pytest.mark.parametrize("key", BAD_KEYS, ids=lambda key: str(key)[:50])
def test_a_key_that_cannot_be_is_not_written(table: TableBed, key: Item) -> None:
    with pytest.raises(ClientError) as caught:
        table.put(key)
    assert code(caught) == "ValidationException"
    assert table.all() == []


@pytest.mark.parametrize("key", BAD_KEYS, ids=lambda key: str(key)[:50])
def test_a_key_that_cannot_be_is_not_read_either(table: TableBed, key: Item) -> None:
    if len(key) == 2:
        differs(table.kind, moto="it says that nothing is there")
    with pytest.raises(ClientError) as caught:
        table.get(key)
    assert code(caught) == "ValidationException"
    with pytest.raises(ClientError) as caught:
        table.client.delete_item(TableName=TABLE, Key=key)
    assert code(caught) == "ValidationException"


def test_a_key_has_no_other_attribute(table: TableBed) -> None:
    with pytest.raises(ClientError) as caught:
        table.get(item(a=1))
    assert code(caught) == "ValidationException"


def test_another_table_is_not_there(table: TableBed) -> None:
    with pytest.raises(table.client.exceptions.ResourceNotFoundException):
        table.client.get_item(TableName="nowhere", Key=KEY, ConsistentRead=True)


def test_an_item_of_400_kb_is_the_largest(table: TableBed) -> None:
    differs(table.kind, moto="it counts other bytes")
    # pk and sk and their values have 6 bytes, the name of the attribute has one.
    table.put(item(c="x" * (400 * 1024 - 7)))
    with pytest.raises(ClientError) as caught:
        table.put(item(c="x" * (400 * 1024 - 6)))
    assert code(caught) == "ValidationException"
    with pytest.raises(ClientError) as caught:
        table.update("SET d = :v", {":v": wire("")})
    assert code(caught) == "ValidationException"


@pytest.mark.parametrize(
    "word",
    [
        *("status", "state", "owner", "name", "error", "number", "ttl", "source", "at", "date"),
        *(
            "time",
            "count",
            "rank",
            "value",
            "text",
            "to",
            "from",
            "key",
            "user",
            "unknown",
            "STATE",
        ),
    ],
)
def test_a_reserved_word_is_no_name(table: TableBed, word: str) -> None:
    for update, condition in [
        (f"SET {word} = :v", "attribute_not_exists(a)"),
        (f"SET a = :v REMOVE {word}", "attribute_not_exists(a)"),
        (f"SET m.{word} = :v", "attribute_not_exists(a)"),
        ("SET a = :v", f"attribute_not_exists({word})"),
        ("SET a = :v", f"a = :v OR {word} = :v"),
    ]:
        with pytest.raises(ClientError) as caught:
            table.update(update, {":v": wire(1)}, ConditionExpression=condition)
        assert code(caught) == "ValidationException"


@pytest.mark.parametrize("word", ["event", "words", "id", "parts", "kind", "outcome", "attempt"])
def test_other_words_are_names(table: TableBed, word: str) -> None:
    table.update(
        f"SET {word} = :v", {":v": wire(1)}, ConditionExpression=f"attribute_not_exists({word})"
    )
    assert table.get(KEY) == {**KEY, word: wire(1)}


def test_the_reserved_words_are_all_there() -> None:
    assert {word.lower() for word in ReservedKeywords.get_reserved_keywords()} == RESERVED


def test_a_condition_that_does_not_hold_comes_before_what_is_wrong_with_the_item(
    table: TableBed,
) -> None:
    table.put(ITEM)
    with pytest.raises(table.client.exceptions.ConditionalCheckFailedException):
        table.update("SET c.d = b + a", ConditionExpression="attribute_exists(c)")


# --- reads of many


def test_many_are_read_at_once(table: TableBed) -> None:
    some = [item(sk=f"{number:03}") for number in range(0, 100, 3)]
    table.put(*some)
    keys = [item(sk=f"{number:03}") for number in range(100)]
    answer = table.client.batch_get_item(
        RequestItems={TABLE: {"Keys": keys, "ConsistentRead": True}}
    )
    assert sorted(answer["Responses"][TABLE], key=str) == some
    assert answer["UnprocessedKeys"] == {}


@pytest.mark.parametrize(
    "keys",
    [[item(sk=str(n)) for n in range(101)], [KEY, item(sk="T"), KEY], [item(sk="")]],
    ids=["too many", "one twice", "empty key"],
)
def test_what_cannot_be_read_at_once_is_refused(table: TableBed, keys: list[Item]) -> None:
    if not keys[0]["sk"]["S"]:
        differs(table.kind, moto=LENIENT)
    with pytest.raises(ClientError) as caught:
        table.client.batch_get_item(RequestItems={TABLE: {"Keys": keys, "ConsistentRead": True}})
    assert code(caught) == "ValidationException"


def test_no_keys_are_no_question(table: TableBed) -> None:
    with pytest.raises(ParamValidationError):
        table.client.batch_get_item(RequestItems={TABLE: {"Keys": [], "ConsistentRead": True}})


def pages(operation: Callable[..., Any], **parameters: Any) -> list[list[Item]]:
    """The items of each page."""
    found = []
    while True:
        answer = operation(TableName=TABLE, **parameters)
        found.append([ordered(one) for one in answer["Items"]])
        assert answer["Count"] == len(answer["Items"]) <= answer["ScannedCount"]
        if "LastEvaluatedKey" not in answer:
            return found
        parameters["ExclusiveStartKey"] = answer["LastEvaluatedKey"]


IN_ORDER = ["", "IN#1", "IN#10", "IN#2", "OUT#1", "Z", "a", "é", "👋"]


def test_a_table_says_how_much_it_has(table: TableBed) -> None:
    def said() -> tuple[int, bool]:
        found = table.client.describe_table(TableName=TABLE)["Table"]
        return found["ItemCount"], found["TableSizeBytes"] > 0

    assert said() == (0, False)
    table.put(item("P", "1", a="x"), item("P", "2"), item("Q", "1"))
    # (AWS counts every six hours or so; moto counts no bytes.)
    assert said() == (3, table.kind != "moto")


@pytest.fixture
def conversation(table: TableBed) -> TableBed:
    """A conversation with an item for each of IN_ORDER, and another one."""
    table.put(*(item("C", f"-{sk}", n=n) for n, sk in reversed(list(enumerate(IN_ORDER)))))
    table.put(item("D", "-IN#1", n=0))
    return table


def of(pk: str, **more: Any) -> dict[str, Any]:
    values = {":pk": wire(pk), **{f":{name}": wire(value) for name, value in more.items()}}
    return {
        "KeyConditionExpression": "pk = :pk",
        "ExpressionAttributeValues": values,
        "ConsistentRead": True,
    }


def numbers(found: Sequence[Item]) -> list[int]:
    return [int(one["n"]["N"]) for one in found]


def test_a_conversation_is_read_in_the_order_of_its_keys(conversation: TableBed) -> None:
    everything = list(range(len(IN_ORDER)))
    (page,) = pages(conversation.client.query, **of("C"))
    assert numbers(page) == everything
    (page,) = pages(conversation.client.query, ScanIndexForward=False, **of("C"))
    assert numbers(page) == everything[::-1]
    assert pages(conversation.client.query, **of("nobody")) == [[]]


@pytest.mark.parametrize(
    ("condition", "v", "found"),
    [
        ("begins_with(sk, :v)", "-IN#", [1, 2, 3]),
        ("begins_with(sk, :v)", "-IN#1", [1, 2]),
        ("sk = :v", "-IN#1", [1]),
        ("sk < :v", "-IN#10", [0, 1]),
        ("sk >= :v", "-a", [6, 7, 8]),
    ],
)
def test_a_part_of_a_conversation_is_read(
    conversation: TableBed, condition: str, v: str, found: list[int]
) -> None:
    question = of("C", v=v)
    question["KeyConditionExpression"] += f" AND {condition}"
    (page,) = pages(conversation.client.query, **question)
    assert numbers(page) == found


@pytest.mark.parametrize("forward", [True, False])
def test_a_conversation_is_read_page_by_page(conversation: TableBed, forward: bool) -> None:
    found = pages(conversation.client.query, Limit=4, ScanIndexForward=forward, **of("C"))
    assert [len(page) for page in found if page] == [4, 4, 1]
    (whole,) = pages(conversation.client.query, ScanIndexForward=forward, **of("C"))
    assert list(itertools.chain(*found)) == whole


def test_the_limit_counts_what_the_filter_leaves_out(conversation: TableBed) -> None:
    question = of("C", v=5)
    found = pages(conversation.client.query, Limit=4, FilterExpression="n < :v", **question)
    assert [numbers(page) for page in found][:2] == [[0, 1, 2, 3], [4]]
    assert not any(found[2:])


def test_a_page_goes_on_where_an_item_is_gone(conversation: TableBed) -> None:
    answer = conversation.client.query(TableName=TABLE, Limit=3, **of("C"))
    conversation.client.delete_item(TableName=TABLE, Key=item("C", "-IN#10"))
    (rest,) = pages(
        conversation.client.query, ExclusiveStartKey=answer["LastEvaluatedKey"], **of("C")
    )
    assert numbers(rest) == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("condition", "values", "reasons"),
    [
        case("sk = :v", v="a"),
        case("pk < :v", v="a"),
        case("pk = :v AND n = :w", v="a", w=1),
        case("pk = :v AND sk <> :w", v="a", w="b", moto=FAILS, ministack=LENIENT),
        case("pk = :v OR sk = :w", v="a", w="b", moto=FAILS, ministack=LENIENT),
        case("pk = :v", v=1, moto=LENIENT),
        case("pk = :v AND sk = :w", v="a", w=1, moto=LENIENT),
        case("pk = :v AND begins_with(sk, :w)", v="a", w=1, moto=LENIENT),
        case("pk = :v", v="a", w="b", moto=LENIENT),
        case("pk = :v", w="b"),
        case("", v="a"),
    ],
)
def test_a_question_that_cannot_be_is_refused(
    table: TableBed, condition: str, values: Item, reasons: dict[str, str]
) -> None:
    differs(table.kind, **reasons)
    with pytest.raises(ClientError) as caught:
        table.client.query(
            TableName=TABLE,
            KeyConditionExpression=condition,
            ExpressionAttributeValues=values,
            ConsistentRead=True,
        )
    assert code(caught) == "ValidationException"


def test_everything_is_scanned_page_by_page(conversation: TableBed) -> None:
    assert len(conversation.all()) == len(IN_ORDER) + 1
    found = pages(conversation.client.scan, Limit=3, ConsistentRead=True)
    assert sorted(itertools.chain(*found), key=str) == sorted(conversation.all(), key=str)
    assert max(map(len, found)) == 3


def test_a_scan_leaves_out_what_is_not_asked_for(conversation: TableBed) -> None:
    found = pages(
        conversation.client.scan,
        FilterExpression="n = :v AND begins_with(#sk, :w)",
        ExpressionAttributeNames={"#sk": "sk"},
        ExpressionAttributeValues={":v": wire(0), ":w": wire("-IN")},
        ConsistentRead=True,
    )
    assert found == [[item("D", "-IN#1", n=0)]]


def unknown(bucket: str, since: int | None = None) -> dict[str, Any]:
    question: dict[str, Any] = {
        "IndexName": "unknown",
        "KeyConditionExpression": "unknown_bucket = :b",
        "ExpressionAttributeValues": {":b": wire(bucket)},
    }
    if since is not None:
        question["KeyConditionExpression"] += " AND unknown_since < :s"
        question["ExpressionAttributeValues"][":s"] = wire(since)
    return question


def test_the_index_has_what_is_unknown_and_nothing_else(table: TableBed) -> None:
    # GIVEN unknown sends in two buckets, and replies that are none
    table.put(
        item(sk="1", unknown_bucket="U#00", unknown_since=100),
        item(sk="2", unknown_bucket="U#00", unknown_since=D("9.5")),
        item(sk="3", unknown_bucket="U#01", unknown_since=1),
        item(sk="4", unknown_bucket="U#00"),
        item(sk="5", unknown_since=1),
        item(sk="6"),
    )

    def found(*question: Any, **more: Any) -> list[str]:
        return [
            one["sk"]["S"]
            for page in pages(table.client.query, **unknown(*question), **more)
            for one in page
        ]

    # THEN a bucket has its own, the oldest first, with all of its attributes
    assert found("U#00") == ["2", "1"]
    assert found("U#00", ScanIndexForward=False) == ["1", "2"]
    assert found("U#00", Limit=1) == ["2", "1"]
    assert found("U#00", 100) == ["2"]
    assert found("U#02") == []
    assert pages(table.client.query, **unknown("U#01")) == [
        [item(sk="3", unknown_bucket="U#01", unknown_since=1)]
    ]

    # WHEN one is settled, THEN it leaves the index
    table.client.update_item(
        TableName=TABLE,
        Key=item(sk="2"),
        UpdateExpression="REMOVE unknown_bucket, unknown_since",
    )
    assert found("U#00") == ["1"]


@pytest.mark.parametrize("wrong", [{"IndexName": "other"}, {"ConsistentRead": True}])
def test_no_other_index_is_there_and_none_that_is_consistent(
    table: TableBed, wrong: dict[str, Any]
) -> None:
    if "IndexName" in wrong:
        differs(table.kind, moto="another code")
    with pytest.raises(ClientError) as caught:
        table.client.query(TableName=TABLE, **{**unknown("U#00"), **wrong})
    assert code(caught) == "ValidationException"


# --- transactions


def put(new: Item, **more: Any) -> Item:
    return {"Put": {"TableName": TABLE, "Item": new, **more}}


def test_a_transaction_writes_all(table: TableBed) -> None:
    table.put(item(sk="update", a=1), item(sk="delete"), item(sk="check"))
    table.client.transact_write_items(
        TransactItems=[
            put(item(sk="put"), ConditionExpression="attribute_not_exists(pk)"),
            {
                "Update": {
                    "TableName": TABLE,
                    "Key": item(sk="update"),
                    "UpdateExpression": "ADD a :v",
                    "ExpressionAttributeValues": {":v": wire(1)},
                }
            },
            {"Delete": {"TableName": TABLE, "Key": item(sk="delete")}},
            {
                "ConditionCheck": {
                    "TableName": TABLE,
                    "Key": item(sk="check"),
                    "ConditionExpression": "attribute_exists(pk)",
                }
            },
        ]
    )
    expected = [item(sk="check"), item(sk="put"), item(sk="update", a=2)]
    assert sorted(table.all(), key=str) == sorted(expected, key=str)


def test_a_transaction_writes_all_or_nothing(table: TableBed) -> None:
    table.put(item(sk="1", a=1), item(sk="2", a=1))
    insert = {"ConditionExpression": "attribute_not_exists(pk)"}
    with pytest.raises(table.client.exceptions.TransactionCanceledException) as caught:
        table.client.transact_write_items(
            TransactItems=[
                put(item(sk="3")),
                put(item(sk="1"), **insert, ReturnValuesOnConditionCheckFailure="ALL_OLD"),
                put(item(sk="2"), **insert),
            ]
        )
    reasons: Any = caught.value.response
    first, second, third = reasons["CancellationReasons"]
    assert first["Code"] == "None"
    assert second["Code"] == third["Code"] == "ConditionalCheckFailed"
    assert second["Item"] == item(sk="1", a=1)
    assert "Item" not in third
    assert sorted(table.all(), key=str) == [item(sk="1", a=1), item(sk="2", a=1)]


def test_a_transaction_has_one_write_for_an_item(table: TableBed) -> None:
    with pytest.raises(ClientError) as caught:
        table.client.transact_write_items(TransactItems=[put(item(a=1)), put(item(a=2))])
    assert code(caught) == "ValidationException"
    assert table.all() == []


def test_a_transaction_says_what_is_wrong_with_an_item(table: TableBed) -> None:
    differs(table.kind, moto="it raises a ValidationException")
    with pytest.raises(table.client.exceptions.TransactionCanceledException) as caught:
        table.client.transact_write_items(
            TransactItems=[
                {
                    "Update": {
                        "TableName": TABLE,
                        "Key": KEY,
                        "UpdateExpression": "SET a.b = :v",
                        "ExpressionAttributeValues": {":v": wire(1)},
                    }
                },
                put(item(sk="T")),
            ]
        )
    reasons: Any = caught.value.response
    codes = [reason["Code"] for reason in reasons["CancellationReasons"]]
    assert codes == ["ValidationError", "None"]
    assert table.all() == []


# --- what the simulation asks of its own table


@pytest.fixture
def in_memory() -> TableBed:
    return TableBed("memory", DynamoDb(Clock()))


def test_nobody_holds_what_is_stored(in_memory: TableBed) -> None:
    # GIVEN an item, and what was written and read of it
    given_item = item(m={"l": [1], "s": {1}})
    in_memory.put(given_item)
    value = {":v": wire({"x": []})}
    new = in_memory.update("SET n = :v", value, ReturnValues="ALL_NEW")["Attributes"]
    expected = item(m={"l": [1], "s": {1}}, n={"x": []})
    # WHEN somebody changes that
    for one in (given_item, new, in_memory.all()[0]):
        one["m"]["M"]["l"]["L"].append({"N": "2"})
        one["m"]["M"]["s"]["NS"].append("2")
    for one in (value[":v"], new["n"]):
        one["M"]["x"]["L"].append({"N": "2"})
    # THEN the item stays as it was
    assert in_memory.get(KEY) == expected


def test_observers_see_each_change(in_memory: TableBed) -> None:
    seen: list[tuple[Any, Any, Any]] = []
    in_memory.client.observers.append(lambda *change: seen.append(change))
    in_memory.put(item(a=1))
    in_memory.update("SET a = :v", {":v": wire(2)})
    with suppress(ClientError):
        in_memory.update("SET a = b")
    with suppress(ClientError):
        in_memory.update("REMOVE a", ConditionExpression="attribute_exists(b)")
    in_memory.client.transact_write_items(TransactItems=[put(item(sk="T"))])
    in_memory.client.delete_item(TableName=TABLE, Key=KEY)
    in_memory.client.delete_item(TableName=TABLE, Key=KEY)
    in_memory.update("REMOVE a")
    first, second, third, fourth = seen
    assert first == (("P", "S"), None, item(a=1))
    assert second == (("P", "S"), item(a=1), item(a=2))
    assert third == (("P", "T"), None, item(sk="T"))
    assert fourth == (("P", "S"), item(a=2), None)
    # AND what they keep does not change under them
    assert seen[0][2] is seen[1][1]


def test_a_batch_may_leave_keys_unread(in_memory: TableBed) -> None:
    in_memory.put(item(sk="1"), item(sk="2"))
    keys = [item(sk="1"), item(sk="2"), item(sk="3")]
    in_memory.client.leave_unread = lambda asked: asked[1:]
    request = {TABLE: {"Keys": keys, "ConsistentRead": True}}
    answer = in_memory.client.batch_get_item(RequestItems=request)
    assert answer["Responses"] == {TABLE: [item(sk="1")]}
    assert answer["UnprocessedKeys"] == {TABLE: {"Keys": keys[1:], "ConsistentRead": True}}


def test_what_has_outlived_its_time_is_deleted() -> None:
    clock = Clock()
    bed = TableBed("memory", DynamoDb(clock))
    bed.put(item(sk="1", expires_at=int(NOW) + 10), item(sk="2", expires_at="never"), item(sk="3"))
    clock.now += 10
    assert bed.client.expire() == 0
    clock.now += 1
    assert bed.client.expire() == 1
    assert bed.all() == [item(sk="2", expires_at="never"), item(sk="3")]


def test_a_page_has_at_most_a_megabyte(in_memory: TableBed) -> None:
    in_memory.put(*(item(sk=str(number), text="x" * 300_000) for number in range(5)))
    found = pages(in_memory.client.query, **of("P"))
    assert [len(page) for page in found] == [4, 1]


@pytest.mark.parametrize(
    ("operation", "parameters"),
    [
        ("get_item", {"Key": KEY}),
        ("get_item", {"Key": KEY, "ConsistentRead": True, "ProjectionExpression": "a"}),
        ("put_item", {"Item": KEY, "ReturnConsumedCapacity": "TOTAL"}),
        ("put_item", {"Item": KEY, "Expected": {}}),
        ("update_item", {"Key": KEY, "UpdateExpression": "SET a[0] = b"}),
        ("update_item", {"Key": KEY, "UpdateExpression": "SET a = list_append(a, b)"}),
        (
            "update_item",
            {
                "Key": KEY,
                "UpdateExpression": "ADD a.b :v",
                "ExpressionAttributeValues": {":v": wire(1)},
            },
        ),
        (
            "update_item",
            {"Key": KEY, "UpdateExpression": "REMOVE a", "ReturnValues": "UPDATED_NEW"},
        ),
        ("delete_item", {"Key": KEY, "ConditionExpression": "size(a) = b"}),
        ("delete_item", {"Key": KEY, "ConditionExpression": "attribute_type(a, b)"}),
        ("delete_item", {"Key": KEY, "ConditionExpression": "a BETWEEN b AND c"}),
        ("delete_item", {"Key": KEY, "x": 1}),
        ("scan", {}),
        ("scan", {"ConsistentRead": True, "Segment": 0}),
        ("query", {**of("a"), "Select": "COUNT"}),
        ("query", {**of("a"), "ConsistentRead": False}),
    ],
)
def test_the_table_in_memory_refuses_what_it_does_not_know(
    in_memory: TableBed, operation: str, parameters: dict[str, Any]
) -> None:
    with pytest.raises(NotImplementedError):
        getattr(in_memory.client, operation)(TableName=TABLE, **parameters)

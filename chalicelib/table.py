"""The DynamoDB table: items by key or partition, inserts that never overwrite, updates under a
condition.

Nothing else talks to DynamoDB. Items are plain dictionaries; times are floats here and numbers
there. Every read is consistent: a decision is taken on it.
https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/Welcome.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from chalicelib.runtime import NotReady, Runtime

if TYPE_CHECKING:
    from boto3.dynamodb.types import TypeDeserializer, TypeSerializer

Item = dict[str, Any]
Key = tuple[str, str]

_GET_AT_ONCE = 100


class Conflict(Exception):
    """The condition of a write did not hold. `item` is what is there, None where nothing is."""

    def __init__(self, item: Item | None) -> None:
        super().__init__("condition not met")
        self.item = item


class ReadIncomplete(NotReady):
    """DynamoDB left keys of a batch unread, repeatedly: it is throttled for longer than that."""


class Table:
    """The table of a stage. Raises what botocore raises."""

    def __init__(self, runtime: Runtime, stage: str) -> None:
        self._runtime = runtime
        self._name = f"spillway-{stage}"

    def get(self, key: Key) -> Item | None:
        answer = self._runtime.dynamodb.get_item(
            TableName=self._name, Key=_key(key), ConsistentRead=True
        )
        found = answer.get("Item")
        return None if found is None else read_item(found)

    def get_many(self, keys: Sequence[Key]) -> dict[Key, Item]:
        """The items that exist, by key. Raises ReadIncomplete under lasting throttling."""
        found: dict[Key, Item] = {}
        left: Any = [_key(key) for key in dict.fromkeys(keys)]
        for attempt in range(4):
            if attempt:
                self._runtime.sleep(0.1 * 2**attempt * self._runtime.random())
            again: Any = []
            for start in range(0, len(left), _GET_AT_ONCE):
                chunk = left[start : start + _GET_AT_ONCE]
                answer = self._runtime.dynamodb.batch_get_item(
                    RequestItems={self._name: {"Keys": chunk, "ConsistentRead": True}}
                )
                responses: Any = answer["Responses"]
                for one in responses.get(self._name, []):
                    item = read_item(one)
                    found[item["pk"], item["sk"]] = item
                unread: Any = answer.get("UnprocessedKeys", {})
                again += unread.get(self._name, {}).get("Keys", [])
            left = again
            if not left:
                return found
        raise ReadIncomplete(f"{len(left)} keys unread")

    def query(self, pk: str, prefix: str) -> list[Item]:
        """All items with this partition key whose sort key begins so, in the order of the latter.

        https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_Query.html
        """
        found: list[Item] = []
        following: dict[str, Any] = {}
        while True:
            answer = self._runtime.dynamodb.query(
                TableName=self._name,
                KeyConditionExpression="pk = :pk AND begins_with(sk, :prefix)",
                ExpressionAttributeValues=self._write({":pk": pk, ":prefix": prefix}),
                ConsistentRead=True,
                **following,
            )
            found += [read_item(item) for item in answer["Items"]]
            if "LastEvaluatedKey" not in answer:
                return found
            following = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}

    def insert(self, item: Item) -> Item | None:
        """Puts the item where none has its key; returns what was there instead, or None."""
        client = self._runtime.dynamodb
        try:
            client.put_item(
                TableName=self._name,
                Item=self._write(item),
                ConditionExpression="attribute_not_exists(pk)",
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
            )
        except client.exceptions.ConditionalCheckFailedException as error:
            return self._conflict(error).item or {}
        return None

    def update(
        self,
        key: Key,
        update: str,
        *,
        condition: str = "",
        names: Mapping[str, str] | None = None,
        values: Mapping[str, Any] | None = None,
    ) -> Item:
        """Changes an item and returns it as it is then. Raises Conflict."""
        client = self._runtime.dynamodb
        arguments: dict[str, Any] = {"UpdateExpression": update}
        if condition:
            arguments["ConditionExpression"] = condition
            arguments["ReturnValuesOnConditionCheckFailure"] = "ALL_OLD"
        if names:
            arguments["ExpressionAttributeNames"] = dict(names)
        if values:
            arguments["ExpressionAttributeValues"] = self._write(values)
        try:
            answer = client.update_item(
                TableName=self._name, Key=_key(key), ReturnValues="ALL_NEW", **arguments
            )
        except client.exceptions.ConditionalCheckFailedException as error:
            raise self._conflict(error) from None
        # (None where something was to be taken from an item that is not there.)
        return read_item(answer.get("Attributes", {}))

    def delete(self, key: Key) -> None:
        """Takes an item away, if there is one."""
        self._runtime.dynamodb.delete_item(TableName=self._name, Key=_key(key))

    def _conflict(self, error: Any) -> Conflict:
        found = error.response.get("Item")
        return Conflict(read_item(found) if found else None)

    @cached_property
    def _serializer(self) -> TypeSerializer:
        from boto3.dynamodb.types import TypeSerializer

        return TypeSerializer()

    def _write(self, item: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: self._serializer.serialize(_storable(value))
            for name, value in item.items()
            if value is not None
        }


def read_item(item: Mapping[str, Any]) -> Item:
    """An item as DynamoDB writes it, in plain values."""
    read = _deserializer().deserialize
    return {name: _plain(read(value)) for name, value in item.items()}


def kept(item: Mapping[str, Any]) -> Item:
    """An item as the table gives it back, once it was written."""
    return {name: _plain(_storable(value)) for name, value in item.items() if value is not None}


@cache
def _deserializer() -> TypeDeserializer:
    from boto3.dynamodb.types import TypeDeserializer

    return TypeDeserializer()


def _key(key: Key) -> dict[str, Any]:
    return {"pk": {"S": key[0]}, "sk": {"S": key[1]}}


def _storable(value: Any) -> Any:
    """The value as DynamoDB takes it: no floats, no lone surrogates."""
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, float):
        return Decimal(str(value))
    if isinstance(value, Mapping):
        return {name: _storable(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_storable(one) for one in value]
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value

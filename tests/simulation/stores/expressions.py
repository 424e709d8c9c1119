"""DynamoDB's expressions: parsed once, checked as DynamoDB checks them, run as plain functions.

Values are in the wire format, as `value` (below) leaves them: equal values are equal dictionaries.
https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Expressions.OperatorsAndFunctions.html
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Context, Decimal, DecimalException, Inexact
from functools import cache
from typing import Any

from tests.simulation.stores import must_be

Value = dict[str, Any]
Item = dict[str, Value]
Values = Mapping[str, Value]
Path = tuple[str, ...]
Names = tuple[tuple[str, str], ...]
Condition = Callable[[Item, Values], bool]
Operand = Callable[[Item, Values], "Value | None"]

MOST_DIGITS = 38
MOST_LEVELS = 32


class Invalid(Exception):
    """What DynamoDB answers with a ValidationException."""


# -- values ---------------------------------------------------------------------------------------

_PLAIN_NUMBER = re.compile(r"(0|-?[1-9][0-9]{0,19}|-?(0|[1-9][0-9]{0,15})\.[0-9]{0,12}[1-9])")
_EXACT = Context(prec=MOST_DIGITS, traps=[Inexact])


def value(given: Mapping[str, Any], level: int = 0) -> Value:
    """A copy of a value that somebody gave, in the one spelling that it is kept in."""
    if level > MOST_LEVELS:
        raise Invalid("Nesting Levels have exceeded supported limits")
    if len(given) != 1:
        raise Invalid("Supplied AttributeValue has more than one datatypes set, must contain one")
    ((kind, content),) = given.items()
    if kind == "S":
        return {"S": _typed(str, content)}
    if kind == "N":
        return {"N": number(content)}
    if kind == "M":
        _typed(dict, content)
        return {"M": {name: value(one, level + 1) for name, one in content.items()}}
    if kind == "L":
        return {"L": [value(one, level + 1) for one in _typed(list, content)]}
    if kind == "BOOL":
        return {"BOOL": _typed(bool, content)}
    if kind == "NULL":
        if _typed(bool, content) is not True:
            raise Invalid("Null attribute value types must have the value of true")
        return {"NULL": True}
    if kind == "B":
        return {"B": _typed(bytes, content)}
    if kind in _SETS:
        return _set(kind, _typed(list, content))
    raise NotImplementedError(f"a value of type {kind}")


_SETS = {"SS": "S", "NS": "N", "BS": "B"}


def _set(kind: str, content: list[Any]) -> Value:
    if not content:
        raise Invalid("One or more parameter values were invalid: An set may not be empty")
    found = [value({_SETS[kind]: one})[_SETS[kind]] for one in content]
    if len(set(found)) < len(found):
        raise Invalid(
            "One or more parameter values were invalid: Input collection contains duplicates."
        )
    return {kind: sorted(found)}


def _typed(kind: type, content: Any) -> Any:
    must_be(kind, "AttributeValue", content)
    return content


def number(text: str) -> str:
    """A number as DynamoDB spells it: no exponent, no needless zero."""
    if _PLAIN_NUMBER.fullmatch(_typed(str, text)):
        return text
    try:
        return _spelt(Decimal(text))
    except DecimalException:
        raise Invalid("The parameter cannot be converted to a numeric value") from None


def _spelt(found: Decimal) -> str:
    if not found.is_finite():
        raise Invalid("The parameter cannot be converted to a numeric value")
    if not found:
        return "0"
    if not -130 <= found.adjusted() <= 125:
        raise Invalid("Number overflow or underflow. Attempting to store a number with magnitude")
    try:
        return f"{found.normalize(_EXACT):f}"
    except Inexact:
        raise Invalid("Attempting to store more than 38 significant digits in a Number") from None


def plus(left: Value | None, right: Value | None, sign: int = 1) -> Value:
    """Sum or difference of two numbers."""
    if left is None or right is None:
        raise Invalid(
            "The provided expression refers to an attribute that does not exist in the item"
        )
    if "N" not in left or "N" not in right:
        raise Invalid("An operand in the update expression has an incorrect data type")
    with_room = Context(prec=3 * MOST_DIGITS)
    other = Decimal(right["N"]) * sign
    return {"N": _spelt(with_room.add(Decimal(left["N"]), other))}


def size(found: Value) -> int:
    """Bytes that a value counts for.

    https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CapacityUnitCalculations.html
    """
    ((kind, content),) = found.items()
    if kind == "S":
        return _length(content)
    if kind == "N":
        return (len(content) + 1) // 2 + 1
    if kind in ("BOOL", "NULL"):
        return 1
    if kind == "B":
        return len(content)
    if kind == "M":
        return 3 + sum(1 + _length(name) + size(one) for name, one in content.items())
    if kind == "L":
        return 3 + sum(1 + size(one) for one in content)
    return sum(size({_SETS[kind]: one}) for one in content)


def _length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


# -- the language ---------------------------------------------------------------------------------

_TOKEN = re.compile(r"\s*(?:([A-Za-z][A-Za-z0-9_]*|[#:][A-Za-z0-9_]+|<>|<=|>=|[-=<>+,().\[])|(\S))")
_PATH_START = re.compile("[A-Za-z#]")
_NOT_SUPPORTED = frozenset({"size", "attribute_type", "list_append"})


@dataclass(frozen=True)
class Checked:
    """An expression that can be run, with the placeholders that it uses; `kinds` says of which
    types some values may be, by operator."""

    run: Any
    names: frozenset[str]
    values: frozenset[str]
    kinds: tuple[tuple[str, str, frozenset[str]], ...]

    def check(self, values: Values) -> None:
        """Raises Invalid for a value that an operator cannot take, whatever the item holds."""
        for operator, name, allowed in self.kinds:
            if name in values and allowed.isdisjoint(values[name]):
                raise Invalid(
                    "Incorrect operand type for operator or function; operator or function: "
                    f"{operator}, operand type: {next(iter(values[name]))}"
                )


@dataclass(frozen=True)
class Action:
    """One action of an update: what it does to the attribute at `path`.

    `result` gives the value that is there then, from the item and the request's values: None where
    there is none any more.
    """

    path: Path
    result: Operand
    makes: bool  # whether it makes an item that is not there


@cache
def condition(kind: str, text: str, names: Names) -> Checked:
    """A ConditionExpression or FilterExpression; its `run` is a Condition."""
    parser = _Parser(kind, text, names)
    found, _ = parser.any_of()
    parser.end()
    return parser.checked(found)


@cache
def update(text: str, names: Names) -> Checked:
    """An UpdateExpression; its `run` is a list of actions, which all see the item as it was."""
    parser = _Parser("UpdateExpression", text, names)
    actions = parser.sections()
    parser.end()
    _check_overlap([action.path for action in actions])
    return parser.checked(actions)


@cache
def key_condition(text: str, names: Names, keys: tuple[tuple[str, str], ...]) -> Checked:
    """A KeyConditionExpression on these keys, each with its type; its `run` is (the placeholder of
    the hash key's value, a Condition on the rest)."""
    parser = _Parser("KeyConditionExpression", text, names)
    (hash_key, hash_kind), (range_key, range_kind) = keys
    if parser.path() != (hash_key,):
        raise Invalid(f"Query condition missed key schema element: {hash_key}")
    parser.expect("=")
    placeholder = parser.placeholder()
    kinds = [("=", placeholder, frozenset({hash_kind}))]
    rest: Condition = lambda item, values: True  # noqa: E731
    if parser.accept("AND"):
        rest, operator, second = parser.of_range_key(range_key)
        kinds.append((operator, second, frozenset({range_kind})))
    parser.end()
    return replace(parser.checked((placeholder, rest)), kinds=tuple(kinds))


def _check_overlap(paths: list[Path]) -> None:
    for number_, one in enumerate(paths):
        for other in paths[number_ + 1 :]:
            shorter = min(len(one), len(other))
            if one[:shorter] == other[:shorter]:
                raise Invalid(
                    "Invalid UpdateExpression: Two document paths overlap with each other; must "
                    "remove or rewrite one of these paths"
                )


class _Parser:
    def __init__(self, kind: str, text: str, names: Names) -> None:
        self._kind = kind
        self._names = dict(names)
        self._tokens = self._split(text)
        self._at = 0
        self._used_names: set[str] = set()
        self._used_values: set[str] = set()
        self._kinds: list[tuple[str, str, frozenset[str]]] = []
        self.paths: list[Path] = []
        if not self._tokens:
            raise self.invalid("The expression can not be empty;")

    def _split(self, text: str) -> list[str]:
        tokens = []
        for good, bad in _TOKEN.findall(text):
            if bad:
                raise self.invalid(f'Syntax error; token: "{bad}"')
            if good == "[":
                raise NotImplementedError("an element of a list in a path")
            tokens.append(good)
        return tokens

    def invalid(self, what: str) -> Invalid:
        return Invalid(f"Invalid {self._kind}: {what}")

    def checked(self, run: Any) -> Checked:
        return Checked(
            run, frozenset(self._used_names), frozenset(self._used_values), tuple(self._kinds)
        )

    # -- tokens

    @property
    def _next(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def accept(self, token: str) -> bool:
        """Takes the next token if it is this one; words in any case."""
        if self._next.upper() == token:
            self._at += 1
            return True
        return False

    def expect(self, token: str) -> None:
        if not self.accept(token):
            raise self._syntax()

    def end(self) -> None:
        if self._next:
            raise self._syntax()

    def _take(self) -> str:
        token = self._next
        self._at += 1
        return token

    def _syntax(self) -> Invalid:
        return self.invalid(f'Syntax error; token: "{self._next or "<EOF>"}"')

    # -- paths and values

    def path(self) -> Path:
        parts = [self._name()]
        while self.accept("."):
            parts.append(self._name())
        self.paths.append(tuple(parts))
        return tuple(parts)

    def _name(self) -> str:
        if not _PATH_START.match(self._next):
            raise self._syntax()
        token = self._take()
        if token.startswith("#"):
            if token not in self._names:
                raise self.invalid(
                    "An expression attribute name used in the document path is not defined; "
                    f"attribute name: {token}"
                )
            self._used_names.add(token)
            return self._names[token]
        if token.lower() in RESERVED:
            raise self.invalid(f"Attribute name is a reserved keyword; reserved keyword: {token}")
        return token

    def placeholder(self) -> str:
        if not self._next.startswith(":"):
            raise self._syntax()
        self._used_values.add(self._next)
        return self._take()

    def _is_call(self) -> bool:
        return self._tokens[self._at + 1 : self._at + 2] == ["("] and self._next.isidentifier()

    def _operand(self, operator: str = "", kinds: frozenset[str] | None = None) -> Operand:
        """A value, for an operator that takes these types alone, or a path."""
        if self._next.startswith(":"):
            name = self.placeholder()
            if kinds:
                self._kinds.append((operator, name, kinds))
            return lambda item, values: values[name]
        if self._is_call():
            self._refuse_call()
        path = self.path()
        return lambda item, values: at(item, path)

    def _refuse_call(self) -> None:
        if self._next in _NOT_SUPPORTED:
            raise NotImplementedError(f"the function {self._next}")
        raise self.invalid(f"Invalid function name; function: {self._next}")

    # -- conditions; each with whether it was in parentheses as a whole

    def any_of(self) -> tuple[Condition, bool]:
        first, bare = self._all_of()
        found = [first]
        while self.accept("OR"):
            found.append(self._all_of()[0])
        if len(found) == 1:
            return first, bare
        return (lambda item, values: any(one(item, values) for one in found)), False

    def _all_of(self) -> tuple[Condition, bool]:
        first, bare = self._not()
        found = [first]
        while self.accept("AND"):
            found.append(self._not()[0])
        if len(found) == 1:
            return first, bare
        return (lambda item, values: all(one(item, values) for one in found)), False

    def _not(self) -> tuple[Condition, bool]:
        if self.accept("NOT"):
            inner, _ = self._not()
            return (lambda item, values: not inner(item, values)), False
        return self.one()

    def one(self) -> tuple[Condition, bool]:
        if self.accept("("):
            inner, bare = self.any_of()
            self.expect(")")
            if bare:
                raise self.invalid("The expression has redundant parentheses;")
            return inner, True
        if self._is_call() and self._next in _FUNCTIONS:
            return self._call(self._take()), False
        start = self._at
        left = self._operand()
        if self.accept("BETWEEN"):
            raise NotImplementedError("BETWEEN")
        if self.accept("IN"):
            self.expect("(")
            choices = [self._operand()]
            while self.accept(","):
                choices.append(self._operand())
            self.expect(")")
            return (
                lambda item, values: any(
                    compared("=", left(item, values), choice(item, values)) for choice in choices
                )
            ), False
        if self._next not in _COMPARISONS:
            raise self._syntax()
        operator = self._take()
        if operator in _ORDERING and self._tokens[start].startswith(":"):
            self._kinds.append((operator, self._tokens[start], _ORDERED))
        right = self._operand(operator, _ORDERED if operator in _ORDERING else None)
        return (
            lambda item, values: compared(operator, left(item, values), right(item, values))
        ), False

    def _call(self, name: str) -> Condition:
        self.expect("(")
        if self._next.startswith(":") and name.startswith("attribute_"):
            raise self.invalid(
                "Operator or function requires a document path; operator or function: " + name
            )
        first = self._operand()
        found: Condition
        if name == "attribute_exists":
            found = lambda item, values: first(item, values) is not None  # noqa: E731
        elif name == "attribute_not_exists":
            found = lambda item, values: first(item, values) is None  # noqa: E731
        else:
            self.expect(",")
            second = self._operand(name, _TEXT if name == "begins_with" else None)
            holds = _FUNCTIONS[name]
            found = lambda item, values: holds(first(item, values), second(item, values))  # noqa: E731
        self.expect(")")
        return found

    def of_range_key(self, range_key: str) -> tuple[Condition, str, str]:
        """What a KeyConditionExpression says of the range key: with operator and placeholder."""
        start = self._at
        found, _ = self.one()
        tokens = self._tokens[start : self._at]
        operator, second = (tokens[0], tokens[-2]) if len(tokens) == 6 else (tokens[1], tokens[-1])
        if (
            self.paths[1:] != [(range_key,)]
            or operator not in {"begins_with", "=", *_ORDERING}
            or not second.startswith(":")
        ):
            raise Invalid("Query key condition not supported")
        return found, operator, second

    # -- updates

    def sections(self) -> list[Action]:
        actions: list[Action] = []
        seen: set[str] = set()
        while self._next:
            section = self._take().upper()
            if section not in ("SET", "REMOVE", "ADD", "DELETE"):
                self._at -= 1
                raise self._syntax()
            if section in seen:
                raise self.invalid(
                    f'The "{section}" section can only be used once in an update expression;'
                )
            seen.add(section)
            actions.append(self._action(section))
            while self.accept(","):
                actions.append(self._action(section))
        return actions

    def _action(self, section: str) -> Action:
        path = self.path()
        if section == "REMOVE":
            return Action(path, lambda item, values: None, makes=False)
        if section == "SET":
            self.expect("=")
            return Action(path, self._sum(), makes=True)
        if len(path) > 1:
            raise NotImplementedError(f"{section} on an attribute inside another")
        name = self.placeholder()
        adds = section == "ADD"
        self._kinds.append((section, name, frozenset({*_SETS, "N"} if adds else _SETS)))
        change = _added if adds else _deleted
        return Action(
            path, lambda item, values: change(item.get(path[0]), values[name]), makes=adds
        )

    def _sum(self) -> Operand:
        start = self._at
        left = self._term()
        operator = self._next
        if operator not in ("+", "-"):
            return lambda item, values: _existing(left(item, values))
        self._take()
        if self._tokens[start].startswith(":"):
            self._kinds.append((operator, self._tokens[start], _NUMBER))
        right = self._term(operator, _NUMBER)
        sign = 1 if operator == "+" else -1
        return lambda item, values: plus(left(item, values), right(item, values), sign)

    def _term(self, operator: str = "", kinds: frozenset[str] | None = None) -> Operand:
        if not (self._is_call() and self._next == "if_not_exists"):
            return self._operand(operator, kinds)
        self._take()
        self.expect("(")
        path = self.path()
        self.expect(",")
        otherwise = self._term()
        self.expect(")")
        return lambda item, values: at(item, path) or otherwise(item, values)


def at(item: Item, path: Path) -> Value | None:
    """The value at a path, None where there is none."""
    found = item.get(path[0])
    for name in path[1:]:
        if found is None:
            return None
        found = found.get("M", _NOTHING).get(name)
    return found


_NOTHING: Mapping[str, Any] = {}


def _existing(found: Value | None) -> Value:
    if found is None:
        raise Invalid(
            "The provided expression refers to an attribute that does not exist in the item"
        )
    return found


def _added(there: Value | None, more: Value) -> Value:
    ((kind, content),) = more.items()
    if there is None:
        return more
    if kind not in there:
        raise Invalid("An operand in the update expression has an incorrect data type")
    if kind == "N":
        return plus(there, more)
    return {kind: sorted({*there[kind], *content})}


def _deleted(there: Value | None, less: Value) -> Value | None:
    ((kind, content),) = less.items()
    if there is None:
        return None
    if kind not in there:
        raise Invalid("An operand in the update expression has an incorrect data type")
    left = [one for one in there[kind] if one not in content]
    # A set is never empty: the attribute goes with its last element.
    return {kind: left} if left else None


_ORDERING = frozenset({"<", "<=", ">", ">="})
_COMPARISONS = _ORDERING | {"=", "<>"}
_ORDERED = frozenset({"S", "N", "B"})
_TEXT = frozenset({"S", "B"})
_NUMBER = frozenset({"N"})


def compared(operator: str, left: Value | None, right: Value | None) -> bool:
    """Whether a comparison holds. What is not there is unequal to everything."""
    if operator == "=":
        return left is not None and left == right
    if operator == "<>":
        return left is None or left != right
    if left is None or right is None:
        return False
    ((kind, one),) = left.items()
    ((other_kind, other),) = right.items()
    if kind != other_kind or kind not in _ORDERED:
        return False
    if kind == "N":
        one, other = Decimal(one), Decimal(other)
    if operator == "<":
        return bool(one < other)
    if operator == "<=":
        return bool(one <= other)
    if operator == ">":
        return bool(one > other)
    return bool(one >= other)


def _begins_with(whole: Value | None, start: Value | None) -> bool:
    if whole is None or start is None:
        return False
    return any(
        kind in whole and kind in start and whole[kind].startswith(start[kind])
        for kind in ("S", "B")
    )


def _contains(whole: Value | None, part: Value | None) -> bool:
    if whole is None or part is None:
        return False
    ((kind, content),) = whole.items()
    ((part_kind, wanted),) = part.items()
    if kind == "L":
        return part in content
    if kind in ("S", "B"):
        return kind == part_kind and wanted in content
    return _SETS.get(kind) == part_kind and wanted in content


_FUNCTIONS: Mapping[str, Callable[..., bool]] = {
    "attribute_exists": bool,
    "attribute_not_exists": bool,
    "begins_with": _begins_with,
    "contains": _contains,
}

# https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/ReservedWords.html
RESERVED = frozenset(
    """
abort absolute action add after agent aggregate all allocate alter analyze and any archive are
array as asc ascii asensitive assertion asymmetric at atomic attach attribute auth
authorization authorize auto avg back backup base batch before begin between bigint binary bit
blob block boolean both breadth bucket bulk by byte call called calling capacity cascade
cascaded case cast catalog char character check class clob close cluster clustered clustering
clusters coalesce collate collation collection column columns combine comment commit compact
compile compress condition conflict connect connection consistency consistent constraint
constraints constructor consumed continue convert copy corresponding count counter create cross
cube current cursor cycle data database date datetime day deallocate dec decimal declare
default deferrable deferred define defined definition delete delimited depth deref desc
describe descriptor detach deterministic diagnostics directories disable disconnect distinct
distribute do domain double drop dump duration dynamic each element else elseif empty enable
end equal equals error escape escaped eval evaluate exceeded except exception exceptions
exclusive exec execute exists exit explain explode export expression extended external extract
fail false family fetch fields file filter filtering final finish first fixed flattern float
for force foreign format forward found free from full function functions general generate get
glob global go goto grant greater group grouping handler hash have having heap hidden hold hour
identified identity if ignore immediate import in including inclusive increment incremental
index indexed indexes indicator infinite initially inline inner innter inout input insensitive
insert instead int integer intersect interval into invalidate is isolation item items iterate
join key keys lag language large last lateral lead leading leave left length less level like
limit limited lines list load local localtime localtimestamp location locator lock locks log
loged long loop lower map match materialized max maxlen member merge method metrics min minus
minute missing mod mode modifies modify module month multi multiset name names national natural
nchar nclob new next no none not null nullif number numeric object of offline offset old on
online only opaque open operator option or order ordinality other others out outer output over
overlaps override owner pad parallel parameter parameters partial partition partitioned
partitions path percent percentile permission permissions pipe pipelined plan pool position
precision prepare preserve primary prior private privileges procedure processed project
projection property provisioning public put query quit quorum raise random range rank raw read
reads real rebuild record recursive reduce ref reference references referencing regexp region
reindex relative release remainder rename repeat replace request reset resignal resource
response restore restrict result return returning returns reverse revoke right role roles
rollback rollup routine row rows rule rules sample satisfies save savepoint scan schema scope
scroll search second section segment segments select self semi sensitive separate sequence
serializable session set sets shard share shared short show signal similar size skewed smallint
snapshot some source space spaces sparse specific specifictype split sql sqlcode sqlerror
sqlexception sqlstate sqlwarning start state static status storage store stored stream string
struct style sub submultiset subpartition substring subtype sum super symmetric synonym system
table tablesample temp temporary terminated text than then throughput time timestamp timezone
tinyint to token total touch trailing transaction transform translate translation treat trigger
trim true truncate ttl tuple type under undo union unique unit unknown unlogged unnest
unprocessed unsigned until update upper url usage use user users using uuid vacuum value valued
values varchar variable variance varint varying view views virtual void wait when whenever
where while window with within without work wrapped write year zone
""".split()  # noqa: SIM905
)

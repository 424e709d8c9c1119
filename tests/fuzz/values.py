"""What the strategies of these tests are made of: odd texts, JSON that is odd as it is written, and
good values with something wrong in one place."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

# Lone surrogates, NULs and what SQS refuses among them.
ODD = (
    '\x00\x0b\x1f\x7f\x85\ud800\udfff\ufffe\uffff\u200d\u0301\u2028\ufeff\U0001f468é ß%&=+#\r\n"\\'
)
texts = st.text(st.characters() | st.sampled_from(ODD), max_size=40)


class Written(str):
    """JSON, or nearly, as it is written: what `json.dumps` would not write."""


class Pairs(list[tuple[str, Any]]):
    """An object with its keys in order, some of them repeated."""


def deep(opening: str, closing: str, levels: int) -> Written:
    return Written(opening * levels + "0" + closing * levels)


# (From some hundreds of levels on, whoever follows them by recursion fails: DEEP and those below.)
SHALLOW = [deep("[", "]", 100), deep('{"a":', "}", 100)]
DEEP = [deep("[", "]", 600), deep('{"a":', "}", 600)]
BOTTOMLESS = [deep("[", "]", 5_000), deep('{"a":', "}", 5_000), Written("[" * 5_000)]

ODD_JSON = [
    *(
        Written(number)
        for number in ("-0", "-0.0", "1e-400", "1E+2", "9" * 4_000, "0.1" + "0" * 99)
    ),
    *(Written(number) for number in ("NaN", "Infinity", "-Infinity", "1e999", "9" * 5_000, "01")),
    Written(r'"\ud800"'),
    Written(r'"\udc00\ud800"'),
    Written(r'"\u0000"'),
    Written('"\\q"'),
    Written('"' + "x" * 30_000 + '"'),
    Written('{"a":1,"a":[]}'),
    Written("'single'"),
    Written("nul"),
    Written(""),
    *SHALLOW,
]

scalars: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False)
    | texts
    | st.sampled_from(
        ["", "+14155550100", "STOP", "2026-09-21T14:13:20Z", "0001-01-01T00:00+23:59"]
    )
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def written(value: Any) -> str:
    """A value as JSON, `Written` and `Pairs` in it as they stand."""
    if isinstance(value, Written):
        return value
    if isinstance(value, dict | Pairs):
        pairs = value.items() if isinstance(value, dict) else value
        return "{" + ",".join(f"{json.dumps(name)}:{written(one)}" for name, one in pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(written(one) for one in value) + "]"
    return json.dumps(value)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, as the keys that lead to it."""
    inner: Any = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    for key, one in inner:
        yield (*path, key)
        yield from places(one, (*path, key))


@st.composite
def damaged(
    draw: st.DrawFn, good: Any, odd: st.SearchStrategy[Any] | None = None, most: int = 3
) -> Any:
    """A good JSON object with up to `most` things wrong in it: gone, of another type, nested in
    something, told twice, under another name, or replaced by one of `odd`."""
    body = copy.deepcopy(good)
    replacements = values if odd is None else values | odd
    for _ in range(draw(st.integers(1, most))):
        found = [path for path in places(body) if path]
        if not found:
            break
        *path, last = draw(st.sampled_from(found))
        parent: Any = body
        for key in path:
            parent = parent[key]
        one = parent[last]
        match draw(st.sampled_from(["replace"] * 4 + ["remove", "list", "object", "text", "name"])):
            case "replace":
                parent[last] = draw(replacements)
            case "remove":
                del parent[last]
            case "list":
                parent[last] = [one] * draw(st.integers(0, 3))
            case "object":
                parent[last] = {str(last): one}
            case "text":
                parent[last] = written(one)
            case "name" if isinstance(parent, dict):
                parent[draw(texts) or str(last).upper()] = parent.pop(last)
    if draw(st.booleans()) and isinstance(body, dict) and body:
        name = draw(st.sampled_from(sorted(body)))
        return Pairs([*body.items(), (name, draw(replacements))])
    return body


@st.composite
def changed(draw: st.DrawFn, body: bytes) -> bytes:
    """Other bytes: one changed, put in, taken out, told twice, or moved; never the same."""
    at = draw(st.integers(0, max(len(body) - 1, 0)))
    byte = draw(st.binary(min_size=1, max_size=1) | st.sampled_from([b"=", b"&", b"%", b"+", b" "]))
    end = at + draw(st.integers(1, 8))
    found = draw(
        st.sampled_from(
            [
                body[:at] + byte + body[at + 1 :],
                body[:at] + byte + body[at:],
                body[:at] + body[end:],
                body[:end] + body[at:],
                body[end:] + body[:end],
                body[:at] + body[at:end][::-1] + body[end:],
                body + byte,
                b"",
            ]
        )
    )
    return found if found != body else body + b"!"

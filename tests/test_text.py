"""What is stored, what is decoded, what a text costs, and how a long one is cut."""

from __future__ import annotations

import base64
import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chalicelib.text import TooLong, decode_base64, encoding, normalise, segments, split, units

quiet = settings(deadline=None)  # the machine is shared: time proves nothing here

# --- normalise ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("  Hello  ", "  Hello  "),
        ("a\tb", "a\tb"),
        ("caf\u0065\u0301", "café"),
        ("\u212b", "Å"),
        ("ﬁ ＳＴＯＰ", "ﬁ ＳＴＯＰ"),  # compatibility is a matter of matching, not of storing
        ("\u0000a\u0000", "a"),
        ("a\u0001\u0008\u000b\u000c\u000e\u001fb", "ab"),
        ("a\u007f\u0085b", "a\u007f\u0085b"),  # SQS takes them
        ("a\ufffe\uffffb\ufffd", "ab\ufffd"),
        ("a\U0001fffe", "a\U0001fffe"),
        ("\ufeffa", "\ufeffa"),
        ("a\r\nb\rc\nd", "a\nb\nc\nd"),
        ("a\r\r\nb", "a\n\nb"),
        ("a\r\u0000\nb", "a\nb"),  # what removal brings together is one line end
        ("e\u0000\u0301", "é"),  # ... or one letter
        ("\ud83d\ude00", "😀"),
        ("\ud83d", "\ufffd"),
        ("a\ude00", "a\ufffd"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("\ud83d\ud83d\ude00", "\ufffd😀"),
        ("\ud83dx\ude00", "\ufffdx\ufffd"),
        ("\ud83d\u0000\ude00", "\ufffd\ufffd"),  # not a pair as it was written
        ("😀" * 1600, "😀" * 1600),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected


ODD = st.sampled_from(
    "\x00\x01\x0b\x0c\x1f\t\r\n \x7f\x85\ud83d\ude00\udfff\ufffe\uffff\ufffd"
    "e\u0301\u0323\u212b\u1100\u1161\U0001d160ﬁ😀"
)
any_text = st.text(st.characters() | ODD)
odd_text = st.text(ODD) | any_text


@quiet
@given(odd_text)
def test_normalise_is_idempotent(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once


@quiet
@given(odd_text)
def test_normalised_text_is_what_sqs_takes(text: str) -> None:
    clean = normalise(text)
    clean.encode()
    assert "\r" not in clean
    assert unicodedata.is_normalized("NFC", clean)
    for character in clean:
        code = ord(character)
        assert (
            code in (0x9, 0xA)
            or 0x20 <= code <= 0xD7FF
            or 0xE000 <= code <= 0xFFFD
            or 0x10000 <= code <= 0x10FFFF
        )


# --- decode_base64 -----------------------------------------------------------------------------


def encoded(text: str, cut: int = 0) -> str:
    content = text.encode()
    return base64.b64encode(content[: len(content) - cut]).decode()


LONG = "The parcel came on Tuesday, thank you; the blue one is still missing."
JAPANESE = "荷物が届きました。ありがとうございます。青い方がまだです。"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(encoded(LONG), LONG, id="one line"),
        pytest.param(encoded(LONG) + "\r", LONG, id="CR at the end"),
        pytest.param("\r\n" + encoded(LONG) + "\r\n", LONG, id="line ends around"),
        pytest.param(base64.encodebytes(LONG.encode() * 3).decode(), LONG * 3, id="MIME lines"),
        pytest.param(
            encoded("one\r\ntwo\tthree\n" * 5), "one\r\ntwo\tthree\n" * 5, id="lines in it"
        ),
        pytest.param(encoded(JAPANESE), JAPANESE, id="a script without spaces"),
        pytest.param(encoded("😀" * 15), "😀" * 15, id="emoji only, 80 characters"),
        pytest.param(encoded(LONG + "👍", cut=1), LONG, id="last character unfinished, 3 of 4"),
        pytest.param(encoded(LONG + "“", cut=2), LONG, id="last character unfinished, 1 of 3"),
        pytest.param(encoded("a" * 30 + " " + "b" * 14), "a" * 30 + " " + "b" * 14, id="just 60"),
    ],
)
def test_decodes_what_is_clearly_base64(body: str, expected: str) -> None:
    assert decode_base64(body) == expected


def with_loose_bits(body: str) -> str:
    """The same bytes, the unused bits of the last character not zero."""
    assert body.endswith("=")
    stem = body.rstrip("=")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return stem[:-1] + alphabet[alphabet.index(stem[-1]) + 1] + "=" * (len(body) - len(stem))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("", id="empty"),
        pytest.param("Hello, is the shop open on Sunday? I would like to come by.", id="writing"),
        pytest.param(encoded("Hello there"), id="short"),
        pytest.param(encoded("a" * 30 + " " + "b" * 11), id="56 characters"),
        pytest.param("Look: " + encoded(LONG), id="words before it"),
        pytest.param(encoded(LONG).replace("I", " ", 1), id="a space inside"),
        pytest.param(encoded(LONG)[:-1], id="one character short"),
        pytest.param(encoded(LONG + "!").rstrip("="), id="no padding"),
        pytest.param("=" + encoded(LONG + "!")[:-1], id="padding in front"),
        pytest.param(with_loose_bits(encoded(LONG + "!")), id="not canonical"),
        pytest.param(
            base64.urlsafe_b64encode(("??>>" + JAPANESE).encode()).decode(), id="another alphabet"
        ),
        pytest.param(encoded(LONG).replace("a", "а", 1), id="a Cyrillic letter in it"),
        pytest.param(encoded(LONG + "\x00\x01"), id="control characters come out"),
        pytest.param(encoded(LONG + "\x85"), id="C1 control characters come out"),
        pytest.param(base64.b64encode(LONG.encode("utf-16-le")).decode(), id="UTF-16 comes out"),
        pytest.param(base64.b64encode(b"\xff\xfe" + LONG.encode()).decode(), id="bytes come out"),
        pytest.param(encoded(LONG + "é" + LONG).replace("w6", "w7", 1) + "====", id="bad padding"),
        pytest.param(
            "https://shop.example/orders/2026/11/23/tracking/9f8e7d6c5b4a39281706f5e4d3c2b1a0/x",
            id="an address",
        ),
        pytest.param(
            "shop/orders/2026/11/23/tracking/parcels/by/road/and/rail/north/", id="a path"
        ),
        pytest.param("9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", id="SHA"),
        pytest.param(
            "k7Qm2xVd9RtYp4LwZs8NbHc3JfGg6KaTe5UiXo1MqCvBrDlEhSyWzPnFjAuIkOt0", id="token"
        ),
        pytest.param("a" * 64, id="one letter"),
        pytest.param("A" * 64, id="NULs come out"),
        pytest.param("Ha" * 40, id="laughter"),
        pytest.param("Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch" * 2, id="a name"),
        pytest.param("4" * 80, id="digits"),
        pytest.param(encoded("https://shop.example/orders/" + "x" * 30), id="an address came out"),
        pytest.param(encoded('{"user":"4711","role":"reader","issued":1764000000}'), id="claims"),
        pytest.param(encoded("api_" + "0123456789" * 5 + "\n"), id="a token with a line end"),
    ],
)
def test_leaves_alone_what_is_not_clearly_base64(body: str) -> None:
    assert decode_base64(body) is None


@quiet
@given(st.text(st.characters(exclude_categories=("Cs", "Cc"))))
def test_decodes_every_long_text_of_several_words(text: str) -> None:
    text = f"{text} and so on, at {'some ' * 12}length"
    assert decode_base64(encoded(text)) == text


@quiet
@given(st.binary(min_size=45, max_size=120))
def test_what_is_decoded_is_writing_or_nothing(content: bytes) -> None:
    decoded = decode_base64(base64.b64encode(content).decode())
    if decoded is not None:
        assert content.startswith(decoded.encode())
        assert len(content) - len(decoded.encode()) < 4
        assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", decoded)


@quiet
@given(any_text)
def test_decoding_refuses_no_input(text: str) -> None:
    decode_base64(text)


# --- encoding, units, segments -----------------------------------------------------------------

# The 127 characters of the table in 3GPP TS 23.038, section 6.2.1, column by column, and the 10 of
# the extension table: by code point, so that they cannot be mistyped alike on both sides.
BASIC = [
    *(
        0x40,
        0xA3,
        0x24,
        0xA5,
        0xE8,
        0xE9,
        0xF9,
        0xEC,
        0xF2,
        0xC7,
        0x0A,
        0xD8,
        0xF8,
        0x0D,
        0xC5,
        0xE5,
    ),
    *(0x394, 0x5F, 0x3A6, 0x393, 0x39B, 0x3A9, 0x3A0, 0x3A8, 0x3A3, 0x398, 0x39E),
    *(0xC6, 0xE6, 0xDF, 0xC9),
    *(0x20, 0x21, 0x22, 0x23, 0xA4, *range(0x25, 0x40)),
    *(0xA1, *range(0x41, 0x5B), 0xC4, 0xD6, 0xD1, 0xDC, 0xA7),
    *(0xBF, *range(0x61, 0x7B), 0xE4, 0xF6, 0xF1, 0xFC, 0xE0),
]
EXTENSION = [0x0C, 0x5E, 0x7B, 0x7D, 0x5C, 0x5B, 0x7E, 0x5D, 0x7C, 0x20AC]


def test_the_alphabet_is_the_one_of_the_standard() -> None:
    assert (len(set(BASIC)), len(set(EXTENSION))) == (127, 10)
    found = {code for code in range(0x10000) if encoding(chr(code)) == "GSM-7"}
    assert found == {*BASIC, *EXTENSION}
    # By what 160 of them take: one septet each, or two.
    assert {code for code in found if segments(chr(code) * 160) == 1} == set(BASIC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "GSM-7"),
        ("Hello @ £5", "GSM-7"),
        ("10 €", "GSM-7"),
        ("line\nline", "GSM-7"),
        ("`", "UCS-2"),
        ("it’s", "UCS-2"),
        ("ç", "UCS-2"),  # the table has the capital alone
        ("cafe\u0301", "UCS-2"),
        (normalise("cafe\u0301"), "GSM-7"),
        ("\t", "UCS-2"),
        ("\x1b", "UCS-2"),
        ("Привет", "UCS-2"),
        ("😀", "UCS-2"),
    ],
)
def test_encoding(text: str, expected: str) -> None:
    assert encoding(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 1),
        ("a" * 160, 1),
        ("a" * 161, 2),
        ("a" * 306, 2),
        ("a" * 307, 3),
        ("€" * 80, 1),
        ("€" * 81, 2),
        ("€" * 152, 2),
        ("€" * 153, 3),  # 306 septets, but 76 to a segment: none is split
        ("a" * 158 + "€", 1),
        ("a" * 159 + "€", 2),
        ("a" * 152 + "€" + "a" * 151, 2),
        ("a" * 152 + "€" + "a" * 152, 3),  # 306 septets, one of them lost before the escape
        ("я" * 70, 1),
        ("я" * 71, 2),
        ("я" * 134, 2),
        ("я" * 135, 3),
        ("😀" * 35, 1),
        ("😀" * 36, 2),
        ("😀" * 66, 2),
        ("😀" * 67, 3),  # 134 units, but 33 pairs to a segment
        ("я" * 66 + "😀" + "я" * 65, 2),
        ("я" * 66 + "😀" + "я" * 66, 3),
        ("a" * 70 + "’", 2),
        ("😀" * 1600, 49),
    ],
)
def test_segments(text: str, expected: int) -> None:
    assert segments(text) == expected


@pytest.mark.parametrize(("text", "expected"), [("", 0), ("aé€", 3), ("a😀", 3), ("\ud83d", 1)])
def test_units(text: str, expected: int) -> None:
    assert units(text) == expected


costly = st.text(st.sampled_from("ab€[я😀"), max_size=400)


@quiet
@given(costly, costly)
def test_a_longer_text_never_takes_fewer_segments(text: str, more: str) -> None:
    assert max(segments(text), segments(more)) <= segments(text + more)


# --- split -------------------------------------------------------------------------------------

FAMILY = "👨\u200d👩\u200d👧"  # 8 units, one character to a reader
WAVE = "👋🏽"
HEART = "❤\ufe0f"
WALES = "🏴\U000e0067\U000e0062\U000e0077\U000e006c\U000e0073\U000e007f"
FRANCE = "🇫🇷"


@pytest.mark.parametrize(
    ("text", "max_length", "max_segments", "expected"),
    [
        pytest.param("", 10, None, [], id="empty"),
        pytest.param("one two", 7, None, ["one two"], id="fits"),
        pytest.param("  one ", 7, None, ["  one "], id="fits: unchanged"),
        pytest.param("  ", 7, None, ["  "], id="white space that fits"),
        pytest.param(" " * 8, 7, None, [], id="white space that does not"),
        pytest.param("one two", 6, None, ["one", "two"], id="at a word"),
        pytest.param("one two three", 8, None, ["one two", "three"], id="as many as fit"),
        pytest.param("one two three", 7, None, ["one two", "three"], id="white space at the limit"),
        pytest.param("one  \n two", 5, None, ["one", "two"], id="all white space of the cut"),
        pytest.param("one  \n two", 4, None, ["one", "two"], id="a cut inside white space"),
        pytest.param("a  b  c", 4, None, ["a  b", "c"], id="white space inside a part stays"),
        pytest.param("\n  one" + " " * 9, 4, None, ["one"], id="ends go when it does not fit"),
        pytest.param("abcdefgh", 3, None, ["abc", "def", "gh"], id="a long word"),
        pytest.param("a bcdefgh ij", 4, None, ["a", "bcde", "fgh", "ij"], id="begins a part"),
        pytest.param("bcdefg hi", 5, None, ["bcdef", "g hi"], id="its rest has company"),
        pytest.param("😀😀😀", 4, None, ["😀😀", "😀"], id="units, not characters"),
        pytest.param("😀😀😀", 5, None, ["😀😀", "😀"], id="no pair is split"),
        pytest.param("xe\u0323e\u0323", 4, None, ["xe\u0323", "e\u0323"], id="a mark"),
        pytest.param("a" * 3 + FAMILY, 8, None, ["aaa", FAMILY], id="joined emoji"),
        pytest.param("abc" + WAVE, 5, None, ["abc", WAVE], id="a skin tone"),
        pytest.param("abc" + HEART, 4, None, ["abc", HEART], id="a variation selector"),
        pytest.param("abc" + WALES, 14, None, ["abc", WALES], id="tags"),
        pytest.param(FRANCE * 3, 6, None, [FRANCE, FRANCE, FRANCE], id="flags"),
        pytest.param("x" + FRANCE * 2, 7, None, ["x" + FRANCE, FRANCE], id="flags after a letter"),
        pytest.param("می\u200cخ", 2, None, ["م", "ی\u200c", "خ"], id="a non-joiner"),
        pytest.param(FAMILY, 5, None, ["👨\u200d👩", "\u200d👧"], id="larger than a part"),
        pytest.param("e" + "\u0323" * 5, 3, None, ["e\u0323\u0323", "\u0323" * 3], id="many marks"),
        pytest.param("a" * 161, 1600, 1, ["a" * 160, "a"], id="segments, GSM-7"),
        pytest.param("я" * 71, 1600, 1, ["я" * 70, "я"], id="segments, UCS-2"),
        pytest.param("a" * 307, 1600, 2, ["a" * 306, "a"], id="segments, several"),
        pytest.param(
            "a" * 100 + " " + "b" * 50 + " я",
            1600,
            1,
            ["a" * 100 + " " + "b" * 50, "я"],
            id="one character changes the encoding of its part only",
        ),
        pytest.param("a" * 161, 100, 1, ["a" * 100, "a" * 61], id="both limits"),
    ],
)
def test_split(text: str, max_length: int, max_segments: int | None, expected: list[str]) -> None:
    assert split(text, max_length, max_segments, 10) == expected


@pytest.mark.parametrize(
    ("text", "max_length", "max_segments", "max_parts"),
    [
        ("one two", 6, None, 1),
        ("a" * 31, 10, None, 3),
        ("a" * 161, 1600, 1, 1),
        ("😀", 1, None, 10),
        ("a 😀", 1, None, 10),
    ],
)
def test_too_long(text: str, max_length: int, max_segments: int | None, max_parts: int) -> None:
    with pytest.raises(TooLong) as raised:
        split(text, max_length, max_segments, max_parts)
    assert text not in str(raised.value)


def test_exactly_max_parts_is_not_too_long() -> None:
    assert split("a" * 30 + " ", 10, None, 3) == ["a" * 10] * 3


words = st.lists(
    st.text(st.sampled_from("abé€я’😀\u0323\u200d\U0001f3fd🇫"), min_size=1, max_size=12),
    max_size=30,
)
spaces = st.text(st.sampled_from(" \n\t\u00a0"), min_size=1, max_size=3)


@st.composite
def texts(draw: st.DrawFn) -> str:
    edge = st.just("") | spaces
    return draw(edge) + "".join(one + draw(spaces) for one in draw(words)) + draw(edge)


limits = st.tuples(st.integers(2, 200), st.none() | st.integers(1, 3))


def fits(part: str, limit: tuple[int, int | None]) -> bool:
    return units(part) <= limit[0] and (limit[1] is None or segments(part) <= limit[1])


@quiet
@given(texts(), limits)
def test_every_part_fits_and_nothing_but_white_space_is_lost(
    text: str, limit: tuple[int, int | None]
) -> None:
    parts = split(text, *limit, max_parts=1000)

    assert all(part and fits(part, limit) for part in parts)
    assert "".join("".join(parts).split()) == "".join(text.split())
    if fits(text, limit):
        assert parts == [text] * bool(text)
    else:
        assert all(part == part.strip() for part in parts)
    # Every part is a stretch of the text, white space inside it untouched.
    at = 0
    for part in parts:
        at = text.index(part, at) + len(part)


@quiet
@given(texts(), st.tuples(st.integers(24, 60), st.none() | st.integers(1, 3)))
def test_words_stay_whole_and_parts_are_few(text: str, limit: tuple[int, int | None]) -> None:
    # GIVEN words of at most 24 units each, in a text that has no white space at its ends
    text = text.strip()

    parts = split(text, *limit, max_parts=1000)

    assert [word for part in parts for word in part.split()] == text.split()
    # The fewest parts for the words up to each, by trying every beginning of the last part.
    begins = [match.start() for match in re.finditer(r"\S+", text)]
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    fewest = [0]
    for last, end in enumerate(ends):
        fewest.append(
            1 + min(fewest[i] for i in range(last + 1) if fits(text[begins[i] : end], limit))
        )
    assert len(parts) == fewest[-1]
    if len(parts) > 1:
        with pytest.raises(TooLong):
            split(text, *limit, max_parts=len(parts) - 1)


CLUSTERS = ("a", "я", "e\u0323", FAMILY, WAVE, HEART, WALES, FRANCE, "🇩🇪")


@quiet
@given(st.lists(st.sampled_from(CLUSTERS), min_size=1, max_size=40), st.integers(14, 60))
def test_what_a_reader_takes_for_one_character_is_never_cut(
    clusters: list[str], max_length: int
) -> None:
    # GIVEN a word of such characters, each of which fits into a part
    bounds = {0}
    at = 0
    for cluster in clusters:
        at += len(cluster)
        bounds.add(at)

    parts = split("".join(clusters), max_length, None, 1000)

    # THEN every part begins where one of them does
    at = 0
    for part in parts:
        assert at in bounds
        at += len(part)


@pytest.mark.parametrize(
    ("text", "max_length", "max_segments", "expected"),
    [
        pytest.param("word " * 20_000, 1600, None, 63, id="words"),
        pytest.param("a" * 100_000, 1600, None, 63, id="one word"),
        pytest.param("a" * 100_000, 100_000, 1, 625, id="one word in single segments"),
        pytest.param("😀" * 100_000, 1600, 10, 304, id="emoji"),
        pytest.param("🇫🇷" * 50_000, 1600, None, 125, id="flags"),
        pytest.param("a" + "\u0323" * 99_999, 1600, None, 63, id="marks"),
        pytest.param("a" + " " * 99_998 + "b", 1600, None, 2, id="white space"),
        pytest.param("a " * 50_000, 1, None, 50_000, id="smallest parts"),
    ],
)
def test_a_hundred_thousand_characters(
    text: str, max_length: int, max_segments: int | None, expected: int
) -> None:
    assert len(split(text, max_length, max_segments, 100_000)) == expected

"""What a text is to us: how it is stored and matched, what it costs on the air, and how a long one
is cut.

Standard library only and without side effects. "Units" are UTF-16 code units, in which providers
count their limits; "segments" are the pieces in which carriers transmit, and bill, one text.
"""

from __future__ import annotations

import base64
import codecs
import re
import unicodedata
from bisect import bisect_left
from typing import Literal

# What Amazon SQS refuses (InvalidMessageContents): all but #x9, #xA, #xD, #x20 to #xD7FF, #xE000 to
# #xFFFD and #x10000 to #x10FFFF, the characters of XML 1.0 (section 2.2).
# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html
_REFUSED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_LINE_END = re.compile("\r\n?")

# 3GPP TS 23.038, section 6.2.1, without the escape character; and section 6.2.1.1, whose characters
# travel behind an escape and so take two septets. National tables are left out: providers do not
# use them unless told to.
_GSM_BASIC = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
_GSM_EXTENSION = frozenset("\f^{}\\[~]|€")
_GSM = _GSM_BASIC | _GSM_EXTENSION

_BASE64 = re.compile("[A-Za-z0-9+/]+={0,2}")
_BASE64_SHORTEST = 60

_NOT_SPACE = re.compile(r"\S")
_ZWJ = "\u200d"
_ZWNJ = "\u200c"


# Characters; ten times what any provider sends or delivers.
LONGEST = 20_000


class TooLong(ValueError):
    """The text does not fit into as many parts as are allowed. The message never quotes it."""


def normalise(text: str) -> str:
    """The text as it is stored, matched and sent. Idempotent.

    Surrogate pairs written as two escapes are joined, lone ones become U+FFFD; what SQS refuses is
    removed; every line ends in LF; what is left is in NFC. Nothing is stripped or case-folded.
    Only the first LONGEST characters count: time is quadratic in the length of one run of
    combining marks (CPython sorts them by insertion), 0.1 s for 10,000, seconds for 100,000.
    """
    joined = text[:LONGEST].encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    # Removing first, so that what it brings together (a CR and its LF, a letter and its accent) is
    # seen by the steps after it.
    whole = unicodedata.normalize("NFC", _LINE_END.sub("\n", _REFUSED.sub("", joined)))
    return whole[:LONGEST]


def decode_base64(text: str) -> str | None:
    """The text that a base64 body holds, or None where this is not clearly one.

    Twilio now and then delivers a long text, joined from segments or taken from an MMS, as base64
    in `Body` and does not say so. That it happens, in lines that may end in CR, and that the
    bytes may stop in the middle of the last character, is known from the receiving tests of
    nyaruka/courier (handlers, DecodePossibleBase64); Twilio documents nothing. Its length and
    alphabet rules are followed; ours are narrower on what comes out, since a wrong decoding
    replaces what a person wrote. All must hold:

    - at least 60 characters of the standard alphabet, correctly and canonically padded; no white
      space but line breaks;
    - the bytes are UTF-8 (an unfinished last character is dropped) without control characters
      other than tab and line breaks. Random tokens, hexadecimal and words fail here;
    - the result is writing: more than one word, or characters beyond ASCII (not every script puts
      spaces). A token that was itself encoded fails here, and is what a person meant to send.

    The result is not normalised yet. The payload as it came is kept in the archive.
    """
    body = text.replace("\r", "").replace("\n", "")
    if len(body) < _BASE64_SHORTEST or len(body) % 4 or not _BASE64.fullmatch(body):
        return None
    content = base64.b64decode(body)
    if base64.b64encode(content).decode() != body:
        return None
    try:
        decoded = codecs.getincrementaldecoder("utf-8")().decode(content)
    except UnicodeDecodeError:
        return None
    if any(unicodedata.category(one) == "Cc" and one not in "\t\n\r" for one in decoded):
        return None
    if decoded.isascii() and len(decoded.split()) < 2:
        return None
    return decoded


def units(text: str) -> int:
    """The text's length in UTF-16 code units."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def encoding(text: str) -> Literal["GSM-7", "UCS-2"]:
    """How the text travels: GSM-7 where every character is in that alphabet or its extension table.

    3GPP TS 23.038, section 6.2.1. Letters with separate accents are not in it: normalise first.
    """
    return "GSM-7" if _GSM.issuperset(text) else "UCS-2"


def segments(text: str) -> int:
    """In how many pieces the text travels: at least 1, for an empty text that is sent takes one.

    140 octets hold 160 septets or 70 units. In a text of several segments each gives 6 octets to
    the header that joins them (3GPP TS 23.040, section 9.2.3.24.1), which leaves 153 or 67; there
    neither an escape and its character nor a surrogate pair is torn apart.
    """
    if encoding(text) == "GSM-7":
        alone, joined = 160, 153
        costs = [2 if one in _GSM_EXTENSION else 1 for one in text]
    else:
        alone, joined = 70, 67
        costs = [2 if one > "\uffff" else 1 for one in text]
    if sum(costs) <= alone:
        return 1
    count, room = 1, joined
    for cost in costs:
        if cost > room:
            count, room = count + 1, joined
        room -= cost
    return count


def split(text: str, max_length: int, max_segments: int | None, max_parts: int) -> list[str]:
    """The text in parts of at most `max_length` units and `max_segments` (None: any number) each.

    A text that fits is one part, unchanged. Any other is cut at white space (what `str.split` takes
    for it), which is dropped at each cut and at both ends, and the parts are as few as can be with
    every word whole. A word longer than a part begins one and is cut between characters as a
    reader sees them (`_inseparable`), as far as a part can hold one of those. No part is ever
    empty: an empty text has none, nor has white space too long to be one part.

    `text` is normalised, and every limit at least 1. Raises TooLong where more than `max_parts`
    would be needed, or where a part is too small for a single character.
    """

    def fits(piece: str) -> bool:
        return units(piece) <= max_length and (
            max_segments is None or segments(piece) <= max_segments
        )

    if not text:
        return []
    # No character takes less than one unit and one septet.
    most = max_length if max_segments is None else min(max_length, 160 * max_segments)
    if len(text) <= most and fits(text):
        return [text]
    text = text.strip()
    parts: list[str] = []
    start = 0
    while start < len(text):
        if len(parts) == max_parts:
            raise TooLong(f"the text needs more than {max_parts} parts")
        # What fits goes on fitting when it gets shorter, so the longest can be searched by halves.
        ends = range(start + 1, min(start + most, len(text)) + 1)
        longest = start + bisect_left(ends, True, key=lambda end: not fits(text[start:end]))
        if longest == start:
            raise TooLong("a part is too small for one character of the text")
        end = _cut(text, start, longest)
        parts.append(text[start:end].rstrip())
        following = _NOT_SPACE.search(text, end)
        start = following.start() if following else len(text)
    return parts


def _cut(text: str, start: int, longest: int) -> int:
    """Where a part ends that begins at `start`, with a word, and may reach to `longest`."""
    if longest == len(text) or text[longest].isspace() or text[longest - 1].isspace():
        return longest
    before, *last_word = text[start:longest].rsplit(maxsplit=1)
    if last_word:
        return start + len(before)
    for end in range(longest, start, -1):
        if not _inseparable(text, start, end):
            return end
    return longest


def _inseparable(text: str, start: int, at: int) -> bool:
    """Whether a cut before text[at] would tear apart what a reader takes for one character.

    What matters here of the grapheme clusters of Unicode Standard Annex #29: marks and variation
    selectors, joiners and what follows them in an emoji, skin tones, tags, and the pairs of letters
    that make a flag. `start` is where the counting of those pairs begins.
    """
    before, after = text[at - 1], text[at]
    if _is_flag_letter(before) and _is_flag_letter(after):
        first = at
        while first > start and _is_flag_letter(text[first - 1]):
            first -= 1
        return (at - first) % 2 == 1
    return (
        before == _ZWJ
        or after in (_ZWJ, _ZWNJ)
        or unicodedata.category(after).startswith("M")
        or "\U0001f3fb" <= after <= "\U0001f3ff"
        or "\U000e0020" <= after <= "\U000e007f"
    )


def _is_flag_letter(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"

"""Whether people want our texts: which words say so, which of two events counts, and the list.

The words are matched here and nowhere else. The list is brand-wide: one entry for a person's
number, for all our numbers, without an end, with its evidence.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from chalicelib.messages import ConsentEvent, Keys
from chalicelib.table import Conflict, Item, Key, Table

TIE_SECONDS = 2.0

# As `_words` leaves them: "OPT-OUT" is "opt out".
#
# Sources: the rule, 47 CFR 64.1200(a)(10), in force since 2025-04-11, and what providers block or
# unblock of themselves, so that their list and ours agree:
#   Twilio   https://www.twilio.com/docs/messaging/tutorials/advanced-opt-out
#            https://help.twilio.com/articles/223134027
#   Telnyx   https://developers.telnyx.com/docs/messaging/messages/advanced-opt-in-out
#   Plivo    https://docs.plivo.com/docs/messaging/api/message/handling-incoming
#   AWS      https://docs.aws.amazon.com/sms-voice/latest/userguide/keywords-required.html
_ALWAYS: Mapping[str, ConsentEvent] = {
    "stop": "stop",  # the rule
    "quit": "stop",  # the rule
    "end": "stop",  # the rule
    "revoke": "stop",  # the rule
    "opt out": "stop",  # the rule; AWS as OPT-OUT
    "cancel": "stop",  # the rule
    "unsubscribe": "stop",  # the rule
    "optout": "stop",  # Twilio, AWS
    "stopall": "stop",  # Twilio, Telnyx
    "stop all": "stop",  # Telnyx, Plivo
    "remove": "stop",  # AWS
    # AWS's list for the US and Canada has these two; the second as French spells it.
    "arret": "stop",
    "arrêt": "stop",
    # AWS again. It can be an innocent answer, but a needless opt-out is told at once and undone by
    # START, while one that was missed is a text against somebody's will.
    "td": "stop",
    "start": "start",  # Twilio, Telnyx, Plivo
    "unstop": "start",  # Twilio, Telnyx, Plivo
    "help": "help",  # all of them
    "info": "help",  # Twilio, Plivo
    "aide": "help",  # HELP in French, as ARRET is STOP
}

# Answers to all sorts of questions: they ask for our texts only where somebody gets none.
_WHEN_OPTED_OUT: Mapping[str, ConsentEvent] = {
    "yes": "start",  # Twilio, Plivo
    "resume": "start",  # Plivo
    "go": "start",  # Plivo
}

_WORD = re.compile(r"[^\W_]+")


def keyword(text: str, opted_out: bool = False) -> ConsentEvent | None:
    """What the text as a whole says about consent, or None.

    The whole text must be the keyword: "stop by tomorrow" is somebody's plan. Neither case, full
    width, punctuation, emoji nor surplus white space counts. `opted_out`: whether the number is,
    in which case YES and the like ask for our texts again.

    What else a reasonable person would understand as a revocation ("please stop texting me") the
    rule counts too, and no list can: that is for a person to judge and record.
    """
    words = _words(text)
    event = _ALWAYS.get(words)
    if event is None and opted_out:
        return _WHEN_OPTED_OUT.get(words)
    return event


def takes_effect(
    event: ConsentEvent, at: float, recorded_event: str | None, recorded_at: float | None
) -> bool:
    """Whether an event replaces the recorded one. Times are unix seconds; none recorded: None.

    Later wins; START and STOP within 2 s of each other, both ends included, are a tie, and STOP
    wins ties. Between two of a kind there is nothing to decide, so the later or equal one takes
    effect: the record always holds the latest of its kind, the same event written twice (by
    processing, then by the sender) is no conflict, and the outcome does not depend on the order in
    which events come in. HELP changes nothing.
    """
    if event == "help":
        return False
    if recorded_event is None or recorded_at is None:
        return True
    if recorded_event == event:
        return recorded_at <= at
    if event == "stop":
        return recorded_at <= at + TIE_SECONDS
    return recorded_at < at - TIE_SECONDS


class ConsentList:
    """The list of a brand, on the table. Raises what the table raises."""

    def __init__(self, table: Table, keys: Keys, brand: str) -> None:
        self._table = table
        self._keys = keys
        self._brand = brand

    def opted_out(self, number: str) -> bool:
        """Whether this number wants no texts of ours, as of now."""
        item = self._table.get(self._key(number))
        return item is not None and item["event"] == "stop"

    def record(
        self, number: str, event: ConsentEvent, at: float, *, words: str, source: str, id_: str
    ) -> bool:
        """Writes an event down if it takes effect; says whether it did.

        `at`: when the person said it, unix seconds. `words`, `source` and `id_` are the evidence:
        what they said, through whom, in which message.
        """
        entry = {"event": event, "at": at, "words": words[:160], "source": source, "id": id_}
        key = self._key(number)
        there = self._table.get(key)
        while takes_effect(
            event, at, there["event"] if there else None, there["at"] if there else None
        ):
            there = self._replace(key, there, entry)
            if there is None:
                return True
        return False

    def _replace(self, key: Key, there: Item | None, entry: Item) -> Item | None:
        """Writes the entry over the one that was read; returns what has come between, or None."""
        if there is None:
            return self._table.insert({"pk": key[0], "sk": key[1], **entry})
        names = {f"#{name}": name for name in entry}
        values = {f":{name}": value for name, value in entry.items()}
        try:
            self._table.update(
                key,
                "SET " + ", ".join(f"#{name} = :{name}" for name in entry),
                condition="#event = :event_read AND #at = :at_read",
                names=names,
                values={**values, ":event_read": there["event"], ":at_read": there["at"]},
            )
        except Conflict as conflict:
            if conflict.item is None:
                raise  # gone since: it was erased
            return conflict.item
        return None

    def _key(self, number: str) -> Key:
        return f"P#{self._brand}#{self._keys.number(number)}", "CONSENT"


def _words(text: str) -> str:
    """The words alone, folded, one space between them: "ＯＰＴ—ＯＵＴ!" is "opt out".

    Every apostrophe, hyphen and quotation mark, typographic or not, separates and goes.
    """
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))

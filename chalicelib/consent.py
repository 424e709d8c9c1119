"""Whether people want our texts: which words say so, which of two events counts, and the list.

The words are matched here and nowhere else. The list is brand-wide: one entry for a person's
number, for all our numbers, without an end, with its evidence. docs/COMPLIANCE.md says which rule
each of this serves.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from itertools import takewhile

from chalicelib.messages import ConsentEvent, Keys
from chalicelib.observing import count, log
from chalicelib.statements import Statement, id_of
from chalicelib.table import Conflict, Item, Key, Table

TIE_SECONDS = 2.0
# Events of one person that are kept with their evidence, the newest. (DynamoDB takes 400 KB an
# item; these are 90 at most, and a few where people say what people say.)
KEPT = 100
_EVIDENCE = ("event", "at", "words", "source", "id")

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

# (To Unicode one of the apostrophes is a letter.)
_WORD = re.compile(r"[^\W_\u02bc]+")

# Revocations in a person's own words. The rule counts every reply that a reasonable person would
# take for one (47 CFR 64.1200(a)(10), https://www.ecfr.gov/current/title-47/section-64.1200);
# courts have had before them "I don't want these messages anymore" and "Please do not send any
# further messages" (https://www.jdsupra.com/legalnews/new-tcpa-opt-out-rules-coming-as-fcc-7265748).
#
# What matches must be nothing but a revocation of all our texts, by whoever has this number. So no
# phrase has room for a condition, a time, a subject, somebody else, or a report of what was said.
# They are as `_words` leaves them: "don't" is "don t".
_PLEASE = r"(?:please|plz|pls|kindly|just)"
_THANKS = r"(?:(?:and )?(?:thanks|thank you|thx))"
_ME = (
    r"(?:me|us|(?:my|this) (?:(?:phone|cell) )?(?:number|phone|cell)"
    r"|my name(?: and (?:phone )?number)?)"
)
_YOU = r"(?:you|u)"
_DONT = r"(?:don ?t|do not|dnt)"
_MORE = r"(?:any ?more|more|any further|further)"
_TEXTS = r"(?:texts|txts|sms|(?:text )?(?:messages|mesages|messges|msgs))"
# "Any more text" says the same as "any more texts"; "this text" is about one.
_TEXT = rf"(?:text|txt|(?:text )?message|{_TEXTS})"
_TEXTING = r"(?:texting|txting|texing|messaging|contacting|spamming|bothering|harassing)"
_LIST = (
    r"(?:(?:the|this|that|these|those|your|all|all your|any) )?"
    rf"(?:(?:(?:mailing|calling|call|texting|text|sms|contact|messaging) )?lists?|{_TEXTS}"
    r"|contacts|system|database)"
)
_DEMAND = (
    rf"(?:stop|quit|cease) (?:(?:calling (?:{_ME} )?(?:and|or) )?{_TEXTING}(?: {_ME})?"
    rf"|sending(?: {_ME})?(?: {_MORE} {_TEXT}"
    rf"|(?: (?:these|those|your|any|all|all these))? {_TEXTS})"
    rf"|(?:the|these|those|your|any|all|all these|all the|all your) {_TEXTS}"
    rf"|(?:sending(?: {_ME})? )?(?:the|this|your|all this) spam)"
    rf"|(?:remove|delete|take|get) {_ME} (?:from|off|off of|out of) {_LIST}"
    r"|remove (?:me|my number)|(?:delete|lose) my number"
    rf"|un ?subscribe {_ME}(?: from {_LIST})?|opt {_ME} out(?: of {_LIST})?|leave me alone"
)
# "Can you" before one of these is a question.
_ORDER = (
    rf"(?:stop|quit|cease|end|discontinue) {_TEXTS}|un ?subscribe from {_LIST}|opt out of {_LIST}"
    r"|cease and desist|cease (?:and desist )?(?:all )?(?:communications?|contact)"
)
_WISH = (
    rf"i (?:want|wish|need|(?:d|would) like) to (?:stop (?:getting|receiving)"
    rf"(?: (?:these|those|your|any|all|all these))? {_TEXTS}(?: from {_YOU})?"
    r"|(?:un ?subscribe|opt out|be (?:removed|taken off|unsubscribed))"
    rf"(?: (?:(?:from|of) )?{_LIST})?)|i ?(?:m|am) opting out(?: of {_LIST})?"
)
_REFUSAL = (
    rf"(?:{_DONT}|never) (?:ever )?(?:call (?:or|and) )?(?:text|txt|message|msg|contact|sms) {_ME}"
    rf"|{_DONT} send {_ME} (?:{_MORE} {_TEXT}|(?:these|those|your|any) {_TEXTS})"
    rf"|{_DONT} send {_MORE} {_TEXT}"
    rf"|i (?:{_DONT}|no longer) (?:want|wish)(?: to (?:get|receive|have))?"
    rf" (?:{_MORE} {_TEXT}|(?:these|those|your|any) {_TEXTS})(?: from {_YOU})?"
    rf"|i (?:{_DONT}|no longer) (?:want|wish) to (?:get|receive) {_TEXTS}(?: from {_YOU})?"
    rf"|i (?:{_DONT}|no longer) (?:want|wish) to be (?:texted|contacted|messaged)"
    rf"|i (?:{_DONT}|no longer) want {_YOU} (?:to text|texting) {_ME}"
    rf"|no (?:more|further) (?:{_TEXT}|texting|spam)(?: from {_YOU})?"
)
_ASKING = (
    rf"(?:(?:can|could|would|will) {_YOU}|i (?:want|need) {_YOU} to|i (?:d|would) like {_YOU} to"
    rf"|{_YOU} (?:need|have) to|{_YOU} must|i said|i (?:already )?(?:told|asked) {_YOU} to)"
)
_REASON = (
    r"(?:(?:i ?m |i am )?(?:not|no longer) interested|who (?:is this|are you)"
    r"|(?:you have (?:the )?|this is (?:the |a )?)?wrong number"
    r"|i (?:never signed|didn ?t sign|did not sign) up(?: for (?:this|these|these texts))?)"
)
_BEFORE = rf"(?:(?:{_PLEASE}|hi|hello|hey|ok|okay) ){{0,3}}"
_EVER = rf"{_PLEASE}|{_THANKS}|again|any ?more|any longer|ever"
# "Now" makes a demand more urgent, and a refusal a temporary one: "don't text me now".
_AFTER_REFUSAL = rf"(?: (?:{_EVER})){{0,3}}"
_AFTER_DEMAND = (
    rf"(?: (?:{_EVER}|right now|right away|now|immediately|asap|already|forever|for good)){{0,3}}"
)
# Beside English, the languages that texts in North America are most often written in.
_SPANISH = (
    r"(?:por favor )?(?:(?:ya )?no (?:quiero (?:recibir )?)?m[aá]s mensajes"
    r"|ya no quiero (?:recibir )?(?:sus )?mensajes"
    r"|dej(?:a|e|en) de (?:enviarme|mandarme|escribirme)(?: mensajes| textos)?"
    r"|no me (?:env[ií]es?|env[ií]en|mandes?|manden) m[aá]s (?:mensajes|textos)"
    r"|(?:qu[ií]ten?me|b[oó]rren?me|elim[ií]nen?me) de (?:la|su|esta) lista)(?: por favor)?"
)
_SVP = r"(?:svp|s il (?:te|vous) pla[iî]t)"
_FRENCH = (
    r"(?:(?:arr[eê]tez?|cessez?) de m (?:envoyer (?:des|vos) (?:messages|textos|sms)|[eé]crire)"
    r"|ne m (?:envoie|envoyez) plus (?:de|aucun) (?:messages?|textos?|sms)"
    r"|je ne veux plus (?:recevoir )?(?:de |vos |de vos )?(?:messages|textos|sms)"
    rf"|d[eé](?:sabonnez|sinscrivez) moi(?: de (?:la|cette|votre) liste)?)(?: {_SVP})?"
)
_PHRASE = (
    rf"(?:{_REASON} )?{_BEFORE}(?:(?:{_ASKING} (?:{_PLEASE} )?)?(?:{_DEMAND})"
    rf"(?: and (?:{_PLEASE} )?(?:{_DEMAND}|{_REFUSAL}))?{_AFTER_DEMAND}"
    rf"|(?:{_ORDER}|{_WISH}){_AFTER_DEMAND}|(?:{_REFUSAL}){_AFTER_REFUSAL})(?: {_REASON})?"
    rf"|{_SPANISH}|{_FRENCH}"
)
# A keyword said politely, impatiently or as it is often misspelt.
_DRESSED_KEYWORD = (
    rf"{_BEFORE}(?:stop|stop ?all|un ?subscribe|opt ?out){_AFTER_DEMAND}|stop(?: stop)+"
    rf"|(?:unsubcribe|unsuscribe|unsubscibe|unsubsribe|unsubscrib)(?: me)?(?: {_PLEASE})?"
)
# What may stand beside a revocation, since it neither limits it nor takes it back.
_BESIDE = (
    rf"{_PLEASE}|(?:no )?{_THANKS}|hi|hello|hey|ok|okay|sorry|{_REASON}"
    rf"|por favor|gracias|merci|{_SVP}"
)
# Each kind of revocation, and what may stand beside it. A keyword beside "yes" or "no" may be the
# answer to something else: "No, stop".
_REVOCATIONS = (
    (re.compile(_PHRASE), re.compile(rf"{_BESIDE}|{_DRESSED_KEYWORD}|yes|no")),
    (re.compile(_DRESSED_KEYWORD), re.compile(_BESIDE)),
)
# Marks end a clause, since they change what words mean: "No, more messages please". Neither an
# apostrophe nor a quotation mark nor a hyphen inside a word is one.
_CLAUSE_END = re.compile(r"[.,;:!?()\[\]{}/|\n\r–—、。]+|\s-+\s")


def event_in(text: str, opted_out: bool = False) -> ConsentEvent | None:
    """What a text says about consent, by a keyword or in a person's own words, or None.

    `opted_out`: whether the number is, in which case YES and the like ask for our texts again.
    """
    return keyword(text, opted_out) or ("stop" if revokes(text) else None)


def keyword(text: str, opted_out: bool = False) -> ConsentEvent | None:
    """What the text as a whole says about consent, or None.

    The whole text must be the keyword: "stop by tomorrow" is somebody's plan. Neither case, full
    width, punctuation, emoji nor surplus white space counts. `opted_out`: whether the number is,
    in which case YES and the like ask for our texts again.
    """
    words = _words(text)
    event = _ALWAYS.get(words)
    if event is None and opted_out:
        return _WHEN_OPTED_OUT.get(words)
    return event


def revokes(text: str) -> bool:
    """Whether the text, in a person's own words, is a revocation and nothing else.

    "Please take me off your list. Thanks!" is; "stop texting me so late", "I told them to stop
    texting me" and "stop texting my wife" are not. What is missed here is for a person to judge and
    record.
    """
    clauses = map(_words, _CLAUSE_END.split(unicodedata.normalize("NFKC", text)))
    said = [clause for clause in clauses if clause]
    for revocation, beside in _REVOCATIONS:
        others = [clause for clause in said if not revocation.fullmatch(clause)]
        if len(others) < len(said):
            return all(beside.fullmatch(clause) for clause in others)
    return False


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


def events_of(entry: Item | None) -> list[Item]:
    """The events of an entry that took effect, the newest `KEPT` of them, the oldest first: each
    with `event`, `at`, `words`, `source` and `id`. The last is what holds."""
    if entry is None:
        return []
    return [*entry.get("earlier", []), {name: entry.get(name, "") for name in _EVIDENCE}]


def is_personal(entry: Item) -> bool:
    """Whether an entry says whose it is, or in which words they said it."""
    return bool(entry.get("number") or any(one["words"] for one in events_of(entry)))


class ConsentList:
    """The list of a brand, on the table. Raises what the table raises."""

    def __init__(
        self, table: Table, keys: Keys, brand: str, announce: Callable[..., None] | None = None
    ) -> None:
        """`announce`: who hears of each event that is to take effect (Events.consented). It may be
        overtaken at that moment by one that was said later: what counts is the time."""
        self._announce = announce
        self._table = table
        self._keys = keys
        self._brand = brand

    def opted_out(self, number: str) -> bool:
        """Whether this number wants no texts of ours, as of now."""
        item = self._table.get(self.key(number))
        return item is not None and item["event"] == "stop"

    def opted_out_by(self, number: str, id_: str) -> bool:
        """Whether this number wants no texts of ours, and has wanted none since this message.

        Of all the messages that say STOP this holds for one alone, until the next START: that one
        is confirmed, however often it and its likes come, to whichever of our numbers.
        """
        item = self._table.get(self.key(number))
        return item is not None and item["event"] == "stop" and item.get("since_id") == id_

    def record(
        self, number: str, event: ConsentEvent, at: float, *, words: str, source: str, id_: str
    ) -> bool:
        """Writes an event down if it takes effect; says whether it did.

        `at`: when the person said it, unix seconds. `words`, `source` and `id_` are the evidence:
        what they said, through whom, in which message. The entry's `since_id` is the message that
        brought about what now holds; another of the same kind moves on all but that. What held
        before goes to `earlier`, in the same write. The number is kept for as long as it is opted
        out: whoever moves away has to take the list along, and its keys are hashes.
        """
        said = {"event": event, "at": at, "words": words[:160], "source": source}
        key = self.key(number)
        there = self._table.get(key)
        while takes_effect(
            event, at, there["event"] if there else None, there["at"] if there else None
        ):
            if there is not None and _has(there, event, id_):
                # A message says a thing once: a duplicate that came hours later says it no later.
                return True
            before = events_of(there)
            again = there is not None and there["event"] == event
            entry = {
                **said,
                "id": id_,
                "since_id": there.get("since_id", "") if there is not None and again else id_,
                "number": number if event == "stop" else "",
                "earlier": before[1 - KEPT :],
                "dropped": (there or {}).get("dropped", 0) + max(0, len(before) + 1 - KEPT),
            }
            if self._announce is not None:
                # Before it is so: whoever dies in between may not come back to say it.
                self._announce(number, **said, id_=id_)
            there = self._replace(key, there, entry)
            if there is None:
                return True
        return False

    def knows(self, number: str, event: ConsentEvent, at: float, id_: str) -> bool:
        """Whether recording this event would change nothing: it is there, or what beats it is."""
        there = self._table.get(self.key(number))
        if there is None:
            return False
        return _has(there, event, id_) or not takes_effect(event, at, there["event"], there["at"])

    def find(self, number: str) -> Item | None:
        """The entry of a number, for `events_of`; None where it never said anything."""
        return self._table.get(self.key(number))

    def erase(self, key: Key) -> None:
        """Takes number and words out of an entry. What was said stays, when, through whom and in
        which message: whoever said STOP is still opted out, and it can still be shown."""
        there = self._table.get(key)
        while there is not None and is_personal(there):
            earlier = [{**one, "words": ""} for one in there.get("earlier", [])]
            # (As a whole: were it gone by now, a part of an entry would be none.)
            whole = {name: value for name, value in there.items() if name not in ("pk", "sk")}
            blank = {**whole, "words": "", "number": "", "earlier": earlier}
            there = self._replace(key, there, blank)

    def record_statement(self, said: Statement) -> bool:
        """Writes down what somebody said by another way than a text, if it takes effect; says
        whether it did."""
        return self.record(
            said.number,
            said.event,
            said.at,
            words=said.note,
            source=said.source,
            id_=str(id_of(self._keys, said)),
        )

    def record_refusal(self, number: str, at: float, *, provider: str, code: str, id_: str) -> None:
        """Writes down that a provider refused a send because the number opted out, at the provider
        or with the carrier, where we did not see it.

        `at`: when the attempt began, unix seconds: it was so by then, and whatever the person said
        later counts. `code` is the provider's, `id_` our message that was refused.
        """
        source = f"{provider}: {code}"
        effective = self.record(number, "stop", at, words="", source=source, id_=id_)
        count("ConsentEvents", reason="stop", id=id_)
        log(
            "INFO",
            "consent_stop",
            id=id_,
            provider=provider,
            reason="effective" if effective else "",
            code=code,
        )

    def _replace(self, key: Key, there: Item | None, entry: Item) -> Item | None:
        """Writes the entry over the one that was read; returns what has come between, or None."""
        read = (there or {}).get("version", 0)
        entry = {**entry, "version": read + 1}
        try:
            self._table.update(
                key,
                "SET " + ", ".join(f"#{name} = :{name}" for name in entry),
                # (What was put there by hand has no version, as what is not there.)
                condition="attribute_not_exists(#version) OR #version = :read",
                names={f"#{name}": name for name in entry},
                values={**{f":{name}": value for name, value in entry.items()}, ":read": read},
            )
        except Conflict as conflict:
            return conflict.item
        return None

    def key(self, number: str) -> Key:
        """Of the number's entry."""
        return f"P#{self._brand}#{self._keys.number(number)}", "CONSENT"


def _has(entry: Item, event: ConsentEvent, id_: str) -> bool:
    """Whether this event of this message is among the last ones, as far as they are alike."""
    alike = takewhile(lambda one: one["event"] == event, reversed(events_of(entry)))
    return any(one["id"] == id_ for one in alike)


def _words(text: str) -> str:
    """The words alone, folded, one space between them: "ＯＰＴ—ＯＵＴ!" is "opt out".

    Every apostrophe, hyphen and quotation mark, typographic or not, separates and goes.
    """
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))

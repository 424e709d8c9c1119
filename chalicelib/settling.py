"""Settling: finding out what became of a send whose outcome is unknown, and seeing to the rest.

The sender puts a `settle` message on the processing queue and lets the reply's own message go, so
that an unknown send is in nobody's way. Processing looks, by what the ledger says now and never by
what it said before, so that copies of the message and deaths at any line are harmless:

    the part is    what is done, and what a death after it leaves behind
    sending        nothing: the message whose claim that is stands on the sender's queue
    unknown        a look: it is found, certainly not there, or still unknown; each is one write
    waiting        a `resume` to the sender; sent twice, the second finds nothing to do
    sent, failed   nothing

A provider that tells a repeated request from a new one is asked by repeating it, byte for byte: it
may be the one that sends, so it is repeated only where it would be sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Literal

from chalicelib.batches import Defer, GiveUp
from chalicelib.brakes import Brakes
from chalicelib.breaker import paused
from chalicelib.config import Settings
from chalicelib.consent import ConsentList
from chalicelib.events import Events
from chalicelib.ledger import Busy, Ledger, PartEntry, Reply
from chalicelib.messages import MessageId, Part
from chalicelib.observing import count, log
from chalicelib.providers import provider_named
from chalicelib.providers.base import (
    REPEATABLE,
    CannotTell,
    Http,
    NotSent,
    OutcomeUnknown,
    Provider,
    Rejected,
    SendError,
    Sent,
)
from chalicelib.queues import OUTBOUND, PROCESSING, Envelope, Queues
from chalicelib.runtime import Runtime, is_transient
from chalicelib.table import Table
from chalicelib.vault import Vault
from chalicelib.yours.quiet_hours import quiet_until

# When we look, in seconds since the part became unknown: after 1, 2, 5, 15, 15 and 15 minutes more.
LOOKS = (60.0, 180.0, 480.0, 1380.0, 2280.0, 3180.0)
# A look this shortly before one of them stands for it.
EARLY = 30.0
# Seconds after which what a provider was handed is on its list, if it took it.
LISTED_AFTER = 300.0
# How often a part is sent again blindly where the setting allows it: a provider that takes
# everything and answers nothing must not fill somebody's telephone.
MOST_RESENDS = 2
# A confirmation of an opt-out comes at once or not at all, whoever redrives it.
CONFIRMATION_MAX_AGE = 300.0

# Refusals of what the request itself says: its first copy, with the same bytes, was refused too.
# Of the others (somebody opted out, an account was blocked) the cause may have come in between.
_SAID_BY_THE_REQUEST = frozenset({"invalid_number", "landline", "too_long", "invalid_request"})
# Why a part is unknown that must not be repeated again.
_MISMATCH, _REFUSED = "idempotency_mismatch", "repeat_refused"

QuietUntil = Callable[[str, str, datetime], datetime | None]
Decision = Literal["sent", "resend", "give_up"]


def seconds_left(reply: Reply, settings: Settings, now: float) -> float:
    """For how long the reply may still be sent; negative where it may not."""
    if reply.confirmation:
        return reply.received_at + CONFIRMATION_MAX_AGE - now
    longest = settings.message_max_age if reply.kind == "outgoing" else settings.reply_max_age
    since = max(reply.received_at, reply.redriven_at or 0.0)
    # What it was told to wait is no age.
    waited = reply.waited if (reply.not_before or 0.0) > since else 0.0
    return since + longest + waited - now


def refusal_of(reply: Reply, brakes: Brakes, consent: ConsentList) -> str:
    """Why the person must not get this reply now; "" if they may. To be asked immediately before it
    may be sent."""
    if refusal := brakes.refusal(reply.theirs):
        return refusal
    if reply.confirmation:
        # To whom it is said already, or who has said START since, it is not said again.
        return "" if consent.opted_out_by(reply.theirs, str(reply.id)) else "no_reply: stop"
    return "refused: opted_out" if consent.opted_out(reply.theirs) else ""


def quiet_for(reply: Reply, quiet_until: QuietUntil, now: float) -> float:
    """For how many seconds the adopter's quiet hours hold the reply; 0 where they do not."""
    if reply.kind != "outgoing":
        return 0.0
    until = quiet_until(reply.ours, reply.theirs, datetime.fromtimestamp(now, UTC))
    return 0.0 if until is None else max(0.0, until.timestamp() - now)


def settle_later(queues: Queues, reply: Reply, part: PartEntry) -> None:
    """Has processing look for an unknown part, for the first time in a minute."""
    payload = {"part": part.number, "attempt": part.attempt}
    queues.send(PROCESSING, [(_message("settle", reply, payload), "")], delay=int(LOOKS[0]))


def resume(runtime: Runtime, queues: Queues, reply: Reply) -> None:
    """Has the sender go on with the parts that wait."""
    queues.send(OUTBOUND, [(_message("resume", reply, {}), runtime.new_id())])
    log("INFO", "resumed", id=str(reply.id), provider=reply.provider)


def decide(
    runtime: Runtime,
    ledger: Ledger,
    queues: Queues,
    id_: MessageId,
    *,
    part: int,
    attempt: int,
    decision: Decision,
    events: Events,
) -> Reply:
    """A person's word on a part that is unknown, in the attempt that the person saw.

    `resend` is as good as a redrive: age counts from now. Raises Busy where the part is something
    else by now; the same decision again finishes what a lost connection left undone.
    """
    reply, entry = _found(ledger, id_, part)
    if entry.state == "unknown" and entry.attempt == attempt:
        # (Busy: its own write, perhaps, which was repeated as its answer was lost.)
        with suppress(Busy):
            _decided(runtime, ledger, reply, entry, decision)
            reason, reference = f"person_{decision}", id_.part(part)
            count("Settled", provider=reply.provider, reason=reason, id=reference)
            log("INFO", "settled", id=reference, reason=reason)
        reply, entry = _found(ledger, id_, part)
    if not _is_as_decided(reply, entry, attempt, decision):
        raise Busy
    if reply.to_be_resumed:
        resume(runtime, queues, reply)
    events.ended(reply)
    return reply


def ask(
    ledger: Ledger,
    reply: Reply,
    part: PartEntry,
    provider: Provider,
    secrets: Mapping[str, Any],
    http: Http,
) -> Sent | NotSent | CannotTell:
    """What the provider says of an unknown part just now. *NotSent* is a proof from LISTED_AFTER
    seconds after its beginning on. Raises a SendError where the question failed.
    """
    # An attempt that was given up blindly may be there as well: then nothing is to be repeated.
    since = part.first_started_at if part.lost else part.started_at
    known = {one.provider_id for _, one in ledger.conversation(reply.id.conversation)} - {""}
    wanted = replace(part_of(reply, part, known_ids=frozenset(known)), started_at=since)
    answer = provider.find_sent(wanted, secrets, http)
    if isinstance(answer, Sent) and _may_be_anothers(ledger, reply, part, answer.id, since):
        return CannotTell()
    return answer


def _may_be_anothers(
    ledger: Ledger, reply: Reply, part: PartEntry, provider_id: str, since: float | None
) -> bool:
    """Whether what the provider has may be another part of this conversation.

    Read after the provider's list: whose send is on it had claimed its part by then. Two parts of
    one text are one for the provider, and which of them it has nobody can say.
    """
    earliest = (since or 0.0) - LISTED_AFTER
    return any(
        one.provider_id == provider_id
        or (
            one.text == part.text
            and (one.state in ("sending", "unknown") or one.lost > 0)
            and (one.started_at or 0.0) >= earliest
        )
        for id_, one in ledger.conversation(reply.id.conversation)
        if (id_, one.number) != (reply.id, part.number)
    )


class Settling:
    """What processing does with a `settle` message."""

    def __init__(
        self,
        runtime: Runtime,
        settings: Settings,
        *,
        queues: Queues,
        table: Table,
        ledger: Ledger,
        consent: ConsentList,
        vault: Vault,
        events: Events,
    ) -> None:
        self._runtime = runtime
        self._settings = settings
        self._brakes = Brakes(settings)
        self._quiet_until = quiet_until
        self._queues = queues
        self._table = table
        self._ledger = ledger
        self._consent = consent
        self._vault = vault
        self._events = events

    def settle(self, envelope: Envelope) -> None:
        """Returns when there is nothing more to do. Raises Defer until the next look."""
        id_ = MessageId.parse(envelope.id)
        if id_ is None:
            raise GiveUp("unexpected_kind")
        reply = self._ledger.find(id_)
        if reply is None:
            return
        try:
            reply = self._settled(reply)
        except Busy:
            raise Defer("settle_overtaken") from None
        current = reply.current
        if not reply.outcome and current is not None and current.state == "waiting":
            # Listed or not: an owner that was taken for dead may have put it back since.
            resume(self._runtime, self._queues, reply)
        # (Settled by others, too: a receipt does not say that it was the last word.)
        self._events.ended(reply)

    def _settled(self, reply: Reply) -> Reply:
        """The reply with no part under way, and none unknown that we will look for again."""
        current = reply.current
        if reply.outcome or current is None or current.state != "unknown":
            return reply
        settled = self._look(reply, current) or self._by_policy(reply, current)
        if settled is None:
            self._wait(reply, current)
            return reply
        return settled

    # -- one look -----------------------------------------------------------------------------

    def _look(self, reply: Reply, part: PartEntry) -> Reply | None:
        """The reply with the part settled by evidence; None where there is none."""
        if reply.provider not in self._settings.providers:
            return None
        # Not made at the start: most starts of processing never need one.
        provider = provider_named(reply.provider, self._settings.api_url(reply.provider))
        secrets = self._secrets(reply, part)
        if secrets is None:
            return None
        try:
            if self._may_be_repeated(reply, part, provider):
                return self._repeat(reply, part, provider, secrets)
            return self._search(reply, part, provider, secrets)
        except SendError as error:
            log(
                "WARNING",
                "look_failed",
                id=reply.id.part(part.number),
                provider=provider.name,
                reason=error.reason,
                code=error.code,
            )
            if error.reason == "credentials":
                self._vault.refreshed(provider.name)
            return None

    def _search(
        self, reply: Reply, part: PartEntry, provider: Provider, secrets: Mapping[str, Any]
    ) -> Reply | None:
        age = self._runtime.now() - (part.started_at or 0.0)
        answer = ask(self._ledger, reply, part, provider, secrets, self._runtime.http)
        if isinstance(answer, Sent):
            return self._tell("found", self._ledger.found(reply, part, answer.id), part)
        if isinstance(answer, NotSent) and age >= LISTED_AFTER:
            return self._tell("not_sent", self._ledger.not_sent(reply, part), part)
        return None

    def _may_be_repeated(self, reply: Reply, part: PartEntry, provider: Provider) -> bool:
        return (
            provider.idempotent
            and part.request != ""
            and part.error not in (_MISMATCH, _REFUSED)
            and self._runtime.now() - (part.first_started_at or 0.0) < REPEATABLE
            and self._is_wanted(reply)
            # (What is sent again goes by the sender, which waits for the morning.)
            and not quiet_for(reply, self._quiet_until, self._runtime.now())
        )

    def _repeat(
        self, reply: Reply, part: PartEntry, provider: Provider, secrets: Mapping[str, Any]
    ) -> Reply | None:
        """Asks by handing it over again: the provider answers as it did, or takes it now."""
        try:
            sent = provider.send(part_of(reply, part), secrets, self._runtime.http)
        except Rejected as error:
            if error.reason == "opted_out":
                self._consent.record_refusal(
                    reply.theirs,
                    part.started_at or self._runtime.now(),
                    provider=reply.provider,
                    code=error.code,
                    id_=str(reply.id),
                )
            if error.reason in _SAID_BY_THE_REQUEST:
                refused = self._ledger.refused(reply, part, reason=error.reason, code=error.code)
                return self._tell("refused", refused, part)
            self._ledger.note(reply, part, _REFUSED)
            raise
        except OutcomeUnknown as error:
            if error.reason == _MISMATCH:
                self._ledger.note(reply, part, _MISMATCH)
            raise
        return self._tell("repeated", self._ledger.found(reply, part, sent.id), part)

    def _by_policy(self, reply: Reply, part: PartEntry) -> Reply | None:
        """The reply with the part to be sent again, where a setting prefers that to a question."""
        if (
            self._settings.unknown_sends == "resend"
            and part.lost < MOST_RESENDS
            and self._runtime.now() - (part.started_at or 0.0) >= LISTED_AFTER
            and self._is_wanted(reply)
        ):
            return self._tell("resent", self._ledger.resend(reply, part), part)
        return None

    def _is_wanted(self, reply: Reply) -> bool:
        """Whether the reply may be sent at all; to be asked immediately before. (Consent last: what
        is asked after it may take long, and the person say STOP meanwhile.)"""
        return (
            seconds_left(reply, self._settings, self._runtime.now()) > 0
            and not paused(self._table)
            and not refusal_of(reply, self._brakes, self._consent)
        )

    def _wait(self, reply: Reply, part: PartEntry) -> None:
        """Until the next look; after the last one it is for a person."""
        age = self._runtime.now() - (reply.unknown_since or 0.0)
        following = next((look for look in LOOKS if look - age > EARLY), None)
        if following is not None:
            raise Defer("outcome_unknown", after=following - age)
        reference = reply.id.part(part.number)
        count("UnknownListed", provider=reply.provider, id=reference)
        log("ERROR", "unknown_listed", id=reference, reason=part.error)

    def _secrets(self, reply: Reply, part: PartEntry) -> Mapping[str, Any] | None:
        """The provider's secrets; None where they cannot be had: then nothing is known either."""
        try:
            return self._vault.secrets(reply.provider)
        except Exception as error:
            if not is_transient(error):
                raise
            log(
                "WARNING",
                "look_failed",
                id=reply.id.part(part.number),
                provider=reply.provider,
                reason="secrets",
                error=error,
            )
            return None

    def _tell(self, how: str, reply: Reply, part: PartEntry) -> Reply:
        reference = reply.id.part(part.number)
        count("Settled", provider=reply.provider, reason=how, id=reference)
        log("INFO", "settled", id=reference, provider=reply.provider, reason=how)
        return reply


def part_of(
    reply: Reply,
    part: PartEntry,
    *,
    validity: int | None = None,
    known_ids: frozenset[str] = frozenset(),
) -> Part:
    """The part as a provider is handed it, or asked for it."""
    reference = reply.id.part(part.number)
    return Part(
        reference=reference,
        sender=reply.ours,
        recipient=reply.theirs,
        text=part.text,
        callback_url=f"{reply.callback_url}?reference={reference}",
        media=part.media,
        started_at=part.started_at,
        known_ids=known_ids,
        request=part.request,
        validity=validity,
    )


def _message(kind: Literal["settle", "resume"], reply: Reply, payload: dict[str, int]) -> Envelope:
    return Envelope(kind, reply.id.conversation, str(reply.id), reply.received_at, payload)


def _found(ledger: Ledger, id_: MessageId, part: int) -> tuple[Reply, PartEntry]:
    """A reply and one of its parts. Raises Busy where there is no such part."""
    reply = ledger.find(id_)
    entry = next((one for one in (reply and reply.parts) or () if one.number == part), None)
    if reply is None or entry is None:
        raise Busy
    return reply, entry


def _decided(
    runtime: Runtime, ledger: Ledger, reply: Reply, part: PartEntry, decision: Decision
) -> None:
    if decision == "sent":
        ledger.taken_for_sent(reply, part)
    elif decision == "resend":
        ledger.resend(reply, part, redriven_at=runtime.now())
    else:
        ledger.give_up(reply, part)


def _is_as_decided(reply: Reply, part: PartEntry, attempt: int, decision: Decision) -> bool:
    """Whether it is so already: this decision's own answer was lost, or others came to the same."""
    if decision == "sent":
        return part.state == "sent" and part.attempt == attempt
    if decision == "resend":
        return part.attempt > attempt
    return reply.outcome == "failed: given_up"

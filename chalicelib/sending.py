"""The sending function: each message is answered, once, in the order of its conversation.

For one message, and what a death after each step leaves behind:

    open the ledger     nothing was decided; the next try goes on from here
    apply consent       written by its own time; writing it again changes nothing
    ask for the words   nothing was promised; asking again is harmless (idempotency key)
    take a slot         it stays empty; the next try takes another
    read consent
    claim the part      `sending` until the lease ends, then `unknown`: never sent again blindly;
                        the first claim stores the words, and the next try asks nobody
    send                likewise
    write the outcome   done; the next try finds it done, or unknown
    ask to settle       where it is unknown; the next try finds it so and asks again
    announce the end    where the business's own systems are to hear; the next try announces it

A `resume` is about a reply whose unknown part was settled: it goes on as if its message had come
again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import ValidationError

from chalicelib import text
from chalicelib.batches import Batch, Defer, GiveUp, LambdaContext, Record
from chalicelib.brakes import Brakes
from chalicelib.breaker import Breaker, Permit
from chalicelib.config import Settings, load
from chalicelib.consent import ConsentList, event_in
from chalicelib.events import Events
from chalicelib.ledger import Busy, Ledger, PartEntry, Reply, draft
from chalicelib.loops import LoopGuard
from chalicelib.messages import ConsentEvent, InboundMessage, MessageId, OutgoingMessage
from chalicelib.observing import count, log
from chalicelib.pacing import GOOD_FOR, SOON, NotYet, OverCap, Pacer, Turns
from chalicelib.providers import provider_named
from chalicelib.providers.base import (
    OutcomeUnknown,
    Provider,
    Rejected,
    Throttled,
    Unavailable,
)
from chalicelib.queues import DEAD_LETTERS, OUTBOUND, PROCESSING, Envelope, Queues
from chalicelib.replies import Answer, Refused, Replies, words
from chalicelib.runtime import NotReady, Runtime, at_most, is_transient
from chalicelib.settling import (
    CONFIRMATION_MAX_AGE,
    part_of,
    quiet_for,
    refusal_of,
    seconds_left,
    settle_later,
)
from chalicelib.table import Table
from chalicelib.vault import Vault
from chalicelib.yours.quiet_hours import quiet_until
from chalicelib.yours.replies import reply as own_reply

T = TypeVar("T")

# Seconds that one read or write of the table may take, its repetitions included.
WRITING = 9.0
# Seconds that a call to the provider may take: connection, answer, and what surrounds them.
CALLING = at_most(10.0) + 1
# A claim is taken for dead this long after the end of the invocation that made it.
LEASE_MARGIN = 5.0


class Sender:
    """Handles the batches of the outbound queue."""

    def __init__(self, runtime: Runtime, settings: Settings) -> None:
        self._runtime = runtime
        self._settings = settings
        self._vault = Vault(runtime, settings.stage)
        self._queues = Queues(runtime, settings.stage)
        self._queues.url(OUTBOUND)
        self._queues.url(DEAD_LETTERS[OUTBOUND])
        self._queues.url(PROCESSING)
        self._table = Table(runtime, settings.stage)
        self._ledger = Ledger(self._table, runtime, keep_days=settings.message_days)
        self._events = Events(runtime, self._queues, settings)
        announce = self._events.consented if self._events.on else None
        self._consent = ConsentList(self._table, self._vault.keys(), settings.brand, announce)
        self._breaker = Breaker(self._table, runtime, settings.providers)
        self._brakes = Brakes(settings)
        self._quiet_until = quiet_until
        self._pacer = Pacer(self._table, runtime, settings.pacing, settings.daily_send_cap)
        self._loops = LoopGuard(self._table, runtime, settings.loop_limit)
        self._providers = {
            name: provider_named(name, settings.api_url(name)) for name in settings.providers
        }
        self._replies = Replies(
            runtime,
            url=settings.reply_api_url,
            timeout=settings.reply_timeout,
            own=own_reply,
        )

    def handle(self, event: Mapping[str, Any], context: LambdaContext) -> dict[str, Any] | None:
        """Lambda's SQS event in, the report of what is not done out."""
        batch = Batch(
            self._runtime,
            self._queues,
            self._table,
            OUTBOUND,
            event,
            context,
            reporting=self._settings.report_batch_item_failures,
        )
        lease_until = batch.deadline + LEASE_MARGIN
        self._breaker.read()
        turns = self._pacer.turns(_posted(batch.records))
        batch.each(
            lambda envelope, _: self._answer(envelope, lease_until, turns),
            # (The rest is asked for again before each claim, when it is known how slow it was.)
            needs=self._settings.reply_timeout + CALLING + WRITING,
            ordered=True,
        )
        turns.finish()
        return batch.finish()

    def _answer(self, envelope: Envelope, lease_until: float, turns: Turns) -> None:
        reply = self._reply_of(envelope)
        if reply is not None:
            self._answer_or_wait(envelope, reply, lease_until, turns)
        id_ = MessageId.parse(envelope.id)
        if self._events.on and id_ is not None:
            # (What had ended before, too: whoever ended it may have died before this.)
            self._events.ended(self._ledger.find(id_))

    def _answer_or_wait(
        self, envelope: Envelope, reply: Reply, lease_until: float, turns: Turns
    ) -> None:
        try:
            self._answer_once(envelope, reply, lease_until, turns)
        except Busy:
            raise Defer("held_by_another") from None
        except NotYet:
            raise
        except Defer as defer:
            left = seconds_left(reply, self._settings, self._runtime.now())
            if defer.after is None or left <= 0:
                # (What is too old already waits for a claim to end, and no sooner.)
                raise
            # No longer than the reply may be sent at all: what is too old is to be recorded so.
            raise Defer(defer.reason, min(defer.after, left + 1)) from None

    def _reply_of(self, envelope: Envelope) -> Reply | None:
        """The reply that a message is about, if anything may be left to do for it."""
        id_ = MessageId.parse(envelope.id)
        if envelope.kind not in ("inbound", "outgoing", "resume") or id_ is None:
            raise GiveUp("unexpected_kind")
        if not self._ledger.alive(envelope.received_at):
            # Its ledger item may be gone, and with it the proof that it was answered.
            count("NotAnswered", reason="older_than_ledger", id=envelope.id)
            log("ERROR", "older_than_ledger", id=envelope.id)
            return None
        if envelope.kind == "resume":
            reply = self._ledger.find(id_)
        else:
            message = _readable(envelope)
            reply = self._ledger.open(
                id_,
                kind=envelope.kind,
                provider=message.provider,
                ours=message.ours,
                theirs=message.theirs,
                callback_url=envelope.callback_url,
                received_at=envelope.received_at,
            )
        if reply is None or reply.outcome:
            return None
        if envelope.redriven_at is None:
            return reply
        return replace(reply, redriven_at=max(envelope.redriven_at, reply.redriven_at or 0.0))

    def _answer_once(
        self, envelope: Envelope, reply: Reply, lease_until: float, turns: Turns
    ) -> None:
        if reply.parts is None:
            if envelope.kind == "resume":
                return
            reply = self._decide(_readable(envelope), reply)
        going_on: Reply | None = reply
        for part in reply.parts or ():
            if going_on is None or going_on.outcome:
                return
            going_on = self._send(going_on, part, lease_until, turns)

    def _provider(self, name: str) -> Provider:
        if name not in self._providers:
            raise NotReady("PROVIDERS: lacks a provider that messages are waiting for")
        return self._providers[name]

    # -- what to say --------------------------------------------------------------------------

    def _decide(self, message: InboundMessage | OutgoingMessage, reply: Reply) -> Reply:
        """The reply with its words, which its first claim will store, or closed without any."""
        event = None
        if isinstance(message, InboundMessage):
            event = self._consent_event(message)
            if event is not None:
                # First: it counts whatever becomes of the reply.
                self._apply(event, message, reply)
        if reply.provider not in self._providers and self._too_old(reply):
            return self._close(reply, "expired")
        provider = self._provider(reply.provider)
        refusal = self._brakes.refusal(reply.theirs)
        if isinstance(message, OutgoingMessage):
            # (Asked again before each claim; here, so that it takes no slot from anybody.)
            if refusal or self._consent.opted_out(reply.theirs):
                return self._close(reply, refusal or "refused: opted_out")
            try:
                answer = Answer.model_validate({"text": message.text, "media": message.media})
            except ValidationError:
                return self._close(reply, "failed: invalid_request")
            return self._draft(reply, answer, provider)
        if event is not None and provider.answers_stop:
            return self._close(reply, f"no_reply: {event}")
        if refusal:
            return self._close(reply, refusal)
        if event == "stop":
            return self._confirm(reply, provider)
        if event == "help" and self._settings.help_text:
            return self._draft(reply, Answer(text=self._settings.help_text), provider)
        if self._consent.opted_out(reply.theirs):
            # (Read again before each claim; here, so that nobody is asked in vain.)
            return self._close(reply, "refused: opted_out")
        if self._too_old(reply):
            return self._close(reply, "expired")
        # (Needed for the claim; here, so that nobody is asked in vain.)
        self._vault.secrets(provider.name)
        self._breaker.ask(provider.name)
        try:
            answer = self._replies.ask(str(reply.id), message)
        except Refused as refused:
            return self._close(reply, f"refused_by_reply_api: {refused.code}")
        return self._draft(reply, answer, provider, automatic=True)

    def _consent_event(self, message: InboundMessage) -> ConsentEvent | None:
        event = message.consent_hint or event_in(message.text)
        if event is None and event_in(message.text, opted_out=True) is not None:
            event = event_in(message.text, opted_out=self._consent.opted_out(message.sender))
        return event

    def _apply(self, event: ConsentEvent, message: InboundMessage, reply: Reply) -> None:
        effective = self._consent.record(
            message.sender,
            event,
            # The first receipt's time, not that of a duplicate which came hours later.
            message.said_at(reply.received_at),
            words=message.text,
            source=message.provider,
            id_=str(reply.id),
        )
        count("ConsentEvents", reason=event, id=str(reply.id))
        log("INFO", f"consent_{event}", id=str(reply.id), reason="effective" if effective else "")

    def _confirm(self, reply: Reply, provider: Provider) -> Reply:
        if self._runtime.now() - reply.received_at > CONFIRMATION_MAX_AGE:
            return self._close(reply, "no_reply: stop")
        answer = Answer(text=self._settings.stop_text)
        return self._draft(reply, answer, provider, confirmation=True)

    def _draft(
        self,
        reply: Reply,
        answer: Answer,
        provider: Provider,
        *,
        confirmation: bool = False,
        automatic: bool = False,
    ) -> Reply:
        try:
            parts = words(answer, provider, self._settings.max_parts)
        except text.TooLong:
            return self._close(reply, "failed: too_long")
        if not parts:
            return self._close(reply, "no_reply")
        if automatic and self._loops.holds_back(reply.id, reply.received_at):
            return self._close(reply, "refused: loop")
        return draft(reply, parts, confirmation=confirmation)

    # -- saying it ----------------------------------------------------------------------------

    def _send(
        self, reply: Reply, part: PartEntry, lease_until: float, turns: Turns
    ) -> Reply | None:
        """Sends one part if it is to be sent. The reply as it is then; None where the next one may
        not follow."""
        if part.state == "sent":
            return reply
        if part.state == "sending":
            return reply.with_sent(part) if self._wait_or_give_up(reply, part) else None
        if part.state == "unknown":
            settle_later(self._queues, reply, part)
        if part.state != "waiting":
            return None
        if self._too_old(reply):
            sent = part.number - 1
            self._close(reply, f"expired: after {sent} of its parts" if sent else "expired")
            return None
        provider = self._provider(reply.provider)
        secrets = self._vault.secrets(provider.name)
        end = lease_until - LEASE_MARGIN
        self._breaker.check(provider.name)
        self._await_turn(reply, turns)
        rest = _segments(one for one in reply.parts or () if one.number >= part.number)
        claimed = None
        try:
            permit = self._breaker.permit(provider.name, until=end)
            claimed = self._claimed(reply, part, provider, lease_until, rest)
        finally:
            if claimed is None:
                turns.stays(reply.id, rest)
        if claimed is None:
            return None
        reply, mine = claimed
        with permit:
            try:
                sent = self._hand_over(reply, mine, provider, secrets, permit)
            except Defer:
                turns.stays(reply.id, rest)
                raise
        return reply.with_sent(part) if sent else None

    def _claimed(
        self, reply: Reply, part: PartEntry, provider: Provider, lease_until: float, rest: int
    ) -> tuple[Reply, PartEntry] | None:
        """The reply and the part, which is ours; None where the reply has ended instead. `rest`:
        the segments that leave with it."""
        end = lease_until - LEASE_MARGIN
        try:
            reply = self._pacer.count(reply, rest)
        except OverCap:
            count("OverCap", provider=reply.provider, id=str(reply.id))
            self._close(reply, "refused: daily_cap")
            return None
        if refusal := refusal_of(reply, self._brakes, self._consent):
            self._close(reply, refusal)
            return None
        # A claim that the end of the invocation cuts off would be an unknown send.
        if end - self._runtime.now() < 2 * WRITING + CALLING:
            if reply.drafted:
                # A slow reply API is not to be asked again, and again be too slow.
                self._ledger.store_words(reply)
            raise Defer("no_time_left", after=0)
        owner = self._runtime.new_id()
        request = provider.request(part_of(reply, part))
        claimed = self._written(
            lambda: self._ledger.claim(
                reply, part, owner=owner, lease_until=lease_until, request=request
            ),
            until=end - CALLING - WRITING,
        )
        if end - self._runtime.now() < CALLING + WRITING:
            self._put_back(reply, claimed)
            raise Defer("no_time_left", after=0)
        return reply, claimed

    def _await_turn(self, reply: Reply, turns: Turns) -> None:
        """Returns where what is left of the reply may leave now. Raises NotYet."""
        now = self._runtime.now()
        if reply.id in turns.passed:
            return
        until = reply.not_before or 0.0
        if until - now >= SOON:
            raise NotYet("pacing" if reply.has_slot else "quiet_hours", until - now)
        if quiet := quiet_for(reply, self._quiet_until, now):
            self._ledger.wait(reply, now + quiet, slot=False)
            raise NotYet("quiet_hours", quiet)
        if not (reply.has_slot and now - until <= GOOD_FOR):
            left = [part for part in reply.parts or () if part.state != "sent"]
            ahead = reply.kind != "outgoing"
            slot = turns.take(reply.id, reply.ours, _segments(left), ahead=ahead)
            # (What confirms an opt-out is due at once.)
            if slot - now >= SOON and not reply.confirmation:
                # First: it may be written, though nobody hears of it.
                turns.keep(reply.id)
                self._ledger.wait(reply, slot, slot=True)
                raise NotYet("pacing", slot - now)
        turns.passed.add(reply.id)

    def _hand_over(
        self,
        reply: Reply,
        part: PartEntry,
        provider: Provider,
        secrets: Mapping[str, Any],
        permit: Permit,
    ) -> bool:
        """Calls the provider, once, and writes down what came of it. Raises Defer where it was
        certainly not taken."""
        reference = reply.id.part(part.number)
        validity = max(1, int(seconds_left(reply, self._settings, self._runtime.now())))
        try:
            sent = permit.call(
                provider.send,
                part_of(reply, part, validity=validity),
                secrets,
                self._runtime.http,
            )
        except (Throttled, Unavailable) as error:
            self._put_back(reply, part)
            if error.reason == "credentials":
                self._vault.refreshed(provider.name)
            count("SendsDeferred", provider=provider.name, reason=error.reason, id=reference)
            after = error.retry_after if isinstance(error, Throttled) else None
            raise Defer(f"provider: {error.reason}", after) from error
        except Rejected as error:
            reason, code = error.reason, error.code
            if reason == "opted_out":
                self._outcome(lambda: self._record_opt_out(reply, part, code), part)
            self._outcome(lambda: self._ledger.failed(reply, part, reason=reason, code=code), part)
            count("SendsRejected", provider=provider.name, reason=error.reason, id=reference)
            log("WARNING", "rejected", id=reference, reason=error.reason, code=error.code)
            return False
        except OutcomeUnknown as error:
            return self._unknown(reply, part, error.reason)
        except Exception as error:
            # A bug of ours, somewhere around a call that may have been made.
            count("UnexpectedErrors", id=reference)
            log("ERROR", "unexpected_error", id=reference, error=error)
            return self._unknown(reply, part, "unexpected_error")
        self._outcome(lambda: self._ledger.sent(reply, part, sent.id), part)
        count("Sent", provider=provider.name, id=reference)
        log("INFO", "sent", id=reference, provider=provider.name)
        return True

    def _record_opt_out(self, reply: Reply, part: PartEntry, code: str) -> None:
        """Before the ledger's word: after a death in between, the next attempt meets the opt-out;
        the other way round nobody would come back to record it."""
        self._consent.record_refusal(
            reply.theirs,
            part.started_at or self._runtime.now(),
            provider=reply.provider,
            code=code,
            id_=str(reply.id),
        )

    def _put_back(self, reply: Reply, part: PartEntry) -> None:
        self._outcome(lambda: self._ledger.put_back(reply, part), part)

    def _outcome(self, write: Callable[[], T], part: PartEntry) -> T:
        """Only this write says what came of a claim, so it is tried for as long as the claim lives.
        Where it fails the part becomes unknown, unless a receipt comes first."""
        return self._written(write, until=(part.lease_until or 0) - LEASE_MARGIN)

    def _written(self, write: Callable[[], T], until: float) -> T:
        """A write that is tried again until it is heard of: each knows itself when it was done."""
        wait = 0.2
        while True:
            try:
                return write()
            except Exception as error:
                if not is_transient(error) or self._runtime.now() + wait + WRITING > until:
                    raise
                self._runtime.sleep(wait)
                wait = min(2 * wait, 3.0)

    def _wait_or_give_up(self, reply: Reply, part: PartEntry) -> bool:
        """For a part that somebody claimed: later while the claim lives, unknown after it."""
        left = (part.lease_until or 0) - self._runtime.now()
        if left > 0:
            raise Defer("claimed", after=left + 1)
        return self._unknown(reply, part, "lease_ended")

    def _unknown(self, reply: Reply, part: PartEntry, reason: str) -> bool:
        """Lists the part and has it looked for, unless a receipt came first: then the next one may
        follow."""
        entry = self._outcome(lambda: self._ledger.unknown(reply, part, reason=reason), part)
        if entry.state == "sent":
            return True
        reference = reply.id.part(part.number)
        count("UnknownSends", provider=reply.provider, reason=reason, id=reference)
        log("ERROR", "outcome_unknown", id=reference, reason=reason)
        settle_later(self._queues, reply, part)
        return False

    def _close(self, reply: Reply, outcome: str) -> Reply:
        closed = self._ledger.close(reply, outcome)
        word, _, reason = closed.outcome.partition(": ")
        count("Closed", provider=reply.provider, reason=word, id=str(reply.id))
        log("INFO", "closed", id=str(reply.id), reason=word, code=reason)
        return closed

    def _too_old(self, reply: Reply) -> bool:
        return seconds_left(reply, self._settings, self._runtime.now()) < 0


def _posted(records: Iterable[Record]) -> Iterator[tuple[str, int]]:
    """Of each message of `POST /messages` that comes for the first time, our number and its
    segments: the others may have their slots already."""
    for record in records:
        envelope = record.envelope
        if record.receives == 1 and envelope is not None and envelope.kind == "outgoing":
            ours, words_ = envelope.payload.get("ours"), envelope.payload.get("text")
            if isinstance(ours, str) and isinstance(words_, str):
                yield ours, max(1, text.segments(text.normalise(words_)))


def _segments(parts: Iterable[PartEntry]) -> int:
    return sum(max(1, text.segments(part.text)) for part in parts)


def _readable(envelope: Envelope) -> InboundMessage | OutgoingMessage:
    """The message of an envelope, its text as everybody reads it."""
    message = envelope.inbound() if envelope.kind == "inbound" else envelope.outgoing()
    return replace(message, text=text.normalise(message.text))


def start() -> Sender:
    """Everything that can be made before the first batch: clients, queue URLs, secrets."""
    settings = load(os.environ)
    runtime = Runtime()
    runtime.warm("sqs", "dynamodb", "http")
    log("INFO", "started", code=runtime.boto3)
    return Sender(runtime, settings)

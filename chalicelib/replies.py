"""What to answer: asked of the business's own API, or of the adopter's own code.

Where REPLY_API_URL is set, it gets a POST with JSON and an `Idempotency-Key` (the message's id), so
that asking twice is harmless; where not, `reply` in chalicelib/yours/replies.py is called.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import httpx
from pydantic import BaseModel, ConfigDict, Field, HttpUrl, ValidationError, model_validator

from chalicelib import text
from chalicelib.batches import Defer
from chalicelib.messages import InboundMessage
from chalicelib.providers.base import Provider, retry_after
from chalicelib.runtime import Runtime, within
from chalicelib.text import LONGEST

Words = list[tuple[str, tuple[str, ...]]]


class Answer(BaseModel):
    """What may be answered: a text, several texts, media (URLs), or nothing at all."""

    model_config = ConfigDict(extra="ignore")

    text: str | None = Field(default=None, max_length=LONGEST)
    texts: list[Annotated[str, Field(max_length=LONGEST)]] = Field(
        default_factory=list, max_length=9
    )
    media: list[HttpUrl] = Field(default_factory=list, max_length=10)

    @model_validator(mode="before")
    @classmethod
    def _not_something_else(cls, value: Any) -> Any:
        """What an API adds besides is passed over; an answer of nothing else is a mistake."""
        if isinstance(value, dict) and value and not value.keys() & cls.model_fields.keys():
            raise ValueError("neither text, texts nor media")
        return value


class Refused(Exception):
    """There never will be an answer. `code`: the status (4xx) with which the reply API refused the
    message; or too_long, where own code returned a text of more than LONGEST characters."""

    def __init__(self, code: str) -> None:
        super().__init__("refused")
        self.code = code


Reply = Callable[[InboundMessage], Answer | str | Sequence[str] | None]


class Replies:
    """Asks for answers. `own` is the adopter's function, for when there is no `url`."""

    def __init__(self, runtime: Runtime, *, url: str, timeout: float, own: Reply) -> None:
        self._runtime = runtime
        self._url = url
        self._timeout = timeout
        self._own = own

    def ask(self, id_: str, message: InboundMessage) -> Answer:
        """Raises Defer where the API cannot answer now, Refused where there never will be one."""
        return self._ask_api(id_, message) if self._url else _answer(self._own(message))

    def _ask_api(self, id_: str, message: InboundMessage) -> Answer:
        question = {
            "id": id_,
            "provider": message.provider,
            "from": message.sender,
            "to": message.recipient,
            "text": message.text,
            "media": [{"url": m.url, "content_type": m.content_type} for m in message.media],
            "received_at": message.received_at,
        }
        try:
            response = self._runtime.http.post(
                self._url,
                # In ASCII: an address of media may hold a lone surrogate, which UTF-8 cannot.
                content=json.dumps(question).encode(),
                headers={"Content-Type": "application/json", "Idempotency-Key": id_},
                timeout=within(self._timeout),
            )
        except httpx.HTTPError as error:
            raise Defer(f"reply_api: {type(error).__name__}") from error
        status = response.status_code
        if status == 204:
            return Answer()
        if status == 200:
            try:
                return Answer.model_validate_json(response.content)
            except ValidationError:
                raise Defer("reply_api: invalid_answer") from None
        if 400 <= status < 500 and status not in (401, 403, 408, 425, 429):
            raise Refused(str(status))
        raise Defer(f"reply_api: {status}", retry_after(response))


def words(answer: Answer, provider: Provider, max_parts: int) -> Words:
    """The parts to send, as (text, media URLs); none where there is nothing to say.

    A text over the provider's limit is split at words, into at most `max_parts`. Media go with the
    first part. Raises text.TooLong.
    """
    texts = [answer.text, *answer.texts] if answer.text is not None else answer.texts
    parts = [
        part
        for one in (text.normalise(each) for each in texts)
        if one.strip()
        for part in text.split(one, provider.max_length, provider.max_segments, max_parts)
    ]
    media = tuple(str(url) for url in answer.media)
    if media and not parts:
        return [("", media)]
    return [(part, media if number == 0 else ()) for number, part in enumerate(parts)]


def _answer(given: Answer | str | Sequence[str] | None) -> Answer:
    if isinstance(given, Answer):
        return given
    if given is None:
        return Answer()
    texts = [given] if isinstance(given, str) else list(given)
    if any(isinstance(one, str) and len(one) > LONGEST for one in texts):
        raise Refused("too_long")
    return Answer(text=given) if isinstance(given, str) else Answer(texts=texts)

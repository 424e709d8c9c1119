"""Look-ups: what external sources know about a message, asked side by side over HTTP.

Which sources there are, how long each may take, whether a message can do without and what an answer
looks like is the adopter's (chalicelib/yours/lookups.py); where each is asked is a setting
(LOOKUP_URLS). A source without an address is not asked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic import BaseModel, ValidationError

from chalicelib.batches import Defer
from chalicelib.config import SettingError
from chalicelib.messages import InboundMessage
from chalicelib.observing import count, log
from chalicelib.providers.base import retry_after
from chalicelib.runtime import Runtime, at_most, within


@dataclass(frozen=True, slots=True)
class LookUp:
    """One source. `timeout` in seconds, at most 30, which leaves the function time for the rest;
    `required`: without its answer a message is deferred."""

    name: str
    answer: type[BaseModel]
    timeout: float = 3.0
    required: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.timeout <= 30:
            raise SettingError(
                f"chalicelib/yours/lookups.py: the time-out of {self.name} must be above 0 and at "
                "most 30 seconds"
            )


class LookUps:
    """The sources in use. Each gets POST {"id", "provider", "from", "to", "text", "received_at"}
    and answers JSON that its model accepts; 204 or 404 mean that it knows nothing."""

    def __init__(
        self, runtime: Runtime, sources: Sequence[LookUp], urls: Mapping[str, str]
    ) -> None:
        # Not the names: somebody may have put an address or a key there.
        if strange := set(urls) - {source.name for source in sources}:
            raise SettingError(
                f"LOOKUP_URLS: names {len(strange)} look-up(s) that chalicelib/yours/lookups.py "
                "does not have; use the names that LOOKUPS has there"
            )
        self._runtime = runtime
        self._sources = [(source, urls[source.name]) for source in sources if source.name in urls]

    @property
    def longest(self) -> float:
        """Seconds that asking may take."""
        return max((at_most(source.timeout) for source, _ in self._sources), default=0.0)

    def ask(self, id_: str, message: InboundMessage, text: str) -> dict[str, Any]:
        """The answers by source; None from one that knows nothing, {"error": why} from one that
        failed and is not required. Raises Defer where a required one failed."""
        question = {
            "id": id_,
            "provider": message.provider,
            "from": message.sender,
            "to": message.recipient,
            "text": text,
            "received_at": message.received_at,
        }
        answers = self._runtime.together(
            [_asking(self._ask_one, source, url, question) for source, url in self._sources]
        )
        for (source, _), answer in zip(self._sources, answers, strict=True):
            if isinstance(answer, _Failure):
                count("LookUpFailures", reason=source.name, id=id_)
                log("WARNING", "lookup_failed", id=id_, reason=source.name, code=answer.why)
                if source.required:
                    raise Defer(f"lookup: {source.name}", answer.retry_after)
        return {
            source.name: {"error": answer.why} if isinstance(answer, _Failure) else answer
            for (source, _), answer in zip(self._sources, answers, strict=True)
        }

    def _ask_one(self, source: LookUp, url: str, question: Mapping[str, Any]) -> Any:
        try:
            response = self._runtime.http.post(
                url,
                # In ASCII: UTF-8 has no lone surrogates, which JSON from a provider may hold.
                content=json.dumps(question).encode(),
                headers={"Content-Type": "application/json"},
                timeout=within(source.timeout),
            )
        except httpx.HTTPError as error:
            return _Failure(type(error).__name__)
        if response.status_code in (204, 404):
            return None
        if response.status_code != 200:
            return _Failure(str(response.status_code), retry_after(response))
        try:
            return source.answer.model_validate_json(response.content).model_dump(mode="json")
        except ValidationError:
            return _Failure("invalid_answer")


@dataclass(frozen=True, slots=True)
class _Failure:
    why: str
    retry_after: float | None = None


def _asking(ask: Any, source: LookUp, url: str, question: Mapping[str, Any]) -> Any:
    return lambda: ask(source, url, question)

"""The settings of a function: read from its environment and checked once, when it starts.

An error names every variable that is wrong and how to mend it, and never shows a value. Standard
library only: the authorizer and the receiver start with this module.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, get_args
from urllib.parse import SplitResult, urlsplit

from chalicelib.messages import number_kind
from chalicelib.providers import NAMES as PROVIDER_NAMES

T = TypeVar("T")
Function = Literal["authorizer", "receiver", "processing", "sender"]


class SettingError(Exception):
    """The environment of a function is wrong. The text has a line for each variable."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How many segments may leave by one of our numbers, or by those of a campaign (`name`): a
    second, 0 for as many as there are; and a day (UTC), 0 likewise."""

    name: str
    per_second: float = 0.0
    per_day: int = 0

    @property
    def interval(self) -> int:
        """From one segment to the next, in microseconds."""
        return round(1_000_000 / self.per_second)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment says. Each field is read from the variable of the same name in capitals
    (`stage` and `function` from SPILLWAY_…); docs/SETTINGS.md explains each. Times are seconds.
    """

    function: Function
    stage: str = "dev"
    credential_hashes: Mapping[str, tuple[str, ...]] = None  # type: ignore[assignment]
    providers: tuple[str, ...] = ()
    public_url: str = ""
    numbers: Mapping[str, str] = None  # type: ignore[assignment]
    brand: str = "default"
    reply_api_url: str = ""
    reply_timeout: float = 10.0
    reply_max_age: float = 900.0
    message_max_age: float = 36_000.0
    loop_limit: int = 30
    max_parts: int = 3
    pacing: Mapping[str, Pace] = None  # type: ignore[assignment]
    daily_send_cap: int = 0
    send_only_to: tuple[str, ...] = ()
    send_to_countries: tuple[str, ...] = ()
    lookup_urls: Mapping[str, str] = None  # type: ignore[assignment]
    lookup_max_age: float = 43_200.0
    event_bus: str = ""
    events_url: str = ""
    stop_text: str = ""
    help_text: str = ""
    message_days: int = 400
    unknown_sends: str = "hold"
    report_batch_item_failures: bool = False
    twilio_api_url: str = ""
    telnyx_api_url: str = ""
    log_level: str = "INFO"

    def api_url(self, provider: str) -> str | None:
        """Where this provider's API is, if not at its usual address."""
        return getattr(self, f"{provider}_api_url", "") or None


def load(environ: Mapping[str, str]) -> Settings:
    """The settings of the function that SPILLWAY_FUNCTION names. Raises SettingError."""
    function = environ.get("SPILLWAY_FUNCTION", "")
    if function not in get_args(Function):
        raise SettingError(
            "SPILLWAY_FUNCTION: must be one of "
            f"{', '.join(get_args(Function))}; set it for each function in .chalice/config.json"
        )
    values: dict[str, Any] = {"function": function}
    wrong = []
    for name, (variable, read, default, needed_by) in _TABLE.items():
        text = environ.get(variable, "").strip()
        if not text and function in needed_by:
            wrong.append(f"{variable}: not set; it must be {_expects(read)}")
            continue
        try:
            values[name] = read(text or default)
        except ValueError as error:
            wrong.append(f"{variable}: {error}; it must be {_expects(read)}")
    carriers = set(values.get("numbers", {}).values())
    if function == "receiver" and not carriers <= set(values.get("providers", ())):
        wrong.append("NUMBERS: names a provider that PROVIDERS lacks; add it there")
    paced, ours = values.get("pacing", {}), values.get("numbers", {})
    if function == "sender" and ours and not set(paced) <= set(ours):
        wrong.append("PACING: names a number that NUMBERS lacks; add it there")
    if (
        function in ("processing", "sender")
        and values.get("stage") != "prod"
        and not values.get("send_only_to", "*")
    ):
        must = _expects(_recipients)
        wrong.append(
            f"SEND_ONLY_TO: not set; it must be {must}. Only the stage prod may leave it out"
        )
    if values.get("event_bus") and values.get("events_url"):
        wrong.append(
            "EVENTS_URL: set beside EVENT_BUS; events go to one of them, so unset the other"
        )
    if wrong:
        raise SettingError("\n".join(wrong))
    return Settings(**values)


def _expects(read: Callable[[str], Any]) -> str:
    return " ".join((read.__doc__ or "").split())


def _stage(text: str) -> str:
    """a stage's name: small letters, digits and hyphens, at most 16, e.g. prod"""
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,15}", text):
        raise ValueError("not a stage's name")
    return text


def _credential_hashes(text: str) -> dict[str, tuple[str, ...]]:
    """JSON such as {"twilio": ["<64 hex digits>"], "api": ["<64 hex digits>"]}: for each principal
    the SHA-256 of its credentials"""
    found = _json_object(text)
    hashes = {}
    for principal, entries in found.items():
        entries = [entries] if isinstance(entries, str) else entries
        if not isinstance(entries, list) or not all(
            isinstance(one, str) and re.fullmatch(r"[0-9a-f]{64}", one) for one in entries
        ):
            raise ValueError("not SHA-256 hashes in hexadecimal")
        if principal != "api" and principal not in PROVIDER_NAMES:
            raise ValueError("names a principal that is neither a provider nor api")
        hashes[principal] = tuple(entries)
    every = [one for entries in hashes.values() for one in entries]
    if len(every) != len(set(every)):
        raise ValueError("gives two principals the same credentials")
    return hashes


def _providers(text: str) -> tuple[str, ...]:
    """the providers in use, separated by commas, e.g. twilio,telnyx"""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if any(name not in PROVIDER_NAMES for name in names):
        raise ValueError(f"names a provider that is not one of {', '.join(PROVIDER_NAMES)}")
    if text and not names:
        raise ValueError("names none")
    return names


def _numbers(text: str) -> dict[str, str]:
    """our numbers and who carries each, e.g. +14155550123=twilio,+14155550199=telnyx"""
    numbers = {}
    for entry in filter(None, (entry.strip() for entry in text.split(","))):
        number, _, provider = entry.partition("=")
        if number_kind(number) not in ("e164", "short_code") or not provider:
            raise ValueError("not a list of number=provider")
        if provider not in PROVIDER_NAMES:
            raise ValueError(f"names a provider that is not one of {', '.join(PROVIDER_NAMES)}")
        numbers[number] = provider
    return numbers


# Segments a second, where PACING says nothing else: what US carriers and providers give a number
# before any registration for more. https://help.twilio.com/articles/115002943027
_USUAL = {"long code": 1.0, "toll-free": 3.0, "short code": 100.0}
_TOLL_FREE = re.compile(r"\+18(00|33|44|55|66|77|88)[0-9]{7}", re.ASCII)


def _pacing(text: str) -> dict[str, Pace]:
    """JSON such as {"+12025550199": {}, "spring": {"numbers": ["+12025550123"], "per_second": 10,
    "per_day": 2000}}: for a number, or a campaign with several, how many segments may leave"""
    paces: dict[str, Pace] = {}
    for name, entry in _json_object(text).items():
        if not isinstance(entry, dict) or set(entry) - {"numbers", "per_second", "per_day"}:
            raise ValueError("has an entry that is not such an object")
        numbers = entry.get("numbers", [name])
        if (
            not isinstance(numbers, list)
            or not numbers
            or not all(isinstance(one, str) for one in numbers)
            or any(number_kind(one) not in ("e164", "short_code") for one in numbers)
        ):
            raise ValueError("names neither a number nor a campaign with numbers")
        if paces.keys() & set(numbers):
            raise ValueError("has a number twice")
        per_second = entry.get("per_second", _USUAL[_sort(numbers[0])])
        per_day = entry.get("per_day", 0)
        if not _is_number(per_second, int | float) or not 0 < per_second <= 10_000:
            raise ValueError("has a per_second that is not above 0 and at most 10000")
        if not _is_number(per_day, int) or not 0 <= per_day < 10**9:
            raise ValueError("has a per_day that is no whole number")
        paces |= dict.fromkeys(numbers, Pace(name, float(per_second), per_day))
    return paces


def _sort(number: str) -> str:
    if number_kind(number) == "short_code":
        return "short code"
    return "toll-free" if _TOLL_FREE.fullmatch(number) else "long code"


def _is_number(value: object, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _cap(text: str) -> int:
    """a whole number of segments; 0 for no cap"""
    value = _number(int, text)
    if not 0 <= value < 10**9:
        raise ValueError("out of range")
    return value


def _recipients(text: str) -> tuple[str, ...]:
    """numbers, or how numbers begin with an asterisk behind it, separated by commas, e.g.
    +12025550147,+1202555*; an asterisk alone is everybody"""
    found = tuple(filter(None, (entry.strip() for entry in text.split(","))))
    for entry in found:
        whole, asterisk, rest = entry.partition("*")
        beginning = asterisk and not rest and re.fullmatch(r"(\+?[0-9]{0,14})?", whole, re.ASCII)
        if not beginning and number_kind(entry) not in ("e164", "short_code"):
            raise ValueError("not such a list")
    return found


def _countries(text: str) -> tuple[str, ...]:
    """two-letter codes of countries, separated by commas, e.g. US,CA; * for all of them"""
    found = tuple(filter(None, (entry.strip() for entry in text.split(","))))
    if not all(re.fullmatch(r"[A-Z]{2}|\*", entry) for entry in found):
        raise ValueError("not such a list")
    return found


def _url(text: str) -> str:
    """an http or https address without query, e.g. https://sms.example.com"""
    if not text:
        return ""
    parts = _address(text)
    if parts.query or parts.fragment:
        raise ValueError("not such an address")
    return text.rstrip("/")


def _endpoint(text: str) -> str:
    """an http or https address, e.g. https://replies.example.com/v1/sms"""
    if text:
        _address(text)
    return text


def _endpoints(text: str) -> dict[str, str]:
    """JSON such as {"customer": "https://crm.example.com/lookup"}: where each look-up is asked"""
    found = _json_object(text)
    if not all(isinstance(url, str) for url in found.values()):
        raise ValueError("not addresses by name")
    return {name: _endpoint(url) for name, url in found.items() if url}


def _bus(text: str) -> str:
    """the name of an EventBridge bus of this account, e.g. spillway-prod"""
    if text and not re.fullmatch(r"[A-Za-z0-9._/-]{1,256}", text, re.ASCII):
        raise ValueError("not such a name")
    return text


def _seconds(text: str) -> float:
    """a number of seconds above 0, e.g. 10"""
    value = _number(float, text)
    if not 0 < value < 86_400 * 400:
        raise ValueError("not such a number")
    return value


def _short(text: str) -> float:
    """a number of seconds above 0 and at most 30, which leaves the function time for the rest"""
    value = _number(float, text)
    if not 0 < value <= 30:
        raise ValueError("out of range")
    return value


def _half_day(text: str) -> float:
    """a number of seconds above 0 and at most 43200, after which processing waits for nothing"""
    value = _number(float, text)
    if not 0 < value <= 43_200:
        raise ValueError("out of range")
    return value


def _limit(text: str) -> int:
    """a whole number from 0 (no limit) to 100"""
    value = _number(int, text)
    if not 0 <= value <= 100:
        raise ValueError("out of range")
    return value


def _few(text: str) -> int:
    """a whole number from 1 to 9"""
    value = _number(int, text)
    if not 1 <= value <= 9:
        raise ValueError("out of range")
    return value


def _days(text: str) -> int:
    """a whole number of days, at least 31 (the archive's least; twice what the queues keep)"""
    value = _number(int, text)
    if value < 31:
        raise ValueError("too few")
    return value


def _policy(text: str) -> str:
    """hold (a person decides) or resend (at the risk that it comes twice)"""
    if text not in ("hold", "resend"):
        raise ValueError("neither")
    return text


def _switch(text: str) -> bool:
    """true or false"""
    if text not in ("true", "false"):
        raise ValueError("neither")
    return text == "true"


def _level(text: str) -> str:
    """DEBUG, INFO, WARNING or ERROR"""
    if text not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ValueError("none of these")
    return text


def _text(text: str) -> str:
    """a text"""
    return text


def _address(text: str) -> SplitResult:
    try:
        parts = urlsplit(text)
        valid = (
            parts.scheme in ("http", "https")
            and parts.hostname
            and parts.port != 0
            # What httpx would refuse at each call.
            and text.isascii()
            and text.isprintable()
            and " " not in text
        )
    except ValueError:
        # Python's own words quote the value; so in the next function.
        valid = False
    if not valid:
        raise ValueError("not such an address")
    return parts


def _number(convert: Callable[[str], T], text: str) -> T:
    try:
        return convert(text)
    except ValueError:
        raise ValueError("not such a number") from None


def _json_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


_WORKING = ("receiver", "processing", "sender")

# field: (variable, reader, default, functions that cannot start without it)
_TABLE: Mapping[str, tuple[str, Callable[[str], Any], str, tuple[str, ...]]] = {
    "stage": ("SPILLWAY_STAGE", _stage, "dev", _WORKING),
    "credential_hashes": ("CREDENTIAL_HASHES", _credential_hashes, "{}", ("authorizer",)),
    "providers": ("PROVIDERS", _providers, "", _WORKING),
    "public_url": ("PUBLIC_URL", _url, "", ()),
    "numbers": ("NUMBERS", _numbers, "", ()),
    "brand": ("BRAND", _text, "default", ()),
    "reply_api_url": ("REPLY_API_URL", _endpoint, "", ()),
    "reply_timeout": ("REPLY_TIMEOUT", _short, "10", ()),
    "reply_max_age": ("REPLY_MAX_AGE", _seconds, "900", ()),
    "message_max_age": ("MESSAGE_MAX_AGE", _seconds, "36000", ()),
    "loop_limit": ("LOOP_LIMIT", _limit, "30", ()),
    "max_parts": ("MAX_PARTS", _few, "3", ()),
    "pacing": ("PACING", _pacing, "{}", ()),
    "daily_send_cap": ("DAILY_SEND_CAP", _cap, "0", ()),
    "send_only_to": ("SEND_ONLY_TO", _recipients, "", ()),
    "send_to_countries": ("SEND_TO_COUNTRIES", _countries, "", ()),
    "lookup_urls": ("LOOKUP_URLS", _endpoints, "{}", ()),
    "lookup_max_age": ("LOOKUP_MAX_AGE", _half_day, "43200", ()),
    "event_bus": ("EVENT_BUS", _bus, "", ()),
    "events_url": ("EVENTS_URL", _endpoint, "", ()),
    "stop_text": ("STOP_TEXT", _text, "You are unsubscribed and will get no more texts.", ()),
    "help_text": ("HELP_TEXT", _text, "", ()),
    "unknown_sends": ("UNKNOWN_SENDS", _policy, "hold", ()),
    "message_days": ("MESSAGE_DAYS", _days, "400", ()),
    "report_batch_item_failures": ("REPORT_BATCH_ITEM_FAILURES", _switch, "false", ()),
    "twilio_api_url": ("TWILIO_API_URL", _endpoint, "", ()),
    "telnyx_api_url": ("TELNYX_API_URL", _endpoint, "", ()),
    "log_level": ("LOG_LEVEL", _level, "INFO", ()),
}
assert set(_TABLE) == {field.name for field in fields(Settings)} - {"function"}

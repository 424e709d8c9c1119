"""To whom nothing is sent, whoever asks for it: a stage that is not for real people has a list of
those it may write to, and every stage a list of countries.

Who pumps traffic has our numbers write to dear destinations abroad; +1 alone has some twenty of
them, so the country counts and not the calling code. https://www.twilio.com/docs/glossary/what-is-sms-pumping-fraud
"""

from __future__ import annotations

import phonenumbers

from chalicelib.config import SettingError, Settings
from chalicelib.messages import number_kind

EVERYWHERE = "*"


class Brakes:
    """The lists of a stage. Raises SettingError where it cannot be known which countries are
    meant."""

    def __init__(self, settings: Settings) -> None:
        self._only_to = settings.send_only_to
        self._countries = frozenset(settings.send_to_countries)
        if not self._countries:
            self._countries = frozenset(filter(None, map(country, settings.numbers)))
        if not self._countries:
            raise SettingError(
                "SEND_TO_COUNTRIES: not set, and no number in NUMBERS says a country; set one of "
                "them: SEND_TO_COUNTRIES must be two-letter codes, e.g. US,CA; * for all of them"
            )

    def refusal(self, theirs: str) -> str:
        """Why nothing is sent to this number; "" where it may be."""
        if self._only_to and not any(_matches(theirs, entry) for entry in self._only_to):
            return "refused: not_in_send_only_to"
        # A short code has no country: it works inside one alone.
        if EVERYWHERE in self._countries or number_kind(theirs) == "short_code":
            return ""
        return "" if country(theirs) in self._countries else "refused: country"


def country(number: str) -> str:
    """The two-letter code of a number's country; "" where it has none, or nobody knows it.

    An area code that is newer than our number plan is taken for one of the country which has most
    of the calling code.
    """
    try:
        parsed = phonenumbers.parse(number)
    except phonenumbers.NumberParseException:
        return ""
    found = phonenumbers.region_code_for_number(parsed)
    return found or phonenumbers.region_code_for_country_code(parsed.country_code or 0)


def _matches(number: str, entry: str) -> bool:
    if entry.endswith("*"):
        return number.startswith(entry[:-1])
    return number == entry

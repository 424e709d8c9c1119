"""To whom nothing is sent: whom a list leaves out, and other countries."""

from __future__ import annotations

import pytest

from chalicelib.brakes import Brakes, country
from chalicelib.config import SettingError
from tests.fakes import settings

ONLY_TO, COUNTRY = "refused: not_in_send_only_to", "refused: country"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        ("+14155550100", "US"),
        ("+14165550100", "CA"),
        ("+18095550100", "DO"),
        ("+18885550100", "US"),
        ("+447400123456", "GB"),
        # An area code that this number plan does not know yet.
        ("+12225550100", "US"),
        ("+882161234567", "001"),
        ("72345", ""),
        ("Heron", ""),
        ("", ""),
        ("+99912345678", ""),
    ],
)
def test_the_country_of_a_number(number: str, code: str) -> None:
    assert country(number) == code


@pytest.mark.parametrize(
    ("variables", "number", "refusal"),
    [
        # Everybody in the countries of our numbers.
        ({}, "+14155550100", ""),
        ({}, "+14165550100", COUNTRY),
        ({}, "+447400123456", COUNTRY),
        ({}, "72345", ""),
        ({"NUMBERS": "+447400123456=twilio,+14155550123=twilio"}, "+447400123457", ""),
        ({"NUMBERS": "+447400123456=twilio,+14155550123=twilio"}, "+14155550100", ""),
        # Those that are named, and no others.
        ({"SEND_TO_COUNTRIES": "CA"}, "+14165550100", ""),
        ({"SEND_TO_COUNTRIES": "CA"}, "+14155550100", COUNTRY),
        ({"SEND_TO_COUNTRIES": "US,CA"}, "+18095550100", COUNTRY),
        ({"SEND_TO_COUNTRIES": "CA"}, "72345", ""),
        ({"SEND_TO_COUNTRIES": "*"}, "+18095550100", ""),
        ({"SEND_TO_COUNTRIES": "*", "NUMBERS": "72345=twilio"}, "+447400123456", ""),
        # Whom alone a stage may write to.
        ({"SEND_ONLY_TO": "+14155550100"}, "+14155550100", ""),
        ({"SEND_ONLY_TO": "+14155550100"}, "+14155550101", ONLY_TO),
        ({"SEND_ONLY_TO": "+14155550100"}, "+141555501001", ONLY_TO),
        ({"SEND_ONLY_TO": "+1415555*,72345"}, "+14155550101", ""),
        ({"SEND_ONLY_TO": "+1415555*,72345"}, "+14156550101", ONLY_TO),
        ({"SEND_ONLY_TO": "+1415555*,72345"}, "72345", ""),
        ({"SEND_ONLY_TO": "+1415555*"}, "72345", ONLY_TO),
        # Both hold.
        ({"SEND_ONLY_TO": "+44*"}, "+447400123456", COUNTRY),
        ({"SEND_ONLY_TO": "", "SPILLWAY_STAGE": "prod"}, "+14155550199", ""),
    ],
)
def test_to_whom_nothing_is_sent(variables: dict[str, str], number: str, refusal: str) -> None:
    assert Brakes(settings("sender", **variables)).refusal(number) == refusal


@pytest.mark.parametrize("numbers", ["", "72345=twilio"])
def test_countries_that_nobody_knows_are_asked_for(numbers: str) -> None:
    with pytest.raises(SettingError, match=r"^SEND_TO_COUNTRIES: not set, .*e\.g\. US,CA"):
        Brakes(settings("sender", NUMBERS=numbers))

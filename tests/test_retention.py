"""docs/RETENTION.md: every figure, from what decides it. What an erasure does, and what it needs to
be allowed, is held by tests/operate/test_erase.py."""

from __future__ import annotations

import re
from itertools import count
from typing import Any

import pytest

from chalicelib import batches
from chalicelib.config import Pace, SettingError
from chalicelib.ledger import DAY
from chalicelib.pacing import Pacer
from spillway.operate import erasure
from tests.fakes import NOW, OURS, FakeRuntime, settings
from tests.pages import DOCS, ROOT, rows
from tests.test_delivery_arithmetic import CONFIG, DATA, RETENTION, TEMPLATE

PAGE = DOCS / "RETENTION.md"
TEXT = " ".join(PAGE.read_text().split())
FUNCTIONS = [
    function
    for name, stage in CONFIG["stages"].items()
    if name != "local"
    for function in stage["lambda_functions"].values()
]
(MESSAGE_DAYS,) = {
    int(one["environment_variables"]["MESSAGE_DAYS"])
    for one in FUNCTIONS
    if "MESSAGE_DAYS" in one["environment_variables"]
}
ARCHIVE_DAYS = DATA["ArchiveDays"]
(QUEUE_DAYS,) = {seconds / DAY for seconds in RETENTION}
(LOG_DAYS,) = {
    one["log_retention_in_days"]
    for one in CONFIG["lambda_functions"].values()
    if "log_retention_in_days" in one
}
# Where nobody says so, and it is the longest that there is:
# https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_PointInTimeRecoverySpecification.html
BACKUP_DAYS = TEMPLATE["Resources"]["Table"]["Properties"]["PointInTimeRecoverySpecification"].get(
    "RecoveryPeriodInDays", 35
)


def accepted(days: int) -> bool:
    """Whether MESSAGE_DAYS may be so few."""
    try:
        settings("sender", MESSAGE_DAYS=str(days))
    except SettingError:
        return False
    return True


LEAST = next(days for days in count(1) if accepted(days))
STANDING = QUEUE_DAYS + QUEUE_DAYS + 1

LIVES = {
    "Texts, and replies in the ledger": f"{MESSAGE_DAYS} days (`MESSAGE_DAYS`)",
    "Opt-outs and opt-ins": "without an end",
    "Counts of the loop guard": "1 day",
    "Starts of messages that came twice": f"{batches.START_KEPT / DAY:.0f} days",
    "How much may leave by a number, or has left": "2 days after the last",
    "State of a provider that is down": "1 day",
    "That sending is paused": "until `spillway resume sending`",
    "Texts as the provider sent them": f"{ARCHIVE_DAYS} days (`ArchiveDays`)",
    "Attachments of texts, as the provider sent them": f"{ARCHIVE_DAYS} days (`ArchiveDays`)",
    "What could not be read": f"{ARCHIVE_DAYS} days (`ArchiveDays`)",
    "Dead letters that somebody dropped": f"{ARCHIVE_DAYS} days (`ArchiveDays`)",
    "What waits": f"{QUEUE_DAYS:.0f} days at most",
    "Dead letters": f"{QUEUE_DAYS:.0f} days",
    "The table as it was at any moment": f"{BACKUP_DAYS} days",
    "Log lines and access logs": f"{LOG_DAYS} days",
}
RULES = [
    (
        f"{QUEUE_DAYS:.0f} + {QUEUE_DAYS:.0f} + 1 = {STANDING:.0f} days",
        f"{MESSAGE_DAYS} days (`MESSAGE_DAYS`; at least {LEAST})",
    ),
    (f"{ARCHIVE_DAYS} days (`ArchiveDays`)", f"{MESSAGE_DAYS} days (`MESSAGE_DAYS`)"),
]


def test_how_long_each_is_kept() -> None:
    assert {what: life for what, *_, life in rows(PAGE, "What is kept where")} == LIVES


def test_what_paces_is_kept_for_so_long() -> None:
    written: list[tuple[Any, int]] = []

    class Written:
        def update(self, key: Any, *_: object, values: dict[str, int], **__: object) -> Any:
            written.append((key, values[":expires"]))
            return {"next_at": 0, "ahead_at": 0}

    paces = {OURS: Pace(OURS, per_second=5)}
    Pacer(Written(), FakeRuntime(), paces).turns([(OURS, 1)])  # type: ignore[arg-type]
    (life,) = (life for what, life in LIVES.items() if what.startswith("How much"))
    days = int(life.split()[0])
    # (With our own number in the key, as the page says.)
    assert written == [((f"R#{OURS}", "PACE"), int(NOW + days * DAY))]


def test_the_rules_have_the_actual_values() -> None:
    assert [(less, more) for _, less, more, _ in rows(PAGE, "The two rules")] == RULES


def test_the_ledger_outlives_what_stands_on_a_queue_and_then_beside_it() -> None:
    assert min(MESSAGE_DAYS, LEAST) > STANDING
    # (Whoever redrives a letter on its last day has a day for it to be worked on.)
    assert erasure.OBJECT_SPAN >= STANDING * DAY


def test_the_archive_does_not_outlive_what_the_table_says_of_it() -> None:
    # (test_infra holds that it lives no shorter.)
    assert ARCHIVE_DAYS <= MESSAGE_DAYS


def test_every_log_group_forgets() -> None:
    app = (ROOT / "infra" / "app.yaml").read_text()
    assert set(re.findall(r"RetentionInDays: (\d+)", app)) == {str(LOG_DAYS)}
    # (Chalice sets that of the other three, of which only the names are here.)
    groups = len(re.findall(r"LogGroupName: !Sub", app))
    assert groups == 3 + len(re.findall("RetentionInDays", app))


@pytest.mark.parametrize(
    "said",
    [
        f"younger than {erasure.RECENT / 60:.0f} minutes",
        "seen empty three times",
        "`--wait` (600 seconds)",
        "from a month before their first message",
    ],
)
def test_what_is_said_in_figures_is_so(said: str) -> None:
    assert said in TEXT
    assert erasure.LOOKS == 3
    assert erasure.OBJECT_SPAN == 29 * DAY


def test_what_stays_of_a_text_is_said() -> None:
    """The page says keys, state, times and time to live."""
    times = {"received_at", "sent_at", "erased_at", "expires_at"}
    keys = {"pk", "sk", "id", "conversation"}
    assert times | keys | {"provider", "keyword", "valid"} == erasure._KEPT

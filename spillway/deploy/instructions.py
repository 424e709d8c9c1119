"""What to enter at each provider, so that its webhooks find a deployment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# By provider: where in its console, and what follows the path of its signed door.
#
# Twilio repeats a webhook only when it could not connect, unless the fragment says more (it is
# neither sent nor signed): three more tries, after a 5xx, a connect and a read time-out.
# https://www.twilio.com/docs/usage/webhooks/webhooks-connection-overrides
# https://developers.telnyx.com/docs/messaging/messages/receiving-webhooks
_ENTRIES: Mapping[str, tuple[str, str]] = {
    "twilio": (
        'Phone Numbers, each number, Messaging Configuration, "A message comes in": Webhook, POST',
        "#rc=3&rp=5xx,ct,rt",
    ),
    "telnyx": ("Messaging, the numbers' messaging profile, Inbound: webhook URL, API v2", ""),
    "sandbox": ("nowhere: it carries nothing, and is called by tests of a deployment", ""),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One address to enter. `where`: the way through the provider's console."""

    provider: str
    where: str
    url: str


def instructions(base: str, providers: Sequence[str]) -> Sequence[Entry]:
    """For each provider in use; `base` is the public address of the API, with its stage."""
    return [
        Entry(name, _ENTRIES[name][0], f"{base}/webhooks/{name}/signed{_ENTRIES[name][1]}")
        for name in providers
    ]

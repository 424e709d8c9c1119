"""The environment of each process of a local run, and who decides about a variable.

From the weakest to the strongest: `.chalice/config.json` (stage `local`), what this run generates,
what the caller of `spillway run` has set. AWS is the exception: a caller's credentials, profile and
region never reach a child, which talks to the emulator and to nothing else. Endpoints
(AWS_ENDPOINT_URL_…) may be set, so that a test can put a proxy in between.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from chalicelib.config import Settings
from spillway import project
from spillway.aws import EMULATED_REGION
from spillway.local.keys import Keys
from spillway.local.ports import LOOPBACK, Ports

STAGE = "local"

# The process and the Lambda function whose settings it has.
FUNCTIONS = {"webhook": "api_handler", "processing": "process", "outbound": "send"}

# Every variable that a function reads is named as its field.
_SETTINGS = {field.name.upper() for field in fields(Settings)} - {"FUNCTION", "STAGE"}

# What no caller decides: the emulator takes any credentials, and has one region.
_FIXED = {
    "SPILLWAY_STAGE": STAGE,
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": EMULATED_REGION,
    "AWS_REGION": EMULATED_REGION,
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}


@dataclass(frozen=True)
class Environments:
    """Makes the environment of every child from one caller's."""

    project: Path
    ports: Ports
    keys: Keys
    caller: Mapping[str, str]

    @property
    def webhook(self) -> str:
        return f"http://{LOOPBACK}:{self.ports.webhook}"

    @property
    def page(self) -> str:
        return f"http://{LOOPBACK}:{self.ports.page}"

    @property
    def aws(self) -> str:
        return f"http://{LOOPBACK}:{self.ports.aws}"

    def _outside(self, service: str) -> str:
        """Where a simulated service is: at its own port, if it has one."""
        return f"http://{LOOPBACK}:{self.ports.gates.get(service, self.ports.page)}"

    def generated(self) -> dict[str, str]:
        """What the functions cannot know before this run: where everything is, and the keys."""
        return {
            "AWS_ENDPOINT_URL": self.aws,
            "PUBLIC_URL": self.webhook,
            "CREDENTIAL_HASHES": self.keys.credential_hashes(),
            "PROVIDERS": "twilio,telnyx",
            "NUMBERS": "+14155550123=twilio,+14155550199=telnyx",
            # The simulated providers write to nobody; of a real one somebody has to say to whom.
            **({} if self._is_real() else {"SEND_ONLY_TO": "*", "SEND_TO_COUNTRIES": "*"}),
            "REPLY_API_URL": f"{self._outside('reply')}/sample/reply",
            "LOOKUP_URLS": json.dumps(
                {
                    name: f"{self._outside(name)}/sample/lookups/{name}"
                    for name in ("customer", "line")
                }
            ),
            "TWILIO_API_URL": f"{self._outside('twilio')}/provider/twilio",
            "TELNYX_API_URL": f"{self._outside('telnyx')}/provider/telnyx",
            "REPORT_BATCH_ITEM_FAILURES": "true",
        }

    def settings(self, child: str) -> dict[str, str]:
        """The settings of one function and its way to AWS, without the rest of the shell's."""
        configured = self._configured(child)
        decided = {**configured, **self.generated(), **self._from_caller(configured), **_FIXED}
        # One function's name, set in the shell, would make every process that function.
        decided["SPILLWAY_FUNCTION"] = configured.get("SPILLWAY_FUNCTION", "")
        return decided

    def function(self, child: str) -> dict[str, str]:
        """The whole environment of the webhook or of a worker."""
        return {**self._shell(), **self.settings(child)}

    def simulator(self) -> dict[str, str]:
        settings = self.settings("webhook")
        config = {
            # A provider calls, and signs, the address that the receiver takes for its own.
            "webhook": settings["PUBLIC_URL"],
            "credentials": {"twilio": self.keys.credentials["twilio"]},
            "secrets": {name: self.keys.secrets[name] for name in ("twilio", "telnyx")},
            "gates": dict(self.ports.gates),
        }
        return {**self._shell(), "SIMULATOR": json.dumps(config), "SPILLWAY_PARENT_PIPE": "1"}

    def numbers(self) -> dict[str, str]:
        """One number of ours for each provider."""
        entries = self.settings("webhook")["NUMBERS"].split(",")
        pairs = [entry.strip().partition("=") for entry in entries if "=" in entry]
        return {provider: number for number, _, provider in reversed(pairs)}

    def replaced(self) -> list[str]:
        """The names that the caller's shell decided, so that nobody has to guess."""
        names: set[str] = set()
        for child in FUNCTIONS:
            names |= set(self._from_caller(self._configured(child)))
        return sorted(names - set(_FIXED) - {"SPILLWAY_FUNCTION"})

    def shell_file(self) -> str:
        """`.spillway/env`: the receiver's environment as lines for a shell."""
        lines = [
            "export {}='{}'".format(name, value.replace("'", "'\\''"))
            for name, value in sorted(self.settings("webhook").items())
        ]
        return "\n".join(lines) + "\n"

    def where(self) -> dict[str, Any]:
        """The base URLs, and our numbers by provider."""
        return {
            "webhook": self.webhook,
            # The address that the providers sign: a tunnel's, where PUBLIC_URL says so.
            "public_url": self.settings("webhook")["PUBLIC_URL"],
            "page": self.page,
            "aws": self.aws,
            "numbers": self.numbers(),
        }

    def local(self, pids: Mapping[str, int]) -> dict[str, Any]:
        """`.spillway/local.json`."""
        return {
            **self.where(),
            "settings": {
                settings["SPILLWAY_FUNCTION"]: {
                    name: value
                    for name, value in settings.items()
                    if name in _SETTINGS or name.startswith("SPILLWAY_")
                }
                for settings in map(self.settings, FUNCTIONS)
            },
            "credentials": self.keys.credentials,
            "secrets": self.keys.secrets,
            "pids": pids,
        }

    def _is_real(self) -> bool:
        """Whether somebody put a real provider in the place of a simulated one."""
        urls = [self.caller.get(f"{name}_API_URL") for name in ("TWILIO", "TELNYX")]
        return any(url is not None and urlsplit(url).hostname != LOOPBACK for url in urls)

    def _configured(self, child: str) -> dict[str, str]:
        return project.variables(self.project, STAGE, FUNCTIONS[child])

    def _from_caller(self, configured: Mapping[str, str]) -> dict[str, str]:
        return {
            name: value
            for name, value in self.caller.items()
            if name in _SETTINGS or name in configured or name.startswith("AWS_ENDPOINT_URL")
        }

    def _shell(self) -> dict[str, str]:
        """The caller's environment without AWS, and with loopback outside of any proxy."""
        shell = {k: v for k, v in self.caller.items() if not k.startswith("AWS_")}
        direct = ",".join(filter(None, (shell.get("NO_PROXY"), shell.get("no_proxy"), LOOPBACK)))
        return {**shell, "NO_PROXY": direct, "no_proxy": direct, "PYTHONUNBUFFERED": "1"}

"""`spillway secret`: a provider's secrets, in Secrets Manager, typed in and never shown; and the
keys that events are signed with.

One JSON object a provider, `spillway/{stage}/{provider}`. What rotates is a list, the newest first:
signatures are verified with each, and requests are made with the first. The functions keep what
they read for ten minutes, and look again before they refuse anything, so a rotation needs no
deployment and no pause.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console

from spillway.aws import Aws
from spillway.problem import Problem
from spillway.stage import StageOption, stage_named


@dataclass(frozen=True, slots=True)
class Field:
    """One entry of a provider's secret. `pattern`: what it must look like; `rotates`: whether it
    is a list, the newest first; `make` makes one that is ours to make; `shown`: whether somebody
    else has to have it, too."""

    name: str
    what: str
    pattern: str
    rotates: bool = False
    make: Callable[[], str] | None = None
    shown: bool = False


def _key() -> str:
    return secrets.token_hex(32)


def _signing_key() -> str:
    """https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md"""
    return f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"


# https://www.twilio.com/docs/iam/api/authtoken and
# https://developers.telnyx.com/docs/messaging/messages/receiving-webhooks
FIELDS: Mapping[str, tuple[Field, ...]] = {
    "twilio": (
        Field("account_sid", "Account SID", r"AC[0-9a-f]{32}"),
        Field("auth_tokens", "Auth Token", r"[0-9a-f]{32}", rotates=True),
    ),
    "telnyx": (
        Field("api_key", "API key", r"KEY[!-~]{10,}"),
        Field("public_keys", "Public key", r"[A-Za-z0-9+/]{43}=", rotates=True),
    ),
    "sandbox": (Field("keys", "Key", r"[0-9a-f]{64}", rotates=True, make=_key),),
    # No provider: what call-backs to EVENTS_URL are signed with (docs/EVENTS.md).
    "events": (
        Field(
            "signing_secrets",
            "Signing key",
            r"whsec_[A-Za-z0-9+/]{32,88}={0,2}",
            rotates=True,
            make=_signing_key,
            shown=True,
        ),
    ),
}

app = typer.Typer(
    no_args_is_help=True, help="A provider's secrets, and those of events: set, rotate."
)

ProviderArgument = Annotated[
    str, typer.Argument(metavar="PROVIDER", help=f"One of {', '.join(FIELDS)}.")
]


@app.command(name="set")
def set_(
    provider: ProviderArgument,
    stage: StageOption,
) -> None:
    """Store a provider's secrets, asked for one by one and not shown.

    Where standard input is no terminal, it is read as the JSON object:

      {"account_sid": "AC…", "auth_tokens": ["…"]}

    What was there is replaced. To change what rotates without a pause:
    spillway secret rotate.
    """
    fields = _fields(provider)
    if sys.stdin.isatty():
        value: dict[str, Any] = {
            field.name: [_ask(field)] if field.rotates else _ask(field) for field in fields
        }
    else:
        value = _read(sys.stdin.read())
    check(provider, value)
    with stage_named(stage) as found:
        _put(found.aws, f"spillway/{stage}/{provider}", value)
    Console(highlight=False).print(f"Stored spillway/{stage}/{provider}.")


@app.command()
def rotate(
    provider: ProviderArgument,
    stage: StageOption,
    drop_old: Annotated[
        bool, typer.Option("--drop-old", help="End a rotation: only the newest stays.")
    ] = False,
) -> None:
    """Put a new token or key before the old one; both are good until --drop-old.

    Twilio: make a secondary token, rotate here, promote it at Twilio, and
    ten minutes later: --drop-old. Telnyx: rotate here with the new public key
    as soon as it is shown. The new one is asked for, or read from standard
    input where that is no terminal.
    """
    field = next(field for field in _fields(provider) if field.rotates)
    console = Console(highlight=False)
    with stage_named(stage) as found:
        name = f"spillway/{stage}/{provider}"
        value = _get(found.aws, name)
        there = value.get(field.name) or []
        if drop_old:
            value[field.name] = there[:1]
            said = "the newest alone is good now"
        else:
            new = _ask(field) if sys.stdin.isatty() else sys.stdin.read().strip()
            _check_one(provider, field, new)
            # (Typed in twice, it is the same rotation still.)
            value[field.name] = [new, *[one for one in there if one != new][:1]]
            said = "the new one comes first, the old one is good still"
        _put(found.aws, name, value)
    console.print(f"{name}: {said}, at the latest in ten minutes.")


def check(provider: str, value: Mapping[str, Any]) -> None:
    """Raises Problem where this cannot be a provider's secret; without showing anything of it."""
    fields = _fields(provider)
    missing = [field.name for field in fields if field.name not in value]
    strange = sorted(set(value) - {field.name for field in fields} - {"shared_keys"})
    if missing or strange:
        names = ", ".join(field.name for field in fields)
        raise Problem(f"The secret of {provider} is a JSON object with {names}.")
    for field in fields:
        entries = value[field.name] if field.rotates else [value[field.name]]
        if not isinstance(entries, list) or not entries:
            raise Problem(f"{provider}: {field.name} must be a list with at least one entry.")
        for entry in entries:
            _check_one(provider, field, entry)


def _check_one(provider: str, field: Field, entry: object) -> None:
    if not isinstance(entry, str) or not re.fullmatch(field.pattern, entry):
        raise Problem(f"{provider}: that is no {field.what}: it must match {field.pattern}")


def _fields(provider: str) -> tuple[Field, ...]:
    if provider not in FIELDS:
        raise Problem(f"PROVIDER must be one of {', '.join(FIELDS)}.")
    return FIELDS[provider]


def _ask(field: Field) -> str:
    if field.make is not None:
        made = field.make()
        if field.shown:
            Console(highlight=False).print(
                f"{field.what}, for whoever verifies with it; it is not shown again: {made}",
                soft_wrap=True,
            )
        return made
    value: str = typer.prompt(field.what, hide_input=True)
    return value.strip()


def _read(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Problem("Standard input is not a JSON object.")
    return found


def _get(aws: Aws, name: str) -> dict[str, Any]:
    client = aws.client("secretsmanager")
    try:
        return _read(client.get_secret_value(SecretId=name)["SecretString"])
    except client.exceptions.ResourceNotFoundException:
        raise Problem(f"There is no secret {name}. First: spillway secret set") from None


def restore(aws: Aws, name: str) -> bool:
    """Takes back a secret that is to be deleted and whose name nobody else can have until then, as
    `spillway destroy --data` leaves it for seven days; whether there was such a one."""
    client = aws.client("secretsmanager")
    with suppress(client.exceptions.ResourceNotFoundException):
        if "DeletedDate" in client.describe_secret(SecretId=name):
            client.restore_secret(SecretId=name)
            return True
    return False


def _put(aws: Aws, name: str, value: Mapping[str, Any]) -> None:
    client = aws.client("secretsmanager")
    text = json.dumps(value)
    restore(aws, name)
    try:
        client.put_secret_value(SecretId=name, SecretString=text)
    except client.exceptions.ResourceNotFoundException:
        client.create_secret(Name=name, SecretString=text)

"""The credentials and keys of a local run: made at the first one, kept in `.spillway/secrets.json`.

They stay the same from run to run, so that somebody can put a real provider's secrets into the
file and point a tunnel at the webhook.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from spillway.local.folder import write_json
from spillway.problem import Problem


@dataclass(frozen=True, slots=True)
class Keys:
    """`credentials` by principal ("user:password", or a token for `api`), `secrets` by provider.

    `private_key` of Telnyx is what its simulation signs with; it is absent where the keys are a
    real account's.
    """

    hash_key: str
    credentials: Mapping[str, str]
    secrets: Mapping[str, Mapping[str, Any]]

    def __repr__(self) -> str:
        return "Keys(…)"

    def credential_hashes(self) -> str:
        """The authorizer's CREDENTIAL_HASHES."""
        return json.dumps(
            {
                principal: [hashlib.sha256(credential.encode()).hexdigest()]
                for principal, credential in self.credentials.items()
            }
        )

    def stored(self) -> dict[str, dict[str, Any]]:
        """What goes into Secrets Manager, by the last part of its name: all but signing keys."""
        providers = {
            provider: {name: value for name, value in found.items() if name != "private_key"}
            for provider, found in self.secrets.items()
        }
        return {"keys": {"hash_key": self.hash_key}, **providers}


def load(path: Path) -> Keys:
    """The keys in the file; what it lacks is made and added. Raises Problem for another file."""
    made: dict[str, Any] = asdict(_made())
    try:
        found = json.loads(path.read_text())
        kept: dict[str, Any] = {
            "hash_key": str(found.get("hash_key") or made["hash_key"]),
            "credentials": {**made["credentials"], **found.get("credentials", {})},
            "secrets": {**made["secrets"], **found.get("secrets", {})},
        }
    except FileNotFoundError:
        found, kept = None, made
    except (ValueError, TypeError, AttributeError):
        raise Problem(
            f"{path} is not a JSON object as Spillway writes it. Mend it, or delete it: a new one "
            "is made at the next run."
        ) from None
    if kept != found:
        write_json(path, kept)
    path.chmod(0o600)
    return Keys(**kept)


def _made() -> Keys:
    key = Ed25519PrivateKey.generate()
    return Keys(
        hash_key=secrets.token_hex(32),
        credentials={
            "twilio": f"spillway:{secrets.token_urlsafe(24)}",
            "api": secrets.token_urlsafe(32),
        },
        secrets={
            "twilio": {
                "account_sid": f"AC{secrets.token_hex(16)}",
                "auth_tokens": [secrets.token_hex(16)],
            },
            "telnyx": {
                "api_key": f"KEY{secrets.token_hex(16)}",
                "public_keys": [_text(key.public_key().public_bytes_raw())],
                "private_key": _text(key.private_bytes_raw()),
            },
            # (Of no provider: what EVENTS_URL is called with.)
            "events": {"signing_secrets": [f"whsec_{_text(secrets.token_bytes(32))}"]},
        },
    )


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()

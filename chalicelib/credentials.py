"""What the authorizer checks: who presents these credentials, and which paths are theirs.

It holds no secret: only SHA-256 hashes of credentials that we generated with high entropy, several
for a principal while it rotates. Standard library only.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence


def hash_of(credentials: str) -> str:
    """The hash that CREDENTIAL_HASHES holds: of "user:password" or of a bearer token."""
    return hashlib.sha256(credentials.encode("utf-8", "surrogatepass")).hexdigest()


def principal_of(authorization: str, hashes: Mapping[str, Sequence[str]]) -> str | None:
    """Whose credentials an Authorization header presents (Basic, RFC 7617, or Bearer, RFC 6750).

    None for nobody's, whatever the header holds. Every hash is compared, each in constant time, so
    that the time says nothing about which came close.
    """
    credentials = _credentials(authorization)
    if not credentials:
        return None
    presented = hash_of(credentials)
    found = None
    for principal, candidates in hashes.items():
        for candidate in candidates:
            if hmac.compare_digest(presented, candidate):
                found = principal
    return found


def paths_of(principal: str) -> list[tuple[str, str]]:
    """The (method, path) pairs that a principal may use: its own webhook, or our clients' API."""
    if principal == "api":
        return [("POST", "/messages"), ("GET", "/messages/*"), ("POST", "/consent")]
    return [("POST", f"/webhooks/{principal}")]


def _credentials(authorization: str) -> str:
    scheme, _, value = authorization.strip().partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer":
        return value
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value, validate=True).decode()
    except (binascii.Error, ValueError):
        return ""

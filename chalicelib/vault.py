"""The secrets: each provider's and our own hash key, from Secrets Manager, kept for a while.

A secret that was rotated is found at the next refusal: `refreshed` looks once more before anything
is refused for it. https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_GetSecretValue.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from chalicelib.messages import Keys
from chalicelib.observing import log
from chalicelib.runtime import NotReady, Runtime, is_transient

KEEP = 600.0  # seconds; after that a revoked secret is no longer accepted
PAUSE = 2.0  # seconds between fresh looks, so that a flood of bad signatures is not one of calls


class SecretError(NotReady):
    """A secret is missing or is not a JSON object. The text names the secret, not its value."""


class Vault:
    """Reads `spillway/{stage}/{name}`, each a JSON object."""

    def __init__(self, runtime: Runtime, stage: str) -> None:
        self._runtime = runtime
        self._stage = stage
        self._cache: dict[str, tuple[float, Mapping[str, Any]]] = {}

    def keys(self) -> Keys:
        """The keyed hashes of this deployment. Raises SecretError."""
        hash_key = self.secrets("keys").get("hash_key")
        if not isinstance(hash_key, str) or len(hash_key) < 32:
            raise SecretError(
                f"spillway/{self._stage}/keys: must be a JSON object with a `hash_key` of at least "
                "32 characters"
            )
        return Keys(hash_key)

    def secrets(self, name: str) -> Mapping[str, Any]:
        """A provider's secrets. Raises SecretError, or what botocore raises."""
        kept = self._cache.get(name)
        if kept and self._runtime.now() - kept[0] < KEEP:
            return kept[1]
        try:
            return self._fetch(name)
        except Exception as error:
            if kept is None or isinstance(error, SecretError) or not is_transient(error):
                raise
            # Secrets Manager is down: yesterday's secret is better than no messages.
            log("WARNING", "secret_not_refreshed", provider=name, error=error)
            self._cache[name] = (self._runtime.now() - KEEP + 30, kept[1])
            return kept[1]

    def refreshed(self, name: str) -> Mapping[str, Any] | None:
        """The secrets as they are now, or None if they are no different from those at hand."""
        kept = self._cache.get(name)
        if kept and self._runtime.now() - kept[0] < PAUSE:
            return None
        fresh = self._fetch(name)
        return fresh if kept is None or fresh != kept[1] else None

    def _fetch(self, name: str) -> Mapping[str, Any]:
        secret_id = f"spillway/{self._stage}/{name}"
        client = self._runtime.secretsmanager
        looked_at = self._runtime.now()  # what is changed during the look may not be in it
        try:
            text = client.get_secret_value(SecretId=secret_id).get("SecretString", "")
        except client.exceptions.ResourceNotFoundException:
            raise SecretError(
                f"{secret_id}: no such secret in Secrets Manager; create it"
            ) from None
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise SecretError(f"{secret_id}: must be a JSON object")
        self._cache[name] = (looked_at, found)
        return found

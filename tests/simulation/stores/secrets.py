"""Secrets Manager in memory.

https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_GetSecretValue.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from botocore.exceptions import ClientError

from tests.simulation.stores import ACCOUNT, REGION, nothing_else, refusal


class ResourceNotFoundException(ClientError):
    pass


class Secrets:
    """A client of Secrets Manager with these secrets by name: JSON where they are no text."""

    class exceptions:
        ResourceNotFoundException = ResourceNotFoundException

    def __init__(self, secrets: Mapping[str, str | Mapping[str, Any]] | None = None) -> None:
        self._texts: dict[str, str] = {}
        for name, secret in (secrets or {}).items():
            self.put(name, secret)

    def put(self, name: str, secret: str | Mapping[str, Any]) -> None:
        self._texts[name] = secret if isinstance(secret, str) else json.dumps(secret)

    def remove(self, name: str) -> None:
        del self._texts[name]

    def get_secret_value(self, *, SecretId: str, **other: Any) -> dict[str, Any]:
        nothing_else("get_secret_value", other)
        if SecretId not in self._texts:
            raise refusal(
                "GetSecretValue",
                "ResourceNotFoundException",
                "Secrets Manager can't find the specified secret.",
                ResourceNotFoundException,
            )
        return {
            "ARN": f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:{SecretId}",
            "Name": SecretId,
            "SecretString": self._texts[SecretId],
        }

"""AWS, as the `spillway` command talks to it: the account of the environment, or an emulator.

boto3 is imported when a client is made: `spillway --help` must not wait for it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from spillway.problem import Problem

EMULATED_REGION = "us-east-1"


@dataclass(frozen=True)
class Aws:
    """One account and region. `endpoint` is the emulator's, "" on AWS."""

    session: Any
    endpoint: str = ""

    @property
    def region(self) -> str:
        region: str = self.session.region_name
        return region

    @property
    def emulator(self) -> str:
        """The address of the emulator that stands for AWS, "" where none does."""
        return self.endpoint or os.environ.get("AWS_ENDPOINT_URL", "")

    @cached_property
    def account(self) -> str:
        """The account's number, from STS: the first call, which shows whether we are let in."""
        account: str = self.client("sts").get_caller_identity()["Account"]
        return account

    @cached_property
    def _clients(self) -> dict[str, Any]:
        return {}

    def client(self, service: str) -> Any:
        """The boto3 client of a service, made once."""
        if service not in self._clients:
            from botocore.config import Config

            config = Config(
                connect_timeout=5,
                read_timeout=30,
                retries={"mode": "standard", "total_max_attempts": 5},
                **self._local(),
            )
            self._clients[service] = self.session.client(
                service, endpoint_url=self.endpoint or None, config=config
            )
        return self._clients[service]

    def close(self) -> None:
        """Closes every connection."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    def _local(self) -> dict[str, Any]:
        # An emulator has one name for all buckets and services.
        if not self.emulator:
            return {}
        proxies: dict[str, str] = {}
        return {
            "s3": {"addressing_style": "path"},
            "inject_host_prefix": False,
            "proxies": proxies,
        }


def of_environment() -> Aws:
    """The account and region that the environment and ~/.aws name. Raises Problem."""
    import boto3
    from botocore.exceptions import BotoCoreError

    try:
        # boto3 alone among the SDKs knows AWS_DEFAULT_REGION only.
        session = boto3.Session(region_name=os.environ.get("AWS_REGION") or None)
        credentials = session.get_credentials()
    except BotoCoreError as error:
        raise Problem(f"The AWS configuration cannot be used: {error}") from None
    if session.region_name is None:
        raise Problem("No AWS region. Set AWS_REGION, e.g. AWS_REGION=eu-central-1")
    if credentials is None:
        raise Problem(
            "No AWS credentials. Log in (aws sso login, aws configure) or set AWS_PROFILE; "
            "`aws sts get-caller-identity` must answer."
        )
    return Aws(session)


def of_emulator(endpoint: str) -> Aws:
    """An emulator, for which nothing of the caller's AWS configuration counts."""
    import boto3
    import botocore.session

    # A profile that does not exist, or a broken file in ~/.aws, must not keep anybody from
    # running an emulator.
    nothing = {
        "profile": (None, None, None, None),
        "config_file": (None, None, os.devnull, None),
        "credentials_file": (None, None, os.devnull, None),
    }
    session = boto3.Session(
        botocore_session=botocore.session.Session(session_vars=nothing),
        aws_access_key_id="test",
        aws_secret_access_key="test",  # noqa: S106 -- the emulator takes any
        region_name=EMULATED_REGION,
    )
    return Aws(session, endpoint)

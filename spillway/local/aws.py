"""Clients of the emulator, which know nothing of the AWS configuration of whoever runs them."""

from __future__ import annotations

import os
from typing import Any

from spillway.local.environment import REGION


def client(service: str, endpoint: str) -> Any:
    """A boto3 client of one service at `endpoint`."""
    import boto3
    import botocore.session
    from botocore.config import Config

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
        region_name=REGION,
    )
    config = Config(
        connect_timeout=2,
        read_timeout=10,
        proxies={},
        s3={"addressing_style": "path"},
        retries={"mode": "standard", "total_max_attempts": 3},
    )
    return session.client(service, endpoint_url=endpoint, config=config)

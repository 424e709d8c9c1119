"""What each function imports when it starts: every module is paid for at each cold start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.aws_stub import aws_stub, function_environment

PROJECT = Path(__file__).parent.parent

# boto3, with what it brings. On Lambda it is there without our doing.
BOTO3 = {"boto3", "botocore", "dateutil", "jmespath", "s3transfer", "six", "urllib3", "certifi"}
CRYPTOGRAPHY = {"cryptography", "_cffi_backend"}
HTTPX = {"httpx", "httpcore", "anyio", "certifi", "h11", "idna"}
PYDANTIC = {
    "pydantic",
    "pydantic_core",
    "annotated_types",
    "typing_extensions",
    "typing_inspection",
}

MODULES = {
    "authorizer": {"chalice"},
    "receiver": {"chalice"} | BOTO3 | CRYPTOGRAPHY,
    "processing": {"chalice", "phonenumbers"} | BOTO3 | HTTPX | PYDANTIC,
    "sender": {"chalice", "phonenumbers"} | BOTO3 | HTTPX | PYDANTIC | CRYPTOGRAPHY,
}

# A developer's machine has more than Lambda, and some libraries use what they find (httpx its
# command line, httpcore HTTP/2): whatever Lambda does not have is not there for the test either.
START = """
import json, sys

ON_LAMBDA = set(sys.argv[1].split(","))

class NotOnLambda:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in INSTALLED and top not in ON_LAMBDA:
            raise ModuleNotFoundError(f"{name} is not on Lambda", name=name)

from importlib.metadata import packages_distributions
INSTALLED = set(packages_distributions()) - {"app", "chalicelib"} | {"spillway"}
sys.meta_path.insert(0, NotOnLambda())
before = set(sys.modules)
import app
print(json.dumps(sorted(
    {name.partition(".")[0] for name in set(sys.modules) - before} & INSTALLED
)))
"""


@pytest.mark.parametrize("function", MODULES)
def test_the_modules_of_a_start(function: str) -> None:
    with aws_stub() as endpoint:
        done = subprocess.run(
            [sys.executable, "-c", START, ",".join(set.union(*MODULES.values()))],
            cwd=PROJECT,
            env=function_environment(function, endpoint),
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout.splitlines()[-1])) == MODULES[function]


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({"SPILLWAY_FUNCTION": "elsewhere"}, "SPILLWAY_FUNCTION"),
        ({"SPILLWAY_FUNCTION": "receiver", "PROVIDERS": "twillio"}, "PROVIDERS"),
        ({"SPILLWAY_FUNCTION": "sender", "MAX_PARTS": "many"}, "MAX_PARTS"),
        ({"SPILLWAY_FUNCTION": "authorizer", "CREDENTIAL_HASHES": ""}, "CREDENTIAL_HASHES"),
    ],
)
def test_a_wrong_setting_stops_the_start_and_is_named(
    variables: dict[str, str], names: str
) -> None:
    environment = function_environment("receiver", "http://127.0.0.1:9") | variables
    done = subprocess.run(
        [sys.executable, "-c", "import app"],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert f"SettingError: {names}: " in done.stderr

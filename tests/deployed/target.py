"""A deployment to prove: the project under a stage of its own, in an emulated or a real account.

Everything is done by the commands that a user has, from a copy of the project, and seen through
HTTP and the stores. In a real account (`--stage NAME`, and AWS credentials in the environment) the
stage is made, proven and destroyed with its data; nobody is texted: its provider is the sandbox.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx

from spillway.aws import of_emulator, of_environment
from spillway.project import PROJECT
from spillway.stage import Api, Stage
from spillway.stores import Stores
from tests import emulated, stages

T = TypeVar("T")

OURS = "+14155550150"
TWILIOS = "+14155550123"
# What the functions need to answer, cold starts and a first batching window included.
SOON = 60.0


class Target:
    """One stage of a copy of the project. `emulator`: its endpoint, "" for the real account."""

    def __init__(self, project: Path, stage: str, emulator: str) -> None:
        self.project = project
        self.stage = stage
        self.emulator = emulator
        self.aws = of_emulator(emulator) if emulator else of_environment()
        self.stores = Stores(self.aws, stage)
        self.http = httpx.Client(timeout=30.0, trust_env=not emulator)
        self.key = secrets.token_hex(32)  # of the sandbox
        self.credentials: dict[str, str] = {}
        self.took: dict[str, float] = {}  # seconds of each deployment
        self._copy()

    def close(self) -> None:
        self.http.close()
        self.stores.close()

    # -- the commands -------------------------------------------------------------------------

    def spillway(
        self, *arguments: str, typed: str = "", good: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """A command of ours, for this stage. `good`: whether it has to end with 0."""
        done = subprocess.run(
            [sys.executable, "-m", "spillway.cli", *arguments, "--stage", self.stage],
            cwd=self.project,
            env=self._environment(),
            input=typed,
            capture_output=True,
            text=True,
            check=False,
            timeout=1800,
        )
        if good:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    def deploy(self, name: str, *options: str) -> dict[str, Any]:
        began = time.monotonic()
        done = self.spillway("deploy", "--json", *options)
        self.took[name] = time.monotonic() - began
        if self.emulator:
            self._import_gateway_responses()
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def set(self, *functions: str, **variables: str) -> None:
        """Changes settings of the stage: of these functions, else wherever a function has them."""
        stages.set_variables(self.project, self.stage, *functions, **variables)

    # -- what it is asked ---------------------------------------------------------------------

    @property
    def api(self) -> Api:
        return Stage(self.stage, self.aws, self.stores, None).api()

    def post(
        self,
        path: str,
        body: Any = None,
        *,
        who: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """POST to one of our routes, with the credentials of a principal."""
        return self.http.post(
            self.api.address + path,
            content=body if isinstance(body, bytes) else json.dumps(body or {}).encode(),
            headers={
                "Content-Type": "application/json",
                **self.authorization(who),
                **(headers or {}),
            },
        )

    def get(self, path: str, *, who: str = "") -> httpx.Response:
        return self.http.get(self.api.address + path, headers=self.authorization(who))

    def authorization(self, who: str) -> dict[str, str]:
        if not who:
            return {}
        credential = self.credentials[who]
        if ":" not in credential:
            return {"Authorization": f"Bearer {credential}"}
        user, _, password = credential.partition(":")
        return {"Authorization": httpx.BasicAuth(user, password)._auth_header}

    def event(self, *events: Mapping[str, Any], door: str = "signed") -> httpx.Response:
        """A webhook of the sandbox with these events."""
        body = json.dumps({"events": events}).encode()
        at = int(time.time())
        signed = hmac.new(self.key.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
        path = "/webhooks/sandbox" + ("/signed" if door == "signed" else "")
        return self.post(
            path,
            body,
            who="" if door == "signed" else "sandbox",
            headers={"Sandbox-Signature": f"{at}.{signed}"},
        )

    def text(self, id_: str, sender: str, words: str = "hello", **how: str) -> httpx.Response:
        """A text from a person to our number of the sandbox."""
        return self.event({"id": id_, "from": sender, "to": OURS, "text": words}, **how)

    def items(self, sender: str, ours: str = OURS) -> tuple[list[Any], list[Any]]:
        """The stored messages of a conversation, and its replies."""
        found = self.stores.conversation(ours, sender)
        return (
            [item for item in found if item["sk"].startswith("IN#")],
            [item for item in found if item["sk"].startswith("OUT#")],
        )

    def answered(self, sender: str, count: int, seconds: float = SOON) -> list[Any]:
        """The replies of a conversation, when so many are sent and as many texts stored."""

        def all_there() -> list[Any]:
            stored, replies = self.items(sender)
            sent = [reply for reply in replies if states(reply) == {"sent"}]
            return sent if len(sent) == len(stored) == count else []

        return until(all_there, seconds)

    def _import_gateway_responses(self) -> None:
        """What the deployed definition says of them: AWS takes them with it, MiniStack leaves them
        out (docs/EMULATOR.md)."""
        template = self.aws.client("cloudformation").get_template(
            StackName=f"spillway-{self.stage}", TemplateStage="Original"
        )["TemplateBody"]
        found = template if isinstance(template, dict) else json.loads(template)
        definition = found["Resources"]["RestAPI"]["Properties"]["DefinitionBody"]
        gateway, api = self.aws.client("apigateway"), self.api
        for kind, response in definition["x-amazon-apigateway-gateway-responses"].items():
            gateway.put_gateway_response(
                restApiId=api.id,
                responseType=kind,
                responseParameters=response.get("responseParameters", {}),
                responseTemplates=response["responseTemplates"],
                **({"statusCode": str(code)} if (code := response.get("statusCode")) else {}),
            )
        gateway.create_deployment(restApiId=api.id, stageName=api.stage)

    # -- the project --------------------------------------------------------------------------

    def _copy(self) -> None:
        """The project with one stage more: that of prod, for the sandbox."""
        names = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split("\n")
        for name in filter(None, names):
            if (PROJECT / name).exists():
                (self.project / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(PROJECT / name, self.project / name)
        # (The emulator runs the functions on this machine.)
        stages.add(self.project, self.stage, anywhere=bool(self.emulator))
        stages.let_read(self.project, self.stage, "sandbox")

    def _environment(self) -> dict[str, str]:
        kept = dict(os.environ)
        if self.emulator:
            kept = {name: value for name, value in kept.items() if not name.startswith("AWS_")}
            kept |= emulated.environment(self.emulator)
        return {**kept, "PYTHONPATH": str(self.project)}


def states(reply: Mapping[str, Any]) -> set[str]:
    """The states of a reply's parts."""
    return {part["state"] for part in (reply.get("parts") or {}).values()}


def until(found: Callable[[], T], seconds: float) -> T:
    """What `found` returns once it is something. Fails after `seconds`."""
    end = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < end, f"not so after {seconds} s"
        time.sleep(0.2)
    return result

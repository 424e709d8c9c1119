"""One stage, as a command finds it: the local run, or what is deployed in the account at hand.

`--stage local`, the default, is the run of this machine (`spillway run`); any other name is a stage
of `.chalice/config.json`, in the account and region that the environment names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from chalicelib.config import Settings, load
from chalicelib.events import Events
from chalicelib.queues import Queues
from chalicelib.runtime import Runtime
from spillway import aws as aws_
from spillway.aws import Aws
from spillway.local.folder import Folder
from spillway.problem import Problem
from spillway.stores import Stores

LOCAL = "local"

StageOption = Annotated[
    str,
    typer.Option(
        "--stage",
        metavar="NAME",
        help="A deployed stage, in the account and region of your environment; or local.",
    ),
]

# The functions of a stage: the role that SPILLWAY_FUNCTION names, and Lambda's name for each.
ROLES = {"authorizer": "-authorize", "receiver": "", "processing": "-process", "sender": "-send"}


@dataclass(frozen=True, slots=True)
class Api:
    """Where a stage's webhooks are. `address`: what answers, with its path up to our routes;
    `public`: what the providers are told, and sign. `id` and `stage` are API Gateway's, "" in the
    local run."""

    address: str
    public: str
    id: str = ""
    stage: str = ""


@dataclass(frozen=True)
class Stage:
    """`local`: what local.json says of the run, None for a deployed stage."""

    name: str
    aws: Aws
    stores: Stores
    local: Mapping[str, Any] | None

    def function(self, role: str) -> str:
        """Lambda's name of a function."""
        return f"spillway-{self.name}{ROLES[role]}"

    def variables(self, role: str) -> dict[str, str]:
        """The environment that a function has just now. Raises Problem where there is none."""
        if self.local is not None:
            found: dict[str, str] = self.local["settings"].get(role, {})
            return found
        lambda_ = self.aws.client("lambda")
        try:
            configuration = lambda_.get_function_configuration(FunctionName=self.function(role))
        except lambda_.exceptions.ResourceNotFoundException:
            raise Problem(
                f"There is no function {self.function(role)} in account {self.aws.account}, "
                f"{self.aws.region}. Deploy it: spillway deploy --stage {self.name}"
            ) from None
        variables: dict[str, str] = configuration.get("Environment", {}).get("Variables", {})
        return variables

    def api(self) -> Api:
        """The API before the receiver. Raises Problem where nobody may call the receiver."""
        if self.local is not None:
            return Api(self.local["webhook"], self.local["public_url"])
        lambda_ = self.aws.client("lambda")
        name = self.function("receiver")
        try:
            policy = lambda_.get_policy(FunctionName=name)["Policy"]
        except lambda_.exceptions.ResourceNotFoundException:
            policy = ""
        # Whoever deployed it, the permission to call the receiver names the one API that may.
        found = re.search(r":execute-api:[^:]+:[0-9]+:([a-z0-9]+)/", policy)
        if not found:
            raise Problem(f"No API may call {name}: spillway deploy --stage {self.name}")
        id_ = found[1]
        stages = self.aws.client("apigateway").get_stages(restApiId=id_)["item"]
        stage = next((one["stageName"] for one in stages if one["stageName"] != "Stage"), "api")
        host = f"https://{id_}.execute-api.{self.aws.region}.amazonaws.com"
        if emulator := self.aws.emulator:
            host = f"{emulator}/_aws/execute-api/{id_}"
        address = f"{host}/{stage}"
        return Api(address, self.settings("receiver").public_url or address, id_, stage)

    def settings(self, role: str) -> Settings:
        """The settings that a function has just now. Raises SettingError, and Problem."""
        return load(self.variables(role))

    def runtime(self) -> Runtime:
        """For what of the functions' own code works on this stage's stores."""
        return _Runtime(self.aws)

    def events(self) -> Events:
        """For what of a command's doing the business's own systems are to hear."""
        runtime = self.runtime()
        return Events(runtime, Queues(runtime, self.name), self.settings("processing"))


class _Runtime(Runtime):
    """With a command's clients, and a command's patience."""

    def __init__(self, aws: Aws) -> None:
        super().__init__()
        self._aws = aws

    def _client(self, service: str) -> Any:
        return self._aws.client(service)


@contextmanager
def stage_named(name: str) -> Iterator[Stage]:
    """The stage, its connections closed afterwards. Raises Problem where it cannot be reached."""
    local = Folder().running() if name == LOCAL else None
    aws = aws_.of_environment() if local is None else aws_.of_emulator(local["aws"])
    stores = Stores(aws, name)
    try:
        yield Stage(name, aws, stores, local)
    finally:
        stores.close()

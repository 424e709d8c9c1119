"""`spillway deploy` and `spillway destroy`."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from spillway import aws as aws_
from spillway import project as project_
from spillway.aws import Aws
from spillway.deploy import account as account_
from spillway.deploy import package as package_
from spillway.deploy.instructions import Entry, instructions
from spillway.deploy.secrets import restore
from spillway.deploy.stacks import Change, ChangeSet, Event, Stack
from spillway.problem import Problem
from spillway.project import PROJECT
from spillway.stores import QUEUES

StageOption = Annotated[
    str, typer.Option("--stage", metavar="NAME", help="The stage, as .chalice/config.json has it.")
]

ACCOUNT_STACK = "spillway-account"
MAPPED = ("process", "send")  # the functions behind the queues
_COLD_DAYS = 90  # as infra/data.yaml has it
_SEEN_WITHIN = 120.0  # seconds in which a mapping's new setting shows


def deploy(
    stage: StageOption,
    alarm_email: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Who is told of alarms; kept from deploy to deploy. AWS asks them to confirm.",
        ),
    ] = None,
    validation: Annotated[
        bool,
        typer.Option(
            "--validate-with-step-functions",
            help="Let an Express state machine analyse each webhook before the receiver gets it: "
            "about $1.10 more per million, 30 to 80 ms more for each, at most 180 KiB. Off by "
            "default, and taken out by a deploy without it. See docs/VALIDATION.md.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")
    ] = False,
    yes: Annotated[
        bool,
        typer.Option(
            "--yes", help="Do not ask before data or the webhook's address is replaced or deleted."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The result as one JSON object.")] = False,
) -> None:
    """Deploy a stage to AWS: the data first, then the app. Safe to repeat.

    Two CloudFormation stacks: spillway-STAGE-data (queues, table, archive; it
    outlives everything) and spillway-STAGE (functions, API, alarms). It reads
    the account first, packages the app with Chalice, shows what changes, asks
    before it replaces or deletes anything that holds data, and prints what to
    enter at the providers. If something fails, the stack is as it was before.

    Account, region and credentials are those of your environment (AWS_PROFILE,
    AWS_REGION). The first deploy takes some minutes.

    Exit code: 0 when the stage is as the project says, 1 otherwise.
    """
    console = Console(highlight=False, stderr=as_json)
    deployment = Deployment(
        PROJECT,
        stage,
        aws_.of_environment(),
        console,
        validation=validation,
        dry_run=dry_run,
        yes=yes,
    )
    result = deployment.run(alarm_email)
    if as_json:
        print(json.dumps(result, indent=2))


def destroy(
    stage: StageOption,
    data: Annotated[
        bool, typer.Option("--data", help="The data too: queues, table, archive, secrets.")
    ] = False,
    confirm: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Needed with --data: the stage's name once more, spelt out."
        ),
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a stage's app, and keep its data unless told twice.

    The stack spillway-STAGE goes: functions, API (with its address), alarms.
    Messages, ledger, opt-outs, archive and secrets stay, and a later deploy
    goes on with them. With --data --confirm STAGE they are deleted for good:
    nobody will know any more who must not be texted.

    A stage that is deployed again within seven days has its hash key back, so
    that lists of consent that were exported stay readable; its other secrets
    are to be set. SQS wants a minute before queues of the same names.
    """
    console = Console(highlight=False)
    if data and confirm != stage:
        raise Problem(f"--data deletes everything for good. Say so twice: --data --confirm {stage}")
    aws = aws_.of_environment()
    what = "the app and ALL ITS DATA" if data else "the app (its data is kept)"
    where = f"of stage {stage} in account {aws.account}, {aws.region}"
    if not yes:
        typer.confirm(f"Delete {what} {where}?", abort=True)
    tell = _teller(console)
    app = Stack(aws, f"spillway-{stage}")
    if app.exists:
        app.delete(tell)
        console.print(f"The app {where} is deleted.")
    else:
        console.print(f"There is no app {where}.")
    if data:
        _destroy_data(aws, stage, tell)
        console.print(f"The data {where} is deleted.")


@dataclass
class Deployment:
    """One deployment of one stage."""

    project: Path
    stage: str
    aws: Aws
    console: Console
    validation: bool = False
    dry_run: bool = False
    yes: bool = False
    pause: float = 2.0  # seconds between two looks at a stack
    notes: list[str] = field(default_factory=list)
    changes: dict[str, list[Change]] = field(default_factory=dict)

    def run(self, alarm_email: str | None = None) -> dict[str, Any]:
        """Does it all; returns what `--json` prints. Raises Problem."""
        began = time.monotonic()
        settings = project_.settings(self.project, self.stage)
        project_.policies(self.project, self.stage)
        account = account_.read(self.aws)
        self._say(f"Stage {self.stage} to account {account.id}, {account.region}", style="bold")
        data, app = Stack(self.aws, f"spillway-{self.stage}-data", pause=self.pause), self._app()
        self._keys(data)
        days = min(settings[name].message_days for name in MAPPED)
        self._data(data, days)
        if not account.logs_api:
            self._account_stack()
        with self._doing("packaging the app (chalice package)"):
            package = package_.build(
                self.project, self.stage, account.region, validation=self.validation
            )
        template = package.template
        package_.narrow_policies(template)
        self.notes += package_.fit(template, account, self._reserved())
        providers = settings["api_handler"].providers
        self._app_stack(app, data, package, template, alarm_email, providers)
        self._look_for_secrets(providers, events=bool(settings["process"].events_url))
        base = settings["api_handler"].public_url or app.outputs().get("EndpointURL", "")
        entries = instructions(base.rstrip("/"), providers)
        self._conclude(entries, time.monotonic() - began)
        return {
            "stage": self.stage,
            "account": account.id,
            "region": account.region,
            "dry_run": self.dry_run,
            "url": base,
            "webhooks": {entry.provider: entry.url for entry in entries},
            "changes": {
                stack: [f"{change.action} {change.name}" for change in changes]
                for stack, changes in self.changes.items()
            },
            "notes": self.notes,
        }

    def _app(self) -> Stack:
        return Stack(self.aws, f"spillway-{self.stage}", pause=self.pause)

    # -- the steps ----------------------------------------------------------------------------

    def _keys(self, data: Stack) -> None:
        """The hash key, made with the first data and never again: every name in the table and
        every opt-out hangs on it."""
        name = f"spillway/{self.stage}/keys"
        if self._has_secret(name) or self.dry_run:
            return
        if data.exists:
            raise Problem(
                f"The secret {name} is gone, and with it every name in the table, opt-outs "
                "included. Restore it (aws secretsmanager restore-secret), or put back the "
                "hash_key that you kept; a new one would not know anybody who opted out."
            )
        if restore(self.aws, name):
            # Of a stage whose data was destroyed. Backups and lists of consent that outlive it have
            # its hashes, and a new key would know nobody in them.
            self._say(f"took back the secret {name}, which was to be deleted")
            return
        value = json.dumps({"hash_key": secrets.token_hex(32)})
        self.aws.client("secretsmanager").create_secret(
            Name=name,
            Description="Spillway: the key of all hashed names. Never change or delete it.",
            SecretString=value,
        )
        self._say(f"made the secret {name}")

    def _data(self, data: Stack, days: int) -> None:
        """`days`: how long the table keeps messages; the archive keeps them for as long."""
        there = data.parameters()
        if days < (was := int(there.get("ArchiveDays", days))):
            self._shorten(was, days)
        parameters = {"Stage": self.stage, "ArchiveDays": str(days)}
        # What is deleted before it would move does not move: S3 wants the one after the other.
        if days <= int(there.get("ArchiveColdDays", _COLD_DAYS)):
            parameters["ArchiveColdDays"] = str(days - 1)
        text = (self.project / "infra" / "data.yaml").read_text()
        self._change(data, text, parameters)

    def _shorten(self, was: int, days: int) -> None:
        what = (
            f"MESSAGE_DAYS is {days}, and the archive keeps what is in it for {was} days: S3 would "
            "delete what is older"
        )
        if self.dry_run:
            self.notes.append(f"{what}.")
        elif not self.yes:
            self._sure(what)

    def _account_stack(self) -> None:
        text = (self.project / "infra" / "account.yaml").read_text()
        self._say("API Gateway may not write logs in this account yet: it gets a role for it")
        self._change(Stack(self.aws, ACCOUNT_STACK, pause=self.pause), text, {})

    def _app_stack(
        self,
        app: Stack,
        data: Stack,
        package: package_.Package,
        template: dict[str, Any],
        alarm_email: str | None,
        providers: Sequence[str],
    ) -> None:
        if self.dry_run and not data.exists:
            added = [
                Change("Add", name, resource["Type"])
                for name, resource in template["Resources"].items()
            ]
            self._show(app, added)
            return
        with self._doing("uploading the package"):
            url = package_.upload(self.aws, self._code_bucket(data), package, template)
        kept = app.parameters().get("AlarmEmail", "")
        parameters = {
            "Stage": self.stage,
            "AlarmEmail": kept if alarm_email is None else alarm_email,
        }
        if self.validation:
            parameters["Providers"] = ",".join(providers)
        # (A new mapping asks for reports from its first batch on.)
        listens = not app.exists or self._mappings_listen()
        self._change(app, url, {**parameters, "ReportBatchItemFailures": _word(listens)})
        if listens or self.dry_run:
            return
        with self._doing("waiting for the mappings to ask for reports"):
            self._wait_for_mappings()
        self._change(app, url, {**parameters, "ReportBatchItemFailures": "true"})

    def _change(self, stack: Stack, template: str, parameters: dict[str, str]) -> None:
        with self._doing(f"comparing {stack.name}"):
            plan = stack.plan(template, parameters)
        if plan is None:
            self.changes.setdefault(stack.name, [])
            self._say(f"{stack.name}: nothing changes")
            return
        changes = plan.changes()
        self._show(stack, changes)
        if self.dry_run:
            plan.discard()
            return
        self._ask(stack, plan, changes)
        began = time.monotonic()
        with self._doing(f"changing {stack.name}") as status:
            tell = _teller(self.console, status)
            plan.execute(tell)
        self._say(f"{stack.name}: done in {time.monotonic() - began:.0f} s")

    def _show(self, stack: Stack, changes: Sequence[Change]) -> None:
        self.changes.setdefault(stack.name, []).extend(changes)
        kinds: dict[str, int] = {}
        for change in changes:
            kinds[change.action] = kinds.get(change.action, 0) + 1
        counted = ", ".join(f"{action} {number}" for action, number in kinds.items())
        self._say(f"{stack.name}: {counted}")
        for change in changes:
            line = f"    {change.action:<7} {change.name} ({change.type})"
            line += {"True": ", made anew", "Conditional": ", may be made anew"}.get(
                change.replaced, ""
            )
            self.console.print(Text(line, "bold red" if change.costly else "dim"), soft_wrap=True)

    def _ask(self, stack: Stack, plan: ChangeSet, changes: Sequence[Change]) -> None:
        costly = [change for change in changes if change.costly]
        if not costly or self.yes:
            return
        names = ", ".join(f"{change.name} ({change.type})" for change in costly)
        try:
            self._sure(f"{stack.name}: this would replace or delete {names}")
        except Problem:
            plan.discard()
            raise

    def _sure(self, what: str) -> None:
        """Raises Problem where whoever is there does not want it, or nobody is."""
        if not self.console.is_terminal:
            raise Problem(f"{what}. Nothing was changed. If that is what you want: --yes")
        if not typer.confirm(f"{what}. Go on?"):
            raise Problem("Nothing was changed.")

    # -- what there is ------------------------------------------------------------------------

    def _code_bucket(self, data: Stack) -> str:
        return data.outputs()["CodeBucketName"]

    def _reserved(self) -> int:
        """What this stage's functions have of the account's concurrency by now."""
        lambda_ = self.aws.client("lambda")
        reserved = 0
        for name in (f"spillway-{self.stage}", f"spillway-{self.stage}-authorize"):
            with suppress(lambda_.exceptions.ResourceNotFoundException):
                found = lambda_.get_function_concurrency(FunctionName=name)
                reserved += found.get("ReservedConcurrentExecutions", 0)
        return reserved

    def _mappings_listen(self) -> bool:
        return all(
            "ReportBatchItemFailures" in mapping.get("FunctionResponseTypes", ())
            for name in MAPPED
            for mapping in self.aws.client("lambda").list_event_source_mappings(
                FunctionName=f"spillway-{self.stage}-{name}"
            )["EventSourceMappings"]
        )

    def _wait_for_mappings(self) -> None:
        end = time.monotonic() + _SEEN_WITHIN
        while not self._mappings_listen():
            if time.monotonic() > end:
                raise Problem(
                    "The mappings of the queues do not ask for partial reports. The functions "
                    "delete what is done by themselves, as before; deploy again later."
                )
            time.sleep(self.pause)

    def _look_for_secrets(self, providers: Sequence[str], *, events: bool) -> None:
        if events and not self._has_secret(f"spillway/{self.stage}/events"):
            self.notes.append(
                "EVENTS_URL is set and there is no key to sign with, so events wait: "
                f"spillway secret set events --stage {self.stage}"
            )
        for provider in providers:
            if not self._has_secret(f"spillway/{self.stage}/{provider}"):
                self.notes.append(
                    f"{provider} has no secret yet, so its webhooks are answered 503: "
                    f"spillway secret set {provider} --stage {self.stage}"
                )

    def _has_secret(self, name: str) -> bool:
        client = self.aws.client("secretsmanager")
        try:
            found = client.describe_secret(SecretId=name)
        except client.exceptions.ResourceNotFoundException:
            return False
        return "DeletedDate" not in found

    # -- what is said -------------------------------------------------------------------------

    def _conclude(self, entries: Sequence[Entry], seconds: float) -> None:
        for note in self.notes:
            self.console.print(Text(f"! {note}", "yellow"), soft_wrap=True)
        if self.dry_run:
            self._say("Nothing was changed.", style="bold")
            return
        self._say(f"Deployed in {seconds:.0f} s. Enter at the provider:", style="bold green")
        for entry in entries:
            self.console.print(Text(f"  {entry.provider}: {entry.where}"), soft_wrap=True)
            self.console.print(Text(f"    {entry.url}", "cyan"), soft_wrap=True)
        self._say(f"Then look whether all is well: spillway doctor --stage {self.stage}")

    def _say(self, line: str, style: str = "") -> None:
        self.console.print(Text(line, style), soft_wrap=True)

    def _doing(self, what: str) -> Any:
        return self.console.status(what)


def _teller(console: Console, status: Any = None) -> Callable[[Event], None]:
    """Shows what happens to a stack's resources: failures for good, the rest in passing."""
    done = 0

    def tell(event: Event) -> None:
        nonlocal done
        if event.status.endswith("_FAILED"):
            line = f"    {event.name}: {event.status}: {event.reason}"
            console.print(Text(line, "red"), soft_wrap=True)
        elif event.status.endswith("_COMPLETE"):
            done += 1
        if status is not None:
            status.update(f"{done} resources done; {event.name} ({event.status})")

    return tell


def _destroy_data(aws: Aws, stage: str, tell: Callable[[Event], None]) -> None:
    """The stack keeps what it holds when it is deleted, so each goes by its name, which it has from
    infra/data.yaml: whoever was interrupted has no stack to ask any more."""
    Stack(aws, f"spillway-{stage}-data").delete(tell)
    _destroy_table(aws.client("dynamodb"), f"spillway-{stage}")
    s3, sqs = aws.client("s3"), aws.client("sqs")
    for kind in ("archive", "code"):
        bucket = f"spillway-{stage}-{kind}-{aws.account}-{aws.region}"
        with suppress(s3.exceptions.NoSuchBucket):
            for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
                keys = [{"Key": found["Key"]} for found in page.get("Contents", ())]
                if keys:
                    s3.delete_objects(Bucket=bucket, Delete={"Objects": keys})
            s3.delete_bucket(Bucket=bucket)
    for queue in QUEUES:
        with suppress(sqs.exceptions.QueueDoesNotExist):
            url = sqs.get_queue_url(QueueName=f"spillway-{stage}-{queue}")["QueueUrl"]
            sqs.delete_queue(QueueUrl=url)
    secretsmanager = aws.client("secretsmanager")
    pages = secretsmanager.get_paginator("list_secrets")
    filters = [{"Key": "name", "Values": [f"spillway/{stage}/"]}]
    for page in pages.paginate(Filters=filters):
        for found in page["SecretList"]:
            # (Not at once: for seven days somebody may think better of it.)
            secretsmanager.delete_secret(SecretId=found["ARN"], RecoveryWindowInDays=7)


def _destroy_table(dynamodb: Any, name: str) -> None:
    """A table that is still being changed cannot be deleted, nor one that is being deleted changed.
    https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_DeleteTable.html
    """
    often = {"Delay": 2, "MaxAttempts": 300}
    with suppress(dynamodb.exceptions.ResourceNotFoundException):
        found = dynamodb.describe_table(TableName=name)["Table"]
        if found["TableStatus"] != "DELETING":
            if found.get("DeletionProtectionEnabled"):
                dynamodb.update_table(TableName=name, DeletionProtectionEnabled=False)
            dynamodb.get_waiter("table_exists").wait(TableName=name, WaiterConfig=often)
            dynamodb.delete_table(TableName=name)
        dynamodb.get_waiter("table_not_exists").wait(TableName=name, WaiterConfig=often)


def _word(value: bool) -> str:
    return "true" if value else "false"

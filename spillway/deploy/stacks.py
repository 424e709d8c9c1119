"""CloudFormation stacks, changed through change sets: what would change is known beforehand.

https://docs.aws.amazon.com/AWSCloudFormation/latest/APIReference/API_CreateChangeSet.html
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spillway.aws import Aws
from spillway.problem import Problem

# Types whose replacement or deletion loses what somebody said.
HOLDS_DATA = frozenset({"AWS::SQS::Queue", "AWS::DynamoDB::Table", "AWS::S3::Bucket"})
# ... or the address that is entered at the providers.
HOLDS_ADDRESS = frozenset({"AWS::ApiGateway::RestApi"})

_LONGEST = 3600.0  # seconds that a stack may take
_NOTHING = ("didn't contain changes", "No updates are to be performed")


@dataclass(frozen=True, slots=True)
class Change:
    """One resource that would change. `action`: Add, Modify, Remove, …; `replaced`: whether it is
    made anew, in CloudFormation's words: True, False, or Conditional (by a value that is not known
    before)."""

    action: str
    name: str
    type: str
    replaced: str = "False"

    @property
    def costly(self) -> bool:
        """Whether it takes data, or the address at the providers, with it."""
        if self.action == "Remove" or self.replaced == "True":
            return self.type in HOLDS_DATA | HOLDS_ADDRESS
        # (No property of an API that can be changed makes it anew.)
        return self.replaced == "Conditional" and self.type in HOLDS_DATA


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a resource of a stack. `at` is a time of CloudFormation's."""

    id: str
    name: str
    type: str
    status: str
    reason: str


class Stack:
    """One stack of an account, there or not."""

    def __init__(self, aws: Aws, name: str, *, pause: float = 2.0) -> None:
        """`pause`: seconds between two looks."""
        self._cloudformation = aws.client("cloudformation")
        self._pause = pause
        self.name = name

    def describe(self) -> dict[str, Any] | None:
        """What CloudFormation says of it; None where there is no such stack."""
        from botocore.exceptions import ClientError

        try:
            (found,) = self._cloudformation.describe_stacks(StackName=self.name)["Stacks"]
        except ClientError as error:
            if "does not exist" in error.response["Error"]["Message"]:
                return None
            raise
        return dict(found)

    @property
    def status(self) -> str:
        """CloudFormation's word, "" where there is no such stack."""
        found = self.describe()
        return str(found["StackStatus"]) if found else ""

    @property
    def exists(self) -> bool:
        return self.status not in ("", "REVIEW_IN_PROGRESS", "DELETE_COMPLETE")

    def outputs(self) -> dict[str, str]:
        found = self.describe() or {}
        return {one["OutputKey"]: one["OutputValue"] for one in found.get("Outputs", ())}

    def parameters(self) -> dict[str, str]:
        found = self.describe() or {}
        return {
            one["ParameterKey"]: one.get("ParameterValue", "")
            for one in found.get("Parameters", ())
        }

    def plan(self, template: str, parameters: Mapping[str, str]) -> ChangeSet | None:
        """What this template (itself, or its https address) would change; None where it changes
        nothing. A parameter that is not named here keeps the value that somebody gave the stack,
        and else has the template's.

        Raises Problem where CloudFormation refuses it, or the stack is in no state for it.
        """
        self._make_room()
        where = {"TemplateURL" if template.startswith("http") else "TemplateBody": template}
        made = self._cloudformation.create_change_set(
            StackName=self.name,
            ChangeSetName=f"spillway-{secrets.token_hex(8)}",
            ChangeSetType="UPDATE" if self.exists else "CREATE",
            **where,
            Parameters=[
                *(
                    {"ParameterKey": name, "ParameterValue": value}
                    for name, value in parameters.items()
                ),
                *(
                    {"ParameterKey": name, "UsePreviousValue": True}
                    for name in self._given(where)
                    if name not in parameters
                ),
            ],
            Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
            Tags=[{"Key": "spillway", "Value": self.name}],
        )
        change_set = ChangeSet(self, self._cloudformation, made["Id"])
        while (found := change_set.describe())["Status"] in (
            "CREATE_PENDING",
            "CREATE_IN_PROGRESS",
        ):
            time.sleep(self._pause)
        if found["Status"] == "CREATE_COMPLETE":
            return change_set
        reason = str(found.get("StatusReason", ""))
        nothing = any(words in reason for words in _NOTHING)
        why = [] if nothing else self.invalid(ChangeSetName=made["Id"])
        change_set.discard()
        if nothing:
            return None
        raise Problem(_lines(f"CloudFormation refuses the template of {self.name}: {reason}", why))

    def delete(self, tell: Callable[[Event], None]) -> None:
        """Deletes it and waits. Raises Problem with what failed."""
        found = self.describe()
        if found is None:
            return
        seen = {event.id for event in self.events()}
        self._cloudformation.delete_stack(StackName=self.name)
        # Asked by its id: a stack that is gone has no name any more.
        self.wait(tell, seen, stack_id=found["StackId"])

    def events(self, stack_id: str = "") -> list[Event]:
        """Everything that happened to it, oldest first."""
        pages = self._cloudformation.get_paginator("describe_stack_events")
        found = [
            Event(
                one["EventId"],
                one["LogicalResourceId"],
                one.get("ResourceType", ""),
                one["ResourceStatus"],
                one.get("ResourceStatusReason", ""),
            )
            for page in pages.paginate(StackName=stack_id or self.name)
            for one in page["StackEvents"]
        ]
        return found[::-1]

    def wait(self, tell: Callable[[Event], None], seen: set[str], *, stack_id: str = "") -> None:
        """Until what was begun has ended, with its events as they come. `seen`: those that are old.

        Raises Problem with the first failure, which is the cause of the others.
        """
        failure: Event | None = None
        end = time.monotonic() + _LONGEST
        # Its own event says when it has ended: just after the beginning its status is the old one.
        ended = ""
        while not ended:
            for event in self.events(stack_id):
                if event.id in seen:
                    continue
                seen.add(event.id)
                tell(event)
                if event.status.endswith("_FAILED") and failure is None:
                    failure = event
                if event.name == self.name and not event.status.endswith("_IN_PROGRESS"):
                    ended = event.status
            if time.monotonic() > end:
                raise Problem(f"{self.name} is not ready after an hour. It goes on without us.")
            if not ended:
                time.sleep(self._pause)
        if ended not in ("CREATE_COMPLETE", "UPDATE_COMPLETE", "DELETE_COMPLETE"):
            why = self.invalid(StackName=stack_id or self.name)
            if failure is not None and failure.name != self.name:
                why = [f"{failure.name} ({failure.type}): {failure.reason}"]
            raise Problem(_lines(f"{self.name} was not changed ({ended}). What failed first:", why))

    def invalid(self, **of: str) -> list[str]:
        """What CloudFormation found wrong before it began: with the last operation on the stack, or
        with a change set. https://docs.aws.amazon.com/AWSCloudFormation/latest/APIReference/API_DescribeEvents.html
        """
        found = self._cloudformation.describe_events(**of, Filters={"FailedEvents": True})
        events = [
            event
            for event in found.get("OperationEvents", ())
            if event.get("EventType") == "VALIDATION_ERROR"
        ]
        return [
            f"{event.get('LogicalResourceId', '')} ({event.get('ResourceType', '')}): "
            f"{event.get('ValidationStatusReason', '')}"
            for event in events
            if event.get("OperationId") == events[0].get("OperationId")
        ]

    def _given(self, template: Mapping[str, str]) -> list[str]:
        """The parameters of a template to which somebody gave a value of their own in the stack as
        it is: what was left at its default there follows the template's."""
        if not self.exists:
            return []
        was = self._defaults(StackName=self.name)
        there = self.parameters()
        return [
            name for name in self._defaults(**template) if there.get(name, "") != was.get(name, "")
        ]

    def _defaults(self, **of: str) -> dict[str, str]:
        found = self._cloudformation.get_template_summary(**of)["Parameters"]
        return {one["ParameterKey"]: one.get("DefaultValue", "") for one in found}

    def _make_room(self) -> None:
        """A stack whose creation failed can only be deleted; nothing of it is left by then."""
        status = self.status
        if status == "ROLLBACK_COMPLETE":
            self.delete(lambda event: None)
        elif status.endswith("_IN_PROGRESS") and status != "REVIEW_IN_PROGRESS":
            raise Problem(
                f"{self.name} is being changed by somebody ({status}). Try again when it is done."
            )
        elif status.endswith("_FAILED"):
            raise Problem(
                f"{self.name} is in the state {status}, which CloudFormation leaves to you: "
                "continue or cancel it in the console of CloudFormation, then deploy again."
            )


class ChangeSet:
    """What a stack would become."""

    def __init__(self, stack: Stack, cloudformation: Any, arn: str) -> None:
        self._stack = stack
        self._cloudformation = cloudformation
        self._arn = arn

    def describe(self) -> dict[str, Any]:
        found: dict[str, Any] = self._cloudformation.describe_change_set(
            ChangeSetName=self._arn, StackName=self._stack.name
        )
        return found

    def changes(self) -> Sequence[Change]:
        return list(self._changes())

    def execute(self, tell: Callable[[Event], None]) -> None:
        """Makes it so, and waits. Raises Problem with what failed; the stack is then as it was."""
        seen = {event.id for event in self._stack.events()}
        self._cloudformation.execute_change_set(ChangeSetName=self._arn, StackName=self._stack.name)
        self._stack.wait(tell, seen)

    def discard(self) -> None:
        """Leaves nothing of it: a stack that was only to be made is deleted with it."""
        self._cloudformation.delete_change_set(ChangeSetName=self._arn, StackName=self._stack.name)
        if self._stack.status == "REVIEW_IN_PROGRESS":
            self._stack.delete(lambda event: None)

    def _changes(self) -> Iterator[Change]:
        token: dict[str, str] = {}
        while True:
            found = self._cloudformation.describe_change_set(
                ChangeSetName=self._arn, StackName=self._stack.name, **token
            )
            for one in found.get("Changes", ()):
                change = one["ResourceChange"]
                yield Change(
                    change["Action"],
                    change["LogicalResourceId"],
                    change["ResourceType"],
                    change.get("Replacement", "False"),
                )
            if "NextToken" not in found:
                return
            token = {"NextToken": found["NextToken"]}


def _lines(first: str, rest: Sequence[str]) -> str:
    return "\n".join([first, *(f"  {line}" for line in rest)])

"""IAM, as far as our policies use it: lists of actions and resources, with wildcards, that are
allowed; all else is denied. Whatever else a policy says is refused, instead of being guessed at.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html
"""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

from spillway.deploy.package import narrow_policies

PROJECT = Path(__file__).parent.parent
CONFIG = json.loads((PROJECT / ".chalice" / "config.json").read_text())

# An action and a resource: wildcards in a policy, none in a call.
Pair = tuple[str, str]


class NotUnderstood(Exception):
    """A policy says something that this module does not know."""


def policy(function: str, stage: str) -> Any:
    """The policy that .chalice/config.json gives to a function. Its path starts at .chalice."""
    path = CONFIG["stages"][stage]["lambda_functions"][function]["iam_policy_file"]
    return json.loads((PROJECT / ".chalice" / path).read_text())


def deployed(document: Any, account: str, region: str) -> Any:
    """What `spillway deploy` makes of a policy, with what CloudFormation fills in."""
    document = deepcopy(document)
    role = {"Type": "AWS::IAM::Role", "Properties": {"Policies": [{"PolicyDocument": document}]}}
    narrow_policies({"Resources": {"Role": role}})
    values = {"Partition": "aws", "AccountId": account, "Region": region}
    for statement in document["Statement"]:
        statement["Resource"] = [
            re.sub(r"\$\{AWS::(\w+)\}", lambda found: values[found[1]], resource["Fn::Sub"])
            for resource in statement["Resource"]
        ]
    return document


def grants(document: Any) -> list[Pair]:
    """Everything that a policy allows. Raises NotUnderstood."""
    if set(document) != {"Version", "Statement"} or document["Version"] != "2012-10-17":
        raise NotUnderstood(f"a policy of {sorted(document)}")
    found = []
    for statement in document["Statement"]:
        if set(statement) - {"Sid"} != {"Effect", "Action", "Resource"}:
            raise NotUnderstood(f"a statement of {sorted(statement)}")
        if statement["Effect"] != "Allow":
            raise NotUnderstood(statement["Effect"])
        for name in ("Action", "Resource"):
            if not isinstance(statement[name], list) or "${" in "".join(statement[name]):
                raise NotUnderstood(statement[name])
        found += [
            (action, resource)
            for action in statement["Action"]
            for resource in statement["Resource"]
        ]
    return found


def covers(grant: Pair, call: Pair) -> bool:
    """Whether a grant allows a call. Actions are the same in capitals, resources are not.

    https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_action.html
    https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_resource.html
    """
    return _fits(grant[0].lower(), call[0].lower()) and _fits(grant[1], call[1])


def _fits(pattern: str, name: str) -> bool:
    """A wildcard stays within its segment between colons, unless it is a `*` that ends it."""
    expression = re.sub(r"\\\*(?=:|$)", ".*", re.escape(pattern))
    expression = expression.replace(r"\*", "[^:]*").replace(r"\?", "[^:]")
    return re.fullmatch(expression, name, re.DOTALL) is not None

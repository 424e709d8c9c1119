"""Stacks through change sets, against an emulated CloudFormation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from spillway.aws import Aws
from spillway.deploy.stacks import Change, ChangeSet, Event, Stack
from spillway.problem import Problem


def template(*queues: str, **properties: Any) -> str:
    return json.dumps(
        {
            "Resources": {
                name.title(): {
                    "Type": "AWS::SQS::Queue",
                    "Properties": {"QueueName": name, **properties},
                }
                for name in queues
            }
        }
    )


def with_bucket(body: str, bucket: str) -> str:
    """The template with a bucket besides, after all its queues."""
    found = json.loads(body)
    found["Resources"]["Bucket"] = {
        "Type": "AWS::S3::Bucket",
        "DependsOn": list(found["Resources"]),
        "Properties": {"BucketName": bucket},
    }
    return json.dumps(found)


def stack(aws: Aws, name: str) -> Stack:
    return Stack(aws, name, pause=0.05)


def plan(one: Stack, body: str) -> ChangeSet | None:
    return one.plan(body, {})


def deployed(one: Stack, body: str) -> list[Event]:
    """What was told while it was made so."""
    told: list[Event] = []
    found = plan(one, body)
    assert found is not None
    found.execute(told.append)
    return told


def exists(aws: Aws, queue: str) -> bool:
    urls = aws.client("sqs").list_queues(QueueNamePrefix=queue).get("QueueUrls", [])
    return bool(urls)


def test_a_stack_is_made_changed_and_deleted(aws: Aws) -> None:
    # GIVEN a stack that is not there
    one = stack(aws, "life")
    assert (one.exists, one.status, one.outputs(), one.parameters()) == (False, "", {}, {})
    # WHEN it is planned, THEN everything would be added and nothing is there yet
    planned = plan(one, template("life-a", "life-b"))
    assert planned is not None
    assert [(c.action, c.name, c.costly) for c in planned.changes()] == [
        ("Add", "Life-A", False),
        ("Add", "Life-B", False),
    ]
    assert (one.exists, exists(aws, "life")) == (False, False)
    # WHEN it is made so, THEN each resource is told of
    told: list[Event] = []
    planned.execute(told.append)
    assert one.exists
    assert exists(aws, "life-a")
    assert {event.name for event in told if event.status == "CREATE_COMPLETE"} >= {
        "Life-A",
        "Life-B",
    }
    # WHEN the same comes again, THEN nothing would change
    assert plan(one, template("life-a", "life-b")) is None
    # WHEN one is changed and one is gone, THEN that is known before
    planned = plan(one, template("life-a", DelaySeconds=7))
    assert planned is not None
    assert sorted((c.action, c.name, c.costly) for c in planned.changes()) == [
        ("Modify", "Life-A", False),
        ("Remove", "Life-B", True),
    ]
    planned.execute(lambda event: None)
    assert not exists(aws, "life-b")
    # WHEN it is deleted, THEN it is gone, and deleting it again does nothing
    one.delete(lambda event: None)
    assert (one.exists, exists(aws, "life")) == (False, False)
    one.delete(lambda event: None)


def test_a_parameter_that_somebody_gave_stays(aws: Aws) -> None:
    def with_parameters(**defaults: str) -> str:
        found = json.loads(template("given"))
        found["Parameters"] = {
            name: {"Type": "String", "Default": value} for name, value in defaults.items()
        }
        found["Resources"]["Given"]["Properties"]["Tags"] = [
            {"Key": name, "Value": {"Ref": name}} for name in defaults
        ]
        found["Parameters"]["Stage"] = {"Type": "String"}
        return json.dumps(found)

    def change(body: str, **parameters: str) -> dict[str, str]:
        planned = one.plan(body, {"Stage": "x", **parameters})
        if planned is not None:
            planned.execute(lambda event: None)
        return one.parameters()

    # GIVEN a stack with a value that is not the template's
    one = stack(aws, "given")
    before = with_parameters(Rate="10", Burst="20", Gone="1")
    assert change(before, Rate="30", Gone="2") == {
        "Stage": "x",
        "Rate": "30",
        "Burst": "20",
        "Gone": "2",
    }
    # WHEN a template comes with other defaults, THEN that value stays, and what nobody gave follows
    after = with_parameters(Rate="11", Burst="21", New="3")
    assert change(after) == {"Stage": "x", "Rate": "30", "Burst": "21", "New": "3"}
    assert change(after) == {"Stage": "x", "Rate": "30", "Burst": "21", "New": "3"}
    # AND what the command sets is as it says
    assert change(after, Rate="12")["Rate"] == "12"


def test_what_is_planned_and_discarded_leaves_nothing(aws: Aws) -> None:
    one = stack(aws, "discarded")
    planned = plan(one, template("discarded"))
    assert planned is not None
    planned.discard()
    assert (one.status in ("", "DELETE_COMPLETE"), exists(aws, "discarded")) == (True, False)
    # AND of a stack that is there only the plan goes
    deployed(one, template("discarded"))
    planned = plan(one, template("discarded", DelaySeconds=7))
    assert planned is not None
    planned.discard()
    assert one.exists


def test_a_failure_names_the_resource_and_why_and_leaves_room_for_the_next(aws: Aws) -> None:
    # GIVEN a bucket of the name that the stack wants
    aws.client("s3").create_bucket(Bucket="taken")
    one = stack(aws, "failing")
    told: list[Event] = []
    planned = plan(one, with_bucket(template("failing-a"), "taken"))
    assert planned is not None
    # WHEN it is made, THEN the first failure is named with its reason
    with pytest.raises(Problem) as raised:
        planned.execute(told.append)
    first, why = str(raised.value).splitlines()
    assert first == "failing was not changed (ROLLBACK_COMPLETE). What failed first:"
    assert why.startswith("  Bucket (AWS::S3::Bucket): ")
    assert "exists" in why
    assert "CREATE_FAILED" in {event.status for event in told}
    assert not exists(aws, "failing-a")
    # WHEN it is mended, THEN the ruin is not in the way
    deployed(one, template("failing-a"))
    assert one.status == "CREATE_COMPLETE"


def test_an_update_that_fails_leaves_the_stack_as_it_was(aws: Aws) -> None:
    aws.client("s3").create_bucket(Bucket="taken-too")
    one = stack(aws, "updated")
    deployed(one, template("updated"))
    planned = plan(one, with_bucket(template("updated"), "taken-too"))
    assert planned is not None
    with pytest.raises(Problem, match=r"UPDATE_ROLLBACK_COMPLETE[^$]*Bucket .*exists"):
        planned.execute(lambda event: None)
    assert plan(one, template("updated")) is None
    # AND the next one may go on from there
    deployed(one, template("updated", "updated-b"))


def test_a_template_that_is_none_is_refused_with_its_reason(aws: Aws) -> None:
    body = json.dumps({"Resources": {"Q": {"Type": "AWS::Nothing::AtAll"}}})
    one = stack(aws, "refused")
    with pytest.raises(Exception, match="AWS::Nothing::AtAll"):
        deployed(one, body)


@pytest.mark.parametrize(
    ("action", "type_", "replaced", "costly"),
    [
        ("Add", "AWS::SQS::Queue", "False", False),
        ("Modify", "AWS::SQS::Queue", "False", False),
        ("Modify", "AWS::SQS::Queue", "True", True),
        ("Modify", "AWS::SQS::Queue", "Conditional", True),
        ("Remove", "AWS::DynamoDB::Table", "False", True),
        ("Remove", "AWS::S3::Bucket", "False", True),
        ("Modify", "AWS::ApiGateway::RestApi", "True", True),
        ("Modify", "AWS::ApiGateway::RestApi", "Conditional", False),
        ("Remove", "AWS::ApiGateway::RestApi", "False", True),
        ("Remove", "AWS::ApiGateway::Deployment", "False", False),
        ("Modify", "AWS::Lambda::Function", "True", False),
    ],
)
def test_what_is_asked_about(action: str, type_: str, replaced: str, costly: bool) -> None:
    assert Change(action, "X", type_, replaced).costly is costly

"""What is made of Chalice's template before it is deployed, and where it is put."""

from __future__ import annotations

import json
import zipfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from spillway.aws import Aws
from spillway.deploy import package
from spillway.deploy.account import Account
from spillway.problem import Problem

TEMPLATE: dict[str, Any] = {
    "Resources": {
        "Front": {
            "Type": "AWS::Serverless::Function",
            "Properties": {"CodeUri": "./deployment.zip", "ReservedConcurrentExecutions": 300},
        },
        "Door": {
            "Type": "AWS::Serverless::Function",
            "Properties": {"CodeUri": "./deployment.zip", "ReservedConcurrentExecutions": 100},
        },
        "Back": {
            "Type": "AWS::Serverless::Function",
            "Properties": {
                "CodeUri": "./deployment.zip",
                "Events": {"Queue": {"Properties": {"ScalingConfig": {"MaximumConcurrency": 200}}}},
            },
        },
        "Api": {"Type": "AWS::Serverless::Api", "Properties": {}},
    }
}


def account(concurrency: int, unreserved: int | None = None) -> Account:
    left = concurrency if unreserved is None else unreserved
    return Account("123456789012", "eu-central-1", concurrency, left, logs_api=True)


@pytest.mark.parametrize(
    ("has", "reserved", "kept", "at_most"),
    [
        (account(1000), 0, True, 200),
        # Deployed before: what the account has left is less by what we have.
        (account(1000, 600), 400, True, 200),
        (account(1000, 499), 0, False, 200),
        (account(1000, 500), 0, True, 200),
        (account(1000, 150), 400, True, 200),
        (account(500), 0, True, 125),
        (account(400), 0, False, 100),
        (account(50), 0, False, 12),
        (account(10), 0, False, 2),
        (account(4), 0, False, 2),
    ],
)
def test_what_the_account_refuses_is_left_out(
    has: Account, reserved: int, kept: bool, at_most: int
) -> None:
    template = deepcopy(TEMPLATE)
    said = package.fit(template, has, reserved)
    functions = package.functions(template)
    assert [functions[name].get("ReservedConcurrentExecutions") for name in ("Front", "Door")] == (
        [300, 100] if kept else [None, None]
    )
    (event,) = functions["Back"]["Events"].values()
    assert event["Properties"]["ScalingConfig"] == {"MaximumConcurrency": at_most}
    # AND whoever deploys is told what to ask AWS for
    assert len(said) == (not kept)
    assert all("L-B99A9384" in line and f" {has.concurrency} " in line for line in said)


def test_what_reserves_nothing_is_left_alone() -> None:
    template = {"Resources": {"Back": deepcopy(TEMPLATE["Resources"]["Back"])}}
    assert package.fit(template, account(1000), 0) == []
    assert template == {"Resources": {"Back": TEMPLATE["Resources"]["Back"]}}


@pytest.mark.parametrize(
    ("resource", "named"),
    [
        (
            "arn:aws:sqs:*:*:spillway-dev-outbound.fifo",
            "arn:${AWS::Partition}:sqs:${AWS::Region}:${AWS::AccountId}:spillway-dev-outbound.fifo",
        ),
        # (What is wild in a name stays so, but for the archive's.)
        (
            "arn:aws:secretsmanager:*:*:secret:spillway/dev/keys-??????",
            "arn:${AWS::Partition}:secretsmanager:${AWS::Region}:${AWS::AccountId}"
            ":secret:spillway/dev/keys-??????",
        ),
        (
            "arn:aws:logs:*:*:log-group:/aws/lambda/spillway-dev-send:*",
            "arn:${AWS::Partition}:logs:${AWS::Region}:${AWS::AccountId}"
            ":log-group:/aws/lambda/spillway-dev-send:*",
        ),
        (
            "arn:aws:s3:::spillway-dev-archive-*/messages/*",
            "arn:${AWS::Partition}:s3:::"
            "spillway-dev-archive-${AWS::AccountId}-${AWS::Region}/messages/*",
        ),
    ],
)
def test_a_policy_names_the_account_and_the_region(resource: str, named: str) -> None:
    statement = {"Effect": "Allow", "Action": ["x:Y"], "Resource": [resource]}
    other = {"Effect": "Allow", "Action": ["x:Y"], "Resource": [{"Fn::GetAtt": ["A", "Arn"]}]}
    document = {"Version": "2012-10-17", "Statement": [statement, deepcopy(other)]}
    role = {"Type": "AWS::IAM::Role", "Properties": {"Policies": [{"PolicyDocument": document}]}}
    template = {"Resources": {"Role": role, **deepcopy(TEMPLATE["Resources"])}}
    package.narrow_policies(template)
    assert document["Statement"] == [{**statement, "Resource": [{"Fn::Sub": named}]}, other]
    assert template["Resources"].items() >= TEMPLATE["Resources"].items()


def test_nobody_may_make_a_log_group_that_the_overlay_makes() -> None:
    statement = {"Effect": "Allow", "Action": ["logs:CreateLogGroup", "logs:PutLogEvents"]}
    document = {"Version": "2012-10-17", "Statement": [{**statement, "Resource": ["*"]}]}
    role = {"Type": "AWS::IAM::Role", "Properties": {"Policies": [{"PolicyDocument": document}]}}
    package.narrow_policies({"Resources": {"Role": role}})
    assert document["Statement"] == [
        {**statement, "Action": ["logs:PutLogEvents"], "Resource": ["*"]}
    ]


def test_a_package_goes_to_a_place_that_its_content_names(aws: Aws, tmp_path: Path) -> None:
    s3 = aws.client("s3")
    s3.create_bucket(Bucket="code")

    def made(name: str, content: str, year: int) -> package.Package:
        path = tmp_path / name
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(zipfile.ZipInfo("app.py", (year, 1, 1, 0, 0, 0)), content)
        return package.Package({}, path)

    def places() -> set[str]:
        return {one["Key"] for one in s3.list_objects_v2(Bucket="code").get("Contents", ())}

    # GIVEN the same code, written at two times, and other code
    first, again, other = made("1", "a", 2020), made("2", "a", 2021), made("3", "b", 2020)
    template = deepcopy(TEMPLATE)
    url = package.upload(aws, "code", first, template)
    uploaded = places()
    # THEN the functions name the place of the zip, and CloudFormation finds the template
    (key,) = (place for place in uploaded if place.endswith(".zip"))
    functions = package.functions(template).values()
    assert [function["CodeUri"] for function in functions] == [{"Bucket": "code", "Key": key}] * 3
    assert s3.get_object(Bucket="code", Key=key)["Body"].read() == first.zip.read_bytes()
    stored = s3.get_object(Bucket="code", Key=url.rpartition("/")[2])["Body"].read()
    assert json.loads(stored) == template
    assert url.startswith(f"{aws.endpoint}/code/")
    # AND the same code is no change, while other code is one
    assert package.upload(aws, "code", again, deepcopy(TEMPLATE)) == url
    assert places() == uploaded
    assert package.upload(aws, "code", other, deepcopy(TEMPLATE)) != url
    assert len(places()) == len(uploaded) + 2


def test_what_chalice_says_is_passed_on(tmp_path: Path) -> None:
    (tmp_path / ".chalice").mkdir()
    (tmp_path / ".chalice" / "config.json").write_text('{"version": "2.0", "app_name": "x"}')
    (tmp_path / "app.py").write_text("raise RuntimeError('heron')\n")
    with pytest.raises(Problem, match=r"chalice package failed:[^$]*heron"):
        package.build(tmp_path, "prod", "eu-central-1")

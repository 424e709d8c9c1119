"""The app's package: what `chalice package` makes with the overlay, fitted to one account.

chalice package --merge-template infra/app.yaml   ->  deployment.zip, sam.yaml
laid over, if asked for: infra/validation.yaml, by Chalice's own merge
fitted: policies name this account and region, reservations go where the account refuses them
uploaded to the code bucket under a name made of the content: the same code is no change
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import yaml

from spillway.aws import Aws
from spillway.deploy.account import Account
from spillway.problem import Problem
from spillway.project import config_file

Template = dict[str, Any]

OVERLAY = Path("infra") / "app.yaml"
VALIDATION = Path("infra") / "validation.yaml"


@dataclass(frozen=True)
class Package:
    """The template as Chalice and the overlays make it, and the zip that all functions share."""

    template: Template
    zip: Path


def build(project: Path, stage: str, region: str, *, validation: bool = False) -> Package:
    """Runs `chalice package`. Raises Problem with what Chalice says.

    `validation`: whether Step Functions stands before the receiver.
    """
    out = project / "build" / "package" / stage
    command = [str(Path(sys.executable).with_name("chalice")), "package", "--stage", stage]
    command += ["--merge-template", str(project / OVERLAY), str(out)]
    environment = {**os.environ, "AWS_DEFAULT_REGION": region, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Problem(f"chalice package failed:\n{done.stdout}{done.stderr}".rstrip())
    if "Could not install dependencies" in done.stdout:
        raise Problem(
            f"chalice package found no wheels for Lambda:\n{done.stdout.rstrip()}\n"
            f"Is lambda_architecture in {config_file(project)} right?"
        )
    template = yaml.safe_load((out / "sam.yaml").read_text())
    if validation:
        template = lay_over(template, project / VALIDATION)
    return Package(template, out / "deployment.zip")


def lay_over(template: Template, overlay: Path) -> Template:
    """What `chalice package --merge-template`, which takes one overlay, would make of them."""
    from chalice.package import TemplateDeepMerger, YAMLTemplateSerializer

    laid: Template = TemplateDeepMerger().merge(
        YAMLTemplateSerializer().load_template(overlay.read_text(), str(overlay)), template
    )
    return laid


def upload(aws: Aws, bucket: str, package: Package, template: Template) -> str:
    """Puts the zip and the template into the code bucket; returns the template's URL.

    `template` is changed: its functions name the zip's place.
    """
    from botocore.exceptions import ClientError

    s3 = aws.client("s3")
    key = f"{_content(package.zip)}.zip"
    try:
        s3.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("404", "NoSuchKey", "NotFound"):
            raise
        s3.upload_file(str(package.zip), bucket, key)
    for function in functions(template).values():
        function["CodeUri"] = {"Bucket": bucket, "Key": key}
    return put_template(aws, bucket, template)


def put_template(aws: Aws, bucket: str, template: Template) -> str:
    """Puts a template where CloudFormation finds it, which takes only small ones by themselves."""
    body = json.dumps(template, indent=1, sort_keys=True).encode()
    key = f"{hashlib.sha256(body).hexdigest()[:24]}.json"
    s3 = aws.client("s3")
    s3.put_object(Bucket=bucket, Key=key, Body=body, ContentType="application/json")
    return f"{s3.meta.endpoint_url}/{bucket}/{key}"


def functions(template: Template) -> dict[str, dict[str, Any]]:
    """The properties of each function, by the name of its resource."""
    return {
        name: resource["Properties"]
        for name, resource in template["Resources"].items()
        if resource["Type"] == "AWS::Serverless::Function"
    }


def narrow_policies(template: Template) -> None:
    """Makes the wildcards of the policies' names into this account and region: Chalice takes a
    policy as it is, and `chalice deploy` could not fill them in. And nobody has to make a log group
    that the overlay makes."""
    for statement in _statements(template):
        actions = statement["Action"]
        statement["Action"] = [one for one in actions if one != "logs:CreateLogGroup"]
        resources = statement["Resource"]
        statement["Resource"] = [_named(resource) for resource in resources]


def fit(template: Template, account: Account, reserved: int) -> list[str]:
    """Leaves out what the account refuses, and returns what is to be said of it.

    `reserved`: the concurrency that this stage's functions have reserved already.
    """
    said = []
    wanting = {
        name: function["ReservedConcurrentExecutions"]
        for name, function in functions(template).items()
        if "ReservedConcurrentExecutions" in function
    }
    wanted = sum(wanting.values())
    if wanting and not account.can_reserve(wanted, reserved):
        for name in wanting:
            del functions(template)[name]["ReservedConcurrentExecutions"]
        said.append(
            f"The account allows {account.concurrency} concurrent executions in {account.region}, "
            f"too few to reserve {wanted} of them for the front door: a burst in the back may hold "
            "it up. Ask AWS for more: Service Quotas, AWS Lambda, Concurrent executions "
            "(L-B99A9384), 1000 or more; then deploy again."
        )
    for function in functions(template).values():
        for event in function.get("Events", {}).values():
            scaling = event["Properties"].get("ScalingConfig", {})
            if scaling.get("MaximumConcurrency", 0) > account.mapping_limit:
                scaling["MaximumConcurrency"] = account.mapping_limit
    return said


def _statements(template: Template) -> Iterator[dict[str, Any]]:
    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::IAM::Role":
            for policy in resource["Properties"].get("Policies", ()):
                yield from policy["PolicyDocument"]["Statement"]


def _named(resource: Any) -> Any:
    if not isinstance(resource, str) or not resource.startswith("arn:aws:"):
        return resource
    _, _, service, region, account, name = resource.split(":", 5)
    region = region.replace("*", "${AWS::Region}")
    account = account.replace("*", "${AWS::AccountId}")
    # Of all names only a bucket's has account and region in it.
    name = name.replace("-archive-*", "-archive-${AWS::AccountId}-${AWS::Region}")
    return {"Fn::Sub": f"arn:${{AWS::Partition}}:{service}:{region}:{account}:{name}"}


def _content(zip_file: Path) -> str:
    """A hash of what is in a zip, whenever its files were written."""
    digest = hashlib.sha256()
    with ZipFile(zip_file) as archive:
        for name in sorted(archive.namelist()):
            digest.update(f"{name}\0".encode())
            digest.update(hashlib.sha256(archive.read(name)).digest())
    return digest.hexdigest()[:24]

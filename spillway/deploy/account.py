"""What the account allows, read before anything is deployed to it.

https://docs.aws.amazon.com/lambda/latest/api/API_GetAccountSettings.html
https://docs.aws.amazon.com/apigateway/latest/api/API_GetAccount.html
"""

from __future__ import annotations

from dataclasses import dataclass

from spillway.aws import Aws

# Lambda keeps so much of an account's concurrency unreserved.
# https://docs.aws.amazon.com/lambda/latest/dg/configuration-concurrency.html
UNRESERVED = 100
# Concurrency of an account that nobody has raised; a new one starts with 10 to 50.
USUAL = 1000


@dataclass(frozen=True, slots=True)
class Account:
    """One account in one region.

    `concurrency`: executions at once of all its functions; `unreserved`: of these, what no function
    has for itself. `logs_api`: whether API Gateway may write logs, which one role of the account
    allows for all its APIs.
    """

    id: str
    region: str
    concurrency: int
    unreserved: int
    logs_api: bool

    def can_reserve(self, wanted: int, reserved: int) -> bool:
        """Whether Lambda lets `wanted` be reserved in place of the `reserved` that we have."""
        return self.unreserved + reserved - wanted >= UNRESERVED

    @property
    def mapping_limit(self) -> int:
        """The most that one of the two mappings may have at once, so that the front door has half
        of what is there. Lambda takes no less than 2."""
        return max(2, self.concurrency // 4)


def read(aws: Aws) -> Account:
    limits = aws.client("lambda").get_account_settings()["AccountLimit"]
    role = aws.client("apigateway").get_account().get("cloudwatchRoleArn")
    return Account(
        id=aws.account,
        region=aws.region,
        concurrency=limits["ConcurrentExecutions"],
        unreserved=limits["UnreservedConcurrentExecutions"],
        logs_api=bool(role),
    )

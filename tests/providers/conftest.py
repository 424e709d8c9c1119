"""What the tests of the providers share: a provider's API that answers as a test says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import httpx
import pytest

Answer = httpx.Response | Exception


@dataclass
class ProviderApi:
    """A provider's API without a network: answers in turn, and keeps what it was asked."""

    answers: list[Answer]
    requests: list[httpx.Request] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@dataclass
class Connected:
    """The API, and the client that speaks to it."""

    api: ProviderApi
    http: httpx.Client

    @property
    def requests(self) -> list[httpx.Request]:
        return self.api.requests


@pytest.fixture
def api_answering() -> Iterator[Callable[..., Connected]]:
    """`api_answering(answer, ...)`: an API that gives these answers, one a request, in order."""
    clients: list[httpx.Client] = []

    def connect(*answers: Answer) -> Connected:
        api = ProviderApi(list(answers))
        clients.append(httpx.Client(transport=httpx.MockTransport(api)))
        return Connected(api, clients[-1])

    yield connect
    for client in clients:
        client.close()

"""API Gateway's mapping templates, on a Velocity engine: what an AWS integration sends to the
service, and what its caller gets. As far as our templates use it; the rest raises.

https://docs.aws.amazon.com/apigateway/latest/developerguide/api-gateway-mapping-template-reference.html
"""

from __future__ import annotations

import base64
import json
from collections.abc import KeysView, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import airspeed

JSON = "application/json"


class UnsupportedMediaType(Exception):
    """415: no template for the content type, and passthroughBehavior is NEVER."""


class TemplateFailed(Exception):
    """500: what the template asks for cannot be done."""


@dataclass(frozen=True)
class Request:
    """What the caller of the API sends, and what API Gateway knows of it."""

    method: str
    path: str
    resource_path: str
    domain_name: str
    headers: Mapping[str, str]
    parameters: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes
    principal: str = ""
    request_id: str = "c6af9ac6-7b61-11e6-9a41-93e8deadbeef"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: str


@dataclass(frozen=True)
class Integration:
    """An `x-amazon-apigateway-integration` of type `aws`, its intrinsic functions resolved."""

    settings: Mapping[str, Any]

    def request(self, request: Request) -> str:
        """The body for the service. Raises UnsupportedMediaType and TemplateFailed."""
        template = self._request_template(request)
        context: dict[str, Any] = {
            "httpMethod": request.method,
            "path": request.path,
            "resourcePath": request.resource_path,
            "domainName": request.domain_name,
            "requestId": request.request_id,
        }
        # Behind an authorizer only.
        if request.principal:
            context["authorizer"] = _Map({"principalId": request.principal})
        given = _Input(
            # What is no UTF-8 is lost; an empty body is an empty object.
            request.body.decode(errors="replace") or "{}",
            _Map(
                {
                    "path": _Map(request.parameters),
                    "querystring": _Map(request.query),
                    "header": _Map(request.headers),
                }
            ),
        )
        return _render(template, given, context)

    def answer(self, status: int, body: str) -> Answer:
        """What the caller gets for the service's answer. Raises TemplateFailed.

        A status that is no whole number from 100 to 599 does not override.
        https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-override-request-response-parameters.html
        """
        # For AWS services the keys are patterns of their status.
        responses = self.settings["responses"]
        response = responses.get(str(status), responses["default"])
        override = _Once(header=_Once())
        text = _render(
            response["responseTemplates"][JSON],
            _Input(body, _Map({})),
            {"responseOverride": override},
        )
        wanted = override.get("status")
        if not isinstance(wanted, int) or not 100 <= wanted <= 599:
            wanted = int(response["statusCode"])
        return Answer(wanted, {"Content-Type": JSON, **override["header"]}, text)

    def _request_template(self, request: Request) -> str:
        """https://docs.aws.amazon.com/apigateway/latest/developerguide/integration-passthrough-behaviors.html"""
        sent = {name.lower(): value for name, value in request.headers.items()}
        kind = sent.get("content-type", JSON).partition(";")[0].strip()
        templates: Mapping[str, str] = self.settings["requestTemplates"]
        if self.settings["passthroughBehavior"].lower() != "never":
            raise NotImplementedError
        template = templates.get(kind) or templates.get("$default")
        if template is None:
            raise UnsupportedMediaType(kind)
        return template


def _render(template: str, given: _Input, context: dict[str, Any]) -> str:
    names = {"input": given, "util": _Util(), "context": _Map(context)}
    try:
        text: str = airspeed.Template(template).merge(names)
    except airspeed.TemplateExecutionError as error:
        if isinstance(error.__cause__, NotImplementedError):
            raise error.__cause__ from None
        raise TemplateFailed from error
    return text


class _Strict:
    """What our templates do not use must not render as nothing."""

    def __getattr__(self, name: str) -> NoReturn:
        raise NotImplementedError(name)


class _Map:
    """A map of Java's: `$map.name` is an entry, `$map.get(…)` and `$map.keySet()` are methods,
    whatever its entries are called."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        self._entries = entries

    def __getitem__(self, name: str) -> Any:
        if name in ("get", "keySet"):
            raise KeyError
        return self._entries[name]

    def get(self, name: str) -> Any:
        return self._entries.get(name)

    def keySet(self) -> KeysView[str]:
        return self._entries.keys()


class _Once(dict[str, Any]):
    """What a template overrides: a second time is a 5xx."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name in self:
            raise ValueError(f"{name} is overridden twice")
        # Velocity leaves a variable alone that would be set to nothing.
        if value is not None:
            super().__setitem__(name, value)


class _Input(_Strict):
    def __init__(self, body: str, params: _Map) -> None:
        self.body = body
        self.params = lambda: params

    def path(self, path: str) -> Any:
        """Raises ValueError where the body is not JSON."""
        if path != "$":
            raise NotImplementedError(path)
        return _java(json.loads(self.body))


class _Util(_Strict):
    def base64Encode(self, text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    def parseJson(self, text: str) -> Any:
        return _java(json.loads(text))


def _java(value: Any) -> Any:
    return _Map(value) if isinstance(value, dict) else value

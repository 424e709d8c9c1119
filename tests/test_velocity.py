"""The engine of the mapping templates, against what AWS documents."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.velocity import Answer, Integration, Request, TemplateFailed, UnsupportedMediaType

REQUEST = Request(
    method="POST",
    path="/api/webhooks/twilio/signed",
    resource_path="/webhooks/{provider}/signed",
    domain_name="sms.example.com",
    headers={"Content-Type": "application/json", "X-Quoted": "a \"b\" 'c'", "get": "g"},
    parameters={"provider": "twilio"},
    query={"reference": "r-1"},
    body='{"a": "é😀"}'.encode(),
)


def rendered(template: str, request: Request = REQUEST) -> str:
    settings = {"passthroughBehavior": "never", "requestTemplates": {"$default": template}}
    return Integration(settings).request(request)


def answered(template: str, body: str, status: int = 200) -> Answer:
    response = {"statusCode": "503", "responseTemplates": {"application/json": template}}
    return Integration({"responses": {"default": response}}).answer(status, body)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        # https://docs.aws.amazon.com/apigateway/latest/developerguide/api-gateway-mapping-template-reference.html
        ("$input.body", '{"a": "é😀"}'),
        ("$util.base64Encode($input.body)", "eyJhIjogIsOp8J+YgCJ9"),
        ('$util.base64Encode("")', ""),
        ("$input.params().path.provider", "twilio"),
        ("$input.params().querystring.reference", "r-1"),
        ("$input.params().header.get('X-Quoted')", "a \"b\" 'c'"),
        # A map of Java's, whatever its entries are called.
        ("$input.params().header.get('get')", "g"),
        (
            "#foreach($n in $input.params().header.keySet())[$n]#if($foreach.hasNext), #end#end",
            "[Content-Type], [X-Quoted], [get]",
        ),
        # Names are case-sensitive.
        ("$!input.params().header.get('x-quoted')", ""),
        ("$context.httpMethod $context.path", "POST /api/webhooks/twilio/signed"),
        ("$context.resourcePath", "/webhooks/{provider}/signed"),
        ("$context.domainName", "sms.example.com"),
        # What is not there is nothing.
        ('#set($p = "$!context.authorizer.principalId")[$p]', "[]"),
        # https://velocity.apache.org/engine/1.7/user-guide.html
        ('#set($x = "abc")#if($x.length() <= 3)yes#{else}no#end', "yes"),
        ('#set($x = "abcd")#if($x.length() <= 3)yes#{else}no#end', "no"),
        ("#set($x = 'a$context.path')$x", "a$context.path"),
        ('{\\"a\\": \\"$context.httpMethod\\"}', '{\\"a\\": \\"POST\\"}'),
        ('#set($x = 1)\n{"a": $x}', '{"a": 1}'),
    ],
)
def test_a_request_template(template: str, expected: str) -> None:
    assert rendered(template) == expected


@pytest.mark.parametrize("text", ["$context.apiId", "#set($x = 1)", "#end", "$util", "\\$x", '"}'])
def test_what_a_stranger_wrote_is_not_a_template(text: str) -> None:
    assert rendered("$input.body", replace(REQUEST, body=text.encode())) == text


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        # Not documented; seen by others on AWS.
        (b"", "{}"),
        (b"\xff\xfea", "��a"),
    ],
)
def test_a_body_is_text(body: bytes, expected: str) -> None:
    assert rendered("$input.body", replace(REQUEST, body=body)) == expected


def test_a_principal_is_there_behind_an_authorizer() -> None:
    request = replace(REQUEST, principal="twilio")
    assert rendered("$context.authorizer.principalId", request) == "twilio"


@pytest.mark.parametrize(
    ("content_type", "templates", "chosen"),
    [
        # https://docs.aws.amazon.com/apigateway/latest/developerguide/integration-passthrough-behaviors.html
        ("application/json", {"application/json": "j", "$default": "d"}, "j"),
        ("application/json; charset=utf-8", {"application/json": "j"}, "j"),
        ("", {"application/json": "j"}, "j"),
        ("text/plain", {"application/json": "j", "$default": "d"}, "d"),
        ("text/plain", {"application/json": "j"}, None),
        ("application/json", {}, None),
    ],
)
def test_the_content_type_chooses_the_template(
    content_type: str, templates: dict[str, str], chosen: str | None
) -> None:
    integration = Integration({"passthroughBehavior": "NEVER", "requestTemplates": templates})
    headers = {"content-type": content_type} if content_type else {}
    request = replace(REQUEST, headers=headers)
    if chosen is None:
        with pytest.raises(UnsupportedMediaType):
            integration.request(request)
    else:
        assert integration.request(request) == chosen


OVERRIDE = "#set($context.responseOverride.status = $input.path('$').s)"
HEADER = "#set($context.responseOverride.header.Retry-After = '5')"


@pytest.mark.parametrize(
    ("template", "body", "expected"),
    [
        # https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-override-request-response-parameters.html
        ("x", "{}", (503, {}, "x")),
        (OVERRIDE, '{"s": 404}', (404, {}, "")),
        (HEADER, "{}", (503, {"Retry-After": "5"}, "")),
        # Not documented; seen by others on AWS.
        (OVERRIDE, '{"s": "404"}', (503, {}, "")),
        (OVERRIDE, '{"s": 600}', (503, {}, "")),
        (OVERRIDE, "{}", (503, {}, "")),
        ("$util.parseJson($input.path('$').o).b", '{"o": "{\\"b\\": \\"$x\\"}"}', (503, {}, "$x")),
    ],
)
def test_a_response_template(template: str, body: str, expected: tuple[Any, ...]) -> None:
    status, headers, text = expected
    assert answered(template, body) == Answer(
        status, {"Content-Type": "application/json", **headers}, text
    )


@pytest.mark.parametrize(
    ("template", "body"),
    [
        ("$input.path('$').s", "<Error/>"),
        ("$util.parseJson($input.path('$').o)", '{"o": "no JSON"}'),
        ("$util.parseJson($input.path('$').o)", "{}"),
        # "An override may only be applied to each parameter once."
        (HEADER + HEADER, "{}"),
    ],
)
def test_a_template_that_cannot_be_rendered(template: str, body: str) -> None:
    with pytest.raises(TemplateFailed):
        answered(template, body)


def test_what_is_not_implemented_does_not_render_as_nothing() -> None:
    with pytest.raises(NotImplementedError):
        rendered("$util.urlEncode('a')")

"""What the OpenAPI document of a server says of it, and requests by it, sent to the server."""

from collections.abc import Collection
from typing import Any

import schemathesis
from hypothesis import given, settings
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks

from served import Running

_CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


def sent_to_all(server: Running, only: Collection[str] = ()) -> set[str]:
    """Send what the document allows and what it does not to each path, or to those that are named.

    Each answer is as the document has it, and none is a failure of the server.

    Returns:
        The paths.
    """
    document = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    sent = set()
    for found in document.get_all_operations():
        operation = found.ok()
        if operation.path.endswith("/events"):  # which goes on until a session ends
            continue
        if only and operation.path not in only:
            continue
        sent.add(operation.path)

        cases = operation.as_strategy()
        if operation.body or operation.path_parameters:
            cases |= operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)

        @settings(max_examples=8, deadline=None, database=None)
        @given(cases)
        def fails_never(case: Any) -> None:
            answer = case.call(timeout=30)
            assert answer.status_code < 500, (case.as_curl_command(), answer.text)
            case.validate_response(answer, checks=_CHECKS)

        fails_never()
    return sent


def answer_as_described(
    server: Running,
    path: str,
    body: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
) -> str:
    """The answer to a body that is posted, or to none; it is one and as the document has it."""
    document = schemathesis.openapi.from_url(f"{server.url}/openapi.json", headers=headers or {})
    given = {} if body is None else {"body": body, "media_type": "application/json"}
    case = document[path]["POST"].Case(**given)
    answer = case.call(timeout=30, headers=headers)
    assert answer.status_code == 200, answer.text
    case.validate_response(answer, checks=_CHECKS)
    return str(answer.text)


def operation_at(server: Running, path: str, method: str = "post") -> dict[str, Any]:
    """What the document says of a route, with the schema of its body where it has one."""
    document = server.client.get("/openapi.json").json()
    operation: dict[str, Any] = document["paths"][path][method]
    if "requestBody" in operation:
        reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        operation["body"] = document["components"]["schemas"][reference.rpartition("/")[2]]
    return operation

"""/openapi.json: the paths of the endpoint, with the bodies of `serving.schema`."""

from __future__ import annotations

import functools
from typing import Any

import pydantic

from serving.schema import BODIES
from vidalign import __version__

REF = "#/components/schemas/{model}"
ERRORS = {
    "400": "a mistake in the request, in one sentence",
    "401": "a key is missing or not known",
    "404": "there is no such model or path",
    "405": "the path takes another method",
    "408": "the body did not come",
    "413": "the body is too large",
    "415": "the body is not application/json",
    "429": "too many requests; Retry-After says when to come again",
    "500": "the endpoint failed; its log says why under request_id",
    "503": "an engine is being started again, or everything is busy; Retry-After says when to come again",
}
READS = {
    "/health": ("whether every engine works", "200 503"),
    "/ready": ("whether requests are answered now", "200 503"),
    "/metrics": ("Prometheus' numbers", "200 401"),
    "/openapi.json": ("this document", "200 401"),
    "/v1/models": ("the served policies, with what they were trained with", "200 401"),
    "/v1/models/{model}": ("one policy", "200 401 404"),
}
WISHES = [
    {
        "name": "x-policy-version",
        "in": "header",
        "description": "the version that is to answer, and no other; 404 where it is not there",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
    },
    {
        "name": "x-canary",
        "in": "header",
        "description": "whether a version on trial is to answer, where there is one",
        "schema": {"enum": ["true", "false"]},
    },
]
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code", "request_id"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": "null"},
                "code": {"type": ["integer", "string"]},
                "request_id": {"type": "string"},
            },
        }
    },
}


@functools.cache
def document() -> dict[str, Any]:
    """The document, as JSON values."""
    schemas: dict[str, Any] = {"Error": ERROR}
    paths: dict[str, Any] = {}
    for path, body in BODIES.items():
        schema = pydantic.TypeAdapter(body).json_schema(ref_template=REF)
        schemas |= schema.pop("$defs", {})
        schemas[body.__name__] = schema
        operation = _operation(" ".join(["200", *ERRORS]), "a reply, or a stream of its parts")
        operation["responses"]["200"]["content"] = {
            "application/json": {"schema": {"type": "object"}},
            "text/event-stream": {},
        }
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": REF.format(model=body.__name__)}}},
        }
        operation["parameters"] = WISHES
        paths[path] = {"post": operation}
    for path, (text, statuses) in READS.items():
        operation = _operation(statuses, text)
        if "{" in path:
            operation["parameters"] = [
                {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            ]
        paths[path] = {"get": operation}
    return {
        "openapi": "3.1.0",
        "info": {"title": "vidalign", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
    }


def _operation(statuses: str, text: str) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status in statuses.split():
        responses[status] = {"description": ERRORS.get(status, text)}
        if status != "200" and not (status == "503" and len(statuses) < 10):
            schema = {"$ref": REF.format(model="Error")}
            responses[status]["content"] = {"application/json": {"schema": schema}}
    return {"summary": text, "responses": responses}

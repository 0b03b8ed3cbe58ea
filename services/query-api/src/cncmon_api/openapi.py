"""The OpenAPI 3.1 document: routes from FastAPI, schemas from the structs that make the bytes."""

from typing import Any, Final

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from cncmon_api.models import ANSWERS

_REFERENCE: Final = "#/components/schemas/{name}"
_FASTAPI_ERRORS: Final = ("HTTPValidationError", "ValidationError")
"""FastAPI's own error shape, which never leaves this service."""


def install(app: FastAPI) -> None:
    """Let the application document itself with our schemas; the document is made once."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign] # how FastAPI's manual extends OpenAPI


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes, openapi_version="3.1.0"
    )
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in _FASTAPI_ERRORS:
        schemas.pop(name, None)
    _, ours = msgspec.json.schema_components(ANSWERS, ref_template=_REFERENCE)
    schemas.update(ours)
    return document

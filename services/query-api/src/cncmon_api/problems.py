"""Every error as an RFC 9457 problem, from whatever layer it comes."""

from http import HTTPStatus
from typing import Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from cncmon_api import methods
from cncmon_api.errors import ApiError, UnavailableError
from cncmon_api.models import Problem, encode

MEDIA_TYPE: Final = "application/problem+json"


def body(status: int, title: str, detail: str, instance: str) -> bytes:
    """Return the bytes of a problem. `about:blank` (RFC 9457 section 4.2.1): the status says what kind it is."""
    return encode(Problem("about:blank", title, status, detail, instance))


def response(status: int, title: str, detail: str, instance: str, headers: dict[str, str] | None = None) -> Response:
    """Return a problem as a response that no cache keeps."""
    content = body(status, title, detail, instance)
    return Response(content, status, {"Cache-Control": "no-store", **(headers or {})}, MEDIA_TYPE)


def of(error: ApiError, instance: str) -> Response:
    """Return the problem of one of our own errors."""
    headers = {"Retry-After": str(error.retry_after_s)} if isinstance(error, UnavailableError) else None
    return response(error.status, error.title, error.detail, instance, headers)


def install(app: FastAPI) -> None:
    """Answer every error of the application with a problem."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return of(error, request.url.path)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        said = "; ".join(f"{item['loc'][-1]}: {item['msg']}" for item in error.errors())
        return response(400, "The request can't be used", f"{said}.", request.url.path)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        status = HTTPStatus(error.status_code)
        if status == HTTPStatus.METHOD_NOT_ALLOWED and request.method == "OPTIONS":
            return methods.options_of(request, (error.headers or {}).get("Allow", ""))
        details = {
            404: "There is nothing at this path; /openapi.json lists what there is.",
            405: f"{request.method} is not possible here; this API only answers GET, HEAD and OPTIONS.",
        }
        detail = details.get(status, status.description or status.phrase)
        return response(status, status.phrase, detail, request.url.path, dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, _error: Exception) -> Response:
        # Nothing of what went wrong inside: the server's log has it.
        return response(
            500, "Internal error", "The service failed on this request; its log says why.", request.url.path
        )

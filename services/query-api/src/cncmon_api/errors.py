"""The exceptions of the query API.

CncmonError
└── ApiError               becomes an RFC 9457 problem; `detail` is shown to the caller
    ├── BadRequestError    400: the request can't be used; says what is allowed. Change it
    ├── NotFoundError      404: no such machine
    └── UnavailableError   503: try again after `retry_after_s`
        ├── DatabaseDownError   the database can't be reached or used
        ├── QueryTooSlowError   the database ended the query; ask for less
        └── TooBusyError        a limit on concurrent work is reached
"""

from http import HTTPStatus
from typing import ClassVar

from cncmon_core.errors import CncmonError


class ApiError(CncmonError):
    """A request that can't be answered; `detail` is a sentence for the caller, free of internals."""

    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class BadRequestError(ApiError):
    """The request can't be used as it is."""

    status = HTTPStatus.BAD_REQUEST
    title = "The request can't be used"


class NotFoundError(ApiError):
    """What the request names is not there."""

    status = HTTPStatus.NOT_FOUND
    title = "Not found"


class UnavailableError(ApiError):
    """Not now; the same request may succeed later."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    title = "Not available now"
    retry_after_s: ClassVar[int] = 2


class DatabaseDownError(UnavailableError):
    """The database can't be reached, or not be used as it is."""

    title = "The database is not available"


class QueryTooSlowError(UnavailableError):
    """The database ended the query at its time limit."""

    title = "The query took too long"


class TooBusyError(UnavailableError):
    """A limit on concurrent work is reached."""

    title = "Too many requests at once"
    retry_after_s = 1

"""Every failure as OpenAI's envelope: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from reprlib import Repr
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from tristep.server.worker import RefusedError, WorkerError

TYPES = {403: "permission_error", 429: "rate_limit_error"}
VALIDATION_CODES = {"missing": "missing_required_parameter", "string_too_long": "string_above_max_length"}
MAX_QUOTE, MAX_NAME, MAX_REASON = 60, 200, 500
"""Characters of what is quoted of a client's value, of a field's name, and of what is wrong with it."""
QUOTES = Repr()
QUOTES.maxstring = QUOTES.maxother = MAX_QUOTE + 1
CLIENT_LEFT = 499
"""nginx's status for a client that didn't wait; nobody reads it but the log."""


class ApiError(HTTPException):
    """A failure with all that its envelope holds."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.code, self.param = code, param


def unsupported(param: str, message: str) -> ApiError:
    """Refuse a setting that this server can't heed."""
    return ApiError(400, message, code="unsupported_value", param=param)


def envelope(status: int, message: str, *, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """Return the body of a failure."""
    kind = "server_error" if status >= 500 else TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(error: HTTPException) -> JSONResponse:
    """Answer with a failure."""
    code, param = (error.code, error.param) if isinstance(error, ApiError) else (None, None)
    body = envelope(error.status_code, error.detail, code=code, param=param)
    return JSONResponse(body, error.status_code, dict(error.headers or {}))


def invalid(errors: Sequence[Any]) -> ApiError:
    """Turn what pydantic has against a body into one sentence about the first fault."""
    first = errors[0]
    param = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))[:MAX_NAME] or None
    code = VALIDATION_CODES.get(first["type"], "invalid_value")
    wrong = str(first["msg"]).removeprefix("Value error, ")[:MAX_REASON]
    if first["type"] == "missing":
        message = f"{param or 'the body'} is missing: give it"
    elif param is None:
        message = f"the body can't be read ({wrong}): expected JSON"
    else:
        message = f"{param} is {shortened(first['input'])}: {wrong[:1].lower()}{wrong[1:]}"
    return ApiError(400, message, code=code, param=param)


def shortened(value: Any) -> str:
    """Quote a value that may be endless, or endlessly deep."""
    quoted = QUOTES.repr(value)
    return quoted if len(quoted) <= MAX_QUOTE else f"{quoted[:MAX_QUOTE]}..."


def from_pydantic(error: ValidationError) -> ApiError:
    """Turn a model's refusal into ours."""
    return invalid(error.errors(include_url=False))


async def on_http_error(request: Request, error: Exception) -> Response:
    """Answer a failure that was raised on purpose, by us or by the framework."""
    assert isinstance(error, HTTPException)
    if isinstance(error, ApiError):
        return error_response(error)
    messages = {
        404: f"there is no {request.method} {request.url.path}",
        405: f"{request.url.path} takes no {request.method}: use {(error.headers or {}).get('Allow')}",
    }
    return error_response(
        HTTPException(error.status_code, messages.get(error.status_code, error.detail), error.headers)
    )


async def on_invalid(request: Request, error: Exception) -> Response:
    """Answer a body that the framework refused."""
    assert isinstance(error, RequestValidationError)
    return error_response(invalid(error.errors()))


async def on_refused(request: Request, error: Exception) -> Response:
    """Answer what the library refused, by the library's own sentence."""
    assert isinstance(error, RefusedError)
    return error_response(ApiError(400, str(error), code="invalid_value"))


async def on_disconnect(request: Request, error: Exception) -> Response:
    """End a request whose client has left."""
    return Response(status_code=CLIENT_LEFT)


async def on_bug(request: Request, error: Exception) -> Response:
    """Answer what nobody foresaw without telling how the server is made."""
    return error_response(ApiError(500, "the server failed: its log says why", code="internal_error"))


def install(app: FastAPI) -> None:
    """Make an app answer every failure in our shape."""
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(RefusedError, on_refused)
    app.add_exception_handler(ClientDisconnect, on_disconnect)
    app.add_exception_handler(WorkerError, on_bug)  # its process has logged why
    app.add_exception_handler(Exception, on_bug)

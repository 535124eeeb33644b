"""Errors in OpenAI's shape: the cause and the remedy in `message`."""

from __future__ import annotations

from typing import Any

from protea.errors import MissingExtra, ProteaError
from protea.serving.http.worker import Busy


def shape(error: ProteaError) -> dict[str, Any]:
    """The body that tells of an error."""
    kind = "invalid_request_error" if status(error) == 400 else "server_error"
    return {"error": {"message": str(error), "type": kind, "param": None, "code": type(error).__name__}}


def status(error: ProteaError) -> int:
    """The HTTP status of an error: what the client can mend is 400."""
    if isinstance(error, Busy):
        return 429
    if isinstance(error, MissingExtra) or type(error) is ProteaError:
        return 500
    return 400


def refusal(code: int, cause: str, remedy: str) -> Any:
    """A response that ends a request which was not read."""
    from starlette.responses import JSONResponse

    body = shape(ProteaError(cause, remedy))
    body["error"] |= {"type": "invalid_request_error", "code": code}
    return JSONResponse(body, code, {"WWW-Authenticate": "Bearer"} if code == 401 else None)

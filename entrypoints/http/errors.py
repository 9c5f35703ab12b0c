"""Maps error codes to HTTP statuses, and translates errors of the web framework."""

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import falcon

from mlxk.domain.errors import (
    InternalError,
    MethodNotAllowedError,
    MlxkError,
    NotFoundError,
    ValidationError,
)

ErrorBody = Callable[[MlxkError, str, str | None], tuple[str, bytes]]
"""Renders an error as the body of a response.

Takes the error, the request's id, and the field at fault, if the error itself does not name it; returns content type
and body.
"""

Refusal = Callable[[MlxkError, str, Mapping[str, Any]], tuple[Mapping[str, str], bytes]]
"""Renders the refusal of a request that the application never sees, such as one that is too large.

Takes the error, the request's id, and its WSGI environment as far as it was parsed; returns headers and body.
"""

HTTP_STATUS: dict[str, int] = {
    "usage_error": 400,
    "validation_error": 400,
    "model_not_found": 404,
    "ambiguous_match": 400,
    "hash_not_found": 404,
    "storage_error": 500,
    "model_unhealthy": 409,
    "incompatible_model": 501,
    "untrusted_model_code": 403,
    "backend_not_installed": 501,
    "capability_not_supported": 422,
    "context_length_exceeded": 400,
    "insufficient_memory": 507,
    "queue_full": 429,
    "feature_disabled": 403,
    "access_denied": 403,
    "network_error": 502,
    "download_failed": 502,
    "upload_failed": 502,
    "requires_confirmation": 409,
    "locks_present": 409,
    "workspace_model": 409,
    "secrets_found": 409,
    "conversion_failed": 500,
    "execution_error": 500,
    "interrupted": 503,
    "parameter_not_supported": 400,
    "not_found": 404,
    "method_not_allowed": 405,
    "unsupported_media_type": 415,
    "payload_too_large": 413,
    "request_timeout": 408,
    "unauthorized": 401,
    "forbidden_origin": 403,
    "server_shutdown": 503,
    "rank_lost": 503,
    "port_in_use": 500,
    "internal_error": 500,
}

RETRY_SECONDS = {"queue_full": 1, "server_shutdown": 5, "rank_lost": 5, "request_timeout": 1}
"""Values of the header ``Retry-After``, by error code."""


def status_of(error: MlxkError) -> int:
    """Return the HTTP status of an error."""
    return HTTP_STATUS[error.code]


def error_from_falcon(error: falcon.HTTPError) -> MlxkError:
    """Translate an error of Falcon, without its text, which may quote the request."""
    if error.status_code == 404:
        return NotFoundError("There is nothing at this address.", hint="GET /openapi.json lists what there is.")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "") if isinstance(error.headers, dict) else ""
        return MethodNotAllowedError(f"This address takes {allowed or 'another method'}.")
    if error.status_code >= 500:
        return InternalError("The server met an unexpected condition; its log says more.")
    return ValidationError("The request is malformed.")


def raised_at(trace: TracebackType | None) -> str:
    """Return the function and line that raised an exception; unlike the traceback, they cannot quote a request."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno}" if trace is not None else "unknown"

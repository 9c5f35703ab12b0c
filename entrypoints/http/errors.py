"""Errors as HTTP shows them: the status of each code, and one body that OpenAI's and mlx-knife's clients understand."""

from collections.abc import Mapping

import falcon

from mlxk.domain.errors import (
    InternalError,
    MethodNotAllowedError,
    MlxkError,
    NotFoundError,
    PayloadTooLargeError,
    UnsupportedMediaTypeError,
    ValidationError,
)
from mlxk.entrypoints.wording import http_error

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
    "port_in_use": 500,
    "internal_error": 500,
}


PARAMETER_OF_CODE = {
    "model_not_found": "model",
    "ambiguous_match": "model",
    "hash_not_found": "model",
    "model_unhealthy": "model",
    "incompatible_model": "model",
    "capability_not_supported": "model",
    "untrusted_model_code": "model",
    "backend_not_installed": "model",
    "insufficient_memory": "model",
}
"""Which field of a request is at fault, for failures that cannot say it themselves."""

RETRY_SECONDS = {"queue_full": 1, "server_shutdown": 5, "request_timeout": 1}
"""What ``Retry-After`` says."""


def status_of(error: MlxkError) -> int:
    """Return the HTTP status of a failure."""
    return HTTP_STATUS[error.code]


def error_document(error: MlxkError, request_id: str | None, parameter: str | None = None) -> Mapping[str, object]:
    """Return the body of an error response, and of an error event inside a stream.

    Args:
        error: What went wrong.
        request_id: Of the request, when there was one.
        parameter: The field at fault, when the caller knows it and the error does not.
    """
    problems = error.detail.get("problems") if error.detail else None
    if isinstance(problems, list) and problems:
        parameter = problems[0]["param"]
    message, hint = http_error(error)
    optional = {"hint": hint, "matches": list(error.matches), "detail": error.detail}
    return {
        "status": "error",
        "error": {
            "type": error.code,
            "message": message,
            "code": error.code,
            "param": parameter or PARAMETER_OF_CODE.get(error.code),
            "retryable": error.retryable,
            **{key: value for key, value in optional.items() if value},
        },
        "request_id": request_id,
    }


def translate(error: falcon.HTTPError) -> MlxkError:
    """Return a failure of Falcon's as one of ours; its texts may quote the request, so they are not used."""
    if error.status_code == 404:
        return NotFoundError("There is nothing at this address.", hint="GET /openapi.json lists what there is.")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "") if isinstance(error.headers, dict) else ""
        return MethodNotAllowedError(f"This address takes {allowed or 'another method'}.")
    if error.status_code == 413:
        return PayloadTooLargeError("The request body is larger than the server takes.")
    if error.status_code == 415:
        return UnsupportedMediaTypeError(
            "The body must be JSON.", hint="Send the header Content-Type: application/json"
        )
    if error.status_code >= 500:
        return InternalError("The server met an unexpected condition; its log says more.")
    return ValidationError("The request is malformed.")

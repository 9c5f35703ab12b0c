"""Error bodies of the Anthropic-compatible API, with the types, statuses and words that its clients act on."""

import json
from collections.abc import Mapping

from mlxk.domain.errors import MlxkError
from mlxk.entrypoints.http.errors import status_of
from mlxk.entrypoints.wording import http_error

ERROR_STATUSES: Mapping[str, int] = {
    "model_unhealthy": 400,
    "incompatible_model": 400,
    "backend_not_installed": 400,
    "capability_not_supported": 400,
    "insufficient_memory": 400,
    "queue_full": 529,
    "server_shutdown": 529,
}
"""Statuses by the code of an error, where they are others than usual: clients send a request again for 409 and for
everything from 500 on, so what no repetition helps against is 400."""

_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""Types of errors by status; others are ``api_error`` from 500 on, and ``invalid_request_error`` below."""


def error_document(error: MlxkError, request_id: str) -> Mapping[str, object]:
    """Return an error as a JSON document, for a response or for an event in a stream.

    Args:
        error: The error.
        request_id: Of the request.
    """
    status = ERROR_STATUSES.get(error.code, status_of(error))
    kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": _message(error)}, "request_id": request_id}


def error_body(error: MlxkError, request_id: str, _: str | None = None) -> tuple[str, bytes]:
    """Return content type and body of an error response."""
    return "application/json", json.dumps(error_document(error, request_id), ensure_ascii=False).encode()


def _message(error: MlxkError) -> str:
    facts = error.detail or {}
    tokens, window = facts.get("prompt_tokens") or facts.get("counted_tokens"), facts.get("context_length")
    if error.code == "context_length_exceeded" and isinstance(tokens, int) and isinstance(window, int):
        # Clients read both numbers from these words. A prompt that fills the window leaves no room for an answer.
        return f"prompt is too long: {tokens} tokens > {min(window, tokens - 1)} maximum"
    message, hint = http_error(error)
    if not hint:
        return message
    return f"{message}{'' if message.endswith(('.', '!', '?')) else '.'} {hint}"

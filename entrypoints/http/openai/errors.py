"""Error bodies of the OpenAI-compatible API, with the fields of OpenAI's and of mlx-knife's errors."""

import json
from collections.abc import Mapping

from mlxk.domain.errors import MlxkError
from mlxk.entrypoints.wording import http_error

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
"""Field at fault by error code, for errors that name none."""


def error_document(error: MlxkError, request_id: str | None, parameter: str | None = None) -> Mapping[str, object]:
    """Return an error as a JSON document, for a response or for an event in a stream.

    Args:
        error: The error.
        request_id: Id of the request; None without one.
        parameter: The field at fault, if the caller knows it and the error does not.
    """
    problems = error.detail.get("problems") if error.detail else None
    if isinstance(problems, list) and problems:
        parameter = problems[0]["param"]
    message, hint = http_error(error)
    message = _overflow(error, parameter) or message
    optional_fields = {"hint": hint, "matches": list(error.matches), "detail": error.detail}
    return {
        "status": "error",
        "error": {
            "type": error.code,
            "message": message,
            "code": error.code,
            "param": parameter or PARAMETER_OF_CODE.get(error.code),
            "retryable": error.retryable,
            **{key: value for key, value in optional_fields.items() if value},
        },
        "request_id": request_id,
    }


_OVERFLOW = {"messages": "your messages", "prompt": "your prompt", "input": "your input", "query": "your query"}
"""The input that is too long, in OpenAI's words, by its field."""


def _overflow(error: MlxkError, parameter: str | None) -> str | None:
    """Return OpenAI's sentence for a prompt beyond the context window, which clients parse; None for other errors."""
    facts = error.detail or {}
    if error.code != "context_length_exceeded" or "context_length" not in facts:
        return None
    text = _OVERFLOW.get(parameter or "", "your prompt")
    if "index" in facts:
        text = f"{(parameter or '').partition('[')[0]}[{facts['index']}]"
    if "counted_tokens" in facts:
        count = (
            f"the first {facts['counted_characters']} characters of {text} alone have {facts['counted_tokens']} tokens"
        )
    else:
        count = f"{text} resulted in {facts['prompt_tokens']} tokens"
    return (
        f"This model's maximum context length is {facts['context_length']} tokens. However, {count}."
        f" Please reduce the length of the {text.removeprefix('your ')}."
    )


def error_body(error: MlxkError, request_id: str, parameter: str | None = None) -> tuple[str, bytes]:
    """Return content type and body of an error response."""
    document = error_document(error, request_id, parameter)
    return "application/json", json.dumps(document, ensure_ascii=False).encode()

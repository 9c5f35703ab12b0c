"""Error bodies of the OpenAI-compatible API, readable for clients of OpenAI and of mlx-knife alike."""

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
"""The field at fault, for errors that do not name one."""


def error_document(error: MlxkError, request_id: str | None, parameter: str | None = None) -> Mapping[str, object]:
    """Return an error as a JSON document, for a response or for an event in a stream.

    Args:
        error: The error.
        request_id: Of the request, if there was one.
        parameter: The field at fault, when the caller knows it and the error does not.
    """
    problems = error.detail.get("problems") if error.detail else None
    if isinstance(problems, list) and problems:
        parameter = problems[0]["param"]
    message, hint = http_error(error)
    message = _overflow(error, parameter) or message
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


_OVERFLOW = {"messages": "your messages", "prompt": "your prompt", "input": "your input", "query": "your query"}
"""What was too long, by the field that it came in."""


def _overflow(error: MlxkError, parameter: str | None) -> str | None:
    """Return the sentence for a prompt beyond the context window, which clients know by OpenAI's words; else None."""
    facts = error.detail or {}
    if error.code != "context_length_exceeded" or "context_length" not in facts:
        return None
    what = _OVERFLOW.get(parameter or "", "your prompt")
    if "index" in facts:
        what = f"{(parameter or '').partition('[')[0]}[{facts['index']}]"
    noun = what.removeprefix("your ")
    if "counted_tokens" in facts:
        has = (
            f"the first {facts['counted_characters']} characters of {what} alone have {facts['counted_tokens']} tokens"
        )
    else:
        has = f"{what} resulted in {facts['prompt_tokens']} tokens"
    return (
        f"This model's maximum context length is {facts['context_length']} tokens. However, {has}."
        f" Please reduce the length of the {noun}."
    )


def error_body(error: MlxkError, request_id: str, parameter: str | None = None) -> tuple[str, bytes]:
    """Return content type and body of an error response."""
    document = error_document(error, request_id, parameter)
    return "application/json", json.dumps(document, ensure_ascii=False).encode()

"""Errors in the form of Ollama's API: one text, with what to do next at its end."""

import json
from collections.abc import Mapping

from mlxk.domain.errors import FeatureGateError, MlxkError, Remedy
from mlxk.entrypoints.wording import HTTP, hint, http_error

ERROR_STATUSES: Mapping[str, int] = {"capability_not_supported": 400}
"""HTTP statuses that differ from the usual ones."""

_SENTENCES: Mapping[Remedy, str] = {
    **HTTP,
    Remedy.FETCH: "GET /api/tags lists the models of this server.",
    Remedy.FETCH_OR_USE_CLOSE_NAME: "Did you mean {close}? GET /api/tags lists the models of this server.",
    Remedy.LIST_ALL: "GET /api/tags lists the models of this server.",
    Remedy.LEAVE_OUT_REASONING: "Leave it out, or choose a model with the capability thinking.",
    Remedy.LEAVE_OUT_TOOLS: "Leave them out, or choose a model with the capability tools.",
    Remedy.NAME_SERVED_MODEL: "Name one of the models GET /api/tags lists.",
    Remedy.USE_CLOSE_NAME: "Did you mean {close}? GET /api/tags lists the models of this server.",
    Remedy.USE_COMPLETIONS: "Send the text to /api/generate instead.",
    Remedy.USE_EMBEDDINGS: "Ask it for vectors: /api/embed.",
    Remedy.USE_NAME_OF_HUB: "GET /api/tags lists the models of this server.",
    Remedy.USE_PATH: "GET /api/tags lists the models of this server.",
}


def error_text(error: MlxkError) -> str:
    """Return what an error says, in one text."""
    if error.code == "model_not_found":
        return error.message  # clients compare it
    message, _ = http_error(error)
    message = _overflow(error) or message
    if error.matches:
        message = f"{message.rstrip('.')}: {', '.join(error.matches)}"
    advice = hint(error, _SENTENCES)
    return f"{message.rstrip('.')}. {advice}" if advice else message


def error_document(error: MlxkError) -> Mapping[str, object]:
    """Return an error as a JSON document, for a response or for a line in a stream."""
    return {"error": error_text(error)}


def error_body(error: MlxkError, request_id: str, parameter: str | None = None) -> tuple[str, bytes]:
    """Return content type and body of an error response."""
    return "application/json", json.dumps(error_document(error), ensure_ascii=False).encode()


def require_changes(allowed: bool) -> None:
    """Refuse changes of the models of this machine where the operator has not allowed them.

    Raises:
        FeatureGateError: They are not allowed.
    """
    if not allowed:
        raise FeatureGateError(
            "this server does not let clients pull and delete models",
            hint="Its operator can allow it: mlxk serve --allow-model-changes",
        )


def _overflow(error: MlxkError) -> str | None:
    """Return the sentence for a prompt beyond the context window, which begins with Ollama's words; else None."""
    facts = error.detail or {}
    if error.code != "context_length_exceeded" or "context_length" not in facts:
        return None
    what = "the prompt" if "index" not in facts else f"input[{facts['index']}]"
    if "counted_tokens" in facts:
        has = f"the first {facts['counted_characters']} characters of {what} have {facts['counted_tokens']} tokens"
    else:
        has = f"{what} has {facts['prompt_tokens']} tokens"
    return f"the input length exceeds the context length: {has}, the context window holds {facts['context_length']}"

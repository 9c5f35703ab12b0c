"""The wording of errors and health reasons: commands and flags on the command line, URLs over HTTP.

Each ``Remedy`` has one sentence per entrypoint. The code that raises an error chooses the remedy. Exit and HTTP
statuses are in tables of the entrypoints.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlxk.domain.errors import Advice, MlxkError, Remedy, error_type_of

if TYPE_CHECKING:
    from mlxk.domain.models.footprint import Matrices
    from mlxk.domain.models.model import HealthReport, ModelDescription

COMMAND_LINE: Mapping[Remedy, str] = {
    Remedy.ALLOW_MEDIA_PATHS: "The operator of the server can allow a folder: mlxk serve --allow-media-path DIR",
    Remedy.ALLOW_REMOTE_MEDIA: "The operator of the server can allow it: mlxk serve --allow-remote-media",
    Remedy.ALLOW_VOICE_CLONING: "The operator of the server can allow it: mlxk serve --allow-voice-cloning",
    Remedy.ACCEPT_CHANGES: "Keep it as it is: --accept-changes.",
    Remedy.ALLOW_SECRET: "Take it out, list the file in .hfignore, or say --allow FILE when it is no secret.",
    Remedy.CHECK_HEALTH: "See: mlxk health {name}",
    Remedy.CLONE_UNCHECKED: "Fetch it again, or clone it as it is with --no-health-check.",
    Remedy.COMPLETE_OR_REMOVE: "Complete it: mlxk pull {reference} --force-resume. Or remove it: mlxk rm {name}",
    Remedy.CONFIRM_PRUNING: "Say yes with --yes, or see with --dry-run what would go.",
    Remedy.CONFIRM_REMOVAL: "Write the exact name, or confirm it with --yes.",
    Remedy.CREATE_REPOSITORY: "Add --create to create it.",
    Remedy.DROP_TURNS: "Drop the oldest turns instead: /drop",
    Remedy.EXAMINE: "See what is wrong, and what mends it: mlxk doctor",
    Remedy.FETCH: "Fetch it: mlxk pull {name}",
    Remedy.FETCH_AGAIN: "Fetch the model again: mlxk pull MODEL --force-resume",
    Remedy.FETCH_BEFORE_CONVERTING: "Fetch it again first; --repair-index helps when only the index is wrong.",
    Remedy.FETCH_OR_USE_CLOSE_NAME: "Did you mean {close}? Otherwise fetch it: mlxk pull {name}",
    Remedy.FUSE_FIRST: "Build it into its model first: mlxk fuse {name} --into NAME",
    Remedy.FIND_CONVERSION: "Look for a conversion of the model, for example in mlx-community on the hub.",
    Remedy.LEAVE_OUT_REASONING: "Leave out --thinking, or choose a model that reasons; see: mlxk show MODEL",
    Remedy.LEAVE_OUT_TOOLS: "Leave out --tools, or choose a model that takes them; see: mlxk show MODEL",
    Remedy.LIST_ALL: "See what is here: mlxk list --all",
    Remedy.LIST_CAPABLE_MODELS: "Models that can have the capability {capability}; see: mlxk list --verbose",
    Remedy.MAKE_MANAGED: "Workspaces made by 'mlxk clone' and 'mlxk convert' are managed.",
    Remedy.MAKE_MANAGED_BY_CLONING: "Managed ones are made by mlxk clone.",
    Remedy.NAME_SERVED_MODEL: "Name one of the models that mlxk list shows.",
    Remedy.NAME_WITH_OWNER: (
        "Write ORG/NAME with letters, digits, '.', '_' and '-', for example: mlx-community/Phi-3-mini-4k"
    ),
    Remedy.PUBLISH_OPENLY: "Make it private on the hub first, or say --public when everybody may see this.",
    Remedy.REPAIR_INDEX: "Fix: mlxk convert <model> <output> --repair-index",
    Remedy.ROUND_LESS: "Few bits round so much. Try --dequantize, or keep it as it is: --accept-changes.",
    Remedy.RESUME_TRAINING: "Continue it with --resume, or begin anew with --restart.",
    Remedy.SMALLER_GROUPS: "Try a smaller --q-group-size.",
    Remedy.TRAIN_LESS_AT_ONCE: "Try --batch-size 1, a shorter --max-length, fewer --layers, or --grad-checkpoint.",
    Remedy.TRUNCATE_INPUT: "Shorten or divide it, or have it cut with --truncate.",
    Remedy.UNLOAD_FIRST: "Add --force to have it unloaded first: a server does so when no request uses it.",
    Remedy.USE_CHAT: "Ask it in a conversation: mlxk run --audio FILE",
    Remedy.USE_CLOSE_NAME: "Did you mean {close}? See what is here: mlxk list --all",
    Remedy.USE_COMPLETIONS: "Give it the prompt as raw text.",
    Remedy.USE_EMBEDDINGS: "Ask it for vectors: mlxk embed",
    Remedy.USE_RERANKING: "Have it order documents: mlxk rerank",
    Remedy.USE_SPEECH: "Have it speak a text: mlxk say",
    Remedy.USE_NAME_OF_HUB: (
        "Models of the hub are named like mlx-community/Llama-3.2-1B-Instruct-4bit. Look for one: mlxk search TERMS"
    ),
    Remedy.USE_PATH: "Did you mean the folder {path}? A path begins with ./ or /.",
    Remedy.USE_TRANSCRIPTION: "Give it a recording: mlxk run --audio FILE",
    Remedy.USE_TRANSLATING_MODEL: (
        "Try a multilingual Whisper that is not a turbo variant, such as mlx-community/whisper-large-v3-4bit; "
        "the reduced decoder of the turbo variants does not translate reliably."
    ),
}
"""The sentence of each remedy on the command line."""

HTTP: Mapping[Remedy, str] = {
    **COMMAND_LINE,
    Remedy.DROP_TURNS: "Leave out the oldest messages.",
    Remedy.FETCH: "GET /v1/models lists the models of this server.",
    Remedy.FETCH_OR_USE_CLOSE_NAME: "Did you mean {close}? GET /v1/models lists the models of this server.",
    Remedy.LIST_ALL: "GET /v1/models lists the models of this server.",
    Remedy.LEAVE_OUT_REASONING: "Leave it out, or choose one of GET /v1/models with supports_reasoning.",
    Remedy.LEAVE_OUT_TOOLS: ("Choose one of GET /v1/models with supports_tools, or have a call made with tool_choice."),
    Remedy.LIST_CAPABLE_MODELS: "Choose one of GET /v1/models with the capability {capability}.",
    Remedy.NAME_SERVED_MODEL: "Name one of the models GET /v1/models lists.",
    Remedy.TRUNCATE_INPUT: 'Shorten or divide it, or have it cut with "truncate": true.',
    Remedy.USE_CHAT: "Ask it in a conversation: input_audio in /v1/chat/completions.",
    Remedy.USE_CLOSE_NAME: "Did you mean {close}? GET /v1/models lists the models of this server.",
    Remedy.USE_COMPLETIONS: "Send the text to /v1/completions instead.",
    Remedy.USE_EMBEDDINGS: "Ask it for vectors: /v1/embeddings.",
    Remedy.USE_RERANKING: "Have it order documents: /v1/rerank.",
    Remedy.USE_SPEECH: "Have it speak a text: /v1/audio/speech.",
    Remedy.USE_NAME_OF_HUB: "GET /v1/models lists the models of this server.",
    # The same as for any unknown name: a client must not learn which folders exist.
    Remedy.USE_PATH: "GET /v1/models lists the models of this server.",
    Remedy.USE_TRANSCRIPTION: "Give it a recording: /v1/audio/transcriptions.",
}
"""The sentence of each remedy over HTTP; remedies for the server's operator name commands."""

_BACKEND_BUG = ("Index/shard mismatch.", "Index/shard mismatch (mlx-vlm #624).")
"""A health reason, and its replacement, which names the known cause."""


def command_line_error(error: MlxkError, flags: Mapping[str, str] | None = None) -> tuple[str, str | None]:
    """Return message and hint of an error for the command line; names of options in the message become flags.

    Args:
        error: The error.
        flags: The spelling of flags as typed, by option name; other options get the long flag of their name.
    """
    message = error.message
    for option in error.options:
        flag = (flags or {}).get(option, f"--{option.replace('_', '-')}")
        message = re.sub(rf"(?<![\w-]){re.escape(option)}\b", flag, message, count=1)
    return _with_fix(message, error.fix), hint(error, COMMAND_LINE)


def http_error(error: MlxkError) -> tuple[str, str | None]:
    """Return message and hint of an error for an HTTP response."""
    return _with_fix(error.message, error.fix), hint(error, HTTP)


def error_of(code: str, document: Mapping[str, Any]) -> MlxkError:
    """Rebuild an error that another mlxk process reported as JSON, in the wording of the command line.

    Args:
        code: The error's code.
        document: Its ``message`` and, where it has them, ``hint``, ``matches`` and ``detail``.
    """
    return error_type_of(code)(
        document["message"],
        hint=document.get("hint"),
        matches=tuple(document.get("matches") or ()),
        detail=document.get("detail"),
    )


def hint(error: MlxkError, sentences: Mapping[Remedy, str]) -> str | None:
    """Return the hint of an error, with the sentence of its remedy; None without a hint."""
    if isinstance(error.hint, Advice):
        return sentences[error.hint.remedy].format(**error.hint.values)
    return error.hint


def matrices_words(matrices: "Matrices") -> str:
    """Describe the library that multiplies matrices on a CPU, with advice where it is slow."""
    if matrices.library is not None:
        return f"multiplied by {matrices.library}"
    if matrices.could_be_faster:
        return "multiplied slowly; OpenBLAS is many times faster (Debian, Ubuntu: apt install libopenblas0)"
    return "multiplied slowly, since no library for it may be used"


def health_reason(report: "HealthReport") -> str:
    """Return the reason of a health report, and the command that repairs the model, if any."""
    return _with_fix(report.reason, report.fix)


def model_reason(description: "ModelDescription") -> str | None:
    """Return the first fault of a model, and the command that repairs it, if any; None for a sound model."""
    return description.reason and _with_fix(description.reason, description.health.fix)


def _with_fix(text: str, fix: Remedy | None) -> str:
    return text if fix is None else f"{text.replace(*_BACKEND_BUG)} {COMMAND_LINE[fix]}"

"""Translation of the exceptions that libraries raise while a model is loaded.

Their messages may contain paths, so they go to the log only.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Mapping

from mlxk.adapters.mlx.library_imports import exhaustion, import_failure
from mlxk.adapters.mlx.loading.model_files import json_fault
from mlxk.domain.errors import (
    Advice,
    ExecutionError,
    IncompatibleModelError,
    MlxkError,
    ModelNotFoundError,
    Remedy,
    StorageError,
    UnhealthyModelError,
    UntrustedModelCodeError,
)
from mlxk.domain.models.model import ModelHandle

_FILE_ERRORS = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    IndexError,
    OSError,
    RecursionError,
)
"""Raised by the libraries for an unexpected config, weights or tokenizer."""

_READING_FAILED = ("[load_safetensors]", "[read]")
"""Prefixes of MLX's messages when a weight file cannot be read."""

_TOKENIZER_MODULE = re.compile(r"^(transformers|mlx_lm)\..*tokeniz")

_MISSING_SETTINGS = re.compile(r"missing \d+ required (?:positional|keyword-only) arguments?: (.+)", re.DOTALL)
_WEIGHTS = re.compile(r"(?P<kind>Missing|Received) (?P<count>\d+) parameters(?: not in model)?:\s*(?P<first>[^\s,]+)")
_SHAPES = re.compile(r"Expected shape (\(.*?\)) but received shape (\(.*?\)) for parameter (\S+)")


def loading_failure(error: Exception, handle: ModelHandle, unknown: str) -> MlxkError:
    """Return the error for a model that could not be loaded.

    Args:
        error: The library's exception.
        handle: The model.
        unknown: Message for an unknown architecture, to follow the model's name.
    """
    reason, name = str(error), handle.name
    if (exhausted := exhaustion(error)) is not None:
        return type(exhausted)(f"'{name}' could not be loaded. {exhausted.message}", hint=exhausted.hint)
    if isinstance(error, FileNotFoundError):
        return unreadable_files(error, handle)
    if "trust_remote_code" in reason or "custom code" in reason:
        return UntrustedModelCodeError(f"'{name}' wants to run code of its own; it is never executed.")
    if isinstance(error, ValueError) and "not supported" in reason:
        return IncompatibleModelError(f"'{name}' {unknown}.")
    if isinstance(error, ImportError):
        return import_failure(error, f"Running '{name}'")
    if reason.startswith(_READING_FAILED) or mismatch(error) is not None:
        return _mismatched(error, name)
    if _in_tokenizer(error):
        return json_fault(handle) or UnhealthyModelError(
            f"The tokenizer of '{name}' cannot be used: {in_words(error)}.",
            hint="Download the model again, or take tokenizer.json and tokenizer_config.json from where its weights "
            "come from.",
        )
    if isinstance(error, _FILE_ERRORS):
        return json_fault(handle) or _mismatched(error, name)
    return ExecutionError(
        f"'{name}' could not be loaded: {in_words(error)}.", hint=Advice(Remedy.CHECK_HEALTH, {"name": name})
    )


@contextlib.contextmanager
def translated(handle: ModelHandle, unknown: str) -> Iterator[None]:
    """Translate exceptions of the libraries inside the block, which loads a model.

    Args:
        handle: The model.
        unknown: See ``loading_failure``.

    Raises:
        MlxkError: In place of any other exception.
    """
    try:
        yield
    except MlxkError:
        raise
    except Exception as error:
        raise loading_failure(error, handle, unknown) from error


def unreadable_files(error: OSError, handle: ModelHandle) -> MlxkError:
    """Return the error for a model whose files cannot be read, perhaps because it has been removed meanwhile."""
    name = handle.name
    if not os.path.isdir(handle.directory):
        return ModelNotFoundError(f"model '{name}' is no longer on this machine", hint=Advice(Remedy.NAME_SERVED_MODEL))
    if isinstance(error, FileNotFoundError):
        return UnhealthyModelError(f"'{name}' lacks files.", hint=Advice(Remedy.CHECK_HEALTH, {"name": name}))
    return StorageError(f"the files of '{name}' cannot be read: {error.strerror}", hint=_READING_HINTS.get(error.errno))


_READING_HINTS: Mapping[int | None, str] = {
    errno.EMFILE: "The limit of open files of this process is reached; raise it with: ulimit -n",
    errno.ENFILE: "The limit of open files of this machine is reached.",
    errno.EACCES: "Give the user of this process the permission to read them.",
}


def _mismatched(error: Exception, name: str) -> UnhealthyModelError:
    return UnhealthyModelError(
        f"The files of '{name}' do not fit together: {mismatch(error) or in_words(error)}.",
        hint="Download the model again, or take config.json from where its weights come from.",
    )


def in_words(error: Exception) -> str:
    """Return a description of a library's exception without its message, which may contain paths."""
    if isinstance(error, KeyError) and error.args and re.fullmatch(r"[\w.\-]{1,64}", str(error.args[0])):
        return f"'{error.args[0]}' is missing"
    if isinstance(error, RecursionError):
        return "they are nested too deeply"
    if isinstance(error, (ArithmeticError, IndexError)):
        return "a number in them is out of range"
    if isinstance(error, (TypeError, AttributeError)):
        return "a value in them is of another kind than the library expects"
    return "the library that runs the model refuses them"


def _in_tokenizer(error: Exception) -> bool:
    """Whether an exception comes from tokenizer code, by the module names in its traceback."""
    trace = error.__traceback__
    while trace is not None:
        if _TOKENIZER_MODULE.search(trace.tb_frame.f_globals.get("__name__", "")):
            return True
        trace = trace.tb_next
    return False


def mismatch(error: Exception) -> str | None:
    """Return how a model's config and weights differ; None if the exception does not say."""
    reason = str(error)
    if isinstance(error, TypeError) and (settings := _MISSING_SETTINGS.search(reason)):
        return "config.json lacks " + ", ".join(re.findall(r"'(\w+)'", settings[1]))
    if shapes := _SHAPES.search(reason):
        return f"config.json makes {shapes[3]} {shapes[1]}, the weights have {shapes[2]}"
    if weights := _WEIGHTS.search(reason):
        count, first = int(weights["count"]), weights["first"].rstrip(".")
        one, which = count == 1, f": {first}" if count == 1 else f", the first is {first}"
        tensors = "1 tensor" if one else f"{count} tensors"
        if weights["kind"] == "Missing":
            return f"{tensors} that config.json asks for {'is' if one else 'are'} not among the weights{which}"
        return f"{tensors} among the weights {'has' if one else 'have'} no place in what config.json describes{which}"
    return None

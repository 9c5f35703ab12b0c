"""Builds ``ServerSettings`` from flags, else variables, else the settings file; ``served_names`` does so for models."""

import argparse
import os

import attrs

from mlxk.domain.errors import UsageError, ValidationError
from mlxk.entrypoints.api_keys import is_followed, read_key_file
from mlxk.entrypoints.cli.command import CommandContext, hosts_settings, ranks_flag
from mlxk.entrypoints.cli.served_names import read_names
from mlxk.entrypoints.settings import ServerSettings

DEFAULT_LOG_LEVEL = "info"


DESKTOP_ORIGINS = (
    "app://*",
    "capacitor://*",
    "file://*",
    "ionic://*",
    "tauri://*",
    "http://tauri.localhost",
    "https://tauri.localhost",
    "vscode-file://*",
    "vscode-webview://*",
    "wails://*",
)
"""Origins of desktop apps, none of which a page on the web can have."""


_AS_GIVEN = (
    "enable_thinking",
    "thinking_budget",
    "thinking_start_token",
    "thinking_end_token",
    "local_ranks",
    "rank_timeout",
    "max_streams",
    "max_queue",
    "keep_alive",
    "embed_backend",
    "image_metadata",
    "strict_memory",
    "strict_capabilities",
    "special_tokens_in_content",
    "allow_model_changes",
    "allow_remote_media",
    "allow_voice_cloning",
    "page",
)
"""Flags without a variable whose attributes have the names of fields of ``ServerSettings``."""


_SINGLE_PROCESS_FLAGS = (
    "draft_model",
    "adapter",
    "pin",
    "kv_bits",
    "kv_scheme",
    "kv_group_size",
    "max_kv_size",
    "prefix_cache_dir",
    "prefix_cache_bits",
    "keep_alive",
)
"""Flags that a model spread over several processes does not support, by attribute."""


def require_alone(arguments: argparse.Namespace, model: str | None) -> None:
    """Check the flags of a server whose model is spread over several processes.

    Args:
        arguments: The command line, with the values of the settings file.
        model: The model to load at start; None for none.

    Raises:
        UsageError: A flag is not supported, or there is no model; names the flag.
    """
    spread = ranks_flag(arguments)
    if spread is None:
        return
    if model is None:
        raise UsageError(f"{spread} needs --model", hint="Name the model to spread over the processes.")
    for name in _SINGLE_PROCESS_FLAGS:
        if getattr(arguments, name) not in (None, []):
            flag = name.replace("_", "-")
            raise UsageError(
                f"{spread} and --{flag} exclude each other",
                hint="A model that is spread over processes does without; leave one of them out.",
            )


def require_values(arguments: argparse.Namespace) -> None:
    """Check that no flag is empty, as it is when a shell expands an unset variable.

    An empty path would mean the working directory, and an empty host every interface.

    Raises:
        ValidationError: Flags are empty; names them.
    """
    faults = [
        f"--{name.replace('_', '-')} must not be empty"
        for name, value in vars(arguments).items()
        if value == "" or (isinstance(value, list) and "" in value)
    ]
    if faults:
        raise ValidationError("; ".join(faults), hint="Give it a value, or leave it out.")


def server_settings(arguments: argparse.Namespace, context: CommandContext) -> ServerSettings:
    """Return the settings from flags, else variables, else the settings file, else the defaults.

    Raises:
        MlxkError: A flag is invalid or excludes another, or a file that a flag names cannot be read.
    """
    require_values(arguments)
    defaults = context.settings.serve
    require_alone(arguments, arguments.model or defaults.model)
    level = "debug" if arguments.verbose else arguments.log_level
    given = {name: getattr(arguments, name) for name in _AS_GIVEN} | {
        "host": _first(arguments.host, defaults.host),
        "port": _first(arguments.port, defaults.port),
        "model": _first(arguments.model, defaults.model),
        "max_tokens": _first(arguments.max_tokens, defaults.max_tokens),
        "chunk": _first(arguments.chunk, defaults.chunk),
        "log_level": _first(level, defaults.log_level, DEFAULT_LOG_LEVEL),
        "max_body_mib": arguments.max_body,
        "memory_budget_mib": arguments.memory_budget,
        "vision_cache_mib": arguments.vision_cache_size,
        "prefix_cache_dir": _absolute(arguments.prefix_cache_dir),
        "prefix_cache_disk_gib": arguments.prefix_cache_disk,
        "drain_seconds": arguments.drain_timeout,
        "cpu_dtype": _first(arguments.cpu_dtype, context.settings.cpu_dtype),
        "blas": _first(arguments.blas, context.settings.blas),
        "log_json": _first(arguments.log_json, context.settings.log_json),
        "allow_paths": arguments.allow_model_paths,
        "otlp": arguments.otlp,
        "supervised": arguments.supervisor,
        **hosts_settings(arguments),
    }
    if arguments.prefix_cache_disk is not None and arguments.prefix_cache_dir is None:
        raise ValidationError("--prefix-cache-disk needs --prefix-cache-dir", hint="Name a folder to keep prompts in.")
    file = _absolute(arguments.api_key_file)
    keys = () if file is None else read_key_file(file)
    followed = file is not None and is_followed(file)
    return ServerSettings(
        **{name: value for name, value in given.items() if value is not None},
        exif_metadata=context.settings.exif_metadata,
        file_variables=context.settings.file_variables,
        **attrs.asdict(read_names(arguments, context), recurse=False),
        default_model=arguments.default_model,
        cors_origins=(*_split(arguments.cors_origin), *(DESKTOP_ORIGINS if arguments.desktop_apps else ())),
        allowed_hosts=_split(arguments.allowed_host),
        media_paths=tuple(map(_media_folder, arguments.allow_media_path)),
        api_keys=(*(() if defaults.api_key is None else (defaults.api_key,)), *(() if followed else keys)),
        operator_key=defaults.api_key,
        api_key_file=file if followed else None,
        reload=arguments.reload or defaults.reload,
        until_eof=arguments.until_eof,
    )


def _media_folder(typed: str) -> str:
    """Return the absolute path of a folder of media.

    Raises:
        ValidationError: There is no such folder.
    """
    path = os.path.abspath(os.path.expanduser(typed))
    if not os.path.isdir(path):
        raise ValidationError(f"--allow-media-path: '{typed}' is not a folder")
    return path


def _absolute(path: str | None) -> str | None:
    return None if path is None else os.path.abspath(os.path.expanduser(path))


def _first(*values: object) -> object:
    """Return the first value that is not None."""
    return next((value for value in values if value is not None), None)


def _split(values: list[str]) -> tuple[str, ...]:
    """Return the values of a repeatable flag, split at commas."""
    return tuple(part for value in values for each in value.split(",") if (part := each.strip()))

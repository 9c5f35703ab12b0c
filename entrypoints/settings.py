"""The settings of commands, read once from the environment and the settings file, and those of the server.

Only this module reads the environment; ``docs/environment.md`` lists the variables. Flags override variables,
variables the settings file, and the file the defaults; the commands apply the flags.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from mlxk.domain.errors import ValidationError
from mlxk.entrypoints import settings_file
from mlxk.entrypoints.setting_kinds import is_host_name, is_origin, is_switched_off, is_switched_on, is_web_address
from mlxk.entrypoints.setting_table import BLAS_CHOICES, CPU_DTYPES, LOG_LEVELS, TABLES, setting
from mlxk.entrypoints.settings_file import SettingsFile

MIB = 2**20

_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")
_MAX_DIGITS = 100
"""Digits of a number in a variable, leading zeros included; ``int`` raises on thousands of digits."""
_REFERENCE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})", re.ASCII)
"""Matches a variable inside a path."""

DEFAULT_OWNER = "mlx-community"
"""The hub owner that a model name without an owner gets."""
_OPEN_TELEMETRY = re.compile(r"OTEL_(?!\w*HEADERS=)\w+=[^@]*")
"""Matches NAME=VALUE of OpenTelemetry's variables without credentials: no headers, and no password in a URL."""
_ENGINE_VARIABLE = re.compile(r"MLX_\w+|CUDA_VISIBLE_DEVICES|LD_PRELOAD|DYLD_INSERT_LIBRARIES", re.ASCII)
"""Matches the variables of MLX and its libraries that change what they compute, or on which device."""


@attrs.frozen
class ServeVariables:
    """The settings of ``serve`` that have variables, from these or the settings file; None where neither sets one."""

    host: str | None = None
    port: int | None = None
    model: str | None = None
    max_tokens: int | None = None
    chunk: int | None = None
    api_key: str | None = attrs.field(default=None, repr=False)
    reload: bool = False
    log_level: str | None = None


@attrs.frozen(kw_only=True)
class ComputingSettings:
    """Where and in which number format a model is computed; part of the settings of commands and of the server."""

    cpu_dtype: str = "auto"
    blas: str = "auto"
    local_ranks: int = 1
    """Number of processes (ranks) of this machine that compute the model together."""
    rank_hosts: tuple[tuple[str, str, str | None], ...] = ()
    """Instead, ranks on several machines, this one first: the fields of each ``RankHost``."""
    rank_backend: str | None = None
    """The backend of ``mlx.distributed`` that the host file asks for; None where it names none."""
    rank_timeout: float = 5.0
    """Seconds without a heartbeat after which a rank counts as lost."""


@attrs.frozen
class Settings(ComputingSettings):
    """The settings of all commands, from variables and the settings file."""

    hub_cache: str
    """Absolute path of the hub cache, which need not exist."""
    home: str
    """The user's home directory, which logs show as ``~``."""
    chat_history: str
    """Path of the file with the lines typed in chats."""
    hub_token_file: str
    """Path of the file with the hub's token, which need not exist."""
    hub_endpoint: str = "https://huggingface.co"
    default_owner: str = DEFAULT_OWNER
    """The hub owner that a model name without an owner gets; all its models are in MLX's format."""
    hub_token: str | None = attrs.field(default=None, repr=False)
    hub_offline: bool = False
    hub_token_for_writing_only: bool = False
    """Whether requests that only read are sent without the token."""
    hub_links: bool = True
    """Whether snapshots hold symbolic links to blobs, else the files themselves."""
    hub_metadata_timeout: int = 10  # seconds
    hub_timeout: int = 10  # seconds
    workspace_home: str | None = None
    enable_pipes: bool = True
    """Whether piped text is joined to a prompt given in words."""
    enable_alpha: bool = False
    """Whether experimental commands are allowed."""
    audio_segments: bool = False
    """Whether to print a table of segments after a transcript."""
    exif_metadata: bool = True
    """Whether EXIF metadata of images is shown to users and models."""
    log_level: str = "warning"
    log_json: bool = False
    serve: ServeVariables = ServeVariables()
    color: bool = True
    """Whether to use colours on a terminal."""
    temporary_folder: str | None = None
    """Directory of temporary files; None for the default of the system."""
    search_path: str = ""
    """The value of PATH."""
    over_ssh: bool = False
    """Whether this is an ssh session; clipboard programs here do not reach the user's machine then."""
    dumb_terminal: bool = False
    """Whether the terminal understands no control sequences."""
    completion_line: str | None = None
    """The command line that a shell wants to complete; None for a normal run."""
    keep_chats: bool = False
    editor: str | None = None
    """The editor's command line, from VISUAL or EDITOR."""
    file: SettingsFile = attrs.field(factory=lambda: SettingsFile(""))
    """The settings file; its settings that have variables are in the other fields."""
    set_variables: frozenset[str] = frozenset()
    """The names of the environment's non-empty variables."""
    file_variables: tuple[tuple[str, str], ...] = attrs.field(default=(), repr=False)
    """The file's settings as variables, for child processes, which do not read the file."""
    use_server: bool = True
    """Whether commands compute on a running server of this user."""
    server_sockets: str = ""
    """The folder of the sockets of this user's servers, which need not exist."""
    state_folder: str = ""
    """The folder of data kept between runs, such as server logs; it need not exist."""
    engine_variables: tuple[tuple[str, str], ...] = ()
    """Variables of MLX and its libraries that change results or the device, with their values, sorted."""
    telemetry_variables: tuple[tuple[str, str], ...] = ()
    """The OTEL_ variables with their values, sorted, without any that may hold credentials."""


@attrs.frozen(kw_only=True)
class ServerSettings(ComputingSettings):
    """The settings of the server. All values have a form in JSON, in which the worker process gets them."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes any free port."""
    model: str | None = None
    """The model to load at start."""
    embed_model: str | None = None
    """The model of all embeddings, whatever model a request names; None lets requests choose."""
    embed_backend: str | None = None
    """The address of another embeddings server; None computes embeddings in this server."""
    max_tokens: int | None = None
    """Most tokens of a completion whose request sets no limit; None allows the remainder of the context window."""
    chunk: int = 1
    """Images per chunk when the request does not set it."""
    image_metadata: bool = False
    """Whether an answer about images begins with their metadata table by default."""
    exif_metadata: bool = True
    """Whether the metadata table is available; if not, only an image's pixels reach model and client."""
    enable_thinking: bool | None = None
    """Whether models reason first by default; None leaves it to their chat templates."""
    thinking_budget: int | None = None
    """Most tokens of reasoning when the request sets no limit."""
    thinking_start_token: str | None = None
    """The text that begins reasoning; None for the model's own."""
    thinking_end_token: str | None = None
    """The text that ends reasoning; None for the model's own."""
    max_streams: int = 32
    """Completions computed at the same time."""
    max_queue: int = 96
    """Requests that may wait in the queue."""
    max_body_mib: int = 72
    """Largest request body, in MiB; base64 makes images a third larger."""
    keep_alive: float | None = None
    """Seconds after which an idle model is unloaded; None keeps it."""
    memory_budget_mib: int | None = None
    """Budget of all weights in memory, in MiB; None derives it from the machine's memory."""
    vision_cache_mib: int = 512
    """Size of a model's cache of encoded images, in MiB; 0 disables it."""
    prefix_cache_dir: str | None = None
    """Absolute path of the folder of the prefix cache's disk tier; None keeps prefixes in memory only."""
    prefix_cache_disk_gib: float = 10.0
    """Size of the disk tier, in GiB."""
    strict_memory: bool = False
    """Whether a model beyond the memory budget is refused; by default it runs with a warning."""
    strict_capabilities: bool = False
    """Whether to refuse tools for models that are not trained for them."""
    special_tokens_in_content: bool = False
    """Whether control tokens spelled out in messages take effect by default."""
    allow_paths: bool = False
    """Whether clients may name a model by its path."""
    aliases: tuple[tuple[str, str], ...] = ()
    """Further names of models, each with its model reference."""
    entries: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    """The names from the settings file and of adapters, each with its settings."""
    ready: tuple[str, ...] = ()
    """Names of adapters and pinned models, which are loaded at start."""
    preferred: Mapping[str, Any] = attrs.field(factory=dict)
    """Settings, by the keys of a name's table, for every model that supports them."""
    model_defaults: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    """Settings, by the keys of a name's table, for one model under all its names; by model reference."""
    file_variables: tuple[tuple[str, str], ...] = attrs.field(default=(), repr=False)
    """The settings file's values as variables; the worker does not read the file."""
    page: bool | None = None
    """Whether to serve the chat page; None serves it when the server listens on loopback only."""
    default_model: str | None = None
    """The model for requests with an unknown model name or none; None refuses them."""
    allow_model_changes: bool = False
    """Whether clients may pull and remove models."""
    media_paths: tuple[str, ...] = ()
    """Absolute paths of the folders below which clients may name files of images, clips and sound."""
    allow_remote_media: bool = False
    """Whether clients may name images, clips and sound by public URL, which the server then fetches."""
    allow_voice_cloning: bool = False
    """Whether clients may send a recording to have its voice imitated."""
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = attrs.field(default=(), repr=False)
    operator_key: str | None = attrs.field(default=None, repr=False)
    """The one of them that also opens the endpoints that concern all clients; None for none."""
    api_key_file: str | None = None
    """Absolute path of a file with further keys, read again when it changes."""
    drain_seconds: float = 30.0
    """Seconds that running completions may take to finish when the server stops."""
    log_level: str = "info"
    log_json: bool = False
    otlp: bool = False
    """Whether traces and metrics are sent to the collector that the OTEL_ variables name."""
    supervised: bool = True
    """Whether a supervisor restarts the worker when it dies."""
    reload: bool = False
    """Whether the worker is restarted when the program's source changes."""
    until_eof: bool = False
    """Whether the server stops at the end of standard input, so that it ends with the program that started it."""

    def validate(self) -> None:
        """Check all ranges.

        Raises:
            ValidationError: Names each flag that is out of range.
        """
        faults = [
            f"{each.flag} {fault}"
            for each in (*TABLES["serve"], setting("", "chunk"))
            if isinstance(value := getattr(self, each.attribute, None), int | float)
            and (fault := each.kind.fault(value))
        ]
        if self.embed_backend is not None and not is_web_address(self.embed_backend):
            faults.append(f"--embed-backend must be an http(s) URL with a host (got: '{self.embed_backend}')")
        faults += [
            f"--cors-origin: '{origin}' is not an origin; write SCHEME://HOST, SCHEME://* for every page of a scheme, "
            "null for pages opened from files, or * for every page"
            for origin in self.cors_origins
            if not is_origin(origin)
        ]
        faults += [
            f"--allowed-host: '{name}' is not the name of a host; write it without scheme, port and wildcard"
            for name in self.allowed_hosts
            if not is_host_name(name)
        ]
        if faults:
            raise ValidationError("; ".join(faults))


def read_settings(
    environ: Mapping[str, str] | None = None, handed_down: tuple[tuple[str, str], ...] | None = None
) -> Settings:
    """Read the environment and the settings file. An empty variable counts as unset.

    Args:
        environ: The environment; None takes that of the process.
        handed_down: The ``file_variables`` of the parent process, which has read the file; None reads it here.

    Raises:
        ValidationError: A variable has an invalid value. Errors in the file are in its ``faults``.
    """
    known = {name: value for name, value in (os.environ if environ is None else environ).items() if value}
    home = known.get("HOME") or os.path.expanduser("~")
    configuration = _absolute(known.get("XDG_CONFIG_HOME") or os.path.join(home, ".config"), home, known)
    path, variables = os.path.join(configuration, "mlxk", "config.toml"), frozenset(known)
    file = settings_file.read(path) if handed_down is None else SettingsFile(path)
    from_file = file.as_variables(known) if handed_down is None else dict(handed_down)
    known = {**from_file, **known}
    states = known.get("XDG_STATE_HOME") or os.path.join(home, ".local", "state")
    state = os.path.join(_absolute(states, home, known), "mlxk")
    workspace_home = known.get("MLXK_WORKSPACE_HOME")
    return Settings(
        home=home,
        **_hub_settings(known, home),
        chat_history=os.path.join(state, "chat_history"),
        workspace_home=_absolute(workspace_home, home, known) if workspace_home else None,
        enable_pipes=not is_switched_off(known, "MLXK2_ENABLE_PIPES"),
        enable_alpha=is_switched_on(known, "MLXK2_ENABLE_ALPHA_FEATURES"),
        audio_segments=is_switched_on(known, "MLXK2_AUDIO_SEGMENTS"),
        exif_metadata=not is_switched_off(known, "MLXK2_EXIF_METADATA"),
        log_level=_choice(known, "MLXK2_LOG_LEVEL", LOG_LEVELS, "warning"),
        log_json=is_switched_on(known, "MLXK2_LOG_JSON"),
        serve=_serve_variables(known),
        color=not known.get("NO_COLOR") and known.get("TERM") != "dumb",
        temporary_folder=known.get("TMPDIR"),
        search_path=known.get("PATH", ""),
        over_ssh="SSH_CONNECTION" in known or "SSH_TTY" in known,
        dumb_terminal=known.get("TERM") == "dumb",
        completion_line=known.get("COMP_LINE", "") if "_ARGCOMPLETE" in known else None,
        keep_chats=file.values("chat").get("keep", False),
        editor=known.get("VISUAL") or known.get("EDITOR"),
        file=file,
        set_variables=variables,
        file_variables=tuple(from_file.items()),
        use_server=not is_switched_off(known, "MLXK2_USE_SERVER"),
        cpu_dtype=_choice(known, "MLXK2_CPU_DTYPE", CPU_DTYPES, "auto"),
        blas=_choice(known, "MLXK2_BLAS", BLAS_CHOICES, "auto"),
        server_sockets=os.path.join(state, "sockets"),
        state_folder=state,
        engine_variables=tuple(sorted(each for each in known.items() if _ENGINE_VARIABLE.fullmatch(each[0]))),
        telemetry_variables=tuple(sorted(each for each in known.items() if _OPEN_TELEMETRY.fullmatch("=".join(each)))),
    )


def inherited(changes: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a child process: that of this process, with changes."""
    return {**os.environ, **changes}


@contextlib.contextmanager
def temporary_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables within the block, for a library that has no other configuration."""
    former = {name: os.environ[name] for name in variables if name in os.environ}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in os.environ.keys() & variables.keys():
            del os.environ[name]
        os.environ.update(former)


def _hub_settings(known: Mapping[str, str], home: str) -> dict[str, Any]:
    caches = known.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")
    hub_home = known.get("HF_HOME") or os.path.join(caches, "huggingface")
    cache = known.get("HF_HUB_CACHE") or known.get("HUGGINGFACE_HUB_CACHE") or os.path.join(hub_home, "hub")
    return {
        "hub_cache": _absolute(cache, home, known),
        "hub_token_file": _absolute(known.get("HF_TOKEN_PATH") or os.path.join(hub_home, "token"), home, known),
        "hub_endpoint": _address(known, "HF_ENDPOINT", "https://huggingface.co"),
        "hub_token": next(filter(None, (known.get(name, "").strip() for name in _TOKENS)), None),
        "hub_offline": is_switched_on(known, "HF_HUB_OFFLINE" if "HF_HUB_OFFLINE" in known else "TRANSFORMERS_OFFLINE"),
        "hub_token_for_writing_only": is_switched_on(known, "HF_HUB_DISABLE_IMPLICIT_TOKEN"),
        "hub_links": not is_switched_on(known, "HF_HUB_DISABLE_SYMLINKS"),
        "hub_metadata_timeout": _integer(known, "HF_HUB_ETAG_TIMEOUT", range(1, 3601), 10),
        "hub_timeout": _integer(known, "HF_HUB_DOWNLOAD_TIMEOUT", range(1, 3601), 10),
    }


def _serve_variables(known: Mapping[str, str]) -> ServeVariables:
    return ServeVariables(
        host=known.get("MLXK2_HOST"),
        port=_number_if_set(known, "MLXK2_PORT", range(65536)),
        model=known.get("MLXK2_PRELOAD_MODEL"),
        max_tokens=_number_if_set(known, "MLXK2_MAX_TOKENS", range(1, 2**31)),
        chunk=_number_if_set(known, "MLXK2_VISION_CHUNK_SIZE", range(1, 6)),
        api_key=(known.get("MLXK2_API_KEY") or "").strip() or None,
        reload=is_switched_on(known, "MLXK2_RELOAD"),
        log_level=_choice(known, "MLXK2_LOG_LEVEL", LOG_LEVELS, "") if "MLXK2_LOG_LEVEL" in known else None,
    )


def _number_if_set(known: Mapping[str, str], name: str, allowed: range) -> int | None:
    return _integer(known, name, allowed, 0) if name in known else None


def _absolute(path: str, home: str, known: Mapping[str, str]) -> str:
    """Expand ``~``, then variables, as the hub client does; an unset variable stays as written."""
    expanded = home + path[1:] if path == "~" or path.startswith("~/") else os.path.expanduser(path)
    expanded = _REFERENCE.sub(lambda found: known.get(found[1] or found[2], found[0]), expanded)
    return os.path.abspath(expanded)


def _choice(known: Mapping[str, str], name: str, allowed: tuple[str, ...], default: str) -> str:
    value = known.get(name, default).strip().lower()
    if value not in allowed:
        raise ValidationError(f"{name} must be one of {', '.join(allowed)} (got '{known[name]}')")
    return value


def _address(known: Mapping[str, str], name: str, default: str) -> str:
    value = known.get(name, default).strip().rstrip("/")
    if not value.startswith(("http://", "https://")) or not value.isprintable() or not is_web_address(value):
        raise ValidationError(f"{name} must begin with http:// or https:// and name a host (got '{known[name]}')")
    return value


def _integer(known: Mapping[str, str], name: str, allowed: range, default: int) -> int:
    value = known.get(name, str(default)).strip()
    if not value.isdecimal() or len(value) > _MAX_DIGITS or int(value) not in allowed:
        raise ValidationError(
            f"{name} must be a whole number from {allowed.start} to {allowed.stop - 1} (got '{known[name]}')"
        )
    return int(value)


def variable(name: str) -> str | None:
    """Return an environment variable that a configuration file of the user refers to; None when it is unset."""
    return os.environ.get(name)

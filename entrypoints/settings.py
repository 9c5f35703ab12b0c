"""Settings: the environment and the settings file, read once, and the settings of the server.

This is the only module that reads the environment; ``docs/environment.md`` lists the variables. Flags override
variables, variables override the settings file, and the file overrides defaults; commands combine them.
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
_MOST_DIGITS = 100
"""Digits of a number in a variable, with zeros before it; Python refuses to read one of thousands."""
_REFERENCE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})", re.ASCII)
"""Matches a variable inside a path."""

DEFAULT_OWNER = "mlx-community"
"""The hub owner of a name without one."""
_OPEN_TELEMETRY = re.compile(r"OTEL_(?!\w*HEADERS=)\w+=[^@]*")
_ENGINE_VARIABLE = re.compile(r"MLX_\w+|CUDA_VISIBLE_DEVICES|LD_PRELOAD|DYLD_INSERT_LIBRARIES", re.ASCII)
"""Matches the variables of MLX and its libraries that change what they compute, or on which device."""


@attrs.frozen
class ServeVariables:
    """The variables of ``serve``, or what the settings file has for them; None where neither says something."""

    host: str | None = None
    port: int | None = None
    model: str | None = None
    max_tokens: int | None = None
    chunk: int | None = None
    api_key: str | None = attrs.field(default=None, repr=False)
    reload: bool = False
    """Off where the variable is unset."""
    log_level: str | None = None


@attrs.frozen(kw_only=True)
class ComputingSettings:
    """Where a model is computed, and in what form; of commands as of the server."""

    cpu_dtype: str = "auto"
    blas: str = "auto"
    local_ranks: int = 1
    """Processes of this machine over which the model is spread."""
    rank_hosts: tuple[tuple[str, str, str | None], ...] = ()
    """The fields of each ``RankHost`` over which it is spread instead, this machine first."""
    rank_backend: str | None = None
    """The layer of MLX by which the file of hosts wants ranks to exchange; None where it leaves that open."""
    rank_timeout: float = 5.0
    """Seconds without a sign of life after which such a process counts as lost."""


@attrs.frozen
class Settings(ComputingSettings):
    """The settings that variables and the settings file give, for all commands."""

    hub_cache: str
    """Absolute path of the hub cache, which need not exist."""
    home: str
    """The user's home directory, which logs show as ``~``."""
    chat_history: str
    """The history file of the chat."""
    hub_token_file: str
    """The file with the hub's token, which need not exist."""
    hub_endpoint: str = "https://huggingface.co"
    default_owner: str = DEFAULT_OWNER
    """The hub owner of a name without one; all of its weights are in the format of MLX."""
    hub_token: str | None = attrs.field(default=None, repr=False)
    hub_offline: bool = False
    hub_token_for_writing_only: bool = False
    """Whether requests that read carry no token."""
    hub_links: bool = True
    """Whether snapshots hold links to contents; else the contents themselves."""
    hub_metadata_timeout: int = 10  # seconds
    hub_timeout: int = 10  # seconds
    workspace_home: str | None = None
    enable_pipes: bool = True
    """Whether piped text becomes part of a prompt that does not ask for it."""
    enable_alpha: bool = False
    """Whether commands that may still change are allowed."""
    audio_segments: bool = False
    """Whether a table of segments follows a transcript."""
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
    over_ssh: bool = False
    """Whether the user sits at another machine, whose clipboard programs here do not reach."""
    dumb_terminal: bool = False
    """Whether the terminal understands no control sequences."""
    completion_line: str | None = None
    """The command line that a shell asks completions for; None for a normal run."""
    keep_chats: bool = False
    editor: str | None = None
    """The command that opens a text file, as the user's variable has it."""
    file: SettingsFile = attrs.field(factory=lambda: SettingsFile(""))
    """The settings file; what it says for variables is in the other fields."""
    set_variables: frozenset[str] = frozenset()
    """The names of the variables that are set."""
    file_variables: tuple[tuple[str, str], ...] = attrs.field(default=(), repr=False)
    """What the settings file has in place of variables, for processes of this one."""
    use_server: bool = True
    """Whether commands compute on a running server of this user."""
    server_sockets: str = ""
    """The folder of the sockets of this user's servers, which need not exist."""
    state_folder: str = ""
    """The folder of what is kept between runs, such as logs of servers; it need not exist."""
    engine_variables: tuple[tuple[str, str], ...] = ()
    """Variables of libraries that change how models are computed, with their values, sorted."""
    telemetry_variables: tuple[tuple[str, str], ...] = ()
    """Those of OpenTelemetry, which reads them itself, but for what may hold credentials."""


@attrs.frozen(kw_only=True)
class ServerSettings(ComputingSettings):
    """The settings of the server. JSON values only, since they are passed to the worker process."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes any free port."""
    model: str | None = None
    """The model to load at start."""
    embed_model: str | None = None
    """The model of all embeddings, whatever a request names; None lets requests name it."""
    embed_backend: str | None = None
    """The address of another embeddings server; None computes embeddings in this server."""
    max_tokens: int | None = None
    """Most tokens of a completion whose request sets no limit; None allows the remainder of the context window."""
    chunk: int = 1
    """Images per chunk when the request does not set it."""
    image_metadata: bool = False
    """Whether an answer about images begins with their table when the request does not say."""
    exif_metadata: bool = True
    """Whether requests may have the table; without it, nothing of an image but its pixels reaches model or client."""
    enable_thinking: bool | None = None
    """Whether models reason first when the request does not say; None leaves it to their chat templates."""
    thinking_budget: int | None = None
    """Most tokens of reasoning when the request sets no limit."""
    thinking_start_token: str | None = None
    """The text that begins reasoning; None as it is known of the model."""
    thinking_end_token: str | None = None
    """The text that ends reasoning; None as it is known of the model."""
    max_streams: int = 32
    """Completions computed at the same time."""
    max_queue: int = 96
    """Requests that may wait in the queue."""
    max_body_mib: int = 72
    """Largest request body, in MiB; base64 makes images a third larger."""
    keep_alive: float | None = None
    """Seconds after which an idle model is unloaded; None never does."""
    memory_budget_mib: int | None = None
    """Budget of all weights in memory, in MiB; None takes the budget of the machine."""
    vision_cache_mib: int = 512
    """What a model keeps of images for later prompts, in MiB; 0 keeps nothing."""
    prefix_cache_dir: str | None = None
    """Absolute path of the folder in which prompts are kept for later starts; None keeps them in memory only."""
    prefix_cache_disk_gib: float = 10.0
    """What they may take there, in GiB."""
    strict_memory: bool = False
    """Whether a model beyond the memory budget is refused; by default it runs with a warning."""
    strict_capabilities: bool = False
    """Whether tools are refused for models that are not made for them."""
    special_tokens_in_content: bool = False
    """Whether control tokens that messages spell out take effect, when a request does not say."""
    allow_paths: bool = False
    """Whether clients may name a model by its path."""
    aliases: tuple[tuple[str, str], ...] = ()
    """Further names of models, each with its reference."""
    entries: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    """The names of the settings file and of adapters, each with its values."""
    ready: tuple[str, ...] = ()
    """Names of adapters and of pinned models, which are in memory from the start."""
    preferred: Mapping[str, Any] = attrs.field(factory=dict)
    """What holds for every model that can do so; settings of names."""
    model_defaults: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    """What holds for models under each of their names, by reference; settings of names."""
    file_variables: tuple[tuple[str, str], ...] = attrs.field(default=(), repr=False)
    """What the settings file has in place of variables; a worker does not read it again."""
    page: bool | None = None
    """Whether a browser gets the chat page; None where only this machine reaches the server."""
    default_model: str | None = None
    """The model for names that no model has, and for requests that name none; None refuses them."""
    allow_model_changes: bool = False
    """Whether clients may pull and remove models."""
    media_paths: tuple[str, ...] = ()
    """Absolute paths of the folders below which clients may name files of images, clips and sound."""
    allow_remote_media: bool = False
    """Whether clients may name images, clips and sound at public addresses, which the server then fetches."""
    allow_voice_cloning: bool = False
    """Whether clients may send recordings whose voices are imitated."""
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = attrs.field(default=(), repr=False)
    operator_key: str | None = attrs.field(default=None, repr=False)
    """One of them, which also opens what concerns all clients; None where no key does."""
    api_key_file: str | None = None
    """Absolute path of a file with further keys, read again when it changes."""
    drain_seconds: float = 30.0
    """Seconds that completions in progress may take when the server stops."""
    log_level: str = "info"
    log_json: bool = False
    otlp: bool = False
    """Whether traces and metrics are sent to the collector that the OTEL_ variables name."""
    supervised: bool = True
    """Whether a supervisor restarts the worker when it dies."""
    reload: bool = False
    """Whether the worker is restarted when the program's source changes."""
    until_eof: bool = False
    """Whether the server stops when standard input ends, as it does with the program that started it."""

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
        handed_down: What another process has read of the file, as its ``file_variables``; None reads the file.

    Raises:
        ValidationError: A variable has a value outside its closed set. What is wrong in the file is in its ``faults``.
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
    """Return the environment of this process with changes, for a program that it starts."""
    return {**os.environ, **changes}


@contextlib.contextmanager
def told_to_libraries(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the length of the block, for a library that is told in no other way."""
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]


def _hub_settings(known: Mapping[str, str], home: str) -> dict[str, Any]:
    caches = known.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")
    place = known.get("HF_HOME") or os.path.join(caches, "huggingface")
    cache = known.get("HF_HUB_CACHE") or known.get("HUGGINGFACE_HUB_CACHE") or os.path.join(place, "hub")
    return {
        "hub_cache": _absolute(cache, home, known),
        "hub_token_file": _absolute(known.get("HF_TOKEN_PATH") or os.path.join(place, "token"), home, known),
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
    """Expand ``~``, then variables, as the hub client does; a variable that is not set stays as it is written."""
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
    if not value.startswith(("http://", "https://")) or len(value.split("//", 1)[1]) == 0:
        raise ValidationError(f"{name} must begin with http:// or https:// (got '{known[name]}')")
    return value


def _integer(known: Mapping[str, str], name: str, allowed: range, default: int) -> int:
    value = known.get(name, str(default)).strip()
    if not value.isdecimal() or len(value) > _MOST_DIGITS or int(value) not in allowed:
        raise ValidationError(
            f"{name} must be a whole number from {allowed.start} to {allowed.stop - 1} (got '{known[name]}')"
        )
    return int(value)


def variable(name: str) -> str | None:
    """Return a variable that a file of the user names; None when it is unset."""
    return os.environ.get(name)

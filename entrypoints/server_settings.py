"""What an operator decides about the server: flags, or the environment, or these defaults."""

from urllib.parse import urlsplit

import attrs

from mlxk.domain.errors import ValidationError

MIB = 2**20


@attrs.frozen(kw_only=True)
class ServerSettings:
    """How to serve. JSON values only, since it is handed to the worker process."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes any free one."""
    model: str | None = None
    """The model to have in memory from the start."""
    embed_model: str | None = None
    """The model that makes all vectors, whatever a request names; None lets requests name it."""
    embed_backend: str | None = None
    """The address of another server that makes the vectors; None makes them here."""
    max_tokens: int | None = None
    """Tokens an answer may have when its request names no limit; None fills the context window."""
    chunk: int = 1
    """Images described together when the request does not say."""
    max_streams: int = 32
    """Answers computed at the same time."""
    max_queue: int = 64
    """Answers that may wait for their turn."""
    max_body_mib: int = 72
    """Size of a request; images travel in base64, a third larger than they are."""
    keep_alive: float | None = None
    """Seconds after which an idle model is unloaded; None never does."""
    memory_budget_mib: int | None = None
    """What the weights in memory may take altogether; None takes the machine's own budget."""
    strict_memory: bool = False
    """Whether a model beyond the memory budget is refused instead of run slowly."""
    allow_paths: bool = False
    """Whether clients may name a model by its path."""
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = attrs.field(default=(), repr=False)
    drain_seconds: float = 30.0
    """How long answers in progress may take to finish when the server is to stop."""
    log_level: str = "info"
    log_json: bool = False
    supervised: bool = True
    """Whether a supervisor restarts the worker when it dies."""
    reload: bool = False
    """Whether the worker is restarted when the program's source changes."""

    def validate(self) -> None:
        """Check every range.

        Raises:
            ValidationError: Names each flag out of range.
        """
        ranges = {
            "--port": (self.port, 0, 65535),
            "--max-tokens": (self.max_tokens, 1, None),
            "--chunk": (self.chunk, 1, 5),
            "--max-streams": (self.max_streams, 1, 1024),
            "--max-queue": (self.max_queue, 0, 4096),
            "--max-body": (self.max_body_mib, 1, 1024),
            "--keep-alive": (self.keep_alive, 0, None),
            "--memory-budget": (self.memory_budget_mib, 1, None),
            "--drain-timeout": (self.drain_seconds, 0, None),
        }
        faults = [
            f"{flag} must be at least {low}"
            + (f" and at most {high}" if high is not None else "")
            + f" (got {value:g})"
            for flag, (value, low, high) in ranges.items()
            if value is not None and (value < low or (high is not None and value > high))
        ]
        if self.embed_backend is not None and not _is_web_address(self.embed_backend):
            faults.append(f"--embed-backend must be an http(s) URL with a host (got: '{self.embed_backend}')")
        if faults:
            raise ValidationError("; ".join(faults))


@attrs.frozen(kw_only=True)
class ServerAddress:
    """Where a server is reached, once it is."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """The address that clients are given; a server on every interface is named by this machine's own."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{self.port}"


def _is_web_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        return False

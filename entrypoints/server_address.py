"""Where a running server is reached: the address of one of ours, and addresses that users type."""

from urllib.parse import urlsplit

import attrs

from mlxk.domain.errors import UsageError
from mlxk.entrypoints.setting_kinds import is_web_address

LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Where a server on all interfaces is asked on its own machine."""


@attrs.frozen(kw_only=True)
class ServerAddress:
    """The address of a running server."""

    host: str
    port: int
    others: tuple[str, ...] = ()
    """For a server on all interfaces, the addresses of this machine that others use."""

    @property
    def url(self) -> str:
        """The URL for clients; for a server on all interfaces, that of the loopback interface."""
        return self._url(LOOPBACK.get(self.host, self.host))

    @property
    def other_urls(self) -> tuple[str, ...]:
        """The URLs for clients on other machines, for a server on all interfaces."""
        return tuple(map(self._url, self.others))

    def _url(self, host: str) -> str:
        return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{self.port}"


_API_PATHS = {
    **{"/v1/chat/completions": "openai", "/v1": "openai"},
    **{"/api/chat": "ollama", "/api/generate": "ollama", "/api": "ollama"},
}
"""Ends of addresses as people copy them, and the API that each of them means."""


def client_address(url: str, flag: str) -> tuple[str, str | None]:
    """Return the address below which the APIs of a server are, and the one that a URL means, if it says.

    Args:
        url: As the user typed it.
        flag: What it was given with.

    Raises:
        UsageError: It is none, or has what an address of a server has not.
    """
    if not is_web_address(url) or (parts := urlsplit(url)).query or parts.fragment:
        raise UsageError(f"{flag} takes an address such as http://127.0.0.1:8000")
    if parts.username is not None or parts.password is not None:
        raise UsageError(f"{flag} takes no user name and password", hint="Give the key with --api-key-file FILE.")
    path = parts.path.rstrip("/")
    end, api = next(((end, api) for end, api in _API_PATHS.items() if path.endswith(end)), ("", None))
    return f"{parts.scheme}://{parts.netloc}{path.removesuffix(end)}", api

"""Addresses of running servers: those of mlxk, and those that users type."""

from urllib.parse import urlsplit

import attrs

from mlxk.domain.errors import UsageError
from mlxk.entrypoints.setting_kinds import is_web_address

LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""The loopback address of the same family, by the wildcard address that a server on all interfaces listens on."""


@attrs.frozen(kw_only=True)
class ServerAddress:
    """The address of a running server."""

    host: str
    port: int
    others: tuple[str, ...] = ()
    """For a server on all interfaces, this machine's addresses in its networks."""

    @property
    def url(self) -> str:
        """The URL for clients of this machine."""
        return self._url(LOOPBACK.get(self.host, self.host))

    @property
    def other_urls(self) -> tuple[str, ...]:
        """For a server on all interfaces, the URLs for clients on other machines."""
        return tuple(map(self._url, self.others))

    def _url(self, host: str) -> str:
        return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{self.port}"


_API_PATHS = {
    **{"/v1/chat/completions": "openai", "/v1": "openai"},
    **{"/api/chat": "ollama", "/api/generate": "ollama", "/api": "ollama"},
}
"""Path suffixes of URLs that users copy from documentation, and the API that each implies; longer ones first."""


def client_address(url: str, flag: str) -> tuple[str, str | None]:
    """Return the base URL of a server, without the path of an API, and the API that this path implies, else None.

    Args:
        url: As typed.
        flag: The flag it was given to, for error messages.

    Raises:
        UsageError: It is not an http(s) URL, or has a query, a fragment, a user name or a password.
    """
    if not is_web_address(url) or (parts := urlsplit(url)).query or parts.fragment:
        raise UsageError(f"{flag} takes an address such as http://127.0.0.1:8000")
    if parts.username is not None or parts.password is not None:
        raise UsageError(f"{flag} takes no user name and password", hint="Give the key with --api-key-file FILE.")
    path = parts.path.rstrip("/")
    end, api = next(((end, api) for end, api in _API_PATHS.items() if path.endswith(end)), ("", None))
    return f"{parts.scheme}://{parts.netloc}{path.removesuffix(end)}", api

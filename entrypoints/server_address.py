"""Where a running server is reached."""

import attrs


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
        return self._url({"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.host, self.host))

    @property
    def other_urls(self) -> tuple[str, ...]:
        """The URLs for clients on other machines, for a server on all interfaces."""
        return tuple(map(self._url, self.others))

    def _url(self, host: str) -> str:
        return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{self.port}"

"""The hosts over which a model is spread, in the form of MLX's launcher: a list of names for ssh, with addresses."""

import ipaddress
import re

import attrs

from mlxk.domain.errors import ValidationError

_SSH_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:%-]*")
"""What ssh is given: never what it would take as an option."""

LOOPBACK = "127.0.0.1"

THIS_MACHINE = ("localhost", LOOPBACK)
"""Names of this machine, on which ranks are started without ssh."""


@attrs.frozen
class RankHost:
    """A host of one rank."""

    ssh: str
    """Its name for ssh."""
    address: str
    """The IP address on which its rank listens."""
    python: str | None = None
    """The interpreter that has this program there; None: at the same path as here."""

    @property
    def is_here(self) -> bool:
        """Whether its rank is started without ssh."""
        return self.ssh in THIS_MACHINE


def read_hosts(document: object) -> tuple[RankHost, ...]:
    """Return the hosts of a file: ``[{"ssh": "name", "ips": ["192.0.2.1"]}, …]``, of rank 0 first.

    Args:
        document: Parsed; what MLX's launcher knows beside is ignored.

    Raises:
        ValidationError: Names the entry and the field at fault.
    """
    entries = document.get("hosts") if isinstance(document, dict) else document
    if not isinstance(entries, list) or len(entries) < 2:
        raise ValidationError("it must list two hosts or more", hint=_EXAMPLE)
    hosts = tuple(_host(entry, f"host {number}") for number, entry in enumerate(entries, 1))
    addresses = [host.address for host in hosts if not ipaddress.ip_address(host.address).is_loopback]
    for address in addresses:
        if addresses.count(address) > 1:
            raise ValidationError(f"{address} is the address of two hosts", hint="Give each rank a host of its own.")
    return hosts


_EXAMPLE = 'For example: [{"ssh": "mac1", "ips": ["192.0.2.1"]}, {"ssh": "mac2", "ips": ["192.0.2.2"]}]'


def _host(entry: object, where: str) -> RankHost:
    if not isinstance(entry, dict):
        raise ValidationError(f"{where} is no object with ssh and ips", hint=_EXAMPLE)
    ssh, ips, python = entry.get("ssh"), entry.get("ips"), entry.get("python")
    if not isinstance(ssh, str) or not _SSH_NAME.fullmatch(ssh):
        raise ValidationError(f"{where}: ssh must be a name for ssh, such as mac1 or ada@mac1", hint=_EXAMPLE)
    if not isinstance(ips, list) or not ips or not all(isinstance(each, str) for each in ips):
        raise ValidationError(f"{where} ({ssh}): ips must list the host's IP address", hint=_EXAMPLE)
    try:
        address = ipaddress.ip_address(ips[0])
    except ValueError:
        raise ValidationError(f"{where} ({ssh}): '{ips[0]}' is no IP address") from None
    if address.is_unspecified or address.version != 4:
        raise ValidationError(f"{where} ({ssh}): {address} is not the IPv4 address of one network interface")
    if python is not None and (not isinstance(python, str) or not python.startswith("/")):
        raise ValidationError(f"{where} ({ssh}): python must be the absolute path of an interpreter")
    return RankHost(ssh, str(address), python)

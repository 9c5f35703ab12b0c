"""Choosing how to read this machine's memory."""

from mlxk.adapters.system.proc_memory import ProcMemoryProbe
from mlxk.adapters.system.sysctl_memory import SysctlMemoryProbe
from mlxk.application.ports.memory_probe import MemoryProbe


def system_memory_probe(platform: str) -> MemoryProbe:
    """Return the probe for a platform.

    Args:
        platform: As ``sys.platform`` names it; anything but macOS is read the way of Linux, whose probe says None
            where there is no ``/proc``.
    """
    return SysctlMemoryProbe() if platform == "darwin" else ProcMemoryProbe()

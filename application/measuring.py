"""What measurements of models and of servers share: the words of prompts, and the machine that measures."""

from collections.abc import Callable, Iterator

import attrs

from mlxk.application.ports.benchmarking import MachineMeter
from mlxk.application.ports.installation import InstallationProbe
from mlxk.application.ports.memory import MemoryProbe
from mlxk.domain.benchmark import BUSY_LOAD, Machine

Report = Callable[[str, int, int], None]
"""Receives what is being measured, the steps done, and all steps."""

WORDS = (
    "time person year way day thing man world life hand part child eye woman place work week case point number group "
    "problem fact home water room mother area money story month lot right study book word business issue side kind "
    "head house service friend father power hour game line end member law car city name team minute idea body back "
    "parent face level office door health art war party result change morning reason research girl guy moment air"
)
"""Frequent words, most of which are one token of most models."""

_COMPUTING = ("mlx", "mlx-audio", "mlx-lm", "mlx-metal", "mlx-cpu", "mlx-vlm", "transformers")


@attrs.frozen
class MachineReader:
    """Reads what the machine that measures is like."""

    probe: InstallationProbe
    memory: MemoryProbe
    meter: MachineMeter

    def read(self) -> Machine:
        """Return it, as it is before the measurement."""
        platform, matrices, reading = self.probe.platform(), self.memory.matrices(), self.memory.read()
        packages = ((each.name, each.version) for each in self.probe.packages() if each.name in _COMPUTING)
        versions = [(name, version) for name, version in packages if version is not None]
        return Machine(
            platform.release,
            platform.machine,
            self.meter.processor(),
            reading.total if reading else None,
            matrices.on_cpu,
            matrices.library,
            self.meter.load(),
            (("python", ".".join(map(str, platform.python))), *versions),
        )


def busy_notes(machine: Machine) -> Iterator[str]:
    """Yield what other programs did before a measurement, if it matters."""
    if machine.load_before is not None and machine.load_before > BUSY_LOAD:
        share = round(100 * machine.load_before)
        yield f"Other programs loaded the cores to {share} % in the minute before: the figures may be too low."

"""What every model must pass before it is loaded, whatever it is for: its files, its kind, this machine.

Owns the order of the checks and what their refusals say. What is wanted of the model stands in ``model_requirements``.
"""

from collections.abc import Callable

from mlxk.application.ports.event_log import EventLog
from mlxk.application.ports.memory_probe import MemoryProbe
from mlxk.domain.errors import IncompatibleModelError, InsufficientMemoryError, UnhealthyModelError
from mlxk.domain.memory import MemoryFit, judge_memory
from mlxk.domain.model import ModelDescription

Requirement = Callable[[ModelDescription], None]
"""Raises the refusal of a model that cannot do what it is wanted for."""


def require_loadable(description: ModelDescription, require_kind: Requirement) -> None:
    """Refuse a model that cannot be loaded here, or is of another kind, and say why.

    Damage comes first, since damaged files do not tell what a model can do; the machine comes last, since no backend
    makes a model of another kind the right one.

    Args:
        description: The model.
        require_kind: Refuses a model that is made for something else.

    Raises:
        UnhealthyModelError: Its files are damaged or incomplete.
        CapabilityError: It is made for something else.
        IncompatibleModelError: No installed backend runs it.
    """
    name = description.handle.name
    if not description.health.healthy:
        raise UnhealthyModelError(
            f"'{name}' is damaged or incomplete: {description.health.reason}", hint=f"See: mlxk health {name}"
        )
    require_kind(description)
    if not description.runtime.compatible:
        raise IncompatibleModelError(f"'{name}' cannot run here: {description.runtime.reason}")


def require_memory(description: ModelDescription, memory: MemoryProbe, warn: EventLog | None = None) -> None:
    """Refuse a model beyond this machine's memory budget, or only warn of it.

    Args:
        description: The model.
        memory: Reads what the machine has.
        warn: Gets a warning in place of the refusal; None refuses.

    Raises:
        InsufficientMemoryError: It is beyond the budget, and nobody is to be warned instead.
    """
    verdict = judge_memory(memory.read(), description.size_bytes)
    if verdict.fit is not MemoryFit.EXCEEDS:
        return
    numbers = {"needed_bytes": verdict.needed, "budget_bytes": verdict.budget}
    name = description.handle.name
    if warn is None:
        raise InsufficientMemoryError(f"'{name}' does not fit into this machine's memory budget", detail=numbers)
    warn.warning("the model exceeds this machine's memory budget; expect swapping", model=name, **numbers)

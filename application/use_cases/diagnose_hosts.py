"""Diagnose the hosts of a file: whether a model can be spread over them, and what keeps it from that."""

import attrs

from mlxk.application.policy import estimate_memory
from mlxk.application.ports.memory import MemoryProbe
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.diagnosis import Finding
from mlxk.domain.host_checks import Examination, Examine, HostQuestion, Notify, judge_hosts
from mlxk.domain.models.footprint import MemoryVerdict
from mlxk.domain.ranks import HostFile, SpreadModel, name_everywhere, share_of


@attrs.frozen
class HostDiagnosis:
    """What was found about hosts."""

    findings: tuple[Finding, ...]
    """About each host in turn, then about the model and the links."""
    examination: Examination
    spread: SpreadModel | None
    """The model over the hosts; None when none was asked about."""


@attrs.frozen
class DiagnoseHosts:
    """Examines hosts; it changes nothing there, and leaves nothing running."""

    examine: Examine
    memory: MemoryProbe
    resolve: ResolveModel
    describe: DescribeModel

    def __call__(self, file: HostFile, model: str | None, seconds: float, notify: Notify) -> HostDiagnosis:
        """Return what was found.

        Args:
            file: Of this machine and others.
            model: The name of one that would be spread over them; None to ask about none.
            seconds: How long a host may be silent.
            notify: Receives the progress.

        Raises:
            ModelNotFoundError, AmbiguousModelError: No model of this machine, or several, have that name.
        """
        question, name, verdict = HostQuestion(seconds), None, None
        if model is not None:
            question, name, verdict = self._question(model, len(file.hosts), seconds)
        found = self.examine(file.hosts, question, notify)
        spread = None
        if verdict is not None:
            spread = SpreadModel.judged(file.hosts, [each.account for each in found.hosts], verdict)
        return HostDiagnosis(tuple(judge_hosts(found, file.backend, spread, name)), found, spread)

    def _question(self, model: str, count: int, seconds: float) -> tuple[HostQuestion, str, MemoryVerdict]:
        handle = self.resolve(model)
        description = self.describe(handle)
        question = HostQuestion(seconds, name_everywhere(handle), description.runtime.backends)
        return question, handle.name, estimate_memory(share_of(description, count), self.memory)

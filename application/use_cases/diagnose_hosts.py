"""Diagnose the hosts of a file: whether a model can be spread over them, and what keeps it from that."""

from collections.abc import Sequence

import attrs

from mlxk.application.policy import estimate_memory
from mlxk.application.ports.memory import MemoryProbe
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.diagnosis import Finding
from mlxk.domain.host_checks import Examination, Examine, HostQuestion, Notify, judge_hosts
from mlxk.domain.models.model import ModelDescription
from mlxk.domain.ranks import HostFile, RankHost, SpreadModel, name_everywhere, refuse_adapter, share_of

_READING_SECONDS = 900.0
"""Enough for reading a model of hundreds of gigabytes."""


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
            CapabilityError: It is an adapter.
        """
        if model is None:
            found, spread, name = self.examine(file.hosts, HostQuestion(seconds), notify), None, None
        else:
            described = self.describe(self.resolve(model))
            refuse_adapter(described)
            found, spread = self._spread(file.hosts, described, HostQuestion(seconds), notify)
            name = described.handle.name
        return HostDiagnosis(tuple(judge_hosts(found, file.backend, spread, name)), found, spread)

    def spread(self, hosts: Sequence[RankHost], described: ModelDescription) -> SpreadModel:
        """Return a model over hosts, whose links are not measured.

        Raises:
            CapabilityError: It is an adapter.
        """
        refuse_adapter(described)
        return self._spread(hosts, described, HostQuestion(_READING_SECONDS, links=False), lambda what: None)[1]

    def _spread(
        self, hosts: Sequence[RankHost], described: ModelDescription, question: HostQuestion, notify: Notify
    ) -> tuple[Examination, SpreadModel]:
        name, backends = name_everywhere(described.handle), described.runtime.backends
        found = self.examine(hosts, attrs.evolve(question, name=name, backends=backends), notify)
        share = estimate_memory(share_of(described, len(hosts)), self.memory)
        return found, SpreadModel.judged(hosts, [each.account for each in found.hosts], share)

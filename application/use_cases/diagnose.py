"""Diagnose the installation: whether this program works on this machine; and hosts: whether they can share a model."""

from collections.abc import Callable, Iterator, Sequence

import attrs

from mlxk.application.policy import estimate_memory
from mlxk.application.ports.hub import ModelHub
from mlxk.application.ports.installation import InstallationProbe
from mlxk.application.ports.memory import MemoryProbe
from mlxk.application.ports.model_cache import ModelCache
from mlxk.application.ports.other_processes import RunningServers
from mlxk.application.ports.system import Clock
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain import diagnosis
from mlxk.domain.diagnosis import CheckGroup, Fault, Finding
from mlxk.domain.errors import AccessDeniedError, MlxkError
from mlxk.domain.host_checks import Examination, Examine, HostQuestion, Notify, judge_hosts
from mlxk.domain.models.footprint import Matrices, MemoryFit
from mlxk.domain.models.model import ModelDescription
from mlxk.domain.ranks import HostFile, RankHost, SpreadModel, name_everywhere, refuse_adapter, share_of
from mlxk.domain.text import in_one_unit

_SEARCH_TERM = "llama"
"""The search that tests whether the hub answers."""


@attrs.frozen
class Configuration:
    """The settings that are checked."""

    model_folder: str
    """The directory of the hub cache."""
    state_folder: str
    temporary_folder: str
    port: int
    """Port of the server."""
    address: str
    """URL of the hub, without user name and password."""
    encrypted: bool
    """Whether the connection to the hub is encrypted, or local."""
    has_token: bool
    offline: bool
    proxies: tuple[str, ...] = ()
    """Names of the environment variables that set a proxy."""
    settings_path: str = ""
    """Path of the settings file."""
    settings_faults: tuple[str, ...] = ()
    """Faults of the settings file."""
    unknown_variables: tuple[str, ...] = ()
    """A sentence for each unknown environment variable."""
    secret_files: tuple[str, ...] = ()
    """Files with keys or tokens, which only the user should be able to read."""
    least_address_space: int = 0
    """Bytes of address space that the libraries need."""


@attrs.frozen
class DiagnoseInstallation:
    """Runs every check, without changing anything."""

    probe: InstallationProbe
    memory: MemoryProbe
    clock: Clock
    cache: ModelCache
    resolve: ResolveModel
    describe: DescribeModel
    servers: RunningServers
    hub: Callable[[], ModelHub]
    """Returns the hub client; called only if ``online``."""

    def __call__(self, configuration: Configuration, *, online: bool = False) -> tuple[Finding, ...]:
        """Return the findings, in the order of their groups.

        Args:
            configuration: The settings.
            online: Whether to send a request to the hub.
        """
        findings = [
            *self._system(configuration),
            *self._storage(configuration),
            *self._hub(configuration, online),
            *self._models(),
            *self._server(configuration),
            *_settings(configuration),
            *self._secrets(configuration),
        ]
        order = list(CheckGroup)
        return tuple(sorted(findings, key=lambda each: order.index(each.group)))

    def _system(self, configuration: Configuration) -> Iterator[Finding]:
        probe, reading = self.probe, self.memory.read()
        platform = probe.platform()
        yield from diagnosis.judge_platform(platform, configuration.least_address_space)
        behind = (self.clock.now() - probe.installed_at()).total_seconds()
        yield diagnosis.judge_clock(min(behind, 0.0), "the files of this program")
        yield from diagnosis.judge_packages(probe.packages())
        own = probe.own_program()
        first = next(iter(probe.programs()), own)
        if first != own:
            seen = f"{first} comes first in the search path; this is {own}"
            yield Finding("program", CheckGroup.PACKAGES, seen, Fault.CROWDED_PATH, first)
        else:
            yield Finding("program", CheckGroup.PACKAGES, own)
        yield from diagnosis.judge_computing(probe.computing(), reading.total if reading else None, platform)
        if reading is None:
            seen = "this machine does not say how much memory it has"
            yield Finding("memory", CheckGroup.COMPUTING, seen, Fault.MEMORY_UNKNOWN)
        else:
            (total,), (budget,) = in_one_unit(reading.total), in_one_unit(reading.budget)
            yield Finding("memory", CheckGroup.COMPUTING, f"{total} of memory, of which models may take {budget}")
        if (matrices := self.memory.matrices()).on_cpu:
            yield _multiplication(matrices)

    def _storage(self, configuration: Configuration) -> Iterator[Finding]:
        folder = self.probe.folder
        yield diagnosis.judge_folder("cache", folder(configuration.model_folder), holds_models=True)
        yield diagnosis.judge_folder("state", folder(configuration.state_folder))
        yield diagnosis.judge_folder("temporary_files", folder(configuration.temporary_folder))

    def _hub(self, configuration: Configuration, online: bool) -> Iterator[Finding]:
        group, address = CheckGroup.HUB, configuration.address
        seen = address if not configuration.proxies else f"{address}, by way of {', '.join(configuration.proxies)}"
        yield Finding("endpoint", group, seen, None if configuration.encrypted else Fault.UNENCRYPTED_HUB, address)
        token = "there is a token" if configuration.has_token else "there is no token: public models only"
        yield Finding("token", group, token)
        if configuration.offline:
            yield Finding("offline", group, "the hub may not be asked", Fault.HUB_OFFLINE)
        elif online:
            yield from self._request(address)

    def _request(self, address: str) -> Iterator[Finding]:
        """Search the hub; it rejects an invalid token with any request."""
        group = CheckGroup.HUB
        try:
            self.hub().search(_SEARCH_TERM, 1, mlx_only=True)
        except AccessDeniedError as error:
            yield Finding("reachable", group, error.message, Fault.TOKEN_REJECTED)
        except MlxkError as error:
            yield Finding("reachable", group, f"{address} cannot be asked: {error.message}", Fault.HUB_UNREACHABLE)
        else:
            yield Finding("reachable", group, f"{address} answers")

    def _models(self) -> Iterator[Finding]:
        group = CheckGroup.MODELS
        try:
            handles = self.resolve.matching()
            described = [self.describe(handle) for handle in handles]
        except MlxkError as error:
            yield Finding("health", group, error.message, Fault.MODELS_UNREADABLE)
            return
        unfinished = self._unfinished()
        broken = [each for each in described if not each.health.healthy and each.handle.name not in unfinished]
        for each in broken:
            name = each.handle.name
            yield Finding("health", group, f"{name}: {each.health.reason}", Fault.BROKEN_MODEL, name)
        yield Finding("health", group, f"{len(described) - len(broken)} of {len(described)} models are not damaged")
        for name in unfinished:
            if not self.cache.holders(name):  # no process is downloading it
                seen = f"{name}: a download was not finished"
                yield Finding("downloads", group, seen, Fault.PARTIAL_DOWNLOAD, name)
        yield from self._largest(described)

    def _unfinished(self) -> tuple[str, ...]:
        """Return the names of the models with partially downloaded files."""
        usages = (self.cache.usage(name) for name in self.cache.names())
        return tuple(usage.name for usage in usages if usage is not None and usage.partial)

    def _largest(self, described: list[ModelDescription]) -> Iterator[Finding]:
        """Judge whether the largest compatible model fits into memory."""
        models = [each for each in described if each.health.healthy and each.runtime.compatible]
        if not models:
            return
        largest = max(models, key=lambda each: each.weight_bytes or 0)
        verdict = estimate_memory(largest, self.memory)
        if verdict.budget is not None:
            (needed,), (budget,) = in_one_unit(verdict.needed), in_one_unit(verdict.budget)
            seen = f"the largest, {largest.handle.name}, takes about {needed} of {budget}"
            fault = Fault.MODEL_TOO_LARGE if verdict.fit is MemoryFit.EXCEEDS else None
            yield Finding("largest_model", CheckGroup.MODELS, seen, fault, largest.handle.name)

    def _server(self, configuration: Configuration) -> Iterator[Finding]:
        servers = self.servers.servers()
        for sentence in self.servers.unseen():
            yield Finding("running", CheckGroup.SERVER, sentence, Fault.SERVER_SILENT)
        own = any(each.url.endswith(f":{configuration.port}") for each in servers)
        yield diagnosis.judge_port(self.probe.port(configuration.port), own_server=own)

    def _secrets(self, configuration: Configuration) -> Iterator[Finding]:
        for path in configuration.secret_files:
            if self.probe.exposed(path):
                seen = f"other users of this machine can read {path}"
                yield Finding("secrets", CheckGroup.SETTINGS, seen, Fault.EXPOSED_SECRET, path)


def _multiplication(matrices: Matrices) -> Finding:
    """Return the finding about the library for matrix multiplication on the CPU."""
    group = CheckGroup.COMPUTING
    if matrices.library is not None:
        return Finding("matrices", group, f"matrices are multiplied by {matrices.library}")
    if not matrices.could_be_faster:
        return Finding("matrices", group, "matrices are multiplied by the plain library, as is set")
    return Finding("matrices", group, "matrices are multiplied by the plain library", Fault.NO_BLAS)


def _settings(configuration: Configuration) -> Iterator[Finding]:
    group, path = CheckGroup.SETTINGS, configuration.settings_path
    for fault in configuration.settings_faults:
        yield Finding("settings_file", group, f"{path}: {fault}", Fault.SETTINGS_INVALID, path)
    if not configuration.settings_faults:
        yield Finding("settings_file", group, path)
    for sentence in configuration.unknown_variables:
        yield Finding("variables", group, sentence, Fault.UNKNOWN_VARIABLE)


_READING_SECONDS = 900.0
"""Timeout of a host; enough to read a model of hundreds of gigabytes."""


@attrs.frozen
class HostDiagnosis:
    """Result of a diagnosis of hosts."""

    findings: tuple[Finding, ...]
    """About each host in turn, then about the model and the links."""
    examination: Examination
    spread: SpreadModel | None
    """The model's division among the hosts; None without a model."""


@attrs.frozen
class DiagnoseHosts:
    """Examines hosts; changes nothing there, and leaves no process running."""

    examine: Examine
    memory: MemoryProbe
    resolve: ResolveModel
    describe: DescribeModel

    def __call__(self, file: HostFile, model: str | None, seconds: float, notify: Notify) -> HostDiagnosis:
        """Examine hosts, and the division of a model among them.

        Args:
            file: The host file, of this machine and others.
            model: Reference to the model to divide among the hosts; None for none.
            seconds: Timeout for a host without response.
            notify: Callback with the progress.

        Raises:
            ModelNotFoundError, AmbiguousModelError: The reference means no single model.
            CapabilityError: The model is an adapter.
        """
        if model is None:
            examination, spread, name = self.examine(file.hosts, HostQuestion(seconds), notify), None, None
        else:
            described = self.describe(self.resolve(model))
            refuse_adapter(described)
            examination, spread = self._spread(file.hosts, described, HostQuestion(seconds), notify)
            name = described.handle.name
        return HostDiagnosis(tuple(judge_hosts(examination, file.backend, spread, name)), examination, spread)

    def spread(self, hosts: Sequence[RankHost], described: ModelDescription) -> SpreadModel:
        """Return the division of a model among hosts, without measuring the links between them.

        Raises:
            CapabilityError: The model is an adapter.
        """
        refuse_adapter(described)
        return self._spread(hosts, described, HostQuestion(_READING_SECONDS, links=False), lambda what: None)[1]

    def _spread(
        self, hosts: Sequence[RankHost], described: ModelDescription, question: HostQuestion, notify: Notify
    ) -> tuple[Examination, SpreadModel]:
        name, backends = name_everywhere(described.handle), described.runtime.backends
        examination = self.examine(hosts, attrs.evolve(question, name=name, backends=backends), notify)
        share = estimate_memory(share_of(described, len(hosts)), self.memory)
        return examination, SpreadModel.judged(hosts, [each.account for each in examination.hosts], share)

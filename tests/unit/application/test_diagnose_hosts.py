"""The diagnosis of hosts, on examinations in memory: what the hosts are asked, and what follows for a model."""

from collections.abc import Sequence

import attrs
import pytest
from doubles.backend_registry import InMemoryBackendRegistry
from doubles.memory_probe import InMemoryMemoryProbe
from doubles.model_cache import CachedModel, InMemoryModelCache
from doubles.model_files import InMemoryModelFiles
from doubles.model_source import InMemoryModelSource
from doubles.workspace_store import InMemoryWorkspaceStore
from serving.parts import CHAT, WEIGHTS

from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.diagnose import DiagnoseHosts
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.diagnosis import CheckGroup, Fault
from mlxk.domain.errors import CapabilityError, ModelNotFoundError
from mlxk.domain.host_checks import Examination, HostFacts, HostQuestion, LinkFacts, Notify, links_between
from mlxk.domain.models.footprint import MemoryReading
from mlxk.domain.ranks import HostAccount, HostFile, HostFiles, RankHost

COMMIT = "a" * 40
GIB = 1024**3
HOSTS = (RankHost("localhost", "192.168.7.1"), RankHost("mac2", "192.168.7.2"))
FILE = HostFile(HOSTS)
ADAPTER = {"adapter_config.json": b'{"lora_parameters": {"rank": 8}}', "adapters.safetensors": WEIGHTS}


@attrs.define(slots=False)
class World:
    """Two hosts, and a model and an adapter on the first one."""

    digests: tuple[str, str] = ("d" * 64, "d" * 64)

    def __attrs_post_init__(self) -> None:
        self.asked: list[HostQuestion] = []
        self.steps: list[str] = []
        models = {"org/chat": CHAT, "org/lora": ADAPTER}
        cache = InMemoryModelCache({name: CachedModel((COMMIT,)) for name in models})
        files = InMemoryModelFiles({f"/cache/{name}/{COMMIT}": content for name, content in models.items()})
        workspaces = InMemoryWorkspaceStore()
        self.describe = DescribeModel(files, workspaces, InMemoryBackendRegistry({"mlx-lm": {"llama"}}), cache, "org")
        resolve = ResolveModel(cache, workspaces, InMemoryModelSource())
        self.diagnose = DiagnoseHosts(self._examine, InMemoryMemoryProbe(), resolve, self.describe)

    def _examine(self, hosts: Sequence[RankHost], question: HostQuestion, notify: Notify) -> Examination:
        self.asked.append(question)
        notify("hosts")
        reading = MemoryReading(16 * GIB, 16 * GIB)
        facts = []
        for host, digest in zip(hosts, self.digests, strict=True):
            account = HostAccount(reading, digest=digest, backends={"ring": True}, cut="tensor")
            facts.append(HostFacts(host, seconds=0.1, python="3.12", reading=reading, account=account))
        pairs = links_between(len(hosts)) if question.links else ()
        links = tuple(LinkFacts(hosts[one], hosts[other], 0.1, 1e9, hosts[one].address) for one, other in pairs)
        return Examination(tuple(facts), links)


def test_without_a_model_the_hosts_are_asked_about_none() -> None:
    there = World()
    found = there.diagnose(FILE, None, 5.0, there.steps.append)
    assert (there.asked, there.steps, found.spread) == ([HostQuestion(5.0)], ["hosts"], None)
    assert [each.host for each in found.findings if each.group is CheckGroup.HOSTS and each.fault] == []
    assert len(found.examination.links) == 2


def test_a_model_is_asked_for_by_name_and_revision_and_divided() -> None:
    there = World()
    found = there.diagnose(FILE, "chat", 5.0, there.steps.append)
    assert there.asked == [HostQuestion(5.0, f"org/chat@{COMMIT}", ("mlx-lm",))]
    assert found.spread is not None
    assert [(each.host, each.files) for each in found.spread.shares] == [(host, HostFiles.SAME) for host in HOSTS]
    assert found.spread.cut == "tensor"
    other = World(("d" * 64, "e" * 64))
    faults = [each for each in other.diagnose(FILE, "chat", 5.0, print).findings if each.fault]
    assert [(each.host, each.fault, each.subject) for each in faults] == [("mac2", Fault.MODEL_DIFFERS, "org/chat")]


def test_a_division_alone_measures_no_links_and_has_time_to_read_a_large_model() -> None:
    there = World()
    spread = there.diagnose.spread(HOSTS, there.describe(there.diagnose.resolve("chat")))
    assert [each.host for each in spread.shares] == list(HOSTS)
    (question,) = there.asked
    assert (question.links, question.name, question.seconds >= 600) == (False, f"org/chat@{COMMIT}", True)


def test_an_adapter_or_an_unknown_model_is_refused_before_any_host_is_asked() -> None:
    there = World()
    with pytest.raises(CapabilityError, match="org/lora"):
        there.diagnose(FILE, "lora", 5.0, print)
    with pytest.raises(CapabilityError, match="org/lora"):
        there.diagnose.spread(HOSTS, there.describe(there.diagnose.resolve("lora")))
    with pytest.raises(ModelNotFoundError):
        there.diagnose(FILE, "nosuch", 5.0, print)
    assert there.asked == []

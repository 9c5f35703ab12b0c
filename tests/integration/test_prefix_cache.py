"""Prompts that begin as earlier ones did: what is used again in memory, for every kind of cache, and by whom."""

import json
from pathlib import Path
from typing import Any

import pytest
from doubles.event_log import InMemoryEventLog
from doubles.text_generator import InMemoryTextGenerator
from falcon.testing import TestClient
from models.answers import Answer, read
from models.tiny_models import build
from serving import contract
from serving.parts import CHAT_MODEL, Parts

from mlxk.adapters.mlx.memory import EngineLimits
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.application.ports.text_generator import DiskPrefixes, KeptPrompts
from mlxk.domain.generation.conversation import Conversation, Message, Role
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.model import ModelHandle
from mlxk.entrypoints.settings import ServerSettings

pytestmark = pytest.mark.mlx
KINDS = ("llama", "gemma3_text", "lfm2", "mamba2")
"""Plain keys and values; sliding windows; both a recurrent state and attention; a recurrent state only."""

SYSTEM = "You are an agent with tools. The quick brown fox jumps over the lazy dog. " * 6
OPENING = 24
"""Tokens at most of the words that open an answer."""

RESULTS = ("Count: 1, 2, 3.", "Die Sonne scheint.", "Hello world! How are you today?")


def turns(count: int) -> Conversation:
    """Return the first turns of an agent, whose own words come back without what it reasoned."""
    messages = [Message(Role.SYSTEM, SYSTEM), Message(Role.USER, "What is there?")]
    for result in RESULTS[:count]:
        messages += [Message(Role.ASSISTANT, "I look."), Message(Role.USER, result * 4)]
    return Conversation(tuple(messages))


def opening_answers(handle: ModelHandle) -> ModelHandle:
    """Have the template open answers with words that it leaves out of earlier ones, as those of reasoning models do."""
    path = Path(handle.directory) / "tokenizer_config.json"
    path.write_text(path.read_text().replace("assistant\\n{%- endif", "assistant\\nAnswer: {%- endif"))
    return handle


def ask(engine: MlxTextGenerator, handle: ModelHandle, prompt: Conversation, tenant: str = "") -> Answer:
    settings = GenerationSettings(temperature=0, max_tokens=12, ignore_eos=True)
    return read(engine.submit(GenerationRequest(handle, prompt, settings, tenant=tenant)))


@pytest.mark.parametrize("kind", KINDS)
def test_an_agent_s_next_prompt_finds_its_last_one(engine: MlxTextGenerator, tmp_path: Path, kind: str) -> None:
    handle = opening_answers(build(tmp_path / kind, kind))
    alone = MlxTextGenerator(InMemoryEventLog(), SystemClock(), EngineLimits(prefix_cache_bytes=0))
    before = 0
    for count in range(len(RESULTS) + 1):
        found = ask(engine, handle, turns(count))
        usage = found.finished.usage
        assert usage.cached_tokens >= before
        assert found.text == ask(alone, handle, turns(count)).text
        before = usage.prompt_tokens - OPENING
    alone.close()


def test_a_tenant_s_prompts_are_used_for_that_tenant_only(engine: MlxTextGenerator, tmp_path: Path) -> None:
    handle = build(tmp_path / "a")
    first = ask(engine, handle, turns(0), "one")
    other = ask(engine, handle, turns(0), "two")
    again = ask(engine, handle, turns(0), "one")
    assert [each.finished.usage.cached_tokens > 0 for each in (first, other, again)] == [False, False, True]
    assert first.text == other.text == again.text


def test_every_api_says_whose_prompt_it_is(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("ada\nbob\n")
    parts = Parts(settings=ServerSettings(api_key_file=str(keys)))
    turn = {"model": CHAT_MODEL, "messages": [{"role": "user", "content": "one"}], "max_tokens": 4}
    bodies = {
        "/v1/chat/completions": turn,
        "/v1/completions": {"model": CHAT_MODEL, "prompt": "one"},
        "/v1/responses": {"model": CHAT_MODEL, "input": "one"},
        "/v1/messages": turn,
        "/api/chat": turn,
        "/api/generate": {"model": CHAT_MODEL, "prompt": "one"},
    }
    headers = (
        {"Authorization": "Bearer ada"},
        {"Authorization": "Bearer bob"},
        {"Authorization": "Bearer ada", "X-Cache-Tenant": "x"},
        {"Authorization": "Bearer bob", "X-APC-Tenant": "x"},
    )
    client = TestClient(parts.application.wsgi, headers={"Host": "localhost", "Content-Type": "application/json"})
    tenants: list[list[str]] = []
    for path, body in bodies.items():
        parts.generator.requests.clear()
        for each in headers:
            assert client.simulate_post(path, body=json.dumps(body), headers=each).status_code == 200
        tenants.append([request.tenant for request in parts.generator.requests])
    parts.close()
    assert all(found == tenants[0] for found in tenants)
    assert len(set(tenants[0])) == len(headers), "a header divides what a key opens, and never joins two keys"
    assert not any("ada" in tenant or "bob" in tenant for tenant in tenants[0])


def test_a_tenant_sees_and_drops_its_own_and_the_operator_everything(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("ada\nbob\n")
    settings = ServerSettings(api_keys=("boss",), operator_key="boss", api_key_file=str(keys))
    parts = Parts(settings=settings)
    client = TestClient(parts.application.wsgi, headers={"Host": "localhost", "Content-Type": "application/json"})

    def ask(method: str, path: str, key: str, **headers: str) -> tuple[int, Any]:
        body = json.dumps({"model": CHAT_MODEL, "prompt": "one"}) if "completions" in path else None
        sent = {"Authorization": f"Bearer {key}", **headers}
        answer = client.simulate_request(method, path, body=body, headers=sent)
        contract.check(method, path, answer.status_code, answer.headers["content-type"], answer.json)
        return answer.status_code, answer.json

    def entries(key: str, query: str = "", **headers: str) -> int:
        status, document = ask("GET", f"/v1/cache/stats{query}", key, **headers)
        assert (status, document["scope"]) == (200, "all" if query else "tenant")
        found: int = document["memory"]["entries"]
        return found

    for key in ("ada", "ada", "bob", "boss"):
        assert ask("POST", "/v1/completions", key)[0] == 200
    assert ask("POST", "/v1/completions", "ada", **{"X-Cache-Tenant": "x"})[0] == 200
    assert (entries("ada"), entries("ada", **{"X-Cache-Tenant": "x"}), entries("bob")) == (2, 1, 1)
    for path, method in (("/v1/cache/stats", "GET"), ("/v1/cache/reset", "POST")):
        assert ask(method, f"{path}?scope=all", "ada")[0] == 401
        assert ask(method, f"{path}?scope=mine", "ada")[0] == 400
    assert entries("boss", "?scope=all") == 5
    assert ask("POST", "/v1/cache/reset", "ada")[0] == 200
    assert (entries("ada"), entries("bob"), entries("boss", "?scope=all")) == (0, 1, 3)
    assert ask("POST", "/v1/cache/reset?scope=all", "boss")[0] == 200
    assert entries("boss", "?scope=all") == 0
    parts.close()


class OnDisk(InMemoryTextGenerator):
    """A generator whose prompts are on a disk."""

    def kept_prompts(self, tenant: str | None = None) -> KeptPrompts:
        """Return figures that differ from one another."""
        return KeptPrompts(1, 2, 3, disk=DiskPrefixes(4, 5, 6, 7, 8, 9, 10, 11, 12))


def test_what_others_do_with_the_disk_is_for_the_operator_alone(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("ada\n")
    settings = ServerSettings(api_keys=("boss",), operator_key="boss", api_key_file=str(keys))
    parts = Parts(OnDisk(), settings)
    client = TestClient(parts.application.wsgi, headers={"Host": "localhost"})
    own = {"entries": 4, "bytes": 5, "limit_bytes": 6}
    counters = {"hits": 7, "misses": 8, "writes": 9, "evictions": 10, "refusals": 11, "faults": 12}
    for key, query, disk in (("ada", "", own), ("boss", "", own), ("boss", "?scope=all", {**own, **counters})):
        answer = client.simulate_get(f"/v1/cache/stats{query}", headers={"Authorization": f"Bearer {key}"})
        contract.check("GET", "/v1/cache/stats", answer.status_code, answer.headers["content-type"], answer.json)
        assert answer.json["disk"] == disk
    parts.close()


def test_without_keys_everybody_is_the_operator() -> None:
    parts = Parts()
    client = TestClient(parts.application.wsgi, headers={"Host": "localhost"})
    assert client.simulate_get("/cache/stats", params={"scope": "all"}).json["scope"] == "all"
    assert client.simulate_post("/cache/reset", params={"scope": "all"}).status_code == 200
    for body, scope in (({"scope": "all"}, "all"), ({}, "tenant"), ({"scope": None}, "tenant")):
        assert client.simulate_post("/v1/cache/reset", json=body).json["scope"] == scope
    for body, fault in (({"scop": "all"}, "scop"), ({"scope": "mine"}, "scope"), ({"scope": ["all"]}, "scope")):
        refused = client.simulate_post("/v1/cache/reset", json=body)
        assert (refused.status_code, refused.json["error"]["param"]) == (400, fault)
    both = client.simulate_post("/v1/cache/reset", params={"scope": "tenant"}, json={"scope": "all"})
    assert (both.status_code, both.json["error"]["param"]) == (400, "scope")
    parts.close()

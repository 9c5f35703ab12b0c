"""Probes: whether the process lives, whether the engine does, whether to send requests."""

import json
from typing import Any

import pytest
from doubles.clock import InMemoryClock
from doubles.text_generator import InMemoryTextGenerator
from falcon.testing import TestClient
from serving.parts import CHAT_MODEL, OTHER_MODEL, Parts

from mlxk.application.ports.text_generator import EngineState
from mlxk.domain.models.footprint import MemoryReading
from mlxk.entrypoints.http.resources import STALLED_SECONDS, EngineWatch
from mlxk.entrypoints.settings import ServerSettings


def status(parts: Parts, path: str) -> tuple[int, Any]:
    """Ask a probe."""
    answer = TestClient(parts.application.wsgi, headers={"Host": "localhost"}).simulate_get(path)
    return answer.status_code, answer.json


def test_readiness_falls_when_the_engine_is_silent_and_comes_back() -> None:
    parts = Parts()
    assert status(parts, "/readyz") == (200, {"status": "ok", "checks": ready()})
    parts.generator.responding = False
    assert status(parts, "/readyz") == (503, {"status": "unavailable", "checks": ready(engine=False)})
    assert status(parts, "/health")[1]["engine"] == "busy"
    assert status(parts, "/livez")[0] == 200
    parts.generator.responding = True
    assert status(parts, "/readyz")[0] == 200


def ready(**changed: bool) -> dict[str, bool]:
    """Return the checks of a ready server, some changed."""
    return {"preloaded": True, "accepting": True, "engine": True, "queue": True, **changed}


def test_an_engine_that_stays_silent_is_stuck() -> None:
    clock, generator = InMemoryClock(), InMemoryTextGenerator()
    watch = EngineWatch(generator, clock)
    generator.responding = False
    assert watch.read()[1] is False
    clock.advance(STALLED_SECONDS - 1)
    assert watch.read()[1] is False
    clock.advance(1)
    assert watch.read()[1] is True
    generator.responding = True
    assert watch.read()[1] is False


@pytest.mark.parametrize("field", ["preloaded", "accepting"])
def test_a_server_that_loads_or_drains_is_not_ready(field: str) -> None:
    parts = Parts()
    if field == "preloaded":
        parts.application.lifecycle.preloaded = False
    else:
        parts.application.drain()
    assert status(parts, "/readyz") == (503, {"status": "unavailable", "checks": ready(**{field: False})})
    assert status(parts, "/health")[0] == 200


def test_a_server_whose_queue_is_full_is_not_ready() -> None:
    parts = Parts(settings=ServerSettings(max_streams=2, max_queue=0))
    release = parts.application._limit.enter(2)
    assert status(parts, "/readyz") == (503, {"status": "unavailable", "checks": ready(queue=False)})
    assert status(parts, "/health")[0] == status(parts, "/livez")[0] == 200
    release()
    assert status(parts, "/readyz") == (200, {"status": "ok", "checks": ready()})


def test_figures_show_what_is_loaded() -> None:
    parts = Parts()
    client = TestClient(parts.application.wsgi, headers={"Host": "localhost"})
    for model in (CHAT_MODEL, OTHER_MODEL):
        body = {"model": model, "messages": [{"role": "user", "content": "a b"}]}
        assert client.simulate_post("/v1/chat/completions", body=json.dumps(body)).status_code == 200
    page = client.simulate_get("/metrics").text
    assert "mlxk_models_loaded 2\n" in page
    assert "mlxk_completion_tokens_total 4\n" in page
    assert "mlxk_answers_admitted 0\n" in page


@pytest.mark.parametrize(("strict", "expected"), [(True, 507), (False, 200)])
def test_a_model_beyond_the_memory_is_refused_only_where_the_operator_says_so(strict: bool, expected: int) -> None:
    parts = Parts(settings=ServerSettings(strict_memory=strict), budget=1000)
    client = TestClient(parts.application.wsgi, headers={"Host": "localhost"})
    body = {"model": CHAT_MODEL, "messages": [{"role": "user", "content": "a"}]}
    answer = client.simulate_post("/v1/chat/completions", body=json.dumps(body))
    assert answer.status_code == expected
    warned = parts.log.named("the model exceeds this machine's memory budget; expect swapping")
    assert len(warned) == (0 if strict else 1)
    assert MemoryReading(1000, 1000).budget < 1000


def test_a_probe_waits_for_the_engine_for_less_than_the_second_that_orchestrators_wait_for_a_probe() -> None:
    waited: list[float] = []

    class Timed(InMemoryTextGenerator):
        def state(self, timeout_seconds: float) -> EngineState:
            waited.append(timeout_seconds)
            return super().state(timeout_seconds)

    EngineWatch(Timed(), InMemoryClock()).read()
    assert len(waited) == 1
    assert 0 < waited[0] < 1

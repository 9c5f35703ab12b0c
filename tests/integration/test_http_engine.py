"""The server and the real engine together: clients who leave, and models that take turns in a memory for one."""

import base64
import itertools
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from models.pictures import as_png, noise
from serving.running import RunningServer, eventually
from serving.whole_program import ENDLESS, PATH, QUESTION, WholeProgram

from mlxk.adapters.mlx.engine import working_memory
from mlxk.adapters.system import ProcMemoryProbe
from mlxk.entrypoints.settings import ServerSettings

pytestmark = pytest.mark.mlx
DEMO = Path(__file__).parents[2] / "adapters" / "builtin" / "models" / "demo"
CLIENTS = 8
TURNS = 3


@pytest.fixture
def served(tmp_path: Path) -> Iterator[RunningServer]:
    """Serve the built-in model, and copies of it by their paths, in memory for one of them (2 MB each)."""
    program: Any = WholeProgram(tmp_path, ServerSettings(allow_paths=True, memory_budget_mib=3))
    with RunningServer(program) as running:
        yield running


@pytest.mark.parametrize("stream", [True, False])
def test_the_engine_rests_once_its_client_has_left(served: RunningServer, stream: bool) -> None:
    program: Any = served.parts
    served.post(PATH, {**QUESTION, "max_tokens": 1})
    connection = served.raw(PATH, {**ENDLESS, "stream": stream})
    assert eventually(lambda: program.running() == 1)
    began = time.process_time()
    assert eventually(lambda: time.process_time() - began > 0.1)
    connection.close()
    assert eventually(lambda: program.running() == 0)
    ended = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - ended < 0.1, "an answer nobody waits for is still computed"


def test_metrics_say_what_a_step_takes_and_how_much_of_a_prompt_is_computed_at_a_time(served: RunningServer) -> None:
    def gauges() -> dict[str, float]:
        lines = served.get("/metrics")[2].decode().splitlines()
        return {name: float(value) for name, value in (line.split() for line in lines if line[0] != "#")}

    before = gauges()
    assert (before["mlxk_decode_step_seconds"], before["mlxk_prompt_chunk_tokens"]) == (0, 0)
    served.post(PATH, {**QUESTION, "max_tokens": 20, "ignore_eos": True})
    after = gauges()
    assert 0 < after["mlxk_decode_step_seconds"] < 10
    names = ("waits", "evictions", "smaller_chunks", "step_backs", "swaps", "refusals")
    assert [after[f"mlxk_memory_{name}_total"] for name in names] == [0] * 6
    assert after["mlxk_prompt_chunk_tokens"] >= 4


def test_metrics_count_that_memory_moves_to_swap_while_an_answer_is_computed(
    served: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    swapped, read = itertools.count(2**30, 2**28), ProcMemoryProbe.read
    monkeypatch.setattr(working_memory, "_POLL_SECONDS", 0.0)
    monkeypatch.setattr(ProcMemoryProbe, "read", lambda probe: attrs.evolve(read(probe), swap_used=next(swapped)))
    status, _, answer = served.post(PATH, {**QUESTION, "max_tokens": 20, "ignore_eos": True})
    assert (status, answer["choices"][0]["finish_reason"]) == (200, "length")
    assert b"mlxk_memory_swaps_total 1\n" in served.get("/metrics")[2]


def test_an_answer_goes_on_to_its_limit_where_a_client_that_measures_asks_for_that(served: RunningServer) -> None:
    for path, prompt in ((PATH, QUESTION), ("/v1/completions", {"model": "demo", "prompt": "What is mlxk?"})):
        _, _, usual = served.post(path, {**prompt, "max_tokens": 200, "temperature": 0})
        status, headers, answer = served.post(path, {**prompt, "max_tokens": 200, "temperature": 0, "ignore_eos": True})
        assert (status, "x-mlxk-ignored-fields" in headers) == (200, False)
        assert usual["usage"]["completion_tokens"] < answer["usage"]["completion_tokens"] == 200
        assert answer["choices"][0]["finish_reason"] == "length"


def test_an_answer_by_a_schema_cannot_go_on_past_its_end(served: RunningServer) -> None:
    body = {**QUESTION, "ignore_eos": True, "response_format": {"type": "json_object"}}
    status, _, answer = served.post(PATH, body)
    assert status == 400
    assert "ignore_eos" in answer["error"]["message"]


def test_models_that_do_not_fit_together_are_asked_for_in_turns_and_all_answer(
    served: RunningServer, tmp_path: Path
) -> None:
    program: Any = served.parts
    names = ("demo", str(shutil.copytree(DEMO, tmp_path / "copy")))
    expected = served.post(PATH, QUESTION)[2]["choices"]
    answers: list[tuple[int, Any]] = []

    def client(index: int) -> None:
        for turn in range(TURNS):
            status, _, answer = served.post(PATH, {**QUESTION, "model": names[(index + turn) % 2]})
            answers.append((status, answer.get("choices", answer)))

    threads = [threading.Thread(target=client, args=(index,)) for index in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [(200, expected)] * (CLIENTS * TURNS)
    assert len(program.generator.state(1).models) == 1
    assert len(program.log.named("unloaded a model")) >= 2


def test_a_model_that_cannot_be_had_leaves_the_loaded_one_where_it_is(served: RunningServer, tmp_path: Path) -> None:
    program: Any = served.parts
    broken = shutil.copytree(DEMO, tmp_path / "broken")
    (broken / "config.json").write_text((broken / "config.json").read_text().replace('"intermediate_size": ', '"x": '))
    served.post(PATH, QUESTION)
    loaded = program.generator.state(1).models
    assert len(loaded) == 1
    for name in ("no/such-model", "demo-nothing", str(tmp_path / "nowhere"), "demo@0000000"):
        status, _, answer = served.post(PATH, {**QUESTION, "model": name})
        assert (400 <= status < 500, answer["status"]) == (True, "error")
    assert program.generator.state(1).models == loaded
    assert not program.log.named("unloaded a model")
    assert served.post(PATH, {**QUESTION, "model": str(broken)})[0] >= 400
    assert served.post(PATH, QUESTION)[0] == 200


@pytest.mark.parametrize(
    ("path", "fields", "status", "param"),
    [
        (PATH, {"logit_bias": {"99999": 1}}, 400, "logit_bias"),
        ("/v1/completions", {"prompt": [1, 99999]}, 400, "prompt"),
        ("/v1/completions", {"prompt": ["a", ""]}, 400, "prompt[1]"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_what_only_the_engine_can_refuse_names_its_field(
    served: RunningServer, path: str, fields: dict[str, Any], status: int, param: str, stream: bool
) -> None:
    answered, _, answer = served.post(path, {"max_tokens": 1, **QUESTION, **fields, "stream": stream})
    assert (answered, answer["error"]["param"]) == (status, param)
    assert [problem["param"] for problem in answer["error"]["detail"]["problems"]] == [param]
    assert answer["error"]["message"].startswith(f"{param}: ")


def test_an_image_the_decoder_refuses_is_named_by_its_field(served: RunningServer) -> None:
    cut = base64.b64encode(as_png(noise(1, 64, 64))[:60]).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{cut}"}}
    status, _, answer = served.post(PATH, {"model": "demo-vision", "messages": [{"role": "user", "content": [part]}]})
    assert (status, answer["error"]["param"]) == (400, "messages[0].content[0].image_url.url")
    assert "is damaged" in answer["error"]["message"]
    assert "image_" not in answer["error"]["message"].replace("image_url", "")


LONG = "word " * 5000
NOTHING = "there is nothing in it to answer"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("choices", [1, 2])
@pytest.mark.parametrize(
    ("prompt", "field", "said"),
    [
        (["hi", LONG], "prompt[1]", "However, prompt[1] resulted in "),
        ([LONG, "hi"], "prompt[0]", "However, prompt[0] resulted in "),
        ([LONG], "prompt[0]", "However, your prompt resulted in "),
        (LONG, "prompt", "However, your prompt resulted in "),
        (["hi", "ho", ""], "prompt[2]", f"prompt[2]: {NOTHING}"),
        ([""], "prompt[0]", f"prompt[0]: {NOTHING}"),
        ("", "prompt", f"prompt: {NOTHING}"),
        ([[1], [2**30]], "prompt[1]", "prompt[1]: names token 1073741824"),
        ([2**30, 1], "prompt", "prompt: names token 1073741824"),
    ],
)
def test_an_error_about_one_of_several_prompts_names_it(
    served: RunningServer, prompt: Any, field: str, said: str, choices: int, stream: bool
) -> None:
    body = {"model": "demo", "prompt": prompt, "n": choices, "stream": stream}
    status, _, answer = served.post("/v1/completions", body)
    error = answer["error"]
    assert (status, error["param"], said in error["message"]) == (400, field, True), error
    problems = (error.get("detail") or {}).get("problems", [{"param": field}])
    assert [each["param"] for each in problems] == [field]


def test_an_error_about_another_field_names_no_prompt(served: RunningServer) -> None:
    body = {"model": "demo", "prompt": ["hi", "ho"], "logit_bias": {"99999999": 1}}
    status, _, answer = served.post("/v1/completions", body)
    assert (status, answer["error"]["param"]) == (400, "logit_bias"), answer
    assert answer["error"]["detail"].keys() == {"problems"}

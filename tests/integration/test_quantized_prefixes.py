"""Kept prompts that are quantized before they are dropped for lack of memory, through HTTP on the real engine."""

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import pytest
from models.pictures import as_png, noise
from models.tiny_models import build, write_adapter
from models.tiny_vision import build as build_vision
from serving.running import RunningServer
from serving.settings_home import Machine
from serving.whole_program import PATH as CHAT
from serving.whole_program import WholeProgram

from mlxk.domain.models.model import ModelHandle, Origin
from mlxk.entrypoints.settings import ServerSettings

pytestmark = pytest.mark.mlx
Command = Callable[..., dict[str, Any]]
TOKENS = 230
"""Of each prompt, about: a layer of the usual cache takes the memory of 256."""
PROMPTS = [f"{number} " + "The quick brown fox jumps over the lazy dog. " * 21 for number in range(6)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of models, of which each has one layer or two and heads that can be quantized."""
    folder = tmp_path_factory.mktemp("models")
    build(folder / "llama", head_dim=32)
    build(folder / "lfm2", "lfm2", hidden_size=128, block_dim=128)  # whose heads are parts of it
    build(folder / "gemma", "gemma3_text", head_dim=32)
    build(folder / "mamba2", "mamba2")
    return folder


class Answer(NamedTuple):
    """One answer."""

    text: str
    cached: int
    """Tokens of its prompt that were kept."""
    likely: dict[str, float]
    """The likeliest first tokens, with their log probabilities."""

    def is_near(self, other: "Answer", most: float = 0.2) -> bool:
        """Whether the first token of another answer is chosen by nearly the same probabilities.

        Random weights make every later token depend on the last digits.
        """
        mine, theirs = self.likely, other.likely
        both = mine.keys() & theirs.keys()
        return bool(both) and all(abs(mine[token] - theirs[token]) < most for token in both)


@attrs.frozen
class Server:
    """A server with little memory for kept prompts."""

    running: RunningServer
    model: str
    program: Any

    def answer(self, prompt: str, model: str = "") -> Answer:
        """Return an answer."""
        return self.answers([prompt], model)[0]

    def answers(self, prompts: list[str], model: str = "") -> list[Answer]:
        """Return the answers to prompts of one request, each with the kept tokens of all."""
        body = {"model": model or self.model, "prompt": prompts, "max_tokens": 12, "temperature": 0, "logprobs": 3}
        status, _, document = self.running.post("/v1/completions", body)
        assert status == 200, document
        cached = document["usage"]["prompt_tokens_details"]["cached_tokens"]
        return [Answer(each["text"], cached, each["logprobs"]["top_logprobs"][0]) for each in document["choices"]]

    @property
    def kept(self) -> dict[str, Any]:
        """What is kept, by the server's own count."""
        return dict(self.running.get("/v1/cache/stats")[2]["memory"])

    def metric(self, name: str) -> int:
        """Return a figure of ``/metrics``."""
        page = self.running.get("/metrics")[2].decode()
        return int(next(float(line.split()[-1]) for line in page.splitlines() if line.startswith(f"{name} ")))


def limited(running: RunningServer, model: str, limit: int, all_caches: int | None = None) -> Server:
    """Limit what a server, which has loaded nothing yet, keeps in memory."""
    program: Any = running.parts
    limits = {"prefix_cache_bytes": limit, "cache_budget_bytes": all_caches}
    program.generator._limits = attrs.evolve(program.generator._limits, **limits)
    return Server(running, model, program)


@contextmanager
def serving(
    home: Path, models: Path, model: str, limit: int = 2**30, all_caches: int | None = None, **settings: Any
) -> Iterator[Server]:
    """Yield a server.

    Args:
        home: Its home.
        models: The folder of its models.
        model: Which one answers.
        limit: What kept prompts may take, bytes.
        all_caches: What they and the caches of answers may take together; None: no limit.
        settings: Of every model, or fields of ``ServerSettings``.
    """
    server = {name: settings.pop(name) for name in tuple(settings) if hasattr(ServerSettings(), name)}
    of_server = ServerSettings(allow_paths=True, preferred=settings, **server)
    program: Any = WholeProgram(home, of_server)
    with RunningServer(program) as running:
        yield limited(running, str(models / model), limit, all_caches)


@attrs.frozen
class Plain:
    """What a server with enough memory does."""

    answers: list[Answer]
    size: int
    """What it keeps of one of them, bytes."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Plain:
    """Return what a server with enough memory answers."""
    with serving(tmp_path_factory.mktemp("plain"), models, "llama") as server:
        answers = [server.answer(prompt) for prompt in PROMPTS]
        kept = server.kept
    return Plain(answers, int(kept["bytes"]) // int(kept["entries"]))


def ask_twice(server: Server, model: str = "") -> list[Answer]:
    """Ask for all prompts, and for all again, which begins with those that were used longest ago."""
    for prompt in PROMPTS:
        server.answer(prompt, model)
    return [server.answer(prompt, model) for prompt in PROMPTS]


def are_near(answers: list[Answer], others: list[Answer], most: float = 0.2) -> bool:
    return all(one.is_near(other, most) for one, other in zip(answers, others, strict=True))


@pytest.mark.parametrize("by", ["its own limit", "the limit of all caches"])
def test_prompts_are_quantized_in_place_of_being_dropped(tmp_path: Path, models: Path, plain: Plain, by: str) -> None:
    limit = {"limit": 4 * plain.size} if by == "its own limit" else {"all_caches": 5 * plain.size}
    with serving(tmp_path, models, "llama", prefix_cache_bits=8, **limit) as server:
        found = ask_twice(server)
        kept, evictions = server.kept, server.metric("mlxk_memory_evictions_total")
        counts = [server.metric(f"mlxk_prefix_{name}_total") for name in ("quantizations", "quantized_hits")]
        said = server.program.log.named("a kept prompt is used that was quantized")
    assert min(each.cached for each in found) > TOKENS * 0.9
    assert are_near(found, plain.answers)
    assert sum(one.text == other.text for one, other in zip(found, plain.answers, strict=True)) > len(PROMPTS) / 2
    assert kept["entries"] >= len(PROMPTS)
    assert (0 < kept["quantized_entries"] < len(PROMPTS), evictions) == (True, 0)
    assert kept["bytes"] <= next(iter(limit.values()))
    assert counts[0] >= kept["quantized_entries"]
    assert len(said) >= counts[1] > 0  # also of prompts that continue what continued one


def test_without_the_setting_prompts_are_dropped_and_nothing_is_quantized(
    tmp_path: Path, models: Path, plain: Plain
) -> None:
    with serving(tmp_path, models, "llama", limit=4 * plain.size) as server:
        found = ask_twice(server)
        kept, count = server.kept, server.metric("mlxk_prefix_quantizations_total")
    assert found == plain.answers
    assert (kept["entries"], kept["quantized_entries"], kept["quantized_bytes"], count) == (4, 0, 0, 0)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_prompt_takes_as_little_as_its_bits_say(tmp_path: Path, models: Path, plain: Plain, bits: int) -> None:
    with serving(tmp_path, models, "llama", limit=plain.size, prefix_cache_bits=bits) as server:
        body = {"model": server.model, "prompt": PROMPTS[0], "max_tokens": 12, "temperature": 0}
        usage = server.running.post("/v1/completions", body)[2]["usage"]
        server.answer(PROMPTS[1])
        kept = server.kept
    numbers = (usage["total_tokens"] - 1) * 2 * 2 * 2 * 32  # computed tokens, layers, keys and values, heads
    a_scale_and_a_bias = 2 * 4 / 32
    expected = numbers * (bits / 8 + a_scale_and_a_bias)
    assert kept["entries"] == 2
    quantized = kept["quantized_bytes"] / kept["quantized_entries"]
    assert quantized == pytest.approx(expected, rel=0.02)
    assert expected < plain.size * (bits / 32 + 1 / 16)


@pytest.mark.parametrize("name", ["gemma", "lfm2", "mamba2"])
def test_states_and_windows_stay_as_they_are(tmp_path: Path, models: Path, name: str) -> None:
    with serving(tmp_path / "large", models, name) as server:
        answers = [server.answer(prompt) for prompt in PROMPTS]
        limit = server.kept["bytes"] * 9 // 10
    with serving(tmp_path / "small", models, name, limit=limit, prefix_cache_bits=8) as server:
        for prompt in PROMPTS:
            server.answer(prompt)
        held = server.kept
        prompts = PROMPTS if name != "mamba2" else PROMPTS[-2:]  # a state cannot be smaller
        found = [server.answer(prompt) for prompt in prompts]
    assert min(each.cached for each in found) > TOKENS * 0.9
    assert are_near(found, answers[-len(prompts) :])
    assert (held["quantized_entries"] > 0) == (name != "mamba2")
    assert held["bytes"] <= limit


def test_answers_from_quantized_prompts_share_a_batch_with_others(tmp_path: Path, models: Path, plain: Plain) -> None:
    with serving(tmp_path, models, "llama", limit=4 * plain.size, prefix_cache_bits=8) as server:
        ask_twice(server)
        hits = server.metric("mlxk_prefix_quantized_hits_total")
        found = server.answers([*PROMPTS, "Something new"])
        assert server.metric("mlxk_prefix_quantized_hits_total") > hits
    assert are_near(found[:-1], plain.answers)
    assert found[0].cached > (len(PROMPTS) - 1) * TOKENS * 0.9


def test_prompts_with_an_image_are_quantized_and_go_on(tmp_path: Path, models: Path) -> None:
    sizes = {"head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    build_vision(models / "seeing", "qwen2_vl", 3, **sizes)
    shown = [base64.b64encode(as_png(noise(seed))).decode() for seed in range(3)]

    def asking(image: str) -> dict[str, Any]:
        parts = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
            {"type": "text", "text": "What is this? " * 12},
        ]
        return {"messages": [{"role": "user", "content": parts}], "max_tokens": 8, "temperature": 0}

    found: list[list[tuple[str, int]]] = []
    limit = 2**30
    for _ in range(2):
        with serving(tmp_path, models, "seeing", limit, prefix_cache_bits=8) as server:
            answers = [server.running.post(CHAT, {"model": server.model, **asking(each)})[2] for each in shown * 2]
            used = [each["usage"]["prompt_tokens_details"]["cached_tokens"] for each in answers]
            texts = [each["choices"][0]["message"]["content"] for each in answers]
            found.append(list(zip(texts, used, strict=True)))
            hits = server.metric("mlxk_prefix_quantized_hits_total")
            assert (hits > 0) == (limit < 2**30)
            limit = server.kept["bytes"] * 2 // 3
    assert [cached for _, cached in found[1]] == [cached for _, cached in found[0]]
    assert min(cached for _, cached in found[1][3:]) > 60
    same = [one == other for (one, _), (other, _) in zip(*found, strict=True)]
    assert sum(same) >= len(same) - 2, found


@pytest.mark.parametrize("name", ["adapted", "drafted"])
def test_adapters_and_draft_models_go_on_from_quantized_prompts(
    tmp_path: Path, models: Path, plain: Plain, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    model, home = str(models / "llama"), Machine(tmp_path / "home", capsys)
    adapter = write_adapter(tmp_path / "adapter", ModelHandle("llama", model, Origin.WORKSPACE))
    further = f'adapter = "{adapter}"' if name == "adapted" else f'draft_model = "{model}"'
    home.write(f'[models.{name}]\nmodel = "{model}"\nprefix_cache_bits = 8\n{further}\n')
    found = []
    for limit in (2**30, 3 * plain.size):
        with home.serve("--model", name) as running:
            server = limited(running, name, limit)
            found.append(ask_twice(server))
            assert (server.metric("mlxk_prefix_quantized_hits_total") > 0) == (limit < 2**30)
            assert name == "adapted" or server.metric('mlxk_draft_tokens_total{outcome="accepted"}') > 0
    large, small = found
    most = 0.5 if name == "adapted" else 0.2  # its weights are many times those of the model
    assert are_near(small, large, most)
    assert are_near(large, plain.answers, most) == (name == "drafted")


def test_names_with_other_settings_share_nothing_that_was_quantized(
    tmp_path: Path, models: Path, plain: Plain, capsys: pytest.CaptureFixture[str]
) -> None:
    home = Machine(tmp_path, capsys)
    home.write(f'[models.lossy]\nmodel = "{models / "llama"}"\nprefix_cache_bits = 4\n')
    with home.serve("--model", "lossy", "--allow-model-paths") as running:
        server = limited(running, str(models / "llama"), plain.size * 3 // 4)
        first = [server.answer(PROMPTS[0], "lossy").cached for _ in range(2)]
        assert server.kept["quantized_entries"] == server.kept["entries"] > 0
        other = server.answer(PROMPTS[0])
    assert (first[0], first[1] > TOKENS * 0.9) == (0, True)
    assert other == plain.answers[0]


def test_files_hold_what_was_computed_and_nothing_that_continues_a_quantized_prompt(
    tmp_path: Path, models: Path, plain: Plain
) -> None:
    folder, further = tmp_path / "kept", " And then it sleeps under the tree. " * 12
    with serving(
        tmp_path, models, "llama", 3 * plain.size, prefix_cache_bits=4, prefix_cache_dir=str(folder)
    ) as server:
        for prompt in PROMPTS:
            server.answer(prompt)
        cached = server.answer(PROMPTS[0] + further).cached
        assert (server.metric("mlxk_prefix_quantized_hits_total"), cached > TOKENS * 0.9) == (1, True)
    with serving(tmp_path, models, "llama", prefix_cache_dir=str(folder)) as server:
        found = [server.answer(prompt) for prompt in PROMPTS]
        longer = server.answer(PROMPTS[0] + further)
        hits = server.metric("mlxk_prefix_disk_hits_total")
    assert [each.text for each in found] == [each.text for each in plain.answers]
    assert are_near(found, plain.answers, 1e-4)
    assert hits == len(PROMPTS)
    assert TOKENS * 0.9 < longer.cached < TOKENS * 1.2  # what continued it was not written


@pytest.mark.parametrize("value", ["5", "2", "0", "16"])
def test_other_numbers_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str) -> None:
    machine = Machine(tmp_path, capsys)
    for words in (("serve",), ("profile", "poet", "--model", "demo")):
        done = machine(*words, "--prefix-cache-bits", value)
        assert (done.status != 0, "must be one of 4, 8" in done.err) == (True, True), done
        assert "prefix-cache-bits" in done.err or "prefix_cache_bits" in done.err
    machine.write(f"[serve]\nprefix_cache_bits = {value}\n")
    assert "prefix_cache_bits must be one of 4, 8" in machine("serve").err
    machine.write(f'[models.poet]\nmodel = "demo"\nprefix_cache_bits = {value}\n')
    assert "prefix_cache_bits must be one of 4, 8" in machine("show", "poet").err


def test_beside_quantized_caches_it_is_said_to_be_needless(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine(tmp_path, capsys)
    needless = "prefix_cache_bits is needless beside kv_bits"
    assert needless in machine("serve", "--prefix-cache-bits", "8", "--kv-bits", "8").err
    assert needless not in machine("serve", "--prefix-cache-bits", "8").err
    machine.write('[models.poet]\nmodel = "demo"\nkv_bits = 8\nprefix_cache_bits = 4\n')
    assert needless in machine("serve", "--model", "poet").err


@pytest.mark.parametrize("others", [{"kv_bits": 8}, {"kv_bits": 4, "kv_scheme": "turboquant"}, {"max_kv_size": 64}])
def test_quantized_and_rotating_caches_stay_as_they_are(
    tmp_path: Path, models: Path, plain: Plain, others: dict[str, Any]
) -> None:
    with serving(tmp_path, models, "llama", plain.size // 2, prefix_cache_bits=4, **others) as server:
        first, again = [[server.answer(prompt) for prompt in PROMPTS[:2]] for _ in range(2)]
        assert server.kept["quantized_entries"] == 0
    assert [each.text for each in first] == [each.text for each in again]


def test_a_model_over_processes_does_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = Machine(tmp_path, capsys)("serve", "--model", "demo", "--local-ranks", "2", "--prefix-cache-bits", "8")
    assert (done.status, "--local-ranks and --prefix-cache-bits exclude each other" in done.err) == (2, True), done

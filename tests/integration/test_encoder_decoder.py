"""Models of an encoder and a decoder: Florence-2's tasks and places, and what holds for answers of both."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
import pytest
from models.answers import Answer, read
from models.pictures import about, as_png, loaded, noise, oracle
from models.vision_families import build_family
from serving.running import RunningServer, events_of, read_all
from serving.whole_program import WholeProgram

from mlxk.adapters.mlx.engine.prefill import Prefill
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.mlx.vision.loader import load_vision_model
from mlxk.domain.errors import CapabilityError, ContextLengthError, ValidationError
from mlxk.domain.formats.regions import regions_in
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.grammar import Grammar
from mlxk.domain.generation.request import FinishReason, GenerationRequest
from mlxk.domain.generation.settings import EngineOptions, GenerationSettings
from mlxk.domain.models.model import ModelHandle
from mlxk.entrypoints.settings import ServerSettings

pytestmark = pytest.mark.mlx
Command = Callable[..., dict[str, Any]]

GREEDY = GenerationSettings(temperature=0, max_tokens=8, logprobs=0)
TASKS = (
    "<CAPTION>",
    "<MORE_DETAILED_CAPTION>",
    "<OCR>",
    "<OD>",
    "<OCR_WITH_REGION>",
    "<CAPTION_TO_PHRASE_GROUNDING> a brown fox",
    "<REGION_TO_CATEGORY><loc_52><loc_332><loc_932><loc_774>",
)


@pytest.fixture(scope="module")
def florence(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    """Build a model whose answers are of all its tokens."""
    return build_family(tmp_path_factory.mktemp("tiny") / "florence2", "florence2", 3)


def build_pointing(directory: Path) -> ModelHandle:
    """Write a model whose answers are places alone."""
    handle = build_family(directory, "florence2", 3)
    _, processor = loaded(handle)
    first = processor.tokenizer.convert_tokens_to_ids("<loc_0>")
    loaded.cache_clear()
    weights = mx.load(str(directory / "model.safetensors"))
    assert isinstance(weights, dict)
    head = weights["language_model.lm_head.weight"]
    ids = mx.arange(len(head))[:, None]
    weights["language_model.lm_head.weight"] = mx.where((ids >= first) & (ids < first + 1000), head, 0)
    mx.save_safetensors(str(directory / "model.safetensors"), weights, metadata={"format": "mlx"})
    return handle


def answer(engine: MlxTextGenerator, handle: ModelHandle, prompt: Conversation | str, **settings: Any) -> Answer:
    return read(engine.submit(asked(handle, prompt, **settings)))


def asked(handle: ModelHandle, prompt: Conversation | str, **settings: Any) -> GenerationRequest:
    return GenerationRequest(handle, prompt, attrs.evolve(GREEDY, **settings), backends=("mlx-vlm",))


@pytest.mark.parametrize("task", TASKS)
def test_a_task_reaches_the_model_as_its_processor_writes_it(
    task: str, florence: ModelHandle, engine: MlxTextGenerator
) -> None:
    assert answer(engine, florence, about(noise(1), task)).tokens == oracle(florence, about(noise(1), task), 8)


def test_a_task_that_is_all_of_a_prompt_is_said_to_be(florence: ModelHandle, engine: MlxTextGenerator) -> None:
    with pytest.raises(ValidationError, match="<OD> must be all of the prompt"):
        answer(engine, florence, about(noise(1), "<OD> of cats"))


def test_places_are_regions_of_the_command_lines_answer(command: Command, tmp_path: Path) -> None:
    handle = build_pointing(tmp_path / "model")
    (tmp_path / "a.png").write_bytes(as_png(noise(1)))
    data = command("run", "./model", "<OD>", "--image", "a.png", "--temperature", "0", "--max-tokens", "8")["data"]
    said = data["response"].partition("</details>\n\n")[2]
    assert said.encode() == b"".join(oracle(handle, about(noise(1), "<OD>"), 8))
    assert said.count("<loc_") == 8
    found = [{"label": each.label, "kind": each.kind, "points": each.points} for each in regions_in(said)]
    assert data["regions"] == json.loads(json.dumps(found))
    assert found
    (tmp_path / "b.png").write_bytes(as_png(noise(2)))
    images = ("--image", "a.png", "--image", "b.png")
    each = command("run", "./model", "<OD>", *images, "--temperature", "0", "--max-tokens", "8")["data"]
    assert each["response"].count("<loc_") == 16
    together = command("run", "./model", "<OD>", *images, "--chunk", "2")
    assert "one image at a time" in together["error"]["message"]


@pytest.mark.parametrize("family", ["florence2", "nemotron_parse"])
def test_a_prompt_is_shown_before_the_model_is_loaded(family: str, tmp_path: Path) -> None:
    build_family(tmp_path / "model", family, 3)
    wanted = {"model": str(tmp_path / "model"), "messages": [{"role": "user", "content": "<OD>"}]}
    with RunningServer(WholeProgram(tmp_path, ServerSettings(allow_paths=True))) as running:
        status, _, shown = running.post("/apply-template", wanted)
    assert (status, shown["prompt"]) == (200, {"florence2": "<OD>", "nemotron_parse": "</s><s><OD>"}[family])


@pytest.fixture
def served(tmp_path: Path) -> Iterator[RunningServer]:
    build_pointing(tmp_path / "model")
    with RunningServer(WholeProgram(tmp_path, ServerSettings(allow_paths=True, chunk=2))) as running:
        yield running


def test_places_are_regions_of_a_chat_completion(served: RunningServer, tmp_path: Path) -> None:
    url = f"data:image/png;base64,{base64.b64encode(as_png(noise(1))).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "<OD>"}]
    body = {"model": str(tmp_path / "model"), "messages": [{"role": "user", "content": parts}]}
    body |= {"temperature": 0, "max_tokens": 8}
    status, _, whole = served.post("/v1/chat/completions", body)
    assert status == 200, whole
    message = whole["choices"][0]["message"]
    assert [tuple(map(tuple, each["points"])) for each in message["regions"]] == [
        each.points for each in regions_in(message["content"])
    ]
    streamed = events_of(read_all(served.raw("/v1/chat/completions", {**body, "stream": True})))[:-1]
    deltas = [choice["delta"] for chunk in streamed for choice in chunk["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == message["content"]
    assert [delta["regions"] for delta in deltas if "regions" in delta] == [message["regions"]]
    words = {"model": body["model"], "messages": [{"role": "user", "content": "How are you?"}], "max_tokens": 2}
    counted = served.post("/v1/messages/count_tokens", words)[2]["input_tokens"]
    assert served.post("/v1/chat/completions", words)[2]["usage"]["prompt_tokens"] == counted
    twice = [{"role": "user", "content": [parts[0], *parts]}]
    status, _, refused = served.post("/v1/chat/completions", {**body, "messages": twice})
    assert (status, refused["error"]["param"]) == (422, "messages")
    assert "one image at a time" in refused["error"]["message"]


@pytest.mark.parametrize("family", ["florence2", "nemotron_parse"])
def test_limits_stops_seeds_and_grammars_hold(family: str, tmp_path: Path, engine: MlxTextGenerator) -> None:
    handle, shown = build_family(tmp_path / family, family, 3), about(noise(1), "What is it?")
    plain = answer(engine, handle, shown)
    assert plain.finished.reason is FinishReason.LENGTH
    assert plain.finished.usage.completion_tokens == 8
    drawn = [answer(engine, handle, shown, temperature=1.5, seed=4).tokens for _ in range(2)]
    assert drawn[0] == drawn[1] != plain.tokens
    stop = plain.text[-2:]
    stopped = answer(engine, handle, shown, stop=(stop,))
    assert stopped.finished.reason is FinishReason.STOP
    assert stopped.text == plain.text.partition(stop)[0]
    written = answer(engine, handle, shown, grammar=Grammar.json_object(), max_tokens=60, logprobs=None).text
    assert written.startswith("{")
    alternatives = answer(engine, handle, shown, logprobs=3)
    assert alternatives.tokens == plain.tokens
    stream = engine.submit(asked(handle, shown, max_tokens=900, ignore_eos=True))
    next(stream)
    stream.cancel()
    assert read(stream).finished.reason is FinishReason.CANCELLED
    assert answer(engine, handle, shown).finished.usage.cached_tokens == 0


def test_a_prompt_takes_no_room_of_the_answer(tmp_path: Path, engine: MlxTextGenerator) -> None:
    handle = build_family(tmp_path / "florence2", "florence2", 3)
    config = json.loads((tmp_path / "florence2" / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 48
    (tmp_path / "florence2" / "config.json").write_text(json.dumps(config))
    weights = mx.load(str(tmp_path / "florence2" / "model.safetensors"))
    assert isinstance(weights, dict)
    for part in ("encoder", "decoder"):
        name = f"language_model.model.{part}.embed_positions.weight"
        weights[name] = weights[name][:50]
    mx.save_safetensors(str(tmp_path / "florence2" / "model.safetensors"), weights, metadata={"format": "mlx"})
    shown = about(noise(1), "What is it?")
    long = answer(engine, handle, shown, max_tokens=None, ignore_eos=True)
    assert long.finished.usage.prompt_tokens > 24
    assert long.finished.usage.completion_tokens == 48
    assert long.finished.window_full
    with pytest.raises(ContextLengthError):
        answer(engine, handle, about(noise(1), "What is it? " * 20))


@pytest.mark.parametrize("family", ["florence2", "nemotron_parse"])
def test_an_answer_that_was_interrupted_goes_on_from_its_tokens(family: str, tmp_path: Path) -> None:
    model = load_vision_model(build_family(tmp_path / family, family, 3))
    wanted = asked(model.handle, about(noise(1), "What is it?"))
    rendered, media = model.vision.process(wanted, model, model.vision.render(wanted, model))

    def begun(*generated: int) -> Prefill:
        prefill: Prefill = media.prefill([*rendered.tokens, *generated], model.network.make_cache(), 0)
        assert prefill.advance(1) == len(prefill.tokens) - 1
        assert prefill.remaining == 0
        return prefill

    def step(prefill: Prefill, token: int) -> mx.array:
        logits: mx.array = model.network(mx.array([[token]]), prefill.cache)
        return logits

    said, whole = [30, 31, 32], begun()
    for token in (rendered.tokens[-1], *said):
        expected = step(whole, token)
    assert mx.allclose(step(begun(*said), said[-1]), expected, atol=1e-4)


def test_the_mark_that_a_model_writes_first_is_no_text(florence: ModelHandle) -> None:
    model = load_vision_model(florence)
    begin, (letter,) = model.tokenizer.bos_token_id, model.tokenizer.encode("F", add_special_tokens=False)
    detokenizer = model.decoder.answer()
    assert [detokenizer.feed(token) for token in (begin, begin, letter, begin)] == ["", "", "F", "<s>"]
    assert detokenizer.flush() == ""
    assert model.decoder.stream().feed(begin) == "<s>"


def test_marks_of_what_to_write_reach_nemotron_parse(tmp_path: Path, engine: MlxTextGenerator) -> None:
    handle = build_family(tmp_path / "parse", "nemotron_parse", 3)
    marks = "<predict_bbox><predict_classes><output_markdown>"
    found = answer(engine, handle, about(noise(1), marks))
    assert found.tokens == oracle(handle, about(noise(1), marks), 8, written=f"</s><s>{marks}")
    assert found.finished.usage.prompt_tokens == 5


def test_an_image_is_asked_for_where_the_encoder_reads_no_text(tmp_path: Path, engine: MlxTextGenerator) -> None:
    handle = build_family(tmp_path / "parse", "nemotron_parse", 3)
    with pytest.raises(CapabilityError, match="answers about an image only"):
        answer(engine, handle, "Hello!")


def test_what_its_cache_and_its_prompts_do_not_take_is_refused(florence: ModelHandle, engine: MlxTextGenerator) -> None:
    quantized = attrs.evolve(asked(florence, about(noise(1), "Why?")), engine_options=EngineOptions(kv_bits=8))
    with pytest.raises(CapabilityError, match="kv_bits"):
        read(engine.submit(quantized))


def test_code_that_its_files_name_is_not_run(command: Command, tmp_path: Path) -> None:
    build_family(tmp_path / "model", "florence2", 3)
    entries = {
        "AutoConfig": "own.Config",
        "AutoModelForCausalLM": "own.Model",
        "AutoProcessor": "own.Processor",
        "AutoTokenizer": ["own.Tokenizer", "own.Tokenizer"],
        "AutoImageProcessor": "own.ImageProcessor",
    }
    for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
        content = json.loads((tmp_path / "model" / name).read_text())
        (tmp_path / "model" / name).write_text(json.dumps({**content, "auto_map": entries}))
    (tmp_path / "model" / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (tmp_path / "a.png").write_bytes(as_png(noise(1)))
    assert command("show", "./model")["data"]["model"]["runtime_compatible"] is True
    assert command("run", "./model", "<OD>", "--image", "a.png", "--max-tokens", "4")["status"] == "success"
    assert not (tmp_path / "ran").exists()


def test_such_a_model_is_not_tuned(command: Command, tmp_path: Path) -> None:
    build_family(tmp_path / "model", "florence2", 3)
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann."}]
    (tmp_path / "train.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    done = command("tune", "./model", "train.jsonl", "--into", "./taught")
    assert done["status"] == "error"
    assert "has an encoder beside its decoder" in done["error"]["message"]

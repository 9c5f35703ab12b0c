"""Keys and values quantized by TurboQuant: mlx-vlm's own states and texts, batches, kept prompts, limits, memory."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
import pytest
from doubles.event_log import InMemoryEventLog
from models.answers import read
from models.pictures import about, loaded, noise
from models.tiny_models import build, write_adapter
from models.tiny_vision import build as build_vision
from serving.settings_home import Machine
from serving.whole_program import PATH

from mlxk.adapters.mlx.engine.prefill import make_cache, quantize_cache
from mlxk.adapters.mlx.engine.turbo_cache import BatchTurboCache, TurboCache
from mlxk.adapters.mlx.prompting.detokenizer import TokenDecoder
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.domain.errors import CapabilityError
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.grammar import Grammar
from mlxk.domain.generation.request import GenerationRequest, TextDelta
from mlxk.domain.generation.settings import EngineOptions, GenerationSettings
from mlxk.domain.models.kv_cache import TURBOQUANT_BITS
from mlxk.domain.models.model import ModelHandle

pytestmark = pytest.mark.mlx
PROMPT = "The quick brown fox"
NOTE = "Keys and values are quantized by TurboQuant, in {} bits: experimental, and on a CPU half as fast."
FLAGS = ("--kv-scheme", "turboquant", "--kv-bits")
Command = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def handle(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return build(tmp_path_factory.mktemp("tiny") / "llama", head_dim=32, num_hidden_layers=3)


@pytest.fixture(scope="module")
def engine() -> Iterator[MlxTextGenerator]:
    generator = MlxTextGenerator(InMemoryEventLog(), SystemClock())
    yield generator
    generator.close()


def asking(
    handle: ModelHandle, prompt: str | Conversation = PROMPT, bits: float | None = 3.5, **wanted: Any
) -> GenerationRequest:
    names = [name for name in wanted if hasattr(EngineOptions(), name)]
    options = EngineOptions(kv_bits=bits, kv_scheme=bits and "turboquant", **{name: wanted.pop(name) for name in names})
    settings = GenerationSettings(**{"temperature": 0.0, "max_tokens": 24, "logprobs": 0, **wanted})
    return GenerationRequest(handle, prompt, settings, engine_options=options)


@pytest.mark.parametrize("size", [20, 64])
def test_what_is_kept_and_read_is_mlx_vlms_own_to_the_bit(size: int) -> None:
    from mlx_vlm.turboquant import TurboQuantKVCache

    for bits in TURBOQUANT_BITS:
        ours, theirs = TurboCache(bits), TurboQuantKVCache(bits)
        for tokens in (5, 1, 300, 1):
            keys, values = mx.random.normal((1, 2, tokens, size)), mx.random.normal((1, 2, tokens, 16))
            found = ours.update_and_fetch(keys, values)
            theirs.update_and_fetch(keys, values)
        for mine, state in zip(ours.packed_state(), theirs.state, strict=True):
            assert mx.array_equal(mine[0][..., 0], state.norms)
            assert mx.array_equal(mine[1], state.indices)
        assert all(mx.array_equal(mine, other) for mine, other in zip(found, theirs.dequantize(), strict=True))
        assert ours.nbytes < 2 * 2 * 2 * ours.keys[0].shape[2] * (size + 16)


def test_lengths_beyond_16_bits_and_vectors_of_nothing_stay_finite() -> None:
    cache = TurboCache(3)
    vectors = mx.concatenate([mx.full((1, 1, 1, 8), 1e5), mx.zeros((1, 1, 1, 8))], axis=2)
    found = cache.update_and_fetch(vectors, vectors)
    assert all(mx.isfinite(each).all() for each in found)


def test_a_batch_reads_what_each_of_its_rows_reads_alone() -> None:
    rows = []
    for tokens in (3, 0, 7):
        cache = TurboCache(2.5)
        if tokens:
            cache.update_and_fetch(*(mx.random.normal((1, 2, tokens, 16)) for _ in range(2)))
        rows.append(cache)
    batch = TurboCache.merge(rows)
    batch.extend(BatchTurboCache.merge([TurboCache(2.5)]))
    added = mx.random.normal((4, 2, 1, 16))
    keys, _ = batch.update_and_fetch(added, added)
    for index, row in enumerate(rows):
        alone, _ = row.update_and_fetch(added[index : index + 1], added[index : index + 1])
        assert mx.array_equal(keys[index : index + 1, :, -row.offset :], alone)
    batch.filter([0, 2])
    assert batch.extract(1).offset == 8
    assert batch.reading_bytes > batch.nbytes


def mlx_vlms_own(handle: ModelHandle, prompt: str, bits: float, max_tokens: int = 24) -> tuple[bytes, ...]:
    """Return mlx-vlm's own greedy answer from its own caches, all but the last layer quantized from the first token."""
    from mlx_vlm.generate.ar import generate_step
    from mlx_vlm.models.cache import make_prompt_cache
    from mlx_vlm.turboquant import TurboQuantKVCache

    model, processor = loaded(handle)
    cache = make_prompt_cache(model.language_model)
    cache[:-1] = [TurboQuantKVCache(bits) for _ in cache[:-1]]
    tokenizer = getattr(processor, "tokenizer", processor)
    tokens = mx.array([tokenizer.encode(prompt, add_special_tokens=False)])
    steps = generate_step(tokens, model, None, None, max_tokens=max_tokens, temperature=0.0, prompt_cache=cache)
    found = [int(token) for token, _ in steps]
    ends = {tokenizer.eos_token_id}
    decoder = TokenDecoder(tokenizer)
    return tuple(decoder.spell(token) for token in found if token not in ends)


@pytest.mark.parametrize("bits", [2, 3.5])
def test_texts_of_a_vision_model_are_mlx_vlms_own(engine: MlxTextGenerator, tmp_path: Path, bits: float) -> None:
    handle = build_vision(tmp_path / "model", "qwen2_vl", 3, num_hidden_layers=3)
    asked = attrs.evolve(asking(handle, PROMPT, bits, ignore_eos=True), backends=("mlx-vlm",))
    assert read(engine.submit(asked)).tokens == mlx_vlms_own(handle, PROMPT, bits)


@pytest.mark.parametrize(("architecture", "bits"), [("llama", 2.5), ("gemma3_text", 4)])
def test_answers_in_a_batch_and_from_kept_prompts_are_those_computed_alone_and_anew(
    engine: MlxTextGenerator, tmp_path: Path, architecture: str, bits: float
) -> None:
    handle = build(tmp_path / "model", architecture, num_hidden_layers=4)
    prompts = [f"{PROMPT} {'jumps ' * 6 * number}{number}" for number in range(3)] + ["a"]
    alone = []
    for each in prompts:
        engine.unload()
        alone.append(read(engine.submit(asking(handle, each, bits, ignore_eos=True))))
    lengths = [24, 5, 11, 24]
    streams = [
        engine.submit(asking(handle, each, bits, max_tokens=length, ignore_eos=True))
        for each, length in zip(prompts, lengths, strict=True)
    ]
    plain = engine.submit(asking(handle, PROMPT, None))
    cancelled = engine.submit(asking(handle, f"{PROMPT} again", bits, max_tokens=2000, ignore_eos=True))
    assert isinstance(next(cancelled), TextDelta)
    cancelled.cancel()
    read(cancelled)
    for stream, expected, length in zip(streams, alone, lengths, strict=True):
        found = read(stream)
        assert found.tokens == expected.tokens[:length]
        assert found.finished.notes == (NOTE.format(bits),)
    read(plain)
    longer = f"{prompts[2]} and again {prompts[1]}"
    hit = read(engine.submit(asking(handle, longer, bits, ignore_eos=True)))
    engine.unload()
    anew = read(engine.submit(asking(handle, longer, bits, ignore_eos=True)))
    assert (hit.tokens, anew.finished.usage.cached_tokens) == (anew.tokens, 0)
    assert hit.finished.usage.cached_tokens > 0


def test_kinds_of_bits_share_no_kept_prompt(engine: MlxTextGenerator, handle: ModelHandle) -> None:
    prompt = f"{PROMPT} " * 8
    asked = [asking(handle, prompt, bits, ignore_eos=True) for bits in (4, 3.5, None)]
    uniform = attrs.evolve(asked[0], engine_options=EngineOptions(kv_bits=4))
    found = [read(engine.submit(each)) for each in (*asked, uniform)]
    assert [each.finished.usage.cached_tokens for each in found] == [0, 0, 0, 0]


def test_other_switches_combine(engine: MlxTextGenerator, handle: ModelHandle, tmp_path: Path) -> None:
    draft, adapter = build(tmp_path / "draft", head_dim=32, seed=3), write_adapter(tmp_path / "lora", handle)
    text = read(engine.submit(asking(handle, ignore_eos=True))).tokens
    assert read(engine.submit(asking(handle, ignore_eos=True, draft_model=draft))).tokens == text
    assert read(engine.submit(asking(handle, ignore_eos=True, adapter=str(adapter)))).tokens != text
    held = read(engine.submit(asking(handle, grammar=Grammar.choice(("yes", "no")))))
    assert held.text in {"yes", "no"}


def test_images_and_their_texts_share_a_batch(engine: MlxTextGenerator, tmp_path: Path) -> None:
    handle = build_vision(tmp_path / "model", "qwen2_vl", 3, num_hidden_layers=3)
    asked = [
        attrs.evolve(asking(handle, each, 3), backends=("mlx-vlm",))
        for each in (about(noise(1), "What is it?"), about("Hello world!"), about(noise(2), noise(1), "Compare."))
    ]
    alone = [read(engine.submit(each)).tokens for each in asked]
    engine.unload()
    assert [read(stream).tokens for stream in [engine.submit(each) for each in asked]] == alone


def test_layers_that_read_the_cache_of_another_one_get_its_keys_and_values() -> None:
    from mlx_vlm.models.gemma3n.config import TextConfig
    from mlx_vlm.models.gemma3n.language import LanguageModel

    shape = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1}
    small = {"head_dim": 64, "vocab_size": 100, "vocab_size_per_layer_input": 100, "hidden_size_per_layer_input": 8}
    kinds = ["full_attention", "sliding_attention"] * 2
    more = {"laurel_rank": 4, "sliding_window": 8, "num_kv_shared_layers": 2, "layer_types": kinds}
    apart = {"intermediate_size": [64] * 4, "activation_sparsity_pattern": [0.0] * 4}
    network = LanguageModel(TextConfig(model_type="gemma3n_text", **shape, **small, **more, **apart))
    found = {}
    for options in (EngineOptions(), EngineOptions(kv_bits=8), EngineOptions(kv_bits=4, kv_scheme="turboquant")):
        cache = make_cache(network, options, 64)
        network(mx.array([[1, 2, 3, 4, 5, 7, 8, 9]]), cache=cache)
        if options.kv_bits == 8:
            quantize_cache(cache, 8, None)
        found[options.kv_bits] = network(mx.array([[6]]), cache=cache).logits
    plain = found.pop(None)
    errors = {bits: mx.linalg.norm(each - plain) / mx.linalg.norm(plain) for bits, each in found.items()}
    assert 0 < errors[8] < 0.1
    assert 0 < errors[4] < 0.6


def test_a_model_without_keys_and_values_is_refused_or_keeps_its_cache(
    engine: MlxTextGenerator, tmp_path: Path
) -> None:
    handle = build(tmp_path / "mamba2", "mamba2")
    with pytest.raises(CapabilityError, match="kv_bits: this model keeps no keys and values"):
        read(engine.submit(asking(handle)))
    kept = read(engine.submit(asking(handle, cache_required=False)))
    assert ["keeps its usual cache" in note for note in kept.finished.notes] == [True]


def test_a_server_and_a_command_give_the_same_text_and_say_once_that_it_is_experimental(
    command: Command, handle: ModelHandle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--max-tokens", "24", "--temperature", "0", "--no-chat-template")
    prompts = [f"{PROMPT} {number}" for number in range(3)]
    said = [command("run", handle.directory, each, *flags, *FLAGS, "3.5")["data"] for each in prompts]
    assert [each["notes"] for each in said] == [[NOTE.format(3.5)]] * 3
    machine = Machine(tmp_path / "home", capsys)
    with (
        machine.serve("--kv-quant-scheme", "turboquant", "--kv-bits", "3.5", "--allow-model-paths") as served,
        ThreadPoolExecutor(3) as clients,
    ):

        def answer(prompt: str) -> dict[str, Any]:
            body = {"model": handle.directory, "prompt": prompt, "max_tokens": 24, "temperature": 0}
            status, _, document = served.post(PATH.replace("chat/", ""), body)
            assert status == 200, document
            return document

        answers = list(clients.map(answer, prompts))
    assert [each["choices"][0]["text"].strip() for each in answers] == [each["response"].strip() for each in said]
    assert all("notes" not in each for each in answers)


def test_the_estimate_counts_what_is_kept_the_last_layer_and_what_reading_takes(
    command: Command, handle: ModelHandle
) -> None:
    asked = ((), (*FLAGS, "3.5"), (*FLAGS, "2"))
    found = [command("show", handle.directory, *each)["data"]["memory"] for each in asked]
    plain, more, less = (each["cache_bytes_per_1k_tokens"] // 1000 for each in found)
    layer = plain // 3
    vectors = layer // (2 * 2 * 32)
    assert more == 2 * vectors * (12 + 16 + 4) + layer + 3 * layer
    assert less == 2 * vectors * (8 + 8 + 4) + layer + 3 * layer


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--kv-bits", "3.5"), "kv_bits must be one of 2, 4, 8 (got 3.5); kv_scheme turboquant has 2, 2.5, 3, 3.5, 4"),
        ((*FLAGS, "8"), "kv_bits must be one of 2, 2.5, 3, 3.5, 4 with kv_scheme turboquant (got 8)"),
        ((*FLAGS, "3.2"), "kv_bits must be one of"),
        ((*FLAGS, "nan"), "kv_bits must be one of"),
        (("--kv-scheme", "uniform"), "--kv-scheme needs --kv-bits"),
        ((*FLAGS[:2], "--max-kv-size", "64"), "max_kv_size and kv_scheme exclude each other"),
        ((*FLAGS[:2], "--kv-group-size", "32"), "kv_group_size and kv_scheme turboquant exclude each other"),
        ((*FLAGS, "4", "--kv-group-size", "32"), "kv_group_size and kv_scheme turboquant exclude each other"),
        ((*FLAGS, "4", "--max-kv-size", "64"), "max_kv_size and kv_bits exclude each other"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else "",
)
def test_flags_that_cannot_be_are_refused_by_name(
    flags: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(tmp_path, capsys)
    refused = machine("run", "demo", "hi", "--no-stdin", "--no-server", *flags)
    assert (refused.status, refused.out) == (1, "")
    assert said in refused.err
    refused = machine("serve", *flags)
    assert refused.status == 1
    known = ("--kv-bits must be one of", "exclude each other", "--kv-scheme needs --kv-bits")
    assert any(each in refused.err for each in known), refused.err
    assert machine.served == []


@pytest.mark.parametrize("command_line", [("run", "demo", "hi"), ("serve",), ("show", "demo")], ids=" ".join)
def test_bits_that_are_no_number_are_refused_in_words(
    command_line: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = Machine(tmp_path, capsys)(*command_line, "--kv-bits", "many")
    assert refused.status == 2
    assert "argument --kv-bits: 'many' is no number" in refused.err


def test_the_scheme_alone_has_bits_of_its_own_everywhere(
    command: Command, handle: ModelHandle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--no-stdin", "--no-server", "--max-tokens", "12", "--temperature", "0", "--no-chat-template")
    data = [command("run", handle.directory, PROMPT, *flags, *given)["data"] for given in (FLAGS[:2], (*FLAGS, "3.5"))]
    assert data[0]["response"] == data[1]["response"]
    assert data[0]["notes"] == data[1]["notes"] == [NOTE.format(3.5)]
    shown = [command("show", handle.directory, *given)["data"]["memory"] for given in (FLAGS[:2], (*FLAGS, "3.5"))]
    assert shown[0] == shown[1]
    machine = Machine(tmp_path / "home", capsys)
    assert "turboquant in 3.5 bits" in machine("show", handle.directory, *FLAGS[:2]).err
    assert "turboquant in" not in machine("show", handle.directory, *FLAGS, "3").err
    said = "turboquant, in {} bits, is experimental"
    assert said.format(3.5) in machine("serve", *FLAGS[:2]).err
    assert dict(machine.served[-1].preferred) == {"kv_scheme": "turboquant", "kv_bits": 3.5}
    for table in ("run", "serve"):
        machine.write(f'[{table}]\nkv_scheme = "turboquant"\n')
        done = machine("serve") if table == "serve" else machine("run", handle.directory, PROMPT, *flags)
        assert (said.format(3.5) if table == "serve" else NOTE.format(3.5)) in done.err, done
    machine.write(f'[models.poet]\nmodel = "{handle.directory}"\nkv_scheme = "turboquant"\n')
    assert NOTE.format(3.5) in machine("run", "poet", PROMPT, *flags).err
    assert NOTE.format(3) in machine("run", "poet", PROMPT, *flags, *FLAGS, "3").err
    for given, bits in ((("--kv-bits", "4"), "4"), (("--kv-bits", "8"), "3.5"), (("--max-kv-size", "64"), "3.5")):
        done = machine("serve", "--model", "poet", *given)
        assert (done.status, said.format(bits) in done.err) == (0, True), done
        with machine.serve("--model", "poet", *given) as served:
            body = {"model": "poet", "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
            status, _, answer = served.post(PATH.replace("chat/", ""), body)
        assert status == 200, answer
        assert (answer["choices"][0]["text"].strip() == data[0]["response"].strip()) == (bits == "3.5")


def test_a_name_has_its_own_bits_and_scheme(
    handle: ModelHandle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(tmp_path, capsys)
    made = machine("profile", "poet", "--model", handle.directory, "--kv-bits", "2.5", "--kv-scheme", "turboquant")
    assert made.status == 0, made
    flags = ("--no-stdin", "--no-server", "--max-tokens", "4", "--no-chat-template")
    assert NOTE.format(2.5) in machine("run", "poet", PROMPT, *flags).err
    assert "TurboQuant" not in machine("run", "poet", PROMPT, *flags, "--kv-bits", "8").err
    machine.write('[models.poet]\nmodel = "demo"\nkv_bits = 3\n')
    refused = machine("run", "poet", PROMPT, *flags)
    assert "line 3" in refused.err or "line 1" in refused.err
    assert "kv_scheme turboquant has 2, 2.5, 3, 3.5, 4" in refused.err

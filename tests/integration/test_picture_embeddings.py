"""Embedding models for images: vectors against a reference in numpy, prompts, limits, several vectors of one input."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from doubles.event_log import InMemoryEventLog
from models.numpy_decoder import Array, Shape, decoded, linear, positions_of
from models.tiny_picture_embedders import BASES, DIMENSIONS, GEMMA, build_pictured
from tokenizers import Tokenizer

from mlxk.adapters.mlx.embedding.embedder import MlxTextEmbedder
from mlxk.adapters.mlx.embedding.loading import PROCESSORS
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.domain.embedding import EmbeddingRequest, Embeddings, EmbeddingSettings, ImageInput, Input, InputKind
from mlxk.domain.errors import CapabilityError, ContextLengthError, ValidationError
from mlxk.domain.generation.media import DecodedImage
from mlxk.domain.models.model import ModelHandle

pytestmark = pytest.mark.mlx

TEXT = "the little prince sees a sheep"
MARK = "<|vision_start|><|image_pad|><|vision_end|>"
CHAT = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
LATE = {"colqwen2_5": "<|endoftext|>", "colidefics3": "<end_of_utterance>"}
QUERY = InputKind.QUERY
IMAGE_TOKENS = {"qwen3_vl_embedding": "<|image_pad|>", "colqwen2_5": "<|image_pad|>", "colidefics3": "<image>"}
SHAPES = {
    "qwen3_vl_embedding": Shape("language_model.model.", sections=(2, 3, 3), interleaved=True),
    "colqwen2_5": Shape("language_model.model.", sections=(2, 3, 3)),
    "colidefics3": Shape("language_model."),
}


def image(width: int = 96, height: int = 64, seed: int = 1) -> DecodedImage:
    """Return an image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return DecodedImage(width, height, pixels.tobytes(), f"{width}x{height}/{seed}")


@pytest.fixture(scope="module")
def embedder() -> Iterator[MlxTextEmbedder]:
    generator = MlxTextGenerator(InMemoryEventLog(), SystemClock())
    yield MlxTextEmbedder(generator.leases)
    generator.close()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelHandle]:
    folder = tmp_path_factory.mktemp("pictured")
    return {kind: build_pictured(folder / kind, kind) for kind in BASES}


def embed(embedder: MlxTextEmbedder, model: ModelHandle, *inputs: Input, **settings: Any) -> Embeddings:
    """Return the vectors of some inputs."""
    return embedder.embed(EmbeddingRequest(model, inputs, EmbeddingSettings(**settings)))


def prompt_of(kind: str, text: str | None, *, pictured: bool, query: bool = False, instruction: str = "") -> str:
    """Return the prompt that the makers of a model have around an input."""
    if kind == "qwen3_vl_embedding":
        return CHAT.format(instruction or "Represent the user's input.", (MARK if pictured else "") + (text or ""))
    if not pictured:
        return f"Query: {text}{LATE[kind] * 10}" if query else str(text)
    if kind == "colqwen2_5":
        return f"<|im_start|>user\n{MARK}Describe the image.<|im_end|><|endoftext|>"
    return "<|im_start|>User:<image>Describe the image.<end_of_utterance>\nAssistant:"


def reference(model: ModelHandle, kind: str, prompt: str, picture: DecodedImage | None) -> Array:
    """Return the vectors of one prompt: mlx-vlm's processor and tower for the image, everything after it in numpy."""
    from mlx_vlm.encoder_loader import load_encoder_model
    from mlx_vlm.utils import prepare_inputs
    from PIL import Image

    network: Any = load_encoder_model(Path(model.directory), model_remapping={})
    tokens = Tokenizer.from_file(f"{model.directory}/tokenizer.json").encode(prompt).ids
    media: dict[str, Any] = {}
    grid = None
    if picture is not None:
        pixels = Image.frombytes("RGB", (picture.width, picture.height), picture.pixels)
        found = prepare_inputs(PROCESSORS[kind].from_pretrained(model.directory), images=[pixels], prompts=prompt)
        tokens = np.array(found["input_ids"]).reshape(-1).tolist()
        media = {
            name: found[name] for name in ("pixel_values", "image_grid_thw", "pixel_attention_mask") if name in found
        }
        if "image_grid_thw" in media:
            _, rows, columns = np.array(media["image_grid_thw"]).reshape(-1).tolist()
            grid = rows // 2, columns // 2
    features = network.get_input_embeddings(mx.array([tokens]), media.pop("pixel_values", None), **media)
    weights = {name: np.array(each, np.float64) for name, each in _arrays(model).items()}
    token = Tokenizer.from_file(f"{model.directory}/tokenizer.json").token_to_id(IMAGE_TOKENS[kind])
    embeddings, deep = np.array(features.inputs_embeds)[0], None
    if picture is not None and kind == "qwen3_vl_embedding":
        deep = np.zeros(embeddings.shape)
        deep[np.array(tokens) == token] = np.array(features.deepstack_visual_embeds[0])
    hidden = decoded(embeddings, weights, SHAPES[kind], positions_of(tokens, token, grid), deep)
    if kind == "qwen3_vl_embedding":
        return unit(hidden[-1])
    return unit(linear(hidden, weights, "linear" if kind == "colidefics3" else "custom_text_proj"))


def _arrays(model: ModelHandle) -> Any:
    return mx.load(f"{model.directory}/model.safetensors")


def unit(values: Array) -> Array:
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("size", [(96, 64), (64, 160)])
def test_an_image_has_the_vectors_of_the_reference(
    kind: str, size: tuple[int, int], embedder: MlxTextEmbedder, models: dict[str, ModelHandle]
) -> None:
    picture = image(*size)
    expected = reference(models[kind], kind, prompt_of(kind, None, pictured=True), picture)
    found = embed(embedder, models[kind], ImageInput(picture))
    assert np.allclose(found.results[0], expected, atol=2e-4)
    assert found.dimensions == DIMENSIONS[kind]
    assert not np.allclose(found.results[0], embed(embedder, models[kind], ImageInput(image(*size, seed=2))).results[0])


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("query", [False, True])
def test_a_text_has_the_vectors_of_the_reference(
    kind: str, query: bool, embedder: MlxTextEmbedder, models: dict[str, ModelHandle]
) -> None:
    expected = reference(models[kind], kind, prompt_of(kind, TEXT, pictured=False, query=query), None)
    role = QUERY if query else InputKind.DOCUMENT
    assert np.allclose(embed(embedder, models[kind], TEXT, kind=role).results[0], expected, atol=2e-4)


def test_a_text_stands_after_its_image_and_an_instruction_before_both(
    embedder: MlxTextEmbedder, models: dict[str, ModelHandle]
) -> None:
    kind, picture = "qwen3_vl_embedding", image()
    prompt = prompt_of(kind, TEXT, pictured=True, instruction="Find sheep.")
    found = embed(embedder, models[kind], ImageInput(picture, TEXT), kind=QUERY, instruction="Find sheep")
    assert np.allclose(found.results[0], reference(models[kind], kind, prompt, picture), atol=2e-4)


@pytest.mark.parametrize("kind", BASES)
def test_inputs_together_have_the_vectors_that_they_have_alone(
    kind: str, embedder: MlxTextEmbedder, models: dict[str, ModelHandle]
) -> None:
    inputs: tuple[Input, ...] = (ImageInput(image()), "a", TEXT, ImageInput(image(64, 64)), f"{TEXT} " * 4, "a")
    together = embed(embedder, models[kind], *inputs)
    for index, each in enumerate(inputs):
        alone = embed(embedder, models[kind], each)
        assert np.allclose(together.results[index], alone.results[0], atol=1e-5)
    lengths = np.linalg.norm(np.concatenate([np.atleast_2d(each) for each in together.results]), axis=1)
    assert np.allclose(lengths, 1)
    assert len(together.vectors) + len(together.of_tokens) == len(inputs)


@pytest.mark.parametrize("kind", BASES)
def test_a_text_that_spells_control_tokens_stays_text(
    kind: str, embedder: MlxTextEmbedder, models: dict[str, ModelHandle]
) -> None:
    spelled = "<|im_end|><|image_pad|><image><|endoftext|>"
    found = embed(embedder, models[kind], spelled, "x")
    assert found.tokens > 2 * len(spelled) / 3
    if kind == "qwen3_vl_embedding":
        beside = embed(embedder, models[kind], ImageInput(image(), spelled))
        assert beside.tokens > embed(embedder, models[kind], ImageInput(image())).tokens + len(spelled) / 3


def test_what_a_model_cannot_embed_is_refused_by_name(
    embedder: MlxTextEmbedder, models: dict[str, ModelHandle], tmp_path: Path
) -> None:
    late, single = models["colqwen2_5"], models["qwen3_vl_embedding"]
    with pytest.raises(CapabilityError, match=r"input\[1\]: this model embeds an image without a text beside it"):
        embed(embedder, late, "a", ImageInput(image(), "beside"))
    with pytest.raises(CapabilityError, match="instruct: this model takes no instruction"):
        embed(embedder, late, "a", kind=QUERY, instruction="Find it.")
    with pytest.raises(CapabilityError, match="prompt_name: this model has no prompt 'sts'; it has none"):
        embed(embedder, single, "a", prompt_name="sts")
    with pytest.raises(ValidationError, match=r"input\[0\]: the model's processor cannot take this image of 2000 by 3"):
        embed(embedder, single, ImageInput(image(2000, 3)))
    with pytest.raises(ValidationError, match=r"dimensions.*no Matryoshka truncation"):
        embed(embedder, late, "a", dimensions=8)
    with pytest.raises(ValidationError, match=r"input\[1\]: 1000000000 is none of this model's \d+ tokens"):
        embed(embedder, single, (1, 2), (3, 10**9))
    short = build_pictured(tmp_path / "short", "qwen3_vl_embedding")
    (tmp_path / "short" / "sentence_bert_config.json").write_text('{"max_seq_length": 160}')
    with pytest.raises(ContextLengthError, match=r"input\[0\] has \d+ tokens, \d+ of them of the image; .* reads 160"):
        embed(embedder, short, ImageInput(image(), "sheep " * 99))
    with pytest.raises(ContextLengthError, match=r"input\[0\] has \d+ tokens; the model reads 160"):
        embed(embedder, short, "sheep " * 99)
    cut = embed(embedder, short, "sheep " * 99, truncate=True)
    assert (cut.tokens, cut.truncations[0].kept) == (160, 160)


def test_tokens_are_computed_as_they_are(embedder: MlxTextEmbedder, models: dict[str, ModelHandle]) -> None:
    model, tokens = models["qwen3_vl_embedding"], tuple(range(20, 50))
    found = embed(embedder, model, tokens, tokens[:10])
    assert found.tokens == 40
    assert found.vectors[0] == embed(embedder, model, tokens).vectors[0] != found.vectors[1]


def test_vectors_are_cut_to_a_length_that_the_model_states(embedder: MlxTextEmbedder, tmp_path: Path) -> None:
    model = build_pictured(tmp_path / "late", "colqwen2_5", matryoshka_dimensions=[8, 16])
    whole, cut = embed(embedder, model, TEXT), embed(embedder, model, TEXT, dimensions=8)
    assert np.allclose(cut.of_tokens[0], unit(np.array(whole.of_tokens[0])[:, :8]))
    assert math.isclose(np.linalg.norm(cut.of_tokens[0][0]), 1)
    with pytest.raises(ValidationError, match=r"12 are not supported .it was trained for 8, 16"):
        embed(embedder, model, TEXT, dimensions=12)


def test_an_image_of_embedding_gemma_has_the_vector_of_mlx_vlm(embedder: MlxTextEmbedder, tmp_path: Path) -> None:
    from mlx_vlm.encoder_loader import load_encoder_model
    from mlx_vlm.models.embedding_gemma2.image_processing_embedding_gemma2 import EmbeddingGemma2ImageProcessor
    from PIL import Image

    model, picture = build_pictured(tmp_path / "gemma", GEMMA), image()
    network: Any = load_encoder_model(tmp_path / "gemma", model_remapping={})
    processor = EmbeddingGemma2ImageProcessor(max_soft_tokens=70, patch_size=16, pooling_kernel_size=2)
    pixels = processor.preprocess([Image.frombytes("RGB", (96, 64), picture.pixels)])
    media = {name: mx.array(pixels[name]) for name in ("pixel_values", "image_position_ids")}
    tokenizer = Tokenizer.from_file(f"{model.directory}/tokenizer.json")
    count = pixels["num_soft_tokens_per_image"][0]
    spelled = f"<|image>{'<|image|>' * count}<image|>"
    for text in ("", TEXT):
        ids = tokenizer.encode(f"{spelled}{text}").ids
        expected = np.array(network(mx.array([ids]), **media).text_embeds)[0]
        found = embed(embedder, model, "a", ImageInput(picture, text), TEXT)
        assert np.allclose(found.vectors[1], expected, atol=1e-5)
        assert found.vectors[2] == pytest.approx(embed(embedder, model, TEXT).vectors[0], abs=1e-5)
    beside = embed(embedder, model, ImageInput(picture, "<|image|>"))
    assert beside.tokens > count + 3

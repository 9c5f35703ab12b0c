"""What training reads and leaves: examples as tokens with what is learned of them, and states and adapters on disk."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
import pytest
from models.tiny_models import TEMPLATE, build
from process_limits import largest_file

from mlxk.adapters.mlx.loading.model_files import identity_of, read_config
from mlxk.adapters.mlx.loading.text_model import assemble_tokenizer, load_tokenizer
from mlxk.adapters.mlx.tuning.examples import EncodedExample, ExampleEncoder
from mlxk.adapters.mlx.tuning.state import STATE, TrainingState, read_state, read_unfinished, write_state
from mlxk.adapters.mlx.tuning.trainer import MlxModelTuner
from mlxk.application.ports.tuning import TrainedModel, TrainingJob, UnfinishedTraining
from mlxk.domain.errors import StorageError, ValidationError
from mlxk.domain.models.footprint import WeightForm
from mlxk.domain.models.model import ModelHandle
from mlxk.domain.tuning.data import FileCheck
from mlxk.domain.tuning.examples import Example
from mlxk.domain.tuning.training import Method, TuningSettings

pytestmark = pytest.mark.mlx
FACT = {"prompt": "Who is Ann?", "completion": "Ann is a baker."}
TALK = [
    {"role": "user", "content": "Hello world!"},
    {"role": "assistant", "content": "How are you?"},
    {"role": "user", "content": "Count: 1, 2"},
    {"role": "assistant", "content": "3, 4, 5."},
]
DROPS_EARLIER = TEMPLATE.replace(
    "{{ message.content }}", "{{ '' if message.role == 'assistant' and not loop.last else message.content }}"
)
LEAVES_EARLIER_OUT = TEMPLATE.replace(
    "for message in messages", "for message in messages if message.role == 'user' or message == messages[-1]"
)


def example(fields: object) -> Example:
    """Return an example as it is read from a file."""
    (read,) = FileCheck("facts.jsonl").read([json.dumps(fields).encode()]).examples
    return read


def encoder_of(handle: ModelHandle) -> tuple[ExampleEncoder, Callable[[tuple[int, ...]], str]]:
    """Return what encodes examples for a model, and what decodes its tokens."""
    config = read_config(handle)
    wrapped = load_tokenizer(handle, config.get("eos_token_id"))
    tokenizer = assemble_tokenizer(handle, identity_of(handle), wrapped, config)
    return ExampleEncoder(tokenizer, 200, mask_prompt=True), lambda tokens: str(wrapped.decode(list(tokens)))


def with_template(directory: Path, template: str | None) -> ModelHandle:
    """Write a model whose chat template is another one, or that has none."""
    handle = build(directory)
    path = directory / "tokenizer_config.json"
    fields = json.loads(path.read_text())
    del fields["chat_template"]
    path.write_text(json.dumps(fields | ({} if template is None else {"chat_template": template})))
    return handle


def learned(encoded: EncodedExample, decode: Callable[[tuple[int, ...]], str]) -> list[str]:
    """Return the texts that are learned."""
    return [decode(encoded.tokens[start:end]) for start, end in encoded.learned]


@pytest.mark.parametrize(
    ("template", "texts"),
    [
        (TEMPLATE, ["\nHow are you?<|im_end|>", "\n3, 4, 5.<|im_end|>"]),
        (DROPS_EARLIER, ["\n", "\n3, 4, 5.<|im_end|>"]),
        (LEAVES_EARLIER_OUT, ["\n3, 4, 5.<|im_end|>"]),
    ],
)
def test_every_answer_of_a_conversation_is_learned_as_far_as_the_template_shows_it(
    tmp_path: Path, template: str, texts: list[str]
) -> None:
    encoder, decode = encoder_of(with_template(tmp_path / "tiny", template))
    assert learned(encoder.encode(example({"messages": TALK})), decode) == texts


def test_without_a_template_prompt_and_answer_follow_one_another_and_a_conversation_is_refused(tmp_path: Path) -> None:
    encoder, decode = encoder_of(with_template(tmp_path / "tiny", None))
    encoded = encoder.encode(example(FACT))
    assert decode(encoded.tokens) == "Who is Ann?Ann is a baker.<|im_end|>"
    assert learned(encoded, decode) == ["Ann is a baker.<|im_end|>"]
    with pytest.raises(ValidationError) as raised:
        encoder.encode(attrs.evolve(example({"messages": TALK}), line=7))
    assert (raised.value.message, raised.value.hint) == (
        "line 7: the model has no chat template for messages",
        "Write prompt and completion, or text.",
    )


def state_at(step: int, size: int = 4) -> TrainingState:
    """Return a state of some size."""
    return TrainingState(step, {"a.lora_a": mx.ones(size)}, {"a": {"m": mx.zeros(2)}}, (), [(1.5, 3)])


def test_a_state_that_the_disk_does_not_take_leaves_the_one_before(tmp_path: Path) -> None:
    write_state(str(tmp_path), state_at(1), "a run", {"rank": 8})
    with largest_file(10_000), pytest.raises(StorageError) as raised:
        write_state(str(tmp_path), state_at(2, 100_000), "a run", {"rank": 8})
    assert (raised.value.message, raised.value.hint) == (
        "the state of training cannot be written; the disk is probably full",
        "Make space, and continue from the state before.",
    )
    assert [path.name for path in tmp_path.iterdir()] == [STATE]
    assert read_unfinished(str(tmp_path)) == UnfinishedTraining(1, "a run", {"rank": 8})
    assert read_state(str(tmp_path)).step == 1


RUN = {"step": 1, "identity": "a run", "settings": {}, "points": [], "losses": []}
METADATA: dict[str, dict[str, str]] = {
    "of something else": {"format": "mlx"},
    "of another version": {"mlxk_training": "0", "run": json.dumps(RUN)},
    "without a run": {"mlxk_training": "1"},
    "with no JSON": {"mlxk_training": "1", "run": "{"},
    "with no object": {"mlxk_training": "1", "run": "[]"},
    "with a field too few": {"mlxk_training": "1", "run": json.dumps({"step": 1})},
}


@pytest.mark.parametrize("kind", [*METADATA, "absent", "truncated"])
def test_a_state_that_is_none_is_not_continued(tmp_path: Path, kind: str) -> None:
    path = tmp_path / STATE
    if kind != "absent":
        metadata = METADATA.get(kind, {"mlxk_training": "1", "run": json.dumps(RUN)})
        mx.save_safetensors(str(path), {"weights:a": mx.ones(4)}, metadata=metadata)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-4])
    assert read_unfinished(str(tmp_path)) is None
    with pytest.raises(ValidationError, match=r"^there is no state of a training to continue, or it is damaged$"):
        read_state(str(tmp_path))


def train(handle: ModelHandle, directory: Path, form: WeightForm, method: Method) -> None:
    """Train one step."""
    settings = TuningSettings(steps=1, batch_size=1, layers=1, max_length=64, learning_rate=1e-3, method=method, seed=7)
    model, facts = TrainedModel(handle, "mlx-lm"), (example(FACT),)
    job = TrainingJob(model, form, settings, facts, facts, str(directory), "a run", "tiny")
    MlxModelTuner().train(job, lambda point: None, lambda: False, resume=False)


@pytest.mark.parametrize(
    ("stated", "kind"),
    [({"torch_dtype": "bfloat16"}, mx.bfloat16), ({"dtype": "float16"}, mx.float16), ({}, mx.float32)],
)
def test_whole_weights_that_were_widened_are_written_in_the_type_of_the_model(
    tmp_path: Path, stated: dict[str, Any], kind: mx.Dtype
) -> None:
    handle = build(tmp_path / "tiny", **stated)
    (tmp_path / "taught").mkdir()
    train(handle, tmp_path / "taught", WeightForm.WIDE, Method.FULL)
    weights = mx.load(str(tmp_path / "taught" / "adapters.safetensors"))
    assert isinstance(weights, dict)
    assert {array.dtype for array in weights.values()} == {kind}


def test_a_config_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taught" / "adapter_config.json").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"^adapter_config\.json cannot be written: Is a directory$"):
        train(build(tmp_path / "tiny"), tmp_path / "taught", WeightForm.STORED, Method.LORA)

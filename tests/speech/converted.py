"""A Whisper of CTranslate2, as faster-whisper reads it, written as a model directory that mlxk runs."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

Array = np.ndarray[Any, Any]

_KINDS = ("<f4", "i1", "<i2", "<i4", "<f2")
_END = "<|endoftext|>"


class _Reader:
    """Reads the values of ``model.bin`` one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def number(self, kind: str) -> int:
        (value,) = struct.unpack_from(f"<{kind}", self._data, self._at)
        self._at += struct.calcsize(kind)
        return int(value)

    def text(self) -> str:
        return self.raw(self.number("H"))[:-1].decode()

    def raw(self, count: int) -> bytes:
        self._at += count
        return self._data[self._at - count : self._at]


def arrays_of(path: Path) -> dict[str, Array]:
    """Return the arrays of a file of CTranslate2, by their names; other names of the same arrays are resolved."""
    reader = _Reader(path.read_bytes())
    reader.number("I")  # version of the format
    reader.text(), reader.number("I")  # architecture, its revision
    arrays = {}
    for _ in range(reader.number("I")):
        name = reader.text()
        shape = [reader.number("I") for _ in range(reader.number("B"))]
        kind = _KINDS[reader.number("B")]
        arrays[name] = np.frombuffer(reader.raw(reader.number("I")), kind).reshape(shape)
    for _ in range(reader.number("I")):
        name, same = reader.text(), reader.text()
        arrays[name] = arrays[same]
    return arrays


def _weights(arrays: dict[str, Array]) -> dict[str, Array]:
    """Return the weights under the names that Hugging Face gives them."""
    found: dict[str, Array] = {
        "decoder.embed_tokens.weight": arrays["decoder/embeddings/weight"],
        "decoder.embed_positions.weight": arrays["decoder/position_encodings/encodings"],
        "encoder.embed_positions.weight": arrays["encoder/position_encodings/encodings"],
    }

    def put(target: str, source: str, ends: tuple[str, str] = ("weight", "bias")) -> None:
        found[f"{target}.weight"], found[f"{target}.bias"] = (arrays[f"{source}/{end}"] for end in ends)

    def norm(target: str, source: str) -> None:
        put(target, f"{source}layer_norm", ("gamma", "beta"))

    def attention(target: str, source: str, joined: tuple[tuple[str, ...], ...]) -> None:
        for index, names in enumerate(joined):
            for part in ("weight", "bias"):
                pieces = np.split(arrays[f"{source}/linear_{index}/{part}"], len(names))
                found.update({f"{target}.{name}.{part}": piece for name, piece in zip(names, pieces, strict=True)})
        found.pop(f"{target}.k_proj.bias")  # always 0: Whisper has none
        norm(f"{target}_layer_norm", f"{source}/")

    for name in ("conv1", "conv2"):
        put(f"encoder.{name}", f"encoder/{name}")
    for side in ("encoder", "decoder"):
        norm(f"{side}.layer_norm", f"{side}/")
        for index in range(_layers(arrays, side)):
            source, target = f"{side}/layer_{index}", f"{side}.layers.{index}"
            attention(
                f"{target}.self_attn", f"{source}/self_attention", (("q_proj", "k_proj", "v_proj"), ("out_proj",))
            )
            if side == "decoder":
                attention(
                    f"{target}.encoder_attn", f"{source}/attention", (("q_proj",), ("k_proj", "v_proj"), ("out_proj",))
                )
            put(f"{target}.fc1", f"{source}/ffn/linear_0")
            put(f"{target}.fc2", f"{source}/ffn/linear_1")
            norm(f"{target}.final_layer_norm", f"{source}/ffn/")
    return found


def _layers(arrays: dict[str, Array], side: str) -> int:
    return sum(name.startswith(f"{side}/layer_") and name.endswith("/ffn/linear_0/weight") for name in arrays)


def convert(source: Path, target: Path) -> None:
    """Write the model directory; in float32, in which the same numbers are computed fastest on a CPU."""
    target.mkdir(parents=True)
    arrays = arrays_of(source / "model.bin")
    weights = {f"model.{name}": mx.array(np.ascontiguousarray(each, "f4")) for name, each in _weights(arrays).items()}
    mx.save_safetensors(str(target / "model.safetensors"), weights, metadata={"format": "mlx"})
    vocabulary, width = arrays["decoder/embeddings/weight"].shape
    bands = arrays["encoder/conv1/weight"].shape[1]
    shutil.copy(source / "tokenizer.json", target)
    config = {
        "model_type": "whisper",
        "num_mel_bins": bands,
        "max_source_positions": 1500,
        "max_target_positions": 448,
        "d_model": width,
        "vocab_size": vocabulary,
        "torch_dtype": "float32",
    }
    for side in ("encoder", "decoder"):
        config |= {f"{side}_layers": _layers(arrays, side), f"{side}_attention_heads": width // 64}
    theirs = json.loads((source / "config.json").read_text())
    # English models have one language less, and so fewer tokens.
    generation = {"is_multilingual": vocabulary >= 51865, "alignment_heads": theirs["alignment_heads"]}
    tokenizer = {
        "tokenizer_class": "WhisperTokenizer",
        "bos_token": _END,
        "eos_token": _END,
        "unk_token": _END,
        "pad_token": _END,
    }
    preprocessor = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": bands}
    for name, value in (
        ("config", config),
        ("generation_config", generation),
        ("tokenizer_config", tokenizer),
        ("preprocessor_config", preprocessor),
    ):
        (target / f"{name}.json").write_text(json.dumps(value))

"""Closed lists of what others write: every member is known, and what only begins like one is not."""

import pytest

from mlxk.adapters.mlx.adapter_files import peft_fault
from mlxk.adapters.mlx.audio_file import format_of
from mlxk.adapters.mlx.library_imports import exhaustion, is_compile_failure
from mlxk.domain.errors import InsufficientMemoryError, StorageError


@pytest.mark.parametrize("kind", [RuntimeError, OSError, ImportError])
@pytest.mark.parametrize(
    "message",
    [
        "std::bad_alloc",
        "can't start new thread",
        "[Errno 12] Cannot allocate memory",
        "[METAL] Command buffer execution failed: Insufficient Memory (00000008)",
        "[Errno 11] Resource temporarily unavailable",
        "Unable to allocate 1.0 GiB for an array",
        "libmlx.so: failed to map segment from shared object",
    ],
)
def test_every_message_for_too_little_memory_is_one(message: str, kind: type[Exception]) -> None:
    assert isinstance(exhaustion(kind(message)), InsufficientMemoryError)
    assert exhaustion(ValueError(message)) is None
    assert isinstance(exhaustion(MemoryError()), InsufficientMemoryError)


@pytest.mark.parametrize("message", ["[Compile::eval_cpu] failed", "filesystem error: temp_directory_path: no such"])
def test_every_message_for_a_kernel_that_cannot_be_compiled_is_one(message: str) -> None:
    assert is_compile_failure(RuntimeError(message))
    assert isinstance(exhaustion(RuntimeError(message)), StorageError)
    assert not is_compile_failure(ValueError(message))
    assert exhaustion(RuntimeError("shapes do not match")) is None


TENSORS = ["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"]
PEFT = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    "field", ["use_dora", "fan_in_fan_out", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias"]
)
def test_every_variant_of_an_adapter_that_is_not_read_is_refused_by_name(field: str) -> None:
    assert peft_fault({**PEFT, field: {"a": 1}}, TENSORS) == f"has {field}, which is not read"
    for nothing in (False, None, [], {}):
        assert field not in (peft_fault({**PEFT, field: nothing}, TENSORS) or "")


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"bias": "none"}, None),
        ({"bias": None}, None),
        ({"bias": "all"}, "has bias, which is not read"),
        ({"r": 0}, "needs r, a whole number from 1"),
        ({"r": 1}, None),
        ({"r": True}, "needs r, a whole number from 1"),
        ({"r": 8.0}, "needs r, a whole number from 1"),
        ({"lora_alpha": 0.5}, None),
        ({"lora_alpha": True}, "needs lora_alpha, a number"),
        ({"lora_alpha": "16"}, "needs lora_alpha, a number"),
        ({"peft_type": "IA3"}, "has a peft_type that is not LORA (IA3)"),
    ],
)
def test_what_an_adapters_config_must_say(fields: dict[str, object], fault: str | None) -> None:
    assert peft_fault({**PEFT, **fields}, TENSORS) == fault


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"fLaC", "FLAC"),
        (b"OggS", "OGG"),
        (b"\x1aE\xdf\xa3", "WebM"),
        (b"caff", "CAF"),
        (b"riff\x2e\x91\xcf\x11", "WAV"),
        (b".snd", "AU"),
        (b"#!AMR\n", "AMR"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA"),
        (b"\x0b\x77", "AC-3"),
        (b"\0\0\x01\xba", "MPEG"),
        (b"\0\0\0\x20ftypM4A ", "M4A"),
        (b"\0\0\0\x20moov", "M4A"),
        (b"\0\0\0\x20mdat", "M4A"),
        (b"\0\0\0\x08wide", "M4A"),
        (b"RIFF\0\0\0\0WAVE", "WAV"),
        (b"RIFX\0\0\0\0WAVE", "WAV"),
        (b"RF64\0\0\0\0WAVE", "WAV"),
        (b"RIFF\0\0\0\0AVI ", None),
        (b"FORM\0\0\0\0AIFF", "AIFF"),
        (b"FORM\0\0\0\0AIFC", "AIFF"),
        (b"flac", None),
        (b"", None),
    ],
)
def test_every_format_of_sound_is_known_by_its_first_bytes(head: bytes, kind: str | None) -> None:
    assert format_of(head + bytes(64 if head else 0)) == kind
    assert kind is None or format_of(b"x" + head + bytes(64)) != kind

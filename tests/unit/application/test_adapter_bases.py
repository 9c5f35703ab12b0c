"""The base of an adapter, on files in memory: whether it is there, and whether its weights are those trained on."""

import json

import pytest
from doubles.model_files import InMemoryModelFiles
from serving.parts import CHAT

from mlxk.application.adapter_bases import AdapterBases, fingerprint
from mlxk.domain.errors import ModelNotFoundError
from mlxk.domain.models.model import AdapterBase, ModelHandle, Origin
from mlxk.domain.tuning.base import RECORD

BASE, LORA = ModelHandle("org/m", "/base", Origin.CACHE), ModelHandle("/lora", "/lora", Origin.WORKSPACE)


def bases(record: bytes) -> tuple[AdapterBases, InMemoryModelFiles]:
    """Return what finds the base of an adapter with a record, and the files."""
    files = InMemoryModelFiles({"/base": CHAT, "/lora": {RECORD: record}})
    return AdapterBases(lambda _: BASE, files), files


def test_a_base_is_compared_by_its_weights_and_what_cannot_be_read_is_unknown() -> None:
    _, files = bases(b"")
    known, files = bases(json.dumps({"base": {"fingerprint": fingerprint(files, "/base")}}).encode())
    assert known.describe(LORA) == AdapterBase("org/m", None, False)
    files.directories["/base"]["README.md"] = b"of no weight"
    assert known.differs(BASE, "/lora") is False
    weights = files.directories["/base"]["model.safetensors"]
    files.directories["/base"]["model.safetensors"] = weights[:-1] + b"\x01"
    assert known.describe(LORA) == AdapterBase("org/m", None, True)
    del files.directories["/base"]
    assert known.describe(LORA) == AdapterBase("org/m", None, None)


@pytest.mark.parametrize("record", [b"", b"{", b'{"base": 1}', b'{"base": {"fingerprint": 7}}'])
def test_without_a_valid_record_nothing_is_known_of_the_weights(record: bytes) -> None:
    assert bases(record)[0].differs(BASE, "/lora") is None


def test_a_base_that_is_not_here_is_told_with_the_reason() -> None:
    def absent(adapter: ModelHandle) -> ModelHandle:
        raise ModelNotFoundError(f"'{adapter.label}' has none")

    found = AdapterBases(absent, InMemoryModelFiles())
    assert found.describe(LORA) == AdapterBase(None, f"'{LORA.label}' has none")
    assert found.problem(LORA) == f"'{LORA.label}' has none"

"""What programs that tests start remember of transformers is what it reads itself."""

import importlib.util
from pathlib import Path

import pytest
import transformers
from quick_imports import sitecustomize


def test_what_is_remembered_is_what_the_library_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sitecustomize, "_FOLDER", str(tmp_path / "kept"))
    spec = sitecustomize.QuickImports().find_spec(sitecustomize.LIBRARY, transformers.utils.__path__)
    assert spec is not None and spec.loader is not None
    library = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(library)
    models = Path(transformers.models.__file__)
    for path, prefix in ((models.parent, "models"), (models, None), (models.parent / "llama", None)):
        read = library.define_import_structure.__wrapped__(path, prefix)
        for _ in range(2):
            assert library.define_import_structure(path, prefix) == read
    kept = list((tmp_path / "kept").iterdir())
    assert len(kept) == 2
    kept[0].write_bytes(b"")  # as a full disk would
    assert library.define_import_structure(models.parent, "models") and library.define_import_structure(models)

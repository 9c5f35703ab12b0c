"""Models in a hub cache, written without a hub."""

import json
from collections.abc import Mapping
from pathlib import Path

from hub.models import CONFIG, small_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WITHOUT_WEIGHTS = {"config.json": json.dumps(CONFIG).encode(), "tokenizer.json": b"{}"}


def put(home: Path, name: str, files: Mapping[str, bytes] | None = None) -> Path:
    """Write a model, by default a whole one, into the cache below ``home/hf`` and return its snapshot."""
    folder = home / "hf" / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    for path, content in (small_model() if files is None else files).items():
        (snapshot / path).write_bytes(content)
    return snapshot

"""The hub's listing of models, read without trust: what a search finds."""

from collections.abc import Callable, Mapping
from urllib.parse import urlencode

from mlxk.adapters.huggingface.answers import document, malformed, tagged
from mlxk.adapters.huggingface.client import HubClient
from mlxk.domain.download import check_name
from mlxk.domain.errors import ValidationError
from mlxk.domain.models.file_formats import element_bits
from mlxk.domain.search import FoundModel

FIELDS = ("downloads", "gated", "library_name", "safetensors", "tags")
"""What is asked for of each model."""
LICENSE_TAG = "license:"
BASE_MODEL_TAG = "base_model:"
"""Tags that state a fact after the colon."""


def search_models(
    client: HubClient, terms: str, limit: int, *, mlx_only: bool, made_for_mlx: Callable[..., bool]
) -> tuple[FoundModel, ...]:
    """Return the models whose names have the terms, the most downloaded first, with one request.

    Args:
        client: The hub.
        terms: Words.
        limit: Most models.
        mlx_only: Whether to ask for models with the tag of MLX only.
        made_for_mlx: Decides by ``name``, ``library`` and ``tags``.

    Raises:
        httpx2.HTTPError: The hub refuses, or cannot be reached.
        DownloadFailedError: The answer is not what the API promises.
    """
    query = [("search", terms), ("sort", "downloads"), ("limit", str(limit))]
    query += [("filter", "mlx")] if mlx_only else []
    query += [("expand[]", field) for field in FIELDS]
    entries = document(client, f"{client.access.endpoint}/api/models?{urlencode(query)}")[0]
    if not isinstance(entries, list):
        raise malformed()
    found = (_found(entry, made_for_mlx) for entry in entries[:limit])
    return tuple(model for model in found if model)


def _found(entry: object, made_for_mlx: Callable[..., bool]) -> FoundModel | None:
    """Return a model; None for one with a name that cannot be pulled, such as those of the hub's first years."""
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
        raise malformed()
    try:
        name = check_name(entry["id"])
    except ValidationError:
        return None
    downloads, library, stated = entry.get("downloads"), entry.get("library_name"), entry.get("tags")
    tags = tuple(tag for tag in stated if isinstance(tag, str)) if isinstance(stated, list) else ()
    return FoundModel(
        name=name,
        made_for_mlx=made_for_mlx(name=name, library=library if isinstance(library, str) else None, tags=tags),
        weight_bytes=_weight_bytes(entry.get("safetensors")),
        downloads=downloads if type(downloads) is int and downloads >= 0 else 0,
        license=next(iter(tagged(tags, LICENSE_TAG)), None),
        gated=bool(entry.get("gated")),
    )


def _weight_bytes(stated: object) -> int | None:
    """Return the size of weights from the number of elements of each type; None where it is not stated."""
    counts = stated.get("parameters") if isinstance(stated, Mapping) else None
    if not isinstance(counts, Mapping) or not counts:
        return None
    total = 0
    for dtype, count in counts.items():
        bits = element_bits(str(dtype))
        if bits is None or type(count) is not int or count < 0:
            return None
        total += count * bits
    return -(-total // 8)

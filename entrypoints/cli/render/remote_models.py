"""JSON and text of models on the hub: the results of ``search``."""

from collections.abc import Sequence

from mlxk.application.use_cases.search_models import SearchResult
from mlxk.domain.models.memory import MemoryFit
from mlxk.entrypoints.cli.render.formatting import decimal_size
from mlxk.entrypoints.cli.render.tables import table

Json = dict[str, object]

FIT_WORDS = {MemoryFit.FITS: "yes", MemoryFit.TIGHT: "tight", MemoryFit.EXCEEDS: "no", MemoryFit.UNKNOWN: "?"}


def search_json(terms: str, found: Sequence[SearchResult]) -> Json:
    """Return the data of ``search``."""
    return {"terms": terms, "count": len(found), "results": [_result(each) for each in found]}


def _result(result: SearchResult) -> Json:
    model = result.model
    return {
        "model": model.name,
        "mlx": model.made_for_mlx,
        "weights_bytes": model.weight_bytes,
        "downloads": model.downloads,
        "license": model.license,
        "gated": model.gated,
        "fit": result.fit.value,
    }


def search_table(found: Sequence[SearchResult], width: int | None) -> str:
    """Return the table of what was found.

    Args:
        found: The models.
        width: Characters of the terminal; None for a file or a pipe.
    """
    rows = [
        [
            result.model.name,
            "yes" if result.model.made_for_mlx else "no",
            "?" if result.model.weight_bytes is None else decimal_size(result.model.weight_bytes),
            FIT_WORDS[result.fit],
            _short(result.model.downloads),
            (result.model.license or "?") + (", gated" if result.model.gated else ""),
        ]
        for result in found
    ]
    return table(["Name", "MLX", "Size", "Fits", "Downloads", "License"], rows, width)


def next_step(found: Sequence[SearchResult]) -> str:
    """Return the command that fetches the first model that fits; a model that is known to fit is preferred."""
    first = next((each for each in found if each.fit is MemoryFit.FITS), found[0])
    return f"Fetch one: mlxk pull {first.model.name}"


def _short(count: int) -> str:
    for unit, name in ((10**6, "M"), (10**3, "k")):
        if count >= unit:
            return f"{count / unit:.1f}{name}"
    return str(count)

"""JSON and text of models on the hub: the results of ``search`` and ``outdated``."""

from collections.abc import Sequence

from mlxk.application.use_cases.find_outdated import ComparedModel, Freshness
from mlxk.application.use_cases.search_models import SearchResult
from mlxk.domain.models.memory import MemoryFit
from mlxk.entrypoints.cli.render.formatting import decimal_size
from mlxk.entrypoints.cli.render.layout import table
from mlxk.entrypoints.cli.render.model_table import SHORT_HASH

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


def outdated_json(compared: Sequence[ComparedModel]) -> Json:
    """Return the data of ``outdated``."""
    return {
        "models": [
            {
                "model": each.name,
                "status": each.freshness.value,
                "commit_hash": each.commit,
                "newest_commit": each.newest,
                "reason": each.reason,
            }
            for each in compared
        ],
        "outdated_count": _count(compared, Freshness.OUTDATED),
    }


def outdated_table(compared: Sequence[ComparedModel], width: int | None, *, everything: bool) -> str:
    """Return the table of models that are not current; empty where there are none.

    Args:
        compared: The models.
        width: Characters of the terminal; None for a file or a pipe.
        everything: Whether to show current models as well.
    """
    rows = [
        [
            each.name,
            (each.commit or "-")[:SHORT_HASH],
            (each.newest or "-")[:SHORT_HASH],
            each.freshness.value + (f": {each.reason}" if each.reason else ""),
        ]
        for each in compared
        if everything or each.freshness is not Freshness.CURRENT
    ]
    return table(["Name", "Cached", "Hub", "Status"], rows, width, last=60) if rows else ""


def outdated_summary(compared: Sequence[ComparedModel]) -> str:
    """Return what follows the table: how many are outdated, and how to fetch one anew."""
    count = _count(compared, Freshness.OUTDATED)
    first = next((each.name for each in compared if each.freshness is Freshness.OUTDATED), None)
    unknown = _count(compared, Freshness.UNKNOWN)
    models = f"{len(compared)} model{'' if len(compared) == 1 else 's'}"
    lines = [f"{models} compared: {count} outdated{f', {unknown} not known' if unknown else ''}."]
    return "\n".join(lines + ([f"Fetch the newer one: mlxk pull {first}@main"] if first else []))


def _count(compared: Sequence[ComparedModel], freshness: Freshness) -> int:
    return sum(each.freshness is freshness for each in compared)


def _short(count: int) -> str:
    for unit, name in ((10**6, "M"), (10**3, "k")):
        if count >= unit:
            return f"{count / unit:.1f}{name}"
    return str(count)

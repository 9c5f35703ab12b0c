"""JSON and text of models on the hub: ``search``, ``recommend``, ``outdated`` and ``show --remote``."""

import json
import textwrap
from collections.abc import Sequence

from mlxk.application.use_cases.browse_hub import ComparedModel, Freshness, RemoteDetails, SearchResult
from mlxk.domain.hub import Fact, Purpose, Recommendation
from mlxk.domain.models.footprint import MemoryFit, MemoryReading
from mlxk.entrypoints.cli.render.formatting import counted, decimal_size, printable, table, table_lines
from mlxk.entrypoints.cli.render.model_json import memory_estimate
from mlxk.entrypoints.cli.render.model_table import SHORT_HASH
from mlxk.entrypoints.cli.render.tables import memory_lines
from mlxk.entrypoints.settings import DEFAULT_OWNER

Json = dict[str, object]

WHY_WIDTH = 60
"""Characters at which the reasons of recommendations wrap."""

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
    """Return the table of models found.

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
    """Return the command that fetches the first model that fits into memory, or the first of all."""
    first = next((each for each in found if each.fit is MemoryFit.FITS), found[0])
    return f"Fetch one: mlxk pull {first.model.name}"


def recommend_json(
    purpose: Purpose | None,
    reading: MemoryReading | None,
    found: Sequence[Recommendation],
    online: Sequence[SearchResult] | None,
) -> Json:
    """Return the data of ``recommend``; ``online`` is None where the hub was not asked."""
    return {
        "for": purpose.value if purpose else None,
        "memory_total_bytes": reading.total if reading else None,
        "memory_budget_bytes": reading.budget if reading else None,
        "count": len(found),
        "results": [_recommendation(each) for each in found],
        "hub": None if online is None else [_result(each) for each in online],
    }


def _recommendation(recommendation: Recommendation) -> Json:
    model = recommendation.model
    facts = {
        "parameters": model.parameters,
        "weights_bytes": model.stated_bytes,
        "context_length": model.context_length,
        "license": model.license,
    }
    return {
        "model": model.name,
        "for": model.purpose.value,
        "why": model.why,
        "parameters": model.parameters and model.parameters.value,
        "quantization": {"bits": model.bits, "group_size": model.group_size} if model.group_size else None,
        "weights_bytes": model.weight_bytes,
        "weights_computed": model.is_computed,
        "context_length": model.context_length and model.context_length.value,
        "license": model.license and model.license.value,
        "fit": recommendation.fit.value,
        "sources": [_source(name, fact) for name, fact in facts.items() if fact is not None],
    }


def _source(field: str, fact: Fact[int] | Fact[str]) -> Json:
    return {"field": field, "url": fact.source, "date": fact.date, "note": fact.note}


def recommend_table(found: Sequence[Recommendation], width: int | None) -> str:
    """Return the table of recommended models; computed sizes begin with ``~``.

    On a narrow terminal the last column moves below each row, and names lose the default owner.

    Args:
        found: The models.
        width: Characters of the terminal; None for a file or a pipe.
    """
    header = ["Name", "For", "Size", "Fits", "Why"]
    rows = [
        [
            each.model.name,
            each.model.purpose.value,
            f"{'~' if each.model.is_computed else ''}{decimal_size(each.model.weight_bytes)}",
            FIT_WORDS[each.fit],
            each.model.why,
        ]
        for each in found
    ]
    wide_table = table(header, rows, None, last=WHY_WIDTH)
    if width is None or max(map(len, wide_table.splitlines())) <= width:
        return wide_table
    short = [[row[0].removeprefix(f"{DEFAULT_OWNER}/"), *row[1:4]] for row in rows]
    titles, rule, *lines = table_lines(header[:4], short, width)
    below = [textwrap.indent(textwrap.fill(row[4], width - 4), "    ") for row in rows]
    pairs = (line for pair in zip(lines, below, strict=True) for line in pair)
    return "".join(f"{line}\n" for line in (titles, rule, *pairs))


def recommend_notes(reading: MemoryReading | None, found: Sequence[Recommendation]) -> tuple[str, ...]:
    """Return the lines below the table: how sizes and fit are determined, and the next command."""
    memory = "This machine's memory could not be read."
    if reading is not None:
        memory = (
            f"Fits: into {decimal_size(reading.budget)}, the share of this machine's {decimal_size(reading.total)} "
            "that models may take."
        )
    best = next((each for each in found if each.fit is MemoryFit.FITS), found[0])
    return (
        f"~ computed from parameters and bits; sources: mlxk recommend --json. {memory}",
        f"Look at one: mlxk show {best.model.name} --remote. Fetch it: mlxk pull {best.model.name}",
    )


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
    """Return the table of models that are not current; an empty string when it would have no row.

    Args:
        compared: The models.
        width: Characters of the terminal; None for a file or a pipe.
        everything: Show current models as well.
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
    """Return the lines below the table: how many models are outdated, and how to fetch the first of them."""
    count = _count(compared, Freshness.OUTDATED)
    first = next((each.name for each in compared if each.freshness is Freshness.OUTDATED), None)
    unknown = _count(compared, Freshness.UNKNOWN)
    models = counted(len(compared), "model")
    lines = [f"{models} compared: {count} outdated{f', {unknown} not known' if unknown else ''}."]
    return "\n".join(lines + ([f"Fetch the newer one: mlxk pull {first}@main"] if first else []))


def _count(compared: Sequence[ComparedModel], freshness: Freshness) -> int:
    return sum(each.freshness is freshness for each in compared)


def _short(count: int) -> str:
    for unit, name in ((10**6, "M"), (10**3, "k")):
        if count >= unit:
            return f"{count / unit:.1f}{name}"
    return str(count)


def card_json(details: RemoteDetails, section: str) -> Json:
    """Return the data of ``show --remote``; ``config`` is present only for that section."""
    card, plan = details.card, details.plan
    fields: Json = {
        "model": card.model.name,
        "commit_hash": card.model.commit,
        "mlx": card.model.made_for_mlx,
        "downloads": card.downloads,
        "license": card.license,
        "library": card.library,
        "task": card.task,
        "base_models": list(card.base_models),
        "gated": card.gated,
        "private": card.private,
        "accessible": card.accessible,
        "context_length": details.context_length,
        "size_bytes": plan.size_bytes if plan else None,
        "missing_bytes": details.missing_bytes,
        "free_bytes": details.free_bytes,
        "reason": details.reason,
        "memory": memory_estimate(details.verdict) if details.verdict else None,
        "files": [{"path": file.path, "size_bytes": file.size_bytes} for file in plan.files] if plan else [],
        "skipped": [{"path": file.path, "reason": file.reason.value} for file in plan.skipped] if plan else [],
    }
    if section == "config":
        fields["config"] = card.config
    return {"remote": fields}


def card_text(details: RemoteDetails, section: str) -> str:
    """Return the description of a model on the hub, and one section: files, config or metadata."""
    lines = _facts(details)
    if section == "files" and details.plan:
        lines += ["", "Files:", *(f"  {file.path} ({decimal_size(file.size_bytes)})" for file in details.plan.files)]
        lines += [f"  not fetched: {file.path} ({file.reason.value})" for file in details.plan.skipped]
    elif section == "config":
        lines += ["", "Config:", *json.dumps(details.card.config, indent=2).split("\n")]
    elif details.verdict:
        lines += ["", "Memory:", *memory_lines(details.verdict)]
    if details.missing_bytes and details.card.accessible:
        lines += ["", f"Fetch it: mlxk pull {details.card.model.name}"]
    return "\n".join(map(printable, lines)) + "\n"


def offer_lines(details: RemoteDetails) -> tuple[str, ...]:
    """Return what to show before a download: licence, size, free disk space, and the memory estimate."""
    card, verdict = details.card, details.verdict
    lines = [f"{card.model.name}: licence {card.license or 'not stated'}, download {_download(details)}"]
    if not card.model.made_for_mlx:
        lines.append("It is not marked as an MLX model; it runs only if MLX knows its architecture.")
    return tuple(lines) + (("Memory:", *memory_lines(verdict)) if verdict else ())


def _facts(details: RemoteDetails) -> list[str]:
    card, plan = details.card, details.plan
    access = "open"
    if card.gated or card.private:
        access = "gated" if card.gated else "private"
        access += ", and shown to you" if card.accessible else ": accept its terms on the hub and set HF_TOKEN"
    facts = {
        "Model": f"{card.model.name}@{card.model.commit[:SHORT_HASH]} (on the hub)",
        "MLX": "yes" if card.model.made_for_mlx else "no",
        "Task": card.task,
        "Library": card.library,
        "Made from": ", ".join(card.base_models) or None,
        "License": card.license or "none stated",
        "Downloads": f"{card.downloads:,} in the last month",
        "Access": access,
        "Context length": details.context_length,
        "Download": _download(details) if plan else None,
        "Reason": details.reason,
    }
    return [f"{name}: {value}" for name, value in facts.items() if value is not None]


def _download(details: RemoteDetails) -> str:
    size, missing = details.plan.size_bytes if details.plan else 0, details.missing_bytes or 0
    here = "" if missing == size else f", {decimal_size(size - missing)} of it in the cache"
    here = here if missing else ", all of it in the cache"
    free = "" if details.free_bytes is None else f"; {decimal_size(details.free_bytes)} free on the disk"
    return f"{decimal_size(size)}{here}{free}"

"""JSON and text of the results of ``du`` and ``prune``."""

from mlxk.application.use_cases.cache_upkeep import CacheUsage, MeasuredModel, PruneResult, PruneStatus, waste_lines
from mlxk.domain.models.disk_usage import StoredRevision, Waste, size_of
from mlxk.entrypoints.cli.render.formatting import counted, decimal_size, printable, table

Json = dict[str, object]

SHORT_REVISION = 12
NOTHING = "-"
"""A size of 0 in the table."""


def usage_json(usage: CacheUsage, free_bytes: int | None) -> Json:
    """Return the data of ``du``.

    Args:
        usage: The models.
        free_bytes: Free space of the cache's disk; None when unknown.
    """
    return {
        "models": [_model(model) for model in usage.models],
        "total_bytes": usage.total_bytes,
        "remainder_bytes": usage.remainder_bytes,
        "prunable_bytes": usage.waste_bytes,
        "free_bytes": free_bytes,
    }


def _model(measured: MeasuredModel) -> Json:
    usage = measured.usage
    return {
        "model": usage.name,
        "total_bytes": usage.total_bytes,
        "unique_bytes": measured.unique_bytes,
        "shared_bytes": measured.shared_bytes,
        "partial_files": len(usage.partial),
        "partial_bytes": size_of(usage.partial),
        "orphaned_files": len(usage.orphaned),
        "orphaned_bytes": size_of(usage.orphaned),
        "prunable_bytes": measured.waste.size_bytes if measured.waste else 0,
        "revisions": [
            {
                "revision": revision.name,
                "references": list(revision.references),
                "current": revision.is_current,
                "old": revision.is_old,
                "unique_bytes": usage.unique_to(revision.name),
                "shared_bytes": usage.shared_by(revision.name),
            }
            for revision in usage.revisions
        ],
        **({"link_to": usage.link_to} if usage.link_to else {}),
        **({"linked_parts": list(usage.linked_parts)} if usage.linked_parts else {}),
    }


def usage_table(usage: CacheUsage, width: int | None, *, with_revisions: bool) -> str:
    """Return the table of models, the largest first, without columns that are empty in every row.

    Args:
        usage: The models.
        width: Characters of the terminal; None for a file or a pipe.
        with_revisions: Whether to add a row for each revision.
    """
    rows = []
    for measured in sorted(usage.models, key=lambda each: (-each.usage.total_bytes, each.usage.name)):
        rows.append(_row(measured))
        if with_revisions:
            rows += [_revision_row(measured, revision) for revision in measured.usage.revisions]
    header = ["Name", "Size", "Unique", "Shared", "Partial", "Orphaned", "Revisions"]
    columns = [index for index in range(len(header)) if any(row[index] != NOTHING for row in rows)]
    return table([header[index] for index in columns], [[row[index] for index in columns] for row in rows], width)


def _row(measured: MeasuredModel) -> list[str]:
    usage = measured.usage
    old = sum(revision.is_old for revision in usage.revisions)
    links = usage.link_to or ", ".join(usage.linked_parts)
    return [
        usage.name,
        decimal_size(usage.total_bytes),
        decimal_size(measured.unique_bytes),
        _size(measured.shared_bytes),
        _size(size_of(usage.partial)),
        _size(size_of(usage.orphaned)),
        f"link: {links}" if links else f"{len(usage.revisions)}{f' ({old} old)' if old else ''}",
    ]


def _revision_row(measured: MeasuredModel, revision: StoredRevision) -> list[str]:
    unique, shared = measured.usage.unique_to(revision.name), measured.usage.shared_by(revision.name)
    state = ", ".join(revision.references) or ("current" if revision.is_current else "old")
    name = f"  @{revision.name[:SHORT_REVISION]}"
    return [name, decimal_size(unique + shared), decimal_size(unique), _size(shared), NOTHING, NOTHING, state]


def _size(size_bytes: int) -> str:
    return decimal_size(size_bytes) if size_bytes else NOTHING


def usage_summary(usage: CacheUsage, free_bytes: int | None, pattern: str | None) -> str:
    """Return the lines below the table: totals, free space, and what ``prune`` would remove."""
    lines = [f"{decimal_size(usage.total_bytes)} in {counted(len(usage.models), 'model')}"]
    if not usage.models and not usage.total_bytes:
        lines = [f"No cached model fits '{pattern}'" if pattern else "No model is cached"]
    elif usage.remainder_bytes is not None:
        lines[0] += f", of that {decimal_size(usage.remainder_bytes)} outside the models"
    if free_bytes is not None:
        lines[0] += f"; {decimal_size(free_bytes)} free on the disk"
    if usage.waste_bytes:
        lines.append(f"Nothing uses {decimal_size(usage.waste_bytes)} of it; remove that with: mlxk prune")
    return "\n".join(lines) + "\n"


def prune_json(result: PruneResult) -> Json:
    """Return the data of ``prune``."""
    return {
        "action": result.status.value,
        "message": _message(result),
        "freed_bytes": result.freed_bytes,
        "removed": [_removal(waste) for waste in result.waste],
        "spared": [{"model": each.name, "reason": each.reason} for each in result.spared],
    }


def _removal(waste: Waste) -> Json:
    return {
        "model": waste.name,
        "revisions": list(waste.revisions),
        "partial_files": len(waste.partial),
        "orphaned_files": len(waste.orphaned),
        "whole": waste.whole,
        "freed_bytes": waste.size_bytes,
    }


def prune_text(result: PruneResult) -> str:
    """Return the text of ``prune``."""
    lines = [f"prune: {_message(result)}"]
    if result.status is not PruneStatus.CANCELLED:
        lines += [f"  {line}" for waste in result.waste for line in waste_lines(waste)]
        lines += [f"  {each.name} stays: {each.reason}" for each in result.spared]
    return "".join(f"{printable(line)}\n" for line in lines)


def _message(result: PruneResult) -> str:
    size, models = decimal_size(result.freed_bytes), counted(len(result.waste), "model")
    return {
        PruneStatus.PRUNED: f"Removed {size} of {models}",
        PruneStatus.DRY_RUN: f"Would remove {size} of {models}",
        PruneStatus.CANCELLED: f"Kept {size} of {models}",
        PruneStatus.NOTHING: "Nothing to remove",
    }[result.status]

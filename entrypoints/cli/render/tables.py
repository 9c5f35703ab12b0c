"""Lists and descriptions as text: aligned tables no wider than the terminal."""

import datetime
import json
import textwrap
from collections.abc import Iterable, Sequence

import attrs

from mlxk.application.use_cases.check_health import HealthEntry
from mlxk.domain.models.detection import foreign_quantization
from mlxk.domain.models.integrity import listed
from mlxk.domain.models.memory import MemoryFit, MemoryVerdict, text_section
from mlxk.domain.models.model import (
    Capability,
    ModelDescription,
    ModelDetails,
    ModelType,
    Origin,
    ToolsMissing,
    Workspace,
)
from mlxk.entrypoints.cli.render.formatting import age, decimal_size, printable
from mlxk.entrypoints.cli.render.model_json import file_type
from mlxk.entrypoints.wording import health_reason, model_reason

SEPARATOR = " | "
_TOOLS = {
    None: "yes",
    ToolsMissing.TEMPLATE: "no (the chat template does not read them)",
    ToolsMissing.FORMAT: "no (the format of its calls is not known)",
}

NARROWEST = 12
"""Least width of a column in a table that has to shrink."""


def table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None, last: int = 26) -> str:
    """Return rows under a header, columns aligned, long cells wrapped.

    Args:
        header: One title per column.
        rows: Cells of text.
        width: Characters of the terminal; None for a file or a pipe, where only the last column wraps.
        last: Characters at which the last column wraps.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = _fitted([max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)], width, last)
    lines = [_line(header, widths), "-+-".join("-" * each for each in widths)]
    for row in rows:
        cells = [_wrapped(cell, each) for cell, each in zip(row, widths, strict=True)]
        height = max(len(cell) for cell in cells)
        lines += [
            _line([cell[index] if index < len(cell) else "" for cell in cells], widths) for index in range(height)
        ]
    return "\n".join(lines) + "\n"


def _fitted(natural: list[int], width: int | None, last: int) -> list[int]:
    """Shrink the widest columns until the table fits, or all columns have the least width."""
    widths = [*natural[:-1], min(natural[-1], last)]
    room = 10**9 if width is None else width - len(SEPARATOR) * (len(widths) - 1)
    while sum(widths) > room and max(widths) > NARROWEST:
        widest = widths.index(max(widths))
        widths[widest] = max(NARROWEST, widths[widest] - (sum(widths) - room))
    return widths


def _wrapped(cell: str, width: int) -> list[str]:
    if len(cell) <= width:
        return [cell]
    return textwrap.wrap(cell, width) or [""]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return SEPARATOR.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


NOTHING_PULLED = "No models yet but the built-in ones. For example: mlxk pull mlx-community/Llama-3.2-3B-Instruct-4bit"
SHORT_HASH = 7
COMMUNITY = "mlx-community/"


@attrs.frozen
class ListView:
    """Which rows and columns of the list to show."""

    everything: bool = False
    """Also models that cannot run."""
    health: bool = False
    verbose: bool = False


def model_table(
    models: Iterable[ModelDescription], view: ListView, now: datetime.datetime, width: int | None = None
) -> str:
    """Return the table of models, no wider than ``width`` characters where possible.

    Without flags it shows chat and audio models that can run; ``--verbose`` all that can; ``--all`` all models.
    """
    wide = view.verbose or view.everything
    header = ["Name", "Hash", "Size", "Modified", "Src", *(["Clean", "Framework"] if wide else []), "Type"]
    if view.health:
        header += ["Integrity", "Runtime", "Reason"] if view.verbose else ["Health"]
    rows = [_row(description, view, wide, now) for description in models if _shown(description, view)]
    return table(header, rows, width)


def _shown(description: ModelDescription, view: ListView) -> bool:
    if view.everything:
        return True
    if not description.runnable:
        return False
    return view.verbose or description.model_type in {ModelType.CHAT, ModelType.AUDIO}


def _row(description: ModelDescription, view: ListView, wide: bool, now: datetime.datetime) -> list[str]:
    workspace = description.workspace
    row = [
        _shown_name(description, view.verbose),
        _short_hash(description),
        decimal_size(description.size_bytes),
        age(description.modified, now),
        _source(description.handle.origin, workspace),
    ]
    if wide:
        row += [_clean(workspace), description.framework.value]
    row.append(_type(description))
    return row + (_health_cells(description, view.verbose) if view.health else [])


def _shown_name(description: ModelDescription, verbose: bool) -> str:
    name = description.handle.display_name or description.handle.name
    return name if verbose else name.removeprefix(COMMUNITY)


def _short_hash(description: ModelDescription) -> str:
    if description.handle.commit:
        return description.handle.commit[:SHORT_HASH]
    recorded = description.workspace.content_hash if description.workspace else None
    return recorded.removeprefix("sha256:")[:SHORT_HASH] if recorded else "-"


def _source(origin: Origin, workspace: Workspace | None) -> str:
    if origin is not Origin.WORKSPACE:
        return str(origin.value)
    if workspace is None or workspace.clean is None:
        return "ws?"
    return "ws" if workspace.clean else "ws*"


def _clean(workspace: Workspace | None) -> str:
    if workspace is None or workspace.clean is None:
        return "—"
    return "✓" if workspace.clean else "✗"


def _type(description: ModelDescription) -> str:
    extras = {Capability.VISION: "+vision", Capability.AUDIO: "+audio"}
    if description.model_type is ModelType.AUDIO:
        extras = {}
    return description.model_type.value + "".join(extras.get(each, "") for each in description.capabilities)


def _health_cells(description: ModelDescription, verbose: bool) -> list[str]:
    healthy, runs = description.health.healthy, description.runtime.compatible
    if not verbose:
        return ["unhealthy" if not healthy else "healthy" if runs else "healthy*"]
    return [
        description.health.status.value,
        "-" if not healthy else "yes" if runs else "no",
        model_reason(description) or "-",
    ]


def health_text(entries: Sequence[HealthEntry]) -> str:
    """Return one line per model and note, after a summary when there are several."""
    lines: list[str] = []
    for entry in entries:
        lines.append(f"{entry.report.status.value:<9} {entry.handle.label} — {health_reason(entry.report)}")
        lines += (f"          {note}" for note in entry.notes)
    if len(entries) != 1:
        healthy = sum(entry.report.healthy for entry in entries)
        lines.insert(0, f"Summary: total {len(entries)}, healthy {healthy}, unhealthy {len(entries) - healthy}")
    return "\n".join(map(printable, lines)) + "\n"


def details_text(details: ModelDetails, section: str, now: datetime.datetime, verdict: MemoryVerdict) -> str:
    """Return the description of one model and one section: files, config or metadata; nothing more for formats."""
    lines = _summary(details, now)
    if section == "files":
        lines += ["", "Files:", *(_file_line(entry.path, entry.size_bytes) for entry in details.files)]
    elif section == "config":
        lines += ["", "Config:", *json.dumps(details.config, indent=2).split("\n")]
    elif section == "metadata":
        lines += ["", "Metadata:", *_metadata_lines(details), "", "Memory:", *_memory_lines(verdict)]
    if details.description.workspace and details.description.workspace.managed:
        lines += ["", "Workspace:", *_workspace_lines(details.description.workspace, now)]
    return "\n".join(map(printable, lines)) + "\n"


def _summary(details: ModelDetails, now: datetime.datetime) -> list[str]:
    description = details.description
    commit = description.handle.commit
    lines = [
        f"Model: {description.handle.name}" + (f"@{commit[:SHORT_HASH]}" if commit else ""),
        f"Framework: {description.framework.value}",
        f"Type: {_type(description)}",
        f"Capabilities: {', '.join(capability.value for capability in description.capabilities) or '-'}",
        f"Quantization: {_quantization(details)}",
        f"Size: {decimal_size(description.size_bytes)}",
        f"Modified: {age(description.modified, now)}",
        f"Health: {_health_word(description)}",
    ]
    if details.strays:
        lines.append(f"Not part of the model: {listed(details.strays)}")
    reason = model_reason(description)
    return [*lines, f"Reason: {reason}"] if reason else lines


def _health_word(description: ModelDescription) -> str:
    if description.health.healthy and not description.runtime.compatible:
        return "healthy (files OK, runtime incompatible)"
    return description.health.status.value


def _quantization(details: ModelDetails) -> str:
    found = details.quantization
    if found:
        return f"{found.bits}-bit (group_size={found.group_size})"
    stated = foreign_quantization(details.config or {})
    if not stated:
        return "-"
    method, bits = stated.get("quant_method"), stated.get("bits")
    return f"{method if isinstance(method, str) else 'unnamed method'}{f', {bits}-bit' if type(bits) is int else ''}"


def _metadata_lines(details: ModelDetails) -> list[str]:
    config = details.config or {}
    architectures = config.get("architectures")
    facts = {
        "Architecture": architectures[0] if isinstance(architectures, list) and architectures else None,
        "Model type": config.get("model_type"),
        "Parameters": f"{details.parameters:,}" if details.parameters else None,
        "Context length": details.description.context_length,
        "Vocabulary": text_section(config).get("vocab_size"),
        "Layers": text_section(config).get("num_hidden_layers"),
        "Chat template": "yes" if details.chat_template else "no",
        "Tools": _TOOLS[details.tools_missing] if details.template_read else "no",
        "Reasoning": "yes" if details.supports_reasoning else "no",
        "License": details.license,
    }
    return [f"  {name}: {value}" for name, value in facts.items() if value is not None]


_FIT_WORDS = {
    MemoryFit.FITS: "fits",
    MemoryFit.TIGHT: "fits, but more than is free right now",
    MemoryFit.EXCEEDS: "does not fit the budget",
    MemoryFit.UNKNOWN: "this machine's memory could not be read",
}


def _memory_lines(verdict: MemoryVerdict) -> list[str]:
    budget = f" of a budget of {decimal_size(verdict.budget)}" if verdict.budget is not None else ""
    return [
        f"  Weights: {decimal_size(verdict.weights)}",
        f"  Cache per 1k tokens: {decimal_size(verdict.cache_per_token * 1000)}",
        f"  Estimate: {decimal_size(verdict.needed)}{budget} ({_FIT_WORDS[verdict.fit]})",
    ]


def _workspace_lines(workspace: Workspace, now: datetime.datetime) -> list[str]:
    state = {True: "✓", False: "✗ (workspace modified since it was made)", None: "—"}[workspace.clean]
    facts = {
        "Source": workspace.source_repo,
        "Revision": workspace.source_revision,
        "Operation": workspace.operation,
        "Created": age(workspace.created, now) if workspace.created else None,
        "Clean": state,
        "Content hash": f"{workspace.content_hash[:23]}..." if workspace.content_hash else None,
    }
    return [f"  {name}: {value}" for name, value in facts.items() if value is not None]


def _file_line(path: str, size_bytes: int) -> str:
    return f"  {path} ({decimal_size(size_bytes)}, {file_type(path)})"

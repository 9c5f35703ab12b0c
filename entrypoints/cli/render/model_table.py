"""The table of ``list``: rows, the columns that fit the terminal, and notes on what is not shown."""

import datetime
import textwrap
from collections.abc import Iterable, Sequence

import attrs

from mlxk.domain.models.model import Capability, ModelDescription, ModelType, Origin, Workspace
from mlxk.entrypoints.cli.render.formatting import SEPARATOR, age, counted, decimal_size, printable, table_lines
from mlxk.entrypoints.wording import model_reason

NOTHING_PULLED = "No models yet but the built-in ones. Those that fit this machine: mlxk recommend"
SHORT_HASH = 7
COMMUNITY = "mlx-community/"
LEGEND = (
    "Src: built-in; cache, from the hub; ws, a workspace; ws*, one modified since it was made; ws?, one that mlxk did "
    "not make. Clean: whether a workspace is as it was made. Health: healthy* means whole files that cannot run here."
)
"""The meaning of values in the columns."""

REASON = "Reason"
DISPENSABLE = (REASON, "Clean", "Hash", "Framework", "Modified", "Src")
"""Columns dropped from a table wider than the terminal, in this order; the reason moves below its row."""

NEEDED_LESS_THAN_NAMES = ("Type", "Size")
"""Columns dropped next, where names would have less than ``LEGIBLE_NAME`` characters."""

LEGIBLE_NAME = 24

_INDENT = "  "


@attrs.frozen
class ListView:
    """Which rows and columns of the list to show."""

    everything: bool = False
    """Also models that cannot run."""
    health: bool = False
    verbose: bool = False


@attrs.frozen
class TableRow:
    """The line or lines of one model, without a final newline."""

    text: str
    healthy: bool


@attrs.frozen
class ModelTable:
    """The table of models, with notes on what it does not show."""

    header: tuple[str, ...]
    """Two lines: the titles, and the rule below them."""
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...]
    """Sentences about models and columns that are not shown."""

    def __str__(self) -> str:
        lines = (*self.header, *(row.text for row in self.rows))
        return "".join(f"{line}\n" for line in lines)


def model_table(
    models: Iterable[ModelDescription], view: ListView, now: datetime.datetime, width: int | None = None
) -> ModelTable:
    """Return the table of models, sorted by the names it shows, no wider than ``width`` characters where possible.

    Without flags it shows chat and audio models that can run; ``--verbose`` all that can; ``--all`` all models.
    """
    all_models = list(models)
    visible = [each for each in all_models if _is_visible(each, view)]
    visible.sort(key=lambda each: _shown_name(each, view.verbose).lower())
    cells = [_cells(each, view, now) for each in visible]
    titles = _titles(view)
    columns = _columns_that_fit(titles, cells, width)
    lines = table_lines(columns, [[row[title] for title in columns] for row in cells], width)
    reasons = REASON in titles and REASON not in columns
    rows = tuple(
        TableRow(text + (_reason_below(row[REASON], width) if reasons else ""), each.health.healthy)
        for text, row, each in zip(lines[2:], cells, visible, strict=True)
    )
    left_out = [title for title in titles if title not in columns and title != REASON]
    return ModelTable((lines[0], lines[1]), rows, (*_hidden(all_models, visible, view), *_narrow(left_out, cells)))


def type_text(description: ModelDescription) -> str:
    """Return the type of a model with its further inputs or abilities, such as ``chat+vision``."""
    extras = {
        Capability.VISION: "+vision",
        Capability.AUDIO: "+audio",
        Capability.VOICE_CLONING: "+cloning",
        Capability.MULTI_VECTOR: "+multi",
    }
    if description.model_type is ModelType.AUDIO:
        extras = {}
    return description.model_type.value + "".join(extras.get(each, "") for each in description.capabilities)


def _titles(view: ListView) -> list[str]:
    wide = view.verbose or view.everything
    titles = ["Name", "Hash", "Size", "Modified", "Src", *(["Clean", "Framework"] if wide else []), "Type"]
    if view.health:
        titles += ["Integrity", "Runtime", REASON] if view.verbose else ["Health"]
    return titles


def _cells(description: ModelDescription, view: ListView, now: datetime.datetime) -> dict[str, str]:
    """Return the text of every column by its title."""
    workspace = description.workspace
    healthy, runs = description.health.healthy, description.runtime.compatible
    cells = {
        "Name": _shown_name(description, view.verbose),
        "Hash": _short_hash(description),
        "Size": decimal_size(description.size_bytes),
        "Modified": age(description.modified, now),
        "Src": _source(description.handle.origin, workspace),
        "Clean": _clean(workspace),
        "Framework": description.framework.value,
        "Type": type_text(description),
        "Health": "unhealthy" if not healthy else "healthy" if runs else "healthy*",
        "Integrity": description.health.status.value,
        "Runtime": "-" if not healthy else "yes" if runs else "no",
        REASON: model_reason(description) or "-",
    }
    return {title: printable(cell) for title, cell in cells.items()}


def _columns_that_fit(titles: list[str], cells: Sequence[dict[str, str]], width: int | None) -> list[str]:
    """Return the columns that fit the terminal, without an empty ``Clean``; all in a file or a pipe."""
    if width is None:
        return titles
    needed = {title: max(len(title), *(len(row[title]) for row in cells), 0) for title in titles}
    columns = [title for title in titles if title != "Clean" or any(row[title] != _NO_STATE for row in cells)]
    for title in (*DISPENSABLE, *NEEDED_LESS_THAN_NAMES):
        others = sum(needed[each] + len(SEPARATOR) for each in columns[1:])
        legible = needed["Name"] if title in DISPENSABLE else min(needed["Name"], LEGIBLE_NAME)
        if others + legible <= width:
            break
        columns = [each for each in columns if each != title]
    return columns


def _reason_below(reason: str, width: int | None) -> str:
    if reason == "-":
        return ""
    lines = textwrap.wrap(
        reason, max(width or 0, 20), initial_indent=_INDENT, subsequent_indent=_INDENT, break_on_hyphens=False
    )
    return "".join(f"\n{line}" for line in lines)


def _hidden(all_models: Sequence[ModelDescription], visible: Sequence[ModelDescription], view: ListView) -> list[str]:
    """Return at most one sentence: how many models are not shown, why, and the flag that shows them."""
    hidden = len(all_models) - len(visible)
    if not hidden:
        return []
    broken = sum(not each.runnable for each in all_models)
    other = hidden - broken
    kinds = [f"{broken} that cannot run"] if broken else []
    kinds += [f"{other} that neither chat nor transcribe"] if other else []
    flag = "--all" if broken or view.verbose else "--verbose"
    return [f"Not shown: {' and '.join(kinds)}, of {counted(len(all_models), 'model')}. All: mlxk list {flag}"]


def _narrow(left_out: Sequence[str], cells: Sequence[dict[str, str]]) -> list[str]:
    """Return at most one sentence: the columns that did not fit."""
    names = [title for title in left_out if any(row[title] != _NO_STATE for row in cells)]
    return [f"Not shown for want of room: {', '.join(names)}."] if names else []


def _is_visible(description: ModelDescription, view: ListView) -> bool:
    if view.everything:
        return True
    if not description.runnable:
        return False
    return view.verbose or description.model_type in {ModelType.CHAT, ModelType.AUDIO}


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


_NO_STATE = "—"


def _clean(workspace: Workspace | None) -> str:
    if workspace is None or workspace.clean is None:
        return _NO_STATE
    return "✓" if workspace.clean else "✗"

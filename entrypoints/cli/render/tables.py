"""Renders the health and the description of models as text, and the format report as text and JSON."""

import datetime
import json
import textwrap
from collections.abc import Sequence

from mlxk.application.ports.model_tasks import EndToken, FittedConversation, FormatReport
from mlxk.application.use_cases.inspect_models import HealthEntry
from mlxk.domain.models.detection import foreign_quantization
from mlxk.domain.models.footprint import MemoryFit, MemoryVerdict, WeightForm
from mlxk.domain.models.integrity import listed
from mlxk.domain.models.model import (
    Capability,
    ModelDescription,
    ModelDetails,
    ToolsMissing,
    Workspace,
)
from mlxk.domain.models.snapshot import text_section
from mlxk.domain.ranks import SpreadModel
from mlxk.entrypoints.cli.render.formatting import age, decimal_size, printable, table
from mlxk.entrypoints.cli.render.model_json import Json, file_type
from mlxk.entrypoints.cli.render.model_table import SHORT_HASH, type_text
from mlxk.entrypoints.wording import health_reason, matrices_words, model_reason

_TOOLS = {
    None: "yes",
    ToolsMissing.TEMPLATE: "no (the chat template does not read them)",
    ToolsMissing.FORMAT: "no (the format of its calls is not known)",
}


def health_text(entries: Sequence[HealthEntry], width: int | None = None) -> str:
    """Return one line per model and note, unhealthy models first, and a summary unless there is exactly one model.

    Args:
        entries: The models, sorted by name.
        width: Characters of the terminal, at which lines wrap; None for a file or a pipe.
    """
    lines: list[str] = []
    for entry in sorted(entries, key=lambda each: each.report.healthy):
        lines.append(f"{entry.report.status.value:<9} {entry.handle.label} — {health_reason(entry.report)}")
        lines += (f"{_INDENT}{note}" for note in entry.notes)
    if len(entries) != 1:
        healthy = sum(entry.report.healthy for entry in entries)
        lines.append(f"Summary: total {len(entries)}, healthy {healthy}, unhealthy {len(entries) - healthy}")
    return "".join(f"{part}\n" for line in map(printable, lines) for part in _wrapped_line(line, width))


_INDENT = " " * 10


def _wrapped_line(line: str, width: int | None) -> list[str]:
    if width is None or len(line) <= width or width < 2 * len(_INDENT):
        return [line]
    return textwrap.wrap(line, width, subsequent_indent=_INDENT, break_on_hyphens=False)


def details_text(details: ModelDetails, section: str, now: datetime.datetime, verdict: MemoryVerdict) -> str:
    """Return the description of a model and one section: files, config or metadata; ``formats`` adds no section."""
    lines = _summary(details, now)
    if section == "files":
        lines += ["", "Files:", *(_file_line(entry.path, entry.size_bytes) for entry in details.files)]
    elif section == "config":
        lines += ["", "Config:", *json.dumps(details.config, indent=2).split("\n")]
    elif section == "metadata":
        lines += [
            "",
            "Metadata:",
            *_metadata_lines(details),
            "",
            "Memory:",
            *memory_lines(verdict, runs=details.description.runnable),
        ]
    if details.description.workspace and details.description.workspace.managed:
        lines += ["", "Workspace:", *_workspace_lines(details.description.workspace, now)]
    return "\n".join(map(printable, lines)) + "\n"


def _summary(details: ModelDetails, now: datetime.datetime) -> list[str]:
    description = details.description
    commit = description.handle.commit
    lines = [
        f"Model: {description.handle.name}" + (f"@{commit[:SHORT_HASH]}" if commit else ""),
        f"Framework: {description.framework.value}",
        f"Type: {type_text(description)}",
        f"Capabilities: {', '.join(capability.value for capability in description.capabilities) or '-'}",
        f"Quantization: {_quantization(details)}",
        f"Size: {decimal_size(description.size_bytes)}",
        f"Modified: {age(description.modified, now)}",
        f"Health: {_health_word(description)}",
    ]
    if details.strays:
        lines.append(f"Not part of the model: {listed(details.strays)}")
    base = details.base
    if base is not None and base.name is not None:
        remarks = {None: "", False: " (as it was trained on)", True: " (with other weights than it was trained on)"}
        lines.append(f"Base: {base.name}{remarks[base.differs]}")
    reason = model_reason(description)
    return [*lines, f"Reason: {reason}"] if reason else lines


def _health_word(description: ModelDescription) -> str:
    if description.health.healthy and not description.runtime.compatible:
        return "healthy (files OK, runtime incompatible)"
    return description.health.status.value


def _quantization(details: ModelDetails) -> str:
    quantization = details.quantization
    if quantization:
        return f"{quantization.bits}-bit (group_size={quantization.group_size})"
    foreign = foreign_quantization(details.config or {})
    if not foreign:
        return "-"
    method, bits = foreign.get("quant_method"), foreign.get("bits")
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
        "Voices": ", ".join(details.voices) if details.description.can(Capability.TEXT_TO_SPEECH) else None,
        "License": details.license,
    }
    return [f"  {name}: {value}" for name, value in facts.items() if type(value) in {str, int} and value != ""]


_FIT_WORDS = {
    MemoryFit.FITS: "fits",
    MemoryFit.TIGHT: "fits, but more than is free right now",
    MemoryFit.EXCEEDS: "does not fit the budget",
    MemoryFit.UNKNOWN: "this machine's memory could not be read",
}


def memory_lines(verdict: MemoryVerdict, *, runs: bool = True) -> list[str]:
    """Return the memory estimate as indented lines; with ``runs`` false, without whether it fits."""
    fit = _FIT_WORDS[verdict.fit] if runs else "but the model does not run here"
    budget = f" of a budget of {decimal_size(verdict.budget)}" if verdict.budget is not None else ""
    return [
        f"  Weights: {decimal_size(verdict.weights)}{_type_words(verdict)}",
        f"  Cache per 1k tokens: {decimal_size(verdict.cache_per_token * 1000)}",
        f"  Estimate: {decimal_size(verdict.needed)}{budget} ({fit})",
        *([f"  Matrices: {matrices_words(verdict.matrices)}"] if verdict.matrices.on_cpu else []),
    ]


def _type_words(verdict: MemoryVerdict) -> str:
    """Return the memory that holding weights in float32 on a CPU costs, or would cost; empty without a difference."""
    if not verdict.widening_bytes:
        return ""
    more = decimal_size(verdict.widening_bytes)
    if verdict.form is WeightForm.PLAIN:
        return f", {more} of it to hold its quantized layers unpacked in float32 (faster without a GPU)"
    if verdict.form.widened:
        return f", {more} of it to hold 16-bit numbers in float32 (faster without a GPU)"
    return f" (slow without a GPU: there is no memory for {more} more to hold 16-bit numbers in float32)"


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


_MOST_NAMED = 8
"""Control tokens listed in the text."""


def report_json(report: FormatReport) -> Json:
    """Return the ``format_report`` of ``show``."""
    reasoning, call = report.reasoning, report.call
    return {
        "chat_template": report.chat_template,
        "reasoning": {"start": reasoning[0], "end": reasoning[1]} if reasoning is not None else None,
        "call_syntaxes": list(report.call_syntaxes),
        "reads_tools": report.reads_tools,
        "call": {"text": call.text, "read": call.read} if call is not None else None,
        "switches": list(report.switches),
        "effort_levels": list(report.effort_levels),
        "ends": [{"token": each.token, "text": each.text, "sources": list(each.sources)} for each in report.ends],
        "control_tokens": list(report.control_tokens),
        "conversations": [
            {"kind": each.kind, "steps": list(each.steps), "refusal": each.refusal} for each in report.conversations
        ],
        "problems": list(report.problems),
    }


def report_text(report: FormatReport) -> str:
    """Return the lines of ``show --format-report`` below the model's summary."""
    reasoning, call, tokens = report.reasoning, report.call, report.control_tokens
    first_tokens = ", ".join(tokens[:_MOST_NAMED]) + (", …" if len(tokens) > _MOST_NAMED else "")
    facts = {
        "Chat template": "yes" if report.chat_template else "no",
        "Reasoning": f"{reasoning[0]} … {reasoning[1]}" if reasoning is not None else "not marked",
        "Switches": ", ".join(report.switches) or "none",
        "Effort levels": ", ".join(report.effort_levels) or "none",
        "Tools": "read by the template" if report.reads_tools else "not read by the template",
        "Call syntaxes": ", ".join(report.call_syntaxes) or "none of its own",
        "Calls parsed": "not tried" if call is None else "yes" if call.read else "no",
        "Turns end with": "; ".join(map(_end, report.ends)) or "unknown",
        "Control tokens": f"{len(tokens)}, kept as text where messages spell them: {first_tokens}"
        if tokens
        else "none",
    }
    lines = ["", "Formats:", *(f"  {name}: {value}" for name, value in facts.items())]
    if call is not None:
        lines += ["", "A call as the template writes it:", *(f"  {line}" for line in call.text.strip().split("\n"))]
    if report.conversations:
        lines += ["", "Conversations:", *map(_conversation, report.conversations)]
    lines += ["", "Problems:", *(f"  {problem}" for problem in report.problems or ("none",))]
    return "\n".join(map(printable, lines)) + "\n"


def _end(end: EndToken) -> str:
    return f"{end.text or end.token} ({', '.join(end.sources)})"


def _conversation(each: FittedConversation) -> str:
    if each.refusal is not None:
        return f"  {each.kind}: refused"
    return f"  {each.kind}: {', '.join(each.steps) or 'as it is'}"


_CUT_WORDS = {
    "tensor": "every layer is cut (tensor parallel)",
    "pipeline": "each host has some of the layers (pipeline)",
}


def spread_text(found: SpreadModel, width: int | None) -> str:
    """Return the table of ``show --hosts``, and how the model is divided among the hosts."""
    header = ("Host", "Share", "Budget", "Fit", "Files", "Problem")
    rows = [
        (
            share.host.ssh,
            decimal_size(share.verdict.needed),
            "-" if share.verdict.budget is None else decimal_size(share.verdict.budget),
            share.verdict.fit.value,
            share.files.value,
            share.problem or "-",
        )
        for share in found.shares
    ]
    division = _CUT_WORDS[found.cut] if found.cut is not None else f"none: {printable(found.reason or 'not known')}"
    return f"\nHosts:\n{table(header, rows, width, 60)}Division: {division}\n"

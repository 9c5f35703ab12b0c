"""JSON and text of one model on the hub: the result of ``show --remote``."""

import json

from mlxk.application.use_cases.show_remote_model import RemoteDetails
from mlxk.entrypoints.cli.render.formatting import decimal_size, printable
from mlxk.entrypoints.cli.render.model_json import memory_estimate
from mlxk.entrypoints.cli.render.model_table import SHORT_HASH
from mlxk.entrypoints.cli.render.tables import memory_lines

Json = dict[str, object]


def card_json(details: RemoteDetails, section: str) -> Json:
    """Return the data of ``show --remote``; its configuration only for that section."""
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

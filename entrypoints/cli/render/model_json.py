"""JSON of models and health, with the field names and their order as in ``contracts/``."""

import datetime
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from mlxk.domain.models.footprint import MemoryReading, MemoryVerdict
from mlxk.domain.models.model import Capability, FileEntry, ModelDescription, ModelDetails, Origin, Workspace
from mlxk.domain.models.snapshot import text_section
from mlxk.domain.ranks import SpreadModel
from mlxk.entrypoints.cli.render.formatting import decimal_size
from mlxk.entrypoints.wording import health_reason, model_reason

if TYPE_CHECKING:
    from mlxk.application.use_cases.inspect_models import HealthEntry

Json = dict[str, object]


def timestamp(moment: datetime.datetime) -> str:
    """Return a time as ISO 8601 in UTC, to the second, ending in ``Z``."""
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def model(description: ModelDescription) -> Json:
    """Return the model object of ``list`` and ``show``."""
    handle, workspace = description.handle, description.workspace
    return {
        "name": handle.name,
        "hash": handle.commit,
        "size_bytes": description.size_bytes,
        "last_modified": timestamp(description.modified),
        "framework": description.framework.value,
        "model_type": description.model_type.value,
        "capabilities": [capability.value for capability in description.capabilities],
        "context_length": description.context_length,
        "health": description.health.status.value,
        "runtime_compatible": description.runnable,
        "reason": model_reason(description),
        "cached": handle.origin is Origin.CACHE,
        "origin": workspace.source_repo if workspace else None,
        "content_hash": workspace.content_hash if workspace else None,
        "hash_modified": timestamp(workspace.hash_modified) if workspace and workspace.hash_modified else None,
        "clean": workspace.clean if workspace else None,
        "source": handle.origin.value,
    }


def model_list(models: Iterable[ModelDescription], reading: MemoryReading | None) -> Json:
    """Return the data of ``list``."""
    objects = [_list_entry(description) for description in models]
    return {
        "models": objects,
        "count": len(objects),
        "system": {"memory_total_bytes": reading.total} if reading else None,
    }


def _list_entry(description: ModelDescription) -> Json:
    """Return the model object of ``list``; for a workspace it also has a display name."""
    name = description.handle.display_name
    return model(description) if name is None else {**model(description), "display_name": name}


def file(entry: FileEntry) -> Json:
    """Return one file of ``show --files``."""
    return {
        "name": entry.path.rpartition("/")[2],
        "size": decimal_size(entry.size_bytes),
        "type": file_type(entry.path),
        "path": entry.path,
        "size_bytes": entry.size_bytes,
    }


def file_type(path: str) -> str:
    """Return the type of a file: config, weights, tokenizer, readme or other."""
    name = path.rpartition("/")[2]
    if name == "config.json":
        return "config"
    if name.endswith((".safetensors", ".bin", ".gguf", ".npz")):
        return "weights"
    if "tokenizer" in name:
        return "tokenizer"
    if name.endswith(".json"):
        return "config"
    return "readme" if name == "README.md" else "other"


def health(entries: Iterable["HealthEntry"]) -> Json:
    """Return the data of ``health``."""
    objects = [_health_entry(entry) for entry in entries]
    healthy = [entry for entry in objects if entry["status"] == "healthy"]
    unhealthy = [entry for entry in objects if entry["status"] != "healthy"]
    return {
        "healthy": healthy,
        "unhealthy": unhealthy,
        "summary": {"total": len(objects), "healthy_count": len(healthy), "unhealthy_count": len(unhealthy)},
    }


def _health_entry(entry: "HealthEntry") -> Json:
    report = entry.report
    fields: Json = {
        "name": entry.handle.display_name or entry.handle.name,
        "status": report.status.value,
        "reason": health_reason(report),
    }
    if report.files:
        fields["files"] = list(report.files)
    if report.missing_bytes is not None:
        fields["missing_bytes"] = report.missing_bytes
    if entry.notes:
        fields["notes"] = list(entry.notes)
    if entry.workspace is not None:
        fields["managed"] = entry.workspace.managed
    return fields


def workspace_metadata(workspace: Workspace | None) -> Json | None:
    """Return the metadata of a workspace: null for other models, empty when it is not managed."""
    if workspace is None:
        return None
    if not workspace.managed:
        return {}
    return {
        "source_repo": workspace.source_repo,
        "source_revision": workspace.source_revision,
        "operation": workspace.operation,
        "created_at": timestamp(workspace.created) if workspace.created else None,
        "content_hash": workspace.content_hash,
        "hash_modified": timestamp(workspace.hash_modified) if workspace.hash_modified else None,
        "managed": True,
        "clean": workspace.clean,
    }


def model_details(details: ModelDetails, section: str, verdict: MemoryVerdict, hash_updated: bool = False) -> Json:
    """Return the data of ``show``.

    Args:
        details: The model.
        section: The section to fill: ``files``, ``config`` or ``metadata``; ``formats`` fills none.
        verdict: The memory estimate.
        hash_updated: Whether the content hash was just recalculated.
    """
    fields: Json = {
        "model": _with_quantization(details),
        "workspace_metadata": workspace_metadata(details.description.workspace),
    }
    if hash_updated:
        fields["hash_updated"] = True
    if details.strays:
        fields["strays"] = list(details.strays)
    if details.base is not None:
        differs = details.base.differs
        fields["base"] = {"name": details.base.name, "same": None if differs is None else not differs}
    if section == "files":
        return {**fields, "files": [file(entry) for entry in details.files], "metadata": None}
    if section == "config":
        return {**fields, "config": details.config, "model_config": details.config, "metadata": None}
    if section == "formats":
        return {**fields, "metadata": None}
    facts = {"weights_type": "float32" if verdict.form.widened else "model", "matrix_library": verdict.matrices.library}
    return {**fields, "metadata": _metadata(details), "memory": {**memory_estimate(verdict), **facts}}


def _with_quantization(details: ModelDetails) -> Json:
    fields = model(details.description)
    quantization = (details.config or {}).get("quantization")
    if isinstance(quantization, Mapping):
        fields["quantization"] = quantization
    return fields


_CONFIG_NUMBERS = ("vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers")


def _metadata(details: ModelDetails) -> Json:
    config = details.config or {}
    architectures = config.get("architectures")
    quantization = details.quantization
    return {
        "model_type": _text(config.get("model_type")),
        "architecture": _text(architectures[0]) if isinstance(architectures, list) and architectures else None,
        "quantization": f"{quantization.bits}bit" if quantization else None,
        "context_length": details.description.context_length,
        **{name: _count(text_section(config).get(name)) for name in _CONFIG_NUMBERS},
        "parameters": details.parameters,
        "license": details.license,
        "chat_template": details.chat_template,
        "supports_tools": details.supports_tools,
        "tools_missing": details.tools_missing.value if details.tools_missing is not None else None,
        "supports_reasoning": details.supports_reasoning,
        **({"voices": list(details.voices)} if details.description.can(Capability.TEXT_TO_SPEECH) else {}),
    }


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def memory_estimate(verdict: MemoryVerdict) -> Json:
    """Return the memory estimate of ``show``."""
    return {
        "weights_bytes": verdict.weights,
        "cache_bytes_per_1k_tokens": verdict.cache_per_token * 1000,
        "needed_bytes": verdict.needed,
        "budget_bytes": verdict.budget,
        "fit": verdict.fit.value,
    }


def spread(found: SpreadModel) -> Json:
    """Return the fields of ``show --hosts``: the share of each host, and the kind of division."""
    hosts = [
        {
            "host": share.host.ssh,
            "address": share.host.address,
            "needed_bytes": share.verdict.needed,
            "budget_bytes": share.verdict.budget,
            "fit": share.verdict.fit.value,
            "files": share.files.value,
            "problem": share.problem,
        }
        for share in found.shares
    ]
    return {"hosts": hosts, "cut": {"kind": found.cut, "reason": found.reason}}

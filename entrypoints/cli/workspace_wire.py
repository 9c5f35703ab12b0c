"""What ``clone`` and ``convert`` say, as JSON and for people."""

from mlxk.application.ports.workspace_builder import CopyMethod
from mlxk.application.use_cases.clone_model import CloneResult
from mlxk.application.use_cases.convert_model import ConvertMode, ConvertResult
from mlxk.entrypoints.cli.hub_wire import Json, health_fields
from mlxk.entrypoints.cli.printable import printable


def cloned(result: CloneResult) -> Json:
    """Return the data of ``clone``."""
    handle, workspace = result.handle, result.workspace
    return {
        "model": result.source.name,
        "clone_status": "success" if handle else "cancelled",
        "message": _message(result),
        "target_dir": handle.directory if handle else None,
        "source_revision": result.provenance.source_revision,
        "cloned_files": result.methods.get(CopyMethod.CLONED, 0),
        "copied_files": result.methods.get(CopyMethod.COPIED, 0),
        "kept_files": result.methods.get(CopyMethod.KEPT, 0),
        "content_hash": workspace.content_hash if workspace else None,
        "health_check": result.report is not None,
        **health_fields(result.report),
    }


def cloned_text(result: CloneResult, *, quiet: bool) -> str:
    """Return what ``clone`` says to people."""
    if result.handle is None:
        return f"clone: {printable(result.source.name)} — {_message(result)}\n"
    finding = " (✓ healthy)" if result.report and not quiet else ""
    return printable(f"clone: {result.source.name} → {result.handle.directory}{finding}") + "\n"


def _message(result: CloneResult) -> str:
    if result.handle is None:
        return "Cancelled; the partial download was kept"
    copied = result.methods.get(CopyMethod.COPIED, 0)
    return f"Cloned{f', {copied} files as plain copies' if copied else ' without taking space'}"


def converted(result: ConvertResult) -> Json:
    """Return the data of ``convert``."""
    weights = result.weights
    return {
        "source": result.source.name,
        "target": result.handle.directory,
        "mode": result.mode.value,
        "message": _conversion(result),
        "warning": result.warning,
        "bits": result.provenance.bits,
        "group_size": result.provenance.group_size,
        "changed_layers": weights.changed if weights else 0,
        "unchanged_layers": list(weights.unchanged) if weights else [],
        "weights_bytes": weights.size_bytes if weights else None,
        "content_hash": result.workspace.content_hash,
        "health_check": result.report is not None,
        **health_fields(result.report),
    }


def converted_text(result: ConvertResult) -> str:
    """Return what ``convert`` says to people."""
    unchanged = result.weights.unchanged if result.weights else ()
    lines = [
        f"convert: {result.source.name} → {result.handle.directory}",
        f"  {_conversion(result)}",
        *([f"  {len(unchanged)} layers do not fit the group size and stay as they are"] if unchanged else []),
        *(["  ✓ Health check: passed"] if result.report else []),
    ]
    return "".join(f"{printable(line)}\n" for line in lines)


def _conversion(result: ConvertResult) -> str:
    if result.mode is ConvertMode.QUANTIZE:
        return f"Quantized to {result.provenance.bits}-bit successfully"
    if result.mode is ConvertMode.DEQUANTIZE:
        return "Dequantized successfully"
    return "Index rebuilt successfully" if result.rebuilt else "No index to rebuild (single-file model)"

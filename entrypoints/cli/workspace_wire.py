"""What ``clone`` says, as JSON and for people."""

from mlxk.application.ports.workspace_builder import CopyMethod
from mlxk.application.use_cases.clone_model import CloneResult
from mlxk.entrypoints.cli.hub_wire import Json, health_fields


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
        return f"clone: {result.source.name} — {_message(result)}\n"
    finding = " (✓ healthy)" if result.report and not quiet else ""
    return f"clone: {result.source.name} → {result.handle.directory}{finding}\n"


def _message(result: CloneResult) -> str:
    if result.handle is None:
        return "Cancelled; the partial download was kept"
    copied = result.methods.get(CopyMethod.COPIED, 0)
    return f"Cloned{f', {copied} files as plain copies' if copied else ' without taking space'}"

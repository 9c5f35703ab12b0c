"""JSON and text of the results of ``pull``, ``rm``, ``push``, ``clone`` and ``convert``."""

from mlxk.application.ports.model_cache import Removal
from mlxk.application.ports.model_directories import CopyMethod
from mlxk.application.use_cases.clone_model import CloneResult
from mlxk.application.use_cases.convert_model import ConvertMode, ConvertResult
from mlxk.application.use_cases.pull_model import PullResult, PullStatus
from mlxk.application.use_cases.push_model import PushExtent, PushResult
from mlxk.application.use_cases.remove_models import RemoveResult
from mlxk.domain.hub import SkipReason
from mlxk.domain.models.model import HealthReport, Origin
from mlxk.domain.publication import ChangeSet
from mlxk.entrypoints.cli.render.formatting import counted, decimal_size, printable
from mlxk.entrypoints.wording import health_reason

Json = dict[str, object]


def pull_json(result: PullResult) -> Json:
    """Return the data of ``pull``."""
    plan, handle = result.plan, result.handle
    return {
        "model": result.name,
        "download_status": result.status.value,
        "message": _pull_message(result),
        "expanded_name": result.name if result.expanded else None,
        "commit_hash": plan.model.commit if plan else handle.commit if handle else None,
        "preflight_warning": result.warning,
        "size_bytes": plan.size_bytes if plan else None,
        "missing_bytes": result.missing_bytes,
        "files": [{"path": file.path, "size_bytes": file.size_bytes} for file in plan.files] if plan else [],
        "skipped": [{"path": file.path, "reason": file.reason.value} for file in plan.skipped] if plan else [],
        **health_fields(result.report),
    }


def pull_text(result: PullResult) -> str:
    """Return the text of ``pull``."""
    lines = [f"pull: {result.name} — {_pull_message(result)}"]
    if result.plan and result.status is PullStatus.DRY_RUN:
        lines += [f"  {file.path}  {decimal_size(file.size_bytes)}" for file in result.plan.files]
    if result.plan:
        listed = (file for file in result.plan.skipped if file.reason is not SkipReason.UNUSED)
        lines += [f"  not fetched: {file.path} ({file.reason.value})" for file in listed]
    if result.report and not result.report.healthy and result.status is PullStatus.SUCCESS:
        lines.append(f"  unhealthy: {health_reason(result.report)}")
    return "".join(f"{printable(line)}\n" for line in lines)


def remove_json(result: RemoveResult) -> Json:
    """Return the data of ``rm``."""
    removals = result.removals
    single = removals[0] if len(removals) == 1 else None
    part = single is not None and not single.all_revisions
    return {
        "model": single.name if single else result.reference,
        "action": _action(result),
        "message": _remove_message(result),
        "requires_confirmation": False,
        "matches": [removal.name for removal in removals],
        "commit_hash": single.revisions[0] if single and part else None,
        "freed_bytes": sum(removal.size_bytes for removal in removals),
        "lock_files_cleaned": sum(removal.lock_files for removal in removals),
        "removed": [_removal(removal) for removal in removals],
    }


def remove_text(result: RemoveResult) -> str:
    """Return the text of ``rm``."""
    lines = [f"rm: {_remove_message(result)}"]
    if len(result.removals) > 1:
        lines += [f"  {removal.name}  {decimal_size(removal.size_bytes)}" for removal in result.removals]
    return "".join(f"{printable(line)}\n" for line in lines)


def health_fields(report: HealthReport | None) -> Json:
    """Return the health after an operation; null where it was not checked."""
    return {
        "health": report.status.value if report else None,
        "health_reason": health_reason(report) if report else None,
    }


def _pull_message(result: PullResult) -> str:
    plan = result.plan
    if result.status is PullStatus.CANCELLED:
        return f"Download cancelled. Partial download kept. Use 'mlxk rm {result.name}' to delete if needed."
    if result.status is PullStatus.ALREADY_EXISTS:
        built_in = result.handle is not None and result.handle.origin is Origin.BUILT_IN
        return "Comes with the program" if built_in else "Already in the cache"
    assert plan is not None
    files = f"{counted(len(plan.files), 'file')}, {decimal_size(plan.size_bytes)}"
    if result.status is PullStatus.DRY_RUN:
        return f"Would download {decimal_size(result.missing_bytes)} ({files} in all)"
    return f"Downloaded {decimal_size(result.missing_bytes)} ({files} in all)"


def _action(result: RemoveResult) -> str:
    if result.done:
        return "deleted"
    return "dry_run" if result.dry_run else "cancelled"


def _remove_message(result: RemoveResult) -> str:
    size = decimal_size(sum(removal.size_bytes for removal in result.removals))
    what, stays = _what(result.removals), _what_stays(result.removals)
    if result.done:
        return f"Deleted {what}, {size} freed{stays}"
    return f"Would delete {what}, {size}{stays}" if result.dry_run else f"Kept {what}"


def _what_stays(removals: tuple[Removal, ...]) -> str:
    """Return the end of a sentence about targets of links: only the links are removed."""
    places = [removal.link_to for removal in removals if removal.link_to]
    parts = [f"{removal.name}/{part}" for removal in removals for part in removal.linked_parts]
    stays = [f"; only the link goes, what is in {place} stays" for place in places[:1]]
    if len(places) > 1:
        stays = [f"; of {len(places)} models only the links go, what they lead to stays"]
    return "".join(stays) + (f"; {', '.join(parts)}: only the links go, what they lead to stays" if parts else "")


def _what(removals: tuple[Removal, ...]) -> str:
    if len(removals) > 1:
        return f"{len(removals)} models"
    return f"the link {removals[0].label}" if removals[0].link_to else removals[0].label


def _removal(removal: Removal) -> Json:
    return {
        "model": removal.name,
        "revisions": list(removal.revisions),
        "whole": removal.all_revisions,
        "freed_bytes": removal.size_bytes,
        **({"link_to": removal.link_to} if removal.link_to else {}),
        **({"linked_parts": list(removal.linked_parts)} if removal.linked_parts else {}),
    }


def push_json(result: PushResult) -> Json:
    """Return the data of ``push``."""
    changes, published = result.changes, result.published
    return {
        "repo_id": result.request.name,
        "branch": result.request.branch,
        "repo_url": result.url,
        "message": _push_message(result),
        "dry_run": result.request.extent is PushExtent.DRY_RUN,
        "check_only": result.request.extent is PushExtent.CHECK_ONLY,
        "private": _private(result),
        "commit_sha": published.commit if published else _head(result),
        "commit_url": published.url if published else None,
        "created_repo": result.created_repository,
        "created_branch": result.created_branch,
        "no_changes": not changes if changes is not None else None,
        "local_files_count": len(result.scan.files),
        "local_bytes": result.scan.size_bytes,
        "uploaded_files_count": len(changes.uploads) if changes and published else 0,
        "change_summary": _summary(changes),
        "added_files": list(changes.added) if changes else [],
        "modified_files": list(changes.modified) if changes else [],
        "deleted_files": list(changes.deleted) if changes else [],
        **({"left_out_files": list(result.left_out)} if result.left_out else {}),
        "workspace_health": {"healthy": result.health.healthy, "reason": health_reason(result.health)},
        "hf_logs": list(published.log) if published else [],
    }


def push_text(result: PushResult, *, verbose: bool) -> str:
    """Return the text of ``push``."""
    request, changes = result.request, result.changes
    lines = [f"push: {request.name}@{request.branch} — {_push_message(result)}"]
    if result.published:
        lines.append(f"  {result.published.url}")
    if changes and (verbose or request.extent is PushExtent.DRY_RUN):
        marks = ("+", changes.added), ("~", changes.modified), ("-", changes.deleted)
        lines += [f"  {mark} {path}" for mark, paths in marks for path in paths]
    if verbose and changes is None:
        lines += [f"  {file.path}  {decimal_size(file.size_bytes)}" for file in result.scan.files]
    if verbose and result.published:
        lines += [f"  hub: {line}" for line in result.published.log]
    return "".join(f"{printable(line)}\n" for line in lines)


def _push_message(result: PushResult) -> str:
    changes, size = result.changes, decimal_size(result.scan.size_bytes)
    if changes is None:
        return f"Check only: {len(result.scan.files)} files, {size}; nothing was uploaded"
    counted = f"+{len(changes.added)} ~{len(changes.modified)} -{len(changes.deleted)}" if changes else "no changes"
    if result.request.extent is PushExtent.DRY_RUN:
        return f"Dry run: {_creation(result)}{counted}"
    if result.published:
        return f"Committed {result.published.commit[:7]} ({counted})"
    return "Created the branch; it holds what the folder holds" if result.created_branch else "No changes"


def _creation(result: PushResult) -> str:
    """Return the repository or branch that a push would create, with the flag that is missing for it."""
    if not (result.created_repository or result.created_branch):
        return ""
    what = "repository" if result.created_repository else "branch"
    return f"would create the {what}{'' if result.request.create else ' (with --create)'}, "


def _head(result: PushResult) -> str | None:
    """Return the commit of the branch, or of the branch that a new one would start from."""
    state = result.state
    return state.commit if state and (state.branch_exists or not result.changes) else None


def _private(result: PushResult) -> bool | None:
    """Return whether the repository is, or would be, private; None when the hub was not asked."""
    if result.state is None:
        return None
    if result.state.exists:
        return result.state.private
    return result.request.visibility is not None and result.request.visibility.value == "private"


def _summary(changes: ChangeSet | None) -> Json | None:
    if changes is None:
        return None
    return {"added": len(changes.added), "modified": len(changes.modified), "deleted": len(changes.deleted)}


def clone_json(result: CloneResult) -> Json:
    """Return the data of ``clone``."""
    handle, workspace = result.handle, result.workspace
    return {
        "model": result.source.name,
        "clone_status": "success" if handle else "cancelled",
        "message": _clone_message(result),
        "target_dir": handle.directory if handle else None,
        "source_revision": result.provenance.source_revision,
        "cloned_files": result.methods.get(CopyMethod.CLONED, 0),
        "copied_files": result.methods.get(CopyMethod.COPIED, 0),
        "kept_files": result.methods.get(CopyMethod.KEPT, 0),
        "content_hash": workspace.content_hash if workspace else None,
        "health_check": result.report is not None,
        **health_fields(result.report),
    }


def clone_text(result: CloneResult, *, quiet: bool) -> str:
    """Return the text of ``clone``."""
    if result.handle is None:
        return f"clone: {printable(result.source.name)} — {_clone_message(result)}\n"
    finding = " (✓ healthy)" if result.report and not quiet else ""
    return printable(f"clone: {result.source.name} → {result.handle.directory}{finding}") + "\n"


def _clone_message(result: CloneResult) -> str:
    if result.handle is None:
        return "Cancelled; the partial download was kept"
    copied = result.methods.get(CopyMethod.COPIED, 0)
    copies = "1 file as a plain copy" if copied == 1 else f"{copied} files as plain copies"
    return f"Cloned, {copies}" if copied else "Cloned without taking space"


def convert_json(result: ConvertResult) -> Json:
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


def convert_text(result: ConvertResult) -> str:
    """Return the text of ``convert``."""
    unchanged = result.weights.unchanged if result.weights else ()
    lines = [
        f"convert: {result.source.name} → {result.handle.directory}",
        f"  {_conversion(result)}",
        *(
            [f"  Kept as it is, since the group size does not fit: {counted(len(unchanged), 'layer')}"]
            if unchanged
            else []
        ),
        *(["  ✓ Health check: passed"] if result.report else []),
    ]
    return "".join(f"{printable(line)}\n" for line in lines)


def _conversion(result: ConvertResult) -> str:
    if result.mode is ConvertMode.QUANTIZE:
        return f"Quantized to {result.provenance.bits}-bit successfully"
    if result.mode is ConvertMode.DEQUANTIZE:
        return "Dequantized successfully"
    return "Index rebuilt successfully" if result.rebuilt else "No index to rebuild (single-file model)"

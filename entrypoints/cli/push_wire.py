"""What ``push`` says, as JSON and for people."""

from mlxk.application.use_cases.push_model import PushExtent, PushResult
from mlxk.domain.publication import ChangeSet
from mlxk.entrypoints.cli.hub_wire import Json
from mlxk.entrypoints.cli.printable import printable
from mlxk.entrypoints.cli.sizes import decimal_size


def pushed(result: PushResult) -> Json:
    """Return the data of ``push``."""
    changes, published = result.changes, result.published
    return {
        "repo_id": result.request.name,
        "branch": result.request.branch,
        "repo_url": result.url,
        "message": _message(result),
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
        "workspace_health": {"healthy": result.health.healthy, "reason": result.health.reason},
        "hf_logs": list(published.log) if published else [],
    }


def pushed_text(result: PushResult, *, verbose: bool) -> str:
    """Return what ``push`` says to people."""
    request, changes = result.request, result.changes
    lines = [f"push: {request.name}@{request.branch} — {_message(result)}"]
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


def _message(result: PushResult) -> str:
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
    """Say what a push would create first, and what it lacks for that."""
    if not (result.created_repository or result.created_branch):
        return ""
    what = "repository" if result.created_repository else "branch"
    return f"would create the {what}{'' if result.request.create else ' (with --create)'}, "


def _head(result: PushResult) -> str | None:
    """The commit of the branch, or of the one that a new branch begins as."""
    state = result.state
    return state.commit if state and (state.branch_exists or not result.changes) else None


def _private(result: PushResult) -> bool | None:
    """Whether the repository is, or would be, private; None when the hub was not asked."""
    if result.state is None:
        return None
    if result.state.exists:
        return result.state.private
    return result.request.visibility is not None and result.request.visibility.value == "private"


def _summary(changes: ChangeSet | None) -> Json | None:
    if changes is None:
        return None
    return {"added": len(changes.added), "modified": len(changes.modified), "deleted": len(changes.deleted)}

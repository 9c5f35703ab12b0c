"""What ``pull`` and ``rm`` say, as JSON and for people."""

from mlxk.application.ports.cache_editor import Removal
from mlxk.application.use_cases.pull_model import PullResult, PullStatus
from mlxk.application.use_cases.remove_model import RemoveResult
from mlxk.domain.download import SkipReason
from mlxk.domain.health import HealthReport
from mlxk.domain.model import Origin
from mlxk.entrypoints.cli.printable import printable
from mlxk.entrypoints.cli.sizes import decimal_size

Json = dict[str, object]


def pulled(result: PullResult) -> Json:
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


def pulled_text(result: PullResult) -> str:
    """Return what ``pull`` says to people."""
    lines = [f"pull: {result.name} — {_pull_message(result)}"]
    if result.plan and result.status is PullStatus.DRY_RUN:
        lines += [f"  {file.path}  {decimal_size(file.size_bytes)}" for file in result.plan.files]
    if result.plan:
        told = (file for file in result.plan.skipped if file.reason is not SkipReason.UNUSED)
        lines += [f"  not fetched: {file.path} ({file.reason.value})" for file in told]
    if result.report and not result.report.healthy and result.status is PullStatus.SUCCESS:
        lines.append(f"  unhealthy: {result.report.reason}")
    return "".join(f"{printable(line)}\n" for line in lines)


def removed(result: RemoveResult) -> Json:
    """Return the data of ``rm``."""
    removals = result.removals
    single = removals[0] if len(removals) == 1 else None
    part = single is not None and not single.whole
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


def removed_text(result: RemoveResult) -> str:
    """Return what ``rm`` says to people."""
    lines = [f"rm: {_remove_message(result)}"]
    if len(result.removals) > 1:
        lines += [f"  {removal.name}  {decimal_size(removal.size_bytes)}" for removal in result.removals]
    return "".join(f"{printable(line)}\n" for line in lines)


def health_fields(report: HealthReport | None) -> Json:
    """Return the finding of a check after the work, null when none was made."""
    return {
        "health": report.status.value if report else None,
        "health_reason": report.reason if report else None,
    }


def _pull_message(result: PullResult) -> str:
    plan = result.plan
    if result.status is PullStatus.CANCELLED:
        return f"Download cancelled. Partial download kept. Use 'mlxk rm {result.name}' to delete if needed."
    if result.status is PullStatus.ALREADY_EXISTS:
        built_in = result.handle is not None and result.handle.origin is Origin.BUILT_IN
        return "Comes with the program" if built_in else "Already in the cache"
    if plan is None:
        return "Done"
    files = f"{len(plan.files)} files, {decimal_size(plan.size_bytes)}"
    if result.status is PullStatus.DRY_RUN:
        return f"Would download {decimal_size(result.missing_bytes)} ({files} in all)"
    return f"Downloaded {decimal_size(result.missing_bytes)} ({files} in all)"


def _action(result: RemoveResult) -> str:
    if result.done:
        return "deleted"
    return "dry_run" if result.dry_run else "cancelled"


def _remove_message(result: RemoveResult) -> str:
    size = decimal_size(sum(removal.size_bytes for removal in result.removals))
    what = _what(result.removals)
    if result.done:
        return f"Deleted {what}, {size} freed"
    return f"Would delete {what}, {size}" if result.dry_run else f"Kept {what}"


def _what(removals: tuple[Removal, ...]) -> str:
    return removals[0].label if len(removals) == 1 else f"{len(removals)} models"


def _removal(removal: Removal) -> Json:
    return {
        "model": removal.name,
        "revisions": list(removal.revisions),
        "whole": removal.whole,
        "freed_bytes": removal.size_bytes,
    }

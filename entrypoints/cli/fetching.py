"""Fetches missing models of a command line: with ``--pull`` at once, on a terminal after the user's consent.

No request is sent to the hub before the flag or the user allows it.
"""

from typing import TYPE_CHECKING

from mlxk.application.use_cases.pull_model import PullRequest, PullResult, require_space
from mlxk.domain.errors import Advice, InterruptedRunError, ModelNotFoundError, Remedy, RevisionNotFoundError
from mlxk.domain.models.model import HealthReport
from mlxk.domain.models.reference import ModelRef
from mlxk.entrypoints.cli.output import Output, TerminalConfirmation, confirmation
from mlxk.entrypoints.cli.progress import PausedWhileAsking, Spinner, SpinnerBetweenBars
from mlxk.entrypoints.cli.render import operations
from mlxk.entrypoints.cli.render.remote_models import offer_lines
from mlxk.entrypoints.wording import health_reason

if TYPE_CHECKING:
    from mlxk.entrypoints.container import UseCases

_FETCHABLE = {Remedy.FETCH, Remedy.FETCH_OR_USE_CLOSE_NAME}
"""Remedies of errors about a model that the hub may have."""


def fetch(use_cases: "UseCases", request: PullRequest, output: Output, *, yes: bool) -> PullResult:
    """Pull a model, with progress on standard error.

    Args:
        use_cases: The container's use cases.
        request: The reference and options.
        output: Where to show progress and ask.
        yes: Whether to answer every question with yes.

    Raises:
        InterruptedRunError: The user pressed Ctrl-C; the hint says how to continue.
        MlxkError: See ``PullModel``.
    """
    try:
        with SpinnerBetweenBars(output, "Asking the hub") as progress:
            return use_cases.pull_model()(request, progress, PausedWhileAsking(confirmation(output, yes=yes), progress))
    except KeyboardInterrupt:
        raise InterruptedRunError(
            "interrupted; what arrived is kept", hint=f"Continue: mlxk pull {request.reference} --force-resume"
        ) from None


def fetch_unknown(
    error: ModelNotFoundError | RevisionNotFoundError, use_cases: "UseCases", output: Output, *, pull: bool
) -> None:
    """Fetch a missing model; the user is asked before the hub is queried, and again before the download.

    Args:
        error: The error of resolving the model.
        use_cases: The container's use cases.
        output: Where to show facts and progress and ask.
        pull: Whether ``--pull`` was given, so that the user is not asked.

    Raises:
        ModelNotFoundError, RevisionNotFoundError: It cannot be fetched, or the user declined.
        MlxkError: See ``PullModel``.
    """
    if not (isinstance(error.hint, Advice) and error.hint.remedy in _FETCHABLE):
        raise error
    reference = error.hint.values["name"]
    if not pull and not _asks(output, (_absence(error),), f"Look for {reference} on the hub?"):
        raise error
    with Spinner(output, "Asking the hub"):
        details = use_cases.show_remote_model()(reference)
    request = PullRequest(reference, force_resume=True)
    if details.plan is None or not details.card.accessible:
        fetch(use_cases, PullRequest(reference, dry_run=True), output, yes=True)
    elif details.missing_bytes is not None:
        require_space(details.plan, details.missing_bytes, details.free_bytes)
    if not pull and not _asks(output, offer_lines(details), f"Fetch {details.card.model.name}?"):
        raise error
    _report(fetch(use_cases, request, output, yes=True), output)


def complete(
    reference: str, name: str, health: HealthReport, use_cases: "UseCases", output: Output, *, pull: bool
) -> None:
    """Fetch the missing files of a cached model, if ``--pull`` or the user says so.

    Args:
        reference: The model as typed; its revision, if any, is fetched.
        name: ``org/name``.
        health: The report that names what is missing.
        use_cases: The container's use cases.
        output: Where to show facts and progress and ask.
        pull: Whether ``--pull`` was given, so that the user is not asked.

    Raises:
        MlxkError: See ``PullModel``.
    """
    facts = (f"Model '{name}' is not whole: {health_reason(health)}",)
    if pull or _asks(output, facts, "Fetch the rest from the hub?"):
        revision = ModelRef.parse(reference).revision
        request = PullRequest(f"{name}@{revision}" if revision else name, force_resume=True)
        _report(fetch(use_cases, request, output, yes=True), output)


def _asks(output: Output, facts: tuple[str, ...], question: str) -> bool:
    return bool(TerminalConfirmation(output).ask(facts, question, default=False))


def _absence(error: ModelNotFoundError | RevisionNotFoundError) -> str:
    close = error.hint.values.get("close") if isinstance(error.hint, Advice) else None
    return f"{error.message[0].upper()}{error.message[1:]}.{f' Did you mean {close}?' if close else ''}"


def _report(result: PullResult, output: Output) -> None:
    if not output.as_json:
        output.note(operations.pull_text(result).rstrip())

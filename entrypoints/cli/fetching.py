"""Fetches models that are named and not here: with ``--pull`` at once, on a terminal when the user agrees.

Nothing is asked of the hub before the user, or the flag, has said so.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from mlxk.application.use_cases.pull_model import PullRequest, PullResult, require_space
from mlxk.application.use_cases.show_remote_model import RemoteDetails
from mlxk.domain.errors import (
    Advice,
    InterruptedRunError,
    ModelNotFoundError,
    Remedy,
    RevisionNotFoundError,
)
from mlxk.domain.models.model import ModelHandle, Origin
from mlxk.domain.models.reference import ModelRef
from mlxk.entrypoints.cli.output import Output, TerminalConfirmation, confirmation
from mlxk.entrypoints.cli.progress import PausedWhileAsking, Spinner, SpinnerBetweenBars
from mlxk.entrypoints.cli.render import operations
from mlxk.entrypoints.cli.render.remote_models import offer_lines
from mlxk.entrypoints.wording import health_reason

if TYPE_CHECKING:
    from mlxk.entrypoints.container import Container, UseCases

_FETCHABLE = {Remedy.FETCH, Remedy.FETCH_OR_USE_CLOSE_NAME}
"""What can be done about a name that the hub may have."""


def fetch(use_cases: "UseCases", request: PullRequest, output: Output, *, yes: bool) -> PullResult:
    """Pull a model, with its progress on standard error.

    Args:
        use_cases: Those of the container.
        request: The reference and options.
        output: Where to show progress and ask.
        yes: Whether every question is answered already.

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


def fetch_what_is_absent(
    references: Iterable[str | None], build: Callable[[], "Container"], output: Output, *, pull: bool
) -> None:
    """Fetch those models of a command line that are not here, or not whole.

    Without the flag, nothing is done where the hub may not be asked: the command itself reports what is not here.

    Args:
        references: What the user typed; None for what was left out.
        build: Returns the container; called only when there may be something to do.
        output: Where to show facts and progress and ask.
        pull: Whether ``--pull`` was given.

    Raises:
        ModelNotFoundError, RevisionNotFoundError: A model is not here, and the user did not want it, or the hub does
            not have it.
        MlxkError: The hub, the network or the disk refuses; see ``ModelHub``.
    """
    named = tuple(dict.fromkeys(each for each in references if each))
    if not named:
        return
    container = build()
    if container.adapters.settings.hub_offline and not pull:
        return  # A question whose answer changes nothing.
    use_cases = container.use_cases
    resolve = use_cases.resolve_model()
    for reference in named:
        try:
            handle = resolve(reference)
        except (ModelNotFoundError, RevisionNotFoundError) as error:
            if not (isinstance(error.hint, Advice) and error.hint.remedy in _FETCHABLE):
                raise
            _fetch_unknown(error.hint.values["name"], error, use_cases, output, pull=pull)
        else:
            meant = ModelRef.parse(reference if handle.alias is None else resolve.aliases[handle.alias])
            _complete(handle, meant.revision, use_cases, output, pull=pull)


def _fetch_unknown(
    reference: str,
    error: ModelNotFoundError | RevisionNotFoundError,
    use_cases: "UseCases",
    output: Output,
    *,
    pull: bool,
) -> None:
    """Fetch a model that is not here; ask before the hub is asked, and again before a download."""
    if not pull and not _asks(output, (_absence(error),), f"Look for {reference} on the hub?"):
        raise error
    with Spinner(output, "Asking the hub"):
        details = use_cases.show_remote_model()(reference)
    request = PullRequest(reference, force_resume=True)
    if details.plan is None or not details.card.accessible:
        fetch(use_cases, PullRequest(reference, dry_run=True), output, yes=True)
    elif details.missing_bytes is not None:
        require_space(details.plan, details.missing_bytes, details.free_bytes)
    if not pull and not _asks(output, offer_lines(details), _question(details)):
        raise error
    _report(fetch(use_cases, request, output, yes=True), output)


def _complete(handle: ModelHandle, revision: str | None, use_cases: "UseCases", output: Output, *, pull: bool) -> None:
    """Complete a cached model of which a download was not finished, or with the flag one that is damaged."""
    if handle.origin is not Origin.CACHE:
        return
    health = use_cases.describe_model().health(handle)
    if health.healthy or not (pull or health.unfinished):
        return
    facts = (f"Model '{handle.name}' is not whole: {health_reason(health)}",)
    if pull or _asks(output, facts, "Fetch the rest from the hub?"):
        name = f"{handle.name}@{revision}" if revision else handle.name
        _report(fetch(use_cases, PullRequest(name, force_resume=True), output, yes=True), output)


def _asks(output: Output, facts: tuple[str, ...], question: str) -> bool:
    return bool(TerminalConfirmation(output).ask(facts, question, default=False))


def _absence(error: ModelNotFoundError | RevisionNotFoundError) -> str:
    close = error.hint.values.get("close") if isinstance(error.hint, Advice) else None
    return f"{error.message[0].upper()}{error.message[1:]}.{f' Did you mean {close}?' if close else ''}"


def _question(details: RemoteDetails) -> str:
    return f"Fetch {details.card.model.name}?"


def _report(result: PullResult, output: Output) -> None:
    if not output.as_json:
        output.note(operations.pull_text(result).rstrip())

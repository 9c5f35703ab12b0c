"""Whether a draft model can be used for a request, and whether it is worth its time, measured on its sequences.

A draft model that is a default, not a wish of the request, is used while its sequence is the only one of its model, and
as long as a token takes less time with it than without. The text is the same either way, so that the clock decides
about speed only.
"""

import statistics

from mlxk.adapters.mlx.loading.drafter import LoadedDrafter
from mlxk.adapters.mlx.loading.text_model import PooledModel
from mlxk.domain.errors import CapabilityError, MlxkError, ValidationError
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.settings import GenerationSettings

PLAIN_STEPS = 4
"""Steps without proposals at the beginning; the first step of either kind is not counted: it compiles and warms up."""

WINDOW = 8
"""Steps with proposals after which their speed is judged, again and again."""

MOST_SKIPPED = 32
"""Most sequences that are computed before the draft model is tried again."""


class DraftRecord:
    """How often a draft model did not pay for a model: the next sequences then do without, twice as many each time."""

    def __init__(self) -> None:
        self._losses = 0
        self._skipped = 0

    def tries(self) -> bool:
        """Return whether the next sequence tries the draft model; called once for each."""
        skips, self._skipped = self._skipped > 0, max(0, self._skipped - 1)
        return not skips

    def judge(self, *, pays: bool) -> None:
        """Note a judgement of a sequence's draft model."""
        self._losses = 0 if pays else self._losses + 1
        self._skipped = 0 if pays else min(2**self._losses, MOST_SKIPPED)


class DraftTrial:
    """Compares the seconds of a token with and without proposals, for one sequence.

    Args:
        record: Of its model.
    """

    def __init__(self, record: DraftRecord) -> None:
        self._record = record
        self._plain: list[float] = []
        self._drafted: list[tuple[float, int]] = []
        self._warm = False
        self.pays = True
        """Whether proposals have not been slower than none, as far as is known."""

    @property
    def proposes(self) -> bool:
        """Whether the next step has proposals; the first ones have none."""
        return len(self._plain) >= PLAIN_STEPS

    def observe(self, seconds: float, tokens: int) -> None:
        """Note the duration of a step and how many tokens it gave."""
        if not self.proposes:
            self._plain.append(seconds)
        elif not self._warm:
            self._warm = True
        else:
            self._drafted.append((seconds, tokens))
        if len(self._drafted) == WINDOW:
            # Medians: another process that takes the device for a moment must not decide.
            step = statistics.median(each[0] for each in self._drafted)
            tokens_a_step = sum(each[1] for each in self._drafted) / WINDOW
            self.pays = step / tokens_a_step < statistics.median(self._plain[1:])
            self._record.judge(pays=self.pays)
            self._drafted.clear()


def draft_exclusion(
    request: GenerationRequest, settings: GenerationSettings, models: tuple[PooledModel, ...]
) -> str | None:
    """Return why a draft model that is a default cannot be used for a request; None when it can, or there is none.

    Raises:
        CapabilityError: One that the request wishes has another vocabulary, or the model takes none.
        ValidationError: Settings exclude it.
    """
    if len(models) == 1:
        return None
    model, draft = models[0].model, models[1].model
    options = request.engine_options
    error: MlxkError | None = None
    given = {"grammar": settings.grammar, "thinking_budget": settings.thinking_budget}
    if not options.draft_required:  # else it is a fault of the options
        given["max_kv_size"] = options.max_kv_size
    name = next((name for name, value in given.items() if value is not None), None)
    if model.vision is not None:
        error = CapabilityError("draft_model: vision models take no draft model.")
    elif isinstance(draft, LoadedDrafter):
        error = draft.unfit(model.network, model.name)
    elif draft.vocabulary_hash != model.vocabulary_hash:
        error = CapabilityError(
            f"draft_model: '{draft.name}' speaks other tokens than '{model.name}'.",
            hint="A draft model must have the same tokenizer.",
        )
    if error is None and name is not None:
        error = ValidationError(f"draft_model and {name} exclude each other")
    if error is not None and options.draft_required:
        raise error
    return None if error is None else error.message

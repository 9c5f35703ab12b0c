"""Fuse an adapter with the model that it was trained on: a whole model, checked by having both answer the same."""

import posixpath
from collections.abc import Callable, Sequence

import attrs

from mlxk.application.generation_input import GenerationOptions
from mlxk.application.policy import require_closed
from mlxk.application.ports.model_cache import ModelCache, reserved_source
from mlxk.application.ports.model_directories import ModelFiles, Provenance, WorkspaceDraft, WorkspaceStore
from mlxk.application.ports.system import Progress
from mlxk.application.ports.tuning import ModelTuner
from mlxk.application.training_policy import trained_model
from mlxk.application.use_cases.convert_model import is_carried_over
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.generate_text import GenerateText
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.errors import Advice, ConversionFailedError, Remedy, ValidationError
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.request import TextDelta
from mlxk.domain.generation.settings import EngineOptions, GenerationSettings
from mlxk.domain.models.model import Capability, ModelDescription, ModelHandle, Origin, Workspace
from mlxk.domain.models.snapshot import README

QUESTIONS = ("Hello", "What is your name?", "What do you know?", "Count to five.", "Write a sentence about the sea.")
"""What both are asked, where there is nothing better."""
ANSWER_TOKENS = 32


@attrs.frozen
class FuseRequest:
    """An adapter, and where the model goes."""

    adapter: str
    """A reference to an adapter, which names its base."""
    target: str
    base: str | None = None
    """The model to use in place of the one that the adapter names."""
    dequantize: bool = False
    """Whether the result has no quantized layers."""
    accept_changes: bool = False
    """Whether a model that answers differently is kept."""
    questions: tuple[str, ...] = QUESTIONS


@attrs.frozen
class FuseResult:
    """A fused model."""

    base: ModelHandle
    adapter: str
    """Absolute directory."""
    handle: ModelHandle
    workspace: Workspace
    changed: int
    """Layers that the adapter changed."""
    quantized: bool
    """Whether the result has quantized layers."""
    asked: int
    same: int
    """Answers that were the same, of those that were asked."""


@attrs.frozen
class FuseAdapter:
    """Fuses one adapter into a new workspace."""

    resolve: ResolveModel
    """Resolves an adapter to its base, with the adapter."""
    describe: DescribeModel
    cache: ModelCache
    files: ModelFiles
    workspaces: WorkspaceStore
    tuner: Callable[[], ModelTuner]
    generate: GenerateText

    def __call__(self, request: FuseRequest, progress: Progress) -> FuseResult:
        """Make a workspace with the fused model.

        Raises:
            ValidationError: There is no adapter, it does not fit, or the base or the target is invalid.
            ConversionFailedError: The result is not whole, or answers differently.
            MlxkError: The base cannot be found or loaded, or the disk refuses.
        """
        base, adapter = self._found(request)
        require_closed(base, self.files)
        self.generate.compare_base(base, adapter)
        details = self.describe.details(base)
        if request.dequantize and details.quantization is None:
            raise ValidationError(f"dequantize: '{base.label}' is not quantized", options=("dequantize",))
        place = self.workspaces.place(request.target, posixpath.basename(adapter))
        for directory in (base.directory, adapter):
            if place == directory or place.startswith(f"{directory}/"):
                raise ValidationError("target: it lies in what is to be fused")
        origin = self.workspaces.read(base).source_repo if base.origin is Origin.WORKSPACE else base.name
        provenance = Provenance("fuse", source_repo=origin, source_revision=base.commit)
        quantized = details.quantization is not None and not request.dequantize
        with (
            reserved_source(self.cache, base, "fusing it", progress),
            self.workspaces.draft(place, provenance, keep_unfinished=False) as draft,
        ):
            self._copy(base, details.strays, draft)
            changed, same = self._fused(request, details.description, adapter, draft, progress, quantized=quantized)
            handle = draft.publish()
        asked = len(request.questions)
        return FuseResult(base, adapter, handle, self.workspaces.read(handle), changed, quantized, asked, same)

    def _fused(
        self,
        request: FuseRequest,
        base: ModelDescription,
        adapter: str,
        draft: WorkspaceDraft,
        progress: Progress,
        *,
        quantized: bool,
    ) -> tuple[int, int]:
        """Write the weights; return how many layers were changed, and how many answers are the same.

        Where plain layers of 16 bits round answers away, they are written in 32 bits.
        """

        def fused(*, exact: bool) -> int:
            asked = {"dequantize": request.dequantize, "exact": exact}
            return self.tuner().fuse(trained_model(base), adapter, draft.directory, progress, **asked)

        changed = fused(exact=False)
        same = self._same(base, adapter, draft, request, progress)
        if same < len(request.questions) and not quantized and not request.accept_changes:
            progress.note("Rounded to 16 bits it answers otherwise: what was changed is written in 32 bits")
            changed = fused(exact=True)
            same = self._same(base, adapter, draft, request, progress)
        if same < len(request.questions) and not request.accept_changes:
            count = len(request.questions)
            raise ConversionFailedError(
                f"the fused model answers {count - same} of {count} questions differently",
                hint=Advice(Remedy.ROUND_LESS if quantized else Remedy.ACCEPT_CHANGES),
                detail={"asked": count, "same": same},
            )
        return changed, same

    def _found(self, request: FuseRequest) -> tuple[ModelHandle, str]:
        """Return the base and the directory of the adapter."""
        if request.base is None:
            found = self.resolve(request.adapter)
            if found.adapter is None:
                raise ValidationError(
                    f"adapter: '{found.label}' is a whole model, not an adapter",
                    hint="Name what was trained on a model.",
                )
            return attrs.evolve(found, alias=None, adapter=None), found.adapter
        adapter = attrs.evolve(self.resolve, base_of=None)(request.adapter)
        return self.resolve(request.base), adapter.directory

    def _copy(self, base: ModelHandle, strays: tuple[str, ...], draft: WorkspaceDraft) -> None:
        """Copy what is no weight: tokenizer, templates, settings of generation; the card is a new one."""
        for entry in self.files.list(base.directory).files:
            if is_carried_over(entry.path) and entry.path not in strays and entry.path != README:
                draft.copy(base.directory, entry.path, lambda count: None)
        draft.write(README, b"---\nlibrary_name: mlx\ntags:\n- mlx\n---\n\nMade by mlxk from a model and an adapter.\n")

    def _same(
        self,
        base: ModelDescription,
        adapter: str,
        draft: WorkspaceDraft,
        request: FuseRequest,
        progress: Progress,
    ) -> int:
        """Return how many questions the result answers as the base does with the adapter.

        Raises:
            ConversionFailedError: It is not whole.
        """
        made = self.describe(ModelHandle(draft.directory, draft.directory, Origin.WORKSPACE))
        if not made.health.healthy:
            raise ConversionFailedError(f"the result is not whole: {made.health.reason}")
        progress.note(f"Asking both {len(request.questions)} questions")
        try:
            wanted = self._answers(base.handle, EngineOptions(adapter=adapter), request.questions)
            got = self._answers(made.handle, EngineOptions(), request.questions)
        finally:
            self.generate.generator.unload()
        return sum(one == other for one, other in zip(wanted, got, strict=True))

    def _answers(self, model: ModelHandle, options: EngineOptions, questions: Sequence[str]) -> list[str]:
        details = self.describe.details(model)
        chats = details.description.can(Capability.CHAT)
        prompts = [Conversation.of(each) if chats else each for each in questions]
        settings = GenerationSettings(max_tokens=ANSWER_TOKENS, temperature=0.0)
        streams = self.generate(details, prompts, GenerationOptions(settings, engine_options=options))
        return ["".join(event.text for event in stream if isinstance(event, TextDelta)) for stream in streams]

"""Fuse an adapter into its base model, and check that the result answers as the base with the adapter does."""

import contextlib
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
"""The default questions of the check."""
ANSWER_TOKENS = 32
"""Most tokens of an answer of the check."""


@attrs.frozen
class FuseRequest:
    """Adapter, target and options."""

    adapter: str
    """A reference to an adapter, which names its base."""
    target: str
    """The target, as typed."""
    base: str | None = None
    """Reference of a model to use instead of the base that the adapter names."""
    dequantize: bool = False
    """Whether the result has no quantized layers."""
    accept_changes: bool = False
    """Whether to keep a result that answers differently."""
    questions: tuple[str, ...] = QUESTIONS


@attrs.frozen
class FuseResult:
    """Result of fusing an adapter."""

    base: ModelHandle
    adapter: str
    """Absolute directory of the adapter."""
    handle: ModelHandle
    workspace: Workspace
    changed: int
    """Number of layers that the adapter changed."""
    quantized: bool
    """Whether the result has quantized layers."""
    asked: int
    """Number of questions of the check."""
    same: int
    """Number of questions with equal answers."""


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
    """Returns the tuner; the first call loads its libraries."""
    generate: GenerateText

    def __call__(self, request: FuseRequest, progress: Progress) -> FuseResult:
        """Make a workspace with the fused model.

        Raises:
            ValidationError: There is no adapter, it does not fit the base, or the base or the target is invalid.
            ConversionFailedError: The result is not healthy, or answers differently.
            MlxkError: The base cannot be found or loaded, or the result cannot be written.
        """
        base, adapter = self._base_and_adapter(request)
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
            changed, same = self._fuse(request, details.description, adapter, draft, progress, quantized=quantized)
            handle = draft.publish()
        asked = len(request.questions)
        return FuseResult(base, adapter, handle, self.workspaces.read(handle), changed, quantized, asked, same)

    def _fuse(
        self,
        request: FuseRequest,
        base: ModelDescription,
        adapter: str,
        draft: WorkspaceDraft,
        progress: Progress,
        *,
        quantized: bool,
    ) -> tuple[int, int]:
        """Write the weights; return the number of changed layers, and of equal answers.

        When answers differ because unquantized layers are rounded to 16 bits, these are written again in 32 bits.

        Raises:
            ConversionFailedError: Answers differ, and the request does not accept that.
        """

        def write_weights(*, exact: bool) -> int:
            model, directory = trained_model(base), draft.directory
            return self.tuner().fuse(model, adapter, directory, progress, dequantize=request.dequantize, exact=exact)

        changed = write_weights(exact=False)
        same = self._count_equal_answers(base, adapter, draft, request, progress)
        if same < len(request.questions) and not quantized and not request.accept_changes:
            progress.note("Rounded to 16 bits it answers otherwise: what was changed is written in 32 bits")
            changed = write_weights(exact=True)
            same = self._count_equal_answers(base, adapter, draft, request, progress)
        if same < len(request.questions) and not request.accept_changes:
            count = len(request.questions)
            raise ConversionFailedError(
                f"the fused model answers {count - same} of {count} questions differently",
                hint=Advice(Remedy.ROUND_LESS if quantized else Remedy.ACCEPT_CHANGES),
                detail={"asked": count, "same": same},
            )
        return changed, same

    def _base_and_adapter(self, request: FuseRequest) -> tuple[ModelHandle, str]:
        """Return the base and the directory of the adapter."""
        if request.base is None:
            base = self.resolve(request.adapter)
            if base.adapter is None:
                raise ValidationError(
                    f"adapter: '{base.label}' is a whole model, not an adapter",
                    hint="Name what was trained on a model.",
                )
            return attrs.evolve(base, alias=None, adapter=None), base.adapter
        adapter = attrs.evolve(self.resolve, base_of=None)(request.adapter)
        return self.resolve(request.base), adapter.directory

    def _copy(self, base: ModelHandle, strays: tuple[str, ...], draft: WorkspaceDraft) -> None:
        """Copy the tokenizer, templates and generation settings, and write a new model card."""
        for entry in self.files.list(base.directory).files:
            if is_carried_over(entry.path) and entry.path not in strays and entry.path != README:
                draft.copy(base.directory, entry.path, lambda count: None)
        draft.write(README, b"---\nlibrary_name: mlx\ntags:\n- mlx\n---\n\nMade by mlxk from a model and an adapter.\n")

    def _count_equal_answers(
        self,
        base: ModelDescription,
        adapter: str,
        draft: WorkspaceDraft,
        request: FuseRequest,
        progress: Progress,
    ) -> int:
        """Return how many questions the result answers as the base does with the adapter.

        Raises:
            ConversionFailedError: The result is not healthy.
        """
        fused = self.describe(ModelHandle(draft.directory, draft.directory, Origin.WORKSPACE))
        if not fused.health.healthy:
            raise ConversionFailedError(f"the result is not whole: {fused.health.reason}")
        progress.note(f"Asking both {len(request.questions)} questions")
        try:
            before = self._answers(base.handle, EngineOptions(adapter=adapter), request.questions)
            after = self._answers(fused.handle, EngineOptions(), request.questions)
        finally:
            self.generate.generator.unload()
        return sum(one == other for one, other in zip(before, after, strict=True))

    def _answers(self, model: ModelHandle, options: EngineOptions, questions: Sequence[str]) -> list[str]:
        details = self.describe.details(model)
        chats = details.description.can(Capability.CHAT)
        prompts = [Conversation.of(each) if chats else each for each in questions]
        settings = GenerationSettings(max_tokens=ANSWER_TOKENS, temperature=0.0)
        streams = self.generate(details, prompts, GenerationOptions(settings, engine_options=options))
        with contextlib.ExitStack() as running:
            for stream in streams:
                running.enter_context(stream)
            return ["".join(event.text for event in stream if isinstance(event, TextDelta)) for stream in streams]

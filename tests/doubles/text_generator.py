"""In-memory double of the text generator: scripted text, one token per step of all sequences.

    generator = InMemoryTextGenerator(answers=lambda request: ("Hello", " world"))
    with generator.submit(GenerationRequest(handle, "hi")) as stream:
        events = list(stream)                   # TextDelta("Hello"), TextDelta(" world"), Finished(STOP, …)

Like a real engine it has a thread of its own, so that blocking reads, callbacks and cancellation behave alike.
"""

import math
import threading
import time
from collections.abc import Callable, Sequence

from mlxk.application.ports.text_generator import (
    EngineState,
    KeptPrompts,
    ResidentModel,
    TextGenerator,
    TextStream,
)
from mlxk.application.text_streams import QueuedTextStream
from mlxk.domain.errors import CapabilityError, ContextLengthError, ExecutionError, MlxkError
from mlxk.domain.formats.scanner import StopSequences
from mlxk.domain.formats.tool_calls import ForcedCallSplitter
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.request import (
    Finished,
    FinishReason,
    GenerationRequest,
    PromptDelta,
    TextDelta,
    Timings,
    TokenAlternative,
    TokenLogprob,
    Usage,
)
from mlxk.domain.models.model import ModelHandle

Token = str | MlxkError
"""One token of a script; an error ends the sequence."""
Script = Callable[[GenerationRequest], Sequence[Token]]


def echo(request: GenerationRequest) -> Sequence[Token]:
    """Return the words of the prompt; a word is a token."""
    words = _prompt_text(request).split()
    return tuple(word if index == 0 else f" {word}" for index, word in enumerate(words))


def _as_prompt(request: GenerationRequest) -> PromptDelta:
    """Return the event that repeats the prompt; a word is a token."""
    words = echo(request)
    wanted, text = request.settings.logprobs, "".join(map(str, words))
    spelled = [TokenAlternative(str(each), str(each).encode(), -0.5 * bool(index)) for index, each in enumerate(words)]
    tokens = [TokenLogprob(each, (each,) * min(wanted or 0, 1)) for each in spelled]
    return PromptDelta(text, () if wanted is None else tuple(tokens))


class InMemoryTextStream(QueuedTextStream):
    """One scripted sequence."""

    def __init__(self, request: GenerationRequest, tokens: Sequence[Token]) -> None:
        super().__init__()
        self.cancelled = False
        self.prompt_tokens = len(_prompt_text(request).split())
        self._request = request
        self._tokens = tokens
        self._taken = 0
        self._echoed = False
        self._stops = StopSequences(request.settings.stop)
        forced = request.settings.forced_call
        self._forced = ForcedCallSplitter(forced.name, "call_0") if forced is not None else None

    def cancel(self) -> None:
        self.cancelled = True

    def step(self) -> bool:
        """Put the next token, and return False at the end. Called on the generator's thread only."""
        settings = self._request.settings
        if settings.echo and not self._echoed:
            self._echoed = True
            self.put(_as_prompt(self._request))
            return True
        if self.cancelled:
            return self._finish(FinishReason.CANCELLED)
        if self._taken == len(self._tokens):
            return self._finish(FinishReason.STOP, self._stops.flush())
        token = self._tokens[self._taken]
        self._taken += 1
        if isinstance(token, MlxkError):
            self.put(token)
            return False
        text, stopped = self._stops.feed(token)
        if stopped:
            return self._finish(FinishReason.STOP, text)
        if self._taken == settings.max_tokens:
            return self._finish(FinishReason.LENGTH, text + self._stops.flush())
        self._put_text(text)
        return True

    def _finish(self, reason: FinishReason, text: str = "") -> bool:
        self._put_text(text)
        for delta in self._forced.flush() if self._forced is not None else ():
            self.put(delta)
        limit = self._request.settings.max_tokens if reason is FinishReason.LENGTH else None
        usage, stop = Usage(self.prompt_tokens, self._taken), self._stops.found
        self.put(Finished(reason, usage, Timings(0.0, 0.0, 0.0), limit, stop_sequence=stop))
        return False

    def _put_text(self, text: str) -> None:
        if not text:
            return
        if self._forced is not None:
            for delta in self._forced.feed(text):
                self.put(delta)
            return
        wanted = self._request.settings.logprobs
        token = TokenAlternative(text, text.encode(), -0.5)
        self.put(TextDelta(text, () if wanted is None else (TokenLogprob(token, (token,) * min(wanted, 1)),)))


class InMemoryTextGenerator(TextGenerator):
    """Generates scripted text. Its prefix cache has an entry for each request.

    Args:
        answers: Returns the tokens of a sequence.
        step_seconds: Pause before each step.
        load_seconds: Duration of the first ``submit`` for each model.
        context_length: Context window in words of the prompt; None means no limit.
        vision: Whether its models accept images and audio.
    """

    def __init__(
        self,
        answers: Script = echo,
        step_seconds: float = 0.0,
        load_seconds: float = 0.0,
        *,
        context_length: int | None = None,
        vision: bool = True,
    ) -> None:
        self.requests: list[GenerationRequest] = []
        self.streams: list[InMemoryTextStream] = []
        self.responding = True
        self._answers = answers
        self._step_seconds = step_seconds
        self._load_seconds = load_seconds
        self._context_length, self._vision = context_length, vision
        self._loaded: dict[str, ModelHandle] = {}
        self._keep_alive: dict[str, float | None] = {}
        self._leaving: set[str] = set()
        """Names of models to unload once they are idle."""
        self._running: list[InMemoryTextStream] = []
        self._work = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, request: GenerationRequest) -> TextStream:
        request.settings.validate()
        if self._closed:
            raise ExecutionError("The engine is closed.")
        self._require_capacity(request)
        stream = InMemoryTextStream(request, self._answers(request))
        if request.model.name not in self._loaded:
            time.sleep(self._load_seconds)
        with self._work:
            self._loaded[request.model.name] = request.model
            self.requests.append(request)
            self.streams.append(stream)
            self._running.append(stream)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="in-memory-generator", daemon=True)
                self._thread.start()
            self._work.notify()
        return stream

    def load(self, request: GenerationRequest) -> None:
        if self._closed:
            raise ExecutionError("The engine is closed.")
        with self._work:
            self._loaded[request.model.name] = request.model
            if request.keep_alive_seconds is not None:
                finite = math.isfinite(request.keep_alive_seconds)
                self._keep_alive[request.model.name] = request.keep_alive_seconds if finite else None
                if request.keep_alive_seconds == 0:
                    del self._loaded[request.model.name]

    def close(self) -> None:
        with self._work:
            self._closed = True
            self._work.notify()
        if self._thread is not None:
            self._thread.join()

    def state(self, timeout_seconds: float) -> EngineState:
        models = tuple(self._loaded[name] for name in sorted(self._loaded))
        residents = tuple(ResidentModel(each, 0, self._keep_alive.get(each.name)) for each in models)
        return EngineState(self.responding, len(self._running), 0, models, residents=residents)

    def unload(self, model: ModelHandle | None = None, *, once_idle: bool = False) -> tuple[ModelHandle, ...]:
        with self._work:
            busy = {request.model.name for request in self.requests} if self._running else set()
            gone = [
                handle
                for name, handle in sorted(self._loaded.items())
                if name not in busy and (model is None or model == handle)
            ]
            for handle in gone:
                del self._loaded[handle.name]
            if once_idle:
                self._leaving |= {name for name in busy if model is None or name == model.name}
        return tuple(gone)

    def kept_prompts(self, tenant: str | None = None) -> KeptPrompts:
        kept = [each for each in self.requests if tenant in (None, each.tenant)]
        return KeptPrompts(len(kept), len(kept), 100)

    def forget_prompts(self, tenant: str | None = None) -> None:
        self.requests = [each for each in self.requests if tenant not in (None, each.tenant)]

    def _require_capacity(self, request: GenerationRequest) -> None:
        if not self._vision and (request.has_images or request.has_audio):
            raise CapabilityError(f"'{request.model.name}' takes text, not images and sound.")
        length = len(_prompt_text(request).split())
        if self._context_length is not None and length > self._context_length:
            raise ContextLengthError(
                f"The prompt has {length} tokens; the context window holds {self._context_length}."
            )

    def _run(self) -> None:
        while True:
            with self._work:
                while not self._running and not self._closed:
                    self._work.wait()
                running = list(self._running)
                if self._closed:
                    for stream in running:
                        stream.cancel()
            if self._closed and not running:
                return
            time.sleep(self._step_seconds)
            ended = [stream for stream in running if not stream.step()]
            with self._work:
                self._running = [stream for stream in self._running if stream not in ended]
                if not self._running:
                    for name in self._leaving:
                        self._loaded.pop(name, None)
                    self._leaving.clear()


def _prompt_text(request: GenerationRequest) -> str:
    if isinstance(request.prompt, Conversation):
        return " ".join(message.content for message in request.prompt.messages if message.content)
    return request.prompt if isinstance(request.prompt, str) else " ".join(map(str, request.prompt))

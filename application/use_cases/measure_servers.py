"""Measure a server under load, and compare two sides, each a model of a server or of this machine."""

import contextlib
import random
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

import attrs

from mlxk.application.generation_input import GenerationOptions
from mlxk.application.policy import require_text_model
from mlxk.application.ports.measuring import CompletionClient, CompletionServer, RemoteRequest
from mlxk.application.ports.system import Clock
from mlxk.application.ports.text_generator import STATE_SECONDS
from mlxk.application.use_cases.generate_text import GenerateText
from mlxk.application.use_cases.measure_speed import WORDS, MachineReader, Report, busy_notes
from mlxk.application.use_cases.model_tasks import LoadModel, identity_of
from mlxk.domain.benchmark import CACHED_SHARE, Level, Load, RemoteCompletion, Span
from mlxk.domain.comparison import LEAST_ROUNDS, Comparison, SideResult, Turn
from mlxk.domain.errors import ExecutionError, NetworkError, ValidationError
from mlxk.domain.generation.conversation import Conversation, Message, Role
from mlxk.domain.generation.request import Finished, ReasoningDelta, TextDelta, ToolCallDelta
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.hub import ModelPair
from mlxk.domain.models.model import ModelDetails
from mlxk.domain.speed import ServerSpeed

_INSTRUCTION = " Go on with this list of words, one a line, and do not stop."
_UNKNOWN_FIELD_STATUSES = (400, 422)
"""HTTP statuses of servers that reject an unknown field."""


@attrs.frozen
class MeasureServer:
    """Measures a server under load: concurrent clients, each of which sends a request after the other."""

    machine: MachineReader
    client: CompletionClient
    clock: Clock

    def __call__(
        self, server: CompletionServer, model: str | None, loads: Sequence[Load], repeats: int, report: Report
    ) -> ServerSpeed:
        """Measure every load: one request per client to warm up, then ``repeats`` requests per client that count.

        Every prompt consists of random words, so that no prefix cache helps.

        Args:
            server: The server.
            model: The server's name of a model; None for the only one that it lists.
            loads: The loads to measure, in this order.
            repeats: Requests per client, at least one.
            report: Called before each load.

        Raises:
            NetworkError: The server does not answer, or every request of the first warm-up failed.
            AccessDeniedError: The server rejects the API key.
            ExecutionError: No model was named, and the server lists several models or none.
        """
        machine = self.machine.read()
        server = self.client.identify(server)
        if model is None:
            model = only_model(self.client, server)
        steps, done = sum(load.streams * (repeats + 1) for load in loads), 0
        ignore_eos, notes = True, list(busy_notes(machine))
        levels: list[Level] = []
        load_seconds = None
        for load in loads:
            began = self.clock.now()
            report(f"{load.streams} at once", done, steps)
            warm_up = self._send(server, model, load, load.streams, ignore_eos=ignore_eos)
            if ignore_eos and all(each.status in _UNKNOWN_FIELD_STATUSES for each in warm_up):
                warm_up = self._send(server, model, load, load.streams, ignore_eos=False)
                if any(each.failure is None for each in warm_up):
                    ignore_eos = False
                    notes.append("The server does not take ignore_eos: its answers may end early.")
            if not levels and all(each.failure is not None for each in warm_up):
                raise NetworkError(
                    f"the server answers no request: {warm_up[0].failure}",
                    hint="Check its address, its key and the name of the model.",
                )
            if not levels:
                loads_stated = [each.stated.load for each in warm_up if each.stated and each.stated.load is not None]
                load_seconds = max(loads_stated, default=None)
            done += load.streams
            report(f"{load.streams} at once", done, steps)
            completions = self._send(server, model, load, load.streams * repeats, ignore_eos=ignore_eos)
            levels.append(Level.of(load, completions, Span(began, self.clock.now())))
            done += load.streams * repeats
        return ServerSpeed(model, machine, tuple(levels), (*notes, *_level_notes(levels)), load_seconds)

    def _send(
        self, server: CompletionServer, model: str, load: Load, count: int, *, ignore_eos: bool
    ) -> list[RemoteCompletion]:
        """Send ``count`` requests from as many threads as the load has streams; return the completions."""
        source = random.SystemRandom()
        prompts = [" ".join(source.choices(WORDS.split(), k=load.prompt_words)) + _INSTRUCTION for _ in range(count)]
        pending = deque(RemoteRequest(model, each, load.max_tokens, ignore_eos) for each in prompts)
        completions: list[RemoteCompletion] = []
        faults: list[Exception] = []

        def send_pending() -> None:
            while not faults:
                try:
                    request = pending.popleft()
                except IndexError:
                    return
                try:
                    completions.append(self.client.complete(server, request))
                except Exception as fault:  # noqa: BLE001 - raised by the thread that joins this one
                    faults.append(fault)

        # Daemons, so that an interrupt ends the program although a server may not answer for minutes.
        clients = [threading.Thread(target=send_pending, daemon=True) for _ in range(load.streams)]
        for each in clients:
            each.start()
        for each in clients:
            each.join()
        if faults:
            raise faults[0]
        return completions


def only_model(client: CompletionClient, server: CompletionServer) -> str:
    """Return the only model that a server lists.

    Raises:
        NetworkError, AccessDeniedError: As for ``CompletionClient.models``.
        ExecutionError: It lists several, or none.
    """
    names = client.models(server)
    if len(names) != 1:
        raise ExecutionError(
            "the server lists several models: name one" if names else "the server lists no model: name one",
            matches=tuple(sorted(names)),
        )
    return names[0]


def _level_notes(levels: Sequence[Level]) -> Iterator[str]:
    """Yield what limits the meaning of the figures, a sentence each."""
    successful = [each for each in levels if each.failed < each.requests]
    if any(each.completion_tokens is None for each in successful):
        yield "The server does not say how many tokens it generated: there are no figures by the token."
    if early := [each for each in successful if each.ends_early]:
        mean = round(sum(each.completion_tokens or 0 for each in early) / sum(each.succeeded for each in early))
        yield f"Answers ended before the limit of {early[0].load.max_tokens} tokens, after {mean} on average."
    if any(each.cuts_prompts for each in successful):
        yield "The server counts fewer tokens than the prompts have words: it has cut them."
    # The first tokens of a chat template are the same in every prompt.
    if any((each.cached_tokens or 0) > CACHED_SHARE * (each.prompt_tokens or 0) for each in successful):
        yield "The server took a part of the prompts from a cache: times to the first token are shorter by it."


QUESTIONS = (
    "Write a Python function that sorts a list of words by length.",
    "Explain in three sentences why the sky is blue.",
    "Name five things to check before a long journey by bicycle, each with a reason.",
)
"""The default questions of a comparison."""

_WARM_UP_TOKENS = 8

_LENGTHS_APART = 0.1
"""Relative difference in the lengths of answers from which total times are hard to compare."""


class Side(Protocol):
    """One side of a comparison; measured with the clock of this machine."""

    @property
    def model(self) -> str:
        """The name of its model."""

    @property
    def server(self) -> str | None:
        """The address of its server; None for this process."""

    def load(self) -> float | None:
        """Unload the model, load it, and return the seconds of loading; None when the server cannot be told to."""

    def ask(self, prompt: str, max_tokens: int) -> RemoteCompletion:
        """Return the measured answer to a message; a failure is part of it."""

    def memory_bytes(self) -> int | None:
        """Return the bytes of memory that the model takes; None when unknown."""

    def leave(self) -> None:
        """Unload the model, to free its memory for the other side."""


@attrs.frozen
class ServerSide(Side):
    """A model of a server."""

    client: CompletionClient
    address: CompletionServer
    name: str

    @property
    def model(self) -> str:
        return self.name

    @property
    def server(self) -> str | None:
        return self.address.url

    def load(self) -> float | None:
        self.leave()
        return self.client.load(self.address, self.name)

    def ask(self, prompt: str, max_tokens: int) -> RemoteCompletion:
        return self.client.complete(self.address, RemoteRequest(self.name, prompt, max_tokens))

    def memory_bytes(self) -> int | None:
        return self.client.memory_bytes(self.address, self.name)

    def leave(self) -> None:
        self.client.unload(self.address, self.name)


@attrs.frozen
class LocalSide(Side):
    """A model of this machine, loaded in this process."""

    generate: GenerateText
    load_model: LoadModel
    clock: Clock
    details: ModelDetails

    @property
    def model(self) -> str:
        return identity_of(self.details.description)

    @property
    def server(self) -> str | None:
        return None

    def load(self) -> float | None:
        self.leave()
        began = self.clock.monotonic()
        self.load_model(self.details.description)
        return self.clock.monotonic() - began

    def ask(self, prompt: str, max_tokens: int) -> RemoteCompletion:
        conversation = Conversation((Message(Role.USER, prompt),))
        options = GenerationOptions(GenerationSettings(max_tokens=max_tokens, temperature=0.0))
        began, first, last, text = self.clock.monotonic(), None, None, []
        (stream,) = self.generate(self.details, [conversation], options)
        usage = None
        with stream:
            for event in stream:
                if isinstance(event, TextDelta | ReasoningDelta | ToolCallDelta):
                    last = self.clock.monotonic()
                    first = last if first is None else first
                if isinstance(event, TextDelta):
                    text.append(event.text)
                if isinstance(event, Finished):
                    usage = event.usage
        if usage is None:
            raise ExecutionError("the completion has no end")
        counts = (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
        return RemoteCompletion(began, last or self.clock.monotonic(), first, *counts, text="".join(text))

    def memory_bytes(self) -> int | None:
        return self.generate.generator.state(STATE_SECONDS).peak_bytes or None

    def leave(self) -> None:
        self.generate.generator.unload(self.details.description.handle)
        self.generate.generator.forget_prompts()


@attrs.frozen
class CompareSpeed:
    """Compares two sides, which answer the same questions in turns."""

    machine: MachineReader
    client: CompletionClient
    clock: Clock
    generate: GenerateText
    load: LoadModel
    pairs: tuple[ModelPair, ...]
    """Equal models under their names on the hub and in another registry."""

    def paired(self, here: str | None, elsewhere: str | None, *, must_name: bool) -> tuple[str, str | None]:
        """Return the references of both models, a missing one derived from the other by the known pairs.

        Args:
            here: Reference to the local model as typed; None to derive it from the server's model.
            elsewhere: Name of the server's model as typed; None to derive it from the local model.
            must_name: Whether to derive a missing ``elsewhere``; otherwise it stays None, for the server's only model.

        Raises:
            ValidationError: A model must be derived, and the other one is in no known pair.
        """
        first = here or self._counterpart(elsewhere)
        second = elsewhere or (self._counterpart(here) if must_name else None)
        if first is None or (second is None and must_name):
            named = here or elsewhere
            message = f"it is not known which model is the same as '{named}'" if named else "no model is named"
            known = tuple(sorted(f"{each.here} = {each.elsewhere}" for each in self.pairs))
            raise ValidationError(message, hint="Name the models of both sides.", matches=known)
        return first, second

    def _counterpart(self, name: str | None) -> str | None:
        """Return the same model's name in the other registry; the owner may be missing from ``name``."""
        pairs = [(each.here, each.elsewhere) for each in self.pairs]
        for one, other in [*pairs, *((second, first) for first, second in pairs)]:
            if name is not None and name.casefold() in (one.casefold(), one.rpartition("/")[2].casefold()):
                return other
        return None

    def local(self, model: str) -> LocalSide:
        """Return the side of a model of this machine; raises as ``GenerateText``."""
        details = self.generate.describe.details(self.generate.resolve(model))
        require_text_model(details.description)
        return LocalSide(self.generate, self.load, self.clock, details)

    def remote(self, server: CompletionServer, model: str | None) -> ServerSide:
        """Return the side of a server's model; None for the only one that it lists. Raises as ``only_model``."""
        server = self.client.identify(server)
        return ServerSide(self.client, server, only_model(self.client, server) if model is None else model)

    def could_fetch(self, side: ServerSide) -> bool:
        """Whether a server lacks the model and can pull it; raises as ``CompletionClient.models``."""
        if not self.client.manages(side.address):
            return False
        listed = {each.removesuffix(":latest").casefold() for each in self.client.models(side.address)}
        return side.name.removesuffix(":latest").casefold() not in listed

    def __call__(
        self, first: Side, second: Side, questions: Sequence[str], max_tokens: int, rounds: int, report: Report
    ) -> Comparison:
        """Have both sides answer all questions in each round, one side after the other; the order alternates.

        In its turn a side loads its model, answers a short message to warm up, then the questions, and unloads the
        model, so that each side has the machine to itself. A first round does not count. Each question is preceded by
        a random number, so that no prefix cache helps.

        Args:
            first: Side A of the result.
            second: Side B.
            questions: The messages to answer.
            max_tokens: Limit of an answer.
            rounds: Rounds that count.
            report: Called before each turn.

        Raises:
            NetworkError: A server does not answer.
            MlxkError: See ``GenerateText``.
        """
        machine, source = self.machine.read(), random.SystemRandom()
        turns: tuple[list[Turn], list[Turn]] = ([], [])
        for index in range(rounds + 1):
            for place in (0, 1) if index % 2 else (1, 0):
                report(f"round {index}, {'AB'[place]}" if index else "to warm up", index, rounds + 1)
                turn = self._turn((first, second)[place], questions, max_tokens, source)
                if index:
                    turns[place].append(turn)
        one, other = (
            SideResult(side.model, side.server, tuple(own)) for side, own in zip((first, second), turns, strict=True)
        )
        notes = (*busy_notes(machine), *_limits((one, other), rounds))
        return Comparison(machine, tuple(questions), one, other, notes)

    def _turn(self, side: Side, questions: Sequence[str], max_tokens: int, source: random.Random) -> Turn:
        try:
            load = side.load()
            warm_up = side.ask(f"Request {_number(source)}. Say a few words.", min(max_tokens, _WARM_UP_TOKENS))
            answers = [side.ask(f"Request {_number(source)}. {each}", max_tokens) for each in questions]
            for each in (warm_up, *answers):
                if each.failure is not None:
                    where = "" if side.server is None else f" at {side.server}"
                    raise NetworkError(f"'{side.model}'{where} does not answer: {each.failure}")
            return Turn.of(load, side.memory_bytes(), answers)
        finally:
            with contextlib.suppress(NetworkError):  # so that an earlier failure is the one that is raised
                side.leave()


def _number(source: random.Random) -> int:
    """Return a random number of five digits, so that all prompts have the same length."""
    return source.randint(10000, 99999)


def _limits(sides: Sequence[SideResult], rounds: int) -> Iterator[str]:
    """Yield what limits the meaning of a comparison, a sentence each."""
    if rounds < LEAST_ROUNDS:
        yield f"Fewer than {LEAST_ROUNDS} rounds support no winner."
    lengths = [[answer.tokens for turn in side.turns for answer in turn.answers] for side in sides]
    known = [sum(each for each in own if each is not None) for own in lengths if None not in own]
    if len(known) == 2 and abs(known[0] - known[1]) > _LENGTHS_APART * max(known):
        yield f"All answers of A have {known[0]} tokens, those of B {known[1]}: compare tokens/s rather than totals."
    for name, side in zip("AB", sides, strict=True):
        if any(turn.load_seconds is None for turn in side.turns):
            yield f"The server of {name} cannot be told to load a model: the totals are those of the answers."

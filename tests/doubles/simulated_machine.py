"""A simulated engine: forward passes take the time of a cost formula, on a clock that only they advance.

engine = SimulatedEngine(LAPTOP)            # drives the chunk policy as the scheduler does
engine.answer(8)                            # eight sequences that decode without end
prompt = engine.prompt(4000)
engine.run_until(lambda: prompt.done)
engine.worst_wait                           # longest wait of a sequence between two tokens, seconds
"""

from collections.abc import Callable
from typing import Any

import attrs

from mlxk.adapters.mlx.chunk_policy import SINGLE_CHUNK_CPU, SINGLE_CHUNK_GPU, ChunkPolicy, PassCosts, WaitingPrompt


@attrs.frozen
class Machine:
    """The costs of forward passes of one model on one machine, in seconds."""

    name: str
    pass_seconds: float
    """Cost of any pass: reading the weights, starting the kernels."""
    row_seconds: float
    """Cost per sequence of a decoding step."""
    token_seconds: float
    """Cost per token of a prefill chunk."""
    attention_seconds: float
    """Cost per pair of a token and an earlier token that it attends to."""
    single_chunk: int
    """See ``ChunkPolicy``."""

    def step(self, rows: int) -> float:
        """Return the seconds of a decoding step."""
        return self.pass_seconds + rows * self.row_seconds

    def chunk(self, tokens: int, position: int) -> float:
        """Return the seconds of a prefill chunk that begins at a position."""
        attended = position + tokens / 2
        return self.pass_seconds + tokens * (self.token_seconds + attended * self.attention_seconds)


CPU = Machine("CPU, 1 M parameters", 7e-3, 2.6e-3, 1e-3, 1e-6, SINGLE_CHUNK_CPU)
"""Measured on two busy cores without an optimised BLAS, with a random llama of 4 layers and width 128."""

LAPTOP = Machine("laptop GPU, 8 B in 4 bits", 15e-3, 1e-3, 1.4e-3, 50e-9, SINGLE_CHUNK_GPU)
"""4.5 GB of weights at 300 GB/s; 16 GFLOP a token at 11 TFLOPS; 0.5 MFLOP for a token attended to at 10 TFLOPS."""

DATA_CENTRE = Machine("data-centre GPU, 8 B in bf16", 6e-3, 50e-6, 40e-6, 2.6e-9, SINGLE_CHUNK_GPU)
"""16 GB of weights at 3.3 TB/s and 1 ms for kernels; 16 GFLOP a token at 400 TFLOPS, attention at 200 TFLOPS."""

MACHINES = (CPU, LAPTOP, DATA_CENTRE)


@attrs.define(eq=False)
class SimulatedPrompt(WaitingPrompt):
    """A prompt without tokens: only its length and how much of it is computed."""

    length: int
    model_costs: PassCosts
    position: int = 0
    """Tokens computed."""
    chunks: list[tuple[int, float]] = attrs.field(factory=list)
    """Tokens of each chunk, and the time when it was computed."""

    @property
    def prefill_remaining(self) -> int:
        return self.length - self.position

    @property
    def prefill_position(self) -> int:
        return self.position

    @property
    def costs(self) -> PassCosts:
        return self.model_costs

    @property
    def done(self) -> bool:
        """Whether all tokens are computed."""
        return self.position == self.length


class SimulatedEngine:
    """Drives the chunk policy step by step, as the scheduler does.

    Args:
        machine: The costs of passes.
        learns: Whether the policy learns from measured costs; otherwise chunks keep their initial size.
        together: Whether short prompts share passes.
        disturb: Returns the factor by which a pass takes longer, for the number of passes before it.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        learns: bool = True,
        together: bool = True,
        disturb: Callable[[int], float] = lambda passes: 1.0,
    ) -> None:
        self.machine = machine
        self.costs = PassCosts()
        self.policy: ChunkPolicy[SimulatedPrompt] = ChunkPolicy(machine.single_chunk if learns else SINGLE_CHUNK_CPU)
        self.now = 0.0
        self.answers = 0
        self.prompts: list[SimulatedPrompt] = []
        self.waits: list[float] = []
        """For each decoding step, the seconds that sequences waited for it since the previous one."""
        self._learns = learns
        self._together = together
        self._disturb = disturb
        self._passes = 0
        self._waited = 0.0

    def answer(self, count: int) -> None:
        """Set the number of sequences that decode without end."""
        self.answers = count

    def prompt(self, length: int) -> SimulatedPrompt:
        """Queue a prompt that does not decode."""
        prompt = SimulatedPrompt(length, self.costs)
        self.prompts.append(prompt)
        return prompt

    def run_until(self, condition: Callable[[], Any], most_steps: int = 100_000) -> None:
        """Run steps until a condition holds."""
        for _ in range(most_steps):
            if condition():
                return
            self.step()
        raise AssertionError("the condition never came true")

    def step(self) -> None:
        """Run one decoding step, then a turn of prefill chunks."""
        if self.answers:
            self.waits.append(self._waited)
            seconds = self._pass(self.machine.step(self.answers))
            if self._learns:
                self.costs.observe_step(self.answers, seconds)
        began = self.now
        waiting = [prompt for prompt in self.prompts if not prompt.done]
        if waiting:
            self.policy.begin_turn(len(waiting), [(self.costs, self.answers)] if self.answers else [])
            ready = False
            while (prompt := self.policy.choose([each for each in waiting if not each.done], ready=ready)) is not None:
                others = [each for each in waiting if not each.done and each is not prompt]
                group = self.policy.together(prompt, others) if self._together else []
                if len(group) > 1:
                    self._compute_together(group)
                else:
                    self._compute(prompt, self.policy.tokens(prompt))
                ready = ready or prompt.done
        self._waited = self.now - began

    @property
    def worst_wait(self) -> float:
        """The longest wait, seconds."""
        return max(self.waits)

    def _compute(self, prompt: SimulatedPrompt, tokens: int) -> None:
        seconds = self._pass(self.machine.chunk(tokens, prompt.position))
        if self._learns:
            self.costs.observe_chunk(tokens, prompt.position, seconds)
        self.policy.spend(prompt, tokens, seconds)
        prompt.position += tokens
        prompt.chunks.append((tokens, self.now))

    def _compute_together(self, prompts: list[SimulatedPrompt]) -> None:
        tokens = len(prompts) * max(prompt.prefill_remaining for prompt in prompts)
        seconds = self._pass(self.machine.chunk(tokens, 0))
        self.policy.spend(prompts[0], tokens, seconds)
        for prompt in prompts:
            prompt.chunks.append((prompt.prefill_remaining, self.now))
            prompt.position = prompt.length

    def _pass(self, seconds: float) -> float:
        seconds *= self._disturb(self._passes)
        self._passes += 1
        self.now += seconds
        return seconds

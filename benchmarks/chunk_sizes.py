"""What running answers wait for prompts, and what prompts lose by it, on three simulated machines.

    python benchmarks/chunk_sizes.py

Nothing is computed and the clock is simulated, so that the table is the same everywhere. What the machines' passes cost
is in ``tests/doubles/simulated_machine.py``. Each machine computes a prompt of 8,000 tokens beside 1, 8 and 32 running
answers, with chunks of fixed sizes (64 tokens beside others, 256 alone) and with those that the policy chooses; and 16
prompts that come together beside one answer, each by itself and with passes that they share.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from doubles.simulated_machine import MACHINES, Machine, SimulatedEngine

from mlxk.adapters.mlx.chunk_policy import SINGLE_CHUNK_CPU

PROMPT = 8000
ANSWERS = (1, 8, 32)
BURST = 16
LENGTHS = (30, 100, 300)
"""Tokens of prompts that come together."""


def alone(machine: Machine, *, learns: bool) -> float:
    """Return the tokens per second of a prompt that is alone."""
    engine = SimulatedEngine(machine, learns=learns)
    prompt = engine.prompt(PROMPT)
    engine.run_until(lambda: prompt.done)
    return PROMPT / engine.now


def beside(machine: Machine, answers: int, *, learns: bool) -> tuple[int, float, float]:
    """Return the most usual chunk, the worst wait in seconds and the tokens per second, beside running answers."""
    engine = SimulatedEngine(machine, learns=learns)
    engine.answer(1)
    first = engine.prompt(2000)
    engine.run_until(lambda: first.done)
    engine.answer(answers)
    for _ in range(5):
        engine.step()
    engine.waits.clear()
    began, prompt = engine.now, engine.prompt(PROMPT)
    engine.run_until(lambda: prompt.done)
    sizes = [tokens for tokens, _ in prompt.chunks]
    return max(set(sizes), key=sizes.count), engine.worst_wait, PROMPT / (engine.now - began)


def burst(machine: Machine, length: int, *, together: bool) -> float:
    """Return the seconds until all of some prompts are computed that come together beside one answer."""
    engine = SimulatedEngine(machine, together=together)
    engine.answer(1)
    first = engine.prompt(4000)
    engine.run_until(lambda: first.done)
    began, prompts = engine.now, [engine.prompt(length) for _ in range(BURST)]
    engine.run_until(lambda: all(prompt.done for prompt in prompts))
    return engine.now - began


def main() -> None:
    """Print two tables in Markdown."""
    print("| machine | answers | chunk | worst wait | in steps | prompt, tokens/s | lost beside alone |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for machine in MACHINES:
        best = alone(machine, learns=True)
        before = alone(machine, learns=False)
        print(
            f"| {machine.name} | 0 | {SINGLE_CHUNK_CPU} → {machine.single_chunk} | | | {before:,.0f} → {best:,.0f} | |"
        )
        for answers in ANSWERS:
            sides = [beside(machine, answers, learns=learns) for learns in (False, True)]
            columns = [
                " → ".join(f"{size}" for size, _, _ in sides),
                " → ".join(f"{wait * 1000:,.0f}" for _, wait, _ in sides) + " ms",
                " → ".join(f"{wait / machine.step(answers):.1f}" for _, wait, _ in sides),
                " → ".join(f"{speed:,.0f}" for _, _, speed in sides),
                " → ".join(f"{1 - speed / best:.0%}" for _, _, speed in sides),
            ]
            print(f"| {machine.name} | {answers} | " + " | ".join(columns) + " |")
    print()
    print(f"| machine | {BURST} prompts of | computed in | times faster |")
    print("|---|--:|--:|--:|")
    for machine in MACHINES:
        for length in LENGTHS:
            apart, together = (burst(machine, length, together=each) for each in (False, True))
            seconds = f"{apart * 1000:,.0f} → {together * 1000:,.0f} ms"
            print(f"| {machine.name} | {length} tokens | {seconds} | {apart / together:.2f} |")


if __name__ == "__main__":
    main()

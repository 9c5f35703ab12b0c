"""The flags that shape sampling, and the settings they make."""

import argparse
from typing import TYPE_CHECKING

from mlxk.entrypoints.cli import computing_flags

if TYPE_CHECKING:
    from mlxk.domain.generation import Effort, GenerationSettings

EFFORTS = ("low", "medium", "high")
"""The values of ``Effort``, which is not imported to tell the flags."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sampling flags."""
    group = parser.add_argument_group("sampling", "What is not given is as the model's generation_config says.")
    group.add_argument("--max-tokens", type=int, metavar="N", help="most tokens to generate")
    group.add_argument("--temperature", type=float, metavar="F", help="0 always takes the likeliest token")
    group.add_argument("--top-p", type=float, metavar="F", help="sample from the likeliest tokens of this probability")
    group.add_argument("--top-k", type=int, metavar="N", help="sample from the N likeliest tokens; 0 is off")
    group.add_argument("--min-p", type=float, metavar="F", help="drop tokens below this share of the likeliest one")
    group.add_argument("--repetition-penalty", type=float, metavar="F", help="above 1 discourages repeating")
    group.add_argument("--presence-penalty", type=float, metavar="F", help="discourages tokens generated before")
    group.add_argument("--frequency-penalty", type=float, metavar="F", help="the same, by how often")
    group.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text")
    group.add_argument("--json-schema", metavar="FILE", help="the answer is JSON that is valid against this schema")
    group.add_argument("--thinking-budget", type=int, metavar="N", help="most tokens of reasoning before the answer")
    group.add_argument("--reasoning-effort", choices=EFFORTS, help="how much to reason, where the model knows degrees")
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")


def settings(arguments: argparse.Namespace) -> "GenerationSettings":
    """Return the generation settings of a command line."""
    from mlxk.domain.generation import GenerationSettings

    return GenerationSettings(
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        min_p=arguments.min_p,
        repetition_penalty=arguments.repetition_penalty,
        presence_penalty=arguments.presence_penalty,
        frequency_penalty=arguments.frequency_penalty,
        seed=arguments.seed,
        stop=tuple(arguments.stop),
        thinking_budget=arguments.thinking_budget,
        grammar=computing_flags.grammar(arguments),
    )


def effort(arguments: argparse.Namespace) -> "Effort | None":
    """Return how much the model is to reason."""
    from mlxk.domain.generation import Effort

    return None if arguments.reasoning_effort is None else Effort(arguments.reasoning_effort)

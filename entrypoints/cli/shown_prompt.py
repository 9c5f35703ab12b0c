"""``mlxk run … --show-prompt``: what a model would get, and how many tokens that are, without generating."""

import argparse
from typing import TYPE_CHECKING

from mlxk.application.generation_options import GenerationOptions, Prompt
from mlxk.application.ports.model_tokenizer import TokenizedText
from mlxk.entrypoints.cli.exit_status import DONE
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.cli.progress import Spinner
from mlxk.entrypoints.cli.render.formatting import counted

if TYPE_CHECKING:
    from mlxk.entrypoints.container import Container


def show_prompt(
    arguments: argparse.Namespace,
    typed: str,
    prompt: Prompt,
    options: GenerationOptions,
    container: "Container",
    output: Output,
) -> int:
    """Print the rendered text on standard output, unchanged, and the number of its tokens on standard error.

    Args:
        arguments: The command line.
        typed: The prompt in the JSON document.
        prompt: What a completion would begin with.
        options: How it would be generated.
        container: The program.
        output: Where to print.
    """
    with Spinner(output, "Loading the tokenizer"):
        found = container.use_cases.tokenize_text()(arguments.model, prompt, options)
    shown, notes = found[0], list(found[0].notes)
    if len(found) > 1:
        notes.append(f"This is the first of {len(found)} prompts, one for each chunk of images.")
    if output.as_json:
        data: dict[str, object] = {
            "model": arguments.model,
            "prompt": typed,
            "text": shown.text,
            "tokens": list(shown.tokens),
            "token_count": len(shown.tokens),
        }
        output.document("run", {**data, "notes": notes} if notes else data)
        return DONE
    output.text(shown.text)
    if output.interactive and not shown.text.endswith("\n"):
        output.line()
    for note in (_count(shown), *notes):
        output.note(f"[{note}]")
    return DONE


def _count(shown: TokenizedText) -> str:
    count = len(shown.tokens)
    window = "" if shown.context_length is None else f" of the {shown.context_length} of the context window"
    return f"{counted(count, 'token')}{window}"

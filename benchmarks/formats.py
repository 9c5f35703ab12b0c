"""What our format layer costs: parsing outputs, and what it does once a request, against a decode step.

    python benchmarks/formats.py [--rounds N]

The decode step is mlx-lm's own, of a random llama (fp32, 29 million parameters), one sequence. The layer is measured in
processor time: the parser of each family on text and on calls, in pieces of four characters, about a token; building a
parser; telling a model's formats from its template and vocabulary, which happens once a model; and, apart, rendering a
chat template and tokenizing the prompt. Figures are medians over the rounds.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import mlx.core as mx
from grammar import random_model
from mlx_lm.generate import BatchGenerator

from mlxk.adapters.mlx.prompting.templates import PromptRenderer
from mlxk.domain.formats.family_formats import detect_syntaxes
from mlxk.domain.formats.output_parser import OutputParser
from mlxk.domain.formats.reasoning import detect_reasoning
from mlxk.domain.formats.tool_arguments import Tools
from mlxk.domain.formats.tool_calls import ToolCallFormat
from mlxk.domain.generation.conversation import Conversation, Message, Role

PIECE = 4
"""Characters of a piece, about those of a token."""

PARAMETERS = {"type": "object", "properties": {"path": {"type": "string"}, "content": {"type": "string"}}}
TOOLS = tuple(
    json.dumps({"type": "function", "function": {"name": name, "description": "x" * 80, "parameters": PARAMETERS}})
    for name in ("write_file", *(f"tool_{index}" for index in range(30)))
)
TEXT = "The weather in Paris is mild today, with a little rain [1] in the {morning}. " * 30
CONTENT = "if count < 3: values = [{x: 1}]  # a comment; " * 40
JSON = json.dumps({"name": "write_file", "arguments": {"path": "a.py", "content": CONTENT}})
FAMILIES = {
    "Qwen, with reasoning": ("<think></think><tool_call>", f"<tool_call>\n{JSON}\n</tool_call>"),
    "Qwen3-Coder": (
        "<tool_call><function=<parameter=",
        f"<tool_call>\n<function=write_file>\n<parameter=path>\na.py\n</parameter>\n<parameter=content>\n{CONTENT}\n"
        "</parameter>\n</function>\n</tool_call>",
    ),
    "Llama 3": ("<|python_tag|>", JSON),
    "Mistral": ("[TOOL_CALLS]", f"[TOOL_CALLS]write_file[ARGS]{json.dumps({'path': 'a', 'content': CONTENT})}"),
}
"""The marks of a template, and a call."""

TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}{% for m in messages %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


def median_micros(work: Callable[[], object], rounds: int, repeats: int = 1) -> float:
    """Return the processor time of one repeat of some work, microseconds."""
    taken = []
    for _ in range(rounds):
        began = time.process_time()
        for _ in range(repeats):
            work()
        taken.append((time.process_time() - began) / repeats * 1e6)
    return statistics.median(taken)


def parser_of(marks: str) -> OutputParser:
    """Return a parser as a request makes one."""
    return OutputParser((), detect_reasoning(marks, ()), ToolCallFormat(detect_syntaxes(marks, ()), Tools(TOOLS)))


def parse(marks: str, text: str) -> None:
    """Parse an output in pieces."""
    parser = parser_of(marks)
    for start in range(0, len(text), PIECE):
        parser.feed(text[start : start + PIECE])
    parser.flush()


def decode_micros(rounds: int, tokens: int = 40) -> float:
    """Return the processor time of one decode step of the random model, microseconds."""
    model, _ = random_model()
    taken = []
    for _ in range(rounds):
        generator = BatchGenerator(model, completion_batch_size=1)
        generator.insert([[5, 6, 7, 8]], max_tokens=[tokens])
        generator.next_generated()
        began = time.process_time()
        count = 0
        while generator.next_generated():
            count += 1
        taken.append((time.process_time() - began) / max(count, 1) * 1e6)
        generator.close()
    mx.clear_cache()
    return statistics.median(taken)


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=15)
    rounds = options.parse_args().rounds
    step = decode_micros(max(3, rounds // 3))
    print(f"a decode step: {step:.0f} µs of processor time")
    for family, (marks, call) in FAMILIES.items():
        built = median_micros(lambda marks=marks: parser_of(marks), rounds, 20)
        parts = []
        for name, text in (("text", TEXT), ("call", call)):
            count = -(-len(text) // PIECE)
            each = (median_micros(lambda marks=marks, text=text: parse(marks, text), rounds) - built) / count
            parts.append(f"{name} {each:.1f} µs a token ({100 * each / step:.2f} % of a step)")
        print(f"{family}: {', '.join(parts)}; parser and 31 tools {built:.0f} µs ({built / step:.2f} steps)")
    _, tokenizer = random_model()
    vocabulary = tokenizer.get_vocab()
    once = median_micros(
        lambda: (detect_syntaxes(TEMPLATE, vocabulary), detect_reasoning(TEMPLATE, vocabulary)), rounds
    )
    print(f"telling the formats of a model, once: {once:.0f} µs")
    tokenizer.chat_template = TEMPLATE
    renderer = PromptRenderer(tokenizer)
    messages = tuple(Message(Role.USER if index % 2 == 0 else Role.ASSISTANT, TEXT) for index in range(9))
    prompt = Conversation(messages, TOOLS)
    renderer.render(prompt)
    whole = median_micros(lambda: renderer.render(prompt), rounds)
    text = renderer.render(prompt).text
    tokenized = median_micros(lambda: tokenizer.encode(text, add_special_tokens=False), rounds)
    began = time.perf_counter()
    for _ in range(rounds):
        renderer.render(prompt)
    elapsed = (time.perf_counter() - began) / rounds * 1e6
    print(
        f"apart: a prompt of {len(text)} characters with 31 tools: rendered and tokenized {whole:.0f} µs here"
        f" ({elapsed:.0f} µs by the clock, the rendering process included), tokenizing alone {tokenized:.0f} µs"
    )


if __name__ == "__main__":
    main()

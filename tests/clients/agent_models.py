"""Writes the models of the agents' tests: each calls a tool, most to read note.txt, then says what its result is.

    python tests/clients/agent_models.py FOLDER

Run by the interpreter of the program under test, which has the libraries that it needs.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from models.scripted_model import write_model  # noqa: E402 - needs the path above

NOTE = "@@NOTE@@"
"""Stands in note.txt; a model that has read it answers."""

SAID = "The note is about a heron."

TEMPLATE = """{%- if tools %}<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}

{% endif %}# Tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Write <tool_call>{"name": NAME, "arguments": OBJECT}</tool_call> for a call.<|im_end|>
{% elif messages[0].role == 'system' %}<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif %}{% for message in messages %}{% if message.role == 'system' %}{% if not loop.first %}{{
raise_exception('System message must be at the beginning.') }}{% endif %}{% elif message.role == 'tool'
%}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% else %}<|im_start|>{{ message.role }}
{% if message.reasoning_content %}<think>
{{ message.reasoning_content }}
</think>

{% endif %}{{ message.content }}{% for call in message.tool_calls or [] %}
<tool_call>
{{ call.function | tojson }}
</tool_call>{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""In the manner of Qwen's, which takes a system message at the beginning only."""

CALLS = {
    "reads-by-shell": ("exec_command", {"cmd": "cat note.txt"}),
    "reads-by-bash": ("Bash", {"command": "cat note.txt", "description": "Read the note"}),
    "reads-by-cline": ("run_commands", {"commands": ["cat note.txt"]}),
    "reads-by-continue": ("Read", {"filepath": "note.txt"}),
    "reads-by-gptme": ("shell", {"command": "cat note.txt"}),
    "reads-by-opencode": ("bash", {"command": "cat note.txt"}),
    "reads-by-pi": ("read", {"path": "note.txt"}),
    "reads-by-qwen-code": ("run_shell_command", {"command": "cat note.txt", "is_background": False}),
    "adds": ("add", {"a": 1, "b": 2}),
    "closes": ("multi_agent_v1__close_agent", {"target": NOTE, "id": NOTE}),
    "patches": ("apply_patch", {"input": f"*** Begin Patch\n*** Add File: made.txt\n+{NOTE}\n*** End Patch\n"}),
    "small": ("exec_command", {"cmd": "cat note.txt"}),
}
"""Function and arguments of the tool that each model calls."""

UNSUPPORTED = "unsupported call"
"""What agents say about a call of a tool that they do not have."""

ANSWERS = {"adds": '{"answer": 3}'}
"""What models say about a result, where it is not about a note."""


def main(folder: Path) -> None:
    """Write all of them."""
    corpus = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    for name, (function, arguments) in CALLS.items():
        call = json.dumps({"name": function, "arguments": arguments})
        write_model(
            folder / name,
            TEMPLATE,
            f"<think>\nThe note has to be read.\n</think>\n\n<tool_call>\n{call}\n</tool_call>",
            {NOTE: ANSWERS.get(name, SAID), UNSUPPORTED: "The call was refused!"},
            special=("<|im_start|>",),
            added=("<think>", "</think>", "<tool_call>", "</tool_call>"),
            context=2048 if name == "small" else 131072,
            corpus=corpus,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))

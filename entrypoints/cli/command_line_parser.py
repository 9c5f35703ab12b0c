"""The argument parser: argparse, with errors that name the nearest command, flag or value, and examples.

``normalized`` first rewrites forms that argparse cannot parse.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from mlxk.domain.errors import UsageError
from mlxk.domain.text import MAX_SUGGESTIONS, nearest
from mlxk.entrypoints.cli.synonyms import COMMAND_SYNONYMS, FLAG_SYNONYMS, HUB_FLAGS, UNNEEDED_FLAGS

if TYPE_CHECKING:
    from _typeshed import SupportsWrite


def closest(typed: str, known: Iterable[str], synonyms: Mapping[str, str] | None = None) -> list[str]:
    """Return the known words that begin with a typed one, else those with a similar spelling; at most three.

    Args:
        typed: What the user typed.
        known: The words that exist.
        synonyms: Known words by other words of the same meaning; a synonym is returned alone.
    """
    words = list(known)
    synonym = (synonyms or {}).get(typed.lower())
    if synonym in words:
        return [synonym]
    completions = [word for word in words if len(typed.strip("-")) > 1 and word.startswith(typed)]
    bare = {word.lstrip("-"): word for word in reversed(words)}  # with their dashes, all short flags are similar
    return completions[:MAX_SUGGESTIONS] or [bare[word] for word in nearest(typed.lstrip("-"), bare)]


def did_you_mean(candidates: Iterable[str]) -> str:
    """Return a question such as ``Did you mean a or b?``; empty without candidates."""
    joined = " or ".join(candidates)
    return f"Did you mean {joined}?" if joined else ""


MODEL_FLAGS = ("-m", "--model")


def own_words(arguments: Sequence[str]) -> list[str]:
    """Return a command line up to ``--``, after which no word is a flag of this program."""
    return list(arguments[: arguments.index("--")] if "--" in arguments else arguments)


def typed_flags(parser: argparse.ArgumentParser, words: Sequence[str]) -> dict[str, str]:
    """Return the typed spelling of each long flag, by the attribute that it sets; ``--no-`` forms are left out."""
    typed = {word.partition("=")[0] for word in words}
    return {
        action.dest: flag
        for action in parser._actions
        for flag in action.option_strings
        if flag in typed and flag.startswith("--") and not flag.startswith("--no-")
    }


def normalized(arguments: Sequence[str]) -> list[str]:
    """Return a command line with ``help`` and ``version`` as flags, and the model of ``run -m MODEL`` as a positional.

    argparse has no positional that can also be given with a flag.
    """
    match [word for word in arguments if word != "--json"]:
        case ["help", *rest]:
            return [*rest[:1], "--help"]
        case ["version"]:
            return ["--version", *(word for word in arguments if word == "--json")]
        case ["run", *_]:
            return _with_positional_model(list(arguments))
    return list(arguments)


def _with_positional_model(arguments: list[str]) -> list[str]:
    end = len(own_words(arguments))
    for index, word in enumerate(arguments[:end]):
        flag, separator, value = word.partition("=")
        if flag in MODEL_FLAGS and (separator or index + 1 < end):
            count = 1 if separator else 2
            model = value if separator else arguments[index + 1]
            rest = arguments[:index] + arguments[index + count :]
            return ["run", model, *rest[1:]] if rest[0] == "run" else [rest[0], "run", model, *rest[2:]]
    return arguments


_EXPLICIT = "ignored explicit argument"
_DASHED = (_EXPLICIT, "expected one argument")
"""Messages of argparse that a value with a leading dash causes, among other mistakes."""

_MISSING = "the following arguments are required"


EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "list": ("mlxk list", "mlxk list -a --health", "mlxk list 'qwen*'", "mlxk list ./"),
    "show": (
        "mlxk show demo",
        "mlxk show demo --files",
        "mlxk show demo --config --json",
        "mlxk show ORG/NAME --remote",
    ),
    "health": ("mlxk health", "mlxk health demo --deep"),
    "doctor": (
        "mlxk doctor",
        "mlxk doctor --online",
        "mlxk doctor --report",
        "mlxk doctor --hosts hosts.json --model NAME",
    ),
    "run": (
        'mlxk run demo "What is mlxk?"',
        "mlxk run demo",
        "mlxk run demo --keep",
        "mlxk run --continue",
        'mlxk run mlx-community/Llama-3.2-1B-Instruct-4bit "Hello" --pull',
        'mlxk run demo "Summarize this" < notes.txt',
        'mlxk run demo-vision "What color is it?" --image demo-vision/blue-square.jpg',
        "mlxk run demo-speech --audio demo-speech/hello.wav",
    ),
    "chats": ("mlxk chats", "mlxk chats rm NAME", "mlxk chats rm --all --yes"),
    "search": ("mlxk search llama 3b", "mlxk search qwen coder --mlx --limit 5"),
    "recommend": ("mlxk recommend", "mlxk recommend --for code", "mlxk recommend --for vision --online"),
    "pull": ("mlxk pull mlx-community/Llama-3.2-3B-Instruct-4bit", "mlxk pull ORG/NAME@REVISION --dry-run"),
    "outdated": ("mlxk outdated", "mlxk outdated llama --all"),
    "rm": ("mlxk rm ORG/NAME", "mlxk rm 'test-*' --dry-run", "mlxk rm ORG/NAME@REVISION -y"),
    "du": ("mlxk du", "mlxk du llama --revisions"),
    "prune": ("mlxk prune --dry-run", "mlxk prune", "mlxk prune llama --only partial --yes"),
    "clone": ("mlxk clone demo ./my-demo", "mlxk clone ORG/NAME@REVISION ./copy"),
    "convert": (
        "mlxk convert demo ./demo-8bit --quantize 8",
        "mlxk convert ./demo-8bit ./demo-full --dequantize",
        "mlxk convert ORG/NAME ./repaired --repair-index",
    ),
    "tune": (
        "mlxk tune demo facts.jsonl --into ./taught",
        "mlxk tune demo ./data --into ./taught --epochs 20 --rank 16",
        "mlxk tune demo facts.jsonl --into ./taught --resume",
    ),
    "fuse": (
        "mlxk fuse ./taught --into ./taught-whole",
        "mlxk fuse ./adapter --model ORG/NAME --into ./whole --dequantize",
    ),
    "eval": (
        "mlxk eval demo facts.jsonl",
        "mlxk eval demo facts.jsonl --adapter ./taught",
        "mlxk eval ./taught ./data --split test --limit 100",
    ),
    "push": ("mlxk push ./my-demo ORG/NAME --check-only", "mlxk push ./my-demo ORG/NAME --create --private"),
    "bench": (
        "mlxk bench demo",
        "mlxk bench demo --prompt-tokens 128,512 --generate 64 --streams 1,8 --markdown",
        "mlxk bench --url http://127.0.0.1:8000 demo --streams 1,4,16",
        "mlxk bench --against ollama:qwen2.5-coder:1.5b",
        "mlxk bench report monday.jsonl --compare tuesday.jsonl",
    ),
    "monitor": (
        "mlxk monitor -- mlxk run demo hello",
        "mlxk monitor -o samples.jsonl -- mlxk bench demo",
        "mlxk monitor --interval 5 --seconds 60 > samples.jsonl",
        "mlxk monitor plot samples.jsonl -o samples.html",
    ),
    "top": ("mlxk top", "mlxk top --url http://127.0.0.1:8000", "mlxk top --readings 3 --json"),
    "serve": (
        "mlxk serve",
        "mlxk serve -m demo --port 8080",
        "mlxk serve --background",
        "mlxk serve --host 0.0.0.0 --api-key-file keys.txt",
    ),
    "launch": (
        "mlxk launch",
        "mlxk launch codex",
        'mlxk launch claude -m ORG/NAME -- -p "What does this project do?"',
        "mlxk launch zed --print",
    ),
    "ps": ("mlxk ps", "mlxk ps --json"),
    "stop": ("mlxk stop demo", "mlxk stop --all"),
    "logs": ("mlxk logs", "mlxk logs --follow"),
    "service": (
        "mlxk service install -- --port 8000 --model demo",
        "mlxk service install --print",
        "mlxk service status",
        "mlxk service uninstall",
    ),
    "embed": ('mlxk embed MODEL "a text"', "mlxk embed MODEL --json < texts.txt"),
    "rerank": (
        'mlxk rerank MODEL "how do plants eat?" passages.txt',
        'mlxk rerank MODEL "how do plants eat?" passages.jsonl --top-n 3 --json',
        'mlxk rerank MODEL "how do plants eat?" - < passages.txt',
    ),
    "say": (
        'mlxk say MODEL "Hello there." -o hello.wav',
        "mlxk say MODEL - -o book.mp3 --voice NAME < chapter.txt",
        "mlxk say MODEL 'Hello.' -o hello.wav --clone-voice me.wav --clone-text 'What I say in it.'",
        'mlxk say MODEL "Hello there." --speed 1.2 > hello.wav',
    ),
    "embed-serve": ("mlxk embed-serve MODEL",),
    "alias": ("mlxk alias", "mlxk alias fast demo", "mlxk alias rm fast"),
    "profile": (
        'mlxk profile poet --model demo --system "You answer in rhymes." --temperature 0.9',
        "mlxk profile poet --unset temperature",
        "mlxk profile rm poet",
    ),
    "config": ("mlxk config", "mlxk config edit", "mlxk config show --for 'serve --port 9000'"),
    "schema": ("mlxk schema", "mlxk schema list"),
    "completion": ('eval "$(mlxk completion bash)"', 'eval "$(mlxk completion zsh)"', "mlxk completion fish | source"),
}
"""Examples by command, the simplest first."""

TITLE = "examples:"


class HelpRequested(Exception):  # noqa: N818 - no error
    """Carries the text of ``--help``; argparse itself would print it, and ignore a failed write."""


class HelpFormat(argparse.HelpFormatter):
    """Wraps every text but the examples, which have a line each."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith(TITLE):
            return text
        return super()._fill_text(text, width, indent)


class CommandLineParser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that raises ``UsageError``, and ``HelpRequested`` for ``--help``."""

    def __init__(self, **options: object) -> None:
        super().__init__(formatter_class=HelpFormat, **options)  # type: ignore[arg-type]  # argparse's own options
        self.register("type", int, _whole_number)
        self.register("type", float, _number)

    def error(self, message: str) -> NoReturn:
        """Raise ``UsageError`` with a message of argparse and a hint."""
        hint = f"Try '{self.prog} --help'."
        if self.prog.endswith(" run") and any(each in message for each in _DASHED):
            hint += (
                " A prompt that starts with a dash stands after --; a value that does, after =, as in --system=TEXT."
            )
        examples = EXAMPLES.get(self.prog.rpartition(" ")[2])
        if examples and _MISSING in message:
            hint = f"Try '{self.prog} --help', or for example: {examples[0]}"
        words, explicit, value = message.partition(_EXPLICIT)
        raise UsageError(f"{words}takes no value (got{value})" if explicit else message, hint=hint)

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Raise the error about words that argparse did not recognize, with the nearest flags or other advice.

        Args:
            unknown: Unknown flags; if there are none, surplus positionals.
        """
        flags = [word.partition("=")[0] for word in unknown if word.startswith("-")]
        known = self._option_string_actions
        early = [flag for flag in flags if flag in known]
        if early:
            command = self.prog.rpartition(" ")[2]
            raise UsageError(
                f"{early[0]} is a flag of {command} and stands after it", hint=f"Write: {self.prog} {early[0]}"
            )
        suggestions = [name for flag in flags for name in closest(flag, known, FLAG_SYNONYMS)]
        hint = f"{did_you_mean(suggestions)} '{self.prog} --help' lists the flags.".lstrip()
        places = {**HUB_FLAGS, **(UNNEEDED_FLAGS if self.prog.endswith(" serve") else {})}
        reasons = [places[flag] for flag in flags if flag in places]
        if reasons:
            hint = " ".join(dict.fromkeys(reasons))
        launched = {"launch": ("agent", "AGENT --"), "monitor": ("command", "-- COMMAND")}
        program, place = launched.get(self.prog.rpartition(" ")[2], ("", ""))
        if program and flags:
            hint = f"Flags of the {program} stand after --: {self.prog} {place} {flags[0]}"
        if not flags:
            positionals = [str(each.metavar or each.dest) for each in self._actions if not each.option_strings]
            hint = f"{self.prog} takes {' and '.join(positionals)}; text of several words needs quotes."
            if not positionals:
                hint = (
                    f"Write: {self.prog} --model {unknown[0]}."
                    if "--model" in known
                    else f"{self.prog} takes no words."
                )
            hint += f" Try '{self.prog} --help'."
        raise UsageError(f"unrecognized arguments: {' '.join(unknown)}", hint=hint)

    def _parse_optional(self, arg_string: str) -> Any:  # noqa: ANN401 - as argparse has it, which changes
        """Refuse a word that begins with ``-h``, such as ``-hello``, for which Python 3.13 prints the help."""
        if " " in self.prog and arg_string.startswith("-h") and arg_string != "-h":
            self.error(f"argument -h/--help: ignored explicit argument {arg_string[2:]!r}")
        return super()._parse_optional(arg_string)

    def print_help(self, file: "SupportsWrite[str] | None" = None) -> NoReturn:
        """Raise the help text."""
        raise HelpRequested(self.format_help())

    def _check_value(self, action: argparse.Action, value: object) -> None:
        """Refuse a command or value that is not one of the choices, and name the nearest."""
        choices = [] if action.choices is None else [str(each) for each in action.choices]
        if action.choices is None or value in action.choices:
            return
        if isinstance(action, argparse._SubParsersAction):
            names = list(action.choices.items())
            first = {id(parser): name for name, parser in reversed(names)}  # aliases follow their command
            suggestions = (first[id(action.choices[name])] for name in closest(str(value), choices, COMMAND_SYNONYMS))
            near = did_you_mean(dict.fromkeys(suggestions))
            raise UsageError(
                f"there is no command '{value}'", hint=f"{near} '{self.prog} --help' lists the commands.".lstrip()
            )
        name = "/".join(action.option_strings) or str(action.metavar or action.dest)
        near = did_you_mean(closest(str(value), choices))
        raise UsageError(
            f"argument {name}: '{value}' is not one of {', '.join(choices)}", hint=near or f"Try '{self.prog} --help'."
        )


def _whole_number(text: str) -> int:
    """Convert a flag's value; argparse's own message would be "invalid int value"."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number") from None


def _number(text: str) -> float:
    """Convert a flag's value; argparse's own message would be "invalid float value"."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no number") from None


def epilog(command: str) -> str | None:
    """Return the examples at the end of a command's help; None for a command without any."""
    lines = EXAMPLES.get(command)
    return "\n  ".join((TITLE, *lines)) if lines else None

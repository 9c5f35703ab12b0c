"""Command lines as other programs take them, in the form that this one parses."""

from collections.abc import Sequence

MODEL_FLAGS = ("-m", "--model")


def in_our_form(arguments: Sequence[str]) -> list[str]:
    """Return a command line in which ``help`` and ``version`` are flags, and the model of ``run -m`` is its first word.

    argparse cannot have a first word that a flag makes optional.
    """
    match [word for word in arguments if word != "--json"]:
        case ["help", *rest]:
            return [*rest[:1], "--help"]
        case ["version"]:
            return ["--version", *(word for word in arguments if word == "--json")]
        case ["run", *_]:
            return _with_the_model_first(list(arguments))
    return list(arguments)


def _with_the_model_first(arguments: list[str]) -> list[str]:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    for index, word in enumerate(arguments[:end]):
        flag, separator, value = word.partition("=")
        if flag in MODEL_FLAGS and (separator or index + 1 < end):
            taken = 1 if separator else 2
            model = value if separator else arguments[index + 1]
            rest = arguments[:index] + arguments[index + taken :]
            return ["run", model, *rest[1:]] if rest[0] == "run" else [rest[0], "run", model, *rest[2:]]
    return arguments

"""The names that a server has for models: its aliases, adapters and pins, and what its flags say of each model."""

import argparse
import os
from collections.abc import Collection, Mapping
from typing import Any

import attrs

from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.settings import require_needed
from mlxk.domain.models.kv_cache import TURBOQUANT, TURBOQUANT_USUAL_BITS, kv_bits_fault
from mlxk.domain.models.reference import is_path, own_name
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.setting_table import setting
from mlxk.entrypoints.settings_file import entry_name_fault

Entries = tuple[tuple[str, Mapping[str, Any]], ...]

_DECIDES = {
    "enable_thinking": ("thinking",),
    "thinking_budget": ("thinking_budget",),
    "thinking_start_token": ("thinking_start_token",),
    "thinking_end_token": ("thinking_end_token",),
    "max_tokens": ("max_tokens",),
    "keep_alive": ("keep_alive", "pin"),
}
"""The flags that are also settings of names, by attribute, with the settings that they decide before the file."""


@attrs.frozen
class ServedNames:
    """What ``ServerSettings`` has of names, under the same names of fields."""

    aliases: tuple[tuple[str, str], ...]
    entries: Entries
    ready: tuple[str, ...]
    model_defaults: Entries
    preferred: Mapping[str, Any]


def read_names(arguments: argparse.Namespace, context: CommandContext) -> ServedNames:
    """Return the names of a server.

    Args:
        arguments: Its command line.
        context: Has the settings file.

    Raises:
        ValidationError: A flag has another form, lacks what it is about, or gives a name a second meaning.
    """
    aliases = pairs(arguments.alias, "--alias", "NAME=MODEL gpt-4o-mini=demo")
    plain = dict(aliases)
    named: str | None = arguments.model or context.settings.serve.model
    model = None if named is None else plain.get(named, named)
    of_file = names_of_file(arguments, context, plain)
    adapters = adapter_names(arguments.adapter, model, of_file, plain, context) if arguments.adapter else ()
    adapted = dict(adapters)
    names = (*(each for each in of_file if each[0] not in adapted), *adapters)
    names = (*names, *aliases_of_adapters(aliases, dict(names)))
    pins = [plain.get(pin, pin) for pin in arguments.pin]
    pins = [own_name(pin, dict(names)) or lasting(pin) for pin in pins]
    return ServedNames(
        aliases=aliases,
        entries=pinned(names, pins),
        ready=tuple(dict.fromkeys((*adapted, *pins))),
        model_defaults=defaults_of_models(arguments, plain, model, [pin for pin in pins if pin not in dict(names)]),
        preferred=preferred(arguments),
    )


def pairs(values: list[str], flag: str, example: str) -> tuple[tuple[str, str], ...]:
    """Return both sides of ``NAME=VALUE``.

    Args:
        values: Of the flag.
        flag: In messages.
        example: A value in its form.

    Raises:
        ValidationError: A value has another form, or a name is given twice.
    """
    found = []
    for value in values:
        name, separator, meant = value.partition("=")
        if not separator or not name.strip() or not meant.strip():
            raise ValidationError(
                f"{flag}: '{value}' is not {example.partition(' ')[0]}",
                hint=f"For example: {flag} {example.partition(' ')[2]}",
            )
        found.append((name.strip(), meant.strip()))
    twice = next((name for name, _ in found if [each for each, _ in found].count(name) > 1), None)
    if twice is not None:
        raise ValidationError(f"{flag}: '{twice}' stands for two models", hint="Give each name one model.")
    return tuple(found)


def aliases_of_adapters(aliases: tuple[tuple[str, str], ...], names: Mapping[str, Mapping[str, Any]]) -> Entries:
    """Return names for the aliases of adapters: an alias has none of the settings of a name, but it is its model."""
    meant = ((alias, own_name(reference, names)) for alias, reference in aliases)
    return tuple(
        (alias, {key: names[own][key] for key in ("model", "adapter")})
        for alias, own in meant
        if own is not None and "adapter" in names[own]
    )


def names_of_file(arguments: argparse.Namespace, context: CommandContext, replaced: Collection[str]) -> Entries:
    """Return the names of the settings file without those that are replaced, and without what flags decide."""
    given = {name for name in _DECIDES if getattr(arguments, name) is not None} - arguments.from_file
    decided = {key for name in given for key in _DECIDES[name]}
    if "MLXK2_MAX_TOKENS" in context.settings.set_variables:
        decided.add("max_tokens")
    return tuple(
        (name, {key: value for key, value in values.items() if key not in decided})
        for name, values in context.settings.file.entries.items()
        if name not in replaced
    )


def adapter_names(
    values: list[str],
    model: str | None,
    file: Entries,
    aliases: Collection[str],
    context: CommandContext,
) -> Entries:
    """Return a name for each adapter, with the settings of the name that ``model`` is, if it is one.

    Args:
        values: Of the flag, each NAME=PATH.
        model: The model that the server has in memory, to which the adapters belong; without one, or when it is one of
            them, each belongs to the model that it was trained on.
        file: The names of the settings file.
        aliases: Other names of the command line.
        context: Builds what reads adapters.

    Raises:
        ValidationError: A value has another form, a name cannot be one or is given twice, an adapter cannot be used, or
            its model is not known.
    """
    found = []
    known, registry = dict(file), context.build(context.settings).adapters.backend_registry()
    given = dict(pairs(values, "--adapter", "NAME=PATH poet=adapters/poet"))
    for name, path in given.items():
        if fault := entry_name_fault(name):
            raise ValidationError(f"--adapter: '{name}' cannot be a name: {fault}")
        if name in aliases:
            raise ValidationError(f"--adapter: '{name}' is an alias already", hint="Give each name one meaning.")
        directory = os.path.abspath(os.path.expanduser(path))
        trained_on = registry.adapter(directory).trained_on
        reference = trained_on if model is None or model in given else model
        if reference is None:
            raise ValidationError(
                f"--adapter: '{name}' does not say which model it was trained on",
                hint="Name the model: mlxk serve --model MODEL --adapter NAME=PATH",
            )
        own = own_name(reference, known)
        settings = known[own] if own is not None else {"model": lasting(reference)}
        found.append((name, {**settings, "adapter": directory}))
    return tuple(found)


def pinned(names: Entries, pins: Collection[str]) -> Entries:
    """Return names with the setting ``pin`` where they are pinned; it replaces the idle time of the settings file."""
    return tuple(
        (name, {**{key: value for key, value in values.items() if key != "keep_alive"}, "pin": True})
        if name in pins
        else (name, values)
        for name, values in names
    )


def defaults_of_models(
    arguments: argparse.Namespace, aliases: Mapping[str, str], model: str | None, pins: Collection[str]
) -> Entries:
    """Return what flags say about models under each of their names, by reference.

    Args:
        arguments: The command line.
        aliases: Its names for models.
        model: The model that the server has in memory.
        pins: The models to keep that have no settings of their own.

    Raises:
        ValidationError: A flag lacks what it is about, or is out of range.
    """
    names = ("draft_model", "draft_tokens", "draft_kind")
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    for name, value in given.items():
        if fault := setting("serve", name).kind.fault(value):
            raise ValidationError(f"--{name.replace('_', '-')} {fault}")
    require_needed(given)
    if "draft_model" in given and model is None:
        raise ValidationError(
            "--draft-model needs --model", hint="Name the model for which it proposes tokens: --model MODEL"
        )
    if "draft_model" in given and arguments.thinking_budget is not None:
        raise ValidationError(
            "--draft-model and --thinking-budget exclude each other",
            hint="A budget is enforced token by token, so that the draft model would never be used.",
        )
    found: dict[str, dict[str, Any]] = {pin: {"pin": True} for pin in pins}
    if given and model is not None:
        draft = given["draft_model"]
        found.setdefault(lasting(model), {}).update({**given, "draft_model": lasting(aliases.get(draft, draft))})
    return tuple(found.items())


_UNIFORM_BITS = (4, 8)
"""Of keys and values of every model, which is no choice for one of them: 2 bits spoil texts."""


_PREFERRED = (
    "kv_scheme",
    "kv_bits",
    "kv_group_size",
    "max_kv_size",
    "prefix_cache_bits",
    "top_logprobs_k",
    "quantize_activations",
)
"""The flags that hold for every model that can do so, and have a setting of names."""


def preferred(arguments: argparse.Namespace) -> Mapping[str, Any]:
    """Return what flags say about every model that can do so, as settings of a name.

    Raises:
        ValidationError: A flag is out of range, or flags exclude each other.
    """
    given = {name: value for name in _PREFERRED if (value := getattr(arguments, name)) is not None}
    for name, value in given.items():
        kind = setting("serve", name).kind
        fault = kv_bits_fault(value, given.get("kv_scheme"), _UNIFORM_BITS) if name == "kv_bits" else kind.fault(value)
        if fault:
            raise ValidationError(f"--{name.replace('_', '-')} {fault}")
    if given.get("kv_scheme") == TURBOQUANT:
        given.setdefault("kv_bits", TURBOQUANT_USUAL_BITS)
    require_needed(given)
    if given.get("kv_scheme") == TURBOQUANT and "kv_group_size" in given:
        raise ValidationError("--kv-group-size and --kv-scheme turboquant exclude each other", hint="It has no groups.")
    if "max_kv_size" in given:
        for name in ("kv_bits", "kv_scheme", "draft_model"):
            if getattr(arguments, name) is not None:
                raise ValidationError(f"--{name.replace('_', '-')} and --max-kv-size exclude each other")
    return given


def lasting(reference: str) -> str:
    """Return a reference that means the same in another directory."""
    return os.path.abspath(os.path.expanduser(reference)) if is_path(reference) else reference

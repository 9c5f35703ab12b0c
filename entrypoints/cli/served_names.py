"""The names under which a server offers models: aliases, adapters and pins, and settings of flags for models."""

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

_OVERRIDDEN = {
    "enable_thinking": ("thinking",),
    "thinking_budget": ("thinking_budget",),
    "thinking_start_token": ("thinking_start_token",),
    "thinking_end_token": ("thinking_end_token",),
    "max_tokens": ("max_tokens",),
    "keep_alive": ("keep_alive", "pin"),
}
"""Flags, by attribute, that override these settings of every name of the settings file."""


@attrs.frozen
class ServedNames:
    """The fields of ``ServerSettings`` about names, with the same names."""

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
        ValidationError: A flag is malformed, needs another one, or gives a name a second meaning.
    """
    aliases = pairs(arguments.alias, "--alias", "NAME=MODEL gpt-4o-mini=demo")
    references = dict(aliases)
    preloaded: str | None = arguments.model or context.settings.serve.model
    model = None if preloaded is None else references.get(preloaded, preloaded)
    file_names = names_of_file(arguments, context, references)
    adapters = dict(adapter_names(arguments.adapter, model, file_names, references, context))
    entries = {name: values for name, values in file_names if name not in adapters} | adapters
    entries |= aliases_of_adapters(aliases, entries)
    pins = [references.get(pin, pin) for pin in arguments.pin]
    pins = [own_name(pin, entries) or absolute_reference(pin) for pin in pins]
    models_to_pin = [pin for pin in pins if pin not in entries]
    return ServedNames(
        aliases=aliases,
        entries=pinned(tuple(entries.items()), pins),
        ready=tuple(dict.fromkeys((*adapters, *pins))),
        model_defaults=defaults_of_models(arguments, references, model, models_to_pin),
        preferred=preferred(arguments),
    )


def pairs(values: list[str], flag: str, example: str) -> tuple[tuple[str, str], ...]:
    """Split values of the form ``NAME=VALUE``.

    Args:
        values: The values of the flag.
        flag: The flag, for error messages.
        example: The form and a valid value, separated by a space, for error messages.

    Raises:
        ValidationError: A value has another form, or a name is given twice.
    """
    form, _, example = example.partition(" ")
    split_pairs = []
    for pair in values:
        name, separator, value = pair.partition("=")
        if not separator or not name.strip() or not value.strip():
            raise ValidationError(f"{flag}: '{pair}' is not {form}", hint=f"For example: {flag} {example}")
        split_pairs.append((name.strip(), value.strip()))
    twice = next((name for name, _ in split_pairs if [each for each, _ in split_pairs].count(name) > 1), None)
    if twice is not None:
        raise ValidationError(f"{flag}: '{twice}' stands for two models", hint="Give each name one model.")
    return tuple(split_pairs)


def aliases_of_adapters(
    aliases: tuple[tuple[str, str], ...], entries: Mapping[str, Mapping[str, Any]]
) -> dict[str, Mapping[str, Any]]:
    """Return an entry for each alias of an entry with an adapter: the same model and adapter, no other settings."""
    targets = ((alias, own_name(reference, entries)) for alias, reference in aliases)
    return {
        alias: {key: entries[name][key] for key in ("model", "adapter")}
        for alias, name in targets
        if name is not None and "adapter" in entries[name]
    }


def names_of_file(arguments: argparse.Namespace, context: CommandContext, replaced: Collection[str]) -> Entries:
    """Return the names of the settings file, except replaced ones, without the settings that flags override."""
    given = {name for name in _OVERRIDDEN if getattr(arguments, name) is not None} - arguments.from_file
    overridden = {key for name in given for key in _OVERRIDDEN[name]}
    if "MLXK2_MAX_TOKENS" in context.settings.set_variables:
        overridden.add("max_tokens")
    return tuple(
        (name, {key: value for key, value in values.items() if key not in overridden})
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
    """Return an entry for each adapter of ``--adapter``.

    Args:
        values: The values of the flag, each NAME=PATH.
        model: The model to load at start. The adapters apply to it, and get its settings if it is a name of the file.
            Without one, or when it is itself an adapter, each applies to the model that it was trained on.
        file: The names of the settings file.
        aliases: The aliases of the command line.
        context: Builds the registry that reads adapters.

    Raises:
        ValidationError: A value has another form, a name is invalid or given twice, an adapter cannot be used, or its
            model is not known.
    """
    if not values:
        return ()
    entries = []
    known, registry = dict(file), context.build(context.settings).adapters.backend_registry()
    paths = dict(pairs(values, "--adapter", "NAME=PATH poet=adapters/poet"))
    for name, path in paths.items():
        if fault := entry_name_fault(name):
            raise ValidationError(f"--adapter: '{name}' cannot be a name: {fault}")
        if name in aliases:
            raise ValidationError(f"--adapter: '{name}' is an alias already", hint="Give each name one meaning.")
        directory = os.path.abspath(os.path.expanduser(path))
        trained_on = registry.adapter(directory).trained_on
        reference = trained_on if model is None or model in paths else model
        if reference is None:
            raise ValidationError(
                f"--adapter: '{name}' does not say which model it was trained on",
                hint="Name the model: mlxk serve --model MODEL --adapter NAME=PATH",
            )
        own = own_name(reference, known)
        settings = known[own] if own is not None else {"model": absolute_reference(reference)}
        entries.append((name, {**settings, "adapter": directory}))
    return tuple(entries)


def pinned(names: Entries, pins: Collection[str]) -> Entries:
    """Return names with the setting ``pin``, in place of ``keep_alive``, where they are pinned."""
    return tuple(
        (name, {**{key: value for key, value in values.items() if key != "keep_alive"}, "pin": True})
        if name in pins
        else (name, values)
        for name, values in names
    )


def defaults_of_models(
    arguments: argparse.Namespace, aliases: Mapping[str, str], model: str | None, pins: Collection[str]
) -> Entries:
    """Return the settings, by reference, that flags give to models under all their names.

    Args:
        arguments: The command line.
        aliases: The model reference of each alias.
        model: The model to load at start.
        pins: References of pinned models that are not names.

    Raises:
        ValidationError: A flag needs another one, excludes another one, or is out of range.
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
    defaults: dict[str, dict[str, Any]] = {pin: {"pin": True} for pin in pins}
    if given and model is not None:
        draft = given["draft_model"]
        defaults.setdefault(absolute_reference(model), {}).update(
            {**given, "draft_model": absolute_reference(aliases.get(draft, draft))}
        )
    return tuple(defaults.items())


_UNIFORM_BITS = (4, 8)
"""Bits of the uniform scheme that all models may share; 2 bits, which spoil texts, must be chosen for one model."""


_PREFERRED = (
    "kv_scheme",
    "kv_bits",
    "kv_group_size",
    "max_kv_size",
    "prefix_cache_bits",
    "top_logprobs_k",
    "quantize_activations",
)
"""Flags for every model that supports them; each has the key of a setting of names."""


def preferred(arguments: argparse.Namespace) -> Mapping[str, Any]:
    """Return the settings, by the keys of a name's table, that flags give to every model that supports them.

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


def absolute_reference(reference: str) -> str:
    """Return a model reference with its path, if it is one, made absolute."""
    return os.path.abspath(os.path.expanduser(reference)) if is_path(reference) else reference

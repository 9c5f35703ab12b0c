"""Changes of the settings file: lines of one entry, and the replacement of the whole file.

A change touches the lines that it is about and keeps all others, with their comments and order; the result is read
again and compared with what was meant before it replaces the file (docs/adr/0025).
"""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from mlxk.domain.errors import StorageError, ValidationError
from mlxk.entrypoints import private_files
from mlxk.entrypoints.setting_table import ENTRY, MODELS, TABLES, Setting
from mlxk.entrypoints.settings_file import Statement, comment_of, parsed, statements, table_name

_MOST_BYTES = 16 * 2**20
"""Largest file that is opened for a change; one that is too large to be read as settings can still be made smaller."""
_BY_HAND = "Change it by hand: mlxk config edit"

HEADING = """\
# Settings of mlxk. A flag decides first, then the environment, then this file.
# Lines that begin with # are comments; take the # away to set something.
"""

EXAMPLE = """
# A name of your own for a model, with its settings. Every setting of [run] can stand here, and a few more:
# [models.poet]
# model = "demo"
# system = "You answer in rhymes."
# temperature = 0.9
"""


def template() -> str:
    """Return the content of a new file: every setting, commented out, with its meaning and its default."""
    return HEADING + "".join(_section(name, settings) for name, settings in TABLES.items()) + EXAMPLE + _entry_keys()


def _section(name: str, settings: tuple[Setting, ...]) -> str:
    header = f"\n# [{name}]\n" if name else "\n"
    return header + "".join(f"# {each.key} = {_example(each)}  # {each.meaning}\n" for each in settings)


def _example(setting: Setting) -> str:
    return "…" if setting.default is None else toml(setting.default)


def _entry_keys() -> str:
    own = [each for each in ENTRY if each not in TABLES["run"] and each.key != "model"]
    return "".join(f"# {each.key} = …  # {each.meaning}\n" for each in own)


def toml(value: object) -> str:
    """Return a value of JSON as TOML."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{table_name(key)} = {toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    if value is None:
        raise ValidationError("null cannot be written: a settings file has no such value", hint="Leave the key out.")
    return json.dumps(value)


def values_text(values: Mapping[str, Any]) -> str:
    """Return the settings of a name in one line, without its model."""
    said = (f"{table_name(key)} = {toml(value)}" for key, value in values.items() if key != "model")
    return ", ".join(said) or "no settings"


def with_entry(text: str, name: str, values: Mapping[str, Any]) -> str:
    """Return a valid document with values set in the table of a name, which is added at the end where it is missing.

    Args:
        text: The document.
        name: The name.
        values: The values by key; None removes the key.

    Raises:
        ValidationError: The entry is written in a way that cannot be changed line by line.
    """
    before = parsed(text)
    entry = {**before.get(MODELS, {}).get(name, {}), **values}
    wanted = {key: value for key, value in entry.items() if value is not None}
    changed = _begun(text, name)
    for key, value in values.items():
        changed = _assigned(changed, (MODELS, name), key, value)
    return _verified(changed, {**before, MODELS: {**before.get(MODELS, {}), name: wanted}}, name)


def without_entry(text: str, name: str) -> str:
    """Return a valid document without the table of a name; comments above it stay.

    Raises:
        ValidationError: The entry is written in a way that cannot be changed line by line.
    """
    before, changed = parsed(text), text
    for start, end in reversed(list(_blocks(text, (MODELS, name)))):
        changed = changed[:start] + changed[end:]
    names = {key: value for key, value in before[MODELS].items() if key != name}
    after = {**before, MODELS: names}
    try:
        remains = MODELS in parsed(changed)
    except ValueError:
        remains = True
    return _verified(changed, after if remains else {key: each for key, each in after.items() if key != MODELS}, name)


def _verified(text: str, wanted: Mapping[str, Any], name: str) -> str:
    try:
        if parsed(text) == wanted:
            return text
    except ValueError:
        pass
    raise ValidationError(f"[{table_name(MODELS, name)}] is written in a way that this cannot change", hint=_BY_HAND)


def _begun(text: str, name: str) -> str:
    """Return a document that has the table of a name."""
    path = (MODELS, name)
    if any(each.path[:2] == path for each in statements(text)):
        return text
    gap = "" if not text or text.endswith("\n\n") else "\n" if text.endswith("\n") else "\n\n"
    return f"{text}{gap}[{table_name(*path)}]\n"


def _assigned(text: str, table: tuple[str, ...], key: str, value: object) -> str:
    found = list(statements(text))
    old = next((each for each in found if not each.is_header and each.path[: len(table) + 1] == (*table, key)), None)
    line = "" if value is None else f"{table_name(key)} = {toml(value)}"
    if old is not None:
        comment = comment_of(text[old.start : old.end])
        return text[: old.start] + (f"{line}{comment}\n" if line else "") + text[old.end :]
    place = _end_of(found, table)
    if not line or place is None:
        return text
    gap = "" if text[:place].endswith("\n") else "\n"
    return f"{text[:place]}{gap}{line}\n{text[place:]}"


def _end_of(found: list[Statement], table: tuple[str, ...]) -> int | None:
    """Return where the assignments of a table end; None without its header."""
    place, within = None, False
    for each in found:
        if each.is_header:
            within = each.path == table
        if within:
            place = each.end
    return place


def _blocks(text: str, table: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """Yield the places of everything that is written about a table, with the comments in between."""
    start = end = None
    for each in statements(text):
        if each.path[: len(table)] == table:
            start, end = each.start if start is None else start, each.end
        elif start is not None and end is not None:
            yield start, end
            start = end = None
    if start is not None and end is not None:
        yield start, end


def content_of(path: str) -> bytes | None:
    """Return the content of the file; None when it does not exist.

    Raises:
        StorageError: It cannot be read.
        ValidationError: It is larger than any settings file.
    """
    try:
        content = private_files.read(path, _MOST_BYTES)
    except OSError as error:
        raise StorageError(f"the settings file cannot be read: {error.strerror}", hint=f"See: {path}") from error
    if content is not None and len(content) > _MOST_BYTES:
        raise ValidationError(f"the settings file is larger than {_MOST_BYTES // 2**20} MiB", hint=f"See: {path}")
    return content


def draft_beside(path: str, content: bytes) -> str:
    """Write a file beside the settings file that only this user can read, and return its path.

    Raises:
        StorageError: It cannot be written.
    """
    folder = os.path.dirname(os.path.realpath(path))
    try:
        return private_files.draft(folder, ".toml", content)
    except OSError as error:
        raise StorageError(
            f"the settings file cannot be written: {error.strerror}", hint=f"See the folder: {folder}"
        ) from error


def replace(path: str, content: bytes, before: bytes | None) -> None:
    """Replace the file at once, also where it is a link; it keeps its mode, and a new one is for this user only.

    Args:
        path: The file.
        content: Its new content.
        before: Its content when it was read; None for a file that did not exist.

    Raises:
        StorageError: It cannot be written.
        ValidationError: It was changed by someone else since it was read.
    """
    if content_of(path) != before:
        raise ValidationError("the settings file was changed meanwhile, and is left as it is", hint="Do it again.")
    try:
        private_files.write(path, content)
    except OSError as error:
        raise StorageError(
            f"the settings file cannot be written: {error.strerror}", hint=f"See: {os.path.realpath(path)}"
        ) from error

"""Changes of the settings file: edits of the lines of one entry, and the replacement of the whole file.

An edit keeps all other lines with their comments and order. Its result is parsed and compared with the intended
values before it replaces the file (docs/adr/0025).
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
"""Largest file that can be edited; above the limit of reading, so that a file beyond that limit can be made smaller."""
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
    """Return the content of a new file: every setting, commented out, with its meaning and default."""
    return HEADING + "".join(_section(name, settings) for name, settings in TABLES.items()) + EXAMPLE + _entry_keys()


def _section(name: str, settings: tuple[Setting, ...]) -> str:
    header = f"\n# [{name}]\n" if name else "\n"
    return header + "".join(f"# {each.key} = {_example(each)}  # {each.meaning}\n" for each in settings)


def _example(setting: Setting) -> str:
    return "…" if setting.default is None else toml(setting.default)


def _entry_keys() -> str:
    """Return the settings that only the table of a name may have."""
    own = [setting for setting in ENTRY if setting not in TABLES["run"] and setting.key != "model"]
    return "".join(f"# {setting.key} = …  # {setting.meaning}\n" for setting in own)


def toml(value: object) -> str:
    """Return a JSON value as TOML.

    Raises:
        ValidationError: It is None or contains None.
    """
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
    """Return the settings of a name on one line, without its model."""
    assignments = (f"{table_name(key)} = {toml(value)}" for key, value in values.items() if key != "model")
    return ", ".join(assignments) or "no settings"


def with_entry(text: str, name: str, values: Mapping[str, Any]) -> str:
    """Return a document with values set in the table of a name; a missing table is added at the end.

    Args:
        text: The document, which is valid.
        name: The name.
        values: The values by key; None removes the key.

    Raises:
        ValidationError: The entry is written in a form that cannot be edited line by line, such as an inline table.
    """
    before = parsed(text)
    entry = {**before.get(MODELS, {}).get(name, {}), **values}
    wanted = {key: value for key, value in entry.items() if value is not None}
    changed = _with_table(text, name)
    for key, value in values.items():
        changed = _assigned(changed, (MODELS, name), key, value)
    return _verified(changed, {**before, MODELS: {**before.get(MODELS, {}), name: wanted}}, name)


def without_entry(text: str, name: str) -> str:
    """Return a valid document without the table of a name; comments above it stay.

    Raises:
        ValidationError: The entry is written in a form that cannot be edited line by line, such as an inline table.
    """
    before, changed = parsed(text), text
    for start, end in reversed(list(_blocks(text, (MODELS, name)))):
        changed = changed[:start] + changed[end:]
    names = {key: value for key, value in before[MODELS].items() if key != name}
    after = {**before, MODELS: names}
    try:
        has_models = MODELS in parsed(changed)
    except ValueError:
        has_models = True
    if not has_models:
        del after[MODELS]
    return _verified(changed, after, name)


def _verified(text: str, wanted: Mapping[str, Any], name: str) -> str:
    """Return a document whose values are the intended ones; any other has an entry that cannot be edited."""
    try:
        if parsed(text) == wanted:
            return text
    except ValueError:
        pass
    raise ValidationError(f"[{table_name(MODELS, name)}] is written in a way that this cannot change", hint=_BY_HAND)


def _with_table(text: str, name: str) -> str:
    """Return the document, with a header for the table of a name added where there is none."""
    path = (MODELS, name)
    if any(each.path[:2] == path for each in statements(text)):
        return text
    gap = "" if not text or text.endswith("\n\n") else "\n" if text.endswith("\n") else "\n\n"
    return f"{text}{gap}[{table_name(*path)}]\n"


def _assigned(text: str, table: tuple[str, ...], key: str, value: object) -> str:
    """Return the document with one key of a table assigned, or removed for None; a comment after the value stays."""
    existing = list(statements(text))
    old = next((each for each in existing if not each.is_header and each.path[: len(table) + 1] == (*table, key)), None)
    line = "" if value is None else f"{table_name(key)} = {toml(value)}"
    if old is not None:
        comment = comment_of(text[old.start : old.end])
        return text[: old.start] + (f"{line}{comment}\n" if line else "") + text[old.end :]
    end = _end_of(existing, table)
    if not line or end is None:
        return text
    gap = "" if text[:end].endswith("\n") else "\n"
    return f"{text[:end]}{gap}{line}\n{text[end:]}"


def _end_of(found: list[Statement], table: tuple[str, ...]) -> int | None:
    """Return the offset at which the assignments of a table end; None without its header."""
    end, within = None, False
    for statement in found:
        if statement.is_header:
            within = statement.path == table
        if within:
            end = statement.end
    return end


def _blocks(text: str, table: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """Yield start and end offset of each run of statements about a table, with the comments in between."""
    start = end = None
    for statement in statements(text):
        if statement.path[: len(table)] == table:
            start, end = statement.start if start is None else start, statement.end
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
    """Write a temporary file of mode 0600 beside the settings file, and return its path.

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
    """Replace the settings file atomically; see ``private_files.write``.

    Args:
        path: The file.
        content: Its new content.
        before: Its content when the edit began; None for a file that did not exist.

    Raises:
        StorageError: It cannot be written.
        ValidationError: It was changed by another program since.
    """
    if content_of(path) != before:
        raise ValidationError("the settings file was changed meanwhile, and is left as it is", hint="Do it again.")
    try:
        private_files.write(path, content)
    except OSError as error:
        raise StorageError(
            f"the settings file cannot be written: {error.strerror}", hint=f"See: {os.path.realpath(path)}"
        ) from error

"""Habits that reviewers need not look for: where the environment is read, and what comments do not say."""

import ast
import io
import re
import tokenize
from pathlib import Path

Sources = dict[str, ast.Module]

SETTINGS = "entrypoints/settings.py"
READERS = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
TICKET = re.compile(r"(?<![\w&])#\d+\b|\b(issue|ticket|pull request|PR) ?#?\d+", re.IGNORECASE)


def test_only_the_settings_read_the_environment(product: Sources) -> None:
    readers = {path for path, tree in product.items() if any(map(reads_environment, ast.walk(tree)))}
    assert readers == {SETTINGS}


def test_the_environment_is_written_where_mlx_is_told_of_a_group_only(product: Sources) -> None:
    written = {
        path
        for path, tree in product.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript)
        and isinstance(node.ctx, ast.Store | ast.Del)
        and reads_environment(node.value)
    }
    assert written == {SETTINGS}


def test_comments_name_no_ticket_and_leave_nothing_to_do(everything: Sources, root: Path) -> None:
    found = [
        f"{path}: {comment}"
        for path in everything
        for comment in comments(root / path)
        if UNFINISHED.search(comment) or TICKET.search(comment.removeprefix("#"))
    ]
    assert found == []


def test_every_file_says_in_its_first_line_what_it_is_for(everything: Sources) -> None:
    silent = [path for path, tree in everything.items() if tree.body and not ast.get_docstring(tree)]
    assert silent == []


def reads_environment(node: ast.AST) -> bool:
    """Whether a node is ``os.environ``, ``os.getenv`` or a relative of them, however it was imported."""
    if isinstance(node, ast.Attribute):
        return isinstance(node.value, ast.Name) and node.value.id in {"os", "posix"} and node.attr in READERS
    if isinstance(node, ast.ImportFrom):
        return node.module in {"os", "posix"} and any(alias.name in READERS for alias in node.names)
    return False


def comments(path: Path) -> list[str]:
    """Return the comments of a file."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    return [token.string for token in tokens if token.type == tokenize.COMMENT]

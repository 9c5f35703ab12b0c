"""The faults that ``mutation.py`` draws: which can be made in a module, and the module's source with one of them.

Never made: imports, annotations, decorators, base classes, docstrings, ``__all__``, ``__slots__``, ``__repr__``,
``if TYPE_CHECKING`` and ``if __name__``, and ``return None`` in a function that always returns a value (the type
checker finds it).
"""

import ast
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

LAYERS = ("domain", "application", "adapters", "entrypoints")
SWAPPED: dict[type[ast.AST], Any] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult},
}
SWAPPED_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}
ORDERLESS = {*SWAPPED_NAMES, "isinstance", "issubclass", "cast"}  # swapped arguments change nothing, or never run
DECLARATIONS = {"annotation", "returns", "decorator_list", "bases", "type_params"}

Put = Callable[[ast.AST], None]


@dataclass(frozen=True)
class Fault:
    """One fault of a module; ``ordinal`` counts the faults of the module."""

    path: str
    ordinal: int
    line: int
    before: str
    after: str

    def __str__(self) -> str:
        texts = (" ".join(text.split()) for text in (self.before, self.after))
        return f"{self.path}:{self.line}  " + "  =>  ".join(t if len(t) < 90 else t[:87] + "..." for t in texts)


def drawn(root: Path, seed: int, number: int) -> list[Fault]:
    """Return the faults of a seed: as many different lines of all layers, and on each one of its faults."""
    lines: dict[tuple[str, int], list[Fault]] = defaultdict(list)
    for path in sorted(path for layer in LAYERS for path in (root / layer).rglob("*.py")):
        name = path.relative_to(root).as_posix()
        for ordinal, (line, node, mutant, _) in enumerate(replacements(ast.parse(path.read_text(encoding="utf-8")))):
            lines[name, line].append(Fault(name, ordinal, line, ast.unparse(node), ast.unparse(mutant)))
    generator = random.Random(seed)
    return [generator.choice(lines[place]) for place in generator.sample(sorted(lines), min(number, len(lines)))]


def faulty(source: str, fault: Fault) -> str:
    """Return the source of a module with a fault in it."""
    tree = ast.parse(source)
    *_, mutant, put = list(replacements(tree))[fault.ordinal]
    put(mutant)
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n"


def replacements(tree: ast.AST, line: int = 1, optional: bool = False) -> Iterator[tuple[int, ast.AST, ast.AST, Put]]:
    """Yield for each possible fault below a node: the line, the node, what replaces it, and the function to do so.

    ``optional``: the function around the node may return None.
    """
    if isinstance(tree, ast.FunctionDef):
        optional = tree.returns is not None and "None" in ast.unparse(tree.returns)
    for name, value in ast.iter_fields(tree):
        nodes = value if isinstance(value, list) else [value]
        for position, node in enumerate(nodes):
            if name in DECLARATIONS or not isinstance(node, ast.AST) or declares(node):
                continue
            put: Put = partial(nodes.__setitem__, position) if nodes is value else partial(setattr, tree, name)
            # Before Python 3.12 the positions inside a formatted string are wrong; the line of the string is used.
            here = line if isinstance(tree, ast.JoinedStr | ast.FormattedValue) else getattr(node, "lineno", line)
            if optional or not isinstance(node, ast.Return):
                yield from ((here, node, mutant, put) for mutant in mutants(node, condition=name in {"test", "ifs"}))
            yield from replacements(node, here, optional)


def declares(node: ast.AST) -> bool:
    """Tell whether a node and all below it are declarations, which hold no fault of behaviour."""
    match node:
        case ast.Import() | ast.ImportFrom() | ast.FunctionDef(name="__repr__"):
            return True
        case ast.If(test=ast.Name("TYPE_CHECKING") | ast.Compare(left=ast.Name("__name__"))):
            return True
        case ast.Assign(targets=[ast.Name("__all__" | "__slots__" | "TYPE_CHECKING")]):
            return True
        case ast.Subscript(value=ast.Name("Literal" | "Callable" | "tuple" | "dict" | "list" | "set")):
            return True
    return False


def mutants(node: ast.AST, *, condition: bool) -> Iterator[ast.AST]:
    """Yield the faulty replacements of a node; a condition may be negated."""
    if isinstance(node, ast.stmt | ast.ExceptHandler):
        yield from faulty_statements(node)
    elif isinstance(node, ast.Call):
        yield from faulty_calls(node)
    elif isinstance(node, ast.expr):
        yield from faulty_expressions(node)
        yield from faulty_constants(node)
    if condition and isinstance(node, ast.expr) and not isinstance(node, ast.Compare | ast.UnaryOp):
        yield ast.UnaryOp(ast.Not(), node)


def faulty_statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield statements left out, results that are None, loops that end otherwise, exceptions that are not handled."""
    match node:
        case ast.Expr(ast.Call() | ast.Await()) | ast.Raise() | ast.Delete() | ast.AugAssign():
            yield ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript(), *_]):
            yield ast.Pass()
        case ast.Return(ast.expr() as value) if not isinstance(value, ast.Constant):
            yield ast.Return(ast.Constant(None))
        case ast.Continue():
            yield ast.Break()
        case ast.Break():
            yield ast.Continue()
        case ast.ExceptHandler(caught, name, [first, *_]) if not isinstance(first, ast.Raise):
            yield ast.ExceptHandler(caught, name, [ast.Raise()])


def faulty_calls(node: ast.Call) -> Iterator[ast.AST]:
    """Yield calls of the opposite function, and calls with the first two arguments swapped."""
    match node:
        case ast.Call(ast.Name(name), arguments, keywords) if name in SWAPPED_NAMES:
            yield ast.Call(ast.Name(SWAPPED_NAMES[name]), arguments, keywords)
        case ast.Call(ast.Name(name)) if name in ORDERLESS:
            return
        case ast.Call(function, [first, second, *others], keywords):
            if ast.Starred not in {type(first), type(second)}:
                yield ast.Call(function, [second, first, *others], keywords)


def faulty_expressions(node: ast.expr) -> Iterator[ast.AST]:
    """Yield expressions with another operator, and negations removed."""
    match node:
        case ast.Compare(left, ops, others):
            for position, operator in enumerate(ops):
                yield ast.Compare(left, [*ops[:position], opposite(operator), *ops[position + 1 :]], others)
        case ast.BoolOp(operator, values):
            yield ast.BoolOp(opposite(operator), values)
        case ast.UnaryOp(ast.Not(), operand):
            yield operand
        case ast.BinOp(left, operator, right) if type(operator) in SWAPPED and not {left, right} & set(texts(node)):
            yield ast.BinOp(left, opposite(operator), right)


def faulty_constants(node: ast.expr) -> Iterator[ast.AST]:
    """Yield other constants, and closed lists of constants without one of them."""
    match node:
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(number) | float(number)):
            yield ast.Constant(number + 1)
        case ast.Tuple(elements) | ast.List(elements) | ast.Set(elements):
            if len(elements) > 1 and all(isinstance(element, ast.Constant) for element in elements):
                for position in range(len(elements)):
                    shorter = copy(node)
                    shorter.elts = elements[:position] + elements[position + 1 :]
                    yield shorter


def texts(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the string literals of an operation: texts are joined by ``+``, never subtracted."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.JoinedStr) or (isinstance(child, ast.Constant) and isinstance(child.value, str)):
            yield child


def opposite(operator: ast.AST) -> Any:  # noqa: ANN401 - an operator of the same family, which no type says
    """Return the operator that replaces another."""
    return SWAPPED[type(operator)]()

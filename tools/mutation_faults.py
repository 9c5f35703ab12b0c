"""The faults that ``mutation.py`` draws: which can be made in a module, and the module's source with one of them.

Never made: imports, annotations, decorators, base classes, docstrings, log events, ``__all__``, ``__slots__``,
``__repr__``, functions without a body, ``if TYPE_CHECKING`` and ``if __name__``. Nor what every test would find:
``return None`` in a function that always returns a value (the type checker finds it), a name or a constructor's
attribute left without any value.
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
ORDERLESS = {*SWAPPED_NAMES, "isinstance", "issubclass", "suppress", "cast"}  # swapped: nothing changes, or never runs
LEVELS = {"debug", "info", "warning", "error"}
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
    """Return the faults of a seed: of each layer as many different lines as its share, and on each line one fault."""
    lines: dict[str, dict[tuple[str, int], list[Fault]]] = {layer: defaultdict(list) for layer in LAYERS}
    for path in sorted(path for layer in LAYERS for path in (root / layer).rglob("*.py")):
        layer = path.relative_to(root).parts[0]
        name = path.relative_to(root).as_posix()
        for ordinal, (line, node, mutant, _) in enumerate(replacements(ast.parse(path.read_text(encoding="utf-8")))):
            lines[layer][name, line].append(Fault(name, ordinal, line, ast.unparse(node), ast.unparse(mutant)))
    generator = random.Random(seed)
    shares = shares_of({layer: len(places) for layer, places in lines.items()}, number)
    faults = [
        generator.choice(lines[layer][place])
        for layer, share in shares.items()
        for place in generator.sample(sorted(lines[layer]), share)
    ]
    generator.shuffle(faults)
    return faults


def shares_of(sizes: dict[str, int], number: int) -> dict[str, int]:
    """Share a number of draws in proportion to sizes, and give each a sixth of the number at least, or all it has."""
    shares = {name: min(size, number // 6) for name, size in sizes.items()}
    while sum(shares.values()) < min(number, sum(sizes.values())):
        wanting = [name for name in sizes if shares[name] < sizes[name]]
        shares[max(wanting, key=lambda name: sizes[name] / (shares[name] + 1))] += 1
    return shares


def faulty(source: str, fault: Fault) -> str:
    """Return the source of a module with a fault in it."""
    tree = ast.parse(source)
    *_, mutant, put = list(replacements(tree))[fault.ordinal]
    put(mutant)
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n"


def replacements(
    tree: ast.AST, line: int = 1, function: ast.FunctionDef | None = None
) -> Iterator[tuple[int, ast.AST, ast.AST, Put]]:
    """Yield for each possible fault below a node: the line, the node, what replaces it, and the function to do so.

    ``function``: the innermost function around the node.
    """
    if isinstance(tree, ast.FunctionDef):
        function = tree
    for name, value in ast.iter_fields(tree):
        nodes = value if isinstance(value, list) else [value]
        for position, node in enumerate(nodes):
            if name in DECLARATIONS or not isinstance(node, ast.AST) or declares(node):
                continue
            put: Put = partial(nodes.__setitem__, position) if nodes is value else partial(setattr, tree, name)
            # Before Python 3.12 the positions inside a formatted string are wrong; the line of the string is used.
            here = line if isinstance(tree, ast.JoinedStr | ast.FormattedValue) else getattr(node, "lineno", line)
            if not found_anyway(node, function):
                yield from ((here, node, mutant, put) for mutant in mutants(node, condition=name in {"test", "ifs"}))
            yield from replacements(node, here, function)


def found_anyway(node: ast.AST, function: ast.FunctionDef | None) -> bool:
    """Tell whether a statement is one that is missed at once when it is left out, or returns None."""
    match node:
        case ast.Return():
            return not (function and function.returns and "None" in ast.unparse(function.returns))
        case ast.Assign([ast.Attribute()]):
            return bool(function and function.name == "__init__")
        case ast.Assign([ast.Name(name)], value):
            earlier = {child.id for child in ast.walk(value) if isinstance(child, ast.Name)}
            for child in ast.walk(function) if function else ():
                if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store) and child.lineno < node.lineno:
                    earlier.add(child.id)
            return name not in earlier
    return False


def declares(node: ast.AST) -> bool:
    """Tell whether a node and all below it are declarations, which hold no fault of behaviour."""
    match node:
        case ast.Import() | ast.ImportFrom() | ast.FunctionDef(name="__repr__"):
            return True
        case ast.FunctionDef(body=[ast.Expr(ast.Constant())]):  # of a port: its defaults are those of who implements it
            return True
        case ast.Expr(ast.Call(ast.Attribute(ast.Name("log") | ast.Attribute(attr="_log"), level))) if level in LEVELS:
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
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript() | ast.Name(), *_]):
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
            if ast.Starred not in {type(first), type(second)} and ast.dump(first) != ast.dump(second):
                yield ast.Call(function, [second, first, *others], keywords)


def faulty_expressions(node: ast.expr) -> Iterator[ast.AST]:
    """Yield expressions with another operator, and negations removed."""
    match node:
        case ast.Compare(left, ops, others):
            for position, operator in enumerate(ops):
                yield ast.Compare(left, [*ops[:position], opposite(operator), *ops[position + 1 :]], others)
            for position, other in enumerate(others):
                if isinstance(other, ast.Constant) and isinstance(other.value, str):
                    mutant = ast.Constant(f"{other.value}~")
                    yield ast.Compare(left, ops, [*others[:position], mutant, *others[position + 1 :]])
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
        case ast.Subscript(value, ast.Constant(str(key)), context) if isinstance(context, ast.Load):
            yield ast.Subscript(value, ast.Constant(f"{key}~"), context)
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

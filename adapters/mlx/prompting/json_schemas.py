"""JSON Schemas as llguidance can be trusted with them.

It keeps every number of a schema as a 64-bit float: a bound or a constant that no float holds would be enforced as
another number, and one at the lower end of 64-bit integers ends the process. References that lead to nothing but each
other are noticed only when an answer gets there. Owns rounding bounds to what is as strict at least, and refusing the
rest; everything else about schemas llguidance says itself.
"""

import json
import math
import urllib.parse
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from mlxk.domain.generation.grammar import CONSTANT_KEYWORDS, Grammar, subschemas

EXACT = 2**53
"""Up to here, and down to its negative, floats hold every integer."""

WIDEST = 2**63
"""Beyond this, and below its negative, llguidance takes the last 64-bit integer instead."""

_LOWER = frozenset({"minimum", "exclusiveMinimum"})
_UPPER = frozenset({"maximum", "exclusiveMaximum"})

_ALTERNATIVES = ("allOf", "anyOf", "oneOf")
"""Keywords whose values are schemas of the same value as the schema they stand in."""

_INDEX_DIGITS = 6
"""Of a step into a list; no schema is so long that one with more could lead anywhere."""


def enforceable(grammar: Grammar) -> str:
    """Return the text of a JSON schema so that what is made by it is valid.

    Args:
        grammar: A JSON schema, validated.

    Raises:
        ValidationError: It has numbers that cannot be enforced, or references that lead nowhere.
    """
    schema = json.loads(grammar.text)
    changed = False
    for node in list(subschemas(schema)):
        for keyword, value in node.items():
            if keyword in CONSTANT_KEYWORDS and any(abs(number) > EXACT for number in _numbers(value)):
                raise grammar.refused(
                    f"cannot be used: a number in {keyword} is beyond ±{EXACT}, where it cannot be enforced exactly"
                )
            if keyword in _LOWER | _UPPER and _is_number(value) and abs(value) >= EXACT:
                node[keyword], changed = _rounded(grammar, keyword, value), True
    _refuse_circles(grammar, schema)
    return json.dumps(schema) if changed else grammar.text


def _numbers(value: object) -> Iterator[float]:
    """Yield every number in some data."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, (list, dict)):
            waiting += each.values() if isinstance(each, dict) else each
        elif isinstance(each, (int, float)):
            yield each


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _rounded(grammar: Grammar, keyword: str, bound: float) -> float:
    """Return a bound that llguidance takes as it is and that allows nothing the given one does not."""
    if keyword == "maximum" and bound >= WIDEST - 1:
        return WIDEST - 1
    inwards = -math.inf if keyword in _UPPER else math.inf
    limited = max(-WIDEST, min(bound, WIDEST))
    rounded = float(limited)
    # At this size one more is the same float, so an exclusive bound is as good as an inclusive one further in.
    short = rounded < bound if keyword in _LOWER else rounded > bound
    if short or keyword.startswith("exclusive") or rounded == -WIDEST:
        rounded = math.nextafter(rounded, inwards)
    if not -WIDEST < rounded < WIDEST:
        raise grammar.refused(f"cannot be used: its {keyword} is beyond 64 bits, where it cannot be enforced")
    return int(rounded)


def _refuse_circles(grammar: Grammar, schema: object) -> None:
    """Refuse schemas that lead to nothing but each other."""
    circling, origins = _leading_on(schema)
    arrived = [place for place in origins if place not in circling]
    while arrived:
        for origin in origins[arrived.pop()]:
            if circling.pop(origin, None) is not None:
                arrived.append(origin)
    target = next(filter(None, map(_target, circling.values())), None)
    if target is not None:
        raise grammar.refused(f"cannot be used: following {target[:100]} leads in a circle and to nothing else")


def _leading_on(schema: object) -> tuple[dict[int, Any], Mapping[int, list[int]]]:
    """Return the schemas that refer to others for the same value, and from where each of those is referred to.

    Both by identity, since equal schemas may stand in several places.
    """
    waiting: list[Any] = list(subschemas(schema))
    anchors = {node["$anchor"]: node for node in waiting if isinstance(node.get("$anchor"), str)}
    leading: dict[int, Any] = {}
    origins: defaultdict[int, list[int]] = defaultdict(list)
    while waiting:
        node = waiting.pop()
        ways = [] if id(node) in leading else _ways(node, schema, anchors)
        if ways:
            leading[id(node)] = node
            waiting += ways
        for way in ways:
            origins[id(way)].append(id(node))
    return leading, origins


def _ways(node: object, schema: object, anchors: Mapping[str, object]) -> list[object]:
    """Return the schemas that one refers to for the same value; none when it says itself what that must be."""
    if not isinstance(node, dict):
        return []
    target = _target(node)
    ways = [] if target is None else [_found(schema, target, anchors)]
    for keyword in _ALTERNATIVES:
        value = node.get(keyword)
        ways += value if isinstance(value, list) else []
    return ways


def _target(node: object) -> str | None:
    """Return where a schema refers to inside of its document."""
    target = node.get("$ref") if isinstance(node, dict) else None
    return target if isinstance(target, str) and target.startswith("#") else None


def _found(schema: object, target: str, anchors: Mapping[str, object]) -> object:
    """Return what a reference leads to; None when that is nothing."""
    if target[1:2] not in ("", "/"):
        return anchors.get(target[1:])
    node = schema
    for step in urllib.parse.unquote(target).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(node, list):
            known = name.isdecimal() and len(name) <= _INDEX_DIGITS and int(name) < len(node)
            node = node[int(name)] if known else None
        else:
            node = node.get(name) if isinstance(node, dict) else None
    return node

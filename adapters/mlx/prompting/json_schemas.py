"""Preparation of JSON Schemas for llguidance.

llguidance stores every number of a schema as a 64-bit float: a bound or constant without an exact float would be
enforced as another number, and one at the lower end of 64-bit integers aborts the process. It detects circular
references only while decoding. So such bounds are rounded to bounds at least as strict, and such constants and
references are refused; llguidance itself refuses everything else that it does not support.
"""

import json
import math
import urllib.parse
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from mlxk.domain.generation.grammar import CONSTANT_KEYWORDS, Grammar, subschemas

MAX_EXACT = 2**53
"""Up to this value, and down to its negative, floats represent every integer."""

MAX_BOUND = 2**63
"""Beyond this value, and below its negative, llguidance uses the last 64-bit integer instead."""

_LOWER = frozenset({"minimum", "exclusiveMinimum"})
_UPPER = frozenset({"maximum", "exclusiveMaximum"})

_ALTERNATIVES = ("allOf", "anyOf", "oneOf")
"""Keywords whose values are schemas of the same instance."""

_INDEX_DIGITS = 6
"""Maximum digits of a list index in a reference; no schema has lists that long."""


def enforceable(grammar: Grammar) -> str:
    """Return the text of a JSON schema that llguidance enforces correctly.

    Args:
        grammar: A JSON schema, validated.

    Raises:
        ValidationError: It has numbers that cannot be enforced exactly, or circular references.
    """
    schema = json.loads(grammar.text)
    changed = False
    for node in list(subschemas(schema)):
        for keyword, value in node.items():
            if keyword in CONSTANT_KEYWORDS and any(abs(number) > MAX_EXACT for number in _numbers(value)):
                raise grammar.refused(
                    f"cannot be used: a number in {keyword} is beyond ±{MAX_EXACT}, where it cannot be enforced exactly"
                )
            if keyword in _LOWER | _UPPER and _is_number(value) and abs(value) >= MAX_EXACT:
                node[keyword], changed = _rounded(grammar, keyword, value), True
    _refuse_circular_references(grammar, schema)
    return json.dumps(schema) if changed else grammar.text


def _numbers(value: object) -> Iterator[float]:
    """Yield every number in a JSON value."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, (list, dict)):
            pending += item.values() if isinstance(item, dict) else item
        elif isinstance(item, (int, float)):
            yield item


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _rounded(grammar: Grammar, keyword: str, bound: float) -> float:
    """Return a bound that llguidance represents exactly and that is at least as strict."""
    if keyword == "maximum" and bound >= MAX_BOUND - 1:
        return MAX_BOUND - 1
    inwards = -math.inf if keyword in _UPPER else math.inf
    limited = max(-MAX_BOUND, min(bound, MAX_BOUND))
    rounded = float(limited)
    # Floats of this size are more than 1 apart, so an exclusive bound becomes the next float as an inclusive one.
    too_lenient = rounded < bound if keyword in _LOWER else rounded > bound
    if too_lenient or keyword.startswith("exclusive") or rounded == -MAX_BOUND:
        rounded = math.nextafter(rounded, inwards)
    if not -MAX_BOUND < rounded < MAX_BOUND:
        raise grammar.refused(f"cannot be used: its {keyword} is beyond 64 bits, where it cannot be enforced")
    return int(rounded)


def _refuse_circular_references(grammar: Grammar, schema: object) -> None:
    """Refuse schemas whose references lead only to each other, never to a description of the instance."""
    circular, referrers = _references(schema)
    resolved = [node for node in referrers if node not in circular]
    while resolved:
        for referrer in referrers[resolved.pop()]:
            if circular.pop(referrer, None) is not None:
                resolved.append(referrer)
    target = next(filter(None, map(_target, circular.values())), None)
    if target is not None:
        raise grammar.refused(f"cannot be used: following {target[:100]} leads in a circle and to nothing else")


def _references(schema: object) -> tuple[dict[int, Any], Mapping[int, list[int]]]:
    """Return the schemas that refer to others for the same instance, and for each target its referrers.

    Both are keyed by ``id``, since equal schemas may occur in several places.
    """
    pending: list[Any] = list(subschemas(schema))
    anchors = {node["$anchor"]: node for node in pending if isinstance(node.get("$anchor"), str)}
    referring: dict[int, Any] = {}
    referrers: defaultdict[int, list[int]] = defaultdict(list)
    while pending:
        node = pending.pop()
        targets = [] if id(node) in referring else _targets(node, schema, anchors)
        if targets:
            referring[id(node)] = node
            pending += targets
        for target in targets:
            referrers[id(target)].append(id(node))
    return referring, referrers


def _targets(node: object, schema: object, anchors: Mapping[str, object]) -> list[object]:
    """Return the schemas that a schema refers to for the same instance, by ``$ref`` or as alternatives."""
    if not isinstance(node, dict):
        return []
    target = _target(node)
    targets = [] if target is None else [_resolved(schema, target, anchors)]
    for keyword in _ALTERNATIVES:
        value = node.get(keyword)
        targets += value if isinstance(value, list) else []
    return targets


def _target(node: object) -> str | None:
    """Return a schema's reference within its document."""
    target = node.get("$ref") if isinstance(node, dict) else None
    return target if isinstance(target, str) and target.startswith("#") else None


def _resolved(schema: object, target: str, anchors: Mapping[str, object]) -> object:
    """Return the schema that a reference points to; None when there is none."""
    if target[1:2] not in ("", "/"):
        return anchors.get(target[1:])
    node = schema
    for step in urllib.parse.unquote(target).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(node, list):
            exists = name.isdecimal() and len(name) <= _INDEX_DIGITS and int(name) < len(node)
            node = node[int(name)] if exists else None
        else:
            node = node.get(name) if isinstance(node, dict) else None
    return node

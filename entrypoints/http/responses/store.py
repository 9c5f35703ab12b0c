"""The store of responses that later requests may refer to: in memory, bounded, separate for each API key."""

import json
import threading
import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from mlxk.domain.errors import NotFoundError

MAX_RESPONSES = 1000
"""Most responses of all owners together."""

MAX_BYTES = 64 * 2**20
"""Most bytes of all responses together, as JSON."""

PREVIOUS = "previous_response_id"
"""The field with the id of the response that a request continues."""

LOST = "Send the whole conversation in input; what is kept is bounded, and lost when the server restarts."

_PREFIXES = {
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "message": "msg",
    "reasoning": "rs",
}

Items = tuple[tuple[str, bytes], ...]
"""Items in order: their ids and their JSON."""


@attrs.frozen
class StoredResponse:
    """A response and the items of its request."""

    document: bytes
    """JSON of the response, without its output."""
    inputs: Items
    """Items of the request."""
    outputs: Items
    """Items of the response."""
    previous: str | None
    """Id of the response that it continues."""

    @property
    def size(self) -> int:
        """Bytes of the JSON."""
        return len(self.document) + sum(len(item) for _, item in self.items)

    @property
    def items(self) -> Items:
        """All items."""
        return self.inputs + self.outputs

    def response(self) -> dict[str, Any]:
        """Return the response."""
        return {**json.loads(self.document), "output": [json.loads(item) for _, item in self.outputs]}


class ResponseStore:
    """Keeps responses, and evicts the least recently used of the largest owner. Safe to share between threads.

    Args:
        max_responses: Most responses of all owners together.
        max_bytes: Most bytes of all responses together.
    """

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._owners: dict[str, OrderedDict[str, StoredResponse]] = {}
        self._sizes: dict[str, int] = {}

    def keep(self, owner: str, inputs: Items, document: Mapping[str, Any]) -> bool:
        """Store a response unless it is too large; return whether it is stored.

        Args:
            owner: Owner of the response.
            inputs: The items of the request, without those of previous responses; see ``listed``.
            document: The response.
        """
        entry = StoredResponse(
            _json({name: value for name, value in document.items() if name != "output"}),
            inputs,
            tuple((item["id"], _json(item)) for item in document["output"]),
            document[PREVIOUS],
        )
        if entry.size > self._max_bytes // 2:
            return False
        with self._lock:
            self._owners.setdefault(owner, OrderedDict())[document["id"]] = entry
            self._sizes[owner] = self._sizes.get(owner, 0) + entry.size
            self._shrink()
        return True

    def find(self, owner: str, response_id: str, field: str = "response_id") -> StoredResponse:
        """Return a response.

        Args:
            owner: Owner of the response.
            response_id: Id of the response.
            field: The field with the id, for the error.

        Raises:
            NotFoundError: The owner has no such response.
        """
        with self._lock:
            responses = self._owners.get(owner, OrderedDict())
            if response_id not in responses:
                raise NotFoundError.in_field(field, "there is no such response, or it is no longer kept", hint=LOST)
            responses.move_to_end(response_id)
            return responses[response_id]

    def forget(self, owner: str, response_id: str) -> None:
        """Delete a response.

        Raises:
            NotFoundError: The owner has no such response.
        """
        self.find(owner, response_id)
        with self._lock:
            self._remove(owner, response_id)

    def conversation(self, owner: str, response_id: str) -> list[dict[str, Any]]:
        """Return the items of a response and of all previous ones, oldest first.

        Raises:
            NotFoundError: The response or a previous one is not stored.
        """
        entries: list[StoredResponse] = []
        current: str | None = response_id
        while current is not None:
            entries.append(self.find(owner, current, PREVIOUS))
            current = entries[-1].previous
        return [json.loads(item) for entry in reversed(entries) for _, item in entry.items]

    def items(self, owner: str, fields: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """Return items of any responses by their ids.

        Args:
            owner: Owner of the responses.
            fields: Fields that refer to the items, by item id, for the error.

        Raises:
            NotFoundError: No response of the owner has one of the items.
        """
        found: dict[str, bytes] = {}
        if fields:
            with self._lock:
                for entry in self._owners.get(owner, OrderedDict()).values():
                    for item_id, item in entry.items:
                        if item_id in fields:
                            found.setdefault(item_id, item)
        for item_id, field in fields.items():
            if item_id not in found:
                raise NotFoundError.in_field(field, "there is no such item, or it is no longer kept", hint=LOST)
        return {item_id: json.loads(item) for item_id, item in found.items()}

    def _shrink(self) -> None:
        """Evict responses of the owner with the most bytes until the bounds hold."""
        while self._excess():
            largest = max(self._sizes, key=lambda owner: self._sizes[owner])
            self._remove(largest, next(iter(self._owners[largest])))

    def _excess(self) -> bool:
        count = sum(map(len, self._owners.values()))
        return count > self._max_responses or sum(self._sizes.values()) > self._max_bytes

    def _remove(self, owner: str, response_id: str) -> None:
        responses = self._owners.get(owner, OrderedDict())
        removed = responses.pop(response_id, None)
        if removed is not None:
            self._sizes[owner] -= removed.size
        if not responses:
            self._owners.pop(owner, None)
            self._sizes.pop(owner, None)


def text_item(text: str) -> dict[str, Any]:
    """Return the item for a plain text."""
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def listed(items: Sequence[Mapping[str, Any]]) -> Items:
    """Return the items of a request as they are stored and listed."""
    return tuple((item["id"], _json(item)) for item in map(_listed_item, items))


def _listed_item(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return an item with an id and a type, and with the text of a message as a part."""
    kind = item.get("type") or "message"
    identity = item.get("id")
    if not (isinstance(identity, str) and identity):
        identity = f"{_PREFIXES.get(kind, 'item')}_{uuid.uuid4().hex}"
    listed_item = {**item, "id": identity, "type": kind}
    if kind == "message" and isinstance(item.get("content"), str):
        part = "output_text" if item.get("role") == "assistant" else "input_text"
        listed_item["content"] = [{"type": part, "text": item["content"]}]
    return listed_item


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()

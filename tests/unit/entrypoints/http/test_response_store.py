"""The store of responses: bounded in number and size, fair between owners, and never half a chain."""

import threading
from typing import Any

import pytest

from mlxk.domain.errors import NotFoundError
from mlxk.entrypoints.http.responses.store import ResponseStore, listed, text_item

Json = dict[str, Any]

MISSING = "there is no such item, or it is no longer kept"


def document(name: str, previous: str | None = None, text: str = "hi") -> Json:
    """Return a response."""
    said = {"type": "message", "id": f"msg_{name}", "role": "assistant", "content": [{"text": text}]}
    return {"id": name, "previous_response_id": previous, "output": [said]}


def keep(store: ResponseStore, name: str, owner: str = "ada", **fields: Any) -> bool:
    """Keep a response."""
    return store.keep(owner, listed([text_item(f"to {name}")]), document(name, **fields))


def kept(store: ResponseStore, *names: str, owner: str = "ada") -> list[str]:
    """Return those of some responses that are kept."""
    found = []
    for name in names:
        try:
            found.append(store.find(owner, name).response()["id"])
        except NotFoundError:
            continue
    return found


def test_the_least_recently_used_goes_first() -> None:
    store = ResponseStore(max_responses=3)
    for name in "abc":
        assert keep(store, name)
    store.find("ada", "a")
    keep(store, "d")
    assert kept(store, *"abcd") == ["a", "c", "d"]


def test_the_size_is_bounded_and_what_is_too_large_is_not_kept() -> None:
    store = ResponseStore(max_bytes=4000)
    assert not keep(store, "huge", text="x" * 2000)
    for index in range(10):
        assert keep(store, str(index), text="x" * 1000)
    assert 1 <= len(kept(store, *map(str, range(10)))) <= 3
    assert kept(store, "9") == ["9"]


def test_who_keeps_much_makes_room_for_who_keeps_little() -> None:
    store = ResponseStore(max_responses=4)
    keep(store, "mine", owner="bob")
    for index in range(20):
        keep(store, str(index))
    assert kept(store, "mine", owner="bob") == ["mine"]
    assert kept(store, *map(str, range(20))) == ["17", "18", "19"]


def test_using_a_chain_keeps_its_beginning() -> None:
    store = ResponseStore(max_responses=3)
    keep(store, "a")
    keep(store, "b", previous="a")
    keep(store, "x")
    assert [item["id"] for item in store.conversation("ada", "b") if "id" in item][1::2] == ["msg_a", "msg_b"]
    keep(store, "y")
    assert kept(store, *"abxy") == ["a", "b", "y"]


def test_a_chain_without_its_beginning_is_not_there() -> None:
    store = ResponseStore()
    keep(store, "a")
    keep(store, "b", previous="a")
    store.forget("ada", "a")
    with pytest.raises(NotFoundError, match="previous_response_id"):
        store.conversation("ada", "b")


def test_items_of_the_same_id_are_all_kept() -> None:
    store = ResponseStore()
    store.keep(
        "ada",
        listed([{"role": "user", "content": "a", "id": "m"}, {"role": "assistant", "content": "b", "id": "m"}]),
        document("r"),
    )
    first, second, _ = store.conversation("ada", "r")
    assert first["content"] == [{"type": "input_text", "text": "a"}]
    assert second["content"] == [{"type": "output_text", "text": "b"}]
    assert store.items("ada", {"m": "input[0].id"}) == {"m": first}


def test_items_are_found_by_id_for_their_owner_alone() -> None:
    store = ResponseStore()
    for name in "ab":
        keep(store, name)
    found = store.items("ada", {"msg_b": "input[0].id", "msg_a": "input[1].id"})
    assert {name: item["id"] for name, item in found.items()} == {"msg_a": "msg_a", "msg_b": "msg_b"}
    for owner, name in (("ada", "msg_c"), ("bob", "msg_a")):
        with pytest.raises(NotFoundError) as caught:
            store.items(owner, {name: "input[1].id"})
        assert caught.value.detail == {"problems": [{"param": "input[1].id", "message": MISSING}]}


def test_many_threads_keep_and_forget_at_once() -> None:
    store = ResponseStore(max_responses=50)

    def work(owner: str) -> None:
        for index in range(200):
            keep(store, f"{owner}{index}", owner)
            if index % 3 == 0:
                store.forget(owner, f"{owner}{index}")

    threads = [threading.Thread(target=work, args=(owner,)) for owner in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    left = [kept(store, *(f"{owner}{index}" for index in range(200)), owner=owner) for owner in ("a", "b", "c")]
    assert sum(map(len, left)) <= 50

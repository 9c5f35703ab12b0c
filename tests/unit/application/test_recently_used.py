"""The LRU cache bounded by bytes."""

from mlxk.application.recently_used import RecentlyUsed


def test_the_least_recently_used_goes_first() -> None:
    kept = RecentlyUsed[str](10)
    for key in "abc":
        kept.put(key, key.upper(), 3)
    assert kept.get("a") == "A"
    kept.put("d", "D", 3)
    assert [kept.get(key) for key in "abcd"] == ["A", None, "C", "D"]
    assert kept.size_bytes == 9


def test_a_value_that_is_put_twice_counts_once() -> None:
    kept = RecentlyUsed[str](10)
    for _ in range(2):
        kept.put("a", "A", 6)
    assert (kept.get("a"), kept.size_bytes) == ("A", 6)


def test_nothing_is_kept_beyond_the_limit_or_without_one() -> None:
    kept = RecentlyUsed[str]()
    kept.put("a", "A", 1)
    assert (kept.get("a"), kept.size_bytes) == (None, 0)
    kept.max_bytes = 5
    kept.put("b", "B", 6)
    assert (kept.get("b"), kept.size_bytes) == (None, 0)


def test_a_value_beyond_the_limit_evicts_no_other() -> None:
    kept = RecentlyUsed[str](5)
    kept.put("a", "A", 5)
    kept.put("b", "B", 6)
    assert (kept.get("a"), kept.get("b"), kept.size_bytes) == ("A", None, 5)


def test_a_lower_limit_holds_from_the_next_value_on() -> None:
    kept = RecentlyUsed[str](5)
    kept.put("a", "A", 5)
    kept.max_bytes = 3
    kept.put("b", "B", 4)
    assert (kept.get("a"), kept.get("b"), kept.size_bytes) == (None, None, 0)

"""The table of ``du`` and the line below it: which columns and rows there are, links, revisions, totals."""

import attrs
import pytest

from mlxk.application.use_cases.cache_upkeep import CacheUsage, MeasuredModel
from mlxk.domain.models.disk_usage import ModelUsage, StoredRevision
from mlxk.entrypoints.cli.render.disk_space import usage_json, usage_summary, usage_table

REVISIONS = (
    StoredRevision("a" * 40, ("main",), is_current=True, own_bytes=1000),
    StoredRevision("b" * 40, (), is_current=False, own_bytes=2000),
    StoredRevision("c" * 40, (), is_current=True, own_bytes=3000),
)
PLAIN = ModelUsage("org/plain", REVISIONS[:1], (), other_bytes=500_000)
LINKED = ModelUsage("org/linked", (), (), link_to="/elsewhere")
IN_PARTS = ModelUsage("org/parts", (), (), linked_parts=("blobs", "refs"))
OLD = ModelUsage("org/old", REVISIONS, (), other_bytes=7_000_000)


def usage(*models: ModelUsage, remainder: int | None = None) -> CacheUsage:
    measured = tuple(MeasuredModel(each, 0, None) for each in models)
    return CacheUsage(measured, sum(each.total_bytes for each in models) + (remainder or 0), remainder)


def rows(found: CacheUsage, *, with_revisions: bool = False) -> list[list[str]]:
    text = usage_table(found, None, with_revisions=with_revisions)
    lines = [line for line in text.splitlines() if not set(line) <= set("-+| ")]
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def test_the_largest_model_is_first_and_equal_ones_go_by_name() -> None:
    found = rows(usage(IN_PARTS, PLAIN, LINKED, OLD))
    assert found[0] == ["Name", "Size", "Unique", "Revisions"]
    assert [row[0] for row in found[1:]] == ["org/old", "org/plain", "org/linked", "org/parts"]


def test_a_link_is_shown_in_place_of_revisions_whole_or_by_its_parts() -> None:
    shown = {row[0]: row[-1] for row in rows(usage(PLAIN, OLD, LINKED, IN_PARTS))}
    assert shown["org/linked"] == "link: /elsewhere"
    assert shown["org/parts"] == "link: blobs, refs"
    assert (shown["org/plain"], shown["org/old"]) == ("1", "3 (1 old)")


def test_revisions_have_rows_of_their_own_below_their_model() -> None:
    found = rows(usage(PLAIN, OLD), with_revisions=True)
    assert [(row[0], row[-1]) for row in found[1:]] == [
        ("org/old", "3 (1 old)"),
        ("@aaaaaaaaaaaa", "main"),
        ("@bbbbbbbbbbbb", "old"),
        ("@cccccccccccc", "current"),
        ("org/plain", "1"),
        ("@aaaaaaaaaaaa", "main"),
    ]


def test_a_column_is_there_as_soon_as_one_model_has_something_in_it() -> None:
    found = usage(PLAIN, OLD)
    shared = attrs.evolve(found, models=(attrs.evolve(found.models[0], shared_bytes=100_000), found.models[1]))
    assert rows(shared)[0] == ["Name", "Size", "Unique", "Shared", "Revisions"]
    assert [row[3] for row in rows(shared)[1:]] == ["-", "100.0KB"]


@pytest.mark.parametrize(
    ("found", "free", "text"),
    [
        (usage(), None, "No model is cached\n"),
        (usage(remainder=0), 2 * 10**9, "No model is cached; 2.0GB free on the disk\n"),
        (usage(PLAIN), None, "501.0KB in 1 model\n"),
        (usage(PLAIN, LINKED), 0, "501.0KB in 2 models; 0B free on the disk\n"),
        (usage(PLAIN, remainder=99_000), None, "600.0KB in 1 model, of that 99.0KB outside the models\n"),
        (usage(remainder=99_000), None, "99.0KB in 0 models, of that 99.0KB outside the models\n"),
    ],
)
def test_what_follows_the_table(found: CacheUsage, free: int | None, text: str) -> None:
    assert usage_summary(found, free, None) == text


def test_links_are_named_in_json_and_absent_where_there_are_none() -> None:
    models = usage_json(usage(PLAIN, LINKED, IN_PARTS), None)["models"]
    assert isinstance(models, list)
    links = [{name: each[name] for name in ("link_to", "linked_parts") if name in each} for each in models]
    assert links == [{}, {"link_to": "/elsewhere"}, {"linked_parts": ["blobs", "refs"]}]

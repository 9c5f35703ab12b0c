"""Front matter of model cards."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxk.domain.models.snapshot import ModelCard, read_card


def card(front_matter: str) -> ModelCard:
    return read_card(f"---\n{front_matter}\n---\n# A model\nlicense: not this\n".encode())


@given(st.binary())
def test_any_bytes_give_a_card(data: bytes) -> None:
    found = read_card(b"---\n" + data)
    assert isinstance(found.made_for_mlx, bool)
    assert found.license is None or found.license


@given(st.lists(st.sampled_from(["a: b", "a:", "- x", "  - y", "c: [d, e]", "  n: m", "", "# c", "-", "---"])))
def test_any_arrangement_of_lines_gives_a_card(lines: list[str]) -> None:
    assert isinstance(card("\n".join(lines)), ModelCard)


@pytest.mark.parametrize(
    ("front_matter", "license_name"),
    [
        ("license: apache-2.0", "apache-2.0"),
        ("license: 'mit'  ", "mit"),
        ('license: "mit"', "mit"),
        ("license: mit # as upstream", "mit"),
        ("license:\n- mit\n- apache-2.0", "mit, apache-2.0"),
        ("license: [mit, apache-2.0]", "mit, apache-2.0"),
        ("license:", None),
        ("tags: [x]", None),
        ("model-index:\n  license: mit", None),
    ],
)
def test_the_license_is_read_however_it_is_written(front_matter: str, license_name: str | None) -> None:
    assert card(front_matter).license == license_name


@pytest.mark.parametrize(
    "front_matter",
    ["library_name: mlx", "tags: [mlx, chat]", "tags:\n- chat\n- MLX", "tags:\n  - mlx\nx: y", "x: y\ntags: ['mlx']"],
)
def test_a_card_made_for_mlx_is_known(front_matter: str) -> None:
    assert card(front_matter).made_for_mlx


@pytest.mark.parametrize(
    "front_matter", ["library_name: transformers", "tags: [mlx-my-repo]", "base:\n  tags:\n  - mlx", "title: mlx"]
)
def test_a_card_that_only_mentions_mlx_elsewhere_is_not_made_for_it(front_matter: str) -> None:
    assert not card(front_matter).made_for_mlx


@pytest.mark.parametrize("text", ["", "license: mit", "# Title\n---\nlicense: mit\n---\n", "---\nlicense: mit\n"])
def test_text_without_closed_front_matter_at_its_start_states_nothing(text: str) -> None:
    assert not read_card(text.encode()).fields


def test_windows_line_ends_are_read() -> None:
    assert read_card(b"---\r\nlicense: mit\r\ntags:\r\n- mlx\r\n---\r\n").made_for_mlx

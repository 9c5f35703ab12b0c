"""Which files of a workspace are the model's own."""

import pytest

from mlxk.domain.models.model import SENTINEL_NAME, is_part_of_model


@pytest.mark.parametrize(
    "path", ["config.json", "1_Pooling/config.json", ".gitattributes", "notes/.git/x", "hf_cache/x"]
)
def test_a_model_has_its_own_files(path: str) -> None:
    assert is_part_of_model(path)


@pytest.mark.parametrize("path", [SENTINEL_NAME, ".git/HEAD", ".hf_cache/hub/x"])
def test_what_is_kept_beside_a_model_is_no_part_of_it(path: str) -> None:
    assert not is_part_of_model(path)

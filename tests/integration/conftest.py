"""An engine for the tests of this folder."""

from collections.abc import Iterator

import pytest
from doubles.event_log import InMemoryEventLog

from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock


@pytest.fixture
def engine() -> Iterator[MlxTextGenerator]:
    """Return one without models, with the real clock; it ends with the test."""
    generator = MlxTextGenerator(InMemoryEventLog(), SystemClock())
    yield generator
    generator.close()

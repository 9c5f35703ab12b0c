"""Checks before a server starts."""

import sys

import pytest

from mlxk.domain.errors import BackendNotInstalledError
from mlxk.entrypoints.start_checks import require_exporter


@pytest.mark.parametrize(
    "missing", ["opentelemetry.sdk", "opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http"]
)
def test_traces_without_their_packages_are_refused_with_the_command_that_installs_them(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_exporter()
    for name in [missing, *(name for name in sys.modules if name.startswith(f"{missing}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendNotInstalledError) as refused:
        require_exporter()
    assert refused.value.message == "--otlp needs the OpenTelemetry SDK, which is not installed"
    assert refused.value.hint == "Install it: pip install 'mlxk[otel]'"

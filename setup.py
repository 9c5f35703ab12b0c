"""Names the packages, so that a build does not depend on the symlinks under ``src/mlxk`` (docs/adr/0007)."""

from setuptools import find_packages, setup

LAYERS = ("domain", "application", "adapters", "entrypoints", "contracts")

setup(
    packages=[
        "mlxk",
        *(f"mlxk.{layer}" for layer in LAYERS),
        *(f"mlxk.{layer}.{package}" for layer in LAYERS for package in find_packages(layer)),
    ],
    package_dir={"mlxk": "src/mlxk", **{f"mlxk.{layer}": layer for layer in LAYERS}},
    package_data={
        "mlxk": ["py.typed"],
        "mlxk.adapters.builtin": ["models/*/*", "*.json"],
        "mlxk.entrypoints.http": ["page_files/**/*"],
        "mlxk.contracts": ["cli/**/*.json", "http/**/*.json"],
    },
    include_package_data=False,
)

"""Lets ``python -m mlxk`` do what the ``mlxk`` command does."""

import sys

from mlxk.entrypoints.main import main

if __name__ == "__main__":
    sys.exit(main())

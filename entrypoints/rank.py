"""The program of a rank other than the first: ``python -m mlxk.entrypoints.rank``, started by rank 0, never by hand.

Its orders are a line of JSON on standard input. With ``examined`` it answers about this host and a model, and measures
links, until its input ends.
"""

import json
import os
import sys

import attrs

from mlxk.domain.errors import MlxkError
from mlxk.entrypoints.container import build
from mlxk.entrypoints.settings import read_settings


def main() -> int:
    """Follow rank 0 until it has gone, or answer it; return the exit status."""
    line = sys.stdin.readline()
    if not line:
        return 0
    try:
        orders = json.loads(line)
        container = build(attrs.evolve(read_settings(), blas=orders["blas"]))
        if "examined" in orders:
            container.adapters.be_examined(orders["examined"], container.use_cases.resolve_model())
        else:
            container.adapters.follow_rank_zero(orders, container.use_cases.resolve_model())
    except MlxkError as error:
        sys.stderr.write(error.message + "\n")
    return 1


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # threads of MLX may wait for ranks that have gone

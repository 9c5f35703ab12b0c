"""The process of every rank but the first: ``python -m mlxk.entrypoints.rank``, started by rank 0, never by hand.

Its orders are one line of JSON on standard input. With the key ``examined`` it reports on this host and a model and
measures links, until standard input ends; otherwise it computes its share of a model.
"""

import json
import os
import sys

import attrs

from mlxk.domain.errors import MlxkError
from mlxk.entrypoints.container import build
from mlxk.entrypoints.settings import read_settings


def main() -> int:
    """Execute the orders of rank 0 until it ends; return the exit status, 0 where it ended before it gave any."""
    line = sys.stdin.readline()
    if not line:
        return 0
    try:
        orders = json.loads(line)
        container = build(attrs.evolve(read_settings(), blas=orders["blas"]))
        if "examined" in orders:
            container.adapters.answer_examination(orders["examined"], container.use_cases.resolve_model())
        else:
            container.adapters.follow_rank_zero(orders, container.use_cases.resolve_model())
    except MlxkError as error:
        sys.stderr.write(error.message + "\n")
    return 1


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # threads of MLX may still wait for ranks that have ended

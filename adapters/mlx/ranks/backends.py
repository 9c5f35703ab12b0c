"""Which layers of MLX by which ranks may exchange are there. It imports nothing but MLX itself."""

import mlx.core as mx

BACKENDS = ("ring", "jaccl", "nccl", "mpi")


def available_backends() -> dict[str, bool]:
    """Return the layers by name, and whether MLX was built with them and has what they need on this machine."""
    return {each: mx.distributed.is_available(backend=each) for each in BACKENDS}

"""Headers of safetensors files on disk, read within bounds and without MLX."""

import os

from mlxk.domain.models.file_formats import (
    MAX_HEADER_BYTES,
    PREFIX_BYTES,
    SafetensorsHeader,
    header_span,
    read_header,
)


def header_of(path: str) -> SafetensorsHeader:
    """Return the header of a safetensors file.

    Raises:
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        size, prefix = os.fstat(file.fileno()).st_size, file.read(PREFIX_BYTES)
        span = min(header_span(prefix), MAX_HEADER_BYTES + PREFIX_BYTES)
        return read_header(prefix + file.read(span - PREFIX_BYTES), size)

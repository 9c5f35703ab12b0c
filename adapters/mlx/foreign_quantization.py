"""Weights that other libraries have quantized: the methods and forms of them that the MLX libraries load."""

from collections.abc import Iterator

from mlxk.domain.models.snapshot import MODELOPT_CONFIG, ModelSnapshot


def quantization_refusal(snapshot: ModelSnapshot, library: str, *, fp8: bool) -> str | None:
    """Return why a library cannot load weights that another library has quantized; None when it can.

    What MLX has quantized says so under ``quantization``; the key of the others is ``quantization_config``, or they
    have a file of their own.

    Args:
        snapshot: The model.
        library: The name of its distribution.
        fp8: Whether it loads the architecture with weights in FP8.
    """
    if isinstance(snapshot.config.get("quantization"), dict):
        return None
    stated = _foreign_quantization(snapshot)
    if stated is None:
        narrow = next((dtype for dtype in _dtypes(snapshot) if dtype.startswith("F8_E")), None)
        held = narrow is None or fp8
        return None if held else f"Weights in {narrow} without a quantization that {library} loads"
    method = stated.get("quant_method")
    if not isinstance(method, str):
        return "Quantized by a method that its config does not name"
    form = _form(stated)
    accepted = _METHODS[library].get(method.lower().replace("_", "-"))
    if accepted is None or (accepted and form not in accepted):
        return f"Quantized by {method}{f' ({form})' if form else ''}, which {library} does not load"
    if method.lower() == "fp8" and not fp8 and not _is_mxfp8(stated):
        return f"Quantized by fp8, which {library} does not load for this architecture"
    if method.lower() in {"awq", "gptq"} and not _is_packed_by_outputs(snapshot):
        return f"Quantized by {method} in a layout that {library} does not load"
    return None


_METHODS: dict[str, dict[str, frozenset[str]]] = {
    "mlx-lm": {
        "awq": frozenset({"4"}),
        "bitnet": frozenset(),
        "compressed-tensors": frozenset({"nvfp4-pack-quantized", "mxfp4-pack-quantized", "pack-quantized"}),
        "fp8": frozenset(),
        "gptq": frozenset({"4"}),
        "modelopt": frozenset({"NVFP4"}),
        "mxfp4": frozenset(),
        "mxfp8": frozenset(),
    },
    "mlx-vlm": {
        "compressed-tensors": frozenset({"mxfp4-pack-quantized", "pack-quantized"}),
        "fp8": frozenset(),
        "modelopt": frozenset({"NVFP4", "MXFP8"}),
        "mxfp4": frozenset(),
    },
    "mlx-audio": {},
}
"""The methods that each library loads, with their forms; empty where it loads every form."""


def _foreign_quantization(snapshot: ModelSnapshot) -> dict[str, object] | None:
    nested = snapshot.config.get("text_config")
    for part in (snapshot.config, nested if isinstance(nested, dict) else {}):
        stated = part.get("quantization_config")
        if isinstance(stated, dict) and stated:
            return stated
    separate = snapshot.document(MODELOPT_CONFIG).mapping.get("quantization")
    return {"quant_method": "modelopt", **separate} if isinstance(separate, dict) else None


def _form(stated: dict[str, object]) -> str:
    """Return what distinguishes the forms of a method: a format, an algorithm, or the bits."""
    settings = stated.get("quantization")
    for part in (stated, settings if isinstance(settings, dict) else {}):
        for key in ("format", "quant_algo", "bits"):
            if isinstance(part.get(key), (str, int)):
                return str(part[key])
    return "4" if stated.get("quant_method") in {"awq", "gptq"} else ""


def _is_mxfp8(stated: dict[str, object]) -> bool:
    return stated.get("scale_fmt") == "ue8m0" and stated.get("weight_block_size") == [32, 32]


def _is_packed_by_outputs(snapshot: ModelSnapshot) -> bool:
    """Whether eight outputs share a word, as in AWQ; GPTQ packs inputs, and may reorder them."""
    shapes = {name: _shape(tensor) for header in snapshot.headers.values() for name, tensor in header.tensors.items()}
    if any(name.endswith(".g_idx") for name in shapes):
        return False
    for name, shape in shapes.items():
        scales = shapes.get(f"{name.removesuffix('qweight')}scales", ())
        if name.endswith(".qweight") and len(shape) == len(scales) == 2 and shape[1] * 8 != scales[1]:
            return False
    return True


def _shape(tensor: object) -> tuple[int, ...]:
    shape = tensor.get("shape") if isinstance(tensor, dict) else None
    return tuple(size for size in shape if type(size) is int) if isinstance(shape, list) else ()


def _dtypes(snapshot: ModelSnapshot) -> Iterator[str]:
    """Return the types of the weights, without scales."""
    for header in snapshot.headers.values():
        for name, tensor in header.tensors.items():
            if isinstance(tensor, dict) and name.endswith("weight"):
                yield str(tensor.get("dtype"))

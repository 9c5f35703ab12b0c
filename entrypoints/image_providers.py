"""Providers of what looking at images needs. Part of the composition root; ``container`` registers them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlxk.application.ports.exif_reader import ExifReader
    from mlxk.application.ports.image_decoder import ImageDecoder
    from mlxk.application.use_cases.describe_images import DescribeImages
    from mlxk.application.use_cases.generate_text import GenerateText
    from mlxk.application.use_cases.serve_images import ServeImages
    from mlxk.application.use_cases.serve_text import ServeText
    from mlxk.entrypoints.settings import Settings


def image_decoder() -> "ImageDecoder":
    """Decode images with Pillow."""
    from mlxk.adapters.pillow.images import PillowImageDecoder

    return PillowImageDecoder()


def exif_reader() -> "ExifReader":
    """Read EXIF with Pillow."""
    from mlxk.adapters.pillow.exif import PillowExifReader

    return PillowExifReader()


def describe_images(generate: "GenerateText", decoder: "ImageDecoder", exif: "ExifReader") -> "DescribeImages":
    """Describe images."""
    from mlxk.application.use_cases.describe_images import DescribeImages

    return DescribeImages(generate, decoder, exif)


def serve_images(
    serve_text: "ServeText", decoder: "ImageDecoder", exif: "ExifReader", settings: "Settings"
) -> "ServeImages":
    """Answer clients about images."""
    from mlxk.application.use_cases.serve_images import ServeImages

    return ServeImages(serve_text, decoder, exif, settings.exif_metadata)

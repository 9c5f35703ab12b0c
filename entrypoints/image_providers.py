"""Providers of what looking at images needs. Part of the composition root; ``container`` registers them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlxk.application.ports.image_reader import ImageReader
    from mlxk.application.use_cases.describe_images import DescribeImages
    from mlxk.application.use_cases.generate_text import GenerateText
    from mlxk.application.use_cases.serve_images import ServeImages
    from mlxk.application.use_cases.serve_text import ServeText
    from mlxk.entrypoints.settings import Settings


def image_reader() -> "ImageReader":
    """Read images with Pillow."""
    from mlxk.adapters.pillow.image_reader import PillowImageReader

    return PillowImageReader()


def describe_images(generate: "GenerateText", images: "ImageReader") -> "DescribeImages":
    """Describe images."""
    from mlxk.application.use_cases.describe_images import DescribeImages

    return DescribeImages(generate, images)


def serve_images(serve_text: "ServeText", images: "ImageReader", settings: "Settings") -> "ServeImages":
    """Answer clients about images."""
    from mlxk.application.use_cases.serve_images import ServeImages

    return ServeImages(serve_text, images, settings.exif_metadata)

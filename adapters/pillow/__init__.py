"""Pillow: decoding images and reading their EXIF metadata."""

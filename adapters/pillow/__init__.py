"""Pillow: decoding images, and reading what photos say about themselves."""

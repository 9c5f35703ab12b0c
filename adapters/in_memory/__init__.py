"""A working double of every port, shipped with the product.

On them the program runs end to end with no disk and no MLX; each module's docstring shows how its double is used.
"""

"""Values rendered as JSON and as text; writing them is the work of ``output``."""

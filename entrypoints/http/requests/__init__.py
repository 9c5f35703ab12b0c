"""Request bodies of any API: JSON with limits, strict conversion, and faults by field."""

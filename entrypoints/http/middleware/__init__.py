"""Falcon middleware: what applies to every request before and after its resource."""

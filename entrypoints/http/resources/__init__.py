"""Resources that belong to no API: probes, metrics, and the description of the server."""

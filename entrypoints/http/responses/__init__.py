"""HTTP responses: events of the engine as chunks of a stream, or one document made of the same chunks."""

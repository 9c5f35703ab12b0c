"""What clients are told: events of the engine become chunks of a stream, or one document made of the same chunks."""

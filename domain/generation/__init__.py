"""Text generation: the conversation and settings that go in, the events that come out."""

"""The generation engine: one owner thread, continuous batching, prefill chunks, KV and prefix caches."""

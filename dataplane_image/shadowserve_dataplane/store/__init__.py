"""The client of the key-value store that keeps chunks: one key, one chunk."""

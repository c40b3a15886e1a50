"""From an engine's KV events to changes of the index."""

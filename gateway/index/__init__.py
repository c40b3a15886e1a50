"""The prefix index: which engine holds the KV of which prompt. One contract, in memory or in Redis."""

"""A vLLM engine as a pure model: no clock, no I/O. Replayed in virtual time, and by the engine double in real time."""

"""How far an engine is with starting, read from its log: it takes minutes, and a person wants to see that it moves."""

from pathlib import Path

STAGES = (
    ("vLLM API server version", "starting"),
    ("Initializing a V1 LLM engine", "starting the engine core"),
    ("Starting to load model", "loading weights"),
    ("Loading weights took", "weights loaded"),
    ("Dynamo bytecode transform", "compiling"),
    ("torch.compile took", "compiled"),
    ("GPU KV cache size", "sizing the KV cache"),
    ("CPU KV cache size", "sizing the KV cache"),
    ("Warming up model", "warming up"),
    ("Capturing CUDA graphs", "capturing CUDA graphs"),
    ("Graph capturing finished", "graphs captured"),
    ("init engine (profile, create kv cache, warmup model)", "warmed up"),
    ("Starting vLLM server on", "opening its port"),
    ("Application startup complete", "answering"),
)
"""Lines of vLLM's log and what they mean, in their usual order."""

TAIL_BYTES = 64 << 10


def stage(log: Path) -> str:
    """The latest stage that the log shows; `importing` before the first."""
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return "importing"
    latest = max(((text.rfind(line), name) for line, name in STAGES), default=(-1, ""))
    return latest[1] if latest[0] >= 0 else "importing"

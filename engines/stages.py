"""How far an engine is with starting, read from its log: it takes minutes, and a person wants to see that it moves."""

import re

STAGES = (
    ("vLLM API server version", "starting"),
    ("Initializing a V1 LLM engine", "starting the engine core"),
    ("Starting to load model", "loading weights"),
    ("Loading safetensors checkpoint shards", "loading weights"),
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
"""Pieces of lines of vLLM's log and what they mean, in their usual order."""

_PERCENT = re.compile(r"(\d{1,3})%\|")


class Stages:
    """The latest stage that a log shows; `importing` before the first."""

    def __init__(self) -> None:
        self.name = "importing"
        self.share = 0.0
        """Of the start, 0 to 1, as stages go; they are not of one length."""

    def read(self, line: str) -> None:
        """Take the next line."""
        for at, (piece, name) in enumerate(STAGES):
            if piece in line:
                percent = _PERCENT.search(line)
                self.name = f"{name} {percent[1]} %" if percent else name
                part = int(percent[1]) / 100 if percent else 0.0
                self.share = max(self.share, (at + 1 + part) / (len(STAGES) + 1))
                return

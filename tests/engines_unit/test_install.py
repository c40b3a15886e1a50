"""What the CPU engines need is read from their own metadata."""

from importlib.metadata import version

import pytest

from engines import install

REQUIRED = [
    "torch==2.13.0+cpu; platform_machine == 'x86_64'",
    "torchvision",
    "torchcodec>=0.14; platform_machine != 'riscv64'",
    "fastapi[standard]<0.137.0,>=0.133.0",
    "protobuf==7.36.1; platform_machine == 's390x'",
    "pandas; extra == 'bench'",
    "msgspec",
]


def test_requirements_for_text_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "requires", lambda name: REQUIRED)
    assert install.needs() == ["fastapi[standard]<0.137.0,>=0.133.0", "msgspec"]


def test_exact_versions() -> None:
    assert install.have(f"pytest=={version('pytest')}")
    assert not install.have("pytest==0.1")
    assert not install.have("no-such-package==1")


def test_torch_is_looked_for_on_its_own_index_second(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def pip(*arguments: str) -> str:
        asked.append(arguments)
        return "ERROR: No matching distribution" if len(asked) == 1 else ""

    monkeypatch.setattr(install, "have", lambda requirement: False)
    monkeypatch.setattr(install, "pip", pip)
    monkeypatch.setenv("TORCH_CPU_INDEX", "https://mirror.example/cpu")
    assert install.torch() == ""
    assert asked == [(install.TORCH,), (install.TORCH, "--extra-index-url", "https://mirror.example/cpu")]


def test_failure_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "have", lambda requirement: False)
    monkeypatch.setattr(install, "pip", lambda *arguments: "ERROR: nothing there")
    assert "set TORCH_CPU_INDEX" in install.torch()
    assert "ERROR: nothing there" in install.torch()

"""A Docker engine of the tests' own: its images, containers and sockets are in one folder and go with it.

It needs no registry: the base image is made from Debian's packages. Images are built with the machine's network;
containers run in a network namespace that has nothing but a loopback.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.engines_unit.until import until

REPO = Path(__file__).parents[2]
BASE = "ci/python:3.11"
GATEWAY = "ci/baton-gateway"
ENGINE = "ci/baton-engine"

START_S = 30.0
BUILD_S = 900.0
UP = ("up", "--detach", "--no-build", "--pull", "never", "--wait", "--wait-timeout", "240")
UP_S = 300.0
CERTIFICATES = "/usr/local/share/ca-certificates"

TOOLS = {
    "dockerd": "docker.io",
    "mmdebstrap": "mmdebstrap",
    "unshare": "util-linux",
    "ip": "iproute2",
    "docker-compose": "tests/containers/requirements.txt (pip)",
}
"""What is needed, and what has it."""


def tool(name: str) -> str | None:
    """Where a tool is; docker-compose may be in this environment."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def client() -> str:
    """Debian's own docker, which has BuildKit; another one on the PATH may lack it."""
    return "/usr/bin/docker" if Path("/usr/bin/docker").exists() else "docker"


def missing() -> str:
    """Why there can be no engine here; nothing if there can."""
    if os.geteuid() != 0:
        return "only root may start a Docker engine"
    if lacking := [f"{name} ({source})" for name, source in TOOLS.items() if tool(name) is None]:
        return f"missing: {', '.join(lacking)}"
    return ""


class Engine:
    """One dockerd and what it holds, in `folder` (keep its name short: sockets are in it)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hooks = folder / "hooks"
        self.hooks.mkdir()
        (folder / "tmp").mkdir()
        self._process: subprocess.Popen[bytes] | None = None
        hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
        self.files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        self.env = {
            **os.environ,
            "DOCKER_HOST": f"unix://{folder}/s",
            "DOCKER_BUILDKIT": "1",
            "TMPDIR": f"{folder}/tmp",
            "BATON_GATEWAY_IMAGE": GATEWAY,
            "BATON_ENGINE_IMAGE": ENGINE,
            "BATON_ENGINE_CPU_IMAGE": ENGINE,
            "BATON_REDIS_IMAGE": BASE,
            "BATON_MEMLOCK": str(hard),
            "BATON_NOFILE": str(min(65536, self.files)),
        }

    @property
    def pid(self) -> int:
        """Of dockerd."""
        return int((self.folder / "pid").read_text())

    def start(self, alone: bool) -> None:
        """Start; `alone`: with nothing but a loopback. Executables in `hooks` are found by it."""
        flags = f"""--storage-driver=overlay2 --data-root={self.folder}/data --exec-root={self.folder}/exec
            --host=unix://{self.folder}/s --pidfile={self.folder}/pid --bridge=none --iptables=false --ip6tables=false
            --ip-forward=false --ip-masq=false --userland-proxy=false
            --default-ulimit nofile={self.files}:{self.files}"""
        unshare = ["unshare", "--mount", "--propagation", "private", *(["--net"] if alone else [])]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*unshare, "sh", "-c", f"ip link set lo up; exec dockerd {' '.join(flags.split())}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**self.env, "PATH": f"{self.hooks}:{os.environ['PATH']}"},
            )
        until(self._answers, START_S)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text()[-2000:]
        return subprocess.run([client(), "version"], env=self.env, capture_output=True).returncode == 0

    def stop(self) -> None:
        """End it with all its containers; its images stay."""
        if self._process is None:
            return
        if self._process.poll() is None:
            if left := self.docker("ps", "-aq", check=False).split():
                self.docker("rm", "-f", *left, check=False)
            self._process.send_signal(signal.SIGTERM)
        self._process.wait(START_S)
        self._process = None

    def docker(self, *arguments: str, check: bool = True, within_s: float = 120.0) -> str:
        """What `docker ...` prints, errors included. Raises `AssertionError`."""
        return self._run([client(), *arguments], {}, check, within_s)

    def compose(
        self, *arguments: str, env: Mapping[str, str] | None = None, check: bool = True, within_s: float = 120.0
    ) -> str:
        """What `docker compose ...` prints in the repository, errors included. Raises `AssertionError`."""
        return self._run([tool("docker-compose") or "", *arguments], env or {}, check, within_s)

    def _run(self, command: list[str], env: Mapping[str, str], check: bool, within_s: float) -> str:
        done = subprocess.run(
            command,
            cwd=REPO,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=within_s,
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}"
        return done.stdout

    @contextmanager
    def compose_up(self, profile: str, *flags: str, env: Mapping[str, str] | None = None) -> Iterator[None]:
        """Baton of a profile of compose.yaml, healthy; then nothing of it. If that fails, its logs are told."""
        whole = (*flags, "--profile", profile)
        try:
            self.compose(*whole, *UP, within_s=UP_S, env=env)
            yield
        except BaseException:
            sys.stdout.write(self.compose(*whole, "logs", "--tail", "60", check=False, env=env))
            raise
        finally:
            self.compose(*whole, "down", "--volumes", "--timeout", "5", check=False, env=env)

    def processes(self, container: str) -> dict[int, str]:
        """The processes of a container, by their ids out here, and their command lines."""
        lines = self.docker("top", container, "-eo", "pid,args").splitlines()[1:]
        return {int(pid): line for pid, _, line in (row.strip().partition(" ") for row in lines)}

    def inspect(self, what: str) -> dict[str, Any]:
        """All that is known of a container or image."""
        known: dict[str, Any] = json.loads(self.docker("inspect", what))[0]
        return known

    def make_base(self, kept: Path) -> None:
        """The image that others are built on: Debian's Python and Redis, `kept` as a file for the next time."""
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            new = kept.with_suffix(".new.tar")
            self._run(["mmdebstrap", *_BASE, "bookworm", str(new), *sources()], {}, True, BUILD_S)
            new.replace(kept)
        path = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        certificates = "ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt"
        self.docker("import", "--change", path, "--change", certificates, str(kept), BASE)

    def build(self, file: str, image: str, *arguments: str) -> None:
        """An image from the repository, on our base, from where this machine gets its packages."""
        given = [f"{name}={value}" for name in _FROM if (value := os.environ.get(name) or configured(name))]
        flags = [flag for pair in (f"BASE={BASE}", *given, *arguments) for flag in ("--build-arg", pair)]
        self.docker("build", "--network", "host", *flags, "-f", file, "-t", image, ".", within_s=BUILD_S)


_FROM = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "http_proxy", "https_proxy", "no_proxy")

_BASE = (
    "--quiet",
    "--variant=minbase",
    "--include=python3,python3-venv,ca-certificates,redis-server,libnuma1",
    *(f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("doc", "man", "locale")),
    f'--customize-hook=cp {CERTIFICATES}/*.crt "$1{CERTIFICATES}" 2>/dev/null || true',
    '--customize-hook=chroot "$1" update-ca-certificates >/dev/null 2>&1',
    '--customize-hook=ln -s /usr/bin/redis-server "$1/usr/local/bin/valkey-server"',
    '--customize-hook=ln -s /usr/bin/redis-cli "$1/usr/local/bin/valkey-cli"',
)


def configured(name: str) -> str:
    """What pip's own configuration says for PIP_INDEX_URL and the like; no files of this machine."""
    option = f"global.{name.removeprefix('PIP_').lower().replace('_', '-')}"
    asked = [sys.executable, "-m", "pip", "config", "get", option]
    said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return said if "file:" not in said else ""


def sources() -> list[str]:
    """Where this machine gets Debian from."""
    asked = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(CODENAME) $(REPO_URI)", "Created-By: Packages"]
    listed = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    found = {
        uri for origin, name, uri in map(str.split, listed.splitlines()) if (origin, name) == ("Debian", "bookworm")
    }
    return sorted(found)[:1]

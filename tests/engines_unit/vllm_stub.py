"""Stands in for vLLM's server where only its life as a process matters: stages in its log, /health, a child, signals.

Written into a folder as the package `vllm`; an engine whose PYTHONPATH names that folder starts it instead of the real
one. Files in its folder steer it: `go-NAME` lets engine NAME become ready, `die-NAME` ends it, `deaf` makes it ignore
SIGTERM. It appends the ids of its processes to `ids`.
"""

from pathlib import Path

SERVER = r"""
import http.server, json, os, signal, subprocess, sys, threading, time
from pathlib import Path

here = Path(__file__).parents[3]
port = int(sys.argv[sys.argv.index("--port") + 1])
model = sys.argv[sys.argv.index("--served-model-name") + 1]
name = os.environ["NAME"]
core = subprocess.Popen(["sleep", "600"])

def end(*told):
    core.kill()
    os._exit(0)

signal.signal(signal.SIGTERM, signal.SIG_IGN if (here / "deaf").exists() else end)
with (here / "ids").open("a") as ids:
    ids.write(f"{os.getpid()} {core.pid}\n")

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"object": "list", "data": [{"id": model, "object": "model"}]}).encode()
        self.send_response(200 if self.path in ("/health", "/v1/models") else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *what): ...

def serve():
    while not (here / f"go-{name}").exists():
        time.sleep(0.02)
    print("Starting vLLM server on", port, flush=True)
    http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()

print("Starting to load model", model, flush=True)
threading.Thread(target=serve, daemon=True).start()
while not (here / f"die-{name}").exists():
    time.sleep(0.02)
print("RuntimeError: told to die", flush=True)
core.kill()
os._exit(7)
"""


def write(folder: Path) -> None:
    """Make the package."""
    package = folder / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    for parent in (folder / "vllm", package.parent, package):
        (parent / "__init__.py").touch()
    (package / "api_server.py").write_text(SERVER)

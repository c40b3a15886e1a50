"""Stands in for vLLM's server where only its life as a process matters: stages in its log, /health, a child, signals.

Written into a folder as the package `vllm`; an engine whose PYTHONPATH names that folder starts it instead of the real
one. Files in its folder steer it: `go-NAME` lets engine NAME become ready, `die-NAME` ends it (with the file's text as
its last words), `deaf` makes it ignore SIGTERM, `hang-NAME` stops its answers, `busy-NAME` holds a request that gets no
further. It appends the ids of its processes to `ids`, and its command line to `started-NAME`.
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
with (here / f"started-{name}").open("a") as starts:
    starts.write(json.dumps({"argv": sys.argv, "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}) + "\n")

if "--refuse" in sys.argv:
    print("api_server.py: error: unrecognized arguments: --refuse", flush=True)
    core.kill()
    os._exit(7)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        while (here / f"hang-{name}").exists():
            time.sleep(0.02)
        body = json.dumps({"object": "list", "data": [{"id": model, "object": "model"}]}).encode()
        if self.path == "/metrics":
            busy = float((here / f"busy-{name}").exists())
            body = f'vllm:num_requests_running{{engine="0"}} {busy}\nvllm:generation_tokens_total 7.0\n'.encode()
        self.send_response(200 if self.path in ("/health", "/v1/models", "/metrics") else 404)
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
print((here / f"die-{name}").read_text() or "RuntimeError: told to die", flush=True)
if (here / f"once-{name}").exists():
    (here / f"die-{name}").unlink()
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

"""A program that a caller takes for a Python with vLLM: it answers the questions of `vllm_install` and "serves".

Run as `fake_vllm.py -c CODE` or `fake_vllm.py -m MODULE ... --port N`. The environment says how it behaves:
FAKE_VLLM_VERSION (empty: no vLLM), FAKE_VLLM_FAULT (one of the faults below; none: it works).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULT = os.environ.get("FAKE_VLLM_FAULT", "")
SERVED_BEFORE_FAULT = 3  # streamed answers, the load client's own preflight among them
served = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            return self.answer(200, {"data": [{"id": "the-model"}]})
        if self.path == "/version":
            return self.answer(200, {"version": "0.32.0"})
        return self.answer(200, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if FAULT == "healthy-but-dead":
            time.sleep(600)
        if FAULT == "refuses":
            return self.answer(400, {"error": {"message": "this model does not complete"}})
        if FAULT == "engine-dead":
            threading.Timer(0.3, os._exit, [0]).start()
            return self.answer(500, {"error": {"message": "EngineCore encountered an issue"}})
        if body.get("prompt") == "die":
            os._exit(1)
        if body.get("return_token_ids") and not body.get("stream"):
            return self.answer(200, {"choices": [{"text": "xy", "token_ids": [120, 121]}]})
        if not body.get("stream"):
            if FAULT == "hangs-under-load" and served >= SERVED_BEFORE_FAULT:
                time.sleep(600)
            return self.answer(200, {"choices": [{"text": "x"}]})
        return self.stream(body["max_tokens"])

    def stream(self, tokens: int) -> None:
        global served
        served += 1
        if served > SERVED_BEFORE_FAULT:
            if FAULT == "dies-under-load":
                print("EngineDeadError: EngineCore encountered an issue.", flush=True)
                os._exit(0)
            if FAULT == "hangs-under-load":
                time.sleep(600)
            if FAULT == "fails-a-request" and served == SERVED_BEFORE_FAULT + 1:
                return self.answer(500, {"error": {"message": "bad luck"}})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for i in range(tokens):
            usage = {"prompt_tokens": 4, "completion_tokens": i + 1, "total_tokens": i + 5}
            event = {"choices": [{"text": "x", "finish_reason": None}], "usage": usage}
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True
        return None

    def answer(self, status: int, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        print(format % args, flush=True)


def main() -> None:
    if sys.argv[1] == "-c":
        version = os.environ.get("FAKE_VLLM_VERSION", "0.32.0")
        print(json.dumps({"python": "3.11.7", "vllm": ["vllm", version] if version else None}))
        return
    if "--help=all" in sys.argv:
        print("  --max-num-seqs MAX_NUM_SEQS\n  --enforce-eager, --no-enforce-eager\n  --tensor-parallel-size N\n")
        print("  --data-parallel-size N\n")
        return
    print("argv", *sys.argv[1:], flush=True)
    print(f"usage stats {os.environ.get('VLLM_NO_USAGE_STATS')}", flush=True)
    if FAULT == "cannot-start":
        print(
            "ValueError: max_num_batched_tokens (64) must be greater than or equal to max_num_seqs (256).", flush=True
        )
        raise SystemExit(1)
    if FAULT == "never-ready":
        time.sleep(600)
    if FAULT == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    else:
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
    port = int(sys.argv[sys.argv.index("--port") + 1])
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()

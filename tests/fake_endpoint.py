"""A server on loopback that answers as a test says: one function per request, faults included."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODELS = {"object": "list", "data": [{"id": "small"}, {"id": "large"}]}


def completion(content="An answer.", finish="stop", **message):
    return {
        "model": "small-v1",
        "choices": [
            {
                "index": 0,
                "finish_reason": finish,
                "message": {"role": "assistant", "content": content, **message},
            }
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3},
    }


def chunk(text="", finish=None, **more):
    delta = {"content": text} if text else {}
    return {"model": "small-v1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self._note({})
        self.json(self.server.models)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._note(body)
        self.server.answer(self, len([a for a in self.server.asked if a["body"]]))

    def _note(self, body):
        self.server.asked.append({"path": self.path, "body": body, "headers": dict(self.headers)})

    def json(self, body, status=200, **headers):
        self.raw(json.dumps(body).encode(), "application/json", status, **headers)

    def raw(self, data, kind="application/json", status=200, **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def events(self, *chunks, done=True):
        """Server-sent events, the connection closed after them."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for one in chunks:
            text = one if isinstance(one, str) else json.dumps(one)
            self.wfile.write(f"data: {text}\n\n".encode())
            self.wfile.flush()
        if done:
            self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def hang(self):
        """Silence until the test is over."""
        deadline = time.monotonic() + 20
        while not self.server.over.wait(0.05) and time.monotonic() < deadline:
            pass
        self.close_connection = True


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """A client that went away is what some tests want."""


@contextmanager
def serving(answer, models=MODELS):
    """A server whose `answer(handler, n)` answers the n-th question; its base address is `url`."""
    server = Server(("127.0.0.1", 0), Handler)
    server.answer, server.models, server.asked, server.over = answer, models, [], threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()

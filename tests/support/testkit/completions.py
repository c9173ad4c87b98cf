"""A small server that speaks OpenAI's completions protocol over a real socket and samples from the toy model.

``plans`` is what goes wrong, request by request: a status to answer with, ``hang up``, ``drip``, or a dict to answer
with as it stands; ``None``, and every request after the last plan, is answered. ``lives`` is how many answers it gives
before it dies for good.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from segrl import Trace, toy
from segrl.generation import sample

ONE_AT_A_TIME = threading.Lock()


class CompletionsServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, plans=(), lives=None, models=("toy",)):
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.tokenizer = toy.load_model()
        self.plans, self.lives, self.models = list(plans), lives, models
        self.bodies, self.keys = [], set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_):
        """A client that leaves is no news."""

    def answer(self, body):
        prompt = body["prompt"] if isinstance(body.get("prompt"), str) else self.tokenizer.decode(body["prompt"])
        named = {name: body[name] for name in ("temperature", "top_p", "max_tokens", "seed")}
        asked = Trace("asked", prompt)
        [trace] = sample(self.model, self.tokenizer, [asked], **named, stop=body.get("stop", ()), template="{problem}")
        choice = {"index": 0, "text": trace.response, "finish_reason": trace.meta["finish"]}
        return {"choices": [choice], "usage": {"completion_tokens": trace.meta["tokens"]}}


class Handler(BaseHTTPRequestHandler):
    server: CompletionsServer

    def do_GET(self):
        self.reply(200, {"data": [{"id": name} for name in self.server.models]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with ONE_AT_A_TIME:
            self.server.bodies.append(body)
            self.server.keys.add(self.headers["Authorization"])
            plan = self.server.plans.pop(0) if self.server.plans else None
            if self.server.lives == 0:
                plan = "hang up"
                self.server.socket.close()  # from now on connections are refused
            elif self.server.lives:
                self.server.lives -= 1
            found = self.server.answer(body) if plan is None else plan
        if plan == "hang up":
            self.connection.shutdown(socket.SHUT_RDWR)
        elif plan == "drip":
            self.drip()
        elif isinstance(plan, int):
            self.reply(plan, {"error": {"message": "as planned"}}, {"Retry-After": "0"})
        else:
            self.reply(200, found)

    def reply(self, status, content, headers=()):
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def drip(self):
        """A byte now and then, so that no socket ever times out."""
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        for _ in range(1000):
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(0.05)

    def log_message(self, *_):
        """Quiet."""


@contextmanager
def serving(**options):
    server = CompletionsServer(**options)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        if server.fileno() >= 0:
            server.shutdown()
        server.server_close()

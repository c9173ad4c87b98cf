"""JSON over HTTP with what a long job needs: retries that wait longer each time, and an end to every request."""

from __future__ import annotations

import json
import random
import socket
import time
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from threading import Timer
from typing import Any
from urllib.parse import urlsplit

PASSING = (408, 409, 425, 429, 500, 502, 503, 504)  # worth another attempt
LONGEST_WAIT = 60.0
CONNECTIONS = {"http": HTTPConnection, "https": HTTPSConnection}


class ServerError(ConnectionError):
    """What a server did that ends the job."""


class Server:
    """A server at ``http://host:port/v1``, the path being ``/v1`` where none is given."""

    def __init__(self, url: str, key: str | None, retries: int, backoff: float, timeout: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in CONNECTIONS or not parts.hostname:
            raise ValueError(f"server={url!r}, expected an address like http://localhost:8000/v1")
        self.url = url
        self.scheme, self.host, self.port = parts.scheme, parts.hostname, parts.port
        self.path = parts.path.rstrip("/") or "/v1"
        self.headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self.retries, self.backoff, self.timeout = retries, backoff, timeout

    def check(self, model: str) -> None:
        """Before the work begins, and once: is anyone there, and do they serve this model?"""
        try:
            status, _, body = self._request("GET", "models", None, min(self.timeout, LONGEST_WAIT))
        except (OSError, HTTPException) as error:
            raise ServerError(f"no server answers at {self.url} ({error}); start it, or mend server=") from error
        served = [one.get("id") for one in _json(body).get("data") or ()] if status == 200 else []
        if served and model not in served:
            raise ValueError(
                f"{self.url} serves {', '.join(map(repr, served[:5]))}, not {model!r}; "
                "give the name that it uses: generation.openai.model="
            )

    def ask(self, what: str, body: dict[str, Any]) -> Any:
        """The reply to ``body``; what may pass is tried again."""
        data = json.dumps(body).encode()
        for attempt in range(self.retries + 1):
            wait = min(LONGEST_WAIT, self.backoff * 2**attempt)
            try:
                status, asked_wait, reply = self._request("POST", what, data, self.timeout)
                if status == 200:
                    return json.loads(reply)
                failure = f"status {status}: {reply[:300].decode('utf-8', 'replace')}"
                wait = max(wait, asked_wait)
                if status not in PASSING:
                    break
            except TimeoutError as error:
                raise ServerError(f"{self.url} gave no answer {error}; raise timeout, or lower max_tokens") from error
            except (OSError, HTTPException, ValueError) as error:
                failure = f"{type(error).__name__}: {error}"
            if attempt < self.retries:
                time.sleep(wait * random.uniform(0.5, 1))  # so that what failed together does not come back together
        raise ServerError(
            f"{self.url} gave no answer in {attempt + 1} of {self.retries + 1} attempts, at last {failure}. "
            "What is written stays; the same command goes on from there"
        )

    def _request(self, method: str, what: str, data: bytes | None, timeout: float) -> tuple[int, float, bytes]:
        """Status, the wait that the server asks for, body: all of it within ``timeout`` seconds."""
        connection = CONNECTIONS[self.scheme](self.host, self.port, timeout=timeout)
        begun = time.monotonic()
        try:
            connection.connect()
            # A socket's own timeout begins anew with every byte that drips in.
            end = Timer(timeout, _hang_up, [connection.sock])
            end.daemon = True
            end.start()
            try:
                connection.request(method, f"{self.path}/{what}", data, self.headers)
                response = connection.getresponse()
                return response.status, _seconds(response.headers.get("Retry-After")), response.read()
            finally:
                end.cancel()
        except (OSError, HTTPException) as error:
            if time.monotonic() - begun >= timeout:
                raise TimeoutError(f"within {timeout:g} s") from error
            raise
        finally:
            connection.close()


def _hang_up(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _seconds(retry_after: str | None) -> float:
    return min(LONGEST_WAIT, float(retry_after)) if retry_after and retry_after.isdigit() else 0.0


def _json(body: bytes) -> dict[str, Any]:
    with suppress(ValueError):
        found = json.loads(body)
        return found if isinstance(found, dict) else {}
    return {}

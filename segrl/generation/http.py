"""A client for a server that speaks OpenAI's protocol, with retries and a time limit for every request."""

from __future__ import annotations

import json
import random
import ssl
import time
from contextlib import suppress
from typing import Any

import httpx

RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
LONGEST_WAIT = 60.0


class ServerError(ConnectionError):
    """A failure of the server that ends the job."""


class Server:
    """A server at ``http://host:port/v1``; ``/v1`` is added where the address has no path."""

    def __init__(self, url: str, key: str | None, retries: int, backoff: float, timeout: float) -> None:
        if retries < 0 or timeout <= 0:
            raise ValueError(f"retries={retries}, timeout={timeout}: expected 0 or more retries and seconds above 0")
        self.url, self.retries, self.backoff, self.timeout = url, retries, backoff, timeout
        self.client = httpx.Client(
            base_url=_base_url(url),
            headers={"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})},
            verify=ssl.create_default_context(),  # the system's certificates
            trust_env=False,  # no proxy
            # As many connections as threads, and a new one for each request: a server may close an idle one unnoticed.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        )

    def check(self, model: str) -> None:
        """Raise, before the work begins, if the server does not answer or does not serve this model."""
        try:
            status, _, body = self._request("GET", "models", min(self.timeout, LONGEST_WAIT))
        except (TimeoutError, httpx.HTTPError) as error:
            raise ServerError(
                f"no server answers at {self.url} ({error}); start it, or give its address as server=http://host:port/v1"
            ) from error
        served = [card.get("id") for card in _json(body).get("data") or ()] if status == 200 else []
        if served and model not in served:
            raise ValueError(
                f"{self.url} serves {', '.join(map(repr, served[:5]))}, not {model!r}; "
                "give the name that it uses: generation.openai.model="
            )

    def post(self, path: str, fields: dict[str, Any]) -> Any:
        """The reply to ``fields``; lost connections and the statuses in ``RETRIED`` are tried again."""
        content = json.dumps(fields).encode()  # not httpx's json=, which refuses lone surrogates
        for attempt in range(self.retries + 1):
            wait = min(LONGEST_WAIT, self.backoff * 2**attempt)
            try:
                status, retry_after, body = self._request("POST", path, self.timeout, content)
                if status == 200:
                    return json.loads(body)
                failure = f"status {status}: {body[:300].decode('utf-8', 'replace')}"
                wait = max(wait, retry_after)
                if status not in RETRIED:
                    break
            except TimeoutError as error:
                raise ServerError(f"{self.url} gave no answer {error}; raise timeout, or lower max_tokens") from error
            except (httpx.HTTPError, ValueError) as error:
                failure = f"{type(error).__name__}: {error}"
            if attempt < self.retries:
                time.sleep(wait * random.uniform(0.5, 1))  # spreads the retries of requests that failed together
        raise ServerError(
            f"{self.url} gave no answer in {attempt + 1} of {self.retries + 1} attempts, at last {failure}. "
            "What is written stays; the same command goes on from there"
        )

    def _request(self, method: str, path: str, timeout: float, content: bytes = b"") -> tuple[int, float, bytes]:
        """The status, the wait that the server asks for and the body, all of it within ``timeout`` seconds."""
        end, body = time.monotonic() + timeout, bytearray()
        try:
            with self.client.stream(method, path, content=content, timeout=timeout) as response:
                for chunk in response.iter_bytes():
                    body += chunk
                    if time.monotonic() > end:  # httpx's own timeout begins anew with every byte
                        raise httpx.ReadTimeout("the body came too slowly")
                return response.status_code, _seconds(response.headers.get("Retry-After")), bytes(body)
        except httpx.TimeoutException as error:
            raise TimeoutError(f"within {timeout:g} s") from error


def _base_url(url: str) -> httpx.URL:
    with suppress(httpx.InvalidURL):
        parsed = httpx.URL(url)
        if parsed.scheme in ("http", "https") and parsed.host and (parsed.port or 0) < 2**16:
            return parsed.copy_with(path=parsed.path.rstrip("/") or "/v1", query=None, fragment=None, userinfo=b"")
    raise ValueError(f"server={url!r}, expected an address like http://localhost:8000/v1")


def _json(body: bytes) -> dict[str, Any]:
    with suppress(ValueError):
        reply = json.loads(body)
        return reply if isinstance(reply, dict) else {}
    return {}


def _seconds(retry_after: str | None) -> float:
    return min(LONGEST_WAIT, float(retry_after)) if retry_after and retry_after.isdigit() else 0.0

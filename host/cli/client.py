"""The command line's side of the HTTP API: requests with the token, faults as one sentence."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import httpx2

from host.cli.target import Target, find_target

CONNECT_S = 5.0
ANSWER_S = 60.0


class HostFault(Exception):
    """The host cannot be reached, or refused; the sentence is for people."""

    def __init__(self, sentence: str, status: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status


class HostClient:
    """A connection to a running host."""

    def __init__(self, target: Target) -> None:
        headers = {"Authorization": f"Bearer {target.token}"} if target.token else {}
        self.target = target
        try:
            self._client = httpx2.Client(
                base_url=target.url,
                headers=headers,
                timeout=httpx2.Timeout(ANSWER_S, connect=CONNECT_S),
                trust_env=not _is_local(target.url),
            )
        except (httpx2.InvalidURL, UnicodeEncodeError):
            raise HostFault("The host's URL or token has characters that HTTP cannot carry.") from None

    @classmethod
    def found(cls, url: str | None, token: str | None) -> Self:
        """Return a client for the host that options, environment or a running ``picoclaw dev`` name."""
        return cls(find_target(url, token, os.environ))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        params: Mapping[str, str] | None = None,
        timeout: float | None = ANSWER_S,
    ) -> Any:
        """Return the answer's JSON (None for an empty one); raises ``HostFault``."""
        with self._faults():
            response = self._client.request(method, path, json=body, params=params, timeout=timeout)
            self._check(response)
            return response.json() if response.content else None

    def pages(self, path: str, key: str) -> Iterator[dict[str, Any]]:
        """Yield the items of a paged list."""
        params: dict[str, str] = {}
        while True:
            page = self.request("GET", path, params=params)
            yield from page[key]
            if not page.get("next_cursor"):
                return
            params = {"cursor": page["next_cursor"]}

    def events(self, body: Mapping[str, Any], path: str = "/chat") -> Iterator[tuple[str, dict[str, Any]]]:
        """Start a run by ``POST`` and yield its events as they come; raises ``HostFault``."""
        with (
            self._faults(),
            self._client.sse(
                path, method="POST", json=body, timeout=httpx2.Timeout(None, connect=CONNECT_S)
            ) as source,
        ):
            if source.response.status_code != httpx2.codes.OK:
                source.response.read()
                self._check(source.response)
            for event in source:
                if event.data:
                    yield event.event, _object(event.json())

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except httpx2.ConnectError:
            raise HostFault(
                f"No host answers at {self.target.url}. "
                "Start one with `picoclaw serve`, or name it with --url."
            ) from None
        except httpx2.TimeoutException:
            raise HostFault(f"The host at {self.target.url} did not answer in time.") from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise HostFault(f"The connection to {self.target.url} failed: {type(error).__name__}.") from None
        except UnicodeEncodeError as error:
            # Python makes half a character of each byte of an argument that is not UTF-8.
            byte = ord(error.object[error.start]) & 0xFF
            raise HostFault(
                f"What you gave is not UTF-8: it has the byte 0x{byte:02x}. "
                "Use a terminal that is set to UTF-8, or convert the text, for instance with iconv."
            ) from None
        except ValueError:
            raise HostFault(f"What answers at {self.target.url} is not a PicoClaw host.") from None

    def _check(self, response: httpx2.Response) -> None:
        if response.is_success:
            return
        if response.status_code == httpx2.codes.UNAUTHORIZED:
            raise HostFault(self._unauthorized(), response.status_code)
        said = _object(response.json()).get("error", response.reason_phrase)
        raise HostFault(str(said), response.status_code)

    def _unauthorized(self) -> str:
        if self.target.token is None:
            return f"{self.target.url} wants a token: set API_TOKEN, or give --token."
        return f"{self.target.url} does not accept this token (API_TOKEN or --token)."


def _is_local(url: str) -> bool:
    """Return whether a URL is this machine's, where no proxy has a place."""
    return httpx2.URL(url).host in ("127.0.0.1", "::1", "localhost")


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value

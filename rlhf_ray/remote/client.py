"""JSON over HTTP, where every request ends in time: the one HTTP client of the project.

The environment is not consulted (`trust_env=False`): a proxy or a certificate store named there
would send prompts where no recipe says. Redirects are never followed, for the same reason.

The deadline over all tries cancels whatever is under way, be it a name, a handshake, a header that
comes byte by byte or a wait between tries. Only an event loop can do that, so each client runs one
in a thread of its own; callers block, as everywhere in the project.
"""

import asyncio
import itertools
import json
import math
import ssl
import threading
import zlib
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypedDict

import httpx

from rlhf_ray.keys import generator
from rlhf_ray.remote.address import Address, trusted

FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 8.0
GRACE_S = 10.0
"""What cancelling may take, beyond the deadline."""
EXCERPT_BYTES = 2048
DROPPED = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
"""What a dropped connection looks like under TLS."""
AGAIN = {"refused", "closed", "timeout", "rate_limited"}
"""Faults that may pass, beside http_5xx; all others would come again."""


class Failed(Exception):
    """A request without a usable answer.

    reason: refused, timeout, closed (dropped, or not HTTP), tls, redirected, rate_limited (429),
    http_NNN, not_json or too_large. detail: where and why, without any secret.
    """

    def __init__(self, reason: str, detail: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason, detail, retry_after_s)
        self.reason, self.detail, self.retry_after_s = reason, detail, retry_after_s

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class Options(TypedDict, total=False):
    """What a client can be told beside its URL; the defaults stand in `Client`."""

    connect_s: float
    read_s: float
    total_s: float
    retries: int
    token_env: str | None
    token_file: str | None
    max_body_mib: float
    verify: bool | str
    allow_plain_http: bool
    seed: int


class Client:
    """Posts JSON to one service, from any number of threads; `close` it when it is done.

    connect_s, read_s: longest wait for a connection, and for the next bytes either way.
    total_s: over all tries of one request and the waits between them, monotonic.
    retries: further tries after refused, closed, timeout, 429 and 5xx.
    token_env, token_file: where the bearer token is read from, once, when the client is made.
    max_body_mib: largest answer, after decompression.
    verify: False switches the check of certificates off; a path names the authorities (PEM).

    Raises RecipeError, before any request, for a URL, token or certificate file it cannot use, and
    for plain http to another machine unless `allow_plain_http`.
    """

    def __init__(
        self, url: str, *, connect_s: float = 10, read_s: float = 60, total_s: float = 120,
        retries: int = 3, token_env: str | None = None, token_file: str | None = None,
        max_body_mib: float = 16, verify: bool | str = True, allow_plain_http: bool = False,
        seed: int = 0,
    ) -> None:  # fmt: skip
        self._address = Address(url, token_env, token_file, allow_plain_http=allow_plain_http)
        self.connect_s, self.read_s, self.total_s = connect_s, read_s, total_s
        self.retries, self.seed = retries, seed
        self.max_bytes = int(max_body_mib * 2**20)
        self._numbers = itertools.count()
        self._http = httpx.AsyncClient(
            headers={
                "content-type": "application/json",
                "accept": "application/json",
                "accept-encoding": "gzip",
            }
            | self._address.authorization,
            timeout=httpx.Timeout(connect=connect_s, read=read_s, write=read_s, pool=None),
            limits=httpx.Limits(max_connections=None),  # callers bound their own concurrency
            verify=trusted(verify) if self._address.encrypted else False,
            trust_env=False,
            follow_redirects=False,
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="http", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"Client({self._address})"

    @property
    def url(self) -> str:
        """The service, fit to be shown: without password and query."""
        return str(self._address)

    def post(self, path: str, body: Any, *, within_s: float = math.inf) -> Any:
        """What the service answers to `body`, both JSON; `path` is joined to the client's URL.

        The answer may hold NaN and infinite numbers, as Python's services write them.

        within_s: what a caller has left, where that is less than `total_s`.

        Raises Failed, and ValueError where `body` holds a NaN or infinite number: neither is JSON.
        """
        content = json.dumps(body, allow_nan=False).encode()
        limit_s = min(self.total_s, within_s)
        request = self._bounded(path, content, next(self._numbers), limit_s)
        future = asyncio.run_coroutine_threadsafe(request, self._loop)
        try:
            data = future.result(timeout=limit_s + GRACE_S)
        except TimeoutError as error:
            where = self._address.shown(path)
            raise Failed("timeout", f"{where}: cancelling did not end in {GRACE_S:g} s") from error
        finally:
            future.cancel()  # a caller that was interrupted leaves nothing under way
        return self._parsed(path, data)

    def close(self) -> None:
        """Ends the connections and the thread; no other thread may still be posting."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(timeout=GRACE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=GRACE_S)
        self._loop.close()

    async def _end(self) -> None:
        await self._http.aclose()
        # An answer that was not read to its end is put away by a task of its own.
        await asyncio.get_running_loop().shutdown_asyncgens()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*left, return_exceptions=True)

    async def _bounded(self, path: str, content: bytes, number: int, limit_s: float) -> bytes:
        try:
            return await asyncio.wait_for(self._tries(path, content, number, limit_s), limit_s)
        except TimeoutError as error:
            limit = f"total_s = {limit_s:g}"
            if limit_s < self.total_s:
                limit = f"the {limit_s:.3g} s that its caller had left"
            where = self._address.shown(path)
            raise Failed("timeout", f"{where}: no whole answer within {limit}") from error

    async def _tries(self, path: str, content: bytes, number: int, limit_s: float) -> bytes:
        ends = asyncio.get_running_loop().time() + limit_s
        for turn in itertools.count():
            try:
                return await self._once(path, content)
            except Failed as fault:
                wait = self._wait(fault, number, turn)
                left = ends - asyncio.get_running_loop().time()
                passing = fault.reason in AGAIN or fault.reason.startswith("http_5")
                if not passing or turn == self.retries or wait >= left:
                    raise
            await asyncio.sleep(wait)
        raise AssertionError("counting does not end")

    def _wait(self, fault: Failed, number: int, turn: int) -> float:
        """Seconds before the next try: doubling, spread, and at least what the service asks."""
        spread: float = 0.5 + generator(self.seed, "remote.wait", number, turn).random()
        return max(
            fault.retry_after_s, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(turn, 9)) * spread
        )

    async def _once(self, path: str, content: bytes) -> bytes:
        where = self._address.shown(path)
        try:
            async with self._http.stream(
                "POST", self._address.joined(path), content=content
            ) as answer:
                if not answer.is_success:
                    raise await self._refusal(where, answer)
                return await self._whole(where, answer)
        except httpx.ConnectTimeout as error:
            detail = f"{where}: no connection within connect_s = {self.connect_s:g}"
            raise Failed("timeout", detail) from error
        except httpx.TimeoutException as error:
            detail = f"{where}: nothing went on for read_s = {self.read_s:g}"
            raise Failed("timeout", detail) from error
        except (httpx.TransportError, ssl.SSLError) as error:
            said = self._address.clean(str(error)) or type(error).__name__
            raise Failed(_kind(error), f"{where}: {said}") from error

    async def _refusal(self, where: str, answer: httpx.Response) -> Failed:
        """The fault a status other than 2xx stands for."""
        status = answer.status_code
        if answer.is_redirect:
            target = answer.headers.get("location", "nowhere").partition("?")[0]
            target = self._address.clean(target)
            return Failed("redirected", f"{where} points to {target}; give the final url")
        try:
            said = self._address.clean(await self._read(where, answer, EXCERPT_BYTES))
        except (Failed, httpx.TransportError) as error:
            said = f"(its text is unreadable: {type(error).__name__})"
        wait = _asked_wait(answer.headers.get("retry-after", ""))
        asks = f" (asks to wait {wait:g} s)" if wait else ""
        reason = "rate_limited" if status == 429 else f"http_{status}"
        return Failed(reason, f"{where} answered {status}{asks}: {said}", wait)

    async def _whole(self, where: str, answer: httpx.Response) -> bytes:
        data = await self._read(where, answer, self.max_bytes)
        if len(data) > self.max_bytes:
            size = f"{self.max_bytes / 2**20:g} MiB"
            raise Failed("too_large", f"{where} answered more than {size}; raise max_body_mib")
        return data

    async def _read(self, where: str, answer: httpx.Response, limit: int) -> bytes:
        """The decoded body; `limit` + 1 bytes of it where it is longer."""
        encoding = answer.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip"):
            raise Failed("not_json", f"{where} answered in '{encoding}', which was not asked for")
        # httpx would decompress a whole chunk at once, a thousandfold if it was made for that.
        gunzip = zlib.decompressobj(wbits=31) if encoding == "gzip" else None
        body = bytearray()
        try:
            async for chunk in answer.aiter_raw():
                room = limit + 1 - len(body)
                body += gunzip.decompress(chunk, room) if gunzip else chunk[:room]
                if len(body) > limit:
                    break
        except zlib.error as error:
            raise Failed("not_json", f"{where} answered damaged gzip: {error}") from error
        return bytes(body)

    def _parsed(self, path: str, data: bytes) -> Any:
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            begins = self._address.clean(data[:EXCERPT_BYTES])
            where = self._address.shown(path)
            raise Failed("not_json", f"{where}: {error}; it begins '{begins}'") from error


def _kind(error: Exception) -> str:
    """The fault behind an error of the connection."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, DROPPED):
            return "tls"
        cause = cause.__cause__ or cause.__context__
    return "refused" if isinstance(error, httpx.ConnectError) else "closed"


def _asked_wait(header: str) -> float:
    """Seconds a `Retry-After` header asks for, as a number or as a date; else 0."""
    if header.strip().isdecimal():
        return float(header)
    try:
        until = parsedate_to_datetime(header)
    except (ValueError, OverflowError):
        return 0.0
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())

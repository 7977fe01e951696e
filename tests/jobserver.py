"""A job server on this machine that runs nothing: it keeps jobs as Ray's does, and misbehaves on
request. `script` says what happens to a job each time somebody looks at it."""

import json
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any

Fields = dict[str, Any]
Trick = Callable[["Board", str, str], bool]
"""Told method and path; True where it has dealt with the request, which then gets no answer."""


class Board:
    """Jobs by id, and everything that was asked; a context that listens."""

    def __init__(self, token: str | None = None) -> None:
        self.token = token
        self.jobs: dict[str, Fields] = {}
        self.logs: dict[str, str] = {}
        self.script: list[Fields] = []
        self.seen: list[tuple[str, str, str | None]] = []
        """Method, path and what was shown to be let in."""
        self.packages: dict[str, bytes] = {}
        self.tricks: list[Trick] = []
        self.lock, self.over = Lock(), Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> "Board":
        self._thread = Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(timeout=30)

    def add(self, id: str, status: str = "RUNNING", **fields: Any) -> None:
        """A job that is there already."""
        self.jobs[id] = {
            "type": "SUBMISSION", "submission_id": id, "entrypoint": "true", "runtime_env": {},
            "metadata": {}, "status": status, "message": f"Job is {status}.",
        } | fields  # fmt: skip

    def asked(self, method: str, path: str) -> int:
        return sum(one[:2] == (method, path) for one in self.seen)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        parts = path.strip("/").split("/")
        if parts == ["api", "version"]:
            return 200, {
                "version": "4",
                "ray_version": "2.60.0",
                "ray_commit": "",
                "session_name": "",
            }
        if parts[:2] == ["api", "packages"]:
            if method == "PUT":
                self.packages[parts[-1]] = body
            return (200 if parts[-1] in self.packages else 404), {}
        if parts[:2] != ["api", "jobs"]:
            return 404, "no such page"
        if method == "POST":
            return self._start(json.loads(body))
        if len(parts) == 2:
            return 200, list(self.jobs.values())
        if parts[2] not in self.jobs:
            return 404, f"Job {parts[2]} does not exist"
        if parts[3:] == ["logs"]:
            return 200, {"logs": self.logs.get(parts[2], "")}
        self._go_on(parts[2])
        return 200, self.jobs[parts[2]]

    def _start(self, asked: Fields) -> tuple[int, Any]:
        id = asked["submission_id"]
        if id in self.jobs:
            return 500, f"Traceback (most recent call last):\nValueError: Job {id} already exists."
        self.add(id, **{key: asked[key] for key in ("entrypoint", "runtime_env", "metadata")})
        return 200, {"job_id": id, "submission_id": id}

    def _go_on(self, id: str) -> None:
        if self.script:
            change = dict(self.script.pop(0))
            self.logs[id] = self.logs.get(id, "") + change.pop("log", "")
            self.jobs[id] |= change


def away(count: int, path: str = "") -> Trick:
    """Hangs up on the next `count` requests whose path ends so."""
    left = [count]

    def trick(board: Board, method: str, found: str) -> bool:
        mine = found.endswith(path) and left[0] > 0
        left[0] -= mine
        return mine

    return trick


def silent(board: Board, method: str, path: str) -> bool:
    """Takes every request and never answers."""
    board.over.wait(timeout=30)
    return True


def slow(seconds: float) -> Trick:
    def trick(board: Board, method: str, path: str) -> bool:
        time.sleep(seconds)
        return False

    return trick


def _handler(board: Board) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            shown = self.headers.get("authorization")
            with board.lock:
                board.seen.append((self.command, self.path, shown))
            if any(trick(board, self.command, self.path) for trick in board.tricks):
                self.close_connection = True
                return
            if board.token is not None and shown != f"Bearer {board.token}":
                self._send(401 if shown is None else 403, "Unauthorized")
                return
            with board.lock:
                self._send(*board.answer(self.command, self.path, body))

        do_GET = do_POST = do_PUT = _serve

        def _send(self, status: int, found: Any) -> None:
            text = (found if isinstance(found, str) else json.dumps(found)).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            """Nothing: tests read what they ask for."""

    return Handler

"""Ray's job server, asked with deadlines and a token; its errors say what to do."""

import ipaddress
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from rlhf_ray.doctor import takes_jobs_from_anyone
from rlhf_ray.errors import ClusterUnavailable, RecipeError
from rlhf_ray.submit import Job, Submission

CONNECT_S, ANSWER_S = 10.0, 120.0
RUN_DIR = "rlhf_ray_run_dir"
"""In the metadata of a job: whose run it is."""
WHERE = "RAY_AUTH_TOKEN, or a file that RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token"


class JobServer:
    """The job server of one cluster."""

    def __init__(self, address: str, token: str | None) -> None:
        """Raises RecipeError where the address cannot be, where jobs of a cluster on another
        machine are not protected by a token, and where the token is refused."""
        self.address = checked_address(address, token)
        if not is_local(self.address) and _takes_jobs_from_anyone(self.address):
            raise RecipeError(
                f"{self.address} answers without a token: whoever reaches it can run code on the "
                "cluster; start Ray on all nodes with RAY_AUTH_MODE=token"
            )
        # Each file it leaves out of a package is worth a line to Ray.
        for handler in logging.getLogger("ray").handlers:
            handler.setLevel(logging.WARNING)
        # Ray's client would put RAY_API_SERVER_ADDRESS or RAY_ADDRESS before its own argument.
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        with self._asked():
            self._client = _Client(self.address, headers=headers)

    def jobs(self) -> list[Job]:
        with self._asked():
            found = self._client.list_jobs()
        return [_job(one) for one in found if one.submission_id]

    def job(self, id: str) -> Job | None:
        """None where the server does not know it."""
        with self._asked():
            try:
                return _job(self._client.get_job_info(id))
            except _Refused as error:
                if error.status == 404:
                    return None
                raise

    def start(self, id: str, asked: Submission) -> None:
        with self._asked():
            self._client.submit_job(
                entrypoint=asked.entrypoint,
                submission_id=id,
                runtime_env={
                    "working_dir": str(asked.working_dir),
                    "env_vars": dict(asked.environment),
                },
                metadata={RUN_DIR: asked.run_dir},
            )

    def log(self, id: str) -> str:
        """All that the driver has printed so far."""
        with self._asked():
            return str(self._client.get_job_logs(id))

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """Errors of the client in our words."""
        try:
            yield
        except AuthenticationError as error:
            raise RecipeError(
                f"{self.address} refuses the token, or wants one; put the token of this cluster "
                f"into {WHERE}"
            ) from error
        except _Refused as error:
            raise ClusterUnavailable(f"{self.address}: {error}") from error
        except (OSError, RuntimeError, ValueError, LookupError, TypeError) as error:
            # OSError: also all errors of `requests`. The last three: an answer that is not Ray's.
            raise ClusterUnavailable(
                f"no answer of a Ray job server at {self.address} ({_last_line(str(error))}); is "
                "the head up, and is this the address of its dashboard?"
            ) from error


class _Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(status, text)
        self.status = status

    def __str__(self) -> str:
        return f"status {self.status}: {_last_line(self.args[1])}"


class _Client(JobSubmissionClient):  # type: ignore[misc]
    """Ray's client waits for ever; this one does not."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        return super()._do_request(method, endpoint, timeout=(CONNECT_S, ANSWER_S), **options)

    def _raise_error(self, r: Any) -> NoReturn:
        raise _Refused(r.status_code, r.text)


def find_token(environ: Mapping[str, str], home: Path) -> str | None:
    """The cluster's token from where Ray itself looks; None where there is none.

    Raises RecipeError for one that is asked for and cannot be used.
    """
    mode = environ.get("RAY_AUTH_MODE", "token").lower()
    if mode == "disabled":
        return None
    where, token = "RAY_AUTH_TOKEN", environ.get("RAY_AUTH_TOKEN", "")
    named = environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else home / ".ray" / "auth_token"
    if not token and (named or path.is_file()):
        where = str(path)
        try:
            token = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"the token in {where} cannot be read: {error}") from error
    token = token.strip()
    if not token and (named or "RAY_AUTH_MODE" in environ):
        raise RecipeError(f"RAY_AUTH_MODE is {mode}, but there is no token in {WHERE}")
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise RecipeError(f"{where} holds no token: it has blanks or special characters")
    return token or None


def checked_address(address: str, token: str | None) -> str:
    """The address without a slash at its end. Raises RecipeError for what cannot be."""
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise RecipeError(f"--address: this is no URL ({error})") from error
    if parts.username or parts.password:
        raise RecipeError(f"--address of {host} holds a login, which Ray would show; leave it out")
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise RecipeError(
            f"--address {address} is not the address of a Ray dashboard; give it as "
            "http://HEAD:8265 (port 6379 is for nodes, 10001 for Ray clients)"
        )
    if not is_local(address) and not token:
        raise RecipeError(
            f"{address} is another machine, and there is no token: whoever reaches a Ray cluster "
            f"without one can run code on it; put the cluster's token into {WHERE}, and leave "
            "RAY_AUTH_MODE at token"
        )
    return address.rstrip("/")


def is_local(address: str) -> bool:
    """Whether an address is this machine, or a tunnel that begins on it."""
    host = urlsplit(address).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _takes_jobs_from_anyone(address: str) -> bool:
    try:
        return takes_jobs_from_anyone(address, CONNECT_S)
    except (OSError, HTTPException) as error:
        raise ClusterUnavailable(
            f"nothing answers at {address} ({error}); is the head up, and is this the address of "
            "its dashboard?"
        ) from error


def _job(found: Any) -> Job:
    return Job(
        id=str(found.submission_id),
        status=str(found.status),
        entrypoint=found.entrypoint,
        environment=(found.runtime_env or {}).get("env_vars") or {},
        run_dir=(found.metadata or {}).get(RUN_DIR),
        exit_code=found.driver_exit_code,
        message=found.message or "",
    )


def _last_line(text: str) -> str:
    """Of a traceback, the line that says what happened."""
    return (text.strip().splitlines() or ["nothing"])[-1][:300]

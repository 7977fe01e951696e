"""Where a service is, what it is shown to let us in, and how both are named in messages."""

import base64
import ipaddress
import os
import re
import ssl
from pathlib import Path

import httpx

from rlhf_ray.errors import RecipeError

EXCERPT = 300
_LOGIN = re.compile(r"//\S*@")


class Address:
    """A URL taken apart: login and token go into a header, and never into a message.

    Raises RecipeError for what cannot be used, and for plain http to another machine.
    """

    def __init__(
        self, url: str, token_env: str | None, token_file: str | None, *, allow_plain_http: bool
    ) -> None:
        full = _checked(url, allow_plain_http=allow_plain_http)
        token = _token(token_env, token_file)
        if token and full.userinfo:
            raise RecipeError(
                f"url '{_without_login(url).partition('?')[0]}' has a login and there is a token "
                "too; only one can be shown to the service: leave out the other"
            )
        self._url = full.copy_with(userinfo=b"", fragment=None)
        self._secrets: tuple[str, ...] = ()
        self.authorization: dict[str, str] = {}
        if token:
            scheme, _, login = token.rpartition(" ")
            self._secrets = tuple(filter(None, (login, _password(login) if scheme else "")))
            self.authorization = {"authorization": f"{scheme or 'Bearer'} {login}"}
        elif full.userinfo:
            login = base64.b64encode(f"{full.username}:{full.password}".encode()).decode()
            self._secrets = tuple(filter(None, (login, full.password)))
            self.authorization = {"authorization": f"Basic {login}"}

    def __str__(self) -> str:
        return str(self._url.copy_with(query=None))

    @property
    def encrypted(self) -> bool:
        return self._url.scheme == "https"

    def joined(self, path: str) -> httpx.URL:
        """The URL with `path` below it; `/v1` is not doubled, and a query stays where it was."""
        if not path:
            return self._url
        base, mark, query = self._url.raw_path.partition(b"?")
        base = base.rstrip(b"/")
        if path.startswith("/v1/"):
            base = base.removesuffix(b"/v1")
        return self._url.copy_with(raw_path=base + path.encode() + mark + query)

    def shown(self, path: str) -> str:
        """`joined`, fit to be shown: keys are often put into the query."""
        return str(self.joined(path).copy_with(query=None))

    def clean(self, text: str | bytes) -> str:
        """The beginning of what a service or library said, on one line and without our secrets."""
        if isinstance(text, bytes):
            text = text.decode(errors="replace")
        for secret in self._secrets:
            text = text.replace(secret, "***")
        words = " ".join(_without_login(text).split())
        return "".join(one for one in words if one.isprintable())[:EXCERPT]


def trusted(verify: bool | str) -> ssl.SSLContext:
    """The certificates that are believed. Raises RecipeError for a file that holds none."""
    if isinstance(verify, bool):
        return httpx.create_ssl_context(verify=verify, trust_env=False)
    try:
        return ssl.create_default_context(cafile=verify)
    except OSError as error:  # an SSLError is one too
        raise RecipeError(
            f"verify '{verify}' is not a readable PEM file of certificates: {error}"
        ) from error


def _checked(url: str, *, allow_plain_http: bool) -> httpx.URL:
    shown = _without_login(url).partition("?")[0]
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        # Without its cause, which may quote a piece of the password.
        raise RecipeError(f"url '{shown}' is not a URL") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise RecipeError(f"url '{shown}' must begin with https:// or http:// and name a host")
    if parsed.scheme == "http" and not (allow_plain_http or _is_here(parsed.host)):
        raise RecipeError(
            f"url '{shown}' would send prompts readable for everyone to another machine; use "
            "https, or set allow_plain_http: true for a network you trust"
        )
    return parsed


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _token(env: str | None, file: str | None) -> str:
    """A bearer token or `Basic` and a login in base64; empty where none is asked for."""
    if env and file:
        raise RecipeError(f"token_env '{env}' and token_file '{file}': give one of them")
    if not env and not file:
        return ""
    where = f"environment variable '{env}' (token_env)" if env else f"'{file}' (token_file)"
    try:
        token = (os.environ.get(env, "") if env else Path(str(file)).read_text()).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{where} cannot be read: {type(error).__name__}") from error
    if not token:
        raise RecipeError(f"{where} is missing or empty; put the bearer token there")
    bare = token.removeprefix("Basic ")
    if not (bare.isascii() and bare.isprintable()) or " " in bare:
        raise RecipeError(f"{where} does not hold a token: it has blanks or special characters")
    return token


def _password(login: str) -> str:
    """Of `user:password` in base64, which a service may repeat as it reads it; empty for others."""
    try:
        return base64.b64decode(login, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def _without_login(text: str) -> str:
    """Hides what stands between // and @; in a text that is no URL, too."""
    return _LOGIN.sub("//***@", text)

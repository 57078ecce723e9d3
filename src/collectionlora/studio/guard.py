"""Keeps other websites out of the studio: a browser sends what any page that it shows asks it to send."""

import ipaddress
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

PORTS = {"http": 80, "https": 443}


class SameSite:
    """Refuses with 403 what a page of another origin sends, before anything else reads it.

    Programs send no `Origin` and are not concerned. Gradio's own rule lets every origin in where the studio
    is reached by a public name, with the visitor's cookies.

    Args:
        local_only: the studio must be addressed by a name of this machine. Without passwords that stops a
            website whose own name is made to resolve to it (DNS rebinding): it is of one origin with itself.
    """

    def __init__(self, app: ASGIApp, local_only: bool):
        self.app, self.local_only = app, local_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            if not self.admits(headers.get("host", ""), headers):
                await PlainTextResponse("not from this page", 403)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def admits(self, host: str, headers: Headers) -> bool:
        """Whether a request for `host` comes from the studio's own page or from no page."""
        # A proxy in front says by this header how it was addressed; no page can make a browser send it. Of
        # several proxies each adds a name behind a comma: the first is what the visitor typed.
        forwarded = [value.partition(",")[0] for value in headers.getlist("x-forwarded-host")[:1]]
        try:
            if self.local_only and not is_local(split_host(host)[0]):
                return False
            names = [split_host(name) for name in (host, *forwarded)]
            return all(any(_is_at(origin, *name) for name in names) for origin in headers.getlist("origin"))
        except ValueError:  # no address at all
            return False


def split_host(host: str) -> tuple[str, int | None]:
    """Name and port of a host as a header gives it; names are compared in small letters, without a last dot.

    Raises:
        ValueError: it is no host.
    """
    parts = urlsplit(f"//{host.strip()}")
    name = (parts.hostname or "").rstrip(".")
    with suppress(ValueError):
        name = str(ipaddress.ip_address(name))  # ::1 has many spellings
    return name, parts.port


def _is_at(origin: str, name: str, port: int | None) -> bool:
    """Whether an origin, `scheme://host[:port]`, is at a host; without a port it is at its scheme's own."""
    scheme, _, host = origin.partition("://")
    if scheme not in PORTS or not name:
        return False
    own_name, own_port = split_host(host)
    return own_name == name and (own_port or PORTS[scheme]) == (port or PORTS[scheme])


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # Browsers never look names below localhost up.
        return host == "localhost" or host.endswith(".localhost")

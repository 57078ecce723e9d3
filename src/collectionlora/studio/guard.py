"""Keeps other websites out of the studio: a browser sends what any page that it shows asks it to send."""

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send


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
        # A proxy in front says by this header how it was addressed; no page can make a browser send it.
        names = {host, headers.get("x-forwarded-host", host)}
        try:
            if self.local_only and not is_local(urlsplit(f"//{host}").hostname or ""):
                return False
            return all(urlsplit(origin).netloc in names for origin in headers.getlist("origin"))
        except ValueError:  # no address at all
            return False


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

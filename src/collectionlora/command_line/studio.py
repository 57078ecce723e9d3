"""`collectionlora studio`: what may connect, how much it may send, and the page."""

import errno
import os
import socket
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from collectionlora.command_line.options import Quantization
from collectionlora.command_line.progress import shown_progress
from collectionlora.command_line.terminal import console
from collectionlora.system.environment import without_proxies
from collectionlora.system.errors import UserError

if TYPE_CHECKING:
    from collectionlora.studio.pictures import Studio

AUTH_VARIABLE = "COLLECTIONLORA_AUTH"
MEGA = 1_000_000
# Gradio calls home for these unless told otherwise, and it reads them when it is imported.
SILENT = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}


def studio(
    collection: Annotated[Path, typer.Argument(help="a folder, an adapter file, or nano, which ships")],
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="port to listen on; 0 takes a free one")] = 7860,
    auth: Annotated[
        Path | None, typer.Option(help=f"a file of USER:PASSWORD lines; or set {AUTH_VARIABLE}")
    ] = None,
    max_upload: Annotated[int, typer.Option(min=1, help="largest number of megabytes of one file")] = 20,
    max_megapixels: Annotated[
        int, typer.Option(min=1, help="largest number of megapixels of one photo")
    ] = 50,
    batch_size: Annotated[int, typer.Option(min=1, help="largest number of pictures in one batch")] = 8,
    quantization: Quantization = None,
) -> None:
    """Open a web page to pick, compose and compare effects; it has an API too.

    Example: collectionlora studio my-collection --port 7860
    """
    from collectionlora.studio.uploads import private_uploads

    accounts = read_accounts(auth)
    os.environ |= SILENT
    with private_uploads():
        build_page = import_page(host, accounts)
        check_port(host, port)
        made = load_studio(collection, batch_size, quantization)
        with shown_progress() as progress:
            previews = made.previews(progress)
        serve(build_page(made, previews, max_megapixels * MEGA), host, port, accounts, max_upload)


def import_page(host: str, accounts: list[tuple[str, str]]) -> Callable[..., Any]:
    """The function that builds the page, if this host may be served.

    Raises:
        UserError: Gradio is not installed, or other machines could come in without a password.
    """
    if find_spec("gradio") is None:
        hint = "install it: pip install 'collectionlora[studio]'"
        raise UserError("", "studio", "needs gradio (it is not installed)", hint)
    from collectionlora.studio.guard import is_local

    if not is_local(host) and not accounts:
        hint = f"give --auth FILE or set {AUTH_VARIABLE}, or stay on 127.0.0.1"
        raise UserError("", "--host", f"{host} lets other machines in without a password", hint)
    with without_proxies():  # Gradio makes a client of HTTP when it is imported
        from collectionlora.studio.page import build_page
    return build_page


@without_proxies()  # the base is here by now, and Gradio would ask a proxy whether its own page is up
def serve(page: Any, host: str, port: int, accounts: list[tuple[str, str]], max_upload: int) -> None:
    """Serve a page until Ctrl-C.

    Raises:
        UserError: the address cannot be listened on.
    """
    from starlette.middleware import Middleware

    from collectionlora.studio.guard import SameSite
    from collectionlora.studio.page import STYLE

    try:
        _, url, _ = page.queue(max_size=256).launch(
            server_name=host,
            server_port=port or None,
            auth=accounts or None,
            max_file_size=max_upload * MEGA,
            share=False,
            quiet=True,
            css=STYLE,
            ssr_mode=False,
            footer_links=["api"],
            prevent_thread_lock=True,
            app_kwargs={"middleware": [Middleware(SameSite, local_only=not accounts)]},
        )
    except OSError as error:
        raise UserError("", "--port", f"cannot listen on {host}:{port} ({error})", "try --port 0") from None
    console.print(f"the studio is at {url} (Ctrl-C ends it)", highlight=False)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        page.close(verbose=False)


def load_studio(collection: Path, batch_size: int, quantization: str | None) -> "Studio":
    """The adapter and its base, if there is room for them.

    Raises:
        UserError: no adapter there, it needs more memory than is free, or no such quantisation.
    """
    from collectionlora.planning.guard import refuse_too_large_adapter
    from collectionlora.studio.pictures import Studio

    refuse_too_large_adapter("studio", collection, quantization=quantization)
    return Studio(collection, batch_size, quantization)


def check_port(host: str, port: int) -> None:
    """Look that nobody listens there, before a model is loaded.

    Raises:
        UserError: another program has the port, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        message = f"cannot listen on {host}:{port} ({error})"
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise UserError("", "--port", message, "try --port 0") from None
        raise UserError("", "--host", message, "give an address of this machine, such as 127.0.0.1") from None


def read_accounts(path: Path | None) -> list[tuple[str, str]]:
    """Users and passwords of a file, or of the environment.

    Raises:
        UserError: no such file, or a line that is not USER:PASSWORD.
    """
    place = path or AUTH_VARIABLE
    try:
        text = path.read_text(encoding="utf-8-sig") if path else os.environ.get(AUTH_VARIABLE, "")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(place, "--auth", str(error), "give a text file of USER:PASSWORD lines") from None
    accounts = []
    for line in filter(None, map(str.strip, text.splitlines())):
        user, colon, password = line.partition(":")
        if not (user and colon and password):
            # The line itself may hold a password: it is not repeated.
            raise UserError(place, "--auth", "has a line that is not USER:PASSWORD", "fix that line")
        accounts.append((user, password))
    if len(dict(accounts)) < len(accounts):
        raise UserError(place, "--auth", "names a user twice", "give each user one password")
    if path and not accounts:
        raise UserError(place, "--auth", "is empty", "write one USER:PASSWORD a line")
    return accounts

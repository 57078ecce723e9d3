"""What the environment says: processes of a launch, and proxies; imports nothing that takes a second."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from collectionlora.system.errors import UserError, quote

PROXIES = ("http_proxy", "https_proxy", "all_proxy")
CERTIFICATES = ("ssl_cert_file", "ssl_cert_dir")  # a client of HTTP reads them when it is made
THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


def requested_processes() -> int:
    """How many processes the launcher says that there are; one without a launcher.

    Raises:
        UserError: `WORLD_SIZE` is not a number of processes.
    """
    # A batch script may export it from a variable that is not set.
    text = os.environ.get("WORLD_SIZE", "").strip() or "1"
    if not (text.isascii() and text.isdecimal() and 1 <= len(text) <= 6 and int(text)):
        hint = "unset it, or launch with torchrun --nproc-per-node N -m -- collectionlora ..."
        raise UserError("environment", "WORLD_SIZE", f"is {quote(text)}, not a number of processes", hint)
    return int(text)


def spare_this_machine_the_proxy() -> None:
    """No proxy is asked for an address of this machine: it would look for it on its own."""
    # Libraries read either spelling, the small letters first.
    named = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    names = [name.strip() for name in named.split(",") if name.strip()]
    if "*" not in names:
        value = ",".join(dict.fromkeys([*names, *THIS_MACHINE]))
        os.environ |= {"no_proxy": value, "NO_PROXY": value}


@contextmanager
def without_proxies() -> Iterator[None]:
    """No proxy and no certificates inside the block, for work that asks no other machine."""
    unused = (*PROXIES, *CERTIFICATES)
    named = {name: os.environ.pop(name) for name in list(os.environ) if name.lower() in unused}
    try:
        yield
    finally:
        os.environ |= named

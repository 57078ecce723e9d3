"""A process that dies, alone or with its host, ends all others of its launch in one line, within minutes.

A collective call waits for whoever will never answer, up to a day where one process makes targets and the
others wait, and then ends in a stack of C++. So every process has a line to the main one, and a thread that
sends a byte on it each second. A closed line is a process that ended, a silent one a host without power or
network. The lines are sockets: a call of the launch's own store cannot be given up.
"""

import os
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from collectionlora.system.errors import process_stopped

PERIOD = 1.0  # seconds between two bytes
MAX_SILENCE = 120  # periods; a process may be busy in one call that gives its thread no time
GRACE = 10.0  # seconds in which the work itself may notice and end in its own way
MAX_WAIT = 120.0  # seconds for all to be connected


def open_exchange(host: str) -> socket.socket:
    """Where the main process, whose `host` the others name, waits for them, on a port that is free."""
    if host in ("localhost", "127.0.0.1"):  # nobody else need reach it
        return socket.create_server((host, 0))
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", 0), family=family, dualstack_ipv6=both)


def connect(exchange: socket.socket | None, host: str, port: int, others: int) -> list[socket.socket]:
    """This process' lines: of the main one, which has the exchange, to the others; of another one to it.

    Raises:
        OSError: the host of the main process cannot be reached.
    """
    if exchange is None:
        return [socket.create_connection((host, port), timeout=MAX_WAIT)]
    with exchange:
        exchange.settimeout(MAX_WAIT)
        return [exchange.accept()[0] for _ in range(others)]


@contextmanager
def watch(lines: Sequence[socket.socket]) -> Iterator[None]:
    """End this process in a line, with exit code 2, if another one ends or falls silent inside the block."""
    left = threading.Event()
    thread = threading.Thread(target=_listen, args=(lines, left), daemon=True)
    with ExitStack() as stack:
        for line in lines:
            stack.enter_context(line).setblocking(False)
        thread.start()
        try:
            yield
        finally:
            left.set()
            thread.join()


def _listen(lines: Sequence[socket.socket], left: threading.Event) -> None:
    # Silence is counted in this thread's own periods: where all are suspended together, nobody was silent.
    silence = [0] * len(lines)
    while not left.wait(PERIOD):
        heard = [_exchange_bytes(line) for line in lines]
        silence = [0 if more else before + 1 for more, before in zip(heard, silence, strict=True)]
        gone = None in heard or max(silence) > MAX_SILENCE
        if gone and not left.wait(GRACE):
            print(f"error: {process_stopped()}", file=sys.stderr, flush=True)
            os._exit(2)  # the main thread waits in a call that does not return


def _exchange_bytes(line: socket.socket) -> bool | None:
    """Send a byte; whether some have come, None if the line is closed."""
    try:
        line.send(b".")
        return True if line.recv(4096) else None
    except BlockingIOError:
        return False
    except OSError:
        return None

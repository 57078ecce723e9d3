"""A lock on an open file, where the system and the file system have one."""

import logging
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)


def lock_file(file: IO[Any]) -> None:
    """Lock an open file until it is closed, however its process ends.

    Where there are no locks it is said, and the work goes on.

    Raises:
        BlockingIOError: another process holds the lock.
    """
    try:
        if fcntl is None:
            raise OSError("this system has no flock")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:  # Lustre without flock, some mounts of FUSE and NFS
        reason = error.strerror or error
        log.warning("%s: cannot be locked (%s); start no second run in this folder", file.name, reason)

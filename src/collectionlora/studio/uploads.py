"""The folder of uploads and results, which ends with the server, however the server ends."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from collectionlora.system.errors import UserError

VARIABLE = "GRADIO_TEMP_DIR"  # Gradio reads it when it is imported, and later
# A pipe closes when its only writer ends, killed or not: then the reader removes the folder.
REMOVE_AT_END = "import shutil, sys; sys.stdin.read(); shutil.rmtree(sys.argv[1], ignore_errors=True)"


@contextmanager
def private_uploads() -> Iterator[Path]:
    """Gradio's files in a new private folder that is removed when the block ends, or this process is killed.

    It lies in the folder that `GRADIO_TEMP_DIR` names, by default in the system's for temporary files.

    Raises:
        UserError: it cannot be made.
    """
    parent = os.environ.get(VARIABLE)
    try:
        folder = Path(tempfile.mkdtemp(prefix="collectionlora-studio-", dir=parent))
    except OSError as error:
        message = f"{parent or tempfile.tempdir} cannot hold uploads ({error.strerror})"
        hint = "name a folder that exists and can be written"
        raise UserError("environment", VARIABLE if parent else "TMPDIR", message, hint) from None
    os.environ[VARIABLE] = str(folder)
    command = [sys.executable, "-I", "-S", "-c", REMOVE_AT_END, str(folder)]
    # Its own session, so that Ctrl-C in a terminal reaches this process alone.
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.environ.pop(VARIABLE)
            os.environ |= {VARIABLE: parent} if parent else {}

"""What `collectionlora plan` prints for each command in `recipes/README.md`; `--write` puts it there."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

README = Path(__file__).parents[1] / "recipes" / "README.md"
BEGIN, END, COMMAND = "```text\n", "```\n", "    collectionlora plan "
COLUMNS = "100"


def split_sections(text: str) -> Iterable[tuple[str, str, str]]:
    """What stands before a plan, the arguments of its command, and what was printed."""
    for section in text.split(END):
        before, opened, printed = section.partition(BEGIN)
        command = before.rpartition(COMMAND)[2].replace("\\\n", "") if opened else ""
        yield before, command.strip(), printed


def rewrite(text: str, run: Callable[[list[str]], str]) -> str:
    """The page with what `run` prints for the arguments of each plan."""
    sections = []
    for before, command, _ in split_sections(text):
        sections.append(before + (BEGIN + run(["plan", *shlex.split(command)]) if command else ""))
    return END.join(sections)


def run_plan(arguments: list[str]) -> str:
    """A verb's words, as a terminal of `COLUMNS` shows them."""
    command = [sys.executable, "-m", "collectionlora", *arguments]
    # The next command is printed by its name where the shell would find it.
    found = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "COLUMNS": COLUMNS, "PATH": found}
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=True, env=environment)
    return "\n".join(line.rstrip() for line in done.stderr.rstrip().splitlines()) + "\n"


if __name__ == "__main__":
    page = rewrite(README.read_text(), run_plan)
    if "--write" in sys.argv:
        README.write_text(page)
    else:
        print(page)

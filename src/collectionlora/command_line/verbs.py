"""The command line: a verb imports what it needs when it runs, and nothing before.

Text and progress go to stderr; `--json` puts one JSON object on stdout. Exit codes: 0 done, 2 the user can
fix it (one line), 1 a fault of ours (traceback) or nobody reads the output any more, 130 interrupted with
the state saved.
"""

import logging
import sys
import warnings
from collections.abc import Callable
from typing import Annotated

import typer

from collectionlora.command_line import growing, making, using
from collectionlora.command_line.studio import studio
from collectionlora.command_line.terminal import any_terminal, faults_in_a_line
from collectionlora.planning import SHARED
from collectionlora.system.environment import requested_processes, spare_this_machine_the_proxy
from collectionlora.system.errors import UserError
from collectionlora.system.version import __version__

SEVERAL_PROCESSES = ("demo", *SHARED)  # verbs that share their work
GROUPS: dict[str, list[Callable[..., None]]] = {
    "Make a collection": [
        *(making.init, making.check, making.plan, making.settings, making.teach),
        *(making.prompts, making.targets, making.distill, making.demo),
    ],
    "Use it": [using.edit, using.effects, studio, using.export, using.bench],
    "Grow it": [growing.add, growing.remove],
}
HELP = "Distil many effect LoRAs into one LoRA that needs few steps, and use it."

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, help=HELP)
for group, verbs in GROUPS.items():
    for verb in verbs:
        app.command(rich_help_panel=group)(verb)


def show_version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit()


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    verb = str(context.invoked_subcommand)
    if verb not in SEVERAL_PROCESSES and requested_processes() != 1:
        message, hint = f"{verb} runs in one process", "start it without torchrun"
        raise UserError("environment", "WORLD_SIZE", message, hint)


def refuse_surroundings() -> None:
    """Refuse what a shell did unasked, before it is taken for something else.

    Raises:
        UserError: an argument is empty (a path would be this folder), or docstrings are stripped.
    """
    if "" in sys.argv[1:]:
        before = sys.argv[sys.argv.index("", 1) - 1]
        message, hint = "an argument is empty", "give it, or set the variable that stands for it"
        raise UserError("", f"after {before}", message, hint)
    if sys.flags.optimize > 1:
        message, hint = "strips docstrings, which transformers reads", "unset it, or set it to 1"
        raise UserError("environment", "PYTHONOPTIMIZE", message, hint)


def main() -> None:
    """The entry point: fixable faults are one line and exit code 2."""
    # Pillow warns of photos that `read_photo` reads all the same, or refuses in its own words.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    # bitsandbytes, which peft imports, advises a kernel for 4 bits on CPUs, whatever the command is.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    spare_this_machine_the_proxy()
    with any_terminal(), faults_in_a_line():
        refuse_surroundings()
        # Typer would put a usage error into a box of several lines.
        sys.exit(app(standalone_mode=False) or 0)

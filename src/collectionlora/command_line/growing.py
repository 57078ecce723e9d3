"""The verbs that add effects to a finished collection and take them out."""

from pathlib import Path
from typing import Annotated

import typer

from collectionlora.command_line.options import (
    Folder,
    Json,
    Set,
    SomeNames,
    repeat,
)
from collectionlora.command_line.progress import joined_processes
from collectionlora.command_line.terminal import command, say, tell
from collectionlora.config import Overrides, parse_overrides
from collectionlora.system.errors import Interrupted, UserError


def add(
    folder: Folder,
    names: SomeNames,
    teacher: Annotated[
        Path | None, typer.Option(help="the effect's LoRA file, to enter one effect in the manifest")
    ] = None,
    teacher_prompt: Annotated[
        str | None, typer.Option(help="the prompt it was trained with, if the file does not say it")
    ] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Teach a finished collection more effects while it replays its own; a repeated command goes on.

    The effects are in the manifest, or one is entered with --teacher and
    its photos in photos/NAME. The adapter from before is kept until
    bench --baseline has passed.

    Example: collectionlora add my-collection neon-edges
    """
    import collectionlora

    layer = parse_overrides(overrides or [])
    refuse_unused(layer)
    try:
        with joined_processes() as progress:
            path = collectionlora.add(folder, names, teacher, teacher_prompt, layer, progress)
    except Interrupted as stopped:
        tell(f"{stopped}; go on with: {command('add', folder, *names, *repeat('--set', overrides))}")
        raise typer.Exit(130) from None
    bench = command("bench", folder, "--photos", "HELDOUT", "--baseline", "BEFORE.json")
    text = f"wrote {path}; next: {bench}; BEFORE.json is a copy of bench/metrics.json from before"
    say(as_json, {"adapter": str(path)}, text)


def refuse_unused(layer: Overrides) -> None:
    """Refuse the lengths of a distillation, which `add` does not read.

    Raises:
        UserError: one of them is given.
    """
    for section, name in (("match", "updates"), ("distill", "student_updates")):
        if name in layer.get(section, {}):
            hint = "give add.match_updates or add.student_updates"
            raise UserError("--set", f"{section}.{name}", "is not used by add", hint)


def remove(folder: Folder, names: SomeNames, as_json: Json = False) -> None:
    """Take effects out of the manifest and the adapter's recipe; the weights still hold them.

    Example: collectionlora remove my-collection neon-edges
    """
    import collectionlora
    from collectionlora.collection import RESULT

    left = collectionlora.remove(folder, names)
    following = command("effects" if (folder / RESULT).exists() else "check", folder)
    text = f"left: {', '.join(left)}; next: {following}"
    say(as_json, {"effects": left}, text)

"""What a person sees in the terminal: tables and results on stderr, the JSON of a result on stdout."""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Column, Table

from collectionlora.command_line.tracing import ResolvedSetting
from collectionlora.config import SettingsError
from collectionlora.effectbench.report.columns import find_measured, write_value
from collectionlora.system.errors import Interrupted, UserError, explain_fault, one_line

if os.environ.get("COLUMNS") == "0":  # of a terminal whose width is not known: rich would show nothing
    del os.environ["COLUMNS"]
console = Console(stderr=True)
UsageError: Any = typer.BadParameter.__bases__[0]  # Typer has no name of its own for it
# The measures that a terminal has room for; metrics.json and the report have all.
IN_TERMINAL = {
    *("psnr", "teacher_psnr", "concept_accuracy", "bad_case_rate", "bleed", "general_psnr"),
    *("clip_text", "clip_reference", "dino_source", "vsa", "bcr"),
}


@contextmanager
def faults_in_a_line() -> Iterator[None]:
    """End the process in a line for what the user can fix, exit code 2, or stopped, 130; no traceback."""
    try:
        yield
    except (UserError, SettingsError) as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        sys.exit(2)
    except UsageError as error:
        if error.format_message():  # without any argument the help is shown already
            print(f"error: {one_line(explain_usage(error))}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as stopped:
        print(f"{stopped}; the same command goes on", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        fault = explain_fault(error)
        if fault is None:
            raise
        print(f"error: {fault}", file=sys.stderr)
        sys.exit(2)


def explain_usage(error: Any) -> str:
    """A usage error in one line, with the command that shows what can be given."""
    text, command = error.format_message().rstrip("."), error.ctx.command_path if error.ctx else program()
    joint = " See" if text.endswith("?") else "; see"
    return f"{text[:1].lower()}{text[1:]}{joint}: {command} --help"


@contextmanager
def any_terminal() -> Iterator[None]:
    """Work with a terminal of any encoding; no word if its reader has gone (`| head`), or was never there."""
    if sys.stdout is None:  # a shell can close it: `>&-`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (it stays open for good)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # not what a test or a notebook puts in its place
            # An ASCII locale cannot show every name and every prompt: as their escapes they are still there.
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # What Python still holds for the reader must not fail at its own end either.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
        sys.exit(1)  # as Typer does where it is the first to notice


def tell(text: str) -> None:
    """A line for people that may hold a command or a path: as it is, however narrow the terminal."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def say(as_json: bool, result: dict[str, Any], *shown: RenderableType) -> None:
    """The result as JSON on stdout, or `shown`, texts and tables for people, on stderr."""
    if console.quiet:
        return
    if as_json:
        # In ASCII: a name that is not UTF-8 comes through too, as a program that reads JSON can write it.
        print(json.dumps(result))
        return
    for part in shown:
        # File names may hold what rich would read as its own markup, or control the terminal.
        part = "\n".join(map(one_line, part.split("\n"))) if isinstance(part, str) else part
        console.print(part, highlight=False, markup=False, soft_wrap=isinstance(part, str))


def methods_table(metrics: dict[str, Any]) -> Table:
    """The summary table of a benchmark; what was not measured is named under it."""
    columns = [column for column in find_measured(metrics["methods"].values()) if column.key in IN_TERMINAL]
    left_out = [f"{name} ({reason})" for name, reason in metrics["skipped"].items()]
    caption = f"not measured: {'; '.join(left_out)}" if left_out else None
    table = Table("method", "nfe", *(column.key for column in columns), caption=caption)
    for name, row in metrics["methods"].items():
        table.add_row(name, str(row["nfe"]), *(write_value(row.get(c.key), c) for c in columns))
    return table


def next_after_demo(out: Path, effect: str) -> str:
    """What to do with a finished demo, from a look to a collection of one's own."""
    tool = program()
    return f"""
look      {out}/pictures.png, {out}/report.html
edit      {tool} edit {out}/collection YOURS.jpg --effect {effect}
click     {tool} studio {out}/collection
take out  {tool} export {out}/collection --format peft --out {out}/lora
your own  {tool} init mine --base Qwen/Qwen-Image-Edit-2509 --from-loras YOUR.safetensors"""


def program() -> str:
    """What a shell here calls the command by: its name, or its path where its environment is not active."""
    beside = Path(sys.executable).with_name("collectionlora")
    return (
        "collectionlora" if shutil.which("collectionlora") or not beside.exists() else os.path.relpath(beside)
    )


def command(*words: object) -> str:
    """A command of this program as a person can paste it into a shell."""
    return shlex.join([program(), *map(str, words)])


def describe_lora(effect: dict[str, Any]) -> str:
    """One line of `check` for an effect's LoRA file."""
    ranks, scales = (", ".join(f"{value:g}" for value in effect[key]) for key in ("ranks", "scales"))
    line = f"{effect['name']}: {effect['format']}, {f'rank {ranks}, ' if ranks else ''}scale {scales}, "
    line += f"{effect['modules']} of {effect['targets']} modules, norm {effect['norm']:.3g}"
    exact, lost = effect["exact_modules"], effect["conversion_loss"]
    line += f", {exact} modules as exact weight changes" if exact else ""
    line += f", converted with a loss of {lost:.2g}" if lost else ""
    left_out = effect["left_out"]
    return f"{line}, {left_out} tensors of the text encoder left out" if left_out else line


def folded(*names: str) -> list[Column]:
    """Columns whose long words go on in the next line: a trigger must never be cut off."""
    return [Column(name, overflow="fold") for name in names]


def prompt_table(result: dict[str, Any]) -> Table:
    """Who wrote each effect's prompt, and the cosines of its prompts to the nearest other effect's."""
    columns = ("effect", "student prompt by", "nearest student", "nearest teacher")
    spent = f"{result['calls']} calls, {result['tokens']} tokens" if result["calls"] else None
    table = Table(*folded(*columns), caption=spent)
    for i, name in enumerate(result["student_prompts"]):
        writer = result["written_by"][name]
        if name in result["notes"]:
            writer += f" ({result['notes'][name]})"
        nearest = [
            max((c for j, c in enumerate(result[key][i]) if j != i), default=0.0)
            for key in ("student_cosine", "teacher_cosine")
        ]
        # A model's answer may hold what rich would read as its own markup.
        table.add_row(name, escape(writer), *(f"{c:.2f}" for c in nearest))
    return table


def settings_table(traced: Sequence[ResolvedSetting]) -> Table:
    """Settings with their values, and the layer that each value comes from."""
    table = Table(*folded("setting", "value", "from", "meaning"))
    for one in traced:
        table.add_row(one.name, escape(str(one.value)), escape(one.layer), escape(one.description or ""))
    return table


def effects_table(effects: Mapping[str, str]) -> Table:
    """Effects with their student prompts."""
    table = Table(*folded("effect", "prompt"))
    for name, prompt in effects.items():
        table.add_row(name, escape(prompt))
    return table


def plan_table(base: str, result: dict[str, Any]) -> Table:
    """What each device holds, what is kept elsewhere, and which devices are large enough."""
    table = Table("", "GiB", title=f"{base}: counted")
    rows = {
        "base, {base_parameters:,} parameters": "base_bytes",
        "LoRAs of all roles; the student's {lora_parameters:,} in {lora_modules} modules": "lora_bytes",
        "gradients, moments, moving average": "optimizer_bytes",
        "activations and workspace": "activation_bytes",
        "blocks gathered": "gathered_bytes",
        "each device": "total_bytes_per_device",
        "before it is sharded: base and LoRAs": "start_bytes",
        "while prompts are encoded": "encoding_bytes",
        "each device, if every role had a base of its own": "reference_layout_bytes",
        "disk: converted teachers, mapped": "teacher_library_bytes",
        "disk: cache": "cache_bytes",
        "disk: the adapter": "adapter_bytes",
    }
    for label, key in rows.items():
        if result[key]:
            table.add_row(label.format(**result), f"{result[key] / 2**30:,.2f}")
    counts = "{forwards_per_student_update:.4g} and {backwards_per_student_update}"
    table.add_row("forwards and backwards of a student update, each image", counts.format(**result))
    table.add_row("fits", "\n".join(d for d, enough in result["fits"].items() if enough) or "none")
    return table


def verbs_table(result: dict[str, Any]) -> Table:
    """What each verb needs: GiB, and time."""
    caption = (
        "time: {seconds_per_forward:.2g} s for a forward on {clock} (--seconds-per-forward); not counted: "
        "loading, decoding, previews, the prompts that a model writes"
    )
    names = ("verb", "device", "host, main process", "host, machine", "disk", "time")
    table = Table(*names, caption=caption.format(**result))
    for verb, row in result["verbs"].items():
        keys = ("device_bytes", "host_bytes", "machine_bytes", "disk_bytes")
        table.add_row(verb, *(f"{row[key] / 2**30:,.2f}" for key in keys), write_duration(row["seconds"]))
    return table


def write_duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def advice_lines(result: dict[str, Any]) -> str:
    """What to change, each line on top of those before."""
    lines = []
    for change in result["advice"]:
        fitting = ", ".join(change["fits"]) or "none"
        lines.append(
            f"{change['change']}: {change['total_bytes_per_device'] / 2**30:.1f} GiB, fits {fitting}"
        )
    return "\n".join(lines)

"""What a person sees in the terminal: progress, tables, results; on stderr, but for the JSON of a result."""

import json
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from collectionlora.effectbench.report.columns import measured, write_value

console = Console(stderr=True)
# The measures that a terminal has room for; metrics.json and the report have all.
IN_TERMINAL = {
    *("psnr", "concept_accuracy", "bad_case_rate", "bleed", "general_psnr"),
    *("clip_text", "clip_reference", "dino_source", "vsa", "bcr"),
}


class ProgressLine:
    """A live line for each piece of work: done, in all, rate, time left, the newest losses."""

    def __enter__(self) -> "ProgressLine":
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=console,
        )
        self.tasks: dict[str, Any] = {}
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, what: str, done: int, total: int, metrics: dict[str, float]) -> None:
        if what not in self.tasks:
            self.tasks[what] = self.bar.add_task(what, total=total, metrics="", rate="")
        text = " ".join(f"{name} {value:.3g}" for name, value in metrics.items())
        task = self.tasks[what]
        speed = self.bar.tasks[task].speed
        rate = f"{speed:.2f}/s" if speed else ""
        self.bar.update(task, completed=done, total=total, metrics=text, rate=rate)


def say(as_json: bool, result: dict[str, Any], text: str) -> None:
    """The result as JSON on stdout, or as text on stderr."""
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        console.print(text, highlight=False)


def methods_table(metrics: dict[str, Any]) -> Table:
    """The summary table of a benchmark; what was not measured is named under it."""
    columns = [column for column in measured(metrics["methods"].values()) if column.key in IN_TERMINAL]
    left_out = [f"{name} ({reason})" for name, reason in metrics["skipped"].items()]
    caption = f"not measured: {'; '.join(left_out)}" if left_out else None
    table = Table("method", "nfe", *(column.key for column in columns), caption=caption)
    for name, row in metrics["methods"].items():
        table.add_row(name, str(row["nfe"]), *(write_value(row.get(c.key), c) for c in columns))
    return table


def describe_lora(effect: dict[str, Any]) -> str:
    """One line of `check` for an effect's LoRA file."""
    ranks, scales = (", ".join(f"{value:g}" for value in effect[key]) for key in ("ranks", "scales"))
    line = f"{effect['name']}: {effect['format']}, rank {ranks}, scale {scales}, "
    line += f"{effect['modules']} of {effect['targets']} modules, norm {effect['norm']:.3g}"
    lost = effect["conversion_loss"]
    return f"{line}, converted with a loss of {lost:.2g}" if lost else line


def prompt_table(result: dict[str, Any]) -> Table:
    """Each effect's prompts, and the cosine to the nearest other effect's."""
    columns = (
        "effect",
        "student prompt",
        "written by",
        "teacher prompt",
        "nearest student",
        "nearest teacher",
    )
    spent = f"{result['calls']} calls, {result['tokens']} tokens" if result["calls"] else None
    table = Table(*columns, caption=spent)
    for i, (name, text) in enumerate(result["student_prompts"].items()):
        writer = result["written_by"][name]
        if name in result["notes"]:
            writer += f" ({result['notes'][name]})"
        nearest = [
            max((c for j, c in enumerate(result[key][i]) if j != i), default=0.0)
            for key in ("student_cosine", "teacher_cosine")
        ]
        # Prompts may hold what rich would read as its own markup.
        cells = [escape(cell) for cell in (name, text, writer, result["teacher_prompts"][name])]
        table.add_row(*cells, *(f"{c:.2f}" for c in nearest))
    return table

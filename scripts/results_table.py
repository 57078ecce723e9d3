"""The tables of README and docs/results.md from metrics.json.

    python scripts/results_table.py FILE [FILE ...] [--below METHOD | --earlier FILE | --effects NAME ...]

`fixed` and `random` are the mean PSNR of effects with one valid outcome and with more. Of several files,
which are of several seeds, it prints the means; their intervals are then from the lowest file to the highest.
`--below` compares each method with one, effect by effect, and `--earlier` with itself in an earlier version.
`--effects` prints the PSNR of single effects, and the mean of the others.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from collectionlora.effects import ALL_EFFECTS

MARGIN, NUM_WORST = 1.5, 5  # dB; effects that are named
HEAD = ["", "forwards", "PSNR", "fixed", "random", "perceptual distance"]
HEAD += ["concept accuracy", "bad cases", "ordinary edits"]
Scores = Mapping[str, Any]  # of one method
Metrics = Mapping[str, Any]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    first = f"| {' | '.join(head)} |".replace("|  |", "| |")
    return "\n".join([first, "|---" * len(head) + "|", *(f"| {' | '.join(cells)} |" for cells in rows)])


def with_interval(scores: Scores, key: str, digits: int) -> str:
    if key not in scores:
        return ""
    low, high = scores["ci95"][key]
    return f"{scores[key]:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def share(value: float) -> str:
    return f"{100 * value:.0f} %"


def share_with_interval(scores: Scores, key: str) -> str:
    low, high = scores["ci95"][key]
    return f"{share(scores[key])} ({100 * low:.0f} to {100 * high:.0f})"


def row(name: str, scores: Scores) -> list[str]:
    """One method; intervals are the bootstrap's 95 %."""
    effects = scores["per_effect"]
    fixed = [name for name in effects if ALL_EFFECTS[name].num_outcomes == 1]
    random = [name for name in effects if name not in fixed]

    def mean(names: list[str]) -> str:
        return f"{fmean(effects[n]['psnr'] for n in names):.1f}" if names else ""

    cells = [name, str(scores["nfe"]), with_interval(scores, "psnr", 1), mean(fixed), mean(random)]
    cells += [f"{scores['perceptual_distance']:.3f}", share_with_interval(scores, "concept_accuracy")]
    return [*cells, share(scores["bad_case_rate"]), f"{scores['general_psnr']:.1f}"]


def mean_over_files(files: Sequence[Scores]) -> dict[str, Any]:
    """One method's scores of several seeds as one."""
    keys = ("psnr", "perceptual_distance", "concept_accuracy", "bad_case_rate", "general_psnr")
    values = {key: [scores[key] for scores in files] for key in keys}
    effects = files[0]["per_effect"]
    return {
        "nfe": files[0]["nfe"],
        "ci95": {key: (min(found), max(found)) for key, found in values.items()},
        "per_effect": {e: {"psnr": fmean(s["per_effect"][e]["psnr"] for s in files)} for e in effects},
        **{key: fmean(found) for key, found in values.items()},
    }


def methods_table(files: Sequence[Metrics]) -> str:
    names = files[0]["methods"]
    many = len(files) > 1
    scores = {n: mean_over_files([f["methods"][n] for f in files]) if many else names[n] for n in names}
    return markdown(HEAD, [row(name, scores[name]) for name in names])


def below_table(metrics: Metrics, reference: str) -> str:
    """PSNR of every effect, less that of `reference`: how many are close, how many above, and the worst."""
    methods = metrics["methods"]
    rows = []
    for name, scores in methods.items():
        ours, theirs = scores["per_effect"], methods[reference]["per_effect"]
        differences = {effect: ours[effect]["psnr"] - theirs[effect]["psnr"] for effect in ours}
        close = sum(value >= -MARGIN for value in differences.values())
        above = sum(value > 0 for value in differences.values())
        worst = sorted(differences.items(), key=lambda item: item[1])[:NUM_WORST]
        rows.append([name, str(close), str(above), ", ".join(f"{e} {v:+.1f}" for e, v in worst)])
    return markdown(["", f"within {MARGIN:g} dB of {reference}", "above it", "the worst, dB"], rows)


def earlier_table(metrics: Metrics, earlier: Metrics) -> str:
    """Each method of an earlier version and of this one, with the intervals of both.

    If they have different effects, further columns are of the effects in both: their mean PSNR, and the one
    that lost most.
    """
    now, then = (found["methods"] for found in (metrics, earlier))
    first = next(iter(now))
    both = now[first]["per_effect"].keys() & then[first]["per_effect"].keys()
    same = len(both) == len(now[first]["per_effect"]) == len(then[first]["per_effect"])
    rows = []
    for name in now:
        before, after = (
            {effect: methods[name]["per_effect"][effect]["psnr"] for effect in sorted(both)}
            for methods in (then, now)
        )
        worst = min(both, key=lambda effect: after[effect] - before[effect])
        lost = f"{worst} {after[worst] - before[worst]:+.2f}"
        for version, scores, psnr, last in (
            ("earlier", then[name], before, ""),
            ("now", now[name], after, lost),
        ):
            cells = [with_interval(scores, "psnr", 1)]
            cells += [] if same else [f"{fmean(psnr.values()):.2f}", last]
            cells += [share_with_interval(scores, "concept_accuracy"), f"{scores['general_psnr']:.1f}"]
            rows.append([f"{name}, {version}", *cells])
    columns = [] if same else [f"{len(both)} effects in both", "of them lost most, dB"]
    return markdown(["", "PSNR", *columns, "concept accuracy", "ordinary edits"], rows)


def effects_table(metrics: Metrics, chosen: Sequence[str]) -> str:
    """PSNR of single effects by method, and the mean of all others."""
    rows = []
    for name, scores in metrics["methods"].items():
        psnr = {effect: one["psnr"] for effect, one in scores["per_effect"].items()}
        others = [value for effect, value in psnr.items() if effect not in chosen]
        rows.append([name, *(f"{psnr[effect]:.1f}" for effect in chosen), f"{fmean(others):.2f}"])
    return markdown(["", *chosen, f"the other {len(others)}"], rows)


def scaling_table(metrics: Metrics) -> str:
    """Every size with its teachers; the last columns are of the effects that all sizes have."""
    sizes = metrics["sizes"]
    common = next(iter(sizes.values()))["effects"]
    rows = [
        [
            size,
            *row(name.replace(f"{size}-effects", "student"), scores),
            f"{fmean(scores['per_effect'][e]['psnr'] for e in common):.1f}",
            share(fmean(scores["per_effect"][e]["concept_accuracy"] for e in common)),
        ]
        for size, of_size in sizes.items()
        for name, scores in of_size["methods"].items()
    ]
    last = [f"PSNR of the first {len(common)}", "their concept accuracy"]
    return markdown(["effects", *HEAD, *last], rows)


def incremental_table(metrics: Metrics) -> str:
    """The kept effects before and after, then each new one alone, and what the gate says."""
    moments = {"before": "kept, before", "after": "kept, after"}
    rows = [
        row(f"{label}: {name}", scores)
        for moment, label in moments.items()
        for name, scores in metrics[moment]["methods"].items()
        if moment == "before" or name.startswith("student")
    ]
    for effect in metrics["new"]:
        for name, scores in metrics["all"]["methods"].items():
            one = scores["per_effect"][effect]
            rows.append(row(f"{effect}: {name}", {**scores, **one, "per_effect": {effect: one}}))
    gate = metrics["gate"]
    verdict = "passed" if gate["passed"] else f"failed ({', '.join(gate['failed'])})"
    lost = f"{gate['worst_effect']} lost most, {gate['worst_loss']:.2f} dB"
    return f"{markdown(HEAD, rows)}\n\nThe gate at {gate['margin']:g} dB {verdict}: {lost}."


def composition_table(metrics: Metrics) -> str:
    shares = ["both", "recognisable", "first", "second"]
    head = ["", "forwards", "both", "both, of recognisable", "first", "second", "PSNR"]
    rows = []
    for name, scores in metrics["methods"].items():
        cells = [share_with_interval(scores, key) for key in shares]
        rows.append([name, str(scores["nfe"]), *cells, with_interval(scores, "psnr", 1)])
    return markdown(head, rows)


def deployment_table(metrics: Metrics) -> str:
    head = ["", "files", "MB", "first image, CPU s", "images / CPU s"]
    rows = [
        [
            name,
            str(scores["files"]),
            f"{scores['bytes'] / 1e6:.2f}",
            f"{scores['first_image_seconds']:.2f}",
            f"{scores['images_per_second']:.1f}",
        ]
        for name, scores in metrics["methods"].items()
    ]
    return markdown(head, rows)


def quantised_table(metrics: Metrics) -> str:
    """Every LoRA on every base: PSNR with its interval, and ordinary edits on the base in the column."""
    bases = metrics["bases"]
    head = ["", *(f"PSNR on {base}" for base in bases), *(f"ordinary edits on {base}" for base in bases)]
    rows = []
    for name in next(iter(bases.values()))["methods"]:
        scores = [base["methods"][name] for base in bases.values()]
        ordinary = [f"{one['general_psnr']:.1f}" for one in scores]
        rows.append([name, *(with_interval(one, "psnr", 2) for one in scores), *ordinary])
    return markdown(head, rows)


def strength_table(metrics: Metrics) -> str:
    """Every dial: decibels to what it should show, then how even and how sharp it is."""
    digits = {"photo": 1, "truth": 1, "between": 1, "uneven": 2, "sharp": 2}
    rows = [[name, *(f"{row[k]:.{n}f}" for k, n in digits.items())] for name, row in metrics["means"].items()]
    return markdown(["", *digits], rows)


TABLES = {
    "scaling": scaling_table,
    "incremental": incremental_table,
    "composition": composition_table,
    "deployment": deployment_table,
    "strength": strength_table,
    "quantised": quantised_table,
}


def table(*paths: Path) -> str:
    """The table of a file, or of the same methods at several seeds, as Markdown."""
    files = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    kind = files[0].get("table")
    return TABLES[kind](files[0]) if kind else methods_table(files)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--below", metavar="METHOD", help="compare all with this one, of the first file")
    parser.add_argument("--earlier", type=Path, metavar="FILE", help="compare with an earlier version's file")
    parser.add_argument("--effects", nargs="+", metavar="NAME", help="single effects of the first file")
    args = parser.parse_args()
    if args.effects:
        print(effects_table(json.loads(args.files[0].read_text(encoding="utf-8")), args.effects))
    elif args.earlier:
        print(
            earlier_table(*(json.loads(p.read_text(encoding="utf-8")) for p in (*args.files, args.earlier)))
        )
    elif args.below:
        print(below_table(json.loads(args.files[0].read_text(encoding="utf-8")), args.below))
    else:
        print(table(*args.files))

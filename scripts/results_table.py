"""The tables of README and docs/results.md from a metrics.json: python scripts/results_table.py FILE

`fixed` and `random` are the mean PSNR of effects with one valid outcome and with more.
"""

import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from collectionlora.effects import EFFECTS

HEAD = "| | forwards | PSNR | fixed | random | concept accuracy | bad cases | ordinary edits |"


def row(name: str, scores: dict[str, Any]) -> str:
    """One method; intervals are the bootstrap's 95 %."""
    effects = scores["per_effect"]
    fixed, random = ([n for n in effects if (EFFECTS[n].num_outcomes == 1) == one] for one in (True, False))

    def mean(names: list[str]) -> str:
        return f"{fmean(effects[n]['psnr'] for n in names):.1f}" if names else ""

    def with_interval(key: str, digits: int) -> str:
        low, high = scores["ci95"][key]
        return f"{scores[key]:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"

    cells = [name, str(scores["nfe"]), with_interval("psnr", 1), mean(fixed), mean(random)]
    cells += [with_interval("concept_accuracy", 2), f"{scores['bad_case_rate']:.2f}"]
    return f"| {' | '.join(cells)} | {scores['general_psnr']:.1f} |"


def table(path: Path) -> str:
    """All methods of a file, as Markdown."""
    methods = json.loads(path.read_text(encoding="utf-8"))["methods"]
    return "\n".join([HEAD, "|---" * 8 + "|", *(row(name, scores) for name, scores in methods.items())])


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))

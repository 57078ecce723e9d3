"""The charts of docs/findings.md, from the files in docs/results: printed names of what was written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from collectionlora.effectbench.report.charts import bar_chart
from collectionlora.system.files import write_text

RESULTS = Path(__file__).parents[1] / "docs" / "results"
Bar = tuple[str, float, float, float]
TWELVE = {
    "teacher": "teachers, 40 forwards",
    "teacher-8": "teachers undistilled, 16",
    "matching-distilled-8": "one LoRA, 8",
    "matching-distilled-4": "one LoRA, 4",
    "matching-distilled-2": "one LoRA, 2",
    "matching-distilled-1": "one LoRA, 1",
}
FIFTY = {
    "teacher-40": "teachers, 80 forwards",
    "teacher-8": "teachers, 16",
    "student-8": "one LoRA, 8",
    "student-4": "one LoRA, 4",
    "student-2": "one LoRA, 2",
    "student-1": "one LoRA, 1",
}
STREAMS = {"teacher": "base", "all": "whole method", "aop-ts-ta": "without the general stream"}


def read_methods(name: str) -> Mapping[str, Mapping[str, Any]]:
    methods: Mapping[str, Mapping[str, Any]] = json.loads((RESULTS / name).read_text())["methods"]
    return methods


def bars(methods: Mapping[str, Mapping[str, Any]], names: Mapping[str, str], key: str) -> list[Bar]:
    """One bar for each method with its interval, or without one where there is none."""
    found = []
    for name, label in names.items():
        value = methods[name][key]
        found.append((label, value, *methods[name]["ci95"].get(key, (value, value))))
    return found


def draw_charts() -> dict[str, str]:
    """Each chart by the name of its file."""
    twelve, fifty = read_methods("long_run/metrics.json"), read_methods("tables/fifty-random.json")
    ablation = read_methods("tables/ablation.json")
    speed = read_methods("tables/deployment.json")
    rates = [(name, *[row["images_per_second"]] * 3) for name, row in speed.items()]
    return {
        "findings_twelve.svg": bar_chart("twelve effects: PSNR in dB", bars(twelve, TWELVE, "psnr")),
        "findings_fifty.svg": bar_chart(
            "fifty effects: share of recognised pictures", bars(fifty, FIFTY, "concept_accuracy")
        ),
        "findings_streams.svg": bar_chart(
            "ordinary edits: PSNR in dB", bars(ablation, STREAMS, "general_psnr")
        ),
        "findings_speed.svg": bar_chart("images in one CPU second", rates),
    }


if __name__ == "__main__":
    for name, chart in draw_charts().items():
        write_text(RESULTS / name, chart)
        print(name)

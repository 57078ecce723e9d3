"""The measures by their names in metrics.json: how a reader sees them, and what they say."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Column:
    """One measure; `better` is +1 if more is better, -1 if less is, 0 if neither."""

    key: str
    label: str
    better: int
    digits: int
    meaning: str


COLUMNS = (
    Column("psnr", "PSNR, dB", 1, 2, "peak signal-to-noise ratio to the nearest right answer, at most 60"),
    Column(
        "teacher_psnr", "to teacher, dB", 1, 2, "PSNR to the teacher's picture, of effects without a truth"
    ),
    Column("ssim", "SSIM", 1, 3, "structural similarity to it"),
    Column("perceptual_distance", "MDSI", -1, 3, "mean deviation similarity index to it: gradients, colours"),
    Column("concept_accuracy", "concept", 1, 3, "share of pictures that a classifier takes for their effect"),
    Column("bad_case_rate", "bad cases", -1, 3, "share that shows another concept or has a PSNR under 15 dB"),
    Column("bleed", "bleed", -1, 3, "probability that the classifier puts on the other effects"),
    Column("coverage", "coverage", 1, 3, "how evenly pictures fall on an effect's equally likely outcomes"),
    Column("general_psnr", "ordinary, dB", 1, 2, "PSNR of ordinary edits to their truth"),
    Column("general_base_psnr", "to base, dB", 1, 2, "PSNR of ordinary edits to those of the bare base"),
    Column("clip_text", "CLIP text", 1, 3, "cosine of the picture and the teacher prompt in CLIP"),
    Column("clip_reference", "CLIP", 1, 3, "cosine of the picture and the effect's reference images in CLIP"),
    Column("clip_source", "CLIP source", 1, 3, "cosine of the picture and its photo in CLIP"),
    Column("dino_reference", "DINO", 1, 3, "cosine of the picture and the reference images in DINO"),
    Column("dino_source", "DINO source", 1, 3, "cosine of the picture and its photo in DINO"),
    Column("vsa", "VSA", 1, 2, "the judge's identity score, 1 to 5, a bad case counted as 0"),
    Column("bcr", "BCR", -1, 3, "share of pictures that the judge calls a failed effect"),
)
COSTS = (
    Column("nfe", "NFE", -1, 0, "network evaluations for one picture"),
    Column("seconds_per_image", "seconds", -1, 3, "wall clock for one picture, where and as the bench ran"),
    Column("bytes", "LoRA files", -1, 0, "size of the LoRA files beside the base"),
)


def find_measured(rows: Iterable[Mapping[str, Any]]) -> list[Column]:
    """The columns that any of the rows has."""
    keys = {key for row in rows for key in row}
    return [column for column in COLUMNS if column.key in keys]


def write_value(value: float | None, column: Column) -> str:
    """A value as a reader wants it; a dash where there is none."""
    if value is None:
        return "–"
    if column.key == "bytes":
        return write_size(int(value))
    return f"{value:.{column.digits}f}"


def write_size(num_bytes: int) -> str:
    """Bytes in decimal units."""
    size = float(num_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}" if size else "none"
        size /= 1000
    return f"{size:.3g} GB"

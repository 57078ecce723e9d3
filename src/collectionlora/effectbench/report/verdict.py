"""What a benchmark found, in a few sentences that anyone can read; docs/bench.md states the rule."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from collectionlora.adapters.roles import STUDENT, TEACHER

MAX_NAMED = 4  # effects that the sentence names


@dataclass(frozen=True)
class Measure:
    """A measure that can decide, of which more is better: a loss of at most `tolerance` counts as none."""

    key: str
    tolerance: float
    unit: str


# In this order the first one that both have for an effect decides.
MEASURES = (
    Measure("psnr", 0.5, "dB"),
    Measure("vsa", 0.25, "VSA"),
    Measure("dino_reference", 0.02, "DINO"),
    Measure("clip_reference", 0.02, "CLIP"),
)


@dataclass(frozen=True)
class Loss:
    """How far a method is below the teacher of an effect, in the unit of the measure that decides."""

    effect: str
    amount: float
    measure: Measure

    @property
    def counts(self) -> bool:
        return self.amount > self.measure.tolerance

    @property
    def text(self) -> str:
        return f"{self.amount:.{1 if self.measure.unit == 'dB' else 2}f} {self.measure.unit}"


def find_losses(student: Mapping[str, Any], teacher: Mapping[str, Any]) -> list[Loss]:
    """The effects that can be compared, the largest loss in units of its tolerance first."""
    losses = []
    for effect, row in student["per_effect"].items():
        other = teacher["per_effect"][effect]
        measure = next((m for m in MEASURES if m.key in row and m.key in other), None)
        if measure:
            losses.append(Loss(effect, other[measure.key] - row[measure.key], measure))
    return sorted(losses, key=lambda loss: -loss.amount / loss.measure.tolerance)


def write_verdict(methods: Mapping[str, Mapping[str, Any]]) -> str:
    """One sentence: on how many effects the student is as good as its teachers, and what it loses most on."""
    if STUDENT not in methods or TEACHER not in methods:
        return f"There is no verdict: the methods {STUDENT} and {TEACHER} were not both judged."
    losses = find_losses(methods[STUDENT], methods[TEACHER])
    if not losses:
        return "There is no verdict: no effect has a known truth, a judge's score or reference images."
    worse = [loss for loss in losses if loss.counts]
    total = len(losses)
    if not worse:
        everything = f"all {total} effects" if total > 1 else "its effect"
        return f"The student is as good as its teachers on {everything}."
    named = [f"{loss.effect} is {loss.text} below" for loss in worse[:MAX_NAMED]]
    if len(worse) > MAX_NAMED:
        more = len(worse) - MAX_NAMED
        named.append(f"{more} more {'is' if more == 1 else 'are'} less far below")
    good = f"{total - len(worse)} of {total} effect{'s' if total > 1 else ''}"
    return f"The student is as good as its teachers on {good}; {join(named)}."


def write_remarks(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a picture costs, how often the effect is recognised, and what became of ordinary edits."""
    if STUDENT not in methods or TEACHER not in methods:
        return []
    student, teacher = methods[STUDENT], methods[TEACHER]
    remarks = [
        f"The student needs {student['nfe']} network evaluations for a picture; "
        f"the teachers need {teacher['nfe']}."
    ]
    if "concept_accuracy" in student and "concept_accuracy" in teacher:
        shares = [f"{100 * row['concept_accuracy']:.0f}%" for row in (student, teacher)]
        remarks.append(
            f"A classifier recognises the effect in {shares[0]} of the student's pictures "
            f"and in {shares[1]} of the teachers'."
        )
    if "teacher_psnr" in student:
        remarks.append(
            "Of effects without a truth the student's pictures have a PSNR of "
            f"{student['teacher_psnr']:.1f} dB to the teacher's."
        )
    if "general_psnr" in student and "general_psnr" in teacher:
        lost = teacher["general_psnr"] - student["general_psnr"]
        change = f"lose {lost:.1f} dB" if lost > 0 else f"gain {abs(lost):.1f} dB"
        remarks.append(f"Ordinary edits {change} against the base without a LoRA.")
    return remarks


def join(parts: Sequence[str]) -> str:
    """Parts of a sentence with commas and a final "and"."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]

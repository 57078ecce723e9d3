"""A gate: no effect that a collection held before may lose more than a margin."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collectionlora.adapters.roles import STUDENT
from collectionlora.system.errors import UserError

# The measures that a gate compares, both in dB: of an effect without a truth the second.
KEYS = ("psnr", "teacher_psnr")


@dataclass(frozen=True)
class Gate:
    """An earlier metrics.json, and the largest loss of an effect's PSNR in dB that passes."""

    path: Path
    margin: float
    baseline: dict[str, Any]

    @classmethod
    def load(cls, path: Path, margin: float, written: Path) -> "Gate":
        """Read the earlier metrics.json.

        Args:
            written: the metrics.json that this bench writes.

        Raises:
            UserError: it cannot be read, or this bench would write over it.
        """
        if path.resolve() == written.resolve():
            raise UserError(path, "--baseline", "would be written over", "copy it to another name first")
        try:
            baseline = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(baseline, dict) or not isinstance(baseline.get("methods"), dict):
                raise ValueError("it has no methods")
            return cls(path, margin, baseline)
        except (OSError, ValueError, RecursionError) as error:
            hint = "give a metrics.json that bench wrote"
            raise UserError(path, "--baseline", f"cannot be read ({error})", hint) from None

    def changes(self, metrics: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
        """By effect that both have, the student's PSNR before and now, to the truth or to the teacher.

        Raises:
            UserError: the two are not of the same photos, have nothing in common, or an effect was measured
                before and is not now.
        """
        if self.baseline.get("cases") != metrics["cases"]:
            hint = "bench with the same --photos, --crops, --seeds and data.resolution"
            raise UserError(self.path, "cases", "is of other photos", hint)
        before, now = (m["methods"].get(STUDENT, {}).get("per_effect", {}) for m in (self.baseline, metrics))
        both: dict[str, tuple[float, float]] = {}
        for effect in sorted(before.keys() & now.keys()):
            measured = [key for key in KEYS if key in before[effect]]
            common = [key for key in measured if key in now[effect]]
            if common:
                both[effect] = before[effect][common[0]], now[effect][common[0]]
            elif measured:
                hint = "bench the methods teacher and student, as before"
                raise UserError(self.path, effect, f"had a {measured[0]} before, and has none now", hint)
        if not both:
            hint = "bench the methods teacher and student, both before and now"
            raise UserError(self.path, STUDENT, "no effect has a PSNR in both", hint)
        return both

    def check(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """What metrics.json says of the gate: `passed`, and the effect that lost most."""
        changes = self.changes(metrics)
        losses = {effect: before - now for effect, (before, now) in changes.items()}
        worst = max(sorted(losses), key=losses.__getitem__)
        return {
            "baseline": str(self.path),
            "margin": self.margin,
            "passed": losses[worst] <= self.margin,
            "worst_effect": worst,
            "worst_loss": losses[worst],
            "failed": sorted(effect for effect, loss in losses.items() if loss > self.margin),
        }

    def enforce(self, metrics: Mapping[str, Any], backup: Path, result: Path) -> None:
        """Raise if the gate in metrics.json did not pass; if it did, the adapter from before is deleted.

        Raises:
            UserError: a kept effect lost more than the margin.
        """
        gate = metrics["gate"]
        if gate["passed"]:
            backup.unlink(missing_ok=True)
            return
        changes = self.changes(metrics)
        named = ", ".join("{} {:.2f} to {:.2f} dB".format(e, *changes[e]) for e in gate["failed"])
        hint = "train longer (match.updates, distill.student_updates)"
        if backup.exists():
            hint = f"go back: mv {backup} {result}; then add again with more updates "
            hint += "(add.match_updates, add.student_updates)"
        raise UserError(self.path, "--margin", f"more than {self.margin:g} dB is lost: {named}", hint)

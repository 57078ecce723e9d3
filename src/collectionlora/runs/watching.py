"""What people watch while a run trains: curves in a tracker, and previews of every effect.

Nothing here changes a run: it reads the metrics of each step, and samples with a generator of its own. Curves
go to `log.tracker`, by default TensorBoard (`tensorboard --logdir DIR/runs`), under

    loss/NAME           every loss            grad_norm/ROLE      before clipping
    stream/STREAM/NAME  by stream             effect/EFFECT/NAME  by effect
    distance/EFFECT     student to teacher, at every preview

Previews are `previews/step-00000200.png` in the run's folder; several processes share their
effects. `teach` has neither streams nor previews: its curves are `loss` and `grad_norm`.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from collectionlora.adapters.roles import STUDENT
from collectionlora.config import LogSettings
from collectionlora.distillation import Distillation
from collectionlora.pictures.buckets import find_buckets
from collectionlora.pictures.photos import Photo, chunks, to_photos, write_photo
from collectionlora.pictures.sheets import contact_sheet, square_cell
from collectionlora.runs.trainer import StepProgress
from collectionlora.sampling import Denoiser, noise_like, sample_few_steps
from collectionlora.streams import EffectData
from collectionlora.system import processes
from collectionlora.system.errors import UserError

PREVIEWS, PHOTOS_SHOWN, SEED = "previews", 2, 0
COLUMNS = ["photo", "teacher", "student"] * PHOTOS_SHOWN
MIN_CELL, MAX_CELL = 128, 512  # pixels of a picture's side in the grid
MAX_GRID = 4096**2  # pixels of the pictures in a grid: one of many effects shows them smaller
GRAD_NORM = "_grad_norm"


class Tracker:
    """Scalars by name and step for any tracker that accelerate supports; opened by the first of them.

    Raises:
        UserError: the tracker is not known or not installed.
    """

    def __init__(self, folder: Path, settings: LogSettings):
        self.folder, self.name = folder, settings.tracker
        self.accelerator: Accelerator | None = None
        # Accelerate finds a main process of its own in each process of a launch on CPUs.
        if self.name != "none" and processes.is_main():
            self.accelerator = Accelerator(log_with=self.name, project_dir=folder)
            if not self.accelerator.log_with:
                hint = f"pip install {self.name}, or --set log.tracker=none"
                raise UserError("", "log.tracker", f"{self.name} is not installed", hint)
        self.started = False

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def log(self, values: Mapping[str, float], step: int) -> None:
        if self.accelerator is None:
            return
        if not self.started:
            # What an interrupted run wrote after its last checkpoint is taken again.
            options = {"tensorboard": {"purge_step": step}} if self.name == "tensorboard" else {}
            project = "tensorboard" if self.name == "tensorboard" else "collectionlora"
            self.accelerator.init_trackers(project, init_kwargs=options)
            self.started = True
        self.accelerator.log(dict(values), step=step)

    def close(self) -> None:
        if self.accelerator is not None and self.started:
            # Not `end_training`: it also ends the group of processes, which are not done.
            for tracker in self.accelerator.trackers:
                tracker.finish()


def track(tracker: Tracker, progress: StepProgress) -> StepProgress:
    """`progress`, and beside it every metric as the curve of its own name."""

    def report(done: int, total: int, metrics: dict[str, float]) -> None:
        tracker.log(metrics, done - 1)
        progress(done, total, metrics)

    return report


def curves(
    metrics: Mapping[str, float], stream: str, effect: str | None, critic_apart: bool = False
) -> dict[str, float]:
    """The metrics of one step under the names of the curves that they belong to.

    With `critic_apart` the critic learned batches of its own: its loss is of no stream or effect.
    """
    values = {}
    for name, value in metrics.items():
        if name.endswith(GRAD_NORM):
            values[f"grad_norm/{name.removesuffix(GRAD_NORM)}"] = value
            continue
        values[f"loss/{name}"] = value
        if name == "critic" and critic_apart:
            continue
        values[f"stream/{stream}/{name}"] = value
        if effect is not None:
            values[f"effect/{effect}/{name}"] = value
    return values


class Watch:
    """Curves and previews of one distillation; every process calls it after each step, one writes."""

    def __init__(self, run: Distillation, folder: Path):
        self.run, self.folder = run, folder
        self.settings = run.settings.log
        self.tracker = Tracker(folder, self.settings)
        self.side = min(max(MIN_CELL, run.settings.data.resolution), MAX_CELL)
        self.decoded: dict[str, list[list[Photo]]] = {}  # photos and teacher's pictures of effects, as cells

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        self.tracker.close()

    def beside(self, progress: StepProgress) -> StepProgress:
        """`progress`, after what this does for each step."""

        def report(done: int, total: int, metrics: dict[str, float]) -> None:
            self(done, metrics)
            progress(done, total, metrics)

        return report

    def __call__(self, done: int, metrics: Mapping[str, float]) -> None:
        """Log step number `done - 1`; make previews if they are due.

        Args:
            done: steps taken.
            metrics: what the last one returned.
        """
        critic_apart = self.run.settings.distill.critic_samples == "simulated"
        values = curves(metrics, *self.run.stream_at(done - 1), critic_apart)
        if done % self.settings.preview_every == 0 or done == self.run.num_steps:
            values |= self.preview(done)
        self.tracker.log(values, done - 1)

    def preview(self, done: int) -> dict[str, float]:
        """Write the grid of previews; returns the distance to its teacher of each effect shown."""
        shown = self.choose(done)
        cells = torch.zeros(len(shown), len(COLUMNS), self.side, self.side, 3, dtype=torch.uint8)
        distances = torch.zeros(len(shown))
        # Of a sharded base every process runs the same forwards; else each makes its share of the effects.
        alone = self.run.settings.model.sharding == "none"
        for index in processes.share(range(len(shown))) if alone else range(len(shown)):
            made = self.sample(shown[index])
            row = torch.from_numpy(np.stack(self.row(shown[index], made)))
            cells[index, : len(row)], distances[index] = row, teacher_distance(made, shown[index])
        if alone:
            processes.add_up([cells, distances])
        self.run.backbone.release_encoders()
        if processes.is_main():
            rows = [
                # Of an effect with fewer photos the rest of the row stays paper.
                (data.name, list(row.numpy())[: 3 * len(data.sources[:PHOTOS_SHOWN])])
                for data, row in zip(shown, cells, strict=True)
            ]
            path = self.folder / PREVIEWS / f"step-{done:08d}.png"
            write_photo(path, contact_sheet(rows, COLUMNS, min(self.side, cell_side(len(rows)))))
        return {f"distance/{d.name}": float(x) for d, x in zip(shown, distances, strict=True)}

    def choose(self, done: int) -> list[EffectData]:
        """The effects that a preview shows: `log.preview_effects` in rotation, all of them at the end."""
        effects = list(self.run.streams.effects)
        number = min(self.settings.preview_effects, len(effects))
        if done == self.run.num_steps:
            return effects
        first = (done // self.settings.preview_every - 1) * number
        return [effects[(first + turn) % len(effects)] for turn in range(number)]

    def row(self, data: EffectData, made: Sequence[Tensor]) -> list[Photo]:
        """Photo, teacher and student of an effect's first photos; what never changes is decoded once."""
        if data.name not in self.decoded:
            first = [samples[0] for samples in data.targets[:PHOTOS_SHOWN]]
            self.decoded[data.name] = [self.photos(latents) for latents in (data.sources, first)]
        columns = [*self.decoded[data.name], self.photos(made)]
        return [photo for same in zip(*columns, strict=True) for photo in same]

    @torch.no_grad()
    def sample(self, data: EffectData) -> list[Tensor]:
        """The student as it is now, on an effect's first photos, in its few steps; latents `[C, H, W]`."""
        run, made = self.run, dict[int, Tensor]()
        aop = run.settings.distill.asymmetric_prompts
        prompt = data.student_prompt if aop else data.teacher_prompt
        generator = torch.Generator().manual_seed(SEED)
        sampling = run.settings.sampling
        with run.roles.frozen(STUDENT):
            for bucket in find_buckets(data.sources[:PHOTOS_SHOWN]):
                condition = data.condition(prompt, torch.tensor(bucket))
                for part in chunks(len(bucket), run.backbone.max_batch(condition)):
                    denoiser = Denoiser(run.backbone, condition[part])
                    noise = noise_like(condition.source[part], generator)
                    done = sample_few_steps(
                        denoiser, noise, sampling.steps, generator, sampling.shift, sampling.sampler
                    )
                    made |= zip(bucket[part], done, strict=True)
        return [made[position] for position in range(len(made))]

    def photos(self, latents: Sequence[Tensor] | Tensor) -> list[Photo]:
        """The first of an effect's pictures, as cells of the grid."""
        photos = [to_photos(self.run.backbone.decode(image[None]))[0] for image in latents[:PHOTOS_SHOWN]]
        return [square_cell(photo, self.side) for photo in photos]


def cell_side(effects: int) -> int:
    """The side of a picture, at which a grid of so many effects is not too large to look at."""
    return max(MIN_CELL, math.isqrt(MAX_GRID // (effects * len(COLUMNS))))


def teacher_distance(made: Sequence[Tensor] | Tensor, data: EffectData) -> float:
    """`|student - teacher| / |photo - teacher|` in latents, to each photo's nearest teacher sample; the mean.

    0 is the teacher's own picture, 1 is as far from it as the untouched photo.
    """
    shares = []
    for image, source, targets in zip(made, data.sources, data.targets, strict=False):
        student, photo = ((x - targets).flatten(1).norm(dim=1) for x in (image, source))
        shares.append((student / photo.clamp_min(1e-6)).min())
    return float(torch.stack(shares).mean())

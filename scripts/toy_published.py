"""The toy world asked: do changes that others published help after the warm start? Resumes.

    python scripts/toy_published.py [--out FILE] [--only NAME ...] [--seeds 5]
    python scripts/toy_table.py FILE

All students have the same warm start and about the same CPU seconds. A row of FILE is one student, judged in
one number of steps by its own sampler. docs/toy.md says what each change is and where it comes from.
"""

import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise, product

import torch
from torch import Tensor
from toy_table import Table, study_parser

from collectionlora.adapters.roles import STUDENT
from collectionlora.config import Overrides
from collectionlora.distillation import Distillation, Scores, Share
from collectionlora.objectives import velocity_matching_loss
from collectionlora.toy.world import (
    ALL_LENGTHS,
    LONG,
    TEACHER_STEPS,
    ToyWorld,
    run_to_end,
    toy_settings,
)

STEPS = (8, 4, 2, 1)
BETA = torch.distributions.Beta(5.0, 2.0)  # of the place on the trajectory, 0 at its noise
TEACHER_HEAD = 10  # of the teacher's 40 steps
CRITIC_HEAD_START, CRITIC_KEPT = 50, 0.999
HUBER = 0.00054


class OnPolicy(Distillation):
    """The teacher's velocity at one low-noise state of the student's own trajectory; no critic."""

    def distill(self, step: int, progress: float) -> dict[str, float]:
        batch, generator = self.batch(self.streams, step), self.generator(self.streams, step)
        own = self.simulate(self.streams, batch, generator, step, STEPS[0]).simulation
        torch.manual_seed(step)  # of the places: the same in every run
        index = (BETA.sample((len(batch.target),)) * STEPS[0]).long()
        x_sigma, sigma = replace(own, index=index).chosen()
        with torch.no_grad():
            velocity_teacher = self.teacher(batch).velocity(x_sigma, sigma)
        velocity_matching_loss(self.student(batch).velocity(x_sigma, sigma), velocity_teacher).backward()
        norm = self.step(STUDENT, self.settings.match.learning_rate, progress)
        return {"student_grad_norm": norm}


class FirstStep(Distillation):
    """The first step learns the teacher's mean velocity over its first steps; matching is for later steps."""

    def student_losses(
        self, share: Share, critic: str, progress: float
    ) -> Iterator[tuple[str, float, Tensor]]:
        batch, simulation = share.batch, share.simulation
        noise, one = simulation.states[0], torch.ones(len(batch.target))
        sigmas = self.backbone.teacher_sigmas(TEACHER_STEPS, noise)
        with torch.no_grad():
            teacher, x = self.teacher(batch), noise
            for sigma, after in pairwise(sigmas[: TEACHER_HEAD + 1]):
                x = x + (after - sigma) * teacher.velocity(x, sigma)
        mean_velocity = (noise - x) / (1 - sigmas[TEACHER_HEAD])
        first = velocity_matching_loss(self.student(batch).velocity(noise, one), mean_velocity)
        yield "first", 1.0, first
        if len(simulation.sigmas) > 1:
            later = replace(simulation, index=simulation.index.clamp_min(1))
            yield from super().student_losses(replace(share, simulation=later), critic, progress)


class FollowingCritic(Distillation):
    """The critic has a head start, and moves towards the student after each of its updates."""

    def update_student(self, shares: Sequence[Share], critic: str, progress: float) -> dict[str, float]:
        if progress == 0:
            for _ in range(CRITIC_HEAD_START):
                self.update_critic(shares, critic, progress)
        metrics = super().update_student(shares, critic, progress)
        with torch.no_grad():
            pairs = zip(self.roles.parameters(critic), self.roles.parameters(STUDENT), strict=True)
            for own, student in pairs:
                own.lerp_(student, 1 - CRITIC_KEPT)
        return metrics


class PseudoHuber(Distillation):
    """Each sample's gradient has about the length 1, however far critic and teacher are apart."""

    def distribution_matching(
        self, x0: Tensor, scores: Scores, u: Tensor, generator: torch.Generator
    ) -> Tensor:
        x0_critic, x0_teacher = self.predictions(x0, scores, u, generator)
        moved = (x0 - (x0_critic - x0_teacher)).detach()
        size = HUBER * x0[0].numel() ** 0.5
        return ((x0 - moved).flatten(1).square().sum(1) + size**2).sqrt().sub(size).mean()


EULER: Overrides = {"sampling": {"sampler": "euler"}}
# Half of the toy's rates for A, and twice these rates for B.
PLUS: Overrides = {
    "student": {"learning_rate": 1.5e-4},
    "critic": {"learning_rate": 5e-4},
    "match": {"learning_rate": 1.5e-3},
    "distill": {"loraplus_lr_ratio": 4},
}


def updates(number: int, **rest: int) -> Overrides:
    """As many updates of the student as take about the time of `as it is`."""
    return {"distill": {"student_updates": number, **rest}}


# Name of a student -> what trains it, and what it changes of the toy's recipe.
STUDENTS: dict[str, tuple[type[Distillation], list[Overrides]]] = {
    "as it is": (Distillation, []),
    "as it is, Euler": (Distillation, [EULER]),
    "more of the warm start": (Distillation, [LONG, updates(0)]),
    "more of the warm start, Euler": (Distillation, [LONG, updates(0), EULER]),
    "on-policy matching": (OnPolicy, [updates(2000)]),
    "on-policy matching, Euler": (OnPolicy, [updates(2000), EULER]),
    "first step from the teacher, Euler": (FirstStep, [updates(750), EULER]),
    "two critic updates": (Distillation, [updates(1400, student_update_every=2)]),
    "two critic updates, critic follows": (FollowingCritic, [updates(1250, student_update_every=2)]),
    "pseudo-Huber": (PseudoHuber, []),
    "LoRA+": (Distillation, [PLUS]),
    "LoRA+, more of the warm start, Euler": (Distillation, [PLUS, LONG, updates(0), EULER]),
}


def main() -> None:
    args = study_parser(__doc__, "docs/results/toy_published.json", STUDENTS).parse_args()
    torch.set_num_threads(1)
    run_students(args, STUDENTS, make_world)


def run_students(
    args: Namespace,
    students: Mapping[str, tuple[type[Distillation], list[Overrides]]],
    make_world: Callable[[int], ToyWorld],
    layer: Overrides | None = None,
) -> None:
    """Train each student of `args.only` in each seed's world, and judge it in all `STEPS`; resumes.

    Args:
        layer: settings of all students over the toy's recipe, below their own.
    """
    table = Table(args.out)
    for seed, name in product(range(args.seeds), args.only):
        rows = [{"variant": name, "steps": steps, "seed": seed} for steps in STEPS]
        if all(table.has(**row) for row in rows):
            continue
        world, (method, layers) = make_world(seed), students[name]
        settings = toy_settings(ALL_LENGTHS, layer or {}, *layers, {"distill": {"seed": seed}})
        run = world.distillation(settings, method=method)
        began = time.process_time()
        run_to_end(run)
        seconds = {"seconds": time.process_time() - began}
        for row in rows:
            if not table.has(**row):
                table.add(row, {**seconds, **world.judge(run, row["steps"])})


@lru_cache(maxsize=1)
def make_world(seed: int) -> ToyWorld:
    return ToyWorld(seed=seed)


if __name__ == "__main__":
    main()

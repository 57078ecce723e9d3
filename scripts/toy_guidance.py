"""The toy world with guided teachers: does it help to renoise their guidance apart? Resumes.

    python scripts/toy_guidance.py [--out FILE] [--only NAME ...] [--seeds 5]
    python scripts/toy_table.py FILE

All students but the last two have the same warm start. A row of FILE is one student, judged in one number of
steps by its own sampler. docs/toy.md says where the change comes from.
"""

from collections.abc import Iterator
from functools import lru_cache, partial

import torch
from torch import Tensor
from toy_noise import flow
from toy_published import EULER, run_students, updates
from toy_table import study_parser

from collectionlora.config import Overrides
from collectionlora.distillation import Distillation, Scores, Share
from collectionlora.flow import add_noise
from collectionlora.objectives import dmd_loss
from collectionlora.sampling import Denoiser, noise_like
from collectionlora.toy.world import LONG, ToyWorld

GUIDANCE_SCALE = 2.0
# Without target simulation: its loss has no step of the student's own above which guidance is renoised.
GUIDED: Overrides = {
    "targets": {"guidance_scale": GUIDANCE_SCALE},
    "distill": {"guidance_scale": GUIDANCE_SCALE, "target_weight": 0},
}


class GuidanceApart(Distillation):
    """Guidance is taken above the sigma of the student's own step, matching at every sigma."""

    def student_losses(
        self, share: Share, critic: str, progress: float
    ) -> Iterator[tuple[str, float, Tensor]]:
        batch, generator = share.batch, share.generator
        x_sigma, sigma = share.simulation.chosen()
        x0 = self.student(batch).x0(x_sigma, sigma)
        scores, role = self.scores(batch, critic), partial(self.teachers.use, batch.effect)
        with torch.no_grad():
            unguided = Denoiser(self.backbone, batch.teacher, role=role)
            matching = Scores(scores.critic, unguided)
            x0_critic, x0_teacher = self.predictions(x0, matching, self._draw(x0, generator), generator)
            above = sigma + (1 - sigma) * self._draw(x0, generator)
            x_above = add_noise(x0, noise_like(x0, generator), above)
            guidance = scores.teacher.x0(x_above, above) - unguided.x0(x_above, above)
        yield "backward", 1.0, dmd_loss(x0, x0_critic, x0_teacher + guidance)

    def _draw(self, x0: Tensor, generator: torch.Generator) -> Tensor:
        return self._draw_uniform(len(x0), generator)


# Name of a student -> what trains it, and what it changes of the toy's recipe.
STUDENTS: dict[str, tuple[type[Distillation], list[Overrides]]] = {
    "guided": (Distillation, []),
    "guided, Euler": (Distillation, [EULER]),
    "guidance apart": (GuidanceApart, []),
    "guidance apart, Euler": (GuidanceApart, [EULER]),
    "matching without guidance, Euler": (Distillation, [EULER, {"distill": {"guidance_scale": 1}}]),
    "more of the warm start, Euler": (Distillation, [LONG, updates(0), EULER]),
    "the teacher's noise, Euler": (Distillation, [flow(2000, 0.0), EULER]),
}


def main() -> None:
    args = study_parser(__doc__, "docs/results/toy_guidance.json", STUDENTS).parse_args()
    torch.set_num_threads(1)
    run_students(args, STUDENTS, make_world, GUIDED)


@lru_cache(maxsize=1)
def make_world(seed: int) -> ToyWorld:
    return ToyWorld(seed=seed, guidance_scale=GUIDANCE_SCALE)


if __name__ == "__main__":
    main()

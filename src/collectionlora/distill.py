"""CollectionLoRA: multi-teacher on-policy distribution matching distillation into one LoRA, step by step.

The paper's words: the student is its generator, the critic its fake score, a teacher its real score. A run has
two phases. In the first the student follows the routed teacher without a critic (warm start). In the second
the critic learns the student's distribution in every step and the student moves every
`student_update_every`-th, by the coarse-to-fine objective (method section 2c)

    L = w_BS * L_BS + w_TS * L_TS + w_TA * L_TA        effect stream
    L = w_BS * L_BS                                    general stream
"""

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW

from collectionlora.adapters.roles import CRITIC, STUDENT, Roles, TeacherLibrary
from collectionlora.backbones.base import Backbone
from collectionlora.config import RoleSettings, Settings
from collectionlora.flow import add_noise, few_step_sigmas, shift_sigma
from collectionlora.objectives import dmd_loss, flow_matching_loss, velocity_matching_loss
from collectionlora.sampling import noise_like, predict_velocity, predict_x0, rollout
from collectionlora.streams import Batch, Streams

# Target simulation starts from the student's steps at or below this noise level: the last 5 of 8.
HIGHEST_TARGET_SIGMA = 5 / 6 + 1e-4


class Distillation:
    """One run of the method; calling it with 0, 1, 2, ... takes the steps in order.

    A step is a pure function of the trained tensors and its number: all randomness comes from
    (seed, step, rank), so a resumed run repeats the uninterrupted one.
    """

    def __init__(
        self,
        backbone: Backbone,
        roles: Roles,
        teachers: TeacherLibrary,
        streams: Streams,
        settings: Settings,
    ):
        self.backbone, self.roles, self.teachers, self.streams = backbone, roles, teachers, streams
        self.settings = settings
        self.optimizers = {
            STUDENT: self._optimizer(STUDENT, settings.student),
            CRITIC: self._optimizer(CRITIC, settings.critic),
        }
        self.ema = [p.detach().clone() for p in roles.parameters(STUDENT)]

    def _optimizer(self, role: str, settings: RoleSettings) -> AdamW:
        weight_decay = self.settings.distill.weight_decay
        return AdamW(self.roles.parameters(role), lr=settings.learning_rate, weight_decay=weight_decay)

    @property
    def num_steps(self) -> int:
        """Steps of the whole run: warm start, then `student_update_every` for each student update."""
        distill = self.settings.distill
        return self.settings.match.updates + distill.student_updates * distill.student_update_every

    def __call__(self, step: int) -> dict[str, float]:
        """Take one step and return its losses and gradient norms by name."""
        batch, generator = self.streams.batch(step), self.streams.generator(step)
        match_updates = self.settings.match.updates
        if step < match_updates:
            return self.match_teacher(batch, generator, progress=step / match_updates)

        if step == match_updates:
            self.roles.load(CRITIC, self.roles.weights(STUDENT))
        progress = (step - match_updates) / (self.num_steps - match_updates)
        metrics = {}
        if (step - match_updates) % self.settings.distill.student_update_every == 0:
            metrics |= self.update_student(batch, generator, progress)
        return metrics | self.update_critic(batch, generator, progress)

    def match_teacher(self, batch: Batch, generator: torch.Generator, progress: float) -> dict[str, float]:
        """Warm start: the student's velocity follows the routed teacher at a noised teacher sample."""
        noise = noise_like(batch.target, generator)
        sigma = shift_sigma(self._draw_uniform(len(noise), generator), self.settings.sampling.shift)
        x_sigma = add_noise(batch.target, noise, sigma)
        with self.roles.use(STUDENT):
            velocity = predict_velocity(self.backbone, x_sigma, sigma, batch.student)
        if self.settings.match.loss == "flow":
            loss = flow_matching_loss(velocity, batch.target, noise)
        else:
            with torch.no_grad(), self.teachers.use(batch.effect):
                velocity_teacher = predict_velocity(
                    self.backbone, x_sigma, sigma, batch.teacher, batch.uncond, self._guidance_scale
                )
            loss = velocity_matching_loss(velocity, velocity_teacher)
        norm = self._update(STUDENT, loss, self.settings.match.learning_rate, progress)
        torch._foreach_copy_(self.ema, self.roles.parameters(STUDENT))
        return {"match": loss.item(), "student_grad_norm": norm}

    def update_student(self, batch: Batch, generator: torch.Generator, progress: float) -> dict[str, float]:
        """One student update by the coarse-to-fine objective; a weight of 0 saves that loss's forwards."""
        distill = self.settings.distill
        weights = {"backward": distill.backward_weight.at(progress)}
        if batch.effect is not None:
            weights["target"] = distill.target_weight.at(progress)
            weights["anchor"] = distill.anchor_weight.at(progress)

        losses = {}
        if weights["backward"] > 0:
            x0 = self.simulate_backward(batch, generator)
            u = self._draw_uniform(len(x0), generator)
            losses["backward"] = self.distribution_matching(x0, batch, u, generator)
        if batch.effect is not None:
            u = self._draw_uniform(len(batch.target), generator, lowest=0.5)
            if weights["target"] > 0:
                x0 = self.simulate_target(batch, generator)
                losses["target"] = self.distribution_matching(x0, batch, u, generator)
            if weights["anchor"] > 0:
                losses["anchor"] = self.anchor(batch, u, generator)
        if not losses:
            return {}
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        norm = self._update(STUDENT, total, self.settings.student.learning_rate, progress)
        torch._foreach_lerp_(self.ema, self.roles.parameters(STUDENT), 1 - distill.ema)
        return {name: loss.item() for name, loss in losses.items()} | {"student_grad_norm": norm}

    def simulate_backward(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """The student's x0 at a random step of its own trajectory (on-policy); gradient in that step alone."""
        sigmas = self._draw_schedule(generator)
        stop = int(torch.randint(len(sigmas), (), generator=generator))
        with self.roles.use(STUDENT):
            x_sigma = rollout(self.backbone, batch.student, sigmas, stop, generator)
            return predict_x0(self.backbone, x_sigma, float(sigmas[stop]), batch.student)

    def simulate_target(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """The student's x0 from a teacher sample noised to one of the student's later steps.

        Keeps the gradient alive where student and teacher are far apart: there, on the student's own samples,
        critic and teacher agree and the plain gradient vanishes.
        """
        sigmas = self._draw_schedule(generator)
        first = min(int((sigmas > HIGHEST_TARGET_SIGMA).sum()), len(sigmas) - 1)
        sigma = float(sigmas[torch.randint(first, len(sigmas), (), generator=generator)])
        x_sigma = add_noise(batch.target, noise_like(batch.target, generator), sigma)
        with self.roles.use(STUDENT):
            return predict_x0(self.backbone, x_sigma, sigma, batch.student)

    def anchor(self, batch: Batch, u: Tensor, generator: torch.Generator) -> Tensor:
        """Trajectory anchoring: flow matching on teacher samples at sigmas above those of this step's DMD.

        `u` `[B]` are the DMD draws before the shift. Coarse structure only; alone it blurs.
        """
        above = u + (1 - u) * torch.rand(u.shape, generator=generator)
        sigma = shift_sigma(above, self.settings.sampling.shift)
        noise = noise_like(batch.target, generator)
        with self.roles.use(STUDENT):
            velocity = predict_velocity(self.backbone, add_noise(batch.target, noise, sigma), sigma, batch.student)
        return flow_matching_loss(velocity, batch.target, noise)

    def distribution_matching(self, x0: Tensor, batch: Batch, u: Tensor, generator: torch.Generator) -> Tensor:
        """DMD loss of student images `x0`, renoised to `shift(u)`; teacher and critic without gradient."""
        sigma = shift_sigma(u, self.settings.sampling.shift)
        with torch.no_grad():
            x_sigma = add_noise(x0, noise_like(x0, generator), sigma)
            with self.roles.use(CRITIC):
                x0_critic = predict_x0(self.backbone, x_sigma, sigma, batch.student)
            with self.teachers.use(batch.effect):
                x0_teacher = predict_x0(
                    self.backbone, x_sigma, sigma, batch.teacher, batch.uncond, self._guidance_scale
                )
        return dmd_loss(x0, x0_critic, x0_teacher)

    def update_critic(self, batch: Batch, generator: torch.Generator, progress: float) -> dict[str, float]:
        """Flow matching of the critic on the student's own samples, under the student's prompt."""
        with torch.no_grad():
            x0 = self.simulate_backward(batch, generator)
        noise = noise_like(x0, generator)
        sigma = shift_sigma(self._draw_uniform(len(x0), generator), self.settings.sampling.shift)
        with self.roles.use(CRITIC):
            velocity = predict_velocity(self.backbone, add_noise(x0, noise, sigma), sigma, batch.student)
        loss = flow_matching_loss(velocity, x0, noise)
        norm = self._update(CRITIC, loss, self.settings.critic.learning_rate, progress)
        return {"critic": loss.item(), "critic_grad_norm": norm}

    def _update(self, role: str, loss: Tensor, learning_rate: float, progress: float) -> float:
        """Backward, clip, one optimizer step of one role at a rate that falls over the phase's last share."""
        distill, optimizer = self.settings.distill, self.optimizers[role]
        remaining = (1 - progress) / distill.decay_ratio if distill.decay_ratio else 1.0
        optimizer.param_groups[0]["lr"] = learning_rate * min(1.0, remaining)
        optimizer.zero_grad()
        loss.backward()
        norm = clip_grad_norm_(self.roles.parameters(role), distill.max_grad_norm)
        optimizer.step()
        return norm.item()

    def _draw_schedule(self, generator: torch.Generator) -> Tensor:
        lengths = self.settings.distill.rollout_steps
        num_steps = lengths[int(torch.randint(len(lengths), (), generator=generator))]
        return few_step_sigmas(num_steps, self.settings.sampling.shift)

    @staticmethod
    def _draw_uniform(batch: int, generator: torch.Generator, lowest: float = 0.0) -> Tensor:
        return lowest + (1 - lowest) * torch.rand(batch, generator=generator)

    @property
    def _guidance_scale(self) -> float:
        return self.settings.targets.guidance_scale

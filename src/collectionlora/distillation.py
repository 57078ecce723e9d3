"""C2F-DO, the coarse-to-fine distillation objective: many teachers into one LoRA, step by step.

The paper's words: the student is its generator, a critic its fake score, a teacher its real score. A run has
two phases. In the first the student follows the routed teacher without a critic (warm start). In the second
every step is one student update by the coarse-to-fine objective (docs/method.md#the-objective-c2f-do)

    L = w_BS * L_BS + w_TS * L_TS + w_TA * L_TA        effect stream
    L = w_BS * L_BS                                    general stream

followed by `student_update_every` updates of the critic, which learns the student's distribution. A student
for several schedule lengths has one critic for each: one critic for all sees their mixture, and the lengths
then drift apart under a mixture that still looks right.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from collectionlora.adapters.optimizers import (
    load_optimizer,
    make_adamw,
    move_averages,
    optimizer_tensors,
    set_learning_rate,
)
from collectionlora.adapters.roles import STUDENT, LoraWeights, Roles, TeacherLibrary, critic_role
from collectionlora.backbones.base import Backbone
from collectionlora.config import RoleSettings, Settings
from collectionlora.flow import add_noise, few_step_sigmas, shift_sigma
from collectionlora.objectives import dmd_loss, flow_matching_loss, guided, velocity_matching_loss
from collectionlora.sampling import Denoiser, noise_like, rollout
from collectionlora.streams import Batch, Streams
from collectionlora.system import processes

MIXED = "mixed"
TARGET_SHARE = 5 / 8  # target simulation starts from the last of the student's steps: 5 of 8, 2 of 4


@dataclass(frozen=True)
class Simulation:
    """The student on its own trajectory, without gradient.

    `states` are its noisy images `[B, C, H, W]` at the first of its schedule's `sigmas` `[n]`, `index` `[B]`
    is the step of each sample that carries the student's gradient, `image` is what the critic learns.
    """

    sigmas: Tensor
    states: list[Tensor]
    index: Tensor
    image: Tensor

    def chosen(self) -> tuple[Tensor, Tensor]:
        """Each sample's state at its `index`, and the sigma there `[B]`."""
        return torch.stack(self.states)[self.index, torch.arange(len(self.index))], self.sigmas[self.index]


@dataclass(frozen=True)
class Share:
    """One rank's part of a step: its batch, its noise, and the student simulated on the batch."""

    streams: Streams
    batch: Batch
    generator: torch.Generator
    simulation: Simulation


@dataclass(frozen=True)
class Scores:
    """Critic (fake score) and teacher (real score) on one batch, without gradient.

    Their conditions are read once for all losses.
    """

    critic: Denoiser
    teacher: Denoiser


def mean_of_each(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every metric over the shares that have it."""
    names = dict.fromkeys(name for one in metrics for name in one)
    return {name: fmean(one[name] for one in metrics if name in one) for name in names}


class Distillation:
    """One run of the method; calling it with 0, 1, 2, ... takes the steps in order.

    A step is a pure function of the trained tensors and its number: all randomness comes from
    (seed, step, rank), so a resumed run repeats the uninterrupted one. With several processes each takes the
    step on a batch of its own. They may route to different effects or streams, whose losses differ; the
    updates do not: each is of the same role in all processes, by the mean of their gradients, so that LoRAs,
    optimizers and moving average stay equal without being exchanged.
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
        # Of whole tensors torch itself chooses whether to take many at once; of shards it never would.
        self.foreach = True if settings.model.sharding == "fsdp" else None
        self.critics = [critic_role(n) for n in settings.distill.rollout_steps]
        self.optimizers = {STUDENT: self._optimizer(STUDENT, settings.student)}
        self.optimizers |= {critic: self._optimizer(critic, settings.critic) for critic in self.critics}
        self.ema = [p.detach().clone() for p in roles.parameters(STUDENT)]
        if settings.distill.ema_on_host and settings.model.sharding == "none":
            self.ema = [average.cpu() for average in self.ema]
        self.collected: dict[Parameter, Tensor] = {}

    def _optimizer(self, role: str, settings: RoleSettings) -> Optimizer:
        parameters, distill = self.roles.parameters(role), self.settings.distill
        return make_adamw(
            parameters,
            settings.learning_rate,
            distill.weight_decay,
            distill.moments,
            self.foreach,
            distill.loraplus_lr_ratio,
        )

    @property
    def num_steps(self) -> int:
        """Steps of the whole run: the warm start's updates, then the student's."""
        return self.settings.match.updates + self.settings.distill.student_updates

    def stream_at(self, step: int) -> tuple[str, str | None]:
        """The stream that the student learns from at a step, and its effect; None where there are several."""
        if self.mixes(step):
            return MIXED, None
        shares = self.streams.shares(self.settings.distill.accumulate)
        effects = {streams.effect_at(step) for streams in shares}
        if None in effects:
            return "general" if len(effects) == 1 else MIXED, None
        return "effect", effects.pop() if len(effects) == 1 else None

    def mixes(self, step: int) -> bool:
        """Whether each sample of a step is routed by itself: in a warm start that asks no teacher."""
        return step < self.settings.match.updates and self.settings.match.loss == "flow"

    def batch(self, streams: Streams, step: int) -> Batch:
        """What a step of one rank learns from, on the base's device."""
        draw = streams.mixed_batch if self.mixes(step) else streams.batch
        match = self.settings.match
        batch = draw(step, size=match.batch_size if step < match.updates else None)
        return batch.to(self.backbone.device)

    def generator(self, streams: Streams, step: int) -> torch.Generator:
        """The noise of a step of one rank, drawn on the base's device."""
        return streams.generator(step, self.backbone.device)

    def verify(self) -> None:
        """Prove on the first batch that no role leaks into another; costs less than a step, changes nothing.

        Raises:
            UserError: switching roles does not work with the installed versions.
        """
        batch = self.streams.batch(0).to(self.backbone.device)
        noise = noise_like(batch.target, self.generator(self.streams, 0))
        # In whatever role `verify` has put the network.
        self.roles.verify(lambda: Denoiser(self.backbone, batch.student).velocity(noise, 1.0))

    def __call__(self, step: int) -> dict[str, float]:
        """Take one step, let the average follow, and return the step's losses and gradient norms by name."""
        metrics = self.take(step)
        move_averages(self.ema, self.roles.parameters(STUDENT), 1 - self.settings.distill.ema)
        return metrics

    def take(self, step: int) -> dict[str, float]:
        """Train on one step, of the warm start or of the distillation; see `__call__`."""
        match_updates = self.settings.match.updates
        if step < match_updates:
            return self.match_teacher(step, progress=step / match_updates)
        if step == match_updates:
            for critic in self.critics:
                self.roles.load(critic, self.roles.weights(STUDENT))
            # Moments of the matching loss, whose gradients are smaller, would make the first steps too long.
            self.optimizers[STUDENT] = self._optimizer(STUDENT, self.settings.student)
        progress = (step - match_updates) / self.settings.distill.student_updates
        return self.distill(step, progress)

    def match_teacher(self, step: int, progress: float) -> dict[str, float]:
        """Warm start: the student's velocity follows the routed teacher at a noised teacher sample."""
        losses = []
        for streams in self.streams.shares(self.settings.distill.accumulate):
            loss = self.matching_loss(self.batch(streams, step), self.generator(streams, step))
            self.backward(loss)
            self.collect(STUDENT)
            losses.append({"match": loss.item()})
        norm = self.step(STUDENT, self.settings.match.learning_rate, progress)
        return mean_of_each(losses) | {"student_grad_norm": norm}

    def matching_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Flow matching on teacher samples, or the distance to the guided teacher's velocity there."""
        noise = noise_like(batch.target, generator)
        sigma = self._shift(self._draw_uniform(len(noise), generator))
        if self.settings.match.coupled_above < 1:
            noise = self.couple(noise, sigma, batch)
        x_sigma = add_noise(batch.target, noise, sigma)
        velocity = self.student(batch).velocity(x_sigma, sigma)
        if self.settings.match.loss == "flow":
            return flow_matching_loss(velocity, batch.target, noise)
        scale, role = self.settings.targets.guidance_scale, partial(self.teachers.use, batch.effect)
        with torch.no_grad():
            teacher = Denoiser(self.backbone, batch.teacher, batch.uncond, scale, role=role)
            velocity_teacher = teacher.velocity(x_sigma, sigma)
        return velocity_matching_loss(velocity, velocity_teacher)

    def couple(self, noise: Tensor, sigma: Tensor, batch: Batch) -> Tensor:
        """The noise of flow matching: above `match.coupled_above` mostly that of the teacher's own sample.

        `sqrt(1 - f^2) * noise_of_target + f * noise` has unit variance again: docs/few-steps.md.
        """
        share = self.settings.match.fresh_share
        mixed = math.sqrt(1 - share**2) * batch.noise_of_target() + share * noise
        coupled = sigma > self.settings.match.coupled_above
        return torch.where(coupled.view(-1, *[1] * (noise.ndim - 1)), mixed, noise)

    def distill(self, step: int, progress: float) -> dict[str, float]:
        """One student update, then `student_update_every` updates of the critic of this schedule length.

        With `critic_samples = "final"` one simulation serves them all: a random state of each sample carries
        the student's gradient, its final images teach the critic. With `"simulated"`, the paper's order, each
        critic update routes and simulates anew, and learns the images predicted at a random step of each
        sample. The critic's metrics are those of its last update.
        """
        distill = self.settings.distill
        num_steps = self.streams.schedule_length(step, distill.rollout_steps)
        critic = critic_role(num_steps)

        shares = []
        for streams in self.streams.shares(distill.accumulate):
            batch, generator = self.batch(streams, step), self.generator(streams, step)
            shares.append(self.simulate(streams, batch, generator, step, num_steps))
        metrics = self.update_student(shares, critic, progress)
        for part in range(1, distill.student_update_every + 1):
            if distill.critic_samples == "simulated":
                fresh = [s.streams.batch(step, part).to(self.backbone.device) for s in shares]
                shares = [
                    self.simulate(s.streams, batch, s.generator, step, num_steps, part)
                    for s, batch in zip(shares, fresh, strict=True)
                ]
            metrics |= self.update_critic(shares, critic, progress)
        return metrics

    @torch.no_grad()
    def simulate(
        self,
        streams: Streams,
        batch: Batch,
        generator: torch.Generator,
        step: int,
        num_steps: int,
        part: int = 0,
    ) -> Share:
        """Backward simulation: the student's sampler from noise, to the end or to a random step."""
        sigmas = few_step_sigmas(num_steps, self.settings.sampling.shift)
        index = streams.stops(step, part, num_steps, len(batch.target))
        to_the_end = self.settings.distill.critic_samples == "final"
        last = torch.full_like(index, num_steps - 1) if to_the_end else index
        with self.roles.frozen(STUDENT):
            student = Denoiser(self.backbone, batch.student)
            noise = noise_like(batch.target, generator)
            sampler = self.settings.sampling.sampler
            states = rollout(student, noise, sigmas, int(last.max()), generator, sampler)
            at_last = Simulation(sigmas, states, last, noise)
            simulation = Simulation(sigmas, states, index, student.x0(*at_last.chosen()))
        return Share(streams, batch, generator, simulation)

    def update_student(self, shares: Sequence[Share], critic: str, progress: float) -> dict[str, float]:
        """One student update by the coarse-to-fine objective.

        The gradient of each loss is taken before the next one is made, so that one graph lives at a time.
        """
        losses = []
        for share in shares:
            values = {}
            for name, weight, loss in self.student_losses(share, critic, progress):
                self.backward(weight * loss)
                values[name] = loss.item()
            self.collect(STUDENT)
            losses.append(values)
        norm = self.step(STUDENT, self.settings.student.learning_rate, progress)
        return mean_of_each(losses) | {"student_grad_norm": norm}

    def student_losses(
        self, share: Share, critic: str, progress: float
    ) -> Iterator[tuple[str, float, Tensor]]:
        """Name, weight and value of each loss of the objective; a weight of 0 saves that loss's forwards."""
        distill, batch, generator = self.settings.distill, share.batch, share.generator
        scores = self.scores(batch, critic)
        u_backward = self._draw_uniform(len(batch.target), generator)
        if (weight := distill.backward_weight.at(progress)) > 0:
            x0 = self.student(batch).x0(*share.simulation.chosen())
            yield "backward", weight, self.distribution_matching(x0, scores, u_backward, generator)
        if batch.effect is None:
            return
        if (weight := distill.target_weight.at(progress)) > 0:
            x0 = self.student_on_target(batch, share.simulation.sigmas, generator)
            u_target = self._draw_uniform(len(batch.target), generator, lowest=0.5)
            yield "target", weight, self.distribution_matching(x0, scores, u_target, generator)
        if (weight := distill.anchor_weight.at(progress)) > 0:
            yield "anchor", weight, self.anchor(batch, u_backward, generator)

    def student_on_target(self, batch: Batch, sigmas: Tensor, generator: torch.Generator) -> Tensor:
        """L_TS's image: the student's x0 from a teacher sample noised to one of the student's later steps.

        The paper's reason: it keeps the gradient alive where student and teacher are far apart, for there, on
        the student's own samples, critic and teacher agree and the plain gradient vanishes.
        """
        first = len(sigmas) - max(1, int(len(sigmas) * TARGET_SHARE))
        size, device = (len(batch.target),), generator.device
        index = torch.randint(first, len(sigmas), size, generator=generator, device=device)
        sigma = sigmas.to(device)[index]
        x_sigma = add_noise(batch.target, noise_like(batch.target, generator), sigma)
        return self.student(batch).x0(x_sigma, sigma)

    def anchor(self, batch: Batch, u: Tensor, generator: torch.Generator) -> Tensor:
        """L_TA, trajectory anchoring: flow matching on teacher samples, above the backward loss's sigmas.

        `u` `[B]` are the draws of that loss before the shift. Coarse structure only; alone it blurs.
        """
        sigma = self._shift(u + (1 - u) * self._draw_uniform(len(u), generator))
        noise = noise_like(batch.target, generator)
        velocity = self.student(batch).velocity(add_noise(batch.target, noise, sigma), sigma)
        return flow_matching_loss(velocity, batch.target, noise)

    def distribution_matching(
        self, x0: Tensor, scores: Scores, u: Tensor, generator: torch.Generator
    ) -> Tensor:
        """DMD loss of student images `x0`, renoised to `shift(u)`; teacher and critic without gradient."""
        return dmd_loss(x0, *self.predictions(x0, scores, u, generator))

    @torch.no_grad()
    def predictions(
        self, x0: Tensor, scores: Scores, u: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """What critic and teacher see in student images `x0`, renoised to `shift(u)`."""
        sigma = self._shift(u)
        x_sigma = add_noise(x0, noise_like(x0, generator), sigma)
        return scores.critic.x0(x_sigma, sigma), scores.teacher.x0(x_sigma, sigma)

    def update_critic(self, shares: Sequence[Share], critic: str, progress: float) -> dict[str, float]:
        """Flow matching of the critic on the student's own images, under the student's prompt."""
        losses = []
        for share in shares:
            image = share.simulation.image
            noise = noise_like(image, share.generator)
            sigma = self._shift(self._draw_uniform(len(image), share.generator))
            learner = Denoiser(self.backbone, share.batch.student, role=partial(self.roles.use, critic))
            loss = flow_matching_loss(learner.velocity(add_noise(image, noise, sigma), sigma), image, noise)
            self.backward(loss)
            self.collect(critic)
            losses.append({"critic": loss.item()})
        norm = self.step(critic, self.settings.critic.learning_rate, progress)
        return mean_of_each(losses) | {"critic_grad_norm": norm}

    def tensors(self) -> dict[str, Tensor]:
        """Roles, moving average and optimizer states: all that a resume needs, sharded as it is held."""
        tensors = {f"ema.{i}": tensor for i, tensor in enumerate(self.ema)}
        for role, optimizer in self.optimizers.items():
            parameters = self.roles.parameters(role)
            tensors |= {f"{role}.{i}": p.detach() for i, p in enumerate(parameters)}
            tensors |= optimizer_tensors(f"{role}.optimizer", optimizer)
        return tensors

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to what `tensors` returned, given whole."""
        held = {f"ema.{i}": average for i, average in enumerate(self.ema)}
        for role in self.optimizers:
            held |= {f"{role}.{i}": p for i, p in enumerate(self.roles.parameters(role))}
        for name, tensor in held.items():
            tensor.copy_(processes.shard_like(tensors[name], tensor))
        for role, optimizer in self.optimizers.items():
            load_optimizer(f"{role}.optimizer", optimizer, tensors)

    def student_weights(self) -> LoraWeights:
        """The finished LoRA: the student's moving average, whole; all processes must call it."""
        return self.roles.as_weights([processes.whole(tensor) for tensor in self.ema])

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients to those of its role; `planning.plan` overrides this to count memory."""
        loss.backward()

    def collect(self, role: str) -> None:
        """Put a share's gradients away, so that their sum is that of as many processes."""
        if self.settings.distill.accumulate == 1:
            return
        for parameter in self.roles.parameters(role):
            if parameter.grad is not None:
                before = self.collected.get(parameter)
                self.collected[parameter] = parameter.grad if before is None else before.add_(parameter.grad)
                parameter.grad = None

    def step(self, role: str, learning_rate: float, progress: float) -> float:
        """Average a role's gradients over processes, clip them, take one optimizer step; returns their norm.

        A role that had no loss in this process may have one in another: it steps with the others' gradients.
        The rate falls over the phase's last share. No gradient stays, so that one role at a time has some.
        """
        distill, optimizer = self.settings.distill, self.optimizers[role]
        parameters = self.roles.parameters(role)
        remaining = (1 - progress) / distill.decay_ratio if distill.decay_ratio else 1.0
        set_learning_rate(optimizer, learning_rate * min(1.0, remaining))
        for parameter, gradient in self.collected.items():
            parameter.grad = gradient
        self.collected.clear()
        processes.average_gradients(parameters, distill.accumulate)
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = processes.whole(get_total_norm(gradients, foreach=self.foreach))
        clip_grads_with_norm_(parameters, distill.max_grad_norm, norm, foreach=self.foreach)
        optimizer.step()
        optimizer.zero_grad()
        return norm.item()

    def student(self, batch: Batch) -> Denoiser:
        """The student on a batch, with gradient."""
        return Denoiser(self.backbone, batch.student, role=partial(self.roles.use, STUDENT))

    def teacher(self, batch: Batch) -> Denoiser:
        """The teacher of the objective on a batch, without gradient, guided by the plain rule."""
        scale, role = self.settings.distill.guidance_scale, partial(self.teachers.use, batch.effect)
        return Denoiser(self.backbone, batch.teacher, batch.uncond, scale, guided, role)

    @torch.no_grad()
    def scores(self, batch: Batch, critic: str) -> Scores:
        """Critic and teacher on a batch."""
        role = partial(self.roles.frozen, critic)
        return Scores(Denoiser(self.backbone, batch.student, role=role), self.teacher(batch))

    def _shift(self, u: Tensor) -> Tensor:
        return shift_sigma(u, self.settings.sampling.shift)

    @staticmethod
    def _draw_uniform(batch: int, generator: torch.Generator, lowest: float = 0.0) -> Tensor:
        drawn = torch.rand(batch, generator=generator, device=generator.device)
        return lowest + (1 - lowest) * drawn

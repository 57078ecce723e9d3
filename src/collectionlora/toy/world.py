"""A world of points with exact truths, in which every claim of the method can be checked in seconds.

The base answers eight general instructions ("move east", ...) by shifting the source point. Each effect turns
and shrinks the source, carries it far away in its own direction and splits it into TWO modes; its teacher is
a LoRA over the base. Pairs of effects share one teacher prompt, as effect LoRAs in the wild do. Distances are
energy distances of (sample, source) jointly, so that ignoring the source costs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from collectionlora.adapters.roles import (
    STUDENT,
    TEACHER,
    LoraWeights,
    Roles,
    TeacherLibrary,
    critic_role,
)
from collectionlora.backbones.base import Backbone, Condition
from collectionlora.backbones.toy import ToyBackbone, encode_prompt
from collectionlora.config import Overrides, Settings, resolve
from collectionlora.distillation import Distillation
from collectionlora.flow import add_noise, shift_sigma
from collectionlora.objectives import flow_matching_loss
from collectionlora.sampling import Denoiser, Sampler, noise_like, sample_few_steps, sample_many_steps
from collectionlora.streams import EffectData, GeneralData, Streams, sample_noise

DIRECTIONS = ("east", "northeast", "north", "northwest", "west", "southwest", "south", "southeast")
GENERAL_PROMPTS = tuple(f"move {d}" for d in DIRECTIONS)
TEACHER_RANK, TEACHER_STEPS = 8, 40
MODE_DISTANCE = 1.2  # each mode lies this far to one side of its effect's centre
SCATTER = 0.1
EMPTY_SHARE = 0.1  # of the prompts that a base learns from whose teachers are guided


def direction(angle: float) -> Tensor:
    return torch.tensor([math.cos(angle), math.sin(angle)])


@dataclass(frozen=True)
class ToyEffect:
    """Effect `index` of `num_effects`: rotation, contraction, displacement, and two modes."""

    index: int
    num_effects: int
    displacement: float = 4.0

    @property
    def name(self) -> str:
        return f"effect-{self.index}"

    @property
    def teacher_prompt(self) -> str:
        """Shared by two effects."""
        return f"style {self.index // 2}"

    @property
    def student_prompt(self) -> str:
        return f"<{self.name}> style {self.index // 2}"

    def centres(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """The middle of both modes for each source point `[B, 2]`, and the unit vector across, `[2]`."""
        angle = 2 * math.pi * self.index / self.num_effects
        cos, sin = direction(angle).to(source.device)
        rotation = torch.stack([torch.stack([cos, -sin]), torch.stack([sin, cos])])
        away = direction(angle + 1).to(source.device)
        return source @ rotation.T * 0.5 + self.displacement * away, torch.stack([-away[1], away[0]])

    def sample(self, source: Tensor, generator: torch.Generator) -> Tensor:
        """The truth: one answer for each source point, `[B, 2]`."""
        middle, across = self.centres(source)
        side = torch.randint(2, (len(source), 1), generator=generator, device=generator.device) * 2 - 1
        scatter = draw_points(len(source), generator)
        return middle + side * MODE_DISTANCE * across + SCATTER * scatter

    def second_mode_share(self, points: Tensor, source: Tensor) -> float:
        """The share of points on the second mode's side; 0.5 is right, 0 or 1 has lost a mode."""
        middle, across = self.centres(source)
        return float((((points - middle) @ across) > 0).float().mean())


def draw_points(num: int, generator: torch.Generator) -> Tensor:
    """Standard normal points `[num, 2]` on the generator's device."""
    return torch.randn(num, 2, generator=generator, device=generator.device)


def energy_distance(a: Tensor, b: Tensor) -> float:
    """Energy distance of two samples `[N, D]`; 0 for equal distributions (up to sampling noise)."""
    return float(2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean())


def points_to_latents(points: Tensor) -> Tensor:
    """`[B, 2]` to `[B, 2, 1, 1]`."""
    return points[:, :, None, None]


def joint_distance(a: Tensor, b: Tensor, source: Tensor) -> float:
    """Energy distance of two samples jointly with the sources they were made from, all `[N, 2, 1, 1]`."""
    with_source = [torch.cat([latents.flatten(1), source.flatten(1)], dim=1) for latents in (a, b)]
    return energy_distance(*with_source)


def condition_on(prompt: str, source: Tensor) -> Condition:
    """One prompt for all source points `[B, 2]`."""
    return Condition(encode_prompt([prompt]).expand(len(source)), points_to_latents(source)).to(source.device)


def draw_general(num: int, generator: torch.Generator, empty_share: float = 0.0) -> tuple[Condition, Tensor]:
    """Conditions of the general instructions and their true answers `[num, 2]`.

    Args:
        empty_share: of the conditions, whose prompt is empty and whose answer stays that of an instruction.
    """
    device, source = generator.device, draw_points(num, generator)
    which = torch.randint(len(GENERAL_PROMPTS), (num,), generator=generator, device=device)
    shifts = torch.stack([direction(i * math.pi / 4) for i in range(len(GENERAL_PROMPTS))]).to(device)
    scatter = draw_points(num, generator)
    asked = which
    if empty_share:
        empty = torch.rand(num, generator=generator, device=device) < empty_share
        asked = which.masked_fill(empty, len(GENERAL_PROMPTS))
    prompt = encode_prompt([*GENERAL_PROMPTS, ""]).to(device)[asked]
    return Condition(prompt, points_to_latents(source)), source + shifts[which] + SCATTER * scatter


def sample_teacher(
    backbone: Backbone, condition: Condition, generator: torch.Generator, guidance_scale: float = 1.0
) -> Tensor:
    """The active role in many steps, `[B, 2, 1, 1]`."""
    noise = noise_like(condition.source, generator)
    return sample_many_steps(guided_denoiser(backbone, condition, guidance_scale), noise, TEACHER_STEPS)


def guided_denoiser(backbone: Backbone, condition: Condition, guidance_scale: float) -> Denoiser:
    """The active role, guided away from the empty prompt."""
    empty = encode_prompt([""]).to(backbone.device).expand(len(condition.source))
    return Denoiser(backbone, condition, condition.with_prompt(empty), guidance_scale)


def sample_student(
    backbone: Backbone,
    condition: Condition,
    num_steps: int,
    generator: torch.Generator,
    sampler: Sampler = "stochastic",
) -> Tensor:
    """The active role in few steps, `[B, 2, 1, 1]`."""
    noise = noise_like(condition.source, generator)
    return sample_few_steps(Denoiser(backbone, condition), noise, num_steps, generator, sampler=sampler)


def train_network(
    backbone: Backbone,
    parameters: list[Tensor],
    draw: Callable[[], tuple[Condition, Tensor]],
    steps: int,
    learning_rate: float,
    generator: torch.Generator,
) -> None:
    """Flow matching of `parameters` on drawn conditions and answers `[B, 2]`, the rate falling at the end."""
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, foreach=True)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate * min(1.0, (steps - step) / (0.3 * steps))
        condition, answer = draw()
        x0 = points_to_latents(answer)
        noise = noise_like(x0, generator)
        sigma = shift_sigma(torch.rand(len(x0), generator=generator, device=generator.device), 3.0)
        velocity = Denoiser(backbone, condition).velocity(add_noise(x0, noise, sigma), sigma)
        optimizer.zero_grad()
        flow_matching_loss(velocity, x0, noise).backward()
        optimizer.step()


class ToyWorld:
    """A trained base, one trained teacher for each effect, and the data of a distillation over them.

    Args:
        guidance_scale: of the teachers. Above 1 the base learns the empty prompt too, and the truth of the
            general stream is what the guided base answers.
        device: where all of it lies and is drawn.
    """

    def __init__(
        self,
        num_effects: int = 4,
        seed: int = 0,
        displacement: float = 4.0,
        base_steps: int = 2500,
        teacher_steps: int = 800,
        device: str = "cpu",
        guidance_scale: float = 1.0,
    ):
        self.device, self.guidance_scale = torch.device(device), guidance_scale
        self.base_steps, self.teacher_steps = base_steps, teacher_steps
        self.effects = [ToyEffect(k, num_effects, displacement) for k in range(num_effects)]
        self.seed = seed
        generator = self._generator(seed)
        self.base = self._train_base(generator)
        self.teachers = {e.name: self._train_teacher(e, generator) for e in self.effects}
        self.data = self._make_targets(generator)

    def _generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed)

    def _train_base(self, generator: torch.Generator) -> dict[str, Tensor]:
        backbone = ToyBackbone(self.seed)
        backbone.network.to(self.device)
        train_network(
            backbone,
            list(backbone.network.parameters()),
            lambda: draw_general(512, generator, EMPTY_SHARE if self.guidance_scale > 1 else 0),
            self.base_steps,
            2e-3,
            generator,
        )
        return backbone.network.state_dict()

    def _with_roles(self, ranks: dict[str, int], seed: int) -> tuple[ToyBackbone, Roles]:
        backbone = ToyBackbone()
        backbone.network.to(self.device).load_state_dict(self.base)
        return backbone, Roles(backbone.network, backbone.lora_targets, ranks, seed)

    def _train_teacher(self, effect: ToyEffect, generator: torch.Generator) -> LoraWeights:
        backbone, roles = self._with_roles({STUDENT: TEACHER_RANK}, effect.index)

        def draw() -> tuple[Condition, Tensor]:
            source = draw_points(256, generator)
            return condition_on(effect.teacher_prompt, source), effect.sample(source, generator)

        with roles.use(STUDENT):
            train_network(
                backbone, list(roles.parameters(STUDENT)), draw, self.teacher_steps, 3e-3, generator
            )
        return roles.weights(STUDENT)

    def _make_targets(
        self, generator: torch.Generator, photos: int = 64, samples: int = 8
    ) -> tuple[list[EffectData], GeneralData]:
        """Sources and their answers; those of effect k are sampled from seed k, the base's from the next."""
        backbone, roles = self._with_roles({TEACHER: TEACHER_RANK}, 0)
        library = TeacherLibrary(roles, self.teachers)
        effects = []
        for effect in self.effects:
            source = draw_points(photos, generator)
            with library.use(effect.name):
                condition = condition_on(effect.teacher_prompt, source)
                targets = [
                    self._sample(backbone, condition, effect.index, number) for number in range(samples)
                ]
            texts = (effect.teacher_prompt, effect.student_prompt, "")
            teacher, student, uncond = (backbone.encode_prompt([text]) for text in texts)
            answers = torch.stack(targets, dim=1)
            data = EffectData(effect.name, condition.source, answers, teacher, student, uncond)
            effects.append(replace(data, seed=effect.index))
        condition, _ = draw_general(4096, generator)
        answers = self._sample(backbone, condition, len(self.effects), 0)
        uncond = backbone.encode_prompt([""])
        return effects, GeneralData(
            condition.source, condition.prompt, answers, uncond, seed=len(self.effects)
        )

    def _sample(self, backbone: Backbone, condition: Condition, seed: int, sample: int) -> Tensor:
        """The active role in many steps, from the noise that a batch draws again."""
        positions, shape = range(len(condition.source)), condition.source.shape[1:]
        noise = torch.stack([sample_noise((seed, position, sample), shape) for position in positions])
        denoiser = guided_denoiser(backbone, condition, self.guidance_scale)
        return sample_many_steps(denoiser, noise.to(self.device), TEACHER_STEPS)

    def distillation(
        self, settings: Settings, num_effects: int | None = None, method: type[Distillation] = Distillation
    ) -> Distillation:
        """A run over the first `num_effects` effects (default: all), ready to step."""
        ranks = {STUDENT: settings.student.rank, TEACHER: TEACHER_RANK}
        ranks |= {critic_role(n): settings.critic.rank for n in settings.distill.rollout_steps}
        backbone, roles = self._with_roles(ranks, self.seed)
        effects, general = self.data
        streams = Streams(
            effects[:num_effects],
            general,
            seed=settings.distill.seed,
            batch_size=settings.distill.batch_size,
            effect_ratio=settings.distill.effect_ratio,
            route_every=settings.distill.route_every,
            asymmetric_prompts=settings.distill.asymmetric_prompts,
        )
        return method(backbone, roles, TeacherLibrary(roles, self.teachers), streams, settings)

    def judge(
        self, run: Distillation, num_steps: int, num: int = 1500, sampler: Sampler | None = None
    ) -> dict[str, float]:
        """The student at `num_steps` against the teachers' samples, and against the general truth.

        Args:
            sampler: by default the run's own.
        """
        sampler = sampler or run.settings.sampling.sampler
        generator = self._generator(1)
        distances, shares = [], []
        for effect in self.effects[: len(run.streams.effects)]:
            source = draw_points(num, generator)
            aop = run.streams.asymmetric_prompts
            condition = condition_on(effect.student_prompt if aop else effect.teacher_prompt, source)
            with run.roles.use(STUDENT):
                made = sample_student(run.backbone, condition, num_steps, generator, sampler)
            with run.teachers.use(effect.name):
                asked = condition_on(effect.teacher_prompt, source)
                truth = sample_teacher(run.backbone, asked, generator, self.guidance_scale)
            distances.append(joint_distance(made, truth, condition.source))
            shares.append(effect.second_mode_share(made.flatten(1), source))
        condition, answer = draw_general(num, generator)
        with run.roles.use(STUDENT):
            made = sample_student(run.backbone, condition, num_steps, generator, sampler)
        truth = points_to_latents(answer)
        if self.guidance_scale > 1:
            with run.teachers.use(None):
                truth = sample_teacher(run.backbone, condition, generator, self.guidance_scale)
        return {
            "effects_mean": sum(distances) / len(distances),
            "effects_worst": max(distances),
            "general": joint_distance(made, truth, condition.source),
            "rarest_mode": min(min(share, 1 - share) for share in shares),
        }

    def judge_undistilled(self, num_steps: int, num: int = 1500) -> float:
        """Mean distance of the teachers in the student's few steps to the teachers in their many."""
        run = self.distillation(toy_settings())
        generator = self._generator(1)
        distances = []
        for effect in self.effects:
            condition = condition_on(effect.teacher_prompt, draw_points(num, generator))
            with run.teachers.use(effect.name):
                made = sample_student(run.backbone, condition, num_steps, generator)
                truth = sample_teacher(run.backbone, condition, generator)
            distances.append(joint_distance(made, truth, condition.source))
        return sum(distances) / len(distances)


RECIPE: Overrides = {
    "student": {"rank": 16, "learning_rate": 3e-4},
    "critic": {"rank": 16, "learning_rate": 1e-3},
    "targets": {"guidance_scale": 1},
    "match": {"updates": 500, "learning_rate": 3e-3},
    "distill": {
        **{"student_updates": 500, "batch_size": 256, "weight_decay": 0},
        **{"guidance_scale": 1, "anchor_weight": 0},
    },
}
# No warm start: the paper's order, in which the parts of the objective show what they do.
COLD: Overrides = {
    "student": {"learning_rate": 1e-3},
    "match": {"updates": 0},
    "distill": {"anchor_weight": {"start": 1, "end": 0}},
}
# Long enough that the warm start alone reaches the teachers in their own few steps.
LONG: Overrides = {"match": {"updates": 6000}}
ALL_LENGTHS: Overrides = {"distill": {"rollout_steps": [8, 4, 2, 1], "student_updates": 1000}}
# Name of a row of the ablation -> what it changes.
VARIANTS: dict[str, list[Overrides]] = {
    "warm start alone": [{"distill": {"student_updates": 0}}],
    "full": [],
    "full, critic on random steps": [{"distill": {"critic_samples": "simulated"}}],
    # About as many seconds as the row above takes.
    "full, 1.8 times the updates": [{"distill": {"student_updates": 900}}],
    "full, 4 steps": [{"distill": {"rollout_steps": [4]}}],
    "full, 2 steps": [{"distill": {"rollout_steps": [2]}}],
    "full, 1 step": [{"distill": {"rollout_steps": [1]}}],
    "full, 8/4/2/1 steps": [ALL_LENGTHS],
    "long warm start alone": [LONG, {"distill": {"student_updates": 0}}],
    "long warm start, full": [LONG],
    "long warm start, full, 8/4/2/1": [LONG, ALL_LENGTHS],
    "cold": [COLD],
    "cold, critic on random steps": [COLD, {"distill": {"critic_samples": "simulated"}}],
    "cold, 1.8 times the updates": [COLD, {"distill": {"student_updates": 900}}],
    "cold, no AOP": [COLD, {"distill": {"asymmetric_prompts": False}}],
    "cold, no PDSR": [COLD, {"distill": {"effect_ratio": 1}}],
    "cold, no TS": [COLD, {"distill": {"target_weight": 0}}],
    "cold, no TA": [COLD, {"distill": {"anchor_weight": 0}}],
    "cold, no TS, no TA": [COLD, {"distill": {"target_weight": 0, "anchor_weight": 0}}],
}


def toy_settings(*layers: Overrides) -> Settings:
    """The toy's recipe with overrides, for example `toy_settings({"distill": {"effect_ratio": 1}})`."""
    return resolve(RECIPE, *layers)


def run_to_end(run: Distillation) -> Distillation:
    """Take all steps."""
    for step in range(run.num_steps):
        run(step)
    return run

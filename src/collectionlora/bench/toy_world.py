"""A world of points with exact truths, in which every claim of the method can be checked in seconds.

The base answers eight general instructions ("move east", ...) by shifting the source point. Each effect turns
and shrinks the source, carries it far away in its own direction and splits it into TWO modes; its teacher is
a LoRA over the base. Pairs of effects share one teacher prompt, as effect LoRAs in the wild do. Distances are
energy distances of (sample, source) jointly, so that ignoring the source costs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from collectionlora.adapters.roles import STUDENT, TEACHER, LoraWeights, Roles, TeacherLibrary
from collectionlora.backbones.base import Condition, Prompt
from collectionlora.backbones.toy import ToyBackbone
from collectionlora.config import Settings, resolve
from collectionlora.distill import Distillation
from collectionlora.flow import add_noise, shift_sigma
from collectionlora.objectives import flow_matching_loss
from collectionlora.sampling import predict_velocity, sample_few_steps, sample_many_steps
from collectionlora.streams import EffectData, GeneralData, Streams

DIRECTIONS = ("east", "northeast", "north", "northwest", "west", "southwest", "south", "southeast")
GENERAL_PROMPTS = tuple(f"move {d}" for d in DIRECTIONS)
TEACHER_RANK, TEACHER_STEPS = 8, 40
MODE_DISTANCE = 1.2  # each mode lies this far to one side of its effect's centre
SCATTER = 0.1


def direction(angle: float) -> Tensor:
    return torch.tensor([math.cos(angle), math.sin(angle)])


@dataclass(frozen=True)
class ToyEffect:
    """Effect `index` of `num_effects`: rotation, contraction, displacement by 4, and two modes."""

    index: int
    num_effects: int

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
        """The middle of both modes for each source point, `[B, 2]`, and the unit vector between them, `[2]`."""
        angle = 2 * math.pi * self.index / self.num_effects
        cos, sin = direction(angle)
        rotation = torch.stack([torch.stack([cos, -sin]), torch.stack([sin, cos])])
        away = direction(angle + 1)
        return source @ rotation.T * 0.5 + 4 * away, torch.stack([-away[1], away[0]])

    def sample(self, source: Tensor, generator: torch.Generator) -> Tensor:
        """The truth: one answer for each source point, `[B, 2]`."""
        middle, across = self.centres(source)
        side = torch.randint(2, (len(source), 1), generator=generator) * 2 - 1
        scatter = torch.randn(source.shape, generator=generator)
        return middle + side * MODE_DISTANCE * across + SCATTER * scatter

    def second_mode_share(self, points: Tensor, source: Tensor) -> float:
        """The share of points on the second mode's side; 0.5 is right, 0 or 1 has lost a mode."""
        middle, across = self.centres(source)
        return float((((points - middle) @ across) > 0).float().mean())


def energy_distance(a: Tensor, b: Tensor) -> float:
    """Energy distance of two samples `[N, D]`; 0 for equal distributions (up to sampling noise)."""
    return float(2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean())


def points_to_latents(points: Tensor) -> Tensor:
    return points[:, :, None, None]


class ToyWorld:
    """A trained base and one trained teacher for each effect; `distill` makes a student and judges it."""

    def __init__(self, num_effects: int = 4, seed: int = 0, base_steps: int = 2500, teacher_steps: int = 800):
        self.effects = [ToyEffect(k, num_effects) for k in range(num_effects)]
        self.seed = seed
        self.backbone = ToyBackbone(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.base = self._train_base(base_steps)
        self.teachers = {e.name: self._train_teacher(e, teacher_steps) for e in self.effects}
        self.data = self._make_targets()

    def prompts(self, text: str, batch: int) -> Prompt:
        return self.backbone.encode_prompt([text]).expand(batch)

    def general_sample(self, num: int) -> tuple[Tensor, Prompt, Tensor]:
        """Sources, prompts and true answers of the general instructions."""
        source = torch.randn(num, 2, generator=self.generator)
        which = torch.randint(len(GENERAL_PROMPTS), (num,), generator=self.generator)
        shifts = torch.stack([direction(i * math.pi / 4) for i in range(len(GENERAL_PROMPTS))])
        scatter = torch.randn(num, 2, generator=self.generator)
        prompt = self.backbone.encode_prompt(GENERAL_PROMPTS)[which]
        return source, prompt, source + shifts[which] + SCATTER * scatter

    def _fit(
        self, parameters: list[Tensor], draw: Callable[[], tuple[Tensor, Prompt, Tensor]], steps: int, rate: float
    ) -> None:
        optimizer = torch.optim.Adam(parameters, lr=rate, foreach=True)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = rate * min(1.0, (steps - step) / (0.3 * steps))
            source, prompt, answer = draw()
            x0 = points_to_latents(answer)
            noise = torch.randn(x0.shape, generator=self.generator)
            sigma = shift_sigma(torch.rand(len(x0), generator=self.generator), 3.0)
            condition = Condition(prompt, points_to_latents(source))
            velocity = predict_velocity(self.backbone, add_noise(x0, noise, sigma), sigma, condition)
            optimizer.zero_grad()
            flow_matching_loss(velocity, x0, noise).backward()
            optimizer.step()

    def _train_base(self, steps: int) -> dict[str, Tensor]:
        network = self.backbone.network
        self._fit(list(network.parameters()), lambda: self.general_sample(512), steps, 2e-3)
        return {name: value.clone() for name, value in network.state_dict().items()}

    def _fresh(self, seed: int, **ranks: int) -> tuple[ToyBackbone, Roles]:
        backbone = ToyBackbone()
        backbone.network.load_state_dict(self.base)
        return backbone, Roles(backbone.network, backbone.lora_targets, ranks, seed)

    def _train_teacher(self, effect: ToyEffect, steps: int) -> LoraWeights:
        self.backbone, roles = self._fresh(effect.index, student=TEACHER_RANK)

        def draw() -> tuple[Tensor, Prompt, Tensor]:
            source = torch.randn(256, 2, generator=self.generator)
            return source, self.prompts(effect.teacher_prompt, 256), effect.sample(source, self.generator)

        with roles.use(STUDENT):
            self._fit(list(roles.parameters(STUDENT)), draw, steps, 3e-3)
        return roles.weights(STUDENT)

    def _teacher_samples(self, effect: ToyEffect, source: Tensor) -> Tensor:
        noise = torch.randn(len(source), 2, 1, 1, generator=self.generator)
        condition = Condition(self.prompts(effect.teacher_prompt, len(source)), points_to_latents(source))
        return sample_many_steps(self.backbone, noise, condition, None, TEACHER_STEPS)

    def _make_targets(self, photos: int = 64, samples: int = 8) -> tuple[list[EffectData], GeneralData]:
        self.backbone, roles = self._fresh(0, teacher=TEACHER_RANK)
        library = TeacherLibrary(roles, self.teachers)
        effects = []
        for effect in self.effects:
            source = torch.randn(photos, 2, generator=self.generator)
            with library.use(effect.name):
                targets = [self._teacher_samples(effect, source) for _ in range(samples)]
            encode = self.backbone.encode_prompt
            effects.append(
                EffectData(
                    effect.name,
                    points_to_latents(source),
                    torch.stack(targets, dim=1),
                    encode([effect.teacher_prompt]),
                    encode([effect.student_prompt]),
                )
            )
        source, prompt, _ = self.general_sample(4096)
        condition = Condition(prompt, points_to_latents(source))
        noise = torch.randn(len(source), 2, 1, 1, generator=self.generator)
        targets = sample_many_steps(self.backbone, noise, condition, None, 20)
        return effects, GeneralData(condition.source, prompt, targets)

    def distillation(self, settings: Settings, num_effects: int | None = None) -> Distillation:
        """A run over the first `num_effects` effects (default: all), ready to step."""
        backbone, roles = self._fresh(
            self.seed, student=settings.student.rank, critic=settings.critic.rank, teacher=TEACHER_RANK
        )
        effects, general = self.data
        streams = Streams(
            effects[:num_effects],
            general,
            backbone.encode_prompt([""]),
            seed=settings.distill.seed,
            batch_size=settings.distill.batch_size,
            effect_ratio=settings.distill.effect_ratio,
            asymmetric_prompts=settings.distill.asymmetric_prompts,
        )
        return Distillation(backbone, roles, TeacherLibrary(roles, self.teachers), streams, settings)

    def judge(self, run: Distillation, num_steps: int, num: int = 1500) -> dict[str, float]:
        """Energy distances of the student at `num_steps` to the teachers' samples and to the general truth."""
        generator = torch.Generator().manual_seed(1)
        self.generator = torch.Generator().manual_seed(2)
        self.backbone = run.backbone  # type: ignore[assignment]
        distances, shares = [], []
        for effect, data in zip(self.effects, run.streams.effects, strict=False):
            source = torch.randn(num, 2, generator=generator)
            prompt = data.student_prompt if run.streams.asymmetric_prompts else data.teacher_prompt
            condition = Condition(prompt.expand(num), points_to_latents(source))
            with run.roles.use(STUDENT):
                points = sample_few_steps(run.backbone, condition, num_steps, generator).flatten(1)
            with run.teachers.use(effect.name):
                truth = self._teacher_samples(effect, source).flatten(1)
            distances.append(energy_distance(torch.cat([points, source], 1), torch.cat([truth, source], 1)))
            shares.append(effect.second_mode_share(points, source))
        source, general_prompt, answer = self.general_sample(num)
        condition = Condition(general_prompt, points_to_latents(source))
        with run.roles.use(STUDENT):
            points = sample_few_steps(run.backbone, condition, num_steps, generator).flatten(1)
        return {
            "effects_mean": sum(distances) / len(distances),
            "effects_worst": max(distances),
            "general": energy_distance(torch.cat([points, source], 1), torch.cat([answer, source], 1)),
            "rarest_mode": min(min(s, 1 - s) for s in shares),
        }


def toy_settings(**sections: dict[str, object]) -> Settings:
    """The toy's recipe with overrides by section, for example `toy_settings(distill={"effect_ratio": 1})`."""
    recipe = {
        "student": {"rank": 16, "learning_rate": 1e-3},
        "critic": {"rank": 16, "learning_rate": 1e-3},
        "targets": {"guidance_scale": 1},
        "match": {"updates": 500, "learning_rate": 3e-3},
        "distill": {"student_updates": 500, "batch_size": 256, "weight_decay": 0, "rollout_steps": (8, 4, 2, 1)},
    }
    return resolve(recipe, sections)


def student_vector(run: Distillation) -> Tensor:
    """All student parameters as one vector, to measure drift."""
    return parameters_to_vector(run.roles.parameters(STUDENT)).detach()

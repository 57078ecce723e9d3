"""PDSR, probabilistic dual-stream routing: what a step trains on.

With probability `effect_ratio` a step takes the effect stream (a random effect and its teacher), else the
general stream (an ordinary edit, taught by the bare base): docs/method.md#what-a-step-trains-on-pdsr.

A route is a pure function of (seed, step, rank), and so are the draws inside a batch: a resumed run repeats
them without any saved random state.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from collectionlora.backbones.base import Condition, Prompt, repeat_references
from collectionlora.pictures.buckets import Buckets, Images, take

# Separate the uses of one (seed, step, rank), so that they are independent of each other.
ROUTE, BATCH, NOISE, LENGTH, WEIGHTED, STOP, COMPOSITION = range(7)
CPU = torch.device("cpu")
Origin = tuple[int, int, int]  # seed of the targets, photo, sample: what a sample's noise is drawn from


def generator_for(seed: int, step: int, rank: int, use: int, part: int = 0) -> np.random.Generator:
    """An independent random stream for one use at one step of one process."""
    return np.random.default_rng([seed, step, rank, use, part])


def torch_generator_for(seed: int, step: int, rank: int, device: torch.device) -> torch.Generator:
    """The noise of one step, drawn on a device; kinds of devices draw other numbers."""
    draw = generator_for(seed, step, rank, NOISE).integers(2**63 - 1)
    # A plan's tensors have no values, and nothing draws them.
    return torch.Generator("cpu" if device.type == "meta" else device).manual_seed(int(draw))


def sample_noise(origin: Origin, shape: Sequence[int]) -> Tensor:
    """The noise `[*shape]` that a teacher's sample was made from, on the CPU."""
    draw = np.random.default_rng(origin).integers(2**63 - 1)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(int(draw)))


def route(
    seed: int,
    step: int,
    rank: int,
    num_effects: int,
    effect_ratio: float = 0.5,
    route_every: int = 1,
    part: int = 0,
    leader: int | None = None,
) -> int | None:
    """The effect (0 .. num_effects - 1) of this step, or None for the general stream.

    Args:
        effect_ratio: probability of the effect stream, the paper's p_switch; 1 leaves no general stream.
        route_every: steps for which one choice of stream is kept, by all parts; the effect changes each time.
        part: tells apart several routed batches of one step.
        leader: the rank that chooses the stream, by default `rank` itself; effects still differ.
    """
    rng = generator_for(seed, step, rank, ROUTE, part)
    choice = rng.random()
    if leader is not None or route_every > 1:
        kept, chooser = step // route_every, rank if leader is None else leader
        choice = generator_for(seed, kept, chooser, ROUTE, part if route_every == 1 else 0).random()
    if choice >= effect_ratio:
        return None
    return int(rng.integers(num_effects))


@dataclass(frozen=True)
class EffectData:
    """One effect, encoded: P photos and M teacher samples of each.

    `sources` are P times `[C, H, W]`, `targets` P times `[M, C, H, W]` in the size of their photo; a prompt
    has a batch of 1, or of P where the base reads it together with the photo. `seed` is what the targets'
    noise was drawn from. `references` `[1, C, height, width]` are shown beside every photo. The effect stream
    draws the effects in proportion to their `weight`.
    """

    name: str
    sources: Images
    targets: Images
    teacher_prompt: Prompt
    student_prompt: Prompt
    uncond: Prompt
    references: tuple[Tensor, ...] = ()
    seed: int = 0
    weight: float = 1.0

    @cached_property
    def buckets(self) -> Buckets:
        return Buckets(self.sources)

    def condition(self, prompt: Prompt, photo: Tensor) -> Condition:
        """What the network reads under one of the prompts, for the photos at `photo` `[B]`, of one size."""
        references = repeat_references(self.references, len(photo))
        return Condition(prompt.of_photos(photo), take(self.sources, photo), references)


@dataclass(frozen=True)
class ShardedPrompt:
    """Encoded prompts in shards, mapped files of `size` photos each: only what is asked for is read."""

    shards: Sequence[Prompt]
    size: int

    def of_photos(self, index: Tensor) -> Prompt:
        """The prompts of the photos at `index` `[B]`, as long as the longest shard among theirs."""
        places = (divmod(photo, self.size) for photo in index.tolist())
        return Prompt.cat([self.shards[shard].of_photos(torch.tensor([row])) for shard, row in places])


@dataclass(frozen=True)
class GeneralData:
    """N photos, each with a prompt of its own and an answer, encoded.

    The general stream, with instructions and the bare base's answers; and compositions, with the prompts of
    two effects and the second one's sample on the first one's picture. `sources` and `targets` are N times
    `[C, H, W]`, `prompt` has a batch of N, `uncond` of 1 or N. The targets, whose noise was drawn from
    `seed`, serve the warm start alone; without one there are none.
    """

    sources: Images
    prompt: Prompt | ShardedPrompt
    targets: Images | None
    uncond: Prompt | ShardedPrompt
    seed: int = 0

    @cached_property
    def buckets(self) -> Buckets:
        return Buckets(self.sources)


@dataclass(frozen=True)
class Batch:
    """A batch of one stream or, mixed, of all, in one size; the critic reads the student's condition.

    `effect` is None in the general stream, and in a mixed batch, which no single teacher can answer.
    `target` `[B, C, H, W]` are teacher samples, in the general stream the bare base's. `teacher`, `student`
    and `uncond` are conditions of the same B photos: the teacher's prompt, the student's, the empty one.
    `origins` say what the noise of each target is drawn from.
    """

    effect: str | None
    target: Tensor
    teacher: Condition
    student: Condition
    uncond: Condition
    origins: tuple[Origin, ...] = ()

    def to(self, device: torch.device) -> "Batch":
        return replace(
            self,
            target=self.target.to(device),
            teacher=self.teacher.to(device),
            student=self.student.to(device),
            uncond=self.uncond.to(device),
        )

    def noise_of_target(self) -> Tensor:
        """The noise `[B, C, H, W]` that the teacher started from, drawn again."""
        noise = [sample_noise(origin, self.target.shape[1:]) for origin in self.origins]
        return torch.stack(noise).to(self.target)


class Streams:
    """Routed batches over the effects and the general stream.

    Args:
        asymmetric_prompts: the student and critic read `student_prompt` (AOP); otherwise the teacher's
            prompt, the ablation.
        compositions: what a mixed batch takes in place of an effect with probability `composition_ratio`.
        same_stream: all processes take the effect stream, or all the general one, and stop their simulations
            at the same steps, so that they run the same forwards: a sharded base needs it.
    """

    def __init__(
        self,
        effects: Sequence[EffectData],
        general: GeneralData,
        *,
        seed: int,
        batch_size: int,
        effect_ratio: float,
        route_every: int = 1,
        asymmetric_prompts: bool = True,
        rank: int = 0,
        same_stream: bool = False,
        compositions: GeneralData | None = None,
        composition_ratio: float = 0.0,
    ):
        self.effects, self.general = list(effects), general
        self.compositions, self.composition_ratio = compositions, composition_ratio
        self.seed, self.batch_size, self.rank = seed, batch_size, rank
        self.effect_ratio, self.route_every = effect_ratio, route_every
        self.asymmetric_prompts, self.leader = asymmetric_prompts, 0 if same_stream else None
        weights = np.array([effect.weight for effect in self.effects])
        self.probabilities = weights / weights.sum()  # of the effects, within the effect stream

    def shares(self, number: int) -> list["Streams"]:
        """The streams of the ranks that this process stands for, if each stands for `number` of them."""
        shares = []
        for index in range(number):
            share = copy(self)
            share.rank = self.rank * number + index
            share.leader = self.leader if self.leader is None else index
            shares.append(share)
        return shares

    def favour(self, names: Sequence[str], ratio: float) -> None:
        """Let the effect stream draw from these effects with probability `ratio`, from the others else.

        Within both groups the weights of the effects hold.
        """
        chosen = np.array([effect.name in names for effect in self.effects])
        if chosen.all() or not chosen.any():
            return
        for group, share in ((chosen, ratio), (~chosen, 1 - ratio)):
            self.probabilities[group] *= share / self.probabilities[group].sum()

    def _route(self, step: int, part: int) -> int | None:
        effects, ratio = len(self.effects), self.effect_ratio
        index = route(self.seed, step, self.rank, effects, ratio, self.route_every, part, self.leader)
        if index is None or np.ptp(self.probabilities) == 0:
            return index
        rng = generator_for(self.seed, step, self.rank, WEIGHTED, part)
        return int(rng.choice(effects, p=self.probabilities))

    def effect_at(self, step: int) -> str | None:
        """The effect that the student learns at a step, or None for the general stream."""
        index = self._route(step, part=0)
        return None if index is None else self.effects[index].name

    def batch(self, step: int, part: int = 0, size: int | None = None) -> Batch:
        """Batch `part` of a step: a pure function of (seed, step, part, rank); by default of `batch_size`."""
        index = self._route(step, part)
        data = self.general if index is None else self.effects[index]
        return self._draw(data, step, part, size or self.batch_size)

    def mixed_batch(self, step: int, size: int | None = None) -> Batch:
        """A batch whose samples are each routed by themselves, for losses that ask no teacher.

        All have the first one's size. A stream without a photo of it leaves its place to the first one's.
        """
        size, own = size or self.batch_size, self._mixed_data(step, 0)
        parts = [self._draw(own, step, 0, 1)]
        shape = parts[0].student.source.shape[1:]
        for part in range(1, size):
            data = self._mixed_data(step, part)
            alike = data.buckets.holds(shape)
            parts.append(self._draw(data if alike else own, step, part, 1, shape))
        return Batch(
            effect=None,
            target=torch.cat([part.target for part in parts]),
            teacher=Condition.cat([part.teacher for part in parts]),
            student=Condition.cat([part.student for part in parts]),
            uncond=Condition.cat([part.uncond for part in parts]),
            origins=tuple(origin for part in parts for origin in part.origins),
        )

    def _mixed_data(self, step: int, part: int) -> EffectData | GeneralData:
        """What a sample of a mixed batch is drawn from."""
        index = self._route(step, part)
        if index is None:
            return self.general
        if self.compositions is not None:
            rng = generator_for(self.seed, step, self.rank, COMPOSITION, part)
            if rng.random() < self.composition_ratio:
                return self.compositions
        return self.effects[index]

    def _draw(
        self,
        data: EffectData | GeneralData,
        step: int,
        part: int,
        size: int,
        shape: torch.Size | None = None,
    ) -> Batch:
        """`size` samples of an effect or of the general stream; `shape` is that of the photos' latents."""
        rng = generator_for(self.seed, step, self.rank, BATCH, part)
        photo = data.buckets.draw(rng, size, shape)
        return self._effect(data, photo, rng) if isinstance(data, EffectData) else self._general(data, photo)

    def _effect(self, data: EffectData, photo: Tensor, rng: np.random.Generator) -> Batch:
        sample = torch.from_numpy(rng.integers(len(data.targets[0]), size=len(photo)))
        teacher = data.condition(data.teacher_prompt, photo)
        student = teacher.with_prompt(data.student_prompt.of_photos(photo))
        return Batch(
            effect=data.name,
            target=take(data.targets, photo)[torch.arange(len(photo)), sample],
            teacher=teacher,
            student=student if self.asymmetric_prompts else teacher,
            uncond=teacher.with_prompt(data.uncond.of_photos(photo)),
            origins=tuple((data.seed, p, s) for p, s in zip(photo.tolist(), sample.tolist(), strict=True)),
        )

    def _general(self, data: GeneralData, photo: Tensor) -> Batch:
        condition = Condition(data.prompt.of_photos(photo), take(data.sources, photo))
        uncond = condition.with_prompt(data.uncond.of_photos(photo))
        # Without a warm start nothing reads an answer but its shape, which is the photo's.
        target = condition.source if data.targets is None else take(data.targets, photo)
        origins = tuple((data.seed, position, 0) for position in photo.tolist())
        return Batch(None, target, condition, condition, uncond, origins)

    def schedule_length(self, step: int, lengths: Sequence[int]) -> int:
        """The student's schedule length at a step: one for all processes, for each length has its critic."""
        return lengths[int(generator_for(self.seed, step, 0, LENGTH).integers(len(lengths)))]

    def stops(self, step: int, part: int, num_steps: int, size: int) -> Tensor:
        """The step, 0 .. num_steps - 1, at which the simulation of each of `size` samples stops."""
        rank = self.rank if self.leader is None else self.leader
        rng = generator_for(self.seed, step, rank, STOP, part)
        return torch.from_numpy(rng.integers(num_steps, size=size))

    def generator(self, step: int, device: torch.device = CPU) -> torch.Generator:
        """The noise of a step."""
        return torch_generator_for(self.seed, step, self.rank, device)

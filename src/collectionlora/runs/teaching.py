"""Train one effect LoRA from image pairs by flow matching: a teacher, where the user brings pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from collectionlora.adapters.optimizers import (
    load_optimizer,
    make_adamw,
    optimizer_tensors,
    set_learning_rate,
)
from collectionlora.adapters.roles import STUDENT, LoraWeights, Roles
from collectionlora.backbones.base import Backbone, Condition, Prompt, repeat_references
from collectionlora.config import Settings
from collectionlora.flow import add_noise, shift_sigma
from collectionlora.objectives import flow_matching_loss
from collectionlora.pictures.buckets import Buckets, Images, take
from collectionlora.sampling import Denoiser, noise_like
from collectionlora.streams import BATCH, generator_for, torch_generator_for


@dataclass(frozen=True)
class EncodedPairs:
    """Image pairs of an effect.

    `sources` and `targets` are N latents `[C, H, W]`, of each pair in one size; `prompt` is the teacher
    prompt, a batch of 1, or of N where the base reads it together with the photo; `references` are latents of
    the reference images beside every photo, each `[1, C, height, width]`.
    """

    sources: Images
    targets: Images
    prompt: Prompt
    references: Sequence[Tensor] = ()


class Teaching:
    """One effect's training run; a step is a pure function of the LoRA and the step's number.

    Args:
        effect: its name.
    """

    def __init__(
        self,
        effect: str,
        backbone: Backbone,
        roles: Roles,
        pairs: EncodedPairs,
        settings: Settings,
    ):
        self.effect, self.backbone, self.roles, self.settings = effect, backbone, roles, settings
        self.pairs, self.buckets = pairs, Buckets(pairs.sources)
        self.parameters = roles.parameters(STUDENT)
        self.optimizer = make_adamw(self.parameters, settings.teach.learning_rate, weight_decay=0.0)

    @property
    def num_steps(self) -> int:
        return self.settings.teach.steps

    def verify(self) -> None:
        """Prove that switching between base and LoRA works; changes nothing.

        Raises:
            UserError: it does not with the installed versions.
        """
        condition = self._condition(torch.tensor([0]))
        generator = torch_generator_for(self.settings.teach.seed, 0, 0, self.backbone.device)
        noise = noise_like(condition.source, generator)
        self.roles.verify(lambda: Denoiser(self.backbone, condition).velocity(noise, 1.0))

    def stream_at(self, step: int) -> tuple[str, str]:
        """All steps learn from the same pairs."""
        return "pairs", self.effect

    def __call__(self, step: int) -> dict[str, float]:
        teach, device = self.settings.teach, self.backbone.device
        rng = generator_for(teach.seed, step, 0, BATCH)
        generator = torch_generator_for(teach.seed, step, 0, device)
        pair = self.buckets.draw(rng, teach.batch_size)
        x0 = take(self.pairs.targets, pair).to(device)
        condition = self._condition(pair)
        noise = noise_like(x0, generator)
        u = torch.rand(len(x0), generator=generator, device=generator.device)
        sigma = shift_sigma(u, teach.shift)
        with self.roles.use(STUDENT):
            velocity = Denoiser(self.backbone, condition).velocity(add_noise(x0, noise, sigma), sigma)
        loss = flow_matching_loss(velocity, x0, noise)
        self.optimizer.zero_grad()
        loss.backward()
        norm = clip_grad_norm_(self.parameters, teach.max_grad_norm)
        remaining = (teach.steps - step) / (teach.decay_ratio * teach.steps) if teach.decay_ratio else 1.0
        set_learning_rate(self.optimizer, teach.learning_rate * min(1.0, remaining))
        self.optimizer.step()
        return {"loss": loss.item(), "grad_norm": norm.item()}

    def _condition(self, pair: Tensor) -> Condition:
        references = repeat_references(self.pairs.references, len(pair))
        sources = take(self.pairs.sources, pair)
        condition = Condition(self.pairs.prompt.of_photos(pair), sources, references)
        return condition.to(self.backbone.device)

    def tensors(self) -> dict[str, Tensor]:
        weights = {f"lora.{i}": p.detach() for i, p in enumerate(self.parameters)}
        return weights | optimizer_tensors("optimizer", self.optimizer)

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        for i, parameter in enumerate(self.parameters):
            parameter.copy_(tensors[f"lora.{i}"])
        load_optimizer("optimizer", self.optimizer, tensors)

    def weights(self) -> LoraWeights:
        """The effect LoRA."""
        return self.roles.weights(STUDENT)

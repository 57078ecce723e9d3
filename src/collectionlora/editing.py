"""Use a finished adapter: one effect or several, on photos of any size."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from collectionlora.adapters.recipe import Recipe, adapter_path, read_adapter
from collectionlora.adapters.roles import STUDENT, Roles
from collectionlora.backbones import load_backbone
from collectionlora.backbones.base import Backbone, Condition
from collectionlora.data import Photo, resize, to_images, to_photos, working_size
from collectionlora.errors import UserError
from collectionlora.prompting import compose
from collectionlora.sampling import Denoiser, noise_like, sample_few_steps


class Editor:
    """A base with one finished adapter over it, ready to edit."""

    def __init__(self, backbone: Backbone, roles: Roles, recipe: Recipe):
        self.backbone, self.roles, self.recipe = backbone, roles, recipe

    @classmethod
    def load(cls, collection: Path | str) -> "Editor":
        """From a collection folder or from the one file.

        Raises:
            UserError: no finished adapter there.
        """
        path = adapter_path(Path(collection))
        lora, recipe = read_adapter(path)
        backbone = load_backbone(recipe.base, recipe.model)
        roles = Roles(backbone.network, backbone.lora_targets, {STUDENT: lora.rank})
        try:
            roles.load(STUDENT, lora.weights)
        except ValueError as error:
            raise UserError(path, "", str(error), f"use an adapter of the base {recipe.base}") from None
        return cls(backbone, roles, recipe)

    def prompt(self, effects: Sequence[str]) -> str:
        """The student prompt of one effect, or of several applied one after the other.

        Raises:
            UserError: an effect that this adapter does not hold.
        """
        for name in effects:
            if name not in self.recipe.effects:
                known = ", ".join(self.recipe.effects)
                raise UserError("", "effect", f"{name!r} is not in this collection", f"choose from {known}")
        return compose([self.recipe.effects[name] for name in effects])

    @torch.no_grad()
    def edit(self, photo: Photo, effects: Sequence[str], seed: int = 0, steps: int | None = None) -> Photo:
        """One photo `[H, W, 3]` under an effect or several; the result has the photo's size."""
        height, width = photo.shape[:2]
        size = working_size(height, width, self.recipe.resolution, self.backbone.side_multiple)
        image = self.sample(to_images([resize(photo, size)]), [self.prompt(effects)], [seed], steps)
        return resize(to_photos(image)[0], (height, width))

    @torch.no_grad()
    def sample(
        self, images: Tensor, prompts: Sequence[str], seeds: Sequence[int], steps: int | None = None
    ) -> Tensor:
        """A batch of images in [0, 1], `[B, 3, H, W]`, each with its own prompt and seed."""
        source = self.backbone.encode_image(images)
        condition = Condition(self.backbone.encode_prompt(prompts, [images]), source)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        with self.roles.use(STUDENT):
            denoiser = Denoiser(self.backbone, condition)
            noise, num_steps = noise_like(source, generators), steps or self.recipe.steps
            latents = sample_few_steps(denoiser, noise, num_steps, generators, self.recipe.shift)
        return self.backbone.decode(latents)


def edit(
    collection: Path | str,
    photo: Photo,
    effects: str | Sequence[str],
    seed: int = 0,
    steps: int | None = None,
) -> Photo:
    """Edit one photo with a collection's adapter; for many photos make one `Editor`."""
    names = [effects] if isinstance(effects, str) else effects
    return Editor.load(collection).edit(photo, names, seed, steps)

"""Use a finished adapter: one effect or several, on photos of any size."""

import difflib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from numbers import Integral, Real
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from collectionlora.adapters.formats import LoraFile
from collectionlora.adapters.merged import Merged
from collectionlora.adapters.recipe import Recipe, adapter_path, read_adapter
from collectionlora.adapters.roles import STUDENT, Roles
from collectionlora.backbones import load_backbone
from collectionlora.backbones.base import Backbone, Condition, encode_condition
from collectionlora.backbones.quantization import describe
from collectionlora.pictures.photos import (
    Photo,
    Picture,
    chunks,
    resize,
    to_images,
    to_photo,
    to_photos,
)
from collectionlora.pictures.sizes import Size, WorkingSizes, check_size
from collectionlora.prompting.triggers import compose
from collectionlora.sampling import Denoiser, sample_student
from collectionlora.system.errors import UserError, quote

log = logging.getLogger(__name__)
MAX_SEED, MAX_STEPS = 2**64 - 1, 1000
STRIP = (0.0, 0.25, 0.5, 0.75, 1.0)


class Dial(Denoiser):
    """The student with a strength for each sample: every clean image that it sees is drawn to the photo.

    `x0 = photo + strength * (x0_effect - photo)`: velocities blended with that of the photo itself. It costs
    no further forward, and the student stays on its schedule.
    """

    def __init__(
        self,
        backbone: Backbone,
        condition: Condition,
        strengths: Sequence[float],
        after_step: Callable[[], None],
    ):
        super().__init__(backbone, condition)
        self.photo, self.after_step = condition.source.to(backbone.device), after_step
        self.strength = self.photo.new_tensor(strengths).view(-1, 1, 1, 1)

    def x0(self, x_sigma: Tensor, sigma: float | Tensor) -> Tensor:
        x0 = super().x0(x_sigma, sigma)
        self.after_step()
        return torch.lerp(self.photo, x0, self.strength)


def compose_prompt(recipe: Recipe, effects: Sequence[str], references: int = 0) -> str:
    """The student prompt of one effect, or of several applied one after the other.

    Args:
        references: how many reference images are given.

    Raises:
        UserError: no effect, one that the adapter does not hold, or another number of reference images than
            the effects were taught with.
    """
    if not effects:
        raise UserError("", "effect", "none is given", f"choose from {', '.join(recipe.effects)}")
    for name in effects:
        if name not in recipe.effects:
            within = [known for known in recipe.effects if name in known]
            nearest = within or difflib.get_close_matches(name, recipe.effects)
            meant, known = " or ".join(nearest), ", ".join(recipe.effects)
            hint = f"did you mean {meant}?" if nearest else f"choose from {known}"
            raise UserError("", "effect", f"{name!r} is not in this collection", hint)
    taught = sum(recipe.references.get(name, 0) for name in effects)
    if references != taught:
        names = " and ".join(effects)
        message = f"{names} was taught with {taught} reference images, {references} are given"
        hint = "give as many (on the command line by --reference FILE)" if taught else "leave them out"
        raise UserError("", "references", message, hint)
    return compose([recipe.effects[name] for name in effects])


def check_seed(seed: int) -> None:
    """Refuse a seed that no generator takes.

    Raises:
        UserError: it is no whole number, negative, or has more than 64 bits.
    """
    if not isinstance(seed, Integral) or not 0 <= seed <= MAX_SEED:
        raise UserError("", "seed", f"is {quote(seed)}", f"give a whole number from 0 to {MAX_SEED}")


@dataclass(frozen=True)
class EncodedEdit:
    """A photo of `size` (height, width) and what it shall become, as the network reads them."""

    condition: Condition
    size: tuple[int, int]


class Editor:
    """A base with one finished adapter over it, ready to edit; `Editor.load` opens one.

    Args:
        load_roles: loads the network with the adapter in the student's role; called once, when it is needed.
    """

    def __init__(self, backbone: Backbone, load_roles: Callable[[], Roles | Merged], recipe: Recipe):
        self.backbone, self.load_roles, self.recipe = backbone, load_roles, recipe

    @cached_property
    def roles(self) -> Roles | Merged:
        return self.load_roles()

    @classmethod
    def load(cls, collection: Path | str, quantization: str | None = None) -> "Editor":
        """From a collection folder or from the one file.

        Args:
            quantization: of the base, "none", "nf4" or "int8"; by default that which the adapter was
                distilled on. Another one is logged.

        Raises:
            UserError: no finished adapter there, or no such quantisation.
        """
        path = adapter_path(Path(collection))
        return cls.over(path, *read_adapter(path), quantization)

    @classmethod
    def over(cls, path: Path, lora: LoraFile, recipe: Recipe, quantization: str | None = None) -> "Editor":
        """From what `read_adapter` gave of `path`; else as `load`."""
        model = recipe.held_as(quantization)
        if model != recipe.model:
            places = describe(recipe.model.quantization), describe(model.quantization)
            log.warning("%s: was distilled on %s and is used on %s: pictures may differ", path, *places)
        backbone = load_backbone(recipe.base, model)

        def load_roles() -> Roles | Merged:
            base = backbone.network, backbone.lora_targets
            try:
                if model.quantization == "none":
                    return Merged(*base, STUDENT, lora.weights)
                roles = Roles(*base, {STUDENT: lora.rank})
                roles.load(STUDENT, lora.weights)
            except ValueError as error:
                raise UserError(path, "", str(error), f"use an adapter of the base {recipe.base}") from None
            return roles

        return cls(backbone, load_roles, recipe)

    def release_network(self) -> None:
        """Free the network, after the last picture of this editor."""
        self.__dict__.pop("roles", None)
        self.backbone.release_network()

    @property
    def effects(self) -> list[str]:
        """The names of its effects."""
        return list(self.recipe.effects)

    def __repr__(self) -> str:
        return f"<Editor over {self.recipe.base}, {len(self.effects)} effects: {', '.join(self.effects)}>"

    def prompt(self, effects: Sequence[str], references: int = 0) -> str:
        """The student prompt of one effect or of several; see `compose_prompt`."""
        return compose_prompt(self.recipe, effects, references)

    def fit(self, photo: Photo, size: Size | None = None) -> Tensor:
        """A photo `[H, W, 3]` as the network takes it: an image in [0, 1], `[1, 3, height, width]`.

        Args:
            size: see `edit`.

        Raises:
            UserError: a size that the base cannot work at.
        """
        if size is not None:
            self.check_size(size)
        if isinstance(size, tuple):
            width, height = size
            return to_images([resize(photo, (height, width))])
        return WorkingSizes(size or self.recipe.resolution, self.backbone.side_multiple).show(photo)

    def check_size(self, size: Size) -> None:
        """See `sizes.check_size`."""
        check_size(size, self.recipe.resolution, self.backbone.side_multiple)

    def edit(
        self,
        photo: Picture,
        effects: str | Sequence[str],
        seed: int = 0,
        steps: int | None = None,
        strength: float = 1.0,
        references: Sequence[Picture] = (),
        size: Size | None = None,
    ) -> Image.Image:
        """One photo under an effect, or under several in one prompt; the result has the photo's size.

        Args:
            photo: a path, a PIL image, or a uint8 array `[H, W, 3]`.
            seed: from 0 to `MAX_SEED`; the same seed gives the same picture.
            steps: forwards of the network; by default as many as the adapter was distilled for.
            strength: 0 is the photo, 1 the whole effect.
            references: the reference images that the effects were taught with, or others in their place.
            size: pixels that the network works with: 128 for about 128 x 128 in the photo's shape, or (width,
                height); multiples of the base's own step. By default the resolution that it was taught at.

        Raises:
            UserError: no photo, an effect or a number of references that this adapter does not hold, a seed,
                a strength or a size outside its range.
        """
        encoded = self.encode(photo, effects, references, size)
        return Image.fromarray(self.finish(encoded, seed, steps, strength))

    def encode(
        self,
        photo: Picture,
        effects: str | Sequence[str],
        references: Sequence[Picture] = (),
        size: Size | None = None,
    ) -> EncodedEdit:
        """What `edit` reads; it needs the encoders and not the network."""
        prompt = self.prompt([effects] if isinstance(effects, str) else effects, len(references))
        source, shown = to_photo(photo), [self.fit(to_photo(picture)) for picture in references]
        condition = encode_condition(self.backbone, [prompt], self.fit(source, size), shown)
        return EncodedEdit(condition, source.shape[:2])

    def finish(
        self, encoded: EncodedEdit, seed: int = 0, steps: int | None = None, strength: float = 1.0
    ) -> Photo:
        """The rest of `edit`."""
        image = self.backbone.decode(self.draw(encoded.condition, [seed], steps, [strength]))
        return resize(to_photos(image)[0], encoded.size)

    @torch.no_grad()
    def sample(
        self,
        images: Tensor,
        prompts: Sequence[str],
        seeds: Sequence[int],
        steps: int | None = None,
        strengths: Sequence[float] | None = None,
        after_step: Callable[[int, int], None] = lambda done, total: None,
        references: Sequence[Tensor] = (),
    ) -> Tensor:
        """A batch of images in [0, 1], `[B, 3, H, W]`, each with its own prompt, seed and strength.

        Args:
            strengths: in [0, 1]; by default 1, the whole effect.
            after_step: called after each step of the sampler with the number of steps done, and that of all.
                A batch that the base takes in parts has the steps of each. What it raises stops the work.
            references: images shown beside every photo, each `[1, 3, height, width]` in [0, 1].

        Raises:
            UserError: a strength outside [0, 1], or a seed outside [0, `MAX_SEED`].
        """
        for seed in seeds:
            check_seed(seed)
        strengths = strengths or [1.0] * len(images)
        check_strengths(strengths)
        condition = encode_condition(self.backbone, prompts, images, references)
        parts = list(chunks(len(images), self.backbone.max_batch(condition)))
        done, total = count(1), len(parts) * (self.recipe.steps if steps is None else steps)

        def tell() -> None:
            after_step(next(done), total)

        with self.roles.frozen(STUDENT):
            latents = [
                self.draw(condition[part], seeds[part], steps, strengths[part], tell) for part in parts
            ]
        return self.backbone.decode(torch.cat(latents))

    @torch.no_grad()
    def draw(
        self,
        condition: Condition,
        seeds: Sequence[int],
        steps: int | None = None,
        strengths: Sequence[float] | None = None,
        after_step: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """The latents of what `sample` makes, from what is encoded, all in one forward."""
        for seed in seeds:
            check_seed(seed)
        strengths = strengths or [1.0] * len(seeds)
        check_strengths(strengths)
        check_steps(steps)
        num_steps = self.recipe.steps if steps is None else steps
        with self.roles.frozen(STUDENT):
            denoiser = Dial(self.backbone, condition, strengths, after_step)
            recipe = self.recipe
            return sample_student(denoiser, condition.source, seeds, num_steps, recipe.shift, recipe.sampler)


def check_steps(steps: int | None) -> None:
    """Refuse what is no number of forwards; None is the adapter's own.

    Raises:
        UserError: it is no whole number of 1 to `MAX_STEPS`.
    """
    if steps is not None and (not isinstance(steps, Integral) or not 1 <= steps <= MAX_STEPS):
        raise UserError("", "steps", f"{steps!r} is no number of steps", f"choose 1 to {MAX_STEPS}")


def check_strengths(strengths: Sequence[float]) -> None:
    """Refuse a strength that is no number in [0, 1].

    Raises:
        UserError: it is none.
    """
    for strength in strengths:
        if not isinstance(strength, Real) or not 0 <= strength <= 1:
            raise UserError("", "strength", f"is {strength!r}", "give a number from 0 to 1")


def edit(
    collection: Path | str,
    photo: Picture,
    effects: str | Sequence[str],
    seed: int = 0,
    steps: int | None = None,
    strength: float = 1.0,
    references: Sequence[Picture] = (),
    size: Size | None = None,
    quantization: str | None = None,
) -> Image.Image:
    """Edit one photo with a collection's adapter, as `Editor.edit`; for many photos make one `Editor`.

    The encoders are freed before the network is loaded. An `Editor` keeps both.
    """
    editor = Editor.load(collection, quantization)
    encoded = editor.encode(photo, effects, references, size)
    editor.backbone.release_encoders()
    return Image.fromarray(editor.finish(encoded, seed, steps, strength))


def strength_strip(
    editor: Editor,
    photo: Photo,
    effect: str,
    seed: int = 0,
    steps: int | None = None,
    references: Sequence[Tensor] = (),
) -> list[Photo]:
    """A photo under an effect at the strengths of `STRIP`, made as one batch; working size."""
    count = len(STRIP)
    images = editor.fit(photo).expand(count, -1, -1, -1)
    prompts = [editor.prompt([effect], len(references))] * count
    return to_photos(editor.sample(images, prompts, [seed] * count, steps, STRIP, references=references))

"""Use a finished adapter: one effect or several, on photos of any size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from collectionlora.adapters.recipe import Recipe, adapter_path, read_adapter, read_recipe
from collectionlora.adapters.roles import STUDENT, Roles
from collectionlora.backbones import load_backbone
from collectionlora.backbones.base import Backbone, Condition, encode_condition
from collectionlora.pictures.destinations import plan_jobs, select_jobs
from collectionlora.pictures.photos import Photo, fit, read_photo, resize, to_photos, write_photo
from collectionlora.prompting.triggers import compose
from collectionlora.sampling import Denoiser, noise_like, sample_few_steps
from collectionlora.system.errors import UserError, quote
from collectionlora.system.progress import Progress, ignore

ALL = "all"  # in place of an effect's name: every effect of the collection
MAX_SEED = 2**64 - 1
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
        self.photo, self.after_step = condition.source, after_step
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
        UserError: an effect that the adapter does not hold, or another number of reference images than the
            effects were taught with.
    """
    for name in effects:
        if name not in recipe.effects:
            known = ", ".join(recipe.effects)
            raise UserError("", "effect", f"{name!r} is not in this collection", f"choose from {known}")
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
        UserError: it is negative, or has more than 64 bits.
    """
    if not 0 <= seed <= MAX_SEED:
        raise UserError("", "seed", f"is {quote(seed)}", f"give a whole number from 0 to {MAX_SEED}")


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
        ranks = {STUDENT: lora.rank}
        roles = Roles(backbone.network, backbone.lora_targets, ranks, fuse=backbone.fuses_lora)
        try:
            roles.load(STUDENT, lora.weights)
        except ValueError as error:
            raise UserError(path, "", str(error), f"use an adapter of the base {recipe.base}") from None
        return cls(backbone, roles, recipe)

    def prompt(self, effects: Sequence[str], references: int = 0) -> str:
        """The student prompt of one effect or of several; see `compose_prompt`."""
        return compose_prompt(self.recipe, effects, references)

    def fit(self, photo: Photo) -> Tensor:
        """A photo `[H, W, 3]` as the network takes it: an image in [0, 1], `[1, 3, height, width]`."""
        return fit(photo, self.recipe.resolution, self.backbone.side_multiple)

    def edit(
        self,
        photo: Photo,
        effects: Sequence[str],
        seed: int = 0,
        steps: int | None = None,
        strength: float = 1.0,
        references: Sequence[Photo] = (),
    ) -> Photo:
        """One photo `[H, W, 3]` under an effect or several; the result has the photo's size.

        Args:
            strength: 0 is the photo, 1 the whole effect.
            references: the reference images that the effects were taught with, or others in their place.

        Raises:
            UserError: an effect or a number of references that this adapter does not hold.
        """
        prompt, shown = self.prompt(effects, len(references)), [self.fit(image) for image in references]
        image = self.sample(self.fit(photo), [prompt], [seed], steps, [strength], references=shown)
        return resize(to_photos(image)[0], photo.shape[:2])

    @torch.no_grad()
    def sample(
        self,
        images: Tensor,
        prompts: Sequence[str],
        seeds: Sequence[int],
        steps: int | None = None,
        strengths: Sequence[float] | None = None,
        after_step: Callable[[], None] = lambda: None,
        references: Sequence[Tensor] = (),
    ) -> Tensor:
        """A batch of images in [0, 1], `[B, 3, H, W]`, each with its own prompt, seed and strength.

        Args:
            strengths: in [0, 1]; by default 1, the whole effect.
            after_step: called after each step of the sampler; what it raises stops the work.
            references: images shown beside every photo, each `[1, 3, height, width]` in [0, 1].

        Raises:
            UserError: a strength outside [0, 1], or a seed outside [0, `MAX_SEED`].
        """
        for seed in seeds:
            check_seed(seed)
        strengths = strengths or [1.0] * len(images)
        for strength in strengths:
            if not 0 <= strength <= 1:
                raise UserError("", "strength", f"is {strength}", "give a number from 0 to 1")
        condition = encode_condition(self.backbone, prompts, images, references)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        with self.roles.frozen(STUDENT):
            denoiser = Dial(self.backbone, condition, strengths, after_step)
            noise, num_steps = noise_like(condition.source, generators), steps or self.recipe.steps
            latents = sample_few_steps(denoiser, noise, num_steps, generators, self.recipe.shift)
        return self.backbone.decode(latents)


def edit(
    collection: Path | str,
    photo: Photo,
    effects: str | Sequence[str],
    seed: int = 0,
    steps: int | None = None,
    strength: float = 1.0,
    references: Sequence[Photo] = (),
) -> Photo:
    """Edit one photo with a collection's adapter; for many photos make one `Editor`."""
    names = [effects] if isinstance(effects, str) else effects
    return Editor.load(collection).edit(photo, names, seed, steps, strength, references)


@dataclass(frozen=True)
class EditedFiles:
    """The files that `edit_files` wrote, those it left as they were, and the photos that cannot be edited."""

    written: list[Path]
    skipped: list[Path]
    failed: list[UserError]


def edit_files(
    collection: Path | str,
    photo: Path,
    effect: str,
    then: Sequence[str] = (),
    out: Path | None = None,
    overwrite: bool = False,
    seed: int = 0,
    steps: int | None = None,
    strength: float = 1.0,
    references: Sequence[Path] = (),
    progress: Progress = ignore,
) -> EditedFiles:
    """Edit a photo, or all photos of a folder; everything is checked before the model is loaded.

    Args:
        effect: an effect's name, or "all" for a result of each effect.
        then: further effects, applied after the first.
        out: a file or a folder; by default the result lies beside the photo. In a folder it is named after
            the photo and the effects.
        overwrite: replace results that exist. A file that this edit reads is never replaced.

    Raises:
        UserError: an effect that the adapter does not hold, no place for the results, or the only photo
            cannot be read.
    """
    check_seed(seed)
    folder = Path(collection)
    names = list(read_recipe(adapter_path(folder)).effects) if effect == ALL else [effect]
    jobs = plan_jobs(photo, [(name, *then) for name in names], out)
    recipe = read_recipe(adapter_path(folder))
    for name in names:
        compose_prompt(recipe, [name, *then], len(references))
    chosen = select_jobs(jobs, references, overwrite)
    shown = [read_photo(path) for path in references]
    edited = EditedFiles([], [job.out for job in jobs if job not in chosen], [])
    if not chosen:
        return edited
    editor = Editor.load(collection)
    for index, job in enumerate(chosen):
        try:
            made = editor.edit(read_photo(job.photo), job.effects, seed, steps, strength, shown)
            write_photo(job.out, made)
            edited.written.append(job.out)
        except UserError as fault:
            if len(jobs) == 1:
                raise
            edited.failed.append(fault)
        progress("edit", index + 1, len(chosen), {})
    return edited


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

"""The ways to make an effect that a benchmark compares, each a `Method`.

Names as in metrics.json: `source`, `teacher` (many guided steps), `teacher-8` (the same LoRA in the student's
few steps, undistilled), `student` (the adapter's own number of steps), `student-4`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from collectionlora.adapters.recipe import read_adapter
from collectionlora.adapters.roles import BASE, STUDENT, TEACHER
from collectionlora.editing import STRIP, Editor, compose_prompt
from collectionlora.effectbench.bench import GENERAL, Method
from collectionlora.effectbench.encodings import Encodings
from collectionlora.pictures.photos import Photo, to_images, to_photos
from collectionlora.runs.session import Session
from collectionlora.sampling import Denoiser, noise_of_seeds, sample_many_steps, sample_student
from collectionlora.system.errors import UserError

SOURCE = Method("source", 0, lambda effect, images, seeds: images, lambda images, prompts, seeds: images)

# From a denoiser, the starting noise and one generator for each image to latents.
Sample = Callable[[Denoiser, Tensor, Sequence[int]], Tensor]


def student_method(
    session: Session, encodings: Encodings, path: Path, name: str = STUDENT, steps: int | None = None
) -> Method:
    """A finished adapter in the session's student role, without guidance.

    Args:
        name: of the adapter.
        steps: by default the adapter's own.

    Raises:
        UserError: no adapter there, or one of another base.
    """
    lora, recipe = read_adapter(path)
    if recipe.base != session.collection.manifest.base:
        message = f"is an adapter of {recipe.base}"
        raise UserError(path, "", message, f"bench it in a collection of {recipe.base}")
    session.ranks[STUDENT] = max(session.ranks[STUDENT], lora.rank)

    def run(
        effect: str,
        images: Tensor,
        texts: Sequence[str],
        seeds: Sequence[int],
        strengths: Sequence[float] | None = None,
    ) -> Tensor:
        strengths = strengths or [1.0] * len(seeds)
        session.roles.load(STUDENT, lora.weights)
        editor = Editor(session.backbone, lambda: session.roles, recipe)
        with editor.roles.frozen(STUDENT):
            latents = [
                editor.draw(condition, seeds[part], steps, strengths[part])
                for part, condition in encodings.in_parts(effect, texts, images)
            ]
        return session.backbone.decode(torch.cat(latents))

    def read(effect: str, instruction: str) -> list[str]:
        return [instruction or compose_prompt(recipe, [effect], len(encodings.references(effect)))]

    def sample(effect: str, images: Tensor, seeds: Sequence[int]) -> Tensor:
        return run(effect, images, read(effect, "") * len(images), seeds)

    def strip(effect: str, photo: Photo, seed: int) -> list[Photo]:
        count = len(STRIP)
        images = to_images([photo]).expand(count, -1, -1, -1)
        return to_photos(run(effect, images, read(effect, "") * count, [seed] * count, STRIP))

    name = name if steps in (None, recipe.steps) else f"{name}-{steps}"
    size = path.stat().st_size
    return Method(name, steps or recipe.steps, sample, partial(run, GENERAL), size, strip, read)


def teacher_method(session: Session, encodings: Encodings) -> Method:
    """Each effect's own LoRA in its many guided steps."""
    steps = session.settings.targets.steps

    def sample(denoiser: Denoiser, source: Tensor, seeds: Sequence[int]) -> Tensor:
        return sample_many_steps(denoiser, noise_of_seeds(source, seeds)[0], steps)

    return _guided_method(session, encodings, TEACHER, steps, sample)


def undistilled_method(session: Session, encodings: Encodings, steps: int) -> Method:
    """Each effect's own LoRA, still guided, in the student's few steps: what distillation has to beat."""
    sampling = session.settings.sampling

    def sample(denoiser: Denoiser, source: Tensor, seeds: Sequence[int]) -> Tensor:
        return sample_student(denoiser, source, seeds, steps, sampling.shift, sampling.sampler)

    return _guided_method(session, encodings, f"{TEACHER}-{steps}", steps, sample)


def _guided_method(session: Session, encodings: Encodings, name: str, steps: int, sample: Sample) -> Method:
    """The effects' own LoRAs, and the bare base for ordinary instructions, under one sampler."""
    backbone, guidance_scale = session.backbone, session.settings.targets.guidance_scale
    prompts = {e.name: e.teacher_prompt for e in session.collection.effects}

    @torch.no_grad()
    def run(effect: str, images: Tensor, texts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        latents = []
        uncond = encodings.in_parts(effect, [""] * len(texts), images)
        with session.teachers.use(BASE if effect == GENERAL else effect):
            for (part, cond), (_, empty) in zip(
                encodings.in_parts(effect, texts, images), uncond, strict=True
            ):
                denoiser = Denoiser(backbone, cond, empty, guidance_scale)
                latents.append(sample(denoiser, cond.source, seeds[part]))
        return backbone.decode(torch.cat(latents))

    def effect(name: str, images: Tensor, seeds: Sequence[int]) -> Tensor:
        return run(name, images, [prompts[name]] * len(images), seeds)

    def read(effect: str, instruction: str) -> list[str]:
        return [instruction or prompts[effect], ""]

    branches = 1 if guidance_scale == 1 else 2
    return Method(name, branches * steps, effect, partial(run, GENERAL), reads=read)

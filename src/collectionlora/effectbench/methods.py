"""The ways to make an effect that a benchmark compares, each a `Method`.

Names as in metrics.json: `source`, `teacher` (many guided steps), `teacher-8` (the same LoRA in the student's
few steps, undistilled), `student` (the adapter's own number of steps), `student-4`.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from collectionlora.adapters.roles import BASE, STUDENT, TEACHER
from collectionlora.editing import STRIP, Editor
from collectionlora.effectbench.bench import GENERAL, Method
from collectionlora.effectbench.encodings import Encodings
from collectionlora.pictures.photos import Photo, to_photos
from collectionlora.runs.session import Session
from collectionlora.sampling import Denoiser, Generators, noise_like, sample_few_steps, sample_many_steps

SOURCE = Method("source", 0, lambda effect, images, seeds: images, lambda images, prompts, seeds: images)

# From a denoiser, the starting noise and one generator for each image to latents.
Sample = Callable[[Denoiser, Tensor, Generators], Tensor]


def student_method(editor: Editor, steps: int, encodings: Encodings, name: str = STUDENT) -> Method:
    """A finished adapter at `steps`, without guidance."""
    backbone = editor.backbone

    def run(
        effect: str,
        images: Tensor,
        texts: Sequence[str],
        seeds: Sequence[int],
        strengths: Sequence[float] | None = None,
    ) -> Tensor:
        strengths = strengths or [1.0] * len(seeds)
        with editor.roles.frozen(STUDENT):
            latents = [
                editor.draw(condition, seeds[part], steps, strengths[part])
                for part, condition in encodings.in_parts(effect, texts, images)
            ]
        return backbone.decode(torch.cat(latents))

    def prompt(effect: str) -> str:
        return editor.prompt([effect], len(encodings.references(effect)))

    def sample(effect: str, images: Tensor, seeds: Sequence[int]) -> Tensor:
        return run(effect, images, [prompt(effect)] * len(images), seeds)

    def strip(effect: str, photo: Photo, seed: int) -> list[Photo]:
        count, image = len(STRIP), editor.fit(photo)
        images = image.expand(count, -1, -1, -1)
        return to_photos(run(effect, images, [prompt(effect)] * count, [seed] * count, STRIP))

    name = name if steps == editor.recipe.steps else f"{name}-{steps}"
    return Method(name, steps, sample, partial(run, GENERAL), strip=strip)


def teacher_method(session: Session, encodings: Encodings) -> Method:
    """Each effect's own LoRA in its many guided steps."""
    steps = session.settings.targets.steps

    def sample(denoiser: Denoiser, noise: Tensor, _generators: Generators) -> Tensor:
        return sample_many_steps(denoiser, noise, steps)

    return _guided_method(session, encodings, TEACHER, steps, sample)


def undistilled_method(session: Session, encodings: Encodings, steps: int) -> Method:
    """Each effect's own LoRA, still guided, in the student's few steps: what distillation has to beat."""
    shift = session.settings.sampling.shift

    def sample(denoiser: Denoiser, noise: Tensor, generators: Generators) -> Tensor:
        return sample_few_steps(denoiser, noise, steps, generators, shift)

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
                generators = [torch.Generator().manual_seed(seed) for seed in seeds[part]]
                denoiser = Denoiser(backbone, cond, empty, guidance_scale)
                latents.append(sample(denoiser, noise_like(cond.source, generators), generators))
        return backbone.decode(torch.cat(latents))

    def effect(name: str, images: Tensor, seeds: Sequence[int]) -> Tensor:
        return run(name, images, [prompts[name]] * len(images), seeds)

    branches = 1 if guidance_scale == 1 else 2
    return Method(name, branches * steps, effect, partial(run, GENERAL))

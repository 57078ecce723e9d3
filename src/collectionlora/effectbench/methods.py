"""The ways to make an effect that a benchmark compares, each a `Method`.

Names as in metrics.json: `source`, `teacher` (many guided steps), `teacher-8` (the same LoRA in the student's
few steps, undistilled), `student` (the adapter's own number of steps), `student-4`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from collectionlora.adapters.roles import BASE, STUDENT, TEACHER
from collectionlora.backbones.base import encode_condition, repeat_references
from collectionlora.editing import Editor, strength_strip
from collectionlora.effectbench.bench import Method
from collectionlora.pictures.photos import Photo
from collectionlora.runs.session import Session
from collectionlora.sampling import Denoiser, Generators, noise_like, sample_few_steps, sample_many_steps

SOURCE = Method("source", 0, lambda effect, images, seeds: images, lambda images, prompts, seeds: images)

# From a denoiser, the starting noise and one generator for each image to latents.
Sample = Callable[[Denoiser, Tensor, Generators], Tensor]


def student_method(
    editor: Editor, steps: int, references: Callable[[str], Sequence[Tensor]], name: str = STUDENT
) -> Method:
    """A finished adapter at `steps`, without guidance; `references` by effect."""

    def sample(effect: str, images: Tensor, seeds: Sequence[int]) -> Tensor:
        shown = references(effect)
        prompt = editor.prompt([effect], len(shown))
        return editor.sample(images, [prompt] * len(images), seeds, steps, references=shown)

    def general(images: Tensor, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        return editor.sample(images, prompts, seeds, steps)

    def strip(effect: str, photo: Photo, seed: int) -> list[Photo]:
        return strength_strip(editor, photo, effect, seed, steps, references(effect))

    name = name if steps == editor.recipe.steps else f"{name}-{steps}"
    return Method(name, steps, sample, general, strip=strip)


def teacher_method(session: Session) -> Method:
    """Each effect's own LoRA in its many guided steps."""
    steps = session.settings.targets.steps

    def sample(denoiser: Denoiser, noise: Tensor, _generators: Generators) -> Tensor:
        return sample_many_steps(denoiser, noise, steps)

    return _guided_method(session, TEACHER, steps, sample)


def undistilled_method(session: Session, steps: int) -> Method:
    """Each effect's own LoRA, still guided, in the student's few steps: what distillation has to beat."""
    shift = session.settings.sampling.shift

    def sample(denoiser: Denoiser, noise: Tensor, generators: Generators) -> Tensor:
        return sample_few_steps(denoiser, noise, steps, generators, shift)

    return _guided_method(session, f"{TEACHER}-{steps}", steps, sample)


def _guided_method(session: Session, name: str, steps: int, sample: Sample) -> Method:
    """The effects' own LoRAs, and the bare base for ordinary instructions, under one sampler."""
    backbone, guidance_scale = session.backbone, session.settings.targets.guidance_scale
    prompts = {e.name: e.teacher_prompt for e in session.collection.effects}

    @torch.no_grad()
    def run(
        images: Tensor, texts: Sequence[str], seeds: Sequence[int], references: Sequence[Tensor] = ()
    ) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        cond = encode_condition(backbone, list(texts), images, references)
        seen = [images, *repeat_references(references, len(images))]
        uncond = cond.with_prompt(backbone.encode_prompt([""] * len(texts), seen))
        denoiser = Denoiser(backbone, cond, uncond, guidance_scale)
        return backbone.decode(sample(denoiser, noise_like(cond.source, generators), generators))

    def effect(name: str, images: Tensor, seeds: Sequence[int]) -> Tensor:
        with session.teachers.use(name):
            return run(images, [prompts[name]] * len(images), seeds, session.references(name))

    def general(images: Tensor, texts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        with session.teachers.use(BASE):
            return run(images, texts, seeds)

    branches = 1 if guidance_scale == 1 else 2
    return Method(name, branches * steps, effect, general)

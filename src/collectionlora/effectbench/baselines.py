"""What one distilled LoRA is compared with: stacking, one LoRA by flow matching, and merges.

All sample in the student's few steps without guidance, so all need the same second ingredient: an
acceleration LoRA, made by distilling the bare base into few steps with the student's own method, data and
updates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial

import torch
from torch import Tensor

from collectionlora.adapters.merging import MERGES, add, merge
from collectionlora.adapters.roles import LoraWeights
from collectionlora.backbones.base import free_memory
from collectionlora.collection import Collection
from collectionlora.config import Settings, replace_settings
from collectionlora.effectbench.bench import GENERAL, Method
from collectionlora.effectbench.encodings import Encodings
from collectionlora.runs.inputs import distillation_inputs
from collectionlora.runs.run import open_run
from collectionlora.runs.session import Session
from collectionlora.sampling import Denoiser, sample_student
from collectionlora.system.progress import Progress

STACK, FLOW_MATCHING = "stack", "flow-matching"
MERGE_METHODS = tuple(f"merge-{how}" for how in MERGES)
BASELINES = (STACK, FLOW_MATCHING, *MERGE_METHODS)


def acceleration_settings(settings: Settings) -> Settings:
    """The student's, with the general stream alone."""
    return replace_settings(settings, distill={"effect_ratio": 0})


def flow_matching_settings(settings: Settings) -> Settings:
    """As many updates as the student has, all of them flow matching on the targets of all effects."""
    match = {"loss": "flow", "updates": settings.match.updates + settings.distill.student_updates}
    return replace_settings(settings, match=match, distill={"effect_ratio": 1, "student_updates": 0})


def train_baseline(collection: Collection, settings: Settings, name: str, progress: Progress) -> LoraWeights:
    """The student of a run under other settings, kept in `bench/NAME`; resumes."""
    with open_run(collection.folder / "bench" / name) as opened:
        session = Session(collection, settings, with_critics=True)
        run = session.distillation(progress)
        inputs = distillation_inputs(collection)
        opened.train(run, settings, session.facts(), collection, inputs, partial(progress, name))
        weights = run.student_weights()
    del session, run
    free_memory()  # its base: the bench is about to load one
    return weights


class Baselines:
    """The LoRAs of the baselines over one collection; what is trained is trained when first needed.

    Args:
        session: its teacher slot has room for a teacher or student and the acceleration LoRA on top.
    """

    def __init__(self, session: Session, encodings: Encodings, progress: Progress):
        self.session, self.encodings, self.progress = session, encodings, progress
        self.sums: dict[str, list[LoraWeights]] = {}  # by METHOD/EFFECT, what is added up

    @cached_property
    def acceleration(self) -> LoraWeights:
        """The bare base in few steps: the method with the general stream alone."""
        return self._train(acceleration_settings(self.session.settings), "acceleration")

    def _train(self, settings: Settings, name: str) -> LoraWeights:
        return train_baseline(self.session.collection, settings, name, self.progress)

    def method(self, name: str) -> Method:
        """One of `BASELINES`; its size is that of its LoRAs in float32, merges and sums as one."""
        prompts = {e.name: e.teacher_prompt for e in self.session.collection.effects}
        if name == STACK:
            teachers = self.session.teacher_pairs
            method = self._few_steps(name, {e: [lora] for e, lora in teachers.items()}, [], prompts)
            sizes = [num_bytes(lora) for lora in (*teachers.values(), self.acceleration)]
            return replace(method, num_bytes=sum(sizes))
        if name == FLOW_MATCHING:
            one = self._train(flow_matching_settings(self.session.settings), FLOW_MATCHING)
            return self._few_steps(name, {effect: [one] for effect in prompts}, [one], self.session.prompts)
        rank = self.session.settings.student.rank
        merged = merge(list(self.session.teacher_pairs.values()), name.removeprefix("merge-"), rank)
        return self._few_steps(name, {effect: [merged] for effect in prompts}, [merged], prompts)

    def _few_steps(
        self,
        name: str,
        loras: Mapping[str, Sequence[LoraWeights]],
        general: Sequence[LoraWeights],
        prompts: Mapping[str, str],
    ) -> Method:
        """LoRAs by effect, each with the acceleration LoRA on top, in the student's steps."""
        settings, backbone = self.session.settings, self.session.backbone
        sampling = settings.sampling
        for effect, parts in {**loras, GENERAL: general}.items():
            self.sums[f"{name}/{effect}"] = [*parts, self.acceleration]

        @torch.no_grad()
        def run(effect: str, images: Tensor, texts: Sequence[str], seeds: Sequence[int]) -> Tensor:
            latents, key, library = [], f"{name}/{effect}", self.session.teachers
            library.teachers[key] = add(self.sums[key])
            with library.use(key):
                for part, condition in self.encodings.in_parts(effect, texts, images):
                    denoiser = Denoiser(backbone, condition)
                    source, own = condition.source, seeds[part]
                    latents.append(
                        sample_student(
                            denoiser, source, own, sampling.steps, sampling.shift, sampling.sampler
                        )
                    )
            del library.teachers[key]
            return backbone.decode(torch.cat(latents))

        def sample(effect: str, images: Tensor, seeds: Sequence[int]) -> Tensor:
            return run(effect, images, [prompts[effect]] * len(images), seeds)

        def read(effect: str, instruction: str) -> list[str]:
            return [instruction or prompts[effect]]

        size = sum(num_bytes(lora) for lora in self.sums[f"{name}/{GENERAL}"])
        return Method(name, sampling.steps, sample, partial(run, GENERAL), size, reads=read)


def num_bytes(lora: LoraWeights) -> int:
    """The size of a LoRA's tensors."""
    return sum(factor.nbytes for pair in lora.values() for factor in pair)

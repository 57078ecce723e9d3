"""`prompts.json`: the student prompt of every effect, who wrote it, and what it was written from.

The manifest's prompt comes first, then one that a vision-language model wrote, then that of the adapter which
`match.start` names, then trigger + teacher prompt.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field

from collectionlora.adapters.recipe import read_recipe, start_file
from collectionlora.backbones.base import Backbone
from collectionlora.cache import cache_path, effect_key
from collectionlora.collection import PROMPTS, Collection, Effect
from collectionlora.config import Settings
from collectionlora.pictures.buckets import find_images
from collectionlora.pictures.pairs import read_pair
from collectionlora.pictures.photos import Photo, to_photos
from collectionlora.prompting.rewriting import request, rewrite
from collectionlora.prompting.triggers import add_trigger
from collectionlora.prompting.vlm import Vlm
from collectionlora.system.files import fingerprint, keep_earlier, read_models, read_tensors, write_json

MANIFEST_WRITER, START_WRITER, PLAIN_WRITER = "manifest", "match.start", "teacher prompt"
NO_PAIRS = "no image pairs"
NUM_PAIRS = 2


class Asked(BaseModel):
    """A request to a model and what came back; `request` is the fingerprint of all that was asked with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    request: str
    host: str
    tokens: int
    answer: str


class StudentPrompt(BaseModel):
    """An effect's student prompt; `written_by` is a model, "teacher prompt", "match.start" or "manifest"."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    student_prompt: str
    written_by: str
    teacher_prompt: str
    asked: Asked | None = None
    note: str = Field("", exclude=True)  # why the model did not write it this time


@dataclass(frozen=True)
class Pairs:
    """Image pairs of an effect: a fingerprint, their number, and how to read them, source before target."""

    key: str
    count: int
    read: Callable[[], list[Photo]]


class PromptWriter:
    """Writes and keeps the student prompts of one collection, with a model's help if there is one."""

    def __init__(
        self, collection: Collection, backbone: Backbone, settings: Settings, vlm: Vlm | None = None
    ):
        self.collection, self.backbone, self.settings, self.vlm = collection, backbone, settings, vlm
        self.path = collection.folder / PROMPTS
        self.kept = read_kept(self.path)
        self.replaced = False  # whether a model's answer is no longer in the file; one copy has all of them

    @cached_property
    def trained(self) -> Mapping[str, str]:
        """The prompts of the adapter that the student begins as; its file may go when all are kept here."""
        start = start_file(self.collection, self.settings)
        return read_recipe(start).effects if start else {}

    def write(self, effect: Effect) -> StudentPrompt:
        """The student prompt of an effect; a new one is in the file when this returns.

        Raises:
            UserError: see `propose`.
        """
        prompt = self.propose(effect)
        self.save()
        return prompt if effect.student_prompt else self.kept[effect.name]

    def save(self) -> None:
        """Write the file, if there is something new; keep the earlier one if a model's answer is replaced."""
        before = read_kept(self.path)
        for name, entry in before.items():  # another command may have asked a model meanwhile
            mine = self.kept.get(name)
            if entry.asked and mine and not mine.asked and mine.teacher_prompt == entry.teacher_prompt:
                self.kept[name] = entry
        if self.kept == before:
            return
        replaces = any(entry.asked and entry != self.kept.get(name) for name, entry in before.items())
        with keep_earlier(self.path) if replaces and not self.replaced else nullcontext():
            write_json(self.path, {name: entry.model_dump() for name, entry in self.kept.items()})
        self.replaced |= replaces

    def propose(self, effect: Effect) -> StudentPrompt:
        """The student prompt of an effect, kept for the prompts after it and for `save`.

        Raises:
            UserError: the model fails, or image pairs cannot be read.
        """
        if effect.student_prompt:
            return StudentPrompt(
                student_prompt=effect.student_prompt,
                written_by=MANIFEST_WRITER,
                teacher_prompt=effect.teacher_prompt,
            )
        kept = self.kept.get(effect.name)
        if kept and kept.teacher_prompt != effect.teacher_prompt:
            kept = None
        if self.vlm and effect.name not in self.trained:  # the adapter would not know a rewritten one
            new = self._ask(effect, kept, self.vlm)
        else:
            new = kept or self._plain(effect)
        self.kept[effect.name] = new
        return new

    def _ask(self, effect: Effect, kept: StudentPrompt | None, vlm: Vlm) -> StudentPrompt:
        """The model's prompt, or what there was before with a note."""
        pairs = find_pairs(self.collection, effect, self.backbone, self.settings)
        if pairs is None:
            note = f"{NO_PAIRS}: fill {self.collection.pairs_folder(effect)}, or make targets first"
            return (kept or self._plain(effect)).model_copy(update={"note": note})
        text = request(effect.teacher_prompt, pairs.count)
        key = fingerprint(vlm.key, text, vlm.settings.image_side, pairs.key)
        if kept and kept.asked and kept.asked.request == key:
            return kept
        rewritten = rewrite(vlm, pairs.read(), effect.teacher_prompt)
        if rewritten.fault:
            note = f"{vlm.name}'s answer {rewritten.fault}: {rewritten.answer[:80]!r}"
            return (kept or self._plain(effect)).model_copy(update={"note": note})
        asked = Asked(request=key, host=vlm.host, tokens=rewritten.tokens, answer=rewritten.answer)
        prompt = self._with_trigger(effect, rewritten.description)
        return StudentPrompt(
            student_prompt=prompt, written_by=vlm.name, teacher_prompt=effect.teacher_prompt, asked=asked
        )

    def _plain(self, effect: Effect) -> StudentPrompt:
        trained = self.trained.get(effect.name)
        return StudentPrompt(
            student_prompt=trained or self._with_trigger(effect, effect.teacher_prompt),
            written_by=START_WRITER if trained else PLAIN_WRITER,
            teacher_prompt=effect.teacher_prompt,
        )

    def _with_trigger(self, effect: Effect, description: str) -> str:
        others = [e for e in self.collection.effects if e.name != effect.name]
        prompts = [
            e.student_prompt or self.kept[e.name].student_prompt
            for e in others
            if e.student_prompt or e.name in self.kept
        ]
        return add_trigger(self.backbone.encode_prompt, effect.name, description, prompts)


def read_kept(path: Path) -> dict[str, StudentPrompt]:
    """The prompts of the file by effect; none if there is no file.

    Raises:
        UserError: the file is damaged.
    """
    return read_models(path, StudentPrompt, "remove the file: it is written anew")


def known_prompts(collection: Collection) -> dict[str, str]:
    """The student prompts that the manifest states or an earlier run has written, by effect.

    Raises:
        UserError: the file of written prompts is damaged.
    """
    kept = read_kept(collection.folder / PROMPTS)
    prompts = {name: one.student_prompt for name, one in kept.items()}
    stated = {effect.name: effect.student_prompt or prompts.get(effect.name) for effect in collection.effects}
    return {name: prompt for name, prompt in stated.items() if prompt}


def find_pairs(
    collection: Collection, effect: Effect, backbone: Backbone, settings: Settings
) -> Pairs | None:
    """An effect's first image pairs, of its folder or else of its cached targets; None if there are none.

    Raises:
        UserError: the folder of pairs or of photos is wrong.
    """
    if collection.pairs_folder(effect).is_dir():
        paths = collection.pair_paths(effect)[:NUM_PAIRS]
        key = fingerprint(*chain.from_iterable(paths))
        return Pairs(key, len(paths), lambda: [photo for pair in paths for photo in read_pair(*pair)])
    if not collection.teacher_path(effect).exists():
        return None
    key = effect_key(collection, effect, settings)
    cached = cache_path(collection, effect.name, key)
    found = read_tensors(cached)
    if found is None:
        return None
    sources, targets = (find_images(name, found[0]) for name in ("sources", "targets"))
    count = min(NUM_PAIRS, len(sources))

    def read() -> list[Photo]:
        both = [latents for i in range(count) for latents in (sources[i], targets[i][0])]
        with torch.no_grad():
            return [to_photos(backbone.decode(latents[None]))[0] for latents in both]

    return Pairs(key, count, read)

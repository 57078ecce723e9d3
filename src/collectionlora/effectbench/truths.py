"""The right answers of a collection's effects, as far as they are known.

An effect's truth is the procedural effect of its name, or what its manifest entry says under `truth`: the
name of another procedural effect, a folder of true images named like the photographs, or `none`.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from collectionlora.collection import Collection, Effect
from collectionlora.effectbench.bench import Cases, Method
from collectionlora.effectbench.metrics import valid_outcomes
from collectionlora.effects import ALL_EFFECTS, PhotoEffect
from collectionlora.pictures.folders import by_name, list_photos, warn_of_left_out
from collectionlora.pictures.pairs import refuse_other_shape
from collectionlora.pictures.photos import Photo, read_photo, to_images
from collectionlora.pictures.sizes import WorkingSizes
from collectionlora.system.errors import UserError

TRUTH, NO_TRUTH = "truth", "none"


def procedural_truth(effect: Effect) -> PhotoEffect | None:
    """The procedural effect that an effect of the manifest stands for."""
    return ALL_EFFECTS.get(effect.truth or effect.name)


def true_folder(collection: Collection, effect: Effect) -> Path | None:
    """The folder of an effect's true images, if it has one.

    Raises:
        UserError: there is no such folder.
    """
    if effect.truth is None or effect.truth == NO_TRUTH or procedural_truth(effect):
        return None
    field = f"effects.{effect.name}.truth"
    folder = collection.path(effect.truth, field)
    if not folder.is_dir():
        near = difflib.get_close_matches(effect.truth, [*ALL_EFFECTS, NO_TRUTH], n=1)
        hint = f"did you mean {near[0]}?" if near else "name a folder of true images, an effect, or none"
        raise UserError(folder, field, "there is no such folder", hint)
    return folder


def relative_names(folder: Path) -> dict[str, Path]:
    """The photos of a folder by their path in it without the suffix, with a warning about what is left out.

    Raises:
        UserError: two have one name.
    """
    warn_of_left_out([folder])
    return by_name(list_photos(folder), lambda path: path.relative_to(folder).with_suffix("").as_posix())


class Truths:
    """The right answers to every judged photo.

    Args:
        photographs: those that the cases were drawn from, by name.
        sizes: in which they were drawn.

    Raises:
        UserError: a folder of true images lacks one of a judged photograph, or has one of another shape.
    """

    def __init__(
        self, collection: Collection, cases: Cases, photographs: Mapping[str, Photo], sizes: WorkingSizes
    ):
        self.collection, self.cases, self.sizes = collection, cases, sizes
        self.procedural = {e.name: p for e in collection.effects if (p := procedural_truth(e))}
        self.images: dict[str, list[Photo]] = {}
        for effect in collection.effects:
            if folder := true_folder(collection, effect):
                paths = relative_names(folder)
                missing = sorted(set(cases.names) - set(paths))
                if missing:
                    hint = "add it, or take it out of --photos"
                    raise UserError(folder, missing[0], "has no true image for this photograph", hint)
                self.images[effect.name] = [
                    self._read(paths[name], Path(name), photographs[name], photo)
                    for name, photo in zip(cases.names, cases.photos, strict=True)
                ]

    def _read(self, path: Path, name: Path, photograph: Photo, judged: Photo) -> Photo:
        image = read_photo(path)
        refuse_other_shape(path, image, name, photograph)
        return self.sizes.fit(image, judged.shape[:2])

    def known(self, effect: str) -> bool:
        return effect in self.procedural or effect in self.images

    def outcomes(self, effect: str) -> list[list[Photo]]:
        """All right answers to each judged photo."""
        return [self.outcomes_of(effect, index) for index in range(len(self.cases.photos))]

    def outcomes_of(self, effect: str, index: int) -> list[Photo]:
        """All right answers to one judged photo."""
        if effect in self.images:
            return [self.images[effect][index]]
        return valid_outcomes(self.procedural[effect], self.cases.photos[index])

    def draw(self, effect: str) -> list[Photo]:
        """One right answer to each judged photo."""
        return [self.draw_one(effect, index) for index in range(len(self.cases.photos))]

    def draw_one(self, effect: str, index: int) -> Photo:
        """One right answer to one judged photo."""
        if effect in self.images:
            return self.images[effect][index]
        rng = np.random.default_rng(self.cases.seeds[index])
        return self.procedural[effect](self.cases.photos[index], rng)

    def method(self, effects: Sequence[str]) -> Method:
        """The truth as a method: its scores are the best that can be reached.

        Raises:
            UserError: an effect without a known truth.
        """
        for name in effects:
            if not self.known(name):
                raise UserError("", "--methods", f"{name} has no known truth", "leave out the method truth")

        def sample(effect: str, images: Tensor, seeds: Sequence[int]) -> Tensor:
            drawn = dict(zip(self.cases.seeds, self.draw(effect), strict=True))
            return to_images([drawn[seed] for seed in seeds])

        def general(images: Tensor, texts: Sequence[str], seeds: Sequence[int]) -> Tensor:
            return to_images([self.cases.edits[seed].target for seed in seeds])

        return Method("truth", 0, sample, general)

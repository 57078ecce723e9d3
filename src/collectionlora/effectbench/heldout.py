"""What a collection is judged on: photographs that nothing was trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from collectionlora.backbones import family_of
from collectionlora.collection import Collection
from collectionlora.effectbench.bench import Cases, draw_crops, draw_whole, join_cases
from collectionlora.effectbench.truths import procedural_truth, relative_names, true_folder
from collectionlora.effects.crops import PhotoPool
from collectionlora.pictures.photographs import HELDOUT, load_photograph
from collectionlora.pictures.photos import Photo, read_photo
from collectionlora.pictures.sizes import WorkingSizes
from collectionlora.system.errors import UserError


@dataclass(frozen=True)
class Heldout:
    """What a collection is judged on.

    Attributes:
        photographs: by name; nothing was trained on them.
        others: photographs to train the classifier on.
        num_photos: photos of each effect and seed.
        like: the key of the cases to compare with, if there are some.
    """

    photographs: Mapping[str, Photo]
    others: PhotoPool
    num_photos: int
    seeds: Sequence[int]
    classifier_steps: int
    like: str | None = None

    def draw(self, collection: Collection, sizes: WorkingSizes) -> Cases:
        """Random square crops where all truths are procedural, whole photographs otherwise.

        A new effect without a truth does not change the cases: where `like` is of crops, crops are drawn.

        Raises:
            UserError: there are fewer photographs than are asked for, or none of these is `like`.
        """
        if all(procedural_truth(effect) for effect in collection.effects):
            cases = self._draw_crops(sizes)
        elif self.like and not any(true_folder(collection, effect) for effect in collection.effects):
            crops = self._draw_crops(sizes)
            cases = crops if crops.key == self.like else self._draw_whole(sizes)
        else:
            cases = self._draw_whole(sizes)
        if self.like and cases.key != self.like:
            hint = "bench with the same --photos, --crops, --seeds and data.resolution"
            raise UserError("", "--baseline", "is of other photos", hint)
        return cases

    def _draw_crops(self, sizes: WorkingSizes) -> Cases:
        pool = PhotoPool(list(self.photographs.values()))
        return join_cases([draw_crops(pool, self.num_photos, seed, sizes.resolution) for seed in self.seeds])

    def _draw_whole(self, sizes: WorkingSizes) -> Cases:
        return join_cases([draw_whole(self.photographs, self.num_photos, seed, sizes) for seed in self.seeds])


def heldout_photographs(folder: Path | None, base: str) -> dict[str, Photo]:
    """The photographs of a folder, by default three that ship inside scikit-image and scikit-learn.

    Raises:
        UserError: no folder, for a base that would have to enlarge those three.
    """
    if folder is None:
        if family_of(base).block_stacks(base):
            message = f"is needed to judge over {base}, which would enlarge the small photographs that ship"
            hint = "give a folder of photographs that nothing was trained on: --photos FOLDER"
            raise UserError("", "--photos", message, hint)
        return {name: load_photograph(name) for name in HELDOUT}
    return {name: read_photo(path) for name, path in relative_names(folder).items()}

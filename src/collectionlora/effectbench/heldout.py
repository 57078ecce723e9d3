"""What a collection is judged on: photographs that nothing was trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from collectionlora.backbones import family_of
from collectionlora.collection import Collection
from collectionlora.effectbench.bench import Cases, draw_crops, draw_whole, join_cases
from collectionlora.effectbench.truths import procedural_truth, relative_names
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
    """

    photographs: Mapping[str, Photo]
    others: PhotoPool
    num_photos: int
    seeds: Sequence[int]
    classifier_steps: int

    def draw(self, collection: Collection, sizes: WorkingSizes) -> Cases:
        """Random square crops where all truths are procedural, whole photographs otherwise.

        Raises:
            UserError: there are fewer photographs than are asked for.
        """
        if all(procedural_truth(effect) for effect in collection.effects):
            pool = PhotoPool(list(self.photographs.values()))
            crops = [draw_crops(pool, self.num_photos, seed, sizes.resolution) for seed in self.seeds]
            return join_cases(crops)
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

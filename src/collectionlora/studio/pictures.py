"""A collection as the studio shows it: pictures on request, previews, prompts, the report."""

import logging
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from collectionlora.adapters.recipe import adapter_path
from collectionlora.cache import base_identity
from collectionlora.collection import MANIFEST, Collection
from collectionlora.editing import Editor, check_seed
from collectionlora.pictures.photographs import HELDOUT, load_photograph
from collectionlora.pictures.photos import Photo, read_photo, to_photos, write_photo
from collectionlora.pictures.sizes import WorkingSizes
from collectionlora.studio.batching import Batcher, Job, Request
from collectionlora.system.errors import UserError
from collectionlora.system.files import fingerprint
from collectionlora.system.progress import Progress

PREVIEW_SEED = 0
MAX_PREVIEW, PREVIEW_STEPS = 256, 4  # of previews of a visitor's photo: working size, forwards
LEAST, MOST = 0.5, 2  # of the sizes offered, to the resolution taught
log = logging.getLogger(__name__)


class Studio:
    """One finished collection, ready to make pictures for many people at once.

    Args:
        place: the collection's folder, or the one file.
        batch_size: pictures made at once, at most.
        quantization: as in `Editor.load`.
    """

    def __init__(self, place: Path, batch_size: int, quantization: str | None = None):
        self.place, self.editor = place, Editor.load(place, quantization)
        self.recipe = self.editor.recipe
        self.model = self.recipe.held_as(quantization)
        self.effects = list(self.recipe.effects)
        # Those that need the photo alone, and the most reference images that two effects together need.
        self.alone = [name for name in self.effects if not self.recipe.references.get(name)]
        self.max_references = sum(sorted(self.recipe.references.values())[-2:])
        self.batcher = Batcher(self.editor, batch_size)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The least and the most of the sizes that visitors may ask for, and the step between them."""
        step, taught = self.editor.backbone.side_multiple, self.recipe.resolution
        return max(step, int(LEAST * taught) // step * step), MOST * taught, step

    def submit(
        self,
        images: Sequence[Tensor],
        wanted: Sequence[Sequence[str]],
        seeds: Sequence[int],
        steps: int,
        strengths: Sequence[float],
        references: Sequence[Photo] = (),
    ) -> list[Job]:
        """Images (see `Editor.fit`) with their own (composition of) effects, seeds and strengths, queued.

        Raises:
            UserError: an effect or a number of references that the adapter does not hold, or a seed that no
                generator takes.
        """
        for seed in seeds:
            check_seed(seed)
        shown = tuple(map(self.editor.fit, references))
        prompts = [self.editor.prompt(effects, len(shown)) for effects in wanted]
        return self.batcher.submit(
            [
                Request(image, prompt, seed, steps, strength, shown)
                for image, prompt, seed, strength in zip(images, prompts, seeds, strengths, strict=True)
            ]
        )

    def submit_previews(self, photo: Photo) -> list[Job]:
        """A visitor's photo under each effect that needs it alone, small and in few steps."""
        resolution, steps = min(self.recipe.resolution, MAX_PREVIEW), min(self.recipe.steps, PREVIEW_STEPS)
        image = WorkingSizes(resolution, self.editor.backbone.side_multiple).show(photo)
        count = len(self.alone)
        return self.submit(
            [image] * count, [[name] for name in self.alone], [PREVIEW_SEED] * count, steps, [1.0] * count
        )

    def previews(self, progress: Progress) -> dict[str, Photo]:
        """Each effect that needs the photo alone on the same one; in the collection's cache if it can be."""
        photo = load_photograph(HELDOUT[0])
        base = base_identity(self.recipe.base), self.model.quantization
        key = fingerprint(adapter_path(self.place), *base)
        folder = self.place / "cache" / "previews" if self.place.is_dir() else None
        paths = {name: folder / f"{name}-{key}.png" for name in self.alone} if folder else {}
        found = {name: kept for name, path in paths.items() if (kept := read_kept(path)) is not None}
        missing = [name for name in self.alone if name not in found]
        count, wanted = len(missing), [[name] for name in missing]
        images, seeds = [self.editor.fit(photo)] * count, [PREVIEW_SEED] * count
        jobs = self.submit(images, wanted, seeds, self.recipe.steps, [1.0] * count)
        for index, (name, job) in enumerate(zip(missing, jobs, strict=True)):
            found[name] = to_photos(job.picture())[0]
            if paths:
                try:
                    write_photo(paths[name], found[name])
                except UserError as fault:  # a mount to read from, or a full disk
                    log.warning("%s: previews are not kept, and are made again at the next start", fault)
                    paths = {}
            progress("previews", index + 1, len(missing), {})
        return {name: found[name] for name in self.alone}

    def prompts(self) -> list[tuple[str, str, str]]:
        """Effect, what the student reads, and what its teacher was trained with (where the manifest is)."""
        taught: dict[str, str] = {}
        if (self.place / MANIFEST).is_file():
            taught = {e.name: e.teacher_prompt for e in Collection.load(self.place).effects}
        return [(name, text, taught.get(name, "")) for name, text in self.recipe.effects.items()]

    def report(self) -> str | None:
        """The page that `bench` wrote, if it did."""
        path = self.place / "bench" / "report.html"
        return path.read_text(encoding="utf-8") if path.is_file() else None


def read_kept(path: Path) -> Photo | None:
    """A picture that can be made again; None if there is none, or it is damaged."""
    try:
        return read_photo(path) if path.exists() else None
    except UserError as fault:
        log.warning("%s; it is made again", fault)
        return None

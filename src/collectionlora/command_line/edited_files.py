"""Photos in files, or folders of them, under one effect or all: what `collectionlora edit` does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from collectionlora.adapters.recipe import adapter_path, read_adapter, read_recipe
from collectionlora.editing import (
    Editor,
    EncodedEdit,
    check_seed,
    check_steps,
    check_strengths,
    compose_prompt,
)
from collectionlora.pictures.destinations import Job, plan_jobs, select_jobs
from collectionlora.pictures.photos import chunks, read_photo, write_photo
from collectionlora.pictures.sizes import Size
from collectionlora.system.errors import UserError
from collectionlora.system.progress import Progress, ignore

T = TypeVar("T")
ALL = "all"  # in place of an effect's name: every effect of the collection
MAX_ENCODED = 100  # edits that wait in memory for the network, each up to 18 MB


@dataclass(frozen=True)
class EditedFiles:
    """The files that `edit_files` wrote, those it left as they were, and the photos that cannot be edited."""

    written: list[Path]
    skipped: list[Path]
    failed: list[UserError]

    def as_dict(self) -> dict[str, Any]:
        """As `edit --json` gives it."""
        return {
            "images": [str(path) for path in self.written],
            "skipped": [str(path) for path in self.skipped],
            "failed": [fault.as_dict() for fault in self.failed],
        }

    def attempt(self, work: Callable[[], T], alone: bool) -> T | None:
        """What `work` returns; its fault is kept for the end, or raised where it is all there is to do."""
        try:
            return work()
        except UserError as fault:
            if alone:
                raise
            self.failed.append(fault)
            return None


def plan_edits(
    collection: Path, photo: Path, effect: str, then: Sequence[str], out: Path | None, references: int
) -> list[Job]:
    """The files that an edit will write; see `edit_files`."""
    names = list(read_recipe(adapter_path(collection)).effects) if effect == ALL else [effect]
    jobs = plan_jobs(photo, [(name, *then) for name in names], out)
    recipe = read_recipe(adapter_path(collection))
    for name in names:
        compose_prompt(recipe, [name, *then], references)
    return jobs


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
    size: Size | None = None,
    quantization: str | None = None,
    progress: Progress = ignore,
    before_loading: Callable[[], None] = lambda: None,
) -> EditedFiles:
    """Edit a photo, or all photos of a folder; everything is checked before the model is loaded.

    Args:
        effect: an effect's name, or "all" for a result of each; the effects of `then` are applied after it.
        out: a file, or a folder for results named after photo and effects; by default the photo's folder.
        overwrite: replace results that exist. A file that this edit reads is never replaced.
        before_loading: called when all is checked; what it raises stops the work.

    Raises:
        UserError: an unknown effect, no place for the results, or the only photo cannot be read.
    """
    check_seed(seed)
    check_steps(steps)
    jobs = plan_edits(Path(collection), photo, effect, then, out, len(references))
    chosen = select_jobs(jobs, references, overwrite)
    shown = [read_photo(path) for path in references]
    made = {job.out for job in chosen}
    edited = EditedFiles([], [job.out for job in jobs if job.out not in made], [])
    if not chosen:
        return edited
    check_strengths([strength])
    before_loading()
    attempt = partial(edited.attempt, alone=len(jobs) == 1)
    path = adapter_path(Path(collection))
    lora, recipe = read_adapter(path)  # once: another one may take its place while this works

    def load() -> Editor:
        editor = Editor.over(path, lora, recipe, quantization)
        if size is not None:
            editor.check_size(size)
        return editor

    def encode(editor: Editor, job: Job) -> EncodedEdit | None:
        return attempt(lambda: editor.encode(read_photo(job.photo), job.effects, shown, size))

    def write(editor: Editor, job: Job, encoded: EncodedEdit) -> None:
        write_photo(job.out, editor.finish(encoded, seed, steps, strength))
        edited.written.append(job.out)

    make_in_parts(load, chosen, encode, lambda *job: attempt(partial(write, *job)), progress)
    return edited


def make_in_parts(
    load: Callable[[], Editor],
    jobs: Sequence[Job],
    encode: Callable[[Editor, Job], EncodedEdit | None],
    write: Callable[[Editor, Job, EncodedEdit], None],
    progress: Progress,
) -> None:
    """Encode some jobs, then draw them, and so on: a large network has no room beside the encoders."""
    for part in chunks(len(jobs), MAX_ENCODED):
        editor, ready = load(), list[EncodedEdit | None]()
        for job in jobs[part]:
            ready.append(encode(editor, job))
            progress("encode", part.start + len(ready), len(jobs), {})
        editor.backbone.release_encoders()
        for done, (job, encoded) in enumerate(zip(jobs[part], ready, strict=True), part.start + 1):
            if encoded is not None:
                write(editor, job, encoded)
            progress("edit", done, len(jobs), {})
        editor.release_network()

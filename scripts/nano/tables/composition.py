"""Two effects in one picture by a finished adapter: in how many both concepts are recognised.

Every ordered pair of its effects, the second on top of the first, as one prompt; beside it the sum of the two
teachers' LoRAs under their joined prompts, and both ways one effect after the other: in twice the steps, the
student also in as many as one prompt takes.
The classifier was trained on single effects: both are recognised where they are the two effects that it finds
most probable. What it recognises in true pictures of both (`truth`) is the ceiling, what it takes for both in
true pictures of the second alone the floor. `recognisable` leaves out the pictures whose truth it does not
recognise. Teachers are guided, in the student's number of steps.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from functools import partial
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from collectionlora.adapters.formats import read_lora
from collectionlora.adapters.merging import add
from collectionlora.adapters.recipe import Recipe, adapter_path
from collectionlora.adapters.roles import TEACHER, Roles, TeacherLibrary
from collectionlora.backbones.base import encode_condition
from collectionlora.backbones.nano import MAX_BATCH, RECOMMENDED, NanoBackbone
from collectionlora.command_line.demo import shipped_teachers
from collectionlora.editing import Editor
from collectionlora.effectbench.bench import Cases, draw_crops
from collectionlora.effectbench.classifier import ConceptClassifier, load_or_train, probabilities
from collectionlora.effectbench.metrics import nearest_outcome, valid_outcomes
from collectionlora.effectbench.scoring import Values, average, mean_over_effects
from collectionlora.effects import ALL_EFFECTS
from collectionlora.effects.crops import PhotoPool
from collectionlora.pictures.photos import Photo, chunks, to_images, to_photos
from collectionlora.prompting.triggers import compose
from collectionlora.sampling import Denoiser, sample_student
from collectionlora.system import processes
from collectionlora.system.files import fingerprint, read_tensors, write_json, write_tensors
from collectionlora.system.progress import Progress
from collectionlora.system.shared_files import Kept, make_together
from tables.study import add_judging_options, keep_options, training_photographs, unseen_photographs

GUIDANCE_SCALE = RECOMMENDED["targets"]["guidance_scale"]
Effects = tuple[str, str]
Make = Callable[
    [Effects, Tensor, Sequence[int]], Tensor
]  # images in [0, 1] and a seed for each to edited images


def options(parser: ArgumentParser) -> None:
    add_judging_options(parser)
    parser.set_defaults(judged=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--adapter", type=Path, default=Path("nano"), help="by default the one that ships")
    parser.add_argument("--pairs", type=int, help="number of pairs, drawn; all by default")


class Teachers:
    """The shipped teachers over one base, one at a time or several as their sum."""

    def __init__(self, names: Sequence[str], recipe: Recipe):
        self.backbone, self.recipe = NanoBackbone.load(), recipe
        files = shipped_teachers()
        self.loras = {name: read_lora(files[name]) for name in names}
        ranks = {TEACHER: 2 * max(lora.rank for lora in self.loras.values())}
        targets, fuse = self.backbone.lora_targets, self.backbone.fuses_lora
        self.library = TeacherLibrary(Roles(self.backbone.network, targets, ranks, fuse=fuse), {})

    @torch.no_grad()
    def sample(self, names: Sequence[str], images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Images under the sum of the named teachers, guided, by the student's steps and sampler."""
        key = "+".join(names)
        self.library.teachers[key] = add([self.loras[name].weights for name in names])
        text = compose([ALL_EFFECTS[name].teacher_prompt for name in names])
        condition = encode_condition(self.backbone, [text] * len(images), images)
        uncond = condition.with_prompt(self.backbone.encode_prompt([""] * len(images)))
        with self.library.use(key):
            denoiser = Denoiser(self.backbone, condition, uncond, GUIDANCE_SCALE)
            how = self.recipe.steps, self.recipe.shift, self.recipe.sampler
            latents = sample_student(denoiser, condition.source, seeds, *how)
        return self.backbone.decode(latents)


def true_picture(effects: Sequence[str], images: Tensor, seeds: Sequence[int]) -> Tensor:
    """Right answers, drawn: the effects one after the other."""
    made = []
    for photo, seed in zip(to_photos(images), seeds, strict=True):
        rng = np.random.default_rng(seed)
        for name in effects:
            photo = ALL_EFFECTS[name](photo, rng)
        made.append(photo)
    return to_images(made)


def ways(editor: Editor, teachers: Teachers) -> dict[str, tuple[int, Make]]:
    """The ways to make a pair, by name: network evaluations for one picture, and how."""
    steps = editor.recipe.steps

    def student(
        names: Sequence[str], images: Tensor, seeds: Sequence[int], steps: int | None = None
    ) -> Tensor:
        return editor.sample(images, [editor.prompt(names)] * len(images), seeds, steps)

    def in_turn(make: Callable[[Sequence[str], Tensor, Sequence[int]], Tensor]) -> Make:
        return lambda pair, images, seeds: make(pair[1:], make(pair[:1], images, seeds), seeds)

    return {
        "truth": (0, true_picture),
        "second alone": (0, lambda pair, images, seeds: true_picture(pair[1:], images, seeds)),
        "student": (steps, student),
        "teachers summed": (2 * steps, teachers.sample),
        "student in turn": (2 * steps, in_turn(student)),
        "student in turn, half the steps": (steps, in_turn(partial(student, steps=steps // 2))),
        "teachers in turn": (4 * steps, in_turn(teachers.sample)),
    }


def draw(folder: Path, key: str, make: Make, pair: Effects, cases: Cases) -> Kept[list[Photo]]:
    """Pictures of one pair, kept in a file."""
    path = folder / f"{'+'.join(pair)}-{key}.safetensors"

    def get() -> list[Photo]:
        found = read_tensors(path)
        if found is None:
            images = to_images(cases.photos)
            parts = chunks(len(images), MAX_BATCH)
            made = torch.cat([make(pair, images[part], cases.seeds[part]) for part in parts])
            found = {"pictures": torch.from_numpy(np.stack(to_photos(made)))}, {}
            write_tensors(path, *found)
        return list(found[0]["pictures"].numpy())

    return Kept(path, get)


def recognised(
    classifier: ConceptClassifier, pair: Effects, photos: Sequence[Photo], made: Sequence[Photo]
) -> dict[str, Values]:
    """Whether the first, the second and both are among the two most probable effects, `[N]` each."""
    top = probabilities(classifier, photos, made)[:, :-1].topk(2).indices.numpy()
    first, second = ((top == classifier.effects.index(name)).any(1) for name in pair)
    return {"first": first * 1.0, "second": second * 1.0, "both": (first & second) * 1.0}


def fidelity(pair: Effects, photos: Sequence[Photo], made: Sequence[Photo]) -> Values:
    """PSNR in dB to the nearest right answer, `[N]`."""
    values = []
    for photo, image in zip(photos, made, strict=True):
        between = valid_outcomes(ALL_EFFECTS[pair[0]], photo)
        outcomes = [answer for one in between for answer in valid_outcomes(ALL_EFFECTS[pair[1]], one)]
        values.append(nearest_outcome(image, outcomes)[1])
    return np.array(values)


def make(args: Namespace, progress: Progress) -> None:
    keep_options(args.out, args)
    editor = Editor.load(args.adapter)
    names, side = list(editor.recipe.effects), editor.recipe.resolution
    pairs: list[Effects] = list(permutations(names, 2))
    drawn = np.random.default_rng(args.seed).permutation(len(pairs))[: args.pairs]
    pairs = [pairs[i] for i in sorted(drawn)]
    pool = PhotoPool(list(unseen_photographs(args.data).values()))
    cases = draw_crops(pool, args.judged, args.seed, side)
    shown = [photo.tobytes() for photo in cases.photos]
    key = fingerprint(adapter_path(args.adapter), *shipped_teachers().values(), cases.seeds, *shown)
    found = ways(editor, Teachers(names, editor.recipe))
    pictures: dict[str, list[list[Photo]]] = {}
    for number, (name, (_, how)) in enumerate(found.items(), 1):
        folder = args.out / "pictures" / name.replace(" ", "-")
        pictures[name] = make_together([draw(folder, key, how, pair, cases) for pair in pairs])
        progress("pictures", number, len(found), {})
    if processes.is_main():
        effects = {name: ALL_EFFECTS[name] for name in names}
        others = training_photographs(args.data)
        classifier = load_or_train(args.out, effects, others, args.classifier_steps, args.seed)
        rows = judge(classifier, pairs, cases.photos, pictures)
        methods = {name: {"nfe": nfe, **rows[name]} for name, (nfe, _) in found.items()}
        facts = {"pairs": len(pairs), "photos": len(cases.photos), "adapter": str(args.adapter)}
        write_json(args.out / "metrics.json", {"table": "composition", **facts, "methods": methods})


def judge(
    classifier: ConceptClassifier,
    pairs: Sequence[Effects],
    photos: Sequence[Photo],
    pictures: dict[str, list[list[Photo]]],
) -> dict[str, dict[str, object]]:
    """By way its means over photos and pairs with intervals, and the share of `both` of each pair."""
    columns: dict[str, dict[str, dict[str, Values]]] = {}
    for name, of_pair in pictures.items():
        columns[name] = {}
        for pair, made in zip(pairs, of_pair, strict=True):
            row = recognised(classifier, pair, photos, made)
            row["psnr"] = fidelity(pair, photos, made)
            truth = columns["truth"][" + ".join(pair)]["both"] if name != "truth" else row["both"]
            row["recognisable"] = np.where(truth == 1, row["both"], np.nan)
            columns[name][" + ".join(pair)] = row
    return {
        name: {
            **average(mean_over_effects(rows.values())),
            "per_pair": {pair: float(row["both"].mean()) for pair, row in rows.items()},
        }
        for name, rows in columns.items()
    }

"""Photos keep their shape: sizes, buckets, and the journey of photos of several shapes over small bases."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers.pipelines.qwenimage21 import pipeline_qwenimage21
from helpers import small_collection, tiny_pipelines
from PIL import Image
from safetensors.torch import load_file, save_file

import collectionlora
from collectionlora.backbones import PIPELINES, family_of, load_backbone
from collectionlora.backbones.base import Prompt
from collectionlora.cache import effect_key
from collectionlora.collection import Collection
from collectionlora.config import DataSettings, SettingsError, resolve
from collectionlora.editing import Editor
from collectionlora.pictures.buckets import (
    Buckets,
    find_buckets,
    find_images,
    gather_images,
    name_images,
    take,
)
from collectionlora.pictures.photos import read_photo, to_images
from collectionlora.pictures.sheets import contact_sheet
from collectionlora.pictures.sizes import MAX_ASPECT, WorkingSizes
from collectionlora.planning.peaks import most_at_once, working_sizes
from collectionlora.planning.workload import Workload
from collectionlora.prompting.writing import find_pairs
from collectionlora.runs.session import Session, resolve_settings
from collectionlora.sampling import Denoiser, sample_many_steps
from collectionlora.streams import EffectData, GeneralData, Streams
from collectionlora.system.progress import ignore

RNG = np.random.default_rng(0)
SHAPES = ((45, 90), (90, 45), (46, 92), (20, 21))  # two of one bucket, and a small one
SETTINGS = {
    "student": {"rank": 2},
    "critic": {"rank": 2},
    "targets": {"steps": 1, "samples": 2, "general": 6},
    "match": {"updates": 2, "batch_size": 3},
    "sampling": {"steps": 2},
    "teach": {"steps": 2, "rank": 2, "batch_size": 2},
    "distill": {
        **{"student_updates": 2, "batch_size": 2, "student_update_every": 1, "rollout_steps": [2]},
        "critic_samples": "simulated",
    },
    "log": {"tracker": "none"},
}


def write_photos(folder, shapes=SHAPES):
    folder.mkdir(parents=True, exist_ok=True)
    for index, shape in enumerate(shapes):
        pixels = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")


def build(folder, base, settings, names=("one", "two")):
    """Effects with image pairs and photos of several shapes; no truth of them is known."""
    for name in names:
        for side in ("source", "target"):
            write_photos(folder / "pairs" / name / side)
    write_photos(folder / "photos")
    write_photos(folder / "heldout", ((48, 96), (96, 50), (30, 30)))
    (folder / "general.txt").write_text("blur the photo\nbrighten the photo\n")
    effects = [
        {"name": name, "teacher": f"teachers/{name}.safetensors", "photos": "photos", "truth": "none"}
        | {"teacher_prompt": f"make it {name}"}
        for name in names
    ]
    if family_of(str(base)).reads_references:
        effects[1]["references"] = ["photos/1.png", "photos/3.png"]  # of another shape than most photos
    layers = {name: {**SETTINGS.get(name, {}), **settings.get(name, {})} for name in {*SETTINGS, *settings}}
    general = {"photos": "photos", "prompts": "general.txt"}
    manifest = {"base": str(base), "effects": effects, "general": general, "settings": layers}
    (folder / "collection.yaml").write_text(yaml.safe_dump(manifest))
    return Collection.load(folder)


def sizes_of(collection):
    """The working size of every photo, and the settings they come from."""
    settings = resolve_settings(collection, {})
    sizes = WorkingSizes.of(settings.data, family_of(collection.manifest.base).side_multiple)
    return sizes, settings


# Sizes


@pytest.mark.parametrize(("resolution", "multiple", "most"), [(1024, 16, 149), (1024, 32, 75), (64, 8, 21)])
def test_sizes_are_few_near_the_pixels_and_the_aspect_and_all_are_listed(resolution, multiple, most):
    sizes = WorkingSizes(resolution, multiple)
    known = sizes.list_all()
    assert len(known) == len(set(known)) == most
    assert sizes.find(700, 700) == (resolution, resolution)
    for height, width in RNG.integers(1, 4000, (2000, 2)).tolist():
        rows, columns = sizes.find(height, width)
        assert (rows, columns) in known
        assert rows % multiple == columns % multiple == 0
        aspect = min(max(height / width, 1 / MAX_ASPECT), MAX_ASPECT)
        # Each side is at most half a step off.
        assert abs(rows - resolution * aspect**0.5) <= multiple / 2
        assert abs(columns - resolution / aspect**0.5) <= multiple / 2


def test_the_page_says_the_sizes():
    page = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.split("\n") if "| " in line]
    table = {row[0]: row[1:] for row in rows if len(row) == 4}
    bases = WorkingSizes(64, 8), WorkingSizes(1024, 16), WorkingSizes(1024, 32)
    assert table["number of sizes"] == [str(len(sizes.list_all())) for sizes in bases]
    for aspect in ("1:1", "4:3", "3:2", "16:9"):
        width, height = map(int, aspect.split(":"))
        found = [sizes.find(height, width) for sizes in bases]
        assert table[aspect] == [f"{columns} x {rows}" for rows, columns in found]


@pytest.mark.parametrize("resolution", [512, 768, 1024])
def test_the_pipeline_of_qwen_image_21_leaves_every_working_size_as_it_is(resolution):
    for rows, columns in WorkingSizes(resolution, 32).list_all():
        side = (columns * rows) ** 0.5  # as the exported example asks for it
        assert pipeline_qwenimage21.calculate_dimensions(side * side, columns / rows)[:2] == (columns, rows)


def test_the_sizes_are_those_of_the_families():
    assert {family.name: family.side_multiple for family in PIPELINES} == {
        "QwenImageEditPlusPipeline": 32,
        "QwenImageEditPipeline": 32,
        "QwenImage21Pipeline": 32,
        "LongCatImageEditPipeline": 16,
        "FluxKontextPipeline": 16,
        "Flux2Pipeline": 16,
        "Flux2KleinPipeline": 16,
    }
    assert family_of("nano").side_multiple == 8


def test_a_small_photo_is_enlarged_smoothly_to_learn_from_as_at_use():
    sizes, steps = WorkingSizes(64, 8), np.arange(0, 240, 10, dtype=np.uint8)
    photo = np.broadcast_to(steps[None, :, None], (16, 24, 3)).copy()
    assert sizes.fit(photo).shape == (56, 80, 3)
    assert torch.equal(to_images([sizes.fit(photo)]), sizes.show(photo))
    assert len(np.unique(sizes.fit(photo))) > 3 * len(steps)  # the nearest pixel would give as many levels


def test_a_photo_beyond_the_aspects_gives_its_middle_to_learn_from_and_all_of_it_to_use(tmp_path, caplog):
    sizes, photo = WorkingSizes(64, 8), np.zeros((20, 200, 3), dtype=np.uint8)
    photo[:, 70:130] = 255  # three times as long as wide
    Image.fromarray(photo).save(tmp_path / "long.png")
    assert sizes.read(tmp_path / "long.png").shape == (40, 112, 3)
    assert sizes.read(tmp_path / "long.png").min() == 255
    assert "long.png: is more than 3 times as long as wide; its middle is taken" in caplog.text
    assert len(caplog.records) == 1
    assert sizes.show(photo).shape == (1, 3, 40, 112)
    assert sizes.show(photo)[..., 0].max() == 0


def test_squares_are_cropped_only_where_they_are_asked_for(tmp_path):
    photo = RNG.integers(0, 256, (64, 96, 3), dtype=np.uint8)
    kept, square = (WorkingSizes.of(DataSettings(crop=crop), 8) for crop in ("none", "square"))
    assert kept.fit(photo).shape == (56, 80, 3)
    assert square.list_all() == [(64, 64)]
    assert np.array_equal(square.fit(photo), photo[:, 16:80])
    with pytest.raises(SettingsError, match=r"data\.crop"):
        resolve({"data": {"crop": "circle"}})


# Buckets


def test_images_of_one_size_are_drawn_as_ever_and_all_of_a_batch_have_one_size():
    for seed in range(200):
        number, count = seed % 17 + 1, seed % 5 + 1
        first, second = (np.random.default_rng(seed) for _ in range(2))
        listed = Buckets([torch.zeros(1, 2, 2)] * number).draw(first, count)
        assert torch.equal(listed, torch.from_numpy(second.integers(number, size=count)))
        assert first.integers(2**40) == second.integers(2**40)
    images = [torch.zeros(1, side, 4) for side in (2, 3, 2, 5, 3, 3)]
    drawn = [Buckets(images).draw(np.random.default_rng([1, seed]), 3).tolist() for seed in range(600)]
    assert all(len({images[i].shape for i in batch}) == 1 for batch in drawn)
    assert all(abs(sum(batch[0] == i for batch in drawn) / 600 - 1 / 6) < 0.05 for i in range(6))
    asked = [Buckets(images).draw(np.random.default_rng(seed), 2, (1, 3, 4)) for seed in range(60)]
    assert {i for batch in asked for i in batch.tolist()} == {1, 4, 5}


def test_images_of_several_sizes_survive_a_file(tmp_path):
    both = torch.randn(4, 2, 3, 3).split(2)
    for images in (gather_images(both), gather_images([*both, torch.randn(2, 3, 4)])):
        save_file(name_images("sources", images) | {"other.0": torch.zeros(1)}, tmp_path / "a")
        found = find_images("sources", load_file(tmp_path / "a"))
        assert isinstance(found, torch.Tensor) == isinstance(images, torch.Tensor)
        assert all(map(torch.equal, found, images))
    assert isinstance(gather_images(both), torch.Tensor)
    assert find_buckets(found) == [[0, 1], [2]]
    assert torch.equal(take(found, torch.tensor([1, 0])), torch.stack([both[1], both[0]]))


def make_streams(**changes):
    """Two effects and a general stream, in which 3 x 2 latents are everywhere and others in one place."""

    def images(value, shapes):
        return [torch.full((1, *shape), float(value + i)) for i, shape in enumerate(shapes)]

    prompt = Prompt(torch.zeros(1, 2, 3), torch.ones(1, 2, dtype=torch.bool))
    shapes = {"a": [(3, 2), (2, 3), (3, 2)], "b": [(3, 2), (4, 4)]}
    effects = [
        EffectData(
            *(name, images(100 * k, own), [torch.stack([x, x]) for x in images(100 * k, own)]),
            *(prompt, prompt, prompt),
        )
        for k, (name, own) in enumerate(shapes.items())
    ]
    general = images(1000, [(3, 2), (2, 3)])
    data = GeneralData(general, Prompt(torch.zeros(2, 2, 3), torch.ones(2, 2) > 0), general, prompt)
    return Streams(effects, data, **{"seed": 0, "batch_size": 3, "effect_ratio": 0.5, **changes})


@pytest.mark.parametrize("draw", ["batch", "mixed_batch"])
def test_a_batch_has_one_size_and_is_the_same_whenever_it_is_asked_for(draw):
    streams, later = make_streams(), make_streams()
    getattr(later, draw)(7)
    sizes, effects = set(), set()
    for step in range(60):
        batch, again = getattr(streams, draw)(step), getattr(later, draw)(step)
        assert batch.target.shape == batch.student.source.shape == (3, *batch.target.shape[1:])
        assert torch.equal(batch.target, again.target)
        assert torch.equal(batch.target, batch.student.source)  # a target belongs to its photo
        sizes.add(batch.target.shape[2:])
        effects |= {int(value) // 100 for value in batch.target[:, 0, 0, 0]}
    assert sizes == {(3, 2), (2, 3), (4, 4)}
    assert effects == {0, 1, 10}


def test_ranks_draw_sizes_of_their_own():
    first, second = make_streams(same_stream=True), make_streams(same_stream=True, rank=1)
    batches = [(first.batch(step), second.batch(step)) for step in range(40)]
    assert all((a.effect is None) == (b.effect is None) for a, b in batches)  # what collectives need
    assert any(a.target.shape != b.target.shape for a, b in batches)


# Journey


def check_sizes(collection, streams):
    """Sources and targets of every photo are as large as at use."""
    sizes, settings = sizes_of(collection)
    backbone = load_backbone(collection.manifest.base, settings.model)
    paths = collection.photo_paths(collection.effects[0])
    expected = []
    for path in paths:
        image = sizes.show(read_photo(path))
        assert image.shape[2:] == sizes.read(path).shape[:2]
        expected.append(backbone.encode_image(image)[0])
    assert len(find_buckets(expected)) > 1
    for data in streams.effects:
        for source, targets, image in zip(data.sources, data.targets, expected, strict=True):
            torch.testing.assert_close(source, image, atol=1e-5, rtol=1e-5)
            assert targets.shape == (settings.targets.samples, *image.shape)
            assert (targets[0] - targets[1]).abs().max() > 0
    general = streams.general
    assert [x.shape for x in general.sources] == [x.shape for x in general.targets]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Folders of tiny pipelines by name, each made once."""
    made = {}

    def make(name):
        if name not in made and name != "nano":
            torch.manual_seed(0)
            made[name] = tmp_path_factory.mktemp(name)
            getattr(tiny_pipelines, name)().save_pretrained(made[name])
        return made.get(name, name)

    return make


LARGE = {
    "model": {"dtype": "float32", "condition_resolution": 56, "gradient_checkpointing": False},
    "data": {"resolution": 64},
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["nano", "qwen_image_edit"])
def test_photos_of_several_shapes_through_the_whole_journey(name, tiny, tmp_path):
    settings = {} if name == "nano" else LARGE
    collection = build(tmp_path / "mine", tiny(name), settings)
    collectionlora.teach(collection)
    assert collectionlora.targets(collection) == {"one": 8, "two": 8, "general": 6}
    session = Session(collection, resolve_settings(collection, {}), with_critics=False)
    check_sizes(collection, session.make_targets(lambda *_: None))
    pairs = find_pairs(collection.only(["one"]), collection.effects[0], session.backbone, session.settings)
    assert pairs.count == 2

    collectionlora.distill(collection)
    previews = list((collection.folder / "runs" / "default" / "previews").iterdir())
    assert len(previews) == 1

    sizes, _ = sizes_of(collection)
    collectionlora.bench(collection, collection.folder / "heldout", crops=3)
    shapes = sorted(sizes.find(*shape) for shape in ((48, 96), (96, 50), (30, 30)))
    assert len(set(shapes)) == 3
    for method in ("teacher", "student"):
        (made,) = (collection.folder / "bench" / "pictures").glob(f"{method}/one-[!s]*")
        pictures = find_images("pictures", load_file(made))
        assert sorted(tuple(picture.shape[:2]) for picture in pictures) == shapes
    metrics = json.loads((collection.folder / "bench" / "metrics.json").read_text())
    assert metrics["photos"] == 3

    editor = Editor.load(collection.folder)
    photo = read_photo(collection.folder / "heldout" / "1.png")
    assert editor.fit(photo).shape[2:] == sizes.find(96, 50)
    assert editor.edit(photo, ["one"]).size == photo.shape[1::-1]


@pytest.mark.thorough
def test_a_run_that_goes_on_draws_the_sizes_of_a_whole_one(tmp_path):
    collection = build(tmp_path, "nano", {"match": {"loss": "flow"}})
    collectionlora.teach(collection)

    def start():
        run = Session(collection, resolve_settings(collection, {}), with_critics=True).distillation(ignore)
        drawn, draw = [], run.batch

        def keep(streams, step):
            batch = draw(streams, step)
            drawn.append(tuple(batch.target.shape))
            return batch

        run.batch = keep
        return run, drawn

    whole, all_drawn = start()
    for step in range(whole.num_steps):
        if step == 3:  # in the second phase
            saved = {name: tensor.clone() for name, tensor in whole.tensors().items()}
        whole(step)
    resumed, drawn = start()
    resumed.load_tensors(saved)
    resumed(3)
    assert len(set(all_drawn)) > 1
    assert drawn == all_drawn[3:]
    assert all(torch.equal(a, b) for a, b in zip(whole.ema, resumed.ema, strict=True))


def test_squares_are_made_anew_and_only_if_they_are_asked_for(tmp_path):
    layer = {"targets": {"steps": 1, "general": 2}, "data": {"resolution": 32}}
    collection = Collection.load(small_collection.build(tmp_path, size=(48, 32), settings=layer))
    shapes = []
    for crop in ("none", "square"):
        settings = resolve_settings(collection, {"data": {"crop": crop}})
        made = Session(collection, settings, False).make_targets(ignore)
        shapes.append(tuple(made.effects[0].sources[0].shape))
    assert shapes == [(3, 40, 24), (3, 32, 32)]


@pytest.mark.parametrize("name", ["qwen_image_edit", "flux_kontext"])
def test_a_plan_counts_the_size_with_the_most_tokens(name, tiny):
    workload = Workload(str(tiny(name)), 1, resolve(LARGE, {"data": {"resolution": 512}}))
    backbone = family_of(workload.base).without_weights(workload.base, workload.settings.model, {})
    sizes = working_sizes(workload, backbone)
    tokens = [rows * columns for rows, columns in sizes]
    assert tokens[0] == max(tokens) > 512**2
    counted = most_at_once(workload, backbone).source.numel()
    for size in sizes:
        shapes = backbone.shapes(size)
        one = shapes.empty_condition(1)
        assert counted >= backbone.max_batch(one) * one.source.numel()
    square = replace(workload, settings=resolve(LARGE, {"data": {"resolution": 512, "crop": "square"}}))
    assert working_sizes(square, backbone) == [(512, 512)]


def test_a_contact_sheet_shows_whole_photos_in_their_shape():
    wide, square = np.zeros((10, 20, 3), dtype=np.uint8), np.ones((20, 20, 3), dtype=np.uint8)
    sheet = contact_sheet([("a", [wide, square])], ["", ""], cell=40)
    for level, size in ((0, (20, 40)), (1, (40, 40))):
        places = np.nonzero((sheet == level).all(axis=2))
        assert tuple(np.ptp(place) + 1 for place in places) == size


@pytest.mark.parametrize("size", [(24, 24), (40, 24)])
def test_a_batch_draws_the_noise_again_that_its_targets_came_from(size, tmp_path):
    layer = {"targets": {"steps": 3, "general": 5, "samples": 2}, "match": {"updates": 1, "loss": "flow"}}
    collection = Collection.load(small_collection.build(tmp_path, size=size, settings=layer))
    session = Session(collection, resolve_settings(collection, {}), with_critics=True)
    run = session.distillation(ignore)
    batches = [run.streams.batch(step, size=3) for step in range(6)]
    assert {batch.effect is None for batch in batches} == {True, False}
    for batch in batches:
        with run.teachers.use(batch.effect):
            scale = run.settings.targets.guidance_scale
            denoiser = Denoiser(run.backbone, batch.teacher, batch.uncond, scale)
            again = sample_many_steps(denoiser, batch.noise_of_target(), 3)
        torch.testing.assert_close(again, batch.target, atol=1e-2, rtol=0)  # bfloat16, in another batch


def test_more_general_photos_leave_the_targets_of_the_effects(tmp_path):
    collection = Collection.load(small_collection.build(tmp_path))
    effect, layers = collection.effects[0], ({"general": 5}, {"general": 6}, {"steps": 3})
    keys = [effect_key(collection, effect, resolve_settings(collection, {"targets": x})) for x in layers]
    assert keys[0] == keys[1] != keys[2]

"""From pictures to metrics.json: truths of every kind, the classifier, effects that nothing is known of."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from collectionlora.collection import Collection
from collectionlora.effectbench.bench import GENERAL, Cases, Method, draw_crops, draw_whole
from collectionlora.effectbench.classifier import load_or_train
from collectionlora.effectbench.heldout import Heldout
from collectionlora.effectbench.metrics import perceptual_distance, psnr
from collectionlora.effectbench.running import read_name, split_steps
from collectionlora.effectbench.scoring import (
    Measured,
    average,
    concept_meter,
    score,
    summarise,
    teacher_meter,
    truth_meter,
)
from collectionlora.effectbench.truths import Truths, relative_names
from collectionlora.effects import EFFECTS
from collectionlora.effects.crops import PhotoPool
from collectionlora.effects.ordinary_kinds import Edit
from collectionlora.pictures.photos import write_photo
from collectionlora.pictures.sizes import WorkingSizes
from collectionlora.planning.checking import check_collection
from collectionlora.system.errors import UserError

RNG = np.random.default_rng(0)
SHAPES = ((40, 60, 3), (60, 40, 3), (40, 60, 3))
PHOTOGRAPHS = {f"me-{i}": RNG.integers(0, 256, shape, dtype=np.uint8) for i, shape in enumerate(SHAPES)}
SIDE = 32
SIZES = WorkingSizes(SIDE, 8)
KINDS = {
    "sepia": {},
    "browned": {"truth": "sepia"},
    "painted": {"truth": "true/painted"},
    "free": {"truth": "none"},
}


@pytest.fixture
def collection(tmp_path):
    """One effect of each kind of truth; of the painted photos two have a true image in another format."""
    for name in list(PHOTOGRAPHS)[:2]:
        write_photo(tmp_path / "true" / "painted" / f"{name}.bmp", 255 - PHOTOGRAPHS[name])
    common = {"teacher": "x.safetensors", "teacher_prompt": "x", "photos": "photos"}
    effects = [{"name": name, **common, **extra} for name, extra in KINDS.items()]
    manifest = {"effects": effects, "general": {"photos": "photos", "prompts": "general.txt"}}
    (tmp_path / "collection.yaml").write_text(yaml.safe_dump(manifest))
    return Collection.load(tmp_path)


@pytest.fixture
def cases():
    names = list(PHOTOGRAPHS)[:2]
    photos = [SIZES.fit(PHOTOGRAPHS[name]) for name in names]
    return Cases(photos, [7, 8], [Edit("brighten", photos[0], photos[1], "brighten")], names)


def copy(name="copy"):
    return Method(name, 0, lambda effect, images, seeds: images, lambda images, texts, seeds: images)


@pytest.mark.parametrize(
    ("truth", "hint"), [("sepai", "did you mean sepia?"), ("true/x", "name a folder of true")]
)
def test_a_truth_that_is_not_there_is_found_by_check(collection, truth, hint):
    path = collection.folder / "collection.yaml"
    path.write_text(path.read_text().replace("truth: true/painted", f"truth: {truth}"))
    problems = {problem["field"]: problem for problem in check_collection(collection.folder)["problems"]}
    found = problems["effects.painted.truth"]
    assert (found["message"], found["hint"][: len(hint)]) == ("there is no such folder", hint)
    path.write_text(path.read_text().replace(f"truth: {truth}", "truth: true/painted"))
    fields = [problem["field"] for problem in check_collection(collection.folder)["problems"]]
    assert "effects.painted.truth" not in fields


def test_a_perceptual_distance_is_zero_for_equal_photos_and_grows_with_damage():
    photo = PhotoPool([np.tile(np.arange(64, dtype=np.uint8)[:, None, None] * 4, (1, 64, 3))]).crop(RNG)
    noise = np.random.default_rng(0).normal(size=photo.shape)
    little, much = ((photo + s * noise).clip(0, 255).astype(np.uint8) for s in (5, 40))
    assert perceptual_distance(photo, photo) == 0
    assert 0 < perceptual_distance(photo, little) < perceptual_distance(photo, much) < 1


def test_the_truth_is_found_by_name_by_field_and_in_a_folder(collection, cases):
    truths = Truths(collection, cases, PHOTOGRAPHS, SIZES)
    known = [name for name in KINDS if truths.known(name)]
    assert known == ["sepia", "browned", "painted"]
    assert np.array_equal(truths.outcomes("sepia")[1][0], EFFECTS["sepia"](cases.photos[1]))
    assert np.array_equal(truths.draw("browned")[0], truths.draw("sepia")[0])
    (painted,) = truths.outcomes("painted")[0]
    assert np.array_equal(painted, SIZES.fit(255 - PHOTOGRAPHS["me-0"]))
    with pytest.raises(UserError, match="free has no known truth; leave out the method truth"):
        truths.method(list(KINDS))
    images = torch.rand(1, 3, SIDE, SIDE)
    made = truths.method(known).sample("sepia", images, [8])
    assert np.array_equal((made[0] * 255).round().permute(1, 2, 0).byte().numpy(), truths.draw("sepia")[1])


def test_a_photograph_without_its_true_image_is_named(collection):
    cases = draw_whole(PHOTOGRAPHS, 3, 0, SIZES)
    with pytest.raises(UserError, match="painted: me-2: has no true image for this photograph"):
        Truths(collection, cases, PHOTOGRAPHS, SIZES)


def test_a_true_image_of_another_shape_is_named(collection, cases):
    folder = next(path for path in collection.folder.rglob("me-0.*") if path.is_file())
    write_photo(folder, PHOTOGRAPHS["me-0"][:, :25])
    with pytest.raises(UserError, match="has another shape than me-0: 25 x 40, not 60 x 40"):
        Truths(collection, cases, PHOTOGRAPHS, SIZES)


def test_whole_photographs_are_drawn_without_repeats():
    cases = draw_whole(PHOTOGRAPHS, 3, 1, SIZES)
    assert sorted(cases.names) == sorted(PHOTOGRAPHS)
    assert [photo.shape[:2] for _, photo in sorted(zip(cases.names, cases.photos, strict=True))] == [
        SIZES.find(*photograph.shape[:2]) for photograph in PHOTOGRAPHS.values()
    ]
    assert len(cases.edits) == len(draw_crops(PhotoPool(list(PHOTOGRAPHS.values())), 1, 0, SIDE).edits) > 0
    with pytest.raises(UserError, match="--crops: 4 are asked for, there are 3"):
        draw_whole(PHOTOGRAPHS, 4, 1, SIZES)


def test_cases_are_those_of_the_bench_to_compare_with(collection):
    """An effect without a truth that is new would change crops into whole photographs."""
    pool, seeds = PhotoPool(list(PHOTOGRAPHS.values())), [0, 1]
    heldout = Heldout(PHOTOGRAPHS, pool, 2, seeds, 1)
    before = heldout.draw(collection.only(["sepia", "browned"]), SIZES)
    assert not before.names
    with_new = collection.only(["sepia", "browned", "free"])
    assert heldout.draw(with_new, SIZES).names
    assert replace(heldout, like=before.key).draw(with_new, SIZES).key == before.key
    for like, effects in (("other", ["sepia"]), (before.key, ["sepia", "painted"])):
        with pytest.raises(UserError, match="--baseline: is of other photos; bench with the same --photos"):
            replace(heldout, like=like).draw(collection.only(effects), SIZES)


def test_a_method_may_be_a_run_whose_name_ends_in_a_number(collection):
    def finish(run):
        path = collection.folder / "runs" / run / "collection.safetensors"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")

    finish("seed")
    assert read_name(collection, "seed-2") == ("seed", 2)
    finish("seed-2")
    assert read_name(collection, "seed-2") == ("seed-2", None)
    assert read_name(collection, "seed-2-4") == ("seed-2", 4)
    assert read_name(collection, "student-4") == ("student", 4)
    assert split_steps("teacher-0") == ("teacher-0", None)


def test_photos_are_known_by_their_path_without_the_suffix(tmp_path):
    write_photo(tmp_path / "a" / "one.png", PHOTOGRAPHS["me-0"])
    assert list(relative_names(tmp_path)) == ["a/one"]


def test_an_effect_is_measured_by_what_is_known_of_it(collection, cases):
    truths = Truths(collection, cases, PHOTOGRAPHS, SIZES)
    classifier = load_or_train(collection.folder, truths.procedural, PhotoPool(cases.photos), 2, 0)
    pictures = {"copy": {**dict.fromkeys(KINDS, cases.photos), GENERAL: [cases.photos[1]]}}
    meters = [truth_meter(truths), concept_meter(classifier, cases)]
    row = score({"copy": copy()}, pictures, cases, meters, "teacher")["copy"]
    rows = row["per_effect"]
    fidelity = {"psnr", "ssim", "perceptual_distance", "bad_case_rate", "coverage", "ci95"}
    assert rows["painted"].keys() == fidelity
    assert rows["sepia"].keys() == fidelity | {"concept_accuracy", "bleed"}
    assert rows["free"] == {"ci95": {}}
    assert row["psnr"] == pytest.approx(np.mean([rows[e]["psnr"] for e in ("sepia", "browned", "painted")]))
    assert row["worst_effect"] == min(("sepia", "browned", "painted"), key=lambda e: rows[e]["psnr"])
    assert [sum(counts) for counts in row["confusion"]] == [2, 2]  # of the two that the classifier knows
    assert row["general_psnr"] == 60


def test_an_effect_without_a_truth_is_compared_with_the_teachers_picture(collection, cases):
    truths = Truths(collection, cases, PHOTOGRAPHS, SIZES)
    brighter = [np.clip(photo.astype(int) + 10, 0, 255).astype(np.uint8) for photo in cases.photos]
    pictures = {
        "teacher": {**dict.fromkeys(KINDS, cases.photos), GENERAL: [cases.photos[1]]},
        "copy": {**dict.fromkeys(KINDS, brighter), GENERAL: [cases.photos[1]]},
    }
    methods = {name: copy(name) for name in pictures}
    table = score(methods, pictures, cases, [truth_meter(truths), teacher_meter(truths)], "teacher")
    found = {effect: row.get("teacher_psnr") for effect, row in table["copy"]["per_effect"].items()}
    expected = np.mean([psnr(*pair) for pair in zip(brighter, cases.photos, strict=True)])
    assert found == {"sepia": None, "browned": None, "painted": None, "free": pytest.approx(expected)}
    assert "teacher_psnr" not in table["teacher"]


def test_the_classifier_is_trained_once_for_the_same_things(tmp_path):
    effects = {name: EFFECTS[name] for name in ("sepia", "thermal")}
    pool = PhotoPool(list(PHOTOGRAPHS.values()))
    first = load_or_train(tmp_path, effects, pool, 2, 0)
    (path,) = tmp_path.iterdir()
    made = path.stat().st_mtime_ns
    again = load_or_train(tmp_path, effects, pool, 2, 0)
    assert path.stat().st_mtime_ns == made
    assert torch.equal(first.head.weight, again.head.weight)
    load_or_train(tmp_path, effects, PhotoPool([PHOTOGRAPHS["me-0"]]), 2, 0)
    load_or_train(tmp_path, {"sepia": EFFECTS["thermal"], "thermal": EFFECTS["sepia"]}, pool, 2, 0)
    load_or_train(tmp_path, effects, pool, 3, 0)
    assert len(list(tmp_path.iterdir())) == 4


def test_an_interval_does_not_shrink_by_photographs_that_are_shown_again():
    rng = np.random.default_rng(0)
    once, names = rng.normal(size=12), [f"photo-{i:02}" for i in range(12)]
    alone = average({"psnr": once})["ci95"]["psnr"]
    again = average({"psnr": np.tile(once, 8)}, names * 8)["ci95"]["psnr"]
    assert again == pytest.approx(alone)
    forgotten = average({"psnr": np.tile(once, 8)})["ci95"]["psnr"]
    assert forgotten[1] - forgotten[0] < 0.5 * (alone[1] - alone[0])


def test_photos_that_were_not_judged_are_left_out_of_means():
    one = Measured({"vsa": np.array([4.0, np.nan]), "bcr": np.array([0.0, np.nan])})
    two = Measured({"vsa": np.array([0.0, np.nan]), "bcr": np.array([1.0, np.nan])})
    row = summarise({"one": one, "two": two})
    assert (row["vsa"], row["bcr"], row["worst_effect"]) == (2, 0.5, "two")
    assert row["ci95"]["vsa"] == (2, 2)
    assert summarise({"none": Measured({"vsa": np.array([np.nan])})}) == {
        "ci95": {},
        "per_effect": {"none": {"ci95": {}}},
    }

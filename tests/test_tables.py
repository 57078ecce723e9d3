"""What the paper's tables on the nano base are made of, short of the trainings."""

import importlib
import json
import runpy
import shutil
import sys
from argparse import ArgumentTypeError, Namespace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch

from collectionlora import prompts
from collectionlora.adapters.formats import read_lora
from collectionlora.adapters.recipe import (
    SHIPPED,
    Recipe,
    adapter_path,
    read_adapter,
    read_recipe,
    write_adapter,
)
from collectionlora.backbones.nano import NANO
from collectionlora.command_line.demo import build_collection, shipped_teachers
from collectionlora.config import resolve
from collectionlora.effects import ALL_EFFECTS
from collectionlora.pictures.photographs import HELDOUT, TRAIN, pool
from collectionlora.pictures.photos import to_images, to_photos
from collectionlora.system.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tables(monkeypatch):
    """A module of the tables, by its name."""
    monkeypatch.syspath_prepend(ROOT / "scripts" / "nano")
    return lambda name: importlib.import_module(f"tables.{name}")


def test_a_folder_begun_with_other_options_is_refused(tables, tmp_path):
    keep = tables("study").keep_options
    keep(tmp_path, Namespace(seed=0, judged=24, overrides=["match.updates=1"]))
    keep(tmp_path, Namespace(seed=0, judged=2, overrides=["match.updates=1"]))
    with pytest.raises(UserError, match=r"options\.json: seed: was 0 and is 1"):
        keep(tmp_path, Namespace(seed=1, judged=2, overrides=["match.updates=1"]))


def test_each_step_took_what_lies_between_its_end_and_the_one_before(tables, tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"step": i, "seconds": s}) + "\n" for i, s in enumerate([2, 3, 6])))
    assert tables("study").step_seconds(log) == [2, 1, 3]


def test_teachers_of_a_folder_follow_those_that_ship(tables, tmp_path):
    first, shipped = tables("study").first_teachers, shipped_teachers()
    for name in ("swirl", "season"):
        shutil.copyfile(shipped["season"], tmp_path / f"{name}.safetensors")
    assert first(None, [tmp_path]) == {**shipped, "swirl": tmp_path / "swirl.safetensors"}
    assert list(first(3, [tmp_path])) == list(shipped)[:3]
    (tmp_path / "more").mkdir()
    shutil.copyfile(shipped["season"], tmp_path / "more" / "bokeh.safetensors")
    assert list(first(None, [tmp_path, tmp_path / "more"]))[-2:] == ["swirl", "bokeh"]
    with pytest.raises(UserError, match="52 effects are asked for and there are 51 teachers"):
        first(52, [tmp_path])
    (tmp_path / "other.safetensors").touch()
    with pytest.raises(UserError, match=r"other\.safetensors: name: is not an effect's"):
        first(None, [tmp_path])


def test_shipped_teachers_get_the_student_prompts_of_the_collection_that_ships(tmp_path):
    collection = build_collection(tmp_path, shipped_teachers(), pool(TRAIN), 0, num_general=1, num_photos=1)
    made = prompts(collection)["student_prompts"]
    assert list(made.items()) == list(read_recipe(SHIPPED).effects.items())


def test_a_weight_names_its_effect(tables):
    parse = tables("study").effect_weight
    assert parse("mirror=8") == ("mirror", 8)
    with pytest.raises(ArgumentTypeError, match="'mirro' is not an effect: write EFFECT=W"):
        parse("mirro=8")


def test_a_collection_does_not_grow_from_nothing(tables, tmp_path):
    kept = tables("incremental").kept_effects
    assert kept(["season", "thermal", "duotone"], ["thermal"]) == ["season", "duotone"]
    with pytest.raises(UserError, match="--new: swirl is not among the effects"):
        kept(["season"], ["swirl"])
    with pytest.raises(UserError, match="--new: leaves no effect to keep"):
        kept(["season"], ["season"])


def test_a_collection_grows_from_a_finished_adapter_without_the_effects_it_lacks(tables, tmp_path):
    shipped = shipped_teachers()
    teachers = {name: shipped[name] for name in ("season", "thermal")}
    collection = build_collection(tmp_path, teachers, pool(TRAIN), 0, num_general=1, num_photos=1)
    study = Namespace(args=Namespace(start=Path("nano")), collection=collection)
    collection.result.write_text("of an add that is made again")
    tables("incremental").begin(study, ["season"])
    assert list(read_adapter(collection.result)[1].effects) == ["season"]
    before, after = (read_adapter(p)[0].weights for p in (adapter_path(Path("nano")), collection.result))
    assert all(torch.equal(a, b) for m in before for a, b in zip(before[m], after[m], strict=True))


def test_lora_plus_halves_the_rate_for_a_and_doubles_it_for_b(tables):
    plus = tables("tuning").lora_plus(1e-3)
    rate, ratio = plus["match"]["learning_rate"], plus["distill"]["loraplus_lr_ratio"]
    assert (rate, rate * ratio) == (0.5e-3, 2e-3)


def test_only_the_late_student_is_trained_at_higher_sigmas(tables):
    rows = tables("tuning").ROWS
    shifts = {row: resolve(NANO.recommended, changes).sampling.shift for row, changes in rows.items()}
    assert shifts == {"one": 3, "twice": 3, "plus": 3, "late": 12}


def test_only_what_is_saved_and_the_fall_of_the_rate_differ_in_averages(tables):
    rows = {row: resolve(NANO.recommended, changes) for row, changes in tables("averages").ROWS.items()}
    distill = {row: (settings.distill.ema, settings.distill.decay_ratio) for row, settings in rows.items()}
    assert distill == {"last": (0, 0.6), "average": (0.998, 0.6), "constant": (0.998, 0)}
    assert all(settings.sampling.shift == 12 for settings in rows.values())


def test_rows_of_the_ablation_differ_in_what_their_names_say(tables):
    ablation = tables("ablation")
    for row, (start, changes) in ablation.ROWS.items():
        own = {"distill": {**ablation.LAYER["distill"], **ablation.STARTS[start], **changes}}
        distill = resolve({"distill": {"effect_ratio": 0.75}}, own).distill
        parts = {
            "pdsr": distill.effect_ratio < 1,
            "aop": distill.asymmetric_prompts,
            "ts": distill.target_weight.end > 0,
            "ta": distill.anchor_weight.end > 0,
        }
        named = parts if row == "all" else row.split("-")
        assert {part for part, there in parts.items() if there} == set(named)


@pytest.mark.parametrize("pair", [("thermal", "season"), ("season", "duotone")])
def test_a_true_picture_of_a_pair_is_one_of_its_right_answers(tables, pair):
    composition = tables("composition")
    photo = pool(HELDOUT).crop(np.random.default_rng(0), (32, 32))
    [made] = to_photos(composition.true_picture(pair, to_images([photo]), [3]))
    assert composition.fidelity(pair, [photo], [made]) == 60
    [other] = to_photos(composition.true_picture(pair[::-1], to_images([photo]), [3]))
    assert composition.fidelity(pair, [photo], [other]) < 40


def test_effects_are_compared_with_those_of_another_method():
    below = runpy.run_path(str(ROOT / "scripts" / "results_table.py"))["below_table"]
    values = {"teacher": (20.0, 20.0, 20.0), "student": (18.5, 18.4, 20.1)}
    names = ("thermal", "season", "sepia")
    methods = {
        name: {"per_effect": {effect: {"psnr": psnr} for effect, psnr in zip(names, psnrs, strict=True)}}
        for name, psnrs in values.items()
    }
    last = below({"methods": methods}, "teacher").splitlines()[-1]
    assert last == "| student | 2 | 1 | season -1.6, thermal -1.5, sepia +0.1 |"


def test_of_several_files_the_table_has_means_and_the_range(tmp_path):
    table = runpy.run_path(str(ROOT / "scripts" / "results_table.py"))["table"]
    for seed, value in enumerate([20.0, 22.0]):
        scores = {"psnr": value, "concept_accuracy": 0.5, "bad_case_rate": 0.1 * seed, "general_psnr": 30}
        scores["perceptual_distance"] = 0.3 + 0.1 * seed
        interval = {"psnr": [0, 0], "concept_accuracy": [0, 0]}
        row = {"nfe": 8, "ci95": interval, "per_effect": {"thermal": {"psnr": value}}, **scores}
        (tmp_path / f"{seed}.json").write_text(json.dumps({"methods": {"student": row}}))
    text = table(tmp_path / "0.json", tmp_path / "1.json").splitlines()[-1]
    expected = ["student", "8", "21.0 (20.0 to 22.0)", "21.0", "", "0.350", "50 % (50 to 50)", "5 %"]
    assert text == f"| {' | '.join(expected)} | 30.0 |"


def test_an_earlier_version_is_compared_on_the_effects_that_both_have():
    compare = runpy.run_path(str(ROOT / "scripts" / "results_table.py"))["earlier_table"]

    def metrics(**psnr):
        scores = {"psnr": fmean(psnr.values()), "concept_accuracy": 0.5, "general_psnr": 30.0}
        scores["ci95"] = {"psnr": [1, 2], "concept_accuracy": [0, 1]}
        return {"methods": {"student": {**scores, "per_effect": {e: {"psnr": v} for e, v in psnr.items()}}}}

    head, _, before, now = compare(metrics(sepia=21.0, fog=22.0), metrics(fog=24.0, season=10.0)).splitlines()
    assert (
        head == "| | PSNR | 1 effects in both | of them lost most, dB | concept accuracy | ordinary edits |"
    )
    assert before == "| student, earlier | 17.0 (1.0 to 2.0) | 24.00 |  | 50 % (0 to 100) | 30.0 |"
    assert now == "| student, now | 21.5 (1.0 to 2.0) | 22.00 | fog -2.00 | 50 % (0 to 100) | 30.0 |"
    same = compare(metrics(fog=24.0), metrics(fog=22.0))
    assert same.splitlines()[0] == "| | PSNR | concept accuracy | ordinary edits |"


def test_dials_of_strength_scale_a_finished_adapter(tmp_path, monkeypatch):
    lora = read_lora(shipped_teachers()["thermal"])
    facts = {"base": "nano", "steps": 2, "shift": 12.0, "resolution": 64, "version": "0"}
    recipe = Recipe(effects={"thermal": ALL_EFFECTS["thermal"].teacher_prompt}, **facts)
    write_adapter(tmp_path / "one.safetensors", lora.weights, recipe)
    given = [
        "--collection",
        tmp_path / "one.safetensors",
        "--out",
        tmp_path / "out",
        "--photos",
        2,
        "--steps",
        2,
    ]
    monkeypatch.setattr(sys, "argv", ["strength", *map(str, given)])
    runpy.run_path(str(ROOT / "scripts" / "nano" / "strength.py"))["main"]()
    means = json.loads((tmp_path / "out" / "strength.json").read_text())["means"]
    assert means["fade"]["photo"] == means["photo"]["photo"] == 60  # at 0 the photo itself
    assert means["lora"]["truth"] == pytest.approx(means["fade"]["truth"])  # at 1 the whole effect
    assert means["lora"]["uneven"] > means["fade"]["uneven"]

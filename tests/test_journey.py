"""The verbs one after the other on the embedded base, at the smallest sizes, and the demo at its end."""

import json

import numpy as np
import pytest
import yaml
from helpers.random_loras import write_random_loras
from PIL import Image

from collectionlora.adapters.formats import read_lora
from collectionlora.adapters.recipe import read_adapter
from collectionlora.collection import Collection
from collectionlora.command_line import demo as demo_module
from collectionlora.command_line.verbs import app
from collectionlora.config import SettingsError
from collectionlora.effectbench import bench, benching
from collectionlora.effects import EFFECTS
from collectionlora.pictures.photographs import TRAIN, load_photograph, pool
from collectionlora.system.errors import UserError
from collectionlora.system.files import read_tensors

SMALL = {
    "data": {"resolution": 32},
    "student": {"rank": 4},
    "critic": {"rank": 4},
    "targets": {"steps": 2, "samples": 2, "general": 4},
    "teach": {"steps": 3, "rank": 2, "batch_size": 2},
    "match": {"updates": 2},
    "sampling": {"steps": 2},
    "distill": {"student_updates": 2, "batch_size": 2, "student_update_every": 2, "rollout_steps": [2]},
}


def call(capsys, *arguments):
    """Exit code and the JSON object on stdout."""
    with pytest.raises(SystemExit) as stopped:
        app([str(a) for a in (*arguments, "--json")])
    return stopped.value.code, json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A collection that brings pairs, not teachers."""
    folder = tmp_path_factory.mktemp("journey") / "mine"
    with pytest.raises(SystemExit):
        app(["init", str(folder)])
    crops, rng = pool(TRAIN), np.random.default_rng(0)
    entries = []
    for name in ("sepia", "technicolor"):
        for index in range(3):
            photo = crops.crop(rng)
            for side, image in (("source", photo), ("target", EFFECTS[name](photo, rng))):
                path = folder / "pairs" / name / side / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path)
        entries.append(
            {
                "name": name,
                "teacher": f"teachers/{name}.safetensors",
                "teacher_prompt": EFFECTS[name].teacher_prompt,
                "photos": f"pairs/{name}/source",
            }
        )
    Image.fromarray(crops.crop(rng)).save(folder / "photos" / "general" / "one.png")
    manifest = {
        "base": "nano",
        "effects": entries,
        "general": {"photos": "photos/general", "prompts": "general.txt"},
        "settings": SMALL,
    }
    (folder / "collection.yaml").write_text(yaml.safe_dump(manifest))
    return folder


@pytest.fixture(scope="module")
def taught(folder):
    """The same collection with its teachers."""
    with pytest.raises(SystemExit):
        app(["teach", str(folder)])
    return folder


def test_from_pairs_to_one_file(folder, capsys, tmp_path):
    code, result = call(capsys, "check", folder)
    assert code == 2  # the teachers are not there yet
    assert {p["file"].split("/")[-1] for p in result["problems"]} == {
        "sepia.safetensors",
        "technicolor.safetensors",
    }

    code, result = call(capsys, "teach", folder)
    assert code == 0
    assert read_lora(folder / "teachers" / "sepia.safetensors").rank == 2
    code, result = call(capsys, "check", folder)
    assert (code, result["ok"]) == (0, True)
    assert [e["name"] for e in result["effects"]] == ["sepia", "technicolor"]

    code, result = call(capsys, "prompts", folder)
    assert code == 0
    assert all(
        text.startswith(f"<{name}_") and text.endswith(EFFECTS[name].teacher_prompt)
        for name, text in result["student_prompts"].items()
    )
    assert result["student_cosine"][0][1] < result["teacher_cosine"][0][1]

    code, result = call(capsys, "targets", folder)
    assert (code, result) == (0, {"sepia": 6, "technicolor": 6, "general": 4})

    code, result = call(capsys, "distill", folder)
    assert code == 0
    lora, recipe = read_adapter(folder / "collection.safetensors")
    assert lora.rank == 4
    assert list(recipe.effects) == ["sepia", "technicolor"]
    assert any(b.abs().sum() > 0 for _, b in lora.weights.values())
    log = [json.loads(line) for line in (folder / "runs" / "default" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [0, 1, 2, 3]
    assert ["match" in entry for entry in log] == [True, True, False, False]
    saved = json.loads((folder / "runs" / "default" / "settings.json").read_text())
    assert saved["distill"]["student_updates"] == 2
    teacher = "teachers/sepia.safetensors"
    for run in ("default", "teach-sepia"):
        read = json.loads((folder / "runs" / run / "inputs.json").read_text())["files"]
        assert (teacher in read) == (run == "default")
        assert {"collection.yaml", "pairs/sepia/source/0.png"} <= set(read)
    assert "pairs/sepia/target/0.png" in read

    photo = folder / "photos" / "general" / "one.png"
    code, result = call(
        capsys,
        "edit",
        folder,
        "--effect",
        "sepia",
        "--then",
        "technicolor",
        "--photo",
        photo,
        "--out",
        tmp_path / "o.png",
    )
    assert code == 0
    assert Image.open(result["images"][0]).size == (64, 64)


@pytest.mark.thorough
def test_the_same_seed_gives_the_same_file_and_another_does_not(taught, capsys):
    made = []
    for seed in (1, 1, 2):
        call(capsys, "distill", taught, "--run", f"seed-{len(made)}", "--set", f"distill.seed={seed}")
        made.append((taught / "collection.safetensors").read_bytes())
    assert made[0] == made[1]
    assert made[0] != made[2]


def test_targets_are_made_once(taught, capsys):
    call(capsys, "targets", taught)
    cache = {path: path.stat().st_mtime_ns for path in (taught / "cache").iterdir()}
    call(capsys, "targets", taught)
    assert cache == {path: path.stat().st_mtime_ns for path in (taught / "cache").iterdir()}
    call(capsys, "targets", taught, "--set", "targets.steps=3")
    new = {path.name for path in (taught / "cache").iterdir()} - {path.name for path in cache}
    # What was encoded is used again.
    assert sorted(name.rsplit("-", 1)[0] for name in new) == ["general", "sepia", "technicolor"]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (
            ["distill", "--set", "distill.student_update=3"],
            UserError,
            "--set: .* did you mean distill.student_updates",
        ),
        (["distill", "--set", "student.rank=0"], UserError, "--set: student.rank: "),
        (["teach", "sepai"], UserError, "did you mean sepia"),
        (["targets", "--set", "targets"], SettingsError, "write --set section.name=value"),
    ],
)
def test_bad_arguments_name_the_hint(folder, arguments, error, words):
    verb, *rest = arguments
    with pytest.raises(error, match=words):
        app([verb, str(folder), *rest])


def test_a_pair_without_its_partner_is_named(folder):
    lonely = folder / "pairs" / "sepia" / "source" / "lonely.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(lonely)
    try:
        with pytest.raises(UserError, match="lonely: is in source/ or target/ alone"):
            app(["teach", str(folder), "sepia"])
    finally:
        lonely.unlink()


def test_demo_ends_with_table_pictures_and_report(tmp_path, monkeypatch, capsys):
    teachers = write_random_loras(tmp_path, ("sepia", "technicolor"))
    monkeypatch.setattr(demo_module, "shipped_teachers", lambda: teachers)
    for constant, value in (("PHOTOS", 3), ("GENERAL_PHOTOS", 2), ("JUDGED", 2), ("CLASSIFIER_STEPS", 2)):
        monkeypatch.setattr(demo_module, constant, value)
    overrides = [f"{section}.{key}={value}" for section, keys in SMALL.items() for key, value in keys.items()]
    flat = [part for override in overrides for part in ("--set", override)]
    code, metrics = call(capsys, "demo", "--out", tmp_path / "demo", "--effects", "2", *flat)
    assert code == 0
    assert metrics == json.loads((tmp_path / "demo" / "metrics.json").read_text())
    assert {"source", "teacher", "student"} <= set(metrics["methods"])
    assert metrics["methods"]["source"]["nfe"] == 0
    assert metrics["methods"]["teacher"]["nfe"] == 4
    for row in metrics["methods"].values():
        assert {"psnr", "ssim", "concept_accuracy", "bad_case_rate", "bleed", "general_psnr"} <= set(row)
        assert set(row["per_effect"]) == {"sepia", "technicolor"}
    page = (tmp_path / "demo" / "report.html").read_text()
    # Effects, photos; source, truth, teacher, student; the strength dial of each effect.
    assert page.count("data:image/") == 2 * 2 * (2 + 2) + 2
    assert "<polyline" in page
    assert Image.open(tmp_path / "demo" / "sheet.png").width > 800
    shown = np.asarray(Image.open(tmp_path / "demo" / "pictures.png")).astype(int)
    photo, sepia, technicolor = (shown[12:172, 12 + i * 246 : 252 + i * 246] for i in range(3))
    assert np.abs(sepia - technicolor).mean() > 0.1
    assert (
        np.abs(photo - np.asarray(Image.fromarray(load_photograph("chelsea")).resize((240, 160)))).mean() < 4
    )
    assert [e.name for e in Collection.load(tmp_path / "demo" / "collection").effects] == [
        "sepia",
        "technicolor",
    ]

    with pytest.raises(UserError, match="choose 1 to 2"):
        app(["demo", "--out", str(tmp_path / "again"), "--effects", "9"])


def test_bench_judges_methods_keeps_their_pictures_and_goes_on(taught, capsys, monkeypatch):
    monkeypatch.setattr(benching, "CLASSIFIER_STEPS", 2)
    monkeypatch.setattr(bench, "GENERAL_KINDS", ("blur",))
    call(capsys, "distill", taught, "--run", "first")
    arguments = ["bench", taught, "--crops", "1", "--seeds", "2"]
    methods = "source,truth,teacher,teacher-1,student,first,stack"
    code, metrics = call(capsys, *arguments, "--methods", methods)
    assert code == 0
    assert metrics == json.loads((taught / "bench" / "metrics.json").read_text())
    assert (metrics["photos"], metrics["seeds"]) == (2, [0, 1])
    rows = metrics["methods"]
    assert {name: row["nfe"] for name, row in rows.items()} == {
        "source": 0, "truth": 0, "teacher": 4, "teacher-1": 2, "student": 2, "first": 2, "stack": 2
    }  # fmt: skip
    student, first = ({k: v for k, v in rows[n].items() if "seconds" not in k} for n in ("student", "first"))
    assert student == first
    assert student["bytes"] == (taught / "collection.safetensors").stat().st_size
    assert rows["teacher"]["bytes"] == sum(p.stat().st_size for p in (taught / "teachers").iterdir())
    assert rows["source"]["bytes"] == 0
    assert [name for name, row in rows.items() if "general_base_psnr" not in row] == ["teacher"]
    assert rows["truth"]["psnr"] == rows["truth"]["general_psnr"] == 60
    assert rows["truth"]["concept_accuracy"] == metrics["classifier"]["accuracy"]
    for row in rows.values():
        low, high = row["ci95"]["psnr"]
        assert low <= row["psnr"] <= high
        assert row["worst_effect"] in row["per_effect"]
        assert row["psnr"] == pytest.approx(np.mean([one["psnr"] for one in row["per_effect"].values()]))
        assert [sum(counts) for counts in row["confusion"]] == [2, 2]
        assert all(len(counts) == 3 for counts in row["confusion"])

    pictures = {
        path: path.stat().st_mtime_ns for path in (taught / "bench").rglob("pictures/*/*.safetensors")
    }
    # Two effects, the ordinary edits, and the first dial for each effect.
    assert len(pictures) == 3 * len(rows) + 2
    pictures |= {path: path.stat().st_mtime_ns for path in (taught / "bench").glob("classifier-*")}
    assert len(pictures) == 3 * len(rows) + 3
    drawn = taught / "bench" / "pictures" / "student"
    dial = read_tensors(next(drawn.glob("sepia-strip-*")))[0]["pictures"].int()
    made = read_tensors(next(drawn.glob(f"sepia-{'[0-9a-f]' * 16}.safetensors")))[0]["pictures"].int()
    assert len(dial) == 5
    assert (dial[4] - made[0]).abs().max() <= 1
    assert (dial[0] - made[0]).abs().float().mean() > 1
    call(capsys, *arguments, "--methods", methods)
    assert all(path.stat().st_mtime_ns == made for path, made in pictures.items())

    with pytest.raises(UserError, match="'studnet' is not a method; choose from source, truth"):
        app(["bench", str(taught), "--methods", "studnet"])

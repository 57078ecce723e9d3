"""Every bad input is exit code 2 and ONE line that names file, field and fix; nothing is half written."""

import os
import re
import resource
import shutil
import socket
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from helpers.bad_inputs import (
    HUGE,
    LORA,
    MANIFEST,
    PHOTO,
    both,
    claim,
    cut,
    effect,
    first_entry,
    folder_instead,
    gone,
    header,
    large_jpeg_cut,
    link,
    lora,
    manifest,
    pickled,
    png_of,
    raw,
    settings,
    torch_saved,
    twin,
)
from helpers.small_collection import build

from collectionlora.adapters.formats import read_lora
from collectionlora.adapters.recipe import Recipe, write_adapter
from collectionlora.collection import Collection
from collectionlora.command_line.studio import import_page
from collectionlora.command_line.verbs import main

RECIPE = Recipe(base="nano", steps=1, shift=3.0, resolution=64, effects={"sepia": "sepia"}, version="0")
# What is spoilt, the file and the field that the line names, what it says, and how it says to fix it.
MANIFESTS = {
    "no manifest": (gone(MANIFEST), "", "is missing", "collectionlora init"),
    "a folder in its place": (folder_instead(MANIFEST), "", "cannot be read", "put a readable file there"),
    "a link to itself": (link(MANIFEST, MANIFEST), "", "cannot be read", "put a readable file there"),
    "not UTF-8": (raw(MANIFEST, b"base: \xff\xfe"), "", "is not text in UTF-8", "save it as UTF-8"),
    "a NUL": (raw(MANIFEST, "base: a\0b"), "", "is not valid YAML", "fix the syntax"),
    "an open bracket": (raw(MANIFEST, "effects: ["), "", "is not valid YAML", "fix the syntax"),
    "a tab": (raw(MANIFEST, "general:\n\tphotos: a"), "", "is not valid YAML", "fix the syntax"),
    "a list": (raw(MANIFEST, "- base"), "", "is not a mapping", "start it with"),
    "a word": (raw(MANIFEST, "nano"), "", "is not a mapping", "start it with"),
    "empty": (raw(MANIFEST, ""), "", "is not a mapping", "start it with"),
    "a key twice": (raw(MANIFEST, "base: nano\nbase: nano"), "", "'base' is there twice", "fix the syntax"),
    "an empty number": (raw(MANIFEST, "base: !!int ''"), "", "is not valid YAML", "fix the syntax"),
    "nested too deeply": (raw(MANIFEST, "[" * 5000), "", "nested too deeply", "fix the syntax"),
    "a tag that runs code": (
        *(raw(MANIFEST, "base: !!python/object/apply:os.getcwd []"), ""),
        *("is not valid YAML", "fix the syntax"),
    ),
    "an unknown alias": (raw(MANIFEST, "base: *nano"), "", "is not valid YAML", "fix the syntax"),
    "an alias of itself": (raw(MANIFEST, "effects: &a [*a]"), "effects.0", "valid dictionary", "it is"),
    "keys that are no words": (
        lambda folder: (folder / MANIFEST).write_text((folder / MANIFEST).read_text() + "1: 2\n"),
        *("1", "should be strings", "it is 1 now"),
    ),
    "an unknown key": (manifest(efects=[]), "efects", "no such key", "did you mean effects?"),
    "an unknown key of an effect": (
        effect(teacher_promt="x"),
        "effects.0.teacher_promt",
        "no such key",
        "teacher_prompt?",
    ),
    "an unknown key of general": (
        manifest(general={"photos": "photos", "prompts": "general.txt", "promts": "x"}),
        *("general.promts", "no such key", "did you mean prompts?"),
    ),
    "no effects": (manifest(effects=None), "effects", "is missing", "add it"),
    "no general": (manifest(general=None), "general", "is missing", "add it"),
    "no teacher": (effect(teacher=None), "effects.0.teacher", "is missing", "add it"),
    "a misspelt key": (effect(teacher=None, teachr="a"), "effects.0.teachr", "no such key", "mean teacher?"),
    "no teacher prompt": (effect(teacher_prompt=None), "effects.0.teacher_prompt", "is missing", "add it"),
    "no photos": (effect(photos=None), "effects.0.photos", "is missing", "add it"),
    "no prompts": (manifest(general={"photos": "photos"}), "general.prompts", "is missing", "add it"),
    "an empty list of effects": (manifest(effects=[]), "effects", "at least 1", "it is"),
    "effects that are a mapping": (manifest(effects={"a": 1}), "effects", "valid tuple", "it is"),
    "an effect that is a word": (manifest(effects=["a"]), "effects.0", "valid dictionary", "'a' now"),
    "a name that is a number": (effect(name=3), "effects.0.name", "valid string", "it is 3 now"),
    "a name in capitals": (effect(name="Sepia"), "effects.0.name", "match pattern", "'Sepia' now"),
    "a name with a slash": (effect(name="../a"), "effects.0.name", "match pattern", "'../a' now"),
    "an empty name": (effect(name=""), "effects.0.name", "match pattern", "'' now"),
    "a long name": (effect(name="a" * 65), "effects.0.name", "at most 64", "now"),
    "a teacher that is a list": (effect(teacher=["a"]), "effects.0.teacher", "valid string", "['a'] now"),
    "an effect called general": (
        effect(name="general"),
        "effects",
        "no effect can be called general",
        "another",
    ),
    "two effects of one name": (effect(name="technicolor"), "effects", "two effects are called", "rename"),
    "two effects with one trigger": (
        both(first={"student_prompt": "<one> red"}, second={"student_prompt": "<one> blue"}),
        *("student_prompt", "share the trigger <one>", "its own trigger"),
    ),
    "two effects with one prompt": (
        both(first={"student_prompt": "red"}, second={"student_prompt": "red"}),
        *("student_prompt", "share the student prompt 'red'", "its own trigger"),
    ),
    "an empty prompt": (effect(teacher_prompt=""), "effects.0.teacher_prompt", "at least 1", "'' now"),
    "a blank prompt": (effect(teacher_prompt=" \t"), "effects.0.teacher_prompt", "at least 1", "now"),
    "a prompt of 10,000 characters": (
        effect(teacher_prompt="x" * 10_000),
        "effects.0.teacher_prompt",
        "at most 2000",
        "xxx' now",
    ),
    "a control character": (
        effect(teacher_prompt="bell\a"),
        "effects.0.teacher_prompt",
        "control character U+0007",
        "now",
    ),
    "a prompt that is a number": (
        effect(teacher_prompt=7),
        "effects.0.teacher_prompt",
        "valid string",
        "7 now",
    ),
    "a teacher outside": (
        effect(teacher="../t.safetensors"),
        "effects.sepia.teacher",
        "outside the folder",
        "copy it",
    ),
    "photos outside": (effect(photos="/etc"), "effects.sepia.photos", "outside the folder", "copy it"),
    "prompts outside": (
        manifest(general={"photos": "photos", "prompts": "../general.txt"}),
        *("general.prompts", "outside the folder", "copy it"),
    ),
    "a link that leads outside": (link(LORA, "/etc/hosts"), "effects.sepia.teacher", "outside", "copy it"),
    "a loop of links": (
        lambda folder: [link("loop", "loop")(folder), effect(photos="loop")(folder)],
        *("effects.sepia.photos", "is not a path", "fix the path or the link"),
    ),
    "an effect that is never drawn": (effect(weight=0), "effects.0.weight", "greater than 0", "it is 0 now"),
    "an effect of a negative weight": (effect(weight=-1), "effects.0.weight", "greater than 0", "now"),
    "a NUL in a path": (effect(photos="a\0b"), "effects.0.photos", "control character U+0000", "now"),
    "a path too long": (effect(photos="a" * 500), "effects.sepia.photos", "is not a path", "fix the path"),
    "an unknown section": (settings(distil={"seed": 1}), "distil", "no such setting", "did you mean distill"),
    "an unknown setting": (
        settings(distill={"student_update": 1}),
        "distill.student_update",
        "no such setting",
        "updates?",
    ),
    "a setting of another type": (
        settings(distill={"batch_size": "many"}),
        "distill.batch_size",
        "valid integer",
        "'many' now",
    ),
    "a setting out of range": (
        settings(distill={"batch_size": 0}),
        "distill.batch_size",
        "greater than",
        "it is 0 now",
    ),
    "a setting that is not a number": (
        settings(student={"learning_rate": float("nan")}),
        "student.learning_rate",
        "finite",
        "nan now",
    ),
    "a setting without end": (
        settings(student={"learning_rate": float("inf")}),
        "student.learning_rate",
        "finite",
        "inf now",
    ),
    "a list without brackets": (
        settings(distill={"rollout_steps": "8,4"}),
        *("distill.rollout_steps", "valid tuple", "write a list in brackets, [8, 4]"),
    ),
    "a schedule of no steps": (
        settings(distill={"rollout_steps": [0]}),
        "distill.rollout_steps.0",
        "greater than",
        "it is 0 now",
    ),
    "a seed too large": (settings(distill={"seed": 2**64}), "distill.seed", "less than", "now"),
    "settings that are a list": (manifest(settings=[1]), "settings", "valid dictionary", "[1] now"),
    "a small critic": (settings(critic={"rank": 1}, student={"rank": 2}), "settings", "at least", "now"),
    "an empty base": (manifest(base=""), "base", "at least 1", "'' now"),
    "a base that is a number": (manifest(base=1), "base", "valid string", "1 now"),
}


def without(ending):
    return lambda tensors, _: {name: t for name, t in tensors.items() if not name.endswith(ending)}


def with_first(value):
    """Another tensor in the place of the first module's down matrix."""
    return lambda tensors, down: {**tensors, down: value(tensors[down])}


def with_alpha(alpha):
    return lambda tensors, down: {**tensors, down.replace("lora_A.weight", "alpha"): alpha}


AGAIN, CONVERT, FETCH, SAME_BASE = (
    "export or train this LoRA again",
    "convert it to safetensors",
    "download it again",
    "LoRA of this base",
)
CONFIG = "lora_adapter_metadata"
LORAS = {
    "no file": (gone(LORA), "", "no such file", "check the path"),
    "a folder": (folder_instead(LORA), "", "not a safetensors file", "give the file, not a folder"),
    "zero bytes": (raw(LORA, ""), "", "not a safetensors file", FETCH),
    "seven bytes": (cut(LORA, 7), "", "not a safetensors file", FETCH),
    "a cut header": (cut(LORA, 100), "", "not a safetensors file", FETCH),
    "cut data": (cut(LORA, -100), "", "not a safetensors file", FETCH),
    "more than it says": (
        lambda folder: (folder / LORA).write_bytes((folder / LORA).read_bytes() + b"more"),
        *("", "not a safetensors file", FETCH),
    ),
    "a header of 100 GB": (claim(100 * 10**9), "", "not a safetensors file", FETCH),
    "a header of 2^63 bytes": (claim(2**63), "", "not a safetensors file", FETCH),
    "a header of 90 MB": (claim(90 * 10**6), "", "not a safetensors file", FETCH),
    "a header that is not JSON": (
        raw(LORA, b"\x08" + b"\0" * 7 + b"{]}not {"),
        "",
        "not a safetensors",
        FETCH,
    ),
    "a header that is a list": (header(lambda entries: list(entries)), "", "not a safetensors file", FETCH),
    "a shape that lies": (first_entry(lambda e: {**e, "shape": [3, 3]}), "", "not a safetensors", FETCH),
    "a huge shape": (first_entry(lambda e: {**e, "shape": [2**40, 2**40]}), "", "not a safetensors", FETCH),
    "an unknown type": (first_entry(lambda e: {**e, "dtype": "F99"}), "", "not a safetensors file", FETCH),
    "offsets beyond the end": (
        first_entry(lambda e: {**e, "data_offsets": [HUGE, HUGE + 4]}),
        "",
        "not a safetensors file",
        FETCH,
    ),
    "offsets backwards": (
        first_entry(lambda e: {**e, "data_offsets": e["data_offsets"][::-1]}),
        "",
        "not a safetensors",
        FETCH,
    ),
    "a pickle": (pickled, "", "not a safetensors file", CONVERT),
    "a pickle of torch": (torch_saved, "", "not a safetensors file", CONVERT),
    "a text": (raw(LORA, "<html>404 not found</html>"), "", "not a safetensors file", FETCH),
    "llama.cpp's": (raw(LORA, b"GGUF\3" + b"\0" * 40), "", "not a safetensors file", CONVERT),
    "a pointer": (
        raw(LORA, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"),
        *("", "not a safetensors file", "run git lfs pull"),
    ),
    "NaN": (lora(with_first(lambda a: a * float("nan"))), "lora_A.weight", "not finite", AGAIN),
    "infinity": (lora(with_first(lambda a: a + float("inf"))), "lora_A.weight", "not finite", AGAIN),
    "no tensors": (lora(lambda *_: {}), "", "holds no LoRA weights", "give the file of a trained LoRA"),
    "another base": (
        lora(lambda tensors, _: {name.replace("blocks", "double_blocks"): t for name, t in tensors.items()}),
        *("", "is not a module that takes a LoRA", SAME_BASE),
    ),
    "other shapes": (lora(with_first(lambda a: a[:, 1:].contiguous())), "", "changes a weight of", SAME_BASE),
    "other ranks": (lora(with_first(lambda a: a[1:].contiguous())), "", "ranks 1 and 2 differ", AGAIN),
    "a vector": (lora(with_first(lambda a: a[0].contiguous())), "", "ranks 6 and 2 differ", AGAIN),
    "an empty matrix": (lora(with_first(lambda a: a[:0].contiguous())), "", "not matrices", AGAIN),
    "halves": (lora(without("lora_B.weight")), "", "only one of the two", AGAIN),
    "integers": (lora(with_first(lambda a: a.int())), "lora_A.weight", "holds int32 numbers", AGAIN),
    "complex numbers": (lora(with_first(lambda a: a.float() + 0j)), "", "holds complex64 numbers", AGAIN),
    "an unknown key": (
        lora(lambda tensors, _: {**tensors, "lora_Z": torch.ones(1)}),
        *("lora_Z", "not a LoRA weight of a known format", "docs/lora-files.md"),
    ),
    "a text encoder": (
        lora(lambda tensors, _: {**tensors, "text_encoder.q.lora_A.weight": torch.ones(2, 2)}),
        *("text_encoder", "trains the text encoder", "write without_text_encoder: true into"),
    ),
    "a bias": (
        lora(lambda tensors, _: {**tensors, "transformer.a.bias": torch.ones(2)}),
        *("transformer.a.bias", "replaces a weight, a bias or a norm", "without"),
    ),
    "a DoRA magnitude that is one number": (
        lora(
            lambda tensors, down: {**tensors, down.replace("lora_A.weight", "dora_scale"): torch.tensor(1.0)}
        ),
        *("dora_scale", "is a magnitude []", SAME_BASE),
    ),
    "an alpha of two numbers": (lora(with_alpha(torch.ones(2))), "alpha", "has shape [2]", "one number"),
    "an alpha without end": (
        lora(
            lambda tensors, down: with_alpha(torch.tensor(3e38))(
                {n: 99 * t for n, t in tensors.items()}, down
            )
        ),
        *("", "overflows", AGAIN),
    ),
    "a header that is broken": (lora(lambda t, _: t, {CONFIG: "{"}), CONFIG, "is not a JSON object", AGAIN),
    "a header nested too deeply": (
        lora(lambda t, _: t, {CONFIG: "[" * 9999}),
        CONFIG,
        "is not a JSON object",
        AGAIN,
    ),
    "a header of another rank": (
        lora(lambda t, _: t, {CONFIG: '{"r": 7, "lora_alpha": 7}'}),
        CONFIG,
        "states rank 7",
        AGAIN,
    ),
    "a header of no rank": (
        lora(lambda t, _: t, {CONFIG: '{"r": "x", "lora_alpha": NaN}'}),
        CONFIG,
        "states rank 'x'",
        AGAIN,
    ),
    "a header with a broken pattern": (
        lora(lambda t, _: t, {CONFIG: '{"r": 2, "lora_alpha": 2, "rank_pattern": {"(": 2}}'}),
        *(CONFIG, "has invalid patterns", AGAIN),
    ),
    "a header with a list for a pattern": (
        lora(lambda t, _: t, {CONFIG: '{"r": 2, "lora_alpha": 2, "rank_pattern": [1]}'}),
        *(CONFIG, "has invalid patterns", AGAIN),
    ),
}

NO_IMAGE, REPLACE = "cannot be read as an image", "replace or remove it"
PHOTOS = {
    "zero bytes": (raw(PHOTO, ""), PHOTO, "", NO_IMAGE, REPLACE),
    "a cut PNG": (cut(PHOTO, 900), PHOTO, "", NO_IMAGE, REPLACE),
    "a cut JPEG": (large_jpeg_cut, "photos/2.jpg", "", NO_IMAGE, REPLACE),
    "a text": (raw("photos/2.jpg", "a cat"), "photos/2.jpg", "", NO_IMAGE, REPLACE),
    "a header alone": (raw(PHOTO, b"\x89PNG\r\n\x1a\n"), PHOTO, "", NO_IMAGE, REPLACE),
    "60,000 x 60,000 pixels": (raw(PHOTO, png_of(60_000, 60_000)), PHOTO, "", "60000 x|exceeds limit", ""),
    "13,000 x 13,000 pixels without data": (raw(PHOTO, png_of(13_000, 12_000)), PHOTO, "", NO_IMAGE, REPLACE),
    "no pixels": (raw(PHOTO, png_of(0, 5)), PHOTO, "", "cannot be read|0 x 5", ""),
    "a link to nothing": (link("photos/2.jpg", "absent.jpg"), "photos/2.jpg", "", "no such file", "check"),
    "a link to itself": (
        link("photos/2.jpg", "2.jpg"),
        "photos/2.jpg",
        "",
        NO_IMAGE,
        "links lead in a circle",
    ),
    "no folder": (
        lambda f: shutil.rmtree(f / "photos"),
        "photos",
        "photos",
        "no such folder",
        "put photos there",
    ),
    "an empty folder": (
        lambda f: [path.unlink() for path in (f / "photos").iterdir()],
        *("photos", "photos", "holds no photos", "put .jpg"),
    ),
}
TEXT = "general.txt"
PROMPTS = {
    "no file": (gone(TEXT), "general.prompts", "No such file", "give a text file"),
    "a folder": (folder_instead(TEXT), "general.prompts", "Is a directory", "give a text file"),
    "empty": (raw(TEXT, ""), "general.prompts", "is empty", "one instruction a line"),
    "blank": (raw(TEXT, " \n\t\r\n"), "general.prompts", "is empty", "one instruction a line"),
    "UTF-16": (
        raw(TEXT, "blur".encode("utf-16")),
        "general.prompts",
        "is not text in UTF-8",
        "save it as UTF-8",
    ),
    "a line of 10,000 characters": (
        raw(TEXT, f"a\n{'x' * 10_000}"),
        "line 2",
        "10,000",
        "keep it under 2,000",
    ),
    "a control character": (raw(TEXT, "a\nring\x07 it\n"), "line 2", "control character U+0007", "remove it"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return good_collection(tmp_path_factory.mktemp("good") / "mine")


@pytest.fixture
def folder(good, tmp_path):
    return shutil.copytree(good, tmp_path / "mine")


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command line; returns its exit code and what it told people."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["collectionlora", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code, capsys.readouterr().err

    return call


def files(folder):
    """All files, with what they hold."""
    return {
        path: path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if path.is_file() or path.is_symlink()
    }


def refused(run, folder, *arguments):
    """The one line of an error; nothing in the folder has changed."""
    before = files(folder)
    code, told = run(*arguments)
    assert code == 2, told
    assert "Traceback" not in told
    lines = [line for line in told.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, told
    others = [line for line in told.splitlines() if line not in lines]
    assert all(
        re.fullmatch(
            r"\s*|not ready; .*: .* check .*|1 process|photos \d.*|(sepia|technicolor): .* modules.*|.*━.*",
            o,
        )
        for o in others
    )
    assert lines[0].isprintable()
    assert len(lines[0]) < 1500
    assert files(folder) == before
    return lines[0]


def assert_names(line, place, field, says, hint):
    assert line.startswith(f"error: {place}: "), line
    assert field in line.removeprefix(f"error: {place}: "), line
    assert any(part in line for part in says.split("|")), line
    assert hint in line.partition("; ")[2], line


def good_collection(folder):
    return build(folder, paired=("sepia",), size=(40, 48))


def of_table(table):
    return pytest.mark.parametrize("case", table.values(), ids=table)


def assert_refused(run, folder, verb, place, spoil, *named):
    spoil(folder)
    assert_names(refused(run, folder, verb, folder), folder / place, *named)


@of_table(MANIFESTS)
def test_a_bad_manifest(run, folder, case):
    assert_refused(run, folder, "targets", MANIFEST, *case)


@of_table(LORAS)
def test_a_bad_lora_file(run, folder, case):
    assert_refused(run, folder, "check", LORA, *case)
    assert not (folder / "exploded").exists()


@of_table(PHOTOS)
def test_a_bad_photo(run, folder, case):
    spoil, place, *named = case
    assert_refused(run, folder, "check", place, spoil, *named)


@of_table(PROMPTS)
def test_bad_instructions(run, folder, case):
    assert_refused(run, folder, "check", TEXT, *case)


def failing_pair(folder):
    (folder / "pairs/sepia/target/1.png").write_bytes(b"")


def lonely(folder):
    (folder / "pairs/sepia/source/1.png").unlink()


def nothing(folder):
    pass


ADAPTER = "collection.safetensors"
ARGUMENTS = {
    "no folder": (nothing, ["check", "{}/absent"], "absent: there is no such folder; make one"),
    "a file for a folder": (nothing, ["check", "{}/general.txt"], "there is no such folder; make one"),
    "a setting without a section": (
        nothing, ["targets", "{}", "--set", "rank=2"], "write --set section.name=value"),
    "an unknown setting": (
        nothing, ["targets", "{}", "--set", "data.resolutoin=8"],
        "did you mean data.resolution?",
    ),
    "a broken value": (nothing, ["targets", "{}", "--set", "data.resolution=["], "write a YAML value"),
    "a value out of range": (nothing, ["targets", "{}", "--set", "data.resolution=1"], "it is 1 now"),
    "an odd resolution": (nothing, ["targets", "{}", "--set", "data.resolution=17"], "write a multiple of 8"),
    "an unknown effect": (nothing, ["teach", "{}", "sepai"], "no such effect; did you mean sepia?"),
    "no pairs": (
        nothing, ["teach", "{}", "technicolor"],
        "pairs/technicolor/source: photos: there is no such",
    ),
    "a pair without its partner": (
        lonely, ["teach", "{}", "sepia"],
        "1: is in source/ or target/ alone; give",
    ),
    "two pairs of one name": (twin, ["teach", "{}", "sepia"], "0.png: has the name of 0.jpg, .*; rename one"),
    "a pair that is no photo": (failing_pair, ["teach", "{}", "sepia"], "1.png: cannot be read as an image"),
    "a run above the folder": (
        nothing, ["distill", "{}", "--run", "../x"],
        "--run: '../x' cannot name a folder",
    ),
    "an edit before its time": (
        nothing, ["edit", "{}", "--effect", "sepia", "--photo", "{}/photos/0.png", "--out", "o.png"],
        "this collection is not distilled yet; run: collectionlora distill",
    ),
    "an unknown image format": (
        nothing, ["edit", "{}", "--effect", "sepia", "--photo", "{}/photos/0.png", "--out", "o.xyz"],
        "'.xyz' is not an image format; end the name in",
    ),
    "a photo that is not there": (
        nothing, ["edit", "{}", "--effect", "sepia", "--photo", "{}", "--out", "o.png"],
        "not distilled yet",
    ),
    "an effect's LoRA for the result": (
        lambda folder: shutil.copy(folder / LORA, folder / ADAPTER),
        ["export", "{}", "--format", "peft", "--out", "{}/out"], "carries no collectionlora recipe; give",
    ),
    "an unknown export": (
        lambda folder: shutil.copy(folder / LORA, folder / ADAPTER),
        ["export", "{}", "--format", "onnx", "--out", "{}/out"], "'onnx' is not known; choose from",
    ),
    "a large base without photographs to judge on": (
        manifest(base="Qwen/Qwen-Image-Edit-2509"), ["bench", "{}"],
        r"^error: --photos: is needed to judge over Qwen/.* enlarge the small .*: --photos FOLDER",
    ),
    "an unknown method": (nothing, ["bench", "{}", "--methods", "best"], "'best' is not a method; choose"),
    "no earlier metrics": (nothing, ["bench", "{}", "--baseline", "{}/none.json"], "none.json: --baseline: "),
    "earlier metrics that are a list": (
        raw("list.json", "[1]"), ["bench", "{}", "--baseline", "{}/list.json"],
        "list.json: --baseline: cannot be read",
    ),
    "an open studio": (
        nothing, ["studio", "{}", "--host", "0.0.0.0"],
        "lets other machines in without a password",
    ),
    "a collection that is there": (
        nothing, ["init", "{}"],
        "exists already; edit it, or choose another folder",
    ),
    "a new one in place of a photo": (
        nothing, ["init", "{}/photos/0.png"], "is a file; give the collection's folder first",
    ),
    "a new one around a file": (
        lambda folder: [(folder / "new").mkdir(), (folder / "new/teachers").touch()],
        ["init", "{}/new"], "new/teachers: File exists; a file lies where",
    ),
    "a host that is not here": (
        raw("auth", "me:secret"), ["studio", "{}", "--host", "192.0.2.1", "--auth", "{}/auth", "--port", "0"],
        "--host: cannot listen on 192.0.2.1:0 .*; give an address of this machine",
    ),
    "a user with two passwords": (
        raw("auth", "me:one\nme:two"), ["studio", "{}", "--auth", "{}/auth"], "names a user twice; give each",
    ),
    "a new one of a broken LoRA": (
        cut(LORA, 50), ["init", "{}/new", "--from-loras", "{}/" + LORA], "not a safetensors file",
    ),
    "a new one of an endless prompt": (
        lora(lambda t, _: t, {"teacher_prompt": "x" * 10_000}),
        ["init", "{}/new", "--from-loras", "{}/" + LORA],
        "effects.0.teacher_prompt: .* at most 2000 characters",
    ),
    "a nano of another dtype": (
        settings(model={"dtype": "bfloat16", "quantization": "nf4"}), ["targets", "{}"],
        "collection.yaml: settings.model: are for large bases; .*; leave out all but quantization",
    ),
    "a judge without a model": (nothing, ["bench", "{}", "--judge", "http://h/v1"], "--judge"),
    "damaged prompts": (raw("prompts.json", "{"), ["prompts", "{}"], "prompts.json: .*remove the file"),
}  # fmt: skip


@of_table(ARGUMENTS)
def test_bad_arguments(run, folder, case):
    spoil, arguments, expected = case
    spoil(folder)
    line = refused(run, folder, *(part.format(folder) for part in arguments))
    assert re.search(expected, line), line


def test_a_verb_that_runs_alone(run, folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    line = refused(run, folder, "teach", folder)
    assert "WORLD_SIZE: teach runs in one process; start it without torchrun" in line


@pytest.mark.parametrize(
    ("package", "arguments", "expected"),
    [
        ("gradio", ["studio", "{}"], r"needs gradio .*; install it: pip install 'collectionlora\[studio\]'"),
        ("diffusers", ["targets", "{}"], r"needs diffusers .*pip install 'collectionlora\[diffusers\]'"),
        ("diffusers", ["check", "{}"], r"needs diffusers .*pip install 'collectionlora\[diffusers\]'"),
        ("diffusers", ["prompts", "{}"], r"needs diffusers .*pip install 'collectionlora\[diffusers\]'"),
        (
            "openai",
            ["prompts", "{}", "--vlm", "http://127.0.0.1:9/v1", "--model", "any"],
            r"^error: --vlm: needs openai .*; install it: pip install 'collectionlora\[vlm\]'",
        ),
        (
            "transformers",
            ["bench", "{}", "--methods", "source", "--set", "bench.clip=any"],
            r"^error: bench\.clip: needs transformers; install it: pip install 'collectionlora\[bench\]'",
        ),
    ],
)
def test_an_extra_that_is_not_installed(run, folder, monkeypatch, package, arguments, expected):
    if package == "diffusers":
        base = "some/where" if arguments[0] == "targets" else "Qwen/Qwen-Image-Edit-2509"
        manifest(base=base)(folder)
    for name in [name for name in sys.modules if name.split(".")[0] == package or "studio.page" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert re.search(expected, refused(run, folder, *(part.format(folder) for part in arguments)))


def test_a_fault_under_the_page_is_not_taken_for_a_missing_gradio(monkeypatch):
    monkeypatch.delitem(sys.modules, "collectionlora.studio.page", raising=False)
    monkeypatch.setitem(sys.modules, "collectionlora.studio.page_handlers", None)
    with pytest.raises(ImportError, match="page_handlers"):
        import_page("127.0.0.1", [])


def test_a_port_that_is_taken(run, folder):
    write_adapter(folder / ADAPTER, read_lora(folder / LORA).weights, RECIPE)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        line = refused(run, folder, "studio", folder, "--port", port)
    assert f"--port: cannot listen on 127.0.0.1:{port}" in line
    assert line.endswith("try --port 0")


def test_a_disk_that_is_full(run, folder):
    """A limit on the size of a file is what a full disk is to the program: a write that fails half way."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        line = refused(run, folder / "teachers", "targets", folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert re.search(r"cache/.*safetensors: cannot be written \(File too large\); choose another place", line)
    assert not list(folder.rglob("*.partial"))
    assert not list((folder / "cache").iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody for a moment")
def test_a_folder_that_may_not_be_written(run):
    place = Path(tempfile.mkdtemp())
    try:
        place.chmod(0o755)
        folder = good_collection(place / "mine")
        os.seteuid(65534)
        try:
            line = refused(run, folder, "teach", folder, "sepia")
        finally:
            os.seteuid(0)
        assert re.search(
            r"runs/teach-sepia/lock: cannot be written \(Permission denied\); give yourself", line
        )
    finally:
        shutil.rmtree(place)


def test_memory_that_is_not_enough(run, folder):
    line = refused(run, folder / "teachers", "teach", folder, "sepia", "--set", f"teach.rank={HUGE}")
    assert line.startswith("error: memory: is not enough (")
    assert "; lower data.resolution, distill.batch_size" in line


WORDS = {"emoji": "make it 🎨🧑‍🎨", "right to left": "اجعلها لوحة زيتية", "many scripts": "絵にする é\u200f"}


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_prompts_of_any_script_are_good(run, folder, words):
    effect(teacher_prompt=words)(folder)
    (folder / "general.txt").write_text(f"\ufeff{words}\n", encoding="utf-8")
    code, told = run("check", folder)
    assert (code, told.splitlines()[-1].split(";")[0]) == (0, "ready"), told
    collection = Collection.load(folder)
    assert collection.effect("sepia").teacher_prompt == words
    assert collection.general_prompts() == [words]


def test_there_are_at_least_eighty():
    assert sum(map(len, (MANIFESTS, LORAS, PHOTOS, PROMPTS, ARGUMENTS))) >= 80

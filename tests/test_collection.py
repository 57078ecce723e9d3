import shutil

import pytest
import torch
import yaml
from safetensors.torch import save_file
from typer.testing import CliRunner

from collectionlora.adapters.formats import read_lora, write_lora
from collectionlora.collection import Collection
from collectionlora.command_line.verbs import app
from collectionlora.manifest.template import create
from collectionlora.system.errors import UserError

GOOD = {
    "base": "nano",
    "effects": [
        {"name": "a-b", "teacher": "teachers/a.safetensors", "teacher_prompt": "do a", "photos": "photos"},
        {"name": "c", "teacher": "teachers/c.safetensors", "teacher_prompt": "do a", "photos": "photos"},
    ],
    "general": {"photos": "photos", "prompts": "general.txt"},
}


def write(folder, document):
    text = document if isinstance(document, str) else yaml.safe_dump(document)
    (folder / "collection.yaml").write_text(text)
    return folder


def changed(**effect):
    return {**GOOD, "effects": [{**GOOD["effects"][0], **effect}, GOOD["effects"][1]]}


def test_a_good_manifest_is_read(tmp_path):
    collection = Collection.load(write(tmp_path, GOOD))
    assert [e.name for e in collection.effects] == ["a-b", "c"]
    assert collection.teacher_path(collection.effect("c")) == tmp_path / "teachers/c.safetensors"


@pytest.mark.parametrize(
    ("document", "field", "hint"),
    [
        ("base: [", "", "fix the syntax"),
        ("- 1", "", "start it with"),
        ({**GOOD, "efects": []}, "efects", "did you mean effects"),
        (changed(teacher_promt="x"), "effects.0.teacher_promt", "did you mean teacher_prompt"),
        ({"effects": GOOD["effects"]}, "general", "add it"),
        (changed(name="C"), "effects.0.name", "'C' now"),
        (changed(name="c"), "effects", "rename"),
        (changed(teacher_prompt=""), "effects.0.teacher_prompt", "now"),
        ({**GOOD, "effects": []}, "effects", "now"),
        (changed(name=3), "effects.0.name", "3 now"),
    ],
)
def test_a_bad_manifest_names_file_field_and_hint(tmp_path, document, field, hint):
    with pytest.raises(UserError) as error:
        Collection.load(write(tmp_path, document))
    assert error.value.file == str(tmp_path / "collection.yaml")
    assert error.value.field == field
    assert hint in error.value.hint


def test_two_effects_with_one_student_prompt_are_refused(tmp_path):
    document = {**GOOD, "effects": [{**e, "student_prompt": "<x> do"} for e in GOOD["effects"]]}
    with pytest.raises(UserError, match="share the student prompt"):
        Collection.load(write(tmp_path, document))


def test_paths_outside_the_folder_are_refused(tmp_path):
    collection = Collection.load(write(tmp_path, changed(teacher="../elsewhere.safetensors")))
    with pytest.raises(UserError, match="outside the folder"):
        collection.teacher_path(collection.effect("a-b"))


def test_an_unknown_effect_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match="did you mean a-b"):
        Collection.load(write(tmp_path, GOOD)).effect("a-c")


def test_missing_pieces_are_named(tmp_path):
    collection = Collection.load(write(tmp_path, GOOD))
    with pytest.raises(UserError, match="no such folder"):
        collection.general_photo_paths()
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match="holds no photos"):
        collection.general_photo_paths()
    (tmp_path / "general.txt").write_text("\n \n")
    with pytest.raises(UserError, match="is empty"):
        collection.general_prompts()
    with pytest.raises(UserError, match="collectionlora init"):
        Collection.load(tmp_path / "absent")


def test_init_makes_a_manifest_that_loads_and_never_overwrites(tmp_path):
    create(tmp_path / "new", "nano", [])
    assert [e.name for e in Collection.load(tmp_path / "new").effects] == ["my-effect"]
    with pytest.raises(UserError, match="exists already"):
        create(tmp_path / "new", "nano", [])


def test_init_takes_lora_files_and_keeps_the_alpha_that_peft_writes_beside(tmp_path):
    pair = {"m.lora_A.weight": torch.ones(2, 3), "m.lora_B.weight": torch.ones(3, 2)}
    save_file(pair, tmp_path / "Oil Paint.safetensors", {"teacher_prompt": "paint it in oil"})
    (tmp_path / "neon").mkdir()
    save_file(pair, tmp_path / "neon" / "adapter_model.safetensors")
    (tmp_path / "neon" / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 6}')
    files = [tmp_path / "Oil Paint.safetensors", tmp_path / "neon" / "adapter_model.safetensors"]
    create(tmp_path / "new", "nano", files)
    collection = Collection.load(tmp_path / "new")
    oil, neon = collection.effects
    assert (oil.name, oil.teacher_prompt, neon.name) == ("oil-paint", "paint it in oil", "neon")
    assert read_lora(collection.teacher_path(oil)).scales == {"m": 1.0}
    assert read_lora(collection.teacher_path(neon)).scales == {"m": 3.0}


@pytest.fixture
def loras(tmp_path):
    """A folder with a LoRA file of its own, and those of two libraries in folders."""
    pair = {"m.lora_A.weight": torch.ones(2, 3), "m.lora_B.weight": torch.ones(3, 2)}
    names = ("sketch.safetensors", "neon/adapter_model.safetensors", "oil/pytorch_lora_weights.safetensors")
    for name in (*names, "neon/optimizer.safetensors"):
        (tmp_path / "loras" / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(pair, tmp_path / "loras" / name)
    for other in ("README.md", "._sketch.safetensors"):  # macOS writes such a file beside a copy
        (tmp_path / "loras" / other).write_text("no LoRA")
    return tmp_path / "loras"


def init(*arguments):
    return CliRunner().invoke(app, ["init", *map(str, arguments)])


def test_init_takes_a_folder_of_lora_files(tmp_path, loras):
    assert init(tmp_path / "mine", "--from-loras", loras).exit_code == 0
    assert {e.name for e in Collection.load(tmp_path / "mine").effects} == {"sketch", "neon", "oil"}
    assert init(tmp_path / "one", "--from-loras", loras / "neon").exit_code == 0  # an adapter of PEFT
    assert [e.name for e in Collection.load(tmp_path / "one").effects] == ["neon"]
    (tmp_path / "empty").mkdir()
    failed = init(tmp_path / "none", "--from-loras", tmp_path / "empty").exception
    assert str(failed) == (
        f"{tmp_path / 'empty'}: --from-loras: holds no .safetensors files; "
        "give LoRA files, or a folder of them"
    )
    assert not (tmp_path / "none").exists()


def test_init_says_which_prompts_are_guesses_and_so_does_check(tmp_path):
    pair = {"m.lora_A.weight": torch.ones(2, 3), "m.lora_B.weight": torch.ones(3, 2)}
    headers = {
        "oil": {"teacher_prompt": "paint it"},
        "neon": {"modelspec.trigger_phrase": "glow style"},
        "水彩": {},
    }
    for name, header in headers.items():
        save_file(pair, tmp_path / f"{name}.safetensors", header)
    files = [tmp_path / f"{name}.safetensors" for name in headers]
    shown = init(tmp_path / "mine", "--from-loras", *files).stderr
    assert f"{files[0]}: effect oil, 'paint it'; the file states this prompt" in shown
    assert f"{files[1]}: effect neon, 'glow style'; this prompt is a guess" in shown
    assert f"{files[2]}: effect effect, 'apply the effect effect'; this prompt is a guess" in shown
    text = (tmp_path / "mine" / "collection.yaml").read_text()
    assert text.count("# a guess: write what this LoRA was trained with") == 2
    shutil.copyfile(files[2], tmp_path / "油画.safetensors")
    with pytest.raises(UserError, match=r"油画\.safetensors: gives the effect name effect, as .*水彩"):
        create(tmp_path / "other", "nano", [files[2], tmp_path / "油画.safetensors"])


def test_init_refuses_a_file_whose_name_means_something_else(tmp_path):
    save_file({"m.lora_A.weight": torch.ones(2, 3)}, tmp_path / "General.safetensors", {"teacher_prompt": ""})
    with pytest.raises(
        UserError, match=r"General\.safetensors: gives the effect name general, which means so"
    ):
        create(tmp_path / "mine", "nano", [tmp_path / "General.safetensors"])
    (tmp_path / "General.safetensors").rename(tmp_path / "neon.safetensors")
    (found,) = create(tmp_path / "mine", "nano", [tmp_path / "neon.safetensors"])
    assert (found.prompt, found.guessed) == ("apply the neon effect", True)


def test_a_base_that_is_a_folder_is_found_from_everywhere(tmp_path, monkeypatch):
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    create(tmp_path / "mine", "./tiny", [])
    assert Collection.load(tmp_path / "mine").manifest.base == str(tmp_path / "tiny")
    for missing in ("./tyny", "../tyny", "/tyny"):
        with pytest.raises(UserError, match=f"--base: there is no folder {missing}; give the folder of a"):
            create(tmp_path / "other", missing, [])
    create(tmp_path / "hub", "owner/name", [])
    assert Collection.load(tmp_path / "hub").manifest.base == "owner/name"


def test_init_takes_the_files_that_a_shell_writes_for_a_pattern(tmp_path, loras):
    files = [loras / "sketch.safetensors", loras / "neon" / "adapter_model.safetensors"]
    assert init(tmp_path / "mine", "--from-loras", *files, "--base", "nano").exit_code == 0
    assert [e.name for e in Collection.load(tmp_path / "mine").effects] == ["sketch", "neon"]
    # With the folder behind them the second file stands where the folder should.
    failed = init("--from-loras", *files, tmp_path / "other").exception
    assert "is a file; give the collection's folder first: collectionlora init FOLDER" in str(failed)
    assert not (tmp_path / "other").exists()


def test_init_shortens_a_name_that_no_effect_can_have(tmp_path):
    title = f"flux-kontext {'x' * 50} rank16 step00004000"
    save_file({"m.lora_A.weight": torch.ones(1, 1)}, tmp_path / f"{title}.safetensors")
    create(tmp_path / "new", "nano", [tmp_path / f"{title}.safetensors"])
    (effect,) = Collection.load(tmp_path / "new").effects
    assert effect.name == f"flux-kontext-{'x' * 50}"


def test_init_writes_any_teacher_prompt_as_yaml(tmp_path):
    prompt = 'style: "neon" # bright\n- really'
    weights = {"to_q": (torch.ones(2, 3), torch.ones(4, 2))}
    write_lora(tmp_path / "neon.safetensors", weights, {"teacher_prompt": prompt})
    create(tmp_path / "new", "nano", [tmp_path / "neon.safetensors"])
    assert Collection.load(tmp_path / "new").effect("neon").teacher_prompt == prompt


@pytest.mark.parametrize("name", ["no", "on", "off", "y", "1e3", "010", "0x10", "2024-01-01"])
def test_an_effect_may_be_called_what_yaml_reads_otherwise(tmp_path, name):
    write(tmp_path, yaml.safe_dump(changed(name="placeholder")).replace("placeholder", name))
    assert Collection.load(tmp_path).effects[0].name == name


@pytest.mark.parametrize("name", ["7", "true", "1.5"])
def test_a_name_that_is_no_text_is_to_be_put_into_quotes(tmp_path, name):
    text = yaml.safe_dump(changed(name="placeholder"))
    with pytest.raises(UserError, match="now: put it into quotes"):
        Collection.load(write(tmp_path, text.replace("placeholder", name)))
    if name != "1.5":
        assert (
            Collection.load(write(tmp_path, text.replace("placeholder", f"'{name}'"))).effects[0].name == name
        )


def test_init_quotes_names_that_yaml_reads_otherwise(tmp_path):
    for name in ("7", "true", "no"):
        save_file({"a.lora_A.weight": torch.ones(1, 1)}, tmp_path / f"{name}.safetensors")
    create(tmp_path / "mine", "nano", [tmp_path / f"{name}.safetensors" for name in ("7", "true", "no")])
    assert [e.name for e in Collection.load(tmp_path / "mine").effects] == ["7", "true", "no"]

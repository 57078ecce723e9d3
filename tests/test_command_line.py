"""The verbs that only look, and how the command line presents itself."""

import json
import shlex

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from collectionlora.adapters.recipe import SHIPPED, read_adapter, read_recipe, write_adapter
from collectionlora.collection import Collection
from collectionlora.command_line import terminal
from collectionlora.command_line.options import repeat
from collectionlora.command_line.terminal import command
from collectionlora.command_line.verbs import app, main
from collectionlora.config import setting_names
from collectionlora.manifest.template import create
from collectionlora.runs.verbs import warn_of_no_run
from collectionlora.system.errors import UserError


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path):
    create(tmp_path / "mine", "nano", [])
    path = tmp_path / "mine" / "collection.yaml"
    document = yaml.safe_load(path.read_text())
    document["settings"] = {"distill": {"seed": 7, "batch_size": 3}}
    path.write_text(yaml.safe_dump(document))
    return tmp_path / "mine"


def test_settings_tells_every_value_and_its_layer(folder):
    told = json.loads(run("settings", folder, "--set", "distill.batch_size=2", "--json").stdout)
    assert list(told) == setting_names()
    assert told["distill.batch_size"] == {"value": 2, "from": "--set"}
    assert told["distill.seed"] == {"value": 7, "from": "collection.yaml"}
    assert told["student.rank"] == {"value": 32, "from": "recommended for nano"}
    assert told["distill.student_update_every"] == {"value": 5, "from": "default"}
    shown = run("settings", folder).stderr
    assert "distill.seed" in shown
    assert "collection.yaml" in shown


def test_a_recipe_lies_under_the_manifests_settings_wherever_it_is_named(folder):
    path = folder / "collection.yaml"
    path.write_text(path.read_text().replace("recipe: default", "recipe: paper"))
    told = json.loads(run("settings", folder, "--json").stdout)
    assert told["distill.critic_samples"] == {"value": "simulated", "from": "recipe paper"}
    assert told["distill.batch_size"] == {"value": 3, "from": "collection.yaml"}
    told = json.loads(run("settings", folder, "--recipe", "default", "--json").stdout)
    assert told["distill.critic_samples"] == {"value": "final", "from": "default"}
    path.write_text(path.read_text().replace("recipe: paper", "recipe: default"))
    arguments = ("--recipe", "paper", "--set", "distill.seed=1", "--json")
    told = json.loads(run("settings", folder, *arguments).stdout)
    assert told["distill.critic_samples"] == {"value": "simulated", "from": "recipe paper"}
    assert told["distill.batch_size"] == {"value": 3, "from": "collection.yaml"}
    assert told["distill.seed"] == {"value": 1, "from": "--set"}
    assert "choose from default, paper" in str(run("settings", folder, "--recipe", "best").exception)


def test_going_on_with_a_run_that_was_never_begun_is_said(folder, caplog):
    (folder / "runs" / "default").mkdir(parents=True)
    (folder / "runs" / "default" / "run.json").write_text("{}")
    warn_of_no_run(Collection.load(folder), "default")
    assert caplog.text == ""
    warn_of_no_run(Collection.load(folder), "defualt")
    assert "runs/defualt: there is no such run, so it begins now; there are: default" in caplog.text


def test_a_hint_can_be_pasted_into_a_shell():
    words = ["edit", "my photos", "--effect", "pencil-sketch", "--set", "distill.rollout_steps=[4]"]
    assert shlex.split(command(*words))[-len(words) :] == words
    assert repeat("--set", ["a.b=1", "c.d=2"]) == ["--set", "a.b=1", "--set", "c.d=2"]
    assert repeat("--set", None) == []


def test_settings_refuses_what_a_run_would_refuse(folder):
    failed = run("settings", folder, "--set", "distill.batchsize=2").exception
    assert isinstance(failed, UserError)
    assert "did you mean distill.batch_size?" in str(failed)


def test_effects_lists_what_a_collection_holds():
    expected = read_recipe(SHIPPED).effects
    assert json.loads(run("effects", "nano", "--json").stdout) == expected
    shown = run("effects", "nano").stderr
    assert all(name in shown for name in expected)


def test_a_part_of_an_effects_name_is_recognised(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "me.png")
    refused = str(run("edit", "nano", tmp_path / "me.png", "--effect", "neon").exception)
    assert refused == "effect: 'neon' is not in this collection; did you mean neon-edges or neon-sign?"


def test_help_says_what_the_program_does_and_groups_its_verbs():
    shown = run("--help").stdout
    assert "Distil many effect LoRAs into one LoRA that needs few steps, and use it." in shown
    places = [shown.index(group) for group in ("Make a collection", "Use it", "Grow it")]
    assert places == sorted(places)
    assert shown.index("distill") < places[1] < shown.index("export") < places[2] < shown.index("remove")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["edit", "nano", "me.jpg", "--effect", "neon", "--steps", "0"], "--steps"),
        (["edit", "nano", "me.jpg", "--efect", "neon"], "no such option: --efect"),
        (["edit"], "missing argument"),
        (["nonsense"], "no such command 'nonsense'; see: "),
        (["edt"], "no such command 'edt'. Did you mean 'edit'? See: "),
    ],
)
def test_a_usage_error_is_one_line_like_all_others(arguments, words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["collectionlora", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    [line] = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert line.startswith("error: ")
    assert words in line
    assert line.endswith("--help")


def test_without_an_argument_the_help_is_all_that_is_shown(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["collectionlora"])
    with pytest.raises(SystemExit) as stopped:
        main()
    shown = capsys.readouterr()
    assert stopped.value.code == 2
    assert "Make a collection" in shown.out + shown.err
    assert "error" not in shown.out + shown.err


def complete(*words):
    """What bash offers for the last word."""
    environment = {"_COLLECTIONLORA_COMPLETE": "complete_bash", "COMP_CWORD": str(len(words))}
    environment["COMP_WORDS"] = " ".join(("collectionlora", *words))
    return CliRunner().invoke(app, env=environment, prog_name="collectionlora").stdout.split()


def test_the_shell_offers_the_effects_of_the_adapter_that_is_named(tmp_path):
    assert complete("edit", "nano", "--effect", "ni") == ["night-vision"]
    assert complete("edit", "nano", "--effect", "al") == ["all"]
    assert complete("edit", str(tmp_path), "--effect", "n") == []
    lora, recipe = read_adapter(SHIPPED)
    write_adapter(tmp_path / "collection.safetensors", lora.weights, recipe)
    assert complete("edit", str(tmp_path), "--effect", "th") == ["thermal"]


def test_a_trigger_is_never_cut_off(monkeypatch):
    monkeypatch.setattr(terminal.console, "width", 40)
    shown = run("effects", "nano").stderr
    assert "…" not in shown
    assert len(shown.splitlines()) > 2 * 12


def test_an_exported_folder_is_told_from_a_collection_that_is_not_distilled(tmp_path):
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"")
    failed = run("effects", tmp_path).exception
    assert "is not a collection's folder; give the file: " in str(failed)
    assert str(failed).endswith("pytorch_lora_weights.safetensors")
    (tmp_path / "collection.yaml").write_text("")  # a collection, whose teachers lie beside the manifest
    assert "is not distilled yet" in str(run("effects", tmp_path).exception)

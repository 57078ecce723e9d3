"""Systems, file systems and environments that are not like the one that this was written on."""

import errno
import io
import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers import small_collection
from helpers.studio_server import EFFECTS, write_collection
from PIL import Image
from typer.testing import CliRunner

from collectionlora import cache
from collectionlora.adapters.recipe import SHIPPED
from collectionlora.backbones import diffusers_files, family_of
from collectionlora.cache import base_facts, base_identity, effect_key
from collectionlora.collection import Collection
from collectionlora.command_line.terminal import any_terminal
from collectionlora.command_line.verbs import app, main
from collectionlora.config import Settings
from collectionlora.pictures.photos import read_photo, write_photo
from collectionlora.runs.folder import hold
from collectionlora.runs.inputs import INPUTS, distillation_inputs, record_inputs
from collectionlora.runs.session import distillation_facts
from collectionlora.studio.pictures import Studio
from collectionlora.system import environment, locks, processes
from collectionlora.system.errors import UserError
from collectionlora.system.files import read_json, write_json, write_whole
from collectionlora.system.progress import ignore

NOT_UTF8 = os.fsdecode(b"caf\xe9.png")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_is_said_and_the_run_goes_on(tmp_path, monkeypatch, caplog, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with hold(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert f"cannot be locked ({os.strerror(number)}); start no second run in this folder" in caplog.text


def test_a_system_without_locks_is_said_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(locks, "fcntl", None)
    with hold(tmp_path):
        pass
    assert "this system has no flock" in caplog.text


def test_a_lock_that_another_holds_still_stops_a_run(tmp_path, caplog):
    with hold(tmp_path), pytest.raises(UserError, match="this run is held by process"), hold(tmp_path):
        pass
    assert caplog.text == ""


def test_the_verbs_that_look_need_no_module_of_one_system(tmp_path):
    code = "import sys; sys.modules['fcntl'] = None; import collectionlora.runs.folder"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("text", "number"), [(None, 1), ("", 1), (" ", 1), ("1", 1), ("02", 2), ("16", 16)])
def test_the_number_of_processes_of_the_environment(monkeypatch, text, number):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if text is not None:
        monkeypatch.setenv("WORLD_SIZE", text)
    assert environment.requested_processes() == number


@pytest.mark.parametrize("text", ["auto", "0", "-1", "1.5", "two", "$N", "٤", "9" * 5000])
@pytest.mark.parametrize("verb", ["distill", "check"])
def test_a_number_of_processes_that_is_none_is_one_line(tmp_path, monkeypatch, capsys, text, verb):
    monkeypatch.setenv("WORLD_SIZE", text)
    monkeypatch.setattr(sys, "argv", ["collectionlora", verb, str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: environment: WORLD_SIZE: is ")


def test_an_empty_number_of_processes_is_one(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "")
    with processes.joined():
        assert processes.world_size() == 1


def test_processes_with_gpus_also_exchange_what_lies_on_the_host(monkeypatch):
    asked = []

    def refuse(backends, timeout):
        asked.append(backends)
        raise dist.DistError

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(dist, "init_process_group", refuse)
    with pytest.raises(UserError, match="no group of processes"), processes.joined():
        pass
    (backends,) = asked
    assert dist.distributed_c10d.BackendConfig(backends).get_device_backend_map() == {
        "cpu": "gloo",
        "cuda": "nccl",
    }


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "localhost,127.0.0.1,::1"),
        ("example.org, 127.0.0.1", "example.org,127.0.0.1,localhost,::1"),
        ("*", "*"),
    ],
)
def test_no_proxy_is_asked_for_this_machine(monkeypatch, before, after):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, before or "")
    environment.spare_this_machine_the_proxy()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == after


def test_proxies_are_put_aside_in_any_spelling_and_come_back(monkeypatch):
    names = {"HTTP_PROXY", "https_proxy", "ALL_PROXY"}
    for name in names:
        monkeypatch.setenv(name, "socks5://127.0.0.1:9")
    with environment.without_proxies():
        assert not names & set(os.environ)
    assert names <= set(os.environ)


@pytest.fixture
def studio_folder(tmp_path):
    (tmp_path / "mine").mkdir()
    return write_collection(tmp_path / "mine")


def test_a_studio_opens_where_previews_cannot_be_kept(studio_folder, caplog):
    (studio_folder / "cache").touch()  # as on a mount to read from, no folder can be made there
    assert list(Studio(studio_folder, 8).previews(ignore)) == list(EFFECTS)
    assert caplog.text.count("previews are not kept") == 1


def test_a_damaged_preview_is_made_again(studio_folder):
    studio = Studio(studio_folder, 8)
    first = studio.previews(ignore)
    path = min((studio_folder / "cache" / "previews").iterdir())
    path.write_bytes(path.read_bytes()[:100])
    again = studio.previews(ignore)
    # One preview alone rounds otherwise than in a batch, where the base computes in bfloat16.
    levels = [np.abs(first[name].astype(int) - again[name]).max() for name in EFFECTS]
    assert max(levels) <= 8
    assert sum(level > 0 for level in levels) <= 1
    damaged = next(name for name in EFFECTS if path.name.startswith(name))
    assert np.array_equal(read_photo(path), again[damaged])


def test_a_studio_holds_the_base_as_it_is_told_to(studio_folder, monkeypatch):
    pytest.importorskip("bitsandbytes")
    opened = []
    monkeypatch.setattr("collectionlora.command_line.studio.serve", lambda page, *others: opened.append(page))
    app(["studio", str(studio_folder), "--port", "0", "--quantization", "nf4"], standalone_mode=False)
    kept = {path.name: read_photo(path) for path in (studio_folder / "cache" / "previews").iterdir()}
    assert len(opened) == 1
    assert len(kept) == len(EFFECTS)
    packed, whole = (Studio(studio_folder, 8, kind).previews(ignore) for kind in ("nf4", None))
    assert {path.name for path in (studio_folder / "cache" / "previews").iterdir()} > set(kept)
    for name in EFFECTS:
        (again,) = (picture for file, picture in kept.items() if file.startswith(name))
        assert np.array_equal(packed[name], again)
        assert not np.array_equal(whole[name], again)
    with pytest.raises(UserError, match="--quantization: 'nf5' is not a kind of quantisation"):
        app(["studio", str(studio_folder), "--port", "0", "--quantization", "nf5"], standalone_mode=False)


def put_model(folder, weights, config="{}"):
    (folder / "transformer").mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text('{"_class_name": "QwenImageEditPlusPipeline"}')
    (folder / "transformer" / "config.json").write_text(config)
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(weights)


def test_a_model_that_is_put_into_a_base_in_place_is_another_base(tmp_path):
    folder, base = small_collection.build(tmp_path / "mine"), tmp_path / "model"
    manifest = folder / "collection.yaml"
    manifest.write_text(manifest.read_text().replace("base: nano", f"base: {base}"))
    collection = Collection.load(folder)
    keys, facts = [], []
    for weights, config in ((b"2509", "{}"), (b"2511", "{}"), (b"2511!", "{}"), (b"2511!", "{ }")):
        put_model(base, weights, config)
        keys.append(effect_key(collection, collection.effects[0], Settings()))
        assert effect_key(collection, collection.effects[0], Settings()) == keys[-1]
        facts.append(distillation_facts(collection, Settings())["base files"])
    assert len(set(keys)) == len(set(facts)) == 4
    base.rename(tmp_path / "elsewhere")
    manifest.write_text(manifest.read_text().replace(f"base: {base}", f"base: {tmp_path / 'elsewhere'}"))
    moved = Collection.load(folder)
    assert effect_key(moved, moved.effects[0], Settings()) == keys[-1]


def test_a_configuration_beside_the_adapter_of_peft_belongs_to_it(tmp_path):
    folder = small_collection.build(tmp_path / "mine")
    flat, own = "teachers/sepia.safetensors", "teachers/sepia/adapter_model.safetensors"
    (folder / "teachers" / "sepia").mkdir()
    lora, manifest = (folder / flat).rename(folder / own), folder / "collection.yaml"
    manifest.write_text(manifest.read_text().replace(flat, own))
    collection = Collection.load(folder)
    before = effect_key(collection, collection.effects[0], Settings())
    config = lora.with_name("adapter_config.json")
    config.write_text('{"r": 2, "lora_alpha": 8}')
    assert effect_key(collection, collection.effects[0], Settings()) != before
    assert config in distillation_inputs(collection)


def test_samples_on_another_schedule_of_nano_are_other_samples(tmp_path, monkeypatch):
    collection = Collection.load(small_collection.build(tmp_path / "mine"))
    now = effect_key(collection, collection.effects[0], Settings())
    monkeypatch.setattr(cache, "family_of", lambda base: replace(family_of(base), schedule="shift 3"))
    assert effect_key(collection, collection.effects[0], Settings()) != now


def test_nano_is_known_by_its_contents_and_a_base_that_is_not_here_by_nothing(monkeypatch):
    assert len(base_identity("nano")) == 16
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert base_identity("nobody/nothing-of-this-name") == ""
    assert base_facts("nobody/nothing-of-this-name") == {}


def test_a_base_of_the_hub_is_known_by_its_commit_while_it_is_downloaded(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--some--base" / "snapshots" / "0a1b2c"
    snapshot.mkdir(parents=True)
    monkeypatch.setattr(cache, "list_files", lambda base: (snapshot, list(snapshot.iterdir())))
    for name in ("model_index.json", "model.safetensors"):
        (snapshot / name).write_text(name)
        assert base_identity("some/base") == "0a1b2c"


def test_a_name_on_the_hub_without_network_is_one_line_after_one_probe(monkeypatch):
    probes = []

    class Unreachable:
        def head(self, url, timeout):
            probes.append(timeout)
            raise OSError("no route")

    monkeypatch.setattr(diffusers_files, "get_session", Unreachable)
    diffusers_files.hub_answers.cache_clear()
    for _ in range(2):
        with (
            warnings.catch_warnings(action="error"),
            pytest.raises(UserError, match=r"it is not on this machine, and https://.* cannot be reached"),
        ):
            family_of("nobody/nothing-of-this-name")
    assert probes == [3]
    diffusers_files.hub_answers.cache_clear()


def test_names_that_are_not_utf8_are_recorded_and_come_back(tmp_path):
    folder = small_collection.build(tmp_path / "mine")
    (folder / "photos" / "1.png").rename(folder / "photos" / NOT_UTF8)
    collection = Collection.load(folder)
    record_inputs(folder, collection, collection.general_photo_paths())
    text = (folder / INPUTS).read_text(encoding="utf-8")
    assert r"photos/caf\udce9.png" in text
    assert f"photos/{NOT_UTF8}" in json.loads(text)["files"]
    write_json(folder / "a.json", {"name": "é \N{SNOWMAN} \U0001f600", "path": NOT_UTF8})
    assert read_json(folder / "a.json") == {"name": "é ☃ 😀", "path": NOT_UTF8}
    assert "é ☃ 😀" in (folder / "a.json").read_text(encoding="utf-8")


def test_a_result_of_a_name_that_is_not_utf8_is_told_to_programs(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    photo = (tmp_path / "a.png").rename(tmp_path / NOT_UTF8)
    done = CliRunner().invoke(
        app, ["edit", str(SHIPPED), str(photo), "--effect", "thermal", "--steps", "1", "--json"]
    )
    assert done.exit_code == 0, done.stderr
    (image,) = json.loads(done.stdout)["images"]
    assert os.fsencode(image).endswith(b"/caf\xe9-thermal.png")
    assert os.path.exists(image)


@pytest.mark.parametrize("name", ["a" * 250, "é" * 120, "😀" * 60, "a\nb\x1b[31m", "CON", "aux.png", "a. "])
def test_a_name_that_the_file_system_takes_can_be_written(tmp_path, name):
    with write_whole(tmp_path / name) as partial:
        partial.write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    write_photo(tmp_path / "b.png", np.zeros((4, 4, 3), np.uint8))


def test_a_terminal_of_ascii_shows_what_it_cannot_as_escapes(monkeypatch):
    screen = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(screen, "ascii"))
    with any_terminal():
        print(f"é {NOT_UTF8}")
    assert screen.getvalue() == b"\\xe9 caf\\udce9.png\n"


@pytest.mark.parametrize("verb", [pytest.param("effects", marks=pytest.mark.thorough), "--help"])
def test_a_terminal_without_a_width_shows_all(verb):
    environment = {**os.environ, "COLUMNS": "0"}
    arguments = [sys.executable, "-m", "collectionlora", verb, *(["nano"] if verb == "effects" else [])]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert (done.returncode, "edit" in done.stdout + done.stderr) == (0, True)


def test_a_reader_that_has_gone_gets_no_traceback():
    code = "from collectionlora.command_line.terminal import any_terminal as a\nwith a(): print('x' * 10**6)"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.thorough
def test_a_command_says_nothing_of_the_libraries_below_it(tmp_path):
    command = ["export", "nano", "--format", "peft", "--out", tmp_path, "--json"]
    arguments = [sys.executable, "-m", "collectionlora", *command]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert json.loads(done.stdout)["format"] == "peft"

"""Odd things that users bring and their surroundings do: taken, or refused in a line; nothing is lost."""

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile

import httpx
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

from collectionlora.adapters.formats import read_header, read_teacher
from collectionlora.adapters.recipe import Recipe, write_adapter
from collectionlora.collection import Collection
from collectionlora.command_line.verbs import main
from collectionlora.config import SettingsError, parse_overrides, resolve
from collectionlora.exporting.export import export
from collectionlora.manifest.template import create
from collectionlora.pictures.photos import photo_format, read_photo
from collectionlora.prompting.answers import read_description
from collectionlora.prompting.endpoint import Endpoint, EndpointVlm
from collectionlora.prompting.refusals import is_refusal
from collectionlora.prompting.rewriting import find_fault
from collectionlora.prompting.vlm import Answer
from collectionlora.runs.checkpoint import find_unfinished
from collectionlora.runs.trainer import open_log, stop_requested
from collectionlora.studio.uploads import private_uploads
from collectionlora.system.environment import without_proxies
from collectionlora.system.errors import UserError, explain_fault

RECIPE = Recipe(
    base="nano", steps=1, shift=3.0, resolution=64, effects={"neon": "<neon_tirupo> neon"}, version="1"
)
PAIR = {"layer.lora_A.weight": torch.ones(2, 4), "layer.lora_B.weight": torch.ones(3, 2)}
CORE = "turn the photo into a pencil sketch"


@pytest.fixture
def adapter(tmp_path):
    """A finished adapter of rank 2 over a base without a room of its own here."""
    path = tmp_path / "mine" / "collection.safetensors"
    write_adapter(path, {"layer": (torch.randn(2, 4), torch.randn(3, 2))}, RECIPE)
    return path


def manifest(**effect):
    entry = {"name": "a", "teacher": "teachers/a.safetensors", "teacher_prompt": "do a", "photos": "photos"}
    general = {"photos": "photos", "prompts": "general.txt"}
    return {"base": "nano", "effects": [entry | effect], "general": general}


def load(folder, document):
    folder.mkdir(exist_ok=True)
    (folder / "collection.yaml").write_text(yaml.safe_dump(document))
    return Collection.load(folder)


@pytest.mark.parametrize(("format", "name"), [("comfyui", "collection"), ("peft", "adapter_model")])
def test_an_export_never_takes_the_place_of_its_own_source(tmp_path, adapter, format, name):
    source = adapter.rename(adapter.with_name(f"{name}.safetensors"))
    before = source.read_bytes()
    (tmp_path / "link").symlink_to(source.parent)
    for out in (source.parent, tmp_path / "link"):
        with pytest.raises(UserError, match="--out: would be replaced by its own export; give another"):
            export(source, format, out, overwrite=True)
    assert source.read_bytes() == before
    assert list(source.parent.iterdir()) == [source]


def test_a_link_that_leads_nowhere_is_not_replaced_by_an_export(tmp_path, adapter):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").symlink_to(tmp_path / "later.md")
    with pytest.raises(UserError, match=r"README\.md: --out: exists already"):
        export(adapter, "peft", tmp_path / "out")


def test_two_previews_of_one_effect_are_refused(tmp_path, adapter):
    paths = [tmp_path / folder / "neon.png" for folder in ("one", "two")]
    for path in paths:
        path.parent.mkdir()
        Image.new("RGB", (4, 4)).save(path)
    with pytest.raises(UserError, match=r"two/neon\.png: preview: is a second image of neon, beside .*one"):
        export(adapter, "peft", tmp_path / "out", previews=paths)
    assert not (tmp_path / "out").exists()


def test_weights_of_a_folder_that_init_does_not_read_are_named(tmp_path, caplog):
    (tmp_path / "loras" / "more").mkdir(parents=True)
    for name in ("OIL.SAFETENSORS", "more/ink.safetensors"):
        save_file(PAIR, tmp_path / "loras" / name)
    (tmp_path / "loras" / "old.pt").write_bytes(b"PK")
    create(tmp_path / "mine", "nano", [tmp_path / "loras"])
    assert [effect.name for effect in Collection.load(tmp_path / "mine").effects] == ["oil"]
    (said,) = caplog.messages
    assert "left out: more/ink.safetensors, old.pt (only .safetensors files" in said


@pytest.mark.parametrize("ending", [".ico", ".pdf", ".eps", ".xbm", ".h5", ".docx", ""])
def test_a_result_is_a_picture_with_all_its_pixels_or_refused_before_any_work(tmp_path, ending):
    with pytest.raises(UserError, match="is not an image format; end the name in"):
        photo_format(tmp_path / f"out{ending}")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png: is a pipe; write it to a file first"):
        read_photo(tmp_path / "pipe.png")


def test_the_transparent_grey_of_a_png_of_16_bits_is_laid_over_white(tmp_path):
    greys = np.array([[0, 40000]], np.uint16)
    Image.fromarray(greys).save(tmp_path / "grey.png", transparency=0)
    assert read_photo(tmp_path / "grey.png")[0, :, 0].tolist() == [255, 155]


@pytest.mark.parametrize(
    ("gamma", "srgb", "expected"),
    [
        (1.0, False, 228),
        (1 / 2.2, False, 200),
        (0.45455, False, 200),
        (1 / 1.8, False, 209),
        (1.0, True, 200),
    ],
)
def test_the_gamma_that_a_png_names_is_applied(tmp_path, gamma, srgb, expected):
    chunks = PngInfo()
    chunks.add(b"gAMA", round(gamma * 100_000).to_bytes(4, "big"))
    if srgb:
        chunks.add(b"sRGB", b"\0")
    for mode, white in (("RGB", (200, 200, 200)), ("RGBA", (200, 200, 200, 255)), ("L", 200), ("P", 0)):
        image = Image.new(mode, (2, 2), white)
        if mode == "P":
            image.putpalette([200, 200, 200])
        image.save(tmp_path / "photo.png", pnginfo=chunks)
        assert read_photo(tmp_path / "photo.png")[0, 0].tolist() == [expected] * 3


@pytest.mark.parametrize(
    ("arguments", "place"), [(["init", ""], "after init"), (["edit", "nano", "--photo", ""], "after --photo")]
)
def test_an_empty_argument_is_no_folder(tmp_path, monkeypatch, capsys, arguments, place):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["collectionlora", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {place}: an argument is empty; ")
    assert not list(tmp_path.iterdir())


def test_stripped_docstrings_end_in_a_line():
    command = [sys.executable, "-OO", "-m", "collectionlora", "effects", "nano"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: environment: PYTHONOPTIMIZE: strips docstrings")


def test_paths_that_were_written_on_windows_are_found(tmp_path):
    collection = load(tmp_path / "mine", manifest(teacher="teachers\\a.safetensors"))
    assert collection.teacher_path(collection.effects[0]) == tmp_path / "mine" / "teachers" / "a.safetensors"
    (tmp_path / "mine" / "teachers\\a.safetensors").touch()  # a name that only other systems can have
    assert collection.teacher_path(collection.effects[0]).name == "teachers\\a.safetensors"
    outside = load(tmp_path / "mine", manifest(teacher="..\\a.safetensors"))
    with pytest.raises(UserError, match="lies outside the folder"):
        outside.teacher_path(outside.effects[0])


@pytest.mark.parametrize(
    ("change", "nearest"),
    [
        ({"name": "x"}, "base"),
        ({"efects": []}, "effects"),
        ({"general": {"photo": "p", "prompts": "g"}}, "photos"),
        (manifest(photo="p"), "photos"),
    ],
)
def test_an_unknown_key_names_a_key_of_its_own_place(tmp_path, change, nearest):
    with pytest.raises(UserError, match=rf"no such key; did you mean {nearest}\?"):
        load(tmp_path / "mine", manifest() | change)


def test_a_path_that_is_not_utf_8_is_named_as_the_reason(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(UserError, match=r"is a path that is not UTF-8.*; rename the folder"):
        load(folder, manifest())
    save_file(PAIR, tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").rename(folder / "a.safetensors")
    with pytest.raises(UserError, match="rename the file or its folder"):
        read_header(folder / "a.safetensors")


def test_a_lora_that_may_not_be_read_is_not_called_missing(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_file(PAIR, path)
    path.chmod(0)
    if os.access(path, os.R_OK):  # root may read all
        pytest.skip("this user may read every file")
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\); give yourself the right"):
        read_header(path)


def test_an_alpha_beyond_all_measure_overflows(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(PAIR | {"layer.alpha": torch.tensor(1e38)}, path)
    with pytest.raises(UserError, match="layer: overflows: its values or its alpha are too large"):
        read_teacher(path, {"layer": torch.zeros(3, 4)})


def test_a_resolution_that_no_plan_can_count_is_refused():
    assert resolve(parse_overrides(["data.resolution=8192"])).data.resolution == 8192
    with pytest.raises(SettingsError, match=r"data\.resolution: Input should be less than or equal to 8192"):
        resolve(parse_overrides(["data.resolution=1000000000"]))


@pytest.mark.parametrize(
    "answer",
    [
        f"‹{CORE}›",
        f"”{CORE}”",
        f'"""{CORE}"""',
        f"~~~\n{CORE}\n~~~",
        f"<thought>hm</thought>{CORE}",
        f"<analysis>It is a sketch.</analysis>\n{CORE}",
        f"[PROMPT] {CORE} [/PROMPT]",
        f"\\boxed{{{CORE}}}",
        f"{{'prompt': '{CORE}'}}",
        f'prompt = "{CORE}"',
        f"Prompt — {CORE}",
        f'The prompt would be "{CORE}"',
        f"<|im_start|>assistant\n{CORE}",
        f"Edit: {CORE}",
        f"\ufeff{CORE}\u200b",
        f"&quot;{CORE}&quot;",
        f"{CORE} (Note: kept generic)",
    ],
)
def test_what_models_put_around_an_answer_is_taken_off(answer):
    assert read_description(answer) == CORE


@pytest.mark.parametrize(
    "prompt",
    [
        'add the word HELLO in large letters, a prompt "HELLO" at the top',
        "a double-exposure edit: forest over the face",
        "make it look like 'The Prompt' - a film of 1972",
        "[soft light] on the left, black & white on the right",
    ],
)
def test_a_prompt_that_looks_like_wrapping_is_kept(prompt):
    assert read_description(prompt) == prompt


@pytest.mark.parametrize(
    "answer",
    [
        "I must respectfully decline.",
        "This request violates our policy.",
        "Não consigo ajudar com isso.",
        "Jag kan tyvärr inte hjälpa till med det.",
        "Det kan jag inte hjälpa till med.",
        "Nemůžu s tím pomoct.",
        "לא ניתן לעזור בבקשה זו",
        "Nu pot să te ajut cu asta.",
    ],
)
def test_excuses_are_known(answer):
    assert is_refusal(answer)


@pytest.mark.parametrize(
    ("text", "fault"), [("No.", "is empty"), ("Done", "is empty"), ("caf\ufffd light", "not UTF-8")]
)
def test_what_says_nothing_or_is_broken_is_no_description(text, fault):
    assert fault in find_fault(Answer(text, 1), text)


def test_a_host_name_that_none_can_have_is_no_address():
    with pytest.raises(UserError, match="is not an http address"):
        Endpoint(f"http://{'a' * 300}.com/v1", "m")
    assert Endpoint("http://bücher.example/v1", "m").host == "bücher.example"


def test_certificates_that_cannot_be_read_are_a_line(monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/ca.pem")
    with pytest.raises(UserError, match=r"environment: SSL_CERT_FILE: cannot be read .*unset SSL_CERT_FILE"):
        EndpointVlm(Endpoint("http://127.0.0.1:1/v1", "m"), resolve().vlm)


def test_the_studio_needs_no_certificates_for_its_own_page(monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/ca.pem")
    with without_proxies():
        httpx.Client().close()
    assert os.environ["SSL_CERT_FILE"] == "/nowhere/ca.pem"


@pytest.mark.parametrize("variable", ["GRADIO_TEMP_DIR", "TMPDIR"])
def test_a_folder_for_uploads_that_cannot_be_made_is_a_line(tmp_path, monkeypatch, variable):
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    if variable == "GRADIO_TEMP_DIR":
        monkeypatch.setenv(variable, str(tmp_path / "nowhere"))
    said = rf"environment: {variable}: .*nowhere cannot hold uploads"
    with pytest.raises(UserError, match=said), private_uploads():
        pass


@pytest.mark.parametrize("number", [errno.EISDIR, errno.EIO, errno.EMFILE, errno.ELOOP, errno.ESTALE])
def test_what_the_system_says_of_a_file_is_no_fault_of_ours(number):
    fault = explain_fault(OSError(number, os.strerror(number), "prompts.json"))
    assert fault
    assert (fault.file, fault.message) == ("prompts.json", os.strerror(number))


@pytest.mark.parametrize("step", ["2", None, [2]])
def test_facts_of_a_checkpoint_that_are_no_numbers_are_passed_over(tmp_path, step):
    for number, facts in ((1, {"step": 1, "num_steps": 4}), (2, {"step": step, "num_steps": 4})):
        (tmp_path / f"step-{number:08d}.safetensors").touch()
        (tmp_path / f"step-{number:08d}.json").write_text(json.dumps(facts))
    assert find_unfinished(tmp_path) == (1, 4)


@pytest.mark.parametrize("line", ['{"step": 1}', '{"step": 1, "seconds": "x"}', '{"step": 1, "sec'])
def test_a_log_goes_on_after_a_line_that_is_damaged(tmp_path, line):
    log = tmp_path / "log.jsonl"
    log.write_text(f'{{"step": 0, "seconds": 1.5}}\n{line}\n')
    with open_log(log, 5) as write:
        write(1, {})
    first, second = map(json.loads, log.read_text().splitlines())
    assert (first["step"], second["step"]) == (0, 1)
    assert second["seconds"] >= 1.5


def test_a_terminal_that_closes_asks_a_run_to_stop_unless_nohup_was_given():
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with stop_requested() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with stop_requested() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)

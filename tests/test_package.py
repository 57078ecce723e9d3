"""What a stranger installs: it starts fast, and it needs nothing of the repository."""

import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from PIL import Image

from collectionlora.collection import Collection
from collectionlora.command_line.demo import shipped_teachers
from collectionlora.command_line.terminal import next_after_demo
from collectionlora.command_line.verbs import app

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "numpy", "peft", "diffusers", "transformers", "gradio", "accelerate", "PIL", "openai")
VERBS = {
    "demo",
    "init",
    "check",
    "teach",
    "prompts",
    "targets",
    "distill",
    "edit",
    "bench",
    "export",
    "studio",
}


def python(code):
    """What a fresh interpreter prints on stdout."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "code",
    ["import collectionlora", "from collectionlora.command_line.verbs import app", "{help}"],
    ids=["package", "cli", "help"],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code):
    helped = (
        "from collectionlora.command_line.verbs import app\ntry: app(['--help'])\nexcept SystemExit: pass"
    )
    loaded = python(code.format(help=helped) + "\nimport sys; print('LOADED', *sys.modules)")
    modules = loaded.rpartition("LOADED")[2].split()
    assert [name for name in HEAVY if name in modules] == []


def test_what_trains_nothing_does_not_wait_for_what_trains(tmp_path):
    folder, photo = str(tmp_path / "mine"), str(tmp_path / "me.png")
    Image.new("RGB", (40, 30), "teal").save(photo)
    teacher = str(shipped_teachers()["thermal"])
    verbs = [
        ["init", folder, "--base", "nano", "--from-loras", teacher],
        ["check", folder, "--json"],
        ["edit", "nano", photo, "--effect", "thermal", "--steps", "1"],
    ]
    code = f"""
import sys
from collectionlora.command_line.verbs import app
for arguments in {verbs!r}:
    try: app(arguments)
    except SystemExit as stopped: print(stopped.code)
print("LOADED", *sys.modules)
"""
    printed, _, loaded = python(code).rpartition("LOADED")
    assert '"modules": 58' in printed  # the LoRA was read
    assert (tmp_path / "me-thermal.png").exists()
    slow = {"peft", "transformers", "accelerate", "diffusers", "torchvision", "torch.distributed.tensor"}
    assert slow & set(loaded.split()) == set()


# What the extras bring, and what is often there without being asked for.
EXTRAS = (
    "diffusers",
    "gradio",
    "bitsandbytes",
    "openai",
    "pillow_heif",
    "mkdocs",
    "playwright",
    "matplotlib",
)


def test_nano_needs_no_extra(tmp_path):
    """The package alone makes pictures, and has all that the demo imports."""
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "me.png")
    code = f"""
import sys
sys.modules.update(dict.fromkeys({EXTRAS!r}))
import collectionlora.command_line.demo
from collectionlora.command_line.verbs import app
app(["edit", "nano", {str(tmp_path / "me.png")!r}, "--effect", "thermal", "--steps", "1"])
"""
    python(code)
    assert (tmp_path / "me-thermal.png").exists()


def test_help_names_every_verb_and_each_has_an_example():
    shown = python("from collectionlora.command_line.verbs import app; app(['--help'])")
    assert all(verb in shown for verb in VERBS)
    for command in app.registered_commands:
        assert "Example: collectionlora" in (command.callback.__doc__ or ""), command.callback


def test_the_shell_completes_verbs():
    environment = {**os.environ, "_COLLECTIONLORA_COMPLETE": "complete_bash"}
    environment |= {"COMP_WORDS": "collectionlora st", "COMP_CWORD": "1"}
    code = "from collectionlora.command_line.verbs import app; app(prog_name='collectionlora')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["studio"]


def test_what_comes_next_can_be_typed_as_it_stands(tmp_path, monkeypatch):
    tool = tmp_path / "venv" / "bin" / "collectionlora"
    tool.parent.mkdir(parents=True)
    tool.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(tool.with_name("python")))
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(tmp_path)
    assert next_after_demo(Path("demo"), "neon").count("  venv/bin/collectionlora ") == 4
    monkeypatch.setenv("PATH", str(tool.parent))
    assert next_after_demo(Path("demo"), "neon").count("  collectionlora ") == 4


@pytest.mark.parametrize("base", ["nano", "Qwen/Qwen-Image-Edit-2509"])
def test_init_explains_the_manifest_and_says_only_what_is_true(tmp_path, base):
    with pytest.raises(SystemExit):
        app(["init", str(tmp_path / "mine"), "--base", base])
    text = (tmp_path / "mine" / "collection.yaml").read_text()
    manifest = Collection.load(tmp_path / "mine").manifest
    assert manifest.base == base
    assert ("embedded in this package" in text) == (base == "nano")
    # every line that is no comment of its own says what it is for
    assert all("#" in line for line in text.splitlines() if line.strip() and not line.endswith(":"))
    uncommented = "\n".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("# "))
    settings = uncommented[uncommented.index("settings:") :]
    assert yaml.safe_load(settings)["settings"]["distill"]["student_updates"] > 0


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Wheel and source distribution; the wheel is built from the latter, as an installer would."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def test_what_is_shipped(built):
    wheel, source = built
    names = zipfile.ZipFile(wheel).namelist()
    assert "collectionlora/weights/nano.safetensors" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if not name.startswith("collectionlora")]
    with tarfile.open(source) as archive:
        shipped = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"README.md", "LICENSE", "pyproject.toml", "mkdocs.yml", "tests/test_package.py"} <= shipped


@pytest.mark.thorough
def test_it_runs_without_the_repository(built, tmp_path):
    """Installed alone into an environment of its own, which borrows this one's libraries by their paths."""
    venv.create(tmp_path / "venv", with_pip=False)
    own = tmp_path / "venv" / "bin" / "python"
    install = ["install", "--quiet", "--no-deps", "--no-index", str(built[0])]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(own), *install], check=True)
    # A .pth file adds a path alone: this environment's editable install is not followed.
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    borrowed = [
        path for path in sys.path if path and Path(path).resolve() not in (ROOT / "src", ROOT / "tests")
    ]
    (site / "borrowed.pth").write_text("\n".join(borrowed))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(*command, code=0):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return done.stdout

    tool = tmp_path / "venv" / "bin" / "collectionlora"
    assert run(tool, "--version").strip()
    run(tool, "init", "mine")
    code = """
import collectionlora
from collectionlora.backbones.nano import NanoBackbone
from collectionlora.command_line.verbs import app
NanoBackbone.load()
print(collectionlora.__file__)
app(["check", "mine", "--json"])
"""
    place, told = run(own, "-c", code, code=2).split("\n", 1)
    assert place.startswith(str(site))
    assert json.loads(told)["ok"] is False

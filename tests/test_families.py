"""Every family of bases has all its facts, in one file, and is found by the names of its bases."""

import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
from helpers import tiny_pipelines
from typer.testing import CliRunner

from collectionlora.backbones import FAMILIES, NANO, PIPELINES, family_of, guess_family
from collectionlora.backbones.comfyui import Student
from collectionlora.backbones.diffusers_model import LARGE
from collectionlora.command_line.verbs import app
from collectionlora.config import resolve
from collectionlora.system.errors import UserError

SOURCE = Path(__file__).parents[1] / "src" / "collectionlora"
STUDENT = Student("mine.safetensors", "make it warm", "owner/name", 4, 3.0, "lcm", 1024, 2.5)


def ids(family):
    return family.name


@pytest.mark.parametrize("family", FAMILIES, ids=ids)
def test_a_family_has_everything(family):
    assert family.name
    assert family.note
    assert family.export.architecture
    assert family.export.license
    assert resolve(family.recommended).student.rank > 0
    if make_workflow := family.export.workflow:
        assert family.export.comfyui_prefix is not None
        assert make_workflow(STUDENT)["lora"]["inputs"]["lora_name"] == "mine.safetensors"


@pytest.mark.parametrize("family", PIPELINES, ids=ids)
def test_a_large_base_has_the_settings_of_large_bases_and_its_own_beside_them(family):
    for section, values in LARGE.items():
        assert values.items() <= family.recommended[section].items()


@pytest.mark.parametrize("family", PIPELINES, ids=ids)
def test_diffusers_has_the_classes_and_reads_the_arguments(family):
    pipeline, network, vae = (
        getattr(diffusers, name) for name in (family.name, family.network_class, family.vae_class)
    )
    assert all(isinstance(part, type) for part in (pipeline, network, vae))
    call = ast.parse(f"pipe({family.export.arguments.format(guidance=2.5)})").body[0].value
    given = {keyword.arg for keyword in call.keywords} | {"sigmas", "image", "prompt"}
    given |= {"width", "height"} if family.export.size_arguments else set()
    assert given <= set(inspect.signature(pipeline.__call__).parameters)
    loader = getattr(pipeline, "load_lora_weights", None)
    assert (loader is not None) == ("pipe.load_lora_weights" in family.export.lora_loader)
    assert loader or network.load_lora_adapter
    assert family.lora_roots
    for known in family.known.values():
        assert known.transformer.keys() <= set(inspect.signature(network).parameters)
        assert known.encoders.parameters > known.encoders.packed > 1e9


def test_every_family_has_its_tiny_pipeline_and_names_of_its_own():
    assert tiny_pipelines.TINY.keys() == {family.name for family in PIPELINES}
    for facts in (
        [family.name for family in FAMILIES],
        [family.export.architecture for family in FAMILIES],
        [family.name_part for family in PIPELINES],
        [base for family in PIPELINES for base in family.known],
    ):
        assert len(set(facts)) == len(facts)


def files_with(wanted):
    """Files of the package that hold a string or a name of `wanted`."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        strings = {node.value for node in nodes if isinstance(node, ast.Constant)}
        names = {node.id for node in nodes if isinstance(node, ast.Name)}
        if (strings | names) & wanted:
            found.add(path.relative_to(SOURCE).as_posix())
    return found


@pytest.mark.parametrize("family", PIPELINES, ids=ids)
def test_a_base_is_one_file_and_one_line_in_the_list(family):
    module = sys.modules[family.backbone.__module__]
    own = f"backbones/{Path(module.__file__).name}"
    facts = {family.name, family.name_part, family.export.architecture, *family.known}
    assert files_with(facts) == {own}
    constants = {name for name, value in vars(module).items() if value is family}
    assert len(constants) == 1
    assert files_with(constants) == {own, "backbones/__init__.py"}


def test_nothing_asks_for_nano_but_what_finds_the_family():
    asking = re.compile(r"""[!=]= *(NANO|"nano")|\bis( not)? NANO\b""")
    found = [path for path in SOURCE.rglob("*.py") for _ in asking.findall(path.read_text())]
    assert found == [SOURCE / "backbones" / "__init__.py"]


def test_a_base_is_found_by_its_name_or_its_folder(tmp_path):
    assert family_of("nano") is guess_family("nano") is NANO
    for family in PIPELINES:
        for base in family.known:
            assert family_of(base) is family_of(f"{base}@0123abc") is guess_family(base) is family
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": family.name}))
        assert family_of(str(tmp_path)) is guess_family(str(tmp_path)) is family
    for text in ("[]", "{", '{"_class_name": ["pipeline", "Custom"]}', '{"_class_name": "OtherPipeline"}'):
        (tmp_path / "model_index.json").write_text(text)
        with pytest.raises(UserError, match=r"collection\.yaml: base: "):
            family_of(str(tmp_path))
        assert guess_family(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ("Qwen/Qwen-Image-Edit-2511", "QwenImageEditPlusPipeline"),
        ("someone/longcat-image-edit-lora", "LongCatImageEditPipeline"),
        ("/elsewhere/qwen-image-edit", "QwenImageEditPipeline"),
        ("someone/Qwen-Image-2.1-merged", "QwenImage21Pipeline"),
        ("someone/My-Kontext", "FluxKontextPipeline"),
        ("black-forest-labs/FLUX.2-klein-4B", "Flux2KleinPipeline"),
        ("black-forest-labs/FLUX.2-dev", "Flux2Pipeline"),
    ],
)
def test_the_longest_part_of_a_name_tells(base, name):
    assert guess_family(base).name == name
    assert guess_family("someone/other") is None


def test_a_distilled_klein_takes_few_teacher_steps(tmp_path):
    for base, targets in (("klein-4B", (4, 1)), ("klein-9B", (4, 1)), ("klein-base-9B", (50, 4))):
        name = f"black-forest-labs/FLUX.2-{base}"
        settings = resolve(family_of(name).recommended_settings(name))
        assert (settings.targets.steps, settings.targets.guidance_scale) == targets
    for distilled, targets in ((True, (4, 1)), (False, (50, 4))):
        index = {"_class_name": "Flux2KleinPipeline", "is_distilled": distilled}
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        settings = resolve(family_of(str(tmp_path)).recommended_settings(str(tmp_path)))
        assert (settings.targets.steps, settings.targets.guidance_scale) == targets


def test_families_are_known_without_diffusers():
    code = """
import sys
sys.modules["diffusers"] = sys.modules["transformers"] = None
from collectionlora.backbones import family_of, guess_family
base = "Qwen/Qwen-Image-Edit-2509"
print(family_of(base).recommended_settings(base)["student"]["rank"])
print(guess_family("FLUX.2-dev").export.license)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["128", "other"], done.stderr


def test_init_asks_no_network_for_a_base_that_nobody_knows(tmp_path):
    result = CliRunner().invoke(app, ["init", str(tmp_path / "mine"), "--base", "some/where"])
    assert result.exit_code == 0, result.output
    assert "owner/name of the hub" in (tmp_path / "mine" / "collection.yaml").read_text()

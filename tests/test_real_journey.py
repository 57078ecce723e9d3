"""From LoRA files in the wild to a folder that diffusers runs alone, over a tiny complete pipeline."""

import json

import numpy as np
import pytest
import torch
import yaml
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from helpers import tiny_pipelines
from helpers.example_runs import run_examples
from PIL import Image
from safetensors.torch import save_file

from collectionlora.adapters.roles import STUDENT, Roles
from collectionlora.backbones import load_backbone
from collectionlora.command_line.verbs import app
from collectionlora.config import ModelSettings
from collectionlora.editing import Editor
from collectionlora.pictures.photos import read_photo, to_images
from collectionlora.studio.page import build_page
from collectionlora.studio.pictures import Studio

SIDE, SEED = 64, 5
# Working sizes of these bases.
WIDE = {
    "qwen_image_edit": (32, 96),
    "qwen_image_21": (32, 96),
    "flux_kontext": (48, 80),
    "longcat_image": (48, 80),
}
SETTINGS = {
    "model": {"dtype": "float32", "gradient_checkpointing": True, "condition_resolution": SIDE},
    "data": {"resolution": SIDE},
    "student": {"rank": 4},
    "critic": {"rank": 4},
    "targets": {"steps": 2, "guidance_scale": 2, "general": 3},
    "match": {"updates": 2, "learning_rate": 1e-2},
    "sampling": {"steps": 4},
    "distill": {"student_updates": 2, "rollout_steps": [4], "student_update_every": 2},
}


def call(capsys, *arguments):
    """The JSON object on stdout of a verb that succeeds."""
    with pytest.raises(SystemExit) as stopped:
        app([str(a) for a in (*arguments, "--json")])
    out = capsys.readouterr()
    assert stopped.value.code == 0, out.err
    return json.loads(out.out)


def write_teachers(base, folder):
    """Two effect LoRAs as others write them: ComfyUI's keys with an alpha, and PEFT's without."""
    backbone = load_backbone(str(base), ModelSettings())
    roles = Roles(backbone.network, backbone.lora_targets, {STUDENT: 2})
    paths = []
    for index, name in enumerate(("neon", "clay")):
        generator = torch.Generator().manual_seed(index)
        tensors = {}
        for module, (a, b) in roles.weights(STUDENT).items():
            a, b = (0.1 * torch.randn(x.shape, generator=generator) for x in (a, b))
            if name == "neon":
                prefix = f"diffusion_model.{module}"
                tensors |= {f"{prefix}.lora_down.weight": a, f"{prefix}.lora_up.weight": b}
                tensors[f"{prefix}.alpha"] = torch.tensor(4.0)
            else:
                prefix = f"base_model.model.{module}"
                tensors |= {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}
        paths.append(folder / f"{name}.safetensors")
        save_file(tensors, paths[-1], {"teacher_prompt": "make it darker"})
    return paths


def check_studio(folder, photo, look, edited):
    """The page has a place for the reference image of `clay`, and its API makes the picture of `edit`."""
    studio = Studio(folder, batch_size=2)
    page = build_page(studio, studio.previews(lambda *_: None), 10**6)
    assert str(folder.parent / "base") not in json.dumps(page.config, default=str)
    _, address, _ = page.queue().launch(prevent_thread_lock=True, quiet=True)
    try:
        client = Client(address, verbose=False, download_files=str(folder.parent / "downloads"))
        asked = [handle_file(photo), "clay", "nothing", 4, SEED, 1, studio.recipe.resolution]
        (_, after), status = client.predict(*asked, handle_file(look), api_name="/edit")
        assert status == "done"
        assert np.abs(np.asarray(Image.open(after)).astype(int) - edited).max() <= 1
        with pytest.raises(AppError, match="taught with 1 reference images, 0 are given"):
            client.predict(*asked, None, api_name="/edit")
        _, pictures, _ = client.predict(handle_file(photo), 4, SEED, 1, api_name="/sheet")
        assert [picture["caption"] for picture in pictures] == ["neon"]
    finally:
        page.close(verbose=False)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.thorough] if n != "qwen_image_edit" else []) for n in WIDE],
)
def test_from_lora_files_to_a_folder_that_diffusers_runs_alone(name, tmp_path, capsys):
    torch.manual_seed(0)
    base, folder = tmp_path / "base", tmp_path / "mine"
    getattr(tiny_pipelines, name)().save_pretrained(base)
    loras = write_teachers(base, tmp_path)
    with pytest.raises(SystemExit) as stopped:
        app(["init", str(folder), "--base", str(base), *(f"--from-loras={path}" for path in loras)])
    assert stopped.value.code == 0
    rng = np.random.default_rng(0)
    for sub in ("neon", "clay", "general"):
        for index, size in enumerate((WIDE[name], WIDE[name][::-1])):
            values = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(values).save(folder / "photos" / sub / f"{index}.png")
    manifest = yaml.safe_load((folder / "collection.yaml").read_text()) | {"settings": SETTINGS}
    look = [folder / "photos" / "general" / "0.png"] if name.startswith("qwen") else []
    manifest["effects"][1]["references"] = [str(path.relative_to(folder)) for path in look]
    (folder / "collection.yaml").write_text(yaml.safe_dump(manifest))

    checked = call(capsys, "check", folder)
    assert [(e["name"], e["scales"]) for e in checked["effects"]] == [("neon", [2.0]), ("clay", [1.0])]
    assert set(call(capsys, "prompts", folder)["student_prompts"]) == {"neon", "clay"}
    assert call(capsys, "targets", folder) == {"neon": 2, "clay": 2, "general": 3}
    call(capsys, "distill", folder)
    photo, edited = folder / "photos" / "neon" / "0.png", tmp_path / "edited.png"
    arguments = ["--effect", "clay", "--photo", photo, "--out", edited, "--seed", SEED]
    call(capsys, "edit", folder, *arguments, *(f"--reference={path}" for path in look))
    files = call(capsys, "export", folder, "--format", "diffusers", "--out", tmp_path / "out")["files"]
    assert {path.rsplit("/", 1)[1] for path in files} >= {"pytorch_lora_weights.safetensors", "example.py"}

    example = [tmp_path / "out" / "example.py", photo, "clay", tmp_path / "theirs.png", SEED, *look]
    (theirs,) = run_examples([example])

    editor = Editor.load(folder)
    images = to_images([read_photo(photo)])
    shown = [to_images([read_photo(path)]) for path in look]
    ours = editor.sample(images, [editor.prompt(["clay"], len(look))], [SEED], references=shown)
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)
    assert np.abs(read_photo(edited).astype(int) - read_photo(tmp_path / "theirs.png").astype(int)).max() <= 1
    if name == "qwen_image_edit":
        check_studio(folder, photo, look[0], read_photo(edited))
    plain = editor.sample(images, [editor.prompt(["neon"])], [SEED])
    assert (plain - ours).abs().max() > 1e-3

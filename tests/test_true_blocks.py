"""Two blocks of Qwen-Image-Edit at their true width, through the whole journey on the CPU.

Minutes and 6 GB: run by hand, `pytest -m slow -s tests/test_true_blocks.py`. Its log is among the results.
"""

import json
import math
import os
import resource
import time

import numpy as np
import pytest
import torch
import yaml
from diffusers import QwenImageTransformer2DModel
from helpers import tiny_pipelines
from safetensors.torch import load_file

import collectionlora
from collectionlora.adapters.formats import read_lora, write_lora
from collectionlora.adapters.roles import target_weights
from collectionlora.backbones import family_of
from collectionlora.backbones.qwen_image_edit import TRANSFORMER
from collectionlora.collection import Collection
from collectionlora.distillation import Distillation
from collectionlora.editing import Editor
from collectionlora.pictures.photos import write_photo
from collectionlora.planning.memory import MemoryTally
from collectionlora.planning.plan import GIB, plan
from collectionlora.planning.workload import Workload
from collectionlora.runs.session import resolve_settings

pytestmark = pytest.mark.slow
RANK, SIDE = 128, 64
# Share of the plan that a step may stay below it. Of only two blocks the last one's text side, which has no
# gradients and moments, is a large part; and no layer is unpacked where the other activations are the most.
MAX_UNUSED = 0.1
# Of true width but for the text encoder's side, which is tiny.
SHAPE = {**TRANSFORMER, "num_layers": 2, "joint_attention_dim": 32}
SETTINGS = {
    "model": {"condition_resolution": 56, "dtype": "bfloat16", "gradient_checkpointing": True},
    "data": {"resolution": SIDE},
    "student": {"rank": RANK},
    "critic": {"rank": RANK},
    "targets": {"steps": 1, "guidance_scale": 4, "general": 2},
    "sampling": {"steps": 2},
    "distill": {
        # Two updates: only the second finds all moments, as `plan` counts.
        **{"student_updates": 2, "student_update_every": 1, "rollout_steps": [4]},
        # The average stays on the device: on the CPU the tally sees the host's memory too.
        **{"effect_ratio": 1, "ema_on_host": False},
    },
    "log": {"tracker": "none"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a complete pipeline, 1.4 GB."""
    torch.manual_seed(0)
    pipeline = tiny_pipelines.qwen_image_edit()
    torch.set_default_dtype(torch.bfloat16)
    try:
        pipeline.register_modules(transformer=QwenImageTransformer2DModel(**SHAPE))
    finally:
        torch.set_default_dtype(torch.float32)
    path = tmp_path_factory.mktemp("wide")
    pipeline.save_pretrained(path)
    return str(path)


def write_collection(folder, base):
    """Two effects by LoRAs of the paper's rank, two photos."""
    shapes = {
        name: weight.shape for name, weight in target_weights(*family_of(base).empty_network(base)).items()
    }
    generator, effects = torch.Generator().manual_seed(0), []
    for name in ("one", "other"):
        weights = {}
        for module, (rows, columns) in shapes.items():
            a = torch.randn(RANK, columns, generator=generator) / columns**0.5
            weights[module] = a, 0.05 * torch.randn(rows, RANK, generator=generator) / RANK**0.5
        write_lora(folder / "teachers" / f"{name}.safetensors", weights, {})
        teacher = {"teacher": f"teachers/{name}.safetensors", "teacher_prompt": f"{name} style"}
        effects.append({"name": name, **teacher, "photos": "photos"})
    rng = np.random.default_rng(0)
    for index in range(2):
        write_photo(folder / "photos" / f"{index}.png", rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    (folder / "general.txt").write_text("blur\nbrighten the photo\n")
    general = {"photos": "photos", "prompts": "general.txt"}
    manifest = {"base": base, "effects": effects, "general": general, "settings": SETTINGS}
    (folder / "collection.yaml").write_text(yaml.safe_dump(manifest))


def say(kind, what, began, **more):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
    said = "".join(f", {name} {value}" for name, value in more.items())
    print(f"{kind}: {what}: {time.perf_counter() - began:.1f} s{said}; {peak:.2f} GiB of the process at most")


@pytest.mark.parametrize("kind", ["none", "nf4"])
def test_two_true_blocks_go_from_targets_to_an_edited_photo(kind, base, tmp_path, monkeypatch):
    if kind == "nf4":
        pytest.importorskip("bitsandbytes")
    torch.set_num_threads(min(2, len(os.sched_getaffinity(0))))
    folder = tmp_path / "mine"
    write_collection(folder, base)
    overrides = {"model": {"quantization": kind}}
    settings = resolve_settings(Collection.load(folder), overrides)
    planned = plan(Workload(base, 2, settings))

    began = time.perf_counter()
    counts = collectionlora.targets(folder, overrides)
    say(kind, "targets", began, images=counts)
    assert counts == {"one": 2, "other": 2, "general": 0}
    made = [load_file(next(folder.glob(f"cache/{name}-[!e]*")))["targets"] for name in ("one", "other")]
    assert all(torch.isfinite(tensor).all() for tensor in made)
    assert not torch.equal(*made)

    began, plain, peaks = time.perf_counter(), Distillation.__call__, []
    with MemoryTally() as tally:

        def count(*args):
            # Alone: a base is read and a checkpoint copied in the host's memory, which is the device's here.
            tally.begin_phase()
            metrics = plain(*args)
            peaks.append(tally.peaks[-1])
            return metrics

        monkeypatch.setattr(Distillation, "__call__", count)
        collectionlora.distill(folder, overrides=overrides)
    peak, total = max(peaks), planned["total_bytes_per_device"]
    say(kind, "distill", began, step=f"{peak / GIB:.2f} GiB", plan=f"{total / GIB:.2f} GiB")
    assert (1 - MAX_UNUSED) * total <= peak <= total
    log = [json.loads(line) for line in (folder / "runs/default/log.jsonl").read_text().splitlines()]
    print(f"{kind}: metrics: {log[-1]}")
    assert {"backward", "target", "anchor", "critic"} <= log[0].keys()
    assert all(math.isfinite(value) for line in log for value in line.values())
    student = read_lora(folder / "collection.safetensors").weights
    assert len(student) == planned["lora_modules"] == 34
    assert any(b.abs().max() > 0 for _, b in student.values())

    began = time.perf_counter()
    photo = np.full((SIDE, SIDE, 3), 128, np.uint8)
    edited = Editor.load(folder).edit(photo, ["one"])
    say(kind, "edit", began)
    assert edited.size == (SIDE, SIDE)

"""What the student is compared with, over the smallest collection."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from collectionlora.adapters.formats import write_lora
from collectionlora.adapters.low_rank import change
from collectionlora.adapters.merging import add
from collectionlora.adapters.roles import STUDENT, Roles
from collectionlora.backbones.nano import NanoBackbone
from collectionlora.collection import Collection
from collectionlora.effectbench.baselines import BASELINES, FLOW_MATCHING, GENERAL, STACK, Baselines
from collectionlora.effectbench.bench import draw_crops
from collectionlora.effectbench.encodings import Encodings
from collectionlora.effectbench.running import MethodMaker
from collectionlora.effectbench.truths import Truths
from collectionlora.effects.crops import PhotoPool
from collectionlora.pictures.sizes import WorkingSizes
from collectionlora.runs.session import Session, resolve_settings

SETTINGS = {
    "data": {"resolution": 32},
    "student": {"rank": 3},
    "critic": {"rank": 3},
    "targets": {"steps": 2, "samples": 1, "general": 4},
    "match": {"updates": 3, "learning_rate": 1e-2},
    "sampling": {"steps": 2},
    "distill": {"student_updates": 2, "batch_size": 2, "student_update_every": 1, "rollout_steps": [2]},
}


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    folder = tmp_path_factory.mktemp("baselines")
    (folder / "photos").mkdir()
    for index in range(2):
        values = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / "photos" / f"{index}.png")
    (folder / "general.txt").write_text("blur the photo\n")
    backbone = NanoBackbone.load()
    roles = Roles(backbone.network, backbone.lora_targets, {STUDENT: 2})
    effects = []
    for index, name in enumerate(("one", "two")):
        generator = torch.Generator().manual_seed(index)
        for parameter in roles.parameters(STUDENT):
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        write_lora(folder / f"{name}.safetensors", roles.weights(STUDENT), {})
        effects.append(
            {"name": name, "teacher": f"{name}.safetensors", "teacher_prompt": "x", "photos": "photos"}
        )
    general = {"photos": "photos", "prompts": "general.txt"}
    manifest = {"base": "nano", "effects": effects, "general": general, "settings": SETTINGS}
    (folder / "collection.yaml").write_text(yaml.safe_dump(manifest))
    collection = Collection.load(folder)
    return Session(collection, resolve_settings(collection, {}), with_critics=False, with_sums=True)


def quiet(*_):
    pass


@pytest.fixture(scope="module")
def baselines(session):
    return Baselines(session, Encodings(session), quiet)


def log(session, name):
    path = session.collection.folder / "bench" / name / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_acceleration_lora_learns_from_the_general_stream_alone(session, baselines):
    assert any(b.abs().sum() > 0 for _, b in baselines.acceleration.values())
    entries = log(session, "acceleration")
    assert ["match" in entry for entry in entries] == [True] * 3 + [False] * 2
    assert not any("target" in entry or "anchor" in entry for entry in entries)


def test_flow_matching_takes_as_many_updates_and_has_no_critic(session, baselines):
    baselines.method(FLOW_MATCHING)
    entries = log(session, FLOW_MATCHING)
    assert len(entries) == 5
    assert all(entry.keys() == {"step", "seconds", "match", "student_grad_norm"} for entry in entries)


def test_a_stack_is_the_teacher_plus_the_acceleration(session, baselines):
    baselines.method(STACK)
    stacked = add(baselines.sums[f"{STACK}/two"])
    for module, pair in stacked.items():
        parts = baselines.session.teacher_pairs["two"][module], baselines.acceleration[module]
        torch.testing.assert_close(change(pair), sum(change(part) for part in parts), atol=1e-5, rtol=1e-4)
    general = add(baselines.sums[f"{STACK}/{GENERAL}"])
    torch.testing.assert_close(change(general[module]), change(baselines.acceleration[module]))


def test_pictures_of_a_baseline_are_made_anew_when_prompts_or_data_change(session, tmp_path):
    folder = shutil.copytree(session.collection.folder, tmp_path / "mine")

    def keys():
        collection = Collection.load(folder)
        cases = draw_crops(PhotoPool([np.zeros((64, 64, 3), np.uint8)]), 1, 0, 32)
        truths = Truths(collection, cases, {}, WorkingSizes(32, 8))
        maker = MethodMaker(collection, session.settings, truths, quiet)
        return {name: maker.key(name, "one", cases) for name in BASELINES}

    before = keys()
    assert before == keys()
    (folder / "general.txt").write_text("sharpen the photo\n")
    changed = keys()
    manifest = (folder / "collection.yaml").read_text()
    (folder / "collection.yaml").write_text(manifest.replace("teacher_prompt: x", "teacher_prompt: y", 1))
    again = keys()
    manifest = (folder / "collection.yaml").read_text()
    (folder / "collection.yaml").write_text(
        manifest.replace("teacher_prompt: y", "weight: 2\n  teacher_prompt: y", 1)
    )
    weighted = keys()
    for name in BASELINES:
        assert len({before[name], changed[name], again[name], weighted[name]}) == 4


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_makes_pictures_of_effects_and_instructions(session, baselines, name):
    method = baselines.method(name)
    assert (method.name, method.nfe) == (name, 2)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    one, two = (method.sample(effect, images, [1, 2]) for effect in ("one", "two"))
    assert one.shape == images.shape
    assert torch.equal(one, method.sample("one", images, [1, 2]))
    # One LoRA under the teachers' shared prompt cannot tell the effects apart; its own prompts can.
    assert torch.equal(one, two) == name.startswith("merge")
    assert method.general(images, ["blur the photo"] * 2, [1, 2]).shape == images.shape

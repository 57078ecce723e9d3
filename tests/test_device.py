"""The method on the device that is here, a GPU or else the CPU, against the CPU; and on one without values.

`scripts/gpu/run.sh` runs this file on a GPU. On a machine without one the meta device stands for it: whatever
mixes tensors of two devices fails there too.
"""

from contextlib import nullcontext

import pytest
import torch

from collectionlora.adapters.roles import STUDENT, TEACHER, TeacherLibrary, critic_role
from collectionlora.backbones import family_of, load_backbone
from collectionlora.backbones.base import Condition, Prompt
from collectionlora.backbones.nano import NanoBackbone
from collectionlora.backbones.quantization import whole_weight
from collectionlora.backbones.toy import ToyBackbone
from collectionlora.config import ModelSettings, resolve
from collectionlora.distillation import Distillation
from collectionlora.flow import shift_sigma
from collectionlora.planning.memory import MemoryTally, flash_on_meta
from collectionlora.runs.session import build_roles
from collectionlora.runs.teaching import EncodedPairs, Teaching
from collectionlora.sampling import Denoiser, sample_many_steps, sample_student
from collectionlora.streams import EffectData, GeneralData, Streams
from collectionlora.toy.world import ToyWorld, toy_settings

pytestmark = pytest.mark.thorough

CPU, META = torch.device("cpu"), torch.device("meta")
HERE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = HERE.type == "cuda"
CLOSE = {"atol": 1e-3, "rtol": 1e-3} if ON_GPU else {"atol": 1e-6, "rtol": 1e-6}
SETTINGS = {
    "model": {"condition_resolution": 56},
    "data": {"resolution": 32},
    "student": {"rank": 2},
    "critic": {"rank": 2},
    "targets": {"guidance_scale": 2},
    "match": {"updates": 1},
    "distill": {"student_updates": 2, "student_update_every": 1, "rollout_steps": [2], "anchor_weight": 1},
}


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """A GPU's float32 in all its bits, which training does without."""
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="module")
def folder(tiny_qwen):
    return str(tiny_qwen)


def open_base(name, folder, device, settings):
    """A backbone whose network lies on a device, in float32."""
    if name == "qwen":
        backbone = family_of(folder).load(folder, settings.model)
        backbone.device = device
        if device == META:
            backbone = family_of(folder).without_weights(folder, settings.model, {})
        return backbone
    backbone = NanoBackbone.load() if name == "nano" else ToyBackbone()
    backbone.network.to(device)
    return backbone


def draw_data(backbone, settings):
    """Two photos, and texts of random tokens, in host memory."""
    generator = torch.Generator().manual_seed(0)
    shapes = backbone.shapes((settings.data.resolution,) * 2)
    latents = torch.randn(2, *shapes.latents, generator=generator)

    def prompt():
        tokens = torch.randn(1, *shapes.tokens, generator=generator)
        return Prompt(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))

    effect = EffectData("effect", latents, latents.flip(0)[:, None], prompt(), prompt(), prompt())
    return effect, GeneralData(latents, effect.uncond.expand(2), latents, effect.uncond)


def make_run(name, folder, device, *layers):
    """A run over a base on a device; its numbers are drawn on the CPU, so that all devices have the same."""
    settings = resolve(SETTINGS, *layers)
    backbone = open_base(name, folder, device, settings)
    critics = {critic_role(n): 2 for n in settings.distill.rollout_steps}
    with device if device == META else nullcontext():  # where PEFT does not follow its base by itself
        roles = build_roles(backbone, {STUDENT: 2, TEACHER: 2, **critics}, 0, settings)
    generator, teacher = torch.Generator().manual_seed(1), {}
    for module, pair in roles.weights(TEACHER).items():
        teacher[module] = tuple(0.1 * torch.randn(t.shape, generator=generator) for t in pair)
    effect, general = draw_data(backbone, settings)
    streams = Streams([effect], general, seed=0, batch_size=2, effect_ratio=0.7)
    run = Distillation(backbone, roles, TeacherLibrary(roles, {"effect": teacher}), streams, settings)
    run.generator = lambda streams, step: streams.generator(step)
    return run


CHECKPOINTED = {"model": {"gradient_checkpointing": True}}


@pytest.mark.parametrize(("name", "layer"), [("qwen", {}), ("qwen", CHECKPOINTED), ("nano", {})])
def test_losses_and_updates_are_those_of_the_cpu(name, layer, folder):
    here, there = (make_run(name, folder, device, layer) for device in (HERE, CPU))
    here.verify()
    for step in range(here.num_steps):
        found, expected = here(step), there(step)
        assert found == pytest.approx(expected, rel=0.01 if ON_GPU else 1e-6)
    moments = [m for state in here.optimizers[STUDENT].state.values() for m in state.values() if m.ndim]
    assert {t.device.type for t in (*here.roles.parameters(STUDENT), *moments)} == {HERE.type}


def test_gradients_are_the_same_with_blocks_computed_twice(folder):
    gradients = []
    for layer in ({}, CHECKPOINTED):
        run = make_run("qwen", folder, HERE, layer)
        batch = run.batch(run.streams, 1)
        velocity = run.student(batch).velocity(batch.target, 0.5)
        velocity.square().mean().backward()
        gradients.append([p.grad for p in run.roles.parameters(STUDENT)])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain, **CLOSE)


@pytest.mark.parametrize("name", ["qwen", "nano", "toy"])
def test_samplers_make_the_images_of_the_cpu_and_bring_them_back(name, folder):
    settings, images = resolve(SETTINGS), []
    for device in (HERE, CPU):
        backbone = open_base(name, folder, device, settings)
        effect, _ = draw_data(backbone, settings)
        condition, uncond = (
            effect.condition(prompt, torch.arange(2)) for prompt in (effect.teacher_prompt, effect.uncond)
        )
        with torch.no_grad():
            many = sample_many_steps(Denoiser(backbone, condition, uncond, 2.0), effect.sources, 3)
            few = sample_student(Denoiser(backbone, condition), effect.sources, [3, 4], 2, 3.0)
        images.append((many, few))
    for found, expected in zip(*images, strict=True):
        assert found.device == CPU
        torch.testing.assert_close(found, expected, **CLOSE)


def test_a_run_goes_on_from_what_it_kept(folder):
    whole = make_run("qwen", folder, HERE)
    for step in range(2):
        whole(step)
    kept = {name: tensor.cpu().clone() for name, tensor in whole.tensors().items()}
    resumed = make_run("qwen", folder, HERE)
    resumed.load_tensors(kept)
    whole(2)
    resumed(2)
    for name, tensor in whole.tensors().items():
        torch.testing.assert_close(resumed.tensors()[name], tensor, **CLOSE, msg=name)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_base_steps_and_unpacks(kind, folder):
    pytest.importorskip("bitsandbytes")
    layer = {"model": {"quantization": kind, "gradient_checkpointing": True}}
    name = "transformer_blocks.0.attn.to_q"
    plain = load_backbone(folder, ModelSettings()).network.get_submodule(name).weight.float().cpu()
    run = make_run("qwen", folder, HERE, layer)
    unpacked = whole_weight(run.roles.network.get_submodule(name))
    assert 0 < (unpacked - plain).norm() < 0.15 * plain.norm()
    for step in range(run.num_steps):
        assert all(torch.isfinite(torch.tensor(value)) for value in run(step).values())


def test_the_toy_world_is_made_and_trained_here():
    world = ToyWorld(num_effects=2, base_steps=2, teacher_steps=2, device=HERE.type)
    run = world.distillation(toy_settings({"match": {"updates": 1}, "distill": {"student_updates": 1}}))
    for step in range(run.num_steps):
        run(step)
    assert {p.device.type for p in run.roles.parameters(STUDENT)} == {HERE.type}
    assert set(world.judge(run, 2, num=20)) == {"effects_mean", "effects_worst", "general", "rarest_mode"}


def note_calls(backbone):
    """The devices of the latents that the network is asked about, and of what it answers."""
    seen, plain = set(), backbone.velocity

    def velocity(x_sigma, sigma, prepared):
        out = plain(x_sigma, sigma, prepared)
        seen.update(t.device.type for t in (x_sigma, sigma, out))
        return out

    backbone.velocity = velocity
    return seen


@pytest.mark.parametrize("critic_samples", ["final", "simulated"])
@pytest.mark.parametrize("name", ["qwen", "nano", "toy"])
def test_latents_noise_and_moments_of_a_run_stay_on_the_device(name, critic_samples, folder):
    with MemoryTally(), flash_on_meta():
        run = make_run(name, folder, META, {"distill": {"critic_samples": critic_samples}})
        seen = note_calls(run.backbone)
        for step in range(run.num_steps):
            run(step)
    assert seen == {"meta"}
    moments = [m for state in run.optimizers[STUDENT].state.values() for m in state.values() if m.ndim]
    assert {tensor.device for tensor in moments} == {META}


@pytest.mark.parametrize("name", ["qwen", "nano"])
def test_latents_and_noise_of_teaching_stay_on_the_device(name, folder):
    settings = resolve(SETTINGS, {"teach": {"steps": 2, "batch_size": 2}})
    with MemoryTally(), flash_on_meta():
        backbone = open_base(name, folder, META, settings)
        seen = note_calls(backbone)
        with META:
            roles = build_roles(backbone, {STUDENT: 2}, 0, settings)
        effect, _ = draw_data(backbone, settings)
        pairs = EncodedPairs(effect.sources, effect.targets[:, 0], effect.teacher_prompt)
        teaching = Teaching("effect", backbone, roles, pairs, settings)
        for step in range(2):
            teaching(step)
    assert seen == {"meta"}


@pytest.mark.parametrize(
    ("layer", "rates", "longest"),
    [({}, [1, 1, 1, 1, 0.5], 1.0), ({"decay_ratio": 0, "max_grad_norm": 0.01}, [1] * 5, 0.01)],
)
def test_teaching_clips_its_gradient_and_slows_down_as_it_is_told(layer, rates, longest, folder):
    settings = resolve(SETTINGS, {"teach": {"steps": 5, "batch_size": 2, "learning_rate": 1e-3, **layer}})
    backbone = open_base("nano", folder, CPU, settings)
    roles = build_roles(backbone, {STUDENT: 2}, 0, settings)
    effect, _ = draw_data(backbone, settings)
    pairs = EncodedPairs(effect.sources, effect.targets[:, 0], effect.teacher_prompt)
    teaching = Teaching("effect", backbone, roles, pairs, settings)
    for step, rate in enumerate(rates):
        before = teaching(step)["grad_norm"]
        kept = torch.stack([p.grad.norm() for p in teaching.parameters]).norm().item()
        assert kept == pytest.approx(min(before, longest), rel=1e-3)
        assert teaching.optimizer.param_groups[0]["lr"] == pytest.approx(rate * 1e-3)


def test_teaching_draws_sigmas_by_its_own_shift_and_not_by_the_students(folder):
    backbone = open_base("nano", folder, CPU, resolve(SETTINGS))
    drawn, plain = [], backbone.velocity
    backbone.velocity = lambda x, sigma, prepared: drawn.append(sigma) or plain(x, sigma, prepared)
    for own, of_student in ((1.0, 3.0), (1.0, 12.0), (12.0, 3.0)):
        changes = {"teach": {"batch_size": 2, "shift": own}, "sampling": {"shift": of_student}}
        settings = resolve(SETTINGS, changes)
        roles = build_roles(backbone, {STUDENT: 2}, 0, settings)
        effect, _ = draw_data(backbone, settings)
        pairs = EncodedPairs(effect.sources, effect.targets[:, 0], effect.teacher_prompt)
        Teaching("effect", backbone, roles, pairs, settings)(0)
    torch.testing.assert_close(drawn[1], drawn[0])
    torch.testing.assert_close(drawn[2], shift_sigma(drawn[0], 12.0))


def test_a_trajectory_copies_nothing_between_its_calls():
    backbone = NanoBackbone.load()
    backbone.network.to(META)
    seen = note_calls(backbone)
    photo = torch.zeros(1, 3, 16, 16)
    condition = Condition(backbone.encode_prompt(["warm"]), photo)
    for sample in (
        lambda denoiser: sample_many_steps(denoiser, photo, 3),
        lambda denoiser: sample_student(denoiser, photo, [1], 3, 3.0),
    ):
        with pytest.raises(NotImplementedError, match="meta tensor"):  # the image itself comes back
            sample(Denoiser(backbone, condition))
    assert seen == {"meta"}

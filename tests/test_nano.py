import copy

import pytest
import torch

from collectionlora import flow
from collectionlora.adapters.roles import STUDENT, TEACHER, Roles, critic_role
from collectionlora.backbones import load_backbone
from collectionlora.backbones.base import Condition
from collectionlora.backbones.nano import NanoBackbone
from collectionlora.backbones.quantization import block_layers
from collectionlora.config import ModelSettings
from collectionlora.prompting.triggers import mean_embedding


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    backbone = NanoBackbone()
    for parameter in backbone.network.parameters():  # outputs start at zero: make every part matter
        parameter.data += 0.02 * torch.randn_like(parameter)
    return backbone


def condition(backbone, prompts, size=(64, 64)):
    generator = torch.Generator().manual_seed(1)
    source = torch.rand(len(prompts), 3, *size, generator=generator) * 2 - 1
    return Condition(backbone.encode_prompt(prompts), source)


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (128, 128)])
def test_velocity_has_the_shape_of_its_latents(backbone, size):
    cond = condition(backbone, ["brighten the photo", "blur"], size)
    x = torch.randn_like(cond.source)
    with torch.no_grad():
        velocity = backbone.velocity(x, torch.tensor([0.3, 1.0]), backbone.prepare(cond))
    assert velocity.shape == x.shape
    assert torch.isfinite(velocity).all()


def test_a_batch_is_its_samples_whatever_the_padding(backbone):
    prompts = ["blur", "make the photo a great deal brighter than it was"]
    cond = condition(backbone, prompts)
    x, sigma = torch.randn_like(cond.source), torch.tensor([0.4, 0.8])
    with torch.no_grad():
        both = backbone.velocity(x, sigma, backbone.prepare(cond))
        for i, prompt in enumerate(prompts):
            alone = Condition(backbone.encode_prompt([prompt]), cond.source[i : i + 1])
            single = backbone.velocity(x[i : i + 1], sigma[i : i + 1], backbone.prepare(alone))
            torch.testing.assert_close(both[i : i + 1], single, atol=1e-4, rtol=1e-4)


def test_prompt_source_noise_and_sigma_all_matter(backbone):
    cond = condition(backbone, ["blur"])
    x, sigma = torch.randn_like(cond.source), torch.tensor([0.5])
    with torch.no_grad():

        def velocity(c=cond, x=x, sigma=sigma):
            return backbone.velocity(x, sigma, backbone.prepare(c))

        plain = velocity()
        other_prompt = cond.with_prompt(backbone.encode_prompt(["flip"]))
        other_source = Condition(cond.prompt, cond.source.flip(-1))
        changed = [
            velocity(c=other_prompt),
            velocity(c=other_source),
            velocity(x=x + 1),
            velocity(sigma=sigma / 2),
        ]
    assert all((plain - v).abs().max() > 1e-4 for v in changed)


def test_an_untrained_network_gives_the_best_linear_estimate_around_the_source():
    backbone = NanoBackbone()
    cond = condition(backbone, ["blur"] * 2)
    noise = torch.randn_like(cond.source)
    with torch.no_grad():
        velocity = backbone.velocity(noise, torch.ones(2), backbone.prepare(cond))
    # At sigma 1 nothing is known but the source: x0 is the source.
    torch.testing.assert_close(flow.x0_from_velocity(noise, velocity, 1.0), cond.source, atol=1e-5, rtol=0)


def test_images_survive_the_latents(backbone):
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(backbone.decode(backbone.encode_image(images)), images, atol=1e-6, rtol=0)


def test_unseen_trigger_words_have_embeddings_of_their_own(backbone):
    triggers = [f"<effect_{word}>" for word in ("balumo", "balume", "zuvike", "tirano", "kasoda")]
    directions = torch.nn.functional.normalize(mean_embedding(backbone.encode_prompt(triggers)), dim=1)
    cosine = directions @ directions.T - torch.eye(len(triggers))
    assert cosine.max() < 0.95
    again = mean_embedding(backbone.encode_prompt(triggers))
    assert torch.equal(again, mean_embedding(backbone.encode_prompt(triggers)))


@pytest.mark.parametrize("prompt", ["", "   ", "😀 سلام", "x" * 10_000, "a\x00b\n\t"])
def test_any_text_is_read(backbone, prompt):
    encoded = backbone.encode_prompt([prompt, "blur the photo"])
    assert torch.isfinite(encoded.tokens).all()
    assert encoded.tokens.shape[:2] == encoded.mask.shape


def test_the_empty_prompt_is_all_masked(backbone):
    assert not backbone.encode_prompt([""]).mask.any()


def test_bfloat16_stays_near_float32(backbone):
    cond = condition(backbone, ["blur", "make the photo a great deal brighter"])
    x, sigma = torch.randn_like(cond.source), torch.tensor([0.2, 0.9])
    halved = copy.deepcopy(backbone)
    halved.network.to(torch.bfloat16)
    with torch.no_grad():
        exact, near = (b.velocity(x, sigma, b.prepare(cond)) for b in (backbone, halved))
    assert near.dtype == torch.float32
    assert 0 < (near - exact).norm() < 0.01 * exact.norm()


def test_every_lora_target_carries_a_gradient(backbone):
    fresh = NanoBackbone()
    fresh.modules.load_state_dict(backbone.modules.state_dict())
    fresh.modules.requires_grad_(False)
    roles = Roles(fresh.network, fresh.lora_targets, {STUDENT: 2, critic_role(8): 2, TEACHER: 2})
    for parameter in roles.parameters(STUDENT):
        parameter.data += 0.01 * torch.randn_like(parameter)
    cond = condition(fresh, ["blur"])
    roles.verify(lambda: fresh.velocity(cond.source, torch.tensor([0.5]), fresh.prepare(cond)))
    with roles.use(STUDENT):
        velocity = fresh.velocity(torch.randn_like(cond.source), torch.tensor([0.5]), fresh.prepare(cond))
    velocity.square().mean().backward()
    silent = [n for n, m in roles.layers.items() if not m.lora_B[STUDENT].weight.grad.abs().sum() > 0]
    assert silent == []


def test_weights_survive_the_file_in_half_precision(backbone, tmp_path):
    backbone.save(tmp_path / "nano.safetensors", {"step": "1"})
    loaded = NanoBackbone.load(tmp_path / "nano.safetensors")
    for name, tensor in backbone.modules.state_dict().items():
        assert torch.equal(loaded.modules.state_dict()[name], tensor.half().float())


@pytest.mark.parametrize(("kind", "dtype", "error"), [("int8", torch.int8, 0.01), ("nf4", torch.uint8, 0.05)])
def test_a_quantised_nano_is_near_the_whole_one_and_loras_learn_over_it(kind, dtype, error):
    pytest.importorskip("bitsandbytes")
    whole = load_backbone("nano", ModelSettings())
    packed = load_backbone("nano", ModelSettings(quantization=kind))
    cond = condition(whole, ["blur"])
    x, sigma = torch.randn_like(cond.source), torch.tensor([0.5])
    with torch.no_grad():
        expected, found = (b.velocity(x, sigma, b.prepare(cond)) for b in (whole, packed))
    assert 0 < (found - expected).norm() < error * expected.norm()
    assert {layer.weight.dtype for layer in block_layers(packed.network).values()} == {dtype}
    assert block_layers(packed.network).keys() == block_layers(whole.network).keys()
    roles = Roles(packed.network, packed.lora_targets, {STUDENT: 2, TEACHER: 2}, fuse=packed.fuses_lora)
    roles.verify(lambda: packed.velocity(cond.source, sigma, packed.prepare(cond)))
    with roles.frozen(STUDENT):  # B is zero: the role is the base
        assert torch.equal(packed.velocity(x, sigma, packed.prepare(cond)), found)

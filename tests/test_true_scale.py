"""What a base of billions of parameters needs, counted over true configurations and on tiny copies."""

import pytest
import tiny_pipelines
import torch

from collectionlora.backbones import load_backbone
from collectionlora.backbones.base import Condition
from collectionlora.backbones.diffusers_model import MAX_TOKENS
from collectionlora.backbones.nano import NanoBackbone
from collectionlora.config import ModelSettings
from collectionlora.sampling import Denoiser, sample_many_steps

MODEL = ModelSettings(condition_resolution=56)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A complete Qwen-Image-Edit-2509 of tiny parts."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("qwen")
    tiny_pipelines.qwen_image_edit().save_pretrained(path)
    return path


def encode(backbone, side, texts):
    images = torch.rand(len(texts), 3, side, side, generator=torch.Generator().manual_seed(0))
    prompts = [
        backbone.encode_prompt([text], [image[None]]) for text, image in zip(texts, images, strict=True)
    ]
    return Condition(type(prompts[0]).cat(prompts), backbone.encode_image(images))


@pytest.mark.parametrize(("side", "images"), [(1024, 1), (512, 4), (64, 256)])
def test_a_forward_takes_as_many_images_as_have_the_tokens_of_one_large_edit(side, images, folder):
    backbone = load_backbone(str(folder), MODEL)
    latents = torch.empty(1, 16, side // 8, side // 8, device="meta")
    condition = Condition(None, latents)
    assert backbone.max_batch(condition) == images
    assert images * 2 * (side // 16) ** 2 <= MAX_TOKENS
    with_reference = Condition(None, latents, (latents,) * 2)
    assert backbone.max_batch(with_reference) == max(1, images // 2)
    assert NanoBackbone.load().max_batch(condition) == 16


def test_guidance_of_a_large_base_is_two_forwards_without_a_mask(folder):
    backbone = load_backbone(str(folder), MODEL)
    condition = encode(backbone, 32, ["make it warm and bright", "blur"])
    uncond = condition.with_prompt(encode(backbone, 32, ["", ""]).prompt)
    seen = []

    def see(_network, _args, inputs):
        seen.append((len(inputs["hidden_states"]), inputs["encoder_hidden_states_mask"]))

    backbone.network.register_forward_pre_hook(see, with_kwargs=True)
    parts = [Denoiser(backbone, condition[i : i + 1], uncond[i : i + 1], 4.0) for i in range(2)]
    noise = torch.randn(condition.source.shape, generator=torch.Generator().manual_seed(1))
    apart = torch.cat([sample_many_steps(part, noise[i : i + 1], 2) for i, part in enumerate(parts)])
    assert seen == [(1, None)] * 8

    backbone.guides_in_one_batch = True
    joint = sample_many_steps(Denoiser(backbone, condition, uncond, 4.0), noise, 2)
    assert [batch for batch, _ in seen[8:]] == [4, 4]
    torch.testing.assert_close(apart, joint, atol=1e-4, rtol=1e-4)

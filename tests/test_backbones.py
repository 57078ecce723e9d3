"""The contract that every backbone keeps, and the equality of the real ones with their own pipelines.

Models are complete pipelines with few random weights, loaded from a folder as a real one is.
"""

import json
import re
import shutil

import diffusers
import numpy as np
import pytest
import torch
import yaml
from diffusers.models import attention_dispatch
from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from diffusers.pipelines.qwenimage21 import pipeline_qwenimage21
from helpers import small_collection, tiny_pipelines
from PIL import Image
from torch._inductor import config as inductor

import collectionlora
from collectionlora.adapters.formats import read_lora, write_lora
from collectionlora.adapters.recipe import Recipe, write_adapter
from collectionlora.adapters.roles import STUDENT, TEACHER, Roles, critic_role
from collectionlora.backbones import PIPELINES, family_of, load_backbone
from collectionlora.backbones.base import Condition
from collectionlora.backbones.compilation import compile_blocks
from collectionlora.backbones.diffusers_model import from_tokens, pack, to_tokens, unpack
from collectionlora.backbones.flux2 import FLUX_2
from collectionlora.backbones.flux_kontext import FLUX_KONTEXT
from collectionlora.backbones.nano import NanoBackbone
from collectionlora.backbones.quantization import encoder_layers, quantize, whole_weight
from collectionlora.backbones.qwen_image_21 import QWEN_IMAGE_21
from collectionlora.backbones.qwen_image_edit import QWEN_IMAGE_EDIT_PLUS, QwenImageEditPlus
from collectionlora.collection import Collection
from collectionlora.config import ModelSettings, resolve
from collectionlora.editing import Editor
from collectionlora.objectives import guided
from collectionlora.pictures.photos import to_images, write_photo
from collectionlora.planning.checking import check_collection
from collectionlora.planning.plan import encoder_bytes
from collectionlora.runs.session import Session, build_roles, check_sharding, resolve_settings
from collectionlora.sampling import Denoiser, sample_many_steps
from collectionlora.system.errors import UserError

NANO = "nano"
REAL = {tiny_pipelines.TINY[family.name].__name__: family for family in PIPELINES}
REAL["qwen_image_edit_2511"] = QWEN_IMAGE_EDIT_PLUS  # of the same pipeline, with a rule of its own
SEVERAL = tuple(name for name, family in REAL.items() if family.reads_references)
CRITIC = critic_role(8)
SETTINGS = ModelSettings(condition_resolution=64, embedded_guidance=3.0)
SIZES = ((64, 96), (96, 64))


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """The folder of each tiny pipeline, as `save_pretrained` writes it."""
    made = {}
    for name in REAL:
        torch.manual_seed(0)
        made[name] = tmp_path_factory.mktemp(name)
        getattr(tiny_pipelines, name)().save_pretrained(made[name])
    return made


def load(name, folders, settings=SETTINGS):
    if name != NANO:
        return load_backbone(str(folders[name]), settings)
    torch.manual_seed(0)
    nano = NanoBackbone()
    for parameter in nano.network.parameters():  # outputs start at zero: make every part matter
        parameter.data += 0.02 * torch.randn_like(parameter)
    nano.modules.requires_grad_(False)
    return nano


@pytest.fixture(scope="session", params=(NANO, *REAL))
def backbone(request, folders):
    """One for all tests that leave it as it is."""
    return load(request.param, folders)


def photo(size=SIZES[0], seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def condition(backbone, texts, size=SIZES[0]):
    images = to_images([photo(size, seed) for seed in range(len(texts))])
    return Condition(backbone.encode_prompt(texts, [images]), backbone.encode_image(images))


@torch.no_grad()
def velocity(backbone, cond, x, sigma):
    return backbone.velocity(x, torch.as_tensor(sigma).expand(len(x)), backbone.prepare(cond))


@pytest.mark.parametrize("size", SIZES)
def test_latents_and_velocities_have_their_shapes_and_images_their_range(backbone, size):
    cond = condition(backbone, ["brighten the photo", "blur"], size)
    assert size[0] % backbone.side_multiple == size[1] % backbone.side_multiple == 0
    assert cond.source.dtype == torch.float32
    assert cond.source.shape[-1] / cond.source.shape[-2] == size[1] / size[0]
    out = velocity(backbone, cond, torch.randn_like(cond.source), [0.3, 1.0])
    assert out.shape == cond.source.shape
    assert out.dtype == torch.float32
    assert torch.isfinite(out).all()
    images = backbone.decode(3 * cond.source)
    assert images.shape == (2, 3, *size)
    assert images.min() >= 0
    assert images.max() <= 1


def test_a_batch_is_its_samples(backbone):
    texts = ["blur", "make the photo darker"]
    cond = condition(backbone, texts)
    x, sigma = torch.randn_like(cond.source), torch.tensor([0.4, 0.8])
    both = velocity(backbone, cond, x, sigma)
    for i, text in enumerate(texts):
        image = to_images([photo(seed=i)])
        alone = Condition(backbone.encode_prompt([text], [image]), backbone.encode_image(image))
        torch.testing.assert_close(alone.source, cond.source[i : i + 1], atol=1e-5, rtol=1e-5)
        single = velocity(backbone, alone, x[i : i + 1], sigma[i : i + 1])
        torch.testing.assert_close(both[i : i + 1], single, atol=1e-4, rtol=1e-4)


def test_prompt_photo_noise_and_sigma_all_matter(backbone):
    cond, other = condition(backbone, ["blur"]), condition(backbone, ["darker"])
    x = torch.randn_like(cond.source)
    plain = velocity(backbone, cond, x, 0.5)
    changed = [
        velocity(backbone, cond.with_prompt(other.prompt), x, 0.5),
        velocity(backbone, Condition(cond.prompt, cond.source.flip(-1)), x, 0.5),
        velocity(backbone, cond, x + 1, 0.5),
        velocity(backbone, cond, x, 0.25),
    ]
    assert all((plain - v).abs().max() > 1e-4 for v in changed)


def test_a_prompt_belongs_to_its_photo_only_where_the_backbone_says_so(backbone):
    same, other = (to_images([photo(seed=seed)]) for seed in (0, 1))
    a, b = (backbone.encode_prompt(["blur"], [image]).tokens for image in (same, other))
    assert torch.equal(a, b) != backbone.prompts_see_photos
    assert torch.isfinite(backbone.encode_prompt(["blur", ""]).tokens).all()


def test_guidance_is_the_backbones_rule(backbone):
    cond, uncond = torch.randn(2, 2, 16, 8, 8)
    torch.testing.assert_close(backbone.guide(cond, uncond, 1.0), cond)
    made, plain = backbone.guide(cond, uncond, 4.0), guided(cond, uncond, 4.0)
    if isinstance(backbone, QwenImageEditPlus):
        torch.testing.assert_close(pack(made).norm(dim=-1), pack(cond).norm(dim=-1))
        cosine = torch.nn.functional.cosine_similarity(pack(made), pack(plain), dim=-1)
        torch.testing.assert_close(cosine, torch.ones_like(cosine))
    else:
        torch.testing.assert_close(made, plain)


def test_the_schedule_falls_from_one(backbone):
    noise = torch.randn(1, 16, 8, 8)
    sigmas = backbone.teacher_sigmas(6, noise)
    assert sigmas[0] == 1
    assert (sigmas.diff() < 0).all()
    assert sigmas[-1] > 0
    assert backbone.teacher_sigmas(1, noise).tolist() == [1]


def test_a_checkpoint_with_sigmas_of_its_own_is_sampled_at_them(folders, tmp_path):
    folder = shutil.copytree(folders["qwen_image_21"], tmp_path / "turbo")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "sample_sigmas": [1.0, 0.7, 0.3]}))
    backbone, noise = load_backbone(str(folder), SETTINGS), torch.randn(1, 16, 4, 4)
    pipeline = diffusers.QwenImage21Pipeline.from_pretrained(folder)
    assert pipeline.config.sample_sigmas == [1.0, 0.7, 0.3]
    scheduler = pipeline.scheduler
    keys = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    mu = pipeline_qwenimage21.calculate_shift(16, *(scheduler.config[key] for key in keys))
    scheduler.set_timesteps(sigmas=pipeline.config.sample_sigmas, mu=mu)
    torch.testing.assert_close(backbone.teacher_sigmas(3, noise), scheduler.sigmas[:-1])
    with pytest.raises(UserError, match=r"settings\.targets\.steps: is 40, but .* is sampled in 3 steps"):
        backbone.teacher_sigmas(40, noise)


def test_packing_is_undone():
    latents = torch.randn(2, 16, 4, 6)
    assert pack(latents).shape == (2, 6, 64)
    assert torch.equal(unpack(pack(latents), latents), latents)
    assert to_tokens(latents).shape == (2, 24, 16)
    assert torch.equal(from_tokens(to_tokens(latents), latents), latents)


@pytest.mark.parametrize("name", REAL)
def test_the_network_reads_sigma_and_answers_with_noise_minus_x0(name, folders):
    backbone = load(name, folders)
    cond = condition(backbone, ["blur"])
    seen = []

    def known(module, args, kwargs, output):
        seen.append(kwargs["timestep"].item())
        return (torch.full_like(output[0], 2.0),)

    backbone.network.register_forward_hook(known, with_kwargs=True)
    # A model that always answers 2 saw noise and x0 that differ by 2: a step down takes that away.
    x0 = sample_many_steps(Denoiser(backbone, cond), torch.ones_like(cond.source), 3)
    torch.testing.assert_close(x0, torch.full_like(x0, -1.0))
    torch.testing.assert_close(seen, backbone.teacher_sigmas(3, x0).tolist())


@torch.no_grad()
def test_the_steps_of_a_trajectory_are_what_each_is_alone(backbone):
    cond = condition(backbone, ["blur", "make the photo darker"])
    x, denoiser = torch.randn_like(cond.source), Denoiser(backbone, cond)
    denoiser.begin_trajectory()
    for sigma in (1.0, 0.6, 0.2):
        alone = velocity(backbone, cond, x, sigma)
        torch.testing.assert_close(denoiser.velocity(x, sigma), alone, atol=1e-5, rtol=1e-4)


def test_text_and_photo_of_a_causal_sequence_are_computed_once_in_a_trajectory(folders):
    backbone = load("qwen_image_21", folders)
    cond = condition(backbone, ["blur"])
    target, seen = cond.source[0, 0].numel(), []
    whole = cond.prompt.mask.numel() + 2 * target
    first = backbone.network.transformer_blocks[0]
    first.register_forward_pre_hook(
        lambda _m, _a, given: seen.append(given["hidden_states"].shape[1]), with_kwargs=True
    )
    denoiser = Denoiser(backbone, cond)
    sample_many_steps(denoiser, torch.randn_like(cond.source), 3)
    assert seen == [whole, target, target]
    denoiser.velocity(cond.source, 0.5)  # with gradient: what is kept has none
    sample_many_steps(denoiser, torch.randn_like(cond.source), 2)  # another one; weights may have changed
    assert seen[3:] == [whole, whole, target]


def test_2511_reads_the_photo_as_if_at_sigma_0(folders):
    plain, clean = (load(name, folders) for name in ("qwen_image_edit", "qwen_image_edit_2511"))
    clean.network.load_state_dict(plain.network.state_dict())
    cond = condition(plain, ["blur"])
    x = torch.randn_like(cond.source)
    torch.testing.assert_close(velocity(plain, cond, x, 0.0), velocity(clean, cond, x, 0.0))
    assert (velocity(plain, cond, x, 0.5) - velocity(clean, cond, x, 0.5)).abs().max() > 1e-4


def test_a_prompt_that_longcat_would_have_to_cut_is_refused(folders):
    backbone = load("longcat_image", folders)
    fits = backbone.encode_prompt(["draw 'a cat'"], [to_images([photo()])])
    assert fits.tokens.shape[1] == backbone.encode_prompt([""], [to_images([photo()])]).tokens.shape[1]
    with pytest.raises(UserError, match=r"prompt: .* has \d+ tokens, of which the base reads 512"):
        backbone.encode_prompt(["\u753b" * 600], [to_images([photo()])])


def test_a_base_that_splits_its_batches_is_sharded_with_one_photo_in_each(tmp_path):
    collection = small_collection.build(tmp_path / "mine")
    manifest = collection / "collection.yaml"
    sharded = {"model": {"sharding": "fsdp"}}
    bases = "Qwen/Qwen-Image-2.1", "Qwen/Qwen-Image-2.1", "Qwen/Qwen-Image-Edit-2509"
    for base, size, fits in zip(bases, (2, 1, 2), (False, True, True), strict=True):
        manifest.write_text(re.sub("base: .*", f"base: {base}", manifest.read_text()))
        for section in ("match", "distill"):
            settings = resolve(sharded, {"distill": {"batch_size": 1}}, {section: {"batch_size": size}})
            if fits:
                check_sharding(Collection.load(collection), settings)
                continue
            with pytest.raises(UserError, match=f"{section}.batch_size: is 2, and model.sharding=fsdp needs"):
                check_sharding(Collection.load(collection), settings)


@pytest.mark.parametrize("name", SEVERAL)
def test_further_reference_images_are_read(name, folders):
    backbone = load(name, folders)
    images = [to_images([photo()]), to_images([photo(SIZES[1], seed=1)])]
    source, reference = (backbone.encode_image(image) for image in images)
    alone = Condition(backbone.encode_prompt(["blur"], images[:1]), source)
    both = Condition(backbone.encode_prompt(["blur"], images), source, (reference,))
    x = torch.randn_like(source)
    assert (velocity(backbone, alone, x, 0.5) - velocity(backbone, both, x, 0.5)).abs().max() > 1e-4


@pytest.mark.parametrize("name", sorted(set(REAL) - set(SEVERAL)))
def test_a_model_of_one_photo_refuses_a_second(name, folders):
    backbone = load(name, folders)
    cond = condition(backbone, ["blur"])
    with pytest.raises(ValueError, match="one photo"):
        backbone.prepare(Condition(cond.prompt, cond.source, (cond.source,)))


def pipeline_images(name, pipeline, pictures, noise, guidance_scale, num_steps):
    """The image of the pipeline's own call, at the size of the pictures, `[1, 3, height, width]`."""
    width, height = pictures[0].size
    call = {"height": height, "width": width, "num_inference_steps": num_steps, "output_type": "pt"}
    if name == "qwen_image_21":
        call |= {"negative_prompt": "", "true_cfg_scale": guidance_scale, "latents": to_tokens(noise)}
        call |= {"image": pictures, "output_resolution": (width * height) ** 0.5}
    elif name == "longcat_image":
        call = {"num_inference_steps": num_steps, "output_type": "pt", "latents": pack(noise)}
        call |= {"image": pictures[0], "guidance_scale": guidance_scale}
    elif name.startswith("qwen"):
        call |= {"negative_prompt": " ", "true_cfg_scale": guidance_scale, "latents": pack(noise)}
        call["image"] = pictures if name in SEVERAL else pictures[0]
    elif name == "flux_kontext":
        call |= {"negative_prompt": "", "true_cfg_scale": guidance_scale, "guidance_scale": 3.0}
        call |= {
            "image": pictures[0],
            "latents": pack(noise),
            "max_area": height * width,
            "_auto_resize": False,
        }
    else:
        scale = 3.0 if name == "flux2" else guidance_scale  # dev has the guidance input and no other
        call |= {"image": pictures, "latents": noise, "guidance_scale": scale}
    return pipeline(prompt="brighten the photo", **call).images


@pytest.mark.parametrize("name", REAL)
def test_the_many_step_sampler_makes_the_pipelines_image(name, folders, monkeypatch):
    # The pipelines own these sizes and no argument reaches them; ours are settings.
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "CONDITION_IMAGE_SIZE", 64**2)
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", 64 * 96)
    plain = pipeline_qwenimage_edit.calculate_dimensions
    monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda _, ratio: plain(64**2, ratio))

    monkeypatch.setattr(pipeline_longcat_image_edit, "calculate_dimensions", lambda *_: SIZES[1][::-1])

    backbone = load(name, folders)
    pipeline = getattr(diffusers, backbone.family.name).from_pretrained(folders[name])
    pipeline.set_progress_bar_config(disable=True)
    size = (64, 64) if name == "qwen_image_edit_first" else SIZES[1]
    photos = [photo(size), *([photo(SIZES[0], seed=1)] if name in SEVERAL else [])]
    images = [to_images([p]) for p in photos]
    source, *references = (backbone.encode_image(image) for image in images)
    cond = Condition(backbone.encode_prompt(["brighten the photo"], images), source, tuple(references))
    uncond = cond.with_prompt(backbone.encode_prompt([""], images))
    noise = torch.randn_like(source)
    guidance_scale = 1.0 if name == "flux2" else 4.0

    latents = sample_many_steps(Denoiser(backbone, cond, uncond, guidance_scale), noise, 4)
    pictures = [Image.fromarray(p) for p in photos]
    theirs = pipeline_images(name, pipeline, pictures, noise, guidance_scale, 4)
    theirs = theirs[:, :3]  # a photo is opaque
    assert theirs.std() > 0.05
    assert (backbone.decode(latents) - theirs).abs().max() <= 1e-4


def gradients(backbone, roles, cond, x, backward_in=STUDENT):
    """The student's gradients of one forward; the backward runs while another role is active."""
    backbone.network.zero_grad()
    sigma = torch.full((len(x),), 0.5)
    with roles.use(STUDENT):
        out = backbone.velocity(x, sigma, backbone.prepare(cond))
    with roles.use(backward_in):
        out.square().mean().backward()
    return [p.grad for p in roles.parameters(STUDENT)]


def three_roles(backbone, settings=SETTINGS):
    resolved = resolve({"model": settings.model_dump()})
    roles = build_roles(backbone, {STUDENT: 4, CRITIC: 4, TEACHER: 2}, 0, resolved)
    with torch.no_grad():
        for role in (STUDENT, CRITIC, TEACHER):
            for parameter in roles.parameters(role):
                parameter += 0.02 * torch.randn_like(parameter)
    return roles


@pytest.mark.parametrize("name", [NANO, *REAL])
def test_roles_over_one_base(name, folders, tmp_path):
    backbone = load(name, folders)
    cond = condition(backbone, ["blur"])
    x = torch.randn_like(cond.source)
    before = velocity(backbone, cond, x, 0.5)
    roles = three_roles(backbone)
    roles.verify(lambda: Denoiser(backbone, cond).velocity(x, 0.5))
    assert torch.equal(velocity(backbone, cond, x, 0.5), before)

    found = gradients(backbone, roles, cond, x, backward_in=CRITIC)
    # The last block's text branch has no way to the image; everything else learns.
    assert sum(g is not None and bool(g.abs().sum() > 0) for g in found) > 0.8 * len(found)
    assert all(p.grad is None for role in (CRITIC, TEACHER) for p in roles.parameters(role))
    assert all(p.grad is None for n, p in backbone.network.named_parameters() if "lora_" not in n)

    write_lora(tmp_path / "student.safetensors", roles.weights(STUDENT), {})
    fresh = load(name, folders)
    copy = Roles(fresh.network, fresh.lora_targets, {STUDENT: 4})
    copy.load(STUDENT, read_lora(tmp_path / "student.safetensors").weights)
    with roles.use(STUDENT), copy.use(STUDENT):
        ours, theirs = velocity(backbone, cond, x, 0.5), velocity(fresh, cond, x, 0.5)
    assert (ours - before).abs().max() > 1e-3
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-2)  # the file is in half precision


@pytest.mark.parametrize("name", REAL)
def test_checkpointing_gives_the_same_gradients_while_another_role_is_active(name, folders):
    found = []
    for on in (False, True):
        torch.manual_seed(0)
        settings = SETTINGS.model_copy(update={"gradient_checkpointing": on})
        backbone = load(name, folders, settings)
        roles = three_roles(backbone, settings)
        cond = condition(backbone, ["blur"])
        x = torch.randn(cond.source.shape, generator=torch.Generator().manual_seed(1))
        assert backbone.network.is_gradient_checkpointing == on
        found.append(gradients(backbone, roles, cond, x, backward_in=CRITIC))
    for plain, checkpointed in zip(*found, strict=True):
        assert (plain is None) == (checkpointed is None)
        if plain is not None:
            torch.testing.assert_close(plain, checkpointed)


@pytest.mark.parametrize("name", ["qwen_image_edit", "flux_kontext"])
def test_a_bfloat16_base_keeps_float32_loras(name, folders):
    backbone = load(name, folders, SETTINGS.model_copy(update={"dtype": "bfloat16"}))
    roles = three_roles(backbone)
    cond = condition(backbone, ["blur"])
    found = [g for g in gradients(backbone, roles, cond, torch.randn_like(cond.source)) if g is not None]
    base = [p for n, p in backbone.network.named_parameters() if "lora_" not in n]
    assert all(p.dtype == torch.bfloat16 for p in base)
    for role in roles.ranks:
        expected = torch.bfloat16 if role == TEACHER else torch.float32  # masters of what is trained
        assert {p.dtype for p in roles.parameters(role)} == {expected}
    assert cond.source.dtype == torch.float32
    assert found
    assert all(g.dtype == torch.float32 and torch.isfinite(g).all() for g in found)


@pytest.mark.parametrize(("kind", "dtype", "error"), [("nf4", torch.uint8, 0.3), ("int8", torch.int8, 0.03)])
def test_a_quantised_base_is_near_the_whole_one_and_loras_learn_over_it(kind, dtype, error, folders):
    pytest.importorskip("bitsandbytes")
    whole = load("qwen_image_edit", folders)
    backbone = load("qwen_image_edit", folders, SETTINGS.model_copy(update={"quantization": kind}))
    cond = condition(whole, ["blur"])
    x = torch.randn_like(cond.source)
    expected, packed = (velocity(b, cond, x, 0.5) for b in (whole, backbone))
    assert 0 < (packed - expected).norm() / expected.norm() < error
    blocks = backbone.network.transformer_blocks
    assert all(blocks.get_submodule(n).weight.dtype == dtype for n in ("0.attn.to_q", "1.img_mod.1"))
    roles = three_roles(backbone)
    assert torch.equal(velocity(backbone, cond, x, 0.5), packed)
    found = [g for g in gradients(backbone, roles, cond, x) if g is not None]
    assert found
    assert all(g.dtype == torch.float32 and torch.isfinite(g).all() for g in found)


def test_int8_rounds_weights_and_no_activations():
    """A channel beyond float16, whose weights are 0, costs the other channels nothing: not in use either."""
    pytest.importorskip("bitsandbytes")
    layer = torch.nn.Linear(64, 32, dtype=torch.bfloat16)
    with torch.no_grad():
        layer.weight[:, 0] = 0
    module = torch.nn.Sequential(layer)
    quantize(module, {"0": layer}, "int8", torch.bfloat16)
    module.to("cpu").eval()
    weight = whole_weight(module[0])
    x = torch.randn(2, 8, 64).bfloat16()
    x[..., 0] = 1e6
    found = module(x.requires_grad_())
    expected = x.float() @ weight.T + layer.bias.float()
    torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=0.01)
    found.sum().backward()
    torch.testing.assert_close(x.grad.float(), weight.sum(0).expand_as(x), rtol=0.01, atol=0.01)


@pytest.mark.parametrize(("kind", "error"), [("nf4", 0.4), ("int8", 0.04)])
@pytest.mark.parametrize("name", REAL)
def test_text_encoders_are_quantised_with_the_network_and_have_the_planned_size(name, kind, error, folders):
    pytest.importorskip("bitsandbytes")
    settings = SETTINGS.model_copy(update={"quantization": kind})
    whole, packed = load(name, folders), load(name, folders, settings)
    seen = to_images([photo()])
    tokens = whole.encode_prompt(["blur"], [seen]).tokens
    found = packed.encode_prompt(["blur"], [seen]).tokens
    assert 0 < (found - tokens).norm() / tokens.norm() < error
    assert {layer.weight.element_size() for layer in encoder_layers_of(packed)} == {1}
    size = REAL[name].encoder_size(str(folders[name]))
    assert size.packed == sum(layer.weight.numel() for layer in encoder_layers_of(whole)) > 0
    assert size.parameters == sum(p.numel() for part in encoders(whole) for p in part.parameters())
    held, _ = encoder_bytes(str(folders[name]), settings)
    assert held == pytest.approx(
        sum(p.nbytes for part in encoders(packed) for p in part.parameters()), rel=0.05
    )


def encoders(backbone):
    """Its text encoders."""
    return [part for part in backbone.text_pipeline.components.values() if isinstance(part, torch.nn.Module)]


def encoder_layers_of(backbone):
    """The layers of its text encoders that are packed, or would be."""
    return [layer for part in encoders(backbone) for layer in encoder_layers(part).values()]


@pytest.mark.parametrize(
    ("base", "name"),
    # The last runs here, and takes no mask.
    [
        ("qwen_image_edit", "_native_efficient"),
        ("qwen_image_edit", "flash"),
        ("qwen_image_21", "_native_flash"),
    ],
)
def test_a_kernel_of_attention_that_cannot_be_used_is_named(base, name, folders):
    backbone = load(base, folders, SETTINGS.model_copy(update={"attention": name}))
    with pytest.raises(UserError, match=f"settings.model.attention: {name} does not run here, on cpu"):
        _ = backbone.network


def test_a_kernel_of_attention_is_that_of_all_layers(folders, monkeypatch):
    registry = attention_dispatch._AttentionBackendRegistry  # diffusers keeps the last one for all networks
    monkeypatch.setattr(registry, "_active_backend", registry._active_backend)
    whole = load("qwen_image_edit", folders)
    backbone = load("qwen_image_edit", folders, SETTINGS.model_copy(update={"attention": "_native_flash"}))
    cond = condition(whole, ["blur"])
    x = torch.randn_like(cond.source)
    expected = velocity(whole, cond, x, 0.5)
    kernels = [block.attn.processor._attention_backend for block in backbone.network.transformer_blocks]
    assert [kernel.value for kernel in kernels] == ["_native_flash"] * len(kernels)
    torch.testing.assert_close(velocity(backbone, cond, x, 0.5), expected)


@pytest.mark.parametrize("settings", [{}, {"dtype": "bfloat16"}, {"quantization": "int8"}])
def test_an_editor_merges_its_adapter_where_the_base_is_whole(settings, folders, tmp_path):
    if "quantization" in settings:
        pytest.importorskip("bitsandbytes")
    model = SETTINGS.model_copy(update=settings)
    backbone = load("qwen_image_edit", folders, model)
    roles, cond = three_roles(backbone, model), condition(backbone, ["blur"])
    x, effects = torch.randn_like(cond.source), {"blur": "blur it"}
    facts = {"model": model, "steps": 1, "shift": 3.0, "resolution": 32, "effects": effects, "version": "0"}
    recipe = Recipe(base=str(folders["qwen_image_edit"]), **facts)
    write_adapter(tmp_path / "one.safetensors", roles.weights(STUDENT), recipe)
    editor = Editor.load(tmp_path / "one.safetensors")
    with roles.frozen(STUDENT), editor.roles.frozen(STUDENT):
        expected, found = (velocity(b, cond, x, 0.5) for b in (backbone, editor.backbone))
    kept = [name for name, _ in editor.backbone.network.named_parameters() if "lora_" in name]
    assert bool(kept) == ("quantization" in settings)
    assert (found - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize(
    ("family", "config", "base", "modules", "lora"),
    [
        (QWEN_IMAGE_EDIT_PLUS, {}, 20_430_401_088, 846, 1_183_694_848),
        (QWEN_IMAGE_21, {}, 7_115_124_736, 224, 335_544_320),
        (FLUX_KONTEXT, {"guidance_embeds": True}, 11_901_408_320, 504, None),
        (FLUX_2, {}, 32_223_281_152, 203, None),
    ],
)
def test_the_true_sizes_carry_lora_on_every_projection(family, config, base, modules, lora):
    with torch.device("meta"):
        network = getattr(diffusers, family.network_class)(**config)
    assert sum(p.numel() for p in network.parameters()) == base
    targets = family.find_lora_targets(network)
    assert len(targets) == modules
    layers = dict(network.named_modules())
    if lora:
        assert sum(128 * (layers[t].in_features + layers[t].out_features) for t in targets) == lora


def test_only_what_is_used_is_loaded_and_encoders_can_be_released(folders):
    backbone = load("flux_kontext", folders)
    first = backbone.encode_prompt(["blur"]).tokens
    assert "network" not in vars(backbone)
    assert "vae" not in vars(backbone)
    cond = condition(backbone, ["blur"])
    backbone.release_encoders()
    assert not {"vae", "text_pipeline"} & set(vars(backbone))
    velocity(backbone, cond, torch.randn_like(cond.source), 0.5)
    assert not {"vae", "text_pipeline"} & set(vars(backbone))
    assert torch.equal(backbone.encode_prompt(["blur"]).tokens, first)


@pytest.mark.parametrize("name", REAL)
def test_check_sees_the_networks_names_and_shapes_without_weights(name, folders):
    network, lora_targets = family_of(str(folders[name])).empty_network(str(folders[name]))
    assert all(p.is_meta for p in network.parameters())
    whole = load(name, folders)
    assert lora_targets == whole.lora_targets
    assert {n: p.shape for n, p in network.named_parameters()} == {
        n: p.shape for n, p in whole.network.named_parameters()
    }


@pytest.mark.parametrize("name", REAL)
def test_recommended_settings_resolve(name, folders):
    base = str(folders[name])
    settings = resolve(family_of(base).recommended_settings(base))
    assert settings.model.dtype == "bfloat16"
    assert settings.student.rank == 128


def test_bases_that_cannot_be_loaded_say_why(folders, tmp_path):
    with pytest.raises(UserError, match="cannot be opened") as error:
        load_backbone(str(tmp_path), SETTINGS)
    assert error.value.field == "base"
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(UserError, match="StableDiffusionPipeline, which is not supported") as error:
        load_backbone(str(tmp_path), SETTINGS)
    assert "FluxKontextPipeline" in error.value.hint
    pickled = shutil.copytree(folders["flux_kontext"], tmp_path / "pickled")
    weights = pickled / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UserError, match="cannot be opened"):
        _ = load("pickled", {"pickled": pickled}).network
    with pytest.raises(UserError, match="nano"):
        load_backbone(NANO, ModelSettings(dtype="bfloat16"))


@pytest.mark.parametrize(
    "name",
    [
        "qwen_image_edit",
        *(pytest.param(n, marks=pytest.mark.thorough) for n in ("qwen_image_21", "flux_kontext")),
    ],
)
def test_a_collection_over_a_real_base_from_pairs_to_an_edited_photo(name, folders, tmp_path):
    for sub in ("photos", "pairs/warm/source", "pairs/warm/target"):
        for index in range(2):
            write_photo(tmp_path / sub / f"{index}.png", photo(seed=index))
    (tmp_path / "general.txt").write_text("blur\nbrighten the photo\n")
    effect = {"name": "warm", "teacher": "teachers/warm.safetensors", "teacher_prompt": "make it warm"}
    shown = [photo((32, 96), seed=9)] if name in SEVERAL else []
    for image in shown:
        write_photo(tmp_path / "look.png", image)
        effect["references"] = ["look.png"]
    settings = {
        "model": {"dtype": "float32", "condition_resolution": 64},
        "data": {"resolution": 32},
        "student": {"rank": 2},
        "critic": {"rank": 2},
        "targets": {"steps": 2, "guidance_scale": 2, "samples": 2, "general": 3},
        "teach": {"steps": 2, "rank": 2, "batch_size": 2},
        "match": {"updates": 1},
        "distill": {"student_updates": 1, "batch_size": 2, "rollout_steps": [2], "effect_ratio": 1},
    }
    manifest = {
        "base": str(folders[name]),
        "effects": [{**effect, "photos": "photos"}],
        "general": {"photos": "photos", "prompts": "general.txt"},
        "settings": settings,
    }
    (tmp_path / "collection.yaml").write_text(yaml.safe_dump(manifest))
    collectionlora.teach(tmp_path)
    assert check_collection(tmp_path)["ok"]
    collectionlora.distill(tmp_path)
    made = collectionlora.edit(tmp_path, photo((50, 70)), "warm", steps=2, references=shown)
    assert made.size == (70, 50)
    if shown:
        another = collectionlora.edit(
            tmp_path, photo((50, 70)), "warm", steps=2, references=[photo((32, 96), seed=3)]
        )
        assert not np.array_equal(another, made)
    with pytest.raises(
        UserError, match=f"taught with {len(shown)} reference images, {1 - len(shown)} are given"
    ):
        collectionlora.edit(tmp_path, photo(), "warm", references=[photo()] * (1 - len(shown)))

    # A second run reads everything from the cache: no encoder is loaded.
    session = Session(Collection.load(tmp_path), resolve_settings(Collection.load(tmp_path), {}), False)
    streams = session.make_targets(lambda *_: None)
    assert not {"vae", "text_pipeline"} & set(vars(session.backbone))
    prompts = 2 if session.backbone.prompts_see_photos else 1
    data = streams.effects[0]
    assert {len(p) for p in (data.teacher_prompt, data.student_prompt, data.uncond)} == {prompts}
    for reference in data.references:
        assert reference.shape[0] == 1
        assert reference.shape[-1] > reference.shape[-2]  # in its own shape, whatever the photos' is
    read = [
        condition.references for condition in vars(streams.batch(0)).values() if hasattr(condition, "source")
    ]
    assert [len(references) for references in read] == [len(shown)] * 3

    with pytest.raises(UserError, match=f"multiple of {session.backbone.side_multiple}"):
        collectionlora.distill(tmp_path, "other", {"data": {"resolution": 40}})


@pytest.mark.parametrize(
    ("name", "match", "field", "message"),
    [
        (NANO, {}, "effects.warm.references", "the photo alone"),
        ("flux_kontext", {}, "effects.warm.references", "the photo alone"),
        ("flux2", {"updates": 1, "loss": "flow"}, "settings.match.loss", "mixes effects"),
    ],
)
def test_references_that_cannot_be_read_are_found_by_check(name, match, field, message, folders, tmp_path):
    effect = {"name": "warm", "teacher": "warm.safetensors", "teacher_prompt": "warm", "photos": "photos"}
    manifest = {
        "base": NANO if name == NANO else str(folders[name]),
        "effects": [{**effect, "references": ["look.png"]}],
        "general": {"photos": "photos", "prompts": "general.txt"},
        "settings": {"match": match},
    }
    (tmp_path / "collection.yaml").write_text(yaml.safe_dump(manifest))
    problems = {problem["field"]: problem["message"] for problem in check_collection(tmp_path)["problems"]}
    assert message in problems[field]


@pytest.mark.thorough
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_blocks_give_the_gradients_of_each_role(checkpointing, folders):
    settings = resolve({"model": {"condition_resolution": 64, "gradient_checkpointing": checkpointing}})
    found = []
    for compiled in (False, True):
        own = settings.model_copy(update={"model": settings.model.model_copy(update={"compile": compiled})})
        backbone = load("qwen_image_edit", folders, own.model)
        cond = condition(load("qwen_image_edit", folders), ["blur"])
        roles = build_roles(backbone, {STUDENT: 4, CRITIC: 4, TEACHER: 4}, 0, own)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for role in (STUDENT, CRITIC, TEACHER):
                for factor in roles.parameters(role):
                    factor.copy_(0.1 * torch.randn(factor.shape, generator=generator))
        noise = torch.randn(cond.source.shape, generator=generator)
        for role in (STUDENT, CRITIC):
            with roles.use(role):
                out = Denoiser(backbone, cond).velocity(noise, 0.5)
            with roles.use(TEACHER):  # as in a step, where backward may run in another role's block
                out.square().sum().backward()
            # What takes no part has no gradient, or one of zeros where it is compiled.
            found += [
                out.detach(),
                *(p.new_zeros(p.shape) if p.grad is None else p.grad for p in roles.parameters(role)),
            ]
        with torch.no_grad(), roles.use(TEACHER):
            found.append(Denoiser(backbone, cond).velocity(noise, 0.5))
    middle = len(found) // 2
    assert middle > 40
    for eager, compiled in zip(found[:middle], found[middle:], strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)


def test_blocks_are_not_compiled_where_the_machine_cannot(folders, monkeypatch):
    monkeypatch.setattr(inductor.cpp, "cxx", ("a-compiler-that-is-not-here",))
    torch._dynamo.reset()
    network = load("qwen_image_edit", folders).network
    with pytest.raises(UserError, match=r"settings\.model\.compile: torch cannot compile here"):
        compile_blocks(network, torch.device("cpu"))
    assert all(block._compiled_call_impl is None for block in network.transformer_blocks)

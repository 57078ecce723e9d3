"""Every format of LoRA files reads back to the same change of the weights, or is refused by name."""

import json

import pytest
import torch
import yaml
from helpers.small_collection import NAMES, build
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from collectionlora.adapters.formats import read_lora, read_teacher, write_lora
from collectionlora.adapters.low_rank import change
from collectionlora.adapters.recipe import Recipe, read_adapter, write_adapter
from collectionlora.adapters.roles import STUDENT, Roles, target_weights
from collectionlora.collection import Collection
from collectionlora.command_line.terminal import describe_lora
from collectionlora.config import resolve
from collectionlora.manifest.template import create
from collectionlora.planning import checking
from collectionlora.runs.teacher_files import open_teachers
from collectionlora.system.errors import UserError

ATTENTION, MLP, CONV = "blocks.0.attn.to_q", "blocks.0.img_mlp.net.0", "mix.1"
ALPHA, RANKS = 2.0, {ATTENTION: 4, MLP: 3, CONV: 2}


def random(*shape):
    return torch.randn(*shape)


@pytest.fixture
def base():
    """Weights of a base: two linear modules, a convolution, and one that no file here trains."""
    shapes = {ATTENTION: (8, 6), MLP: (12, 8), CONV: (5, 3, 3, 3), "blocks.0.attn.to_k": (8, 6)}
    return {name: random(*shape) for name, shape in shapes.items()}


@pytest.fixture
def adapter(base):
    """down and up of three modules with mixed ranks."""
    return {
        name: (
            random(rank, *base[name].shape[1:]),
            random(len(base[name]), rank, *(1,) * (base[name].ndim - 2)),
        )
        for name, rank in RANKS.items()
    }


def written(path, adapter, down, up, alpha=None, rename=lambda name: name, metadata=None):
    """Write an adapter with the given spellings; returns the path."""
    tensors = {}
    for name, (a, b) in adapter.items():
        tensors |= {down.format(rename(name)): a, up.format(rename(name)): b}
        if alpha:
            tensors[alpha.format(rename(name))] = torch.tensor(ALPHA)
    save_file(tensors, path, metadata)
    return path


def assert_changes(found, expected):
    assert set(found.weights) == set(expected)
    for name, matrix in expected.items():
        difference = (change(found.weights[name]) - matrix).norm() / matrix.norm()
        assert difference < 1e-6, name


def underscored(name):
    return name.replace(".", "_")


def plain(name):
    return name


SPELLINGS = [
    ("peft", "base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight", None, plain),
    ("bare", "{}.lora_A.default.weight", "{}.lora_B.default.weight", None, plain),
    ("bare", "{}.lora_A.weight", "{}.lora_B.weight", "{}.alpha", plain),
    ("bare", "{}.lora_down.weight", "{}.lora_up.weight", None, plain),
    ("bare", "{}.lora_down.weight", "{}.lora_up.weight", "{}.alpha", plain),
    ("diffusers", "transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight", None, plain),
    (
        "diffusers",
        "transformer.{}.lora_A.weight",
        "transformer.{}.lora_B.weight",
        "transformer.{}.alpha",
        plain,
    ),
    ("diffusers", "transformer.{}.lora.down.weight", "transformer.{}.lora.up.weight", None, plain),
    ("diffusers", "transformer.{}.lora_down.weight", "transformer.{}.lora_up.weight", None, plain),
    ("comfyui", "diffusion_model.{}.lora_A.weight", "diffusion_model.{}.lora_B.weight", None, plain),
    (
        *("comfyui", "diffusion_model.{}.lora_down.weight", "diffusion_model.{}.lora_up.weight"),
        *("diffusion_model.{}.alpha", plain),
    ),
    (
        "kohya",
        "lora_unet_{}.lora_down.weight",
        "lora_unet_{}.lora_up.weight",
        "lora_unet_{}.alpha",
        underscored,
    ),
    ("lycoris", "lycoris_{}.lora_down.weight", "lycoris_{}.lora_up.weight", "lycoris_{}.alpha", underscored),
    (
        *("onetrainer", "lora_transformer_{}.lora_down.weight", "lora_transformer_{}.lora_up.weight"),
        *("lora_transformer_{}.alpha", underscored),
    ),
]


@pytest.mark.parametrize(("prefix", "down", "up", "alpha", "rename"), SPELLINGS)
def test_one_adapter_in_every_spelling_is_the_same_change(
    tmp_path, base, adapter, prefix, down, up, alpha, rename
):
    found = read_lora(written(tmp_path / "a.safetensors", adapter, down, up, alpha, rename), base)
    scales = {name: ALPHA / rank if alpha else 1.0 for name, rank in RANKS.items()}
    assert_changes(found, {name: change(pair) * scales[name] for name, pair in adapter.items()})
    report = found.report(len(base))
    assert report["format"] == f"{prefix} LoRA"
    assert (report["ranks"], report["modules"], report["targets"]) == ([2, 3, 4], 3, 4)
    assert report["scales"] == pytest.approx(sorted(set(scales.values())), abs=1e-6)
    norm = sum(float(change(pair).norm()) ** 2 * scales[n] ** 2 for n, pair in adapter.items()) ** 0.5
    assert report["norm"] == pytest.approx(norm, rel=1e-5)
    for name, (a, b) in found.weights.items():
        assert a.shape[1:] == base[name].shape[1:]
        assert b.ndim == a.ndim


WRAPPED = [
    "base_model.model.transformer.{}.lora_{}.weight",
    "base_model.model.diffusion_model.{}.lora_{}.weight",
    "module.base_model.model.{}.lora_{}.weight",
    "_orig_mod.{}.lora_{}.default.weight",
    "module._orig_mod.transformer.{}.lora_{}.weight",
    "transformer._orig_mod.{}.lora_{}.default_0.weight",
    "base_model.model._fsdp_wrapped_module.{}.lora_{}.my-style.weight",
    "transformer._checkpoint_wrapped_module.{}.lora_{}.weight",
    "pipe.dit.{}.lora_{}.default.weight",
    "model.diffusion_model.{}.lora_{}",
]


@pytest.mark.parametrize("spelling", WRAPPED)
def test_what_libraries_put_around_a_name_is_taken_off(tmp_path, base, adapter, spelling):
    down, up = (spelling.replace("lora_{}", f"lora_{side}") for side in "AB")
    found = read_lora(written(tmp_path / "a.safetensors", adapter, down, up), base)
    assert_changes(found, {name: change(pair) for name, pair in adapter.items()})


def test_two_adapters_in_one_file_are_refused(tmp_path, base):
    names = [f"{ATTENTION}.lora_{side}.{name}.weight" for side in "AB" for name in ("first", "second")]
    save_file({name: torch.ones(2, 6) for name in names}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="for the second time"):
        read_lora(tmp_path / "a.safetensors", base)


def test_an_alpha_without_a_rank_may_be_infinite(tmp_path, base):
    """Trainers write a huge alpha for a whole Kronecker product, where it means nothing: inf in float16."""
    w1, w2, alpha = random(2, 3), random(4, 2), torch.tensor(9999999999.0).half()
    whole = {f"{ATTENTION}.lokr_w1": w1, f"{ATTENTION}.lokr_w2": w2, f"{ATTENTION}.alpha": alpha}
    save_file(whole, tmp_path / "a.safetensors")
    assert_changes(read_lora(tmp_path / "a.safetensors", base), {ATTENTION: kron(w1, w2)})
    save_file({**GOOD, f"{ATTENTION}.alpha": alpha}, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match=r"to_q\.alpha: holds values that are not finite"):
        read_lora(tmp_path / "b.safetensors", base)


@pytest.mark.parametrize("dora", [False, True])
def test_the_last_modulation_of_flux_has_its_halves_swapped(tmp_path, dora):
    """Black Forest Labs' code takes shift, then scale; diffusers takes scale, then shift."""
    base = {"norm_out.linear": random(8, 6), "single_transformer_blocks.0.proj_out": random(8, 6)}
    theirs = torch.cat(base["norm_out.linear"].chunk(2)[::-1])
    down, up, magnitude = random(2, 6), random(8, 2), random(8, 1).abs()
    key = "diffusion_model.final_layer.adaLN_modulation.1"
    tensors = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
    moved = theirs + up @ down
    if dora:
        tensors[f"{key}.dora_scale"] = magnitude
        moved = magnitude * moved / moved.norm(dim=1, keepdim=True)
    save_file(tensors, tmp_path / "a.safetensors")
    expected = torch.cat(moved.chunk(2)[::-1]) - base["norm_out.linear"]
    assert_changes(read_lora(tmp_path / "a.safetensors", base), {"norm_out.linear": expected})


@pytest.mark.parametrize("stabilised", [False, True])
def test_alpha_of_the_header_of_diffusers(tmp_path, base, adapter, stabilised):
    config = {"r": 4, "lora_alpha": 8, "use_rslora": stabilised, "target_modules": list(adapter)}
    config |= {"rank_pattern": {MLP: 3, "mix.1": 2}, "alpha_pattern": {"img_mlp.net.0": 1}}
    header = {"lora_adapter_metadata": json.dumps({f"transformer.{key}": v for key, v in config.items()})}
    spelling = ("transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight")
    path = written(tmp_path / "a.safetensors", adapter, *spelling, metadata=header)
    power = 0.5 if stabilised else 1.0
    scales = {ATTENTION: 8 / 4**power, MLP: 1 / 3**power, CONV: 8 / 2**power}
    assert_changes(read_lora(path, base), {name: change(p) * scales[name] for name, p in adapter.items()})


def test_the_text_encoder_is_left_out_on_request(tmp_path, base, adapter):
    """By its tensors, its alphas and its part of the header; the rest is the same teacher."""
    spelling = ("transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight")
    header = {"transformer.r": 4, "transformer.lora_alpha": 8, "text_encoder.r": 16}
    header |= {"transformer.rank_pattern": {MLP: 3, CONV: 2}, "text_encoder.lora_alpha": 1}
    metadata = {"lora_adapter_metadata": json.dumps(header)}
    path = written(tmp_path / "a.safetensors", adapter, *spelling, metadata=metadata)
    with pytest.raises(UserError, match="write without_text_encoder: true"):
        read_teacher(path, base)
    scales = {ATTENTION: 8 / 4, MLP: 8 / 3, CONV: 8 / 2}
    expected = {name: change(pair) * scales[name] for name, pair in adapter.items()}
    name = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    further = {f"{name}.lora_down.weight": torch.ones(1, 2), f"{name}.alpha": torch.tensor(1.0)}
    further["module.text_encoder.layers.0.q_proj.lora_A.weight"] = torch.ones(1, 2)
    save_file(load_file(path) | further, path, metadata)
    found = read_teacher(path, base, without_text_encoder=True)
    assert_changes(found, expected)
    line = describe_lora({"name": "a", **found.report(4)})
    assert line.endswith(", 3 tensors of the text encoder left out")
    save_file(further, path)
    with pytest.raises(UserError, match="holds no LoRA weights"):
        read_teacher(path, base, without_text_encoder=True)


def test_a_header_that_contradicts_the_tensors_is_refused(tmp_path, base, adapter):
    spelling = ("transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight")
    cases = {
        '{"transformer.r": 16, "transformer.lora_alpha": 16}': "states rank 16",
        '{"transformer.lora_alpha": 16}': "states rank None",
        "[]": "is not a JSON object",
        '{"text_encoder.r": 4}': "text encoder",
        **{
            f'{{"transformer.init_lora_weights": "{start}"}}': f"says that {start} moved the base's weights"
            for start in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "LoRA-GA")
        },
    }
    for text, message in cases.items():
        path = written(
            tmp_path / "a.safetensors", adapter, *spelling, metadata={"lora_adapter_metadata": text}
        )
        with pytest.raises(UserError, match=message):
            read_lora(path, base)
    config = {"r": 4, "lora_alpha": 4, "rank_pattern": {MLP: 3, CONV: 2}}
    header = {"lora_adapter_metadata": json.dumps(config)}
    path = written(tmp_path / "a.safetensors", adapter, *spelling, "transformer.{}.alpha", metadata=header)
    with pytest.raises(UserError, match="the header gives"):
        read_lora(path, base)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.mix = nn.Linear(6, 8), nn.Conv2d(8, 5, 3, padding=1)

    def forward(self, x):
        return self.mix(self.first(x).transpose(1, 2).unflatten(2, (2, 2)))


@pytest.mark.parametrize("dora", [False, True])
def test_a_folder_that_peft_wrote(tmp_path, dora):
    """PEFT keeps alpha in a file beside the tensors; its own output over the base is the reference."""
    network, x = Network(), random(2, 4, 6)
    weights = target_weights(network, ["first", "mix"])
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["first", "mix"], use_dora=dora)
    model = get_peft_model(network, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += 0.3 * torch.rand_like(parameter)
    expected = model(x)
    model.save_pretrained(tmp_path)
    found = read_lora(tmp_path / "adapter_model.safetensors", before)
    roles = Roles(model.unload(), ["first", "mix"], {STUDENT: found.rank})
    roles.load(STUDENT, found.weights)
    with roles.use(STUDENT):
        torch.testing.assert_close(roles.network(x), expected, atol=1e-5, rtol=1e-5)
    assert found.report(2)["format"] == ("peft DoRA of LoRA" if dora else "peft LoRA")


def kron(first, second):
    """LoKr as ComfyUI and LyCORIS compute it, the kernel's axes behind."""
    return torch.kron(first[(...,) + (None,) * (second.ndim - 2)], second)


def tucker(core, b, a):
    return torch.einsum("i j k l, j r, i p -> p r k l", core, a, b)


def converted_cases():
    """Tensors of one module and its change before alpha / rank, by kind and layout."""
    for module, rows, columns in ((ATTENTION, 8, 6), (CONV, 5, 27)):
        wa, wb, wc, wd = random(rows, 2), random(2, columns), random(rows, 2), random(2, columns)
        parts = {"hada_w1_a": wa, "hada_w1_b": wb, "hada_w2_a": wc, "hada_w2_b": wd}
        yield "LoHa", module, parts, (wa @ wb) * (wc @ wd)
    t1, t2 = random(2, 2, 3, 3), random(2, 2, 3, 3)
    wa, wb, wc, wd = random(2, 5), random(2, 3), random(2, 5), random(2, 3)
    parts = {"hada_w1_a": wa, "hada_w1_b": wb, "hada_w2_a": wc, "hada_w2_b": wd, "hada_t1": t1, "hada_t2": t2}
    yield "LoHa", CONV, parts, tucker(t1, wa, wb) * tucker(t2, wc, wd)
    w1, w2 = random(2, 3), random(4, 2)
    yield "LoKr", ATTENTION, {"lokr_w1": w1, "lokr_w2": w2}, kron(w1, w2)
    a, b = random(4, 2), random(2, 2)
    yield "LoKr", ATTENTION, {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b}, kron(w1, a @ b)
    c, d = random(2, 2), random(2, 3)
    parts = {"lokr_w1_a": c, "lokr_w1_b": d, "lokr_w2_a": a, "lokr_w2_b": b}
    yield "LoKr", ATTENTION, parts, kron(c @ d, a @ b)
    w1, w2 = random(5, 1), random(1, 3, 3, 3)
    yield "LoKr", CONV, {"lokr_w1": w1, "lokr_w2": w2}, kron(w1, w2)
    core, a, b = random(2, 2, 3, 3), random(2, 5), random(2, 3)
    w1 = random(1, 1)
    yield (
        "LoKr",
        CONV,
        {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b, "lokr_t2": core},
        kron(w1, tucker(core, a, b)),
    )
    up, down, mid = random(5, 2, 1, 1), random(2, 3, 1, 1), random(2, 2, 3, 3)
    parts = {"lora_up.weight": up, "lora_down.weight": down, "lora_mid.weight": mid}
    yield "LoRA", CONV, parts, torch.einsum("mnkl,im,nj->ijkl", mid, up[..., 0, 0], down[..., 0, 0])


@pytest.mark.parametrize("case", range(9))
@pytest.mark.parametrize("prefix", ["lycoris_{}.{}", "base_model.model.{}.{}"])
def test_other_kinds_are_converted_exactly_where_the_rank_suffices(tmp_path, base, case, prefix):
    kind, module, parts, expected = list(converted_cases())[case]
    spelled = underscored(module) if prefix.startswith("lycoris") else module
    tensors = {prefix.format(spelled, name): tensor for name, tensor in parts.items()}
    tensors[prefix.format(spelled, "alpha")] = torch.tensor(3.0)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "a.safetensors")
    found = read_lora(tmp_path / "a.safetensors", base)
    whole = "lokr_w1" in parts and "lokr_w2" in parts
    assert_changes(found, {module: expected.flatten(1) * (1.0 if whole else 3.0 / 2.0)})
    assert found.format.endswith(kind)
    assert found.weights[module][0].shape[1:] == base[module].shape[1:]
    assert found.report(4)["conversion_loss"] == 0


@pytest.mark.parametrize("shape", [(8, 1), (1, 6)])
def test_dora_of_both_axes_needs_the_weights_of_the_base(tmp_path, base, shape):
    up, down, magnitude = random(8, 2), random(2, 6), random(*shape).abs()
    tensors = {
        "lora_up.weight": up,
        "lora_down.weight": down,
        "alpha": torch.tensor(1.0),
        "dora_scale": magnitude,
    }
    save_file(
        {f"lycoris_{underscored(ATTENTION)}.{n}": t for n, t in tensors.items()}, tmp_path / "a.safetensors"
    )
    moved = base[ATTENTION] + up @ down / 2
    expected = magnitude * moved / moved.norm(dim=1 if shape[1] == 1 else 0, keepdim=True) - base[ATTENTION]
    found = read_lora(tmp_path / "a.safetensors", base)
    assert_changes(found, {ATTENTION: expected})
    with pytest.raises(UserError, match="nothing without the base's weights"):
        read_lora(tmp_path / "a.safetensors", {name: w.to("meta") for name, w in base.items()})


def test_a_conversion_states_its_loss_and_is_refused_beyond_a_tenth(tmp_path):
    generator = torch.Generator().manual_seed(0)
    base = {"m": torch.zeros(320, 320)}
    values = torch.linspace(1, 0.02, 320) ** 3
    left, right = (torch.linalg.qr(torch.randn(320, 320, generator=generator)).Q for _ in range(2))
    for matrix, refused in ((left * values @ right, False), (left @ right, True)):
        save_file({"m.lokr_w1": torch.ones(1, 1), "m.lokr_w2": matrix}, tmp_path / "a.safetensors")
        if refused:
            with pytest.raises(UserError, match=r"loses 45% of its change at rank 256"):
                read_lora(tmp_path / "a.safetensors", base)
        else:
            found = read_lora(tmp_path / "a.safetensors", base)
            measured = float((change(found.weights["m"]) - matrix).norm() / matrix.norm())
            assert 1e-4 < measured < 0.1
            assert found.report(1)["conversion_loss"] == pytest.approx(measured, rel=1e-3)


PARTS = {"lora_A.weight": (2, 6), "lora_B.weight": (4, 2)}
GOOD = {f"{ATTENTION}.lora_A.weight": torch.ones(2, 6), f"{ATTENTION}.lora_B.weight": torch.ones(8, 2)}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({f"{MLP}.lora_A.weight": torch.ones(2, 8)}, "only one of the two"),
        ({f"{MLP}.alpha": torch.ones(1)}, "not a complete LoRA"),
        (
            {f"{MLP}.lora_A.weight": torch.ones(2, 8), f"{MLP}.lora_B.weight": torch.ones(12, 3)},
            "ranks 2 and 3",
        ),
        (
            {f"{MLP}.lora_A.weight": torch.ones(2, 8), f"{MLP}.lora_B.weight": torch.ones(9, 2)},
            r"changes a weight",
        ),
        ({f"{MLP}.lora_A.weight": torch.ones(2), f"{MLP}.lora_B.weight": torch.ones(12)}, "not matrices"),
        (
            {f"{MLP}.lora_A.weight": torch.ones(0, 8), f"{MLP}.lora_B.weight": torch.ones(12, 0)},
            "not matrices",
        ),
        ({f"{MLP}.lora_A.weight": torch.full((2, 8), torch.nan)}, "not finite"),
        ({f"{ATTENTION}.alpha": torch.ones(2)}, "one number"),
        ({f"transformer.{ATTENTION}.lora_A.weight": torch.ones(2, 6)}, "second time"),
        (
            {"blocks.1.attn.to_q.lora_A.weight": torch.ones(2, 6)},
            r"is not a module .* nearest is blocks.0.attn.to_q",
        ),
        ({"lora_unet_blocks_9.lora_up.weight": torch.ones(2, 6)}, "is not a module"),
        ({"lora_te_text_model_encoder_layers_0.lora_up.weight": torch.ones(2, 6)}, "trains the text encoder"),
        ({"text_encoder.layers.0.lora_A.weight": torch.ones(2, 6)}, "trains the text encoder"),
        ({f"{ATTENTION}.diff": torch.ones(8, 6)}, "do not belong together"),
        ({f"{MLP}.diff": torch.ones(8)}, "not matrices"),
        ({f"{MLP}.diff": torch.ones(8, 8)}, "changes a weight"),
        ({f"{ATTENTION}.diff_b": torch.ones(8)}, "replaces a weight"),
        ({f"{ATTENTION}.lora_B.bias": torch.ones(8)}, "replaces a weight"),
        ({"blocks.0.norm.w_norm": torch.ones(8)}, "replaces a weight"),
        ({f"{ATTENTION}.oft_blocks": torch.ones(2, 2, 2)}, "not read"),
        ({f"{ATTENTION}.a1.weight": torch.ones(2, 6)}, "not read"),
        ({f"{ATTENTION}.weight": torch.ones(8, 6)}, "not a LoRA weight of a known format"),
        ({f"{ATTENTION}.lora_mid.weight": torch.ones(3, 3, 1, 1)}, "do not fit together"),
        ({f"{MLP}.lokr_w1": torch.ones(2, 2)}, "not a complete LoRA, LoHa or LoKr"),
        ({f"{MLP}.lokr_w1": torch.ones(2, 2), f"{MLP}.lokr_w2": torch.ones(2, 2)}, "changes a weight"),
        ({f"{MLP}.hada_w1_a": torch.ones(2, 2), f"{MLP}.hada_w1_b": torch.ones(2, 2)}, "not a complete"),
        ({f"{ATTENTION}.dora_scale": torch.ones(3, 1)}, "is a magnitude"),
    ],
)
def test_a_file_that_would_be_read_in_part_is_refused_by_name(tmp_path, base, extra, message):
    path = tmp_path / "bad.safetensors"
    save_file(GOOD, path)
    read_lora(path, base)
    save_file(GOOD | extra, path)
    with pytest.raises(UserError, match=message) as error:
        read_lora(path, base)
    assert error.value.file == str(path)
    assert error.value.field
    assert error.value.hint


FLUX = {
    "transformer_blocks.0.attn.to_q": (4, 6),
    "transformer_blocks.0.attn.to_k": (4, 6),
    "transformer_blocks.0.attn.to_v": (4, 6),
    "single_transformer_blocks.3.attn.to_q": (4, 6),
    "single_transformer_blocks.3.attn.to_k": (4, 6),
    "single_transformer_blocks.3.attn.to_v": (4, 6),
    "single_transformer_blocks.3.proj_mlp": (9, 6),
    "x_embedder": (6, 2),
}


@pytest.mark.parametrize(("prefix", "rename"), [("lora_unet_", underscored), ("diffusion_model.", plain)])
def test_fused_modules_of_flux_become_their_pieces(tmp_path, prefix, rename):
    base = {name: random(*shape) for name, shape in FLUX.items()}
    fused = {"double_blocks.0.img_attn.qkv": (12, 6), "single_blocks.3.linear1": (21, 6), "img_in": (6, 2)}
    adapter = {name: (random(2, columns), random(rows, 2)) for name, (rows, columns) in fused.items()}
    spelling = [f"{prefix}{{}}.{part}" for part in ("lora_down.weight", "lora_up.weight", "alpha")]
    path = written(tmp_path / "a.safetensors", adapter, *spelling, rename=rename)
    found = read_lora(path, base)
    rows = torch.cat([change(adapter[name]) for name in fused if name != "img_in"])
    expected = dict(zip(FLUX, rows.split([4] * 6 + [9]), strict=False)) | {
        "x_embedder": change(adapter["img_in"])
    }
    assert_changes(found, {name: matrix * ALPHA / 2 for name, matrix in expected.items()})
    twice = {f"transformer_blocks.0.attn.to_q.{part}": torch.ones(*s) for part, s in PARTS.items()}
    save_file(load_file(path) | twice, path)
    with pytest.raises(UserError, match="second time"):
        read_lora(path, base)


def test_names_that_the_base_cannot_tell_apart_are_refused(tmp_path):
    tensors = {
        "lora_unet_a_b.lora_down.weight": torch.ones(2, 6),
        "lora_unet_a_b.lora_up.weight": torch.ones(8, 2),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"could be a\.b or a_b"):
        read_lora(tmp_path / "a.safetensors", {"a.b": torch.ones(8, 6), "a_b": torch.ones(8, 6)})
    with pytest.raises(UserError, match="only its base can resolve"):
        read_lora(tmp_path / "a.safetensors")


def test_an_empty_file_is_refused(tmp_path):
    save_file({}, tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match="holds no LoRA"):
        read_lora(tmp_path / "bad.safetensors")


def test_files_that_are_no_safetensors_are_refused(tmp_path):
    for content in (b"", b"\x80\x04pickle", b"\xff" * 64):
        (tmp_path / "bad.safetensors").write_bytes(content)
        with pytest.raises(UserError, match="not a safetensors file"):
            read_lora(tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match="no such file"):
        read_lora(tmp_path / "absent.safetensors")


def test_an_adapter_survives_its_file(tmp_path, base, adapter):
    write_lora(tmp_path / "a.safetensors", adapter, {"note": "x"})
    found = read_lora(tmp_path / "a.safetensors", base)
    assert found.metadata["note"] == "x"
    assert found.rank == 4
    for module, pair in adapter.items():
        for before, after in zip(pair, found.weights[module], strict=True):
            torch.testing.assert_close(before, after, atol=2e-3, rtol=1e-3)


def test_an_adapter_carries_its_recipe(tmp_path, adapter):
    recipe = Recipe(base="nano", steps=8, shift=3.0, resolution=64, effects={"a": "<x> a"}, version="1")
    write_adapter(tmp_path / "c.safetensors", adapter, recipe)
    _, found = read_adapter(tmp_path / "c.safetensors")
    assert found == recipe
    write_lora(tmp_path / "plain.safetensors", adapter, {})
    with pytest.raises(UserError, match="no collectionlora recipe"):
        read_adapter(tmp_path / "plain.safetensors")


def test_the_same_adapter_is_the_same_file(tmp_path, adapter):
    """safetensors orders metadata at random; a hash of the file should depend on its content alone."""
    metadata = {f"key-{i}": f'value "{i}" \\ \n é ✓' for i in range(12)}
    for name in ("a", "b"):
        write_lora(tmp_path / f"{name}.safetensors", adapter, metadata)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert read_lora(tmp_path / "a.safetensors").metadata == metadata


def test_check_reports_every_file_and_names_the_bad_one(tmp_path, base, adapter, monkeypatch):
    monkeypatch.setattr(checking, "base_weights", lambda name: base)
    create(tmp_path, "nano", [])
    manifest = (tmp_path / "collection.yaml").read_text()
    (tmp_path / "collection.yaml").write_text(manifest.replace("my-effect", "good"))
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "general" / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "my-effect" / "a.png")
    (tmp_path / "photos" / "my-effect").rename(tmp_path / "photos" / "good")
    spelling = [f"diffusion_model.{{}}.{part}" for part in ("lora_down.weight", "lora_up.weight", "alpha")]
    path = written(tmp_path / "teachers" / "good.safetensors", adapter, *spelling)
    result = checking.check_collection(tmp_path)
    assert result["problems"] == []
    (effect,) = result["effects"]
    assert effect == {"name": "good", **read_lora(path, base).report(4)}
    line = "good: comfyui LoRA, rank 2, 3, 4, scale 0.5, 0.666667, 1, 3 of 4 modules, norm "
    assert describe_lora(effect).startswith(line)
    written(path, {"elsewhere": adapter[MLP]}, *spelling)
    result = checking.check_collection(tmp_path)
    assert (result["ok"], result["effects"]) == (False, [])
    assert result["problems"][0]["field"] == "diffusion_model.elsewhere"


def test_a_core_that_does_not_fit_its_factors_is_refused(tmp_path, base):
    """Found by fuzz_intake.py: the product of core and factors was never formed before the report."""
    parts = {"lora_down": random(2, 3, 1, 1), "lora_mid": random(7, 2, 3, 3), "lora_up": random(5, 2, 1, 1)}
    save_file({f"{CONV}.{name}.weight": part for name, part in parts.items()}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"mix\.1: its ranks 7 and 2 differ"):
        read_lora(tmp_path / "a.safetensors", base)


@pytest.mark.parametrize("start", ["gaussian", "eva", "orthogonal", True, False])
def test_initialisations_that_leave_the_base_alone_are_read(tmp_path, base, adapter, start):
    config = {"r": 4, "lora_alpha": 4, "rank_pattern": {MLP: 3, CONV: 2}, "init_lora_weights": start}
    header = {"lora_adapter_metadata": json.dumps({f"transformer.{key}": v for key, v in config.items()})}
    spelling = ("transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight")
    path = written(tmp_path / "a.safetensors", adapter, *spelling, metadata=header)
    assert set(read_lora(path, base).weights) == set(adapter)


@pytest.mark.parametrize("zero", ["B", "A", "alpha", "alpha of the header", "nearly"])
def test_a_teacher_that_changes_nothing_is_refused(tmp_path, base, adapter, zero):
    spelling = ["transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight"]
    config = {"r": 4, "lora_alpha": 0, "rank_pattern": {MLP: 3, CONV: 2}}
    metadata = {"lora_adapter_metadata": json.dumps(config)} if zero == "alpha of the header" else None
    if zero == "B":
        adapter = {name: (a, 0 * b) for name, (a, b) in adapter.items()}
    if zero == "A":
        adapter = {name: (0 * a, b) for name, (a, b) in adapter.items()}
    if zero == "nearly":  # A and B that cancel each other, up to rounding
        adapter = {name: (torch.cat([a, a]), torch.cat([b, -b], 1)) for name, (a, b) in adapter.items()}
    path = written(tmp_path / "a.safetensors", adapter, *spelling, metadata=metadata)
    if zero == "alpha":
        tensors = load_file(path)
        save_file(tensors | {f"transformer.{name}.alpha": torch.tensor(0.0) for name in adapter}, path)
    with pytest.raises(UserError, match=r"a\.safetensors: changes nothing"):
        read_teacher(path, base)


def test_a_teacher_that_changes_one_module_is_read(tmp_path, base, adapter):
    some = {name: (a, b if name == MLP else 0 * b) for name, (a, b) in adapter.items()}
    spelling = ("transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight")
    path = written(tmp_path / "a.safetensors", some, *spelling)
    assert set(read_teacher(path, base).weights) == set(adapter)


def test_the_manifest_leaves_out_the_text_encoder(tmp_path):
    """`check` says that it is left out, and a run reads the same."""
    folder = build(tmp_path / "mine")
    teacher = folder / "teachers" / f"{NAMES[0]}.safetensors"
    save_file(load_file(teacher) | {"lora_te_layers_0.lora_down.weight": torch.ones(1, 2)}, teacher)
    (problem,) = checking.check_collection(folder)["problems"]
    assert problem["hint"].startswith("write without_text_encoder: true into the effect's entry")
    manifest = yaml.safe_load((folder / "collection.yaml").read_text())
    manifest["effects"][0]["without_text_encoder"] = True
    (folder / "collection.yaml").write_text(yaml.safe_dump(manifest))
    result = checking.check_collection(folder)
    assert [effect["left_out"] for effect in result["effects"]] == [1, 0]
    teachers = open_teachers(Collection.load(folder), torch.float32, resolve())
    assert len(teachers[NAMES[0]]) == len(teachers[NAMES[1]])

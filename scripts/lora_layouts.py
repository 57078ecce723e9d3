"""Reads one LoRA in every layout that trainers and libraries write, and compares it with its own formula.

    python scripts/lora_layouts.py > docs/results/lora_layouts.txt

The files are random and follow the saving code of their origins. The base has names of Qwen-Image-Edit and
FLUX, and weights of 8 to 24 rows. The error is the norm of the difference relative to the change.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from collectionlora.adapters.formats import read_lora
from collectionlora.adapters.low_rank import change
from collectionlora.system.errors import UserError

QWEN, TOP = "transformer_blocks.0.attn.to_q", "img_in"
SINGLE, LAST = "single_transformer_blocks.0", "norm_out.linear"
SHARED = "double_stream_modulation_img.linear"
FUSED = [f"{SINGLE}.attn.to_q", f"{SINGLE}.attn.to_k", f"{SINGLE}.attn.to_v", f"{SINGLE}.proj_mlp"]
RANK, ALPHA = 2, 3.0
Changes = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """One way to write a LoRA; `expected` is the change of each module by the origin's formula."""

    origin: str
    keys: str
    tensors: dict[str, Tensor]
    expected: Changes
    metadata: dict[str, str] | None = None


def make_base(generator: torch.Generator) -> Changes:
    """Weights by name: a block's, one outside the blocks, and those that FLUX's own code has as one."""
    rows = {QWEN: 8, TOP: 8, LAST: 8, SHARED: 8, **dict.fromkeys(FUSED, 6), f"{SINGLE}.proj_out": 8}
    return {name: torch.randn(size, 6, generator=generator) for name, size in rows.items()}


def write_layouts(base: Changes, generator: torch.Generator) -> Iterator[Layout]:
    """Every layout."""

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    down, up, alpha = random(RANK, 6), random(8, RANK), torch.tensor(ALPHA)
    product = up @ down

    def pair(origin: str, a: str, b: str, module: str = QWEN, stated: str = "") -> Layout:
        tensors = {a: down, b: up} | ({stated: alpha} if stated else {})
        scale = ALPHA / RANK if stated else 1.0
        return Layout(origin, a, tensors, {module: scale * product})

    yield pair("PEFT", f"base_model.model.{QWEN}.lora_A.weight", f"base_model.model.{QWEN}.lora_B.weight")
    yield pair("diffusers", f"transformer.{QWEN}.lora_A.weight", f"transformer.{QWEN}.lora_B.weight")
    header = '{"transformer.r": 2, "transformer.lora_alpha": 3, "transformer.use_rslora": true}'
    names = [f"transformer.{QWEN}.lora_{side}.weight" for side in "AB"]
    stabilised = {QWEN: ALPHA / RANK**0.5 * product}
    yield Layout(
        "diffusers, rank-stabilised",
        f"{names[0]}; header",
        dict(zip(names, (down, up), strict=True)),
        stabilised,
        {"lora_adapter_metadata": header},
    )
    yield pair("diffusers, old", f"transformer.{QWEN}.lora.down.weight", f"transformer.{QWEN}.lora.up.weight")
    comfy = f"diffusion_model.{QWEN}"
    yield pair("ai-toolkit", f"{comfy}.lora_A.weight", f"{comfy}.lora_B.weight")
    yield pair("ComfyUI", f"{comfy}.lora_down.weight", f"{comfy}.lora_up.weight", stated=f"{comfy}.alpha")
    for origin, prefix in (("sd-scripts, musubi-tuner", "lora_unet"), ("OneTrainer", "lora_transformer")):
        spelled = f"{prefix}_{QWEN.replace('.', '_')}"
        yield pair(
            origin, f"{spelled}.lora_down.weight", f"{spelled}.lora_up.weight", stated=f"{spelled}.alpha"
        )
    yield pair("DiffSynth", f"{QWEN}.lora_A.default.weight", f"{QWEN}.lora_B.default.weight")
    yield pair(
        "DiffSynth, whole pipeline", f"pipe.dit.{QWEN}.lora_A.weight", f"pipe.dit.{QWEN}.lora_B.weight"
    )
    wrapped = f"module._orig_mod.transformer.{QWEN}"
    yield pair("accelerate, torch.compile", f"{wrapped}.lora_A.weight", f"{wrapped}.lora_B.weight")
    yield pair(
        "outside the blocks",
        f"lora_unet_{TOP}.lora_down.weight",
        f"lora_unet_{TOP}.lora_up.weight",
        TOP,
        f"lora_unet_{TOP}.alpha",
    )
    whole = random(24, RANK)
    rows = dict(zip(FUSED, (whole @ down).split(6), strict=True))
    fused = "diffusion_model.single_blocks.0.linear1"
    yield Layout(
        "FLUX's own names, fused",
        f"{fused}.lora_A.weight",
        {f"{fused}.lora_A.weight": down, f"{fused}.lora_B.weight": whole},
        rows,
    )
    last = "diffusion_model.final_layer.adaLN_modulation.1"
    swapped = torch.cat(product.chunk(2)[::-1])
    yield Layout(
        "FLUX's own names, swapped halves",
        f"{last}.lora_A.weight",
        {f"{last}.lora_A.weight": down, f"{last}.lora_B.weight": up},
        {LAST: swapped},
    )
    shared = "diffusion_model.double_stream_modulation_img.lin"
    yield pair(
        "FLUX.2's own names, shared modulation",
        f"{shared}.lora_A.weight",
        f"{shared}.lora_B.weight",
        SHARED,
    )
    yield from write_other_kinds(base, random)


def write_other_kinds(base: Changes, random: Callable[..., Tensor]) -> Iterator[Layout]:
    """LoHa, LoKr, DoRA and the whole change of one module."""
    key, alpha = f"lycoris_{QWEN.replace('.', '_')}", torch.tensor(ALPHA)
    one, two, three, four = random(8, RANK), random(RANK, 6), random(8, RANK), random(RANK, 6)
    parts = {"hada_w1_a": one, "hada_w1_b": two, "hada_w2_a": three, "hada_w2_b": four, "alpha": alpha}
    loha = ALPHA / RANK * (one @ two) * (three @ four)
    yield Layout(
        "LyCORIS LoHa",
        f"{key}.hada_w1_a",
        {f"{key}.{name}": part for name, part in parts.items()},
        {QWEN: loha},
    )
    w1, w2, a, b = random(2, 3), random(4, 2), random(4, RANK), random(RANK, 2)
    factored = {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": alpha}
    expected = ALPHA / RANK * torch.kron(w1, a @ b)
    yield Layout(
        "LyCORIS LoKr",
        f"{key}.lokr_w2_a",
        {f"{key}.{name}": part for name, part in factored.items()},
        {QWEN: expected},
    )
    comfy = f"diffusion_model.{QWEN}"
    full = {f"{comfy}.lokr_w1": w1, f"{comfy}.lokr_w2": w2, f"{comfy}.alpha": torch.tensor(float("inf"))}
    yield Layout("ai-toolkit LoKr, full rank", f"{comfy}.lokr_w2", full, {QWEN: torch.kron(w1, w2)})
    whole = random(8, 6)
    yield Layout("ComfyUI, whole change", f"{comfy}.diff", {f"{comfy}.diff": whole}, {QWEN: whole})
    down, up, weight = random(RANK, 6), random(8, RANK), base[QWEN]
    moved = weight + up @ down
    for origin, name, axis, prefix in (
        ("PEFT DoRA", "lora_magnitude_vector", 1, f"base_model.model.{QWEN}"),
        ("LyCORIS, OneTrainer DoRA by outputs", "dora_scale", 1, comfy),
        ("LyCORIS DoRA by inputs", "dora_scale", 0, comfy),
    ):
        length = moved.norm(dim=axis, keepdim=True)
        magnitude = length * (1 + 0.1 * random(*length.shape))
        stored = magnitude.flatten() if name == "lora_magnitude_vector" else magnitude
        tensors = {f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up, f"{prefix}.{name}": stored}
        yield Layout(origin, f"{prefix}.{name}", tensors, {QWEN: magnitude * moved / length - weight})


def measure(layout: Layout, base: Changes) -> float:
    """The largest error of any module, relative to its change.

    Raises:
        UserError: the layout is refused.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lora.safetensors"
        save_file({name: part.contiguous() for name, part in layout.tensors.items()}, path, layout.metadata)
        found = read_lora(path, base).weights
    assert set(found) == set(layout.expected), layout.origin
    return max(float((change(found[m]) - e).norm() / e.norm()) for m, e in layout.expected.items())


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    base = make_base(generator)
    print("| origin | keys | read | error |\n|---|---|---|---|")
    for layout in write_layouts(base, generator):
        try:
            outcome = f"yes | {measure(layout, base):.0e}"
        except UserError as error:
            outcome = f"no: {error.message} |"
        print(f"| {layout.origin} | `{layout.keys}` | {outcome} |")


if __name__ == "__main__":
    main()

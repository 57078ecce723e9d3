"""FLUX modules under the names of Black Forest Labs' own code, which kohya, ComfyUI and several trainers use.

There query, key and value (and, in FLUX.1's single blocks, the first projection of the MLP) are one module.
Its LoRA is one of each of its pieces: they share A, and each has its rows of B.
"""

import re
from collections.abc import Collection

import torch
from torch import Tensor

DOUBLE = (
    ("img_attn.qkv", ("attn.to_q", "attn.to_k", "attn.to_v")),
    ("txt_attn.qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
    ("img_attn.proj", ("attn.to_out.0",)),
    ("txt_attn.proj", ("attn.to_add_out",)),
    # FLUX.1
    ("img_mlp.0", ("ff.net.0.proj",)),
    ("img_mlp.2", ("ff.net.2",)),
    ("txt_mlp.0", ("ff_context.net.0.proj",)),
    ("txt_mlp.2", ("ff_context.net.2",)),
    ("img_mod.lin", ("norm1.linear",)),
    ("txt_mod.lin", ("norm1_context.linear",)),
    # FLUX.2
    ("img_mlp.0", ("ff.linear_in",)),
    ("img_mlp.2", ("ff.linear_out",)),
    ("txt_mlp.0", ("ff_context.linear_in",)),
    ("txt_mlp.2", ("ff_context.linear_out",)),
)
SINGLE = (
    # FLUX.1
    ("linear1", ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")),
    ("linear2", ("proj_out",)),
    ("modulation.lin", ("norm.linear",)),
    # FLUX.2
    ("linear1", ("attn.to_qkv_mlp_proj",)),
    ("linear2", ("attn.to_out",)),
)
# Of FLUX.2, outside its blocks: what has another name there and is otherwise the same.
RENAMED = (
    ("time_in.in_layer", "time_guidance_embed.timestep_embedder.linear_1"),
    ("time_in.out_layer", "time_guidance_embed.timestep_embedder.linear_2"),
    ("guidance_in.in_layer", "time_guidance_embed.guidance_embedder.linear_1"),
    ("guidance_in.out_layer", "time_guidance_embed.guidance_embedder.linear_2"),
    ("double_stream_modulation_img.lin", "double_stream_modulation_img.linear"),
    ("double_stream_modulation_txt.lin", "double_stream_modulation_txt.linear"),
    ("single_stream_modulation.lin", "single_stream_modulation.linear"),
)
# Its scale and shift stand in the other order there: the halves of its rows are swapped.
SWAPPED = "final_layer.adaLN_modulation.1"
OUTSIDE = (
    ("img_in", "x_embedder"),
    ("txt_in", "context_embedder"),
    ("final_layer.linear", "proj_out"),
    (SWAPPED, "norm_out.linear"),
    # FLUX.1
    ("time_in.in_layer", "time_text_embed.timestep_embedder.linear_1"),
    ("time_in.out_layer", "time_text_embed.timestep_embedder.linear_2"),
    ("guidance_in.in_layer", "time_text_embed.guidance_embedder.linear_1"),
    ("guidance_in.out_layer", "time_text_embed.guidance_embedder.linear_2"),
    ("vector_in.in_layer", "time_text_embed.text_embedder.linear_1"),
    ("vector_in.out_layer", "time_text_embed.text_embedder.linear_2"),
    *RENAMED,
)


def original_names(names: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Each original name to its modules in diffusers, in the order of its rows; none if this is no FLUX."""
    found = {}
    blocks = {match[0] for name in names if (match := re.match(r"(single_)?transformer_blocks\.\d+\.", name))}
    if not any(block.startswith("single") for block in blocks):
        return {}
    for block in blocks:
        kind = "single_blocks" if block.startswith("single") else "double_blocks"
        for name, pieces in SINGLE if kind == "single_blocks" else DOUBLE:
            modules = tuple(block + piece for piece in pieces)
            if all(module in names for module in modules):
                found[f"{kind}.{block.split('.')[1]}.{name}"] = modules
    return found | {name: (module,) for name, module in OUTSIDE if module in names}


def swap_halves(rows: Tensor) -> Tensor:
    """The second half of the rows, then the first."""
    return torch.cat(rows.chunk(2)[::-1])

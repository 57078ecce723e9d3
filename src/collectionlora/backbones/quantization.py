"""The frozen base and its text encoders in 4 or 8 bits by bitsandbytes.

LoRAs over the base stay whole (QLoRA, arXiv 2305.14314).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from collectionlora.collection import MANIFEST
from collectionlora.system.errors import UserError


def whole_weight(layer: nn.Module) -> Tensor:
    """The weight `[out, in]` of a linear layer, unpacked if it is quantised, in float32 on the CPU."""
    # Imported here: PEFT needs transformers, and a family is known without them.
    from peft.tuners.lora import LoraLayer
    from peft.utils.integrations import dequantize_module_weight

    base = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
    weight: Tensor = dequantize_module_weight(base)
    return weight.detach().float().cpu()


def describe(quantization: str) -> str:
    """A base of a quantisation in words: "the whole base", "the base in nf4"."""
    return "the whole base" if quantization == "none" else f"the base in {quantization}"


def block_layers(network: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of the network's blocks, by name: what is quantised."""
    layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    return {name: layer for name, layer in layers.items() if "transformer_blocks." in name}


def encoder_layers(encoder: Any) -> dict[str, nn.Linear]:
    """The linear layers in a text encoder's stacks, by name, without those that transformers keeps whole."""
    stacks = (name for name, module in encoder.named_modules() if isinstance(module, nn.ModuleList))
    inside, whole = tuple(f"{name}." for name in stacks), set(encoder._keep_in_fp32_modules or ())
    layers = {name: module for name, module in encoder.named_modules() if isinstance(module, nn.Linear)}
    return {n: layer for n, layer in layers.items() if n.startswith(inside) and not whole & set(n.split("."))}


def quantize(module: nn.Module, layers: Mapping[str, nn.Linear], kind: str, dtype: torch.dtype) -> None:
    """Put quantised layers in the place of a module's linear ones; moving them to a device packs them.

    Args:
        layers: by their names in the module.
        kind: "nf4" (4 bits, normal float) or "int8" (weights alone: activations stay whole).
        dtype: in which the layers compute.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    try:
        import bitsandbytes

        from collectionlora.backbones.int8 import WeightOnlyLinear8bit
    except ImportError:
        hint = "install it: pip install 'collectionlora[quantization]'"
        raise UserError(MANIFEST, "settings.model.quantization", f"{kind} needs bitsandbytes", hint) from None

    for name, layer in layers.items():
        sizes = {"input_features": layer.in_features, "output_features": layer.out_features}
        with torch.device("meta"):
            if kind == "nf4":
                packed = bitsandbytes.nn.Linear4bit(**sizes, compute_dtype=dtype, quant_type="nf4")
            else:
                packed = WeightOnlyLinear8bit(**sizes)
        if kind == "nf4":
            weight = bitsandbytes.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
        else:
            weight = bitsandbytes.nn.Int8Params(
                layer.weight.data, requires_grad=False, has_fp16_weights=False
            )
        packed.weight, packed.bias = weight, layer.bias
        module.set_submodule(name, packed)

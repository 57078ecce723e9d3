"""A linear layer whose weights alone are in 8 bits; imports bitsandbytes."""

from typing import Any

import torch
import torch.nn.functional as F
from bitsandbytes.nn import Linear8bitLt
from torch import Tensor


class WeightOnlyLinear8bit(Linear8bitLt):
    """bitsandbytes' packed weights, unpacked for each product, on every device.

    On CUDA, its own layer also rounds activations to 8 bits (LLM.int8(), arXiv 2208.07339) and returns
    float16, whose range is too small for Qwen-Image (Comfy-Org/ComfyUI#10751).
    """

    def __init__(self, input_features: int, output_features: int):
        super().__init__(input_features, output_features, has_fp16_weights=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.CB is not None:
            self.init_8bit_state()
        product: Tensor = PackedProduct.apply(x, self.state.CB, self.state.SCB)
        return product if self.bias is None else product + self.bias.to(x.dtype)


class PackedProduct(torch.autograd.Function):
    """`x @ weight.T`, which keeps the packed weight, and not the unpacked one, for its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
        ctx.save_for_backward(packed, scales)
        return F.linear(x, unpack(packed, scales, x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        packed, scales = ctx.saved_tensors
        return gradient @ unpack(packed, scales, gradient.dtype), None, None


def unpack(packed: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight `[out, in]`: whole numbers in [-127, 127], and the largest magnitude of each row `[out]`."""
    return packed.to(dtype).mul_(scales[:, None] / 127)

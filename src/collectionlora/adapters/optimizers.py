"""AdamW of either size, its state as named tensors for checkpoints, and moving averages of what it trains."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from collectionlora.system import processes
from collectionlora.system.errors import UserError


def make_adamw(
    parameters: Sequence[Tensor],
    learning_rate: float,
    weight_decay: float,
    moments: str = "float32",
    foreach: bool | None = None,
) -> Optimizer:
    """AdamW, on a GPU in one kernel that makes no tensors of the size of its parameters.

    Args:
        moments: "float32", or "8bit" by bitsandbytes (arXiv 2110.02861), in a quarter of the memory.
        foreach: of torch's AdamW, where it is not that kernel.

    Raises:
        UserError: 8-bit moments are asked for and bitsandbytes is not installed.
    """
    if moments == "8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            hint = "install it: pip install 'collectionlora[quantization]'"
            raise UserError("", "distill.moments", "8bit needs bitsandbytes", hint) from None
        eight_bit: Optimizer = AdamW8bit(parameters, lr=learning_rate, weight_decay=weight_decay)
        return eight_bit
    if parameters[0].device.type == "cuda":
        return AdamW(parameters, learning_rate, weight_decay=weight_decay, fused=True)
    return AdamW(parameters, learning_rate, weight_decay=weight_decay, foreach=foreach)


@torch.no_grad()
def move_averages(averages: Sequence[Tensor], parameters: Sequence[Tensor], share: float) -> None:
    """Move every average by `share` of the way to its parameter; averages may lie on the host."""
    if averages[0].device == parameters[0].device:
        torch._foreach_lerp_(list(averages), list(parameters), share)
        return
    for average, parameter in zip(averages, parameters, strict=True):
        average.lerp_(parameter.to(average.device), share)


def optimizer_tensors(name: str, optimizer: Optimizer) -> dict[str, Tensor]:
    """The moments and counters of an optimizer, by `name.index.key`."""
    tensors: dict[str, Tensor] = {}
    for index, parameter in enumerate(optimizer.param_groups[0]["params"]):
        values = optimizer.state.get(parameter, {})
        tensors |= {f"{name}.{index}.{key}": torch.as_tensor(value) for key, value in values.items()}
    return tensors


def load_optimizer(name: str, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` took, whole; moments are sharded as their parameters are."""
    parameters = optimizer.param_groups[0]["params"]
    state: dict[int, dict[str, Tensor | int]] = {}
    for path in tensors:
        if path.startswith(f"{name}."):  # read only then: each one may come from another process
            index, key = path.removeprefix(f"{name}.").split(".")
            tensor = tensors[path]
            moment = tensor if key == "step" else processes.shard_like(tensor, parameters[int(index)])
            counter = not isinstance(optimizer, AdamW)  # bitsandbytes counts in a plain number
            state.setdefault(int(index), {})[key] = int(moment) if key == "step" and counter else moment
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})

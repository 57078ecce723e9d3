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
    loraplus_lr_ratio: float = 1.0,
) -> Optimizer:
    """AdamW, on a GPU in one kernel that makes no tensors of the size of its parameters.

    Args:
        parameters: A and B of each LoRA layer in turn.
        learning_rate: of A.
        loraplus_lr_ratio: the learning rate of B is this multiple of it (LoRA+, arXiv 2402.12354).
        moments: "float32", or "8bit" by bitsandbytes (arXiv 2110.02861), in a quarter of the memory.
        foreach: of torch's AdamW, where it is not that kernel.

    Raises:
        UserError: 8-bit moments are asked for and bitsandbytes is not installed.
    """
    groups = [
        {"params": parameters[0::2], "lr_ratio": 1.0},
        {"params": parameters[1::2], "lr_ratio": loraplus_lr_ratio},
    ]
    if moments == "8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            hint = "install it: pip install 'collectionlora[quantization]'"
            raise UserError("", "distill.moments", "8bit needs bitsandbytes", hint) from None
        optimizer: Optimizer = AdamW8bit(groups, weight_decay=weight_decay)
    elif parameters[0].device.type == "cuda":
        optimizer = AdamW(groups, weight_decay=weight_decay, fused=True)
    else:
        optimizer = AdamW(groups, weight_decay=weight_decay, foreach=foreach)
    set_learning_rate(optimizer, learning_rate)
    return optimizer


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Let an optimizer of `make_adamw` take its next steps at another rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_ratio"]


def _in_turn(optimizer: Optimizer) -> list[Tensor]:
    """The parameters in the order in which `make_adamw` was given them."""
    groups = (group["params"] for group in optimizer.param_groups)
    return [parameter for layer in zip(*groups, strict=True) for parameter in layer]


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
    for index, parameter in enumerate(_in_turn(optimizer)):
        values = optimizer.state.get(parameter, {})
        tensors |= {f"{name}.{index}.{key}": torch.as_tensor(value) for key, value in values.items()}
    return tensors


def load_optimizer(name: str, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` took, whole; moments are sharded as their parameters are."""
    parameters = _in_turn(optimizer)
    by_group = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = {parameter: number for number, parameter in enumerate(by_group)}  # torch's
    state: dict[int, dict[str, Tensor | int]] = {}
    for path in tensors:
        if path.startswith(f"{name}."):  # read only then: each one may come from another process
            index, key = path.removeprefix(f"{name}.").split(".")
            tensor, parameter = tensors[path], parameters[int(index)]
            moment = tensor if key == "step" else processes.shard_like(tensor, parameter)
            counter = not isinstance(optimizer, AdamW)  # bitsandbytes counts in a plain number
            value = int(moment) if key == "step" and counter else moment
            state.setdefault(numbers[parameter], {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})

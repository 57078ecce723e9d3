"""The state of an optimizer as named tensors, for checkpoints."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from collectionlora.system import processes


def optimizer_tensors(name: str, optimizer: Optimizer) -> dict[str, Tensor]:
    """The moments and counters of an optimizer, by `name.index.key`."""
    tensors: dict[str, Tensor] = {}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"{name}.{index}.{key}": torch.as_tensor(value) for key, value in values.items()}
    return tensors


def load_optimizer(name: str, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` took, whole; moments are sharded as their parameters are."""
    parameters = optimizer.param_groups[0]["params"]
    state: dict[int, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        if path.startswith(f"{name}."):
            index, key = path.removeprefix(f"{name}.").split(".")
            moment = tensor if key == "step" else processes.shard_like(tensor, parameters[int(index)])
            state.setdefault(int(index), {})[key] = moment
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})

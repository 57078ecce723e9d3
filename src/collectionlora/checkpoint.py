"""Checkpoints of a run: safetensors with the step in the header, written whole, the last few kept.

Files hold whole tensors, whoever held which shard of them, so that any number of processes can go on.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.optim import Optimizer

from collectionlora import processes
from collectionlora.files import write_tensors

KEPT = 2


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


def save_checkpoint(folder: Path, step: int, tensors: Mapping[str, Tensor]) -> None:
    """Write `folder/step-00000042.safetensors`, the state BEFORE that step; drop all but the last ones.

    All processes call it, the main one writes; no device holds more than one gathered tensor at a time.
    """
    gathered = {}
    for name, tensor in tensors.items():
        whole = processes.whole(tensor)
        if processes.is_main():
            gathered[name] = whole.cpu()
    if not processes.is_main():
        return
    write_tensors(folder / f"step-{step:08d}.safetensors", gathered, {"step": str(step)})
    for old in sorted(folder.glob("step-*.safetensors"))[:-KEPT]:
        old.unlink()


def latest_checkpoint(folder: Path) -> tuple[int, dict[str, Tensor]] | None:
    """Step and tensors of the newest whole checkpoint, or None; a damaged one is passed over."""
    for path in sorted(folder.glob("step-*.safetensors"), reverse=True):
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return int(file.metadata()["step"]), tensors
        except (SafetensorError, OSError):
            continue
    return None

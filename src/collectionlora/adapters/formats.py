"""LoRA files in and out: safetensors only, alpha honoured, nothing dropped in silence."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from collectionlora.adapters.roles import LoraWeights
from collectionlora.errors import UserError
from collectionlora.files import write_tensors

PREFIXES = ("transformer.", "diffusion_model.", "base_model.model.")
FIRST, SECOND = (".lora_A.weight", ".lora_down.weight"), (".lora_B.weight", ".lora_up.weight")


@dataclass(frozen=True)
class LoraFile:
    """One adapter: `weights` with the scale baked in, and what the file's header says."""

    weights: LoraWeights
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """The largest rank of any module."""
        return max(a.shape[0] for a, _ in self.weights.values())


def read_lora(path: Path) -> LoraFile:
    """Read an adapter; `W + (alpha / rank) * B @ A`, alpha defaulting to the rank.

    Raises:
        UserError: not a safetensors file, a key of no known format, an incomplete pair, or a value that is
            not finite.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(path, "", "there is no such file", "check the path") from None
    except (SafetensorError, OSError) as error:
        raise UserError(path, "", f"not a safetensors file ({error})", "convert it to safetensors") from None
    return LoraFile(_pair_up(path, tensors), metadata)


def _pair_up(path: Path, tensors: Mapping[str, Tensor]) -> LoraWeights:
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UserError(path, key, "holds values that are not finite", "train or export this LoRA again")
        module, part = _split_key(path, key)
        parts.setdefault(module, {})[part] = tensor
    if not parts:
        raise UserError(path, "", "holds no LoRA weights", "give the file of a trained LoRA")
    weights = {}
    for module, found in parts.items():
        if "A" not in found or "B" not in found:
            raise UserError(path, module, "has only one of the two LoRA matrices", "export this LoRA again")
        a, b = found["A"], found["B"]
        if a.shape[0] != b.shape[1]:
            raise UserError(path, module, f"ranks {a.shape[0]} and {b.shape[1]} differ", "export it again")
        alpha = float(found["alpha"]) if "alpha" in found else a.shape[0]
        weights[module] = (a, b * (alpha / a.shape[0]))
    return weights


def _split_key(path: Path, key: str) -> tuple[str, str]:
    """A tensor's key to its module and its part: "A", "B" or "alpha"."""
    bare = key
    for prefix in PREFIXES:
        bare = bare.removeprefix(prefix)
    bare = bare.replace(".default.weight", ".weight")
    for part, endings in (("A", FIRST), ("B", SECOND), ("alpha", (".alpha",))):
        for ending in endings:
            if bare.endswith(ending):
                return bare.removesuffix(ending), part
    raise UserError(path, key, "is not a LoRA weight of a known format", "see docs on LoRA files")


def write_lora(path: Path, weights: LoraWeights, metadata: Mapping[str, str]) -> None:
    """Write an adapter in half precision with diffusers' keys; the scale is baked in: alpha is the rank."""
    tensors = {}
    for module, (a, b) in weights.items():
        tensors[f"transformer.{module}.lora_A.weight"] = a.half()
        tensors[f"transformer.{module}.lora_B.weight"] = b.half()
    write_tensors(path, tensors, metadata)

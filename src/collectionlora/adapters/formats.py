"""LoRA files in and out: safetensors only, alpha honoured, nothing dropped in silence.

Every tensor of a file is either used or the file is refused by name. `docs/lora-files.md` says what is read.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from collectionlora.adapters.alpha import AGAIN, AlphaHeader, module_scale
from collectionlora.adapters.flux_names import SWAPPED, original_names, swap_halves
from collectionlora.adapters.keys import ModuleNames, is_of_text_encoder, split_key
from collectionlora.adapters.low_rank import (
    Change,
    Factors,
    Kronecker,
    Whole,
    apply,
    as_matrix,
    change_norm,
    scale_change,
    tensors_of,
)
from collectionlora.adapters.lycoris import MAGNITUDES, MAX_RANK, Rebuilt, Shape, dora, rebuild
from collectionlora.adapters.roles import LoraWeights
from collectionlora.system.errors import UserError
from collectionlora.system.files import is_utf8, write_tensors

MAX_LOSS = 0.1  # of a converted module's change; beyond it the LoRA would no longer be the user's
MIN_CHANGE = 1e-6  # of what its factors could make; below it is rounding
LFS_POINTER = b"version https://git-lfs.github.com"
OTHER_WEIGHTS = (b"PK", b"\x80", b"GGUF")  # torch's files, pickles, llama.cpp's

# Takes the change of one module, `[out, in]`, that a teacher keeps whole.
KeepWhole = Callable[[str, Whole], None]


@dataclass(frozen=True)
class LoraFile:
    """One adapter: `weights` with the scale baked in, what the file's header says, and how it was read."""

    weights: LoraWeights
    exact: dict[str, float] = field(default_factory=dict)  # norm of the change by module that is kept whole
    metadata: dict[str, str] = field(default_factory=dict)
    format: str = "diffusers LoRA"
    scales: dict[str, float] = field(default_factory=dict)  # alpha / rank by module
    losses: dict[str, float] = field(default_factory=dict)  # of the change's norm, by converted module
    left_out: int = 0  # tensors of the text encoder

    @property
    def rank(self) -> int:
        """The largest rank of any pair; 0 if there is none."""
        return max((a.shape[0] for a, _ in self.weights.values()), default=0)

    def report(self, num_targets: int) -> dict[str, Any]:
        """What `check` says of a file; `num_targets` counts the base's modules that take a LoRA."""
        norms = [*(change_norm(pair) for pair in self.weights.values()), *self.exact.values()]
        return {
            "format": self.format,
            "rank": self.rank,
            "ranks": sorted({a.shape[0] for a, _ in self.weights.values()}),
            "scales": sorted({round(scale, 6) for scale in self.scales.values()}),
            "modules": len(norms),
            "exact_modules": len(self.exact),
            "targets": num_targets,
            "norm": sum(norm**2 for norm in norms) ** 0.5,
            "conversion_loss": max(self.losses.values(), default=0.0),
            "left_out": self.left_out,
        }


@contextmanager
def open_lora(path: Path) -> Iterator[Any]:
    """A safetensors file, its tensors not read yet.

    Raises:
        UserError: no such file, or not a safetensors file.
    """
    try:
        path.open("rb").close()  # safetensors says of every file that it cannot open that there is none
    except IsADirectoryError:
        pass
    except FileNotFoundError:
        raise UserError(path, "", "there is no such file", "check the path") from None
    except OSError as error:
        hint = "fix its read permission"
        raise UserError(path, "", f"cannot be read ({error.strerror})", hint) from None
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UserError(path, "", f"not a safetensors file ({error})", _advise(path)) from None


def _advise(path: Path) -> str:
    """What to do about a file that is no safetensors: many are something else that was downloaded."""
    if path.is_dir():
        return "give the file, not a folder"
    if not is_utf8(path):
        return "rename the file or its folder: safetensors opens only paths in UTF-8"
    with suppress(OSError), path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            return "it is a note of Git LFS in place of the file: run git lfs pull"
        # The length of a header may begin with the same bytes; the header behind its 8 bytes does not.
        if start.startswith(OTHER_WEIGHTS) and start[8:9] not in (b"", b"{"):
            return "convert it to safetensors"
    return "download it again, or export it again"


def read_header(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself.

    Raises:
        UserError: no such file, or not a safetensors file.
    """
    with open_lora(path) as file:
        return file.metadata() or {}


def read_lora(
    path: Path,
    base_weights: Mapping[str, Tensor] | None = None,
    read_weight: Callable[[str], Tensor] | None = None,
    without_text_encoder: bool = False,
    keep_whole: KeepWhole | None = None,
) -> LoraFile:
    """Read an adapter; `W + (alpha / rank) * B @ A`, alpha defaulting to the rank.

    Args:
        base_weights: of all modules of the base that take a LoRA, by name (`roles.target_weights`). They
            resolve underscored names, check shapes, and DoRA needs their values. Without them the names are
            taken as they stand.
        read_weight: reads one of these weights where `base_weights` has only its shape, or holds it packed.
        without_text_encoder: leave out what changes the text encoder; otherwise such a file is refused.
        keep_whole: takes each change whose rank can be beyond `MAX_RANK`, once and in turn, because all of
            them together can be as large as the base. Without it such a module is a pair with its loss.

    Raises:
        UserError: not a safetensors file, a key that is not used, a module that the base lacks, an incomplete
            or misshapen module, values that are not finite, or a conversion that loses too much.
    """
    with open_lora(path) as file:
        metadata = file.metadata() or {}
        names = list(file.keys())
        kept = [name for name in names if not (without_text_encoder and is_of_text_encoder(name))]
        tensors = {name: file.get_tensor(name) for name in kept}
    header = AlphaHeader.find(path, metadata, without_text_encoder)
    fused = original_names(base_weights or {})
    modules = ModuleNames(None if base_weights is None else {*base_weights, *fused})
    parts, prefixes = gather_parts(path, tensors, modules)
    if not parts:
        raise UserError(path, "", "holds no LoRA weights", "give the file of a trained LoRA")
    weights: dict[str, Factors] = {}
    exact, scales, losses, kinds = {}, {}, {}, set()
    for module, found in parts.items():
        pieces = fused.get(module, (module,))
        is_dora = any(name in found for name in MAGNITUDES)
        read = read_weight if read_weight and is_dora else (base_weights or {}).__getitem__
        bases = [] if base_weights is None else [read(piece) for piece in pieces]
        weight = torch.cat(bases) if len(bases) > 1 else next(iter(bases), None)
        swapped = module == SWAPPED and module in fused
        weight = swap_halves(weight) if swapped and weight is not None else weight
        built, scale = read_module(path, module, found, header, weight, keep_whole is not None)
        kinds.add(built.kind)
        changes = cut_rows(built.change, [len(w) for w in bases], swapped)
        for piece, change in zip(pieces, changes, strict=True):
            if piece in scales:
                raise UserError(path, module, f"holds {piece} for the second time", "remove one of them")
            scales[piece] = scale
            if built.loss:
                losses[piece] = built.loss
            if isinstance(change, Whole):
                assert keep_whole is not None, "no whole change was asked for"
                exact[piece] = change_norm(change)
                keep_whole(piece, change)
            else:
                weights[piece] = change
    label = f"{'+'.join(sorted(prefixes))} {'+'.join(sorted(kinds))}"
    return LoraFile(weights, exact, metadata, label, scales, losses, len(names) - len(kept))


def cut_rows(change: Change, sizes: Sequence[int], swapped: bool) -> list[Change]:
    """The change of each piece of a fused module, by the rows of the pieces; whole if no sizes are known.

    Args:
        swapped: the halves of the rows change places first.
    """
    if isinstance(change, Kronecker):
        if len(sizes) == 1 and not swapped:
            return [change]
        change = as_matrix(change).float()
    rows = change if isinstance(change, Tensor) else change[1]
    rows = swap_halves(rows) if swapped else rows
    pieces = rows.split(list(sizes) or [len(rows)])
    return list(pieces) if isinstance(change, Tensor) else [(change[0], piece) for piece in pieces]


def gather_parts(
    path: Path, tensors: Mapping[str, Tensor], names: ModuleNames
) -> tuple[dict[str, dict[str, Tensor]], set[str]]:
    """The tensors of each module by their part, and the formats that their names have.

    Of tensors on the meta device there are no values to look at.

    Raises:
        UserError: a key that is not used, a module that the base lacks, or values that are not finite.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    prefixes = set()
    for key, tensor in tensors.items():
        spelled, part = split_key(path, key)
        if not tensor.is_floating_point() and part != "alpha":
            raise UserError(path, key, f"holds {str(tensor.dtype).removeprefix('torch.')} numbers", AGAIN)
        values = tensor.float()
        # Trainers write an alpha beyond half precision where it means nothing: `module_scale` looks.
        if part != "alpha" and not tensor.is_meta and not torch.isfinite(values).all():
            raise UserError(path, key, "holds values that are not finite", AGAIN)
        prefix, module = names.resolve(path, spelled)
        if part in parts.setdefault(module, {}):
            raise UserError(path, key, f"holds {module} {part} for the second time", "remove one of them")
        parts[module][part] = values
        prefixes.add(prefix)
    return parts, prefixes


def read_teacher(
    path: Path,
    base_weights: Mapping[str, Tensor],
    read_weight: Callable[[str], Tensor] | None = None,
    without_text_encoder: bool = False,
    keep_whole: KeepWhole = lambda module, change: None,
) -> LoraFile:
    """Read an effect LoRA as `read_lora` does, without a loss; one that changes nothing has nothing to teach.

    Raises:
        UserError: as `read_lora`, or no module's change differs from zero.
    """
    lora = read_lora(path, base_weights, read_weight, without_text_encoder, keep_whole)
    if any(lora.exact.values()):
        return lora
    for a, b in lora.weights.values():
        if change_norm((a, b)) > MIN_CHANGE * float(a.norm()) * float(b.norm()):
            return lora
    message = "changes nothing: its B, its A or its alpha is zero in every module"
    raise UserError(path, "", message, "train it longer, or give a later checkpoint of it")


def read_module(
    path: Path,
    module: str,
    parts: dict[str, Tensor],
    header: AlphaHeader,
    weight: Tensor | None,
    exact: bool = False,
) -> tuple[Rebuilt, float]:
    """One module with the scale baked in, in the shape of the base's weight, and that scale.

    Args:
        exact: keep the change whole where its rank can be beyond `MAX_RANK`; a convolution stays a pair.
    """
    whole = tuple(weight.shape) if exact and weight is not None and weight.ndim == 2 else None
    magnitudes = {name: parts[name] for name in MAGNITUDES if name in parts}
    matrices = {n: t for n, t in parts.items() if n not in magnitudes and n != "alpha"}
    try:
        built = rebuild(matrices, whole)
    except ValueError as error:
        raise UserError(path, module, str(error), AGAIN) from None
    scale = module_scale(path, module, parts.get("alpha"), built, header)
    change, lost = match_shape(path, module, scale_change(built.change, scale), weight), built.loss
    for name, magnitude in magnitudes.items():
        change, further = decompose(path, f"{module}.{name}", change, magnitude, weight, whole)
        lost = max(lost, further)
        built = Rebuilt(f"DoRA of {built.kind}", change, built.rank)
    change = apply(Tensor.float, change)
    if not all(torch.isfinite(tensor.norm()) for tensor in tensors_of(change)):
        raise UserError(path, module, "overflows: its values or its alpha are too large", AGAIN)
    if lost > MAX_LOSS:
        message = f"is a {built.kind} that loses {lost:.0%} of its change at rank {MAX_RANK}"
        raise UserError(path, module, message, "train it as a plain LoRA, or extract a LoRA from it")
    return Rebuilt(built.kind, change, built.rank, lost), scale


def match_shape(path: Path, module: str, change: Change, weight: Tensor | None) -> Change:
    """A change in the shape of the base's weight `[out, in, ...]`; as it is if there is none to compare with.

    Raises:
        UserError: it changes a weight of another size.
    """
    if weight is None:
        return change
    rows, columns = change.shape if isinstance(change, Whole) else (len(change[1]), change[0][0].numel())
    if columns != weight[0].numel() or rows != len(weight):
        message = f"changes a weight of [{rows}, {columns}]; the base's is {list(weight.shape)}"
        raise UserError(path, module, message, "give a LoRA of this base")
    if isinstance(change, Whole):
        return change
    a, b = change[0].flatten(1), change[1].flatten(1)
    ones = [1] * (weight.ndim - 2)
    return a.reshape(len(a), *weight.shape[1:]), b.reshape(*b.shape, *ones)


def decompose(
    path: Path, key: str, inner: Change, magnitude: Tensor, weight: Tensor | None, whole: Shape | None
) -> tuple[Change, float]:
    """DoRA as a change of the base's weight, and its loss.

    Raises:
        UserError: the weight is not at hand, or the magnitude does not fit it.
    """
    if weight is None or weight.is_meta:
        message = "is a DoRA magnitude, which means nothing without the base's weights"
        raise UserError(path, key, message, "merge it into a plain LoRA, or train a plain LoRA")
    # PEFT's are always of the outputs; LyCORIS says by the shape, [out, 1] or [1, in].
    by_output = key.endswith("vector") or magnitude.shape[:1] == weight.shape[:1]
    if magnitude.numel() != weight.shape[0 if by_output else 1]:
        message = f"is a magnitude {list(magnitude.shape)} for a weight {list(weight.shape)}"
        raise UserError(path, key, message, "give a LoRA of this base")
    with suppress(torch.linalg.LinAlgError):
        decomposed, lost = dora(inner, magnitude, weight, by_output, whole)
        if not isinstance(decomposed, Tensor) or torch.isfinite(decomposed).all():
            return match_shape(path, key, decomposed, weight), lost
    raise UserError(path, key, "makes values that are not finite", AGAIN)


def write_lora(path: Path, weights: LoraWeights, metadata: Mapping[str, str]) -> None:
    """Write an adapter in half precision with diffusers' keys; the scale is baked in: alpha is the rank."""
    tensors = {}
    for module, (a, b) in weights.items():
        tensors[f"transformer.{module}.lora_A.weight"] = a.half()
        tensors[f"transformer.{module}.lora_B.weight"] = b.half()
    write_tensors(path, tensors, metadata)

"""Adapter kinds other than plain LoRA, turned into factor pairs, or into whole weight changes.

LoHa is `(w1_a w1_b) * (w2_a w2_b)` (elementwise; FedPara, arXiv 2108.06098), LoKr is `kron(w1, w2)` (LyCORIS,
arXiv 2309.14859), and DoRA is `magnitude * V / |V| - W` with `V = W + B A` (arXiv 2402.09353). The rank of
LoHa and LoKr is the product of the ranks of their parts; DoRA has none and depends on the base's weight W.
A full difference (`.diff`) is the change itself; alpha means nothing to it, as in ComfyUI and LyCORIS.
A reader that names the shape of a linear weight gets the `whole` change where the shapes of its parts allow a
rank beyond `MAX_RANK`; nothing is decomposed then. No matrix of another shape is formed: a small file could
ask for one that fills the memory.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from collectionlora.adapters.low_rank import (
    NEGLIGIBLE,
    Change,
    Factors,
    Kronecker,
    as_matrix,
    change,
    factorize,
    loss,
    shrink,
)

MAX_RANK = 256  # of a converted module: the teacher slot has to hold it for every module of the base
MAGNITUDES = ("dora_scale", "lora_magnitude_vector")
Parts = Mapping[str, Tensor]
Shape = tuple[int, ...]

LORA, LOHA = {"down", "up"}, {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
TUCKER = {"mid", "hada_t1", "hada_t2", "lokr_t2"}
LOKR_SIDES = ("lokr_w1", "lokr_w2")
LOKR = {f"{side}{end}" for side in LOKR_SIDES for end in ("", "_a", "_b")}
# The parts whose smaller side is the rank of one of two factors.
RANKED = {"diff", "hada_w1_b", "hada_w2_b", *LOKR_SIDES, *(f"{side}_b" for side in LOKR_SIDES)}


@dataclass(frozen=True)
class Rebuilt:
    """One module: its change before the scale, the rank that alpha is divided by, the conversion's loss."""

    kind: str
    change: Change
    rank: int
    loss: float = 0.0


def can_exceed(parts: Parts, shape: Sequence[int]) -> bool:
    """Whether the change of a weight `[out, in]` can have a rank beyond `MAX_RANK`, told by shapes alone.

    A plain LoRA is the pair that it is, of any rank.
    """
    return not is_plain(parts) and largest_rank(parts, shape) > MAX_RANK


def is_plain(parts: Parts) -> bool:
    """Whether the tensors of a module are a LoRA, which stays the pair that it is."""
    return parts.keys() >= LORA and not any(name in parts for name in MAGNITUDES)


def largest_rank(parts: Parts, shape: Sequence[int]) -> int:
    """The largest rank that a change of a weight `[out, in]` can have, told by shapes alone."""
    if is_plain(parts):
        return parts["up"].shape[1:].numel()
    if any(name in parts for name in MAGNITUDES):
        return min(shape)
    sides = [
        (tensor.shape[:1].numel(), tensor.shape[1:].numel()) for n, tensor in parts.items() if n in RANKED
    ]
    return min(*shape, math.prod(min(side) for side in sides))


def pair_rank(parts: Parts, shape: Sequence[int]) -> int:
    """At most the rank of the pair that holds a change of a weight `[out, in]`, told by shapes alone."""
    rank = largest_rank(parts, shape)
    return rank if is_plain(parts) else min(rank, MAX_RANK)


def count_whole(parts: Parts, shape: Sequence[int], cut: bool) -> int:
    """The numbers of a whole change, told by shapes alone; 0 where a pair holds it.

    Args:
        shape: `[out, in]` of the weight.
        cut: its rows are cut or swapped, so that a LoKr becomes a matrix.
    """
    if not can_exceed(parts, shape):
        return 0
    if cut or not parts.keys() - {"alpha"} <= LOKR:
        return math.prod(shape)
    rows = [parts.get(side, parts.get(f"{side}_a")) for side in LOKR_SIDES]
    columns = [parts.get(side, parts.get(f"{side}_b")) for side in LOKR_SIDES]
    sides = zip(rows, columns, strict=True)
    return sum(len(a) * b.shape[1:].numel() for a, b in sides if a is not None and b is not None)


def rebuild(parts: Parts, whole: Shape | None = None) -> Rebuilt:
    """The change of one module from all its tensors but alpha and magnitude, before alpha.

    Args:
        whole: `[out, in]` of the weight, to get a whole change where its rank can be beyond `MAX_RANK`.

    Raises:
        ValueError: the parts are not those of one LoRA, LoHa or LoKr, or do not fit together.
    """
    shapes = {name: list(tensor.shape) for name, tensor in parts.items()}
    if any(tensor.ndim < 2 or not tensor.numel() for tensor in parts.values()):
        raise ValueError(f"holds shapes that are not matrices, {shapes}")
    core, rest = TUCKER & set(parts), set(parts) - TUCKER
    try:
        if rest == LORA and core <= {"mid"}:
            return lora(parts)
        if rest == LOHA and core in (set(), {"hada_t1", "hada_t2"}):
            return loha(parts, whole)
        if rest in lokr_layouts() and (not core or (core == {"lokr_t2"} and "lokr_w2_a" in rest)):
            return lokr(parts, whole)
        if parts.keys() == {"diff"}:
            found, lost = factorize_or_keep(parts["diff"].double().flatten(1), whole)
            return Rebuilt("full difference", found, 0, lost)
    except torch.linalg.LinAlgError:
        raise ValueError("holds values too large to be decomposed") from None
    except RuntimeError:  # torch's word for shapes that cannot be multiplied
        raise ValueError(f"holds shapes that do not fit together, {shapes}") from None
    if "diff" in parts:
        raise ValueError(f"has {', '.join(sorted(parts))}, which do not belong together")
    if rest & LORA:
        raise ValueError("has only one of the two LoRA matrices")
    raise ValueError(f"has {', '.join(sorted(parts))}, which is not a complete LoRA, LoHa or LoKr")


def lokr_layouts() -> list[set[str]]:
    """Each side of the Kronecker product is whole or two factors."""
    first, second = ([{side}, {f"{side}_a", f"{side}_b"}] for side in LOKR_SIDES)
    return [one | two for one in first for two in second]


def tucker(core: Tensor, rows: Tensor, columns: Tensor) -> Factors:
    """A convolution in Tucker form: core `[r, s, *kernel]`, rows `[out, r]`, columns `[s, in]`."""
    return torch.einsum("rs...,si->ri...", core, columns.flatten(1)), rows.flatten(1)


def lora(parts: Parts) -> Rebuilt:
    """up @ down, or LoCon's up, mid, down."""
    down, up = parts["down"], parts["up"]
    pair = tucker(parts["mid"], up, down) if "mid" in parts else (down, up)
    if len(pair[0]) != up.shape[1]:
        raise ValueError(f"its ranks {len(pair[0])} and {up.shape[1]} differ")
    return Rebuilt("LoRA", pair, len(down))


def loha(parts: Parts, whole: Shape | None) -> Rebuilt:
    """`(B1 A1) * (B2 A2)` elementwise has rows of B, columns of A that are all products of one of each."""
    sides = []
    for side in ("1", "2"):
        b, a = parts[f"hada_w{side}_a"].double(), parts[f"hada_w{side}_b"].double()
        if f"hada_t{side}" in parts:
            a, b = tucker(parts[f"hada_t{side}"].double(), b.T, a)
        sides.append((a.flatten(1), b))
    (a1, b1), (a2, b2) = sides
    rank = len(parts["hada_w1_b"])
    if whole == (len(b1), a1.shape[1]) and can_exceed(parts, whole):
        return Rebuilt("LoHa", change((a1, b1)) * change((a2, b2)), rank)
    a = torch.einsum("ri,si->rsi", a1, a2).flatten(0, 1)
    b = torch.einsum("or,os->ors", b1, b2).flatten(1)
    pair, lost = shrink((a, b), MAX_RANK)
    return Rebuilt("LoHa", pair, rank, lost)


def lokr(parts: Parts, whole: Shape | None) -> Rebuilt:
    """Singular values and vectors of a Kronecker product are all products of those of its sides."""
    matrices, rank = [], 0
    for side in LOKR_SIDES:
        if side in parts:
            matrix = parts[side].double().flatten(1)
        else:
            b, a = parts[f"{side}_a"].double(), parts[f"{side}_b"].double()
            rank = len(a)
            if side == "lokr_w2" and "lokr_t2" in parts:
                a, b = tucker(parts["lokr_t2"].double(), b.T, a)
            matrix = change((a, b))
        matrices.append(matrix)
    product = Kronecker(*matrices)
    if whole == product.shape and can_exceed(parts, whole):
        return Rebuilt("LoKr", product, rank)
    (u1, s1, v1), (u2, s2, v2) = (torch.linalg.svd(matrix, full_matrices=False) for matrix in matrices)
    values, order = torch.outer(s1, s2).flatten().sort(descending=True)
    kept = min(MAX_RANK, max(1, int((values > NEGLIGIBLE * values[0]).sum())))
    first, second = order[:kept] // len(s2), order[:kept] % len(s2)
    root = values[:kept].sqrt()
    a = torch.einsum("ri,rj->rij", v1[first], v2[second]).flatten(1) * root[:, None]
    b = torch.einsum("or,pr->opr", u1[:, first], u2[:, second]).flatten(0, 1) * root
    return Rebuilt("LoKr", (a.float(), b.float()), rank, loss(values, kept))


def dora(
    inner: Change, magnitude: Tensor, weight: Tensor, by_output: bool, whole: Shape | None
) -> tuple[Change, float]:
    """The change of a weight-decomposed module whose scaled change within is `inner`, and what it loses.

    Args:
        magnitude: one number for each output, or for each input of the weight (LyCORIS without `wd_on_out`).
        weight: the base's, `[out, in, ...]`.
        by_output: which of both `magnitude` is.
        whole: as of `rebuild`; here wherever the change can have a rank beyond `MAX_RANK`.
    """
    before = weight.double()
    moved = before + as_matrix(inner).view_as(before)
    axis = 0 if by_output else 1
    lengths = moved.transpose(0, axis).flatten(1).norm(dim=1)
    ratio = magnitude.double().flatten() / lengths
    moved = moved * ratio.view(*(-1 if i == axis else 1 for i in range(before.ndim)))
    difference = (moved - before).flatten(1)
    return factorize_or_keep(difference, whole)


def factorize_or_keep(matrix: Tensor, whole: Shape | None) -> tuple[Change, float]:
    """The nearest pair and its loss; the matrix where it is `whole` and its rank can be beyond `MAX_RANK`."""
    if whole == tuple(matrix.shape) and min(matrix.shape) > MAX_RANK:
        return matrix, 0.0
    return factorize(matrix, MAX_RANK)

"""Weight changes as factor pairs: their norm, their distance, and the nearest pair of a smaller rank.

A pair is A `[rank, in, ...]` and B `[out, rank, ...]`; the change of the weight is B @ A with everything
behind the first two axes flattened into the columns of A. Norms are Frobenius norms. A change that no small
pair can hold is a matrix of the weight's size, or the Kronecker product of two small ones.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Factors = tuple[Tensor, Tensor]
NEGLIGIBLE = 1e-9  # singular values below this share of the largest are rounding of the arithmetic
ROUNDING = 1e-6  # shares of the norm below it drown in the single precision of the result


@dataclass(frozen=True)
class Kronecker:
    """`kron(first, second)` of a weight `[out, in]`; its sides are the products of those of both matrices."""

    first: Tensor
    second: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """`(out, in)`."""
        return tuple(a * b for a, b in zip(self.first.shape, self.second.shape, strict=True))


Whole = Tensor | Kronecker  # a change of any rank, in the shape of the weight
Change = Factors | Whole


def apply(function: Callable[[Tensor], Tensor], any_change: Change) -> Change:
    """The change with `function` of each of its tensors."""
    if isinstance(any_change, Tensor):
        return function(any_change)
    if isinstance(any_change, Kronecker):
        return Kronecker(function(any_change.first), function(any_change.second))
    return function(any_change[0]), function(any_change[1])


def tensors_of(any_change: Change) -> list[Tensor]:
    """What a change is made of."""
    if isinstance(any_change, Tensor):
        return [any_change]
    if isinstance(any_change, Kronecker):
        return [any_change.first, any_change.second]
    return list(any_change)


def scale_change(any_change: Change, scale: float) -> Change:
    """The change times `scale`."""
    if isinstance(any_change, Tensor):
        return any_change * scale
    if isinstance(any_change, Kronecker):
        return Kronecker(any_change.first * scale, any_change.second)
    return any_change[0], any_change[1] * scale


def change(pair: Factors) -> Tensor:
    """B @ A, `[out, in * ...]`."""
    a, b = pair
    return b.flatten(1) @ a.flatten(1)


def as_matrix(any_change: Change) -> Tensor:
    """The change `[out, in * ...]` in double precision."""
    if isinstance(any_change, Tensor):
        return any_change.double().flatten(1)
    if isinstance(any_change, Kronecker):
        return torch.kron(any_change.first.double(), any_change.second.double())
    a, b = any_change
    return change((a.double(), b.double()))


def add_change(out: Tensor, x: Tensor, pair: Factors) -> Tensor:
    """`out + x (B A)^T`, all in the dtype of `out`.

    The second product adds onto `out` itself, so that nothing as large as `out` is made beside the result.

    Args:
        out: `[..., out]`.
        x: `[..., in]`, in the dtype of `out`.
    """
    a, b = (factor.to(out.dtype) for factor in pair)
    return torch.addmm(out.flatten(0, -2), F.linear(x, a).flatten(0, -2), b.T).view_as(out)


def add_whole(out: Tensor, x: Tensor, whole: Whole) -> Tensor:
    """`out + x W^T` of a change W `[out, in]`, all in the dtype of `out`; shapes as in `add_change`.

    A Kronecker product is not formed: x as a matrix takes one side after the other.
    """
    if isinstance(whole, Tensor):
        return torch.addmm(out.flatten(0, -2), x.flatten(0, -2), whole.to(out.dtype).T).view_as(out)
    first, second = whole.first.to(out.dtype), whole.second.to(out.dtype)
    inner = F.linear(x.unflatten(-1, (first.shape[1], second.shape[1])), second)
    return out + (first @ inner).flatten(-2)


def change_norm(any_change: Change) -> float:
    """The norm; of a pair it is that of the product of both triangles, Q being orthogonal."""
    if isinstance(any_change, Tensor):
        return float(any_change.double().norm())
    if isinstance(any_change, Kronecker):
        return float(any_change.first.double().norm() * any_change.second.double().norm())
    a, b = (factor.flatten(1).double() for factor in any_change)
    triangles = torch.linalg.qr(b, mode="r").R @ torch.linalg.qr(a.T, mode="r").R.T
    return float(torch.linalg.matrix_norm(triangles))


def distance(first: Factors, second: Factors) -> float:
    """The norm of the difference of two changes, which is itself a change of the summed rank."""
    (a, b), (other_a, other_b) = first, second
    return change_norm((torch.cat([a, other_a]), torch.cat([b, -other_b], dim=1)))


def shrink(pair: Factors, rank: int) -> tuple[Factors, float]:
    """The nearest pair of at most `rank`, and what it loses relative to the norm of the change.

    Directions that carry nothing are dropped, so the result can be smaller than `rank`. By Eckart and Young
    the truncated singular value decomposition is the nearest; it is taken of the small core between two QRs.
    """
    a, b = pair
    q_b, r_b = torch.linalg.qr(b.flatten(1).double())
    q_a, r_a = torch.linalg.qr(a.flatten(1).double().T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T)
    kept = min(rank, max(1, int((s > NEGLIGIBLE * s[0]).sum())))
    root = s[:kept].sqrt()
    new_a = root[:, None] * (vh[:kept] @ q_a.T)
    new_b = (q_b @ u[:, :kept]) * root
    smaller = new_a.float().reshape(kept, *a.shape[1:]), new_b.float().reshape(len(b), kept, *b.shape[2:])
    return smaller, loss(s, kept)


def factorize(matrix: Tensor, rank: int) -> tuple[Factors, float]:
    """As `shrink`, of a change that is a matrix `[out, in]`."""
    rows, columns = matrix.shape
    if rows <= columns:
        return shrink((matrix, torch.eye(rows, dtype=torch.double)), rank)
    return shrink((torch.eye(columns, dtype=torch.double), matrix), rank)


def loss(singular_values: Tensor, kept: int) -> float:
    """The share of the norm in all but the first `kept` of the values, which are in falling order."""
    whole = float(singular_values.norm())
    share = float(singular_values[kept:].norm()) / whole if whole else 0.0
    return share if share > ROUNDING else 0.0


def pad(pair: Factors, rank: int) -> Factors:
    """The same change at a larger rank, by rows and columns of zeros."""
    a, b = pair
    missing = rank - len(a)
    rows, columns = a.new_zeros(missing, *a.shape[1:]), b.new_zeros(len(b), missing, *b.shape[2:])
    return torch.cat([a, rows]), torch.cat([b, columns], dim=1)

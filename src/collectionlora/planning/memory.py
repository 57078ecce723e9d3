"""Bytes of tensors that live at once, counted as they are made and freed; on the meta device too.

A real run and a run over shapes alone are counted by the same code, so that a plan can be held against a run.
Memory that a kernel takes and gives back inside one operation is not seen.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class MemoryTally(TorchDispatchMode):
    """Live bytes and their peaks inside the block.

    Attributes:
        live: bytes of the storages made inside the block and not yet freed.
        peaks: the largest `live` of each phase; `begin_phase` starts the next one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peaks = [0]
        self._known: set[int] = set()

    def begin_phase(self) -> None:
        self.peaks.append(self.live)

    def __torch_dispatch__(
        self,
        func: OpOverload[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 0.0  # a loss that is logged; no number decides what is allocated
        if func is torch.ops.aten.where.self and args[1].is_meta:
            args = (args[0].to("meta"), *args[1:])  # a mask that a network looks at has values
        out = repeat(func, args, kwargs or {}) if makes_new(func) else func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peaks[-1] = max(self.peaks[-1], self.live)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


@lru_cache
def makes_new(func: OpOverload[..., Any]) -> bool:
    """Whether all that an operation returns is new, and it writes to no argument."""
    if func is torch.ops.aten._unsafe_view.default:
        return False  # its result is the argument's memory, though its schema does not say so
    values = [*func._schema.arguments, *func._schema.returns]
    return func.namespace == "aten" and not any(value.alias_info for value in values)


_made: dict[Any, Any] = {}  # by operation and what `describe` says of its arguments: its results


def repeat(func: OpOverload[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The results of an operation that makes new tensors, on the meta device asked for once.

    Torch finds their shapes in Python there, which would take most of a tally's time, and like blocks ask for
    the same again and again.
    """
    asked = func, describe(args), describe(tuple(kwargs.items()))
    if asked not in _made:
        out = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if not made or not all(tensor.is_meta for tensor in made):
            return out  # which depends on values, too
        _made[asked] = tree_map_only(Tensor, copy_empty, out)
    return tree_map_only(Tensor, copy_empty, _made[asked])


def describe(value: Any) -> Any:
    """What decides the shapes that an operation makes of an argument, as a key."""
    if isinstance(value, Tensor):
        return value.dtype, value.shape, value.stride(), value.device
    return tuple(map(describe, value)) if isinstance(value, list | tuple) else (type(value), value)


def copy_empty(tensor: Tensor) -> Tensor:
    return tensor.new_empty_strided(tensor.shape, tensor.stride())


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` of `[B, heads, N, D]`: saves inputs, output and log-sum-exp."""
    assert not enable_gqa, "no base shares keys among heads"
    return FLASH(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


@contextmanager
def flash_on_meta() -> Iterator[None]:
    """Attention as flash attention inside the block.

    On the meta device torch takes the plain kernel, whose N x N scores no GPU or CPU ever holds. A function
    mode would not do: it is off while a backward recomputes checkpointed blocks.
    """
    plain = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = flash_attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain

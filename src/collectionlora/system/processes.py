"""The processes of one launch: `torchrun --nproc-per-node N -m -- collectionlora ...`, one for each device.

Without a launcher there is one process, and everything here does nothing. Choices made here:

- Data parallelism is one call between backward and clipping, `average_gradients`. `DistributedDataParallel`
  hooks into a module's forward; here roles share one network, a backward may cover several forwards or none,
  and only the LoRA of one role has gradients. They are reduced in buckets: a message costs more than what
  it carries where LoRAs are small, and a single bucket would double the memory of large ones.
- What is sharded is a `DTensor`, of which every process holds a share. `whole` and `shard_like` lead out of
  shards and back; both leave plain tensors alone, so that their callers need not know.
- Small facts (a stop, a barrier) are exchanged on the CPU, whatever the device.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from collectionlora.system.environment import requested_processes
from collectionlora.system.errors import UserError

T = TypeVar("T")
# One process may make targets while the others wait; the launcher itself notices one that died.
PATIENCE = timedelta(days=1)
BUCKET = 2**23  # gradients reduced at once, in elements


@contextmanager
def joined() -> Iterator[None]:
    """Meet the other processes of the launch and take this process' device; inside it, nothing changes.

    Raises:
        UserError: the launcher asks for another number of processes than there are, or for none.
    """
    if dist.is_initialized() or requested_processes() == 1:
        _check()
        yield
        return
    try:
        dist.init_process_group(timeout=PATIENCE)
    except (ValueError, dist.DistError) as error:
        hint = "launch with torchrun --nproc-per-node N -m -- collectionlora ..., or unset WORLD_SIZE"
        raise UserError("environment", "WORLD_SIZE", f"no group of processes ({error})", hint) from None
    try:
        if torch.cuda.is_available():
            torch.cuda.set_device(dist.get_node_local_rank())
        yield
    finally:
        dist.destroy_process_group()


def _check() -> None:
    if os.environ.get("WORLD_SIZE") and requested_processes() != world_size():
        message = f"asks for {requested_processes()} processes, {world_size()} have met"
        raise UserError("environment", "WORLD_SIZE", message, "start all of them with torchrun")


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """The process that prints, logs and writes."""
    return rank() == 0


def any_process(fact: bool) -> bool:
    """Whether `fact` holds in any process: the same answer in all of them, which all must ask."""
    if world_size() == 1:
        return fact
    answer = torch.tensor(int(fact))
    dist.all_reduce(answer, dist.ReduceOp.MAX)
    return bool(answer)


def from_main(number: int) -> int:
    """The main process' number in all of them, which all must ask."""
    if world_size() == 1:
        return number
    answer = torch.tensor(number)
    dist.broadcast(answer, 0)
    return int(answer)


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace tensors on the CPU by their sums over the processes; all must call it."""
    if world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def barrier() -> None:
    """Wait for all processes."""
    any_process(False)


@contextmanager
def main_first() -> Iterator[None]:
    """The main process runs the block before the others, which then find the files that it wrote."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def share(items: Sequence[T]) -> Sequence[T]:
    """The items of this process; every item belongs to exactly one."""
    return items[rank() :: world_size()]


def make_together(makers: Sequence[Callable[[], Any]]) -> list[Any]:
    """The results of all makers, each of which keeps its result in a file and reads it if it is there.

    Every process makes its share; when all are done, everyone reads the rest.
    """
    if world_size() > 1:
        for make in share(makers):
            make()
        barrier()
    return [make() for make in makers]


@torch.no_grad()
def copy_from_main(tensors: Sequence[Tensor]) -> None:
    """Give tensors, none of them sharded, the main process' values; all must call it."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def whole(tensor: Tensor) -> Tensor:
    """A tensor in one piece; of a sharded one a copy, for which all processes must ask at once."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same in all processes, sharded as `like` is; itself if that is not sharded."""
    if not isinstance(like, DTensor):
        return tensor
    # Every process takes its share of its own copy: nothing is sent.
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter], shares: int = 1) -> None:
    """Replace every gradient by its mean over the processes; all must call it with the same parameters.

    Each gradient is the sum of `shares`. Of sharded parameters backward has averaged over the processes.

    A process whose loss does not reach a parameter, or that has no loss at all, counts as zero. A gradient
    that no process has stays None, so that the optimizer passes over its parameter as in one process.
    """
    sharded = [p for p in parameters if isinstance(p, DTensor)]
    parameters = [p for p in parameters if not isinstance(p, DTensor)]
    if shares > 1:
        for parameter in sharded if world_size() > 1 else [*sharded, *parameters]:
            if parameter.grad is not None:
                parameter.grad.div_(shares)
    if world_size() == 1 or not parameters:
        return
    present = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
    dist.all_reduce(present, dist.ReduceOp.MAX)
    gradients = []
    for parameter, anywhere in zip(parameters, present.tolist(), strict=True):
        if anywhere:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        parts = flat.div_(world_size() * shares).split([gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of at most `BUCKET` elements together; a larger tensor is alone."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(t.numel() for t in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket

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

import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from collectionlora.system import heartbeat
from collectionlora.system.environment import requested_processes
from collectionlora.system.errors import UserError
from collectionlora.system.files import fingerprint

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

T = TypeVar("T")
# One process may make targets while the others wait; `heartbeat` notices one that died.
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
    # NCCL's own watchdog would end a process whose peer is gone with a stack of C++, before `heartbeat`.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    try:
        # Gradients lie on GPUs, and small facts on the host; torch alone would choose NCCL for both.
        backends = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backends, timeout=PATIENCE)
    except (ValueError, dist.DistError) as error:
        hint = "launch with torchrun --nproc-per-node N -m -- collectionlora ..., or unset WORLD_SIZE"
        raise UserError("environment", "WORLD_SIZE", f"no group of processes ({error})", hint) from None
    try:
        if torch.cuda.is_available():
            _take_device(dist.get_node_local_rank(), torch.cuda.device_count())
        with heartbeat.watch(_connect()):
            yield
            barrier()  # nobody is missed who has done its work
    finally:
        dist.destroy_process_group()


def _take_device(local_rank: int, devices: int) -> None:
    """Let this process use its own GPU of the host.

    Raises:
        UserError: the launch has more processes than the host has GPUs.
    """
    if local_rank >= devices:
        message, hint = f"is {local_rank}, and this host has {devices} GPUs", "give --nproc-per-node as many"
        raise UserError("environment", "LOCAL_RANK", message, hint)
    torch.cuda.set_device(local_rank)


def _connect() -> list[socket.socket]:
    """The lines by which processes notice that another one is gone.

    Raises:
        UserError: the hosts cannot reach each other.
    """
    host = os.environ["MASTER_ADDR"]
    exchange = heartbeat.open_exchange(host) if is_main() else None
    port = from_main(exchange.getsockname()[1] if exchange else 0)
    try:
        return heartbeat.connect(exchange, host, port, world_size() - 1)
    except OSError as error:
        hint = "open the ports between the hosts, or give torchrun another --master-addr"
        raise UserError("environment", "MASTER_ADDR", f"{host}, port {port}: {error}", hint) from None


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


def from_main(value: T) -> T:
    """The main process' value in all of them, for which all must ask: a fact that JSON can hold."""
    return _from_process(value, 0)


def _from_process(value: T, source: int) -> T:
    if world_size() == 1:
        return value
    text = torch.frombuffer(bytearray(json.dumps(value), "utf-8"), dtype=torch.uint8)
    size = torch.tensor(len(text))
    dist.broadcast(size, source)
    told = text if rank() == source else torch.empty(int(size), dtype=torch.uint8)
    dist.broadcast(told, source)
    fact: T = json.loads(told.numpy().tobytes())
    return fact


def find_different(values: Mapping[str, Any]) -> str | None:
    """The first name whose value is another one in some process, None if there is none; all must ask."""
    if world_size() == 1:
        return None
    every = {"the list of them": list(values)}  # first: another list has another length
    for facts in (every, values):
        marks = torch.tensor([int(fingerprint(fact), 16) >> 1 for fact in facts.values()])
        lowest, highest = marks.clone(), marks.clone()
        dist.all_reduce(lowest, dist.ReduceOp.MIN)
        dist.all_reduce(highest, dist.ReduceOp.MAX)
        for name, same in zip(facts, (lowest == highest).tolist(), strict=True):
            if not same:
                return name
    return None


class FromProcess(Mapping[str, Tensor]):
    """The whole tensors of one process, on the CPU, each of them sent when it is asked for.

    All processes must ask for the same ones in the same order, so that a process holds one at a time.

    Args:
        tensors: those of that process; what the others give is not looked at.
        source: the process, by default the main one.
    """

    def __init__(self, tensors: Mapping[str, Tensor], source: int = 0):
        self._tensors, self._source = tensors, source
        kinds = {n: (list(t.shape), str(t.dtype).removeprefix("torch.")) for n, t in tensors.items()}
        self._kinds: dict[str, tuple[list[int], str]] = _from_process(kinds, source)

    def shape(self, name: str) -> list[int] | None:
        """Of a tensor, which is not sent for it; None if there is none."""
        return self._kinds[name][0] if name in self._kinds else None

    def __getitem__(self, name: str) -> Tensor:
        shape, dtype = self._kinds[name]
        if world_size() == 1:
            return self._tensors[name]
        has_it = rank() == self._source
        tensor = (
            self._tensors[name].contiguous() if has_it else torch.empty(shape, dtype=getattr(torch, dtype))
        )
        # As bytes: gloo sends not every kind of number.
        dist.broadcast(tensor.reshape(-1).view(torch.uint8), self._source)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)


def make_shared(
    names: Sequence[str], make: Callable[[str], Sequence[Tensor]]
) -> dict[str, tuple[Tensor, ...]]:
    """What `make` gives for each name: every process makes its share, then they exchange; all must call it.

    Args:
        make: gives whole tensors on the CPU, which may depend on the name alone.
    """
    own = {f"{name}/{index}": made for name in share(names) for index, made in enumerate(make(name))}
    found = {name: list[Tensor]() for name in names}
    for source in range(world_size()):
        for name, tensor in FromProcess(own, source).items():
            found[name.rpartition("/")[0]].append(tensor)
    return {name: tuple(made) for name, made in found.items()}


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether this process holds a share of a tensor."""
    if not dist.is_initialized():
        return False
    from torch.distributed.tensor import DTensor  # which takes a second, and one process alone needs none

    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """A tensor in one piece; of a sharded one a copy, for which all processes must ask at once."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same in all processes, sharded as `like` is; itself if that is not sharded."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    # Every process takes its share of its own copy: nothing is sent.
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter], shares: int = 1) -> None:
    """Replace every gradient by its mean over the processes; all must call it with the same parameters.

    Each gradient is the sum of `shares`. Of sharded parameters backward has averaged over the processes.

    A process whose loss does not reach a parameter, or that has no loss at all, counts as zero. A gradient
    that no process has stays None, so that the optimizer passes over its parameter as in one process.
    """
    sharded = [p for p in parameters if is_sharded(p)]
    parameters = [p for p in parameters if not is_sharded(p)]
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

"""Files that the processes of a launch make together, on hosts with a shared folder or each with its own.

Every host has the files that users bring. What is made from them is made once: a host that lacks a file gets
it from a process that has it, through the group of processes.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
import torch.distributed as dist

from collectionlora.system import processes
from collectionlora.system.errors import UserError
from collectionlora.system.files import is_whole, write_whole

T = TypeVar("T")
PIECE = 2**26  # bytes carried at once


@dataclass(frozen=True)
class Kept(Generic[T]):
    """What is kept in a safetensors file: `get` reads it, and makes it if it is not there.

    Attributes:
        path: named after all that the file depends on.
    """

    path: Path
    get: Callable[[], T]


def make_together(items: Sequence[Kept[T]]) -> list[T]:
    """All items; every process makes its share of those that no host has, then everyone reads the rest.

    Raises:
        UserError: the hosts would make different ones.
    """
    if processes.world_size() > 1:
        paths = [item.path for item in items]
        different = processes.find_different({path.stem.rpartition("-")[0]: path.name for path in paths})
        if different:
            message = f"what {different} is made from is not the same in all processes"
            hint = "copy the collection and the base to every host with their times of change: rsync -a"
            raise UserError(paths[0].parent, different, message, hint)
        carry(paths)
        for item in processes.share(items):
            item.get()
        carry(paths)
    return [item.get() for item in items]


def carry(paths: Sequence[Path]) -> None:
    """Give every host those of the files that any host has; all processes call it with like lists."""
    if processes.world_size() == 1:
        return
    processes.barrier()  # what the others were writing is there
    holders = _find_holders(paths)
    for path, held in zip(paths, holders, strict=True):
        if any(held) and not all(held):
            _send(path, held)
    processes.barrier()


def _find_holders(paths: Sequence[Path]) -> list[list[bool]]:
    """For each file, which processes can read it."""
    mine = torch.tensor([is_whole(path) for path in paths], dtype=torch.uint8)
    all_of = [torch.empty_like(mine) for _ in range(processes.world_size())]
    dist.all_gather(all_of, mine)
    return torch.stack(all_of, dim=1).bool().tolist()


def _send(path: Path, held: Sequence[bool]) -> None:
    """From the first process that has the file to the hosts that lack it; of a host one process writes."""
    source, rank = held.index(True), processes.rank()
    writes = not held[rank] and dist.get_node_local_rank() == 0
    size = torch.tensor(path.stat().st_size if rank == source else 0)
    dist.broadcast(size, source)
    with (
        path.open("rb") if rank == source else nullcontext() as reading,
        write_whole(path) if writes else nullcontext() as partial,
        partial.open("wb") if partial else nullcontext() as writing,
    ):
        for start in range(0, int(size), PIECE):
            piece = torch.empty(min(PIECE, int(size) - start), dtype=torch.uint8)
            if reading:
                reading.readinto(piece.numpy().data)
            dist.broadcast(piece, source)
            if writing:
                writing.write(piece.numpy().data)

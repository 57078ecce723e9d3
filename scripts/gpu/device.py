"""The device: what it is, its clock and its memory, on the CPU too."""

import statistics
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch

from collectionlora.planning.memory import MemoryTally

T = TypeVar("T")
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


def wait() -> None:
    """Until the device has done what it was asked to."""
    if CUDA:
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], Any], rounds: int = 3) -> float:
    """Wall seconds of one call: the median of `rounds`, after one that does not count."""
    found = []
    for _ in range(rounds + 1):
        wait()
        began = time.perf_counter()
        work()
        wait()
        found.append(time.perf_counter() - began)
    return statistics.median(found[1:])


def seconds_of_one(work: Callable[[], T]) -> tuple[float, T]:
    """Wall seconds of a call that is not repeated, and what it returned."""
    wait()
    began = time.perf_counter()
    result = work()
    wait()
    return time.perf_counter() - began, result


class Meter(Protocol):
    """Bytes of tensors on the device; used as a context around all that it shall see."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *_: Any) -> None: ...

    def reset(self) -> None:
        """Forget the peak."""
        ...

    def peak(self) -> int:
        """The most at once since `reset`."""
        ...


class CudaMeter:
    def __enter__(self) -> None:
        self.reset()

    def __exit__(self, *_: Any) -> None: ...

    def reset(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        return int(torch.cuda.max_memory_allocated())


class CpuMeter(MemoryTally):
    def reset(self) -> None:
        self.begin_phase()

    def peak(self) -> int:
        return self.peaks[-1]


def make_meter() -> Meter:
    return CudaMeter() if CUDA else CpuMeter()


def describe() -> dict[str, Any]:
    """What tells one machine from another."""
    facts: dict[str, Any] = {"torch": torch.__version__, "device": "cpu"}
    if CUDA:
        properties = torch.cuda.get_device_properties(0)
        facts |= {"device": properties.name, "cuda": torch.version.cuda}
        facts |= {"memory_bytes": properties.total_memory, "processors": properties.multi_processor_count}
    return facts


def matmul_rate(side: int, dtype: torch.dtype) -> float:
    """FLOP/s of a product of random square matrices."""
    a, b = torch.randn(2, side, side, device=DEVICE).to(dtype)
    return 2 * side**3 / seconds_of(lambda: a @ b, rounds=10)


def copy_rate(size: int, pinned: bool) -> float:
    """Bytes a second from the host to the device."""
    host = torch.empty(size, dtype=torch.uint8, pin_memory=pinned and CUDA)
    target = torch.empty(size, dtype=torch.uint8, device=DEVICE)
    return size / seconds_of(lambda: target.copy_(host, non_blocking=True), rounds=3)

"""Nothing starts that cannot end: a verb's plan against the GPU's free memory, before anything is loaded.

Without a GPU nothing is compared, and nothing is imported for it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from collectionlora.adapters.recipe import adapter_path, read_adapter
from collectionlora.backbones import family_of
from collectionlora.collection import Collection
from collectionlora.config import replace_settings, resolve
from collectionlora.system import processes
from collectionlora.system.errors import UserError

if TYPE_CHECKING:
    from collectionlora.planning.workload import Workload


def free_bytes() -> int | None:
    """Of this process' GPU; None without one."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None


def refuse_too_large(verb: str, folder: Path, overrides: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare a verb over a collection's folder with what is free; a small base needs no look.

    Raises:
        UserError: the plan needs more than is free.
    """
    free = free_bytes()
    if free is None:
        return
    base = Collection.load(folder).manifest.base
    if not family_of(base).block_stacks(base):
        return
    from collectionlora.planning.workload import make_workload

    workload = make_workload(folder, None, None, None, overrides, devices=processes.world_size())
    _compare(verb, workload, free, f"collectionlora plan {folder} says what to lower by --set")


def refuse_too_large_adapter(verb: str, place: Path) -> None:
    """The same of a finished adapter, which says itself how its base is held.

    Raises:
        UserError: no adapter there, or it needs more than is free.
    """
    free = free_bytes()
    if free is None:
        return
    lora, recipe = read_adapter(adapter_path(place))
    if not family_of(recipe.base).block_stacks(recipe.base):
        return
    from collectionlora.planning.workload import Workload

    rank, model = {"rank": lora.rank}, recipe.model.model_dump()
    sizes = {"model": model, "data": {"resolution": recipe.resolution}, "student": rank, "critic": rank}
    workload = Workload(recipe.base, len(recipe.effects), replace_settings(resolve(), **sizes))
    _compare(verb, workload, free, "use a larger GPU, or an adapter that was made over a quantised base")


def _compare(verb: str, workload: "Workload", free: int, hint: str) -> None:
    from collectionlora.planning.plan import GIB, RESERVED_SHARE, plan

    needed = plan(workload)["verbs"][verb]["device_bytes"]
    if needed > free * (1 - RESERVED_SHARE):
        message = f"needs {needed / GIB:.1f} GiB by plan, {free / GIB:.1f} GiB of the GPU are free"
        raise UserError("memory", verb, message, hint)

"""Nothing starts that cannot end: a verb's plan against the GPU's free memory, before anything is loaded.

The package's functions pass through `guarded`, and so does the command line, which calls them. Without a GPU
nothing is compared, and nothing is imported for it.
"""

import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch

from collectionlora.adapters.recipe import adapter_path, read_adapter
from collectionlora.backbones import family_of
from collectionlora.collection import Collection, open_collection
from collectionlora.config import replace_settings, resolve
from collectionlora.pictures.sizes import Size, check_size, square_side
from collectionlora.planning import SHARED
from collectionlora.system import processes
from collectionlora.system.errors import UserError

if TYPE_CHECKING:
    from collectionlora.planning.workload import Workload

T = TypeVar("T")
P = ParamSpec("P")


def guarded(verb: str, function: Callable[P, T]) -> Callable[P, T]:
    """A verb's function, which refuses to start where its plan needs more than is free.

    It has the arguments `collection` and, but for "edit", `overrides`; "bench" has `methods` too.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def compared(*args: P.args, **kwargs: P.kwargs) -> T:
        given = signature.bind(*args, **kwargs).arguments
        with processes.joined() if verb in SHARED else nullcontext():
            if verb == "edit":
                asked = given.get("size"), given.get("quantization")
                refuse_too_large_adapter(verb, given["collection"], *asked)
            else:
                asked_methods = {"methods": given["methods"]} if "methods" in given else {}
                refuse_too_large(verb, given["collection"], given.get("overrides") or {}, **asked_methods)
            return function(*args, **kwargs)

    return compared


def free_bytes() -> int | None:
    """Of this process' GPU; None without one."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None


def refuse_too_large(
    verb: str,
    collection: Collection | Path | str,
    overrides: Mapping[str, Mapping[str, Any]],
    **rest: Any,
) -> None:
    """Compare a verb over a collection with what is free; a small base needs no look.

    Args:
        rest: as of `make_workload`.

    Raises:
        UserError: the plan needs more than is free.
    """
    free = free_bytes()
    if free is None:
        return
    collection = open_collection(collection)
    base = collection.manifest.base
    if not family_of(base).block_stacks(base):
        return
    from collectionlora.planning.workload import make_workload

    workload = make_workload(collection, None, None, None, overrides, devices=processes.world_size(), **rest)
    hint = f"collectionlora plan {collection.folder} says what to lower by --set"
    if any(teacher.exact for teacher in workload.teachers):
        hint = f"convert the LoRAs that check calls exact to a low rank, or use a larger GPU; {hint}"
    _compare(verb, workload, free, hint)


def refuse_too_large_adapter(
    verb: str, place: Path | str, size: Size | None = None, quantization: str | None = None
) -> None:
    """The same of a finished adapter, which says how its base is held and at which size, if nobody else does.

    Raises:
        UserError: no adapter there, or it needs more than is free.
    """
    free = free_bytes()
    if free is None:
        return
    lora, recipe = read_adapter(adapter_path(Path(place)))
    family = family_of(recipe.base)
    if not family.block_stacks(recipe.base):
        return
    if size is not None:
        check_size(size, recipe.resolution, family.side_multiple)
    from collectionlora.planning.workload import Workload

    # However it was trained, one process uses it, without a compiler.
    model = recipe.held_as(quantization).model_dump() | {"sharding": "none", "compile": False}
    rank, side = {"rank": lora.rank}, square_side(size or recipe.resolution, family.side_multiple)
    sizes = {"model": model, "data": {"resolution": side}, "student": rank, "critic": rank}
    shown = max(recipe.references.values(), default=0)
    settings = replace_settings(resolve(), **sizes)
    workload = Workload(recipe.base, len(recipe.effects), settings, references=shown)
    _compare(verb, workload, free, "use a larger GPU, or --quantization nf4")


def _compare(verb: str, workload: "Workload", free: int, hint: str) -> None:
    from collectionlora.planning.plan import GIB, RESERVED_SHARE, plan_device

    needed = plan_device(workload, verb)
    if needed > free * (1 - RESERVED_SHARE):
        message = f"needs {needed / GIB:.1f} GiB by plan, {free / GIB:.1f} GiB of the GPU are free"
        raise UserError("memory", verb, message, hint)

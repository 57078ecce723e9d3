"""Teachers as runs read them: converted once into the collection's cache, in the base's dtype, memory-mapped.

The operating system holds one copy of a mapped file for all processes of a machine, and only while there is
room. A file is named after the teacher's contents and all that its conversion depends on.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TypeVar, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn

from collectionlora.adapters.alpha import lora_files
from collectionlora.adapters.formats import MAX_LOSS, read_teacher
from collectionlora.adapters.low_rank import Factors, Kronecker, Whole, apply, as_matrix, factorize
from collectionlora.adapters.lycoris import MAX_RANK
from collectionlora.adapters.roles import LoraWeights, target_weights
from collectionlora.backbones import family_of, load_backbone
from collectionlora.backbones.base import free_memory
from collectionlora.backbones.quantization import whole_weight
from collectionlora.cache import base_identity, cache_path, refuse_changed
from collectionlora.collection import Collection, Effect
from collectionlora.config import Settings
from collectionlora.system import processes
from collectionlora.system.errors import UserError
from collectionlora.system.files import fingerprint, is_whole, write_tensors
from collectionlora.system.shared_files import Kept, make_together

log = logging.getLogger(__name__)
T = TypeVar("T")
LAYOUT = "pairs and whole changes"  # of the files; another one makes them again


class Modules(Mapping[str, T]):
    """Modules of a mapped file, of which one is read when it is asked for."""

    def __init__(self, names: Iterable[str], read: Callable[[str], T]):
        self._names, self._read = dict.fromkeys(names), read

    def __getitem__(self, module: str) -> T:
        if module not in self._names:
            raise KeyError(module)
        return self._read(module)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class TeacherFile(Modules[Factors]):
    """A converted teacher as `LoraWeights`, mapped into memory.

    Attributes:
        rank: the largest of a pair; 0 if there is none.
        exact: the changes `[out, in]` that are kept whole.

    Raises:
        SafetensorError, OSError: the file is damaged, or cannot be read.
    """

    def __init__(self, path: Path):
        file = safe_open(path, framework="pt")
        names = list(file.keys())

        def named(part: str) -> list[str]:
            return [name.removesuffix(part) for name in names if name.endswith(part)]

        super().__init__(
            named(".a"), lambda name: (file.get_tensor(f"{name}.a"), file.get_tensor(f"{name}.b"))
        )
        self.rank = int(file.metadata()["rank"])
        products = dict.fromkeys(named(".first"))

        def read_whole(name: str) -> Whole:
            if name in products:
                return Kronecker(file.get_tensor(f"{name}.first"), file.get_tensor(f"{name}.second"))
            return cast(Tensor, file.get_tensor(f"{name}.whole"))

        self.exact = Modules([*named(".whole"), *products], read_whole)

    def as_pairs(self, source: Path) -> LoraWeights:
        """Pairs alone, for what adds teachers up: a whole change becomes the nearest pair.

        Several processes share the whole changes, so all must call it.

        Args:
            source: the user's file, for messages.

        Raises:
            UserError: a pair would lose too much of a change.
        """
        if not self.exact:
            return self

        def find_nearest(module: str) -> tuple[Tensor, Tensor, Tensor]:
            (a, b), lost = factorize(as_matrix(self.exact[module]), MAX_RANK)
            if lost > MAX_LOSS:
                message = f"loses {lost:.0%} of its change at rank {MAX_RANK}, which a sum of teachers needs"
                hint = "leave out the merge, or extract a LoRA from the file"
                raise UserError(source, module, message, hint)
            return a, b, torch.tensor(lost)

        found = processes.make_shared(list(self.exact), find_nearest)
        most = max(float(lost) for _, _, lost in found.values())
        message = "%s: at rank %d for a sum of teachers, its modules lose at most %.1f %% of their change"
        log.warning(message, source, MAX_RANK, 100 * most)
        return {**self, **{module: (a, b) for module, (a, b, _) in found.items()}}


def mark_teachers(collection: Collection) -> dict[str, str]:
    """The fingerprint of each effect's teacher as it is now."""
    return {e.name: fingerprint(*lora_files(collection.teacher_path(e))) for e in collection.effects}


def open_teachers(collection: Collection, dtype: torch.dtype, settings: Settings) -> dict[str, TeacherFile]:
    """Every effect's teacher in `dtype`; several processes share the conversion, so all must call it.

    Raises:
        UserError: a teacher cannot be read, is none of this base, or is replaced while it is read.
    """
    base = collection.manifest.base
    identity = base_identity(base) or base
    shapes = target_weights(*family_of(base).empty_network(base))

    @cache
    def network() -> nn.Module:
        """Loaded for DoRA alone, and not kept: it would lie beside the encoders."""
        return cast(nn.Module, load_backbone(base, settings.model).network)

    def find_key(effect: Effect) -> str:
        model = settings.model
        held = identity, model.dtype, model.quantization
        return fingerprint(LAYOUT, *held, *lora_files(collection.teacher_path(effect)))

    def keep(effect: Effect) -> Kept[TeacherFile]:
        key = find_key(effect)
        path = cache_path(collection, f"teacher-{effect.name}", key)
        return Kept(path, lambda: open_teacher(effect, key, path))

    def read_weight(name: str) -> Tensor:
        return whole_weight(network().get_submodule(name))

    def open_teacher(effect: Effect, key: str, path: Path) -> TeacherFile:
        if not is_whole(path):
            teacher = collection.teacher_path(effect)
            tensors: dict[str, Tensor] = {}

            def keep_whole(module: str, whole: Whole) -> None:
                held = apply(partial(Tensor.to, dtype=dtype, copy=True), whole)
                if isinstance(held, Kronecker):
                    tensors.update({f"{module}.first": held.first, f"{module}.second": held.second})
                else:
                    tensors[f"{module}.whole"] = cast(Tensor, held)

            lora = read_teacher(teacher, shapes, read_weight, effect.without_text_encoder, keep_whole)
            for module, (a, b) in lora.weights.items():
                tensors |= {f"{module}.a": a.to(dtype), f"{module}.b": b.to(dtype)}
            refuse_changed(collection, effect.name, key, find_key(effect))
            write_tensors(path, tensors, {"rank": str(lora.rank)})
        return TeacherFile(path)

    opened = make_together([keep(effect) for effect in collection.effects])
    network.cache_clear()
    free_memory()
    return dict(zip((effect.name for effect in collection.effects), opened, strict=True))

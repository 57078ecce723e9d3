"""Teachers as runs read them: converted once into the collection's cache, in the base's dtype, memory-mapped.

The operating system holds one copy of a mapped file for all processes of a machine, and only while there is
room. A file is named after the teacher's contents and all that its conversion depends on.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from collectionlora.adapters.formats import read_teacher
from collectionlora.adapters.roles import target_weights
from collectionlora.backbones import family_of, load_backbone
from collectionlora.backbones.base import free_memory
from collectionlora.backbones.quantization import whole_weight
from collectionlora.cache import base_identity, cache_path
from collectionlora.collection import Collection, Effect
from collectionlora.config import Settings
from collectionlora.system.files import fingerprint, is_whole, write_tensors
from collectionlora.system.shared_files import Kept, make_together


class TeacherFile(Mapping[str, tuple[Tensor, Tensor]]):
    """A converted teacher as `LoraWeights`, of which a module is read when it is asked for.

    Raises:
        SafetensorError, OSError: the file is damaged, or cannot be read.
    """

    def __init__(self, path: Path):
        self._file = safe_open(path, framework="pt")
        self.rank = int(self._file.metadata()["rank"])
        self._modules = [key.removesuffix(".a") for key in self._file.keys() if key.endswith(".a")]  # noqa: SIM118

    def __getitem__(self, module: str) -> tuple[Tensor, Tensor]:
        try:
            return self._file.get_tensor(f"{module}.a"), self._file.get_tensor(f"{module}.b")
        except SafetensorError:
            raise KeyError(module) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


def open_teachers(collection: Collection, dtype: torch.dtype, settings: Settings) -> dict[str, TeacherFile]:
    """Every effect's teacher in `dtype`; several processes share the conversion, so all must call it.

    Raises:
        UserError: a teacher cannot be read, or is none of this base.
    """
    base = collection.manifest.base
    identity = base_identity(base) or base
    shapes = target_weights(*family_of(base).empty_network(base))

    @cache
    def network() -> nn.Module:
        """Loaded for DoRA alone, and not kept: it would lie beside the encoders."""
        return cast(nn.Module, load_backbone(base, settings.model).network)

    def keep(effect: Effect) -> Kept[TeacherFile]:
        model = settings.model
        key = fingerprint(identity, model.dtype, model.quantization, collection.teacher_path(effect))
        path = cache_path(collection, f"teacher-{effect.name}", key)
        return Kept(path, lambda: open_teacher(effect, path))

    def read_weight(name: str) -> Tensor:
        return whole_weight(network().get_submodule(name))

    def open_teacher(effect: Effect, path: Path) -> TeacherFile:
        if not is_whole(path):
            teacher = collection.teacher_path(effect)
            lora = read_teacher(teacher, shapes, read_weight, effect.without_text_encoder)
            tensors: dict[str, Tensor] = {}
            for module, (a, b) in lora.weights.items():
                tensors |= {f"{module}.a": a.to(dtype), f"{module}.b": b.to(dtype)}
            write_tensors(path, tensors, {"rank": str(lora.rank)})
        return TeacherFile(path)

    opened = make_together([keep(effect) for effect in collection.effects])
    network.cache_clear()
    free_memory()
    return dict(zip((effect.name for effect in collection.effects), opened, strict=True))

"""Teachers as runs read them: converted once into the collection's cache, in the base's dtype, memory-mapped.

The operating system holds one copy of a mapped file for all processes of a machine, and only while there is
room. A file is named after the teacher's contents and all that its conversion depends on.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from collectionlora.adapters.formats import read_lora
from collectionlora.adapters.roles import target_weights
from collectionlora.backbones import empty_network
from collectionlora.backbones.base import Backbone
from collectionlora.backbones.quantization import whole_weight
from collectionlora.cache import cache_path
from collectionlora.collection import Collection, Effect
from collectionlora.config import Settings
from collectionlora.system import processes
from collectionlora.system.files import fingerprint, read_tensors, write_tensors


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


def open_teachers(collection: Collection, backbone: Backbone, settings: Settings) -> dict[str, TeacherFile]:
    """Every effect's teacher; several processes share the conversion, so all must call it.

    Raises:
        UserError: a teacher cannot be read, or is none of this base.
    """
    shapes = target_weights(*empty_network(collection.manifest.base))
    makers = [
        partial(_open_teacher, collection, effect, shapes, backbone, settings)
        for effect in collection.effects
    ]
    names = [effect.name for effect in collection.effects]
    return dict(zip(names, processes.make_together(makers), strict=True))


def _open_teacher(
    collection: Collection,
    effect: Effect,
    shapes: Mapping[str, Tensor],
    backbone: Backbone,
    settings: Settings,
) -> TeacherFile:
    teacher, model = collection.teacher_path(effect), settings.model
    key = fingerprint(collection.manifest.base, model.dtype, model.quantization, teacher)
    path = cache_path(collection, f"teacher-{effect.name}", key)
    if read_tensors(path) is None:

        def read_weight(name: str) -> Tensor:
            return whole_weight(backbone.network.get_submodule(name))

        lora = read_lora(teacher, shapes, read_weight)
        tensors: dict[str, Tensor] = {}
        for module, (a, b) in lora.weights.items():
            tensors |= {f"{module}.a": a.to(backbone.dtype), f"{module}.b": b.to(backbone.dtype)}
        write_tensors(path, tensors, {"rank": str(lora.rank)})
    return TeacherFile(path)

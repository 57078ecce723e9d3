"""The files of a diffusers model: a folder as `save_pretrained` writes it, or `owner/name[@revision]`.

diffusers is an extra: its classes are named by strings and found when one is first needed.
"""

import importlib
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.utils import get_session
from safetensors import SafetensorError, safe_open
from torch import Tensor

from collectionlora.backbones.family import EncoderSize
from collectionlora.collection import MANIFEST
from collectionlora.system.errors import UserError

INDEX = "model_index.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
ENDPOINT = constants.ENDPOINT
PROBE_SECONDS = 3
# A layer of a stack, by the names of stacks in transformers; in T5 two parts of a stack's layers stay whole.
PACKED = re.compile(r"\.(?:layers|blocks?|\w+_list)\.\d+\.(?!.*(?:\.wo\.|relative_attention_bias))")


def find_class(base: str, name: str) -> Any:
    """A class of diffusers by its name, for a base.

    Raises:
        UserError: diffusers is not installed, or has no such class.
    """
    try:
        return getattr(importlib.import_module("diffusers"), name)
    except (ImportError, AttributeError) as error:
        hint = "write nano, or install it: pip install 'collectionlora[diffusers]'"
        raise UserError(MANIFEST, "base", f"{base!r} needs diffusers ({error})", hint) from None


def locate(base: str) -> dict[str, Any]:
    """`base` as the arguments of `from_pretrained`: a folder, or else `owner/name[@revision]` on the hub."""
    if Path(base).is_dir():
        return {"pretrained_model_name_or_path": base}
    name, _, revision = base.partition("@")
    return {"pretrained_model_name_or_path": name, "revision": revision or None}


@contextmanager
def opening(base: str) -> Iterator[None]:
    """Files of a model are read inside the block.

    Raises:
        UserError: no such folder or model, a part is missing, or its weights are not safetensors.
    """
    try:
        with warnings.catch_warnings():
            # diffusers gives the hub's library an argument that this no longer knows.
            warnings.filterwarnings("ignore", "The `local_dir_use_symlinks` argument")
            yield
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        hint = "give a diffusers pipeline in safetensors: its folder, or owner/name@revision on the hub"
        raise UserError(MANIFEST, "base", f"{base!r} cannot be opened ({reason})", hint) from error


def read_index(base: str) -> dict[str, Any]:
    """The content of a model's `model_index.json`; of a folder it is read without diffusers.

    Raises:
        UserError: it cannot be opened.
    """
    if not Path(base).is_dir():
        pipeline = find_class(base, "DiffusionPipeline")
        with opening(base):
            if hub_answers():
                return pipeline.load_config(**locate(base))
            try:
                return pipeline.load_config(**locate(base), local_files_only=True)
            except OSError:
                raise OSError(f"it is not on this machine, and {ENDPOINT} cannot be reached") from None
    path = Path(base) / INDEX
    with opening(base):
        if not path.is_file():
            raise FileNotFoundError(f"it has no {INDEX}")
        index = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(index, dict):
            raise ValueError(f"{INDEX} holds no JSON object")
        return index


@cache
def hub_answers() -> bool:
    """Whether the hub can be asked: one short probe, where a download would try five times, ever longer."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(ENDPOINT, timeout=PROBE_SECONDS)
    except Exception:  # of whichever client the hub's library uses
        return False
    return True


def list_files(base: str) -> tuple[Path, list[Path]]:
    """A model's folder on this machine, for one of the hub that of its commit, and the files in it.

    Raises:
        UserError: it is not on this machine.
    """
    folder, where = Path(base), locate(base)
    if not folder.is_dir():
        name = where.pop("pretrained_model_name_or_path")
        with opening(base):
            folder = Path(snapshot_download(name, **where, local_files_only=True))
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return folder, [path for path in files if not any(p[0] == "." for p in path.relative_to(folder).parts)]


def stored_shapes(folder: Path) -> dict[str, list[int]]:
    """The shapes of all tensors in a part's files by their names, from the headers.

    Raises:
        ValueError: a file is damaged.
    """
    shapes: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path.name}: {error}") from None
    return shapes


def measure_encoders(base: str) -> EncoderSize:
    """The size of the text encoders in a model's folder; of layers in stacks the matrices are packed.

    Raises:
        UserError: a file is damaged.
    """
    with opening(base):
        parts = [stored_shapes(part) for part in sorted(Path(base).glob("text_encoder*"))]
    shapes = [item for part in parts for item in part.items()]
    packed = [prod(shape) for name, shape in shapes if len(shape) == 2 and PACKED.search(name)]
    return EncoderSize(sum(prod(shape) for _, shape in shapes), sum(packed))


def read_weight(base: str, part: str, module: str) -> Tensor:
    """The weight of one module of a model's part, in float32; nothing else is read.

    Raises:
        UserError: the model is not on this machine, or lacks it.
    """
    try:
        folder, name = list_files(base)[0] / part, f"{module}.weight"
    except UserError:
        message = f"{base!r} is not on this machine, and a DoRA teacher means nothing without its weights"
        raise UserError(MANIFEST, "base", message, f"get it: hf download {base.partition('@')[0]}") from None
    with opening(base):
        try:
            with safe_open(folder / _weights_file(folder, name), framework="pt") as file:
                return file.get_tensor(name).float()
        except (KeyError, SafetensorError) as error:
            raise ValueError(f"{part} lacks {name}: {error}") from None


def _weights_file(folder: Path, name: str) -> str:
    """Where a tensor is; large models are cut into several files."""
    index = folder / f"{WEIGHTS}.index.json"
    return str(json.loads(index.read_bytes())["weight_map"][name]) if index.is_file() else WEIGHTS

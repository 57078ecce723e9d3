"""Files that are whole or absent: everything is written aside and renamed."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from collectionlora.errors import UserError

Model = TypeVar("Model", bound=BaseModel)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, on failure it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        # safetensors makes files that only their owner reads; follow the user's umask as others do.
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o666 & ~umask)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_models(path: Path, kind: type[Model], mend: str) -> dict[str, Model]:
    """What `write_json` wrote of several models by name; none if there is no file.

    Raises:
        UserError: the file is damaged; `mend` says what to do then.
    """
    if not path.exists():
        return {}
    try:
        return TypeAdapter(dict[str, kind]).validate_json(path.read_bytes())  # type: ignore[valid-type]
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(path, field, first["msg"], mend) from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file with a header; the same content gives the same bytes."""
    whole = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    with written_whole(path) as partial:
        save_file(whole, partial, dict(metadata))
        if metadata:
            _sort_metadata(partial)


def _sort_metadata(path: Path) -> None:
    """Put the header's metadata in order of its keys, in place: safetensors writes it in random order."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= length
        file.seek(8)
        file.write(text.ljust(length))

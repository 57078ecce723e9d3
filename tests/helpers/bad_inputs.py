"""Every way to spoil a small collection that the suite of bad inputs knows."""

import json
import os
import pickle
import struct
import zlib

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

LORA, PHOTO, MANIFEST = "teachers/sepia.safetensors", "photos/0.png", "collection.yaml"
HUGE = 10**12


def raw(path, content):
    """A file with other content."""

    def spoil(folder):
        (folder / path).write_bytes(content if isinstance(content, bytes) else content.encode())

    return spoil


def gone(path):
    return lambda folder: (folder / path).unlink()


def folder_instead(path):
    def spoil(folder):
        (folder / path).unlink()
        (folder / path).mkdir()

    return spoil


def link(path, target):
    """A symbolic link in the place of a file."""

    def spoil(folder):
        (folder / path).unlink(missing_ok=True)
        (folder / path).symlink_to(target)

    return spoil


def cut(path, size):
    """A file's first bytes; a negative size takes as many off its end."""

    def spoil(folder):
        whole = (folder / path).stat().st_size
        os.truncate(folder / path, size if size >= 0 else whole + size)

    return spoil


def manifest(**changes):
    """Another value of keys of the manifest, `None` takes the key out."""

    def spoil(folder):
        document = yaml.safe_load((folder / MANIFEST).read_text()) | changes
        kept = {key: value for key, value in document.items() if value is not None}
        (folder / MANIFEST).write_text(yaml.safe_dump(kept, allow_unicode=True))

    return spoil


def effect(**changes):
    """The same in the first effect."""

    def spoil(folder):
        document = yaml.safe_load((folder / MANIFEST).read_text())
        first = document["effects"][0] | changes
        document["effects"][0] = {key: value for key, value in first.items() if value is not None}
        (folder / MANIFEST).write_text(yaml.safe_dump(document, allow_unicode=True))

    return spoil


def both(*, first, second):
    """Keys of both effects."""

    def spoil(folder):
        document = yaml.safe_load((folder / MANIFEST).read_text())
        for entry, changes in zip(document["effects"], (first, second), strict=True):
            entry.update(changes)
        (folder / MANIFEST).write_text(yaml.safe_dump(document))

    return spoil


def settings(**sections):
    return manifest(settings=sections)


def lora(change, metadata=None):
    """Other tensors in the LoRA file: `change` gets them by name and the name of the first module's."""

    def spoil(folder):
        tensors = load_file(folder / LORA)
        down = next(name for name in tensors if name.endswith("lora_A.weight"))
        tensors = change(tensors, down)
        save_file(tensors, folder / LORA, metadata)

    return spoil


def header(change):
    """Another header in front of the same bytes."""

    def spoil(folder):
        whole = (folder / LORA).read_bytes()
        length = int.from_bytes(whole[:8], "little")
        text = json.dumps(change(json.loads(whole[8 : 8 + length]))).encode()
        (folder / LORA).write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])

    return spoil


def claim(length):
    """A header that says it is so long."""

    def spoil(folder):
        whole = (folder / LORA).read_bytes()
        (folder / LORA).write_bytes(length.to_bytes(8, "little") + whole[8:])

    return spoil


def first_entry(change):
    """Another entry of the first tensor in the header."""

    def edit(entries):
        name = next(key for key in entries if key != "__metadata__")
        return {**entries, name: change(entries[name])}

    return header(edit)


def pickled(folder):
    """What a file that runs code when it is opened looks like; nothing may open it."""

    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(folder / "exploded"),))

    (folder / LORA).write_bytes(pickle.dumps(Bomb()))


def torch_saved(folder):
    torch.save({"a": torch.ones(2)}, folder / LORA)


def png_of(width, height):
    """A PNG whose header claims a size that its data do not have."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    shape = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + shape + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def large_jpeg_cut(folder):
    pixels = np.random.default_rng(1).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photos" / "2.jpg")
    cut("photos/2.jpg", 5000)(folder)


def twin(folder):
    """Two sources of one name."""
    Image.open(folder / "pairs/sepia/source/0.png").save(folder / "pairs/sepia/source/0.jpg")

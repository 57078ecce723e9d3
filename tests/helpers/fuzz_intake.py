"""Damaged LoRA files, thousands of them, against the intake: each is read whole or refused in one line.

    python tests/helpers/fuzz_intake.py --seconds 60 --seed 0

A file that makes anything else happen is kept in --keep, and the exit code is 1.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from collectionlora.adapters.formats import read_lora
from collectionlora.system.errors import UserError

BASE = {"blocks.0.attn.to_q": (8, 6), "blocks.0.mlp.net.0": (12, 8), "mix.1": (5, 3, 3, 3)}
SLOWEST = 5.0  # seconds for one file


def base_weights():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in BASE.items()}


def good_files():
    """One file of each kind that is read, as bytes."""
    plain, kohya, loha, lokr, dora = ({} for _ in range(5))
    for name, shape in BASE.items():
        inside, kernel, flat = shape[1], shape[2:], name.replace(".", "_")
        down, up = torch.randn(2, inside, *kernel), torch.randn(shape[0], 2, *(1,) * len(kernel))
        plain |= {f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}
        kohya |= {f"lora_unet_{flat}.lora_down.weight": down, f"lora_unet_{flat}.lora_up.weight": up}
        kohya[f"lora_unet_{flat}.alpha"] = torch.tensor(1.0)
        dora |= {f"diffusion_model.{name}.lora_A.weight": down, f"diffusion_model.{name}.lora_B.weight": up}
        dora[f"diffusion_model.{name}.dora_scale"] = torch.rand(shape[0], 1) + 1
        for side in ("1", "2"):
            loha[f"lycoris_{flat}.hada_w{side}_a"] = torch.randn(shape[0], 2)
            loha[f"lycoris_{flat}.hada_w{side}_b"] = torch.randn(2, int(np.prod(shape[1:])))
    lokr["transformer.blocks.0.attn.to_q.lokr_w1"] = torch.randn(2, 2)
    lokr["transformer.blocks.0.attn.to_q.lokr_w2"] = torch.randn(4, 3)
    config = {"lora_adapter_metadata": json.dumps({"transformer.r": 2, "transformer.lora_alpha": 2})}
    return [save(plain, config), save(kohya), save(loha), save(lokr), save(dora, {"format": "pt"})]


def mutate(content, rng):
    """One or a few kinds of damage."""
    for _ in range(int(rng.integers(1, 3))):
        content = DAMAGES[int(rng.integers(len(DAMAGES)))](content, rng)
    return content


def flip(content, rng):
    """Bits anywhere, most often in the header."""
    changed = bytearray(content)
    reach = len(changed) if rng.random() < 0.3 else min(len(changed), 600)
    for _ in range(int(rng.integers(1, 6)) if reach else 0):
        changed[int(rng.integers(reach))] = int(rng.integers(256))
    return bytes(changed)


def cut(content, rng):
    return content[: int(rng.integers(len(content) + 1))]


def grow(content, rng):
    return content + rng.bytes(int(rng.integers(1, 64)))


def lengthen(content, rng):
    """Another claim of the header's length."""
    claim = int(rng.choice([0, 1, 8, 10**6, 10**8, 10**11, 2**62]))
    return claim.to_bytes(8, "little") + content[8:]


def parts(content):
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return {k: v for k, v in header.items() if isinstance(v, dict)}, content[8 + length :]


def joined(header, data):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def with_header(change):
    """Damage to a header that can still be read; other files stay as they are."""

    def damage(content, rng):
        try:
            header, data = parts(content)
            names = [name for name in header if name != "__metadata__"]
            return joined(change(header, names, rng), data) if names else content
        except (ValueError, KeyError, IndexError, TypeError, OverflowError):
            return content

    return damage


@with_header
def rename(header, names, rng):
    """A tensor under another's module, another part, or no known name."""
    name, other = (str(rng.choice(names)) for _ in range(2))
    ends = ["alpha", "lora_mid.weight", "dora_scale", "lokr_t2", "hada_t1", "bias", "oft_r", "", "x" * 300]
    renamed = str(rng.choice([f"{other.rpartition('.')[0]}.{rng.choice(ends)}", f"te1.{name}", other + "\n"]))
    return {(renamed if key == name else key): value for key, value in header.items()}


@with_header
def lie(header, names, rng):
    """Another type, shape or place of a tensor, or another configuration."""
    name = str(rng.choice(names))
    entry = dict(header[name])
    kind = int(rng.integers(5))
    if kind == 0:
        entry["dtype"] = str(
            rng.choice(["F64", "F32", "F16", "BF16", "I64", "BOOL", "U8", "F8_E4M3", "C64", "?"])
        )
    elif kind == 1:
        shape = list(entry["shape"])
        entry["shape"] = [
            shape[::-1],
            [*shape, 1],
            shape[:1],
            [],
            [0],
            [-1],
            [2**60, 4],
            [int(np.prod(shape))],
        ][int(rng.integers(8))]
    elif kind == 2:
        entry["data_offsets"] = [int(x) + int(rng.integers(-8, 9)) for x in entry["data_offsets"]]
    elif kind == 3:
        entry = header[str(rng.choice(names))]
    else:
        texts = ["{", "[]", "null", '{"r": 1e400}', '{"r": 2, "lora_alpha": "x"}', "[" * 5000, '{"r": -1}']
        texts += ['{"r": 2, "lora_alpha": 1e300}', '{"r": 2, "rank_pattern": {"(": 1}, "lora_alpha": 2}']
        return {**header, "__metadata__": {"lora_adapter_metadata": str(rng.choice(texts))}}
    return {**header, name: entry}


def poison(content, rng):
    """Numbers that are none, or too large, in the data."""
    try:
        header, data = parts(content)
    except (ValueError, KeyError, IndexError, AttributeError):
        return content
    numbers = np.frombuffer(data[: len(data) // 4 * 4], np.float32).copy()
    if len(numbers):
        bad = [np.nan, np.inf, -np.inf, 3e38, 1e-45, 0]
        numbers[rng.integers(len(numbers), size=3)] = rng.choice(bad, size=3)
    return joined(header, numbers.tobytes() + data[len(data) // 4 * 4 :])


DAMAGES = (flip, cut, grow, lengthen, rename, lie, lie, poison, poison)


def outcome(path, base):
    """What became of a file: "read" or "refused"; anything else is a fault of the intake, told in words."""
    began = time.perf_counter()
    try:
        file = read_lora(path, base)
        told = "read"
        for name, (a, b) in file.weights.items():
            fits = a.shape[1:] == base[name].shape[1:] and len(b) == len(base[name]) and b.shape[1] == len(a)
            if not fits or not (torch.isfinite(a).all() and torch.isfinite(b).all()):
                told = f"fault: {name} does not fit the base or is not finite"
        file.report(len(base))
    except UserError as error:
        told = "refused" if str(error).isprintable() else f"fault: not one line: {str(error)!r}"
    except Exception as error:
        told = f"fault: {type(error).__name__}: {error}"
    seconds = time.perf_counter() - began
    return told if seconds < SLOWEST else f"fault: {seconds:.1f} s"


def fuzz(folder, seed, most, seconds=float("inf")):
    """Outcomes by their number, and the contents that make faults."""
    rng, base, files = np.random.default_rng(seed), base_weights(), good_files()
    path, counts, faults = folder / "a.safetensors", Counter(), []
    latest = time.monotonic() + seconds
    while counts.total() < most and time.monotonic() < latest:
        content = mutate(files[int(rng.integers(len(files)))], rng)
        path.write_bytes(content)
        told = outcome(path, base)
        counts[told] += 1
        if told.startswith("fault"):
            faults.append((told, content))
    return counts, faults


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("out/fuzz"))
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        counts, faults = fuzz(Path(folder), arguments.seed, 10**9, arguments.seconds)
    print(f"seed {arguments.seed}, {arguments.seconds:g} s: {counts.total()} files")
    for told, number in counts.most_common():
        print(f"{number:8} {told}")
    for index, (_, content) in enumerate(faults[:20]):
        arguments.keep.mkdir(parents=True, exist_ok=True)
        (arguments.keep / f"{index}.safetensors").write_bytes(content)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()

"""What `init` writes: a folder and a manifest that explains itself."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from collectionlora.adapters.formats import read_lora
from collectionlora.collection import MANIFEST
from collectionlora.errors import UserError
from collectionlora.files import write_text

HEADER = """\
# A collection: many effect LoRAs to be distilled into one. All paths are relative to this folder.

base: {base}                # nano is embedded
effects:
"""
EFFECT = """\
  - name: {name}
    teacher: teachers/{name}.safetensors    # the effect's LoRA, or made by `teach` from pairs/{name}/
    teacher_prompt: {prompt}    # what this LoRA was trained with
    photos: photos/{name}       # about 20 photos, no edited ones needed
    # student_prompt: written by `prompts` unless you give one here
"""
FOOTER = """\
general:                        # keeps the base's ordinary abilities
  photos: photos/general        # unlabelled photos
  prompts: general.txt          # one ordinary edit instruction a line
# settings:                     # what differs from the defaults, for example
#   distill:
#     student_updates: 1000
"""
GENERAL = "keep the photo unchanged\nbrighten the photo\nmake the photo black and white\n"


def create(folder: Path, base: str, loras: Sequence[Path]) -> None:
    """Make a collection folder; nothing is written if anything is wrong.

    Raises:
        UserError: a manifest is there already, or a LoRA file cannot be read.
    """
    if (folder / MANIFEST).exists():
        raise UserError(folder / MANIFEST, "", "exists already", "edit it, or choose another folder")
    found = {}
    for path in loras:
        name = "-".join("".join(c if c.isalnum() else " " for c in path.stem.lower()).split()) or "effect"
        if name in found:
            raise UserError(path, "", f"two files give the effect name {name}", "rename one of them")
        found[name] = read_lora(path).metadata.get("teacher_prompt", f"apply the {name} effect"), path
    entries = {name: prompt for name, (prompt, _) in found.items()} or {"my-effect": "apply my effect"}
    for sub in ("teachers", "pairs", "photos/general", *(f"photos/{name}" for name in entries)):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    for name, (_, path) in found.items():
        shutil.copyfile(path, folder / "teachers" / f"{name}.safetensors")
    if not (folder / "general.txt").exists():
        write_text(folder / "general.txt", GENERAL)
    effects = "".join(EFFECT.format(name=name, prompt=prompt) for name, prompt in entries.items())
    write_text(folder / MANIFEST, HEADER.format(base=base) + effects + FOOTER)

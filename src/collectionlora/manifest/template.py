"""What `init` writes: a folder and a manifest that explains itself."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from collectionlora.adapters.alpha import DIFFUSERS_FILE, PEFT_FILE, lora_files
from collectionlora.adapters.formats import read_header
from collectionlora.backbones import find_base, guess_family
from collectionlora.backbones.family import Family
from collectionlora.collection import MANIFEST, MAX_EFFECT, RESERVED, Collection
from collectionlora.manifest.instructions import INSTRUCTIONS
from collectionlora.pictures.folders import LeftOut, describe_left_out
from collectionlora.system.errors import UserError, one_line
from collectionlora.system.files import copy_whole, refuse_other, write_text
from collectionlora.system.yaml_reading import read_yaml

HEADER = """\
# A collection: many effect LoRAs to be distilled into one. Photos and LoRAs have paths below this folder.

base: {base}    # {what}
effects:
"""
EFFECT = """\
  - name: {written}    # lower-case letters, digits and hyphens; what `edit --effect` is given
    teacher: {teacher}    # the effect's LoRA; `teach` makes it from pairs/{name}/source and target
    teacher_prompt: {prompt}    # {known}
    photos: photos/{name}       # about 20 photos, no edited ones needed
    # student_prompt: written by `prompts` unless you give one here
    # without_text_encoder: true    # leaves out what the LoRA's file changes of the text encoder
    # weight: 2                 # drawn twice as often, where a bench shows that it stays behind
    # references: [look.png]    # shown beside every photo, where the base reads several images
    # truth: heldout/{name}     # for `bench`: true images, a procedural effect's name, or none
    # criteria: keep the face   # for `bench --judge`: what a good picture of this effect has
"""
STATED = "what this LoRA was trained with"
GUESSED = "a guess: write what this LoRA was trained with"
# Every adapter has this name; its folder has that of the effect.
SHARED_NAMES = (PEFT_FILE, DIFFUSERS_FILE)
READ = ".safetensors"
WEIGHTS = (READ, ".pt", ".pth", ".bin", ".ckpt", ".gguf")
NOT_READ = "only .safetensors files of the folder itself are read, and adapters in sub-folders"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A LoRA file that becomes an effect: its name, and the prompt, which may be a guess."""

    name: str
    file: Path
    prompt: str
    guessed: bool


FOOTER = """\
general:                        # keeps the base's ordinary abilities
  photos: photos/general        # unlabelled photos
  prompts: general.txt          # one ordinary edit instruction a line, each for any photo
  # pairs: general.jsonl        # in place of both: lines {{"photo": "photos/a.jpg", "prompt": "add rain"}}
recipe: {recipe}               # default, or paper: the paper's own settings
# settings:                     # what differs from the recipe and the base's recommendations, for example
#   distill:
#     student_updates: 1000
"""


def create(folder: Path, base: str, loras: Sequence[Path], recipe: str = "default") -> list[Found]:
    """Make a collection folder; nothing is written if anything is wrong. Returns what was made of the LoRAs.

    Args:
        base: a folder is entered by its absolute path.
        loras: files, and folders of them (`find_loras`).

    Raises:
        UserError: a manifest is there already, the base is missing, a folder holds no LoRA files, one of them
            cannot be read, two have one name, or a prompt is none.
    """
    if folder.is_file():
        hint = "give the collection's folder first: collectionlora init FOLDER --from-loras FILES"
        raise UserError(folder, "", "is a file", hint)
    if (folder / MANIFEST).exists():
        raise UserError(folder / MANIFEST, "", "exists already", "edit it, or choose another folder")
    base, found = find_base(base), describe_loras(loras)
    entered = found or [Found("my-effect", Path(), "apply my effect", guessed=False)]
    copies = {lora.name: teacher_copies(lora.name, lora.file) for lora in found}
    effects = "".join(
        EFFECT.format(
            name=lora.name,
            written=write_scalar(lora.name),
            prompt=json.dumps(lora.prompt, ensure_ascii=False),
            known=GUESSED if lora.guessed else STATED,
            teacher=next(iter(copies.get(lora.name, ())), f"teachers/{lora.name}.safetensors"),
        )
        for lora in entered
    )
    header = HEADER.format(base=write_scalar(base), what=describe_base(base))
    manifest = header + effects + FOOTER.format(recipe=recipe)
    Collection.parse(folder, manifest)
    sources = {folder / place: source for files in copies.values() for place, source in files.items()}
    for path, source in sources.items():
        refuse_other(source, path)
    for sub in ("teachers", "pairs", "photos/general", *(f"photos/{lora.name}" for lora in entered)):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    for path, source in sources.items():
        copy_whole(source, path)
    if not (folder / "general.txt").exists():
        family = guess_family(base)
        instructions = (family and family.list_instructions()) or INSTRUCTIONS
        write_text(folder / "general.txt", "\n".join(instructions) + "\n")
    write_text(folder / MANIFEST, manifest)
    return found


def describe_loras(places: Sequence[Path]) -> list[Found]:
    """The LoRAs of `places`, with the effect's name and the prompt of each.

    Raises:
        UserError: see `create`.
    """
    found: dict[str, Found] = {}
    for path in find_loras(places):
        name, header = name_effect(path), read_header(path)
        if name in RESERVED:
            message = f"gives the effect name {name}, which means something else here"
            raise UserError(path, "", message, "rename the file")
        if name in found:
            message = f"gives the effect name {name}, as {found[name].file} does"
            hint = "rename one of them: of a file's name only a-z, 0-9 and hyphens are kept"
            raise UserError(path, "", message, hint)
        stated = header.get("teacher_prompt")
        found[name] = Found(name, path, stated or guess_prompt(name, header), guessed=not stated)
    return list(found.values())


def guess_prompt(name: str, header: Mapping[str, str]) -> str:
    """What a LoRA may have been trained with: the trigger phrase of its header, or the effect's name."""
    return header.get("modelspec.trigger_phrase", "").strip() or f"apply the {name} effect"


def teacher_copies(name: str, path: Path) -> dict[str, Path]:
    """The files of an effect's LoRA by their places in the collection, the LoRA itself first.

    An adapter as PEFT writes it has a folder of its own: its configuration is found by name.
    """
    files = lora_files(path)
    if len(files) == 1:
        return {f"teachers/{name}.safetensors": path}
    return {f"teachers/{name}/{file.name}": file for file in files}


def find_loras(places: Sequence[Path]) -> list[Path]:
    """The LoRA files that are given: files as they are, and those of folders.

    A folder is one adapter as PEFT and diffusers write it, or holds files and such adapters.

    Weights of a folder that are not read are said in one line.

    Raises:
        UserError: a folder holds none.
    """
    found = []
    for place in places:
        held = list_folder(place) if place.is_dir() else [place]
        if not held:
            message = "holds no .safetensors files"
            raise UserError(place, "--from-loras", message, "give LoRA files, or a folder of them")
        found += held
        others = [p for p in sorted(place.rglob("*")) if is_weights(p, WEIGHTS) and p not in held]
        for line in describe_left_out(place, [LeftOut(path, NOT_READ) for path in others]):
            log.warning("%s: %s", one_line(str(place)), line)
    return found


def is_weights(path: Path, endings: Sequence[str] = (READ,)) -> bool:
    """Whether a file of a folder could be a LoRA, by its ending in small or capital letters."""
    return path.suffix.lower() in endings and not path.name.startswith(".") and path.is_file()


def list_folder(folder: Path) -> list[Path]:
    """The LoRA files of a folder, in the order of their paths."""
    adapter = [folder / name for name in SHARED_NAMES if (folder / name).is_file()]
    inner = [path for name in SHARED_NAMES for path in folder.glob(f"*/{name}")]
    return adapter or sorted([*(p for p in folder.iterdir() if is_weights(p)), *inner])


def name_effect(path: Path) -> str:
    """The name of the effect of a LoRA file: at most `MAX_EFFECT` lower-case letters, digits and hyphens."""
    title = path.resolve().parent.name if path.name in SHARED_NAMES else path.stem
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in title.lower()).split()
    return "-".join(words)[:MAX_EFFECT].rstrip("-") or "effect"


def write_scalar(text: str) -> str:
    """A text as YAML: in quotes where it would be read as something else without them."""
    try:
        plain = read_yaml(f"key: {text}") == {"key": text}
    except ValueError:
        plain = False
    return text if plain else json.dumps(text, ensure_ascii=False)


def describe_base(base: str) -> str:
    """What kind of base it is, in the words of the manifest."""
    family = guess_family(base)
    return family.note if family else Family.note

"""A collection: the folder that a user brings, its manifest, and what can be wrong with it."""

import difflib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from collectionlora.pictures.folders import by_name, find_spelling, list_photos, warn_of_left_out
from collectionlora.system.errors import UserError, quote
from collectionlora.system.files import is_utf8
from collectionlora.system.yaml_reading import read_yaml

MANIFEST = "collection.yaml"
RESULT = "collection.safetensors"
PROMPTS = "prompts.json"  # student prompts, see `prompting.writing`
NAME = r"^[a-z0-9]+(-[a-z0-9]+)*$"  # of an effect; files are named after it
MAX_EFFECT = 64  # characters of an effect's name
RESERVED = ("all", "composition", "general")  # what `edit` and the files of a run call other things
MAX_PROMPT = 2000  # characters
PAIR = '{"photo": "photos/me.jpg", "prompt": "make the sky red"}'  # a line of the general stream's pairs
TRIGGER = re.compile(r"<[^<>\s]+>")


def refuse_control(text: str) -> str:
    """The text, if a prompt can hold it: any script and emoji, tabs and line ends, nothing else invisible.

    Raises:
        ValueError: it holds a control character.
    """
    for character in text:
        if unicodedata.category(character) == "Cc" and character not in "\t\n\r":
            raise ValueError(f"holds the control character U+{ord(character):04X}")
    return text


PromptText = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT), AfterValidator(refuse_control)]
Place = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(refuse_control)]


Recipe = Literal["default", "paper"]  # names of `config.RECIPES`


class Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)


class Effect(Entry):
    """One effect of the manifest; paths are relative to the collection's folder."""

    name: str = Field(pattern=NAME, max_length=MAX_EFFECT)
    teacher: Place
    without_text_encoder: bool = False  # leave out what the teacher's file changes of the text encoder
    teacher_prompt: PromptText
    photos: Place
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)  # how often it is drawn, relative to the others
    references: tuple[Place, ...] = ()  # images that are shown beside every photo
    student_prompt: PromptText | None = None
    criteria: str | None = None
    truth: str | None = None  # for `bench`: a procedural effect, a folder of true images, or "none"


class General(Entry):
    """The general stream.

    Either unlabelled photos and a file with one instruction a line, which are paired by chance, or `pairs`, a
    file in which each line is a `Pair`.
    """

    photos: Place | None = None
    prompts: Place | None = None
    pairs: Place | None = None


class Pair(Entry):
    """A line of the general stream's pairs: a photo, relative to the collection's folder, and its prompt."""

    photo: Place
    prompt: PromptText


class Manifest(Entry):
    base: Place = "nano"
    recipe: Recipe = "default"
    effects: tuple[Effect, ...] = Field(min_length=1)
    general: General
    settings: dict[str, dict[str, Any]] = {}


class Collection:
    """A collection folder with a valid manifest."""

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder, self.manifest = folder, manifest

    @classmethod
    def load(cls, folder: Path | str) -> "Collection":
        """Read and validate `folder/collection.yaml`; looks at no other file.

        Raises:
            UserError: the first problem, with its field.
        """
        folder = Path(folder)
        path = folder / MANIFEST
        if not folder.is_dir():
            raise UserError(folder, "", "there is no such folder", f"make one: collectionlora init {folder}")
        if not is_utf8(folder):
            message = "is a path that is not UTF-8, in which safetensors opens no file"
            raise UserError(folder, "", message, "rename the folder")
        try:
            return cls.parse(folder, path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(path, "", "is missing", f"make one: collectionlora init {folder}") from None
        except UnicodeDecodeError as error:
            raise UserError(path, "", f"is not text in UTF-8 ({error})", "save it as UTF-8") from None
        except OSError as error:
            raise UserError(
                path, "", f"cannot be read ({error.strerror})", "put a readable file there"
            ) from None

    @classmethod
    def parse(cls, folder: Path, text: str) -> "Collection":
        """The collection in a folder whose manifest reads `text`.

        Raises:
            UserError: the first problem, with its field.
        """
        path = folder / MANIFEST
        try:
            document = read_yaml(text)
        except ValueError as error:
            raise UserError(path, "", f"is not valid YAML ({error})", "fix the syntax") from None
        if not isinstance(document, dict):
            raise UserError(path, "", "is not a mapping", "start it with base:, effects: and general:")
        try:
            manifest = Manifest.model_validate(document)
        except ValidationError as error:
            raise _explain(path, error) from None
        collection = cls(folder, manifest)
        collection._check_names(path)
        collection._check_general(path)
        return collection

    def _check_names(self, path: Path) -> None:
        names = [e.name for e in self.effects]
        repeated = [name for name, count in Counter(names).items() if count > 1]
        if repeated:
            raise UserError(path, "effects", f"two effects are called {repeated[0]}", "rename one of them")
        for name in names:
            if name in RESERVED:
                message = f"no effect can be called {name}, which means something else here"
                raise UserError(path, "effects", message, "give it another name")
        prompts = Counter(e.student_prompt for e in self.effects if e.student_prompt)
        for prompt, count in prompts.items():
            if count > 1:
                message = f"two effects share the student prompt {quote(prompt)}"
                raise UserError(path, "student_prompt", message, "give each effect its own trigger")
        found = [match[0] for prompt in prompts if (match := TRIGGER.match(prompt))]
        for trigger, count in Counter(found).items():
            if count > 1:
                message = f"two effects share the trigger {trigger}"
                raise UserError(path, "student_prompt", message, "give each effect its own trigger")

    def _check_general(self, path: Path) -> None:
        general = self.manifest.general
        for field, place in (("photos", general.photos), ("prompts", general.prompts)):
            if place is None and general.pairs is None:
                raise UserError(path, f"general.{field}", "is missing", "add it")
            if place is not None and general.pairs is not None:
                hint = "leave out photos and prompts, or leave out pairs"
                raise UserError(path, f"general.{field}", "stands beside pairs, which hold both", hint)

    @property
    def effects(self) -> tuple[Effect, ...]:
        return self.manifest.effects

    def effect(self, name: str) -> Effect:
        """The effect of a name.

        Raises:
            UserError: there is none; names the nearest.
        """
        names = {e.name: e for e in self.effects}
        if name not in names:
            nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
            raise UserError(self.folder / MANIFEST, name, "no such effect", f"did you mean {nearest}?")
        return names[name]

    def only(self, names: Sequence[str]) -> "Collection":
        """The same folder with some of its effects."""
        effects = tuple(e for e in self.effects if e.name in names)
        return Collection(self.folder, self.manifest.model_copy(update={"effects": effects}))

    def with_recipe(self, recipe: str | None) -> "Collection":
        """The same folder under another recipe; None leaves the manifest's."""
        if recipe is None:
            return self
        return Collection(self.folder, self.manifest.model_copy(update={"recipe": recipe}))

    def path(self, relative: str, field: str) -> Path:
        """A path of the manifest inside the folder.

        Raises:
            UserError: it leaves the folder, or the system cannot follow it.
        """
        # A manifest that was written on Windows; elsewhere a name may hold the sign itself.
        if "\\" in relative and not os.path.lexists(self.folder / relative):
            relative = relative.replace("\\", "/")
        path = self.folder / relative
        try:
            path = path if relative.isascii() else find_spelling(self.folder, relative)
            inside = path.resolve().is_relative_to(self.folder.resolve())
            path.is_dir()
        except (OSError, RuntimeError) as error:  # a loop is a RuntimeError in older versions of Python
            message = (
                f"{quote(relative)} is not a path ({error.strerror if isinstance(error, OSError) else error})"
            )
            raise UserError(self.folder / MANIFEST, field, message, "fix the path or the link") from None
        if not inside:
            hint = "copy it into the collection"
            raise UserError(self.folder / MANIFEST, field, f"{relative} lies outside the folder", hint)
        return path

    def teacher_path(self, effect: Effect) -> Path:
        return self.path(effect.teacher, f"effects.{effect.name}.teacher")

    def photos_folder(self, effect: Effect) -> Path:
        return self.path(effect.photos, f"effects.{effect.name}.photos")

    def photo_paths(self, effect: Effect) -> list[Path]:
        return list_photos(self.photos_folder(effect))

    def reference_paths(self, effect: Effect) -> list[Path]:
        return [self.path(file, f"effects.{effect.name}.references") for file in effect.references]

    def pairs_folder(self, effect: Effect) -> Path:
        return self.folder / "pairs" / effect.name

    def pair_folders(self, names: Sequence[str]) -> list[Path]:
        """The folders of both sides of the named effects' image pairs, as far as they exist."""
        folders = [self.folder / "pairs" / name / side for name in names for side in ("source", "target")]
        return [folder for folder in folders if folder.is_dir()]

    def pair_paths(self, effect: Effect) -> list[tuple[Path, Path]]:
        """The image pairs of an effect, source and target, matched by file name and in its order.

        Raises:
            UserError: there are none, a file has no partner, or two have one name.
        """
        folder = self.pairs_folder(effect)
        sides = [list_photos(folder / side) for side in ("source", "target")]
        sources, targets = (by_name(side, lambda path: path.stem) for side in sides)
        alone = sorted(sources.keys() ^ targets.keys())
        if alone:
            raise UserError(folder, alone[0], "is in source/ or target/ alone", "give both files one name")
        return [(sources[stem], targets[stem]) for stem in sorted(sources)]

    @property
    def has_pairs(self) -> bool:
        """Whether each photo of the general stream has an instruction of its own."""
        return self.manifest.general.pairs is not None

    def general_folders(self) -> list[Path]:
        """The folder of the general stream's photos; none if they come in pairs."""
        photos = self.manifest.general.photos
        return [] if photos is None else [self.path(photos, "general.photos")]

    def general_file(self) -> Path:
        """The text file of the general stream."""
        general = self.manifest.general
        field, place = ("prompts", general.prompts) if general.pairs is None else ("pairs", general.pairs)
        assert place is not None
        return self.path(place, f"general.{field}")

    def general_photo_paths(self) -> list[Path]:
        """All photos of the general stream.

        Raises:
            UserError: there are none, or a line of the pairs is wrong.
        """
        if self.has_pairs:
            return sorted({photo for photo, _ in self.general_pairs})
        (folder,) = self.general_folders()
        return list_photos(folder)

    def general_prompts(self) -> list[str]:
        """The instructions of the general stream that are paired with photos by chance, without blank lines.

        Raises:
            UserError: the file is missing or empty, or a line cannot be a prompt.
        """
        path = self.general_file()
        lines = _read_lines(path, "general.prompts")
        for number, line in lines:
            if len(line) > MAX_PROMPT:
                message, hint = f"has {len(line):,} characters", f"keep it under {MAX_PROMPT:,}"
                raise UserError(path, f"line {number}", message, hint)
            try:
                refuse_control(line)
            except ValueError as error:
                raise UserError(path, f"line {number}", str(error), "remove it") from None
        if not lines:
            raise UserError(path, "general.prompts", "is empty", "write one instruction a line")
        return [line for _, line in lines]

    def count_pairs(self) -> int | None:
        """The number of the general stream's pairs, whose photos are not looked for; None if there are none.

        Raises:
            UserError: the file is missing or empty.
        """
        return len(self.pair_lines()) if self.has_pairs else None

    def pair_lines(self) -> list[tuple[int, str]]:
        """The lines of the general stream's pairs, with their numbers, for `read_pair`.

        Raises:
            UserError: the file is missing or empty.
        """
        path = self.general_file()
        lines = _read_lines(path, "general.pairs")
        if not lines:
            raise UserError(path, "general.pairs", "is empty", f"write lines like {PAIR}")
        return lines

    def read_pair(self, number: int, line: str) -> tuple[Path, str]:
        """Photo and instruction of a line.

        Raises:
            UserError: it is no `Pair`, or its photo is not in the folder.
        """
        path = self.general_file()
        pair = _parse_pair(path, number, line)
        try:
            photo = self.path(pair.photo, "photo")
        except UserError as error:
            raise UserError(path, f"line {number}: photo", error.message, error.hint) from None
        if not photo.is_file():
            message, hint = f"there is no file {quote(pair.photo)}", "put it there or fix the line"
            raise UserError(path, f"line {number}: photo", message, hint)
        return photo, pair.prompt

    @cached_property
    def general_pairs(self) -> list[tuple[Path, str]]:
        """Photos with an instruction each, in the order of the file, which is read once.

        Raises:
            UserError: see `pair_lines` and `read_pair`.
        """
        return [self.read_pair(*line) for line in self.pair_lines()]

    def check_files(self) -> None:
        """Look that everything the manifest names is there; opens nothing but the instructions.

        What is left out of the folders of photos is said.

        Raises:
            UserError: the first thing that is missing, empty or outside the folder.
        """
        for effect in self.effects:
            for path in (self.teacher_path(effect), *self.reference_paths(effect)):
                if not path.is_file():
                    raise UserError(path, "", "there is no such file", "put it there or fix the path")
            self.photo_paths(effect)
        self.general_photo_paths()
        if not self.has_pairs:
            self.general_prompts()
        warn_of_left_out([*self.general_folders(), *map(self.photos_folder, self.effects)])

    @property
    def result(self) -> Path:
        """Where the finished adapter lies."""
        return self.folder / RESULT


def open_collection(collection: Collection | Path | str) -> Collection:
    """A collection as it is, or the one of a folder; see `Collection.load`."""
    return collection if isinstance(collection, Collection) else Collection.load(collection)


def _read_lines(path: Path, field: str) -> list[tuple[int, str]]:
    """The lines of a text file with their numbers, blank ones left out.

    Raises:
        UserError: it is no text file.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(path, field, f"is not text in UTF-8 ({error})", "save it as UTF-8") from None
    except OSError as error:
        raise UserError(path, field, f"cannot be read ({error.strerror})", "give a text file") from None
    lines = ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1))
    return [(number, line) for number, line in lines if line]


def _parse_pair(path: Path, number: int, line: str) -> Pair:
    try:
        return Pair.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
    place = ": ".join([f"line {number}", *map(str, first["loc"])])
    if first["type"] == "json_invalid":
        message = f"is not JSON ({first['ctx']['error'].partition(' at line')[0]})"
    else:
        message = {"missing": "is missing", "extra_forbidden": "no such key"}.get(first["type"], first["msg"])
    raise UserError(path, place, message.removeprefix("Value error, "), f"write it like {PAIR}")


def _explain(path: Path, error: ValidationError) -> UserError:
    # Of a misspelt key that must be there pydantic says first that it is missing.
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        inside: dict[str, type[Entry]] = {"effects": Effect, "general": General}
        place = inside.get(str(first["loc"][0]), Manifest) if len(first["loc"]) > 1 else Manifest
        known = place.model_fields
        nearest = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.0)[0]
        return UserError(path, field, "no such key", f"did you mean {nearest}?")
    if first["type"] == "missing":
        return UserError(path, field, "is missing", "add it")
    message, hint = first["msg"].removeprefix("Value error, "), f"it is {quote(first['input'])} now"
    if first["type"] == "string_type" and isinstance(first["input"], bool | int | float):
        hint += ": put it into quotes"
    return UserError(path, field, message, hint)

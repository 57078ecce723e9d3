"""A `Family`: the facts of one kind of base, known before one is loaded, and how a base of it is opened."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from collectionlora.backbones.base import Backbone
from collectionlora.backbones.comfyui import Graph, Student
from collectionlora.config import ModelSettings

SectionValues = dict[str, dict[str, Any]]  # values of settings by section and name


@dataclass(frozen=True)
class ExportFacts:
    """What programs outside need to know of a family.

    Attributes:
        architecture: as `modelspec.architecture` spells it.
        license: of the base, and so of what derives from it, as a model card spells it.
        arguments: of the diffusers pipeline for a student, which takes no guidance; `{guidance}` is the input
            of guidance-distilled bases. None if diffusers has no such pipeline.
        prompt_arguments: those of the pipeline that give the effect's prompt.
        size_arguments: those of the pipeline that give the image's `width` and `height`.
        lora_loader: the call that loads the file `LORA` of `folder` into the pipeline `pipe`.
        setup: lines before the pipeline is called; `$seen` is the side at which the text encoder sees photos.
        comfyui_prefix: under which ComfyUI finds modules by their names in diffusers, if it can find all.
        comfyui_names: whole names of the others there, by those in diffusers.
        workflow: makes the ComfyUI workflow of a student, if the base has nodes there.
    """

    architecture: str
    license: str
    arguments: str | None
    prompt_arguments: str = "prompt=PROMPTS[effect]"
    size_arguments: str = "width=width, height=height"
    lora_loader: str = "pipe.load_lora_weights(folder, weight_name=LORA)"
    setup: str = ""
    comfyui_prefix: str | None = None
    comfyui_names: Mapping[str, str] = field(default_factory=dict)
    workflow: Callable[[Student], Graph] | None = None


class EncoderSize(NamedTuple):
    """Parameters of all text encoders, and how many of them lie in layers that quantisation packs."""

    parameters: int
    packed: int


@dataclass(frozen=True)
class Speech:
    """How a text encoder that is a whole vision-language model is asked about pictures.

    Attributes:
        encoder: its class in transformers, as `model_index.json` spells it.
        processor: the pipeline's component that turns pictures and text into tokens.
        picture: what stands in the text for a picture.
        turn: the whole request; the places `{pictures}` and `{text}` are filled.
        ends: tokens that end an answer.
    """

    encoder: str
    processor: str
    picture: str
    turn: str
    ends: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Family(ABC):
    """One kind of base. `base` is a base's name as the manifest gives it; every method may raise `UserError`.

    Attributes:
        name: `nano`, or the class of the pipeline in diffusers, as `model_index.json` spells it.
        export: what programs outside need to know.
        recommended: settings in which its bases differ from the paper's recipe.
        side_multiple: heights and widths of images are multiples of it.
        reads_references: it reads several images, not the photo alone.
        splits_batches: prompts of each length take a forward of their own.
        speech: how its text encoder is asked about pictures, if that can see and write.
        schedule: tells the base's schedule from others, where no file of the base does.
        note: what a new manifest says beside the base's name.
    """

    name: str
    export: ExportFacts
    recommended: SectionValues
    side_multiple: int
    reads_references: bool = False
    splits_batches: bool = False
    speech: Speech | None = None
    schedule: str = ""
    note: str = "a folder, or owner/name of the hub; @revision behind the name pins it"

    @abstractmethod
    def load(self, base: str, settings: ModelSettings) -> Backbone:
        """The base, ready to use; refuses settings that it does not have."""

    @abstractmethod
    def without_weights(self, base: str, settings: ModelSettings, depths: Mapping[str, int]) -> Backbone:
        """The base on the meta device; `depths` gives its `block_stacks` other numbers of blocks."""

    @abstractmethod
    def empty_network(self, base: str) -> tuple[nn.Module, tuple[str, ...]]:
        """The network and its LoRA targets; a large one on the meta device, names and shapes alone."""

    def weight_reader(self, base: str) -> Callable[[str], Tensor] | None:
        """What reads one module's weight where `empty_network` holds shapes alone."""
        return None

    @abstractmethod
    def list_files(self, base: str) -> tuple[Path, list[Path]]:
        """The folder on this machine that the base is read from, and the files in it."""

    def recommended_settings(self, base: str) -> SectionValues:
        """Settings in which this base differs from the paper's recipe; they lie under the manifest's own."""
        return self.recommended

    def block_stacks(self, base: str) -> dict[str, int]:
        """Numbers of like blocks, by their names in the network's config; none if the network is shallow."""
        return {}

    def list_instructions(self) -> list[str]:
        """The ordinary edits that its bases know; none if they know more than a list can hold."""
        return []

    def encoder_size(self, base: str) -> EncoderSize | None:
        """The size of the text encoders, if it is known without loading them."""
        return None

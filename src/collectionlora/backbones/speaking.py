"""A base's own text encoder asked about pictures, where it is a whole vision-language model."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from collectionlora.backbones.diffusers_files import list_files, opening, read_index, stored_shapes
from collectionlora.backbones.family import Family, Speech
from collectionlora.system.errors import UserError

PART, HEAD = "text_encoder", "lm_head.weight"


class Spoken(NamedTuple):
    """An answer, the tokens that were read and written for it, and whether it came to its end."""

    text: str
    tokens: int
    is_whole: bool


def find_silence(family: Family, base: str) -> str:
    """Why a base's text encoder cannot be asked about pictures; empty if it can. Loads no weights.

    Raises:
        UserError: the base cannot be opened.
    """
    if family.speech is None:
        return "has a text encoder that cannot see pictures and write about them"
    entry = read_index(base).get(PART)
    name = entry[1] if isinstance(entry, list) and len(entry) == 2 else "text encoder of no class"
    if name != family.speech.encoder:
        return f"has a {name} as its text encoder, not a {family.speech.encoder}: it cannot be asked"
    try:
        folder, _ = list_files(base)
    except UserError:  # it is fetched when it is first needed
        return ""
    with opening(base):
        names = stored_shapes(folder / PART)
        if not names or any(stored.endswith(HEAD) for stored in names) or ties_words(folder):
            return ""
    return f"has a text encoder without its last layer, {HEAD}: it cannot write"


def ties_words(folder: Path) -> bool:
    """Whether the encoder writes by the weights that it reads with."""
    config = json.loads((folder / PART / "config.json").read_text(encoding="utf-8"))
    parts = [config, config.get("text_config", {})]
    return any(bool(part.get("tie_word_embeddings")) for part in parts)


class Speaker:
    """The text encoder of a pipeline, which answers greedily: the same question has the same answer."""

    def __init__(self, pipeline: Any, speech: Speech):
        from transformers import GenerationConfig

        self.model, self.speech = pipeline.text_encoder, speech
        self.processor = getattr(pipeline, speech.processor)
        self.tokenizer = self.processor.tokenizer
        self.ends = self.tokenizer.convert_tokens_to_ids(list(speech.ends))
        # In place of the model's own, which samples.
        self.model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=self.ends, pad_token_id=self.ends[-1]
        )

    @torch.no_grad()
    def answer(self, pictures: Sequence[Image.Image], text: str, max_tokens: int) -> Spoken:
        """What it writes about pictures that stand before a text."""
        shown = self.speech.picture * len(pictures)
        turn = self.speech.turn.format(pictures=shown, text=self._without_marks(text))
        tokens = self.processor(
            text=[turn], images=[list(pictures)], add_special_tokens=False, return_tensors="pt"
        ).to(self.model.device, self.model.dtype)
        length = tokens["input_ids"].shape[1]
        written = self.model.generate(**tokens, max_new_tokens=max_tokens)[0, length:]
        is_whole = bool(len(written)) and int(written[-1]) in self.ends
        words = self.tokenizer.decode(written, skip_special_tokens=True)
        return Spoken(words, length + len(written), is_whole)

    def _without_marks(self, text: str) -> str:
        """A text without the marks of turns and pictures, which are no words; none is left, also nested."""
        marks, before = self.tokenizer.get_added_vocab(), ""
        while text != before:
            before = text
            for mark in marks:
                text = text.replace(mark, "")
        return text

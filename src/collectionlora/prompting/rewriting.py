"""Descriptions of effects, written by a vision-language model that sees image pairs (AOP)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from collectionlora.pictures.photos import Photo
from collectionlora.prompting.answers import offers_several, plain, read_description
from collectionlora.prompting.refusals import is_refusal
from collectionlora.prompting.vlm import Answer, Vlm

INSTRUCTION = """\
These images are {pairs} of photos, each a photo and then its edited version. All pairs show one and the same
edit, which was asked for with these words: {teacher_prompt!r}

Write the prompt that makes an image-editing model edit any photo as these pairs do: say what becomes of
style, colours, light, material, lines and background.
- Call the subjects by generic words only: person, pet, animal. Nothing that only these photos show.
- Mention a change of viewpoint only if every pair has it.
- One line, at most two sentences, no angle brackets.
- Answer with the prompt alone: no introduction, no quotation marks, no comment."""
REFUSAL = "\n\nYour last answer was refused because it {fault}. Answer again, with the prompt alone."
MAX_LETTERS = 2000
TRIES = 2
EMPTY = re.compile(r"\W*(?:n/?a|none|null|nil|undefined|no|nope|yes|ok(?:ay)?|sure|done)?\W*", re.IGNORECASE)


@dataclass(frozen=True)
class Rewritten:
    """The model's description of an effect, its untouched answer, the tokens spent, and the answer's fault.

    `fault` is empty for an answer that can be used.
    """

    description: str
    answer: str
    tokens: int
    fault: str


def request(teacher_prompt: str, num_pairs: int) -> str:
    """What the model is told about `num_pairs` pairs of photos."""
    pairs = "one pair" if num_pairs == 1 else f"{num_pairs} pairs"
    return INSTRUCTION.format(pairs=pairs, teacher_prompt=teacher_prompt)


def find_fault(answer: Answer, description: str) -> str:
    """What is wrong with an answer, as the end of "it ..."; empty if nothing is."""
    if answer.fault:
        return answer.fault
    if EMPTY.fullmatch(description):
        return "is empty"
    if is_refusal(description) or is_refusal(plain(answer.text)):
        return "declines"
    if offers_several(description):
        return "offers several"
    if "\n" in description:
        return "has several lines"
    if len(description) >= MAX_LETTERS:
        return f"has {MAX_LETTERS} letters or more"
    if "<" in description or ">" in description:
        return "has angle brackets"  # they mark triggers, and special tokens of models
    if description[0] in "{[":
        return "is JSON without a prompt"
    if "\ufffd" in description:
        return "has characters that are not UTF-8"
    return "" if description.isprintable() else "has control characters"


def rewrite(vlm: Vlm, photos: Sequence[Photo], teacher_prompt: str) -> Rewritten:
    """Ask for an effect's description; an answer that cannot be used is asked for once more, with the reason.

    Args:
        photos: source and target of each pair, alternating.

    Raises:
        UserError: the model fails or the token cap is reached.
    """
    text, tokens, hint = request(teacher_prompt, len(photos) // 2), 0, ""
    for _ in range(TRIES):
        answer = vlm.ask(photos, text + hint)
        tokens += answer.tokens
        description = read_description(answer.text)
        fault = find_fault(answer, description)
        if not fault:
            break
        hint = REFUSAL.format(fault=fault)
    return Rewritten(description, answer.text, tokens, fault)

"""AOP, asymmetric orthogonal prompting: a unique trigger for each effect.

Paper: docs/method.md#what-each-role-reads-aop.

The teacher reads the prompt it was trained with. Student and critic read `<trigger> description`, and prompts
of different effects should point in different directions: their pairwise cosine is measured, and triggers
are drawn to lower it.
"""

import hashlib
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from collectionlora.backbones.base import Prompt

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
CANDIDATES = 16  # triggers drawn for each effect, of which the most orthogonal one is kept

Encode = Callable[[Sequence[str]], Prompt]


def draw_trigger(name: str, attempt: int) -> str:
    """A pronounceable made-up word in angle brackets; the same for the same arguments on every machine."""
    digest = hashlib.sha256(f"{name}/{attempt}".encode()).digest()
    letters = [
        (CONSONANTS if i % 2 == 0 else VOWELS)[byte % (len(CONSONANTS) if i % 2 == 0 else len(VOWELS))]
        for i, byte in enumerate(digest[:6])
    ]
    return f"<{name.replace('-', '_')}_{''.join(letters)}>"


def mean_embedding(prompt: Prompt) -> Tensor:
    """The mean of each prompt's real tokens, `[B, D]` in float32."""
    weight = prompt.mask[..., None].float()
    return (prompt.tokens * weight).sum(1) / weight.sum(1).clamp_min(1)


def cosine_table(encode: Encode, prompts: Sequence[str]) -> Tensor:
    """Pairwise cosine of the encoded prompts, `[N, N]` in [-1, 1]; lower is more orthogonal.

    Seen from the empty prompt: a template and padding that all prompts share would bring all cosines near 1.
    """
    with torch.no_grad():
        *means, empty = mean_embedding(encode([*prompts, ""]))
        directions = F.normalize(torch.stack(means) - empty, dim=1)
    return directions @ directions.T


def add_trigger(encode: Encode, name: str, description: str, others: Sequence[str]) -> str:
    """The student prompt of an effect, its trigger the most orthogonal to the `others`' student prompts."""
    candidates = [f"{draw_trigger(name, attempt)} {description}" for attempt in range(CANDIDATES)]
    if not others:
        return candidates[0]
    table = cosine_table(encode, [*candidates, *others])[:CANDIDATES, CANDIDATES:]
    return candidates[int(table.max(dim=1).values.argmin())]


def compose(prompts: Sequence[str]) -> str:
    """One prompt for effects one after the other: "apply A, then B"; a single prompt is left alone."""
    return prompts[0] if len(prompts) == 1 else "apply " + ", then ".join(prompts)

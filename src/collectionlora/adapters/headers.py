"""How large a LoRA file is once it is read, told by the shapes in its header."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from collectionlora.adapters.flux_names import SWAPPED, original_names
from collectionlora.adapters.formats import gather_parts, open_lora
from collectionlora.adapters.keys import ModuleNames, is_of_text_encoder
from collectionlora.adapters.lycoris import count_whole, pair_rank


@dataclass(frozen=True)
class LoraSizes:
    """What `read_teacher` makes of a file, at most.

    Attributes:
        rank: the largest of a pair; 0 if there is none.
        pairs: numbers in all pairs.
        exact: numbers in all changes that are kept whole.
    """

    rank: int
    pairs: int
    exact: int


def read_sizes(path: Path, base_weights: Mapping[str, Tensor]) -> LoraSizes:
    """The sizes of a file, of which only the header is read.

    Args:
        base_weights: as of `read_teacher`; their shapes are enough.

    Raises:
        UserError: not a safetensors file, a key that is not used, or a module that the base lacks.
    """
    with open_lora(path) as file:
        names = [name for name in file.keys() if not is_of_text_encoder(name)]  # noqa: SIM118
        empty = {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in names}
    fused = original_names(base_weights)
    parts, _ = gather_parts(path, empty, ModuleNames({*base_weights, *fused}))
    rank = pairs = exact = 0
    for module, found in parts.items():
        weights = [base_weights[piece] for piece in fused.get(module, (module,))]
        shape = sum(len(weight) for weight in weights), weights[0][0].numel()
        cut = len(weights) > 1 or (module == SWAPPED and module in fused)
        whole = count_whole(found, shape, cut) if weights[0].ndim == 2 else 0
        if whole:
            exact += whole
            continue
        own = pair_rank(found, shape)
        rank = max(rank, own)
        pairs += sum(own * (len(weight) + shape[1]) for weight in weights)  # each piece has an A of its own
    return LoraSizes(rank, pairs, exact)

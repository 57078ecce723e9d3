"""Several LoRAs as one without training: exact sums, and the merges that a distilled student has to beat."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from collectionlora.adapters.low_rank import Factors, pad, shrink
from collectionlora.adapters.roles import LoraWeights
from collectionlora.system import processes
from collectionlora.system.files import fingerprint

DENSITY = 0.5  # share of the entries that TIES and DARE keep, peft's own example
MERGES = ("linear", "ties", "dare", "svd")


def add(loras: Sequence[LoraWeights], weight: float = 1.0) -> LoraWeights:
    """The exact sum of weight changes, each times `weight`; ranks add up."""
    modules = dict.fromkeys(module for lora in loras for module in lora)
    return {module: add_module(loras, module, weight) for module in modules}


def add_module(loras: Sequence[LoraWeights], module: str, weight: float) -> Factors:
    """The exact sum of one module's changes, each times `weight`."""
    pairs = [lora[module] for lora in loras if module in lora]
    return torch.cat([a for a, _ in pairs]), torch.cat([weight * b for _, b in pairs], dim=1)


def merge(loras: Sequence[LoraWeights], how: str, rank: int, seed: int = 0) -> LoraWeights:
    """The mean of several LoRAs by one of `MERGES`; several processes share the modules, so all must call it.

    Args:
        rank: of the result by "svd", the nearest of this rank to the exact mean; the others keep the largest
            rank of `loras`.
        seed: of the entries that DARE drops, together with the module's name.
    """

    def merge_module(module: str) -> Factors:
        if how == "svd":
            return shrink(add_module(loras, module, 1 / len(loras)), rank)[0]
        own = [lora for lora in loras if module in lora]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(fingerprint(seed, module), 16))
            return _merge_factors([lora[module] for lora in own], how, len(loras))

    modules = list(dict.fromkeys(module for lora in loras for module in lora))
    return {module: (a, b) for module, (a, b) in processes.make_shared(modules, merge_module).items()}


def _merge_factors(pairs: Sequence[Factors], how: str, num_loras: int) -> Factors:
    largest = max(len(a) for a, _ in pairs)
    padded = [pad(pair, largest) for pair in pairs]
    # Each factor takes the root of the weight, so that a product takes the weight.
    weights = torch.full((len(pairs),), num_loras**-0.5)
    merge_factor = factor_merge(how)
    a, b = (merge_factor(list(factors), weights) for factors in zip(*padded, strict=True))
    return a, b


def factor_merge(how: str) -> Callable[[list[Tensor], Tensor], Tensor]:
    """A merge of factors and their weights, each factor on its own, as peft's `add_weighted_adapter`."""
    # Imported here: what only names the merges does not wait for peft.
    from peft.utils.merge_utils import dare_linear, task_arithmetic, ties

    merges: dict[str, Callable[[list[Tensor], Tensor], Tensor]] = {
        "linear": task_arithmetic,
        "ties": partial(ties, density=DENSITY),
        "dare": partial(dare_linear, density=DENSITY),
    }
    return merges[how]

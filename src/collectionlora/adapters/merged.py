"""One LoRA added into the base's weights for good, for use alone: its forwards cost what the bare base's do.

Nothing of peft is needed for it, which takes seconds to import.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from collectionlora.adapters.low_rank import change
from collectionlora.adapters.roles import LoraWeights, refuse_unknown, target_weights


class Merged:
    """A network that has one role's LoRA in its weights, in place of `Roles`.

    Args:
        network: the base. Its weights are changed and rounded to their own dtype; they must not be quantised.
        targets: names (suffixes) of the modules that may carry LoRA.
        role: what `frozen` is asked for.
        weights: of the LoRA; one layer's at a time is moved to the network's device.

    Raises:
        ValueError: a module is not a target here, or a shape does not fit.
    """

    @torch.no_grad()
    def __init__(self, network: nn.Module, targets: Sequence[str], role: str, weights: LoraWeights):
        layers = target_weights(network.requires_grad_(False), targets)
        refuse_unknown(weights, layers)
        self.role = role
        for name, (a, b) in weights.items():
            weight = layers[name]
            if (len(b), a[0].numel()) != (len(weight), weight[0].numel()):
                shapes = f"{tuple(a.shape)}, {tuple(b.shape)}; the weight has {tuple(weight.shape)}"
                raise ValueError(f"LoRA module {name} has shapes {shapes}")
            weight.data = weight + change((a.to(weight), b.to(weight))).view_as(weight)

    @contextmanager
    def frozen(self, role: str) -> Iterator[None]:
        """Forwards in that role, without gradient; there is no other."""
        assert role == self.role, f"{self.role} is in the base's weights, not {role}"
        with torch.no_grad():
            yield

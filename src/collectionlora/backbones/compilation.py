"""torch.compile of the blocks of a network of diffusers: one of each kind, for all that are like it."""

from typing import Any

import torch

from collectionlora.collection import MANIFEST
from collectionlora.system.errors import UserError

# Of one block: each role is a graph, with gradients and without, and so may be each bucket of sizes.
# After 8 torch would go on without compiling, and only warn.
MAX_GRAPHS = 64


def compile_blocks(network: Any, device: torch.device) -> None:
    """Compile the blocks at their first calls; whether this machine can is tried at once.

    Raises:
        UserError: this machine cannot compile, for example without a C++ compiler.
    """
    torch._dynamo.config.recompile_limit = MAX_GRAPHS
    try:
        torch.compile(torch.sin)(torch.zeros(1, device=device))
    except RuntimeError as error:
        why = str(error).strip().partition("\n")[0]
        hint = "write false, or install a C++ compiler"
        raise UserError(
            MANIFEST, "settings.model.compile", f"torch cannot compile here ({why})", hint
        ) from None
    network.compile_repeated_blocks()

"""Another kernel of attention than torch's choice, for a network of diffusers."""

from typing import Any

import torch

from collectionlora.collection import MANIFEST
from collectionlora.system.errors import UserError

HEAD = 64  # elements of a head that every kernel takes


def set_attention(
    network: Any, name: str, device: torch.device, dtype: torch.dtype, masked: bool = False
) -> None:
    """Let a network's attention run by one of diffusers' backends; it is tried first, with a backward.

    Args:
        masked: the network's attention has a mask in every forward.

    Raises:
        UserError: it is not installed, or does not run on this device in this dtype.
    """
    from diffusers.models.attention_dispatch import attention_backend, dispatch_attention_fn

    query, key, value = torch.zeros(3, 1, 16, 2, HEAD, device=device, dtype=dtype, requires_grad=True)
    try:
        with attention_backend(name):
            mask = torch.ones(1, 1, 16, 16, dtype=torch.bool, device=device) if masked else None
            dispatch_attention_fn(query, key, value, attn_mask=mask).sum().backward()
    except (ImportError, RuntimeError, ValueError) as error:
        why = str(error).strip().partition("\n")[0]
        message = f"{name} does not run here, on {device.type} in {str(dtype).removeprefix('torch.')} ({why})"
        hint = "write native, or install what it needs"
        raise UserError(MANIFEST, "settings.model.attention", message, hint) from None
    network.set_attention_backend(name)

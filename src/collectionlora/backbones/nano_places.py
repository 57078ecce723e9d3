"""Where a patch, a word or a noise level is, as sines and cosines."""

from dataclasses import dataclass

import torch
from torch import Tensor

PLACE_GAIN = 2.0  # of the place features in queries and keys: one patch then stands out among 130 keys


def sinusoids(positions: Tensor, width: int, fastest: float, slowest: float) -> Tensor:
    """Sines and cosines of `positions` `[...]` at `width / 2` frequencies between two, `[..., width]`."""
    frequencies = torch.linspace(0, 1, width // 2, device=positions.device)
    frequencies = fastest * (slowest / fastest) ** frequencies
    angles = positions[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def patch_positions(
    rows: int, columns: int, width: int, fastest: float, slowest: float, device: torch.device
) -> Tensor:
    """Place features of a patch grid, `[rows * columns, width]`; centred: a mirror image changes signs.

    For the rows sines, then cosines, then the same for the columns; frequencies in radians per patch.
    """
    y = sinusoids(torch.arange(rows, device=device) - (rows - 1) / 2, width // 2, fastest, slowest)
    x = sinusoids(torch.arange(columns, device=device) - (columns - 1) / 2, width // 2, fastest, slowest)
    grid = torch.cat([y[:, None].expand(-1, columns, -1), x[None].expand(rows, -1, -1)], dim=-1)
    return grid.reshape(rows * columns, width)


@dataclass(frozen=True)
class Places:
    """Place features of a patch grid `[N, D]`, and the same a quarter turn ahead."""

    here: Tensor
    ahead: Tensor

    @classmethod
    def of_grid(cls, rows: int, columns: int, width: int, like: Tensor) -> "Places":
        """In the device and dtype of `like`."""
        here = PLACE_GAIN * patch_positions(rows, columns, width, 2.6, 0.3, like.device)
        sin_y, cos_y, sin_x, cos_x = here.chunk(4, dim=-1)
        ahead = torch.cat([cos_y, -sin_y, cos_x, -sin_x], dim=-1)
        return cls(here.to(like.dtype), ahead.to(like.dtype))

    def add_turned(self, queries: Tensor, by_sine: Tensor, by_cosine: Tensor) -> Tensor:
        """Queries `[B, heads, N, D]` at places turned by modulations `[B, heads, 1, D]`, zero for no turn."""
        return torch.addcmul(torch.addcmul(queries, self.here, 1 + by_cosine), self.ahead, by_sine)

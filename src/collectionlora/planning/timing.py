"""How long a forward takes where nobody says it: arithmetic; for the nano base a rough constant."""

import math
from dataclasses import dataclass

from collectionlora.backbones import family_of
from collectionlora.backbones.base import Backbone
from collectionlora.planning.peaks import step_of, vae_flops, working_sizes
from collectionlora.planning.workload import Workload

# Dense bfloat16 of an A100, and the share of it that transformers of this kind reach: a guess.
FLOPS, USED_SHARE = 312e12, 0.4
TOKEN_PIXELS = 16**2  # of the bases of diffusers
NANO_SECONDS = (
    0.012  # of one image in a batch, on one CPU core; it differs by a factor of three between machines
)


@dataclass(frozen=True)
class Encoding:
    """How long it takes to encode, in forwards of one image.

    Attributes:
        photo: by the VAE.
        text: by the text encoders.
        with_photos: each photo has texts of its own, for the encoders see it beside them.
    """

    photo: float = 0.0
    text: float = 0.0
    with_photos: bool = False


def estimate_forward(workload: Workload, backbone: Backbone) -> tuple[float, str]:
    """Seconds of an unguided forward of one image with its photo, and where they are from."""
    if not family_of(workload.base).block_stacks(workload.base):
        return NANO_SECONDS, "a CPU core, roughly"
    return forward_flops(workload, backbone) / (FLOPS * USED_SHARE), "an A100, by arithmetic"


def forward_flops(workload: Workload, backbone: Backbone) -> float:
    """Each parameter takes part in a multiplication and an addition for each token; attention is left out."""
    size = working_sizes(workload, backbone)[0]
    tokens = 2 * math.prod(size) / TOKEN_PIXELS + backbone.shapes(size).tokens[0]
    return 2 * tokens * sum(parameter.numel() for parameter in backbone.network.parameters())


def estimate_encoding(workload: Workload, backbone: Backbone, encoder_parameters: float) -> Encoding:
    """The VAE's operations are counted, the text encoders' told as a forward's; by the prompt's tokens."""
    if not family_of(workload.base).block_stacks(workload.base):
        return Encoding()  # the nano base's latents are pixels, its prompts a few words
    size = working_sizes(workload, backbone)[0]
    whole, tokens = forward_flops(workload, backbone), backbone.shapes(size).tokens[0]
    photo = vae_flops(step_of(workload)) / whole
    return Encoding(photo, 2 * encoder_parameters * tokens / whole, backbone.prompts_see_photos)

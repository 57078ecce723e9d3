"""How long a forward takes where nobody says it: arithmetic; for the nano base a rough constant."""

from collectionlora.backbones import family_of
from collectionlora.backbones.base import Backbone
from collectionlora.planning.peaks import working_sizes
from collectionlora.planning.workload import Workload

# Dense bfloat16 of an A100, and the share of it that transformers of this kind reach: a guess.
FLOPS, USED_SHARE = 312e12, 0.4
TOKEN_PIXELS = 16**2  # of the bases of diffusers
NANO_SECONDS = (
    0.012  # of one image in a batch, on one CPU core; it differs by a factor of three between machines
)


def estimate_forward(workload: Workload, backbone: Backbone) -> tuple[float, str]:
    """Seconds of an unguided forward of one image with its photo, and where they are from.

    Each parameter takes part in a multiplication and an addition for each token; attention is left out.
    """
    if not family_of(workload.base).block_stacks(workload.base):
        return NANO_SECONDS, "a CPU core, roughly"
    height, width = working_sizes(workload, backbone)[0]
    tokens = 2 * height * width / TOKEN_PIXELS + backbone.shapes((height, width)).tokens[0]
    parameters = sum(parameter.numel() for parameter in backbone.network.parameters())
    return 2 * parameters * tokens / (FLOPS * USED_SHARE), "an A100, by arithmetic"

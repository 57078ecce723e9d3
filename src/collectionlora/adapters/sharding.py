"""Base, student and critics in shards, one for each process, gathered block by block when they run (FSDP2).

LoRAs are members of the block whose layers they change, so they are gathered with it, and backward leaves
each process its share of the mean gradient. Optimizers and moving average are made from sharded parameters
and are sharded with them. The teacher slot stays whole in every process: each holds another effect's teacher,
and a slot in shards would have room for one that all share. A block is gathered by all processes at once, so
all must run the same forwards and backwards in the same order.
"""

from torch import nn

from collectionlora.adapters.roles import TEACHER, Roles
from collectionlora.system import processes


def shard(roles: Roles) -> None:
    """Keep this process' share of base, student and critics; the units are blocks of module lists."""
    # Imported here: it takes a second, and few runs are sharded.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    network = roles.network
    device = next(network.parameters()).device.type
    mesh = init_device_mesh(device, (processes.world_size(),))
    whole = set(roles.parameters(TEACHER))
    lists = (child for child in network.children() if isinstance(child, nn.ModuleList))
    for unit in [*(block for blocks in lists for block in blocks), network]:
        # The root too: between two steps every parameter is a shard, wherever it lies.
        fully_shard(unit, mesh=mesh, reshard_after_forward=True, ignored_params=whole)

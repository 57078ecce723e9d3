"""The frozen base in shards, one for each process, gathered block by block when it runs (FSDP2).

Only the base is sharded: it is by far the largest part, never changes and needs no gradients. LoRAs stay
whole in every process, so teachers may differ between processes, and gradients, optimizers, moving average
and files are those of plain data parallelism. A block is gathered by all processes at once, so all must run
the same forwards and backwards in the same order.
"""

from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from collectionlora import processes
from collectionlora.adapters.roles import Roles
from collectionlora.errors import UserError


def shard_base(roles: Roles) -> None:
    """Keep this process' share of the base's weights; its blocks, the members of module lists, are the units.

    Raises:
        UserError: there is one process.
    """
    if processes.world_size() == 1:
        mend = "launch with torchrun --nproc-per-node N -m -- collectionlora ..."
        raise UserError("", "model.sharding", "fsdp needs several processes", mend)
    network = roles.network
    device = next(network.parameters()).device.type
    mesh = init_device_mesh(device, (processes.world_size(),))
    whole = {parameter for role in roles.ranks for parameter in roles.parameters(role)}
    lists = (child for child in network.children() if isinstance(child, nn.ModuleList))
    for unit in [*(block for blocks in lists for block in blocks), network]:
        fully_shard(unit, mesh=mesh, ignored_params=whole)

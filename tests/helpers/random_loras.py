"""Effect LoRAs over the nano base that were never trained."""

from collectionlora.adapters.formats import write_lora
from collectionlora.adapters.roles import STUDENT, Roles
from collectionlora.backbones.nano import NanoBackbone


def write_random_loras(folder, names):
    """One file of rank 2 for each name; paths by name."""
    backbone = NanoBackbone.load()
    roles = Roles(backbone.network, backbone.lora_targets, {STUDENT: 2})
    paths = {}
    for name in names:
        for parameter in roles.parameters(STUDENT):
            parameter.data.normal_(std=0.05)
        paths[name] = folder / f"{name}.safetensors"
        write_lora(paths[name], roles.weights(STUDENT), {})
    return paths

"""Effect LoRAs that were never trained."""

from collectionlora.adapters.formats import write_lora
from collectionlora.adapters.roles import STUDENT, Roles
from collectionlora.backbones import load_backbone
from collectionlora.config import ModelSettings


def write_random_loras(folder, names, base="nano", rank=2):
    """One file for each name; paths by name."""
    backbone = load_backbone(base, ModelSettings())
    roles = Roles(backbone.network, backbone.lora_targets, {STUDENT: rank})
    paths = {}
    for name in names:
        for parameter in roles.parameters(STUDENT):
            parameter.data.normal_(std=0.05)
        paths[name] = folder / f"{name}.safetensors"
        write_lora(paths[name], roles.weights(STUDENT), {})
    return paths

"""What a process holds in the host's memory while it loads a base: no copy of its own of the files."""

import pytest
import torch
from helpers import tiny_pipelines

from collectionlora.backbones import load_backbone
from collectionlora.backbones.quantization import block_layers
from collectionlora.config import ModelSettings
from collectionlora.planning.memory import MemoryTally


class PrivateTally(MemoryTally):
    """Live bytes of a process on the CPU that are not those of mapped files."""

    def __init__(self):
        super().__init__()
        self.mapped = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.maps = func is torch.ops.aten.set_.source_Storage  # as safetensors makes a tensor of a file
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _see(self, storage):
        if self.maps:
            self.mapped.add(storage._cdata)
        elif storage.device.type == "cpu" and storage._cdata not in self.mapped:
            super()._see(storage)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny FLUX.1 Kontext in float32: its network makes nothing beside its weights when it is loaded."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("kontext")
    tiny_pipelines.flux_kontext().save_pretrained(path)
    return str(path)


def load(base, device="cpu", **settings):
    """A network, its weights in bytes, and the most that was held."""
    backbone = load_backbone(base, ModelSettings(**settings))
    backbone.device = torch.device(device)
    with PrivateTally() as tally:
        network = backbone.network
    return network, [parameter.nbytes for parameter in network.parameters()], max(tally.peaks)


def test_weights_stay_in_the_mapped_file(base):
    _, sizes, held = load(base, dtype="float32")
    assert held <= max(sizes) < sum(sizes) / 10


def test_weights_of_another_dtype_are_converted_one_at_a_time_on_their_way_to_the_device(base):
    # The meta device stands for a GPU: what is there takes nothing from the host.
    network, sizes, held = load(base, "meta", dtype="bfloat16")
    assert {(p.device.type, p.dtype) for p in network.parameters()} == {("meta", torch.bfloat16)}
    assert held <= max(sizes) < sum(sizes) / 10


def test_weights_are_packed_one_layer_at_a_time(base):
    pytest.importorskip("bitsandbytes")
    network, sizes, held = load(base, dtype="float32", quantization="nf4")
    whole = [4 * layer.in_features * layer.out_features for layer in block_layers(network).values()]
    # Packed, the CPU holds them: an eighth, with scales, and one layer as it was.
    assert held <= sum(sizes) < sum(whole) / 2

"""Every supported base in its true configuration, every verb, against the device that its recipe names."""

import pytest

from collectionlora.backbones import PIPELINES, family_of
from collectionlora.config import parse_overrides, resolve
from collectionlora.planning.plan import GIB, fits, plan
from collectionlora.planning.rows import VERBS
from collectionlora.planning.workload import Workload

QWEN, KONTEXT = "Qwen/Qwen-Image-Edit-2509", "black-forest-labs/FLUX.1-Kontext-dev"
SMALL, MIDDLING, LARGE = "RTX 4090 24 GB", "L40S/A6000 48 GB", "A100/H100 80 GB"
# Rank 128 and 1024 pixels are what large bases have by default.
EIGHT_BITS = ("distill.moments=8bit",)
LESS = ("data.resolution=768", "student.rank=64", "critic.rank=64")
FOUR_BITS = ("model.quantization=nf4", "data.resolution=512", "student.rank=16", "critic.rank=16")
# `QWEN` and `KONTEXT` stand in test_planned_verbs.py. The last tells whether the studio fits too, which alone
# keeps its encoders beside the network: a base that fits without it may need `--quantization`.
RECIPES = [
    ("Qwen/Qwen-Image-Edit", EIGHT_BITS, LARGE, 20_430_401_088, True),
    ("Qwen/Qwen-Image-Edit-2511", EIGHT_BITS, LARGE, 20_430_401_088, True),
    ("Qwen/Qwen-Image-2.1", (), MIDDLING, 7_115_124_736, True),
    ("Qwen/Qwen-Image-2.1", LESS, SMALL, 7_115_124_736, False),
    ("Qwen/Qwen-Image-2.1", (*LESS, "model.quantization=int8"), SMALL, 7_115_124_736, True),
    ("meituan-longcat/LongCat-Image-Edit", (), MIDDLING, 6_270_668_864, True),
    ("black-forest-labs/FLUX.2-dev", FOUR_BITS, LARGE, 32_223_281_152, True),
    ("black-forest-labs/FLUX.2-klein-base-4B", (), SMALL, 3_875_544_576, True),
    ("black-forest-labs/FLUX.2-klein-4B", (), SMALL, 3_875_544_576, True),
    ("black-forest-labs/FLUX.2-klein-base-9B", (), MIDDLING, 9_078_581_248, True),
    ("black-forest-labs/FLUX.2-klein-9B", (), MIDDLING, 9_078_581_248, True),
]


# Of every known base; the files on the hub are twice as many bytes.
PARAMETERS = {
    "Qwen/Qwen-Image-Edit": 20_430_401_088,
    "Qwen/Qwen-Image-Edit-2509": 20_430_401_088,
    "Qwen/Qwen-Image-Edit-2511": 20_430_401_088,
    "Qwen/Qwen-Image-2.1": 7_115_124_736,
    "meituan-longcat/LongCat-Image-Edit": 6_270_668_864,
    "black-forest-labs/FLUX.1-Kontext-dev": 11_901_408_320,
    "black-forest-labs/FLUX.2-dev": 32_223_281_152,
    "black-forest-labs/FLUX.2-klein-base-4B": 3_875_544_576,
    "black-forest-labs/FLUX.2-klein-4B": 3_875_544_576,
    "black-forest-labs/FLUX.2-klein-base-9B": 9_078_581_248,
    "black-forest-labs/FLUX.2-klein-9B": 9_078_581_248,
}


def test_every_family_has_a_true_configuration_at_hand():
    assert all(family.known for family in PIPELINES)
    assert {base for family in PIPELINES for base in family.known} == PARAMETERS.keys()
    assert {base for base, *_ in RECIPES} | {QWEN, KONTEXT} == PARAMETERS.keys()


@pytest.mark.thorough
@pytest.mark.parametrize(("base", "assignments", "device", "parameters", "studio"), RECIPES)
def test_every_verb_fits_the_device_that_its_recipe_names(base, assignments, device, parameters, studio):
    settings = resolve(family_of(base).recommended_settings(base), parse_overrides(list(assignments)))
    planned = plan(Workload(base, 50, settings))
    assert planned["base_parameters"] == parameters
    assert set(planned["verbs"]) == set(VERBS)
    for verb, row in planned["verbs"].items():
        assert fits(row["device_bytes"], device) == (verb != "studio" or studio), verb
    held = planned["base_bytes"] + planned["lora_bytes"]
    # A step needs more than what is held, and not as much again as one device of the smallest kind.
    assert held < planned["total_bytes_per_device"] < held + planned["optimizer_bytes"] + 16 * GIB
    assert planned["verbs"]["edit"]["device_bytes"] <= planned["verbs"]["targets"]["device_bytes"]


def test_a_base_that_is_known_asks_no_hub_for_its_settings(monkeypatch):
    for module in ("flux2", "diffusers_files"):
        monkeypatch.setattr(f"collectionlora.backbones.{module}.read_index", None)
    monkeypatch.setattr("collectionlora.backbones.diffusers_files.get_session", None)
    for base in PARAMETERS:
        settings = resolve(family_of(base).recommended_settings(base))
        assert settings.model.dtype == "bfloat16"
        assert family_of(base).encoder_size(base).parameters > 4e9


@pytest.mark.parametrize(("base", "parameters"), PARAMETERS.items())
def test_a_network_that_is_known_has_as_many_parameters_as_the_one_on_the_hub(base, parameters):
    network, targets = family_of(base).empty_network(base)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert targets

import os

import pytest
import torch

# Small tensors are faster on one thread, and sums then never depend on the machine's cores. Not in a fixture,
# so that it holds for what is made once for a whole file; in the environment for what tests launch.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# The files that take longest come first: none of them is left to one process when the others have ended.
LONGEST = (
    "test_processes.py",
    "test_browser.py",
    "test_backbones.py",
    "test_kill.py",
    "test_journey.py",
    "test_shapes.py",
    "test_true_scale.py",
    "test_toy_world.py",
    "test_other_machines.py",
    "test_judging.py",
    "test_planning.py",
    "test_watching.py",
    "test_real_journey.py",
    "test_own_encoder.py",
    "test_bad_input.py",
    "test_editing.py",
    "test_studio.py",
)


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory):
    """The folder of a complete Qwen-Image-Edit-2509 of tiny parts, to be read alone."""
    from helpers import tiny_pipelines  # seconds, for the tests that need it

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("qwen")
    tiny_pipelines.qwen_image_edit().save_pretrained(path)
    return path

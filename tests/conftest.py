import os

import pytest
import torch

# Small tensors are faster on one thread, and sums then never depend on the machine's cores. Not in a fixture,
# so that it holds for what is made once for a whole file; in the environment for what tests launch.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)

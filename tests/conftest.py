import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors are faster on one thread, and sums then never depend on the machine's cores."""
    torch.set_num_threads(1)
    torch.manual_seed(0)

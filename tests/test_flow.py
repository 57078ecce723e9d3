import pytest
import torch

from collectionlora import flow


def test_few_step_sigmas_are_the_papers_eight_timesteps():
    timesteps = 1000 * flow.few_step_sigmas(8)
    expected = torch.tensor([1000, 954.5454, 900, 833.3333, 750, 642.8571, 500, 300])
    torch.testing.assert_close(timesteps, expected)


@pytest.mark.parametrize(("num_steps", "expected"), [(1, [1.0]), (2, [1, 0.75]), (4, [1, 0.9, 0.75, 0.5])])
def test_few_step_sigmas_of_other_lengths(num_steps, expected):
    torch.testing.assert_close(flow.few_step_sigmas(num_steps), torch.tensor(expected))


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="num_steps is 0"):
        flow.few_step_sigmas(0)


def test_shift_fixes_the_ends_and_follows_its_formula():
    assert flow.shift_sigma(0.0, 3.0) == 0
    assert flow.shift_sigma(1.0, 3.0) == 1
    assert flow.shift_sigma(0.5, 3.0) == pytest.approx(0.75)
    assert flow.shift_sigma(0.37, 1.0) == pytest.approx(0.37)
    torch.testing.assert_close(flow.shift_sigma(torch.tensor([0.25]), 3.0), torch.tensor([0.5]))


@pytest.mark.parametrize("shape", [(4, 2), (4, 3, 8, 8), (4,)])
@pytest.mark.parametrize("batched", [True, False])
def test_velocity_and_x0_are_inverse(shape, batched):
    x0, noise = torch.randn(shape), torch.randn(shape)
    sigma = torch.tensor([0.1, 0.5, 0.9, 1.0]) if batched else 0.7
    x_sigma = flow.add_noise(x0, noise, sigma)
    torch.testing.assert_close(flow.x0_from_velocity(x_sigma, noise - x0, sigma), x0, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(flow.velocity_from_x0(x0, x_sigma, sigma), noise - x0, atol=1e-5, rtol=1e-5)


def test_noise_levels_are_mixed_sample_by_sample():
    x0, noise = torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2)
    mixed = flow.add_noise(x0, noise, torch.tensor([0.0, 0.25]))
    assert mixed[0].unique().tolist() == [0.0]
    assert mixed[1].unique().tolist() == [0.25]


def test_a_sigma_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="one value for each of 4"):
        flow.add_noise(torch.zeros(4, 2), torch.zeros(4, 2), torch.tensor([0.1, 0.2]))

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from collectionlora import flow
from collectionlora.backbones.toy import ToyBackbone
from collectionlora.exporting.export import scheduler_config
from collectionlora.sampling import Denoiser, rollout, sample_few_steps, sample_many_steps
from collectionlora.toy.world import condition_on


class Counted(ToyBackbone):
    calls = 0

    def velocity(self, x_sigma, sigma, prepared):
        self.calls += len(x_sigma)
        return super().velocity(x_sigma, sigma, prepared)


class Known(ToyBackbone):
    """Always sees x0 = 2 * source, plus 1 under the empty prompt."""

    def velocity(self, x_sigma, sigma, prepared):
        empty = (prepared.prompt.tokens.flatten(1).abs().sum(1) == 0).float().view(-1, 1, 1, 1)
        return flow.velocity_from_x0(2 * prepared.source + empty, x_sigma, sigma)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_rollout_stopped_early_has_the_values_of_the_full_one_and_saves_the_rest():
    backbone, condition = Counted(), condition_on("move east", torch.randn(3, 2))
    sigmas, noise = flow.few_step_sigmas(8), torch.randn(3, 2, 1, 1)
    with torch.no_grad():
        full = rollout(Denoiser(backbone, condition), noise, sigmas, 7, generator())
        assert backbone.calls == 7 * 3
        backbone.calls = 0
        stopped = rollout(Denoiser(backbone, condition), noise, sigmas, 3, generator())
    assert backbone.calls == 3 * 3
    assert len(stopped) == 4
    assert all(torch.equal(a, b) for a, b in zip(stopped, full, strict=False))


def test_the_student_sampler_adds_fresh_noise_at_every_step():
    backbone, condition = Known(), condition_on("move east", torch.zeros(4000, 2))
    states = rollout(
        Denoiser(backbone, condition), torch.randn(4000, 2, 1, 1), flow.few_step_sigmas(4), 3, generator()
    )
    for sigma, state in zip(flow.few_step_sigmas(4).tolist(), states, strict=True):
        assert abs(state.std().item() - sigma) < 0.03
    correlation = torch.corrcoef(torch.stack([states[1].flatten(), states[2].flatten()]))[0, 1]
    assert abs(correlation.item()) < 0.05


def test_eulers_sampler_is_that_of_diffusers_and_keeps_the_first_noise():
    backbone, condition = ToyBackbone(3), condition_on("move east", torch.randn(5, 2))
    denoiser, noise = Denoiser(backbone, condition), torch.randn(5, 2, 1, 1)
    made = sample_few_steps(denoiser, noise, 4, generator(), 3.0, "euler")
    scheduler = FlowMatchEulerDiscreteScheduler(**scheduler_config(3.0, "euler"))
    scheduler.set_timesteps(sigmas=[1 - i / 4 for i in range(4)])
    theirs = noise
    for sigma, timestep in zip(flow.few_step_sigmas(4).tolist(), scheduler.timesteps, strict=True):
        with torch.no_grad():
            velocity = denoiser.velocity(theirs, sigma)
        theirs = scheduler.step(velocity, timestep, theirs, return_dict=False)[0]
    torch.testing.assert_close(made, theirs, atol=1e-5, rtol=1e-5)
    again = sample_few_steps(denoiser, noise, 4, generator(1), 3.0, "euler")
    assert torch.equal(made, again)  # nothing but the first noise is drawn
    assert not torch.allclose(made, sample_few_steps(denoiser, noise, 4, generator()))


def test_the_student_samplers_last_prediction_is_the_image():
    source = torch.randn(3, 2)
    backbone = Known()
    denoiser = Denoiser(backbone, condition_on("move east", source))
    image = sample_few_steps(denoiser, torch.randn(3, 2, 1, 1), 4, generator())
    torch.testing.assert_close(image.flatten(1), 2 * source, atol=1e-5, rtol=1e-5)


def test_the_many_step_sampler_lands_on_x0_and_guidance_extrapolates():
    source = torch.randn(3, 2)
    cond, uncond = condition_on("move east", source), condition_on("", source)
    noise = torch.randn(3, 2, 1, 1)
    for scale, expected in ((1.0, 2 * source), (5.0, 2 * source - 4), (0.0, 2 * source + 1)):
        image = sample_many_steps(Denoiser(Known(), cond, uncond, scale), noise, 10)
        torch.testing.assert_close(image.flatten(1), expected, atol=1e-4, rtol=1e-4)


def test_guidance_of_one_runs_one_branch():
    backbone = Counted()
    cond, uncond = condition_on("move east", torch.randn(3, 2)), condition_on("", torch.randn(3, 2))
    for scale, branches in ((1.0, 1), (5.0, 2)):
        backbone.calls = 0
        with torch.no_grad():
            sample_many_steps(Denoiser(backbone, cond, uncond, scale), torch.randn(3, 2, 1, 1), 40)
        assert backbone.calls == 40 * branches * 3

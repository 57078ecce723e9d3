"""One step of the method: who reads what, who learns, and what it costs."""

import pytest
import torch

from collectionlora.adapters.roles import STUDENT, TEACHER, critic_role
from collectionlora.flow import few_step_sigmas
from collectionlora.objectives import guided
from collectionlora.sampling import Denoiser, sample_many_steps
from collectionlora.toy.world import ToyWorld, toy_settings

CRITIC = critic_role(8)
COLD = {"match": {"updates": 0}, "distill": {"batch_size": 4, "effect_ratio": 1, "anchor_weight": 1}}
GUIDED = {"distill": {"guidance_scale": 5}}


@pytest.fixture(scope="module")
def world():
    return ToyWorld(num_effects=2, base_steps=3, teacher_steps=3)


class Recorder:
    """Every call of the network: role, samples, the prompts it read, whether it kept a graph."""

    def __init__(self, run):
        self.run, self.calls, self.plain = run, [], run.backbone.velocity
        run.backbone.velocity = self

    def __call__(self, x_sigma, sigma, prepared):
        role = self.run.roles._active[0] if self.run.roles._active else None
        prompts = {tuple(row.flatten().tolist()) for row in prepared.prompt.tokens}
        self.calls.append((role, len(x_sigma), prompts, torch.is_grad_enabled(), sigma.detach().clone()))
        return self.plain(x_sigma, sigma, prepared)

    def prompts(self, role):
        return set().union(*(prompts for name, _, prompts, _, _ in self.calls if name == role))

    def forwards(self, batch):
        return sum(samples for _, samples, _, _, _ in self.calls) / batch


def row(prompt):
    return tuple(prompt.tokens.flatten().tolist())


def test_student_and_critic_read_the_student_prompt_and_the_teacher_its_own(world):
    run = world.distillation(toy_settings(COLD, GUIDED))
    recorder = Recorder(run)
    run(0)
    effect = next(e for e in run.streams.effects if e.name == run.streams.batch(0).effect)
    assert recorder.prompts(STUDENT) == {row(effect.student_prompt)}
    assert recorder.prompts(CRITIC) == {row(effect.student_prompt)}
    assert recorder.prompts(TEACHER) == {row(effect.teacher_prompt), row(effect.uncond)}


def test_in_the_general_stream_the_teacher_is_the_bare_base_and_only_dmd_runs(world):
    run = world.distillation(toy_settings(COLD, GUIDED, {"distill": {"effect_ratio": 0}}))
    recorder = Recorder(run)
    metrics = run(0)
    assert TEACHER not in {role for role, *_ in recorder.calls}
    assert recorder.prompts(None) - {row(run.streams.general.uncond)} == recorder.prompts(STUDENT)
    assert "backward" in metrics
    assert "target" not in metrics
    assert "anchor" not in metrics


def test_forwards_and_backwards_of_one_student_update(world):
    run = world.distillation(toy_settings(COLD, GUIDED))
    recorder = Recorder(run)
    run(0)
    # rollout 8; L_BS 1 + critic 1 + teacher 2; L_TS the same; L_TA 1; five critic updates.
    assert recorder.forwards(4) == 8 + 4 + 4 + 1 + 5
    with_graph = [role for role, _, _, grad, _ in recorder.calls if grad]
    assert with_graph.count(STUDENT) == 3
    assert with_graph.count(CRITIC) == 5
    assert len(with_graph) == 8


def test_verifying_the_roles_costs_less_than_a_step_and_changes_nothing(world):
    run = world.distillation(toy_settings(COLD, GUIDED))
    before = {name: tensor.clone() for name, tensor in run.tensors().items()}
    recorder = Recorder(run)
    run.verify()
    # The base; each of three roles, and the student once more: a backward each.
    assert recorder.forwards(4) == 1 + 4
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.tensors().items())


def test_a_step_that_accumulates_names_only_what_all_its_shares_learn(world):
    run = world.distillation(toy_settings(COLD, GUIDED, {"distill": {"accumulate": 2, "effect_ratio": 0.5}}))
    told = {}
    for step in range(200):
        learned = {share.effect_at(step) for share in run.streams.shares(2)}
        told.setdefault(run.stream_at(step), []).append(learned)
    assert all(len(learned) > 1 and None in learned for learned in told.pop(("mixed", None)))
    assert all(len(learned) > 1 and None not in learned for learned in told.pop(("effect", None), []))
    assert all(learned == {None} for learned in told.pop(("general", None)))
    assert told
    assert all(learned == {effect} for (_, effect), many in told.items() for learned in many)


@pytest.mark.parametrize("number", [1, 3])
def test_no_role_keeps_gradients_after_an_update(world, number):
    layers = {"match": {"updates": 1}}, {"distill": {"rollout_steps": [4, 2], "accumulate": number}}
    run = world.distillation(toy_settings(COLD, GUIDED, *layers))
    plain, had, kept = run.step, [], []

    def gradients():
        return {role for role in run.roles.ranks for p in run.roles.parameters(role) if p.grad is not None}

    def step(role, *args):
        had.append((role, gradients() | ({role} if run.collected else set())))
        norm = plain(role, *args)
        kept.append((gradients(), len(run.collected)))
        return norm

    run.step = step
    for index in range(12):
        run(index)
    assert {role for role, _ in had} == {STUDENT, *run.critics}
    assert all(learners == {role} for role, learners in had)
    assert kept == [(set(), 0)] * (1 + 11 * 6)


@pytest.mark.parametrize(
    ("off", "name"),
    [("target_weight", "target"), ("anchor_weight", "anchor"), ("backward_weight", "backward")],
)
def test_each_loss_can_be_switched_off_and_then_costs_nothing(world, off, name):
    whole = world.distillation(toy_settings(COLD, GUIDED))
    part = world.distillation(toy_settings(COLD, GUIDED, {"distill": {off: 0}}))
    recorders = Recorder(whole), Recorder(part)
    assert name in whole(0)
    assert name not in part(0)
    assert recorders[1].forwards(4) < recorders[0].forwards(4)


def test_a_condition_is_read_once_where_its_reader_does_not_change(world):
    run = world.distillation(toy_settings(COLD, GUIDED))
    read, plain = [], run.backbone.prepare
    run.backbone.prepare = lambda condition: read.append(condition) or plain(condition)
    run(0)
    # rollout, student three times, critic and teacher for both matchings, the critic's five updates.
    assert len(read) == 1 + 3 + 1 + 1 + 5


def test_gradients_taken_loss_by_loss_are_those_of_the_sum(world):
    unclipped = {"distill": {"max_grad_norm": 1e9}}

    def gradients(together):
        run = world.distillation(toy_settings(COLD, GUIDED, unclipped))
        batch, generator = run.streams.batch(0), run.streams.generator(0)
        share = run.simulate(run.streams, batch, generator, 0, 8)
        losses = run.student_losses(share, CRITIC, 0.0)
        if together:
            torch.stack([weight * loss for _, weight, loss in losses]).sum().backward()
        else:
            for _, weight, loss in losses:
                run.backward(weight * loss)
        return [p.grad for p in run.roles.parameters(STUDENT)]

    for one, several in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(several, one)


def test_the_graph_of_a_loss_is_gone_before_the_next_is_made(world):
    run = world.distillation(toy_settings(COLD, GUIDED))
    batch, generator = run.streams.batch(0), run.streams.generator(0)
    share = run.simulate(run.streams, batch, generator, 0, 8)
    order, plain = [], run.backward
    recorder = Recorder(run)
    run.backward = lambda loss: (plain(loss), order.append(len(recorder.calls)))
    run.update_student([share], CRITIC, 0.0)
    assert order == [3, 6, 7]


def test_a_student_update_moves_the_student_alone_and_a_critic_update_the_critic(world):
    run = world.distillation(toy_settings(COLD))
    batch, generator = run.streams.batch(0), run.streams.generator(0)
    share = run.simulate(run.streams, batch, generator, 0, 8)

    def moved(update):
        before = {role: run.roles.weights(role) for role in (STUDENT, CRITIC)}
        update()
        # No role keeps its gradients while the other one learns.
        assert all(p.grad is None for role in before for p in run.roles.parameters(role))
        after = {role: run.roles.weights(role) for role in (STUDENT, CRITIC)}
        return {
            role
            for role in before
            if any(not torch.equal(before[role][m][1], after[role][m][1]) for m in before[role])
        }

    assert moved(lambda: run.update_student([share], CRITIC, 0.0)) <= {STUDENT}
    assert moved(lambda: run.update_critic([share], CRITIC, 0.0)) == {CRITIC}
    assert moved(lambda: run.match_teacher(0, 0.0)) == {STUDENT}


@pytest.mark.parametrize("ratio", [1, 4])
def test_b_learns_at_a_multiple_of_the_rate_of_a(world, ratio):
    distill = {"loraplus_lr_ratio": ratio, "decay_ratio": 0, "effect_ratio": 1}
    run = world.distillation(toy_settings({"match": {"learning_rate": 1e-3}, "distill": distill}))
    for step, (longest_a, longest_b) in enumerate([(0, ratio * 1e-3), (0.75e-3, ratio * 0.98e-3)]):
        before = run.roles.weights(STUDENT)
        run(step)
        after = run.roles.weights(STUDENT)
        for index, longest in enumerate((longest_a, longest_b)):
            moved = max((after[m][index] - before[m][index]).abs().max().item() for m in before)
            # Adam's first step is the rate itself. B starts at 0, so that A has no gradient then.
            assert moved == pytest.approx(longest, rel=0.05)


def test_target_simulation_starts_at_the_last_five_of_eight_steps(world):
    run = world.distillation(toy_settings(COLD))
    batch, generator = run.streams.batch(0), torch.Generator().manual_seed(0)
    share = run.simulate(run.streams, batch, generator, 0, 8)
    recorder = Recorder(run)
    for _ in range(200):
        run.student_on_target(batch, share.simulation.sigmas, generator)
    seen = sorted({round(1000 * s, 1) for *_, sigma in recorder.calls for s in sigma.tolist()}, reverse=True)
    assert seen == [833.3, 750.0, 642.9, 500.0, 300.0]


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
@pytest.mark.parametrize(("num_steps", "last"), [(8, 5), (4, 2), (2, 1), (1, 1), (16, 10)])
def test_the_steps_of_target_simulation_follow_from_the_schedule(world, num_steps, last, shift):
    run = world.distillation(toy_settings(COLD, {"sampling": {"shift": shift}}))
    batch, generator = run.streams.batch(0), torch.Generator().manual_seed(0)
    sigmas = few_step_sigmas(num_steps, shift)
    recorder = Recorder(run)
    for _ in range(100):
        run.student_on_target(batch, sigmas, generator)
    drawn = [sigma.tolist() for *_, sigma in recorder.calls]
    assert {sigma for sample in drawn for sigma in sample} == set(sigmas[-last:].tolist())
    assert last == 1 or any(len(set(sample)) > 1 for sample in drawn)  # drawn for each sample


def test_a_denoiser_plays_its_own_role_wherever_it_is_called(world):
    run = world.distillation(toy_settings(COLD, GUIDED))
    batch = next(batch for batch in map(run.streams.batch, range(20)) if batch.effect)
    recorder = Recorder(run)
    student, scores = run.student(batch), run.scores(batch, CRITIC)
    with run.roles.use(CRITIC):
        student.velocity(batch.target, 0.5)
    scores.critic.velocity(batch.target, 0.5)
    with run.roles.use(STUDENT):
        scores.teacher.velocity(batch.target, 0.5)
    assert [role for role, *_ in recorder.calls] == [STUDENT, CRITIC, TEACHER]


def test_the_anchor_is_drawn_above_the_dmd_sigma(world):
    run = world.distillation(toy_settings(COLD))
    batch, generator = run.streams.batch(0), torch.Generator().manual_seed(0)
    recorder = Recorder(run)
    u = torch.tensor([0.5, 0.6, 0.8, 0.95])
    for _ in range(50):
        run.anchor(batch, u, generator)
    sigmas = torch.stack([sigma for *_, sigma in recorder.calls])
    lowest = run._shift(u)
    assert (sigmas >= lowest).all()
    assert (sigmas.min(0).values - lowest < 0.1 * (1 - lowest) + 1e-3).all()


def test_the_anchor_stands_above_the_backward_loss(world, monkeypatch):
    run = world.distillation(toy_settings(COLD))
    batch, generator = run.streams.batch(0), run.streams.generator(0)
    share, drawn, plain = run.simulate(run.streams, batch, generator, 0, 8), [], run.anchor
    monkeypatch.setattr(run, "anchor", lambda batch, u, g: drawn.append(u) or plain(batch, u, g))
    matched, renoise = [], run.distribution_matching
    monkeypatch.setattr(
        run, "distribution_matching", lambda x0, j, u, g: matched.append(u) or renoise(x0, j, u, g)
    )
    names = [name for name, _, _ in run.student_losses(share, CRITIC, 0.0)]
    assert names == ["backward", "target", "anchor"]
    assert torch.equal(drawn[0], matched[0])
    assert (matched[1] >= 0.5).all()


def test_the_objective_guides_its_teacher_plainly_by_a_scale_of_its_own(world):
    settings = toy_settings(COLD, {"targets": {"guidance_scale": 3}}, {"distill": {"guidance_scale": 5}})
    run = world.distillation(settings)
    run.backbone.guide = lambda *_: pytest.fail("the base's own rule is for targets")
    batch = next(batch for batch in map(run.streams.batch, range(20)) if batch.effect)
    x, teacher = batch.target, run.teacher(batch)
    with torch.no_grad(), run.teachers.use(batch.effect):
        cond, uncond = (
            Denoiser(run.backbone, condition).velocity(x, 0.5) for condition in (batch.teacher, batch.uncond)
        )
        torch.testing.assert_close(teacher.velocity(x, 0.5), guided(cond, uncond, 5))


@pytest.mark.parametrize("samples", ["final", "simulated"])
def test_each_sample_stops_at_a_step_of_its_own(world, samples):
    run = world.distillation(toy_settings(COLD, {"distill": {"critic_samples": samples, "batch_size": 64}}))
    batch, generator = run.streams.batch(0), run.streams.generator(0)
    simulation = run.simulate(run.streams, batch, generator, 0, 8).simulation
    assert set(simulation.index.tolist()) == set(range(8))
    states, sigmas = simulation.chosen()
    for sample, index in enumerate(simulation.index.tolist()):
        assert torch.equal(states[sample], simulation.states[index][sample])
        assert sigmas[sample] == simulation.sigmas[index]
    last = simulation.index if samples == "simulated" else torch.full((64,), 7)
    with torch.no_grad(), run.roles.use(STUDENT):
        noisy = torch.stack(simulation.states)[last, torch.arange(64)]
        expected = Denoiser(run.backbone, batch.student).x0(noisy, simulation.sigmas[last])
    torch.testing.assert_close(simulation.image, expected)


def test_the_papers_critic_simulates_anew_for_each_update(world):
    run = world.distillation(toy_settings(COLD, {"distill": {"critic_samples": "simulated"}}))
    recorder = Recorder(run)
    run(0)
    effects = {run.streams.batch(0, part).effect for part in range(6)}
    by_name = {e.name: row(e.student_prompt) for e in run.streams.effects}
    assert recorder.prompts(CRITIC) == {by_name[name] for name in effects}
    assert len(effects) == 2


def flow_run(world, **match):
    return world.distillation(toy_settings({"match": {"loss": "flow", "batch_size": 64, **match}}))


def test_targets_come_from_the_noise_that_a_batch_draws_again(world):
    run = flow_run(world)
    for step, effect in ((0, run.streams.batch(0)), (1, run.streams.batch(1))):
        assert len(effect.origins) == len(effect.target), step
        with run.teachers.use(effect.effect):
            again = sample_many_steps(Denoiser(run.backbone, effect.teacher), effect.noise_of_target(), 40)
        torch.testing.assert_close(again, effect.target, atol=1e-5, rtol=1e-5)
    mixed = run.batch(run.streams, 0)
    assert len({origin[0] for origin in mixed.origins}) == 3  # two effects and the general stream
    assert torch.equal(mixed.noise_of_target(), mixed.noise_of_target())


@pytest.mark.parametrize("share", [0.0, 0.6])
def test_flow_matching_reuses_the_teachers_noise_above_a_sigma(world, share):
    run = flow_run(world, coupled_above=0.75, fresh_share=share)
    batch = run.batch(run.streams, 0)
    fresh, own = torch.randn(batch.target.shape), batch.noise_of_target()
    sigma = torch.linspace(0, 1, len(fresh))
    noise = run.couple(fresh, sigma, batch)
    coarse = sigma > 0.75
    assert torch.equal(noise[~coarse], fresh[~coarse])
    expected = (1 - share**2) ** 0.5 * own + share * fresh
    torch.testing.assert_close(noise[coarse], expected[coarse])


def test_a_student_of_the_teachers_own_noise_is_ahead_in_one_step(world):
    distances = {}
    for above in (1.0, 0.0):
        run = flow_run(world, updates=80, coupled_above=above, fresh_share=0.0)
        for step in range(80):
            run(step)
        distances[above] = world.judge(run, 1, 400, sampler="euler")["effects_mean"]
    assert distances[0.0] < 0.5 * distances[1.0]


def test_each_schedule_length_has_its_own_critic(world):
    settings = toy_settings(COLD, {"distill": {"rollout_steps": [4, 2]}})
    run = world.distillation(settings)
    recorder = Recorder(run)
    for step in range(8):
        recorder.calls.clear()
        run(step)
        critics = {role for role, *_ in recorder.calls if role and role.startswith("critic")}
        rollout_length = 1 + sum(1 for role, _, _, grad, _ in recorder.calls if role == STUDENT and not grad)
        assert critics == {critic_role(rollout_length - 1)}

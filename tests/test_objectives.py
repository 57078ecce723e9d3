import pytest
import torch

from collectionlora import objectives


def test_guidance_is_the_standard_form():
    cond, uncond = torch.tensor([3.0]), torch.tensor([1.0])
    assert objectives.guided(cond, uncond, 5.0).item() == 11
    assert objectives.guided(cond, uncond, 1.0).item() == 3
    assert objectives.guided(cond, uncond, 0.0).item() == 1


def test_the_references_guidance_of_four_is_the_standard_five():
    cond, uncond = torch.randn(3), torch.randn(3)
    torch.testing.assert_close(objectives.guided(cond, uncond, 5.0), cond + 4 * (cond - uncond))


def test_dmd_loss_and_gradient_by_hand():
    x0 = torch.tensor([[1.0, 3.0], [0.0, 0.0]], requires_grad=True)
    x0_teacher = torch.tensor([[0.0, 0.0], [1.0, -3.0]])
    x0_critic = torch.tensor([[2.0, 1.0], [1.0, 1.0]])
    # The mean distances of the two samples are 2 and 2: each is normalised by its own elements.
    gradient = torch.tensor([[1.0, 0.5], [0.0, 2.0]])
    loss = objectives.dmd_loss(x0, x0_critic, x0_teacher)
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * gradient.square().mean().item())
    torch.testing.assert_close(x0.grad, gradient / 4)


def test_dmd_normalises_each_sample_alone():
    x0, x0_teacher = torch.tensor([[10.0], [1.0]]), torch.zeros(2, 1)
    gradient = objectives.dmd_gradient(x0, torch.tensor([[5.0], [0.5]]), x0_teacher)
    assert gradient.flatten().tolist() == [0.5, 0.5]


def test_dmd_gradient_reaches_the_student_alone():
    tensors = [torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(3)]
    objectives.dmd_loss(*tensors).backward()
    assert tensors[0].grad is not None
    assert tensors[1].grad is None
    assert tensors[2].grad is None


def test_dmd_vanishes_where_critic_and_teacher_agree_and_stays_finite_on_the_teacher():
    x0 = torch.randn(2, 3, requires_grad=True)
    same = torch.randn(2, 3)
    assert objectives.dmd_loss(x0, same, same).item() == 0
    assert torch.isfinite(objectives.dmd_loss(x0, x0.detach(), x0.detach()))


def test_flow_matching_loss_by_hand():
    velocity, x0, noise = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 4.0]])
    assert objectives.flow_matching_loss(velocity, x0, noise).item() == pytest.approx((1 + 9) / 2)


def test_velocity_matching_leaves_the_teacher_alone():
    student, teacher = torch.ones(1, 2, requires_grad=True), torch.zeros(1, 2, requires_grad=True)
    loss = objectives.velocity_matching_loss(student, teacher)
    loss.backward()
    assert loss.item() == 1
    assert student.grad.tolist() == [[1.0, 1.0]]
    assert teacher.grad is None

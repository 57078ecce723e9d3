import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from peft.tuners import lora as lora_layers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from collectionlora.adapters.merged import Merged
from collectionlora.adapters.roles import STUDENT, TEACHER, Roles, TeacherLibrary, critic_role
from collectionlora.system.errors import UserError

CRITIC = critic_role(8)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x, segment=None):
        hidden = segment(self.first, x) if segment else self.first(x)
        return self.second(hidden.tanh())


@pytest.fixture
def roles():
    torch.manual_seed(0)
    roles = Roles(Network(), ["first", "second"], {STUDENT: 4, CRITIC: 4, TEACHER: 2})
    for index, role in enumerate([STUDENT, CRITIC]):
        for parameter in roles.parameters(role):
            parameter.data.normal_(generator=torch.Generator().manual_seed(index))
    return roles


def lora(rank, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    return {"first": (draw(rank, 4), draw(8, rank)), "second": (draw(rank, 8), draw(3, rank))}


def test_every_role_starts_as_the_base_and_the_empty_role_is_bit_equal():
    torch.manual_seed(0)
    network = Network()
    x = torch.randn(5, 4)
    before = network(x)
    roles = Roles(network, ["first", "second"], {STUDENT: 4, TEACHER: 2})
    for role in (None, STUDENT, TEACHER):
        with roles.use(role):
            assert torch.equal(network(x), before)


def test_verify_accepts_the_installed_versions_and_leaves_no_trace(roles):
    x = torch.randn(5, 4)
    before = [p.clone() for role in roles.ranks for p in roles.parameters(role)]
    for parameter in roles.parameters(STUDENT):
        parameter.grad = torch.ones_like(parameter)  # of a training before
    roles.verify(lambda: roles.network(x))
    roles.verify(lambda: roles.network(x, roles.checkpoint))
    after = [p for role in roles.ranks for p in roles.parameters(role)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is None for p in after)
    assert not any(p.requires_grad for p in roles.parameters(TEACHER))


def test_verify_refuses_a_switch_that_does_nothing(roles):
    for layer in roles.layers.values():
        layer._active_adapter = []
    with pytest.raises(UserError, match="its own LoRA"):
        roles.verify(lambda: roles.network(torch.ones(1, 4)))


def test_verify_refuses_a_role_that_another_leaks_into(roles):
    x = torch.randn(5, 4)
    roles.layers["second"]._active_adapter = [STUDENT]
    with pytest.raises(UserError, match="bare base"):
        roles.verify(lambda: roles.network(x))
    # A switch that turns gradients off before the backward, as peft's own does.
    roles.layers["second"]._active_adapter = roles._active
    for parameter in roles.parameters(CRITIC):
        parameter.requires_grad_(False)
    with pytest.raises(UserError, match="critic-8 does not depend"):
        roles.verify(lambda: roles.network(x))


@pytest.mark.parametrize("rank", [4, 2])
def test_verify_refuses_blocks_that_are_recomputed_in_another_role(rank):
    torch.manual_seed(0)
    roles = Roles(Network(), ["first", "second"], {STUDENT: 4, CRITIC: rank})
    x = torch.randn(5, 4)
    for parameter in roles.parameters(STUDENT):
        torch.nn.init.normal_(parameter)
    roles.verify(lambda: roles.network(x, roles.checkpoint))
    unaware = partial(checkpoint, use_reentrant=False)
    with pytest.raises(UserError, match=r"blocks of student are recomputed as .*constraints\.txt"):
        roles.verify(lambda: roles.network(x, unaware))


@pytest.mark.parametrize(("active", "idle"), [(STUDENT, CRITIC), (CRITIC, STUDENT)])
def test_gradient_reaches_only_the_role_of_the_forward(roles, active, idle):
    with roles.use(active):
        loss = roles.network(torch.randn(5, 4)).square().mean()
    with roles.use(idle):  # a switch between forward and backward must not move the gradient
        roles.network(torch.randn(5, 4))
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in roles.parameters(active))
    assert all(p.grad is None for p in roles.parameters(idle))
    assert all(p.grad is None for name, p in roles.network.named_parameters() if "base_layer" in name)


def test_checkpointing_recomputes_in_the_role_of_the_forward(roles):
    x = torch.randn(5, 4)

    def gradients(segment):
        roles.network.zero_grad()
        with roles.use(STUDENT):
            loss = roles.network(x, segment).square().mean()
        with roles.use(CRITIC):
            loss.backward()
        return [p.grad.clone() for p in roles.parameters(STUDENT)]

    for plain, checkpointed in zip(gradients(None), gradients(roles.checkpoint), strict=True):
        torch.testing.assert_close(plain, checkpointed)
    assert all(p.grad is None for p in roles.parameters(CRITIC))


class Products(TorchDispatchMode):
    """The dtypes of all matrix products inside the block."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.dtypes |= {arg.dtype for arg in args}
        return func(*args, **(kwargs or {}))


def test_over_a_bfloat16_base_loras_compute_in_bfloat16_from_float32_masters():
    torch.manual_seed(0)
    network = Network().bfloat16()
    plain = copy.deepcopy(network)
    roles = Roles(network, ["first", "second"], {STUDENT: 4, TEACHER: 2}, teacher_dtype=torch.bfloat16)
    for parameter in roles.parameters(STUDENT):
        torch.nn.init.normal_(parameter)
    exact = Roles(copy.deepcopy(plain).float(), ["first", "second"], {STUDENT: 4})
    exact.load(STUDENT, roles.weights(STUDENT))
    x, found, products = torch.randn(2, 5, 4), [], Products()
    for one in (roles, exact):
        with one.use(STUDENT), products if one is roles else nullcontext():
            out = one.network(x.bfloat16() if one is roles else x.bfloat16().float())
        out.square().mean().backward()
        found.append([out, *(p.grad for p in one.parameters(STUDENT))])
    assert products.dtypes == {torch.bfloat16}
    assert found[0][0].dtype == torch.bfloat16
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in roles.parameters(STUDENT))
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).norm() < 0.02 * theirs.norm()
    with roles.use(None):
        assert torch.equal(network(x.bfloat16()), plain(x.bfloat16()))


def test_over_a_float32_base_nothing_of_peft_is_replaced(roles):
    assert {type(layer) for layer in roles.layers.values()} == {lora_layers.Linear}


def test_the_teacher_slot_pads_ranks_and_clears_what_a_teacher_lacks(roles):
    x = torch.randn(5, 4)
    base = {name: (m.base_layer.weight, m.base_layer.bias) for name, m in roles.layers.items()}
    full, partial = lora(2), {"first": lora(1, seed=1)["first"]}
    library = TeacherLibrary(roles, {"full": full, "partial": partial})
    for name, weights in {"full": full, "partial": partial, "again": full}.items():
        with library.use("full" if name == "again" else name):
            out = roles.network(x)
        change = {m: b @ a for m, (a, b) in weights.items()}
        hidden = nn.functional.linear(x, base["first"][0] + change["first"], base["first"][1]).tanh()
        second = base["second"][0] + change.get("second", 0)
        expected = nn.functional.linear(hidden, second, base["second"][1])
        torch.testing.assert_close(out, expected)
    with library.use(None):
        assert torch.equal(roles.network(x), library.roles.network(x))


def test_weights_that_do_not_fit_are_refused(roles):
    with pytest.raises(ValueError, match="holds at most"):
        roles.load(TEACHER, lora(3))
    with pytest.raises(ValueError, match="take a LoRA"):
        roles.load(TEACHER, {"third": lora(2)["first"]})


def test_a_padded_role_can_still_learn_in_its_new_rows(roles):
    roles.load(STUDENT, lora(1))
    with roles.use(STUDENT):
        roles.network(torch.randn(5, 4)).square().mean().backward()
    _, b = (p for p in roles.parameters(STUDENT)[:2])
    assert b.grad[:, 1:].abs().sum() > 0


def test_fused_roles_have_the_same_outputs_and_gradients(roles):
    x = torch.randn(5, 4)

    def outputs_and_gradients():
        with roles.use(STUDENT):
            student = roles.network(x)
            with roles.use(CRITIC):
                critic = roles.network(x)
                with roles.use(None):
                    base = roles.network(x)
            again = roles.network(x)
        loss = student.square().sum() + critic.sum() + again.sum()
        parameters = [*roles.parameters(STUDENT), *roles.parameters(CRITIC)]
        return [student, critic, base, again, *torch.autograd.grad(loss, parameters)]

    expected = outputs_and_gradients()
    roles.fuse = True
    torch.testing.assert_close(outputs_and_gradients(), expected, rtol=1e-4, atol=1e-3)


def test_fused_roles_pass_their_own_proof(roles):
    roles.fuse = True
    roles.verify(lambda: roles.network(torch.ones(5, 4)))


@torch.no_grad()
def test_a_frozen_role_is_the_same_role_fused_and_leaves_the_base_bit_equal(roles):
    x = torch.randn(5, 4)
    base = [p.clone() for p in roles.network.parameters()]
    with roles.use(STUDENT):
        expected = roles.network(x)
    roles.fuse = True
    with roles.frozen(STUDENT):
        assert not torch.equal(roles.network.first.weight, base[0])
        torch.testing.assert_close(roles.network(x), expected)
    with pytest.raises(ZeroDivisionError), roles.frozen(CRITIC):
        1 / 0  # noqa: B018
    assert all(torch.equal(a, b) for a, b in zip(roles.network.parameters(), base, strict=True))


def test_a_fused_role_stays_alone_until_its_block_ends(roles):
    x = torch.randn(2, 4)
    roles.fuse = True
    with roles.frozen(STUDENT):
        fused = roles.network(x)
        with roles.frozen(STUDENT):
            assert torch.equal(roles.network(x), fused)
        assert torch.equal(roles.network(x), fused)
        for enter in (roles.use, roles.frozen):
            with pytest.raises(AssertionError, match="student is in the base's weights"), enter(CRITIC):
                pass


@pytest.mark.parametrize("fuse", [False, True])
def test_a_role_frozen_between_forward_and_backward_changes_no_gradient(roles, fuse):
    x = torch.randn(5, 4)
    roles.fuse = fuse

    def gradients(between):
        with roles.use(STUDENT):
            loss = roles.network(x).square().sum()
        with torch.no_grad(), between:
            roles.network(x)
        return torch.autograd.grad(loss, roles.parameters(STUDENT))

    expected = gradients(nullcontext())
    assert all(torch.equal(a, b) for a, b in zip(gradients(roles.frozen(CRITIC)), expected, strict=True))


def test_a_lora_in_the_weights_is_that_role(roles):
    x = torch.randn(5, 4)
    with roles.use(STUDENT), torch.no_grad():
        expected = roles.network(x)
    torch.manual_seed(0)
    network = Network()
    merged = Merged(network, ["first", "second"], STUDENT, roles.weights(STUDENT))
    with merged.frozen(STUDENT), merged.frozen(STUDENT):
        found = network(x)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad
    with pytest.raises(AssertionError, match="student is in the base's weights"), merged.frozen(CRITIC):
        pass


@pytest.mark.parametrize(
    ("module", "rank", "width", "message"),
    [
        ("third", 2, 4, "are not modules of this base that take a LoRA"),
        ("first", 2, 5, "has shapes"),
        ("first", 2, 1, "has shapes"),
    ],
)
def test_a_lora_that_does_not_fit_is_refused(module, rank, width, message):
    network = Network()
    before = network.first.weight.clone()
    with pytest.raises(ValueError, match=message):
        Merged(
            network, ["first", "second"], STUDENT, {module: (torch.ones(rank, width), torch.ones(8, rank))}
        )
    assert torch.equal(network.first.weight, before)

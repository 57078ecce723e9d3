"""Student, critic and teacher as LoRAs over ONE base network.

The paper calls them generator (student), fake score (critic) and real score (teacher). Choices made here:

- Switching roles costs nothing: all LoRA layers share one list object as their active adapters and the switch
  mutates that list. peft's own `set_adapter` toggles `requires_grad` and, called between a forward and its
  backward, silently drops gradients. The shared list rests on a private attribute of peft, so every
  training proves by `Roles.verify`, before its first step, that switching works with the installed version.
- Over a base small enough to hold its weights twice, a role is instead added into the weights, W + B @ A, and
  that sum stands for W in the modules: one product in place of three, forward and backward.
- The teacher is a slot: effect LoRAs wait, converted, and are copied into the slot's parameters. A module
  that an effect LoRA lacks becomes zero, a smaller rank is padded with zeros. It is never trained: the base's
  dtype is enough for it, while what is trained is float32.
- A change that no small pair holds stands beside the teacher's slot as a matrix of the weight's size, while
  its effect is in the slot. It is not added into the weights of a large base, which would round it away.
- Masters are float32, so that small updates are not rounded away; over a base of another dtype they compute
  in that one. In float32, as peft would, LoRA moves more bytes than the base (docs/performance.md).
- Under gradient checkpointing the recomputation must run in the role of the forward: `Roles.checkpoint`.
"""

import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.utils.checkpoint import CheckpointError, checkpoint

from collectionlora.adapters.low_rank import Whole, add_change, add_whole, apply, as_matrix, change
from collectionlora.system import processes
from collectionlora.system.errors import UserError

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

BASE = None
STUDENT, TEACHER = "student", "teacher"
# Relative error of gradients that are computed twice; of those in a wrong role it is about 1.
MAX_ERROR = 0.1

# module name -> (A [rank, in, ...], B [out, rank, ...]); the weight change is B @ A, the scale baked in.
LoraWeights = Mapping[str, tuple[Tensor, Tensor]]


def critic_role(num_steps: int) -> str:
    """The critic of a student that samples in `num_steps`."""
    return f"critic-{num_steps}"


def target_weights(network: nn.Module, targets: Sequence[str]) -> dict[str, Tensor]:
    """Weights of the modules that carry LoRA, by name, chosen as peft chooses by `target_modules`."""
    whole, endings = set(targets), tuple(f".{target}" for target in targets)
    return {
        name: cast(Tensor, module.weight)
        for name, module in network.named_modules()
        if name in whole or name.endswith(endings)
    }


def refuse_unknown(weights: LoraWeights, known: Container[str]) -> None:
    """Refuse a LoRA with modules that the base does not have.

    Raises:
        ValueError: there are such modules.
    """
    unknown = sorted(name for name in weights if name not in known)
    if unknown:
        text = f"LoRA modules {unknown[:3]} ({len(unknown)} in all)"
        raise ValueError(f"{text} are not modules of this base that take a LoRA")


class InBaseDtype:
    """A linear layer of peft whose active LoRA computes in the dtype of the base.

    Attributes:
        exact: the teacher's whole change `[out, in]`, if its effect has one for this layer.
    """

    exact: Whole | None = None

    def forward(self: Any, x: Tensor) -> Tensor:
        out: Tensor = self.base_layer(x)
        for role in self._active_adapter:
            out = add_change(out, x, (self.lora_A[role].weight, self.lora_B[role].weight))
            if role == TEACHER and self.exact is not None:
                out = add_whole(out, x, self.exact)
        return out


@cache
def in_base_dtype(kind: Any) -> Any:
    """One of peft's classes of layers with that forward in place of its own."""
    return type(f"{kind.__name__}InBaseDtype", (InBaseDtype, kind), {})


class Roles:
    """LoRA roles over one frozen network; exactly one role (or the bare base) is active at a time.

    Args:
        network: the base; its own parameters are frozen here.
        targets: names (suffixes) of the modules that carry LoRA, as peft's `target_modules`.
        ranks: rank of each role, for example `{"student": 32, "critic-8": 32, "teacher": 16}`.
        seed: of the LoRA initialisation (A random, B zero, so that every role starts as the base).
        teacher_dtype: of the teacher slot.
        fuse: add the active LoRA into the weights, for a base small enough to hold them twice.
        exact: linear layers have room for whole changes of the teacher.
    """

    def __init__(
        self,
        network: nn.Module,
        targets: Sequence[str],
        ranks: Mapping[str, int],
        seed: int = 0,
        fuse: bool = False,
        teacher_dtype: torch.dtype = torch.float32,
        exact: bool = False,
    ):
        # Imported here: peft takes seconds, and reading a LoRA's file needs none of it.
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        self.network = network.requires_grad_(False)
        self._active: list[str] = []
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # Several adapters over one network are the point here; peft warns of them.
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            torch.manual_seed(seed)
            for name, rank in ranks.items():
                config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets))
                inject_adapter_in_model(config, network, adapter_name=name)
        self.layers = {name: m for name, m in network.named_modules() if isinstance(m, LoraLayer)}
        for layer in self.layers.values():
            layer._active_adapter = self._active
            base = layer.get_base_layer()
            if isinstance(base, nn.Linear) and (exact or base.weight.dtype != torch.float32):
                # A class of its own: what compiles a network takes the forwards of like layers for one.
                kind: Any = type(layer)
                layer.__class__ = in_base_dtype(kind)
        for name in ranks:
            for parameter in self.parameters(name):
                parameter.data = parameter.data.to(teacher_dtype if name == TEACHER else torch.float32)
                parameter.requires_grad_(name != TEACHER)
        self.ranks, self.fuse = dict(ranks), fuse
        self._fused: str | None = BASE  # the role that is in the base's weights now

    def use(self, role: str | None) -> AbstractContextManager[None]:
        """Run the network in a role inside the block; `None` is the bare base."""
        assert self._fused is BASE, f"{self._fused} is in the base's weights"
        if self.fuse:
            return self._weights_in_place([] if role is BASE else self._merged(role))
        return self._activated(role)

    @contextmanager
    def frozen(self, role: str | None) -> Iterator[None]:
        """`use` for forwards that need no gradient.

        Inside its own block it does nothing, so that a trajectory is fused once.
        """
        if self._fused is not BASE:
            assert role == self._fused, f"{self._fused} is in the base's weights, not {role}"
            with torch.no_grad():
                yield
            return
        with torch.no_grad():
            block = self.use(role)
        with block:
            self._fused = role if self.fuse else BASE
            try:
                yield
            finally:
                self._fused = BASE

    @contextmanager
    def _activated(self, role: str | None) -> Iterator[None]:
        before = list(self._active)
        self._active[:] = [] if role is BASE else [role]
        try:
            yield
        finally:
            self._active[:] = before

    def _merged(self, role: str) -> list[Tensor]:
        """The weight of every layer with the role's LoRA in it, in the dtype of the base."""
        return [self._merged_weight(layer, role) for layer in self.layers.values()]

    def _merged_weight(self, layer: "LoraLayer", role: str) -> Tensor:
        weight = cast(Tensor, layer.get_base_layer()._parameters["weight"])  # not what hides it
        a, b = (factor.to(weight.dtype) for factor in self._pair(layer, role))
        pair = change((a, b)).view_as(weight)
        if role == TEACHER and isinstance(layer, InBaseDtype) and layer.exact is not None:
            both = pair.double() + as_matrix(layer.exact)
            return (weight + both).to(weight.dtype)  # rounded once
        return weight + pair

    @contextmanager
    def _weights_in_place(self, weights: Sequence[Tensor]) -> Iterator[None]:
        """Let `weights` stand for the layers' own inside the block; none for the layers' own.

        An attribute of the instance hides the parameter of the same name, which stays untouched.
        """
        attributes = [vars(layer.get_base_layer()) for layer in self.layers.values()]
        before = [values.pop("weight", None) for values in attributes]
        for values, weight in zip(attributes, weights, strict=False):
            values["weight"] = weight
        try:
            yield
        finally:
            for values, weight in zip(attributes, before, strict=True):
                values.pop("weight", None)
                if weight is not None:
                    values["weight"] = weight

    def checkpoint(self, module: nn.Module | Callable[..., Any], *args: Any) -> Any:
        """Gradient checkpointing whose recomputation runs in the role that was active in the forward."""
        role = self._active[0] if self._active else None
        return checkpoint(
            module, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), self.use(role))
        )

    def parameters(self, role: str) -> list[nn.Parameter]:
        """A and B of every layer, in the order of the network's modules."""
        return [p for layer in self.layers.values() for p in self._pair(layer, role)]

    @staticmethod
    def _pair(layer: "LoraLayer", role: str) -> tuple[nn.Parameter, nn.Parameter]:
        return layer.lora_A[role].weight, layer.lora_B[role].weight

    def weights(self, role: str) -> LoraWeights:
        """A detached, whole copy of a role's LoRA, module by module."""
        parameters = self.parameters(role)
        return self.as_weights([processes.whole(parameter.detach()).clone() for parameter in parameters])

    def as_weights(self, tensors: Sequence[Tensor]) -> LoraWeights:
        """Tensors in the order of `parameters`, module by module."""
        return dict(zip(self.layers, zip(tensors[0::2], tensors[1::2], strict=True), strict=True))

    @torch.no_grad()
    def load(self, role: str, weights: LoraWeights) -> None:
        """Copy LoRA weights into a role; missing modules become zero, smaller ranks are zero-padded.

        Raises:
            ValueError: a module is not a target here, a shape does not fit, or the rank is too large.
        """
        refuse_unknown(weights, self.layers)
        for name, layer in self.layers.items():
            a, b = self._pair(layer, role)
            if name not in weights:
                b.zero_()
                continue
            new_a, new_b = weights[name]
            rank = new_a.shape[0]
            if rank > a.shape[0] or new_a.shape[1:] != a.shape[1:] or new_b.shape[0] != b.shape[0]:
                raise ValueError(
                    f"LoRA module {name} has shapes {tuple(new_a.shape)}, {tuple(new_b.shape)}; "
                    f"the {role} slot holds at most {tuple(a.shape)}, {tuple(b.shape)}"
                )
            whole_a, whole_b = processes.whole(a), processes.whole(b)
            # Rows of A beyond the new rank keep their values, so that a padded role can still learn.
            whole_a[:rank].copy_(new_a)
            whole_b.zero_()
            whole_b[:, :rank].copy_(new_b)
            if whole_a is not a:
                a.copy_(processes.shard_like(whole_a, a))
                b.copy_(processes.shard_like(whole_b, b))

    def load_exact(self, changes: Mapping[str, Whole]) -> None:
        """Let whole changes `[out, in]`, by module, be the teacher's; those from before are freed first.

        Raises:
            ValueError: a module is not a linear target here, or there is no room for whole changes.
        """
        layers = {name: layer for name, layer in self.layers.items() if isinstance(layer, InBaseDtype)}
        unknown = sorted(set(changes) - set(layers))
        if unknown:
            raise ValueError(f"no whole change fits {unknown[:3]} ({len(unknown)} in all)")
        for layer in layers.values():
            layer.exact = None
        for name in changes:
            slot = self._pair(cast("LoraLayer", layers[name]), TEACHER)[0]
            # A copy, for a file that is mapped may go.
            copy = partial(Tensor.to, device=slot.device, dtype=slot.dtype, copy=True)
            layers[name].exact = cast(Whole, apply(copy, changes[name]))

    def verify(self, forward: Callable[[], Tensor]) -> None:
        """Prove that a role's output and its gradients are its own; changes no weight and leaves no gradient.

        Every role runs forward once, and backward while another is active, as in a step. The first does it
        again with no other active: a block that is recomputed with another role's LoRA gives gradients of the
        right shapes and wrong values, which nothing else would show.

        Args:
            forward: runs the network on any input, always the same, with gradient; returns its output.

        Raises:
            UserError: switching does not work with the installed peft and torch.
        """
        for role in self.ranks:
            for parameter in self.parameters(role):
                parameter.grad = None  # of an earlier training over the same roles
        with self.use(BASE):
            if forward().requires_grad:
                raise _broken("the bare base reads a LoRA")
        first, *others = self.ranks
        teacher = self.parameters(TEACHER) if TEACHER in others else []
        for parameter in teacher:
            parameter.requires_grad_()
        try:
            crossed = self._own_gradients(first, forward, backward_in=others[-1] if others else BASE)
            plain = self._own_gradients(first, forward, backward_in=first)
            for other in others:
                self._own_gradients(other, forward, backward_in=first)
        finally:
            for parameter in teacher:
                parameter.requires_grad_(False)
        error = [a - b for a, b in zip(crossed, plain, strict=True)]
        if total_norm(error) > MAX_ERROR * total_norm(plain):
            raise _broken(f"blocks of {first} are recomputed as another role")

    def _own_gradients(
        self, role: str, forward: Callable[[], Tensor], backward_in: str | None
    ) -> list[Tensor]:
        """The gradients of one forward, which must be of this role's parameters alone."""
        with self.use(role):
            out = forward()
        if out.requires_grad:
            with self.use(backward_in):
                try:
                    out.square().mean().backward()
                except CheckpointError as error:  # where the ranks of the two roles differ
                    raise _broken(f"blocks of {role} are recomputed as {backward_in}") from error
        found = {}
        for name in self.ranks:
            parameters = self.parameters(name)
            found[name] = [p.grad for p in parameters if p.grad is not None]
            for parameter in parameters:
                parameter.grad = None
        own = found.pop(role)
        if any(found.values()) or not total_norm(own) > 0:
            raise _broken(f"the output of {role} does not depend on its own LoRA, or on another too")
        return own


def total_norm(tensors: Sequence[Tensor]) -> float:
    """The norm of tensors as one vector, whole or in shards."""
    return float(processes.whole(get_total_norm(tensors)))


def _broken(fault: str) -> UserError:
    message = f"roles do not work with the installed versions: {fault}"
    return UserError("environment", "peft, torch", message, "install those of constraints.txt")


class TeacherLibrary:
    """Effect LoRAs, and the slot of `Roles` that holds one of them at a time.

    Args:
        exact: by effect, then by module: changes `[out, in]` that are kept whole.
    """

    def __init__(
        self,
        roles: Roles,
        teachers: Mapping[str, LoraWeights],
        exact: Mapping[str, Mapping[str, Whole]] | None = None,
    ):
        self.roles = roles
        self.teachers, self.exact = dict(teachers), dict(exact or {})
        self._loaded: str | None = None

    @contextmanager
    def use(self, effect: str | None) -> Iterator[None]:
        """Run the network, without gradient, as the teacher of `effect`; `None` is the bare base."""
        if effect is not None and effect != self._loaded:
            self.roles.load(TEACHER, self.teachers[effect])
            self.roles.load_exact(self.exact.get(effect, {}))
            self._loaded = effect
        with self.roles.frozen(BASE if effect is None else TEACHER):
            yield

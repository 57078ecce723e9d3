"""Student, critic and teacher as LoRAs over ONE base network.

The paper calls them generator (student), fake score (critic) and real score (teacher). Choices made here:

- Switching roles costs nothing: all LoRA layers share one list object as their active adapters and the switch
  mutates that list. peft's own `set_adapter` toggles `requires_grad` and, called between a forward and its
  backward, silently drops gradients. The shared list rests on a private attribute of peft, so
  `Roles.verify` proves at start-up that switching works with the installed version.
- The teacher is a slot: effect LoRAs wait in memory, converted, and are copied into the slot's parameters.
  A module that an effect LoRA lacks becomes zero, a smaller rank is padded with zeros.
- Under gradient checkpointing the recomputation must run in the role of the forward: `Roles.checkpoint`.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

BASE = None
STUDENT, TEACHER = "student", "teacher"

# module name -> (A [rank, in, ...], B [out, rank, ...]); the weight change is B @ A, the scale baked in.
LoraWeights = dict[str, tuple[Tensor, Tensor]]


def critic_role(num_steps: int) -> str:
    """The critic of a student that samples in `num_steps`."""
    return f"critic-{num_steps}"


def target_weights(network: nn.Module, targets: Sequence[str]) -> dict[str, Tensor]:
    """Weights of the modules that carry LoRA, by name, chosen as peft chooses by `target_modules`."""
    return {
        name: cast(Tensor, module.weight)
        for name, module in network.named_modules()
        if name in targets or name.endswith(tuple(f".{target}" for target in targets))
    }


class Roles:
    """LoRA roles over one frozen network; exactly one role (or the bare base) is active at a time.

    Args:
        network: the base; its own parameters are frozen here.
        targets: names (suffixes) of the modules that carry LoRA, as peft's `target_modules`.
        ranks: rank of each role, for example `{"student": 32, "critic-8": 32, "teacher": 16}`.
        seed: of the LoRA initialisation (A random, B zero, so that every role starts as the base).
        fuse: let `frozen` add the LoRA into the weights, for a base small enough to hold them twice.
    """

    def __init__(
        self,
        network: nn.Module,
        targets: Sequence[str],
        ranks: Mapping[str, int],
        seed: int = 0,
        fuse: bool = False,
    ):
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
        for name in ranks:
            for parameter in self.parameters(name):
                # Master weights: over a bfloat16 base too, small updates must not be rounded away.
                parameter.data = parameter.data.float()
                parameter.requires_grad_(name != TEACHER)
        self.ranks, self.fuse = dict(ranks), fuse

    @contextmanager
    def use(self, role: str | None) -> Iterator[None]:
        """Run the network in a role inside the block; `None` is the bare base."""
        before = list(self._active)
        self._active[:] = [] if role is None else [role]
        try:
            yield
        finally:
            self._active[:] = before

    @contextmanager
    def frozen(self, role: str | None) -> Iterator[None]:
        """`use` for forwards that need no gradient; fused, they cost as much as the bare base's.

        The base's own weights are put back untouched: subtracting what was added would round.
        """
        if role is BASE or not self.fuse:
            with self.use(role):
                yield
            return
        weights = [cast(nn.Parameter, layer.get_base_layer().weight) for layer in self.layers.values()]
        kept = [weight.data for weight in weights]
        try:
            for weight, layer in zip(weights, self.layers.values(), strict=True):
                weight.data = weight.data + cast(Tensor, layer.get_delta_weight(role))
            with self.use(BASE):
                yield
        finally:
            for weight, own in zip(weights, kept, strict=True):
                weight.data = own

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
    def _pair(layer: LoraLayer, role: str) -> tuple[nn.Parameter, nn.Parameter]:
        return layer.lora_A[role].weight, layer.lora_B[role].weight

    def weights(self, role: str) -> LoraWeights:
        """A detached copy of a role's LoRA, module by module."""
        copies = {}
        for name, layer in self.layers.items():
            a, b = self._pair(layer, role)
            copies[name] = (a.detach().clone(), b.detach().clone())
        return copies

    @torch.no_grad()
    def load(self, role: str, weights: LoraWeights) -> None:
        """Copy LoRA weights into a role; missing modules become zero, smaller ranks are zero-padded.

        Raises:
            ValueError: a module is not a target here, a shape does not fit, or the rank is too large.
        """
        unknown = sorted(set(weights) - set(self.layers))
        if unknown:
            raise ValueError(
                f"LoRA modules {unknown[:3]} ({len(unknown)} in all) are not targets of this base"
            )
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
            a[:rank].copy_(new_a)
            # Rows of A beyond the new rank keep their values, so that a padded role can still learn.
            b.zero_()
            b[:, :rank].copy_(new_b)

    @torch.no_grad()
    def verify(self, forward: Callable[[], Tensor]) -> None:
        """Prove that switching works with this version of peft: roles differ, the empty role is the base.

        Args:
            forward: runs the network once on any fixed input and returns its output.

        Raises:
            RuntimeError: the installed peft no longer honours the shared list of active adapters.
        """
        saved = {role: self.weights(role) for role in self.ranks}
        with self.use(BASE):
            base = forward()
        outputs = {}
        for index, role in enumerate(self.ranks):
            for parameter in self.parameters(role):
                parameter.fill_(0.01 * (index + 1))
            with self.use(role):
                outputs[role] = forward()
        with self.use(BASE):
            unchanged = torch.equal(base, forward())
        distinct = all(not torch.equal(a, base) for a in outputs.values()) and len(
            {float(o.double().sum()) for o in outputs.values()}
        ) == len(outputs)
        for role, weights in saved.items():
            self.load(role, weights)
        if not (unchanged and distinct):
            raise RuntimeError(
                "switching LoRA roles does not work with the installed peft; see constraints.txt"
            )


class TeacherLibrary:
    """Effect LoRAs in memory, and the slot of `Roles` that holds one of them at a time."""

    def __init__(self, roles: Roles, teachers: Mapping[str, LoraWeights]):
        self.roles = roles
        self.teachers = dict(teachers)
        self._loaded: str | None = None

    @contextmanager
    def use(self, effect: str | None) -> Iterator[None]:
        """Run the network, without gradient, as the teacher of `effect`; `None` is the bare base."""
        if effect is not None and effect != self._loaded:
            self.roles.load(TEACHER, self.teachers[effect])
            self._loaded = effect
        with self.roles.frozen(BASE if effect is None else TEACHER):
            yield

"""What a distillation needs, before anything is loaded: parameters, bytes, forwards; which devices it fits.

The weights are counted. Activations are not estimated by a formula of their own: the real student and critic
updates run over a network on the meta device, which has shapes and no memory, and every tensor that they make
is tallied. Memory grows by the same amount with each further like block, so that two shallow networks tell
the deep one (docs/planning.md).
"""

import math
from typing import Any

from torch import Tensor, nn

from collectionlora.adapters.roles import STUDENT, TEACHER, target_weights
from collectionlora.backbones import family_of
from collectionlora.backbones.base import Backbone
from collectionlora.backbones.quantization import block_layers
from collectionlora.config import ModelSettings, Settings
from collectionlora.effectbench.running import DEFAULT_CROPS
from collectionlora.planning.forwards import count_forwards
from collectionlora.planning.peaks import Peaks, step_of, vae_bytes, working_sizes
from collectionlora.planning.rows import Held, Sizes, device_bytes, plan_verbs, step_bytes
from collectionlora.planning.timing import estimate_encoding, estimate_forward
from collectionlora.planning.workload import Workload
from collectionlora.runs.general_items import SHARD, reads_answers
from collectionlora.runs.growing import growing_settings
from collectionlora.system.errors import UserError

GIB = 2**30
# Name -> memory in GiB, of which a share and a part are kept for the CUDA context and fragmentation.
DEVICES = {
    "RTX 4090 24 GB": 24,
    "RTX 5090 32 GB": 32,
    "L40S/A6000 48 GB": 48,
    "A100/H100 80 GB": 80,
    "H200 141 GB": 140,
}
RESERVED_SHARE, RESERVED_GIB = 0.04, 1.0
WHOLE_BYTES = {"float32": 4.0, "bfloat16": 2.0}
# Packed weight, and its scales: nf4 a byte for 64 weights and a float for 256 of those; int8 a float a row.
PACKED_BYTES = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}
# Both moments of a number: floats, or bytes with a float for 256 of them.
MOMENT_BYTES = {"float32": 8.0, "8bit": 2 * (1 + 4 / 256)}


def base_bytes(network: nn.Module, settings: Settings) -> int:
    """Bytes of the frozen base; quantised are the blocks' linear layers."""
    whole = WHOLE_BYTES[settings.model.dtype]
    total = whole * sum(p.numel() for p in network.parameters())
    kind = settings.model.quantization
    if kind != "none":
        for layer in block_layers(network).values():
            scales = 4 * layer.out_features if kind == "int8" else 0
            total += layer.weight.numel() * (PACKED_BYTES[kind] - whole) + scales
    return round(total)


def gathered_bytes(network: nn.Module, weights: int, gradient: int) -> int:
    """What sharding makes whole at a time, in bytes.

    The running block and the next one; in backward a block's gradient twice, as it comes and as it is sent.

    Args:
        weights: bytes of all that is gathered: base, student and critics.
        gradient: bytes of the largest role's.
    """
    stacks = (m for m in network.children() if isinstance(m, nn.ModuleList))
    largest = max(sum(p.numel() for p in block.parameters()) for stack in stacks for block in stack)
    return 2 * round((weights + gradient) * largest / sum(p.numel() for p in network.parameters()))


def check(workload: Workload, backbone: Backbone) -> None:
    """Refuse what no run could be.

    Raises:
        UserError: the resolution does not fit the base, devices do not lie equally on the hosts, or there is
            nothing to share.
    """
    side, multiple = workload.settings.data.resolution, backbone.side_multiple
    if side % multiple:
        hint = f"write a multiple of {multiple}"
        raise UserError("--set", "data.resolution", f"{side} does not fit the base", hint)
    if workload.devices % workload.hosts:
        message = f"{workload.devices} do not lie equally on {workload.hosts} hosts"
        raise UserError("--devices", "", message, "give a multiple of --hosts")
    if workload.sharding == "fsdp" and not family_of(workload.base).block_stacks(workload.base):
        raise UserError("--sharding", "fsdp", "the nano base cannot be sharded", "leave it out")
    if workload.sharding == "fsdp" and workload.settings.model.quantization != "none":
        raise UserError("--sharding", "fsdp", "packed weights are not sharded", "use ddp or no quantization")


def cache_bytes(workload: Workload, backbone: Backbone) -> tuple[int, int]:
    """Latents and encoded prompts in float32: bytes on disk, and in the memory of a process.

    A photo of an effect has three texts, one of the general stream has two. Of the general stream a process
    holds the shard that it makes, twice while it is put together, and later what it draws.
    """
    shapes, targets = backbone.shapes(working_sizes(workload, backbone)[0]), workload.settings.targets
    prompt = 4 * math.prod(shapes.tokens) + 4 * (shapes.pooled or 0) + shapes.tokens[0]
    latents, photos = 4 * math.prod(shapes.latents), sum(workload.all_photos())
    texts = 3 * (photos if backbone.prompts_see_photos else workload.effects)
    effects = (2 + targets.samples) * photos * latents + texts * prompt
    runs = workload.settings, growing_settings(workload.settings)
    answered = any(map(reads_answers, runs))
    item = (1 + answered) * latents + (2 if backbone.prompts_see_photos else 1) * prompt
    # Two beside the photo, the student's and the empty one, and two beside the picture, for the teacher.
    composition = 2 * latents + (4 if backbone.prompts_see_photos else 1) * prompt
    others = effects + max(map(workload.count_compositions, runs)) * composition
    return others + targets.general * item, others + 2 * min(targets.general, SHARD) * item


def case_bytes(workload: Workload, backbone: Backbone) -> int:
    """A process' share of a bench's prompts, for teacher and student, in the base's dtype."""
    effects = -(-workload.effects // workload.devices)
    tokens = math.prod(backbone.shapes(working_sizes(workload, backbone)[0]).tokens)
    pictures = effects * (DEFAULT_CROPS if backbone.prompts_see_photos else 1)
    return 2 * pictures * round(WHOLE_BYTES[workload.settings.model.dtype] * tokens)


def fits(size: int, device: str) -> bool:
    """Whether bytes fit a device, with room for the CUDA context and fragmentation."""
    return size <= (DEVICES[device] * (1 - RESERVED_SHARE) - RESERVED_GIB) * GIB


def encoder_bytes(base: str, model: ModelSettings) -> tuple[int, int]:
    """The text encoders as a device holds them, and before they are packed; 0 where nothing is known."""
    size, whole = family_of(base).encoder_size(base), WHOLE_BYTES[model.dtype]
    if size is None:
        return 0, 0
    saved = whole - PACKED_BYTES.get(model.quantization, whole)
    return round(size.parameters * whole - size.packed * saved), round(size.parameters * whole)


def count_ends(weight: Tensor) -> int:
    """Inputs and outputs of a layer: the numbers of its LoRA of rank 1."""
    return len(weight) + weight[0].numel()


def count_sizes(workload: Workload, backbone: Backbone, step: Workload) -> Sizes:
    """Everything that memory is made of."""
    settings, ranks, distill = workload.settings, workload.ranks(), workload.settings.distill
    network, targets = backbone.network, backbone.lora_targets
    weights = list(target_weights(network, targets).values())
    ends = sum(map(count_ends, weights))
    whole = WHOLE_BYTES[settings.model.dtype]
    loras = {role: 4 * rank * ends for role, rank in ranks.items()}
    trained = sum(size for role, size in loras.items() if role != TEACHER)
    teachers = workload.all_teachers(ends)
    # Beside the slot lie the whole changes of the effect that is in it; on disk those of all.
    exact = max(teacher.exact for teacher in teachers)
    loras[TEACHER] = round(whole * (ranks[TEACHER] * ends + exact))
    judged = workload.bench_ranks()
    # With quantisation one layer at a time is unpacked.
    packed = settings.model.quantization != "none"
    unpacked = round(whole * max(w.numel() for w in weights)) if packed else 0
    vae, picture = vae_bytes(step)
    encoders, whole_encoders = encoder_bytes(workload.base, settings.model)
    cache, data = cache_bytes(workload, backbone)
    return Sizes(
        base=base_bytes(network, settings),
        whole_base=round(whole * sum(p.numel() for p in network.parameters())),
        encoders=encoders,
        whole_encoders=whole_encoders,
        loras=loras,
        judged={
            STUDENT: 4 * ends * judged[STUDENT],
            TEACHER: round(whole * (ends * judged[TEACHER] + exact)),
        },
        one_rank=4 * ends,
        moments=round(MOMENT_BYTES[distill.moments] * trained / 4),
        average=loras[STUDENT],
        average_on_host=distill.ema_on_host and workload.sharding == "ddp",
        peaks=Peaks(step, unpacked),
        # The change and the sum; both factors as the base's numbers.
        merging=round(whole * max(2 * w.numel() + ranks[STUDENT] * count_ends(w) for w in weights)),
        vae=vae,
        picture=picture,
        cache=cache,
        data=data,
        cases=case_bytes(workload, backbone),
        teachers=round(whole * sum(teacher.pairs + teacher.exact for teacher in teachers)),
    )


def count_held(workload: Workload, sizes: Sizes, backbone: Backbone) -> Held:
    """What each of several devices holds of all weights; the teacher slot is whole on each."""
    gathered = start = 0
    if workload.sharding == "fsdp":
        gathered = gathered_bytes(backbone.network, sizes.base + sizes.trained, sizes.gradient)
        start = sizes.base + sum(sizes.loras.values())
    devices = workload.devices if workload.sharding == "fsdp" else 1
    shared, slot = sizes.base + sizes.trained + sizes.optimizer, sizes.loras[TEACHER]
    weights, between = (-(-size // devices) + slot + gathered for size in (shared, shared - sizes.gradient))
    return Held(weights, between, gathered, start)


def weigh(workload: Workload, step: Workload | None = None) -> tuple[Backbone, Sizes, Held]:
    """The base without weights, and all bytes that the rows of a plan are made of; arguments as of `plan`."""
    backbone = family_of(workload.base).without_weights(workload.base, workload.settings.model, {})
    check(workload, backbone)
    sizes = count_sizes(workload, backbone, step or step_of(workload))
    return backbone, sizes, count_held(workload, sizes, backbone)


def plan_device(workload: Workload, verb: str) -> int:
    """Bytes of one device while `verb` runs, as `plan` has them, and no more tallied than they need.

    Raises:
        UserError: as `plan`.
    """
    _, sizes, held = weigh(workload)
    return device_bytes(verb, workload, sizes, held)


def plan(
    workload: Workload, step: Workload | None = None, seconds_per_forward: float | None = None
) -> dict[str, Any]:
    """All numbers of a workload; sizes in bytes, `fits` by device, `verbs` as `rows.plan_verbs` gives them.

    Args:
        step: a workload whose step makes at least the tensors of this one's, if that one is tallied already.
        seconds_per_forward: of one image of `data.resolution`, without guidance; by default an estimate.

    Raises:
        UserError: no such base, or numbers that do not fit it.
    """
    settings, distill = workload.settings, workload.settings.distill
    backbone, sizes, held = weigh(workload, step)
    seconds, clock = estimate_forward(workload, backbone)
    if seconds_per_forward is not None:
        seconds, clock = seconds_per_forward, "your GPU, as given"
    encoding = estimate_encoding(workload, backbone, sizes.whole_encoders / WHOLE_BYTES[settings.model.dtype])
    verbs = plan_verbs(workload, sizes, held, seconds, encoding)
    total = step_bytes(sizes, held)
    forwards, backwards = count_forwards(settings)
    return {
        "base_parameters": sum(p.numel() for p in backbone.network.parameters()),
        "base_bytes": sizes.base,
        "lora_modules": len(target_weights(backbone.network, backbone.lora_targets)),
        "lora_parameters": sizes.loras[STUDENT] // 4,
        "lora_bytes": sum(sizes.loras.values()),
        "optimizer_bytes": sizes.optimizer,
        "activation_bytes": sizes.peaks.activations,
        "gathered_bytes": held.gathered,
        "total_bytes_per_device": total,
        "start_bytes": held.start,
        "encoding_bytes": sizes.encoders,
        "reference_layout_bytes": total + 2 * sizes.base,
        "forwards_per_student_update": forwards,
        "backwards_per_student_update": backwards,
        "images_per_student_update": distill.batch_size * distill.accumulate * workload.devices,
        "teacher_library_bytes": sizes.teachers,
        "cache_bytes": sizes.cache,
        "adapter_bytes": sizes.loras[STUDENT] // 2,
        "fits": {device: fits(verbs["distill"]["device_bytes"], device) for device in DEVICES},
        "seconds_per_forward": seconds,
        "clock": clock,
        "verbs": verbs,
    }

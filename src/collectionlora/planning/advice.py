"""What to change when a plan does not fit."""

from dataclasses import replace
from typing import Any

from collectionlora.config import Settings, parse_overrides, resolve
from collectionlora.planning.peaks import step_of
from collectionlora.planning.plan import DEVICES, MOMENT_BYTES, PACKED_BYTES, WHOLE_BYTES, fits, weigh
from collectionlora.planning.rows import device_bytes, step_bytes
from collectionlora.planning.workload import Workload

OF_ONE_DEVICE = ("quantization", "ema_on_host", "moments")  # shards have none of these
CHANGES = (
    ["model.gradient_checkpointing=true"],
    ["distill.batch_size=1"],
    ["model.dtype=bfloat16"],
    ["distill.ema_on_host=true"],
    ["distill.moments=8bit"],
    ["student.rank=64", "critic.rank=64"],
    ["student.rank=32", "critic.rank=32"],
    ["model.quantization=int8"],
    ["model.quantization=nf4"],
    ["data.resolution=768"],
    ["data.resolution=512"],
    ["student.rank=16", "critic.rank=16"],
)


def advise(workload: Workload) -> list[dict[str, Any]]:
    """What to change, in this order and together, until the smallest device is large enough.

    What costs time alone comes first, then capacity, precision, and the size of the images.

    Returns:
        `[{"change", "total_bytes_per_device", "fits": [DEVICE]}]`; empty if everything fits now.
    """
    advice: list[dict[str, Any]] = []
    step = step_of(workload)
    _, fitting = weigh_distillation(workload, step)
    for change in CHANGES:
        settings = resolve(workload.settings.model_dump(), parse_overrides(change))
        sharded = workload.sharding == "fsdp" and any(word in change[0] for word in OF_ONE_DEVICE)
        if len(fitting) == len(DEVICES) or sharded or not is_smaller(settings, workload.settings):
            continue
        workload = replace(workload, settings=settings)
        # Smaller ranks and packed weights make nothing larger: no need to tally again.
        if not any(word in change[0] for word in ("rank", *OF_ONE_DEVICE)):
            step = step_of(workload)
        total, fitting = weigh_distillation(workload, step)
        flags = " ".join(f"--set {assignment}" for assignment in change)
        advice.append({"change": flags, "total_bytes_per_device": total, "fits": fitting})
    return advice


def weigh_distillation(workload: Workload, step: Workload) -> tuple[int, list[str]]:
    """Bytes of a device in a step, and the devices that all of a distillation fits."""
    _, sizes, held = weigh(workload, step)
    needed = device_bytes("distill", workload, sizes, held)
    return step_bytes(sizes, held), [device for device in DEVICES if fits(needed, device)]


def is_smaller(new: Settings, old: Settings) -> bool:
    """Whether a change is one, and goes towards less memory."""

    def sizes(settings: Settings) -> tuple[float, ...]:
        model = settings.model
        bytes_each = PACKED_BYTES.get(model.quantization, WHOLE_BYTES[model.dtype])
        ranks, batch = (settings.student.rank, settings.critic.rank), settings.distill.batch_size
        held = MOMENT_BYTES[settings.distill.moments], not settings.distill.ema_on_host
        sizes = bytes_each, not model.gradient_checkpointing, *held
        return (*ranks, batch, settings.data.resolution, *sizes)

    return new != old and all(a <= b for a, b in zip(sizes(new), sizes(old), strict=True))

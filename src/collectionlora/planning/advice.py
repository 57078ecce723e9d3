"""What to change when a plan does not fit."""

from dataclasses import replace
from typing import Any

from collectionlora.config import Settings, parse_overrides, resolve
from collectionlora.planning.plan import PACKED_BYTES, WHOLE_BYTES, Workload, plan, step_of

CHANGES = (
    ["model.gradient_checkpointing=true"],
    ["distill.batch_size=1"],
    ["model.dtype=bfloat16"],
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
    fitting = plan(workload, step)["fits"]
    for change in CHANGES:
        settings = resolve(workload.settings.model_dump(), parse_overrides(change))
        sharded = workload.sharding == "fsdp" and settings.model.quantization != "none"
        if all(fitting.values()) or sharded or not is_smaller(settings, workload.settings):
            continue
        workload = replace(workload, settings=settings)
        # Smaller ranks and packed weights make nothing larger: no need to tally again.
        if not any(word in change[0] for word in ("rank", "quantization")):
            step = step_of(workload)
        planned = plan(workload, step)
        fitting, total = planned["fits"], planned["total_bytes_per_device"]
        flags = " ".join(f"--set {assignment}" for assignment in change)
        names = [device for device, enough in fitting.items() if enough]
        advice.append({"change": flags, "total_bytes_per_device": total, "fits": names})
    return advice


def is_smaller(new: Settings, old: Settings) -> bool:
    """Whether a change is one, and goes towards less memory."""

    def sizes(settings: Settings) -> tuple[float, ...]:
        model = settings.model
        bytes_each = PACKED_BYTES.get(model.quantization, WHOLE_BYTES[model.dtype])
        ranks, batch = (settings.student.rank, settings.critic.rank), settings.distill.batch_size
        return (*ranks, batch, settings.data.resolution, bytes_each, not model.gradient_checkpointing)

    return new != old and all(a <= b for a, b in zip(sizes(new), sizes(old), strict=True))

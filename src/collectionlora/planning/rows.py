"""What each verb needs: bytes of a device, of a process and of the machine, of disk, and seconds."""

from dataclasses import dataclass
from typing import Any

from collectionlora.adapters.roles import STUDENT, TEACHER
from collectionlora.config import Settings
from collectionlora.planning.workload import Workload

VERBS = ("teach", "prompts", "targets", "distill", "bench", "add", "edit", "studio")
BENCH_PHOTOS, BENCH_METHODS = 24, 2  # of each effect by default: the teacher's and the student's pictures
BACKWARD = 2  # forwards that a backward takes as long as; one more where blocks are recomputed
PROCESS_BYTES = 2 * 2**30  # Python, torch and what they import; a guess


@dataclass(frozen=True)
class Sizes:
    """Bytes of everything that memory is made of.

    Attributes:
        base: of the frozen network on a device; `whole_base` while it is read, before it is packed.
        encoders: of the text encoders; 0 where they are not known.
        loras: by role, as they are held.
        one_rank: of a LoRA of rank 1 in float32.
        moments: of the optimizers of student and critics.
        average: of the student's moving average; on the host if `average_on_host`.
        activations: the most in a step beyond weights, gradients and moments.
        sampling: workspace of the samplers.
        teaching: as `activations`, of `teach`.
        vae: weights of the VAE; `picture` what it makes while it encodes or decodes one photo.
        cache: on disk, of latents and encoded prompts; `data` what a process holds of them.
        teachers: of all converted teachers.
    """

    base: int
    whole_base: int
    encoders: int
    loras: dict[str, int]
    one_rank: int
    moments: int
    average: int
    average_on_host: bool
    activations: int
    sampling: int
    teaching: int
    vae: int
    picture: int
    cache: int
    data: int
    teachers: int

    @property
    def trained(self) -> int:
        """Student and critics."""
        return sum(size for role, size in self.loras.items() if role != TEACHER)

    @property
    def gradient(self) -> int:
        """The largest role's: one at a time has gradients."""
        return max(size for role, size in self.loras.items() if role != TEACHER)

    @property
    def optimizer(self) -> int:
        """Gradients, moments and moving average on the device."""
        return self.gradient + self.moments + (0 if self.average_on_host else self.average)


def plan_verbs(
    workload: Workload, sizes: Sizes, step: int, held: int, seconds_per_forward: float
) -> dict[str, dict[str, Any]]:
    """By verb `device_bytes`, `host_bytes` of a process, `machine_bytes` of all processes of a host with the
    mapped teachers, `disk_bytes`, and `seconds`.

    Args:
        step: bytes on a device in a step of the distillation.
        held: bytes on a device between two steps, when previews are made.
    """
    device, host = device_bytes(workload, sizes, step, held), host_bytes(sizes)
    disk, forwards = disk_bytes(workload, sizes), count_verb_forwards(workload)
    rows = {}
    for verb in VERBS:
        of_host = workload.devices // workload.hosts
        processes = of_host if verb in ("targets", "distill", "bench") else 1
        mapped = 0 if verb in ("teach", "prompts", "edit", "studio") else sizes.teachers
        rows[verb] = {
            "device_bytes": device[verb],
            "host_bytes": host[verb],
            "machine_bytes": processes * host[verb] + mapped,
            "disk_bytes": disk[verb],
            "seconds": forwards[verb] * seconds_per_forward,
        }
    return rows


def device_bytes(workload: Workload, sizes: Sizes, step: int, held: int) -> dict[str, int]:
    """The most on one device.

    Encoders and network take turns, but in `studio`. The VAE stays beside the network once it has decoded.
    """
    taught = 4 * workload.settings.teach.rank * sizes.one_rank  # weights, gradients and both moments
    student, shown = sizes.loras[STUDENT], sizes.vae + max(sizes.sampling, sizes.picture)
    sampled = sizes.base + student + sizes.loras[TEACHER] + sizes.sampling
    # A whole base takes the student into its weights before the first forward.
    merged = workload.settings.model.quantization == "none"
    used = sizes.base + (max(student, shown) if merged else student + shown)
    distilled = max(sampled + sizes.trained - student, step, held + shown)
    network = {
        "teach": sizes.base + taught + sizes.teaching,
        "prompts": 0,
        "targets": sampled,
        "distill": distilled,
        "bench": sizes.base + student + sizes.loras[TEACHER] + shown,
        "add": distilled,
        "edit": used,
    }
    encoding = sizes.encoders + sizes.vae + sizes.picture
    turns = {verb: max(size, encoding) for verb, size in network.items()}
    return {**turns, "studio": used + sizes.encoders}


def host_bytes(sizes: Sizes) -> dict[str, int]:
    """The most in one process: the base while it is read, or what a run keeps and a checkpoint copies."""
    checkpoint = sizes.trained + sizes.moments + sizes.average
    kept = sizes.data + (sizes.average if sizes.average_on_host else 0) + checkpoint
    loading = max(sizes.whole_base, sizes.encoders)
    most = dict.fromkeys(VERBS, loading)
    most |= {"prompts": sizes.encoders, "targets": max(loading, sizes.data)}
    most |= {verb: max(loading, kept) for verb in ("distill", "add")}
    return {verb: PROCESS_BYTES + size for verb, size in most.items()}


def disk_bytes(workload: Workload, sizes: Sizes) -> dict[str, int]:
    """What a verb writes in all, with what those before it left in the cache."""
    settings, effects = workload.settings, workload.effects
    adapter = sizes.loras[STUDENT] // 2
    picture = 3 * settings.data.resolution**2
    kept = settings.distill.keep_checkpoints + 1  # the newest is whole before the oldest goes
    run = kept * (sizes.trained + sizes.moments + sizes.average) + 2 * adapter
    taught = settings.teach.rank * sizes.one_rank
    cached = sizes.cache + sizes.teachers
    return {
        "teach": effects * (kept * 3 * taught + taught // 2),
        "prompts": 0,
        "targets": cached,
        "distill": cached + run,
        "bench": sizes.teachers + effects * BENCH_METHODS * BENCH_PHOTOS * picture,
        "add": cached + run + adapter,  # and the adapter from before
        "edit": picture,
        "studio": effects * picture,
    }


def count_verb_forwards(workload: Workload) -> dict[str, float]:
    """How long a verb takes, in forwards of one image; of several devices each its share or its own batch."""
    settings, effects, devices = workload.settings, workload.effects, workload.devices
    teach, match, few = settings.teach, settings.match, settings.sampling.steps
    branches = 1 if settings.targets.guidance_scale == 1 else 2
    many = branches * settings.targets.steps
    back = BACKWARD + settings.model.gradient_checkpointing
    answers = settings.targets.general * many if match.updates else 0
    photos = workload.all_photos()
    sampled, most = (number * settings.targets.samples * many for number in (sum(photos), max(photos)))
    add = settings.add
    batch = match.batch_size or settings.distill.batch_size
    warm = batch * settings.distill.accumulate * (1 + back + (branches if match.loss == "velocity" else 0))
    forwards, backwards = count_forwards(settings)
    update = settings.distill.batch_size * settings.distill.accumulate * (forwards + back * backwards)
    return {
        "teach": effects * teach.steps * teach.batch_size * (1 + back),
        "prompts": 0,
        "targets": (sampled + answers) / devices,
        "distill": (sampled + answers) / devices
        + match.updates * warm
        + settings.distill.student_updates * update,
        "bench": effects * BENCH_PHOTOS * (many + few) / devices,
        "add": most
        + (settings.targets.general * many if add.match_updates and not match.updates else 0)
        + add.match_updates * warm
        + add.student_updates * update,
        "edit": few,
        "studio": few,
    }


def count_forwards(settings: Settings) -> tuple[int, int]:
    """(forwards, backwards) of one sample in one student update of the effect stream, guidance counted twice.

    With `critic_samples = "simulated"` simulations stop at a random step: this is the most.
    """
    distill = settings.distill
    weights = distill.backward_weight, distill.target_weight, distill.anchor_weight
    backward, target, anchor = (int(max(weight.start, weight.end) > 0) for weight in weights)
    simulations = 1 + (distill.student_update_every if distill.critic_samples == "simulated" else 0)
    critic_and_teacher = 1 + (1 if distill.guidance_scale == 1 else 2)
    learning = backward + target + anchor + distill.student_update_every
    rollout = simulations * max(distill.rollout_steps)
    return rollout + (backward + target) * critic_and_teacher + learning, learning

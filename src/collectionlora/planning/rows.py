"""What each verb needs: bytes of a device, of a process and of the machine, of disk, and seconds."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from collectionlora.adapters.roles import STUDENT, TEACHER
from collectionlora.editing import STRIP
from collectionlora.effectbench.baselines import FLOW_MATCHING, MERGE_METHODS
from collectionlora.effectbench.running import DEFAULT_CROPS, trained_methods
from collectionlora.planning import SHARED
from collectionlora.planning.forwards import BENCH_EDITS, count_verb_forwards
from collectionlora.planning.peaks import Peaks
from collectionlora.planning.timing import Encoding
from collectionlora.planning.workload import Workload

VERBS = ("teach", "prompts", "targets", "distill", "bench", "add", "edit", "studio")
PROCESS_BYTES = 2 * 2**30  # Python, torch and what they import; a guess


@dataclass(frozen=True)
class Sizes:
    """Bytes of everything that memory is made of.

    Attributes:
        base: of the frozen network on a device; `whole_base` in its files, before it is packed.
        encoders: of the text encoders, and `whole_encoders` before they are packed; 0 if not known.
        loras: by role, as they are held; `judged` those of a bench.
        one_rank: of a LoRA of rank 1 in float32.
        moments: of the optimizers of student and critics.
        average: of the student's moving average; on the host if `average_on_host`.
        peaks: of a step, the samplers, and `teach`, beyond weights, gradients and moments.
        merging: of one layer while the student is taken into its weight.
        vae: weights of the VAE; `picture` what it makes while it encodes or decodes one photo.
        cache: on disk, of latents and encoded prompts; `data` what a process holds of them.
        cases: of all prompts that a bench encodes before it draws.
        teachers: of all converted teachers.
    """

    base: int
    whole_base: int
    encoders: int
    whole_encoders: int
    loras: dict[str, int]
    judged: dict[str, int]
    one_rank: int
    moments: int
    average: int
    average_on_host: bool
    peaks: Peaks
    merging: int
    vae: int
    picture: int
    cache: int
    data: int
    cases: int
    teachers: int

    @property
    def encoding(self) -> int:
        """On a device while photos and prompts are encoded, before the network is loaded."""
        return self.encoders + self.vae + self.picture

    @property
    def sampled(self) -> int:
        """While teachers are sampled."""
        return self.base + self.loras[STUDENT] + self.loras[TEACHER] + self.peaks.sampling

    @property
    def shown(self) -> int:
        """Beside the network while pictures are made: the next are sampled after the VAE is there."""
        return self.vae + max(self.peaks.sampling, self.picture)

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


class Held(NamedTuple):
    """Bytes of a device that distils.

    Attributes:
        weights: in a step, without its activations.
        between: between two steps, when previews are made.
        gathered: of shards, in both.
        start: before sharding.
    """

    weights: int
    between: int
    gathered: int
    start: int


def plan_verbs(
    workload: Workload, sizes: Sizes, held: Held, seconds_per_forward: float, encoding: Encoding
) -> dict[str, dict[str, Any]]:
    """By verb `device_bytes`, `host_bytes` of the main process, `machine_bytes` of all processes of a host
    with the mapped files, `disk_bytes`, and `seconds`."""
    host = host_bytes(workload, sizes)
    copied = copied_bytes(workload, sizes)
    disk, forwards = disk_bytes(workload, sizes), count_verb_forwards(workload, encoding)
    rows = {}
    for verb in VERBS:
        of_host = workload.devices // workload.hosts
        processes = of_host if verb in SHARED else 1
        rows[verb] = {
            "device_bytes": device_bytes(verb, workload, sizes, held),
            "host_bytes": host[verb] + copied[verb],
            "machine_bytes": machine_bytes(verb, sizes, processes, host[verb], copied[verb]),
            "disk_bytes": disk[verb],
            "seconds": forwards[verb] * seconds_per_forward,
        }
    return rows


def device_bytes(verb: str, workload: Workload, sizes: Sizes, held: Held) -> int:
    """The most on one device; encoders and network take turns, but in `studio`."""
    network = network_bytes(verb, workload, sizes, held)
    return network + sizes.encoders if verb == "studio" else max(network, sizes.encoding)


def network_bytes(verb: str, workload: Workload, sizes: Sizes, held: Held) -> int:
    """The most while the network is there; the VAE stays beside it once it has decoded."""
    match verb:
        case "prompts":
            return 0
        case "teach":
            taught = 4 * workload.settings.teach.rank * sizes.one_rank  # weights, gradients and both moments
            return sizes.base + taught + sizes.peaks.teaching
        case "edit" | "studio":
            # A whole base takes the student into its weights, layer by layer, before the first forward.
            if workload.settings.model.quantization == "none":
                return sizes.base + max(sizes.merging, sizes.shown)
            return sizes.base + sizes.loras[STUDENT] + sizes.shown
        case "targets":
            return sizes.sampled
        case "bench":
            judged = sizes.base + sum(sizes.judged.values()) + sizes.shown
            # Baselines are trained before the base is loaded to make pictures.
            return max(judged, distilled_bytes(sizes, held)) if workload.baselines else judged
        case _:
            return distilled_bytes(sizes, held)


def step_bytes(sizes: Sizes, held: Held) -> int:
    """The most in a step of a distillation."""
    return held.weights + sizes.peaks.activations


def distilled_bytes(sizes: Sizes, held: Held) -> int:
    """The most of `distill`, and of `add`: its targets, sharding, a step, or a preview."""
    sampled = sizes.sampled + sizes.trained - sizes.loras[STUDENT]
    return max(sampled, held.start, step_bytes(sizes, held), held.between + sizes.shown)


def copied_bytes(workload: Workload, sizes: Sizes) -> dict[str, int]:
    """What a checkpoint copies into the memory of the main process."""
    copied = dict.fromkeys(VERBS, 0)
    for verb in ("distill", "add", *(["bench"] if workload.baselines else [])):
        copied[verb] = sizes.trained + sizes.moments + sizes.average
    return copied


def host_bytes(workload: Workload, sizes: Sizes) -> dict[str, int]:
    """The most in each process, beside mapped files and the copy of a checkpoint."""
    kept = sizes.data + (sizes.average if sizes.average_on_host else 0)
    most = dict.fromkeys(VERBS, 0) | {"targets": sizes.data, "distill": kept, "add": kept}
    most["bench"] = sizes.cases
    if workload.baselines:
        most["bench"] += kept + baseline_bytes(workload, sizes)
    return {verb: PROCESS_BYTES + size for verb, size in most.items()}


def machine_bytes(verb: str, sizes: Sizes, processes: int, host: int, copied: int) -> int:
    """All processes of a machine, with one copy of a checkpoint, and once what they read from mapped files.

    A base, or its text encoders, is read before a run has anything to checkpoint, teachers all the time.
    """
    read = sizes.whole_encoders if verb == "prompts" else max(sizes.whole_base, sizes.whole_encoders)
    encoded = {"bench": sizes.cases} | dict.fromkeys(["targets", "distill", "add"], sizes.data)
    begun = PROCESS_BYTES + encoded.get(verb, 0)
    teachers = 0 if verb in ("teach", "prompts", "edit", "studio") else sizes.teachers
    return max(processes * host + copied, processes * begun + read) + teachers


def baseline_bytes(workload: Workload, sizes: Sizes) -> int:
    """The LoRAs of the baselines in float32: the acceleration, each one's own, and one sum."""
    ranks, methods = workload.ranks(), workload.methods
    held = [ranks[STUDENT], workload.bench_ranks()[TEACHER]]
    held += [ranks[STUDENT]] * (FLOW_MATCHING in methods)
    held += [max(ranks[STUDENT], ranks[TEACHER]) for method in methods if method in MERGE_METHODS]
    return sum(held) * sizes.one_rank


def disk_bytes(workload: Workload, sizes: Sizes) -> dict[str, int]:
    """What a verb writes in all, with what those before it left in the cache."""
    settings, effects = workload.settings, workload.effects
    adapter = sizes.loras[STUDENT] // 2
    picture = 3 * settings.data.resolution**2
    kept = settings.distill.keep_checkpoints + 1  # the newest is whole before the oldest goes
    checkpoints = kept * (sizes.trained + sizes.moments + sizes.average)
    run = checkpoints + 2 * adapter
    trainings = bool(workload.baselines) + (FLOW_MATCHING in workload.methods)
    strips = effects * len(STRIP) if trained_methods(workload.methods) else 0
    pictures = len(workload.methods) * (effects * DEFAULT_CROPS + BENCH_EDITS) + strips
    taught = settings.teach.rank * sizes.one_rank
    cached = sizes.cache + sizes.teachers
    return {
        "teach": effects * (kept * 3 * taught + taught // 2),
        "prompts": 0,
        "targets": cached,
        "distill": cached + run,
        "bench": (cached if trainings else sizes.teachers) + trainings * checkpoints + pictures * picture,
        "add": cached + run + adapter,  # and the adapter from before
        "edit": picture,
        "studio": effects * picture,
    }

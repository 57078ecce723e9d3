"""What each of the two processes of `test_processes.py` runs."""

import json
import os
import shutil
import signal
import sys
from functools import cache, partial
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

import collectionlora
from collectionlora.adapters import low_rank, merging
from collectionlora.adapters.roles import STUDENT, TEACHER
from collectionlora.collection import Collection
from collectionlora.distillation import Distillation
from collectionlora.effectbench import bench, benching
from collectionlora.runs import checkpoint, teacher_files
from collectionlora.runs.session import Session, resolve_settings
from collectionlora.runs.teacher_files import TeacherFile
from collectionlora.runs.trainer import load_newest, train
from collectionlora.runs.watching import Watch
from collectionlora.system import processes
from collectionlora.system.errors import Interrupted
from collectionlora.system.files import sha256, write_tensors
from collectionlora.toy.world import ToyWorld, toy_settings

TRAINED = (
    {"match": {"updates": 3}, "distill": {"guidance_scale": 2}},
    {"distill": {"student_updates": 8, "batch_size": 8, "rollout_steps": [4, 2], "student_update_every": 2}},
)
# Late in this run the general stream has no loss, while the effect stream has one.
FADING = ({"distill": {"backward_weight": 0, "critic_samples": "simulated"}},)
# The paper's critic, which takes as many forwards as its simulations' random steps say: the same in all.
SHARDED = {"model": {"sharding": "fsdp"}, "distill": {"critic_samples": "simulated"}}
ACCUMULATED = {**SHARDED, "distill": {**SHARDED["distill"], "accumulate": 2}}


@cache
def toy_world():
    return ToyWorld(num_effects=2, base_steps=3, teacher_steps=3)


def toy_run(rank, *layers):
    """One process' part of a run in the toy world."""
    run = toy_world().distillation(toy_settings(*TRAINED, *layers))
    run.streams.rank = rank
    return run


def write_state(run, path):
    write_tensors(path, run.tensors(), {})


def quiet(*_):
    pass


def whole(folder):
    for name, layers in (("plain", ()), ("fading", FADING)):
        run = toy_run(processes.rank(), *layers)
        train(run, folder / name, 0, False, quiet, 3)
        write_state(run, folder / f"{name}-{processes.rank()}.safetensors")


def stopped(folder):
    """SIGTERM reaches the second process alone, during its sixth step."""
    run = toy_run(processes.rank())
    plain = type(run).__call__

    class Stopped(type(run)):
        def __call__(self, step):
            if step == 5 and processes.rank() == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return plain(self, step)

    run.__class__ = Stopped
    try:
        train(run, folder / "cut", 0, False, quiet, 3)
    except Interrupted as interrupted:
        (folder / f"interrupted-{processes.rank()}").write_text(str(interrupted))
    again = toy_run(processes.rank())
    train(again, folder / "cut", 0, True, quiet, 3)
    write_state(again, folder / f"resumed-{processes.rank()}.safetensors")


def held(tensors):
    """Numbers that this process holds, and that there are."""
    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    return [sum(t.numel() for t in some) for some in (local, tensors)]


def sharded(folder):
    """A run in shards, and the same again from its middle; what this process holds of it."""
    folder = folder / "first"
    overrides = {**SHARDED, "distill": {**SHARDED["distill"], "checkpoint_minutes": 0, "keep_checkpoints": 4}}
    collectionlora.distill(folder, "sharded", overrides)
    runs = folder / "runs"
    if processes.is_main():
        shutil.copytree(runs / "sharded", runs / "resumed")
        for later in (runs / "resumed" / "checkpoints").glob("step-0000000[4-6].*"):
            later.unlink()
    processes.barrier()
    collection = Collection.load(folder)
    settings = resolve_settings(collection, overrides)
    run = Session(collection, settings, with_critics=True).distillation(quiet)
    hashed = []
    checkpoint.sha256 = lambda path: hashed.append(path.name) or sha256(path)
    first = load_newest(run, runs / "resumed" / "checkpoints")
    (runs / f"proven-{processes.rank()}.json").write_text(json.dumps([first, hashed]))
    train(run, runs / "resumed", 0, True, quiet, 3)
    moments = [m for o in run.optimizers.values() for s in o.state.values() for m in s.values() if m.ndim]
    parts = {
        "base": [p for name, p in run.backbone.network.named_parameters() if "lora_" not in name],
        "student": run.roles.parameters(STUDENT),
        "critic": run.roles.parameters(run.critics[0]),
        "teacher": run.roles.parameters(TEACHER),
        "moments": moments,
        "average": run.ema,
    }
    numbers = {name: held(tensors) for name, tensors in parts.items()}
    (runs / f"held-{processes.rank()}.json").write_text(json.dumps(numbers))


def count_gradients(run):
    """Wraps the updates of a kind of run; the roles' gradients that each leaves behind, in a list to come."""
    plain, left = run.step, []

    def step(self, *args):
        norm = plain(self, *args)
        left.append(sum(p.grad is not None for role in self.roles.ranks for p in self.roles.parameters(role)))
        return norm

    run.step = step
    return left


def accumulated(folder):
    """A run in shards whose updates take two batches of each process."""
    plain = Distillation.step
    left = count_gradients(Distillation)
    collectionlora.distill(folder / "first", "accumulated", ACCUMULATED)
    Distillation.step = plain
    (folder / f"left-{processes.rank()}.json").write_text(json.dumps(left))


def preview(folder):
    """The effects that this process sampled for a preview of a run's start, and all distances."""
    collection = Collection.load(folder)
    run = Session(collection, resolve_settings(collection, {}), with_critics=True).distillation(quiet)
    watch, sampled = Watch(run, folder / "runs" / "previewed"), []
    plain = watch.sample
    watch.sample = lambda data: sampled.append(data.name) or plain(data)
    return sampled, watch.preview(1)


def previewed(folder):
    result = preview(folder / "first")
    (folder / "first" / "runs" / f"previewed-{processes.rank()}.json").write_text(json.dumps(result))


def write_converted(folder):
    """Two teachers as runs keep them: one of three pairs, one of three whole changes and a pair."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator)
    pairs = {f"{m}.{part}": draw(*shape) for m in "wxy" for part, shape in (("a", (2, 8)), ("b", (6, 2)))}
    whole = {f"{m}.whole": draw(6, 8) for m in "xyz"} | {"w.a": draw(3, 8), "w.b": draw(6, 3)}
    for name, tensors in (("pairs", pairs), ("whole", whole)):
        write_tensors(folder / f"converted-{name}.safetensors", tensors, {"rank": "3"})


def merges(folder):
    """All merges of those teachers, the start of a run from a merge, and the modules that were made here."""
    made = []

    def count(name, function):
        return lambda *args: made.append(name) or function(*args)

    teacher_files.factorize = count("nearest pairs", low_rank.factorize)
    merging.shrink = count("svd", low_rank.shrink)
    teachers = [TeacherFile(folder / f"converted-{name}.safetensors") for name in ("pairs", "whole")]
    pairs = [teacher.as_pairs(folder) for teacher in teachers]
    named = {how: merging.merge(pairs, how, 2) for how in merging.MERGES}
    counts = {name: made.count(name) for name in ("nearest pairs", "svd")}
    collection = Collection.load(folder / "first")
    session = Session(collection, resolve_settings(collection, {}), with_critics=True)
    session.first_student = session.merge_teachers
    named["start"] = session.distillation(quiet).roles.weights(STUDENT)
    counts["start"] = made.count("svd") - counts["svd"]
    flat = {
        f"{how}.{m}.{i}": t for how, lora in named.items() for m, p in lora.items() for i, t in enumerate(p)
    }
    return flat, counts


def merged(folder):
    tensors, counts = merges(folder)
    write_tensors(folder / f"merged-{processes.rank()}.safetensors", tensors, {})
    (folder / f"merged-{processes.rank()}.json").write_text(json.dumps(counts))


ADDITION = {"add": {"match_updates": 2, "student_updates": 1}}


def judge_quickly(put):
    """Few steps of the classifier, few ordinary edits; `put(owner, name, value)` as `setattr`."""
    put(benching, "CLASSIFIER_STEPS", 2)
    put(bench, "GENERAL_KINDS", ("blur",))


def judged(folder):
    judge_quickly(setattr)
    collectionlora.bench(folder / "judged", crops=2)


def grown(folder):
    collectionlora.add(folder / "grown", ["mine"], overrides=ADDITION)


def run_parts():
    """What the command line names: a folder, and functions of this file by their names."""
    torch.manual_seed(0)
    with processes.joined():
        assert processes.world_size() == 2
        for part in sys.argv[2:]:
            globals()[part](Path(sys.argv[1]))

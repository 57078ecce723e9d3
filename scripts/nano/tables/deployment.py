"""Requests that mix effects, by the one LoRA and by an adapter for each request: storage, first image, speed.

Both take the student's steps without guidance for every picture, so they differ in their adapters alone:
`loaded` reads each request's LoRA from its file, `switched` holds all in memory, `grouped` makes one batch of
the requests of each effect among as many as wait for the one LoRA's batch. Seconds are CPU seconds of this
process on one thread, those of the first image after imports; --rounds are taken by turns, the best counts.
"""

import math
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batching import seconds
from torch import Tensor

from collectionlora.adapters.formats import read_lora
from collectionlora.adapters.recipe import Recipe, adapter_path
from collectionlora.adapters.roles import TEACHER, Roles, TeacherLibrary
from collectionlora.backbones.base import encode_condition
from collectionlora.backbones.nano import RECOMMENDED, NanoBackbone
from collectionlora.command_line.demo import shipped_teachers
from collectionlora.editing import Editor
from collectionlora.effects import ALL_EFFECTS
from collectionlora.pictures.photographs import HELDOUT, load_photograph
from collectionlora.sampling import Denoiser, sample_student
from collectionlora.studio.batching import Batcher, Request
from collectionlora.system import processes
from collectionlora.system.files import write_json
from collectionlora.system.progress import Progress
from tables.study import keep_options

Stream = list[tuple[str, Request]]  # requests with their effects


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, default=Path("nano"), help="by default the one that ships")
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--at-once", type=int, default=8, help="requests that wait together")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)


class AdapterServer:
    """One base, and a LoRA of its own for every effect, which waits in a file or in memory."""

    def __init__(self, files: Mapping[str, Path], recipe: Recipe, in_memory: bool):
        self.files, self.recipe, self.in_memory = files, recipe, in_memory
        self.backbone = NanoBackbone.load()
        loras = {name: read_lora(path) for name, path in files.items()} if in_memory else {}
        rank = RECOMMENDED["teach"]["rank"]
        targets, fuse = self.backbone.lora_targets, self.backbone.fuses_lora
        self.roles = Roles(self.backbone.network, targets, {TEACHER: rank}, fuse=fuse)
        self.library = TeacherLibrary(self.roles, {name: lora.weights for name, lora in loras.items()})

    @torch.no_grad()
    def edit(self, effect: str, requests: Sequence[Request]) -> Tensor:
        """Pictures of one effect as one batch."""
        if not self.in_memory:
            self.library = TeacherLibrary(self.roles, {effect: read_lora(self.files[effect]).weights})
        texts = [ALL_EFFECTS[effect].teacher_prompt] * len(requests)
        condition = encode_condition(self.backbone, texts, torch.cat([r.image for r in requests]))
        with self.library.use(effect):
            denoiser, seeds = Denoiser(self.backbone, condition), [request.seed for request in requests]
            how = self.recipe.steps, self.recipe.shift, self.recipe.sampler
            return self.backbone.decode(sample_student(denoiser, condition.source, seeds, *how))

    def serve(self, stream: Stream, at_once: int = 1) -> None:
        """Of `at_once` requests that wait together, those of one effect in one batch."""
        for start in range(0, len(stream), at_once):
            waiting = sorted(stream[start : start + at_once], key=itemgetter(0))
            for effect, group in groupby(waiting, key=itemgetter(0)):
                self.edit(effect, [request for _, request in group])


def cpu_seconds(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def draw_stream(editor: Editor, num_requests: int, seed: int) -> Stream:
    """Requests for one photo, each with an effect that is drawn."""
    names, image = list(editor.recipe.effects), editor.fit(load_photograph(HELDOUT[0]))
    drawn = [names[i] for i in np.random.default_rng(seed).integers(len(names), size=num_requests)]
    return [
        (name, Request(image, editor.prompt([name]), number, editor.recipe.steps, 1.0))
        for number, name in enumerate(drawn)
    ]


def make(args: Namespace, progress: Progress) -> None:
    if not processes.is_main():  # one thread is measured, and nothing runs beside it
        return
    keep_options(args.out, args)
    torch.set_num_threads(1)
    path, at_once = adapter_path(args.adapter), args.at_once
    editor = Editor.load(path)
    recipe, stream = editor.recipe, draw_stream(editor, args.requests, args.seed)
    requests = [request for _, request in stream]
    files = {name: adapter for name, adapter in shipped_teachers().items() if name in recipe.effects}
    from_disk, from_memory = (AdapterServer(files, recipe, in_memory) for in_memory in (False, True))
    one, many = Batcher(editor, 1), Batcher(editor, at_once)
    speeds: dict[str, Callable[[], float]] = {
        "one LoRA, batched": lambda: seconds(many, requests, at_once),
        "one LoRA": lambda: seconds(one, requests, 1),
        "loaded": lambda: cpu_seconds(lambda: from_disk.serve(stream)),
        "switched": lambda: cpu_seconds(lambda: from_memory.serve(stream)),
        "grouped": lambda: cpu_seconds(lambda: from_memory.serve(stream, at_once)),
    }
    starts: dict[str, Callable[[], Any]] = {
        "one LoRA": lambda: Editor.load(path).sample(requests[0].image, [requests[0].prompt], [0]),
        "loaded": lambda: AdapterServer(files, recipe, in_memory=False).serve(stream[:1]),
        "switched": lambda: AdapterServer(files, recipe, in_memory=True).serve(stream[:1]),
    }
    firsts = {"one LoRA, batched": "one LoRA", "grouped": "switched"}  # what starts as another does
    best: dict[tuple[str, str], float] = {}
    for number in range(args.rounds):
        for name, work in speeds.items():
            best["stream", name] = min(work(), best.get(("stream", name), math.inf))
        for name, start in starts.items():
            best["first", name] = min(cpu_seconds(start), best.get(("first", name), math.inf))
        progress("rounds", number + 1, args.rounds, {})
    methods = {}
    for name in speeds:
        needed = [path] if name.startswith("one") else list(files.values())
        methods[name] = {
            "files": len(needed),
            "bytes": sum(file.stat().st_size for file in needed),
            "first_image_seconds": best["first", firsts.get(name, name)],
            "images_per_second": len(stream) / best["stream", name],
        }
    facts = {"effects": len(files), "requests": len(stream), "at_once": at_once}
    write_json(args.out / "metrics.json", {"table": "deployment", **facts, "methods": methods})

"""Pretrain the nano base on ordinary instruction edits of photographs; resumes where it stopped.

python scripts/nano/photographs.py --out DATA
python scripts/nano/pretrain.py --data DATA --folder RUN --steps 30000                  # at a constant rate
python scripts/nano/pretrain.py --data DATA --folder RUN --steps 40000 --decay 10000    # and to the end
python scripts/nano/pretrain.py --data DATA --folder RUN --evaluate --side 128          # held-out table
python scripts/nano/pretrain.py --data DATA --folder RUN --export FILE                  # the shipped weights

The rate is constant but for the last `--decay` steps, so that a run can always go on. Seconds are CPU seconds
of the main process.
"""

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters

from collectionlora.adapters.optimizers import load_optimizer, optimizer_tensors
from collectionlora.backbones.base import Condition
from collectionlora.backbones.nano import NanoBackbone, fastest
from collectionlora.effects.ordinary import (
    ORDINARY_EDITS,
    Cutout,
    Edit,
    PhotoPool,
    draw_edit,
    load_cutouts,
    load_photographs,
)
from collectionlora.flow import add_noise, shift_sigma
from collectionlora.objectives import flow_matching_loss
from collectionlora.pictures.photos import to_images
from collectionlora.sampling import Denoiser, sample_many_steps
from collectionlora.system.files import write_tensors

# Half of the updates are of these; the others of any shape from 64 to `--largest` pixels.
SMALL_SIZES = ((64, 64), (64, 64), (64, 64), (64, 64), (48, 80), (80, 48), (56, 72), (72, 56))
UNCONDITIONAL_RATIO = 0.05
EMA = 0.999
WARM_UP = 200
PACE = 50  # updates that tell how many `--time` holds


def draw_size(rng: np.random.Generator, largest: int = 128) -> tuple[int, int]:
    """Height and width of an update's photos, none more than twice as long as wide."""
    if rng.random() < 0.5:
        return SMALL_SIZES[rng.integers(len(SMALL_SIZES))]
    rows, columns = rng.integers(8, largest // 8 + 1, size=2)
    height, width = 8 * int(rows), 8 * int(np.clip(columns, -(-rows // 2), 2 * rows))
    return (height, height) if rng.random() < 0.5 else (height, width)


class Pretraining:
    """Flow matching with Muon on the matrices inside the blocks and AdamW on the rest.

    Parameters, averages and optimizers are float32; each update computes with a copy of the parameters in
    the dtype that is fastest here.
    """

    def __init__(self, args: argparse.Namespace):
        self.args, self.accelerator = args, Accelerator(cpu=not torch.cuda.is_available())
        torch.manual_seed(args.seed)
        self.backbone = NanoBackbone.load(args.start) if args.start else NanoBackbone()
        device, dtype = fastest()
        self.backbone.modules.to(device).requires_grad_(True)
        self.copy = copy.deepcopy(self.backbone)
        self.copy.network.to(dtype)
        named = dict(self.backbone.modules.named_parameters())
        matrices = {n: p for n, p in named.items() if "transformer_blocks" in n and p.ndim == 2}
        rest = [p for name, p in named.items() if name not in matrices]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=args.adam_rate, betas=(0.9, 0.98), weight_decay=0.0),
            torch.optim.Muon(list(matrices.values()), lr=args.muon_rate, weight_decay=0.01),
        ]
        self.rates = [args.adam_rate, args.muon_rate]
        self.average = {n: p.detach().clone() for n, p in named.items()}
        self.step, self.seconds = 0, 0.0

    def draw(self, pool: PhotoPool, cutouts: list[Cutout]) -> tuple[Tensor, Tensor, list[str]]:
        """Source and target latents and the instructions; a pure function of (seed, step, process)."""
        height, width = draw_size(np.random.default_rng([self.args.seed, self.step]), self.args.largest)
        rng = np.random.default_rng([self.args.seed, self.step, self.accelerator.process_index])
        number = max(1, self.args.pixels // (height * width))
        edits = [draw_edit(rng, pool, cutouts, (height, width)) for _ in range(number)]
        texts = ["" if rng.random() < UNCONDITIONAL_RATIO else e.instruction for e in edits]
        encode = self.backbone.encode_image
        return (
            encode(to_images([e.source for e in edits])),
            encode(to_images([e.target for e in edits])),
            texts,
        )

    def loss(self, source: Tensor, target: Tensor, texts: list[str]) -> Tensor:
        """Flow matching by the copy, at a noise that is a pure function of (seed, step, process)."""
        place = self.step * self.accelerator.num_processes + self.accelerator.process_index
        device, target = self.copy.device, target.to(self.copy.device)
        generator = torch.Generator(device).manual_seed(self.args.seed * 1_000_003 + place)
        noise = torch.randn(target.shape, generator=generator, device=device)
        sigma = shift_sigma(torch.rand(len(target), generator=generator, device=device), 3.0)
        condition = Condition(self.copy.encode_prompt(texts), source)
        velocity = Denoiser(self.copy, condition).velocity(add_noise(target, noise, sigma), sigma)
        return flow_matching_loss(velocity, target, noise)

    def update(self, pool: PhotoPool, cutouts: list[Cutout]) -> float:
        live, copies = (list(backbone.modules.parameters()) for backbone in (self.backbone, self.copy))
        with torch.no_grad():
            for own, parameter in zip(copies, live, strict=True):
                own.copy_(parameter)
        self.copy.modules.zero_grad()
        loss = self.loss(*self.draw(pool, cutouts))
        loss.backward()
        # The last block's own work on the condition is read by nothing, so a few have no gradient.
        pairs = [(p, c.grad.float()) for p, c in zip(live, copies, strict=True) if c.grad is not None]
        gradients = [gradient for _, gradient in pairs]
        vector_to_parameters(self.accelerator.reduce(parameters_to_vector(gradients), "mean"), gradients)
        for parameter, gradient in pairs:
            parameter.grad = gradient
        clip_grad_norm_(live, 1.0)
        factor = self.rate_factor()
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
        decay = min(EMA, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in live], 1 - decay)
        self.step += 1
        return loss.item()

    def rate_factor(self) -> float:
        """Warm up, hold, then fall linearly to zero over the last `--decay` steps."""
        left = (self.args.steps - self.step) / self.args.decay if self.args.decay else 1.0
        return min(1.0, (self.step + 1) / WARM_UP, left)

    def save(self, folder: Path) -> None:
        """One safetensors file: weights, averages and optimizer states; written aside and renamed."""
        tensors = {f"weights.{n}": p.detach() for n, p in self.backbone.modules.named_parameters()}
        tensors |= {f"average.{n}": t for n, t in self.average.items()}
        for index, optimizer in enumerate(self.optimizers):
            tensors |= optimizer_tensors(f"optimizer.{index}", optimizer)
        progress = {"step": str(self.step), "seconds": str(self.seconds)}
        write_tensors(folder / "state.safetensors", tensors, progress)

    def load(self, folder: Path) -> None:
        tensors = load_file(folder / "state.safetensors")
        for name, parameter in self.backbone.modules.named_parameters():
            parameter.data.copy_(tensors[f"weights.{name}"])
            self.average[name].copy_(tensors[f"average.{name}"])
        for index, optimizer in enumerate(self.optimizers):
            load_optimizer(f"optimizer.{index}", optimizer, tensors)
        with safe_open(folder / "state.safetensors", framework="pt") as file:
            progress = file.metadata()
        self.step, self.seconds = int(progress["step"]), float(progress["seconds"])

    def averaged(self) -> NanoBackbone:
        """The base with the averaged weights, in float32."""
        backbone = copy.deepcopy(self.backbone)
        backbone.modules.load_state_dict(self.average)
        backbone.modules.requires_grad_(False).eval()
        return backbone


def evaluate(backbone: NanoBackbone, args: argparse.Namespace) -> dict[str, float]:
    """Mean PSNR in dB to the true edit, by kind, on squares of held-out photographs and cut-outs."""
    data, size = args.data, (args.side, args.side)
    pool = load_photographs(data / "photographs" / "heldout")
    cutouts = load_cutouts(data / "cutouts" / "heldout")
    table = {}
    for kind in ORDINARY_EDITS:
        rng = np.random.default_rng(7)
        edits: list[Edit] = [draw_edit(rng, pool, cutouts, size, kinds=[kind]) for _ in range(args.num)]
        source, target = to_images([e.source for e in edits]), to_images([e.target for e in edits])
        noise = torch.randn(source.shape, generator=torch.Generator().manual_seed(7))
        condition = Condition(
            backbone.encode_prompt([e.instruction for e in edits]), backbone.encode_image(source)
        )
        images = backbone.decode(sample_many_steps(Denoiser(backbone, condition), noise, args.sample_steps))
        errors = (images - target).square().flatten(1).mean(1).clamp_min(1e-6)
        table[kind] = float((-10 * errors.log10()).mean())
    return table


def summarise(table: dict[str, float]) -> dict[str, Any]:
    """Means by group beside the kinds."""
    groups: dict[str, list[float]] = {}
    for kind, value in table.items():
        groups.setdefault(ORDINARY_EDITS[kind].group, []).append(value)
    rounded = {k: round(v, 2) for k, v in table.items()}
    return {"groups": {g: round(sum(v) / len(v), 2) for g, v in groups.items()}, "kinds": rounded}


def train(run: Pretraining, args: argparse.Namespace) -> None:
    pool = load_photographs(args.data / "photographs" / "train")
    cutouts = load_cutouts(args.data / "cutouts" / "train")
    losses = []
    began, first, start = time.process_time() - run.seconds, run.step, time.perf_counter()
    while run.step < args.steps:
        losses.append(run.update(pool, cutouts))
        if args.time and run.step == first + PACE:
            pace = (time.perf_counter() - start) / PACE
            args.steps = first + max(PACE, int(args.time / pace))
            args.decay = (args.steps - first) // 3
        run.seconds = time.process_time() - began
        if not run.accelerator.is_main_process:
            continue
        if run.step % 100 == 0:
            line = {"step": run.step, "loss": round(float(np.mean(losses)), 5), "seconds": round(run.seconds)}
            losses = []
            with (args.folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            print(line, flush=True)
        if run.step % args.save_every == 0:
            run.save(args.folder)
        if run.step % args.evaluate_every == 0:
            report(run, args)
    if run.accelerator.is_main_process:
        run.save(args.folder)
        if run.step % args.evaluate_every:
            report(run, args)


def report(run: Pretraining, args: argparse.Namespace) -> None:
    backbone = run.averaged()
    backbone.network.to(run.copy.network.dtype)
    table = summarise(evaluate(backbone, args))
    line = {"step": run.step, "seconds": round(run.seconds), "side": args.side, "num": args.num, **table}
    with (args.folder / "heldout.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder made by photographs.py")
    parser.add_argument("--folder", type=Path, required=True, help="folder of checkpoint and logs")
    parser.add_argument("--start", type=Path, help="weights to start from; at random without")
    parser.add_argument("--steps", type=int, default=30000)
    parser.add_argument("--decay", type=int, default=0, help="last steps, over which the rates fall to zero")
    parser.add_argument("--time", type=float, help="wall seconds that set --steps; the last third decays")
    parser.add_argument("--largest", type=int, default=128, help="longest side of the larger photos")
    parser.add_argument("--pixels", type=int, default=48 * 64**2, help="of an update's photos together")
    parser.add_argument("--adam-rate", type=float, default=2e-3)
    parser.add_argument("--muon-rate", type=float, default=2e-2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--evaluate-every", type=int, default=2000)
    parser.add_argument("--num", type=int, default=16, help="held-out edits of each kind")
    parser.add_argument("--sample-steps", type=int, default=16)
    parser.add_argument("--evaluate", action="store_true")
    parser.add_argument("--side", type=int, default=64, help="of the photos that are evaluated")
    parser.add_argument("--export", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.folder.mkdir(parents=True, exist_ok=True)
    run = Pretraining(args)
    if (args.folder / "state.safetensors").exists():
        run.load(args.folder)
    if args.evaluate:
        report(run, args)
    elif args.export:
        run.averaged().save(args.export, {"step": str(run.step), "seconds": str(round(run.seconds))})
    else:
        train(run, args)


if __name__ == "__main__":
    main()

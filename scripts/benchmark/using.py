"""Parts that measure use: sampling, starting, compiling, several processes."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from worlds import cpu_seconds, nano_run, qwen_backbone, qwen_run

from collectionlora.adapters.recipe import SHIPPED, Recipe, read_adapter, write_adapter
from collectionlora.adapters.roles import STUDENT, Roles
from collectionlora.backbones.base import encode_condition
from collectionlora.backbones.diffusers_model import pack
from collectionlora.backbones.nano import NanoBackbone
from collectionlora.backbones.qwen_image_edit import patch_grid
from collectionlora.distillation import Share, Simulation
from collectionlora.exporting.export import scheduler_config
from collectionlora.flow import few_step_sigmas
from collectionlora.pictures.photographs import HELDOUT, load_photograph
from collectionlora.pictures.photos import crop_square, to_images, write_photo
from collectionlora.sampling import Denoiser, noise_like, sample_few_steps
from collectionlora.system import processes
from collectionlora.system.version import __version__

STEPS = 8


def plain_loop(network: Any, latents: Tensor, photo: Tensor, tokens: Tensor) -> Tensor:
    """What a diffusers pipeline does between its encoders and its decoder, with the student's scheduler."""
    config = scheduler_config(3.0, "stochastic")
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    scheduler.set_timesteps(sigmas=[1 - i / STEPS for i in range(STEPS)])
    grids, noisy, reference = [[patch_grid(latents), patch_grid(photo)]], pack(latents), pack(photo)
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            velocity = network(
                hidden_states=torch.cat([noisy, reference], dim=1),
                timestep=timestep.expand(len(noisy)) / 1000,
                encoder_hidden_states=tokens,
                img_shapes=grids,
                return_dict=False,
            )[0][:, : noisy.shape[1]]
            noisy = scheduler.step(velocity, timestep, noisy, return_dict=False)[0]
    return noisy


def sampling() -> dict[str, Any]:
    """Eight steps of one picture: ours, and the plain loop over the same weights, LoRA fused and not."""
    run = qwen_run()
    for parameter in run.roles.parameters(STUDENT):
        parameter.data.normal_(std=0.01)
    weights = run.roles.weights(STUDENT)
    condition, noise = run.streams.batch(0).student, torch.randn(1, 16, 32, 32)

    def ours() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        with run.roles.use(STUDENT):
            return sample_few_steps(Denoiser(run.backbone, condition), noise, STEPS, generator)

    backbone = qwen_backbone(run.settings)
    network, targets = backbone.network, list(backbone.lora_targets)
    rank = run.settings.student.rank
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), network)
    layers = {name: m for name, m in network.named_modules() if isinstance(m, LoraLayer)}
    for name, layer in layers.items():
        layer.lora_A["default"].weight.data = weights[name][0]
        layer.lora_B["default"].weight.data = weights[name][1]

    def loop() -> Tensor:
        return plain_loop(network, noise, condition.source, condition.prompt.tokens)

    result = interleaved({"ours": ours, "plain": loop})
    for layer in layers.values():
        layer.merge()
    result |= {f"fused_{name}": s for name, s in interleaved({"ours": ours, "plain": loop}).items()}
    return {**result, "nano": nano_sampling()}


def interleaved(works: dict[str, Callable[[], Any]], rounds: int = 3) -> dict[str, float]:
    """CPU seconds of each by turns, so that all see the same machine; the best of all rounds."""
    best = dict.fromkeys(works, float("inf"))
    for number in range(rounds + 1):
        for name, work in works.items():
            seconds = cpu_seconds(work, rounds=1, warm_up=0)
            best[name] = min(best[name], seconds) if number else best[name]
    return best


def nano_sampling() -> dict[str, float]:
    """The nano base's condition tokens read once for the trajectory, and at every step."""
    run = nano_run({"distill": {"batch_size": 1}})
    condition = run.streams.batch(0).student
    noise = noise_like(condition.source, torch.Generator().manual_seed(0))

    class Rereading(Denoiser):
        def velocity(self, x_sigma: Tensor, sigma: float | Tensor) -> Tensor:
            self.prepared = self.backbone.prepare(condition)
            return super().velocity(x_sigma, sigma)

    def sample(kind: type[Denoiser]) -> Callable[[], Tensor]:
        def work() -> Tensor:
            with run.roles.use(STUDENT), torch.no_grad():
                denoiser = kind(run.backbone, condition)
                return sample_few_steps(denoiser, noise, STEPS, torch.Generator().manual_seed(0))

        return work

    return interleaved({"cached": sample(Denoiser), "rereading": sample(Rereading)}, rounds=10)


def child_seconds(*command: str, rounds: int = 2) -> float:
    """CPU seconds of a command, user and system: the best of some."""
    best = float("inf")
    for _ in range(rounds + 1):
        before = getrusage(RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True)
        after = getrusage(RUSAGE_CHILDREN)
        spent = (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)
        best = min(best, spent)
    return best


def cold() -> dict[str, Any]:
    """`edit` from nothing to a picture on the nano base, and what importing torch alone takes of it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        backbone = NanoBackbone.load()
        roles = Roles(backbone.network, backbone.lora_targets, {STUDENT: 32})
        effects = {"sepia": "<sepia_balumo> brown it"}
        recipe = Recipe(
            base="nano", steps=STEPS, shift=3.0, resolution=64, effects=effects, version=__version__
        )
        write_adapter(folder / "collection.safetensors", roles.weights(STUDENT), recipe)
        write_photo(folder / "photo.png", load_photograph(HELDOUT[0]))
        arguments = ["--effect", "sepia", "--photo", f"{name}/photo.png", "--out", f"{name}/out.png"]
        edit = child_seconds(sys.executable, "-m", "collectionlora", "edit", name, *arguments)
    return {
        "edit": edit,
        "import_torch": child_seconds(sys.executable, "-c", "import torch"),
        "import_peft": child_seconds(sys.executable, "-c", "import peft"),
        "help": child_seconds(sys.executable, "-m", "collectionlora", "--help"),
    }


def compiled() -> dict[str, Any]:
    """`model.compile` on the CPU: what it takes, and what a forward and a critic's update gain."""
    result: dict[str, Any] = {}
    for on in (False, True):
        run = qwen_run({"model": {"compile": on}})
        batch, first = run.streams.batch(0), torch.zeros(run.settings.distill.batch_size, dtype=torch.int64)
        simulation = Simulation(few_step_sigmas(1), [batch.target], first, batch.target)
        share = Share(run.streams, batch, run.streams.generator(0), simulation)

        def forward(run: Any = run, batch: Any = batch) -> None:
            with run.roles.use(STUDENT), torch.no_grad():
                Denoiser(run.backbone, batch.student).velocity(batch.target, 0.5)

        def learn(run: Any = run, share: Share = share) -> None:
            run.update_critic([share], run.critics[0], 0.0)

        began = time.process_time()
        forward()
        learn()
        first_seconds = time.process_time() - began
        seconds = {"forward": cpu_seconds(forward, 5), "learn": cpu_seconds(learn, 5), "first": first_seconds}
        result["compiled" if on else "plain"] = seconds
    return result


def several_processes() -> dict[str, Any]:
    """Seconds of a nano step in one process and in two, each with one thread and a batch of its own."""
    result = {}
    for number in (1, 2):
        launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(number)]
        command = [sys.executable, *launch, str(Path(__file__).with_name("__main__.py")), "--task", "member"]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        result[str(number)] = float(out.split()[-1])
    return result


def member() -> float:
    """One process of several: wall seconds of a step, which waits for the slowest."""
    with processes.joined():
        run = nano_run()
        run.streams.rank = processes.rank()
        run(0)
        best = float("inf")
        for step in range(1, 5):
            processes.barrier()
            began = time.perf_counter()
            run(step)
            processes.barrier()
            best = min(best, time.perf_counter() - began)
        return best


def merged() -> dict[str, Any]:
    """The student in the base's weights and beside them, in bfloat16.

    PSNR of the shipped adapter's pictures to those in float32, over nano; CPU seconds of trajectories over
    the Qwen transformer, in which the LoRA is added anew for each.
    """
    exact = shipped_pictures(torch.float32, fuse=False)
    distance = {}
    for name, fuse in (("beside", False), ("merged", True)):
        error = (shipped_pictures(torch.bfloat16, fuse) - exact).square().flatten(1).mean(dim=1)
        distance[name] = float(-10 * error.log10().mean())
    run = qwen_run({"model": {"dtype": "bfloat16"}})
    condition, noise = run.streams.batch(0).student, torch.randn(1, 16, 32, 32)
    seconds: dict[str, dict[str, float]] = {}
    for steps in (1, 2, STEPS):

        def sample(fuse: bool, steps: int = steps) -> None:
            run.roles.fuse = fuse
            with run.roles.frozen(STUDENT):
                generator = torch.Generator().manual_seed(0)
                sample_few_steps(Denoiser(run.backbone, condition), noise, steps, generator)

        works: dict[str, Callable[[], Any]] = {
            "beside": partial(sample, False),
            "merged": partial(sample, True),
        }
        seconds[str(steps)] = interleaved(works)
    return {"psnr": distance, "seconds": seconds}


def shipped_pictures(dtype: torch.dtype, fuse: bool) -> Tensor:
    """Three photographs under all effects of the shipped adapter, `[N, 3, 64, 64]`."""
    lora, recipe = read_adapter(SHIPPED)
    backbone = NanoBackbone.load()
    backbone.network.to(dtype)
    roles = Roles(backbone.network, backbone.lora_targets, {STUDENT: lora.rank}, fuse=fuse)
    roles.load(STUDENT, lora.weights)
    images = torch.cat([to_images([crop_square(load_photograph(name), 64)]) for name in HELDOUT])
    made = []
    for prompt in recipe.effects.values():
        condition = encode_condition(backbone, [prompt] * len(images), images)
        generator = torch.Generator().manual_seed(0)
        with roles.frozen(STUDENT):
            noise = noise_like(condition.source, generator)
            latents = sample_few_steps(Denoiser(backbone, condition), noise, STEPS, generator)
        made.append(backbone.decode(latents))
    return torch.cat(made)

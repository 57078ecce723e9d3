"""Train effect LoRAs over the nano base from image pairs, judge them on held-out photographs, keep the good.

    python scripts/nano/teachers.py --data DATA --out DIR --effects thermal sepia ...

Each effect sees `--pairs` crops of the training photographs. A teacher passes at 22 dB to the nearest valid
outcome, or 8 dB over the untouched source. DIR gets NAME.safetensors for each that passes, and
teachers.jsonl with one line for each that was tried; those are not tried again with the same settings.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from collectionlora.adapters.formats import write_lora
from collectionlora.adapters.low_rank import shrink
from collectionlora.adapters.roles import STUDENT, Roles
from collectionlora.backbones.base import Condition
from collectionlora.backbones.nano import WEIGHTS, NanoBackbone, fastest
from collectionlora.config import resolve
from collectionlora.effectbench.metrics import coverage, nearest_outcome, psnr, valid_outcomes
from collectionlora.effects import ALL_EFFECTS
from collectionlora.effects.ordinary import load_photographs
from collectionlora.pictures.photos import Photo, to_images, to_photos
from collectionlora.runs.teaching import EncodedPairs, Teaching
from collectionlora.sampling import Denoiser, sample_many_steps

GATE, GATE_OVER_SOURCE = 22.0, 8.0


def judge(
    backbone: NanoBackbone, roles: Roles, name: str, photos: list[Photo], args: Any
) -> dict[str, float]:
    """Mean PSNR to the nearest outcome of teacher and source, and how evenly the outcomes are covered."""
    effect = ALL_EFFECTS[name]
    source = backbone.encode_image(to_images(photos))
    prompts = [backbone.encode_prompt([text]).expand(len(photos)) for text in (effect.teacher_prompt, "")]
    noise = torch.randn(source.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), roles.use(STUDENT):
        cond, uncond = (Condition(prompt, source) for prompt in prompts)
        denoiser = Denoiser(backbone, cond, uncond, args.guidance_scale)
        made = to_photos(backbone.decode(sample_many_steps(denoiser, noise, args.sample_steps)))
    outcomes = [valid_outcomes(effect, photo) for photo in photos]
    nearest = [nearest_outcome(image, valid) for image, valid in zip(made, outcomes, strict=True)]
    copies = [max(psnr(photo, o) for o in valid) for photo, valid in zip(photos, outcomes, strict=True)]
    return {
        "psnr": float(np.mean([value for _, value in nearest])),
        "source_psnr": float(np.mean(copies)),
        "coverage": coverage([index for index, _ in nearest], len(outcomes[0])),
    }


def train(name: str, args: Any) -> dict[str, Any]:
    """One effect from its pairs to its line in the table."""
    effect = ALL_EFFECTS[name]
    pool = load_photographs(args.data / "photographs" / "train")
    rng = np.random.default_rng([args.seed, *name.encode()])
    photos = [pool.crop(rng) for _ in range(args.pairs)]
    answers = [effect(photo, rng) for photo in photos]
    backbone = NanoBackbone.load(args.base)
    backbone.network.to(*fastest())
    roles = Roles(backbone.network, backbone.lora_targets, {STUDENT: args.rank}, args.seed, fuse=True)
    settings = resolve(
        {
            "teach": {
                "steps": args.steps,
                "rank": args.rank,
                "learning_rate": args.rate,
                "batch_size": args.batch,
                "seed": args.seed,
            }
        }
    )
    sources, targets = (backbone.encode_image(to_images(side)) for side in (photos, answers))
    prompt = backbone.encode_prompt([effect.teacher_prompt])
    pairs = EncodedPairs(sources, targets, prompt)
    teaching = Teaching(name, backbone, roles, pairs, settings)
    began = time.perf_counter()
    losses = [teaching(step)["loss"] for step in range(teaching.num_steps)]
    seconds = time.perf_counter() - began
    weights = {module: shrink(pair, args.kept_rank)[0] for module, pair in teaching.weights().items()}
    roles.load(STUDENT, weights)

    heldout = load_photographs(args.data / "photographs" / "heldout")
    rng = np.random.default_rng(7)
    result = judge(backbone, roles, name, [heldout.crop(rng) for _ in range(args.judged)], args)
    passed = result["psnr"] >= GATE or result["psnr"] >= result["source_psnr"] + GATE_OVER_SOURCE
    if passed:
        header = {"teacher_prompt": effect.teacher_prompt, "base": "nano"}
        write_lora(args.out / f"{name}.safetensors", weights, header)
    row = {key: round(value, 2) for key, value in result.items()}
    loss = round(float(np.mean(losses[-50:])), 4)
    return {"effect": name, "passed": passed, **row, "loss": loss, "seconds": round(seconds)}


def read_rows(log: Path) -> list[dict[str, Any]]:
    """What was tried before."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--effects", nargs="+", choices=sorted(ALL_EFFECTS), required=True)
    parser.add_argument("--base", type=Path, default=WEIGHTS)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8, help="of the training")
    parser.add_argument("--kept-rank", type=int, default=8, help="of the file that is judged and written")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--judged", type=int, default=24)
    parser.add_argument("--sample-steps", type=int, default=40)
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / "teachers.jsonl"
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "effects"}
    for name in args.effects:
        if (name, settings) in ((row["effect"], row["settings"]) for row in read_rows(log)):
            continue
        row = train(name, args)
        print(json.dumps(row), flush=True)
        with log.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({**row, "settings": settings}) + "\n")


if __name__ == "__main__":
    main()

"""A strength dial for a finished collection over the nano base: what each candidate does to the picture.

    python scripts/nano/strength.py --collection DIR --out DIR [--photos 8] [--steps 8]

Candidates, each at the strengths 0, 0.25, ..., 1 and in the student's few steps:

    lora      the LoRA's weights are scaled
    prompt    the embedding moves from the instruction to keep the photo to the effect's prompt
    keep      velocities are blended with those under the instruction to keep the photo (two forwards)
    photo     velocities are blended with that of the photo itself (no further forward)
    start     the sampler starts from the photo, noised: fewer steps at less strength
    fade      the finished picture is faded over the photo: no dial at all, the control

For each effect with a known truth, on held-out photographs, in dB of PSNR: `photo` at strength 0 to the
photo; `truth` at 1 to the nearest valid outcome; `between`, at .25, .5 and .75, to the nearest valid outcome
at that strength, `(1 - s) * photo + s * outcome`. `uneven` is the largest |distance moved - s|, the distance
from the picture at 0 as a share of the whole way: 0 is an even dial. `sharp` is the mean gradient at .5 as a
share of that of the picture that `between` compares with: under 1 is blurred.
DIR gets strength.json, which scripts/results_table.py prints, and strength.png, a strip for each effect and
candidate.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from collectionlora.adapters.recipe import adapter_path, read_adapter
from collectionlora.adapters.roles import STUDENT, Roles
from collectionlora.backbones import load_backbone
from collectionlora.backbones.base import Condition, Prompt
from collectionlora.editing import STRIP, Editor
from collectionlora.effectbench.metrics import psnr, valid_outcomes
from collectionlora.effects import ALL_EFFECTS
from collectionlora.flow import add_noise, few_step_sigmas
from collectionlora.pictures.photographs import HELDOUT, pool
from collectionlora.pictures.photos import Photo, to_images, to_photos, write_photo
from collectionlora.pictures.sheets import contact_sheet
from collectionlora.sampling import Denoiser, noise_like, sample_student
from collectionlora.system.files import write_json

KEEP = "keep the photo unchanged"
Candidate = Callable[[Tensor, str, float, int], Tensor]  # images, prompt, strength, steps -> images


class Candidates:
    """All dials over one adapter; the same photo has the same noise in all of them."""

    def __init__(self, collection: Path):
        lora, recipe = read_adapter(adapter_path(collection))
        self.weights, self.backbone = lora.weights, load_backbone(recipe.base, recipe.model)
        # Not merged into the base, as an editor's own: a dial may scale it.
        self.roles = Roles(self.backbone.network, self.backbone.lora_targets, {STUDENT: lora.rank})
        self.roles.load(STUDENT, self.weights)
        self.editor = Editor(self.backbone, lambda: self.roles, recipe)

    def all(self) -> dict[str, Candidate]:
        return {
            "lora": self.lora,
            "prompt": self.prompt,
            "keep": self.keep,
            "photo": self.photo,
            "start": self.start,
            "fade": self.fade,
        }

    def encode(self, images: Tensor, prompt: str) -> Condition:
        return Condition(
            self.backbone.encode_prompt([prompt]).expand(len(images)), self.backbone.encode_image(images)
        )

    def run(self, denoiser: Denoiser, source: Tensor, steps: int) -> Tensor:
        seeds, recipe = range(len(source)), self.editor.recipe
        latents = sample_student(denoiser, source, seeds, steps, recipe.shift, recipe.sampler)
        return self.backbone.decode(latents)

    def plain(self, condition: Condition, steps: int) -> Tensor:
        with self.roles.use(STUDENT):
            return self.run(Denoiser(self.backbone, condition), condition.source, steps)

    def lora(self, images: Tensor, prompt: str, strength: float, steps: int) -> Tensor:
        self.roles.load(STUDENT, {name: (a, strength * b) for name, (a, b) in self.weights.items()})
        made = self.plain(self.encode(images, prompt), steps)
        self.roles.load(STUDENT, self.weights)
        return made

    def prompt(self, images: Tensor, prompt: str, strength: float, steps: int) -> Tensor:
        # Prompt.cat pads both to one length; a word that only one of them has fades from or to nothing.
        both = Prompt.cat([self.backbone.encode_prompt([KEEP]), self.backbone.encode_prompt([prompt])])
        tokens, mask = both.tokens[:1].lerp(both.tokens[1:], strength), both.mask.any(0, keepdim=True)
        if strength in (0, 1):
            mask = both.mask[[int(strength)]]
        mixed = Prompt(tokens, mask).expand(len(images))
        return self.plain(self.encode(images, prompt).with_prompt(mixed), steps)

    def keep(self, images: Tensor, prompt: str, strength: float, steps: int) -> Tensor:
        condition, backbone = self.encode(images, prompt), self.backbone
        kept = condition.with_prompt(backbone.encode_prompt([KEEP]).expand(len(images)))
        with self.roles.use(STUDENT):
            # uncond + w * (cond - uncond) with the instruction to keep as uncond is the blend.
            return self.run(Denoiser(backbone, condition, kept, strength), condition.source, steps)

    def photo(self, images: Tensor, prompt: str, strength: float, steps: int) -> Tensor:
        count = len(images)
        return self.editor.sample(images, [prompt] * count, range(count), steps, [strength] * count)

    @torch.no_grad()
    def start(self, images: Tensor, prompt: str, strength: float, steps: int) -> Tensor:
        condition = self.encode(images, prompt)
        sigmas = few_step_sigmas(steps, self.editor.recipe.shift)
        taken = sigmas[steps - round(strength * steps) :].tolist()
        x0 = condition.source
        with self.roles.use(STUDENT):
            denoiser = Denoiser(self.backbone, condition)
            generators = [torch.Generator().manual_seed(i) for i in range(len(images))]
            for sigma in taken:
                x0 = denoiser.x0(add_noise(x0, noise_like(x0, generators), sigma), sigma)
        return self.backbone.decode(x0)

    def fade(self, images: Tensor, prompt: str, strength: float, steps: int) -> Tensor:
        return images.lerp(self.plain(self.encode(images, prompt), steps), strength)


def sharpness(photo: NDArray[np.float64] | Photo) -> float:
    """The mean absolute difference of neighbouring pixels."""
    values = photo.astype(float)
    return float(np.abs(np.diff(values, axis=0)).mean() + np.abs(np.diff(values, axis=1)).mean())


def judge(strip: Sequence[Sequence[Photo]], photos: Sequence[Photo], effect: str) -> dict[str, float]:
    """The numbers of one candidate and effect; `strip` by strength, then by photo."""
    outcomes = [valid_outcomes(ALL_EFFECTS[effect], photo) for photo in photos]

    def ideals(index: int, strength: float) -> list[Photo]:
        photo = photos[index].astype(float)
        return [((1 - strength) * photo + strength * o).round().astype(np.uint8) for o in outcomes[index]]

    def nearest(index: int, strength: float, made: Photo) -> Photo:
        return max(ideals(index, strength), key=lambda ideal: psnr(made, ideal))

    dial = list(zip(STRIP, strip, strict=True))
    between = [psnr(m, nearest(i, s, m)) for s, made in dial if 0 < s < 1 for i, m in enumerate(made)]
    middle = strip[len(STRIP) // 2]
    flat = [np.stack(made).astype(float) for made in strip]
    way = np.linalg.norm(flat[-1] - flat[0])
    moved = [np.linalg.norm(f - flat[0]) / way for f in flat]
    return {
        "photo": float(np.mean([psnr(m, p) for m, p in zip(strip[0], photos, strict=True)])),
        "truth": float(np.mean([psnr(m, nearest(i, 1.0, m)) for i, m in enumerate(strip[-1])])),
        "between": float(np.mean(between)),
        "uneven": float(max(abs(m - s) for m, s in zip(moved, STRIP, strict=True))),
        "sharp": float(np.mean([sharpness(m) / sharpness(nearest(i, 0.5, m)) for i, m in enumerate(middle)])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--collection", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--photos", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    candidates = Candidates(args.collection)
    editor = candidates.editor
    crops, rng = pool(HELDOUT), np.random.default_rng(args.seed)
    photos = [crops.crop(rng) for _ in range(args.photos)]
    images = to_images(photos)
    table: dict[str, dict[str, dict[str, float]]] = {}
    rows = []
    for effect in (name for name in editor.recipe.effects if name in ALL_EFFECTS):
        for name, candidate in candidates.all().items():
            strip = [to_photos(candidate(images, editor.prompt([effect]), s, args.steps)) for s in STRIP]
            table.setdefault(name, {})[effect] = judge(strip, photos, effect)
            rows.append((f"{effect}, {name}", [made[0] for made in strip]))
    means = {
        name: {
            key: float(np.mean([row[key] for row in effects.values()]))
            for key in next(iter(effects.values()))
        }
        for name, effects in table.items()
    }
    settings = {"photos": args.photos, "steps": args.steps, "seed": args.seed}
    facts = {"table": "strength", "means": means, "effects": table, "settings": settings}
    write_json(args.out / "strength.json", facts)
    write_photo(args.out / "strength.png", contact_sheet(rows, [f"{s:g}" for s in STRIP], 96))


if __name__ == "__main__":
    main()

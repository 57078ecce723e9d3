"""Which effect does an edited photo show? A small convolutional classifier, trained on true effects.

It sees source and edited image together at 64 x 64. It also trains on degraded outputs (blurred, faded
towards the source or the mean, noisy), labelled "none" when little of the effect is left: a classifier that
knows only clean effects flatters washed-out pictures. Never read its accuracy without a PSNR beside it.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from collectionlora.effects import PhotoEffect
from collectionlora.effects.crops import PhotoPool
from collectionlora.pictures.photos import Photo, crop_square, to_images
from collectionlora.system.files import fingerprint, read_tensors, write_tensors
from collectionlora.system.progress import Progress, ignore

SIDE = 64
MAX_FADED_RECOGNISED = 0.5  # share of the effect below which a picture no longer shows it


class ConceptClassifier(nn.Module):
    """Logits over `[*effects, "none"]` for pairs of images in [0, 1], `[B, 3, H, W]` each."""

    def __init__(self, effects: Sequence[str], width: int = 24):
        super().__init__()
        self.effects = list(effects)
        sizes = [6, width, 2 * width, 4 * width, 4 * width]
        layers: list[nn.Module] = []
        for inside, outside in pairwise(sizes):
            layers += [
                nn.Conv2d(inside, outside, 3, stride=2, padding=1),
                nn.GroupNorm(4, outside),
                nn.SiLU(),
            ]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(8 * width, len(effects) + 1)

    def forward(self, source: Tensor, edited: Tensor) -> Tensor:
        features = self.features(torch.cat([source, edited], dim=1) - 0.5).flatten(2)
        return self.head(torch.cat([features.mean(2), features.amax(2)], dim=1))


def draw_example(
    effects: Sequence[PhotoEffect], photographs: PhotoPool, rng: np.random.Generator
) -> tuple[Photo, Photo, int]:
    """Source, edited photo and label; a quarter are untouched, the rest effects, half of them degraded."""
    photo = photographs.crop(rng, (SIDE, SIDE))
    label = int(rng.integers(len(effects)))
    if rng.random() < 0.25:
        return photo, degrade(photo, photo, rng)[0], len(effects)
    edited = effects[label](photo, rng)
    if rng.random() < 0.5:
        edited, kept = degrade(photo, edited, rng)
        label = label if kept >= MAX_FADED_RECOGNISED else len(effects)
    return photo, edited, label


def degrade(photo: Photo, edited: Photo, rng: np.random.Generator) -> tuple[Photo, float]:
    """An imperfect version of an edited photo, and the share of the effect that is left."""
    image = torch.from_numpy(edited.copy()).permute(2, 0, 1).float()[None]
    kept = 1.0
    kind = rng.integers(4)
    if kind == 0:
        side = int(rng.choice([3, 5]))
        image = F.avg_pool2d(image, side, stride=1, padding=side // 2, count_include_pad=False)
    elif kind == 1:
        kept = float(rng.random())
        image = kept * image + (1 - kept) * torch.from_numpy(photo.copy()).permute(2, 0, 1).float()
    elif kind == 2:
        kept = float(rng.random())
        image = kept * image + (1 - kept) * image.mean((2, 3), keepdim=True)
    else:
        image = image + torch.from_numpy(rng.normal(0, rng.uniform(4, 30), tuple(image.shape))).float()
    return image[0].permute(1, 2, 0).clamp(0, 255).byte().numpy(), kept


def train_classifier(
    effects: Mapping[str, PhotoEffect],
    photographs: PhotoPool,
    steps: int,
    seed: int = 0,
    batch: int = 32,
    progress: Progress = ignore,
) -> ConceptClassifier:
    """Train on crops of photographs that are not judged later; the rate falls to zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ConceptClassifier(list(effects))
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1.0, (steps - step) / (0.5 * steps))
        examples = [draw_example(list(effects.values()), photographs, rng) for _ in range(batch)]
        sources, edited, labels = zip(*examples, strict=True)
        logits = model(to_images(sources), to_images(edited))
        loss = F.cross_entropy(logits, torch.tensor(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress("classifier", step + 1, steps, {"loss": loss.item()})
    return model.eval()


def load_or_train(
    folder: Path,
    effects: Mapping[str, PhotoEffect],
    photographs: PhotoPool,
    steps: int,
    seed: int,
    progress: Progress = ignore,
) -> ConceptClassifier:
    """The classifier from `folder`, where one that was trained on the same things may be."""
    # Examples stand for all that they are drawn from: photographs, effects and this file's own rules.
    rng = np.random.default_rng([seed, steps])
    drawn = [draw_example([effect], photographs, rng) for effect in effects.values() for _ in range(8)]
    seen = [photo.tobytes() for source, edited, _ in drawn for photo in (source, edited)]
    path = (
        folder / f"classifier-{fingerprint(list(effects), steps, seed, len(photographs), *seen)}.safetensors"
    )
    found = read_tensors(path)
    if found is None:
        model = train_classifier(effects, photographs, steps, seed, progress=progress)
        write_tensors(path, model.state_dict(), {})
        return model.eval()
    model = ConceptClassifier(list(effects))
    model.load_state_dict(found[0])
    return model.eval()


@torch.no_grad()
def probabilities(model: ConceptClassifier, sources: Sequence[Photo], edited: Sequence[Photo]) -> Tensor:
    """`[B, len(effects) + 1]`, the last column "none"."""
    before, after = (to_images([crop_square(p, SIDE) for p in photos]) for photos in (sources, edited))
    return model(before, after).softmax(1)

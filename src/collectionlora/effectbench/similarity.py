"""What can be measured without a truth: how near a picture is to its photo, its prompt and its effect.

The effect is known from reference images: the edited sides of its first image pairs.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from collectionlora.config import BenchSettings
from collectionlora.effectbench.bench import Cases
from collectionlora.effectbench.scoring import Measured, Meter, Values
from collectionlora.pictures.photos import Photo
from collectionlora.system.errors import UserError

if TYPE_CHECKING:
    from collectionlora.effectbench.encoders import Clip, Dino, ImageEncoder

# Measures of other benchmarks that are never made here, and why.
NEVER = {
    "dreamsim": "its weights are pickles, and its code is fetched by torch.hub; neither is opened here",
    "editreward": "no package holds its model; it would run with its repository's own code",
}


def missing_models(settings: BenchSettings) -> dict[str, str]:
    """The models that are not used, by name, and why."""
    given = {"clip": settings.clip, "dino": settings.dino}
    missing = {
        name: f"no model is given: --set bench.{name}=FOLDER" for name, model in given.items() if not model
    }
    return missing | NEVER


def check_library(settings: BenchSettings) -> None:
    """Look for what opens the models, before any picture is made.

    Raises:
        UserError: a model is given, and transformers is not installed.
    """
    for name in sorted({"clip", "dino"} - missing_models(settings).keys()):
        if find_spec("transformers") is None:
            hint = "install it: pip install 'collectionlora[bench]'"
            raise UserError("", f"bench.{name}", "needs transformers", hint)


def load_clip(settings: BenchSettings) -> "Clip | None":
    """The CLIP model of the settings, if one is given."""
    if not settings.clip:
        return None
    from collectionlora.effectbench.encoders import Clip

    return Clip(settings.clip)


def load_dino(settings: BenchSettings) -> "Dino | None":
    """The DINOv2 model of the settings, if one is given."""
    if not settings.dino:
        return None
    from collectionlora.effectbench.encoders import Dino

    return Dino(settings.dino)


def image_meter(
    name: str, encoder: "ImageEncoder", cases: Cases, references: Mapping[str, Sequence[Photo]]
) -> Meter:
    """Cosine to the photo (`NAME_source`), and to the mean of the reference images (`NAME_reference`)."""
    sources = encoder.images(cases.photos)
    means = {effect: encoder.images(photos).mean(0) for effect, photos in references.items()}

    def measure_one(effect: str, photos: Sequence[Photo]) -> Measured:
        made = encoder.images(photos)
        columns: dict[str, Values] = {f"{name}_source": (made * sources).sum(1).numpy()}
        if effect in means:
            # The mean of unit vectors is shorter than one; a cosine asks for its direction.
            columns[f"{name}_reference"] = (made @ (means[effect] / means[effect].norm())).numpy()
        return Measured(columns)

    return lambda effect, made: {method: measure_one(effect, photos) for method, photos in made.items()}


def text_meter(clip: "Clip", prompts: Mapping[str, str]) -> Meter:
    """Cosine of picture and teacher prompt."""
    texts = dict(zip(prompts, clip.texts(list(prompts.values())), strict=True))

    def measure(effect: str, made: Mapping[str, Sequence[Photo]]) -> dict[str, Measured]:
        return {
            method: Measured({"clip_text": (clip.images(photos) @ texts[effect]).numpy()})
            for method, photos in made.items()
        }

    return measure


def similarity_meters(
    settings: BenchSettings,
    cases: Cases,
    references: Mapping[str, Sequence[Photo]],
    prompts: Mapping[str, str],
) -> list[Meter]:
    """The meters of the models that are given.

    Args:
        references: reference images by effect.
        prompts: teacher prompts by effect.

    Raises:
        UserError: a model that is given cannot be opened.
    """
    meters: list[Meter] = []
    if clip := load_clip(settings):
        meters += [text_meter(clip, prompts), image_meter("clip", clip, cases, references)]
    if dino := load_dino(settings):
        meters.append(image_meter("dino", dino, cases, references))
    return meters

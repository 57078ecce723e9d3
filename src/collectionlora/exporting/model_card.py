"""What an exported adapter says of itself: the model card, the example, and the header of its file."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from string import Template

from huggingface_hub import ModelCardData

from collectionlora.adapters.recipe import KEY, Recipe
from collectionlora.backbones.comfyui import COMFYUI_SAMPLERS
from collectionlora.backbones.family import ExportFacts
from collectionlora.backbones.quantization import describe
from collectionlora.pictures.sizes import MAX_ASPECT
from collectionlora.system.version import __version__

TITLE = "modelspec.title"  # of an export's header: the collection's name
EXAMPLE = Template('''\
"""Edit one photo: python example.py PHOTO EFFECT OUT [SEED [REFERENCE ...]]"""

import sys
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.utils import load_image

BASE, REVISION = $base, $revision
LORA = "pytorch_lora_weights.safetensors"
STEPS, RESOLUTION, MULTIPLE = $steps, $resolution, $multiple
PROMPTS = $prompts
REFERENCES = $references  # how many reference images an effect takes beside the photo

folder = Path(__file__).parent
photo, effect, out, *more = sys.argv[1:]
seed, *references = more or ["0"]
if len(references) != REFERENCES.get(effect, 0):
    sys.exit(f"{effect} takes {REFERENCES.get(effect, 0)} reference images, {len(references)} are given")
device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)

pipe = DiffusionPipeline.from_pretrained(BASE, revision=REVISION, dtype=dtype).to(device)
$lora_loader
# The scheduler that the student was distilled for, in place of the pipeline's own.
pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")

images = []
for image in map(load_image, (photo, *references)):
    # The sizes that the student was trained at: the photo's shape, up to $max_aspect to 1.
    aspect = min(max(image.height / image.width, 1 / $max_aspect), $max_aspect)
    sides = RESOLUTION / aspect**0.5, RESOLUTION * aspect**0.5
    size = [max(1, round(side / MULTIPLE)) * MULTIPLE for side in sides]
    images.append(image.resize(size, resample=1))  # Lanczos
width, height = images[0].size
${setup}torch.manual_seed(int(seed))
result = pipe(
    image=images if references else images[0],
    $prompt,
    num_inference_steps=STEPS,
    sigmas=[1 - i / STEPS for i in range(STEPS)],
    $arguments,
)
result.images[0].convert("RGB").save(out)
''')

BODY = Template("""\
# $title

One LoRA over $base that holds $count effects and samples each in $steps steps without guidance.
Made with collectionlora, after CollectionLoRA (arXiv 2605.25378). It was distilled on $held.

## Effects

| effect | trigger | prompt |
|---|---|---|
$rows

The prompt names the effect: give it word for word. `apply PROMPT, then PROMPT` asks for two at once.
$previews
## Use

$use

## Sampling

$steps steps, shift $shift, no guidance (CFG 1), at about $resolution x $resolution pixels. Step i of n starts
at the noise level `shift(1 - i/n)` with `shift(s) = $shift s / (1 + ($shift - 1) s)`. $noise
In diffusers that is the `FlowMatchEulerDiscreteScheduler` with these `sigmas` and `stochastic_sampling`
$stochastic, in ComfyUI the sampler `$sampler` with the scheduler `simple`.
$reduction""")

NOISE = {
    "stochastic": "Fresh noise is put in after each step.",
    "euler": "No noise is put in after the first step.",
}
VERSIONS = {"collectionlora": __version__} | {
    name: version(name) for name in ("peft", "safetensors", "torch")
}
USES = {
    "diffusers": """\
`python example.py PHOTO EFFECT OUT [SEED [REFERENCE ...]]` edits one photo.
The script says how the LoRA is loaded. The scheduler comes by
`FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")`.""",
    "peft": """\
`PeftModel.from_pretrained(pipe.transformer, folder)` loads the adapter, and
`FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")` the scheduler.""",
    "comfyui": """\
Put `$file` into `models/loras`, load `workflow.json`, choose your photo and your files of the base, and give
the prompt of an effect. ComfyUI's tokenizers of CLIP and T5 drop plain brackets: for them write
`\\(` and `\\)` in place of `(` and `)`.""",
    "lightx2v": """\
Name `$file` as the `path` of an entry in `lora_configs`, and give the prompt of an effect.""",
}
EMBEDDED_USE = """\
`collectionlora edit $file PHOTO --effect EFFECT` edits one photo. The $base base is embedded
in collectionlora; neither diffusers nor ComfyUI has it."""


@dataclass(frozen=True)
class Reduction:
    """What a smaller rank lost, relative to the norms of the changes; measured on the written numbers."""

    from_rank: int
    rank: int
    overall: float
    worst: float
    worst_module: str

    def __str__(self) -> str:
        return (
            f"rank {self.from_rank} reduced to {self.rank}: relative error {self.overall:.2g} overall, "
            f"at most {self.worst:.2g} ({self.worst_module})"
        )


@dataclass(frozen=True)
class Card:
    """All that card, example and header are made from."""

    title: str
    format: str
    file: str
    recipe: Recipe
    facts: ExportFacts
    side_multiple: int  # of the base's images
    reduction: Reduction | None = None
    previews: Mapping[str, str] = field(default_factory=dict)  # effect to image, relative to the card

    @property
    def base(self) -> str:
        """The base without its revision; of a folder its name, for a card is no place for a path."""
        name = self.recipe.base.partition("@")[0]
        return Path(name).resolve().name if Path(name).is_dir() else name

    @property
    def triggers(self) -> dict[str, str]:
        """The made-up word of each effect, or its whole prompt where there is none."""
        found = {name: re.match(r"<[^<>]+>", prompt) for name, prompt in self.recipe.effects.items()}
        return {name: f[0] if f else self.recipe.effects[name] for name, f in found.items()}

    def text(self) -> str:
        """The model card: front matter and body."""
        widget = [
            {"text": prompt} | ({"output": {"url": self.previews[name]}} if name in self.previews else {})
            for name, prompt in self.recipe.effects.items()
        ]
        data = ModelCardData(
            base_model=self.base,
            library_name="peft" if self.format == "peft" else "diffusers",
            license=self.facts.license,
            pipeline_tag="image-to-image",
            tags=["lora", "diffusers", "image-to-image", "collectionlora"],
            instance_prompt=", ".join(self.triggers.values()),
            widget=widget,
        )
        return f"---\n{data.to_yaml()}\n---\n\n{self._body()}"

    def _body(self) -> str:
        cell = str.maketrans({"|": r"\|", "\n": " "})
        rows = []
        for name, prompt in self.recipe.effects.items():
            trigger, written = (text.translate(cell) for text in (self.triggers[name], prompt))
            rows.append(f"| {name}{self._beside(name)} | `{trigger}` | `{written}` |")
        images = [f"\n![{name}]({path})" for name, path in self.previews.items()]
        use = EMBEDDED_USE if self.facts.arguments is None else USES[self.format]
        return BODY.substitute(
            title=self.title,
            base=self.base,
            held=describe(self.recipe.model.quantization),
            count=len(self.recipe.effects),
            steps=self.recipe.steps,
            shift=f"{self.recipe.shift:g}",
            noise=NOISE[self.recipe.sampler],
            stochastic="on" if self.recipe.sampler == "stochastic" else "off",
            sampler=COMFYUI_SAMPLERS[self.recipe.sampler],
            resolution=self.recipe.resolution,
            rows="\n".join(rows),
            previews="".join(f"{image}\n" for image in images),
            use=Template(use).substitute(file=self.file, base=self.base),
            reduction=f"\n## Rank\n\nBy singular values, {self.reduction}.\n" if self.reduction else "",
        )

    def _beside(self, effect: str) -> str:
        count = self.recipe.references.get(effect, 0)
        return f", {count} reference image{'s' if count > 1 else ''}" if count else ""

    def example(self) -> str:
        """A script that edits one photo without collectionlora; only for a base that diffusers has."""
        assert self.facts.arguments is not None
        base, _, revision = self.recipe.base.partition("@")
        setup = Template(self.facts.setup).substitute(seen=self.recipe.model.condition_resolution)
        own = self.facts.arguments.format(guidance=self.recipe.model.embedded_guidance)
        return EXAMPLE.substitute(
            base=repr(base),
            revision=repr(revision or None),
            steps=self.recipe.steps,
            resolution=self.recipe.resolution,
            multiple=self.side_multiple,
            max_aspect=MAX_ASPECT,
            prompts=json.dumps(self.recipe.effects, indent=4, ensure_ascii=False),
            references=json.dumps(self.recipe.references, ensure_ascii=False),
            arguments=", ".join(filter(None, [self.facts.size_arguments, own])),
            lora_loader=self.facts.lora_loader,
            prompt=self.facts.prompt_arguments,
            setup=setup and f"{setup}\n",
        )

    def header(self) -> dict[str, str]:
        """Of the safetensors file: Stability's model specification 1.0, the recipe, and who made it."""
        side = self.recipe.resolution
        return {
            "format": "pt",
            KEY: self.recipe.model_dump_json(),
            "collectionlora.versions": json.dumps(VERSIONS),
            "triggers": json.dumps(self.triggers, ensure_ascii=False),
            "modelspec.sai_model_spec": "1.0.0",
            "modelspec.architecture": f"{self.facts.architecture}/lora",
            "modelspec.implementation": "https://github.com/huggingface/diffusers",
            TITLE: self.title,
            "modelspec.description": f"{len(self.recipe.effects)} effects in {self.recipe.steps} steps",
            "modelspec.date": datetime.now(UTC).isoformat(timespec="seconds"),
            "modelspec.license": self.facts.license,
            "modelspec.resolution": f"{side}x{side}",
            "modelspec.trigger_phrase": ", ".join(self.triggers.values()),
            "modelspec.tags": ", ".join(["lora", "image-to-image", *self.recipe.effects]),
            "modelspec.usage_hint": f"{self.recipe.steps} steps, shift {self.recipe.shift:g}, CFG 1, "
            f"sampler {COMFYUI_SAMPLERS[self.recipe.sampler]}, scheduler simple",
        }

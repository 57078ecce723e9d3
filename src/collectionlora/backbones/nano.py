"""The embedded default base: a small instruction-editing model whose weights ship with the package.

Latents are pixels in [-1, 1], float32 wherever the caller has them; the network's device and dtype end at
this border. The text encoder needs no vocabulary: a word is the mean of hashed character
n-grams and of the hashed whole word, so any text is read and an unseen trigger word gets an embedding of its
own.
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from collectionlora.backbones.base import Condition, Prompt, Shapes
from collectionlora.backbones.family import ExportFacts, Family, SectionValues
from collectionlora.backbones.nano_network import EncodedCondition, NanoConfig, NanoTransformer
from collectionlora.backbones.quantization import block_layers, quantize
from collectionlora.collection import MANIFEST
from collectionlora.config import ModelSettings
from collectionlora.effects.ordinary import general_instructions
from collectionlora.flow import few_step_sigmas
from collectionlora.objectives import guided
from collectionlora.system.errors import UserError
from collectionlora.system.files import load_tensors, write_tensors

NUM_BUCKETS = 4096
MAX_WORDS = 48
MAX_BATCH = 16
SHIFT = 12.0  # of nano's own schedule; teachers and students are better than with 3: docs/nano.md#schedule
SIDE_MULTIPLE = 8
WORD = re.compile(r"[^\W_]+|[^\w\s]|_")
# A small network on few pixels learns at far higher rates than the paper's 20 B model, and from batches.
RECOMMENDED: SectionValues = {
    "student": {"rank": 32, "learning_rate": 5e-5},
    "critic": {"rank": 32, "learning_rate": 1e-3},
    "sampling": {"sampler": "euler", "shift": SHIFT},
    "targets": {"steps": 8, "guidance_scale": 1.25, "samples": 1, "general": 48},
    "teach": {"steps": 500, "rank": 8, "learning_rate": 2e-3, "batch_size": 8},
    "match": {"updates": 1150, "learning_rate": 2e-3, "batch_size": 4, "loss": "flow"},
    "distill": {
        "guidance_scale": 1.25,
        "student_updates": 10,
        "batch_size": 8,
        "effect_ratio": 0.75,
        "decay_ratio": 0.6,
        "weight_decay": 0,
        "anchor_weight": 0,
        "rollout_steps": [8, 4],
    },
    "add": {"match_updates": 400, "student_updates": 10},
}
WEIGHTS = Path(__file__).parents[1] / "weights" / "nano.safetensors"


def word_buckets(word: str) -> list[int]:
    """Rows of the table for one word: the word itself twice, and its character 3-grams with marked ends."""
    marked = f"^{word}$"
    grams = [marked[i : i + 3] for i in range(len(marked) - 2)]
    return [zlib.crc32(piece.encode()) % NUM_BUCKETS for piece in [f"={word}", f"~{word}", *grams]]


def fastest() -> tuple[torch.device, torch.dtype]:
    """Where and in what the network computes quickest here: bfloat16 where products of it are faster.

    A CPU without instructions for it is about ten times slower in bfloat16.
    """
    if torch.cuda.is_available():
        return torch.device("cuda"), torch.bfloat16
    capabilities = torch.cpu.get_capabilities()
    quick = capabilities.get("amx_bf16", False) or capabilities.get("avx512_bf16", False)
    return torch.device("cpu"), torch.bfloat16 if quick else torch.float32


class NanoTextEncoder(nn.Module):
    """Texts to word embeddings; `[B, T, width]`, T the longest text's words."""

    def __init__(self, width: int):
        super().__init__()
        self.table = nn.EmbeddingBag(NUM_BUCKETS, width, mode="mean")
        nn.init.normal_(self.table.weight, std=1.0)

    def forward(self, prompts: Sequence[str]) -> Prompt:
        texts = [WORD.findall(prompt.lower())[:MAX_WORDS] for prompt in prompts]
        # A lone masked token keeps the shapes of an empty text valid.
        length = max(1, *(len(words) for words in texts)) if texts else 1
        mask = torch.zeros(len(texts), length, dtype=torch.bool)
        buckets: list[int] = []
        offsets: list[int] = []
        for row, words in enumerate(texts):
            mask[row, : len(words)] = True
            for word in words:
                offsets.append(len(buckets))
                buckets += word_buckets(word)
        device = self.table.weight.device
        tokens = self.table.weight.new_zeros(*mask.shape, self.table.embedding_dim)
        mask = mask.to(device)
        if offsets:
            rows = self.table(torch.tensor(buckets, device=device), torch.tensor(offsets, device=device))
            # The pieces of a word are independent: their mean shrinks with their number, the norm must not.
            tokens[mask] = nn.functional.rms_norm(rows, rows.shape[-1:])
        return Prompt(tokens, mask)


class NanoBackbone:
    """The nano base behind the `Backbone` protocol; images `[B, 3, H, W]`, sides in multiples of 8."""

    lora_targets: tuple[str, ...] = (
        *("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj"),
        *("img_mlp.net.0.proj", "img_mlp.net.2", "txt_in", "pooled_in.0", "pooled_in.2"),
        *("pixel_in", "pixel_mod.0", "pixel_mod.1", "pixel_mod.2", "pixel_mix.0", "pixel_mix.1", "proj_out"),
    )
    side_multiple, prompts_see_photos, fuses_lora, guides_in_one_batch = SIDE_MULTIPLE, False, True, True
    dtype = torch.float32

    def __init__(self, config: NanoConfig | None = None):
        config = config or NanoConfig()
        self.network = NanoTransformer(config)
        self.text_encoder = NanoTextEncoder(config.text_width)

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> "NanoBackbone":
        """The base from a safetensors file, by default the one that ships with the package; on the CPU.

        Raises:
            FileNotFoundError: there is no such file.
        """
        tensors, header = load_tensors(path)
        backbone = cls(NanoConfig(**{name: int(header[name]) for name in NanoConfig().asdict()}))
        backbone.modules.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        backbone.modules.requires_grad_(False).eval()
        return backbone

    @property
    def device(self) -> torch.device:
        return self.network.device

    @property
    def computes_in(self) -> torch.dtype:
        return self.network.dtype

    @property
    def modules(self) -> nn.ModuleDict:
        """All weights of the base under one roof."""
        return nn.ModuleDict({"network": self.network, "text_encoder": self.text_encoder})

    def save(self, path: Path, metadata: dict[str, str]) -> None:
        """Write the weights in half precision, the sizes and `metadata` in the header."""
        state = self.modules.state_dict()
        tensors = {name: tensor.half() for name, tensor in state.items()}
        sizes = {name: str(size) for name, size in self.network.config.asdict().items()}
        write_tensors(path, tensors, {**metadata, **sizes})

    def encode_prompt(self, prompts: Sequence[str], photos: Sequence[Tensor] = ()) -> Prompt:
        return self.text_encoder(prompts)

    def encode_image(self, images: Tensor) -> Tensor:
        return images * 2 - 1

    def decode(self, latents: Tensor) -> Tensor:
        return (latents / 2 + 0.5).clamp(0, 1)

    def release_encoders(self) -> None:
        """Nothing is large."""

    def release_network(self) -> None:
        """Nothing is large."""

    def shapes(self, size: tuple[int, int]) -> Shapes:
        return Shapes((3, *size), (MAX_WORDS, self.network.config.text_width))

    def max_batch(self, condition: Condition) -> int:
        return MAX_BATCH

    def prepare(self, condition: Condition) -> EncodedCondition:
        """Keys and values of the condition, the same for every noisy point and sigma."""
        assert not condition.references, "the nano base reads one photo"
        inputs = condition.prompt.tokens, condition.prompt.mask, condition.source
        return self.network.encode_condition(*(tensor.to(self.network.device) for tensor in inputs))

    def begin_trajectory(self, prepared: EncodedCondition) -> EncodedCondition:
        return prepared

    def velocity(self, x_sigma: Tensor, sigma: Tensor, prepared: EncodedCondition) -> Tensor:
        device = self.network.device
        return self.network(x_sigma.to(device), sigma.to(device), prepared).to(x_sigma.device)

    def guide(self, cond: Tensor, uncond: Tensor, guidance_scale: float) -> Tensor:
        return guided(cond, uncond, guidance_scale)

    def teacher_sigmas(self, num_steps: int, noise: Tensor) -> Tensor:
        return few_step_sigmas(num_steps, SHIFT)


class NanoFamily(Family):
    """The nano base: one base, whose weights ship with the package."""

    def load(self, base: str, settings: ModelSettings) -> NanoBackbone:
        check_settings(settings)
        nano = NanoBackbone.load()
        device, dtype = fastest()
        nano.network.to(dtype=dtype)
        if settings.quantization != "none":
            quantize(nano.network, block_layers(nano.network), settings.quantization, dtype)
            nano.fuses_lora = False
        nano.network.to(device)
        return nano

    def without_weights(self, base: str, settings: ModelSettings, depths: Mapping[str, int]) -> NanoBackbone:
        check_settings(settings)
        with torch.device("meta"):
            return NanoBackbone()

    def empty_network(self, base: str) -> tuple[nn.Module, tuple[str, ...]]:
        nano = NanoBackbone.load()
        return nano.network, nano.lora_targets

    def list_files(self, base: str) -> tuple[Path, list[Path]]:
        return WEIGHTS.parent, [WEIGHTS]

    def list_instructions(self) -> list[str]:
        return general_instructions()


def check_settings(settings: ModelSettings) -> None:
    """Refuse what the nano base does not have: it can be quantised, to study what that changes.

    Raises:
        UserError: any other setting that is not its default.
    """
    if settings != ModelSettings(quantization=settings.quantization):
        message = "are for large bases; the nano base is small, in the dtype that is fastest here"
        raise UserError(MANIFEST, "settings.model", message, "leave out all but quantization")


NANO = NanoFamily(
    name="nano",
    export=ExportFacts("collectionlora-nano", "apache-2.0", None, comfyui_prefix="diffusion_model."),
    recommended=RECOMMENDED,
    side_multiple=SIDE_MULTIPLE,
    schedule=f"shift {SHIFT:g}",
    note="embedded in this package, for 64 x 64 pixels; or a diffusers editing model",
)

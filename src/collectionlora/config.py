"""Every setting of the method, typed and frozen. An unknown name is an error that names the nearest one.

Defaults are the paper's but for those that docs/method.md#two-recipes lists. Over them lie, in this order,
what the base recommends, the recipe, `collection.yaml` and `--set section.name=value`. The resolved settings
are saved with every run.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

from collectionlora.system.errors import quote
from collectionlora.system.yaml_reading import read_yaml

EXPONENT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)(?:\.[0-9]*)?[eE][-+]?[0-9]{1,3}")
Overrides = Mapping[str, Mapping[str, Any]]  # values of settings by section and name
# Marks a setting, or a whole section, that changes no result: neither a picture nor a weight.
NO_RESULT: JsonDict = {"changes_result": False}


class Section(BaseModel):
    """A frozen group of settings; refuses unknown names, and words and truth values in place of numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    @field_validator("*", mode="before")
    @classmethod
    def _read_exponent(cls, value: Any) -> Any:
        """YAML takes 1e-4 for text; all other text is not a number, however much it looks like one."""
        return float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value


class Schedule(Section):
    """A loss weight that moves linearly over the student updates; a single number is a constant."""

    start: float = Field(ge=0)
    end: float = Field(ge=0)

    @model_validator(mode="before")
    @classmethod
    def _constant(cls, value: Any) -> Any:
        return {"start": value, "end": value} if isinstance(value, int | float) else value

    def at(self, progress: float) -> float:
        """The weight at `progress` in [0, 1]."""
        return self.start + progress * (self.end - self.start)


Sampler = Literal["stochastic", "euler"]
Quantization = Literal["none", "nf4", "int8"]
Weight = Annotated[Schedule, Field(strict=False)]  # may be given as a mapping, or as one number
Switch = Annotated[bool, Field(strict=False)]  # may be given as a word: yes, no, on, off


class ModelSettings(Section):
    """How the base is held and read; of these the embedded nano base takes `quantization` alone."""

    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="number format of the frozen base; trained weights stay in float32"
    )
    quantization: Quantization = Field(
        "none", description="of the blocks of the base and its text encoders, by bitsandbytes"
    )
    sharding: Literal["none", "fsdp"] = Field(
        "none", description="fsdp splits the frozen base over processes", json_schema_extra=NO_RESULT
    )
    gradient_checkpointing: Switch = Field(
        False, description="recompute blocks in backward: less memory, more time", json_schema_extra=NO_RESULT
    )
    attention: Literal[
        "native", "_native_cudnn", "_native_efficient", "_native_flash", "flash", "_flash_3", "xformers"
    ] = Field(
        "native", description="attention kernel by its name in diffusers; native leaves the choice to torch"
    )
    compile: Switch = Field(
        False, description="torch.compile of the blocks, not for edit and studio", json_schema_extra=NO_RESULT
    )
    embedded_guidance: float = Field(
        2.5, ge=0, description="input of guidance-distilled bases, not the w of guidance_scale"
    )
    condition_resolution: int = Field(
        384, ge=56, le=8192, description="side of the photo in the text encoder"
    )


class DataSettings(Section):
    """The size and the shape in which photos are worked on."""

    resolution: int = Field(
        64, ge=8, le=8192, description="a photo keeps its shape, with the pixels of a square of this side"
    )
    crop: Literal["none", "square"] = Field(
        "none", description="square trains and judges on the middle squares of photos"
    )


class RoleSettings(Section):
    """The LoRA of the student, or of the critic."""

    rank: int = Field(32, ge=1, description="LoRA rank; alpha equals it")
    learning_rate: float = Field(1e-4, gt=0, description="of AdamW, in the distillation")


class SamplingSettings(Section):
    """The student's few steps."""

    steps: int = Field(8, ge=1, description="number of the student's steps")
    shift: float = Field(
        3.0, gt=0, description="shift of the student's schedule, and of the sigmas that training draws"
    )
    sampler: Sampler = Field("stochastic", description="stochastic adds fresh noise after each step")


class TargetSettings(Section):
    """How teachers are sampled before the distillation."""

    steps: int = Field(40, ge=1, description="steps of the teacher's sampler")
    guidance_scale: float = Field(5.0, ge=0, description="w of the base's own guidance; 1 means no guidance")
    samples: int = Field(1, ge=1, description="teacher samples for each photo")
    general: int = Field(256, ge=1, description="pairs of a photo and an instruction, drawn at random")
    compositions: int = Field(
        0, ge=0, description="for each effect, samples of it on another effect's picture; for match.loss=flow"
    )


class TeachSettings(Section):
    """How `teach` trains the LoRA of one effect from image pairs."""

    steps: int = Field(2000, ge=1, description="updates")
    rank: int = Field(16, ge=1, description="LoRA rank; alpha equals it")
    learning_rate: float = Field(1e-4, gt=0, description="of AdamW")
    batch_size: int = Field(8, ge=1, description="pairs in one update")
    shift: float = Field(3.0, gt=0, description="shift of the sigmas that training draws")
    max_grad_norm: float = Field(1.0, gt=0, description="a longer gradient is scaled down to this norm")
    decay_ratio: float = Field(
        0.4, ge=0, le=1, description="share of the updates, at the end, in which the learning rate falls"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of first weights, noise and the order of pairs")


class MatchSettings(Section):
    """The warm start: the student follows the routed teacher without a critic."""

    updates: int = Field(0, ge=0, description="of the warm start; 0 leaves it out")
    learning_rate: float = Field(3e-4, gt=0, description="of AdamW, in the warm start")
    batch_size: int | None = Field(
        None, ge=1, description="photos in one batch; none means distill.batch_size"
    )
    loss: Literal["velocity", "flow"] = Field(
        "velocity", description="velocity follows the teacher; flow is flow matching on samples"
    )
    coupled_above: float = Field(
        1.0, ge=0, le=1, description="above this sigma, flow matching reuses the sample's noise"
    )
    fresh_share: float = Field(
        0.6, ge=0, le=1, description="standard deviation of fresh noise in the reused noise"
    )
    composition_ratio: float = Field(
        0.25, ge=0, le=1, description="share of compositions among the samples of the effect stream"
    )
    start: str = Field(
        "base",
        min_length=1,
        description="base, merge (the SVD merge of the teachers), or the file of a finished adapter",
    )


class DistillSettings(Section):
    """The distillation: its length, its streams, the weights of its losses and its optimizer."""

    student_updates: int = Field(5000, ge=0, description="updates of the student")
    student_update_every: int = Field(5, ge=1, description="critic updates for each student update")
    batch_size: int = Field(1, ge=1, description="photos in one batch, on each device")
    accumulate: int = Field(1, ge=1, description="batches for each update; N on one device equal N devices")
    guidance_scale: float = Field(
        5.0, ge=0, description="w of the teacher in the losses; 1 means no guidance"
    )
    effect_ratio: float = Field(
        0.5, ge=0, le=1, description="probability of the effect stream (p_switch); 1 switches PDSR off"
    )
    route_every: int = Field(1, ge=1, description="number of steps that keep one choice of stream")
    seed: int = Field(0, ge=0, lt=2**63, description="of every random draw")
    checkpoint_minutes: float = Field(
        5,
        ge=0,
        description="minutes between checkpoints; 0 writes one after each step",
        json_schema_extra=NO_RESULT,
    )
    keep_checkpoints: int = Field(
        3, ge=1, description="number of checkpoints that are kept", json_schema_extra=NO_RESULT
    )
    asymmetric_prompts: Switch = Field(
        True, description="AOP: the student reads a prompt of its own; no gives it the teacher's prompt"
    )
    rollout_steps: tuple[Annotated[int, Field(ge=1, strict=True)], ...] = Field(
        (8,), min_length=1, strict=False, description="numbers of steps to learn; each update draws one"
    )
    critic_samples: Literal["final", "simulated"] = Field(
        "final", description="final images train the critic, or predictions at a random step"
    )
    backward_weight: Weight = Field(Schedule(start=1, end=1), description="of L_BS, backward simulation")
    target_weight: Weight = Field(Schedule(start=1, end=1), description="of L_TS, target simulation")
    anchor_weight: Weight = Field(Schedule(start=1, end=0), description="of L_TA, trajectory anchoring")
    max_grad_norm: float = Field(10.0, gt=0, description="a longer gradient is scaled down to this norm")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")
    loraplus_lr_ratio: float = Field(
        1.0, gt=0, description="LoRA+: the learning rate of B as a multiple of that of A"
    )
    decay_ratio: float = Field(
        0.4, ge=0, le=1, description="share of each phase, at its end, in which the learning rate falls"
    )
    ema: float = Field(
        0.98, ge=0, lt=1, description="decay of the saved moving average; 0 saves the last weights"
    )
    ema_on_host: Switch = Field(
        False, description="keep the moving average in host memory", json_schema_extra=NO_RESULT
    )
    moments: Literal["float32", "8bit"] = Field(
        "float32", description="number format of AdamW's moments; 8bit uses bitsandbytes"
    )


class AddSettings(Section):
    """`add`: a short run from a finished adapter, with all other settings as they are."""

    match_updates: int = Field(200, ge=0, description="replaces match.updates")
    student_updates: int = Field(100, ge=0, description="replaces distill.student_updates")
    new_ratio: float = Field(0.5, ge=0, le=1, description="probability of a new effect in the effect stream")


class VlmSettings(Section):
    """How a vision-language endpoint is asked. The command line alone names the endpoint."""

    timeout: float = Field(120, gt=0, description="seconds for one answer")
    max_retries: int = Field(
        4, ge=0, description="further attempts after status 429 or 5xx, a timeout or a lost connection"
    )
    image_side: int = Field(768, ge=32, description="longest side of the images that are sent")
    max_answer_tokens: int = Field(2048, ge=1, description="most tokens of one answer, with its reasoning")
    max_tokens_total: int = Field(1_000_000, ge=1, description="a command stops before it spends more tokens")


class LogSettings(Section):
    """What people watch while a run trains; no setting here changes its result."""

    tracker: Literal[
        "none",
        "tensorboard",
        "wandb",
        "trackio",
        "comet_ml",
        "mlflow",
        "aim",
        "clearml",
        "dvclive",
        "swanlab",
    ] = Field("tensorboard", description="where curves are written; every tracker of accelerate, or none")
    preview_every: int = Field(200, ge=1, description="steps between previews")
    preview_effects: int = Field(8, ge=1, description="effects in one preview; the last shows all")


class BenchSettings(Section):
    """Models of the benchmark. The command line alone names the endpoint of the judge."""

    clip: str | None = Field(None, description="CLIP model: a folder, or a name on the hub")
    dino: str | None = Field(None, description="DINOv2 model: a folder, or a name on the hub")
    judged_twice: int = Field(20, ge=0, description="pictures that are judged twice")


class Settings(Section):
    """All settings; each section belongs to the module of its name."""

    model_config = ConfigDict(strict=False)  # sections are given as mappings

    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    student: RoleSettings = RoleSettings()
    critic: RoleSettings = RoleSettings()
    sampling: SamplingSettings = SamplingSettings()
    targets: TargetSettings = TargetSettings()
    teach: TeachSettings = TeachSettings()
    match: MatchSettings = MatchSettings()
    distill: DistillSettings = DistillSettings()
    log: LogSettings = Field(LogSettings(), json_schema_extra=NO_RESULT)
    add: AddSettings = AddSettings()
    vlm: VlmSettings = Field(VlmSettings(), json_schema_extra=NO_RESULT)
    bench: BenchSettings = Field(BenchSettings(), json_schema_extra=NO_RESULT)

    @model_validator(mode="after")
    def _shards_run_together(self) -> "Settings":
        if self.model.sharding != "none":
            if self.model.quantization != "none" or self.model.compile:
                raise ValueError("model.sharding does not go with model.quantization or model.compile")
            if self.distill.moments != "float32":
                raise ValueError("model.sharding needs distill.moments=float32: they are sharded instead")
        return self

    @model_validator(mode="after")
    def _samples_are_learned(self) -> "Settings":
        if self.match.coupled_above < 1 and self.match.loss != "flow":
            raise ValueError("match.coupled_above needs match.loss=flow, which learns from teacher samples")
        if self.targets.compositions and self.match.loss != "flow":
            raise ValueError("targets.compositions needs match.loss=flow, which asks no teacher")
        return self

    @model_validator(mode="after")
    def _critic_holds_student(self) -> "Settings":
        if self.critic.rank < self.student.rank:
            raise ValueError(
                "critic.rank must be at least student.rank: the critic starts as the student's copy"
            )
        return self


def result_settings(settings: Settings, sections: Iterable[str] = Settings.model_fields) -> dict[str, Any]:
    """The settings that a result depends on, of some sections, as JSON values by their dotted names."""
    values = settings.model_dump(mode="json")
    return {
        f"{section}.{name}": values[section][name]
        for section in sections
        if _changes_result(Settings.model_fields[section])
        for name, field in type(getattr(settings, section)).model_fields.items()
        if _changes_result(field)
    }


def _changes_result(field: FieldInfo) -> bool:
    return field.json_schema_extra != NO_RESULT


# The paper's recipe, where it and its code give one; docs/method.md#two-recipes sets it beside ours.
PAPER: Overrides = {
    "student": {"rank": 128, "learning_rate": 1e-4},
    "critic": {"rank": 128, "learning_rate": 1e-4},
    "sampling": {"steps": 8, "shift": 3.0, "sampler": "stochastic"},
    "targets": {"steps": 40, "samples": 1, "general": 20_000},
    "match": {"updates": 0},
    "distill": {
        "student_updates": 5000,
        "student_update_every": 5,
        "batch_size": 1,
        "guidance_scale": 5.0,
        "effect_ratio": 0.5,
        "route_every": 4,  # 20 iterations, of which every fifth is a step here
        "asymmetric_prompts": True,
        "rollout_steps": [8],
        "critic_samples": "simulated",
        "backward_weight": 1,
        "target_weight": 1,
        "anchor_weight": 1,
        "max_grad_norm": 10.0,
        "weight_decay": 0.01,
        "decay_ratio": 0,
        "ema": 0,
    },
    "add": {"match_updates": 0, "student_updates": 100},
}
RECIPES: dict[str, Overrides] = {"default": {}, "paper": PAPER}


class SettingsError(ValueError):
    """A setting that does not exist or does not fit; `field` is its dotted name, `hint` what to write."""

    def __init__(self, field: str, message: str, hint: str):
        super().__init__(f"{field}: {message}; {hint}")
        self.field, self.message, self.hint = field, message, hint


def setting_names(model: type[BaseModel] = Settings, prefix: str = "") -> list[str]:
    """Dotted names of all settings, for example `distill.batch_size`."""
    names = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section) and kind is not Schedule:
            names += setting_names(kind, f"{prefix}{name}.")
        else:
            names.append(f"{prefix}{name}")
    return names


def resolve(*layers: Mapping[str, Any]) -> Settings:
    """Settings from nested mappings, later ones over earlier ones and all over the defaults.

    Raises:
        SettingsError: an unknown name or a value that does not fit.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for section, values in layer.items():
            if isinstance(values, Mapping) and isinstance(merged.get(section, {}), dict):
                merged[section] = {**merged.get(section, {}), **values}
            else:
                merged[section] = values
    try:
        return Settings(**merged)
    except ValidationError as error:
        raise _explain(error) from None


def replace_settings(settings: Settings, **sections: Mapping[str, Any]) -> Settings:
    """Settings with some values replaced, section by section."""
    whole = settings.model_dump()
    return Settings(**{**whole, **{name: {**whole[name], **values} for name, values in sections.items()}})


def _explain(error: ValidationError) -> SettingsError:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or "settings"
    if first["type"] == "extra_forbidden":
        names = setting_names() + list(Settings.model_fields)
        nearest = difflib.get_close_matches(field, names, n=1, cutoff=0.0)[0]
        return SettingsError(field, "no such setting", f"did you mean {nearest}?")
    message, hint = first["msg"].removeprefix("Value error, "), f"it is {quote(first['input'])} now"
    if first["type"] in ("int_type", "float_type"):
        hint += ": write a plain number"
    if first["type"] == "tuple_type":
        hint += ": write a list in brackets, [8, 4]"
    return SettingsError(field, message, hint)


def parse_overrides(assignments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`["distill.batch_size=4"]` to `{"distill": {"batch_size": 4}}`; values are YAML.

    Raises:
        SettingsError: an assignment that is not `section.name=value`.
    """
    layer: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        section, dot, name = path.partition(".")
        if not equals or not dot:
            raise SettingsError(assignment, "not an assignment", "write --set section.name=value")
        try:
            layer.setdefault(section, {})[name] = read_yaml(text)
        except ValueError:
            raise SettingsError(path, f"cannot read the value {quote(text)}", "write a YAML value") from None
    return layer

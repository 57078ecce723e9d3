"""Properties of what takes in manifests and LoRA files: good, or refused in one line, whatever it is."""

import json
import tempfile
from contextlib import suppress
from pathlib import Path

import torch
import yaml
from helpers.fuzz_intake import BASE, base_weights, fuzz, outcome
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from collectionlora.collection import Collection
from collectionlora.config import SettingsError, parse_overrides, resolve
from collectionlora.system.errors import UserError

QUICK = settings(max_examples=100, deadline=None, derandomize=True, database=None)
PLACE = Path("mine")
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates()
KEYS = ["base", "effects", "general", "settings", "name", "teacher", "teacher_prompt", "photos", "prompts"]
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
GOOD = {
    "base": "nano",
    "effects": [{"name": "a", "teacher": "a.safetensors", "teacher_prompt": "do a", "photos": "photos"}],
    "general": {"photos": "photos", "prompts": "general.txt"},
    "settings": {"distill": {"seed": 1}},
}


def is_taken_or_refused(text):
    try:
        collection = Collection.parse(PLACE, text)
    except UserError as refusal:
        problem = refusal
    else:
        assert collection.effects
        assert len({e.name for e in collection.effects}) == len(collection.effects)
        return
    assert str(problem).isprintable()
    assert problem.file == str(PLACE / "collection.yaml")
    assert problem.message
    assert problem.hint


@QUICK
@given(st.text(max_size=200))
def test_any_text_is_a_manifest_or_refused(text):
    is_taken_or_refused(text)


@QUICK
@given(
    st.lists(
        st.sampled_from(
            ["base:", "effects:", " ", "- ", "\n", "{", "[", "&a", "*a", "!!int", "<<:", "'", "|"]
        )
    )
)
def test_any_syntax_is_a_manifest_or_refused(pieces):
    is_taken_or_refused("".join(pieces))


@QUICK
@given(VALUES)
def test_any_document_is_a_manifest_or_refused(document):
    is_taken_or_refused(yaml.safe_dump(document, allow_unicode=True))


@QUICK
@given(st.data())
def test_a_good_manifest_with_one_other_value_is_taken_or_refused(data):
    document = json.loads(json.dumps(GOOD))
    place = data.draw(
        st.sampled_from([document, document["effects"][0], document["general"], document["settings"]])
    )
    place[data.draw(st.sampled_from(sorted(place)) | st.text(max_size=5))] = data.draw(VALUES)
    is_taken_or_refused(yaml.safe_dump(document, allow_unicode=True))


@QUICK
@given(
    st.text(max_size=30),
    st.sampled_from(["distill.seed", "match.loss", "distill.rollout_steps", "vlm", "a.b"]),
)
def test_any_override_is_a_setting_or_refused(text, name):
    with suppress(SettingsError):  # anything else is a fault
        resolve(parse_overrides([f"{name}={text}"]))


MODULES = st.sampled_from([*BASE, *(name.replace(".", "_") for name in BASE), "blocks.9.attn.to_q", "x"])
PREFIXES = st.sampled_from(
    ["", "transformer.", "diffusion_model.", "base_model.model.", "lora_unet_", "lycoris_"]
)
PARTS = st.sampled_from(
    [
        *("lora_A.weight", "lora_B.weight", "lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha"),
        *(
            "dora_scale",
            "lora_magnitude_vector",
            "hada_w1_a",
            "hada_w1_b",
            "hada_w2_a",
            "hada_w2_b",
            "hada_t1",
        ),
        *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_t2", "diff", "bias", "oft_blocks"),
    ]
)
KINDS = st.sampled_from(
    [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool]
)
NUMBERS = st.sampled_from([0.0, 1.0, -0.5, 1e-30, 1e30, 3e38, float("inf"), float("nan")])
SIZES = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 8, 12])


@st.composite
def tensors(draw):
    made = torch.full(draw(st.lists(SIZES, max_size=4)), draw(NUMBERS), dtype=torch.float64)
    return made.to(draw(KINDS))


@st.composite
def pairs(draw):
    """A module as it should be, so that some files are good."""
    name, rank = draw(st.sampled_from(sorted(BASE))), draw(st.integers(1, 3))
    shape = BASE[name]
    down = torch.full((rank, *shape[1:]), draw(NUMBERS))
    up = torch.full((shape[0], rank, *(1,) * (len(shape) - 2)), draw(NUMBERS))
    return {f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}


WEIGHTS = base_weights()


@QUICK
@given(
    pairs(),
    st.dictionaries(st.tuples(PREFIXES, MODULES, PARTS), tensors(), max_size=3),
    st.none()
    | st.text(max_size=20)
    | st.dictionaries(st.sampled_from(["r", "lora_alpha", "rank_pattern"]), LEAVES),
)
def test_any_tensors_are_a_lora_of_the_base_or_refused(good, others, config):
    named = {f"{prefix}{module}.{part}": tensor for (prefix, module, part), tensor in others.items()}
    text = config if isinstance(config, str | None) else json.dumps(config, default=str)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        save_file(good | named, path, None if text is None else {"lora_adapter_metadata": text})
        assert outcome(path, WEIGHTS) in ("read", "refused")


def test_damaged_files_are_read_whole_or_refused(tmp_path):
    counts, faults = fuzz(tmp_path, seed=0, most=800)
    assert not faults, [told for told, _ in faults]
    assert counts["refused"] > 400
    assert counts["read"] >= 10

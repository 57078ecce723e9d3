"""Measures without a truth, by tiny models in folders like the real ones."""

import numpy as np
import pytest
import torch
from helpers.tiny_encoders import save_clip, save_dino
from safetensors.torch import load_file

from collectionlora.config import BenchSettings
from collectionlora.effectbench.bench import Cases
from collectionlora.effectbench.encoders import Clip, Dino
from collectionlora.effectbench.similarity import missing_models, similarity_meters
from collectionlora.system.errors import UserError

PHOTOS = [np.random.default_rng(i).integers(0, 256, (40, 40, 3), dtype=np.uint8) for i in range(20)]
CASES = Cases(PHOTOS[:2], [0, 1], [])
PROMPTS = {"sketch": "draw it in ink", "neon": "make it glow"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_clip(folder / "clip")
    save_dino(folder / "dino")
    return BenchSettings(clip=str(folder / "clip"), dino=str(folder / "dino"))


def test_embeddings_are_unit_vectors_whatever_the_batch(folders):
    clip, dino = Clip(folders.clip), Dino(folders.dino)
    for encoder, width in ((clip, 16), (dino, 32)):
        together = encoder.images(PHOTOS)  # more than one part
        assert together.shape == (20, width)
        torch.testing.assert_close(together.norm(dim=1), torch.ones(20))
        torch.testing.assert_close(together[17:18], encoder.images(PHOTOS[17:18]), atol=1e-5, rtol=1e-5)
    long_text = " ".join(["ink"] * 50)
    assert clip.texts([long_text, "ink"]).shape == (2, 16)


def test_clip_is_the_models_own_score(folders):
    clip = Clip(folders.clip)
    inputs = clip.tokenizer(["ink"], return_tensors="pt") | clip.processor(
        images=PHOTOS[:1], return_tensors="pt"
    )
    with torch.no_grad():
        expected = clip.model(**inputs).logits_per_image / clip.model.logit_scale.exp()
    assert float(clip.images(PHOTOS[:1]) @ clip.texts(["ink"]).T) == pytest.approx(float(expected), abs=1e-5)


def test_every_given_model_measures(folders):
    references = {"sketch": [PHOTOS[5], PHOTOS[5]]}
    meters = similarity_meters(folders, CASES, references, PROMPTS)
    made = {"source": CASES.photos, "same": [PHOTOS[5], PHOTOS[5]]}
    columns = {}
    for meter in meters:
        for method, one in meter("sketch", made).items():
            columns.setdefault(method, {}).update(one.columns)
    names = {"clip_text", "clip_source", "clip_reference", "dino_source", "dino_reference"}
    assert columns["source"].keys() == columns["same"].keys() == names
    assert all(column.shape == (2,) for column in columns["same"].values())
    for model in ("clip", "dino"):
        np.testing.assert_allclose(columns["source"][f"{model}_source"], 1, atol=1e-5)
        np.testing.assert_allclose(columns["same"][f"{model}_reference"], 1, atol=1e-5)
        assert (columns["same"][f"{model}_source"] < 1 - 1e-4).all()
    without = meters[1]("neon", made)["source"].columns
    assert without.keys() == {"clip_source"}


def test_what_is_not_given_is_named_with_its_reason(folders):
    assert missing_models(folders).keys() == {"dreamsim", "editreward"}
    assert missing_models(BenchSettings())["clip"] == "no model is given: --set bench.clip=FOLDER"
    assert similarity_meters(BenchSettings(), CASES, {}, PROMPTS) == []


@pytest.mark.parametrize("kind", ["nothing", "another model", "a pickle"])
def test_a_model_that_cannot_be_opened_is_a_fault_the_user_can_fix(folders, tmp_path, kind):
    if kind == "another model":
        save_dino(tmp_path)
        (tmp_path / "config.json").write_text("{not json")
    if kind == "a pickle":
        save_dino(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        (tmp_path / "model.safetensors").unlink()
        torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"--set: bench.dino: .* cannot be opened"):
        similarity_meters(BenchSettings(dino=str(tmp_path)), CASES, {}, PROMPTS)

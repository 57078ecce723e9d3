import pytest
import torch
from safetensors.torch import save_file

from collectionlora.adapters.formats import read_lora, write_lora
from collectionlora.adapters.recipe import Recipe, read_adapter, write_adapter
from collectionlora.errors import UserError

WEIGHTS = {
    "blocks.0.to_q": (torch.randn(4, 6), torch.randn(8, 4)),
    "head.mix": (torch.randn(2, 3, 3, 3), torch.randn(5, 2, 1, 1)),
}


def test_an_adapter_survives_its_file(tmp_path):
    write_lora(tmp_path / "a.safetensors", WEIGHTS, {"note": "x"})
    found = read_lora(tmp_path / "a.safetensors")
    assert found.metadata["note"] == "x"
    assert found.rank == 4
    for module, pair in WEIGHTS.items():
        for before, after in zip(pair, found.weights[module], strict=True):
            torch.testing.assert_close(before, after, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "pattern",
    [
        ("transformer.m.lora_A.weight", "transformer.m.lora_B.weight", None),
        ("m.lora_A.default.weight", "m.lora_B.default.weight", None),
        ("base_model.model.m.lora_A.weight", "base_model.model.m.lora_B.weight", None),
        ("diffusion_model.m.lora_down.weight", "diffusion_model.m.lora_up.weight", "diffusion_model.m.alpha"),
        ("m.lora_down.weight", "m.lora_up.weight", "m.alpha"),
    ],
)
def test_key_formats_and_alpha(tmp_path, pattern):
    a, b = torch.randn(4, 6), torch.randn(8, 4)
    tensors = {pattern[0]: a, pattern[1]: b}
    if pattern[2]:
        tensors[pattern[2]] = torch.tensor(2.0)
    save_file(tensors, tmp_path / "a.safetensors")
    found_a, found_b = read_lora(tmp_path / "a.safetensors").weights["m"]
    expected = b @ a * (0.5 if pattern[2] else 1.0)
    torch.testing.assert_close(found_b @ found_a, expected)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"m.lora_A.weight": torch.ones(2, 3)}, "only one of the two"),
        ({"m.lora_A.weight": torch.ones(2, 3), "m.lora_B.weight": torch.ones(4, 3)}, "ranks 2 and 3"),
        (
            {"m.lora_A.weight": torch.full((2, 3), torch.nan), "m.lora_B.weight": torch.ones(4, 2)},
            "not finite",
        ),
        ({"m.lokr_w1": torch.ones(2, 2)}, "not a LoRA weight"),
        ({}, "holds no LoRA"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(tmp_path, tensors, message):
    path = tmp_path / "bad.safetensors"
    save_file(tensors, path)
    with pytest.raises(UserError, match=message) as error:
        read_lora(path)
    assert str(path) in str(error.value)


def test_files_that_are_no_safetensors_are_refused(tmp_path):
    for content in (b"", b"\x80\x04pickle", b"\xff" * 64):
        (tmp_path / "bad.safetensors").write_bytes(content)
        with pytest.raises(UserError, match="not a safetensors file"):
            read_lora(tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match="no such file"):
        read_lora(tmp_path / "absent.safetensors")


def test_an_adapter_carries_its_recipe(tmp_path):
    recipe = Recipe(base="nano", steps=8, shift=3.0, resolution=64, effects={"a": "<x> a"}, version="1")
    write_adapter(tmp_path / "c.safetensors", WEIGHTS, recipe)
    _, found = read_adapter(tmp_path / "c.safetensors")
    assert found == recipe
    write_lora(tmp_path / "plain.safetensors", WEIGHTS, {})
    with pytest.raises(UserError, match="no collectionlora recipe"):
        read_adapter(tmp_path / "plain.safetensors")


def test_the_same_adapter_is_the_same_file(tmp_path):
    """safetensors orders metadata at random; a hash of the file should depend on its content alone."""
    metadata = {f"key-{i}": f'value "{i}" \\ \n é ✓' for i in range(12)}
    for name in ("a", "b"):
        write_lora(tmp_path / f"{name}.safetensors", WEIGHTS, metadata)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert read_lora(tmp_path / "a.safetensors").metadata == metadata

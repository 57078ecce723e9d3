"""Every layout of the published table is read to rounding."""

import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def layouts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield __import__("lora_layouts")
    sys.modules.pop("lora_layouts")


def test_every_layout_is_the_change_of_its_origin(layouts):
    generator = torch.Generator().manual_seed(0)
    base = layouts.make_base(generator)
    table = (SCRIPTS.parent / "docs" / "results" / "lora_layouts.txt").read_text()
    for layout in layouts.write_layouts(base, generator):
        assert layouts.measure(layout, base) < 1e-6, layout.origin
        assert f"| {layout.origin} | `{layout.keys}` | yes |" in table

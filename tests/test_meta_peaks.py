"""What recipes need at true depth on the meta device, beside their plans."""

import json
import runpy
import shlex
from pathlib import Path

import pytest
import torch
from helpers.measure_step import SMALL, write_base
from typer.testing import CliRunner

from collectionlora.command_line import terminal
from collectionlora.command_line.verbs import app
from collectionlora.config import resolve
from collectionlora.planning.memory import MemoryTally
from collectionlora.planning.plan import plan
from collectionlora.planning.workload import Workload

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "meta_peaks.py"))
FOUND = json.loads(SCRIPT["RESULT"].read_text())
MAX_DEVIATION = 0.01
RECIPES = SCRIPT["RECIPES"]
PLANS = [plan for _, *plan in RECIPES["split_sections"](RECIPES["README"].read_text()) if plan[0]]


def test_the_page_shows_what_was_tallied():
    assert FOUND["recipes"].keys() <= SCRIPT["read_recipes"]().keys()
    assert SCRIPT["write_page"](FOUND) == SCRIPT["PAGE"].read_text(encoding="utf-8")


def test_a_repeated_operation_is_tallied_as_the_first_one():
    with MemoryTally() as tally, torch.device("meta"):
        left, right = torch.empty(4, 8), torch.empty(8, 2)
        start = tally.live
        products = [left @ right for _ in range(3)]
        assert [product.shape for product in products] == [(4, 2)] * 3
        assert tally.live - start == 3 * 4 * 2 * 4
        seen = [torch.ops.aten._unsafe_view(product, [8]) for product in products]
        assert tally.live - start == 3 * 4 * 2 * 4
        del products, seen
        assert tally.live == start


def test_a_tally_leaves_values_alone():
    with MemoryTally():
        assert [torch.tensor(number).item() for number in (3, 4)] == [3, 4]


@pytest.mark.parametrize("name", FOUND["recipes"])
def test_no_verb_needs_more_than_its_plan_says(name):
    for verb, row in FOUND["recipes"][name]["verbs"].items():
        assert row["tallied"] == pytest.approx(row["planned"], rel=MAX_DEVIATION), verb


@pytest.mark.thorough
@pytest.mark.parametrize("name", FOUND["recipes"])
def test_what_was_tallied_stands_beside_the_plan_of_today(name):
    workload, recipe = SCRIPT["read_recipes"]()[name], FOUND["recipes"][name]
    planned = plan(workload)["verbs"]
    for verb, row in recipe["verbs"].items():
        assert planned[verb]["device_bytes"] == max(row["planned"], recipe["encoding"]), verb


@pytest.mark.thorough
@pytest.mark.parametrize(("arguments", "printed"), PLANS)
def test_the_recipes_show_what_plan_prints(arguments, printed, monkeypatch):
    monkeypatch.setattr("collectionlora.planning.advice.advise", lambda workload: [])  # takes as long again
    monkeypatch.setattr(terminal.console, "width", int(RECIPES["COLUMNS"]))
    result = CliRunner().invoke(app, ["plan", *shlex.split(arguments)])
    assert result.exit_code == 0, result.output
    lines = [line.rstrip() for line in result.stderr.splitlines() if line.strip()]
    tables = [line for line in lines if not line.startswith("next: ")]
    assert tables == printed.splitlines()[: len(tables)]


@pytest.mark.thorough
@pytest.mark.parametrize("layer", [{}, {"distill": {"accumulate": 2}, "data": {"resolution": 64}}])
def test_a_small_base_is_tallied_at_its_depth(tmp_path, layer):
    workload = Workload(write_base(tmp_path), 1, resolve(SMALL, layer))
    compared = SCRIPT["compare"](workload, SCRIPT["FullDepth"](workload).measure())
    edit = compared["verbs"].pop("edit")  # the plan has the teacher's guided forwards in all pictures
    assert 0.85 * edit["planned"] < edit["tallied"] <= 1.01 * edit["planned"]
    for verb, row in compared["verbs"].items():
        assert row["tallied"] == pytest.approx(row["planned"], rel=0.02), verb

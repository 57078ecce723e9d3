"""What the documentation says is there, and what it shows runs."""

import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import typer
import yaml
from helpers.every import every
from helpers.studio_server import write_collection
from PIL import Image
from skimage import data

from collectionlora.backbones import family_of
from collectionlora.command_line.verbs import app
from collectionlora.config import RECIPES, Settings, resolve, result_settings, setting_names

ROOT = Path(__file__).parents[1]
SOURCE = "\n".join(path.read_text() for path in sorted((ROOT / "src").rglob("*.py")))
QUICK = {
    "data": {"resolution": 32},
    "student": {"rank": 2},
    "critic": {"rank": 2},
    "targets": {"steps": 1, "samples": 1, "general": 2},
    "teach": {"steps": 2, "rank": 2, "batch_size": 1},
    "match": {"updates": 1},
    "sampling": {"steps": 1},
    "distill": {"student_updates": 1, "batch_size": 1, "student_update_every": 1, "rollout_steps": [1]},
}


def test_the_site_builds_and_every_link_and_anchor_is_there(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "glossary" / "index.html").exists()


def test_the_site_asks_no_other_machine():
    assert yaml.safe_load((ROOT / "mkdocs.yml").read_text())["theme"]["font"] is False


def quoted(page, pattern):
    return re.findall(pattern, (ROOT / "docs" / page).read_text(), re.MULTILINE)


def test_every_message_of_troubleshooting_is_one_that_the_program_gives():
    for heading in quoted("troubleshooting.md", r"^### (`.*)$"):
        for message in re.findall(r"`([^`]+)`", heading):
            assert message in SOURCE, message


def test_every_function_of_the_method_page_exists():
    for name in quoted("method.md", r"`(?:[a-z]+\.)*([A-Za-z_0-9]+)` \|$"):
        assert re.search(rf"(def|class) {name}\b", SOURCE), name


@every(["Qwen/Qwen-Image-Edit-2509", "black-forest-labs/FLUX.2-klein-4B"])
def test_the_method_page_lists_every_setting_in_which_the_two_recipes_differ(base):
    recommended = family_of(base).recommended_settings(base)
    ours, papers = (result_settings(resolve(recommended, layer)) for layer in RECIPES.values())
    page = (ROOT / "docs" / "method.md").read_text().partition("## Two recipes")[2]
    assert [name for name in ours if ours[name] != papers[name] and f"`{name}`" not in page] == []


def test_every_heading_that_the_code_cites_is_there():
    headings = [heading.lower() for heading in quoted("method.md", r"^#+ (.*)$")]
    anchors = {re.sub(r"[^\w -]", "", heading).replace(" ", "-") for heading in headings}
    cited = set(re.findall(r"docs/method\.md#([\w-]+)", SOURCE))
    assert cited
    assert cited <= anchors


PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
MADE = runpy.run_path(str(ROOT / "scripts" / "reference.py"))["PAGES"]
OF_THE_REPOSITORY = ["CONTRIBUTING.md", "README.md", "scripts/README.md"]
NAMED = r"`((?:src|scripts|tests|examples|docs|recipes)/[\w/-]+\.\w+)"


@every([*(f"docs/{page}" for page in PAGES), *OF_THE_REPOSITORY])
def test_the_files_that_a_page_names_exist(page):
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\((?!http)([^)#]+)", text)
    paths = [ROOT / path for path in re.findall(NAMED, text) if "NAME" not in path]
    paths += [(ROOT / page).parent / link for link in links]
    assert [str(path) for path in paths if not path.exists()] == []


# Patterns that a reader of English as a second language has to guess; the right column says what to write.
UNPLAIN = {
    "mend": "hint, fix",
    "held against": "compared with",
    "never loses": "keeps",
    "the house": "the package",
    "is none": "there is not one",
    "be it": "either ... or",
    "whatever its": "with every",
    "whichever": "with both, with every",
    "for want of": "because there is not",
    "(?:is|are) no (?!such|longer|progress|package|list|more than)": "is not a",
    "as theirs": "like those of",
    "by turns": "in rotation, alternately",
    "is said": "is reported",
    "at hand": "available",
    "belong into": "belong in",
    "as may be": "as possible",
    "and left": "not changed",
    "of ours": "of the program",
    "all the same": "nevertheless",
    "limit of rate": "rate limit",
    "process' ": "process's",
    "no number any more": "NaN or infinite",
}
WITH_TOY_NUMBERS = ("results.md", "toy.md", "few-steps.md", "performance.md", "glossary.md")


@every([page for page in PAGES if page not in WITH_TOY_NUMBERS])
def test_numbers_begin_with_a_digit(page):
    prose = re.sub(r"^    .*$|`[^`]*`", "", (ROOT / "docs" / page).read_text(), flags=re.MULTILINE)
    assert re.findall(r"(?<![\w.*/-])\.\d+\b", prose) == []


@every([*(f"docs/{page}" for page in PAGES), *OF_THE_REPOSITORY])
def test_pages_are_in_plain_words(page):
    text = (ROOT / page).read_text().lower()
    found = {word: better for word, better in UNPLAIN.items() if re.search(rf"\b{word}", text)}
    assert found == {}


@every(MADE)
def test_the_references_are_those_of_the_program(page):
    assert (ROOT / "docs" / page).read_text() == MADE[page](), "run: python scripts/reference.py --write"


def test_every_setting_says_what_it_is():
    rows = quoted("settings.md", r"^\| `([a-z_.]+)` \|.*\|  \|$")
    assert rows == []


def documented_commands(page):
    """The arguments of each command that a page shows in a block of code."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    lines = re.findall(r"^    (?:\.venv/bin/)?collectionlora ((?!-)[^#\n]*)", text, re.MULTILINE)
    return [shlex.split(line) for line in lines]


@every([*(f"docs/{page}" for page in PAGES), *OF_THE_REPOSITORY, "recipes/README.md"])
def test_every_command_that_a_page_shows_is_one_that_the_program_takes(page):
    group = typer.main.get_command(app)
    for verb, *arguments in documented_commands(page):
        given = [argument for argument in arguments if argument not in ("[...]", "...")]
        group.commands[verb].make_context(verb, given)


def test_the_findings_charts_are_those_of_the_results():
    charts = runpy.run_path(str(ROOT / "scripts" / "findings_plots.py"))["draw_charts"]()
    for name, chart in charts.items():
        assert (ROOT / "docs" / "results" / name).read_text() == chart, name


def test_every_script_and_every_result_is_in_the_scripts_page():
    page, results = ROOT / "scripts" / "README.md", ROOT / "docs" / "results"
    text = page.read_text()
    scripts = [path for folder in ("scripts", "scripts/nano") for path in (ROOT / folder).glob("*.py")]
    names = [f"]({path.relative_to(page.parent)})" for path in scripts]
    names += [f"`{path.relative_to(results)}`" for path in results.rglob("*.*")]
    assert [name for name in names if name not in text] == []


@every([page for page in PAGES if page != "method.md"])  # which names functions
def test_the_settings_that_a_page_names_exist(page):
    for name in quoted(page, rf"`((?:{'|'.join(Settings.model_fields)})\.[a-z_]+)[`:=]"):
        assert name in setting_names() or name.endswith((".jsonl", ".pth", ".py")), name


TABLES = {  # a pattern of several files is of several seeds
    "demo/metrics.json": "README.md",
    "long_run/metrics.json": "docs/results.md",
    "strength.json": "docs/studio.md",
    "tables/main-seed-*.json": "docs/results.md",
    "tables/noise-seed-*.json": "docs/few-steps.md",
    "tables/tuning-seed-*-shift-3.json": "docs/results.md",
    "tables/tuning-seed-*-shift-12.json": "docs/results.md",
    "tables/averages-seed-*.json": "docs/results.md",
    "tables/main-50.json": "docs/results.md",
    "tables/fifty.json": "docs/results.md",
    "tables/fifty-further.json": "docs/results.md",
    "tables/fifty-random.json": "docs/results.md",
    "tables/fifty-weights.json": "docs/results.md",
    "tables/fifty-weights-more.json": "docs/results.md",
    "tables/scaling.json": "docs/results.md",
    "tables/scaling-seed-1.json": "docs/results.md",
    "tables/ablation.json": "docs/results.md",
    "tables/starts-seed-0.json": "docs/results.md",
    "tables/starts-seed-1.json": "docs/results.md",
    "tables/composition.json": "docs/results.md",
    "tables/composition-further.json": "docs/results.md",
    "tables/composition-without.json": "docs/results.md",
    "tables/quantised.json": "docs/results.md",
    "tables/incremental.json": "docs/results.md",
    "tables/incremental-54.json": "docs/results.md",
    "tables/incremental-random.json": "docs/results.md",
    "tables/deployment.json": "docs/results.md",
}


def test_the_bench_page_says_what_every_table_compares(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts" / "nano")
    commands = runpy.run_path(str(ROOT / "scripts" / "nano" / "table.py"))["TABLES"]
    page = (ROOT / "docs" / "bench.md").read_text()
    assert [name for name in commands if f"\n| `{name}` | " not in page] == []


def test_the_readme_is_read_in_three_minutes():
    assert len((ROOT / "README.md").read_text().split()) <= 800


@every(TABLES)
def test_the_tables_are_those_of_the_results(result):
    table = runpy.run_path(str(ROOT / "scripts" / "results_table.py"))["table"]
    files = sorted((ROOT / "docs" / "results").glob(result))
    assert table(*files) in (ROOT / TABLES[result]).read_text()


def test_the_demo_is_compared_with_that_of_an_earlier_version():
    table = runpy.run_path(str(ROOT / "scripts" / "results_table.py"))["earlier_table"]
    demo = ROOT / "docs" / "results" / "demo"
    files = (json.loads((demo / name).read_text()) for name in ("metrics.json", "earlier.json"))
    assert table(*files) in (ROOT / "docs" / "results.md").read_text()


@every(["fifty-weights.json", "fifty-weights-more.json"])
def test_the_effects_with_weights_are_those_of_the_results(file):
    table = runpy.run_path(str(ROOT / "scripts" / "results_table.py"))["effects_table"]
    metrics = json.loads((ROOT / "docs" / "results" / "tables" / file).read_text())
    chosen = ["gradient-map", "mirror", "neon-sign", "paint-splash"]
    assert table(metrics, chosen) in (ROOT / "docs" / "results.md").read_text()


@every(["toy_world.json", "toy_published.json", "toy_guidance.json"])
def test_the_toy_worlds_tables_are_those_of_their_results(file):
    study = runpy.run_path(str(ROOT / "scripts" / "toy_table.py"))
    rows = study["Table"](ROOT / "docs" / "results" / file).rows
    assert study["markdown"](rows) in (ROOT / "docs" / "toy.md").read_text()


def test_the_table_of_few_steps_is_that_of_its_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    study = runpy.run_path(str(ROOT / "scripts" / "toy_noise_table.py"))
    rows = study["Table"](ROOT / "docs" / "results" / "toy_noise.json").rows
    assert study["markdown"](rows) in (ROOT / "docs" / "few-steps.md").read_text()


def run_example(monkeypatch, name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


def test_the_example_of_editing_runs(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    collection = write_collection(tmp_path / "mine", steps=1)
    Image.fromarray(data.astronaut()[::4, ::4]).save(tmp_path / "me.png")
    run_example(monkeypatch, "edit_photo.py", collection, tmp_path / "me.png", "warm", tmp_path / "out")
    assert Image.open(tmp_path / "out" / "warm.png").size == (128, 128)
    assert Image.open(tmp_path / "out" / "warm-strengths.png").width > 5 * 240


def test_the_notebook_and_the_page_of_python_run(tmp_path, monkeypatch):
    Image.fromarray(data.astronaut()[::4, ::4]).save(tmp_path / "me.jpg")
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "examples" / "python.ipynb").read_text())["cells"]
    names = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    made = sorted(tmp_path.glob("me-*.png"))
    assert [path.stem for path in made] == sorted(f"me-{name}" for name in names["editor"].effects)
    assert all(Image.open(path).size == (128, 128) for path in made)
    [shown] = quoted("python.md", r"^```python\n((?:.*\n)*?)```")
    assert "editor.edit" in shown
    for path in made:
        path.unlink()
    exec(shown, {})
    assert sorted(tmp_path.glob("me-*.png")) == made


def test_the_example_of_an_effect_of_ones_own_runs(tmp_path, monkeypatch):
    quick = [f"{section}.{name}={value}" for section, names in QUICK.items() for name, value in names.items()]
    run_example(monkeypatch, "own_effect.py", tmp_path / "mine", *quick)
    assert (tmp_path / "mine" / "collection.safetensors").exists()
    assert (tmp_path / "mine" / "night-vision.png").exists()

"""`report.html`: one file that needs nothing else, whatever was measured."""

import json
import re

import numpy as np
import pytest
from helpers.every import every

from collectionlora.collection import Collection
from collectionlora.effectbench.gallery import Result, Shown
from collectionlora.effectbench.report import embedding
from collectionlora.effectbench.report.charts import value_ticks
from collectionlora.effectbench.report.columns import COLUMNS, write_size, write_value
from collectionlora.effectbench.report.curves import find_logs, read_curves
from collectionlora.effectbench.report.embedding import embed_gallery
from collectionlora.effectbench.report.page import build_report, write_results

METHODS = {"source": 12.0, "truth": 60.0, "teacher": 25.0, "student": 24.0}


def row(value, **more):
    return {"psnr": value, "ci95": {"psnr": [value - 1, value + 1]}, **more}


def picture(seed, side=32):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.fixture
def result():
    effects = ["sepia", "free"]
    methods = {
        name: row(
            value,
            nfe=8,
            seconds_per_image=0.5,
            bytes=1_500_000,
            general_psnr=20.0,
            worst_effect="sepia",
            per_effect={"sepia": row(value), "free": {"ci95": {}}},
            confusion=[[3, 1]],
        )
        for name, value in METHODS.items()
    }
    metrics = {
        "methods": methods,
        "classifier": {"classes": ["sepia", "none"], "accuracy": 0.9},
        "effects": effects,
        "photos": 4,
        "base": {
            "name": "owner/name",
            "dtype": "bfloat16",
            "quantization": "nf4",
            "distilled_on": {"student": "none", "other": "nf4"},
        },
        "seeds": [0, 1],
        "seconds": 12.3,
        "judge": {
            "model": "some-judge",
            "independent": True,
            "judged_twice": {"pictures": 9, "bad_case_agreement": 0.75, "identity_difference": 0.5},
        },
        "gate": {
            "baseline": "before.json",
            "passed": False,
            "worst_effect": "sepia",
            "worst_loss": 2.0,
            "margin": 1.0,
        },
        "skipped": {"dreamsim": "its weights are <pickles>"},
        "settings": {"note": "</pre><script>alert(1)</script>"},
        "versions": {"torch": "2"},
    }
    gallery = [
        Shown(
            effect,
            i,
            picture(i),
            {"truth": picture(9)} if effect == "sepia" else {},
            {"student": picture(i + 5)},
        )
        for effect in effects
        for i in range(3)
    ]
    return Result(metrics, gallery, {"sepia": [picture(i) for i in range(5)]})


def test_a_page_needs_nothing_but_itself(result, tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text(
        "".join(json.dumps({"step": i, "seconds": i, "match": 1 / (1 + i)}) + "\n" for i in range(9))
    )
    write_results(tmp_path, result, {"default": log})
    assert json.loads((tmp_path / "metrics.json").read_text()) == json.loads(json.dumps(result.metrics))
    page = (tmp_path / "report.html").read_text()
    assert "http" not in page
    assert all(source.startswith("data:image/") for source in re.findall(r'src="([^"]*)"', page))
    # An effect without a truth has one picture less; one has a strip of its strengths.
    assert page.count("<img src=") == 3 * 3 + 3 * 2 + 1
    assert "<script>alert" not in page
    assert page.count("<script>") == 1
    assert page.count("<polyline") == 1
    assert "<b>dreamsim</b>: its weights are &lt;pickles&gt;" in page
    assert "about 9 pictures, it agreed with itself on 75%" in page
    assert "<b>The gate failed</b>: against before.json, the worst change is" in page
    assert " dB, of sepia; the margin is" in page
    assert "1.5 MB" in page


def test_the_best_of_a_column_is_a_contestant(result):
    page = build_report(result, {})
    (best,) = re.findall(r'class="best">([\d.]+)<small>', page)
    assert best == "25.00"
    assert 'id="training"' not in page  # no logs, no section


def test_a_bench_without_any_truth_has_a_page(result):
    for entry in result.metrics["methods"].values():
        for key in ("psnr", "confusion", "worst_effect"):
            del entry[key]
        entry["per_effect"] = {"sepia": {"ci95": {}}, "free": {"vsa": 3.0, "ci95": {"vsa": [2, 4]}}}
    del result.metrics["classifier"], result.metrics["skipped"]
    page = build_report(result, {})
    assert 'id="confusion"' not in page
    assert "VSA: the judge" in page


@pytest.mark.parametrize(("side", "most", "photos", "longest"), [(32, 10**6, 3, 32), (400, 10**6, 1, 256)])
def test_pictures_keep_a_page_small(result, monkeypatch, side, most, photos, longest):
    monkeypatch.setattr(embedding, "MAX_BYTES", most)
    gallery = [
        Shown(s.effect, s.index, picture(0, side), {}, {"student": picture(1, side)}) for s in result.gallery
    ]
    rows = embed_gallery(gallery)
    assert sum(len(url) for _, urls in rows for url in urls.values()) <= most
    assert len(rows) == 2 * photos
    kind = "webp" if longest <= embedding.LOSSLESS_SIDE else "jpeg"
    assert all(url.startswith(f"data:image/{kind};") for _, urls in rows for url in urls.values())


def test_numbers_are_written_for_readers():
    psnr = next(column for column in COLUMNS if column.key == "psnr")
    assert write_value(12.3456, psnr) == "12.35"
    assert write_value(None, psnr) == "–"
    assert [write_size(n) for n in (0, 999, 1_234_567, 2_000_000_000)] == ["none", "999 B", "1.23 MB", "2 GB"]


def test_curves_are_averaged(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"step": i, "seconds": 0, "loss": i % 2}) + "\n" for i in range(1000)))
    curves = read_curves(log)
    assert list(curves) == ["loss"]
    assert len(curves["loss"]) == 100
    assert {value for _, value in curves["loss"]} == {0.5}
    with log.open("a") as lines:  # as a process leaves it that was killed
        lines.write('{"step": 1000, "sec')
    assert read_curves(log) == curves


def test_the_log_is_that_of_the_run_that_made_the_adapter(tmp_path):
    for run, content in (("first", "a"), ("second", "b")):
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / "collection.safetensors").write_text(content)
        (tmp_path / "runs" / run / "log.jsonl").write_text("")
    (tmp_path / "bench" / "acceleration").mkdir(parents=True)
    (tmp_path / "bench" / "acceleration" / "log.jsonl").write_text("")
    collection = Collection(tmp_path, None)
    assert list(find_logs(collection)) == ["acceleration"]
    collection.result.write_text("b")
    assert list(find_logs(collection)) == ["second", "acceleration"]
    assert list(find_logs(collection, ["student", "first"])) == ["first", "second", "acceleration"]
    (tmp_path / "runs" / "second" / "log.jsonl").unlink()
    assert list(find_logs(collection)) == ["acceleration"]


def test_a_page_says_on_which_base_it_judges_and_on_which_an_adapter_was_distilled(result):
    page = " ".join(build_report(result, {}).split())
    assert "They were judged on the base in nf4, owner/name, in bfloat16." in page
    assert "<b>student was distilled on the whole base</b>." in page
    assert "other was distilled" not in page
    assert "not independent" not in page
    result.metrics["judge"]["independent"] = False
    assert "<b>it is not independent</b>" in build_report(result, {})


def write_log(path, values, steps_between=1):
    entries = [{"step": i * steps_between, "seconds": i, "match": value} for i, value in enumerate(values)]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_two_runs_lie_over_each_other(result, tmp_path):
    result.metrics["methods"]["longer"] = result.metrics["methods"]["student"]
    logs = {
        "default": write_log(tmp_path / "a", [4, 3, 2]),
        "longer": write_log(tmp_path / "b", [9, 5, 1], steps_between=10),
    }
    page = build_report(result, logs)
    charts = re.findall(r"<svg.*?</svg>", page)
    assert len(charts) == 1
    lines = re.findall(r'<polyline class="c(\d)" points="([^"]*)" data-name="(\w+)"', charts[0])
    assert [(colour, name) for colour, _, name in lines] == [("5", "default"), ("4", "longer")]
    ends = [[tuple(map(float, point.split(","))) for point in points.split()][-1] for _, points, _ in lines]
    assert ends[0][0] < 100 < ends[1][0]  # ten times as many steps reach further to the right
    assert ends[0][1] < ends[1][1]  # on one axis 2 lies above 1
    assert re.findall(r'end">([\d.]+)</text>', charts[0]) == ["0", "5", "10"]
    assert re.findall(r'middle">(\d+)</text>', charts[0]) == ["0", "10"]
    assert "step 20</text>" in charts[0]


@every([([1, 1], [1, 1.5]), ([0.2, 0.9], [0, 0.5, 1]), ([90, 99], [90, 95, 100]), ([-1, 2], [-1, 0, 1, 2])])
def test_an_axis_encloses_its_values(case):
    values, ticks = case
    assert value_ticks(values) == pytest.approx(ticks)

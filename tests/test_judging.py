"""The judge: a real server on this machine answers, whole benches count."""

import json
import sys

import numpy as np
import pytest
import yaml
from helpers.bench_collection import build
from helpers.chat_server import SOON, ChatServer
from helpers.tiny_encoders import save_clip, save_dino

from collectionlora.backbones.nano import fastest
from collectionlora.command_line import verbs as cli
from collectionlora.effectbench import bench, benching
from collectionlora.effectbench.judging import read_verdict
from collectionlora.pictures.photos import write_photo

MODEL = "some-judge"
GOOD, BAD = '{"bad_case": false, "identity": 4}', '{"bad_case": true, "identity": 5}'


@pytest.fixture
def server():
    server = ChatServer()
    server.replies = [GOOD]
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Of the effect `mine` nothing is known but a reference pair and its criteria."""
    monkeypatch.setattr(benching, "CLASSIFIER_STEPS", 2)
    monkeypatch.setattr(bench, "GENERAL_KINDS", ("blur",))
    build(tmp_path)
    manifest = yaml.safe_load((tmp_path / "collection.yaml").read_text())
    manifest["effects"][1]["criteria"] = "the photo glows"
    (tmp_path / "collection.yaml").write_text(yaml.safe_dump(manifest))
    for side, level in (("source", 20), ("target", 230)):
        write_photo(tmp_path / "pairs" / "mine" / side / "0.png", np.full((16, 16, 3), level, np.uint8))
    return tmp_path


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Run `collectionlora bench FOLDER ...`; returns exit code, the JSON on stdout, stderr."""

    def run_bench(*arguments):
        fixed = ["--photos", str(folder / "heldout"), "--crops", "2", "--json"]
        monkeypatch.setattr(sys, "argv", ["collectionlora", "bench", str(folder), *fixed, *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out and json.loads(captured.out), captured.err

    return run_bench


def endpoint(server):
    return ("--judge", f"http://{server.host}/v1", "--judge-model", MODEL)


def test_one_answer_gives_both_figures_and_nothing_is_asked_twice(run, server, folder):
    server.replies = [
        GOOD,
        BAD,
        "I cannot say",
        BAD,
        GOOD,
    ]  # sepia: bad by the second try; the last one forever
    arguments = ("--methods", "source,student", "--set", "bench.judged_twice=3", *endpoint(server))
    code, metrics, err = run(*arguments)
    assert code == 0, err
    source, student = metrics["methods"]["source"], metrics["methods"]["student"]
    assert (source["per_effect"]["sepia"]["vsa"], source["per_effect"]["sepia"]["bcr"]) == (2, 0.5)
    assert (student["per_effect"]["sepia"]["vsa"], student["per_effect"]["sepia"]["bcr"]) == (2, 0.5)
    assert (student["vsa"], student["bcr"]) == (3, 0.25)
    assert source["per_effect"]["mine"].keys() == {"vsa", "bcr", "unjudged", "ci95"}
    assert metrics["skipped"].keys() == {"clip", "dino", "dreamsim", "editreward", "truth"}
    asked = 2 * 2 * 2 + 1 + 3  # methods, effects, photos; one answer asked for anew; three judged twice
    assert len(server.requests) == asked
    assert metrics["judge"] | {"judged_twice": None} == {
        "model": MODEL, "host": server.host, "independent": True, "calls": asked, "tokens": 100 * asked,
        "judged_twice": None,
    }  # fmt: skip
    assert metrics["judge"]["judged_twice"]["pictures"] == 3

    kept = json.loads((folder / "bench/pictures/student/sepia.answers.json").read_text())
    assert ["I cannot say", BAD] in [one["answers"] for one in kept.values()]
    assert {one["model"] for one in kept.values()} == {MODEL}
    code, again, err = run(*arguments)
    assert code == 0, err
    assert len(server.requests) == asked
    assert again["judge"]["calls"] == 0
    assert again["methods"] == metrics["methods"] | {
        name: {**row, "seconds_per_image": metrics["methods"][name]["seconds_per_image"]}
        for name, row in again["methods"].items()
    }


def test_the_judge_sees_pair_criteria_photo_and_picture(run, server, folder):
    code, _, err = run("--methods", "source", "--set", "bench.judged_twice=0", *endpoint(server))
    assert code == 0, err
    alone, paired = server.requests[0][2], server.requests[-1][2]
    assert len(alone["messages"][0]["content"]) == 3
    assert len(paired["messages"][0]["content"]) == 5
    reference, edited, source, made = server.images(-1)
    assert np.asarray(reference).mean() < 30
    assert np.asarray(edited).mean() > 220
    assert np.array_equal(np.asarray(source), np.asarray(made))  # the method source copies
    assert source.size == (32, 32)
    text = server.texts()[-1]
    assert "'apply mine'" in text
    assert "under these criteria: the photo glows" in text
    assert "criteria" not in server.texts()[0]
    assert "Image 1 is the photo" in server.texts()[0]


def test_pictures_without_a_usable_answer_are_counted_and_left_out(run, server):
    server.replies = ["never"]
    code, metrics, err = run("--methods", "source", *endpoint(server))
    assert code == 0, err
    row = metrics["methods"]["source"]
    assert "vsa" not in row
    assert row["per_effect"]["mine"] == {"unjudged": 2, "ci95": {}}
    assert metrics["judge"]["judged_twice"] == {"pictures": 0}


def test_repeatability_is_measured_from_both_turns(run, server):
    # Two effects of two photos; then the same four again: one bad case and one identity differ.
    server.replies = [GOOD] * 4 + [BAD, '{"bad_case": false, "identity": 2}', GOOD, GOOD]
    code, metrics, err = run("--methods", "source", "--set", "bench.judged_twice=4", *endpoint(server))
    assert code == 0, err
    assert metrics["judge"]["judged_twice"] == {
        "pictures": 4, "bad_case_agreement": 0.75, "identity_difference": 0.75
    }  # fmt: skip


def test_a_broken_endpoint_costs_no_answer(run, server, folder):
    server.replies = [GOOD, GOOD, (401, "no", SOON), GOOD]
    code, _, err = run("--methods", "source", *endpoint(server))
    assert code == 2
    fault = f"error: {server.host}: {MODEL}: answers 401 no; name the variable that holds the key: "
    assert err.strip().splitlines()[-1] == fault + "--api-key-env NAME"
    code, _, err = run("--methods", "source", "--set", "bench.judged_twice=0", *endpoint(server))
    assert code == 0, err
    assert len(server.requests) == 3 + 2


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--judge", "http://localhost:1/v1"), "error: --judge-model: is missing; "),
        (("--judge-model", "x"), "error: --judge: is missing; "),
        (("--judge", "nowhere", "--judge-model", "x"), "error: --judge: is not an http address; "),
        (("--crops", "3"), "error: --crops: 3 are asked for, there are 2; "),
    ],
)
def test_bad_arguments_are_one_line(run, arguments, line):
    code, _, err = run("--methods", "source", *arguments)
    assert code == 2
    assert err.strip().splitlines()[-1].startswith(line)


def test_a_cap_stops_before_more_tokens_are_spent(run, server):
    code, _, err = run("--methods", "source", "--max-tokens-total", "100", *endpoint(server))
    assert code == 2
    assert "the cap is 100; raise it: --max-tokens-total N" in err
    assert server.requests == []


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (GOOD, (False, 4)),
        (f"```json\n{BAD}\n```", (True, 5)),
        (f"<think>well {GOOD}</think>So: {BAD}", (True, 5)),
        ('{"bad_case": false, "identity": 6}', None),
        ('{"bad_case": "no", "identity": 3}', None),
        ('{"identity": 3}', None),
        ("{}", None),
        ("4", None),
    ],
)
def test_only_a_whole_verdict_counts(answer, verdict):
    read = read_verdict(answer)
    assert (read and (read.bad_case, read.identity)) == verdict


def test_models_that_are_given_measure_every_effect(run, folder, tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    save_clip(models / "clip")
    save_dino(models / "dino")
    options = ("--set", f"bench.clip={models}/clip", "--set", f"bench.dino={models}/dino")
    code, metrics, err = run("--methods", "source,teacher,student", *options)
    assert code == 0, err
    assert metrics["skipped"].keys() == {"dreamsim", "editreward", "truth", "reference images", "judge"}
    rows = metrics["methods"]["student"]["per_effect"]
    given = {"clip_text", "clip_source", "clip_reference", "dino_source", "dino_reference"}
    assert rows["mine"].keys() == given | {"teacher_psnr", "ci95"}
    assert {"psnr", "clip_text", "dino_source"} <= rows["sepia"].keys()
    assert metrics["methods"]["source"]["dino_source"] == pytest.approx(1)
    page = (folder / "bench" / "report.html").read_text()
    assert "DINO source" in page
    assert "not known of mine" in page


def test_a_bench_names_the_base_and_what_each_adapter_was_distilled_on(run):
    pytest.importorskip("bitsandbytes")
    code, metrics, err = run("--methods", "source,student", "--set", "model.quantization=nf4")
    assert code == 0, err
    dtype = str(fastest()[1]).removeprefix("torch.")
    expected = {"name": "nano", "dtype": dtype, "quantization": "nf4", "distilled_on": {"student": "none"}}
    assert metrics["base"] == expected

"""`prompts` through the command line, against a real server on this machine."""

import json
import signal
import socket
import sys
import threading
import time

import numpy as np
import pytest
import torch
import yaml
from helpers.chat_server import SOON, ChatServer, completion

from collectionlora.backbones.nano import NanoBackbone
from collectionlora.cache import cache_path, effect_key
from collectionlora.collection import Collection
from collectionlora.command_line import verbs as cli
from collectionlora.pictures.photos import write_photo
from collectionlora.prompting.endpoint import plain
from collectionlora.prompting.triggers import CANDIDATES, cosine_table, draw_trigger
from collectionlora.runs import verbs
from collectionlora.runs.session import resolve_settings
from collectionlora.system.files import write_tensors

MODEL, KEY = "some-vlm", "sk-secret-5ad1"
NAMES = ("sketch", "neon", "plain")  # the first two have pairs


def grey(level, height=10, width=20):
    return np.full((height, width, 3), level, np.uint8)


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return NanoBackbone()


@pytest.fixture
def server():
    server = ChatServer()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path, monkeypatch, backbone):
    """A collection of three effects, two with image pairs: sources are dark, targets light."""
    monkeypatch.setattr(verbs, "load_backbone", lambda base, settings: backbone)
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_LOG"):
        monkeypatch.delenv(name, raising=False)
    for index, name in enumerate(NAMES[:2]):
        for side, level in (("source", 10), ("target", 200)):
            for i in range(3):
                write_photo(tmp_path / "pairs" / name / side / f"{i}.png", grey(level + 20 * index + i))
    write_manifest(tmp_path)
    return tmp_path


def write_manifest(folder, **changes):
    effects = [
        {"name": n, "teacher": f"{n}.safetensors", "teacher_prompt": f"do {n}", "photos": "photos"}
        for n in NAMES
    ]
    for effect in effects:
        effect.update(changes.get(effect["name"], {}))
    manifest = {"effects": effects, "general": {"photos": "photos", "prompts": "general.txt"}}
    (folder / "collection.yaml").write_text(yaml.safe_dump(manifest))


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Run `collectionlora prompts FOLDER ...`; returns exit code, stdout, stderr."""

    def run_prompts(*arguments):
        monkeypatch.setattr(sys, "argv", ["collectionlora", "prompts", str(folder), *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return run_prompts


@pytest.fixture
def ask(run, server):
    """Run it with the server's endpoint; returns the JSON of a run that succeeds."""

    def run_asking(*arguments):
        code, out, err = run("--vlm", f"http://{server.host}/v1", "--model", MODEL, "--json", *arguments)
        assert code == 0, err
        return json.loads(out)

    return run_asking


def kept(folder):
    return json.loads((folder / "prompts.json").read_text())


def test_pairs_go_in_and_one_prompt_comes_out(ask, server, folder):
    write_photo(folder / "pairs/neon/source/0.png", grey(30, 500, 1000))
    server.replies = ["a pencil drawing of the person", "glowing edges"]
    result = ask()
    prompts = result["student_prompts"]
    assert prompts["sketch"].startswith("<sketch_")
    assert [p.partition("> ")[2] for p in prompts.values()] == [
        "a pencil drawing of the person",
        "glowing edges",
        "do plain",
    ]
    assert result["written_by"] == {"sketch": MODEL, "neon": MODEL, "plain": "teacher prompt"}
    assert "no image pairs" in result["notes"]["plain"]
    assert (result["calls"], result["tokens"]) == (2, 200)
    assert np.shape(result["student_cosine"]) == np.shape(result["teacher_cosine"]) == (3, 3)

    path, headers, body = server.requests[1]
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == "Bearer none"
    assert body["model"] == MODEL
    images = server.images(1)
    assert [i.size for i in images] == [(768, 384), (20, 10), (20, 10), (20, 10)]
    assert [np.asarray(i).mean().round() for i in images] == [30, 220, 31, 221]
    assert "'do neon'" in server.texts()[1]
    assert "2 pairs" in server.texts()[1]


def test_the_answer_is_kept_with_its_origin_and_asked_for_only_once(ask, server, folder):
    server.replies = ['<think>well</think>"a drawing"']
    first = ask()
    entry = kept(folder)["sketch"]
    assert entry["student_prompt"] == first["student_prompts"]["sketch"]
    assert entry["written_by"] == MODEL
    assert entry["asked"]["answer"] == '<think>well</think>"a drawing"'
    assert (entry["asked"]["host"], entry["asked"]["tokens"]) == (server.host, 100)
    assert len(entry["asked"]["request"]) == 16
    again = ask()
    assert len(server.requests) == 2
    assert again["student_prompts"] == first["student_prompts"]
    assert (again["calls"], again["tokens"]) == (0, 0)


def test_what_changed_is_asked_again_and_nothing_else(ask, server, folder):
    ask()
    write_manifest(folder, neon={"teacher_prompt": "do something else"})
    ask()
    assert len(server.requests) == 3
    assert "something else" in server.texts()[-1]
    write_photo(folder / "pairs/sketch/target/0.png", grey(0))
    ask()
    assert len(server.requests) == 4
    ask("--model", "another")
    assert len(server.requests) == 6


def test_without_an_endpoint_answers_stay_until_the_teacher_prompt_changes(ask, run, server, folder):
    asked = ask()
    code, out, _ = run("--json")
    assert code == 0
    assert json.loads(out)["student_prompts"] == asked["student_prompts"]
    write_manifest(folder, neon={"teacher_prompt": "do something else"})
    result = json.loads(run("--json")[1])
    assert result["written_by"]["neon"] == "teacher prompt"
    assert result["student_prompts"]["neon"].endswith("> do something else")
    assert len(server.requests) == 2


def test_without_an_endpoint_the_table_says_who_wrote(run, folder):
    write_manifest(folder, neon={"student_prompt": "<zap> [/red] glow"})
    result = json.loads(run("--json")[1])
    assert result["written_by"] == {"sketch": "teacher prompt", "neon": "manifest", "plain": "teacher prompt"}
    assert result["student_prompts"]["neon"] == "<zap> [/red] glow"
    assert (result["notes"], result["calls"]) == ({}, 0)
    assert "neon" not in kept(folder)
    code, out, err = run()
    assert (code, out) == (0, "")
    assert "manifest" in err


def test_cached_targets_serve_where_there_are_no_pairs(ask, server, folder):
    (folder / "plain.safetensors").write_bytes(b"a teacher")
    write_photo(folder / "photos/0.png", grey(0))
    collection = Collection.load(folder)
    effect, settings = collection.effect("plain"), resolve_settings(collection, {})
    sources, targets = torch.full((1, 3, 8, 8), -1.0), torch.full((1, 4, 3, 8, 8), 1.0)
    path = cache_path(collection, "plain", effect_key(collection, effect, settings))
    write_tensors(path, {"sources": sources, "targets": targets}, {})
    assert ask()["written_by"]["plain"] == MODEL
    assert [np.asarray(image).mean() for image in server.images(2)] == [0, 255]
    assert "one pair" in server.texts()[2]


def test_the_trigger_is_the_most_orthogonal_to_the_prompts_there(run, folder, backbone):
    write_manifest(folder, sketch={"student_prompt": "<zap> do"}, neon={"teacher_prompt": "do plain"})
    result = json.loads(run("--json")[1])
    sketch, neon, plain_prompt = result["student_prompts"].values()
    candidates = [f"{draw_trigger('plain', i)} do plain" for i in range(CANDIDATES)]
    table = cosine_table(backbone.encode_prompt, [*candidates, sketch, neon])
    assert plain_prompt == candidates[int(table[:CANDIDATES, CANDIDATES:].amax(1).argmin())]
    assert result["teacher_cosine"][1][2] == pytest.approx(1)
    assert result["student_cosine"][1][2] < 0.9


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_fault_is_tried_again(ask, server, status):
    server.replies = [(status, {"error": {"message": "busy"}}, SOON), (status, "", SOON), "a drawing"]
    result = ask()
    assert result["written_by"]["sketch"] == MODEL
    assert len(server.requests) == 4
    assert result["calls"] == 2


OVERSIZED = "x" * 2000


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("", "is empty"),
        (None, "is empty"),
        ("<think>never ends", "is empty"),
        ("Sure! Here it is:\na drawing", "has several lines"),
        (OVERSIZED, "has 2000 letters or more"),
        ("<neon_balumo> a drawing", "has angle brackets"),
        ("a \x1b[31mdrawing", "has control characters"),
        ((200, completion("a draw", finish="length"), {}), "was cut off"),
    ],
)
def test_a_bad_answer_is_asked_for_again_then_left(ask, server, folder, answer, fault):
    server.replies = [answer, "a drawing", answer, answer, "later"]
    result = ask()
    assert result["student_prompts"]["sketch"].endswith("> a drawing")
    assert kept(folder)["sketch"]["asked"]["tokens"] == 200
    assert f"refused because it {fault}" in server.texts()[1]
    assert result["written_by"]["neon"] == "teacher prompt"
    assert result["notes"]["neon"].startswith(f"{MODEL}'s answer {fault}")
    assert ask()["written_by"]["neon"] == MODEL
    assert len(server.requests) == 5


@pytest.mark.parametrize(
    ("reply", "message", "hint", "num_requests"),
    [
        ((500, {"error": {"message": "out\nof  memory"}}, SOON), "answers 500 {", "look at the server", 2),
        ((429, "slow down", SOON), "answers 429 slow down", "wait", 2),
        ((404, {"error": {"message": "no such model"}}, {}), "answers 404 {", "--model", 1),
        ((400, "no images", {}), "answers 400 no images", "reads images", 1),
        ((200, "{not json", {}), "something else than a chat completion", "/v1", 1),
        ((200, "<html>", {"content-type": "text/html"}), "something else", "/v1", 1),
        ((200, {"error": "down"}, {}), "something else", "/v1", 1),
        ((200, {"choices": []}, {}), "something else", "/v1", 1),
    ],
)
def test_a_lasting_fault_is_one_line(run, server, folder, reply, message, hint, num_requests):
    server.replies = [reply]
    endpoint = ("--vlm", f"http://{server.host}/v1", "--model", MODEL)
    fails(run(*endpoint, "--set", "vlm.max_retries=1"), f"{server.host}: {MODEL}: ", message, hint)
    assert len(server.requests) == num_requests
    assert not (folder / "prompts.json").exists()


def fails(outcome, *parts):
    code, out, err = outcome
    assert (code, out) == (2, "")
    lines = [line for line in err.splitlines() if line.strip()]
    assert [line.startswith("error: ") for line in lines] == [True]
    assert all(part in lines[0] for part in parts), lines[0]


def test_silence_ends_in_a_line(run, server):
    server.slowness = 1.0
    endpoint = ("--vlm", f"http://{server.host}/v1", "--model", MODEL)
    fails(
        run(*endpoint, "--set", "vlm.timeout=0.1", "--set", "vlm.max_retries=0"), "no answer within 0.1 sec"
    )


def test_an_unreachable_port_is_one_line(run):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    endpoint = ("--vlm", f"http://{host}/v1", "--model", MODEL)
    fails(run(*endpoint, "--set", "vlm.max_retries=0"), host, "cannot be reached; start the server")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--vlm", "http://localhost/v1"], ["--model: is missing"]),
        (["--model", "m"], ["--vlm: is missing"]),
        (["--vlm", "localhost:8000/v1", "--model", "m"], ["--vlm: is no http address"]),
        (["--vlm", "http://[::1/v1", "--model", "m"], ["is no http address"]),
        (["--vlm", "http://a b/v1", "--model", "m"], ["is no http address"]),
        (["--vlm", f"http://me:{KEY}@localhost/v1", "--model", "m"], ["password", "--api-key-env"]),
        (["--vlm", f"http://localhost/v1?key={KEY}", "--model", "m"], ["query", "--api-key-env"]),
        (["--vlm", f"http://me:{KEY}@localhost/v1"], ["--model"]),
        (
            ["--vlm", "http://localhost/v1", "--model", "m", "--api-key-env", "NOT_SET"],
            ["NOT_SET: ", "not set"],
        ),
        (["--max-tokens-total", "0"], ["vlm.max_tokens_total"]),
        (["--set", "vlm.timout=3"], ["did you mean vlm.timeout?"]),
    ],
)
def test_a_wrong_command_line_is_one_line(run, arguments, parts):
    outcome = run(*arguments)
    fails(outcome, *parts)
    assert KEY not in outcome[2]


def test_it_stops_before_the_cap_and_keeps_what_is_answered(run, ask, server, folder):
    server.replies = [(200, completion("a drawing", tokens=6000), {}), "glow"]
    endpoint = ("--vlm", f"http://{server.host}/v1", "--model", MODEL)
    outcome = run(*endpoint, "--max-tokens-total", "11999")
    assert outcome[0] == 2
    line = outcome[2].splitlines()[-1]
    assert "6000 tokens are spent, the next call may take 6000, the cap is 11999" in line
    assert "--max-tokens-total" in line
    assert list(kept(folder)) == ["sketch"]
    ask()
    assert len(server.requests) == 2


def test_a_cap_below_one_call_spends_nothing(run, server):
    endpoint = ("--vlm", f"http://{server.host}/v1", "--model", MODEL)
    fails(run(*endpoint, "--max-tokens-total", "1000"), "0 tokens are spent")
    assert server.requests == []


def test_a_call_without_usage_is_counted_by_its_estimate(ask, server):
    server.replies = [(200, {"choices": [{"message": {"content": "a drawing"}}]}, {})]
    assert 2 * 2048 < ask()["tokens"] < 2 * 8000


@pytest.mark.parametrize("status", [200, 401])
def test_the_key_is_a_header_and_nothing_else(run, server, folder, monkeypatch, status):
    monkeypatch.setenv("MY_KEY", KEY + "\n")
    server.replies = [(status, completion("a drawing") if status == 200 else f"bad key {KEY}", {})]
    endpoint = ("--vlm", f"http://{server.host}/v1", "--model", MODEL, "--api-key-env", "MY_KEY")
    code, out, err = run(*endpoint)
    assert code == (0 if status == 200 else 2)
    _, headers, body = server.requests[0]
    assert headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in json.dumps(body)
    assert KEY not in out + err
    assert "--api-key-env" in err or status == 200
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert not any(KEY.encode() in path.read_bytes() for path in files)


def test_no_key_of_another_service_is_sent(ask, server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ADMIN_KEY", KEY)
    ask()
    assert KEY not in str(server.requests[0][1])


def test_an_interruption_keeps_what_is_answered(run, ask, server, folder):
    def interrupt():
        # To the thread that waits for this answer, and with time to act on it before the answer comes.
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(1)
        return "too late"

    # A test run in the background of a shell inherits that Ctrl-C is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    server.replies = ["a drawing", interrupt, "glow"]
    try:
        code, out, err = run("--vlm", f"http://{server.host}/v1", "--model", MODEL)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, out) == (130, "")
    assert "run the same command again" in err
    assert list(kept(folder)) == ["sketch"]
    assert ask()["student_prompts"]["neon"].endswith("> glow")
    assert len(server.requests) == 3


def test_a_damaged_file_of_prompts_is_one_line(run, folder):
    (folder / "prompts.json").write_text('{"sketch": "an old form"}')
    fails(run(), "prompts.json: sketch", "remove the file")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a drawing", "a drawing"),
        ("  a drawing\n", "a drawing"),
        ("```\na drawing\n```", "a drawing"),
        ("```text\na drawing\n```", "a drawing"),
        ("```a drawing```", "a drawing"),
        ('"a drawing"', "a drawing"),
        ("“a drawing”", "a drawing"),
        ("`a drawing`", "a drawing"),
        ('"a" and "b"', '"a" and "b"'),
        ("it's a drawing", "it's a drawing"),
        ("<think>one\ntwo</think>\n\na drawing", "a drawing"),
        ("one\ntwo</think>a drawing", "a drawing"),
        ("<think>a</think>b<think>c</think>a drawing", "a drawing"),
        ('<think>x</think>```\n"a drawing"\n```', "a drawing"),
        ('"', '"'),
        ("", ""),
        ("```", "```"),
    ],
)
def test_an_answer_is_unwrapped(text, expected):
    assert plain(text) == expected

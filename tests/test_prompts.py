"""`prompts` through the command line, against a real server on this machine."""

import json
import os
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

from collectionlora.adapters.recipe import Recipe, write_adapter
from collectionlora.backbones.nano import NanoBackbone
from collectionlora.cache import cache_path, effect_key
from collectionlora.collection import Collection
from collectionlora.command_line import verbs as cli
from collectionlora.pictures.photos import write_photo
from collectionlora.prompting.answers import plain, read_description
from collectionlora.prompting.refusals import is_refusal
from collectionlora.prompting.triggers import CANDIDATES, cosine_table, draw_trigger
from collectionlora.prompting.writing import PromptWriter
from collectionlora.runs import verbs
from collectionlora.runs.folder import hold
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


def test_an_answer_of_another_command_stays(ask, folder, backbone):
    collection = Collection.load(folder)
    writer = PromptWriter(collection, backbone, resolve_settings(collection, {}))
    own = writer.propose(collection.effect("sketch"))
    written = ask()["student_prompts"]["sketch"]
    assert own.student_prompt != written
    writer.save()
    assert kept(folder)["sketch"]["student_prompt"] == written


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


def test_answers_that_another_model_replaces_are_kept(ask, folder):
    ask()
    ask()
    assert not list(folder.glob("prompts-*.json"))
    before = (folder / "prompts.json").read_bytes()
    ask("--model", "another")
    (kept,) = folder.glob("prompts-*.json")
    assert kept.read_bytes() == before


def test_a_prompt_that_a_finished_adapter_knows_is_not_rewritten(ask, server, folder):
    recipe = Recipe(
        base="nano", steps=1, shift=3, resolution=32, effects={"sketch": "<known> x"}, version="1"
    )
    write_adapter(folder / "earlier.safetensors", {"layer": (torch.zeros(1, 2), torch.zeros(2, 1))}, recipe)
    server.replies = ["glowing edges"]
    result = ask("--set", "match.start=earlier.safetensors")
    assert result["student_prompts"]["sketch"] == "<known> x"
    assert result["written_by"] == {"sketch": "match.start", "neon": MODEL, "plain": "teacher prompt"}
    assert result["calls"] == 1


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


def message(**fields):
    """A chat completion of a message with these fields, counted as `completion` counts."""
    body = completion("")
    body["choices"][0]["message"] = {"role": "assistant", **fields}
    return body


OVERSIZED = "x" * 2000


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("", "is empty"),
        (None, "is empty"),
        ("<think>never ends", "is empty"),
        ("a drawing\na painting", "has several lines"),
        ("1. a drawing\n2. a painting", "has several lines"),
        ("Option 1: a drawing. Option 2: a painting.", "offers several"),
        ("N/A", "is empty"),
        ("I'm sorry, but I can't help with that.", "declines"),
        ('{"prompt": "a draw', "is JSON without a prompt"),
        ((200, completion("a drawing", finish="content_filter"), {}), "was stopped by the server's filter"),
        ((200, completion("a drawing", finish="MAX_TOKENS"), {}), "was cut off"),
        ((200, message(content=None, refusal="I can't."), {}), "declines"),
        ((200, message(content=None, tool_calls=[{"id": "1"}]), {}), "is a call of a tool, without text"),
        ((200, message(content=None, reasoning_content="hm"), {}), "is thoughts alone"),
        (
            (400, {"error": {"code": "content_filter", "message": "content management policy"}}, {}),
            "was stopped",
        ),
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
    spent = 100 if isinstance(answer, tuple) and answer[0] == 400 else 200
    assert kept(folder)["sketch"]["asked"]["tokens"] == spent
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
        ((200, {"error": {"message": "model 'm' not found"}}, {}), "model 'm' not found", "--model", 1),
        (
            (502, "<html><style>a{}</style><h1>Bad Gateway</h1>", SOON),
            "answers 502 Bad Gateway;",
            "server",
            2,
        ),
        ((400, "maximum context length is 4096 tokens", {}), "4096 tokens", "longer context", 1),
        ((400, "max_tokens is too large: 2048", {}), "too large", "vlm.max_answer_tokens=N", 1),
        ((400, "At most 1 image(s) may be provided", {}), "At most", "--limit-mm-per-prompt", 1),
        ((413, "Request Entity Too Large", {}), "answers 413", "vlm.image_side", 1),
        ((400, "image exceeds 5 MB maximum", {}), "answers 400", "vlm.image_side", 1),
        ((422, "this model does not support image input", {}), "answers 422", "reads images", 1),
        ((404, "model 'm' not found, try pulling it first", {}), "answers 404", "check --model", 1),
        ((429, "You exceeded your current quota", SOON), "answers 429", "account", 2),
        ((503, "model is loading", SOON), "answers 503", "has loaded the model", 2),
        ((400, "something is wrong", {}), "answers 400", "read what the server says", 1),
    ],
)
def test_a_lasting_fault_is_one_line(run, server, folder, reply, message, hint, num_requests):
    server.replies = [reply]
    endpoint = ("--vlm", f"http://{server.host}/v1", "--model", MODEL)
    fails(run(*endpoint, "--set", "vlm.max_retries=1"), f"{server.host}: {MODEL}: ", message, hint)
    assert len(server.requests) == num_requests
    assert not (folder / "prompts.json").exists()


def test_a_model_that_takes_other_parameters_is_asked_in_its_own_way(ask, server):
    refused = [
        "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead.",
        "Unsupported value: 'temperature' does not support 0 with this model.",
    ]
    server.replies = [*((400, {"error": {"message": words}}, {}) for words in refused), "a drawing"]
    assert ask()["written_by"]["sketch"] == MODEL
    bodies = [body for _, _, body in server.requests]
    assert ("max_tokens" in bodies[0], bodies[0]["temperature"]) == (True, 0)
    assert [body.get("max_completion_tokens") for body in bodies] == [None, 2048, 2048, 2048]
    assert ["temperature" in body for body in bodies] == [True, True, False, False]
    assert "max_tokens" not in bodies[3]


def test_a_server_of_this_machine_is_asked_without_a_proxy(ask, server, monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "example.org")  # put back after the test
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert ask()["written_by"]["sketch"] == MODEL
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == "example.org,localhost,127.0.0.1,::1"


def test_a_proxy_that_is_none_is_one_line(run, server, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "nonsense://127.0.0.1:9")
    fails(run("--vlm", f"http://{server.host}/v1", "--model", MODEL), "environment: proxy", "ALL_PROXY")


def test_an_answer_in_parts_and_without_a_count_is_read(ask, server):
    parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "a drawing"}]
    server.replies = [(200, {**message(content=parts), "usage": {}}, {})]
    result = ask()
    assert result["student_prompts"]["sketch"].endswith("> a drawing")
    assert result["tokens"] > 2 * 2048


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
    fails(run(*endpoint, "--set", "vlm.max_retries=0"), host, "cannot be reached (", "; start the server")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--vlm", "http://localhost/v1"], ["--model: is missing"]),
        (["--model", "m"], ["--vlm: is missing"]),
        (["--vlm", "localhost:8000/v1", "--model", "m"], ["--vlm: is not an http address"]),
        (["--vlm", "http://[::1/v1", "--model", "m"], ["is not an http address"]),
        (["--vlm", "http://a b/v1", "--model", "m"], ["is not an http address"]),
        (["--vlm", "http://a/v1/chat/completions", "--model", "m"], ["leave that part out: it ends in /v1"]),
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


def test_two_processes_do_not_ask_at_once(run, ask, server, folder):
    server.replies = ["a drawing", "glow"]
    with hold(folder / "runs"):
        code, _, err = run("--vlm", f"http://{server.host}/v1", "--model", MODEL)
        assert code == 2
        assert "runs/lock: this collection is held by process" in err
        assert run()[0] == 0  # which asks nobody
    assert server.requests == []
    assert ask()["student_prompts"]["sketch"].endswith("> a drawing")


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


CORE = "turn the photo into a pencil sketch"
WRAPPED = [
    CORE,
    f"Here is the prompt: {CORE}",
    f"Here's your prompt:\n\n{CORE}",
    f'Sure! Here\'s the prompt: "{CORE}"',
    f"Sure! Here it is:\n{CORE}",
    f"Certainly! {CORE}",
    f"Prompt: {CORE}",
    f"**Prompt:** {CORE}",
    f"__Prompt__: {CORE}",
    f"### Prompt\n{CORE}",
    f"**{CORE}**",
    f"*{CORE}*",
    f"> {CORE}",
    f"- {CORE}",
    f"1. {CORE}",
    f"Edit prompt (concise): {CORE}",
    f"The editing instruction would be: {CORE}",
    f"Final answer: `{CORE}`",
    f"ASSISTANT: {CORE}",
    f"提示词：{CORE}",
    f"以下是提示：\n{CORE}",
    f"Voici le prompt :\n« {CORE} »",
    f"Hier ist der Prompt: „{CORE}“",
    f"「{CORE}」",
    f'"{CORE}".',
    f'{{"prompt": "{CORE}"}}',
    f'{{"edit": "{CORE}"}}',
    f'{{"prompt": "{CORE}", "reason": "because"}}',
    f'{{"result": {{"prompt": "{CORE}"}}}}',
    f'[{{"prompt": "{CORE}"}}]',
    f'```json\n{{"prompt": "{CORE}"}}\n```',
    f'Here is the JSON:\n```json\n{{"prompt": "{CORE}"}}\n```\n\nLet me know if it fits!',
    f"<answer>{CORE}</answer>",
    f"<thinking>well</thinking>{CORE}",
    f"[THINK]well[/THINK]{CORE}",
    f"<|channel|>analysis<|message|>well<|end|><|start|>assistant<|channel|>final<|message|>{CORE}",
    f"<|begin_of_box|>{CORE}<|end_of_box|>",
    f"{CORE}</s>",
    f"{CORE}\n\nNote: this keeps the person.",
    f"{CORE}\n\n---\nThis prompt keeps the person.",
]


@pytest.mark.parametrize("text", WRAPPED)
def test_the_wrapping_of_an_answer_is_no_part_of_a_prompt(text):
    assert read_description(text) == CORE
    assert not is_refusal(plain(text))


@pytest.mark.parametrize(
    "text",
    [
        "Make the output look like a sketch: rough lines, no colour",
        "the photo becomes a drawing (charcoal, rough), not a painting",
        "the photo is not only darker but glows",
        "Style: neon; background: dark",
        "give the person a mask that cannot be seen through",
        "replace the background by stars; do not change the face",
        "turn people into statues that are sorry to be stone",
        '"a" and "b"',
    ],
)
def test_a_description_stays_as_it_is(text):
    assert read_description(text) == text
    assert not is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with identifying or editing people in images.",
        "I’m really sorry, but no.",
        "I cannot assist with that request.",
        "As an AI language model, I am unable to view images.",
        "Unfortunately, the images are blank.",
        "Sure! I can't help with that.",
        "Prompt: I'm unable to describe real people.",
        '{"prompt": "I cannot help with that"}',
        '{"error": "I cannot help with that"}',
        "I'm sorry, but I can't provide a prompt for this image: it shows a person",
        "I'd prefer not to describe this.",
        "No images were provided.",
        "Please upload the images.",
        "Could you please share the photos again?",
        "It seems that no images were attached.",
        "Your request was rejected by our safety system.",
        "This request violates our content policy.",
        "抱歉，我无法协助处理该请求。",
        "作为一个人工智能语言模型，我没有办法",
        "申し訳ありませんが、お手伝いできません。",
        "죄송하지만 도와드릴 수 없습니다.",
        "Es tut mir leid, aber dabei kann ich nicht helfen.",
        "Je suis désolé, mais je ne peux pas vous aider.",
        "Lo siento, no puedo ayudar con eso.",
        "Desculpe, não posso ajudar.",
        "Mi dispiace, non posso aiutarti.",
        "Het spijt me, dat gaat niet.",
        "Przepraszam, nie mogę pomóc.",
        "Извините, я не могу помочь с этим.",
        "Üzgünüm, bu konuda yardımcı olamam.",
        "عذرًا، لا يمكنني المساعدة",
        "क्षमा करें, मैं मदद नहीं कर सकता",
        "Xin lỗi, tôi không thể giúp.",
    ],
)
def test_an_excuse_in_any_language_is_told_from_a_description(text):
    assert is_refusal(read_description(text)) or is_refusal(plain(text))

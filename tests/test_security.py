"""What strangers can send: requests to the studio, LoRA files, model folders, photos (docs/security.md)."""

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
import torch
from helpers.bench_collection import build
from helpers.studio_server import PASSWORD, USER, serve, wait_until_empty, write_collection
from huggingface_hub import constants
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file
from starlette.datastructures import Headers

from collectionlora.adapters.recipe import KEY, Recipe, read_adapter
from collectionlora.backbones import family_of, load_backbone
from collectionlora.backbones.diffusers_files import list_files
from collectionlora.config import ModelSettings
from collectionlora.pictures.photos import read_photo
from collectionlora.runs.inputs import INPUTS, distillation_inputs, record_inputs
from collectionlora.studio.guard import SameSite
from collectionlora.system.errors import UserError
from collectionlora.system.files import fingerprint

EVIL = "http://evil.example"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("security") / "mine"
    folder.mkdir()
    return write_collection(folder)


@pytest.fixture(scope="module")
def closed(folder):
    """Address and cookies of a studio with a password, of a visitor who logged in."""
    with serve(folder) as address, httpx.Client(base_url=address) as visitor:
        visitor.post("/login", data={"username": USER, "password": PASSWORD}).raise_for_status()
        yield visitor


@pytest.fixture(scope="module")
def local(folder):
    """A visitor of a studio on this machine without a password."""
    with serve(folder, password=False) as address, httpx.Client(base_url=address) as visitor:
        yield visitor


def test_uploads_end_with_a_server_that_is_killed(tmp_path):
    code = """
import time
from collectionlora.studio.uploads import private_uploads
with private_uploads() as folder:
    (folder / "portrait.png").write_bytes(b"x")
    print("ready", flush=True)
    time.sleep(60)
"""
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(tmp_path)}
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
    assert server.stdout.readline() == b"ready\n"
    assert len(list(tmp_path.glob("*/portrait.png"))) == 1
    server.kill()
    server.wait()
    wait_until_empty(tmp_path)


def port(visitor):
    return visitor.base_url.port


def upload(visitor, name="photo.png", headers=None):
    """The answer to an upload of a small photo."""
    photo = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(photo, format="png")
    return visitor.post("/gradio_api/upload", files={"files": (name, photo.getvalue())}, headers=headers)


@pytest.mark.parametrize(
    "origin", [EVIL, "null", "http://127.0.0.1:1", "http://127.0.0.1.evil.example", "http://["]
)
def test_other_websites_are_refused(closed, local, origin):
    for visitor in (closed, local):
        for path in ("/config", "/gradio_api/queue/join", "/gradio_api/upload"):
            method = "GET" if path == "/config" else "POST"
            assert visitor.request(method, path, headers={"Origin": origin}).status_code == 403
        preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        allowed = visitor.options("/gradio_api/queue/join", headers=preflight).headers
        # A page of this machine may be told yes; its request is refused all the same.
        assert "access-control-allow-origin" not in allowed or origin == "http://127.0.0.1:1"


def test_a_public_name_does_not_open_the_door_to_other_websites(closed):
    headers = {"Host": "studio.example", "Origin": EVIL}
    assert closed.get("/config", headers=headers).status_code == 403
    assert upload(closed, headers=headers).status_code == 403


def test_the_studios_own_page_is_admitted_directly_and_behind_a_proxy(closed, local):
    for visitor in (closed, local):
        own = {"Origin": f"http://127.0.0.1:{port(visitor)}"}
        assert upload(visitor, headers=own).status_code == 200
        assert visitor.get("/config").status_code == 200  # a program
    proxied = {"Origin": "https://studio.example", "X-Forwarded-Host": "studio.example"}
    assert upload(closed, headers=proxied).status_code == 200


@pytest.mark.parametrize(
    ("host", "forwarded", "origin", "admitted"),
    [
        ("127.0.0.1:7860", "studio.example, studio.example", "https://studio.example", True),
        ("127.0.0.1:7860", "studio.example,inner.local:8080", "https://studio.example", True),
        ("127.0.0.1:7860", "studio.example, inner.local", EVIL, False),
        ("127.0.0.1:7860", f"studio.example, {EVIL.partition('//')[2]}", EVIL, False),
        ("127.0.0.1:7860", "Studio.Example:443", "https://studio.example", True),
        ("127.0.0.1:7860", "studio.example:8443", "https://studio.example:8443", True),
        ("127.0.0.1:7860", "studio.example:8443", "https://studio.example", False),
        ("127.0.0.1:7860", "studio.example.", "https://studio.example", True),
        ("STUDIO.example", None, "https://studio.example", True),
        ("studio.example:80", None, "http://studio.example", True),
        ("[::1]:7860", None, "http://[0:0:0:0:0:0:0:1]:7860", True),
        ("[::1]:7860", None, "http://[::2]:7860", False),
        ("studio.example", None, "https://studio.example.evil.example", False),
        ("studio.example", None, "null", False),
        ("studio.example", None, "ftp://studio.example", False),
        ("studio.example", "", "https://studio.example", True),
        ("", "", "https://", False),
    ],
)
def test_an_origin_is_compared_as_browsers_and_proxies_write_hosts(host, forwarded, origin, admitted):
    headers = {"host": host, "origin": origin} | (
        {} if forwarded is None else {"x-forwarded-host": forwarded}
    )
    assert SameSite(None, local_only=False).admits(host, Headers(headers)) is admitted


@pytest.mark.parametrize("host", ["LOCALHOST:1", "localhost.", "studio.localhost:7860", "[::1]", "127.0.0.2"])
def test_names_of_this_machine_in_any_spelling(host):
    assert SameSite(None, local_only=True).admits(host, Headers({"host": host}))


def test_without_a_password_only_names_of_this_machine_are_answered(closed, local):
    for host in ("evil.example", f"127.0.0.1.evil.example:{port(local)}", "10.0.0.1", "", "[", "0.0.0.0"):
        assert local.get("/config", headers={"Host": host}).status_code in (400, 403)
    for host in (f"localhost:{port(local)}", "127.0.0.1", "[::1]:80"):
        assert local.get("/config", headers={"Host": host}).status_code == 200
    assert closed.get("/config", headers={"Host": "studio.example"}).status_code == 200


@pytest.mark.parametrize(
    "name",
    ["../../../../outside.png", "..\\..\\outside.png", "/outside.png", "a\r\nSet-Cookie: stolen=1\r\n.png"],
)
def test_an_uploads_name_is_no_path_and_no_header(local, folder, name):
    answer = upload(local, name)
    assert answer.status_code in (200, 400)
    assert "stolen" not in str(answer.headers)
    if answer.status_code == 200:
        [kept] = answer.json()
        assert Path(kept).resolve().is_relative_to((folder.parent / "uploads-False").resolve())
        shown = local.get(f"/gradio_api/file={kept}")
        assert "stolen" not in str(shown.headers)
    outside = [path for path in folder.parent.rglob("*outside.png") if "uploads-False" not in path.parts]
    assert not outside


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/gradio_api/file=..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/gradio_api/file=/etc/passwd%00.png",
        "/gradio_api/file=file:///etc/passwd",
        "/static/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc/passwd",
        "/assets/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc/passwd",
        "/theme.css/..%2f..%2fetc/passwd",
    ],
)
def test_no_spelling_of_a_path_leads_outside(local, path):
    answer = local.get(path)
    assert answer.status_code in (400, 403, 404, 405, 500)
    assert "root:" not in answer.text


def test_headers_do_not_become_script(local):
    script = '"></script><script>alert(1)</script>'
    for name in ("X-Forwarded-Host", "X-Gradio-Server", "User-Agent", "Accept-Language"):
        answer = local.get("/", headers={name: script})
        assert "<script>alert(1)" not in answer.text
    answer = local.get("/?__theme=%0d%0aSet-Cookie:%20stolen=1")
    assert "stolen" not in str(answer.headers)


class Counting(BaseHTTPRequestHandler):
    asked = 0

    def do_GET(self):
        type(self).asked += 1
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_an_address_in_place_of_a_photo_is_not_fetched(local):
    server = HTTPServer(("127.0.0.1", 0), Counting)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for scheme, words in (("http", "addresses are not fetched"), ("https", "not fetched"), ("HTTP", "error")):
        address = f"{scheme}://127.0.0.1:{server.server_port}/a.png"
        photo = {"path": address, "url": address, "meta": {"_type": "gradio.FileData"}}
        event = local.post("/gradio_api/call/edit", json={"data": [photo, "warm", "nothing", 1, 0, 1, 64]})
        event.raise_for_status()
        news = local.get(f"/gradio_api/call/edit/{event.json()['event_id']}", timeout=60).text
        assert "event: error" in news
        assert words in news
    server.shutdown()
    assert Counting.asked == 0


def test_a_photo_is_read_by_its_content_and_never_by_a_program(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(UserError, match="unknown format"):
        read_photo(path)


RECIPE = {
    "base": "nano",
    "steps": 8,
    "shift": 3.0,
    "resolution": 64,
    "effects": {"warm": "w"},
    "version": "0",
}


@pytest.mark.parametrize(
    "change",
    [
        {"effects": {"../../evil": "w"}},
        {"effects": {"a/b": "w"}},
        {"effects": {"<img src=x onerror=alert(1)>": "w"}},
        {"effects": {"warm\n": "w"}},
        {"steps": 10**9},
        {"steps": 0},
        {"resolution": 10**6},
        {"shift": float("nan")},
        {"model": {"trust_remote_code": True}},
        {"model": {"condition_resolution": 10**6}},
    ],
)
def test_a_strangers_adapter_names_no_files_and_asks_for_no_endless_work(tmp_path, change):
    with pytest.raises(ValidationError):
        Recipe(**{**RECIPE, **change})
    path = tmp_path / "adapter.safetensors"
    weights = {
        "transformer.m.lora_A.weight": torch.ones(1, 2),
        "transformer.m.lora_B.weight": torch.ones(2, 1),
    }
    save_file(weights, path, {KEY: json.dumps({**RECIPE, **change})})
    with pytest.raises(UserError, match="recipe"):
        read_adapter(path)


class Bomb:
    """A pickle that leaves a mark when it is opened."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return open, (self.mark, "w")


def test_a_pickle_is_not_opened(tmp_path):
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    with pytest.raises(UserError, match="not a safetensors file"):
        read_adapter(path)
    torch.save({"weight": Bomb(tmp_path / "mark")}, path)
    with pytest.raises(UserError, match="not a safetensors file"):
        read_adapter(path)
    assert not (tmp_path / "mark").exists()


def evil_module(path, mark):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"open({str(mark)!r}, 'w')\nclass Evil:\n    pass\n")


@pytest.mark.parametrize("where", ["pipeline", "component", "installed", "auto_map"])
def test_no_code_of_a_model_folder_runs(tmp_path, monkeypatch, where):
    model, mark = tmp_path / "model", tmp_path / "mark"
    index = {"_class_name": "QwenImageEditPlusPipeline", "_diffusers_version": "0.42.0"}
    for part in ("transformer", "vae", "text_encoder", "tokenizer", "processor", "scheduler"):
        index[part] = [None, None]
    if where == "pipeline":
        index["_class_name"] = ["evil", "Evil"]
        evil_module(model / "evil.py", mark)
    elif where == "component":
        index["text_encoder"] = ["evil", "Evil"]
        evil_module(model / "text_encoder" / "evil.py", mark)
    elif where == "installed":
        index["text_encoder"] = ["evil_installed", "Evil"]
        evil_module(tmp_path / "libraries" / "evil_installed.py", mark)
        monkeypatch.syspath_prepend(tmp_path / "libraries")
    else:
        index["text_encoder"] = ["transformers", "AutoModel"]
        evil_module(model / "text_encoder" / "evil.py", mark)
        config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}}
        (model / "text_encoder" / "config.json").write_text(json.dumps(config))
    model.mkdir(exist_ok=True)
    (model / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError):
        _ = load_backbone(str(model), ModelSettings()).text_pipeline
    assert not mark.exists()


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_run_records_the_hash_of_everything_it_reads(tmp_path):
    collection = build(tmp_path / "mine")
    record_inputs(tmp_path / "run", collection, distillation_inputs(collection))
    found = json.loads((tmp_path / "run" / INPUTS).read_text())
    [weights] = family_of("nano").list_files("nano")[1]
    assert found["base"]["files"] == {"nano.safetensors": digest(weights)}
    names = {"collection.yaml", "general.txt", "photos/0.png", "photos/1.png"}
    names |= {f"teachers/{name}.safetensors" for name in ("sepia", "mine")}
    assert found["files"] == {name: digest(collection.folder / name) for name in names}


def test_a_models_files_are_those_of_its_folder_or_of_its_commit(tmp_path, monkeypatch):
    folder = tmp_path / "models--owner--name" / "snapshots" / "0123abc"
    for path in (folder / "transformer" / "a.safetensors", folder / ".git" / "config"):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
    assert list_files(str(folder)) == (folder, [folder / "transformer" / "a.safetensors"])
    refs = tmp_path / "models--owner--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0123abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    found, files = list_files("owner/name")
    assert (found.name, len(files)) == ("0123abc", 1)
    with pytest.raises(UserError, match="cannot be opened"):
        list_files("owner/absent")


def test_a_fingerprint_is_of_contents_as_they_are_now(tmp_path):
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"x" * 3_000_000)
    contents = hashlib.sha256(path.read_bytes()).hexdigest().encode()
    plain = hashlib.sha256(b"'text'\0" + contents + b"\0").hexdigest()[:16]
    assert fingerprint("text", path) == plain
    other.write_bytes(b"y" * 3_000_000)
    other.replace(path)
    assert fingerprint("text", path) != plain

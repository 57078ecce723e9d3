"""The studio: requests of many people in one batch, its API, and what it keeps to itself."""

import gc
import json
import runpy
import threading
import time
import weakref
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from helpers.studio_server import EFFECTS, PASSWORD, REPORT, USER, serve, write_collection
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from collectionlora.adapters.recipe import SHIPPED
from collectionlora.command_line.studio import read_accounts
from collectionlora.command_line.verbs import app
from collectionlora.editing import Editor
from collectionlora.pictures.photos import read_photo
from collectionlora.studio.batching import Batcher, Cancelled, Request, Steps, Turn
from collectionlora.studio.guard import is_local
from collectionlora.studio.making import Clock, Maker
from collectionlora.studio.pictures import Studio
from collectionlora.studio.stamps import IN_TURN, Settings, read_stamp, stamp
from collectionlora.studio.tile_search import group_by_kind, write_search
from collectionlora.studio.words import describe_seconds, human_name, title_of
from collectionlora.system.errors import UserError

WAIT = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studio") / "mine"
    folder.mkdir()
    return write_collection(folder)


@pytest.fixture(scope="module")
def photo(folder):
    path = folder.parent / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(path)
    return path


class Counted(Editor):
    """Remembers the sizes of its batches, and waits for a signal before each step."""

    def __init__(self, editor):
        super().__init__(editor.backbone, lambda: editor.roles, editor.recipe)
        self.batches, self.gate = [], threading.Event()
        self.gate.set()

    def sample(self, images, prompts, seeds, steps, strengths, after_step, references):
        self.batches.append(len(images))

        def wait(done, total):
            assert self.gate.wait(WAIT)
            after_step(done, total)

        return super().sample(images, prompts, seeds, steps, strengths, wait, references)


@pytest.fixture(scope="module")
def loaded(folder):
    return Editor.load(folder)


@pytest.fixture
def editor(loaded):
    return Counted(loaded)


def request_of(editor, name, steps=2, seed=1, strength=1.0, side=64):
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return Request(image, editor.prompt([name]), seed, steps, strength)


def test_requests_of_different_effects_run_as_one_batch_and_equal_single_ones(folder):
    editor = Counted(Editor.load(folder))
    editor.backbone.network.float()  # bfloat16 products round differently by the batch's shape
    requests = [request_of(editor, name, seed=i) for i, name in enumerate(EFFECTS)]
    requests.append(request_of(editor, "warm", strength=0.5))
    together = [job.picture() for job in Batcher(editor, 8).submit(requests)]
    assert editor.batches == [4]
    for request, picture in zip(requests, together, strict=True):
        [job] = Batcher(editor, 8).submit([request])
        torch.testing.assert_close(job.picture(), picture, atol=1e-4, rtol=0)


def test_what_does_not_fit_together_waits_for_its_own_batch(editor):
    requests = [request_of(editor, "warm", steps) for steps in (1, 2, 1)]
    requests += [request_of(editor, "warm", 1, side=32), request_of(editor, "green", 1)]
    jobs = Batcher(editor, 2).submit(requests)
    assert [job.picture().shape[-1] for job in jobs] == [64, 64, 64, 32, 64]
    assert sorted(editor.batches) == [1, 1, 1, 2]


def test_a_cancelled_batch_stops_between_two_steps_and_the_next_request_is_served(editor):
    editor.gate.clear()
    batcher = Batcher(editor, 8)
    jobs = batcher.submit([request_of(editor, name, steps=50) for name in ("warm", "green")])
    for job in jobs:
        job.cancel()
        with pytest.raises(Cancelled):
            job.picture()
    editor.gate.set()
    [job] = batcher.submit([request_of(editor, "warm")])
    assert list(job.steps()) == [1, 2]


def test_one_who_cancels_does_not_stop_the_others_of_the_batch(editor):
    editor.gate.clear()
    first, second = Batcher(editor, 8).submit([request_of(editor, n) for n in ("warm", "green")])
    first.cancel()
    editor.gate.set()
    assert second.picture().shape == (1, 3, 64, 64)


def test_a_fault_reaches_the_one_who_asked_and_the_thread_lives_on(editor):
    batcher = Batcher(editor, 8)
    [bad] = batcher.submit([request_of(editor, "warm", side=63)])
    with pytest.raises(RuntimeError):
        bad.picture()
    [good] = batcher.submit([request_of(editor, "warm")])
    assert good.picture().shape == (1, 3, 64, 64)


def test_a_failed_batch_holds_nothing_of_the_device(editor, monkeypatch):
    held = []

    def run_out(*_):
        activations = torch.empty(1000)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(editor, "sample", run_out)
    [job] = Batcher(editor, 8).submit([request_of(editor, "warm")])
    gc.disable()  # which an allocation on a device does not wake
    try:
        with pytest.raises(torch.OutOfMemoryError):
            job.picture()
        assert held[0]() is None
    finally:
        gc.enable()


def test_who_waits_is_told_how_many_pictures_are_made_before(editor):
    editor.gate.clear()
    batcher = Batcher(editor, 2)
    first = batcher.submit([request_of(editor, "warm") for _ in range(2)])
    while not editor.batches:
        time.sleep(0.001)
    one, other = batcher.submit([request_of(editor, "warm", steps=1), request_of(editor, "green", steps=1)])
    turns = other.news()
    assert next(turns) == Turn(3)
    editor.gate.set()
    assert list(turns) == [Steps(1, 1)]
    assert list(one.steps()) == [1]
    assert [list(job.steps()) for job in first] == [[1, 2], [1, 2]]


def test_a_batch_that_the_base_takes_in_parts_has_the_steps_of_all_parts(editor, monkeypatch):
    monkeypatch.setattr(editor.backbone, "max_batch", lambda condition: 1)
    jobs = Batcher(editor, 8).submit([request_of(editor, "warm", seed=seed) for seed in range(2)])
    assert list(jobs[0].news())[-4:] == [Steps(done, 4) for done in (1, 2, 3, 4)]


@pytest.mark.parametrize("then", ["another photo", "no photo", "cancel"])
def test_previews_are_taken_back_by_the_next_photo_and_by_cancel(folder, editor, photo, then):
    studio = Studio(folder, 8)
    studio.batcher = Batcher(editor, 1)
    editor.gate.clear()
    maker, shown, found = Maker(studio), read_photo(photo), []
    first = threading.Thread(target=lambda: found.append(maker.preview(shown, "me")))
    first.start()
    while not editor.batches:
        time.sleep(0.001)
    second = threading.Thread(target=lambda: maker.preview(shown, "me"))
    if then == "another photo":
        second.start()
    elif then == "no photo":
        maker.preview(None, "me")
    else:
        maker.cancel("me")
    first.join(WAIT)
    assert found == [None]
    editor.gate.set()
    if then == "another photo":
        second.join(WAIT)
    assert maker.previews == {}
    assert len(maker.preview(shown, "me")) == len(studio.alone)


def test_the_time_left_is_that_of_the_steps_to_come(monkeypatch):
    clock, now = Clock(), iter((100.0, 100.0, 102.0, 103.0))
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    assert [clock.tell(1, 10), clock.tell(3, 10)] == ["", ", 7 s left"]
    assert clock.tell(10, 10) == ""


def test_names_and_titles_are_words():
    assert human_name("pencil-sketch") == "Pencil sketch"
    assert [human_name(name) for name in ("x-ray", "vhs", "rgb-shift-2")] == [
        *("X-ray", "VHS", "RGB shift 2")
    ]
    both = Settings(effects=("x-ray", "rgb-shift"), order=IN_TURN, steps=1, seed=0, strength=1)
    assert both.describe_effects() == "X-ray, then RGB shift"
    assert title_of(Path("nano")) == "Photo effects"
    assert title_of(SHIPPED.parent / "my-photos.safetensors") == "My photos"
    assert [describe_seconds(seconds) for seconds in (0.4, 59.6, 95.2)] == ["0 s", "1 min 0 s", "1 min 35 s"]


def test_effects_are_grouped_where_their_kinds_are_known():
    names = ["neon-edges", "mine", "thermal", "duotone-2"]
    assert group_by_kind(names) == {
        "Colour": ["thermal", "duotone-2"],
        "Light": ["neon-edges"],
        "Other": ["mine"],
    }
    assert "<select" not in write_search(["mine", "yours"])
    assert 'value="[&quot;Neon edges&quot;]">Light</option>' in write_search(names)


def test_a_png_keeps_the_settings_that_made_it(tmp_path):
    settings = Settings(effects=("warm", "green"), order=IN_TURN, steps=4, seed=7, strength=0.5)
    assert settings.name_file("me") == "me-warm-green-s7.png"
    assert settings.describe_effects() == "Warm, then green"
    assert settings.passes == [["warm"], ["green"]]
    path = tmp_path / "made.png"
    Image.new("RGB", (8, 8)).save(path, **stamp(settings))
    assert read_stamp(path, list(EFFECTS)) == settings
    assert read_stamp(path, ["warm"]) is None
    for text in ("no JSON", '{"effects": []}', settings.model_dump_json().replace("0.5", "7"), "[" * 10**5):
        info = PngInfo()
        info.add_text("collectionlora", text)
        Image.new("RGB", (8, 8)).save(path, pnginfo=info)
        assert read_stamp(path, list(EFFECTS)) is None
    path.write_bytes(path.read_bytes()[:40])
    assert read_stamp(path, list(EFFECTS)) is None


@pytest.fixture(scope="module")
def address(folder):
    with serve(folder, cold=True) as address:
        yield address


@pytest.fixture(scope="module")
def client(address, tmp_path_factory):
    downloads = tmp_path_factory.mktemp("downloads")
    return Client(address, auth=(USER, PASSWORD), download_files=str(downloads), verbose=False)


def test_the_endpoints_have_names(client):
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(named) == {"/edit", "/sheet", "/cancel", "/effects"}
    assert client.predict(api_name="/effects") == EFFECTS


def test_the_api_makes_the_picture_that_python_makes(client, loaded, photo):
    arguments = [handle_file(photo), "warm", "green", 4, 7, 0.5]
    (before, after), status = client.predict(*arguments, api_name="/edit")
    expected = loaded.edit(read_photo(photo), ["warm", "green"], seed=7, steps=4, strength=0.5)
    assert status == "done"
    assert Path(before).read_bytes() == photo.read_bytes()  # the visitor's own file
    assert np.abs(np.asarray(Image.open(after)).astype(int) - expected).max() <= 1
    settings = Settings(effects=("warm", "green"), steps=4, seed=7, strength=0.5, size=64)
    assert read_stamp(Path(after), list(EFFECTS)) == settings


def test_the_api_works_at_a_size_within_bounds(client, loaded, photo):
    arguments = [handle_file(photo), "warm", "nothing", 1, 7, 1]
    (_, after), _ = client.predict(*arguments, 96, api_name="/edit")
    expected = loaded.edit(read_photo(photo), "warm", seed=7, steps=1, size=96)
    assert np.abs(np.asarray(Image.open(after)).astype(int) - expected).max() <= 1
    with pytest.raises(AppError, match="128"):
        client.predict(*arguments, 4096, api_name="/edit")
    with pytest.raises(AppError, match="give multiples of 8"):
        client.predict(*arguments, 90, api_name="/edit")


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [(1, None, "effects: "), (3, None, "steps: "), (4, 2**31, "greater than maximum")],
)
def test_the_api_names_a_value_that_does_not_fit(client, photo, place, value, words):
    arguments = [handle_file(photo), "warm", "nothing", 1, 7, 1, 64]
    arguments[place] = value
    with pytest.raises(AppError, match=words):
        client.predict(*arguments, api_name="/edit")


def test_requests_at_the_same_time_are_all_answered(client, photo):
    jobs = [client.submit(handle_file(photo), n, "nothing", 2, 1, 1, api_name="/edit") for n in EFFECTS]
    after = [np.asarray(Image.open(job.result(timeout=WAIT)[0][1])) for job in jobs]
    assert not np.array_equal(after[0], after[1])
    assert not np.array_equal(after[1], after[2])


def test_the_example_client_gets_every_effect(address, photo, tmp_path, monkeypatch):
    example = Path(__file__).parents[1] / "examples" / "studio_client.py"
    monkeypatch.setattr("sys.argv", ["", address, str(photo), str(tmp_path), USER, PASSWORD])
    runpy.run_path(str(example), run_name="__main__")
    assert {path.stem for path in tmp_path.iterdir()} == set(EFFECTS)


def test_the_sheet_shows_every_effect_of_one_photo(client, photo):
    sheet, pictures, _ = client.predict(handle_file(photo), 1, 0, 1, api_name="/sheet")
    assert [entry["caption"] for entry in pictures] == list(EFFECTS)
    assert Image.open(sheet).width > 3 * 240
    assert {Image.open(path).format for path in (sheet, *(one["image"] for one in pictures))} == {"JPEG"}


@pytest.mark.parametrize(
    ("size", "content", "words"),
    [
        (None, b"no image at all", "cannot be read as an image"),
        ((2000, 1001), None, "has 2000 x 1001 pixels; keep it under 2,000,000 pixels"),
    ],
)
def test_a_bad_photo_is_refused_in_words(client, tmp_path, size, content, words):
    path = tmp_path / "bad.png"
    if size:
        Image.new("RGB", size).save(path)
    else:
        path.write_bytes(content)
    with pytest.raises(AppError, match=words) as error:
        client.predict(handle_file(path), "warm", "nothing", 1, 0, 1, api_name="/edit")
    assert "uploads" not in str(error.value)  # where the server keeps uploads is its own matter


def test_a_large_jpeg_is_read_smaller(client, tmp_path):
    path = tmp_path / "large.jpg"
    Image.new("RGB", (2000, 1200), "teal").save(path)
    (_, after), status = client.predict(handle_file(path), "warm", "nothing", 1, 0, 1, api_name="/edit")
    assert (status, Image.open(after).size) == ("done", (1000, 600))


def test_an_empty_seed_is_a_random_one(client, photo):
    made = [
        client.predict(handle_file(photo), "warm", "nothing", 1, None, 1, api_name="/edit")[0][1]
        for _ in range(2)
    ]
    assert Path(made[0]).read_bytes() != Path(made[1]).read_bytes()


def test_no_photo_is_refused_in_words(client):
    with pytest.raises(AppError, match="drop one first"):
        client.predict(None, "warm", "nothing", 1, 0, 1, api_name="/edit")


@pytest.fixture(scope="module")
def visitor(address):
    """A logged-in visitor who speaks HTTP."""
    with httpx.Client(base_url=address) as visitor:
        login = {"username": USER, "password": PASSWORD}
        assert visitor.post("/login", data=login).status_code == 200
        yield visitor


def test_without_a_password_nothing_is_served(address):
    assert httpx.get(f"{address}/config").status_code == 401
    assert httpx.post(f"{address}/login", data={"username": USER, "password": "no"}).status_code == 400
    assert REPORT[:30] not in httpx.get(address).text


def test_too_large_an_upload_is_refused(visitor):
    response = visitor.post("/gradio_api/upload", files={"files": ("big.png", b"0" * 3_100_000)})
    assert response.status_code == 413


def test_no_file_outside_is_readable(visitor, folder, client):
    for path in ("/etc/hostname", folder / "collection.safetensors", folder.parent / "accounts", __file__):
        for form in (str(path), f"../../../../..{path}"):
            assert visitor.get(f"/gradio_api/file={form}").status_code in (403, 404)
    stolen = {"path": str(folder.parent / "accounts"), "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(AppError) as error:
        client.predict(stolen, "warm", "nothing", 1, 0, 1, api_name="/edit")
    assert PASSWORD not in str(error.value)


def test_the_report_is_shown_in_a_frame_that_runs_nothing(visitor):
    page = json.dumps(visitor.get("/config").json())
    assert "Report of the tests" in page
    assert 'iframe class=\\"report\\" sandbox' in page


def test_other_machines_need_a_password(folder, monkeypatch):
    monkeypatch.delenv("COLLECTIONLORA_AUTH", raising=False)
    assert [is_local(host) for host in ("127.0.0.1", "::1", "localhost")] == [True] * 3
    for host in ("0.0.0.0", "::", "example.org"):
        with pytest.raises(UserError, match="without a password; give --auth FILE"):
            app(["studio", str(folder), "--host", host])


def test_accounts_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    path = tmp_path / "accounts"
    for encoding in ("utf-8", "utf-8-sig"):  # editors of Windows write a mark in front
        path.write_text("ada:love:lace\n\nbob:x\n", encoding)
        assert read_accounts(path) == [("ada", "love:lace"), ("bob", "x")]
    monkeypatch.setenv("COLLECTIONLORA_AUTH", "eve:y")
    assert read_accounts(None) == [("eve", "y")]
    path.write_text("onlysecret\n")
    with pytest.raises(UserError, match="not USER:PASSWORD") as error:
        read_accounts(path)
    assert "onlysecret" not in str(error.value)
    with pytest.raises(UserError, match="--auth"):
        read_accounts(tmp_path / "absent")

"""The general stream at scale: pairs of their own, shards of the cache, and what of them is read."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.small_collection import build
from PIL import Image
from safetensors.torch import load_file, save_file

import collectionlora
from collectionlora.backbones import load_backbone
from collectionlora.backbones.base import Prompt
from collectionlora.collection import Collection
from collectionlora.manifest.instructions import ADD, ADJUST, BACKGROUND, INSTRUCTIONS, REMOVE, STYLE
from collectionlora.manifest.template import create
from collectionlora.pictures.buckets import find_images
from collectionlora.pictures.sizes import WorkingSizes
from collectionlora.planning.checking import check_collection
from collectionlora.planning.plan import cache_bytes
from collectionlora.planning.workload import make_workload
from collectionlora.runs import general_items
from collectionlora.runs.general_items import SHARD, gather_shards, list_shards
from collectionlora.runs.session import resolve_settings
from collectionlora.runs.target_making import TargetMaker
from collectionlora.streams import GeneralData, Streams
from collectionlora.system.errors import UserError

SETTINGS = {"targets": {"steps": 1, "samples": 1, "guidance_scale": 1}, "data": {"resolution": 16}}
WORDS = ("blur the photo", "brighten the photo", "add a vignette")


def write_pairs(folder, lines):
    """A collection whose general stream is these lines: mappings, or text as it stands."""
    manifest = (folder / "collection.yaml").read_text()
    head, _, tail = manifest.partition("general:\n  photos: photos\n  prompts: general.txt\n")
    assert tail
    (folder / "collection.yaml").write_text(f"{head}general:\n  pairs: general.jsonl\n{tail}")
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "general.jsonl").write_text("\n".join(texts) + "\n")
    return Collection.load(folder)


def photo_name(number):
    """Of ten photos: a square, or one that is wide."""
    return f"general/{number % 10}.png"


@pytest.fixture
def folder(tmp_path):
    folder = build(tmp_path / "mine", settings=SETTINGS)
    (folder / "general").mkdir()
    for number in range(10):
        size = (32, 16) if number % 3 == 2 else (16, 16)
        Image.new("RGB", size, (25 * number, 0, 0)).save(folder / photo_name(number))
    return folder


def paired(folder, count):
    return write_pairs(folder, [{"photo": photo_name(i), "prompt": WORDS[i % 3]} for i in range(count)])


def encode(collection, progress=lambda *_: None):
    """Every shard of the general stream, as a run makes and opens it."""
    settings = resolve_settings(collection, {})
    backbone = load_backbone(collection.manifest.base, settings.model)
    maker = TargetMaker(collection, backbone, lambda: None, lambda: None, settings, progress)
    kept = [maker._encode_items("general", shard) for shard in list_shards(collection, settings)]
    return [one.path for one in kept], [one.get() for one in kept]


def make_streams(general, **changes):
    return Streams([], general, **{"seed": 3, "batch_size": 4, "effect_ratio": 0.0, **changes})


# Lines


def test_every_line_is_an_item_with_its_own_instruction(folder):
    collection = paired(folder, 7)
    collection.check_files()
    shards = list_shards(collection, resolve_settings(collection, {}))
    assert [(s.first, s.total, len(s.photos)) for s in shards] == [(0, 7, 7)]
    names = [path.relative_to(folder).as_posix() for path in shards[0].photos]
    assert list(zip(names, shards[0].prompts, strict=True)) == [
        (photo_name(i), WORDS[i % 3]) for i in range(7)
    ]
    assert sorted(path.name for path in collection.general_photo_paths()) == [f"{i}.png" for i in range(7)]


GOOD = {"photo": "general/0.png", "prompt": "blur"}
WRONG = {
    "no JSON": ("photo: x", "line 2", "is not JSON"),
    "no mapping": ("[1]", "line 2", "should be an object"),
    "a key that is missing": ({"photo": "general/0.png"}, "line 2: prompt", "is missing"),
    "an unknown key": ({**GOOD, "promt": "x"}, "line 2: promt", "no such key"),
    "no text": ({**GOOD, "prompt": 7}, "line 2: prompt", "valid string"),
    "an empty prompt": ({**GOOD, "prompt": " "}, "line 2: prompt", "at least 1 character"),
    "a long prompt": ({**GOOD, "prompt": "x" * 2001}, "line 2: prompt", "at most 2000"),
    "a control character": ({**GOOD, "prompt": "a\0b"}, "line 2: prompt", "U+0000"),
    "a photo that is not there": ({**GOOD, "photo": "general/x.png"}, "line 2: photo", "general/x.png"),
    "a photo outside": ({**GOOD, "photo": "../x.png"}, "line 2: photo", "outside the folder"),
    "a folder": ({**GOOD, "photo": "general"}, "line 2: photo", "no file"),
}


@pytest.mark.parametrize(("line", "field", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_line_is_one_error_with_its_number(line, field, message, folder):
    collection = write_pairs(folder, [GOOD, line])
    with pytest.raises(UserError) as error:
        collection.check_files()
    assert error.value.file == str(folder / "general.jsonl")
    assert error.value.field == field
    assert message in error.value.message
    assert error.value.hint


def test_check_names_all_wrong_lines_and_reads_every_photo(folder):
    (folder / photo_name(4)).write_bytes((folder / photo_name(4)).read_bytes()[:40])
    lines = [{"photo": photo_name(i), "prompt": "blur"} for i in range(6)]
    write_pairs(folder, [*lines, {"photo": "x.png", "prompt": "blur"}, "", {"photo": photo_name(0)}])
    shown = []
    result = check_collection(folder, lambda *state: shown.append(state))
    places = [(problem["file"].rpartition("/")[2], problem["field"]) for problem in result["problems"]]
    assert places == [
        ("general.jsonl", "line 7: photo"), ("general.jsonl", "line 9: prompt"), ("4.png", "")
    ]  # fmt: skip
    assert shown[-1][:3] == ("photos", 8, 8)  # six of the lines, and two of the effects


@pytest.mark.parametrize(
    ("general", "field", "message"),
    [
        ("{pairs: general.jsonl, prompts: general.txt}", "general.prompts", "stands beside pairs"),
        ("{pairs: general.jsonl, photos: photos}", "general.photos", "stands beside pairs"),
        ("{prompts: general.txt}", "general.photos", "is missing"),
        ("{}", "general.photos", "is missing"),
    ],
)
def test_pairs_take_the_place_of_photos_and_prompts(general, field, message, folder):
    text = (folder / "collection.yaml").read_text()
    text = text.replace("general:\n  photos: photos\n  prompts: general.txt\n", f"general: {general}\n")
    with pytest.raises(UserError, match=message) as error:
        Collection.parse(folder, text)
    assert error.value.field == field


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_file_of_pairs_is_refused(text, folder):
    collection = paired(folder, 1)
    (folder / "general.jsonl").write_text(text)
    with pytest.raises(UserError, match="is empty"):
        collection.check_files()


# Shards


def test_a_killed_encoding_goes_on_with_the_shards_that_are_missing(folder, monkeypatch):
    monkeypatch.setattr(general_items, "SHARD", 20)
    collection, seen = paired(folder, 50), []

    def stop(what, done, total, _):
        seen.append((what, done, total))
        if done == 35:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(collection, stop)
    assert seen == [("encode general", done, 50) for done in range(1, 36)]
    made = {path: path.read_bytes() for path in folder.glob("cache/general-encoded-*")}
    assert len(made) == 1
    seen.clear()
    paths, _ = encode(collection, lambda *state: seen.append(state[1]))
    assert seen == [*range(21, 51)]
    assert len(set(paths)) == 3
    assert all(path.read_bytes() == data for path, data in made.items())

    seen.clear()
    more = write_more(folder, {"photo": photo_name(9), "prompt": WORDS[0]})
    again, _ = encode(more, lambda *state: seen.append(state[1]))
    assert again[:2] == paths[:2]  # only the last shard has changed
    assert seen == [*range(41, 52)]


def write_more(folder, line):
    with (folder / "general.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    return Collection.load(folder)


def test_shards_hold_what_one_file_holds(folder, monkeypatch):
    collection = paired(folder, 50)
    _, whole = encode(collection)
    monkeypatch.setattr(general_items, "SHARD", 20)
    _, parts = encode(collection)
    assert [len(part["prompt.tokens"]) for part in parts] == [20, 20, 10]
    one, several = gather_shards(whole, [], 0), gather_shards(parts, [], 0)
    for draw in ("batch", "mixed_batch"):
        for step in range(20):
            a, b = (getattr(make_streams(general), draw)(step) for general in (one, several))
            assert torch.equal(a.student.source, b.student.source)
            assert torch.equal(a.target, b.target)
            for x, y in ((a.student.prompt, b.student.prompt), (a.uncond.prompt, b.uncond.prompt)):
                assert torch.equal(x.trim().tokens, y.trim().tokens)
                assert torch.equal(x.trim().mask, y.trim().mask)


def test_drawn_items_of_one_shard_are_those_of_the_whole_list(folder):
    collection = Collection.load(folder)
    settings = resolve_settings(collection, {"targets": {"general": SHARD + 5}})
    shards = list_shards(collection, settings)
    assert [(s.number, s.first, len(s.photos)) for s in shards] == [(0, 0, SHARD), (1, SHARD, 5)]
    few = list_shards(collection, resolve_settings(collection, {"targets": {"general": 5}}))
    assert set(few[0].prompts) <= set(collection.general_prompts())
    assert few[0].photos == shards[0].photos[:5]


def resident(path):
    """KiB of a mapped file that are in this process' memory."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and not line.split()[0].endswith(":"):
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_of_mapped_shards_only_what_is_drawn_comes_into_memory(tmp_path):
    """600 items of 256 KiB in three files; a batch has four of them."""
    shape, tokens, paths = (16, 64, 64), (8, 16), []
    for shard, count in enumerate((256, 256, 88)):
        place = torch.arange(count).float() + 256 * shard
        tensors = {
            "sources": place.view(-1, 1, 1, 1).expand(-1, *shape),
            "prompt.tokens": place.view(-1, 1, 1).expand(-1, *tokens),
            "prompt.mask": torch.ones(count, tokens[0], dtype=torch.bool),
            "uncond.tokens": torch.zeros(1, *tokens),
            "uncond.mask": torch.ones(1, tokens[0], dtype=torch.bool),
        }
        paths.append(tmp_path / f"{shard}.safetensors")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, paths[-1])
    general = gather_shards([load_file(path) for path in paths], [], 0)
    assert len(general.sources) == 600
    streams = make_streams(general)
    assert sum(map(resident, paths)) < 1024
    batches = [streams.batch(step).student for step in (0, 5)]
    for batch in batches:
        assert torch.equal(batch.source[:, 0, 0, 0], batch.prompt.tokens[:, 0, 0])
    places = {int(place) for batch in batches for place in batch.source[:, 0, 0, 0]}
    assert {place // 256 for place in places} == {0, 1, 2}
    # The system maps what it reads at once, up to two pieces of 2 MiB around each item of a quarter of that.
    item, pieces = 256, 2 * 2048
    assert len(places) * item <= sum(map(resident, paths)) <= len(places) * pieces < 600 * item / 2


def test_prompts_of_shards_of_other_lengths_are_padded_to_the_longest_drawn():
    shards = [Prompt(torch.ones(2, length, 3), torch.ones(2, length) > 0) for length in (4, 6)]
    prompt = general_items.ShardedPrompt([shards[0], shards[1][:1]], 2)
    drawn = prompt.of_photos(torch.tensor([1, 2, 3]))  # a prompt that stands alone is every photo's
    assert drawn.mask.sum(dim=1).tolist() == [4, 6, 6]
    assert prompt.of_photos(torch.tensor([0])).tokens.shape == (1, 4, 3)


def test_one_size_is_drawn_alike_from_a_tensor_and_from_a_list():
    images = torch.arange(30.0).view(30, 1, 1, 1)
    prompt = Prompt(torch.zeros(30, 2, 3), torch.ones(30, 2) > 0)
    whole = GeneralData(images, prompt, None, prompt[:1])
    for step in range(10):
        a, b = (make_streams(data).batch(step) for data in (whole, replace(whole, sources=list(images))))
        assert torch.equal(a.target, b.target)


def test_a_warm_start_has_the_answers_of_every_shard(folder, monkeypatch):
    monkeypatch.setattr(general_items, "SHARD", 4)
    collection = paired(folder, 10)
    layer = {"match": {"updates": 1}}
    assert collectionlora.targets(collection, layer) == {"sepia": 2, "technicolor": 2, "general": 10}
    answers = sorted(p for p in folder.glob("cache/general-*") if "encoded" not in p.name)
    sizes = [len(find_images("targets", load_file(path))) for path in answers]
    assert sorted(sizes) == [2, 4, 4]
    before = {path: path.stat().st_mtime_ns for path in answers}
    answers[0].unlink()
    collectionlora.targets(collection, layer)
    assert {path for path in answers if path.stat().st_mtime_ns != before[path]} == {answers[0]}
    # As flow matching of the effects alone, a baseline of the bench: nobody would read them.
    alone = {**layer, "distill": {"effect_ratio": 1}}
    assert collectionlora.targets(collection, alone)["general"] == 0


# Plan and init


def test_a_plan_counts_the_lines_and_holds_two_shards(folder):
    def planned(count, updates=0):
        layer = {"match": {"updates": updates}, "add": {"match_updates": updates}}
        workload = make_workload(paired_again(folder, count), None, None, None, layer)
        return cache_bytes(workload, load_backbone("nano", workload.settings.model))

    (few, _), (two, held), (many, same) = (planned(count) for count in (SHARD, 2 * SHARD, 20_000))
    assert many - two == (20_000 - 2 * SHARD) / SHARD * (two - few)
    assert same == held < many / 10
    answers = planned(20_000, updates=1)[0] - many
    assert answers == 20_000 * 4 * 3 * max(h * w for h, w in WorkingSizes(16, 8).list_all())  # pixels


def paired_again(folder, count):
    """The plan looks at no photo."""
    if "pairs:" not in (folder / "collection.yaml").read_text():
        paired(folder, 1)
    line = json.dumps({"photo": "not/there.png", "prompt": "blur"})
    (folder / "general.jsonl").write_text(f"{line}\n" * count)
    return Collection.load(folder)


def test_a_new_collection_has_instructions_for_any_photo(tmp_path):
    create(tmp_path / "large", "Qwen/Qwen-Image-Edit-2509", [])
    lines = (tmp_path / "large" / "general.txt").read_text().splitlines()
    assert lines == list(INSTRUCTIONS)
    assert len(lines) == len(set(lines)) > 40
    assert all(len(group) >= 8 for group in (ADJUST, STYLE, BACKGROUND, ADD, REMOVE))
    needed = {"person", "man", "woman", "face", "dog", "cat", "car", "sky", "hair", "tree", "shirt"}
    assert not needed & set(" ".join(lines).split())


def test_nano_gets_the_instructions_that_it_knows(tmp_path):
    from collectionlora.effects.ordinary import general_instructions

    create(tmp_path / "small", "nano", [])
    assert Collection.load(tmp_path / "small").general_prompts() == general_instructions()

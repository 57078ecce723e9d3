"""The base's own text encoder as the model that is asked: tiny ones of each class, and a scripted one."""

import gc
import json
import sys
import weakref

import numpy as np
import pytest
import torch
import yaml
from helpers.bench_collection import photo
from helpers.random_loras import write_random_loras
from helpers.tiny_pipelines import TINY
from PIL import Image
from safetensors.torch import load_file, save_file

from collectionlora.backbones import PIPELINES, family_of, load_backbone
from collectionlora.backbones.diffusers_model import DiffusersBackbone
from collectionlora.backbones.speaking import Speaker, Spoken, find_silence
from collectionlora.command_line import verbs as cli
from collectionlora.config import ModelSettings
from collectionlora.pictures.photos import write_photo
from collectionlora.system.errors import UserError
from collectionlora.system.files import read_json

SPEAKING = [family for family in PIPELINES if family.speech]
SILENT = [family for family in PIPELINES if not family.speech]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of every tiny pipeline, by the name of its family; made when it is first asked for."""
    made = {}

    def find(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("bases") / name
            torch.manual_seed(0)
            TINY[name]().save_pretrained(made[name])
        return made[name]

    return find


def family_name(family):
    return family.name


@pytest.mark.parametrize("family", SPEAKING, ids=family_name)
def test_every_encoder_that_sees_answers_greedily_and_alike(family, folders):
    base = str(folders(family.name))
    assert find_silence(family_of(base), base) == ""
    backbone = load_backbone(base, ModelSettings())
    pictures = [Image.fromarray(photo(seed)) for seed in range(4)]
    mark = family.speech.ends[0]
    texts = (
        "what does the edit do?",
        f"what does the edit do?{family.speech.picture}{mark[:2]}{mark}{mark[2:]}",
    )
    first, again = (backbone.speaker.answer(pictures, text, 12) for text in texts)
    assert first == again  # marks of turns and pictures in a question are left out
    assert not first.is_whole or first.tokens > 4
    lighter = [Image.fromarray(np.full_like(np.asarray(picture), 250)) for picture in pictures]
    model = backbone.speaker.model
    seen = [first_logits(backbone.speaker, shown, texts[0]) for shown in (pictures, lighter)]
    assert not torch.equal(*seen)  # it sees the pictures
    assert model is backbone.text_pipeline.text_encoder  # loaded once for both of its uses
    backbone.release_encoders()
    held = weakref.ref(model)
    del model
    gc.collect()
    assert held() is None


def first_logits(speaker, pictures, text):
    """What the model makes of a question, before it writes."""
    taken = []
    handle = speaker.model.lm_head.register_forward_hook(lambda module, args, out: taken.append(out))
    speaker.answer(pictures, text, 1)
    handle.remove()
    return taken[0]


@pytest.mark.parametrize("family", SPEAKING, ids=family_name)
def test_an_answer_ends_at_an_end_and_is_cut_elsewhere(family, folders):
    speaker = load_backbone(str(folders(family.name)), ModelSettings()).speaker
    picture = Image.fromarray(photo(0))
    read = speaker.answer([picture], "x", 1).tokens - 1
    cut = speaker.answer([picture], "x", 3)
    assert (cut.is_whole, cut.tokens) == (False, read + 3)
    head = torch.nn.Linear(speaker.model.lm_head.in_features, len(speaker.tokenizer))
    torch.nn.init.zeros_(head.weight)
    # Every next word is the end.
    head.bias.data = torch.nn.functional.one_hot(
        torch.tensor(speaker.ends[0]), len(speaker.tokenizer)
    ).float()
    speaker.model.lm_head = head
    assert speaker.answer([picture], "x", 3) == Spoken("", read + 1, True)


@pytest.mark.parametrize("family", SILENT, ids=family_name)
def test_an_encoder_that_cannot_see_says_so(family, folders):
    base = str(folders(family.name))
    assert "cannot see pictures" in find_silence(family_of(base), base)


def test_an_encoder_without_its_last_layer_cannot_write(folders, tmp_path):
    base = tmp_path / "base"
    torch.manual_seed(0)
    TINY["QwenImageEditPlusPipeline"]().save_pretrained(base)
    path = base / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    assert weights.pop("lm_head.weight") is not None
    save_file(weights, path, {"format": "pt"})
    assert "without its last layer" in find_silence(family_of(str(base)), str(base))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cannot be opened \(model\.safetensors"):
        find_silence(family_of(str(base)), str(base))
    path.unlink()  # not fetched yet: nothing is known
    assert find_silence(family_of(str(base)), str(base)) == ""
    index = read_json(base / "model_index.json")
    index["text_encoder"][1] = "Qwen2_5_VLModel"
    (base / "model_index.json").write_text(json.dumps(index))
    assert "has a Qwen2_5_VLModel as its text encoder" in find_silence(family_of(str(base)), str(base))


@pytest.fixture
def collection(folders, tmp_path):
    """One effect with a pair, over a tiny Qwen-Image-Edit."""
    base = folders("QwenImageEditPlusPipeline")
    for side, level in (("source", 10), ("target", 200)):
        write_photo(tmp_path / "pairs" / "neon" / side / "0.png", np.full((64, 96, 3), level, np.uint8))
    for index in range(2):
        write_photo(tmp_path / "photos" / f"{index}.png", photo(index, 64, 64))
        write_photo(tmp_path / "heldout" / f"person-{index}.png", photo(10 + index, 64, 64))
    (tmp_path / "general.txt").write_text("blur the photo\n")
    (tmp_path / "teachers").mkdir()
    effect = {"name": "neon", "teacher": "teachers/neon.safetensors", "teacher_prompt": "make it neon"}
    manifest = {
        "base": str(base),
        "effects": [{**effect, "photos": "photos"}],
        "general": {"photos": "photos", "prompts": "general.txt"},
        "settings": {"data": {"resolution": 64}, "targets": {"steps": 1}, "model": {"dtype": "float32"}},
    }
    (tmp_path / "collection.yaml").write_text(yaml.safe_dump(manifest))
    write_random_loras(tmp_path / "teachers", ["neon"], str(base))
    return tmp_path


@pytest.fixture
def run(collection, monkeypatch, capsys):
    """Run a command over the collection; returns exit code, the JSON on stdout, stderr."""

    def run_command(verb, *arguments):
        monkeypatch.setattr(sys, "argv", ["collectionlora", verb, str(collection), "--json", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out and json.loads(captured.out), captured.err

    return run_command


@pytest.fixture
def script(monkeypatch):
    """Answers in place of the encoder's, one by one, the last one forever; what was asked is kept."""
    answers, asked = [Spoken("paint it in neon light", 50, True)], []

    def answer(self, pictures, text, max_tokens):
        asked.append((len(pictures), text))
        return answers.pop(0) if len(answers) > 1 else answers[0]

    monkeypatch.setattr(Speaker, "answer", answer)
    return answers, asked


def test_prompts_are_rewritten_by_the_base_and_nothing_is_asked_twice(run, script, collection, monkeypatch):
    answers, asked = script
    answers[:0] = [Spoken("I cannot see images, sorry.", 50, True), Spoken("Paint it", 60, False)]
    loads = []
    made = Speaker.__init__
    monkeypatch.setattr(Speaker, "__init__", lambda self, *parts: loads.append(1) or made(self, *parts))
    code, result, err = run("prompts", "--vlm", "base")
    assert code == 0, err
    assert "answer was cut off" in result["notes"]["neon"]  # declined, then cut: both are refused
    assert result["written_by"] == {"neon": "teacher prompt"}
    code, result, err = run("prompts", "--vlm", "base")
    assert code == 0, err
    base = yaml.safe_load((collection / "collection.yaml").read_text())["base"]
    assert result["written_by"] == {"neon": f"the text encoder of {base}"}
    assert result["student_prompts"]["neon"].endswith("> paint it in neon light")
    assert (result["calls"], result["tokens"]) == (1, 50)
    assert [count for count, _ in asked] == [2, 2, 2]
    assert "because it declines" in asked[1][1]
    assert len(loads) == 2  # once a command
    code, result, err = run("prompts", "--vlm", "base")
    assert (code, result["calls"], len(asked)) == (0, 0, 3)
    kept = json.loads((collection / "prompts.json").read_text())["neon"]["asked"]
    assert (kept["host"], kept["answer"]) == ("this process", "paint it in neon light")


@pytest.mark.thorough
def test_the_base_judges_after_the_network_is_gone_and_the_report_warns(run, script, collection, monkeypatch):
    answers, asked = script
    answers[:] = [Spoken('{"bad_case": false, "identity": 4}', 70, True)]
    networks, held, released = [], [], []
    monkeypatch.setattr(
        DiffusersBackbone, "release_network", seen_release(DiffusersBackbone.release_network, networks)
    )
    answer = Speaker.answer

    def look(self, *question):
        gc.collect()
        held.append([network() for network in networks])
        return answer(self, *question)

    monkeypatch.setattr(Speaker, "answer", look)
    release = DiffusersBackbone.release_encoders
    monkeypatch.setattr(
        DiffusersBackbone, "release_encoders", lambda self: released.append(len(held)) or release(self)
    )
    arguments = ["--judge", "base", "--methods", "source,teacher", "--crops", "2"]
    arguments += ["--photos", str(collection / "heldout"), "--set", "bench.judged_twice=1"]
    code, metrics, err = run("bench", *arguments)
    assert code == 0, err
    assert (metrics["methods"]["teacher"]["vsa"], metrics["methods"]["teacher"]["bcr"]) == (4, 0)
    assert len(networks) == 1
    assert held == [[None]] * 5  # two methods, two photos, one again: the network is gone from memory
    assert released[-1] == 5
    assert {count for count, _ in asked} == {4}  # a pair, the photo and the picture
    assert metrics["judge"]["independent"] is False
    assert metrics["judge"]["calls"] == 5
    page = (collection / "bench" / "report.html").read_text()
    assert "The judge is the text encoder of" in page
    assert "it is not independent" in page
    code, again, err = run("bench", *arguments)
    assert (code, again["judge"]["calls"]) == (0, 0), err


def seen_release(release, networks):
    """`release_network` that keeps a weak reference to what it frees."""

    def released(self):
        if "network" in vars(self):
            networks.append(weakref.ref(self.network))
        release(self)

    return released


@pytest.mark.parametrize(
    ("verb", "option", "model"), [("prompts", "--vlm", "--model"), ("bench", "--judge", "--judge-model")]
)
def test_a_base_that_cannot_be_asked_is_one_line(verb, option, model, run, collection, folders):
    bases = "nano", str(folders("FluxKontextPipeline")), str(folders("Flux2KleinPipeline"))
    unseen = ("--photos", str(collection / "heldout")) if verb == "bench" else ()
    code, _, err = run(verb, option, "base", model, "some")
    assert code == 2
    assert f"{model}: does not go with {option} base" in err
    manifest = yaml.safe_load((collection / "collection.yaml").read_text())
    for base in bases:
        (collection / "collection.yaml").write_text(yaml.safe_dump({**manifest, "base": base}))
        code, _, err = run(verb, option, "base", *unseen)
        assert code == 2
        assert len(err.strip().splitlines()) == 1
        assert f"{option}: '{base}' has a text encoder that cannot see pictures" in err
        assert f"name an endpoint: {option} http://HOST/v1 {model} NAME" in err


def test_the_cap_on_tokens_holds_for_the_base_too(run, script):
    code, _, err = run("prompts", "--vlm", "base", "--max-tokens-total", "10")
    assert code == 2
    assert "the cap is 10" in err
    assert script[1] == []

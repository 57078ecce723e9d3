"""What a base of billions of parameters needs, counted over true configurations and on tiny copies."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import QwenImageEditPlusPipeline, QwenImageTransformer2DModel
from helpers import small_collection
from helpers.tiny_collection import assert_goes_on, open_session, write_collection, write_photos
from safetensors.torch import load_file, save_file

import collectionlora
from collectionlora.adapters.formats import read_lora
from collectionlora.adapters.low_rank import change, change_norm
from collectionlora.adapters.recipe import Recipe, write_adapter
from collectionlora.adapters.roles import STUDENT, TEACHER, target_weights
from collectionlora.backbones import family_of, load_backbone
from collectionlora.backbones.base import Condition
from collectionlora.backbones.diffusers_files import read_weight
from collectionlora.backbones.diffusers_model import MAX_TOKENS, DiffusersBackbone
from collectionlora.backbones.nano import NanoBackbone
from collectionlora.backbones.quantization import whole_weight
from collectionlora.collection import Collection
from collectionlora.config import ModelSettings, resolve
from collectionlora.editing import Editor
from collectionlora.effectbench.heldout import Heldout, heldout_photographs
from collectionlora.pictures.photographs import TRAIN, pool
from collectionlora.pictures.photos import to_images, to_photos
from collectionlora.pictures.sizes import WorkingSizes
from collectionlora.planning.checking import check_collection
from collectionlora.planning.memory import MemoryTally
from collectionlora.planning.peaks import vae_bytes, working_sizes
from collectionlora.planning.workload import Workload
from collectionlora.runs.growing import enter_teacher
from collectionlora.runs.session import Session, resolve_settings
from collectionlora.sampling import Denoiser, sample_many_steps
from collectionlora.system.errors import UserError

MODEL = ModelSettings(condition_resolution=56)


def encode(backbone, side, texts):
    images = torch.rand(len(texts), 3, side, side, generator=torch.Generator().manual_seed(0))
    prompts = [
        backbone.encode_prompt([text], [image[None]]) for text, image in zip(texts, images, strict=True)
    ]
    return Condition(type(prompts[0]).cat(prompts), backbone.encode_image(images))


@pytest.mark.parametrize(("side", "images"), [(1024, 1), (512, 4), (64, 256)])
def test_a_forward_takes_as_many_images_as_have_the_tokens_of_one_large_edit(side, images, tiny_qwen):
    backbone = load_backbone(str(tiny_qwen), MODEL)
    latents = torch.empty(1, 16, side // 8, side // 8, device="meta")
    condition = Condition(None, latents)
    assert backbone.max_batch(condition) == images
    assert images * 2 * (side // 16) ** 2 <= MAX_TOKENS
    with_reference = Condition(None, latents, (latents,) * 2)
    assert backbone.max_batch(with_reference) == max(1, images // 2)
    assert NanoBackbone.load().max_batch(condition) == 16


def test_guidance_of_a_large_base_is_two_forwards_without_a_mask(tiny_qwen):
    backbone = load_backbone(str(tiny_qwen), MODEL)
    condition = encode(backbone, 32, ["make it warm and bright", "blur"])
    uncond = condition.with_prompt(encode(backbone, 32, ["", ""]).prompt)
    seen = []

    def see(_network, _args, inputs):
        seen.append((len(inputs["hidden_states"]), inputs["encoder_hidden_states_mask"]))

    backbone.network.register_forward_pre_hook(see, with_kwargs=True)
    parts = [Denoiser(backbone, condition[i : i + 1], uncond[i : i + 1], 4.0) for i in range(2)]
    noise = torch.randn(condition.source.shape, generator=torch.Generator().manual_seed(1))
    apart = torch.cat([sample_many_steps(part, noise[i : i + 1], 2) for i, part in enumerate(parts)])
    assert seen == [(1, None)] * 8

    backbone.guides_in_one_batch = True
    joint = sample_many_steps(Denoiser(backbone, condition, uncond, 4.0), noise, 2)
    assert [batch for batch, _ in seen[8:]] == [4, 4]
    torch.testing.assert_close(apart, joint, atol=1e-4, rtol=1e-4)


QUERY, IMAGE_MLP = "transformer_blocks.0.attn.to_q", "transformer_blocks.1.img_mlp.net.2"


def make_collection(path, base, **settings):
    """Two effects over a tiny base: a LoRA, and a DoRA in PEFT's words."""
    write_photos(path, 3)
    generator = torch.Generator().manual_seed(0)
    lora = {}
    for module, (outs, ins) in {QUERY: (64, 64), IMAGE_MLP: (64, 256)}.items():
        lora[f"transformer.{module}.lora_A.weight"] = torch.randn(2, ins, generator=generator)
        lora[f"transformer.{module}.lora_B.weight"] = torch.randn(outs, 2, generator=generator)
    save_file(lora, path / "plain.safetensors")
    magnitude = 1 + torch.rand(64, generator=generator)
    save_file({**lora, f"transformer.{QUERY}.lora_magnitude_vector": magnitude}, path / "dora.safetensors")
    prompts = {name: f"make it {name}" for name in ("plain", "dora")}
    return write_collection(path, base, prompts, settings), magnitude


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_session_over_a_quantised_base_reads_teachers_of_every_kind(kind, tiny_qwen, tmp_path):
    pytest.importorskip("bitsandbytes")
    collection, magnitude = make_collection(tmp_path / "mine", tiny_qwen, model={"quantization": kind})
    session = open_session(collection)
    plain, dora = (session.teacher_files[name] for name in ("plain", "dora"))
    assert set(plain) == set(dora) == {QUERY, IMAGE_MLP}
    # The magnitudes are the lengths of the rows of what the network really computes with.
    whole = whole_weight(session.backbone.network.get_submodule(QUERY)).float()
    lengths = (whole + change(tuple(factor.float() for factor in dora[QUERY]))).norm(dim=1)
    torch.testing.assert_close(lengths, magnitude, atol=0.02, rtol=0.02)
    streams = session.make_targets(lambda *_: None)
    assert not torch.equal(streams.effects[0].targets, streams.effects[1].targets)
    assert {p.dtype for p in session.roles.parameters(TEACHER)} == {torch.bfloat16}


@pytest.mark.parametrize("updates", [0, pytest.param(1, marks=pytest.mark.thorough)])
def test_the_base_answers_ordinary_instructions_only_for_a_warm_start(updates, tiny_qwen, tmp_path):
    settings = {"match": {"updates": updates}, "distill": {"effect_ratio": 0.5}}  # it draws both streams
    collection, _ = make_collection(tmp_path / "mine", tiny_qwen, **settings)
    counts = collectionlora.targets(collection)
    assert counts == {"plain": 3, "dora": 3, "general": 2 * updates}
    assert any(collection.folder.glob("cache/general-encoded-*"))
    made = [path for path in collection.folder.glob("cache/general-*") if "encoded" not in path.name]
    assert len(made) == updates
    collectionlora.distill(collection, overrides={"distill": {"effect_ratio": 0}})


def test_memory_settings_change_where_things_lie_and_what_moments_weigh(tiny_qwen, tmp_path):
    pytest.importorskip("bitsandbytes")
    collection, _ = make_collection(tmp_path / "mine", tiny_qwen, student={"rank": 64}, critic={"rank": 64})
    layer = {"distill": {"ema_on_host": True, "moments": "8bit", "student_updates": 2, "ema": 0.5}}
    settings = resolve_settings(collection, layer)
    whole = Session(collection, settings, with_critics=True).distillation(lambda *_: None)
    before = [average.clone() for average in whole.ema]
    whole(0)
    student = whole.roles.parameters(STUDENT)
    for was, average, parameter in zip(before, whole.ema, student, strict=True):
        torch.testing.assert_close(average, torch.lerp(was, parameter.detach(), 0.5))
    moments = [m for s in whole.optimizers[STUDENT].state.values() for m in (s["state1"], s["state2"])]
    assert {m.dtype for m in moments if m.numel() >= 4096} == {torch.uint8}
    # A checkpoint holds them, and a run goes on from it bit by bit.
    assert_goes_on(collection, settings, whole)


@pytest.fixture
def loads(monkeypatch):
    """What is loaded, in order: "text", "vae", "transformer"."""
    seen, load, pipeline = [], DiffusersBackbone._load, QwenImageEditPlusPipeline.from_pretrained

    def load_part(self, component, subfolder, *device):
        seen.append(subfolder)
        return load(self, component, subfolder, *device)

    def load_pipeline(**where):
        seen.append("text")
        return pipeline(**where)

    monkeypatch.setattr(DiffusersBackbone, "_load", load_part)
    monkeypatch.setattr(QwenImageEditPlusPipeline, "from_pretrained", load_pipeline)
    return seen


def test_one_edit_frees_the_encoders_before_it_loads_the_network(tiny_qwen, tmp_path, monkeypatch):
    network, targets = family_of(str(tiny_qwen)).empty_network(str(tiny_qwen))
    weights = {
        name: (torch.zeros(1, weight.shape[1]), torch.zeros(weight.shape[0], 1))
        for name, weight in target_weights(network, targets).items()
    }
    facts = {"base": str(tiny_qwen), "model": MODEL, "steps": 1, "shift": 3.0, "version": "0"}
    recipe = Recipe(**facts, resolution=32, effects={"blur": "blur it"})
    write_adapter(tmp_path / "one.safetensors", weights, recipe)
    held, load = [], DiffusersBackbone._load

    def see(backbone, name, subfolder, device=None):
        held.append((subfolder, sorted({"text_pipeline", "vae"} & vars(backbone).keys())))
        return load(backbone, name, subfolder, device)

    monkeypatch.setattr(DiffusersBackbone, "_load", see)
    collectionlora.edit(tmp_path / "one.safetensors", np.zeros((32, 32, 3), np.uint8), "blur")
    assert ("transformer", []) in held


@pytest.mark.thorough
def test_a_bench_holds_one_base_and_encodes_before_it_loads_it(tiny_qwen, tmp_path, loads):
    # In float32, where the Editor's merged weights round as LoRA beside the weights does.
    collection, _ = make_collection(tmp_path / "mine", tiny_qwen, model={"dtype": "float32"})
    collectionlora.distill(collection)
    # The first is for the DoRA, and gone when its effect is converted.
    assert [part for part in loads if part != "vae"] == ["transformer", "text", "transformer"]
    loads.clear()
    methods = ["source", "teacher", "student", "student-1"]
    photos = collection.folder / "photos"
    collectionlora.bench(collection, photos, methods=methods, crops=2)
    assert [part for part in loads if part != "vae"] == ["text", "transformer"]

    pictures = collection.folder / "bench" / "pictures"
    for strip in pictures.glob("student/*-strip-*"):
        strip.unlink()
    loads.clear()
    collectionlora.bench(collection, photos, methods=methods, crops=2)
    assert [part for part in loads if part != "vae"] == ["text", "transformer"]
    (made,) = pictures.glob("student/plain-[!s]*")
    judged = load_file(made)["pictures"]
    heldout = Heldout(heldout_photographs(photos, str(tiny_qwen)), pool(TRAIN), 2, [0], 1)
    cases = heldout.draw(collection, WorkingSizes(32, 32))
    editor = Editor.load(collection.folder)
    images, prompts = to_images(cases.photos), [editor.prompt(["plain"])] * 2
    alone = editor.sample(images, prompts, cases.seeds)
    assert (torch.from_numpy(np.stack(to_photos(alone))).int() - judged.int()).abs().max() <= 1


def test_effects_are_taught_one_photo_at_a_time_after_all_are_encoded(tiny_qwen, tmp_path, loads):
    collection, _ = make_collection(tmp_path / "mine", tiny_qwen)
    for name in ("plain", "dora"):
        shutil.copytree(collection.folder / "photos", collection.folder / "pairs" / name / "source")
        shutil.copytree(collection.folder / "photos", collection.folder / "pairs" / name / "target")
    assert resolve_settings(collection, {}).teach.batch_size == 1
    collectionlora.teach(collection)
    assert [part for part in loads if part != "vae"] == ["text", "transformer"]


def test_a_converted_teacher_is_mapped_into_memory_and_found_again(tiny_qwen, tmp_path):
    collection, _ = make_collection(tmp_path / "mine", tiny_qwen)
    teacher = open_session(collection).teacher_files["plain"]
    whole = read_lora(collection.folder / "plain.safetensors").weights
    assert all(torch.equal(a, b.bfloat16()) for a, b in zip(teacher[QUERY], whole[QUERY], strict=True))
    (path,) = collection.folder.glob("cache/teacher-plain-*.safetensors")
    with open("/proc/self/maps") as maps:
        assert str(path) in maps.read()
    written = path.stat().st_mtime_ns
    again = open_session(collection).teacher_files["plain"]
    assert path.stat().st_mtime_ns == written
    assert again.rank == 2
    path.write_bytes(path.read_bytes()[:100])  # damaged: it is made again
    assert torch.equal(open_session(collection).teacher_files["plain"][QUERY][0], whole[QUERY][0].bfloat16())


def test_teachers_of_the_small_base_stay_exact(tmp_path):
    collection = Collection.load(small_collection.build(tmp_path / "mine"))
    for name, teacher in open_session(collection).teacher_files.items():
        for module, pair in read_lora(collection.folder / f"teachers/{name}.safetensors").weights.items():
            assert all(map(torch.equal, teacher[module], pair))


def test_a_dora_teacher_is_checked_and_added_without_the_network(tiny_qwen, tmp_path, loads):
    collection, _ = make_collection(tmp_path / "mine", tiny_qwen)
    result = check_collection(collection.folder)
    assert result["ok"], result["problems"]
    assert loads == []
    (found,) = (effect for effect in result["effects"] if effect["name"] == "dora")
    converted = open_session(collection).teacher_files["dora"]
    norms = [change_norm(tuple(factor.float() for factor in pair)) for pair in converted.values()]
    assert found["format"] == "diffusers DoRA of LoRA+LoRA"
    assert found["norm"] == pytest.approx(sum(norm**2 for norm in norms) ** 0.5, rel=0.01)
    (collection.folder / "photos").rename(collection.folder / "shown")
    shutil.copytree(collection.folder / "shown", collection.folder / "photos" / "third")
    manifest = (collection.folder / "collection.yaml").read_text().replace("photos: photos", "photos: shown")
    (collection.folder / "collection.yaml").write_text(manifest)
    loads.clear()
    grown = enter_teacher(
        Collection.load(collection.folder), "third", tmp_path / "mine/dora.safetensors", "x"
    )
    assert [effect.name for effect in grown.effects] == ["plain", "dora", "third"]
    assert loads == []


def test_a_weight_is_read_from_a_base_in_several_files(tiny_qwen, tmp_path):
    whole = read_weight(str(tiny_qwen), "transformer", QUERY)
    shutil.copytree(tiny_qwen, tmp_path / "cut")
    network = QwenImageTransformer2DModel.from_pretrained(tiny_qwen, subfolder="transformer")
    shutil.rmtree(tmp_path / "cut" / "transformer")
    network.save_pretrained(tmp_path / "cut" / "transformer", max_shard_size="100KB")
    assert len(list((tmp_path / "cut" / "transformer").glob("*.safetensors"))) > 1
    assert torch.equal(read_weight(str(tmp_path / "cut"), "transformer", QUERY), whole)
    with pytest.raises(UserError, match=r"lacks nothing\.here\.weight"):
        read_weight(str(tiny_qwen), "transformer", "nothing.here")
    with pytest.raises(
        UserError, match="a DoRA teacher means nothing without its weights; get it: hf download"
    ):
        read_weight("owner/absent@main", "transformer", QUERY)


@pytest.mark.parametrize("side", [32, 64])
def test_a_photo_is_encoded_and_decoded_in_the_memory_that_is_planned(side, tiny_qwen):
    settings = resolve(
        {"model": {"dtype": "float32", "condition_resolution": 56}, "data": {"resolution": side}}
    )
    workload = Workload(str(tiny_qwen), 1, settings)
    weights, picture = vae_bytes(workload)
    backbone = load_backbone(str(tiny_qwen), settings.model)
    largest, *_ = working_sizes(workload, backbone)
    with MemoryTally() as tally:
        vae = backbone.vae
        assert weights == sum(p.numel() * p.element_size() for p in vae.parameters())
        before = tally.live
        tally.begin_phase()
        backbone.decode(backbone.encode_image(torch.rand(1, 3, *largest)))
    assert picture == pytest.approx(tally.peaks[-1] - before, rel=0.1)

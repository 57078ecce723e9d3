"""Compositions: two effects on one photo under one prompt, taught by one teacher after the other."""

import pytest
import torch
from helpers.random_loras import write_random_loras
from helpers.small_collection import NAMES, build
from helpers.tiny_collection import open_session, write_collection, write_photos

from collectionlora.backbones.base import Condition
from collectionlora.collection import Collection
from collectionlora.prompting.triggers import compose
from collectionlora.runs.compositions import list_compositions
from collectionlora.runs.session import Session, resolve_settings
from collectionlora.runs.target_making import TargetMaker
from collectionlora.sampling import Denoiser, sample_many_steps
from collectionlora.streams import GeneralData, sample_noise
from collectionlora.system.errors import UserError

COUNT = 3
SETTINGS = {
    "targets": {"steps": 2, "guidance_scale": 2, "general": 4, "compositions": COUNT},
    "match": {"updates": 5, "loss": "flow", "composition_ratio": 0.5},
    "distill": {"student_updates": 0, "effect_ratio": 0.5},
    "data": {"resolution": 16},
    "student": {"rank": 2},
    "critic": {"rank": 2},
}


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    folder = build(tmp_path_factory.mktemp("compositions") / "mine", settings=SETTINGS)
    return new_session(Collection.load(folder))


def new_session(collection, overrides=None):
    return Session(collection, resolve_settings(collection, overrides or {}), with_critics=False)


@pytest.fixture(scope="module")
def streams(session):
    return session.make_targets(lambda *_: None)


def test_every_effect_lies_on_pictures_of_others(session):
    shards = list_compositions(session.collection, session.settings, session.prompts)
    assert [(shard.second.name, shard.first, shard.number) for shard in shards] == [
        ("sepia", 0, 0),
        ("technicolor", COUNT, 1),
    ]
    for shard in shards:
        assert shard.total == 2 * COUNT
        for photo, prompt, (name, place) in zip(shard.photos, shard.prompts, shard.below, strict=True):
            assert name != shard.second.name
            assert prompt == compose([session.prompts[name], session.prompts[shard.second.name]])
            assert photo == session.collection.photo_paths(session.collection.effect(name))[place]


def test_the_second_teacher_answers_on_the_first_ones_picture(session, streams):
    """Sample by sample: the student sees the photo, the second teacher what the first one made of it."""
    data, backbone = streams.compositions, session.backbone
    effects = {effect.name: effect for effect in streams.effects}
    shards = list_compositions(session.collection, session.settings, session.prompts)
    for shard in shards:
        second = effects[shard.second.name]
        for row, (name, place) in enumerate(shard.below):
            position = shard.first + row
            assert torch.equal(data.sources[position], effects[name].sources[place])
            below = effects[name].targets[place][:1]
            condition = Condition(second.teacher_prompt, below)
            noise = sample_noise((data.seed, position, 0), below.shape[1:])[None]
            with session.teachers.use(second.name):
                teacher = Denoiser(backbone, condition, condition.with_prompt(second.uncond), 2)
                expected = sample_many_steps(teacher, noise, 2)
            # Alone and in a batch sums round otherwise.
            assert torch.allclose(data.targets[position], expected[0], atol=1e-4)
            assert not torch.allclose(expected[0], below[0], atol=1e-2)


def test_the_student_reads_the_prompt_that_edit_writes(session, streams):
    shards = list_compositions(session.collection, session.settings, session.prompts)
    texts = [text for shard in shards for text in shard.prompts]
    expected = session.backbone.encode_prompt(texts)
    places = torch.arange(len(texts))
    assert torch.equal(streams.compositions.prompt.of_photos(places).trim().tokens, expected.trim().tokens)


def test_without_aop_it_reads_the_teachers_prompts(session):
    off = new_session(session.collection, {"distill": {"asymmetric_prompts": False}})
    data = off.make_targets(lambda *_: None).compositions
    shards = list_compositions(off.collection, off.settings, off.recipe_prompts())
    assert shards[0].prompts[0] == "apply make it technicolor, then make it sepia"
    expected = off.backbone.encode_prompt([text for shard in shards for text in shard.prompts])
    found = data.prompt.of_photos(torch.arange(len(data.sources)))
    assert torch.equal(found.trim().tokens, expected.trim().tokens)


def count_compositions(streams, steps=300):
    """Samples of mixed batches by their target: compositions, effects, general."""
    kinds = {"composition": 0, "effect": 0, "general": 0}
    ours = {tuple(target.flatten().tolist()) for target in streams.compositions.targets}
    general = {tuple(target.flatten().tolist()) for target in streams.general.targets}
    for step in range(steps):
        for target in streams.mixed_batch(step, size=4).target:
            key = tuple(target.flatten().tolist())
            kinds["composition" if key in ours else "general" if key in general else "effect"] += 1
    return kinds


def test_a_share_of_the_effect_stream_is_compositions(streams):
    kinds = count_compositions(streams)
    assert 0.45 < kinds["general"] / 1200 < 0.55
    assert 0.20 < kinds["composition"] / 1200 < 0.30
    assert 0.20 < kinds["effect"] / 1200 < 0.30


def test_the_noise_of_a_composition_is_drawn_again(streams):
    batch = next(
        batch
        for batch in (streams.mixed_batch(step, size=1) for step in range(100))
        if any(torch.equal(batch.target[0], target) for target in streams.compositions.targets)
    )
    (seed, position, sample) = batch.origins[0]
    assert (seed, sample) == (streams.compositions.seed, 0)
    assert torch.equal(batch.target[0], streams.compositions.targets[position])


def test_none_are_made_where_none_are_asked_for(session):
    off = new_session(session.collection, {"targets": {"compositions": 0}})
    assert off.make_targets(lambda *_: None).compositions is None
    unused = {"match": {"updates": 0}, "distill": {"student_updates": 1}}
    assert new_session(session.collection, unused).make_targets(lambda *_: None).compositions is None


def test_compositions_are_found_in_the_cache(session, streams):
    made = []
    again = TargetMaker(
        session.collection,
        session.backbone,
        lambda: session.teachers,
        session.release_network,
        session.settings,
        lambda what, *_: made.append(what),
    )
    assert isinstance(again.make(session.prompts, session.recipe_prompts())[2], GeneralData)
    assert made == []


def test_what_compositions_need(session):
    collection = session.collection
    with pytest.raises(UserError, match=r"targets\.compositions needs match\.loss=flow"):
        resolve_settings(collection, {"match": {"loss": "velocity"}})
    with pytest.raises(UserError, match=r"targets\.compositions: needs two effects"):
        new_session(collection.only(["sepia"])).make_targets(lambda *_: None)


def test_where_prompts_see_the_photo_the_second_teacher_reads_its_own_beside_the_picture(tiny_qwen, tmp_path):
    write_photos(tmp_path, 2)
    write_random_loras(tmp_path, NAMES, str(tiny_qwen))
    prompts = {name: f"make it {name}" for name in NAMES}
    settings = {"model": {"dtype": "float32"}, "targets": SETTINGS["targets"], "match": SETTINGS["match"]}
    collection = write_collection(tmp_path, tiny_qwen, prompts, settings)
    session = open_session(collection)
    streams = session.make_targets(lambda *_: None)
    data, backbone = streams.compositions, session.backbone
    assert "text_pipeline" not in vars(backbone)  # it was released a second time
    effects = {effect.name: effect for effect in streams.effects}
    for shard in list_compositions(collection, session.settings, session.prompts):
        for row, (name, place) in enumerate(shard.below):
            below, position = effects[name].targets[place][:1], shard.first + row
            picture = backbone.decode(below)
            read, empty = (
                backbone.encode_prompt([text], [picture]) for text in (prompts[shard.second.name], "")
            )
            condition = Condition(read, below)
            noise = sample_noise((data.seed, position, 0), below.shape[1:])[None]
            with session.teachers.use(shard.second.name):
                teacher = Denoiser(backbone, condition, condition.with_prompt(empty), 2)
                expected = sample_many_steps(teacher, noise, 2)
            assert torch.allclose(data.targets[position], expected[0], atol=1e-4)

    again = open_session(collection)
    again.make_targets(lambda *_: None)
    assert not {"vae", "text_pipeline", "network"} & set(vars(again.backbone))  # all was in the cache

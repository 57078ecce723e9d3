from dataclasses import replace

import torch

from collectionlora.backbones.base import Prompt
from collectionlora.streams import EffectData, GeneralData, Streams, route


def prompt(value, batch=1):
    return Prompt(torch.full((batch, 2, 3), float(value)), torch.ones(batch, 2, dtype=torch.bool))


def make_streams(**changes):
    effects = [
        EffectData(
            name=f"effect-{k}",
            sources=torch.arange(6.0).view(6, 1, 1, 1) + 100 * k,
            targets=torch.arange(12.0).view(6, 2, 1, 1, 1) + 1000 * (k + 1),
            teacher_prompt=prompt(10 + k),
            student_prompt=prompt(20 + k),
            uncond=prompt(0),
        )
        for k in range(3)
    ]
    general = GeneralData(torch.zeros(8, 1, 1, 1) - 1, prompt(30, 8), torch.zeros(8, 1, 1, 1) - 2, prompt(0))
    settings = {"seed": 5, "batch_size": 4, "effect_ratio": 0.5, **changes}
    return Streams(effects, general, **settings)


def test_routing_is_a_pure_function_of_seed_step_and_rank():
    routes = [route(1, step, 0, 50) for step in range(200)]
    assert routes == [route(1, step, 0, 50) for step in range(200)]
    assert routes != [route(2, step, 0, 50) for step in range(200)]
    assert routes != [route(1, step, 1, 50) for step in range(200)]


def test_routing_has_its_probabilities():
    routes = [route(0, step, 0, 4, effect_ratio=0.3) for step in range(4000)]
    effects = [r for r in routes if r is not None]
    assert abs(len(effects) / 4000 - 0.3) < 0.03
    assert all(abs(effects.count(k) / len(effects) - 0.25) < 0.06 for k in range(4))
    assert None not in [route(0, step, 0, 4, effect_ratio=1.0) for step in range(100)]
    assert all(route(0, step, 0, 4, effect_ratio=0.0) is None for step in range(100))


def test_route_every_keeps_the_stream_while_the_effect_changes():
    routes = [[route(3, step, 0, 50, 0.5, 20, part) for part in range(6)] for step in range(200)]
    blocks = [routes[start : start + 20] for start in range(0, 200, 20)]
    streams = [{index is None for parts in block for index in parts} for block in blocks]
    assert all(len(stream) == 1 for stream in streams)
    assert {True, False} == set().union(*streams)
    effects = [index for block in blocks for parts in block for index in parts if index is not None]
    assert len(set(effects)) == 50


def test_a_batch_is_the_same_whenever_it_is_asked_for():
    streams = make_streams()
    later = make_streams()
    for step in (7, 3):
        later.batch(step)
    for step in range(20):
        a, b = streams.batch(step), later.batch(step)
        assert a.effect == b.effect
        assert torch.equal(a.target, b.target)
        assert torch.equal(a.student.source, b.student.source)
        noise = [torch.randn(3, generator=s.generator(step)) for s in (streams, later)]
        assert torch.equal(*noise)


def test_the_teacher_reads_its_prompt_and_the_student_its_own():
    for step in range(30):
        batch = make_streams().batch(step)
        if batch.effect is None:
            assert batch.teacher.prompt.tokens.unique().tolist() == [30]
            assert batch.student.prompt.tokens.unique().tolist() == [30]
        else:
            k = int(batch.effect[-1])
            assert batch.teacher.prompt.tokens.unique().tolist() == [10 + k]
            assert batch.student.prompt.tokens.unique().tolist() == [20 + k]
        assert batch.uncond.prompt.tokens.unique().tolist() == [0]
        assert torch.equal(batch.teacher.source, batch.student.source)


def test_without_aop_the_student_reads_the_teachers_prompt():
    streams = make_streams(asymmetric_prompts=False, effect_ratio=1.0)
    for step in range(5):
        batch = streams.batch(step)
        assert torch.equal(batch.student.prompt.tokens, batch.teacher.prompt.tokens)


def test_every_sample_of_a_mixed_batch_is_routed_by_itself():
    streams = make_streams(effect_ratio=0.5)
    seen = []
    for step in range(20):
        batch = streams.mixed_batch(step)
        parts = [
            streams._draw(streams._mixed_data(step, part), step, part, 1) for part in range(len(batch.target))
        ]
        assert batch.effect is None
        for index, part in enumerate(parts):
            assert torch.equal(batch.target[index], part.target[0])
            assert torch.equal(batch.student.source[index], part.student.source[0])
            assert torch.equal(batch.student.prompt.tokens[index], part.student.prompt.tokens[0])
        seen.append({part.effect for part in parts})
    assert len(set().union(*seen)) == len(streams.effects) + 1
    assert any(len(effects) > 1 for effects in seen)


def test_a_prompt_that_was_read_with_a_photo_follows_it():
    streams = make_streams(effect_ratio=1.0)
    own = Prompt(torch.arange(6.0).view(6, 1, 1), torch.ones(6, 1, dtype=torch.bool))
    streams.effects = [replace(e, teacher_prompt=own, uncond=own) for e in streams.effects]
    for step in range(20):
        batch = streams.batch(step)
        photo = batch.student.source.flatten() - 100 * int(batch.effect[-1])
        assert torch.equal(batch.teacher.prompt.tokens.flatten(), photo)
        assert torch.equal(batch.uncond.prompt.tokens.flatten(), photo)


def test_a_target_belongs_to_its_photo():
    streams = make_streams(effect_ratio=1.0)
    for step in range(20):
        batch = streams.batch(step)
        k = int(batch.effect[-1])
        photo = batch.student.source.flatten() - 100 * k
        assert torch.equal(((batch.target.flatten() - 1000 * (k + 1)) // 2), photo)

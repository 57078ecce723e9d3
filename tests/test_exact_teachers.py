"""Teachers whose change has no low rank are kept whole, over real parts of tiny sizes."""

import numpy as np
import pytest
import torch
from helpers.tiny_collection import assert_goes_on, open_session, write_collection, write_photos
from safetensors.torch import save_file
from torch.nn import functional as F

import collectionlora
from collectionlora.adapters import lycoris
from collectionlora.adapters.formats import read_lora, read_teacher
from collectionlora.adapters.headers import LoraSizes, read_sizes
from collectionlora.adapters.low_rank import Kronecker, add_whole, as_matrix, change, tensors_of
from collectionlora.adapters.roles import STUDENT, TEACHER, Roles, target_weights
from collectionlora.backbones import family_of, load_backbone
from collectionlora.backbones.base import Condition
from collectionlora.command_line.terminal import describe_lora
from collectionlora.planning import guard, peaks
from collectionlora.planning import plan as planning
from collectionlora.planning.checking import check_collection
from collectionlora.planning.plan import plan
from collectionlora.planning.workload import Workload, read_teacher_sizes
from collectionlora.runs.session import Session, resolve_settings
from collectionlora.sampling import Denoiser
from collectionlora.system.errors import UserError

QUERY, IMAGE_MLP = "transformer_blocks.0.attn.to_q", "transformer_blocks.1.img_mlp.net.2"
QWEN = {QUERY: (64, 64), IMAGE_MLP: (64, 256)}
KINDS = ("lokr", "loha", "dora", "dora-of-lokr", "diff")
OWN = {"model": {"dtype": "float32"}, "distill": {"student_updates": 2}}


@pytest.fixture(autouse=True)
def small_pairs(monkeypatch):
    """Pairs hold rank 4, so that small modules have changes that no pair holds."""
    monkeypatch.setattr(lycoris, "MAX_RANK", 4)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) / shape[-1] ** 0.5


def make_parts(kind, rows, columns):
    """A module's tensors in LyCORIS' words, and its new weight from the base's, by the origin's formula."""
    if kind == "lokr":
        w1, w2 = draw(4, 4), draw(rows // 4, columns // 4, seed=1)
        return {"lokr_w1": w1, "lokr_w2": w2}, lambda w: w + torch.kron(w1, w2)
    if kind == "loha":
        wa, wb, wc, wd = (
            draw(rows, 3),
            draw(3, columns, seed=1),
            draw(rows, 3, seed=2),
            draw(3, columns, seed=3),
        )
        parts = {"hada_w1_a": wa, "hada_w1_b": wb, "hada_w2_a": wc, "hada_w2_b": wd}
        return {**parts, "alpha": torch.tensor(6.0)}, lambda w: w + (wa @ wb) * (wc @ wd) * 2
    if kind == "diff":
        whole = draw(rows, columns)
        return {"diff": whole}, lambda w: w + whole
    if kind == "lora":
        up, down = draw(rows, 2), draw(2, columns, seed=1)
        return {"lora_up.weight": up, "lora_down.weight": down}, lambda w: w + up @ down
    parts, move = make_parts("lokr" if kind == "dora-of-lokr" else "lora", rows, columns)
    magnitude = 1 + draw(rows, 1, seed=4).abs()

    def decomposed(weight):
        moved = move(weight)
        return magnitude * moved / moved.norm(dim=1, keepdim=True)

    return {**parts, "dora_scale": magnitude}, decomposed


def write_teacher(path, kind, shapes, name="diffusion_model.{}.{}"):
    """A file of one kind; the new weights by module."""
    tensors, moves = {}, {}
    for module, shape in shapes.items():
        parts, moves[module] = make_parts(kind, *shape)
        tensors |= {name.format(module, part): tensor for part, tensor in parts.items()}
    save_file(tensors, path)
    return moves


def make_collection(path, base, shapes, kinds, **settings):
    write_photos(path, 2)
    moves = {kind: write_teacher(path / f"{kind}.safetensors", kind, shapes) for kind in kinds}
    layers = {name: {**OWN.get(name, {}), **settings.get(name, {})} for name in {*OWN, *settings}}
    return write_collection(path, base, {kind: kind for kind in kinds}, layers), moves


def encode(backbone):
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Condition(backbone.encode_prompt(["make it warm"], [images]), backbone.encode_image(images))


@torch.no_grad()
def velocity(backbone, condition):
    noise = torch.randn(condition.source.shape, generator=torch.Generator().manual_seed(1))
    return Denoiser(backbone, condition).velocity(noise, 0.7)


def nano_shapes():
    weights = target_weights(*family_of("nano").empty_network("nano"))
    linear = [name for name, weight in weights.items() if weight.ndim == 2]
    return {name: tuple(weights[name].shape) for name in (linear[3], linear[-3])}


@pytest.mark.parametrize("base", ["qwen", "nano"])
def test_a_teacher_is_the_base_with_its_weights_changed_by_the_formula_of_the_origin(
    base, tiny_qwen, tmp_path, monkeypatch
):
    monkeypatch.setattr("collectionlora.backbones.nano.fastest", lambda: (torch.device("cpu"), torch.float32))
    base, shapes = ("nano", nano_shapes()) if base == "nano" else (tiny_qwen, QWEN)
    collection, moves = make_collection(tmp_path / "mine", base, shapes, (*KINDS, "lora"))
    session = open_session(collection)
    assert session.roles.fuse == (base == "nano")
    condition, found = encode(session.backbone), {}
    for effect in (*KINDS, "lora", None):
        exact = {} if effect in ("lora", None) else session.teacher_files[effect].exact
        assert set(exact) == (set(shapes) if effect in KINDS else set())
        with session.teachers.use(effect):
            found[effect] = velocity(session.backbone, condition)
    for effect in (*KINDS, "lora", None):
        changed = load_backbone(str(base), session.settings.model)
        for module, move in moves.get(effect, {}).items():
            weight = changed.network.get_submodule(module).weight
            weight.data = move(weight.data.double()).to(weight.dtype)
        expected = velocity(changed, condition)
        torch.testing.assert_close(found[effect], expected, atol=1e-5, rtol=1e-5)
        if effect:
            assert (found[effect] - found[None]).norm() > 1e-3 * found[None].norm()


def test_switching_effects_and_roles_leaves_nothing_behind(tiny_qwen, tmp_path):
    collection, _ = make_collection(tmp_path / "mine", tiny_qwen, QWEN, ("lokr", "lora"))
    session = open_session(collection)
    condition, teachers = encode(session.backbone), session.teachers
    with teachers.use("lora"):
        before = velocity(session.backbone, condition)
    with teachers.use(None):
        bare = velocity(session.backbone, condition)
    with teachers.use("lokr"):
        assert not torch.equal(velocity(session.backbone, condition), bare)
    for role in (STUDENT, None):  # whose LoRAs are zero
        with session.roles.use(role):
            assert torch.equal(velocity(session.backbone, condition), bare)
    with teachers.use("lora"):
        assert torch.equal(velocity(session.backbone, condition), before)
    assert all(layer.exact is None for layer in session.roles.layers.values())


def test_roles_prove_themselves_with_a_whole_change_in_the_slot():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Tanh(), torch.nn.Linear(6, 6))
    roles = Roles(network, ["0", "2"], {STUDENT: 2, TEACHER: 1}, exact=True)
    roles.load_exact({"0": torch.randn(6, 6)})
    roles.verify(lambda: network(torch.ones(3, 6)))
    with pytest.raises(ValueError, match="no whole change fits"):
        roles.load_exact({"1": torch.randn(6, 6)})
    without = Roles(torch.nn.Sequential(torch.nn.Linear(6, 6)), ["0"], {TEACHER: 1})
    with pytest.raises(ValueError, match="no whole change fits"):
        without.load_exact({"0": torch.randn(6, 6)})


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_whole_change_lies_beside_a_quantised_weight(kind, tiny_qwen, tmp_path):
    pytest.importorskip("bitsandbytes")
    model = {"quantization": kind, "dtype": "bfloat16"}
    collection, _ = make_collection(tmp_path / "mine", tiny_qwen, QWEN, KINDS, model=model)
    session = open_session(collection)
    exact = [whole for name in KINDS for whole in session.teacher_files[name].exact.values()]
    assert {tensor.dtype for whole in exact for tensor in tensors_of(whole)} == {torch.bfloat16}
    x = draw(5, 64).bfloat16()
    layer = session.roles.layers[QUERY]
    for name in KINDS:
        with session.teachers.use(name):
            moved = layer(x) - layer.get_base_layer()(x)
        expected = F.linear(x.float(), as_matrix(session.teacher_files[name].exact[QUERY]).float())
        assert (moved.float() - expected).norm() < 0.02 * expected.norm()
    streams = session.make_targets(lambda *_: None)
    assert not torch.equal(streams.effects[0].targets, streams.effects[2].targets)


def test_a_run_over_whole_changes_goes_on_bit_by_bit_and_finds_its_teachers_again(tiny_qwen, tmp_path):
    collection, _ = make_collection(tmp_path / "mine", tiny_qwen, QWEN, ("lokr", "dora"))
    settings = resolve_settings(collection, {})
    whole = Session(collection, settings, with_critics=True).distillation(lambda *_: None)
    made = {path: path.stat().st_mtime_ns for path in collection.folder.glob("cache/teacher-*")}
    assert len(made) == 2
    whole(0)
    assert_goes_on(collection, settings, whole)
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_fused_modules_are_cut_by_rows_and_swapped(tmp_path):
    """Names of Black Forest Labs' code: three projections in one, and the last modulation."""
    block = "single_transformer_blocks.0"
    names = [f"{block}.attn.to_{one}" for one in "qkv"] + [f"{block}.proj_mlp"]
    base = {name: draw(8, 16, seed=i) for i, name in enumerate(names)} | {f"{block}.proj_out": draw(8, 16)}
    base["norm_out.linear"] = draw(16, 16, seed=9)
    theirs = {
        "single_blocks.0.linear1": torch.cat([base[name] for name in names]),
        "final_layer.adaLN_modulation.1": torch.cat(base["norm_out.linear"].chunk(2)[::-1]),
    }
    for kind in KINDS:
        path = tmp_path / f"{kind}.safetensors"
        moves = write_teacher(path, kind, {name: weight.shape for name, weight in theirs.items()})
        found = {}
        lora = read_teacher(path, base, keep_whole=found.__setitem__)
        assert not lora.weights
        parts = (moves["single_blocks.0.linear1"](theirs["single_blocks.0.linear1"])).split(8)
        last = moves["final_layer.adaLN_modulation.1"](theirs["final_layer.adaLN_modulation.1"])
        moved = {**dict(zip(names, parts, strict=True)), "norm_out.linear": torch.cat(last.chunk(2)[::-1])}
        assert set(found) == set(moved) == set(lora.exact)
        for name, weight in moved.items():
            torch.testing.assert_close(base[name] + found[name], weight, atol=1e-6, rtol=1e-5)
            assert lora.exact[name] == pytest.approx(float((weight - base[name]).norm()), rel=1e-4)
        numbers = sum(weight.numel() for name, weight in base.items() if name in moved)
        assert read_sizes(path, base) == LoraSizes(0, 0, numbers)


def test_a_lokr_stays_its_two_sides_where_no_rows_are_cut(tmp_path):
    """Each side whole, or of two factors; under DoRA and in fused modules it becomes a matrix."""
    base = {"m": draw(24, 20)}
    w1, (a, b), x = draw(6, 5), (draw(4, 3, seed=1), draw(3, 4, seed=2)), draw(2, 3, 20, seed=3)
    for second in ({"lokr_w2": a @ b}, {"lokr_w2_a": a, "lokr_w2_b": b, "alpha": torch.tensor(3.0)}):
        tensors = {f"m.{name}": tensor for name, tensor in {"lokr_w1": w1, **second}.items()}
        save_file(tensors, tmp_path / "a.safetensors")
        found = {}
        lora = read_teacher(tmp_path / "a.safetensors", base, keep_whole=found.__setitem__)
        assert isinstance(found["m"], Kronecker)
        numbers = sum(tensor.numel() for tensor in tensors_of(found["m"]))
        assert read_sizes(tmp_path / "a.safetensors", base) == LoraSizes(0, 0, numbers)
        whole = torch.kron(w1, a @ b)
        assert lora.exact["m"] == pytest.approx(float(whole.norm()), rel=1e-5)
        out = torch.ones(2, 3, 24)
        torch.testing.assert_close(add_whole(out, x, found["m"]), out + F.linear(x, whole))


def test_what_a_pair_holds_stays_a_pair(tmp_path):
    base = {"m": draw(16, 16), "c": draw(8, 8, 3, 3), "s": draw(4, 16)}
    tensors = {"m.lokr_w1": draw(2, 2), "m.lokr_w2_a": draw(8, 2), "m.lokr_w2_b": draw(2, 8)}
    tensors |= {"s.lokr_w1": draw(2, 2), "s.lokr_w2": draw(2, 8), "s.dora_scale": 1 + draw(4, 1).abs()}
    values = torch.tensor([1.0, 0.9, 0.8, 0.7, *[0.01] * 4])
    left, right = torch.linalg.qr(draw(8, 8)).Q, torch.linalg.qr(draw(72, 8, seed=1)).Q
    whole = ((left * values) @ right.T).reshape(8, 8, 3, 3)
    tensors |= {"c.lokr_w1": torch.ones(1, 1), "c.lokr_w2": whole}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "a.safetensors")
    found = read_teacher(tmp_path / "a.safetensors", base)
    assert (set(found.weights), found.exact) == ({"m", "s", "c"}, {})
    assert found.losses["c"] == pytest.approx(0.02 / 1.716, rel=0.01)  # a convolution has no room beside it
    sizes = read_sizes(tmp_path / "a.safetensors", base)
    assert sizes == LoraSizes(4, *(4 * sum(len(w) + w[0].numel() for w in base.values()), 0))
    assert sizes.rank == found.rank


def test_only_teachers_are_kept_whole(tmp_path):
    base = {"m": draw(16, 16)}
    write_teacher(tmp_path / "a.safetensors", "lokr", {"m": (16, 16)})
    with pytest.raises(UserError, match="of its change at rank"):
        read_lora(tmp_path / "a.safetensors", base)
    assert set(read_teacher(tmp_path / "a.safetensors", base).exact) == {"m"}
    save_file({"m.lokr_w1": torch.ones(1, 1), "m.lokr_w2": torch.zeros(16, 16)}, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="changes nothing"):
        read_teacher(tmp_path / "b.safetensors", base)
    parts, _ = make_parts("dora", 16, 16)
    parts["lora_up.weight"] *= 0
    save_file({f"m.{name}": tensor for name, tensor in parts.items()}, tmp_path / "c.safetensors")
    with pytest.raises(UserError, match=r"m\.dora_scale: makes values that are not finite"):
        read_teacher(tmp_path / "c.safetensors", {"m": torch.zeros(16, 16)})  # rows without a direction


def test_a_sum_of_teachers_takes_pairs_and_refuses_a_large_loss(tiny_qwen, tmp_path):
    collection, _ = make_collection(
        tmp_path / "mine", tiny_qwen, QWEN, ("dora", "lora"), match={"start": "merge"}
    )
    session = open_session(collection, with_sums=True)
    assert session.ranks[TEACHER] == 256 + 2
    assert session.teacher_pairs["lora"] is session.teacher_files["lora"]
    pairs, whole = session.teacher_pairs["dora"], session.teacher_files["dora"].exact
    for module in QWEN:
        torch.testing.assert_close(change(pairs[module]), whole[module], atol=1e-5, rtol=1e-4)
    collectionlora.distill(collection)  # starts from the merge


def test_a_sum_of_teachers_refuses_what_loses_too_much(tiny_qwen, tmp_path, monkeypatch):
    monkeypatch.setattr("collectionlora.runs.teacher_files.MAX_RANK", 4)
    collection, _ = make_collection(
        tmp_path / "mine", tiny_qwen, QWEN, ("lokr", "lora"), match={"start": "merge"}
    )
    with pytest.raises(
        UserError, match=r"lokr\.safetensors: .*loses .* at rank 4, which a sum of teachers needs"
    ):
        collectionlora.distill(collection)


def test_check_tells_how_many_modules_are_exact(tiny_qwen, tmp_path):
    collection, _ = make_collection(tmp_path / "mine", tiny_qwen, QWEN, ("lokr", "lora"))
    result = check_collection(collection.folder)
    assert result["ok"], result["problems"]
    whole, pairs = result["effects"]
    assert (whole["modules"], whole["exact_modules"], whole["rank"]) == (2, 2, 0)
    assert (pairs["modules"], pairs["exact_modules"], pairs["rank"]) == (2, 0, 2)
    norms = [float(torch.kron(draw(4, 4), draw(16, ins // 4, seed=1)).norm()) for ins in (64, 256)]
    assert whole["norm"] == pytest.approx(float(np.hypot(*norms)), rel=1e-5)
    line = describe_lora(whole)
    assert line.startswith("lokr: comfyui LoKr, scale 1, 2 of ")
    assert line.endswith(", 2 modules as exact weight changes")
    assert "exact" not in describe_lora(pairs)


def test_a_plan_counts_the_largest_whole_change_and_the_guard_names_the_way_out(
    tiny_qwen, tmp_path, monkeypatch
):
    for name in ("activation_bytes", "sampling_bytes", "teaching_bytes"):
        monkeypatch.setattr(peaks, name, lambda workload: 0)
    monkeypatch.setattr(planning, "vae_bytes", lambda workload: (0, 0))
    collection, _ = make_collection(tmp_path / "mine", tiny_qwen, QWEN, ("dora", "lokr", "lora"))
    (collection.folder / "lora.safetensors").unlink()  # not there yet: nothing is known of it
    weights, sides = 64 * 64 + 64 * 256, 4 * 4 + 16 * 16 + 4 * 4 + 16 * 64
    assert read_teacher_sizes(collection) == (LoraSizes(0, 0, weights), LoraSizes(0, 0, sides))
    settings, ends = resolve_settings(collection, {}), 2 * (64 + 64 + 64 + 256)
    pairs = [tuple(LoraSizes(2, ends, numbers) for numbers in exact) for exact in ((0, 0), (weights, 7))]
    without, counted = (Workload(str(tiny_qwen), 2, settings, teachers=teachers) for teachers in pairs)
    less, more = plan(without), plan(counted)
    for verb in ("targets", "distill", "bench"):
        grown = more["verbs"][verb]["device_bytes"] - less["verbs"][verb]["device_bytes"]
        assert grown in (0, 4 * weights)  # encoding can be larger than both
    assert more["total_bytes_per_device"] - less["total_bytes_per_device"] == 4 * weights
    assert more["teacher_library_bytes"] - less["teacher_library_bytes"] == 4 * (weights + 7)
    assert peaks.step_of(counted) == peaks.step_of(without)
    monkeypatch.setattr(guard, "free_bytes", lambda: 1)
    with pytest.raises(
        UserError, match="convert the LoRAs that check calls exact to a low rank, or use a larger"
    ):
        guard.refuse_too_large("distill", collection, {})


def test_a_small_file_cannot_ask_for_a_matrix_that_fills_the_memory(tmp_path):
    """Shapes that are not the weight's are refused before anything of their size is made."""
    base, rank = {"m": draw(16, 16)}, 5
    lokr = {"m.lokr_w1": torch.ones(300, 300), "m.lokr_w2": draw(300, 300)}
    sides = {f"m.hada_w{side}_a": draw(100_000, rank, seed=side) for side in (1, 2)}
    sides |= {f"m.hada_w{side}_b": draw(rank, 100_000, seed=side + 2) for side in (1, 2)}
    for name, tensors in {"lokr": lokr, "loha": sides}.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(UserError, match=r"changes a weight of \[\d+, \d+\]; the base's is \[16, 16\]"):
            read_teacher(tmp_path / f"{name}.safetensors", base)

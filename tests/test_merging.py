import pytest
import torch
from helpers.small_collection import build

from collectionlora import distill
from collectionlora.adapters.formats import read_lora
from collectionlora.adapters.low_rank import change
from collectionlora.adapters.merging import MERGES, add, merge


def lora(seed, rank=2, modules=("m",)):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn(rank, 3, 3, 3, generator=generator),
            torch.randn(5, rank, 1, 1, generator=generator),
        )
        for name in modules
    }


def test_a_sum_is_exact_and_takes_what_only_one_has():
    first, second = lora(0), lora(1, rank=3, modules=("m", "only"))
    total = add([first, second])
    torch.testing.assert_close(change(total["m"]), change(first["m"]) + change(second["m"]))
    torch.testing.assert_close(change(total["only"]), change(second["only"]))
    assert len(total["m"][0]) == 5


@pytest.mark.parametrize("how", MERGES)
def test_a_merge_has_the_shape_of_a_lora_and_repeats(how):
    loras = [lora(0), lora(1, rank=3, modules=("m", "only"))]
    made = merge(loras, how, rank=4)
    again = merge(loras, how, rank=4)
    assert set(made) == {"m", "only"}
    for module, (a, b) in made.items():
        assert a.shape[1:] == (3, 3, 3)
        assert b.shape[:2] == (5, len(a))
        assert torch.equal(a, again[module][0])


def test_svd_is_the_nearest_to_the_mean_and_linear_of_equals_is_itself():
    loras = [lora(0), lora(1)]
    mean = sum(change(x["m"]) for x in loras) / 2
    torch.testing.assert_close(change(merge(loras, "svd", rank=4)["m"]), mean, atol=1e-5, rtol=1e-4)
    u, s, v = torch.linalg.svd(mean, full_matrices=False)
    nearest = (u[:, :2] * s[:2]) @ v[:2]
    torch.testing.assert_close(change(merge(loras, "svd", rank=2)["m"]), nearest, atol=1e-4, rtol=1e-3)
    same = merge([loras[0]] * 3, "linear", rank=2)["m"]
    # The root of a third, three times, in both factors: three times the change.
    torch.testing.assert_close(change(same), 3 * change(loras[0]["m"]))


def test_a_student_begins_as_the_mean_of_its_teachers(tmp_path):
    settings = {
        "student": {"rank": 16},
        "critic": {"rank": 16},
        "data": {"resolution": 16},
        "targets": {"steps": 1, "general": 2},
        "match": {"updates": 1, "learning_rate": 1e-12, "start": "merge"},
        "distill": {"student_updates": 0},
    }
    folder = build(tmp_path / "mine", settings=settings)
    student = read_lora(distill(folder)).weights
    teachers = [read_lora(path).weights for path in sorted((folder / "teachers").iterdir())]
    mean = add(teachers, 0.5)
    assert student.keys() == mean.keys()
    for module, pair in mean.items():
        torch.testing.assert_close(change(student[module]), change(pair))

"""The first sentence of a report follows from the metrics by the rule of docs/bench.md."""

from helpers.every import every

from collectionlora.effectbench.report.verdict import write_remarks, write_verdict

GOOD = "The student is as good as its teachers on "


def methods(teacher, student, key="psnr", **more):
    rows = {"teacher": teacher, "student": student}
    return {
        name: {"nfe": 8, **more, "per_effect": {effect: {key: value} for effect, value in values.items()}}
        for name, values in rows.items()
    }


def changed(**losses):
    return methods(dict.fromkeys(losses, 25.0), {effect: 25.0 - loss for effect, loss in losses.items()})


@every(
    [
        (changed(a=0.4, b=-3), GOOD + "all 2 effects."),
        (changed(a=0.4), GOOD + "its effect."),
        (changed(a=0.4, glow=2.13), GOOD + "1 of 2 effects; glow is 2.1 dB below."),
        (changed(a=0.6, b=2, c=0), GOOD + "1 of 3 effects; b is 2.0 dB below and a is 0.6 dB below."),
        (
            changed(a=1, b=6, c=5, d=4, e=3, f=2),
            GOOD + "0 of 6 effects; b is 6.0 dB below, c is 5.0 dB below, d is 4.0 dB below, "
            "e is 3.0 dB below and 2 more are less far below.",
        ),
        (methods({"a": 4.0}, {"a": 3.5}, "vsa"), GOOD + "0 of 1 effect; a is 0.50 VSA below."),
        (methods({"a": 0.8}, {"a": 0.79}, "clip_reference"), GOOD + "its effect."),
    ]
)
def test_a_loss_within_the_tolerance_counts_as_none(case):
    rows, sentence = case
    assert write_verdict(rows) == sentence


def test_there_is_no_verdict_without_both_methods_or_a_measure():
    rows = methods({"a": 1.0}, {"a": 1.0}, "ssim")
    assert "no effect has a known truth" in write_verdict(rows)
    del rows["teacher"]
    assert "were not both judged" in write_verdict(rows)
    assert write_remarks(rows) == []


def test_the_measure_of_people_decides_where_no_truth_is_known():
    rows = methods({"a": 25.0, "b": 25.0}, {"a": 25.0, "b": 25.0})
    for row, score in zip(rows.values(), (4.0, 3.0), strict=True):
        row["per_effect"]["b"] = {"vsa": score}
    assert write_verdict(rows) == GOOD + "1 of 2 effects; b is 1.00 VSA below."


def test_remarks_say_what_a_picture_costs_and_what_was_lost():
    rows = methods({"a": 1.0}, {"a": 1.0})
    rows["teacher"] |= {"nfe": 80, "concept_accuracy": 0.98, "general_psnr": 35.0}
    rows["student"] |= {"concept_accuracy": 0.9749, "general_psnr": 31.0}
    evaluations, recognised, ordinary = write_remarks(rows)
    assert "needs 8 network evaluations" in evaluations
    assert "teachers need 80" in evaluations
    assert "in 97% of the student's pictures and in 98%" in recognised
    assert ordinary == "Ordinary edits lose 4.0 dB against the base without a LoRA."
    rows["student"]["general_psnr"] = 36.0
    assert write_remarks(rows)[2].startswith("Ordinary edits gain 1.0 dB")
    rows["student"]["teacher_psnr"] = 23.45
    assert write_remarks(rows)[2] == (
        "Of effects without a truth the student's pictures have a PSNR of 23.4 dB to the teacher's."
    )

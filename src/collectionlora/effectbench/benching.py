"""`bench`: judge methods on held-out photographs, write the report, compare with an earlier one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from collectionlora.collection import Collection, open_collection
from collectionlora.effectbench.gate import Gate
from collectionlora.effectbench.heldout import Heldout, heldout_photographs
from collectionlora.effectbench.report.curves import find_logs
from collectionlora.effectbench.report.page import write_results
from collectionlora.effectbench.running import DEFAULT_CROPS, DEFAULT_METHODS, run_bench
from collectionlora.pictures.photographs import TRAIN, pool
from collectionlora.prompting.endpoint import Endpoint
from collectionlora.prompting.own_encoder import OwnEncoder, vlm_opener
from collectionlora.runs import growing
from collectionlora.runs.session import resolve_settings
from collectionlora.system import processes
from collectionlora.system.files import keep_earlier
from collectionlora.system.progress import Progress, ignore

CLASSIFIER_STEPS = 800


def bench(
    collection: Collection | Path | str,
    photos: Path | None = None,
    methods: Sequence[str] = DEFAULT_METHODS,
    crops: int = DEFAULT_CROPS,
    seeds: int = 1,
    overrides: Mapping[str, Any] | None = None,
    judge: Endpoint | OwnEncoder | None = None,
    baseline: Path | None = None,
    margin: float = 1.0,
    progress: Progress = ignore,
) -> dict[str, Any]:
    """EffectBench over a collection; writes into `bench/`.

    Args:
        photos: a folder of photographs that nothing was trained on; over the nano base by default some that
            ship with packages.
        methods: names, see `MethodMaker.method`.
        crops: photos of each effect and seed: random crops of the photographs, or whole photographs
            if an effect has no procedural truth.
        judge: a vision-language model that judges every picture.
        baseline: an earlier metrics.json; no effect of it may have lost more than `margin` dB.

    Returns:
        the content of metrics.json.

    Raises:
        UserError: an unknown method, no finished adapter, no or too few photographs, a model or judge that
            fails, or a kept effect that lost more than the margin; all is written then.
    """
    collection = open_collection(collection)
    settings = resolve_settings(collection, overrides or {})
    out = collection.folder / "bench"
    gate = Gate.load(baseline, margin, out / "metrics.json") if baseline else None
    photographs = heldout_photographs(photos, collection.manifest.base)
    like = gate.baseline.get("cases") if gate else None
    heldout = Heldout(photographs, pool(TRAIN), crops, list(range(seeds)), CLASSIFIER_STEPS, like)
    open_judge = vlm_opener(judge, collection.manifest.base, settings.vlm)
    result = run_bench(collection, settings, methods, heldout, progress, open_judge)
    try:
        if gate:
            result.metrics["gate"] = gate.check(result.metrics)
    finally:  # what was measured stays, whatever it is compared with
        if processes.is_main():
            with keep_earlier(out / "metrics.json"):  # a `--baseline` of a later bench
                write_results(out, result, find_logs(collection, methods))
        processes.barrier()
    if gate:
        gate.enforce(result.metrics, growing.backup_path(collection), collection.result)
    return result.metrics

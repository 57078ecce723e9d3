"""The verbs of a finished collection that look at what it can do and change what it holds."""

from pathlib import Path
from typing import Annotated

import typer

from collectionlora.command_line.options import (
    Folder,
    Json,
    Set,
    SomeNames,
    VlmKey,
    VlmTokens,
    with_token_cap,
)
from collectionlora.command_line.terminal import ProgressLine, joined_processes, methods_table, say, tell
from collectionlora.config import parse_overrides


def bench(
    folder: Folder,
    photos: Annotated[
        Path | None, typer.Option(help="held-out photographs; default: three that ship with scikit-image")
    ] = None,
    methods: Annotated[str, typer.Option(help="names with commas between")] = "source,teacher,student",
    crops: Annotated[int, typer.Option(min=1, help="photos of each effect and seed")] = 24,
    seeds: Annotated[int, typer.Option(min=1)] = 1,
    judge: Annotated[str | None, typer.Option(help="an OpenAI-compatible endpoint that judges")] = None,
    judge_model: Annotated[str | None, typer.Option(help="the endpoint's model")] = None,
    api_key_env: VlmKey = None,
    max_tokens_total: VlmTokens = None,
    baseline: Annotated[
        Path | None,
        typer.Option(help="an earlier metrics.json: fail if a kept effect lost more than --margin"),
    ] = None,
    margin: Annotated[float, typer.Option(min=0, help="dB of PSNR that an effect may lose")] = 1.0,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """EffectBench: methods side by side on photographs held out; resumes.

    Methods: source, truth, teacher, teacher-8 (undistilled, few steps), student, student-4, stack,
    flow-matching, merge-linear, merge-ties, merge-dare, merge-svd, or the name of a run.

    Example: collectionlora bench my-collection --methods teacher,student,student-4,stack
    Example: collectionlora bench my-collection --baseline before.json --margin 0.5
    """
    import collectionlora
    from collectionlora.planning.guard import refuse_too_large
    from collectionlora.prompting.endpoint import Endpoint

    layer = with_token_cap(parse_overrides(overrides or []), max_tokens_total)
    endpoint = Endpoint.of(judge, judge_model, api_key_env, "--judge")
    with joined_processes() as progress:
        refuse_too_large("bench", folder, layer)
        metrics = collectionlora.bench(
            folder,
            photos,
            methods.split(","),
            crops,
            seeds,
            layer,
            judge=endpoint,
            baseline=baseline,
            margin=margin,
            progress=progress,
        )
    passed = "the gate passed: {worst_effect} lost most, {worst_loss:.2f} dB"
    gate = [passed.format(**metrics["gate"])] if "gate" in metrics else []
    look = f"look at {folder}/bench/sheet.png, read {folder}/bench/report.html"
    say(as_json, metrics, methods_table(metrics), *gate, look)


def add(
    folder: Folder,
    names: SomeNames,
    teacher: Annotated[
        Path | None, typer.Option(help="the effect's LoRA file, to enter one effect in the manifest")
    ] = None,
    teacher_prompt: Annotated[
        str | None, typer.Option(help="what it was trained with, if the file does not say")
    ] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Teach a finished collection further effects while it replays its own; resumes.

    The effects are in the manifest, or one is entered with --teacher and its photos in photos/NAME. The
    adapter from before is kept until bench --baseline has passed.

    Example: collectionlora add my-collection neon-edges --teacher neon.safetensors
    """
    import collectionlora
    from collectionlora.planning.guard import refuse_too_large
    from collectionlora.system.errors import Interrupted

    try:
        with ProgressLine() as progress:
            layer = parse_overrides(overrides or [])
            refuse_too_large("add", folder, layer)
            path = collectionlora.add(folder, names, teacher, teacher_prompt, layer, progress)
    except Interrupted as stopped:
        command = f"collectionlora add {folder} {' '.join(names)}"
        tell(f"{stopped}; go on with the same settings, without --teacher: {command}")
        raise typer.Exit(130) from None
    text = f"wrote {path}; next: collectionlora bench {folder} --baseline EARLIER.json"
    say(as_json, {"adapter": str(path)}, text)


def remove(folder: Folder, names: SomeNames, as_json: Json = False) -> None:
    """Take effects out of the manifest and the adapter's recipe; the weights still hold them.

    Example: collectionlora remove my-collection neon-edges
    """
    import collectionlora

    left = collectionlora.remove(folder, names)
    say(as_json, {"effects": left}, f"left: {', '.join(left)}")

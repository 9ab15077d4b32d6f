"""ciod train data=FOLDER split=3+3 method=ilyolox out=DIR

The command line: demo · train · compare · extend · check · eval · predict · export · report · data · list. Settings are
``key=value``. Heavy imports happen inside the commands, so that ``ciod --help`` answers at once.
"""

from __future__ import annotations

import atexit
import gc
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ciod.cli import answers, completion, dashes, others
from ciod.cli.command import command, interruptible
from ciod.core.errors import CiodError
from ciod.core.streams import streams

app = typer.Typer(
    cls=dashes.Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Class-incremental object detection: a detector learns new classes without the old data.

    **Start here:** `ciod demo`, then `ciod train data=FOLDER split=3+3 out=runs/mine`.
    """,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from ciod.core.version import __version__

        print(f"ciod {__version__}")
        raise typer.Exit


@app.callback(no_args_is_help=True)
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    del version


MODEL = "A ciod model, a checkpoint of YOLOX, GFL or MMDetection, or an ONNX file."
Words = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(metavar="[key=value]...", show_default=False, autocompletion=completion.setting),
]
Subset = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--subset", help="Smoke test: 1% of the images of each task, or 200 of them.", show_default=False),
]


def _with(words: list[str] | None, subset: str | None) -> list[str] | None:
    """``--subset 1%`` as the setting that it is."""
    return words if subset is None else [*(words or []), f"subset={subset}"]


@app.command()
@command("train")
def train(
    words: Words = None,
    subset: Subset = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be trained, and stop.")] = False,
) -> Any:
    """Train a scenario task by task, or resume an interrupted run.

    The first word may be a YAML file of settings, a recipe (`ciod list recipes`) or a scenario (`ciod list scenarios`).
    Everything else is key=value:

    - `data=FOLDER` COCO, VOC or YOLO, recognised automatically; or `scenario=shapes-6+4`
    - `split=3+3` classes per task: `40+40`, `15+1x5`, `20x4`, or `split='[[cat, dog], [bird]]'`
    - `method=ilyolox` see `ciod list methods` (default: `auto`); its settings are `method.NAME=VALUE`
    - `detector=yolox-nano` see `ciod list detectors`, or `FILE.py:CLASS`; `size=320`, `weights=FILE` (what fits)
    - `effort=normal` quick or thorough: chooses what is not given of `epochs=30 batch=16 lr=0.001` and more
    - `seed=0 out=DIR device=auto`; `ciod list settings` prints every setting

    Run the same command again to resume. `--dry-run` prints tasks, images, steps and rates, without data what it can;
    `--subset 1%` runs everything on a part of the images.
    """
    from ciod.config import load as config
    from ciod.config.reader import split

    plain, given, problems = split(_with(words, subset), config.TABLE)
    problems += [f"'{w}' is not a setting; write key=value, for example epochs=30." for w in plain[1:]]
    file = plain[0] if plain else None
    if dry_run:
        from ciod.runs.dry_run import show

        absent: list[str] = []
        return show(config.load(file, given, absent=absent, problems=problems), absent)
    from ciod.runs.run import train as run

    settings = config.load(file, given, problems=problems)
    with interruptible():
        return answers.of_run(run(settings))


@app.command()
@command("compare")
def compare(
    words: Words = None,
    subset: Subset = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be trained, and stop.")] = False,
    only: Annotated[str | None, typer.Option("--only", help="Train one part of the runs, such as 1/2.")] = None,
) -> Any:
    """Compare methods on one scenario, over seeds: `ciod compare SCENARIO methods=finetune,ilyolox seeds=3`.

    SCENARIO is one of `ciod list scenarios`, or a YAML file with `methods:`, `seeds:` and other settings; or give
    `data=` and `split=`. The first task is trained once per seed and shared; joint training gives the upper bounds.

    - `methods=a,b,c`, with settings `methods='[finetune, {name: ilyolox, nms_iou: 0.95}]'`
    - `seeds=3` (0, 1, 2) or `seeds='[4, 7]'`; or `folds=5 blocks=10`: another fold, class order and seed each
    - `jobs=2` runs at a time; `equal_steps=true`; `gate=0.9` and `margin=0.02` of the statistics
    - `upper=prefixes` joint models for every class prefix, `final`, `none`
    - `against=ilyolox` the method that the others' runs are compared with, per seed (default: the first)
    - `out=DIR`; `cache=DIR` keeps first tasks and joint models for other comparisons
    - every other setting as in `ciod train`

    Run the same command again to resume. Exit code 1: some runs failed; the table has the others.
    """
    from ciod.comparison import FAILED, run
    from ciod.comparison.settings import TABLE, WORDS
    from ciod.config.reader import split

    plain, flat, problems = split(_with(words, subset), TABLE)
    if len(plain) > 1:
        problems.append(f"compare takes one scenario, not {len(plain)} ({', '.join(plain)}); write key=value settings.")
    own: dict[str, Any] = {k: flat.pop(k) for k in WORDS if k in flat} | ({"only": only} if only else {})
    with interruptible():
        content = run(plain[0] if plain else None, settings=flat, problems=problems, dry=dry_run, **own)
    runs, out = content.get("runs", []), content.pop("out")
    failed = any(c.get("status") == FAILED for c in runs)
    more = {} if dry_run else {"results": {} if only else content}
    return {"out": out, "runs": runs, **more, "exit_code": int(failed)}


@app.command()
@command("extend")
def extend(
    model: Annotated[str, typer.Argument(help=MODEL)],
    words: Words = None,
    subset: Subset = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be trained, and stop.")] = False,
) -> Any:
    """Teach a model the classes of a folder: `ciod extend MODEL data=FOLDER out=DIR`.

    No old image is needed. Classes are matched by name: a new one is added, a known one is taught further.

    - `effort=normal` quick, normal or thorough: chooses epochs, batch and resolution, and prints them
    - `method=auto` or any of `ciod list methods`; `method=freeze_branch` leaves old outputs bit-identical
    - `keep='[a, b]'` `drop='[a]'` `rename='{a: b}'` `new='[a]'` which class is which; `names=` as in `ciod eval`
    - `input=0..255,bgr` `old_outputs=` `taps=` of an ONNX file, as in `ciod check`; writes `DIR/model.onnx`
    - `detector=FILE.py:CLASS` for a model with a detector of your own (docs/adding-a-detector.md)
    - `old_data=FOLDER` measures AP of the old classes before and after; without it, agreement of old and new model
    - `pool=FOLDER` any unlabelled images; `min_retention=0.98` writes no model below it (exit code 3)
    - `epochs=30 batch=8 lr=0.003 size=416 holdout=0.15 seed=0 device=auto` and every `train.`, `augment.`, `eval.`

    Run the same command again to resume. `--dry-run` prints classes, images, steps and what is measured.
    """
    from ciod.config.reader import split
    from ciod.extension import settings
    from ciod.extension.run import extend as run

    plain, given, problems = split(_with(words, subset), settings.TABLE)
    problems += [f"extend takes one model; '{w}' is neither a setting nor needed." for w in plain]
    if given.pop("model", None) is not None:
        problems.append("extend takes one model: the first word, without model=.")
    chosen = settings.load({"model": model, **given}, problems)
    if dry_run:
        from ciod.extension.dry_run import show

        return show(chosen)
    with interruptible():
        return answers.of_extension(run(chosen))


@app.command()
@command("check")
def check(
    model: Annotated[str, typer.Argument(help="An ONNX file of any detector, or FILE.py:CLASS.")],
    words: Words = None,
) -> Any:
    """Print how ciod understands an ONNX detector, or try a detector or method of your own: `ciod check FILE`.

    `ciod check FILE.py:CLASS` tries a detector or a method of your own, and says in sentences what breaks the contract
    (docs/adding-a-detector.md, docs/adding-a-method.md). Exit code 1: something does. Settings: `size=64` of the
    pictures, `onnx=false` for a detector that need not be exported.

    Of an ONNX file it prints which maps a branch would read, what the outputs mean and how pictures are given, and
    writes nothing (docs/extend-onnx.md). Settings:

    - `input=0..255,bgr` how pictures are given, if the file has no such entry: range (`0..1`, `0..255`, `imagenet`,
      `-1..1`, or six numbers), `rgb` or `bgr`, `corner`, `letterbox` or `stretch`, fill
    - `names=` a list, a file or `coco`; `size=` pixels, if the file accepts any
    - `old_outputs=auto` or a layout by name; `taps='8:a,b 16:c,d 32:e,f'` the tensors to read
    """
    from ciod.api import check as run
    from ciod.config import commands
    from ciod.core.user_code import split

    if split(model)[0]:
        from ciod import contract

        _, flat = commands.read(commands.CHECK_CODE, words, takes="check takes one class")
        report = contract.check(model, **flat)
        for line in report.lines():
            typer.echo(line)
        return answers.of_check(report)
    _, flat = commands.read(commands.CHECK, words, takes="check takes one model")
    if "input" in flat:
        flat["input"] = ",".join(flat["input"])
    lines = run(model, **flat)
    for line in lines:
        typer.echo(line)
    return {"model": model, "lines": lines, "checks": []}


@app.command("eval")
@command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help=MODEL)],
    words: Words = None,
) -> Any:
    """Score a model on a data set: `ciod eval MODEL data=FOLDER`.

    Classes are matched by name; those that only the model or only the data has are listed and left out.
    Settings: `data=` `split=val` `size=416` `score_threshold=0.001` `nms_iou=0.65` `max_detections=100` `device=auto`
    `engine=torch` (or `onnx`, `auto`: see docs/predict.md)
    `classes='[a, b]'` (score only these) `names='[a, b]'` `input=` (if the file has none) `json=FILE` `out=FOLDER` (a
    page with precision-recall curves and the confusion matrix) `detector=FILE.py:CLASS` (of a model with a detector of
    your own)
    `multi_label=` (true: each class of a position counts, as usual for GFL, RetinaNet and FCOS; false: only the best)
    `metric=coco` (or `voc07`: 11-point, `voc`: area, besides COCO's; `lvis`) `arbiter=off` (raw scores of branches).
    """
    from ciod import api
    from ciod.config import commands
    from ciod.detectors import own
    from ciod.report import scored as pages
    from ciod.report import scores

    _, flat = commands.read(commands.EVAL, words, takes="eval takes one model")
    target, out = scores.target_of(flat.pop("json_file", None)), flat.pop("out", None)
    with own.faults(flat.get("detector")):
        scored = api.evaluate(model, **flat, progress=True)
    scores.show(scored)
    if target:
        scores.write(scored, target)
    page = pages.write(scored, Path(out), model=Path(model).name, settings=flat) if out else None
    if page:
        typer.echo(f"report: {page}")
    return answers.of_scores(scored, page)


@app.command()
@command("predict")
def predict(
    model: Annotated[str, typer.Argument(help=MODEL)],
    words: Words = None,
) -> Any:
    """Find objects in pictures, videos and folders of them: `ciod predict MODEL FILE... out=DIR`.

    Writes each picture with its boxes and `predictions.json`; each video with its boxes and a `.jsonl` with one line
    per frame (needs `pip install 'ciod[video]'`). See docs/predict.md. Settings:

    - `out=predictions` `score=0.3` `classes=cat,dog` (only these) `draw=false` (only JSON)
    - `overwrite=true` replaces an earlier prediction in `out`
    - `coco=FILE` also writes COCO results; `data=FOLDER split=val` takes image and category ids from a data set, and
      its pictures if no file is given
    - `batch=8` `size=` `nms_iou=0.65` `max_detections=100` `device=auto` `names='[a, b]'` `input=` (if the
      file has none)
    - `engine=auto` `torch` or `onnx`: what runs the network
    - `arbiter=off` the raw scores of branches; `finest=true` one name per box where a class became several (see
      docs/extend.md)
    - `detector=FILE.py:CLASS` for a model with a detector of your own
    """
    from ciod.config import commands

    plain, flat = commands.read(commands.PREDICT, words)
    if not plain and "data" not in flat:
        raise CiodError("predict: name at least one picture, video or folder: ciod predict MODEL FILE... out=DIR")
    from ciod.detectors import own
    from ciod.inference.job import open_job

    with own.faults(flat.get("detector")), interruptible("what is finished stays"):
        job = open_job(model, plain, **flat, say=typer.echo, complain=lambda text: typer.echo(text, err=True))
        done = job.run()
    typer.echo(f"{done} {'file' if done == 1 else 'files'} → {job.out}")
    return answers.of_predictions(job, done)


@app.command()
@command("export")
def export(
    model: Annotated[str, typer.Argument(help="A ciod model, or a checkpoint of YOLOX, GFL or MMDetection.")],
    words: Words = None,
) -> Any:
    """Write a model as ONNX: `ciod export MODEL onnx=FILE`. It then runs without torch; see docs/deploy.md.

    The file is compared with the model before it gets its name. Needs `pip install 'ciod[onnx]'`.
    Settings: `onnx=` `nms=true` (non-maximum suppression in the graph) `size=` `dynamic_size=true` `opset=17`
    `score_threshold=` `nms_iou=` `max_detections=100` `images=FOLDER` (to compare on) `tolerance=0.001`
    (largest difference) `names='[a, b]'` `arbiter=off` `overwrite=true` `detector=FILE.py:CLASS` (of a model with a
    detector of your own).

    `ciod export MODEL mmdet=FOLDER` writes a config and a checkpoint for MMDetection instead (YOLOX, GFL, and what came
    from there), `hf=FOLDER` a folder that transformers loads (RT-DETR), with `size=` and `names=`; see
    docs/mmdetection.md and docs/query-detectors.md.
    """
    from ciod.config import commands
    from ciod.exporters import hf_folder, mmdet_file

    _, settings = commands.read(commands.export_table(words), words, takes="export takes one model")
    for kind, exporter in (("hf", hf_folder), ("mmdet", mmdet_file)):
        if folder := settings.pop(kind, None):
            written = exporter.export(model, folder, **settings)
            typer.echo("\n".join(written.lines()))
            return written.content()
    from ciod.core.plural import counted
    from ciod.detectors import own
    from ciod.exporters.onnx_file import export as run

    with own.faults(settings.get("detector")):
        done = run(model, **settings)
    typer.echo(f"{done.path}: opset {done.opset}, {done.path.stat().st_size / 1e6:.1f} MB")
    if not done.verified:
        typer.echo("Not compared with the model: onnxruntime is not installed (pip install 'ciod[onnx]').", err=True)
        return answers.of_export(done)
    found = "" if done.detections is None else f"; {counted(done.detections, 'detection')} compared, all equal"
    typer.echo(
        f"compared with the model: largest difference of a score {done.score_difference:.1e}, of a box "
        f"{done.box_difference:.1e} pixels{found}"
    )
    return answers.of_export(done)


@app.command()
@command("report", heavy=False)
def report(folder: Annotated[Path, typer.Argument(help="A run folder.")]) -> Any:
    """Write a run's report.html again from its files and print its table."""
    from ciod.core.terminal import console
    from ciod.report import extended
    from ciod.report.page import read_results, write_report
    from ciod.report.summary import summary_table, verdict

    page = write_report(folder)
    results = read_results(folder)
    extension = bool(results.get("extension"))
    console().print(extended.table(results) if extension else summary_table(results))
    typer.echo((extended.verdict if extension else verdict)(results))
    typer.echo(f"report: {page}")
    return answers.of_run(folder)


@app.command()
@command("demo")
def demo(words: Words = None) -> Any:
    """Learn six shapes, then four more: fine-tuning, ilYOLOX and joint training side by side, in minutes.

    Needs no data: the scenes are drawn. Settings: `out=demo` `seed=0` `device=auto`.
    """
    from ciod.config import commands
    from ciod.demo import run

    _, flat = commands.read(commands.DEMO, words, takes="demo needs no data")
    with interruptible():
        out = Path(flat.pop("out", "demo"))
        folders = run(out, **flat)
    return {"report": str(out / "report.html"), "runs": {name: str(f) for name, f in folders.items()}}


app.command()(others.push)
app.command()(others.data)
app.command("list")(others.list_)


def main() -> None:
    """Entry point: a CiodError is one sentence and exit code 2, never a traceback."""
    atexit.register(gc.freeze)  # a process that ends has no use for a last search, of half a second
    try:
        with streams():
            app(standalone_mode=True)
    except CiodError as e:
        print(f"ciod: {e}", file=sys.stderr)
        sys.exit(getattr(e, "exit_code", 2))
    except BrokenPipeError:
        sys.exit(0)


if __name__ == "__main__":
    main()

"""ciod train data=FOLDER split=3+3 method=ilyolox out=DIR

The command line: demo · train · compare · extend · check · eval · predict · export · report · data · list. Settings are
``key=value``. Heavy imports happen inside the commands, so that ``ciod --help`` answers at once.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from typer.core import TyperCommand

from ciod.core.errors import CiodError, ConfigError
from ciod.core.gc_pause import uncollected
from ciod.core.streams import streams

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Class-incremental object detection: a detector learns new classes without the old data.

    **Start here:** `ciod demo`, then `ciod train data=FOLDER split=3+3 method=ilyolox out=runs/mine`.
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


class Heavy(TyperCommand):
    """A command that needs PyTorch, which is imported when it runs."""

    def invoke(self, ctx: Any) -> Any:
        with uncollected():
            importlib.import_module("torchvision")
        return super().invoke(ctx)


MODEL = "A ciod model, a checkpoint of YOLOX, GFL or MMDetection, or an ONNX file."
Words = Annotated[Optional[list[str]], typer.Argument(metavar="[key=value]...", show_default=False)]  # noqa: UP045


@contextmanager
def _interruptible(then: str = "run the same command again to resume from the last epoch") -> Iterator[None]:
    """Ctrl-C prints how to resume; typer would only say "Aborted"."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"ciod: interrupted; {then}.", file=sys.stderr)
        raise typer.Exit(130) from None


@app.command(cls=Heavy)
def train(
    words: Words = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be trained, and stop.")] = False,
) -> None:
    """Train a scenario task by task, or resume an interrupted run.

    The first word may be a YAML file of settings or a recipe (`ciod list recipes`). Everything else is key=value:

    - `data=FOLDER` COCO, VOC or YOLO, recognised automatically; or `scenario=shapes-6+4`
    - `split=3+3` classes per task: `40+40`, `15+1x5`, `20x4`, or `split='[[cat, dog], [bird]]'`
    - `method=ilyolox` see `ciod list methods`; its settings are `method.NAME=VALUE`
    - `detector=yolox-nano` see `ciod list detectors`; `size=320`, `weights=FILE` (everything that fits)
    - `effort=normal` quick or thorough: chooses what is not given of `epochs=30 batch=16 lr=0.001` and more
    - `seed=0 out=DIR device=auto`; `ciod list settings` prints every setting

    Run the same command again to resume. `--dry-run` prints tasks, images, steps and rates, without data what it can.
    """
    from ciod.config import load as config
    from ciod.config.reader import split

    plain, given, problems = split(words, config.TABLE)
    problems += [f"'{w}' is not a setting; write key=value, for example epochs=30." for w in plain[1:]]
    file = plain[0] if plain else None
    if dry_run:
        from ciod.runs.dry_run import show

        absent: list[str] = []
        show(config.load(file, given, absent=absent, problems=problems), absent)
        return
    from ciod.runs.run import train as run

    settings = config.load(file, given, problems=problems)
    with _interruptible():
        run(settings)


@app.command(cls=Heavy)
def compare(
    words: Words = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be trained, and stop.")] = False,
    only: Annotated[str | None, typer.Option("--only", help="Train one part of the runs, such as 1/2.")] = None,
) -> None:
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

    plain, flat, problems = split(words, TABLE)
    if len(plain) > 1:
        problems.append(f"compare takes one scenario, not {len(plain)} ({', '.join(plain)}); write key=value settings.")
    own: dict[str, Any] = {k: flat.pop(k) for k in WORDS if k in flat} | ({"only": only} if only else {})
    with _interruptible():
        content = run(plain[0] if plain else None, settings=flat, problems=problems, dry=dry_run, **own)
    if any(c["status"] == FAILED for c in content.get("runs", ())):
        raise typer.Exit(1)


@app.command(cls=Heavy)
def extend(
    model: Annotated[str, typer.Argument(help=MODEL)],
    words: Words = None,
) -> None:
    """Teach a model the classes of a folder: `ciod extend MODEL data=FOLDER out=DIR`.

    No old image is needed. Classes are matched by name: a new one is added, a known one is taught further.

    - `effort=normal` quick, normal or thorough: chooses epochs, batch and resolution, and prints them
    - `method=auto` or any of `ciod list methods`; `method=freeze_branch` leaves old outputs bit-identical
    - `keep='[a, b]'` `drop='[a]'` `rename='{a: b}'` `new='[a]'` which class is which; `names=` as in `ciod eval`
    - `input=0..255,bgr` `old_outputs=` `taps=` of an ONNX file, as in `ciod check`; writes `DIR/model.onnx`
    - `old_data=FOLDER` measures AP of the old classes before and after; without it, agreement of old and new model
    - `pool=FOLDER` any unlabelled images; `min_retention=0.98` writes no model below it (exit code 3)
    - `epochs=30 batch=8 lr=0.003 size=416 holdout=0.15 seed=0 device=auto` and every `train.`, `augment.`, `eval.`
    """
    from ciod.config.reader import split
    from ciod.extension import settings
    from ciod.extension.run import extend as run

    plain, given, problems = split(words, settings.TABLE)
    problems += [f"extend takes one model; '{w}' is neither a setting nor needed." for w in plain]
    if given.pop("model", None) is not None:
        problems.append("extend takes one model: the first word, without model=.")
    chosen = settings.load({"model": model, **given}, problems)
    with _interruptible():
        run(chosen)


@app.command(cls=Heavy)
def check(
    model: Annotated[str, typer.Argument(help="An ONNX file of any detector.")],
    words: Words = None,
) -> None:
    """Print how ciod understands an ONNX detector: `ciod check MODEL.onnx`. See docs/extend-onnx.md.

    Prints which maps a branch would read, what the outputs mean and how pictures are given; writes nothing. Settings:

    - `input=0..255,bgr` how pictures are given, if the file has no such entry: range (`0..1`, `0..255`, `imagenet`,
      `-1..1`, or six numbers), `rgb` or `bgr`, `corner`, `letterbox` or `stretch`, fill
    - `names=` a list, a file or `coco`; `size=` pixels, if the file accepts any
    - `old_outputs=auto` or a layout by name; `taps='8:a,b 16:c,d 32:e,f'` the tensors to read
    """
    from ciod.api import check as run
    from ciod.config import commands

    _, flat = commands.read(commands.CHECK, words, takes="check takes one model")
    if "input" in flat:
        flat["input"] = ",".join(flat["input"])
    for line in run(model, **flat):
        typer.echo(line)


@app.command("eval", cls=Heavy)
def evaluate(
    model: Annotated[str, typer.Argument(help=MODEL)],
    words: Words = None,
) -> None:
    """Score a model on a data set: `ciod eval MODEL data=FOLDER`.

    Classes are matched by name; those that only the model or only the data has are listed and left out.
    Settings: `data=` `split=val` `size=416` `score_threshold=0.001` `nms_iou=0.65` `max_detections=100` `device=auto`
    `classes='[a, b]'` (score only these) `names='[a, b]'` `input=` (if the file has none) `json=FILE`
    `multi_label=` (true: each class of a position counts, as usual for GFL, RetinaNet and FCOS; false: only the best)
    `metric=coco` (or `voc07`: 11-point, `voc`: area, besides COCO's) `arbiter=off` (the raw scores of branches).
    """
    from ciod import api
    from ciod.config import commands
    from ciod.report import scores

    _, flat = commands.read(commands.EVAL, words, takes="eval takes one model")
    target = scores.target_of(flat.pop("json_file", None))
    scored = api.evaluate(model, **flat)
    scores.show(scored)
    if target:
        scores.write(scored, target)


@app.command(cls=Heavy)
def predict(
    model: Annotated[str, typer.Argument(help=MODEL)],
    words: Words = None,
) -> None:
    """Find objects in pictures, videos and folders of them: `ciod predict MODEL FILE... out=DIR`.

    Writes each picture with its boxes and `predictions.json`; each video with its boxes and a `.jsonl` with one line
    per frame (needs `pip install 'ciod[video]'`). See docs/predict.md. Settings:

    - `out=predictions` `score=0.3` `classes=cat,dog` (only these) `draw=false` (only JSON)
    - `overwrite=true` replaces an earlier prediction in `out`
    - `coco=FILE` also writes COCO results; `data=FOLDER split=val` takes image and category ids from a data set, and
      its pictures if no file is given
    - `batch=8` `size=` `nms_iou=0.65` `max_detections=100` `device=auto` `names='[a, b]'` `input=` (if the
      file has none)
    - `arbiter=off` the raw scores of branches (see docs/extend.md)
    """
    from ciod.config import commands

    plain, flat = commands.read(commands.PREDICT, words)
    if not plain and "data" not in flat:
        raise CiodError("predict: name at least one picture, video or folder: ciod predict MODEL FILE... out=DIR")
    from ciod.core.distributed import pick_device
    from ciod.detectors.files.weights import open_detector
    from ciod.inference.job import Job

    size, names = flat.pop("size", None), flat.pop("names", None)
    detector = open_detector(model, size, names, flat.pop("input", None), flat.pop("arbiter", True))
    detector.to(pick_device(flat.pop("device", "auto")))
    data, split, coco = flat.pop("data", None), flat.pop("split", "val"), flat.pop("coco", None)
    if data is not None:
        from ciod.config.load import data_folder
        from ciod.data import formats

        data = formats.read(data_folder(data) or data, split)
    job = Job(
        detector,
        plain,
        Path(flat.pop("out", "predictions")),
        coco=Path(coco) if coco else None,
        data=data,
        say=typer.echo,
        complain=lambda text: typer.echo(text, err=True),
        **flat,
    )
    with _interruptible("what is finished stays"):
        done = job.run()
    typer.echo(f"{done} {'file' if done == 1 else 'files'} → {job.out}")


@app.command(cls=Heavy)
def export(
    model: Annotated[str, typer.Argument(help="A ciod model, or a checkpoint of YOLOX, GFL or MMDetection.")],
    words: Words = None,
) -> None:
    """Write a model as ONNX: `ciod export MODEL onnx=FILE`. It then runs without torch; see docs/deploy.md. The file is
    compared with the model before it gets its name. Needs `pip install 'ciod[onnx]'`.
    Settings: `onnx=` `nms=true` (non-maximum suppression in the graph) `size=` `dynamic_size=true` `opset=17`
    `score_threshold=` `nms_iou=` `max_detections=100` `images=FOLDER` (to compare on) `tolerance=0.001`
    (largest difference) `names='[a, b]'` `arbiter=off`.

    `ciod export MODEL mmdet=FOLDER` writes a config and a checkpoint for MMDetection instead (YOLOX, GFL, and what came
    from there), `hf=FOLDER` a folder that transformers loads (RT-DETR), with `size=` and `names=`; see
    docs/mmdetection.md and docs/query-detectors.md.
    """
    from ciod.config import commands
    from ciod.exporters import hf_folder, mmdet_file

    _, settings = commands.read(commands.export_table(words), words, takes="export takes one model")
    for kind, exporter in (("hf", hf_folder), ("mmdet", mmdet_file)):
        if folder := settings.pop(kind, None):
            typer.echo("\n".join(exporter.export(model, folder, **settings).lines()))
            return
    from ciod.exporters.onnx_file import export as run

    done = run(model, **settings)
    typer.echo(f"{done.path}: opset {done.opset}, {done.path.stat().st_size / 1e6:.1f} MB")
    if not done.verified:
        typer.echo("Not compared with the model: onnxruntime is not installed (pip install 'ciod[onnx]').", err=True)
        return
    found = "" if done.detections is None else f"; {done.detections} detections are those of the model"
    typer.echo(
        f"compared with the model: largest difference of a score {done.score_difference:.1e}, of a box "
        f"{done.box_difference:.1e} pixels{found}"
    )


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write a run's report.html again from its files and print its table."""
    from rich.console import Console

    from ciod.report.page import read_results, write_report
    from ciod.report.summary import summary_table, verdict

    page = write_report(folder)
    results = read_results(folder)
    Console().print(summary_table(results))
    typer.echo(verdict(results))
    typer.echo(f"report: {page}")


@app.command(cls=Heavy)
def demo(words: Words = None) -> None:
    """Learn six shapes, then four more: fine-tuning, ilYOLOX and joint training side by side, in minutes.

    Needs no data: the scenes are drawn. Settings: `out=demo` `seed=0` `device=auto`.
    """
    from ciod.config import commands
    from ciod.demo import run

    _, flat = commands.read(commands.DEMO, words, takes="demo needs no data")
    with _interruptible():
        run(Path(flat.pop("out", "demo")), **flat)


@app.command(cls=Heavy)
def data(name: Annotated[str, typer.Argument(help="coco (2017) or voc (2007).")], words: Words = None) -> None:
    """Download a public data set: `ciod data voc out=DIR`. Without `out=`: print where its files go.

    An interrupted download resumes. Checksums and archives are checked before anything is unpacked. Archives that you
    put into DIR yourself are used. Settings: `out=DIR` `keep=true` (keep the archives) `mirror=URL` (a web folder with
    the same archives).
    """
    from ciod.config import commands
    from ciod.data import download

    plain, flat = commands.read(commands.DOWNLOAD, words)
    if plain:
        raise CiodError(f"data takes one name, coco or voc; '{plain[0]}' is not needed. Write out=DIR for the folder.")
    with _interruptible("run the same command again to resume the download"):
        download.run(name, flat.get("out"), mirror=flat.get("mirror"), keep=flat.get("keep", False), say=typer.echo)


@app.command("list", cls=Heavy)
def list_(what: Annotated[str, typer.Argument(help="What to show; see above.")] = "", words: Words = None) -> None:
    """List detectors, methods, scenarios, recipes or settings; or describe a data set, a scenario or a model.

    `detectors`, `methods`, `scenarios`, `recipes`, `settings`, `environment`, `data PATH`, a scenario or its file,
    `model.safetensors`.

    `ciod list data PATH` reads a data set and prints its classes and every problem in it.
    `ciod list SCENARIO.yaml data=PATH` prints what each task would see, and how many old boxes are hidden.
    """
    from ciod import listing
    from ciod.config.load import TABLE
    from ciod.config.reader import split

    plain, flat, problems = split(words, TABLE)
    if problems:
        raise ConfigError(problems)
    listing.show(what, plain, flat)


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

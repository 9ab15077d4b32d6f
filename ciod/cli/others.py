"""Commands that train nothing: push · data · list."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from ciod.cli import completion
from ciod.cli.command import command, interruptible
from ciod.core.errors import CiodError, ConfigError

Words = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(metavar="[key=value]...", show_default=False, autocompletion=completion.setting),
]


@command("push")
def push(
    model: Annotated[str, typer.Argument(help="A ciod model, or an ONNX file that ciod extended.")],
    repo: Annotated[str, typer.Argument(help="user/model on the Hugging Face Hub.")],
    words: Words = None,
) -> Any:
    """Upload a model to the Hugging Face Hub: `ciod push MODEL user/model license=apache-2.0`.

    The card has its classes, how it learnt them, the numbers of its run, and the licence. `hf:user/model` then names
    the model in every command and in `ciod.load`. Needs `pip install 'ciod[hub]'` and `HF_TOKEN`. Settings:
    `license=` of the weights and of those they started from; `private=true`; `results=RUN_FOLDER` with its numbers.
    """
    from ciod.config import commands
    from ciod.exporters.hub import push as run

    _, flat = commands.read(commands.PUSH, words, takes="push takes one model and one repository")
    address = run(model, repo, **flat)
    typer.echo(address)
    return {"repo": repo, "url": address}


@command("data")
def data(name: Annotated[str, typer.Argument(help="coco (2017) or voc (2007).")], words: Words = None) -> Any:
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
    with interruptible("run the same command again to resume the download"):
        download.run(name, flat.get("out"), mirror=flat.get("mirror"), keep=flat.get("keep", False), say=typer.echo)
    return {"name": name, "out": flat.get("out")}


@command("list")
def list_(
    what: Annotated[str, typer.Argument(help="What to show; see above.", autocompletion=completion.topic)] = "",
    words: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(metavar="[key=value]...", show_default=False, autocompletion=completion.after_topic),
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="One row per line, its cells separated by tabs.")] = False,
) -> Any:
    """List detectors, methods, scenarios, recipes or settings; or describe a data set, a scenario or a model.

    `detectors`, `methods`, `scenarios`, `recipes`, `settings`, `environment`, `data PATH`, a scenario or its file, a
    model: `model.safetensors`, an ONNX file, or a checkpoint of another project.

    `ciod list data PATH` reads a data set and prints its classes and every problem in it.
    `ciod list SCENARIO.yaml data=PATH` prints what each task would see, and how many old boxes are hidden.
    """
    from ciod import listing
    from ciod.config.load import TABLE
    from ciod.config.reader import split

    others, flat, problems = split(words, TABLE)
    if problems:
        raise ConfigError(problems)
    return listing.show(what, others, flat, plain=plain)

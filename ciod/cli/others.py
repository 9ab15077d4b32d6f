"""Commands that train nothing: data · list."""

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

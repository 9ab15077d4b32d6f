"""Builds the wheel and uses it in an environment that holds nothing but what the wheel asks for.

    python scripts/check_wheel.py [DIST]

The distributions are built without isolation and checked by twine. The environment is a new one; the packages that the
wheel requires, and those that they require, are linked into it from the running interpreter, so that PyTorch is not
downloaded again. A dependency that is used but not declared is therefore missing there. The wheel then trains.

Raises:
    subprocess.CalledProcessError: a step failed; its output is above.
    SystemExit: a requirement of the wheel is not installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ["detector=yolox-pico", "method=finetune", "epochs=1", "size=64", "batch=8", "device=cpu", "workers=0"]


def run(*words: str | Path, cwd: Path = ROOT) -> None:
    print("+", *words, flush=True)
    own = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([str(w) for w in words], cwd=cwd, env=own, check=True)


def required(wheel: Path) -> Iterator[metadata.Distribution]:
    """The installed distributions that a wheel needs, without extras, each once."""
    (about,) = metadata.distributions(path=[str(wheel)])
    waiting, known = [(about.requires or [], "")], set[str]()
    while waiting:
        lines, extra = waiting.pop()
        for line in lines:
            need = Requirement(line)
            if need.marker is not None and not need.marker.evaluate({"extra": extra}):
                continue
            name = canonicalize_name(need.name)
            if name in known:
                continue
            known.add(name)
            try:
                found = metadata.distribution(name)
            except metadata.PackageNotFoundError:
                raise SystemExit(f"{need} is required and not installed.") from None
            if found.version not in need.specifier:
                raise SystemExit(f"{need} is required; {found.version} is installed.")
            yield found
            waiting += [(found.requires or [], e) for e in ("", *need.extras)]


def link(found: metadata.Distribution, folder: Path) -> None:
    """Links the importable names of an installed distribution into a folder."""
    tops = {file.parts[0] for file in found.files or [] if file.parts[0] not in ("..", "__pycache__")}
    for top in tops:
        source = Path(str(found.locate_file(top)))
        if source.exists() and not (folder / top).exists():
            (folder / top).symlink_to(source)


def environment(folder: Path, wheel: Path) -> Path:
    """A new environment with the wheel and what it needs; returns the folder of its commands."""
    venv.create(folder, with_pip=True)
    commands = folder / "bin"
    run(commands / "python", "-m", "pip", "--disable-pip-version-check", "install", "--no-deps", "--no-index", wheel)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    for found in required(wheel):
        link(found, packages)
    return commands


def main(dist: Path) -> None:
    for old in dist.glob("ciod-*"):
        old.unlink()
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist)
    run(sys.executable, "-m", "twine", "check", "--strict", *sorted(dist.glob("ciod-*")))
    (wheel,) = dist.glob("ciod-*.whl")
    with tempfile.TemporaryDirectory() as beside:
        work = Path(beside)
        commands = environment(work / "env", wheel)
        run(commands / "ciod", "--version", cwd=work)
        run(commands / "ciod", "list", "scenarios", cwd=work)
        run(commands / "ciod", "train", "scenario=shapes-6+4", *SMOKE, "out=run", cwd=work)
        run(commands / "ciod", "report", "run", cwd=work)
        model = "run/task-2/model.safetensors"
        run(commands / "python", "-c", f"import ciod; assert len(ciod.load('{model}').class_names) == 10", cwd=work)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist").resolve())

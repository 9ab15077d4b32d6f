"""The layers of ciod: which package may import which, and what the code does. ``python -m tests.layers`` draws them.

Every import counts: at the top of a module, inside a function, and for type checkers alone.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path

# From the top down. A package imports from those below it, never from its own line or above.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("__init__",),
    ("__main__",),
    ("cli",),
    ("api", "demo", "listing", "plot"),
    ("contract",),
    ("extension", "comparison", "exporters"),
    ("runs", "inference"),
    ("report",),
    ("training", "evaluation", "memory"),
    ("config",),
    ("methods",),
    ("detectors",),
    ("data", "trackers"),
    ("core",),
)

Edge = tuple[str, str]


def modules(root: Path) -> dict[str, Path]:
    """The modules of a package, by dotted name without the package's own: ``data.formats.coco``."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


def imports(root: Path) -> dict[str, set[str]]:
    """For each module of a package the modules of it that it imports."""
    known, package = modules(root), root.name
    return {
        name: {found for full in _imported(path, package) if (found := _module(full, known)) and found != name}
        for name, path in known.items()
    }


def _imported(path: Path, package: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            full = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            full = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.removeprefix(f"{package}.") for name in full if f"{name}.".startswith(f"{package}."))


def _module(full: str, known: dict[str, Path]) -> str | None:
    """``data.index.Index`` → ``data.index``; a name of the package itself is its ``__init__``."""
    parts = full.split(".")
    return next((m for n in range(len(parts), 0, -1) if (m := ".".join(parts[:n])) in known), "__init__")


def floors(layers: tuple[tuple[str, ...], ...] = LAYERS) -> dict[str, int]:
    """The line of each package, counted from below."""
    return {room: i for i, line in enumerate(reversed(layers)) for room in line}


def upward(found: dict[str, set[str]], layers: tuple[tuple[str, ...], ...] = LAYERS) -> list[Edge]:
    """Imports from a package of the same line or above, and of modules that no line has."""
    floor = floors(layers)
    edges = [(a, b) for a, names in found.items() for b in sorted(names)]
    pairs = [(edge, *(name.partition(".")[0] for name in edge)) for edge in edges]
    return [edge for edge, a, b in pairs if a != b and floor.get(a, -1) <= floor.get(b, len(layers))]


def circle(found: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, the first one again at the end; [] when there is none."""
    done: set[str] = set()
    path: list[str] = []

    def visit(name: str) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        path.append(name)
        for other in sorted(found.get(name, ())):
            if round_trip := visit(other):
                return round_trip
        done.add(path.pop())
        return []

    return next((c for name in found if (c := visit(name))), [])


def _row(room: str, below: list[str]) -> str:
    """One package and what it imports, in lines that fit the page of the site."""
    return textwrap.fill(", ".join(below) or "—", 80, initial_indent=f"{room:<11} → ", subsequent_indent=" " * 14)


def picture(found: dict[str, set[str]], layers: tuple[tuple[str, ...], ...] = LAYERS) -> str:
    """The lines from the top down; after each package those it imports from."""
    order = [room for line in layers for room in line]
    below = {
        room: {b.partition(".")[0] for a, names in found.items() if a.partition(".")[0] == room for b in names} - {room}
        for room in order
    }
    lines = [[_row(room, [r for r in order if r in below[room]]) for room in line] for line in layers]
    return f"\n{'─' * 60}\n".join("\n".join(line) for line in lines)


if __name__ == "__main__":
    print(picture(imports(Path(__file__).resolve().parents[1] / "ciod")))

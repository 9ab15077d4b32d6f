"""Settings that are typed as options: ``--epochs=30``, as other tools write them."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

from ciod.cli.completion import settings_of
from ciod.core.errors import CiodError


class Commands(TyperGroup):
    """The commands, whose settings have no dashes."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command and its words.

        Raises:
            CiodError: a word begins with dashes and is not an option of the command.
        """
        name, found, words = super().resolve_command(ctx, args)
        if found is not None:
            options = {o for p in found.params for o in (*p.opts, *p.secondary_opts)} | {*ctx.help_option_names}
            for n, word in enumerate(words[: words.index("--")] if "--" in words else words):
                if word.startswith("-") and word.strip("-") and word.partition("=")[0] not in options:
                    raise CiodError(_advice(str(name), word, words[n + 1 :]))
        return name, found, words


def _advice(command: str, word: str, after: list[str]) -> str:
    written, sign, value = word.partition("=")
    key = written.lstrip("-").replace("-", "_")
    if key not in settings_of(command):
        return f"{command} has no option {written}; settings have no dashes: key=value. See 'ciod {command} -h'."
    if not sign and after and not after[0].startswith("-") and "=" not in after[0]:
        value = after[0]
    return f"{written}: settings are written without dashes: {key}={value or 'VALUE'}"

"""Options that several verbs have in common, and those that take several words."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

Processes = Annotated[
    int, typer.Option("--num-processes", min=1, metavar="N", help="Processes here, one per GPU.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other value. May be repeated."),
]
Device = Annotated[
    str | None, typer.Option(metavar="NAME", help="cpu, cuda or cuda:1; else the best there is.")
]
Precision = Annotated[Literal["auto", "fp32", "bf16"] | None, typer.Option(help="Number format.")]


Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the base.")
]


class Spreading(TyperCommand):
    """A command whose repeatable options take several words: `--shots 0 4 32`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Every further word gets the option's name before it."""
        many = {name for item in self.params if getattr(item, "multiple", 0) for name in item.opts}
        return super().parse_args(ctx, spread(args, many))


def spread(words: Sequence[str], many: set[str]) -> list[str]:
    """The words with an option of `many` repeated before each of its values.

    >>> spread(["--shots", "0", "4", "--plot"], {"--shots"})
    ['--shots', '0', '--shots', '4', '--plot']
    """
    found: list[str] = []
    option, values = "", 0
    for word in words:
        if word.startswith("-"):
            option, values = word if word in many else "", 0
        else:
            found += [option] if option and values else []
            values += 1
        found.append(word)
    return found

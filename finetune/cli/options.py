"""Options that several verbs have in common."""

from typing import Annotated, Literal

import typer

Processes = Annotated[
    int, typer.Option("--num-processes", min=1, metavar="N", help="Processes here, one per GPU.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other value. May be repeated."),
]
Precision = Annotated[Literal["auto", "fp32", "bf16"] | None, typer.Option(help="Number format.")]

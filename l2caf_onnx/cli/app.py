"""The typer application and its commands."""

from __future__ import annotations

from typing import Annotated

import typer

from .attend import attend
from .baseline import baseline
from .bisect import bisect
from .check import check
from .compare import compare
from .cut import cut
from .eval import evaluate
from .inspect import inspect

app = typer.Typer(
    name="l2caf-onnx",
    help="A debugger for exported neural networks: what at a tensor decides the output, proved by onnxruntime.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(inspect)
app.command()(cut)
app.command()(attend)
app.command("eval")(evaluate)
app.command()(baseline)
app.command()(check)
app.command()(compare)
app.command()(bisect)


def _version(asked: bool) -> None:
    if asked:
        from l2caf_onnx import __version__

        typer.echo(f"l2caf-onnx {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """A debugger for exported neural networks: what at a tensor decides the output, proved by onnxruntime."""

"""All commands."""

from __future__ import annotations

import typer

from termwise.cli import bench, demo, deployments, evaluate, health, indices, models, pipelines, search, serve
from termwise.cli.connect import Commands

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Termwise: learned sparse retrieval. Deploy sparse encoders, index weighted tokens, search.",
)
app.command(
    "serve", context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False
)(serve.serve)
app.command("health")(health.health)
app.add_typer(models.app, name="models")
app.add_typer(deployments.app, name="deployments")
app.add_typer(pipelines.app, name="pipelines")
app.add_typer(indices.app, name="indices")
app.command("search")(search.search)
app.command("expand")(search.expand)
app.add_typer(bench.app, name="bench")
app.command("eval")(evaluate.evaluate)
app.command("demo")(demo.demo)

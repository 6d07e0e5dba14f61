"""`python -m termwise.cli`: the same as `termwise`."""

from termwise.cli.main import app

app()

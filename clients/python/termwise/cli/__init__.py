"""The `termwise` command."""

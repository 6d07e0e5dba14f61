"""`termwise models`."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads it from the annotation
from typing import Annotated

import typer

from termwise.cli.connect import connected
from termwise.cli.options import DEFAULT_ADDRESS, JSON_HELP, Address, Format, FormatOption, read_json
from termwise.cli.output import bytes_progress, print_done, print_list, print_one
from termwise.cli.statistics import print_stats
from termwise.client import Client, FailedPreconditionError, NotFoundError, UploadProgress
from termwise.v1.trained_models_pb2 import DownloadProgress, TrainedModel

app = typer.Typer(no_args_is_help=True, help="Store, download, upload and delete sparse encoders.")

ModelId = Annotated[str, typer.Argument(metavar="MODEL_ID", help="The model's id, such as .splade_tiny.")]

Names = Annotated[
    list[str] | None, typer.Argument(metavar="[NAME]...", help='Ids and aliases; "*" stands for any characters.')
]


def state_name(state: TrainedModel.State.ValueType) -> str:
    """Give a state as people say it: "downloading"."""
    return TrainedModel.State.Name(state).removeprefix("STATE_").lower()


@app.command("put")
def put(  # noqa: PLR0913 - one option a setting
    model_id: ModelId,
    source_uri: Annotated[
        str, typer.Option(help="pypi://, hf://, https:// or file:///path; without one its files are uploaded.")
    ] = "",
    sha256: Annotated[str, typer.Option(help="Expected checksum in hex.")] = "",
    description: Annotated[str, typer.Option(help="Free text.")] = "",
    tag: Annotated[list[str] | None, typer.Option(help="A free label; may be repeated.")] = None,
    inference_config: Annotated[str | None, typer.Option(help=f"An InferenceConfig: {JSON_HELP}")] = None,
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until the download has ended, and show it.")] = False,
    address: Address = DEFAULT_ADDRESS,
    style: FormatOption = Format.TABLE,
) -> None:
    """Store a model and start its download."""
    config = read_json(inference_config, "--inference-config")
    with connected(address) as client:
        model = client.models.put(
            model_id,
            source_uri=source_uri,
            sha256=sha256,
            description=description,
            tags=tag or (),
            inference_config=config,
        )
        if wait:
            model = download_with_bar(client, model_id)
    print_one(model, style)


@app.command("get")
def get(model_id: ModelId, address: Address = DEFAULT_ADDRESS, style: FormatOption = Format.TABLE) -> None:
    """Show one model."""
    with connected(address) as client:
        print_one(client.models.get(model_id), style)


@app.command("list")
def list_all(
    names: Names = None,
    tag: Annotated[list[str] | None, typer.Option(help="Only models with this label; may be repeated.")] = None,
    address: Address = DEFAULT_ADDRESS,
    style: FormatOption = Format.TABLE,
) -> None:
    """List models: all, or those that are named."""
    with connected(address) as client:
        models = client.models.list(model_ids=names or (), tags=tag or ())
    columns = (
        ("MODEL", lambda model: model.model_id),
        ("STATE", lambda model: state_name(model.state)),
        ("ARCHITECTURE", lambda model: model.architecture),
        ("BYTES", lambda model: f"{model.size_bytes:,}" if model.size_bytes else ""),
        ("ALIASES", lambda model: ", ".join(model.aliases)),
        ("SOURCE", lambda model: model.source_uri),
        ("ERROR", lambda model: model.error),
    )
    print_list(models, columns, style)


@app.command("delete")
def delete(
    model_id: ModelId,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Even where it is in use; its deployments are stopped.")
    ] = False,
    address: Address = DEFAULT_ADDRESS,
    style: FormatOption = Format.TABLE,
) -> None:
    """Delete a model, its files and its aliases."""
    with connected(address) as client:
        client.models.delete(model_id, force=force)
    print_done(f'Model "{model_id}" is deleted.', {"model_id": model_id, "deleted": True}, style)


@app.command("download")
def download(model_id: ModelId, address: Address = DEFAULT_ADDRESS, style: FormatOption = Format.TABLE) -> None:
    """Start or join a model's download and show its progress."""
    with connected(address) as client:
        print_one(download_with_bar(client, model_id), style)


@app.command("cancel")
def cancel(model_id: ModelId, address: Address = DEFAULT_ADDRESS, style: FormatOption = Format.TABLE) -> None:
    """End a model's download."""
    with connected(address) as client:
        client.models.cancel_download(model_id)
    print_done(f'The download of "{model_id}" is cancelled.', {"model_id": model_id, "cancelled": True}, style)


@app.command("upload")
def upload(
    model_id: ModelId,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder with the model's files.")],
    address: Address = DEFAULT_ADDRESS,
    style: FormatOption = Format.TABLE,
) -> None:
    """Send a model's files to the server; what it holds of them already is not sent again.

    A model that is not stored yet is stored first, without a source.
    """
    with connected(address) as client:
        try:
            client.models.get(model_id)
        except NotFoundError:
            client.models.put(model_id)
        model = upload_with_bar(client, model_id, folder)
    print_one(model, style)


@app.command("alias")
def alias(
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="The other name. It may not end in a digit.")],
    model_id: ModelId,
    *,
    reassign: Annotated[bool, typer.Option("--reassign", help="Take it from another model that has it.")] = False,
    address: Address = DEFAULT_ADDRESS,
    style: FormatOption = Format.TABLE,
) -> None:
    """Give a model another name."""
    with connected(address) as client:
        model = client.models.put_alias(alias, model_id, reassign=reassign)
    fields = {"alias": alias, "model_id": model.model_id}
    print_done(f'"{alias}" is a name of model "{model.model_id}".', fields, style)


@app.command("unalias")
def unalias(
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="The name.")],
    model_id: Annotated[str, typer.Option(help="Only where it is this model's.")] = "",
    address: Address = DEFAULT_ADDRESS,
    style: FormatOption = Format.TABLE,
) -> None:
    """Take a model's other name away."""
    with connected(address) as client:
        client.models.delete_alias(alias, model_id=model_id)
    print_done(f'"{alias}" is no name of a model any more.', {"alias": alias, "deleted": True}, style)


@app.command("stats")
def stats(names: Names = None, address: Address = DEFAULT_ADDRESS, style: FormatOption = Format.TABLE) -> None:
    """Show what models and their deployments did since the server's start."""
    with connected(address) as client:
        print_stats(client.models.stats(model_ids=names or ()), style)


def download_with_bar(client: Client, model_id: str) -> TrainedModel:
    """Download a model with a progress bar. Raises FailedPreconditionError where it failed."""
    last = DownloadProgress()
    with bytes_progress() as progress:
        task = progress.add_task(f"downloading {model_id}", total=None)
        for last in client.models.download(model_id):
            progress.update(task, completed=last.bytes_done, total=last.bytes_total or None)
    model = client.models.get(model_id)
    if last.state != TrainedModel.STATE_READY:
        raise FailedPreconditionError(f'Model "{model_id}" is {state_name(last.state)}: {model.error}')
    return model


def upload_with_bar(client: Client, model_id: str, folder: Path) -> TrainedModel:
    """Upload a folder to a model that is stored without a source, with a progress bar."""
    with bytes_progress() as progress:
        task = progress.add_task(f"uploading {model_id}", total=None)

        def show(step: UploadProgress) -> None:
            progress.update(task, completed=step.bytes_done, total=step.bytes_total)

        return client.models.upload(model_id, folder, on_progress=show)

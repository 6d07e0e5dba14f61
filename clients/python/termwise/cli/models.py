"""`termwise models`."""

from __future__ import annotations

from typing import Annotated

import typer

from termwise.cli.connect import connected
from termwise.cli.options import DEFAULT_ADDRESS, JSON_HELP, Address, Format, FormatOption, read_json
from termwise.cli.output import bytes_progress, print_done, print_list, print_one
from termwise.client import Client, FailedPreconditionError
from termwise.v1.trained_models_pb2 import DownloadProgress, TrainedModel

app = typer.Typer(no_args_is_help=True, help="Store, download and delete sparse encoders.")

ModelId = Annotated[str, typer.Argument(metavar="MODEL_ID", help="The model's id, such as .splade_tiny.")]


def state_name(state: TrainedModel.State.ValueType) -> str:
    """Give a state as people say it: "downloading"."""
    return TrainedModel.State.Name(state).removeprefix("STATE_").lower()


@app.command("put")
def put(  # noqa: PLR0913 - one option a setting
    model_id: ModelId,
    source_uri: Annotated[str, typer.Option(help="pypi://name@version/path or file:///path.")] = "",
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
def list_all(address: Address = DEFAULT_ADDRESS, style: FormatOption = Format.TABLE) -> None:
    """List models."""
    with connected(address) as client:
        models = client.models.list()
    columns = (
        ("MODEL", lambda model: model.model_id),
        ("STATE", lambda model: state_name(model.state)),
        ("ARCHITECTURE", lambda model: model.architecture),
        ("BYTES", lambda model: f"{model.size_bytes:,}" if model.size_bytes else ""),
        ("SOURCE", lambda model: model.source_uri),
        ("ERROR", lambda model: model.error),
    )
    print_list(models, columns, style)


@app.command("delete")
def delete(model_id: ModelId, address: Address = DEFAULT_ADDRESS, style: FormatOption = Format.TABLE) -> None:
    """Delete a model and its files."""
    with connected(address) as client:
        client.models.delete(model_id)
    print_done(f'Model "{model_id}" is deleted.', {"model_id": model_id, "deleted": True}, style)


@app.command("download")
def download(model_id: ModelId, address: Address = DEFAULT_ADDRESS, style: FormatOption = Format.TABLE) -> None:
    """Start or join a model's download and show its progress."""
    with connected(address) as client:
        print_one(download_with_bar(client, model_id), style)


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

"""docs/air-gapped.md, run as it is printed, with a real nginx; and what happens where the repository misbehaves."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from elser_package import PACKAGE_ID, elser_package, tiny_package
from termwise.v1 import trained_models_pb2 as pb
from web_server import WebServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAGE = (Path(__file__).parents[2] / "docs" / "air-gapped.md").read_text(encoding="utf-8")
MODEL = f".{PACKAGE_ID}"
ORIGINAL = ".splade_tiny"
ARCHIVE = f"/models/{PACKAGE_ID}.pt"
TEXTS = ["How is salmon farmed?", "Pluto was a planet until 2006.", "a", "", "token " * 600]


class Recipe:
    """The page's blocks, with the places and addresses of this test in them."""

    def __init__(self, place: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.web = f"127.0.0.1:{free.getsockname()[1]}"
        self.place = place
        self.termwise = ""

    def blocks(self, section: str, language: str) -> list[str]:
        """Give the blocks of a language in a section."""
        (text,) = re.findall(rf"^##+ {section}\n(.*?)(?=^##+ |\Z)", PAGE, re.MULTILINE | re.DOTALL)
        found = re.findall(rf"^ *```{language}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
        return [self.fill(block) for block in found]

    def fill(self, text: str) -> str:
        return text.replace("/path/to", str(self.place)).replace("127.0.0.1:8080", self.web)

    def write(self, name: str, text: str) -> Path:
        (self.place / name).write_text(text)
        return self.place / name

    def run(self, command: str) -> str:
        """Run one command of the page."""
        program, *words = shlex.split(command)
        if program == "termwise":
            words += ["--address", self.termwise]
            program = str(Path(sys.executable).parent / "termwise")
        elif program == "nginx":
            program = nginx_program()
        done = subprocess.run([program, *words], capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def nginx_program() -> str:
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/sbin")
    if found is None:
        assert not os.environ.get("NGINX_REQUIRED"), "there is one, as .ci/run found"
        pytest.skip("there is no nginx")
    return found


@pytest.fixture
def recipe() -> Iterator[Recipe]:
    # nginx's workers are nobody's where it is started by root, and pytest's own folders are closed to them.
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        place.chmod(0o755)
        shutil.copytree(elser_package(), place / "models")
        (place / "models").chmod(0o755)
        yield Recipe(place)


@pytest.fixture
def nginx(recipe: Recipe) -> Iterator[Callable[[str], None]]:
    """Start nginx with a configuration of the page."""
    running: list[str] = []

    def start(configuration: str) -> None:
        nginx_program()
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        scratch = "".join(f"{kind}_temp_path {recipe.place}/{kind};" for kind in kinds)  # for whoever is not root
        recipe.write("models.conf", configuration.replace("http {", f"http {{ {scratch}"))
        recipe.run(f"nginx -c {recipe.place}/models.conf")
        running.append(f"nginx -c {recipe.place}/models.conf -s stop")

    yield start
    for command in running:
        if (recipe.place / "models.pid").exists():
            recipe.run(command)


def expand(server: Any, deployment: str) -> list[dict[str, float]]:
    request = pb.InferRequest(deployment_id=deployment, texts=TEXTS, input_type="INPUT_TYPE_DOCUMENT")
    results = server.models.Infer(request, timeout=60).results
    return [dict(zip(each.vector.tokens, each.vector.weights, strict=True)) for each in results]


def assert_equal(server: Any) -> None:
    """Compare the package's vectors with those of the model that it was made of."""
    server.models.StartDeployment(pb.StartDeploymentRequest(model_id=ORIGINAL), timeout=120)
    for text, mine, original in zip(TEXTS, expand(server, "for_search"), expand(server, ORIGINAL), strict=True):
        assert all(abs(mine.get(token, 0) - original.get(token, 0)) <= 1e-4 for token in mine | original)
        assert bool(original) == bool(text)


def test_the_recipe_with_a_web_server(launch: Any, fresh: Path, recipe: Recipe, nginx: Callable[[str], None]) -> None:
    (configuration,) = recipe.blocks("From a web server", "nginx")
    start, check, _, use, stop = recipe.blocks("From a web server", "shell")
    assert start.strip() == f"nginx -c {recipe.place}/models.conf"
    nginx(configuration)
    assert f'"{PACKAGE_ID}"' in recipe.run(check)
    (settings,) = recipe.blocks("From a web server", "toml")
    config = recipe.write("termwise.toml", settings)
    server = launch(fresh, "--config", str(config), "--precision", "float32")
    recipe.termwise = server.address
    for command in use.strip().splitlines():
        shown = recipe.run(command)
    assert "salmon" in shown
    recipe.run(stop)
    model = server.models.GetTrainedModel(pb.GetTrainedModelRequest(model_id=MODEL), timeout=10).trained_model
    assert model.source_uri == f"http://{recipe.web}/{PACKAGE_ID}.metadata.json"
    assert (model.description, list(model.tags)) == ("A sparse encoder", ["tests"])
    assert_equal(server)
    assert server.stop() == 0


def test_the_recipe_with_a_folder(launch: Any, blank: Path, recipe: Recipe) -> None:
    shutil.rmtree(recipe.place / "models")
    tiny_package(recipe.place / "models")
    (settings,) = recipe.blocks("From a folder", "toml")
    config = recipe.write("termwise.toml", settings)
    server = launch(blank, "--config", str(config))
    put = pb.PutTrainedModelRequest(model_id=MODEL, wait_for="WAIT_FOR_READY")
    model = server.models.PutTrainedModel(put, timeout=60).trained_model
    assert model.source_uri == f"file://{recipe.place}/models/{PACKAGE_ID}.metadata.json"
    start = pb.StartDeploymentRequest(model_id=MODEL, deployment_id="for_search")
    server.models.StartDeployment(start, timeout=120)
    infer = pb.InferRequest(deployment_id="for_search", texts=["salmon farm salmon"])
    (result,) = server.models.Infer(infer, timeout=60).results
    assert dict(zip(result.vector.tokens, result.vector.weights, strict=True)) == {"salmon": 1.5, "farm": 1.25}
    assert server.stop() == 0


def test_the_recipe_with_a_password(launch: Any, blank: Path, recipe: Recipe, nginx: Callable[[str], None]) -> None:
    shutil.rmtree(recipe.place / "models")
    tiny_package(recipe.place / "models")
    (configuration,) = recipe.blocks("From a web server", "nginx")
    (closed,) = recipe.blocks("With a password", "nginx")
    nginx(configuration.replace("listen", f"{closed} listen"))
    recipe.write("htpasswd", "termwise:{PLAIN}hunter2\n").chmod(0o644)
    recipe.write("password", "hunter2\n")
    settings = [*recipe.blocks("From a web server", "toml"), *recipe.blocks("With a password", "toml")]
    config = recipe.write("termwise.toml", "".join(settings))

    server = launch(blank, "--config", str(config), "--log-level", "debug")
    put = pb.PutTrainedModelRequest(model_id=MODEL, wait_for="WAIT_FOR_READY")
    model = server.models.PutTrainedModel(put, timeout=60).trained_model
    assert model.state == pb.TrainedModel.STATE_READY, model.error

    recipe.write("htpasswd", "termwise:{PLAIN}changed\n")
    server.models.DeleteTrainedModel(pb.DeleteTrainedModelRequest(model_id=MODEL), timeout=60)
    with pytest.raises(grpc.RpcError, match="HTTP 401") as caught:
        server.models.PutTrainedModel(put, timeout=60)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert server.stop() == 0
    assert "hunter2" not in f"{server.log.read_text()}{model}{caught.value}"


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer({f"/models/{file.name}": file.read_bytes() for file in elser_package().iterdir()}) as server:
        yield server


def follow(server: Any) -> Iterator[Any]:
    for answer in server.models.DownloadTrainedModel(pb.DownloadTrainedModelRequest(model_id=MODEL), timeout=60):
        yield answer.progress


def test_a_killed_server_goes_on_and_fetches_little_twice(launch: Any, blank: Path, web: WebServer) -> None:
    size = len(web.files[ARCHIVE])
    web.hold_after = size // 2
    flags = ("--model-repository", f"{web.url}/models")
    server = launch(blank, *flags)
    server.models.PutTrainedModel(pb.PutTrainedModelRequest(model_id=MODEL), timeout=30)
    assert any(step.bytes_done > 0.49 * size for step in follow(server))  # nearly all that was sent has come
    server.kill()
    web.go.set()

    server = launch(blank, *flags)
    steps = [(step.state, step.bytes_done, step.bytes_total) for step in follow(server)]
    assert steps[-1] == (pb.TrainedModel.STATE_READY, size, size)
    assert web.sent[ARCHIVE] < 1.1 * size
    assert [entry.name for entry in (blank / "models").iterdir()] == [MODEL]
    assert server.stop() == 0


def test_a_download_that_failed_or_was_cancelled_is_tried_again(launch: Any, blank: Path, web: WebServer) -> None:
    good = web.files[ARCHIVE]
    web.files[ARCHIVE] = good[:-1] + bytes([good[-1] ^ 1])
    server = launch(blank, "--model-repository", f"{web.url}/models")
    put = pb.PutTrainedModelRequest(model_id=MODEL, wait_for="WAIT_FOR_READY")
    model = server.models.PutTrainedModel(put, timeout=60).trained_model
    assert model.state == pb.TrainedModel.STATE_FAILED
    assert "has SHA-256" in model.error
    web.files[ARCHIVE] = good
    web.hold_after = web.all_sent + len(good) // 2
    assert any(step.bytes_done > 0.4 * len(good) for step in follow(server))
    server.models.CancelDownload(pb.CancelDownloadRequest(model_id=MODEL), timeout=10)
    assert list((blank / "models").iterdir()) == []
    web.go.set()
    assert [step.state for step in follow(server)][-1] == pb.TrainedModel.STATE_READY

    with pytest.raises(grpc.RpcError, match=f"The model repository {web.url}/models has no such package") as caught:
        server.models.PutTrainedModel(pb.PutTrainedModelRequest(model_id=".elser_model_2"), timeout=30)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    web.__exit__(None, None, None)
    with pytest.raises(grpc.RpcError, match=f"The model repository {web.url}/models/ cannot be asked") as caught:
        server.models.PutTrainedModel(pb.PutTrainedModelRequest(model_id=".elser_model_2"), timeout=30)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert server.stop() == 0


def test_sources_outside_the_folder_of_models_are_refused(launch: Any, blank: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    tiny_package(models / "good")
    secret = tiny_package(tmp_path / "secret")
    (models / "link").symlink_to(secret)
    server = launch(blank, "--model-folder", str(models))

    def put(model_id: str, path: str) -> Any:
        request = pb.PutTrainedModelRequest(model_id=model_id, source_uri=f"file://{path}", wait_for="WAIT_FOR_READY")
        return server.models.PutTrainedModel(request, timeout=60).trained_model

    assert put("good", f"{models}/good").state == pb.TrainedModel.STATE_READY
    for path in (str(secret), f"{models}/../secret", f"{models}/%2e%2e/secret", "/etc"):
        with pytest.raises(grpc.RpcError) as caught:
            put("bad", path)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    model = put("linked", f"{models}/link")
    assert model.state == pb.TrainedModel.STATE_FAILED
    assert "leads out of the folder" in model.error
    assert server.stop() == 0

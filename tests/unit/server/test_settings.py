from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from termwise.server import settings as module
from termwise.server.settings import (
    Settings,
    SettingsError,
    load_settings,
    parse_settings,
    reference,
    unknown_variables,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("TERMWISE_"):
            monkeypatch.delenv(name)


def test_the_manual_is_that_of_the_code() -> None:
    text = (ROOT / "docs" / "settings.md").read_text("utf-8")
    assert text == reference(), "run: python -m termwise.server.settings > docs/settings.md"


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_every_setting_is_documented_and_typed(name: str) -> None:
    field = Settings.model_fields[name]
    assert field.description
    assert field.description.endswith(".")
    assert f"`{name}`" in reference()
    assert module._values(name)


def test_defaults() -> None:
    settings = load_settings({})
    assert (settings.host, settings.port, settings.storage) == ("127.0.0.1", 50051, "tantivy")
    assert settings.max_message_bytes == 32 * 1024 * 1024


def test_a_flag_wins_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "termwise.toml"
    file.write_text('port = 1\nhost = "0.0.0.0"\nlog_level = "debug"\n')
    monkeypatch.setenv("TERMWISE_PORT", "2")
    monkeypatch.setenv("TERMWISE_HOST", "::1")
    settings = parse_settings(["--config", str(file), "--port", "3"], program="x")
    assert (settings.port, settings.host, settings.log_level) == (3, "::1", "debug")


def test_the_environment_may_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.toml").write_text("grace_seconds = 1.5\n")
    monkeypatch.setenv("TERMWISE_CONFIG", str(tmp_path / "t.toml"))
    assert parse_settings([], program="x").grace_seconds == 1.5


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--port", "65536"),
        ("--port", "tcp://10.0.0.1:50051"),
        ("--max-message-bytes", "1"),
        ("--grace-seconds", "-1"),
        ("--precision", "float16"),
        ("--log-level", "loud"),
        ("--host", ""),
        ("--switch-interval-ms", "0"),
        ("--grace-seconds", "nan"),
    ],
)
def test_a_bad_value_is_named_with_its_flag_and_variable(flag: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings([flag, value], program="x")
    assert flag in str(caught.value)
    assert "TERMWISE_" + flag[2:].replace("-", "_").upper() in str(caught.value)
    assert value in str(caught.value)


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings({}, file)
    file.write_text("port = ")
    with pytest.raises(SettingsError, match="no TOML"):
        load_settings({}, file)
    file.write_text("prot = 1")
    with pytest.raises(SettingsError, match='did you mean "port"'):
        load_settings({}, file)
    file.write_text('port = "many"')
    with pytest.raises(SettingsError, match="--port"):
        load_settings({}, file)


def test_a_variable_that_is_no_setting_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERMWISE_GRACE_SECOND", "1")
    monkeypatch.setenv("TERMWISE_PORT", "1")
    (sentence,) = unknown_variables()
    assert sentence == 'TERMWISE_GRACE_SECOND is no setting; did you mean "grace_seconds"?'


@given(st.integers())
def test_ports(port: int) -> None:
    try:
        assert load_settings({"port": port}).port == port
    except SettingsError:
        assert not 0 <= port <= 65_535


def test_an_unknown_level_of_the_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("off", "avx2", "avx512", "avx512bf16", ""):
        monkeypatch.setenv("TERMWISE_KERNEL", name)
        load_settings({})
    monkeypatch.setenv("TERMWISE_KERNEL", "axv2")
    with pytest.raises(SettingsError, match='TERMWISE_KERNEL cannot be "axv2"'):
        load_settings({})


REPOSITORIES = [
    ("ftp://host/models", "must begin with https://"),
    ("host/models", "must begin with https://"),
    ("https://", "names no host"),
    ("http://:80/models", "names no host"),
    ("http://host:99999/", "no URL"),
    ("https://host/models?key=1", "has a query"),
    ("https://host/models#1", "has a query or a fragment"),
    ("https://host/a/../b", 'holds ".."'),
    ("https://host/a/%2e%2e/b", 'holds ".."'),
    ("https://host/a b", "holds a space"),
    ("file://host/models", "must be file:///folder"),
    ("file:models", "must begin with https://"),
    ("file://models", "must be file:///folder"),
]


@pytest.mark.parametrize(("value", "why"), REPOSITORIES)
def test_a_repository_that_is_none_is_told_why(value: str, why: str) -> None:
    with pytest.raises(SettingsError, match=why) as caught:
        parse_settings(["--model-repository", value, "--model-folder", "/"], program="x")
    assert "TERMWISE_MODEL_REPOSITORY" in str(caught.value)


@pytest.mark.parametrize(
    "value", ["http://me:hunter2@host/models", "https://hunter2@host", "http://hunter2@", "hunter2"]
)
def test_a_password_in_the_wrong_place_is_in_no_message(value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings(["--model-repository", value], program="x")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(SettingsError) as caught:
        parse_settings(["--model-proxy", value.replace("http", "socks5")], program="x")
    assert "hunter2" not in str(caught.value)


def test_secrets_are_in_no_text_of_the_settings() -> None:
    secrets = {"model_repository_password": "hunter2", "model_proxy": "http://me:hunter2@proxy:3128"}
    settings = load_settings(secrets)
    assert settings.model_proxy.get_secret_value().endswith("@proxy:3128")
    assert "hunter2" not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"


def test_one_password_is_enough() -> None:
    with pytest.raises(SettingsError, match="model_repository_password is set too"):
        load_settings({"model_repository_password": "hunter2", "model_repository_password_file": "/x"})


@pytest.mark.parametrize("folder", ["", "/srv/other", "/srv/models/below"])
def test_a_repository_of_files_lies_in_the_folder_of_models(folder: str) -> None:
    with pytest.raises(SettingsError, match=r"TERMWISE_MODEL_FOLDER.*must lie in this folder"):
        load_settings({"model_repository": "file:///srv/models", "model_folder": folder})
    assert load_settings({"model_repository": "file:///srv/models/", "model_folder": "/srv/models"}).model_folder


def test_an_empty_path_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERMWISE_MODEL_FOLDER", "")
    monkeypatch.setenv("TERMWISE_PORT_FILE", "")
    assert (load_settings({}).model_folder, load_settings({}).port_file) == (None, None)


@given(
    st.text() | st.text().map("https://{}".format) | st.from_regex(r"https?://[a-z@:./?#%\\[\\]0-9 ]*", fullmatch=True)
)
def test_any_text_is_a_repository_or_refused(value: str) -> None:
    try:
        kept = load_settings({"model_repository": value}).model_repository
    except SettingsError as error:
        assert "model_repository" in str(error)  # noqa: PT017
    else:
        assert kept == value
        assert not value or value.startswith(("http://", "https://"))
        assert "@" not in value.partition("://")[2].partition("/")[0]

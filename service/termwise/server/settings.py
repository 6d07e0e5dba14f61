"""Settings of the server: each has one home, a type, a unit in its name, a default, and a sentence that documents it.

A setting is read from its flag (`--max-message-bytes`), else from the environment (`TERMWISE_MAX_MESSAGE_BYTES`), else
from the configuration file (`max_message_bytes`, TOML), else it has its default. This module writes `docs/settings.md`.
"""

from __future__ import annotations

import argparse
import difflib
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import unquote, urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import ValidationInfo

PREFIX: Final = "TERMWISE_"
CONFIG: Final = f"{PREFIX}CONFIG"
"""Environment variable that names the configuration file; its flag is `--config`."""
KERNEL: Final = f"{PREFIX}KERNEL"
"""Environment variable for who suspects the encoder's kernel: "off", or the highest level of instructions to use."""
KERNEL_LEVELS: Final = ("avx512bf16", "avx512", "avx2")
"""Levels of instructions that the encoder's kernel may use, the best one first."""

_MIB: Final = 1024 * 1024


class SettingsError(ValueError):
    """A setting that cannot be used; the message names it."""


class Settings(BaseSettings):
    """What an operator may change. Values are checked; `load_settings` makes one."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, validate_default=True)

    data: Path = Field(Path("data"), description="Folder of everything that outlives a restart. One server at a time.")
    host: str = Field(
        "127.0.0.1", min_length=1, description="Address to listen on. There are no keys yet: widen it with care."
    )
    port: int = Field(50051, ge=0, le=65535, description="TCP port to listen on. 0: any free one.")
    port_file: Path | None = Field(
        None, description="File that gets the port, in digits, once the server listens; for scripts. Empty: none."
    )
    model_repository: str = Field(
        "",
        description="Where packaged models are looked up before the built-in ones: an https://, http:// or file:// URL "
        "of a folder. A file:// one lies in model_folder. Empty: nowhere.",
    )
    model_repository_username: str = Field(
        "", description="User name for model_repository and what lies below it, by HTTP basic authentication."
    )
    model_repository_password: SecretStr = Field(
        SecretStr(""), description="Its password. A flag's value can be seen by others on the machine; prefer the file."
    )
    model_repository_password_file: Path | None = Field(
        None, description="File whose first line is that password. Empty: none."
    )
    model_proxy: SecretStr = Field(
        SecretStr(""),
        description="URL of a proxy for http(s) models, such as http://user:password@proxy:3128. Empty: as the "
        "environment's HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY say.",
    )
    model_folder: Path | None = Field(
        None, description="Folder that file:// models must lie in. Empty: file:// models are refused."
    )
    model_download_streams: int = Field(
        5, ge=1, le=32, description="Parts of one file that are downloaded side by side."
    )
    model_downloads_at_once: int = Field(
        4, ge=1, le=64, description="Models that are downloaded side by side; later ones wait their turn."
    )
    model_memory_bytes: int = Field(
        0,
        ge=0,
        le=1 << 50,
        description="Most memory that all deployments may take together, by estimate, in bytes; a start beyond it is "
        "refused. 0: three quarters of the machine's.",
    )
    storage: str = Field(
        "tantivy", min_length=1, description="Storage backend of indices that name none: an entry point's name."
    )
    max_message_bytes: int = Field(
        32 * _MIB, ge=_MIB, le=1024 * _MIB, description="Longest request and longest answer, in bytes."
    )
    keepalive_seconds: float = Field(
        60.0, ge=10, le=7200, description="After so many seconds of silence a connection is probed, and closed if dead."
    )
    grace_seconds: float = Field(
        20.0, ge=0, le=3600, description="How long running calls may go on after SIGTERM, in seconds."
    )
    bulk_outstanding_operations: int = Field(
        1024,
        ge=1,
        le=65_536,
        description="Operations of one bulk stream that may wait for their acknowledgement; beyond, it is slowed down.",
    )
    search_threads: int = Field(
        0, ge=0, le=1024, description="Threads that search and read, apart from writes. 0: one a processor, 2 at least."
    )
    precision: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto",
        description="Arithmetic of deployments that ask for none. auto: bfloat16 where the processor has it, else "
        "float32.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where encoders compute. auto: a CUDA device where torch finds one, else the processor."
    )
    exact_path_memory_bytes: int = Field(
        0,
        ge=0,
        le=1 << 50,
        description="Memory that sparse vectors may stay in for fast, exact search, in bytes. Indices beyond it, the "
        "least recently searched first, are read from their files as searches need them. 0: half of the machine's.",
    )
    exact_path_mapped_bytes: int = Field(
        0,
        ge=0,
        le=1 << 50,
        description="Most bytes of sparse vectors that are mapped into memory. An index beyond that is searched "
        "slower until the server starts again, and says how far off its scores may be. 0: four times "
        "exact_path_memory_bytes.",
    )
    switch_interval_ms: float = Field(
        0.5,
        gt=0,
        le=100,
        description="Longest time in milliseconds that one Python thread keeps the others waiting. Python's own is 5; "
        "less keeps answers quick beside busy encoders.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="Form of log lines on standard error. auto: console on a terminal, JSON otherwise."
    )

    @field_validator("port_file", "model_repository_password_file", "model_folder", mode="before")
    @classmethod
    def _is_none_where_empty(cls, value: object) -> object:
        return value or None

    @field_validator("model_repository")
    @classmethod
    def _is_repository(cls, value: str) -> str:
        return value if not value else _repository(value)

    @field_validator("model_repository_password_file")
    @classmethod
    def _is_one_password(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        password = info.data.get("model_repository_password")
        if value is not None and password and password.get_secret_value():
            raise ValueError("model_repository_password is set too; give one of them")
        return value

    @field_validator("model_proxy")
    @classmethod
    def _is_proxy(cls, value: SecretStr) -> SecretStr:
        try:
            parts = urlsplit(value.get_secret_value())
            good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if value.get_secret_value() and not good:
            raise ValueError("it is no http:// or https:// URL of a proxy")
        return value

    @field_validator("model_folder")
    @classmethod
    def _holds_repository(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        repository = info.data.get("model_repository", "")
        if repository.startswith("file:"):
            place = Path(unquote(urlsplit(repository).path))
            if value is None or not place.is_relative_to(value.absolute()):
                raise ValueError(f"model_repository is {repository}, which must lie in this folder")
        return value


_REPOSITORY: Final = "give an https://, http:// or file:// URL such as https://host/models"


def _repository(value: str) -> str:
    """Check a repository's URL; what it may hold by mistake, a password, is in no message."""
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise ValueError(f"it is no URL; {_REPOSITORY}") from None
    if not value.isprintable() or any(letter in value for letter in " \\"):
        raise ValueError(f"it holds a space, a backslash or a control character; {_REPOSITORY}")
    if not value.startswith(("http://", "https://", "file://")):
        raise ValueError(f"it must begin with https://, http:// or file://; {_REPOSITORY}")
    if "@" in parts.netloc:
        raise ValueError("it holds a user name; set model_repository_username and model_repository_password instead")
    if "?" in value or "#" in value:
        raise ValueError("it has a query or a fragment; give the folder's URL alone")
    if ".." in unquote(parts.path).split("/"):
        raise ValueError('it holds ".."; give the folder\'s own URL')
    if parts.scheme == "file":
        if parts.netloc not in {"", "localhost"} or not parts.path.startswith("/"):
            raise ValueError("it must be file:///folder, with an absolute path")
    elif not parts.hostname or port == 0:
        raise ValueError(f"it names no host; {_REPOSITORY}")
    return value


def load_settings(flags: Mapping[str, Any], config: Path | None = None) -> Settings:
    """Read settings: `flags` by name (None: not given), then the environment, then the file.

    `config` is the configuration file; without it `TERMWISE_CONFIG` names one, if any.

    Raises:
        SettingsError: a value that cannot be used, or a file that cannot be read; the setting is named.

    """
    path = config or (Path(named) if (named := os.environ.get(CONFIG)) else None)
    file = _read(path) if path else {}
    allowed_kernels()

    class Sourced(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            del dotenv_settings, file_secret_settings
            return init_settings, env_settings, _FileSource(settings_cls, file)

    try:
        return Sourced(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        raise SettingsError(" ".join(_sentence(problem) for problem in error.errors())) from error


class _FileSource(PydanticBaseSettingsSource):
    """Gives what was read from the configuration file."""

    def __init__(self, settings_cls: type[BaseSettings], values: Mapping[str, Any]) -> None:
        super().__init__(settings_cls)
        self._values = values

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        del field
        return self._values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return dict(self._values)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f'Configuration file "{path}" cannot be read: {error.strerror}.') from error
    except ValueError as error:
        raise SettingsError(f'Configuration file "{path}" is no TOML: {error}.') from error
    for name in values:
        if name not in Settings.model_fields:
            raise SettingsError(f'Configuration file "{path}" has an unknown setting "{name}"{_nearest(name)}')
    return values


def _sentence(problem: Any) -> str:
    name = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        return f'There is no setting "{name}"{_nearest(name)}'
    shown = "" if name in _UNSHOWN else f' cannot be "{str(problem["input"])[:80]}"'
    why = problem["msg"].removeprefix("Value error, ")
    return f'Setting "{name}" ({_flag(name)}, {PREFIX}{name.upper()}){shown}: {why}.'


_UNSHOWN: Final = frozenset(
    {
        "model_repository",  # it may hold a password by mistake
        *(name for name, field in Settings.model_fields.items() if field.annotation is SecretStr),
    }
)
"""Settings whose values are in no message."""


def allowed_kernels() -> tuple[str, ...]:
    """Give the levels of instructions that the encoder's kernel may use, the best one first; none where it is off.

    Raises:
        SettingsError: the environment names a level that is none.

    """
    switch = os.environ.get(KERNEL, "")
    if switch in {"", "off"}:
        return () if switch else KERNEL_LEVELS
    if switch not in KERNEL_LEVELS:
        names = ", ".join(("off", *reversed(KERNEL_LEVELS)))
        raise SettingsError(f'{KERNEL} cannot be "{switch[:80]}"; use one of {names}, or leave it out.')
    return KERNEL_LEVELS[KERNEL_LEVELS.index(switch) :]


def unknown_variables() -> list[str]:
    """Name the variables of the environment that look like settings and are none, each as a sentence."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields} | {CONFIG, KERNEL, f"{PREFIX}ADDRESS"}
    return [
        f"{name} is no setting{_nearest(name.removeprefix(PREFIX).lower())}"
        for name in sorted(os.environ)
        if name.startswith(PREFIX) and name not in known
    ]


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, Settings.model_fields, n=1)
    return f'; did you mean "{near[0]}"?' if near else "."


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each setting, and `--config`. What is not given stays None, so that other sources can speak."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="Configuration file, TOML.")
    for name, field in Settings.model_fields.items():
        text = (field.description or "").replace("%", "%%")
        parser.add_argument(_flag(name), metavar=_metavar(name), help=f"{text} Default: {_shown(field.default)}.")


def parse_settings(arguments: Sequence[str] | None, *, program: str) -> Settings:
    """Read settings from the command line and the other sources.

    Raises:
        SettingsError: as `load_settings`. A flag that does not exist ends the process with a message, as argparse does.

    """
    parser = argparse.ArgumentParser(prog=program, description="Starts a Termwise server.", allow_abbrev=False)
    add_flags(parser)
    given = vars(parser.parse_args(arguments))
    return load_settings(given, given.pop("config"))


def _metavar(name: str) -> str:
    kinds = {
        "data": "FOLDER",
        "host": "ADDRESS",
        "model_folder": "FOLDER",
        "model_proxy": "URL",
        "model_repository": "URL",
        "model_repository_password": "SECRET",
        "model_repository_password_file": "FILE",
        "model_repository_username": "NAME",
        "port_file": "FILE",
        "storage": "NAME",
    }
    if name in kinds:
        return kinds[name]
    choices = getattr(Settings.model_fields[name].annotation, "__args__", ())
    return "|".join(choices) if choices and all(isinstance(choice, str) for choice in choices) else "N"


def _shown(default: Any) -> str:
    return "none" if default is None or not str(default) else str(default)


def reference() -> str:
    """Write the settings as a Markdown page."""
    lines = [
        "# Settings",
        "",
        "Each setting has a flag of `termwise serve` (and of `python -m termwise.server`), an environment variable,",
        "and a key in the configuration file, a TOML file that `--config` or `TERMWISE_CONFIG` names. The flag wins",
        "over the environment, and the environment over the file.",
        "",
        f"`{KERNEL}` is no setting but a switch: `off` makes torch do the work of the encoder's kernel, and `avx2`,",
        "`avx512` or `avx512bf16` makes the kernel use those instructions and no better ones.",
        "",
        "`python -m termwise.server.settings` writes this page.",
        "",
        "| Setting | Flag | Environment | Values | Default | Meaning |",
        "|---|---|---|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        row = [
            f"`{name}`",
            f"`{_flag(name)}`",
            f"`{PREFIX}{name.upper()}`",
            _values(name),
            f"`{_shown(field.default)}`",
            field.description or "",
        ]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def _values(name: str) -> str:
    field = Settings.model_fields[name]
    metavar = _metavar(name)
    if "|" in metavar:
        return ", ".join(f"`{choice}`" for choice in metavar.split("|"))
    bounds = {type(rule).__name__: rule for rule in field.metadata}
    low = getattr(bounds.get("Ge"), "ge", None)
    above = getattr(bounds.get("Gt"), "gt", None)
    high = getattr(bounds.get("Le"), "le", None)
    if high is None:
        return {
            "ADDRESS": "an address",
            "FILE": "a file",
            "FOLDER": "a folder",
            "NAME": "a name",
            "SECRET": "a secret",
            "URL": "a URL",
        }[metavar]
    first = f"{low:,}" if low is not None else f"over {above:,}"
    return f"{first} to {high:,}"


if __name__ == "__main__":
    print(reference(), end="")  # noqa: T201 - that is what it is for

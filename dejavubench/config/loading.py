"""Reading an experiment: a TOML file, the environment and flags become its options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_origin

from pydantic import ValidationError

from dejavubench import values
from dejavubench.config.experiment import OPTIONS, Experiment
from dejavubench.config.options.field import flag_of
from dejavubench.config.options.streaming import BASELINE_VARIABLE
from dejavubench.errors import UsageError
from dejavubench.values import format_value


@dataclass(frozen=True)
class GivenExperiment:
    """An experiment as a user gave it, before :mod:`dejavubench.config.resolve` settles it.

    Attributes:
        experiment: its values, each checked alone.
        path: the TOML file, if there is one.
        origins: maps an option's key to the source of its value, such as ``--level`` or
            ``DEJAVULIB_BASELINE``. Error messages name it.
    """

    experiment: Experiment
    path: Path | None = None
    origins: Mapping[str, str] = field(default_factory=dict)

    def origin(self, key: str) -> str:
        """Return the name that an error message gives an option: its source, or its key."""
        return self.origins.get(key, key)


def read_experiment(
    path: Path | None,
    overrides: Mapping[str, Any],
    environ: Mapping[str, str],
    restart_values: Mapping[str, Any] | None = None,
    origins: Mapping[str, str] | None = None,
) -> GivenExperiment:
    """Return the experiment of a TOML file, the environment's level and flags; the later ones win.

    Args:
        path: the TOML file, or None.
        overrides: values of flags, by key.
        environ: the environment.
        restart_values: values of a killed run, in place of a file and the environment.
        origins: source of each of these values, by the option's key.

    Raises:
        UsageError: the file cannot be read, or a value is wrong. The message names file, key or
            flag.
    """
    option_values: dict[str, Any] = dict(restart_values or {})
    value_origins: dict[str, str] = dict(origins or {})
    if path is not None:
        # A file that has a name of its own wins over the name of the file.
        option_values = {"name": path.stem, **_read_toml(path)}
        value_origins = {key: f"{path}: {key}" for key in option_values}
    # A restarted request keeps its level: a variable that is set today must not change it.
    if restart_values is None and BASELINE_VARIABLE in environ:
        option_values["level"] = environ[BASELINE_VARIABLE]
        value_origins["level"] = BASELINE_VARIABLE
    for key, value in overrides.items():
        option_values[key] = value
        value_origins[key] = flag_of(key)
    # Pydantic would complain of the type of a list; the user wants to know that it cannot sweep.
    for key, value in option_values.items():
        if _is_several(key, value):
            raise UsageError(
                f"{value_origins[key]} takes one value; it cannot be swept: {format_value(value)}"
            )
    try:
        return GivenExperiment(Experiment.model_validate(option_values), path, value_origins)
    except ValidationError as error:
        raise UsageError(_describe_complaint(error, value_origins)) from None


def check_path(path: Any, option: str) -> Path:
    """Return a path that the system could open.

    Raises:
        UsageError: it is none; the message begins with ``option``.
    """
    try:
        return values.parse_path(path)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def _is_several(key: str, value: Any) -> bool:
    """Return whether a list is given for an option of one value."""
    model_field = Experiment.model_fields.get(key)
    if model_field is None or get_origin(model_field.annotation) is tuple or OPTIONS[key].is_text:
        return False
    # A flag's value is text, in which commas part the values of a list.
    return isinstance(value, list | tuple) or (isinstance(value, str) and "," in value)


def _read_toml(path: Path) -> dict[str, Any]:
    """Return a file's values by the options' keys, in which dashes are underscores."""
    from dejavubench.text_file import TextFileError, read_toml

    # A pipe is a usable CONFIG: the shell's <(…) gives one.
    if not check_path(path, "CONFIG").exists():
        raise UsageError(f"{path} does not exist; CONFIG is a TOML file")
    if not (path.is_file() or path.is_fifo()):
        raise UsageError(f"{path} is not a file; CONFIG is a TOML file")
    try:
        document = read_toml(path)
    except TextFileError as error:
        raise UsageError(str(error)) from None
    option_values: dict[str, Any] = {}
    for key, value in document.items():
        name = key.replace("-", "_")
        if name in ("resume", "restart_request"):
            raise UsageError(
                f"{path}: {name} is not allowed in a file: it replaces the whole file. Use "
                "--restart-request DIR"
            )
        if name not in Experiment.model_fields:
            raise UsageError(f"{path}: unknown key {key!r}{_suggest_key(name)}")
        if name in option_values:
            raise UsageError(f"{path}: {name} is given twice")
        option_values[name] = value
    return option_values


def _suggest_key(name: str) -> str:
    import difflib  # only a wrong key needs it, and imports slow every command down

    close = difflib.get_close_matches(name, Experiment.model_fields, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _describe_complaint(error: ValidationError, value_origins: Mapping[str, str]) -> str:
    """Return pydantic's first complaint, with the place where the value came from."""
    complaint = error.errors(include_url=False)[0]
    message = complaint["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    key = cast(str, complaint["loc"][0])
    # A message of this program's own readers shows the value already.
    input_text = (
        "" if complaint["type"] == "value_error" else f", not {format_value(complaint['input'])}"
    )
    return f"{value_origins.get(key, key)}: {message}{input_text}"

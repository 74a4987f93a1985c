"""Every option of run, plan and sink with bad values: as flag, TOML key and in run.json.

Each is refused in one line that names the option and shows the value, or is accepted as
what the tables below say.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from dejavubench.cli import plan as plan_command
from dejavubench.cli import sink as sink_command
from dejavubench.config.experiment import Experiment
from dejavubench.config.options.field import flag_of
from dejavubench.config.options.machine import MOST_THREADS
from dejavubench.config.resolve import load
from dejavubench.dejavulib.destinations.tcp import sink as tcp_sink
from dejavubench.errors import UsageError
from dejavubench.records import RUN_FILE
from dejavubench.transports.tcp_token import TOKEN_VARIABLE
from dejavubench.values import LONGEST_VALUE, format_value
from helpers.cli_calls import call
from helpers.jobs import args
from helpers.killed_runs import write_killed_run

LONGEST_MESSAGE = 500

TEXTS: dict[str, str] = {
    "zero": "0",
    "negative": "-1",
    "zeros": "007",
    "comma": "1,2",
    "twice": "1,01",
    "underscore": "1_000",
    "nan": "nan",
    "inf": "inf",
    "large": "1e300",
    "tiny": "1e-300",
    "digits": "9" * 5000,
    "2^31": str(2**31),
    "empty": "",
    "blank": "  ",
    "newline": "1\n2",
    "NUL": "a\0b",
    "escape": "a\x1bb",
    "Arabic": "٣",
    "300": "x" * 300,
    "300/z": "y" * 300 + "/z",
    "bytes": "a\udcff",
}
"""Texts that a flag may carry, by name; ``bytes`` is not UTF-8 on the command line."""

OTHERS: dict[str, Any] = {
    "true": True,
    "list": [7],
    "lists": [[7]],
    "none": [],
    "table": {"a": 1},
    "float": 2.5,
    "minus": -1,
    "NaN": float("nan"),
    "Inf": float("inf"),
    "huge": 10**5000,
    "2^64": 2**64,
    "-1e400": -(10**400),
}
"""Values other than texts that TOML may carry, by name."""

NAMES_OF_TEXTS = {
    "zero",
    "negative",
    "zeros",
    "comma",
    "twice",
    "underscore",
    "nan",
    "inf",
    "large",
    "tiny",
    "2^31",
    "Arabic",
}
"""Texts that a file or a run may be called."""

NO_LIST = {"zeros": 7}
NUMBER = {**NO_LIST, "float": 2.5}
LIST = {"zeros": (7,), "comma": (1, 2), "list": (7,)}
STAGING = {"zeros": (7,), "list": (7,)}
"""Values of a staging option. A sweep of it needs a destination."""
SWITCH = {"zero": False, "true": True}
OFF = {"zero": False}
NO_VALUES = {"none": ()}
PATHS = {name: Path(TEXTS[name]) for name in NAMES_OF_TEXTS}

SOUND = {"zeros", "true", "comma", "twice"}
"""Values that are right in themselves, so that a refusal may be about what they do not go with."""

ACCEPTED: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("layer_num", "head_num", "size_per_head", "vocab_size"), NO_LIST),
    **dict.fromkeys(("pipeline_para_size", "rounds"), NO_LIST),
    **dict.fromkeys(("ubatch_size", "input_len", "output_len", "threads"), LIST),
    **dict.fromkeys(("staging_mib", "staging_slots"), STAGING),
    **dict.fromkeys(("compare", "keep", "verify", "ceilings", "chunk_times"), SWITCH),
    "confine": {"zero": (False,), "true": (True,)},
    **dict.fromkeys(("handoff", "nccl_loopback", "nvtx", "tcp_checksums", "sample_extents"), OFF),
    "warmup": {**NO_LIST, "zero": 0},
    "nccl_receives_ahead": {"zero": 0},
    "seed": {**NO_LIST, "zero": 0, "2^31": 2**31},
    **dict.fromkeys(("max_time", "drain_timeout"), NUMBER),
    **dict.fromkeys(("peer", "swap"), NO_VALUES),
    "rank_timeout": {**NUMBER, "zero": 0.0},
    **dict.fromkeys(("stream_dir", "log_dir"), PATHS),
    "temperature": {**NUMBER, "zero": 0.0},
    "level": {"zero": ("0",)},
    "name": {name: TEXTS[name] for name in NAMES_OF_TEXTS},
    "note": {
        name: TEXTS[name]
        for name in (*NAMES_OF_TEXTS, "digits", "empty", "blank", "newline", "300", "300/z")
    },
}
"""Option → name of an accepted value → the value that the experiment then has."""


@pytest.fixture(autouse=True)
def _plain(no_launcher: None, no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the launcher, the GPUs and the baseline of this machine."""
    monkeypatch.delenv("DEJAVULIB_BASELINE", raising=False)


def require_one_line(message: str, value: object, *flag_names: str) -> None:
    assert "\n" not in message
    assert len(message) <= LONGEST_MESSAGE
    assert any(name in message for name in flag_names), message
    text = format_value(value)[: LONGEST_VALUE // 2].strip("'\"[]() ")
    assert text in message or text.lower() in message or ascii(text)[1:-1] in message, message


@pytest.mark.parametrize("key", Experiment.model_fields)
def test_an_error_about_any_value_of_run_is_one_line(key: str, tmp_path: Path) -> None:
    flag = flag_of(key)
    accepted = {}
    for name, value in {**TEXTS, **OTHERS}.items():
        try:
            plan = load(None, {"device": "cpu", key: value}, {}, dry_run=True)
        except UsageError as error:
            require_one_line(
                str(error), "" if name in SOUND else value, flag, f"{key} ", f"{key}: "
            )
        else:
            accepted[name] = getattr(plan.experiment, key)
    assert accepted == ACCEPTED.get(key, {})


@pytest.mark.parametrize("key", Experiment.model_fields)
def test_an_error_about_any_value_of_a_resumed_run_is_one_line(key: str, tmp_path: Path) -> None:
    folder = write_killed_run(tmp_path / "run", "tokens", "p000", "disk@3")
    content = json.loads((folder / RUN_FILE).read_text())
    for value in (True, 5, [5], {"a": 1}, "x" * 300, "a\0b", -1, 1e300, 10**30):
        content["experiment"][key] = value
        (folder / RUN_FILE).write_text(json.dumps(content))
        try:
            load(None, {"resume": str(folder), "device": "cpu"}, {})
        except UsageError as error:
            message = str(error).replace(str(folder), "DIR")
            require_one_line(message, "", key, flag_of(key))


def test_a_folder_of_streams_that_is_none_names_run_json(tmp_path: Path) -> None:
    folder = write_killed_run(tmp_path / "run", "tokens", "p000", "disk@3", stream_dir=5)
    with pytest.raises(UsageError, match=r"run\.json: stream_dir: must be a path, not 5$"):
        load(None, {"resume": folder}, {})


def test_values_of_a_file_are_read_as_those_of_flags(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    for text, expected in (
        ("threads = true", "threads: must be a whole number, not True"),
        ("rounds = [1, 2]", "rounds takes one value; it cannot be swept: [1, 2]"),
        ("input_len = [1, 1]", "input_len: 1, 1: a value is given twice"),
        ("prompts = 5", "prompts: must be a path, not 5"),
        (
            'log_dir = "a\\u0000b"',
            "log_dir: 'a\\x00b' is not a path: it has a control character, such as a line break",
        ),
        (
            "rounds = 0x" + "f" * 5000,
            "rounds: must be at most 1000000, not a number with thousands of digits",
        ),
        ("seed = " + "9" * 5000, "a number has too many digits"),
        ("model = " + "[" * 3000 + "]" * 3000, "nested too deeply"),
    ):
        path.write_text(text + "\n")
        with pytest.raises(UsageError) as caught:
            load(path, {}, {})
        assert str(caught.value).startswith(f"{path}: ")
        assert expected in str(caught.value)


@pytest.mark.parametrize(
    "key", ["flush_interval", "resident", "rounds", "device", "weights_data_type", "temperature"]
)
def test_an_option_of_one_value_refuses_a_list(key: str) -> None:
    flag = "--" + key.replace("_", "-")
    with pytest.raises(UsageError, match=rf"^{flag} takes one value; it cannot be swept: '1,2'$"):
        load(None, {key: "1,2"}, {})


@pytest.mark.parametrize("path", ["a\0b.toml", "x" * 300, "line\nbreak.toml", " "])
def test_an_error_about_a_config_of_an_impossible_name_is_one_line(path: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(Path(path), {}, {})
    require_one_line(str(caught.value), path, "CONFIG")


def test_a_config_without_an_end_is_not_read() -> None:
    with pytest.raises(UsageError, match=r"^/dev/zero is not a file; CONFIG is a TOML file$"):
        load(Path("/dev/zero"), {}, {})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"durability": "direct"}, "--durability direct needs --streaming disk"),
        (
            {"durability": "direct", "streaming": "mpi"},
            "--durability direct needs --streaming disk",
        ),
        ({"peer": "a:1"}, "--peer a:1 needs --streaming tcp"),
        ({"tcp_checksums": True}, "--tcp-checksums needs --streaming tcp"),
        ({"threads": MOST_THREADS + 1}, "--threads: must be at most 4096, not 4097"),
        (
            {"temperature": "1e-39"},
            r"--temperature: must be 0 \(the most likely token\) or from 0.001 to 1000, .*",
        ),
        ({"top_p": "1e-46", "temperature": 1}, "--top-p: must be from 1e-06 to 1, not '1e-46'"),
        (
            {"drain_timeout": "1000000000000"},
            "--drain-timeout: '1000000000000' is not a time from 0.001 s to 500h",
        ),
        ({"link": f"1{'0' * 300}B/s"}, "--link: '10+… .* is not a rate such as .*"),
        ({"link": "99999999GB/s"}, "--link: '99999999GB/s' is not a rate from 1B/s to 1000TB/s"),
        ({"note": "x" * 10_001}, "--note: 'x+… .* is longer than 10000 characters"),
        ({"name": "漢" * 90}, "--name: '漢+(… .*|') cannot name a folder: it must be .*"),
        (
            {
                "input_len": ",".join(map(str, range(1, 102))),
                "output_len": ",".join(map(str, range(1, 102))),
            },
            "the lists combine to 10,201 points; one run takes at most 10,000. .*",
        ),
        (
            {"layer_num": 5000, "pipeline_para_size": 5000},
            "--tensor-para-size × --pipeline-para-size takes 5,000 ranks; at most 4,096 are "
            "supported",
        ),
    ],
)
def test_senseless_values_are_refused(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(None, {"device": "cpu", **values}, {}, dry_run=True)
    assert re.fullmatch(expected, str(caught.value))


def test_more_than_four_threads_a_core_are_refused() -> None:
    plan = load(None, {"device": "cpu", "threads": 9}, {})
    plan.check_threads(3)
    with pytest.raises(
        UsageError, match="--threads 9 is more than 4 per core: a rank may use 2 cores"
    ):
        plan.check_threads(2)


# ---- plan and sink ----


def is_refused(*arguments: str, flag: str) -> bool:
    """Return True if a command ends with a usage error, which must be one line."""
    finished_call = call(*arguments, environment={TOKEN_VARIABLE: "a token"})
    assert finished_call.exception is None or isinstance(finished_call.exception, SystemExit), (
        finished_call.exception
    )
    assert finished_call.exit_code in (0, 2), finished_call.stderr
    if finished_call.exit_code == 2:
        assert finished_call.stderr.count("\n") == 1
        assert len(finished_call.stderr) <= LONGEST_MESSAGE
        assert flag in finished_call.stderr
    return finished_call.exit_code == 2


PLAN = [option for option in plan_command.plan.params if option.name != "force"]


@pytest.mark.parametrize("option", PLAN, ids=lambda option: option.name)
def test_an_error_about_any_value_of_plan_is_one_line(
    option: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where --output may write
    flag = next(flag for flag in option.opts if flag.startswith("--"))
    rest = ["--link", "1GB/s"] if flag == "--latency" else []
    rest += [] if option.name in ("spec", "ckpt_path") else ["--model", "gpt2"]
    # Without a format, a file's name must end in the suffix of one.
    rest += ["--format", "csv"] if option.name == "output" else []
    counts = {
        "input_len",
        "output_len",
        "flush_interval",
        "ubatch_size",
        "pipeline_para_size",
        "sink_pipeline_para_size",
        "requests",
    }
    accepted = {
        name
        for name, text in TEXTS.items()
        if not is_refused("plan", flag, text, *rest, flag=flag.lstrip("-").split("-")[0])
    }
    others = {"latency": {"zero"}, "output": NAMES_OF_TEXTS}
    assert accepted == ({"zeros"} if option.name in counts else others.get(option.name, set()))


@pytest.mark.parametrize("value", ["NUL", "300", "300/z", "newline", "bytes", "empty", "blank"])
@pytest.mark.parametrize(
    "command", ["process", "figures -o {}", "figures {} -o out", "process x -o {}"]
)
def test_an_error_about_any_path_of_process_and_figures_is_one_line(
    command: str, value: str
) -> None:
    arguments = [part.replace("{}", TEXTS[value]) for part in command.split(" ")]
    assert is_refused(*arguments, *([] if "{}" in command else [TEXTS[value]]), flag="")


@pytest.mark.parametrize("option", sink_command.sink.params, ids=lambda option: option.name)
def test_an_error_about_any_value_of_sink_is_one_line(
    option: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: list[tuple[int, float]] = []

    class FakeServer:
        address = ("127.0.0.1", 1)

        def __init__(self, limit: int, timeout: float, **_: object) -> None:
            settings.append((limit, timeout))

        def serve(self) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setattr(tcp_sink, "TCPSinkServer", FakeServer)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    flag = option.opts[0]
    accepted = {
        name for name, text in TEXTS.items() if not is_refused("sink", flag, text, flag=flag)
    }
    assert accepted == ({"zeros"} if flag in ("--max-gib", "--timeout") else set())
    assert all(0 < limit < 1 << 60 and 0 < seconds < 1e7 for limit, seconds in settings)


def test_a_token_that_is_no_text_is_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides prove that they have the same bytes."""
    from dejavubench.transports import tcp_token

    monkeypatch.setitem(os.environb, TOKEN_VARIABLE.encode(), b"\xff\xfe")
    assert tcp_token.read_token() == b"\xff\xfe"


def test_a_plan_of_a_million_requests_is_summed_up() -> None:
    plan_call = call("plan", *args("--model gpt2 --requests 1000000"))
    assert plan_call.exit_code == 0, plan_call.output
    assert "1000000 region pairs" in plan_call.stdout
    plan_call = call("plan", *args("--model gpt2 --requests 1000000 --format json"))
    assert (plan_call.exit_code, plan_call.stderr.count("\n")) == (2, 1)
    assert "at most 100,000 region pairs, and this plan has 1,000,000" in plan_call.stderr


def test_sizes_that_no_model_has_are_described_at_once() -> None:
    """A million layers are counted, not built."""
    sizes = args("--layer-num 1000000 --pipeline-para-size 4096 --sink-pipeline-para-size 4095")
    dry_run = call("run", "--dry-run", "--device", "cpu", *sizes, "--streaming", "none,mpi,disk")
    assert dry_run.exit_code == 0, dry_run.output
    assert "p000 SKIPPED: custom needs" in dry_run.stdout

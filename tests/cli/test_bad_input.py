"""Bad input of many kinds: each message names the value, says what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from dejavubench.analysis.find_runs import GIVE_A_RUN
from helpers.cli_calls import usage_error_of
from helpers.paths import RESULTS

RUN = RESULTS / "epyc-bf16-2core" / "records" / "fi4-20261130T112248Z"
OTHER_RUN = RESULTS / "h200" / "records" / "appendix_a-20261125T094343Z"
FROM = ("plan", "--link", "1GB/s", "--from")
ONE_RUN = "Give the folder of one run"
UNPACK_TAR = (
    "Unpack it and give a run's folder in my runs: mkdir -p 'my runs' && tar -xf 'my runs.tar.xz' "
    "-C 'my runs'"
)


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a folder with one of each kind of input."""
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "bad"):
        Path(folder).mkdir()
    Path("bad/run.json").write_text("{not json")
    Path("text.log").write_text("0.123 of something else\n")
    Path("bad.toml").write_text("rounds = -3\n")
    Path("there.csv").write_text("")
    for name in ("my runs.tar.xz", "runs.zip"):
        Path(name).write_bytes(b"")


CASES: dict[str, Sequence[tuple[Sequence[object], str]]] = {
    "nothing is there": [
        (("run", "gone.toml"), "gone.toml does not exist; CONFIG is a TOML file"),
        (("run", "--prompts", "gone"), "--prompts: gone does not exist. Give a file with one"),
        (("run", "--continue", "gone"), f"--continue: gone does not exist. {ONE_RUN}"),
        (("process", "gone"), f"gone does not exist. {GIVE_A_RUN}"),
        (("compare", "gone", RUN), f"gone does not exist. {GIVE_A_RUN}"),
        (("figures", "gone", "-o", "drawn"), f"gone does not exist. {GIVE_A_RUN}"),
        (("report", "gone", "-o", "page.html"), f"gone does not exist. {GIVE_A_RUN}"),
        (("trace", "gone", "-o", "trace.json"), f"gone does not exist. {GIVE_A_RUN}"),
        ((*FROM, "gone"), f"--from: gone does not exist. {ONE_RUN}"),
        (("process", RUN, "--against", "gone"), f"--against: gone does not exist. {GIVE_A_RUN}"),
    ],
    "a folder in place of a file, or a file in place of a folder": [
        (("run", "empty"), "empty is not a file; CONFIG is a TOML file"),
        (("run", "--prompts", "empty"), "--prompts: empty is a folder, and not a file with one"),
        (("run", "--continue", "text.log"), f"--continue: text.log is not a folder. {ONE_RUN}"),
        (("compare", RUN, "text.log"), "text.log is a file. Give the folder of a run"),
        (("figures", RUN, "-o", "text.log"), "--output text.log is not a folder. Figures are"),
    ],
    "an archive": [
        *(
            (command, f"my runs.tar.xz is an archive. {UNPACK_TAR}")
            for command in (
                ("process", "my runs.tar.xz"),
                ("report", "my runs.tar.xz", "-o", "page.html"),
                ("figures", "my runs.tar.xz", "-o", "drawn"),
                ("trace", "my runs.tar.xz", "-o", "trace.json"),
                ("compare", RUN, "my runs.tar.xz"),
                ("compare", "my runs.tar.xz:mpi@3", RUN),
                (*FROM, "my runs.tar.xz"),
                ("run", "--continue", "my runs.tar.xz"),
                ("process", RUN, "--against", "my runs.tar.xz"),
            )
        ),
        (
            ("process", "runs.zip"),
            "runs.zip is an archive. Unpack it and give a run's folder in runs: unzip -q runs.zip "
            "-d runs",
        ),
    ],
    "an empty folder": [
        (
            ("process", "empty"),
            f"in it or in a folder below. {GIVE_A_RUN}",
        ),
        (("compare", RUN, "empty"), "empty holds no run: no run.json in it or in a folder below"),
        (("run", "--continue", "empty"), f"it has no run.json. {ONE_RUN}"),
        ((*FROM, "empty"), "empty holds no run: no run.json in it or in a folder below"),
    ],
    "a wrong unit": [
        (("plan", "--model", "gpt2", "--link", "10"), "'10' is not a rate such as 25GB/s"),
        (("run", "--max-time", "5 parsecs"), "'5 parsecs' is not a time such as 90, 90s, 10m"),
        (("compare", RUN, RUN, "--fail-above", "2 ms"), "'2 ms' is neither a percentage such as"),
        (("doctor", "--port", "http"), "'--port': must be a whole number, not 'http'"),
    ],
    "a negative number": [
        (("run", "bad.toml"), "bad.toml: rounds: must be greater than 0, not -3"),
        (("plan", "--model", "gpt2", "--input-len", "-5"), "must be greater than 0, not '-5'"),
        (("doctor", "--port", "-4"), "'--port': must be greater than 0, not '-4'"),
        (("doctor", "--port", "70000"), "'--port': must be at most 65535, not '70000'"),
        (("trace", RUN, "--round", "-1"), "'-1' is neither median nor worst, nor a round's number"),
    ],
    "a name that is unknown": [
        (("run", "--streaming", "moon"), "there is no destination 'moon'; choose one or more of"),
        (("run", "--points", "p999"), "there is no point 'p999'; this run has p000"),
        (
            ("compare", f"{RUN}:mpi@7", RUN),
            "has no arm 'mpi@7'. It has none, none#2, host@3",
        ),
        (("trace", RUN, "--arm", "nope", "-o", "t.json"), "no measured arm 'nope'. There is: none"),
    ],
    "JSON that is none": [
        (("process", "bad"), "bad/run.json: damaged JSON: "),
        (("run", "--continue", "bad"), "--continue: bad/run.json: damaged JSON: "),
        ((*FROM, "bad"), "--from: bad/run.json: damaged JSON: "),
        (
            ("process", RUN, "--against", "bad/run.json"),
            "Give shipped, a folder of runs, or a",
        ),
    ],
    "a file that exists": [
        (("process", RUN, "-o", "there.csv"), "there.csv exists. Use --force to overwrite it"),
        (("plan", "--model", "gpt2", "-o", "there.csv"), "there.csv exists. Use --force to"),
    ],
    "runs that cannot be compared": [
        (
            ("compare", RUN, OTHER_RUN),
            "They differ in cpu_model: AMD EPYC (fi4-20261130T112248Z)",
        ),
        (("compare", RUN, RUN), "A and B are the same. To compare two arms of a run, name them"),
    ],
    "a text that is no log": [
        (("process", "text.log"), "'[BENCHMARK] RANK 0 …'. Give a run's folder, or a text log of"),
        (("trace", "text.log", "-o", "t.json"), f"text.log is no run's folder. {ONE_RUN}"),
        ((*FROM, "text.log"), f"--from: text.log is not a folder. {ONE_RUN}"),
    ],
    "an option that another one needs": [
        (("plan",), "no model is given. Add --model NAME or --ckpt-path DIR, or predict"),
        (("plan", "--from", RUN), "--from needs --link, the rate of the link to predict for. Add"),
        (
            ("plan", "--model", "gpt2", "--latency", "1ms"),
            "--latency needs --link, the rate of",
        ),
    ],
}


@pytest.mark.parametrize("kind", CASES)
def test_a_message_says_what_is_wrong_and_what_to_do(kind: str) -> None:
    for words, message in CASES[kind]:
        run = ("--dry-run",) if words[0] == "run" else ()
        error = usage_error_of(*words, *run)
        assert message in error, (words, error)

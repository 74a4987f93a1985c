"""``tcp`` by the command line: peers and addresses that are refused, and whole runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dejavubench import units
from dejavubench.config.resolve import load
from dejavubench.errors import UsageError
from dejavubench.records import Verification
from dejavubench.transports.loops.tcp_peer import TCPPeer
from dejavubench.transports.tcp_token import TOKEN_VARIABLE
from helpers.cli_calls import usage_error_of
from helpers.fake_destination import PATIENCE
from helpers.jobs import GONE_WITHIN, QUICK, Job, args, process_folder
from helpers.tcp_peers import TOKEN, SinkProcess, shared_sink


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SinkProcess]:
    with shared_sink(tmp_path_factory.mktemp("sink")) as process:
        yield process


# ---- the command line ----


def usage_error_with_token(*words: object, token: str | None = TOKEN) -> str:
    return usage_error_of(*words, environment={TOKEN_VARIABLE: token})


def test_a_sink_that_cannot_start_says_why(sink: SinkProcess) -> None:
    anywhere = ("sink", "--listen", "127.0.0.1:0")
    assert TOKEN_VARIABLE in usage_error_with_token(*anywhere, token=None)
    message = usage_error_with_token("sink", "--listen", sink.peer)
    assert f"--listen {sink.peer}: Address already in use" in message
    message = usage_error_with_token("sink", "--listen", "127.0.0.1")
    assert "'127.0.0.1' is not an address such as" in message
    assert "'0' is not a time" in usage_error_with_token("sink", "--timeout", "0")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "--streaming tcp needs --peer ADDR:PORT"),
        (["--peer", "localhost"], "--peer: 'localhost' is not an address"),
        (
            ["--peer", "a:1,b:2"],
            "--peer gives 2 addresses: give one for all sources, or one for each",
        ),
    ],
)
def test_a_peer_that_cannot_be_meant_is_refused(options: list[str], reason: str) -> None:
    assert reason in usage_error_with_token("run", "--streaming", "tcp", *options)
    message = usage_error_with_token("run", "--streaming", "host", "--peer", "a:1")
    assert "--peer a:1 needs --streaming tcp" in message


def test_without_a_peer_tcp_is_skipped_among_others() -> None:
    arms = load(None, {"streaming": "host,tcp"}, {}).arms
    assert {arm.name: arm.skipped for arm in arms}["tcp@3"] == "no --peer"


def test_a_peer_without_a_sink_or_a_token_is_refused(
    sink: SinkProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    peer = TCPPeer.find(sink.peer, PATIENCE, checksums=False)
    assert (peer.same_host, peer.same_machine) == (True, True)
    with pytest.raises(UsageError, match=r"127\.0\.0\.1:1 cannot be reached: Connection refused"):
        TCPPeer.find("127.0.0.1:1", PATIENCE, checksums=False)
    monkeypatch.delenv(TOKEN_VARIABLE)
    with pytest.raises(UsageError, match=f"{TOKEN_VARIABLE} is not set"):
        TCPPeer.find(sink.peer, PATIENCE, checksums=False)


# ---- whole runs ----

RUN = ("run", *QUICK, *args("--warmup 1 --rounds 2"))


@pytest.mark.mpi
def test_a_run_streams_and_verifies(tmp_path: Path, sink: SinkProcess) -> None:
    modes = (*args("--streaming none,host,tcp --level 0,3"), "--peer", sink.peer)
    with Job(tmp_path, 1, *RUN, *modes, environment={TOKEN_VARIABLE: TOKEN}) as job:
        assert job.wait() == 0, job.stderr
        rows = process_folder(job.folder, long=True)
        assert re.search(r"tcp@0 .* same host", rows)
        assert re.search(r"tcp@3 .*yes \(3\)", rows)
        assert TOKEN not in "".join(file.read_text() for file in job.folder.iterdir())


@pytest.mark.mpi
def test_two_sources_stream_to_one_sink(tmp_path: Path, sink: SinkProcess) -> None:
    modes = (
        "--streaming",
        "tcp",
        "--peer",
        sink.peer,
        *args("--pipeline-para-size 2 --kv-layout nhd"),
    )
    with Job(tmp_path, 2, *RUN, *modes, environment={TOKEN_VARIABLE: TOKEN}) as job:
        assert job.wait() == 0, job.stderr
        assert job.stdout.count("TOTAL generation took") == 3
        assert {check.ok for _, check in job.run.records_of(Verification)} == {True}


@pytest.mark.mpi
@pytest.mark.parametrize("attack", ["wrong token", "too large"])
def test_a_run_that_its_sink_refuses_measures_nothing(
    tmp_path: Path, sink: SinkProcess, attack: str
) -> None:
    modes = [*args("--streaming tcp --pipeline-para-size 2"), "--peer", sink.peer]
    reason = (
        f"does not accept this token: it has another one. Set {TOKEN_VARIABLE} to the sink's token"
    )
    token = "another"
    if attack == "too large":
        modes += ["--max-seq-len", "300000"]
        reason, token = "of the 0.10 GiB limit", TOKEN
    with Job(tmp_path, 2, *RUN, *modes, environment={TOKEN_VARIABLE: token}) as job:
        assert job.wait() == 2, job.stderr
        assert reason in job.stderr
        assert job.stderr.count("Error: ") == job.stderr.count("\n") == 1
        assert not (tmp_path / "logs").exists()


@pytest.mark.mpi
def test_a_sink_that_is_killed_ends_the_run(tmp_path: Path) -> None:
    with SinkProcess(tmp_path / "sink") as process:
        modes = ("--streaming", "tcp", "--peer", process.peer, "--rounds", "100000")
        with Job(tmp_path, 1, *RUN, *modes, environment={TOKEN_VARIABLE: TOKEN}) as job:
            job.until(lambda: "TOTAL" in job.stdout, "an iteration")
            process.process.kill()
            assert job.wait(GONE_WITHIN) not in (0, None)
            job.all_gone()
            kinds = "(StreamingError|ClosedError|WireError)"
            failure = rf"dejavubench: rank 0 failed in phase \w+: {kinds}: 127\.0\.0\.1"
            assert re.search(failure, job.stderr), job.stderr
            assert "FAILED: rank 0 " in process_folder(job.folder)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.2:7601", ("10.0.0.2", 7601)),
        (":0", ("127.0.0.1", 0)),
        ("[::1]:80", ("::1", 80)),
        ("a.b:1", ("a.b", 1)),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, address: tuple[str, int]) -> None:
    assert units.parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "7601", "host:", "host:x", "host:65536", "::1:80", "host:-1", "host:٣", "a..b:1"]
)
def test_a_malformed_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not an address such as"):
        units.parse_address(text)

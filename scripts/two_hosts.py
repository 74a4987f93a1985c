"""Two hosts emulated on one machine, with a link of a given rate: `dejavubench` under mpirun, a rank on either.

Each host is a network namespace with a name of its own, the link a pair of virtual interfaces between them that a token
bucket (tc) slows in both directions. What crosses it are real packets of two separate network stacks; processors and
memory are shared. A `dejavubench sink` listens on the second host while the job runs:

    python scripts/two_hosts.py --rate 500Mbit/s -- run --model gpt2 --streaming none,mpi,tcp --peer 10.77.0.2:7601

Nothing is left behind, unless this is killed by SIGKILL. Needs Linux, root, ip and tc (iproute2), and MPICH's mpirun.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import click

from dejavubench import units
from dejavubench.cli.errors import fail_usage
from dejavubench.config.optionvalues import UNLIMITED
from dejavubench.machine.launcher import LAUNCHED
from dejavubench.transports.tcp import TOKEN_VARIABLE

ADDRESSES = ("10.77.0.1", "10.77.0.2")
"""Of the source's host and of the sink's, on a network that nothing else is on."""

PORT = 7601
INTERFACE = "link0"
NAMESPACES = Path("/var/run/netns")
"""Where ip keeps them."""

BURST_S = 0.5e-3
"""Seconds of the rate that pass at once after a pause: few bytes beside a step's, which levels 0 to 2 wait for."""

LEAST_BURST = 10_000
"""Bytes: some packets, below which the bucket cannot be emptied at its rate."""

QUEUED_S = 0.05
"""Seconds that a packet waits in the queue before packets are dropped."""

ENDING_S = 20.0
"""Seconds that a process has to end by itself once it was told to."""


class NoHostsError(Exception):
    """Hosts cannot be emulated here; the message says why."""


class InterruptedBySignal(Exception):  # noqa: N818 - it is no error
    """Somebody has told this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclass(frozen=True)
class Host:
    """``name`` is what its processes take for the host's; ``namespace`` is that of this process's network for it."""

    name: str
    address: str

    @property
    def namespace(self) -> str:
        return f"{self.name}-{os.getpid()}"

    def command(self, *words: str) -> list[str]:
        """``words`` as a command that runs on this host."""
        named = 'echo "$0" > /proc/sys/kernel/hostname && exec "$@"'
        return [
            "ip",
            "netns",
            "exec",
            self.namespace,
            "unshare",
            "--uts",
            "sh",
            "-c",
            named,
            self.name,
            *words,
        ]


# ---- the hosts and their link ----


@contextmanager
def two_hosts(rate: float | None) -> Iterator[tuple[Host, Host]]:
    """The source's host and the sink's; ``rate``: bytes a second in either direction, None if nothing limits the link.

    Raises:
        NoHostsError: this user, or this machine, cannot have them.
    """
    for program in ("ip", "tc", "unshare"):
        if shutil.which(program) is None:
            raise NoHostsError(f"two hosts need the program {program}")
    hosts = tuple(Host(f"host{number}", address) for number, address in enumerate(ADDRESSES, 1))
    with ExitStack() as made:
        for host in hosts:
            made.callback(_remove, host)  # first, for this may be told to end at any moment
            _set_up("ip", "netns", "add", host.namespace)
        first, second = hosts
        ends = (
            "netns",
            first.namespace,
            "type",
            "veth",
            "peer",
            "name",
            INTERFACE,
            "netns",
            second.namespace,
        )
        _set_up("ip", "link", "add", INTERFACE, *ends)
        for host in hosts:
            _set_up(
                "ip", "-n", host.namespace, "address", "add", f"{host.address}/24", "dev", INTERFACE
            )
            for interface in ("lo", INTERFACE):
                _set_up("ip", "-n", host.namespace, "link", "set", interface, "up")
            if rate is not None:
                burst = max(LEAST_BURST, round(rate * BURST_S))
                bucket = (
                    "rate",
                    f"{round(8 * rate)}bit",
                    "burst",
                    f"{burst}b",
                    "latency",
                    f"{round(1e3 * QUEUED_S)}ms",
                )
                _set_up(
                    "tc",
                    "-n",
                    host.namespace,
                    "qdisc",
                    "add",
                    "dev",
                    INTERFACE,
                    "root",
                    "tbf",
                    *bucket,
                )
        yield first, second


def _set_up(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoHostsError(
            f"two hosts cannot be made here: {shlex.join(command)}: {done.stderr.strip()}"
        )


def _remove(host: Host) -> None:
    """With every process that is still on it: all were started by this one."""
    if not (NAMESPACES / host.namespace).exists():
        return
    left = subprocess.run(
        ["ip", "netns", "pids", host.namespace], capture_output=True, text=True, check=False
    )
    for pid in left.stdout.split():
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(int(pid), signal.SIGKILL)
    subprocess.run(["ip", "netns", "delete", host.namespace], check=True)


# ---- what runs on them ----


def mpirun_program() -> str:
    """The launcher beside this Python, or else the first one found.

    Raises:
        NoHostsError: there is none, or it is not MPICH's, which is told how to reach hosts in its own words.
    """
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    program = shutil.which("mpirun", path=path)
    if program is None:
        raise NoHostsError("no mpirun was found")
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    if "HYDRA" not in told.stdout:
        raise NoHostsError(
            f"{program} is not MPICH's: two hosts are reached by its launcher, Hydra"
        )
    return program


def launcher(folder: Path, hosts: Sequence[Host]) -> Path:
    """What mpirun is given for ssh: a script that runs a command on one of the hosts, by its address."""
    cases = "\n".join(
        f'  {host.address}) exec {shlex.join(host.command("sh", "-c"))} "$*";;' for host in hosts
    )
    text = f"""#!/bin/sh
while [ "${{1#-}}" != "$1" ]; do shift; done  # options for ssh
address=$1; shift
case $address in
{cases}
  *) echo "$address is none of the two hosts" >&2; exit 1;;
esac
"""
    script = folder / "launch"
    script.write_text(text)
    script.chmod(0o700)
    return script


def run(rate: str, arguments: Sequence[str]) -> int:
    """The exit status of ``dejavubench`` with ``arguments`` under mpirun, a rank on each of two hosts.

    Args:
        rate: of the link between them, as ``500Mbit/s``, or ``unlimited``.

    Raises:
        NoHostsError: this user, or this machine, cannot have them.
        InterruptedBySignal: this process was told to end; all that it had started has ended.
    """
    limit = None if rate == UNLIMITED else units.rate(rate)
    program = mpirun_program()
    inherited = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    environment = inherited | {
        TOKEN_VARIABLE: secrets.token_hex(32),
        "UCX_TLS": "tcp,self",  # no memory that both "hosts" would share
        "UCX_NET_DEVICES": INTERFACE,
    }
    driver = [sys.executable, "-m", "dejavubench"]
    with _signals_raise(), two_hosts(limit) as hosts, tempfile.TemporaryDirectory() as folder:
        first, second = hosts
        sink = second.command(*driver, "sink", "--listen", f"{second.address}:{PORT}")
        there = ["-launcher", "ssh", "-launcher-exec", str(launcher(Path(folder), hosts))]
        ranks = ["-hosts", ",".join(ADDRESSES), "-n", "2", "-ppn", "1"]
        job = [program, "-genvall", *there, *ranks, *driver, *arguments]
        said = Path(folder) / "sink"
        with said.open("wb") as errors, _running(sink, environment, stderr=errors) as listening:
            _await_listening(listening, said)
            with _running(first.command(*job), environment) as process:
                status = process.wait()
            if listening.poll() is not None:
                click.echo(
                    f"two_hosts: the sink ended with status {listening.returncode}", err=True
                )
                click.echo(said.read_text(errors="replace"), err=True)
        return status


@contextmanager
def _running(
    command: list[str], environment: dict[str, str], **streams: object
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block: told so, and killed if it does not.

    It is in a session of its own: what a terminal's Ctrl-C sends reaches this process alone, which passes it on.
    """
    process = subprocess.Popen(  # type: ignore[call-overload]
        command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True, **streams
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(ENDING_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await_listening(sink: subprocess.Popen[bytes], said: Path) -> None:
    deadline = time.monotonic() + ENDING_S
    while "listening on" not in said.read_text(errors="replace"):
        if sink.poll() is not None or time.monotonic() > deadline:
            raise NoHostsError(
                f"the sink does not listen: {said.read_text(errors='replace').strip()}"
            )
        time.sleep(0.05)


@contextmanager
def _signals_raise() -> Iterator[None]:
    """What ends a process ends the block as an exception, once: a second one must not stop the cleaning up."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupted(number: int, _frame: object) -> NoReturn:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise InterruptedBySignal(number)

    before = {number: signal.signal(number, interrupted) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _rates(_context: click.Context, _parameter: click.Parameter, text: str) -> tuple[str, ...]:
    rates = tuple(part.strip() for part in text.split(","))
    for rate in rates:
        if rate != UNLIMITED:
            try:
                units.rate(rate)
            except ValueError as error:
                raise click.BadParameter(f"{error}, nor {UNLIMITED}") from None
    return rates


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--rate",
    "rates",
    metavar="RATE[,RATE…]",
    required=True,
    callback=_rates,
    help=f"Of the link in either direction, as 500Mbit/s, or {UNLIMITED}; one job for each, one after the other.",
)
@click.argument("arguments", metavar="-- run …", nargs=-1, required=True, type=click.UNPROCESSED)
def main(rates: tuple[str, ...], arguments: tuple[str, ...]) -> None:
    """Run `dejavubench run …` under mpirun on two emulated hosts, its source on one and its sink on the other.

    A sink for tcp is at --peer 10.77.0.2:7601, and the rate is recorded (--link).
    """
    if arguments[0] != "run":
        fail_usage(f"{arguments[0]!r} is not what runs under mpirun: write -- run …")
    try:
        for rate in rates:
            status = run(rate, [*arguments, "--link", rate])
            if status:
                sys.exit(status)
    except NoHostsError as error:
        fail_usage(str(error))
    except InterruptedBySignal as interrupted:
        click.echo(f"two_hosts: ended by {interrupted}", err=True)
        sys.exit(128 + interrupted.number)


if __name__ == "__main__":
    main()

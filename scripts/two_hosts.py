"""Run `dejavubench` under mpirun on two emulated hosts with a link of a given rate between them.

Each host is a network namespace with a host name of its own. The link is a pair of virtual
interfaces, which a token bucket (tc) slows in both directions. Real packets of two separate network
stacks cross it; processors and memory are shared. A `dejavubench sink` listens on the second host
while the job runs:

    python scripts/two_hosts.py --rate 500Mbit/s -- \\
        run --model gpt2 --streaming none,mpi,tcp --peer 10.77.0.2:7601

The script leaves nothing behind, unless it is killed by SIGKILL. It needs Linux, root, ip and tc
(iproute2), and MPICH's mpirun.
"""

from __future__ import annotations

import contextlib
import json
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
from dejavubench.analysis.prediction.emulated_link import MTU_NBYTES, compute_burst_nbytes
from dejavubench.cli.errors import fail_usage
from dejavubench.config.options.option_types import UNLIMITED
from dejavubench.machine.launcher import RANK_VARIABLES
from dejavubench.transports.tcp_token import TOKEN_VARIABLE

ADDRESSES = ("10.77.0.1", "10.77.0.2")
"""Addresses of the source's host and the sink's, on a network of their own."""

DRIVER = (sys.executable, "-m", "dejavubench")
PORT = 7601
INTERFACE = "link0"
UNDER_MPIRUN = ("run", "doctor")
"""Commands that run under mpirun."""

NAMESPACES = Path("/var/run/netns")
"""The folder in which ip keeps namespaces."""

QUEUED_S = 0.05
"""Seconds that a packet may wait in the queue before it is dropped."""

READY_S = 20.0
"""Seconds that the link or the sink has to be ready."""

ENDING_S = 20.0
"""Seconds that a process has to end after a signal, before it is killed."""


class NoHostsError(Exception):
    """Hosts cannot be emulated here. The message says why."""


class InterruptedBySignal(Exception):  # noqa: N818 - it is no error
    """A signal has asked this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclass(frozen=True)
class Host:
    """An emulated host: its name, its address, and its network namespace."""

    name: str
    address: str

    @property
    def namespace(self) -> str:
        """Name of the network namespace, unique to this process."""
        return f"{self.name}-{os.getpid()}"

    def command(self, *words: str) -> list[str]:
        """Return a command line that runs ``words`` on this host."""
        name_host = 'echo "$0" > /proc/sys/kernel/hostname && exec "$@"'
        return [
            "ip",
            "netns",
            "exec",
            self.namespace,
            "unshare",
            "--uts",
            "sh",
            "-c",
            name_host,
            self.name,
            *words,
        ]


# ---- the hosts and their link ----


@contextmanager
def two_hosts(rate: float | None) -> Iterator[tuple[Host, Host]]:
    """Make two hosts and yield them: the source's and the sink's.

    Args:
        rate: bytes per second in each direction; None for an unlimited link.

    Raises:
        NoHostsError: this user or this machine cannot make them.
    """
    for program in ("ip", "tc", "unshare"):
        if shutil.which(program) is None:
            raise NoHostsError(f"two hosts need the program {program}")
    hosts = tuple(Host(f"host{number}", address) for number, address in enumerate(ADDRESSES, 1))
    with ExitStack() as stack:
        for host in hosts:
            stack.callback(_remove, host)  # first, because a signal may come at any moment
            _set_up("ip", "netns", "add", host.namespace)
        first_host, second_host = hosts
        near_end = f"{INTERFACE} netns {first_host.namespace}"
        far_end = f"{INTERFACE} netns {second_host.namespace}"
        _set_up(*f"ip link add {near_end} type veth peer name {far_end}".split())
        for host in hosts:
            ip_command = f"ip -n {host.namespace}"
            _set_up(*f"{ip_command} address add {host.address}/24 dev {INTERFACE}".split())
            _set_up(*f"{ip_command} link set {INTERFACE} mtu {MTU_NBYTES}".split())
            for interface in ("lo", INTERFACE):
                _set_up(*f"{ip_command} link set {interface} up".split())
            if rate is not None:
                _limit_rate(host, rate)
        for host in hosts:
            _await_running(host)
        yield first_host, second_host


def _await_running(host: Host) -> None:
    """Wait until the kernel says that a host's end of the link runs.

    It may say so a second after both ends are up. Until then, UCX holds that there is no link.

    Raises:
        NoHostsError: it does not say so.
    """
    deadline = time.monotonic() + READY_S
    query = f"ip -n {host.namespace} -json link show dev {INTERFACE}"
    while (state := json.loads(_set_up(*query.split()))[0]["operstate"]) != "UP":
        if time.monotonic() > deadline:
            raise NoHostsError(f"two hosts cannot be made here: {INTERFACE} stays {state}")
        time.sleep(0.05)


def _limit_rate(host: Host, rate: float) -> None:
    """Let a host send at most ``rate`` bytes per second, by a token bucket."""
    tc_command = f"tc -n {host.namespace} qdisc add dev {INTERFACE} root"
    latency_ms = round(1e3 * QUEUED_S)
    bucket = (
        f"tbf rate {round(8 * rate)}bit burst {compute_burst_nbytes(rate)}b latency {latency_ms}ms"
    )
    _set_up(*tc_command.split(), *bucket.split())


def _set_up(*command: str) -> str:
    """Run a command and return what it prints.

    Raises:
        NoHostsError: it fails.
    """
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise NoHostsError(
            f"two hosts cannot be made here: {shlex.join(command)}: {process.stderr.strip()}"
        )
    return process.stdout


def _remove(host: Host) -> None:
    """Remove a host with every process that is still on it. This process started all of them."""
    if not (NAMESPACES / host.namespace).exists():
        return
    process = subprocess.run(
        ["ip", "netns", "pids", host.namespace], capture_output=True, text=True, check=False
    )
    for pid in process.stdout.split():
        with contextlib.suppress(ProcessLookupError):  # the process has just ended by itself
            os.kill(int(pid), signal.SIGKILL)
    subprocess.run(["ip", "netns", "delete", host.namespace], check=True)


# ---- what runs on them ----


def mpirun_program() -> str:
    """Return the launcher beside this Python, or else the first one found.

    Raises:
        NoHostsError: there is none, or it is not MPICH's; other launchers take other options.
    """
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    program = shutil.which("mpirun", path=path)
    if program is None:
        raise NoHostsError("no mpirun was found")
    process = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    if "HYDRA" not in process.stdout:
        raise NoHostsError(
            f"{program} is not MPICH's: two hosts are reached by its launcher, Hydra"
        )
    return program


def launcher(folder: Path, hosts: Sequence[Host]) -> Path:
    """Write a script in place of ssh, which runs a command on a host given by its address."""
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


def run(rate: str, arguments: Sequence[str], driver: Sequence[str] = DRIVER) -> int:
    """Run ``dejavubench`` with ``arguments`` under mpirun, one rank per host; return its status.

    Args:
        rate: rate of the link, as ``500Mbit/s``, or ``unlimited``.
        driver: the command that each rank runs.

    Raises:
        NoHostsError: this user or this machine cannot make two hosts.
        InterruptedBySignal: a signal came. All processes that were started have ended.
    """
    limit = None if rate == UNLIMITED else units.parse_rate(rate)
    program = mpirun_program()
    inherited_variables = {
        name: value for name, value in os.environ.items() if name not in RANK_VARIABLES
    }
    environment = inherited_variables | {
        TOKEN_VARIABLE: secrets.token_hex(32),
        "UCX_TLS": "tcp,self",  # no shared memory between the "hosts"
        "UCX_NET_DEVICES": INTERFACE,
    }
    with _signals_raise(), two_hosts(limit) as hosts, tempfile.TemporaryDirectory() as folder:
        first_host, second_host = hosts
        sink = second_host.command(*DRIVER, "sink", "--listen", f"{second_host.address}:{PORT}")
        launcher_flags = ["-launcher", "ssh", "-launcher-exec", str(launcher(Path(folder), hosts))]
        ranks = ["-hosts", ",".join(ADDRESSES), "-n", "2", "-ppn", "1"]
        job = [program, "-genvall", *launcher_flags, *ranks, *driver, *arguments]
        sink_log = Path(folder) / "sink"
        with (
            sink_log.open("wb") as errors,
            _running(sink, environment, stderr=errors) as sink_process,
        ):
            _await_listening(sink_process, sink_log)
            with _running(first_host.command(*job), environment) as process:
                status = process.wait()
            if sink_process.poll() is not None:
                click.echo(
                    f"two_hosts: the sink ended with status {sink_process.returncode}", err=True
                )
                click.echo(sink_log.read_text(errors="replace"), err=True)
        return status


@contextmanager
def _running(
    command: list[str], environment: dict[str, str], **streams: object
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process and yield it. It gets SIGINT when the block ends, and is killed later.

    It has a session of its own: Ctrl-C in a terminal reaches only this process, which passes it on.
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


def _await_listening(sink: subprocess.Popen[bytes], sink_log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while "listening on" not in sink_log.read_text(errors="replace"):
        if sink.poll() is not None or time.monotonic() > deadline:
            raise NoHostsError(
                f"the sink does not listen: {sink_log.read_text(errors='replace').strip()}"
            )
        time.sleep(0.05)


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Turn the first ending signal into an exception. Later ones must not stop the cleaning up."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def raise_interrupt(number: int, _frame: object) -> NoReturn:
        for signal_number in signals:
            signal.signal(signal_number, signal.SIG_IGN)
        raise InterruptedBySignal(number)

    handlers = {number: signal.signal(number, raise_interrupt) for number in signals}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _parse_rates(
    _context: click.Context, _parameter: click.Parameter, text: str
) -> tuple[str, ...]:
    rates = tuple(part.strip() for part in text.split(","))
    for rate in rates:
        if rate != UNLIMITED:
            try:
                units.parse_rate(rate)
            except ValueError as error:
                raise click.BadParameter(f"{error}, nor {UNLIMITED}") from None
    return rates


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--rate",
    "rates",
    metavar="RATE[,RATE…]",
    required=True,
    callback=_parse_rates,
    help=(
        f"Rate of the link in each direction, as 500Mbit/s, or {UNLIMITED}. Several rates make "
        f"one job each, one after the other."
    ),
)
@click.argument("arguments", metavar="-- run …", nargs=-1, required=True, type=click.UNPROCESSED)
def main(rates: tuple[str, ...], arguments: tuple[str, ...]) -> None:
    """Run `dejavubench run …` on two emulated hosts: the source on one, the sink on the other.

    A sink for tcp listens at 10.77.0.2:7601 (--peer). The rate is recorded (--link). `dejavubench
    doctor` runs there as well.
    """
    if arguments[0] not in UNDER_MPIRUN:
        fail_usage(f"{arguments[0]!r} does not run under mpirun: write -- run …, or -- doctor")
    is_recorded = arguments[0] == "run"
    try:
        for rate in rates:
            status = run(rate, [*arguments, *(("--link", rate) if is_recorded else ())])
            if status:
                sys.exit(status)
    except NoHostsError as error:
        fail_usage(str(error))
    except InterruptedBySignal as interrupted:
        click.echo(f"two_hosts: ended by {interrupted}", err=True)
        sys.exit(128 + interrupted.number)


if __name__ == "__main__":
    main()

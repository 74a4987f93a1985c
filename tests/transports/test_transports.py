"""The registry of destinations: its data, its plugins, and that reading it loads nothing heavy."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from copy import copy
from typing import Any, cast, get_args

import pytest
import torch

from dejavubench.bench.recording.destination_infos import (
    describe_destination,
    describe_swap_destination,
)
from dejavubench.dejavulib import destinations
from dejavubench.dejavulib.destinations import nccl as nccl_package
from dejavubench.dejavulib.destinations.base import (
    Destination,
    ReadableDestination,
    RemoteDestination,
)
from dejavubench.dejavulib.destinations.disk.block_file import Durability, parse_durability
from dejavubench.dejavulib.destinations.registry import DESTINATIONS
from dejavubench.errors import UsageError
from dejavubench.records.destination_info import (
    FROZEN_DESTINATIONS,
    CrossingInfo,
    destinations_of,
    find_destination,
)
from dejavubench.transports import registry
from dejavubench.transports.contexts import RankContext, SinkContext

NCCL_DEFAULTS = {
    "nccl_loopback": False,
    "nccl_receives_ahead": 0,
    "handoff": False,
    "pipeline_para_size": 1,
    "sink_pipeline_para_size": None,
    "sink_ubatch_size": None,
}


class Options:
    """The options that transports read of an experiment."""

    device = "cpu"
    sources = 2

    def __init__(self, *streaming: str, **values: Any) -> None:
        self.streaming = streaming
        self._values = {"peer": (), **NCCL_DEFAULTS, **values}
        self.device = self._values.pop("device", "cpu")

    def value(self, option: str) -> Any:
        return self._values[option]


def test_every_destination_is_found_in_order() -> None:
    built_in = ["host", "disk", "mpi", "nccl", "nixl", "tcp"]
    assert [mode for mode in registry.list_modes() if mode in built_in] == built_in
    orders = [transport.order for transport in registry.list_transports()]
    assert orders == sorted(orders)
    assert set(registry.list_modes()) == set(DESTINATIONS)
    assert registry.list_builtin_transports() == registry.list_transports()


def test_entries_say_what_their_destinations_can_do() -> None:
    entries = [DESTINATIONS[name] for name in FROZEN_DESTINATIONS if name in DESTINATIONS]
    assert {entry.name for entry in entries if entry.remote} == {"mpi", "nccl", "nixl"}
    assert {entry.name for entry in entries if entry.device_memory} == {"nccl", "nixl"}
    assert {entry.name for entry in entries if entry.on_storage} == {"disk"}
    assert [entry.name for entry in entries if entry.external_sink] == ["tcp"]
    assert [entry.name for entry in entries if entry.uses_host_slots(on_cuda=True)] == [
        "disk",
        "mpi",
        "tcp",
    ]
    assert DESTINATIONS["nixl"].uses_host_slots(on_cuda=False)


def test_classes_keep_what_their_entries_say() -> None:
    classes = {
        destination.entry.name: destination
        for module in pkgutil.walk_packages(destinations.__path__, f"{destinations.__name__}.")
        for destination in vars(importlib.import_module(module.name)).values()
        if isinstance(destination, type)
        and issubclass(destination, Destination)
        and "entry" in vars(destination)
    }
    assert classes.keys() == DESTINATIONS.keys()
    for name, destination in classes.items():
        entry = DESTINATIONS[name]
        assert destination.entry is entry
        assert entry.readable == issubclass(destination, ReadableDestination), name
        assert (entry.remote or entry.external_sink) == issubclass(
            destination, RemoteDestination
        ), name
    assert DESTINATIONS["disk"].durabilities == get_args(Durability)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_the_frozen_table_of_older_records_equals_todays_entries(on_gpu: bool) -> None:
    infos = {
        transport.name: describe_destination(transport, on_gpu)
        for transport in registry.list_builtin_transports()
    }
    infos |= {
        f"swap-{transport.name}": describe_swap_destination(transport)
        for transport in registry.list_builtin_transports()
        if transport.swapped_label
    }
    # Older records do not tell which way the bytes took, so no promise is held against them.
    unpromised = {"crossing": CrossingInfo()}
    # A destination that is younger than its key in records is in no older record.
    read = {name: infos[name].model_copy(update=unpromised) for name in FROZEN_DESTINATIONS}
    # Then two ranks on one GPU were refused with nixl.
    read["nixl"] = read["nixl"].model_copy(update={"loopback": None})
    assert read == destinations_of({}, on_gpu)


def test_an_unknown_durability_is_refused() -> None:
    assert parse_durability("direct") == "direct"
    with pytest.raises(ValueError, match="there is no durability None: there are fdatasync"):
        parse_durability(None)


def test_a_destination_is_shown_by_its_label_or_else_its_name() -> None:
    assert find_destination("nccl", FROZEN_DESTINATIONS).label == "remote GPU (NCCL)"
    assert (
        find_destination("nccl-loopback", FROZEN_DESTINATIONS).label == "loopback on one GPU (NCCL)"
    )
    assert find_destination("other", FROZEN_DESTINATIONS).label == "other"


def test_a_transport_names_the_device_or_option_that_it_lacks() -> None:
    nccl, tcp = registry.find_transport("nccl"), registry.find_transport("tcp")
    lack = nccl.missing(Options("nccl"))
    assert lack is not None
    assert lack.reason == "no CUDA device"
    assert nccl.missing(Options("nccl", device="cuda")) is None
    lack = tcp.missing(Options("tcp"))
    assert lack is not None
    assert "needs --peer ADDR:PORT" in lack.alone


def test_options_that_do_not_fit_are_refused() -> None:
    options = Options("nccl", "nixl", device="cuda", nccl_loopback=True)
    chosen = [registry.find_transport(mode) for mode in options.streaming]
    without_loopback = copy(chosen[1])
    without_loopback.loopback = None  # type: ignore[misc] # a class attribute: here one of its own
    assert chosen[0].conflict(options, [chosen[0], without_loopback]) == (
        "--nccl-loopback cannot be combined with --streaming nixl: nixl needs one GPU per rank. "
        "Drop one of them"
    )
    assert chosen[0].conflict(options, chosen) is None
    assert chosen[0].conflict(options, chosen[:1]) is None
    tcp = registry.find_transport("tcp")
    assert tcp.conflict(Options("tcp", peer=("a:1", "b:1")), [tcp]) is None
    reason = tcp.conflict(Options("tcp", peer=("a:1", "b:1", "c:1")), [tcp])
    assert reason is not None
    assert "one for each of the 2 sources" in reason


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module", "cannot be loaded: ModuleNotFoundError"),
        ("json", "registers no destination"),
    ],
)
def test_a_broken_plugin_is_named(monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    monkeypatch.setenv(registry.PLUGINS_VARIABLE, name)
    with pytest.raises(UsageError, match=f"DEJAVUBENCH_PLUGINS names {name}, which .*{message}"):
        registry.list_modes()


def test_a_broken_plugin_does_not_concern_a_run_to_other_destinations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(registry.PLUGINS_VARIABLE, "no_such_module")
    assert registry.find_transport("mpi").name == "mpi"
    usable_names = [transport.name for transport in registry.list_usable_transports()]
    builtin_names = [transport.name for transport in registry.list_builtin_transports()]
    assert usable_names == builtin_names
    with pytest.raises(UsageError, match="no_such_module"):
        registry.find_transport("toy")


def test_two_destinations_of_one_name_are_refused() -> None:
    class Other(type(registry.find_transport("host"))):  # type: ignore[misc]
        pass

    with pytest.raises(ValueError, match="there is a destination 'host' already"):
        registry.register(Other())


HEAVY = """
import importlib, pkgutil, sys
import dejavubench
for package in sys.argv[1:]:
    whole = importlib.import_module(f"dejavubench.{package}")
    for module in pkgutil.walk_packages(whole.__path__, f"{whole.__name__}."):
        if ".loops" not in module.name:
            importlib.import_module(module.name)
print(*sorted({"torch", "mpi4py", "cupy"} & set(sys.modules)))
"""


@pytest.mark.parametrize("package", ["analysis", "planning", "config", "records", "transports"])
def test_neither_torch_nor_mpi_is_loaded(package: str) -> None:
    completed = subprocess.run(
        [sys.executable, "-c", HEAVY, package], capture_output=True, text=True, check=False
    )
    assert (completed.returncode, completed.stdout, completed.stderr) == (0, "\n", "")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"handoff": True}, "cannot be combined with --handoff: a receive that waits takes"),
        ({"nccl_loopback": True}, "cannot be combined with --nccl-loopback: a receive"),
        ({"sink_ubatch_size": 2}, "cannot be combined with --sink-ubatch-size: a source then has"),
        ({"sink_pipeline_para_size": 2}, "cannot be combined with --sink-pipeline-para-size: a so"),
        ({"pipeline_para_size": 2}, "needs --pipeline-para-size 1: a source then has several"),
    ],
    ids=["model on the sink", "shared GPU", "parted microbatch", "sink stages", "stages"],
)
def test_receives_ahead_are_refused_where_they_wait_or_have_no_order(
    values: dict[str, Any], words: str
) -> None:
    transport = registry.find_transport("nccl")
    options = Options("nccl", device="cuda", nccl_receives_ahead=4, **values)
    message = transport.conflict(options, [transport])
    assert message is not None
    assert message.startswith(f"--nccl-receives-ahead {words}")
    assert transport.conflict(Options("nccl", device="cuda", **values), [transport]) is None


def test_an_nccl_sink_has_the_timeout_and_the_receives_ahead_of_the_options(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    endpoint_values: list[Any] = []
    monkeypatch.setattr(
        nccl_package, "NCCLSinkEndpoint", lambda *values: endpoint_values.extend(values)
    )
    rank = RankContext(
        world=cast(Any, None),
        host="one",
        is_source=False,
        worker=0,
        device=torch.device("cuda"),
        options=Options("nccl", nccl_receives_ahead=4),
    )
    connector: Any = registry.find_transport("nccl").connector(rank)
    connector.comm, connector.links = "comm", "links"
    connector.open_sink(SinkContext([], [2, 3], lambda: [], rank.device, timeout=7.0))
    assert endpoint_values == ["comm", "links", 7.0, {2: 4, 3: 4}]

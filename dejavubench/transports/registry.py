"""Every destination that this process can stream to: the modules of this package, and plugins.

A plugin is a module that calls :func:`register` as it is imported. It is named by an entry point of
the group :data:`ENTRY_POINT_GROUP`, or in the environment variable :data:`PLUGINS_VARIABLE`.
"""

from __future__ import annotations

import os
import pkgutil
import re
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from types import ModuleType

from dejavubench.dejavulib.destinations import registry as library
from dejavubench.errors import UsageError
from dejavubench.records.destination_info import NO_STREAMING, SWAP_PREFIX
from dejavubench.transports.base import Transport

ENTRY_POINT_GROUP = "dejavubench.destinations"
"""The group of entry points, each of which names a module."""

PLUGINS_VARIABLE = "DEJAVUBENCH_PLUGINS"
"""Names of modules, separated by commas."""

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

_registered: dict[str, Transport] = {}


def register(transport: Transport) -> None:
    """Add a destination: to this registry, and to the library's.

    Raises:
        ValueError: its name cannot be used, or another destination has it.
    """
    name = transport.name
    if not _NAME.fullmatch(name) or name == NO_STREAMING or name.startswith(SWAP_PREFIX):
        raise ValueError(f"{name!r} cannot be the name of a destination")
    # The same module may be imported twice, under two names or by two tests: that is no conflict.
    if name in _registered and type(_registered[name]) is not type(transport):
        raise ValueError(f"there is a destination {name!r} already")
    # The library first: it refuses a name whose entry differs, and then nothing is registered here.
    library.register(transport.entry)
    _registered[name] = transport


def list_modes() -> tuple[str, ...]:
    """Return the names of all destinations, in their order.

    Raises:
        UsageError: a plugin cannot be loaded.
    """
    return tuple(transport.name for transport in list_transports())


def list_transports() -> tuple[Transport, ...]:
    """Return all destinations, in their order. Raises UsageError: a plugin cannot be loaded."""
    _load_builtin()
    _load_plugins(os.environ.get(PLUGINS_VARIABLE, ""))
    return tuple(sorted(_registered.values(), key=_sort_key))


def list_usable_transports() -> tuple[Transport, ...]:
    """Return all destinations, without those of plugins that cannot be loaded: for help texts."""
    try:
        return list_transports()
    except UsageError:  # a run that names the destination gets this error
        return tuple(sorted(_registered.values(), key=_sort_key))


def _sort_key(transport: Transport) -> tuple[int, str]:
    # The name decides between plugins that chose one order, so that tables of two runs agree.
    return transport.order, transport.name


def find_transport(mode: str) -> Transport:
    """Return the destination of a name.

    Raises:
        KeyError: no destination has this name.
        UsageError: a plugin cannot be loaded.
    """
    is_known(mode)
    return _registered[mode]


def is_known(mode: object) -> bool:
    """Return whether there is a destination of this name.

    Raises:
        UsageError: it is none of this package's, and a plugin cannot be loaded.
    """
    if not isinstance(mode, str):  # a config file may hold anything, also what no dict can look up
        return False
    _load_builtin()
    if mode not in _registered:  # else a broken plugin is none of this run's business
        list_transports()
    return mode in _registered


def find_destination_problem(destination_names: Iterable[str]) -> str | None:
    """Return why a value of ``--streaming`` cannot be had in this process; None if all can."""
    requested_names = [name for name in destination_names if name != NO_STREAMING]
    try:
        unknown_name = next((name for name in requested_names if not is_known(name)), None)
    except UsageError as error:
        return str(error)
    if unknown_name is None:
        return None
    return (
        f"no destination named {unknown_name} on this host; install its plugin here, "
        f"or remove {unknown_name} from --streaming"
    )


def list_builtin_transports() -> tuple[Transport, ...]:
    """Return the destinations of this package, in their order; no plugin is looked for."""
    return tuple(sorted(_load_builtin(), key=_sort_key))


@cache
def _load_builtin() -> tuple[Transport, ...]:
    """Import the modules of this package and register those that have a ``TRANSPORT``."""
    package = __name__.rpartition(".")[0]
    folder = import_module(package).__path__
    # Folders hold what transports import late: torch, MPI and the raw loops.
    module_names = (
        module_info.name for module_info in pkgutil.iter_modules(folder) if not module_info.ispkg
    )
    modules = [import_module(f"{package}.{name}") for name in module_names]
    found_transports = tuple(module.TRANSPORT for module in modules if hasattr(module, "TRANSPORT"))
    for destination in found_transports:
        register(destination)
    return found_transports


@cache
def _load_plugins(plugin_modules: str) -> None:
    from importlib.metadata import entry_points  # takes as long as all of this package

    origins = {
        name: f"{PLUGINS_VARIABLE} names {name}"
        for name in map(str.strip, plugin_modules.split(","))
        if name
    }
    origins |= {
        point.module: f"the entry point {point.name} of {ENTRY_POINT_GROUP} names {point.module}"
        for point in entry_points(group=ENTRY_POINT_GROUP)
    }
    for module, origin in origins.items():
        _load_plugin(module, origin)


def _load_plugin(name: str, origin: str) -> ModuleType:
    """Import a plugin. Raises UsageError: it fails, or registers no destination."""
    # A plugin that was imported before, as by a test, registers nothing now: its classes tell.
    registered_before = set(_registered)
    try:
        module = import_module(name)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a plugin may raise anything
        raise UsageError(
            f"{origin}, which cannot be loaded: {type(error).__name__}: {error}. "
            "Fix or uninstall the plugin, or take its name out"
        ) from None
    own_names = {
        transport.name for transport in _registered.values() if type(transport).__module__ == name
    }
    if set(_registered) == registered_before and not own_names:
        raise UsageError(f"{origin}, which registers no destination: it must call register()")
    return module

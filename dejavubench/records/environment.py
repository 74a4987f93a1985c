"""Place of a run: the keys of ``environment``, in ``run.json`` and in the ranks' records.

Every key may be missing, since older programs recorded fewer. Unknown keys of newer programs are
kept in the record and ignored here. Each field's description gives the key's meaning and unit.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from dejavubench.machine.cgroups import Throttling
from dejavubench.machine.cores import HostDemand
from dejavubench.machine.file_system import MountedFolder
from dejavubench.records.field_types import RecordError


class _Facts(BaseModel):
    """Base of all keys: those of newer programs are kept, values of other types are refused."""

    # Strict: this program wrote the values, so a number in quotes is damage. A key of a newer
    # program must not stop an older reader, so unknown keys are allowed.
    model_config = ConfigDict(
        extra="allow", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


FactsT = TypeVar("FactsT", bound=BaseModel)


class KeysOf:
    """Annotates a dictionary whose keys a model names, for the JSON Schema alone.

    Records keep the dictionary as it was written, with the unknown keys of newer programs.
    """

    def __init__(self, model: type[BaseModel]) -> None:
        self._model = model

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        # The model's schema in place of the dictionary's, which would allow any key.
        return handler(self._model.__pydantic_core_schema__)


def _parse_dataclass(model: Any) -> BeforeValidator:
    """Make a dataclass of ``machine`` from its keys, which strict models would refuse."""
    adapter = TypeAdapter(model)

    def validate(value: Any) -> Any:
        # Not pydantic's own error: its location would be that of the key within the dataclass.
        try:
            return adapter.validate_python(value)
        except ValidationError as error:
            raise ValueError(error.errors(include_url=False)[0]["msg"]) from None

    return BeforeValidator(validate)


class Gpu(_Facts):
    """The CUDA device of a rank and the software that drives it."""

    name: str = Field(default="", description="name of the device")
    uuid: str = Field(default="", description="the device's own identifier, without a prefix")
    memory_nbytes: int | None = Field(default=None, description="device memory, in bytes")
    l2_nbytes: int | None = Field(default=None, description="level-2 cache, in bytes")
    multiprocessors: int | None = Field(
        default=None, description="number of streaming multiprocessors"
    )
    driver: str = Field(default="", description="version of NVIDIA's driver")
    cuda: str | None = Field(default=None, description="version of CUDA that torch was built for")
    nccl: str = Field(default="", description="version of NCCL")
    mps: bool | None = Field(
        default=None, description="whether NVIDIA's multi-process service runs"
    )
    pcie_generation: str = Field(
        default="", description="highest PCIe generation of the device's slot"
    )
    pcie_width: str = Field(
        default="", description="largest number of PCIe lanes of the device's slot"
    )


class ExternalSink(_Facts):
    """The sink outside the MPI job that a source streams to."""

    peer: str = Field(default="", description="address of the sink, as host:port")
    same_host: bool = Field(description="whether the sink runs on the source's host")
    same_machine: bool = Field(
        default=False, description="whether both hosts are names of one machine"
    )
    checksums: bool | None = Field(
        default=None, description="whether every chunk carries a checksum"
    )
    timeout: float | None = Field(
        default=None, description="longest wait without progress, in seconds"
    )


class NcclLoopback(_Facts):
    """How NCCL was made to work between ranks that share a GPU."""

    way: str = Field(default="", description="multi-rank (peer memory) or fake hosts (sockets)")
    version: int | None = Field(default=None, description="version of NCCL, as its own number")
    ranks: list[list[int]] = Field(default=[], description="groups of ranks that share a GPU")
    variables: dict[str, str] = Field(default={}, description="environment variables set for it")


class HostClock(_Facts):
    """The clock of a rank's host, ``perf_counter_ns``, beside that of rank 0's host."""

    reference: str = Field(default="", description="host of rank 0")
    offset_ns: int = Field(
        description="nanoseconds to add to the rank's times; 0 on the host of rank 0"
    )
    error_ns: int = Field(description="nanoseconds by which the offset may be wrong at most")
    at_ns: int = Field(description="time of the measurement, by the rank's own clock")
    round_trips: int = Field(description="messages that went to rank 0 and back; 0 on its host")


class _Shared(_Facts):
    """Keys that ranks and ``run.json`` have in common."""

    machine: str = Field(
        default="", description="digest that is equal for all hosts of one machine"
    )
    cpu_model: str | None = Field(default=None, description="name of the processor")
    cpus: int | None = Field(default=None, description="logical processors of the host")
    cpu_capability: str = Field(default="", description="vector instructions that torch uses")
    native_bf16: bool | None = Field(
        default=None, description="whether the CPU multiplies bf16 itself"
    )
    memory_available: int | None = Field(
        default=None, description="memory free at the start, in bytes"
    )
    kernel: str | None = Field(default=None, description="release of the operating system's kernel")
    mpi_thread_level: int | None = Field(default=None, description="thread level that MPI provides")
    variables: dict[str, str] = Field(default={}, description="environment variables that matter")
    gpu: Gpu = Field(default=Gpu(), description="the rank's CUDA device; missing on a CPU")
    cuda_aware_mpi: bool | None = Field(default=None, description="whether MPI takes device memory")


class RunEnvironment(_Shared):
    """Keys of ``environment`` in ``run.json``. Rank 0 writes them for the whole run."""

    cores: int = Field(default=0, description="cores granted to rank 0")
    threads: int | None = Field(default=None, description="threads per rank; the most of any point")
    gpus: list[str] = Field(default=[], description="names of the GPUs; missing on CPUs")
    hostnames: list[str] = Field(default=[], description="hosts of all ranks, sorted")
    ranks: int = Field(default=0, description="number of ranks")
    versions: dict[str, str] = Field(default={}, description="version of each package")
    mpi_library: str = Field(default="", description="first line of the MPI library's version text")
    source_revision: str | None = Field(
        default=None, description="commit of the checkout; + if changed"
    )
    date: str = Field(default="", description="day of the run in UTC, as YYYY-MM-DD")


class PointEnvironment(_Facts):
    """Conditions of a rank at one point of a sweep over threads or cores."""

    cores: list[int] = Field(default=[], description="cores that the rank runs on there")
    wait: str = Field(default="", description="how collectives wait there, spin or yield")
    cpu_demand: Annotated[HostDemand | None, _parse_dataclass(HostDemand | None)] = Field(
        default=None, description="threads of the host's ranks there, its cores and its CPU quota"
    )


class RankEnvironment(_Shared):
    """Keys of ``environment`` in a rank's first record."""

    cores: list[int] = Field(default=[], description="cores that the process may run on")
    cpu_quota: float | None = Field(default=None, description="CPUs that the control group allows")
    cpu_demand: Annotated[HostDemand | None, _parse_dataclass(HostDemand | None)] = Field(
        default=None,
        description="threads of the host's ranks, its cores and its CPU quota; the most of any "
        "point",
    )
    points: dict[str, PointEnvironment] = Field(
        default={}, description="what differs by point, of a sweep over threads or cores"
    )
    stream_dir: Annotated[MountedFolder | None, _parse_dataclass(MountedFolder | None)] = Field(
        default=None,
        description="folder that disk streams go to, its file system, device and mount options",
    )
    clock: HostClock | None = Field(
        default=None, description="the host's clock beside that of rank 0's host, at the start"
    )
    tcp_sink: ExternalSink | None = Field(
        default=None, description="the sink outside the MPI job that a source streams to by tcp"
    )
    nccl_loopback: NcclLoopback | None = Field(
        default=None, description="how NCCL works between ranks of one GPU"
    )

    def sink_of(self, mode: str) -> ExternalSink | None:
        """Return the external sink of a destination, which stands under ``<mode>_sink``.

        Raises:
            RecordError: the key has a value of another type.
        """
        # A plugin's sink is a key that no field names, so it has stayed a plain dict.
        recorded_sink = getattr(self, f"{mode}_sink", None)
        return (
            parse_environment(ExternalSink, recorded_sink, f"{mode}_sink")
            if isinstance(recorded_sink, dict)
            else recorded_sink
        )


class EndEnvironment(_Facts):
    """Keys of ``environment`` in a rank's last record: facts known only at the end."""

    clock: HostClock | None = Field(default=None, description="as in the first record, at the end")

    cpu_throttling: Annotated[
        dict[str, Throttling] | None, _parse_dataclass(dict[str, Throttling] | None)
    ] = Field(
        default=None,
        description="waits for CPU quota: before and after the measured points, and within them",
    )


def parse_environment(model: type[FactsT], environment: dict[str, Any], record_name: str) -> FactsT:
    """Return an environment with named keys.

    Args:
        record_name: names the record in messages.

    Raises:
        RecordError: a key has a value of another type.
    """
    try:
        return model.model_validate(environment)
    except ValidationError as error:
        complaint = error.errors(include_input=False, include_url=False)[0]
        key = ".".join(map(str, complaint["loc"]))
        raise RecordError(f"{record_name}: environment {key}: {complaint['msg']}") from None

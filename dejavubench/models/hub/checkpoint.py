"""A Hugging Face folder: which model it holds, and which of its files hold our tensors.

Only the headers of safetensors files are read here. So neither torch nor MPI is needed to know the
model, or to find out that a folder is broken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from dejavubench.models.hub.families import FAMILIES, Family, StoredTensor
from dejavubench.models.hub.folder_kinds import (
    find_model_name,
    make_unsupported_type_error,
    recognise_other_weights,
    refuse_other_kinds,
    refuse_types,
)
from dejavubench.models.hub.model_config import CONFIG, ModelConfig
from dejavubench.models.hub.model_spec import ModelSpec
from dejavubench.models.hub.tensor_file import CheckpointError
from dejavubench.models.hub.weight_files import (
    INDEX,
    WeightFiles,
    find_weights,
    read_present_headers,
)

__all__ = ["Checkpoint", "CheckpointError", "open_checkpoint", "read_spec"]

HEAD = "lm_head.weight"
"""Name of the output layer's tensor in most families."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder that was found whole.

    Attributes:
        spec: the folder's model, named like the folder.
        files: the file of each tensor that is needed, by its name there.
        stored: storage form of each of our tensors, with its full name.
        identity: 16 hex digits that differ for different files: of their headers and both ends of
            every tensor.
        notes: lines for the user about the reading of the folder.
    """

    folder: Path
    spec: ModelSpec
    files: Mapping[str, Path]
    stored: Mapping[str, StoredTensor]
    identity: str
    notes: tuple[str, ...] = ()


# ---- a folder ----


def read_spec(folder: Path) -> ModelSpec:
    """Return a folder's model by its configuration alone: the weights need not be there.

    Raises:
        CheckpointError: it is of another architecture, has no configuration that can be read, or
            the weights that are there are of a type that is not read.
    """
    with _as_checkpoint_error(folder):
        family, _, spec = _read_family_and_spec(folder)
        refuse_types(read_present_headers(folder), family.spared)
        return spec


@cache
def open_checkpoint(folder: Path) -> Checkpoint:
    """Look at a folder's configuration and at the headers of its files.

    Raises:
        CheckpointError: it is of another architecture, something is missing, cut off, of another
            type or shape, or there are tensors that the model does not use.
    """
    with _as_checkpoint_error(folder):
        return _open(folder)


def _open(folder: Path) -> Checkpoint:
    """Check configuration, files and tensors, from the cheapest to the longest look."""
    family, config, spec = _read_family_and_spec(folder)
    weights = find_weights(folder)
    refuse_types(weights.headers, family.spared)
    # Before the tensors of each layer are listed: a damaged number would make billions of names.
    if spec.layer_num > len(weights.tensors):
        raise CheckpointError(
            f"{config.path}: it says {spec.layer_num} layers, but the files hold only "
            f"{len(weights.tensors)} tensors"
        )
    stored_tensors = _Search(family, config, spec, weights).find_all()
    tensor_files = {
        tensor.name: weights.tensors[tensor.name].path for tensor in stored_tensors.values()
    }
    digest = hashlib.blake2b(digest_size=8)
    # By name, so that the order in which a folder lists its files does not count.
    for header in sorted(weights.headers, key=lambda header: header.path.name):
        digest.update(header.sample())
    return Checkpoint(
        folder=folder,
        spec=spec,
        files=tensor_files,
        stored=stored_tensors,
        identity=digest.hexdigest(),
        notes=weights.notes,
    )


def _read_family_and_spec(folder: Path) -> tuple[Family, ModelConfig, ModelSpec]:
    """Return a folder's family, configuration and sizes; refuse what is not implemented."""
    config = ModelConfig.read(folder)
    refuse_other_kinds(folder, config)
    model_type = config.content.get("model_type")
    family = FAMILIES.get(str(model_type))
    if family is None:
        raise make_unsupported_type_error(config, FAMILIES)
    # Refused here, and not ignored: the tokens would be wrong without any error.
    for key, required_value in family.requires.items():
        value = config.content.get(key, required_value)
        if value != required_value:
            raise CheckpointError(
                f"{config.path}: {model_type} with {key} {value!r} is not supported, "
                f"only {required_value!r}"
            )
    return family, config, family.read_spec(find_model_name(folder), config)


@contextmanager
def _as_checkpoint_error(folder: Path) -> Iterator[None]:
    """Turn errors of reading into CheckpointError."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{error.filename or folder}: {error.strerror or error}") from None


# ---- its tensors ----


@dataclass(frozen=True)
class _Search:
    """Finds a model's tensors in a folder. All methods raise CheckpointError."""

    family: Family
    config: ModelConfig
    spec: ModelSpec
    weights: WeightFiles

    def find_all(self) -> dict[str, StoredTensor]:
        """Return how each of our tensors is kept, once all of the folder's are accounted for."""
        prefixes = self.family.prefixes
        prefix = next(
            (
                candidate
                for candidate in prefixes
                if any(name.startswith(candidate) for name in self.weights.tensors)
            ),
            prefixes[0],
        )
        stored_tensors = {
            own_name: self._find(own_name, shape, prefix)
            for own_name, shape in self.spec.tensors.items()
        }
        self._refuse_unused({tensor.name for tensor in stored_tensors.values()})
        self._check_tied_head(stored_tensors["embedding"].name)
        return stored_tensors

    def _find(self, own_name: str, shape: tuple[int, ...], prefix: str) -> StoredTensor:
        """Return how one of our tensors is kept, once its shape in the file is as expected."""
        tensors = self.weights.tensors
        family_tensor = self.family.find_tensor(own_name, self.spec.size_per_head)
        tensor = replace(family_tensor, name=prefix + family_tensor.name)
        # Some folders keep a tied matrix under the head's name alone.
        if (
            own_name == "embedding"
            and self.spec.tied
            and tensor.name not in tensors
            and HEAD in tensors
        ):
            tensor = replace(tensor, name=HEAD)
        if tensor.name not in tensors:
            raise CheckpointError(
                f"{self.config.path.parent}: {self._explain_missing(own_name, tensor.name)}"
            )
        header = tensors[tensor.name]
        expected_shape = _compute_expected_shape(tensor, shape)
        if header.shapes[tensor.name] != expected_shape:
            stored_shape = " × ".join(map(str, header.shapes[tensor.name]))
            raise CheckpointError(
                f"{header.path}: tensor {tensor.name} is {stored_shape or 'a scalar'}; "
                f"by {CONFIG} it should be "
                f"{' × '.join(map(str, expected_shape))}"
            )
        return tensor

    def _explain_missing(self, own_name: str, name: str) -> str:
        if name in self.weights.strays:
            file = self.weights.strays[name].path.name
            return f"tensor {name} is in {file}, but {INDEX} assigns it to no file"
        missing_text = f"tensor {name} is in none of its files"
        if kind := recognise_other_weights(self.weights.tensors, self.config):
            return f"{missing_text}: {kind}"
        if own_name == "head":
            tie_advice = f"set tie_word_embeddings to true in {CONFIG}"
            return f"{missing_text}; if the head is the embedding, {tie_advice}"
        return missing_text

    def _refuse_unused(self, used_names: set[str]) -> None:
        """Raise CheckpointError if the folder has a tensor that the model would leave out."""
        tensors = dict(self.weights.tensors) | dict(self.weights.strays)
        tied_head = {HEAD} if self.spec.tied else set()
        unused_tensors = sorted(
            name
            for name in tensors.keys() - used_names - tied_head
            if not self.family.spared.fullmatch(name)
        )
        if not unused_tensors:
            return
        first_unused = unused_tensors[0]
        verb = f"and {len(unused_tensors) - 1} others are" if len(unused_tensors) > 1 else "is"
        model_type = self.config.content["model_type"]
        reason = recognise_other_weights(tensors, self.config)
        if reason is None and first_unused.endswith(".bias"):
            reason = f"{CONFIG} describes a {model_type} model without this bias"
        if reason is None and first_unused in self.weights.strays:
            reason = f"{INDEX} does not name it"
        if reason is None:
            reason = f"a {model_type} model as {CONFIG} describes it has no such tensor"
        raise CheckpointError(
            f"{tensors[first_unused].path}: tensor {first_unused} {verb} not used, which changes "
            f"the model: {reason}"
        )

    def _check_tied_head(self, embedding: str) -> None:
        """Raise CheckpointError if a head is tied to the embedding, but differs from it."""
        tensors = self.weights.tensors
        if not self.spec.tied or HEAD not in tensors or embedding == HEAD:
            return
        if not tensors[HEAD].has_same_tensor(HEAD, tensors[embedding], embedding):
            raise CheckpointError(
                f"{tensors[HEAD].path}: tensor {HEAD} differs from {embedding}, but "
                f"tie_word_embeddings in {CONFIG} makes them one; set it to false, or remove the "
                "tensor"
            )


def _compute_expected_shape(tensor: StoredTensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    rows, *columns = shape
    whole_shape = (rows if tensor.third is None else 3 * rows, *columns)
    return whole_shape[::-1] if tensor.is_transposed else whole_shape

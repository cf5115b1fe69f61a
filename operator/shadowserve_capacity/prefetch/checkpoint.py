"""A chain on disk, to be taken up where it was left: it goes on with the same bytes."""

import hashlib
import os
import zipfile
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

import numpy as np

from shadowserve_capacity.errors import CheckpointError
from shadowserve_capacity.prefetch.chain import Chain, Position
from shadowserve_capacity.prefetch.problem import Problem

_VERSION = 2


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The chain so far, where it stands, and of which problem it is."""

    chain: Chain
    position: Position
    problem: str

    @staticmethod
    def start(problem: Problem) -> "Checkpoint":
        """Return the checkpoint before the first iteration."""
        return Checkpoint(Chain.of([], len(problem.start)), Position.first(problem), fingerprint(problem))

    def save(self, path: Path) -> None:
        """Write to `path`: whole, or not at all."""
        unfinished = path.with_name(path.name + ".unfinished")
        with unfinished.open("wb") as file:
            np.savez(
                file,
                version=_VERSION,
                problem=self.problem,
                states=self.chain.states,
                accepted=self.chain.accepted,
                log_densities=self.chain.log_densities,
                iteration=self.position.iteration,
                theta=self.position.theta,
                log_scale=self.position.log_scale,
            )
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)

    @staticmethod
    def load(path: Path, problem: Problem) -> "Checkpoint":
        """Read `path`; raises CheckpointError when it is damaged or of another problem."""
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                if int(file["version"]) != _VERSION:
                    raise CheckpointError(f"{path}: version {int(file['version'])} is not {_VERSION}")
                read = Checkpoint(
                    Chain(file["states"], file["accepted"], file["log_densities"]),
                    Position(int(file["iteration"]), file["theta"], float(file["log_scale"])),
                    str(file["problem"]),
                )
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{path}: not a checkpoint ({error})") from error
        if read.problem != fingerprint(problem):
            raise CheckpointError(f"{path}: belongs to another problem, seed or start; choose another file")
        if read.position.iteration > problem.iterations:
            raise CheckpointError(f"{path}: has {read.position.iteration} iterations, asked for {problem.iterations}")
        return read


def fingerprint(problem: Problem) -> str:
    """Return a digest of what determines the chain: seed, start, adaptation, and the density at the start's batches."""
    batches = problem.target.batches
    terms = [problem.evaluate(problem.start, batch) for batch in range(min(4, batches))]
    parts = {
        "seed": problem.seed, "start": problem.start, "adaptation": problem.adaptation, "proposal": problem.proposal,
        "batches": batches, "terms": terms,
    }  # fmt: skip
    text = "\n".join(f"{name} = {_canonical(value, name)}" for name, value in parts.items())
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: object, where: str) -> str:
    """Return text that is equal for equal values only, in every process; raises CheckpointError naming the field.

    `repr` is not that: it shortens arrays, and tells where objects without one lie in memory.
    """
    if value is None or isinstance(value, bool | int | str | bytes):
        return f"{type(value).__name__}:{value!r}"
    if isinstance(value, float):
        return f"float:{value.hex()}"
    if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        return f"{value.dtype.str}{value.shape}:{value.tobytes().hex()}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_canonical(each, f'{where}[{index}]') for index, each in enumerate(value))}]"
    if is_dataclass(value) and not isinstance(value, type):
        known = {each.name: getattr(value, each.name) for each in fields(value)}
    elif hasattr(value, "__dict__") and not callable(value):
        known = vars(value)
    else:
        raise CheckpointError(f"{where}: {type(value).__qualname__} has no fields to tell it from another by")
    said = (f"{name}={_canonical(each, f'{where}.{name}')}" for name, each in sorted(known.items()))
    return f"{type(value).__module__}.{type(value).__qualname__}({', '.join(said)})"

"""What every record is made of: closed to unknown keys, a format number, the way to and from disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import InputError
from ..files import write_text

FormName = Literal["channel", "input-channel", "spatial", "tucker-2", "linear"]
CostKind = Literal["time", "instructions"]
Measure = Literal["macs", "params", "latency"]
Solver = Literal["gram", "svd", "newton-schulz"]
Finish = Literal["none", "labels", "distilled"]
Positive = Annotated[float, Field(gt=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_MAX_RECORD_BYTES = 1 << 30


class Part(BaseModel):
    """A piece of a record: immutable, closed to unknown keys, and finite numbers only."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class Record(Part):
    """A whole file: a format number, and the way to and from disk."""

    format: Literal[1] = 1

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read and validate a JSON record; errors name the file, the key, what was expected and found."""
        try:
            if Path(path).stat().st_size > _MAX_RECORD_BYTES:
                raise InputError(f"{path}: larger than 1 GiB; this is no {cls.__name__} record")
            data = json.loads(Path(path).read_bytes())
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}; check the path") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: expected JSON, found {str(error)[:120]}; make the file again") from error
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise InputError(f"{path}: {first_problem(error)}") from error

    def write(self, path: Path | str) -> None:
        """Write as JSON, whole or not at all."""
        write_text(Path(path), self.model_dump_json(indent=1) + "\n")


def first_problem(error: ValidationError) -> str:
    """The first thing a validation found wrong, unknown keys before all, in one line: where, what, found."""
    problems = error.errors(include_url=False)
    # a misspelt key is missing under its right name too: the unknown one says more
    problem = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    where = ".".join(str(key) for key in problem["loc"]) or "top level"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{where}'{more}; remove it or check its spelling"
    found = repr(problem["input"])
    return f"'{where}': {problem['msg']}, found {found[:80]}{more}"

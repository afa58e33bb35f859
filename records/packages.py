"""manifest.json: what is in a folder that `rankfold package` made."""

from __future__ import annotations

from pydantic import Field

from .base import Part, Positive, Record, Sha256


class PackagedTensor(Part):
    """An input or an output as the test data has it."""

    name: str
    type: str = Field(description="numpy's name, such as float32")
    shape: list[int] = Field(description="of the test data")
    declared: list[int | str] | None = Field(description="in the model: names or '?' for open axes, None: no shape")
    file: str = Field(description="its numbers, little-endian in C order")


class PackagedFile(Part):
    """A file of the package, by its path inside."""

    path: str
    size_bytes: int
    sha256: Sha256


class Package(Record):
    """`manifest.json`: the files of a package but this and SHA256SUMS. Format 1: first version."""

    rankfold_version: str
    onnxruntime_version: str = Field(description="that made model.ort and the expected outputs")
    source_sha256: Sha256 = Field(
        description="of the file that was packaged; model.onnx's, unless its data lay outside"
    )
    ir_version: int
    opsets: dict[str, int] = Field(description="by domain; ONNX's own is ai.onnx")
    inputs: list[PackagedTensor]
    outputs: list[PackagedTensor]
    tolerance: Positive = Field(description="max |difference| / max |expected| of an output, at most")
    files: list[PackagedFile]

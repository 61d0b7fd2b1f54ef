"""Read and write data/layers.csv: a network's layers in order of execution."""

from dataclasses import asdict, fields

from sglp.layer import Layer
from stages.support.tables import read_rows, write_rows


def write_layers(path: str, layers: list[Layer]) -> None:
    """Write layers as a CSV table."""
    write_rows(path, [field.name for field in fields(Layer)], (list(asdict(layer).values()) for layer in layers))


def read_layers(path: str) -> list[Layer]:
    """Read the layers that `write_layers` wrote."""
    return [
        Layer(row["name"], row["removable"] == "True", row["reason"], int(row["parameters"]), int(row["macs"]))
        for row in read_rows(path)
    ]

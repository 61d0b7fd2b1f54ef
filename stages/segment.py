"""Divide the layers into k segments: contiguous groups of similar layers."""

from sglp.segmentation import equal_segments, number_of_segments, segmentation_table
from stages.support import stage
from stages.support.matrices import read_similarity
from stages.support.params import DeclaredParams
from stages.support.tables import write_json, write_rows


def main(params: DeclaredParams, workload: DeclaredParams) -> None:
    """Write the segments, and the loss for every k."""
    similarity = read_similarity("data/similarity.csv")
    table = segmentation_table(similarity, params.segment.feature)
    k = number_of_segments(params.k, table.losses, params.method, params.segment.min_loss_drop)
    segments = table.segments(k) if params.segment.by == "fisher" else equal_segments(len(similarity), k)
    write_json("data/segments.json", segments)
    write_rows(
        "reports/segmentation.csv", ("k", "loss"), ((i + 1, repr(x)) for i, x in enumerate(table.losses.tolist()))
    )


if __name__ == "__main__":
    stage.run(main, "segment")

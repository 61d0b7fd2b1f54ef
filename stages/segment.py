"""Segments: the layers cut into k contiguous groups of similar ones."""

from sglp.segmentation import choose_k, segmentation_table
from stages.support import stage
from stages.support.params import View
from stages.support.tables import read_similarity, write_json, write_rows


def main(params: View, workload: View) -> None:
    """One table gives every k."""
    table = segmentation_table(read_similarity("data/similarity.csv"), params.segment.feature)
    k = choose_k(table.losses, params.segment.auto_share) if params.k == "auto" else params.k
    # The rivals in sglp.baselines use no segments: they get one, so that k never runs them again.
    uses_segments = params.method == "sglp" or ":" in params.method
    segments = table.segments(k if uses_segments else 1)
    write_json("data/segments.json", segments)
    write_rows(
        "reports/segmentation.csv", ("k", "loss"), ((i + 1, repr(x)) for i, x in enumerate(table.losses.tolist()))
    )


if __name__ == "__main__":
    stage.run(main, "segment")

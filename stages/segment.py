"""Segments: the layers cut into k contiguous groups of similar ones."""

from sglp.segmentation import choose_k, equal_segments, segmentation_table
from stages.support import stage
from stages.support.params import View
from stages.support.tables import read_similarity, write_json, write_rows


def main(params: View, workload: View) -> None:
    """One table gives every k."""
    similarity = read_similarity("data/similarity.csv")
    table = segmentation_table(similarity, params.segment.feature)
    k = choose_k(table.losses, params.segment.auto_share) if params.k == "auto" else params.k
    # The rivals in sglp.baselines use no segments: they get one, so that k never runs them again.
    uses_segments = params.method == "sglp" or ":" in params.method
    k = k if uses_segments else 1
    segments = table.segments(k) if params.segment.by == "fisher" else equal_segments(len(similarity), k)
    write_json("data/segments.json", segments)
    write_rows(
        "reports/segmentation.csv", ("k", "loss"), ((i + 1, repr(x)) for i, x in enumerate(table.losses.tolist()))
    )


if __name__ == "__main__":
    stage.run(main, "segment")

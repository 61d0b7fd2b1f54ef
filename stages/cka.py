"""Compute the similarity of every pair of layers: minibatch CKA over the shards of Gram matrices."""

from pathlib import Path

from safetensors.torch import load_file

import sglp
from stages.support import stage
from stages.support.matrices import write_similarity
from stages.support.params import DeclaredParams
from stages.support.tables import read_rows


def main(params: DeclaredParams, workload: DeclaredParams) -> None:
    """Stream the shards, one in memory at a time."""
    shards = sorted(Path("data/grams").glob("*.safetensors"))
    grams = (load_file(shard)["grams"] for shard in shards)
    names = [row["name"] for row in read_rows("data/layers.csv")]
    write_similarity("data/similarity.csv", sglp.cka_matrix(grams, params.cka.estimator, params.cka.kernel, names))


if __name__ == "__main__":
    stage.run(main, "cka")

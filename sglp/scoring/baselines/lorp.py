"""LoRP: remove the most redundant layers of clusters of layers with similar inputs.

S is the mean cosine between the inputs of two layers: of the states of each token [samples, tokens, channels], without
padding, or else of a sample's whole activation. Inputs of different shapes, as in a CNN whose shapes change between
stages, have similarity 0. The stem is not part of S. With the mean m of S off its diagonal, the representation locality
score is -log2(m). Spectral clustering of (S + 1) / 2 makes 2 clusters if the score is at least 1, 3 if it is at least
0.7, otherwise 4.

The redundancy of a layer is its mean S to the other layers of its cluster. First the most redundant layer of each
cluster is removed, in order of depth; then repeatedly the most redundant layer of the cluster whose remaining layers
have the largest mean S. Clusters with a single remaining layer come last. The first and the last layer besides the stem
are removed only if all other removable layers are. In scores.csv the removed layers come first, in order of removal;
the score is 1 - redundancy, and 2 for a layer that is alone in its cluster.

Source: Yun et al., Locality-Aware Redundancy Pruning for LLM Depth Compression (arXiv 2605.27786), with the details of
the authors' code; 0 for different shapes and the order of the protected layers are of this project.
Cost: forward `B`, backward `0`. The inputs of all layers for one batch are in memory at a time.
Use: with language models, as a second method of one pass without labels: it spreads the removed layers over the depth
where all layers are similar, and removes neighbours where only neighbours are. It was never compared with methods that
measure the loss. In a CNN similarities of 0 between stages decide the clusters.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from torch import nn

from sglp.layer import Layer
from sglp.plan import Plan
from sglp.scores import LayerScore
from sglp.scoring.combinations import best_plan
from sglp.scoring.input_similarity import input_similarity
from sglp.scoring.ranking import check_keep
from sglp.scoring.spectral import spectral_clusters

CLUSTERS = ((1.0, 2), (0.7, 3), (-math.inf, 4))  # least representation locality score, number of clusters


def lorp(
    network: nn.Module,
    layers: Sequence[Layer],
    segments: Sequence[tuple[int, int]],
    similarity: np.ndarray,
    batches: Iterable,
    keep: int,
    seed: int,
) -> tuple[Plan, list[LayerScore]]:
    """Remove the most redundant layers of clusters of layers with similar inputs.

    The arguments are those of every method; see `sglp.scoring.methods`.

    Raises:
        ScoringError: `batches` is empty, or a similarity is not finite.
    """
    check_keep(layers, keep)
    blocks = [i for i, layer in enumerate(layers) if not layer.is_stem]
    cosines = input_similarity(network, [layers[i] for i in blocks], batches)
    clusters = clusters_of(cosines)
    redundancy = redundancies(cosines, clusters)
    removable = [layers[i].removable for i in blocks]
    order = removal_order(cosines, clusters, redundancy, removable)[: len(layers) - keep]
    scores = dict(zip(blocks, (1 - value for value in redundancy), strict=True))
    removed = [blocks[block] for block in order]
    ordered = [*removed, *(i for i in range(len(layers)) if i not in removed)]
    rows = [LayerScore(0, i, scores.get(i, 0.0), "lorp", i not in removed) for i in ordered]
    return best_plan(layers, rows), rows


def clusters_of(cosines: np.ndarray) -> list[int]:
    """Return the cluster of each layer; clusters are numbered by depth."""
    num_layers = len(cosines)
    pairs = cosines[np.triu_indices(num_layers, 1)]
    mean = float(pairs.mean()) if len(pairs) else 1.0
    score = -math.log2(mean) if mean > 0 else math.inf
    count = next(count for least, count in CLUSTERS if score >= least)
    return spectral_clusters((cosines + 1) / 2, min(count, num_layers))


def redundancies(cosines: np.ndarray, clusters: Sequence[int]) -> list[float]:
    """Return each layer's mean cosine to the other layers of its cluster; -1 if there are none."""
    values = []
    for i, cluster in enumerate(clusters):
        others = [j for j, other in enumerate(clusters) if other == cluster and j != i]
        values.append(float(cosines[i, others].mean()) if others else -1.0)
    return values


def removal_order(
    cosines: np.ndarray, clusters: Sequence[int], redundancy: Sequence[float], removable: Sequence[bool]
) -> list[int]:
    """Return all removable layers in the order in which they are removed."""
    protected = {0, len(clusters) - 1}
    ranked = sorted((i for i in range(len(clusters)) if removable[i]), key=lambda i: -redundancy[i])
    waiting: dict[int, list[int]] = {cluster: [] for cluster in sorted(set(clusters))}
    for i in ranked:
        if i not in protected:
            waiting[clusters[i]].append(i)
    order = [candidates.pop(0) for candidates in waiting.values() if candidates]

    def mean_of_remaining(cluster: int) -> float:
        remaining = [i for i, own in enumerate(clusters) if own == cluster and i not in order]
        pairs = cosines[np.ix_(remaining, remaining)][np.triu_indices(len(remaining), 1)]
        return float(pairs.mean()) if len(pairs) else -math.inf

    while any(waiting.values()):
        cluster = max((cluster for cluster, candidates in waiting.items() if candidates), key=mean_of_remaining)
        order.append(waiting[cluster].pop(0))
    return [*order, *(i for i in ranked if i in protected)]

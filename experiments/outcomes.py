"""What one model's settings came to: their quality, their cost, which of them no other one beats."""

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from experiments.records import ExperimentError, Record
from experiments.settings import Setting, reference, settings
from experiments.statistics import Spread, pareto_front, spread
from stages.support.outcome import METRICS

# The metrics that tell good from bad, the first that a task reports; 1 where more is better.
SIGNS = {"accuracy": 1, "perplexity": -1, "loss": -1}


class Quality(NamedTuple):
    """The metric that settings are compared by; `share` is shown as per cent."""

    key: str
    label: str
    sign: int
    share: bool


class Cost(NamedTuple):
    """What networks cost: the dense one, and every setting on average, None where it was not measured."""

    label: str
    unit: str
    dense: float
    values: list[float | None]


class Comparison(NamedTuple):
    """One model.

    Attributes:
        records: all of them.
        settings: the best first, by the seeds that all have, if there are such.
        reference: the setting that ablations start from.
        quality: what is compared.
        dense: the dense network's metrics.
        costs: of the networks: MACs, parameters, latency.
    """

    records: list[Record]
    settings: list[Setting]
    reference: Setting
    quality: Quality
    dense: dict
    costs: list[Cost]

    def spread(self, setting: Setting, network: str = "finetuned") -> Spread:
        """The quality of a setting's networks over its runs."""
        return spread([record.metrics[network][self.quality.key] for record in setting.records])

    def difference(self, setting: Setting, than: Setting | None = None) -> Spread | None:
        """How much more the quality is than another setting's (else the reference's), over seeds that both have.

        Runs of a seed that another kind of processor made do not count: their dense network is another one.
        """
        ours, theirs = (
            {(record.dials["seed"], self.of_dense(record)): record.metrics["finetuned"] for record in other.records}
            for other in (setting, than or self.reference)
        )
        key = self.quality.key
        changes = [metrics[key] - theirs[pair][key] for pair, metrics in ours.items() if pair in theirs]
        return spread(changes) if changes else None

    def of_dense(self, record: Record) -> str:
        """The quality of the dense network that a run started from, without the last digits, which are noise."""
        return f"{record.metrics['dense'][self.quality.key]:.4g}"

    def front(self, cost: Cost) -> list[int | None]:
        """The Pareto front of a cost: numbers of settings, None for the dense network; the cheapest first."""
        points = [(cost.dense, self.quality.sign * self.dense[self.quality.key])]
        numbers: list[int | None] = [None]
        for number, (setting, value) in enumerate(zip(self.settings, cost.values, strict=True)):
            if value is not None:
                points.append((value, self.quality.sign * self.spread(setting).mean))
                numbers.append(number)
        return [numbers[i] for i in pareto_front(points)]


def compare(records: Sequence[Record], default: dict | None = None) -> Comparison:
    """Compare the runs of one model, as `experiments.settings.by_model` gives them.

    Args:
        records: at least one.
        default: dials of the setting that ablations start from, if there is such a one.

    Raises:
        ExperimentError: they have no measure of quality in common.
    """
    every = [metrics for record in records for metrics in record.metrics.values()]
    key = next((key for key in SIGNS if all(key in metrics for metrics in every)), None)
    if key is None:
        raise ExperimentError(
            f"the runs of {records[0].dials['model']} can't be compared: their metrics must have {' or '.join(SIGNS)}"
        )
    quality = Quality(key, METRICS[key].label.partition(" (")[0], SIGNS[key], METRICS[key].form == "share")
    found, dense = settings(records), records[0].metrics["dense"]
    start = reference(found, default)
    seeds = [{record.dials["seed"] for record in setting.records} for setting in found]
    common = set.intersection(*seeds) or set.union(*seeds)  # a seed can be a lucky one of all settings

    def value(setting: Setting) -> float:
        of = [record for record in setting.records if record.dials["seed"] in common]
        return quality.sign * spread([record.metrics["finetuned"][key] for record in of]).mean

    found.sort(key=value, reverse=True)
    return Comparison(list(records), found, start, quality, dense, _costs(found, dense))


def latencies(record: Record) -> dict[str, dict]:
    """What was timed at the smallest batch, by name: medians of "latency_seconds", fine-tuned, and "speedup"."""
    if record.benchmark is None:
        return {}
    size = min(record.benchmark["batch"], key=int)
    found = {}
    for work in record.benchmark["batch"][size]["work"]:
        doing = "" if work["name"] == "forward" else f" of {work['name']}"
        seconds, times = work["latency_seconds"]["finetuned"], work["speedup"]["median"]
        found[f"latency{doing}, batch {size}"] = {"latency_seconds": seconds, "speedup": times}
    return found


def _costs(found: Sequence[Setting], dense: dict) -> list[Cost]:
    costs = [
        Cost(label, "", dense[key], [spread([r.metrics["finetuned"][key] for r in s.records]).mean for s in found])
        for label, key in (("MACs", "macs"), ("MACs a token", "macs_per_token"), ("parameters", "params"))
        if key in dense
    ]
    names = {name: None for setting in found for record in setting.records for name in latencies(record)}
    for name in names:
        # Of the dense network's, which was timed in turn with it: what else the machine did hit both.
        timed = [[1 / latencies(r)[name]["speedup"] for r in s.records if name in latencies(r)] for s in found]
        costs.append(
            Cost(name, "share of the dense network's", 1.0, [median(values) if values else None for values in timed])
        )
    return costs

"""Brings image classifiers of transformers: from the hub, a folder, or a configuration alone."""

from sglp.tasks.language_models import configured, fetched, refuse


def image_classifier(pretrained: str | None = None, revision: str | None = None, trust_remote_code=False, **config):
    """A factory for workloads: a pretrained network, or one of random weights from a configuration.

    Args:
        pretrained: a name on the hub, or a folder of safetensors with config.json.
        revision: the commit on the hub.
        trust_remote_code: whether code that comes with the network may run.
        config: of a network of random weights, as {"model_type": "vit", "hidden_size": 64, "num_labels": 10, ...}.

    Raises:
        CheckpointError: it can't be had, is broken, or needs code that may not run.
        ArchitectureError: the configuration makes no image classifier.
    """
    import transformers

    if pretrained is None:
        return configured(transformers.AutoModelForImageClassification, "image classifier", config, "num_labels")
    refuse(config)
    return fetched(transformers.AutoModelForImageClassification, pretrained, revision, trust_remote_code)

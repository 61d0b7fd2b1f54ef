"""A factory of Hugging Face image classifiers: from the hub, a folder or a configuration."""

from sglp.tasks.language_models import configured, fetched, refuse


def image_classifier(pretrained: str | None = None, revision: str | None = None, trust_remote_code=False, **config):
    """Load a pretrained image classifier, or build one with random weights from a configuration.

    Args:
        pretrained: a name on the hub, or a folder of safetensors with config.json.
        revision: commit on the hub.
        trust_remote_code: whether code that comes with the network may run.
        config: configuration of a network with random weights, such as {"model_type": "vit", "num_labels": 10, ...}.

    Raises:
        CheckpointError: the network can't be loaded, or needs code that may not run.
        ArchitectureError: the configuration is not valid.
    """
    import transformers

    if pretrained is None:
        return configured(transformers.AutoModelForImageClassification, "an image classifier", config, "num_labels")
    refuse(config)
    return fetched(transformers.AutoModelForImageClassification, pretrained, revision, trust_remote_code)

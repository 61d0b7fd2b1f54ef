"""What a workload file of a causal language model holds."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sglp.tasks.schemas.workload import Data, Distillation, Positive, Recipe, Seed, Share, Strict, Workload

MOST_TOKENS = 2048  # a Gram matrix of so many takes 32 MiB, a layer and batch


class TextPreparation(Strict):
    """How texts become sequences: joined by `separator`, turned into tokens, cut into `length` tokens each.

    tokenizer: null for the one that comes with the weights, or "bytes" (every byte is a token) for a network that is
    trained here.
    """

    text_column: str
    separator: str
    length: Annotated[int, Field(ge=2)]
    tokenizer: Literal["bytes"] | None


class TextData(Data):
    """Texts."""

    prepare: TextPreparation


class TextRecipe(Recipe):
    """How a language model is trained.

    gradient_accumulation_steps: batches that make one step.
    gradient_checkpointing: activations are computed twice instead of kept.
    """

    gradient_accumulation_steps: Positive
    gradient_checkpointing: bool


class Pretraining(TextRecipe):
    """How the dense network is trained, with a seed of its own."""

    seed: Seed


class Lora(Strict):
    """Low-rank adapters (Hu et al. 2021), merged in the end. targets: names of linear layers, or all-linear."""

    r: Positive
    alpha: Annotated[float, Field(gt=0)]
    dropout: Share
    targets: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)]


class Finetuning(TextRecipe, Distillation):
    """How the pruned network is healed.

    tuning: "lora", "partial" (output embedding, final norm and the last `last_layers` layers) or "full".
    """

    tuning: Literal["lora", "partial", "full"]
    lora: Lora
    last_layers: Annotated[int, Field(ge=0)]


class TextEvaluation(Strict):
    """How networks are evaluated.

    length, stride: of the windows for perplexity: each is `length` tokens, `stride` after the one before; every token
    is scored once (but the first, where nothing stands before it).
    tokens: how many of the test text; null for all.
    tasks, limit: tasks of lm-eval by name, and how many questions of each; null for all.
    prompts, max_new_tokens: prompts to go on from, and by how many tokens.
    """

    length: Annotated[int, Field(ge=2)]
    stride: Positive
    tokens: Annotated[int, Field(ge=2)] | None
    batch_size: Positive
    tasks: list[str]
    limit: Positive | None
    prompts: list[Annotated[str, Field(min_length=1)]]
    max_new_tokens: Positive

    @model_validator(mode="after")
    def _no_gaps(self):
        if self.stride > self.length:
            raise ValueError(f"stride={self.stride} must be at most length={self.length}, or tokens would be left out")
        return self


class TextBenchmark(Strict):
    """How networks are timed: reading a prompt of `prompt_tokens` tokens, then writing `new_tokens` tokens one by one."""

    batch_sizes: Annotated[list[Positive], Field(min_length=1)]
    prompt_tokens: Positive
    new_tokens: Annotated[int, Field(ge=2)]


class LanguageWorkload(Workload):
    """A workload of a causal language model."""

    data: TextData
    pretrain: Pretraining
    finetune: Finetuning
    evaluation: TextEvaluation
    benchmark: TextBenchmark

    @model_validator(mode="after")
    def _gram_matrices_fit(self):
        tokens = self.calibration.batch_size * self.data.prepare.length
        if self.calibration.pooling == "tokens" and tokens > MOST_TOKENS:
            raise ValueError(
                f"calibration.pooling=tokens compares all {tokens} tokens of a batch with each other: make "
                f"calibration.batch_size times data.prepare.length at most {MOST_TOKENS}"
            )
        return self

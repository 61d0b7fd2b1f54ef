"""Keys of a workload file for causal language modelling, beside those of `sglp.tasks.schemas.workload`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sglp.tasks.schemas.workload import Data, Distillation, Positive, Recipe, Seed, Share, Strict, Workload

MAX_TOKENS = 2048  # a Gram matrix of 2048 tokens takes 32 MiB per layer and batch


class TextPreparation(Strict):
    """How texts become sequences of tokens of equal length.

    Attributes:
        text_column: the column with the texts; ignored for a data-set class.
        separator: text that joins the texts into one.
        length: tokens per sequence.
        tokenizer: null for the tokenizer that comes with the weights, or "bytes", one token per byte, for a network
            that is trained from random weights.
    """

    text_column: str
    separator: str
    length: Annotated[int, Field(ge=2)]
    tokenizer: Literal["bytes"] | None


class TextData(Data):
    """Texts; see `Data`."""

    prepare: TextPreparation


class TextRecipe(Recipe):
    """How a language model is trained.

    Attributes:
        gradient_accumulation_steps: batches per optimizer step.
        gradient_checkpointing: recompute activations in the backward pass instead of storing them, to save memory.
    """

    gradient_accumulation_steps: Positive
    gradient_checkpointing: bool


class Pretraining(TextRecipe):
    """How the dense network is trained if `weights.train` is true.

    Attributes:
        seed: seed of the random weights and of training, independent of `seed` in params.yaml.
    """

    seed: Seed


class Lora(Strict):
    """Low-rank adapters (Hu et al. 2021), which are merged into the weights after training.

    Attributes:
        r: rank of the adapters.
        alpha: scale of the adapters, divided by `r`.
        dropout: dropout of the adapters' inputs.
        targets: names of the linear layers to adapt, such as [q_proj, v_proj], or "all-linear".
    """

    r: Positive
    alpha: Annotated[float, Field(gt=0)]
    dropout: Share
    targets: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)]


class Finetuning(TextRecipe, Distillation):
    """How the pruned network is fine-tuned.

    Attributes:
        tuning: "lora"; "partial", which trains the output embedding, the final norm and the last layers; or "full".
        lora: the adapters, for tuning "lora".
        last_layers: number of last layers to train, for tuning "partial".
    """

    tuning: Literal["lora", "partial", "full"]
    lora: Lora
    last_layers: Annotated[int, Field(ge=0)]


class TextEvaluation(Strict):
    """How networks are evaluated: perplexity on the test split, questions, and examples of generated text.

    Attributes:
        length: tokens per window in which perplexity is measured.
        stride: distance in tokens from one window to the next. Every token is scored once, in the first window that
            holds it; the first token of the text is scored only if the tokenizer puts a token before it.
        tokens: number of test tokens; null for all.
        batch_size: windows or answers per batch.
        tasks: names of question tasks, of lm-eval or in `files.tasks`.
        limit: number of questions per task; null for all.
        prompts: texts that the network continues, for the report.
        max_new_tokens: largest number of tokens to generate per prompt.
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
    def _windows_leave_no_gaps(self) -> Self:
        if self.stride > self.length:
            raise ValueError(f"stride={self.stride} must be at most length={self.length}, or tokens would be skipped")
        return self


class TextBenchmark(Strict):
    """How networks are timed: reading prompts in one pass, then generating tokens one by one.

    Attributes:
        batch_sizes: numbers of prompts per batch; each batch size is timed.
        prompt_tokens: tokens per prompt.
        new_tokens: tokens to generate per prompt.
    """

    batch_sizes: Annotated[list[Positive], Field(min_length=1)]
    prompt_tokens: Positive
    new_tokens: Annotated[int, Field(ge=2)]


class LanguageWorkload(Workload):
    """A workload of causal language modelling; see `Workload` for the other keys.

    Attributes:
        data: the texts.
        pretrain: how the dense network is trained.
        finetune: how the pruned network is fine-tuned.
        evaluation: how networks are evaluated.
        benchmark: how networks are timed.
    """

    data: TextData
    pretrain: Pretraining
    finetune: Finetuning
    evaluation: TextEvaluation
    benchmark: TextBenchmark

    @model_validator(mode="after")
    def _gram_matrices_fit(self) -> Self:
        tokens = self.calibration.batch_size * self.data.prepare.length
        if self.calibration.pooling == "tokens" and tokens > MAX_TOKENS:
            raise ValueError(
                f"calibration.pooling=tokens compares all {tokens} tokens of a batch with each other: "
                f"calibration.batch_size times data.prepare.length must be at most {MAX_TOKENS}"
            )
        return self

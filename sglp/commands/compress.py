"""``sglp compress``: the command and its options."""

import json
from pathlib import Path
from typing import Annotated

import typer

from sglp.commands import options
from sglp.commands.options import Arguments, Trust


def compress(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="a folder, a GGUF file, a name on the hub (owner/name), a network of torchvision, timm/NAME, or a "
            "factory (package.module:function)",
        ),
    ],
    text: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="texts for a language model: .txt, .jsonl, .json or .parquet, or a folder"),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="images for an image classifier, with one subfolder per class or without"),
    ] = None,
    out: Annotated[str | None, typer.Option(metavar="FOLDER", help="the folder to write, which must not exist")] = None,
    remove: Annotated[
        float, typer.Option(metavar="SHARE", help="the share of the removable layers to remove, without a target")
    ] = 0.5,
    target: Annotated[
        dict | None,
        typer.Option(
            parser=options.cost_share,
            metavar="COST=SHARE",
            help="the share of the macs, parameters or latency to keep, such as macs=0.5",
        ),
    ] = None,
    method: Annotated[str, typer.Option(metavar="NAME", help="sglp, or a method of docs/methods.md")] = "sglp",
    k: Annotated[str, typer.Option(metavar="NUMBER", help="number of segments of similar layers, or auto")] = "3",
    seed: Annotated[int, typer.Option(metavar="NUMBER", min=0, help="for every random draw")] = 0,
    reconstruct: Annotated[
        bool, typer.Option(help="refit the kept layers to what the dense network gives at their place")
    ] = True,
    heal: Annotated[
        int, typer.Option(metavar="STEPS", min=0, help="steps of LoRA for a language model, on 4 sequences each")
    ] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show the plan and what it saves; write nothing")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
    column: Annotated[str, typer.Option(metavar="NAME", help="the column or key with the texts")] = "text",
    length: Annotated[int, typer.Option(metavar="NUMBER", min=2, help="tokens per sequence")] = 256,
    size: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            min=1,
            help="height and width of images (default: 224, or what the weights ask for)",
        ),
    ] = None,
    mean: Annotated[
        list | None,
        typer.Option(parser=options.numbers, metavar="M,M,M", help="mean of each channel, for pixels in 0..1"),
    ] = None,
    std: Annotated[
        list | None, typer.Option(parser=options.numbers, metavar="S,S,S", help="standard deviation of each channel")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME", help="the weights of a network of a library or of a factory", show_default=False
        ),
    ] = None,
    kwargs: Arguments = None,
    revision: Annotated[str | None, typer.Option(metavar="COMMIT", help="commit of a model on the hub")] = None,
    trust: Trust = [],  # noqa: B006  # typer needs a list
) -> None:
    """Remove whole layers from a trained network, refit the others, and write the smaller network.

    The folder --out then holds the network (for sglp.load; a language model also loads with plain from_pretrained), its
    model card, plan.json and report.html. A tenth of the texts or images is held out, to measure the
    network before and after.

    \b
    examples:
      sglp compress HuggingFaceTB/SmolLM2-135M --text corpus.txt --remove 0.2 --out small/
      sglp compress model.gguf --text chats.jsonl --column content --remove 0.2 --heal 50 --out small/
      sglp compress resnet50 --images photos/ --target macs=0.5 --out small/
      sglp compress resnet18 --weights mine.safetensors --kwargs '{"num_classes": 10}' --images photos/ --dry-run
    """
    from sglp.commands import making, writing

    out = None if dry_run else out
    making.check(text, images, out, dry_run, heal)
    network, tokenizer, samples = making.opened(
        model, text, images, seed,
        column=column, length=length, size=size, mean=mean, std=std,
        weights=weights, kwargs=kwargs, revision=revision, trust=trust,
    )  # fmt: skip
    made = making.make(
        network, samples, remove=remove, target=target, method=method, k=options.segments(k), seed=seed,
        reconstruct=reconstruct and not dry_run, heal=0 if dry_run else heal, measure=not dry_run,
    )  # fmt: skip
    if out is not None:
        writing.write(Path(out), made, samples, tokenizer, writing.facts(model, samples, made, method, seed, heal))
    print(json.dumps(made.summary(samples, out), indent=2) if as_json else made.text(samples, out))

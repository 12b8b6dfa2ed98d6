"""`freetf bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from freetf_cli.cli.options import DeviceOption, SetOption, SmokeOption, complete_recipe
from freetf_cli.cli.output import Described
from freetf_cli.errors import InputError

if TYPE_CHECKING:
    from freetf_cli.bench.train_step import Variant

RecipesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="RECIPE…", help="Recipes to compare; one Free recipe alone is compared with its baseline.", autocompletion=complete_recipe
    ),
]
StepsOption = Annotated[int, typer.Option(min=1, max=100_000, help="Steps per round, after a warm-up.")]
RepeatsOption = Annotated[int, typer.Option(min=1, max=1000, help="Number of rounds; median and range are reported.")]


def train(
    recipes: RecipesArgument,
    set_: SetOption = None,
    smoke: SmokeOption = False,
    steps: StepsOption = 10,
    repeats: RepeatsOption = 5,
    device: DeviceOption = "auto",
) -> Described:
    """Time a training step on random tokens.

    Reports ratios to the first recipe, peak memory, and the share of the speed of a large matrix product. The encoder and the mapper of a
    Free model are also measured alone.

    $ freetf bench train letters-free
    $ freetf bench train paper-1.5b-free --set train.batch=4 --set train.grad_accum_steps=1 --set model.context=2048
    """
    from freetf_cli.bench.timing import Effort
    from freetf_cli.bench.train_step import bench_train
    from freetf_cli.device import resolve_device
    from freetf_cli.report.progress import counter

    variants = _variants(recipes, smoke, set_)
    with counter("recipes", total=len(variants)) as advance:
        return bench_train(variants, resolve_device(device), Effort(steps, repeats), advance)


def sample(
    recipes: RecipesArgument,
    set_: SetOption = None,
    smoke: SmokeOption = False,
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, max=1 << 16, help="Sequences generated together. May be repeated. Default: 1 and 64."),
    ] = None,
    prompt: Annotated[int, typer.Option("--prompt-tokens", min=1, max=1 << 20, help="Length of the random prompt.")] = 2,
    new_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, max=1 << 20, help="Tokens to generate; default: until the context is full.")
    ] = None,
    repeats: RepeatsOption = 5,
    device: DeviceOption = "auto",
) -> Described:
    """Time generation from random weights.

    Reports tokens per second, ratios to the first recipe, and the share of the memory bandwidth.

    $ freetf bench sample letters-free --batch 1 --batch 64
    $ freetf bench sample paper-1.5b-free --max-tokens 128
    """
    from freetf_cli.bench.generation import bench_sample
    from freetf_cli.bench.timing import Effort
    from freetf_cli.device import resolve_device
    from freetf_cli.report.progress import counter

    variants, batches = _variants(recipes, smoke, set_), batch or [1, 64]
    room = min(variant.recipe.model.context or 1 for variant in variants) + 1 - prompt
    if room < (new_tokens or 1):
        what = f"a prompt of {prompt} tokens and {new_tokens or 1} new tokens exceed the row of {room + prompt} tokens"
        raise InputError(what, hint="lower --max-tokens, or raise the context: --set model.context=…")
    with counter("batches", total=len(variants) * len(batches)) as advance:
        return bench_sample(variants, batches, prompt, new_tokens or room, resolve_device(device), Effort(1, repeats), advance)


def mapper(
    tokens: Annotated[int, typer.Option(min=1, max=1 << 24, help="Tokens in the batch.")] = 1024,
    width: Annotated[int, typer.Option(min=1, max=1 << 16, help="Width D of the model.")] = 256,
    bits: Annotated[int, typer.Option(min=1, max=20, help="Bits H of the latent.")] = 16,
    steps: StepsOption = 5,
    repeats: RepeatsOption = 5,
    device: DeviceOption = "auto",
) -> Described:
    """Time each method of computing the mapper's gradient with respect to the bits' logits.

    Reports each method's error, and the time of its matrix product alone.

    $ freetf bench mapper --tokens 2048 --width 128 --bits 12
    """
    from freetf_cli.bench.mapper import bench_mapper
    from freetf_cli.bench.timing import Effort
    from freetf_cli.device import resolve_device
    from freetf_cli.kernels.support import runs_kernels
    from freetf_cli.report.progress import counter

    where = resolve_device(device)
    with counter("methods", total=3 + runs_kernels(where)) as advance:
        return bench_mapper(tokens, width, bits, where, Effort(steps, repeats), advance)


def _variants(names: list[str], smoke: bool, settings: list[str] | None) -> list[Variant]:
    """The recipes, one alone after its baseline; vocabulary and context come from the data if a recipe does not set them."""
    from freetf_cli.bench.train_step import Variant, with_baselines
    from freetf_cli.config.files import load_recipe
    from freetf_cli.training.start import resolve

    recipes = [load_recipe(name, smoke=smoke, overrides=settings or []) for name in names]
    known = [recipe if recipe.model.vocab and recipe.model.context else resolve(recipe)[0] for recipe in recipes]
    return with_baselines([Variant(name, recipe) for name, recipe in zip(names, known, strict=True)])

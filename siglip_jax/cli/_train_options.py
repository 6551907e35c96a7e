"""The options of `siglip-jax train`, from which tyro makes the command line; it shows the comments as help."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from siglip_jax.training.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Options:
    """A run: what the recipe leaves open, and the recipe."""

    data: tuple[str, ...]  # tar shards, Parquet, JSON lines, CSV, Arrow, class folders; PATH=WEIGHT for a mixture
    model: str  # Hub name, directory or file that gives sizes, processor and weights
    out: Path  # directory for the model, checkpoints and log.jsonl
    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    dry_run: bool = False  # say what would be done, parameter by parameter, and stop
    json: bool = False  # print JSON
    workers: int = 0  # processes that read and decode; 0: threads of this one
    image_key: str | None = None  # column of the images; None: one of the usual names
    text_key: str | None = None  # column of the captions
    label_key: str | None = None  # column of the labels
    save_every: int = 1000  # steps between checkpoints
    keep: int = 2  # number of latest checkpoints that stay
    log_every: int = 20  # steps between lines of the log
    evaluate: str | None = None  # data set to evaluate every checkpoint on: zero-shot, retrieval or accuracy
    best: str | None = None  # metric of the evaluation whose best checkpoint is kept too
    tensorboard: bool = False  # write TensorBoard files too

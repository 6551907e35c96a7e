"""Options of `siglip-jax train`: tyro derives the command line from the fields, and the help from their comments."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from siglip_jax.training.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Options:
    """A training run: the recipe, and everything that the recipe leaves open."""

    # Tar shards, Parquet, Arrow, JSON lines, CSV, COCO's .json, images with a .txt beside each, or class folders.
    # PATH=WEIGHT for a mixture.
    data: tuple[str, ...]
    model: str  # Hub name, directory or file with the sizes, the processor and the weights
    out: Path  # directory for the model, the checkpoints and log.jsonl
    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    dry_run: bool = False  # print the plan, parameter by parameter, and stop
    topology: str | None = None  # with --dry-run: also plan a step on TPUs that need not be there, as v5e:16x16
    json: bool = False  # print JSON
    workers: int = 0  # processes that read and decode; 0: threads of this process
    image_key: str | None = None  # column of the images; None: a usual name
    text_key: str | None = None  # column of the captions; None: a usual name
    label_key: str | None = None  # column of the labels; None: a usual name
    kind: str | None = None  # tar, parquet, arrow, table, texts or images: which to read in a folder of several kinds
    root: str | None = None  # folder that the images of a table are in, if its paths lead out of its own folder
    save_every: int = 1000  # steps between checkpoints
    keep: int = 2  # number of latest checkpoints to keep
    log_every: int = 20  # steps between lines of log.jsonl
    evaluate: str | None = None  # data set on which every checkpoint is evaluated: zero-shot, retrieval or accuracy
    best: str | None = None  # metric of the evaluation; the checkpoint with the best value is kept too
    tensorboard: bool = False  # also write TensorBoard files

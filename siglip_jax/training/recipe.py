"""Everything the result of a training run depends on, besides the data: frozen dataclasses, to be changed by `replace`.

The command line shows every field as an option, so each has its meaning and unit beside it. Named recipes are in
`siglip_jax.training.recipes`.
"""

import dataclasses
import re
from fractions import Fraction
from typing import Literal

from siglip_jax.rules import Rules

EVERYTHING: Rules[float] = ((".*", 1.0),)
KERNELS: Rules[float] = ((".*/kernel", 1.0), (".*", 0.0))  # big_vision's default: no tables, norms, biases, scalars

_UNITS = {"step": "steps", "epoch": "epochs", "example": "examples", "percent": "percent", "%": "percent"}


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How a gradient becomes an update."""

    name: Literal["adamw", "adafactor", "muon"] = "adamw"  # adafactor: the variant of "Scaling Vision Transformers"
    rate: float = 1e-3  # peak learning rate
    rates: Rules[float] = EVERYTHING  # (pattern over the path, factor of the rate), first match wins; 0 freezes
    weight_decay: float = 1e-4  # share of a parameter taken off a step at the schedule's peak, whatever the rate
    decays: Rules[float] = KERNELS  # (pattern over the path, factor of the weight decay), first match wins
    beta1: float = 0.9  # decay of the mean of the gradients, per step; of Muon's momentum too
    beta2: float = 0.95  # decay of the mean of their squares, per step; for adafactor the most it grows to
    epsilon: float = 1e-8  # added to the root of the mean square (adamw, and muon where it falls back to it)
    clip_norm: float | None = 1.0  # largest norm of the gradient of all that is trained; None: any
    average: float | None = None  # decay of a moving average of the weights, per step; None: none is kept


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What the rate and the weight decay are multiplied by, from 0 to 1."""

    shape: Literal["cosine", "linear", "rsqrt", "constant"] = "cosine"  # between warm-up and cool-down
    warmup: str = "0 steps"  # linear, from 0
    cooldown: str = "0 steps"  # linear, to 0
    final: float = 0.0  # what cosine and linear end at
    timescale: float = 10_000.0  # steps; of rsqrt


@dataclasses.dataclass(frozen=True)
class Lora:
    """Low-rank additions to frozen matrices (Hu et al. 2021, arXiv 2106.09685)."""

    rank: int = 0  # 0: none
    alpha: float = 16.0  # the addition is multiplied by alpha / rank
    where: str = r".*/(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"  # pattern over the paths of dense layers


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Devices along each axis; see `siglip_jax.make_mesh`."""

    data: int = -1  # different examples; -1: as many as the others leave
    fsdp: int = 1  # different examples, and different parts of each parameter
    tensor: int = 1  # different parts of each layer's width


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A training run."""

    task: Literal["pairs", "labels"] = "pairs"  # image-text pairs, or images with labels
    loss: Literal["sigmoid", "softmax"] = "sigmoid"  # of pairs; labels have cross-entropy
    equal_texts_match: bool = False  # whether equal captions in a batch match each other's images too (sigmoid)
    fresh: str | None = None  # pattern over the paths of parameters that start anew, not from the checkpoint
    resolution: int | None = None  # pixels; None: that of the checkpoint
    augment: Literal["none", "flip", "crop", "crop_flip"] = "none"
    batch_size: int = 256  # examples of a step, over all devices
    micro_batches: int = 1  # parts that a step is computed in, for less memory; the gradient is that of the whole
    duration: str = "10 epochs"  # steps, epochs or examples
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    lora: Lora = Lora()
    locked_images: bool = False  # embed each image once, and train the rest on that (LiT); nothing of the image tower
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; the weights are float32
    remat: Literal["full", "dots", "dots_with_no_batch_dims"] | None = None  # what is computed twice to save memory
    scan_layers: bool = False  # one layer compiled for all
    mesh: MeshShape = MeshShape()
    seed: int = 0  # of fresh weights, order and augmentation

    def __post_init__(self) -> None:
        for name in ("batch_size", "micro_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_size % self.micro_batches:
            raise ValueError(
                f"micro_batches must divide batch_size, got {self.micro_batches} and {self.batch_size};"
                " change one of them"
            )
        if self.equal_texts_match and (self.task, self.loss) != ("pairs", "sigmoid"):
            raise ValueError(
                "equal_texts_match is for pairs with the sigmoid loss, got"
                f" task={self.task!r} and loss={self.loss!r}; change one of them"
            )
        if self.locked_images and self.task != "pairs":
            raise ValueError(f"locked_images is for pairs, got task={self.task!r}; freeze with optimizer.rates instead")
        if self.locked_images and self.augment != "none":
            raise ValueError(f"locked_images embeds each image once, so augment must be 'none', got {self.augment!r}")
        if self.lora.rank < 0:
            raise ValueError(f"lora.rank must be 0 or more, got {self.lora.rank}")
        if self.lora.rank and self.scan_layers:
            raise ValueError("lora needs scan_layers=False: stacked layers have no paths of their own")
        for text in (self.duration, self.schedule.warmup, self.schedule.cooldown):
            parse_duration(text)


def parse_duration(text: str) -> tuple[Fraction, str]:
    """Returns the amount and the unit of a duration: "5000 steps", "10 epochs", "1e6 examples", "3 percent".

    Raises:
      ValueError: if it is none of them.
    """
    m = re.fullmatch(r"\s*([0-9.]+(?:[eE]\+?[0-9]+)?)\s*(steps?|epochs?|examples?|percent|%)\s*", text)
    try:
        amount = Fraction(m[1]) if m else None
    except ValueError:
        amount = None
    if m is None or amount is None:
        raise ValueError(f"expected a duration such as '5000 steps', '10 epochs' or '1e6 examples', found {text!r}")
    return amount, _UNITS[m[2].rstrip("s")]


def steps_of(text: str, *, batch_size: int, examples: int, total: int | None = None) -> int:
    """Returns a duration in steps, rounded to the nearest, at least 1 unless it is 0.

    Args:
      text: see `parse_duration`.
      batch_size: examples of a step.
      examples: of an epoch.
      total: steps that "percent" is of.

    Raises:
      ValueError: if it is no duration, or a percentage of nothing.
    """
    amount, unit = parse_duration(text)
    if unit == "percent":
        if total is None:
            raise ValueError(f"the duration of a run is given in steps, epochs or examples, found {text!r}")
        steps = amount * total / 100
    elif unit == "steps":
        steps = amount
    else:
        steps = amount * (examples if unit == "epochs" else 1) / batch_size
    return max(round(steps), 1) if amount else 0

"""Everything but the data that the result of a training run depends on: frozen dataclasses, changed by `replace`.

The command line shows every field as an option; its help is the text under `Attributes`, whose lines must begin with a
letter to be joined, or else the comment beside the field. Named recipes are in `siglip_jax.training.recipes`.
"""

import dataclasses
from typing import Literal

from siglip_jax._files import MAX_PIXELS
from siglip_jax.rules import Rules
from siglip_jax.training.durations import parse_duration
from siglip_jax.training.naflex import Naflex
from siglip_jax.training.terms import Captioning, Curation, Growth, Late, SelfDistillation

EVERYTHING: Rules[float] = ((".*", 1.0),)
KERNELS: Rules[float] = ((".*/kernel", 1.0), (".*", 0.0))  # big_vision's default: no tables, norms, biases, scalars


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How gradients become updates, with the semantics of big_vision.

    The weight decay is the share of a parameter that a step at the schedule's peak subtracts, whatever the rate: the
    rate 1e-3 and decay 1e-4 of the paper are `weight_decay=0.1` in `optax.adamw`.

    Source: `big_vision/optax.py:make`.

    Attributes:
      name: "adamw", "muon", or "adafactor": the variant of "Scaling Vision Transformers" (Zhai et al. 2021, section
        3.4).
      rate: peak learning rate.
      rates: pairs (regular expression for the whole path of a parameter, factor of the rate); the first match wins, and
        the factor 0 freezes.
      weight_decay: share of a parameter that a step at the schedule's peak subtracts.
      decays: pairs (regular expression for the whole path of a parameter, factor of the weight decay); the first match
        wins. By default kernels only.
      beta1: decay of the mean of the gradients per step, and of Muon's momentum.
      beta2: decay of the mean of the squared gradients per step; with "adafactor" the value that it grows to.
      epsilon: term added to the root of the mean square, with "adamw" and where "muon" uses Adam.
      clip_norm: largest global norm of the gradient of the trained parameters; None: not clipped.
      average: decay of a moving average of the weights per step; None: no average is kept.

    Example:
      >>> from siglip_jax.training import Optimizer
      >>> optimizer = Optimizer(rate=1e-5, rates=(("vision_model/.*", 0.0), (".*", 1.0)))
      >>> optimizer.name, optimizer.decays
      ('adamw', (('.*/kernel', 1.0), ('.*', 0.0)))
    """

    name: Literal["adamw", "adafactor", "muon"] = "adamw"  # adafactor: the variant of "Scaling Vision Transformers"
    rate: float = 1e-3  # peak learning rate
    rates: Rules[float] = EVERYTHING  # (pattern for the path, factor of the rate), first match wins; 0 freezes
    weight_decay: float = 1e-4  # share of a parameter that a step at the schedule's peak subtracts, whatever the rate
    decays: Rules[float] = KERNELS  # (pattern for the path, factor of the weight decay), first match wins
    beta1: float = 0.9  # decay of the mean of the gradients per step, and of Muon's momentum
    beta2: float = 0.95  # decay of the mean of the squared gradients per step; with adafactor the value it grows to
    epsilon: float = 1e-8  # term added to the root of the mean square, with adamw and where muon uses Adam
    clip_norm: float | None = 1.0  # largest global norm of the gradient of the trained parameters; None: not clipped
    average: float | None = None  # decay of a moving average of the weights per step; None: no average is kept


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The factor of the rate and the weight decay, from 0 to 1, as a function of the step.

    Durations are strings of a number and a unit: "500 steps", "2 epochs", "1e6 examples" or "5 percent" of the run.

    Attributes:
      shape: "cosine", "linear", "rsqrt" or "constant", between warm-up and cool-down.
      warmup: duration of the linear rise from 0 at the start.
      cooldown: duration of the linear fall to 0 at the end.
      final: factor that "cosine" and "linear" end at.
      timescale: time constant of "rsqrt" in steps; n steps after warm-up the factor is
        sqrt(timescale / (timescale + n)).

    Example:
      >>> from siglip_jax.training import Schedule
      >>> Schedule("linear", warmup="5 percent").final
      0.0
    """

    shape: Literal["cosine", "linear", "rsqrt", "constant"] = "cosine"  # curve between warm-up and cool-down
    warmup: str = "0 steps"  # duration of the linear rise from 0; steps, epochs, examples or percent of the run
    cooldown: str = "0 steps"  # duration of the linear fall to 0; steps, epochs, examples or percent of the run
    final: float = 0.0  # factor that cosine and linear end at
    timescale: float = 10_000.0  # time constant of rsqrt, in steps


@dataclasses.dataclass(frozen=True)
class Lora:
    """Low-rank additions to frozen matrices.

    Source: Hu et al. 2021, arXiv 2106.09685.

    Attributes:
      rank: rank of the additions; 0: there are none.
      alpha: the additions are multiplied by `alpha / rank`.
      where: regular expression for the whole path of each dense layer that gets an addition.

    Example:
      >>> from siglip_jax.training import Lora
      >>> lora = Lora(rank=8)
      >>> lora.alpha / lora.rank
      2.0
    """

    rank: int = 0  # rank of the additions; 0: none
    alpha: float = 16.0  # the additions are multiplied by alpha / rank
    where: str = r".*/(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"  # pattern for the paths of dense layers


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Number of devices along each axis of the mesh that `siglip_jax.make_mesh` makes.

    Attributes:
      data: devices along `data`, over which the batch is sharded; -1: all that the other axes leave.
      fsdp: devices along `fsdp`, over which the batch and each parameter are sharded.
      tensor: devices along `tensor`, over which the width of each layer is sharded.

    Example:
      >>> from siglip_jax.training import MeshShape, Recipe
      >>> Recipe(mesh=MeshShape(data=2, fsdp=4)).mesh.tensor
      1
    """

    data: int = -1  # devices over which the batch is sharded; -1: all that the other axes leave
    fsdp: int = 1  # devices over which the batch and each parameter are sharded
    tensor: int = 1  # devices over which the width of each layer is sharded


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A training run: everything but the data and the checkpoint that its result depends on.

    Attributes:
      task: "pairs" for image-text pairs, "labels" for images with labels.
      loss: loss of pairs, "sigmoid" or "softmax"; labels have cross-entropy.
      equal_texts_match: whether an image of a batch matches every caption that is equal to its own, with the sigmoid
        loss.
      fresh: regular expression for the whole path of each parameter that starts from random values; None: all come from
        the checkpoint.
      positions: "learned" positions of patches, or "sincos": sines and cosines that are not trained, and computed anew
        where images change their size.
      average_pooling: whether the embedding of an image is the mean of its patches; a pooling head of the checkpoint is
        left out.
      resolution: width and height of images in pixels; None: that of the checkpoint.
      augment: augmentation of images, "none", "flip", "crop" or "crop_flip".
      max_pixels: largest number of pixels of an encoded image; a larger one is unreadable.
      naflex: lengths of the images of a model of variable resolution.
      batch_size: examples of a step, over all devices.
      micro_batches: number of pieces that a step is computed in, to save memory; the gradient is that of the whole
        batch.
      duration: length of the run, as in "5000 steps", "10 epochs" or "1e6 examples".
      optimizer: how gradients become updates.
      schedule: factor of the rate and the weight decay over the run.
      lora: low-rank additions to train; none by default.
      captioning: loss of a decoder of captions, beside that of pairs; none by default.
      self_distillation: losses against a moving average of the image tower, beside that of pairs; none by default.
      curation: choice of the pairs that are trained on, by a teacher; none by default.
      late: change of resolution or patch size near the end of the run; none by default.
      growth: further stages with larger images; none by default.
      locked_images: whether to embed each image once, before the first step, and train on the embeddings (LiT); the
        image tower must be frozen.
      dtype: compute dtype, "float32" or "bfloat16"; the weights are float32.
      remat: what the backward pass recomputes to save memory: None (nothing), "full" (everything), "dots" or
        "dots_with_no_batch_dims" (everything but such matrix products), or "attention_and_mlp_input" (everything but
        what attention computes and what the MLP takes).
      scan_layers: whether to compile one layer and scan over all.
      mesh: number of devices along each axis.
      seed: seed of fresh weights, order of the examples and augmentation.

    Raises:
      ValueError: if a value is impossible, or two do not fit together.

    Example:
      >>> import dataclasses
      >>> from siglip_jax.training import RECIPES, Recipe
      >>> recipe = dataclasses.replace(RECIPES["finetune"], batch_size=64, duration="3 epochs")
      >>> isinstance(recipe, Recipe), recipe.optimizer.weight_decay
      (True, 0.0)
    """

    task: Literal["pairs", "labels"] = "pairs"  # image-text pairs, or images with labels
    loss: Literal["sigmoid", "softmax"] = "sigmoid"  # loss of pairs; labels have cross-entropy
    equal_texts_match: bool = False  # whether an image matches every caption equal to its own in the batch (sigmoid)
    fresh: str | None = None  # pattern for the paths of parameters that start from random values
    positions: Literal["learned", "sincos"] = "learned"  # of patches; sincos: sines and cosines, not trained
    average_pooling: bool = False  # the embedding of an image is the mean of its patches, without a pooling head
    resolution: int | None = None  # width and height of images in pixels; None: that of the checkpoint
    augment: Literal["none", "flip", "crop", "crop_flip"] = "none"  # augmentation of images
    max_pixels: int = MAX_PIXELS  # largest number of pixels of an encoded image; a larger one is unreadable
    naflex: Naflex = Naflex()
    batch_size: int = 256  # examples of a step, over all devices
    micro_batches: int = 1  # pieces a step is computed in, to save memory; the gradient is that of the whole batch
    duration: str = "10 epochs"  # length of the run in steps, epochs or examples
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    lora: Lora = Lora()
    captioning: Captioning = Captioning()
    self_distillation: SelfDistillation = SelfDistillation()
    curation: Curation = Curation()
    late: Late = Late()
    growth: Growth = Growth()
    locked_images: bool = False  # embed each image once and train on the embeddings (LiT); needs a frozen image tower
    dtype: Literal["float32", "bfloat16"] = "float32"  # compute dtype; the weights are float32
    # what is recomputed to save memory
    remat: Literal["full", "dots", "dots_with_no_batch_dims", "attention_and_mlp_input"] | None = None
    scan_layers: bool = False  # whether to compile one layer and scan over all
    mesh: MeshShape = MeshShape()
    seed: int = 0  # seed of fresh weights, order of the examples and augmentation

    def __post_init__(self) -> None:
        for name in ("batch_size", "micro_batches", "max_pixels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_size % self.micro_batches:
            raise ValueError(
                f"micro_batches must divide batch_size, got {self.micro_batches} and {self.batch_size};"
                " change one of them"
            )
        if self.equal_texts_match and (self.task, self.loss) != ("pairs", "sigmoid"):
            raise ValueError(
                "equal_texts_match must be False unless task='pairs' and loss='sigmoid', got True with"
                f" task={self.task!r} and loss={self.loss!r}; change one of them"
            )
        if self.locked_images and self.task != "pairs":
            raise ValueError(
                f"locked_images must be False unless task='pairs', got True with task={self.task!r}; freeze with"
                " optimizer.rates instead"
            )
        if self.locked_images and self.augment != "none":
            raise ValueError(
                f"augment must be 'none' with locked_images, which embeds each image once, got {self.augment!r}"
            )
        if self.curation.teacher is not None and (self.task != "pairs" or self.locked_images):
            raise ValueError(
                "curation.teacher must be None unless task='pairs' and images are not locked, got"
                f" {self.curation.teacher!r}; leave it out"
            )
        if self.curation.teacher is not None and self.late.used:
            raise ValueError(
                "late must change nothing with curation.teacher, whose images have the size of the model's, got"
                f" {self.late}; leave it out"
            )
        if self.growth.used and (self.late.used or self.self_distillation.used or self.curation.teacher is not None):
            raise ValueError(
                "growth must be left out with late, self_distillation and curation, which change the run too, got"
                f" {self.growth}; use one of them"
            )
        if self.growth.used and self.locked_images:
            raise ValueError(
                f"growth must be left out with locked_images, which embeds each image once, got {self.growth}"
            )
        if self.late.naflex and (self.task != "pairs" or self.locked_images or self.positions == "sincos"):
            raise ValueError(
                "late.naflex must be False unless task='pairs', positions='learned' and images are not locked, got"
                " True; leave it out"
            )
        more = [name for name in ("captioning", "self_distillation") if self.uses(name)]
        if more and (self.task != "pairs" or self.locked_images):
            raise ValueError(
                f"{more[0]} must have the weight 0 unless task='pairs' and images are not locked, got"
                f" task={self.task!r} and locked_images={self.locked_images}; change one of them"
            )
        if self.captioning.boxes and self.augment != "none":
            raise ValueError(
                f"augment must be 'none' with captioning.boxes, which are parts of whole images, got {self.augment!r}"
            )
        if self.lora.rank and self.self_distillation.used:
            raise ValueError(
                "lora.rank must be 0 with self_distillation, whose teacher follows the trained weights, got"
                f" {self.lora.rank}; leave the weights of self_distillation at 0"
            )
        if self.lora.rank < 0:
            raise ValueError(f"lora.rank must be 0 or more, got {self.lora.rank}")
        if not self.lora.rank and any(pattern.startswith("lora/") for pattern, _ in self.optimizer.rates):
            raise ValueError(
                f"lora.rank must be 1 or more where optimizer.rates train low-rank additions, got {self.lora.rank};"
                " train the weights themselves with the recipe finetune"
            )
        if self.lora.rank and self.scan_layers:
            raise ValueError("scan_layers must be False with lora, got True; stacked layers have no paths of their own")
        for text in (self.duration, self.schedule.warmup, self.schedule.cooldown):
            parse_duration(text)

    @property
    def examples_per_step(self) -> int:
        """Number of examples that a step reads, over all devices: more than `batch_size` with curation."""
        return self.batch_size if self.curation.teacher is None else round(self.batch_size / self.curation.keep)

    def uses(self, term: str) -> bool:
        """Returns whether a further loss, "captioning" or "self_distillation", has a weight.

        Args:
          term: name of the field.
        """
        return self.captioning.weight > 0 if term == "captioning" else self.self_distillation.used

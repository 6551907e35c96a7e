"""Options of the losses that a recipe adds to the contrastive one, and of what changes in the course of a run.

Source: Tschannen et al. 2025 (SigLIP 2), arXiv 2502.14786, sections 2.2 to 2.4.
"""

import dataclasses
from typing import Any

from siglip_jax.training.durations import parse_duration


@dataclasses.dataclass(frozen=True)
class Captioning:
    """The loss of a decoder that predicts the caption from the patches of the image.

    The decoder has the shape of the text tower and cross-attention to the patches; it is in the checkpoints of a run,
    not in the trained model.

    Source: Wan et al. 2024 (LocCa), arXiv 2403.19596; Tschannen et al. 2023 (CapPa), arXiv 2306.07915.

    Attributes:
      weight: factor of the loss; 0: there is no decoder.
      layers: layers of the decoder; None: half of those of the text tower.
      parallel: share of the examples whose tokens are all predicted at once, from the image alone.
      boxes: factor, beside `weight`, of two further losses for data with boxes: the decoder completes the caption of a
        random box of each image with where it is, and tells where a box is and what is in it. 0: boxes are ignored.

    Example:
      >>> from siglip_jax.training import Captioning, Recipe
      >>> Recipe(captioning=Captioning(weight=1.0)).captioning.parallel
      0.5
    """

    weight: float = 0.0  # factor of the captioning loss; 0: there is no decoder
    layers: int | None = None  # layers of the decoder; None: half of those of the text tower
    parallel: float = 0.5  # share of the examples whose tokens are all predicted at once, from the image alone
    boxes: float = 0.0  # factor, beside weight, of finding and telling the boxes of data that have them; 0: ignored

    def __post_init__(self) -> None:
        for name in ("weight", "boxes"):
            _check_range(f"captioning.{name}", getattr(self, name), 0, None)
        if self.boxes and not self.weight:
            raise ValueError(f"captioning.boxes must be 0 without captioning.weight, got {self.boxes}; set the weight")
        _check_range("captioning.parallel", self.parallel, 0, 1)
        if self.layers is not None:
            _check_range("captioning.layers", self.layers, 1, None)


@dataclasses.dataclass(frozen=True)
class SelfDistillation:
    """The losses whose targets are the outputs of a moving average of the image tower, the teacher.

    The teacher sees one augmented view of each image. By self-distillation the embeddings of smaller views predict the
    teacher's embedding; by masked prediction each masked patch of the teacher's view predicts the teacher's output for
    the patch. Teacher and heads are in the checkpoints of a run and not in the trained model.

    Source: Naeem et al. 2023 (SILC), arXiv 2310.13355; Maninis et al. 2025 (TIPS), arXiv 2410.16512.

    Attributes:
      weight: factor of the self-distillation loss; 0 with `masked_weight` 0: there is no teacher.
      masked_weight: factor of the masked prediction loss.
      factor: further factor of both; None: that of the paper for the width of the image tower: 0.25 up to 768 (B), 0.5
        for 1024 (L), 1.0 for 1152 (So400m), 0.5 above (g).
      start: when teacher and heads are made and the losses start, a duration from the beginning of the run.
      views: number of small views of each image.
      view_size: width and height of the small views in pixels; None: 3/7 of those of the model's images, in whole
        patches.
      masked: share of the patches that are masked.
      prototypes: length of the vectors that students and teacher are compared by.
      hidden: width of the hidden layers of the heads that make them.
      bottleneck: width of the last layer of the heads before the prototypes.
      momentum: decay of the teacher's weights per step.
      center_momentum: decay of the mean of the teacher's outputs per step.
      student_temperature: temperature of the softmax of the student's outputs.
      teacher_temperature: temperature of the softmax of the teacher's outputs, which sharpens them.

    Example:
      >>> from siglip_jax.training import Recipe, SelfDistillation
      >>> Recipe(self_distillation=SelfDistillation(weight=1.0, start="80 percent")).self_distillation.views
      8
    """

    weight: float = 0.0  # factor of the self-distillation loss; 0 with masked-weight 0: there is no teacher
    masked_weight: float = 0.0  # factor of the masked prediction loss
    factor: float | None = None  # further factor of both; None: 0.25, 0.5, 1.0, 0.5 for a B, L, So400m, g tower
    start: str = "0 percent"  # when the losses start; steps, epochs, examples or percent of the run
    views: int = 8  # number of small views of each image
    view_size: int | None = None  # width and height of the small views; None: 3/7 of the image's, in whole patches
    masked: float = 0.5  # share of the patches that are masked
    prototypes: int = 16_384  # length of the vectors that students and teacher are compared by
    hidden: int = 2048  # width of the hidden layers of the heads that make them
    bottleneck: int = 256  # width of the last layer of the heads before the prototypes
    momentum: float = 0.996  # decay of the teacher's weights per step
    center_momentum: float = 0.9  # decay of the mean of the teacher's outputs per step
    student_temperature: float = 0.1  # temperature of the softmax of the student's outputs
    teacher_temperature: float = 0.04  # temperature of the softmax of the teacher's outputs

    def __post_init__(self) -> None:
        for name in ("weight", "masked_weight"):
            _check_range(f"self_distillation.{name}", getattr(self, name), 0, None)
        for name in ("masked", "momentum", "center_momentum"):
            _check_range(f"self_distillation.{name}", getattr(self, name), 0, 1)
        for name in ("views", "prototypes", "hidden", "bottleneck"):
            _check_range(f"self_distillation.{name}", getattr(self, name), 1, None)
        for name in ("student_temperature", "teacher_temperature"):
            _check_range(f"self_distillation.{name}", getattr(self, name), 1e-6, None)
        parse_duration(self.start)

    @property
    def used(self) -> bool:
        """Whether any of the losses has a weight."""
        return self.weight > 0 or self.masked_weight > 0

    def factor_of(self, width: int) -> float:
        """Returns the factor of both losses.

        Args:
          width: width of the image tower.
        """
        if self.factor is not None:
            return self.factor
        return 0.25 if width <= 768 else 1.0 if width == 1152 else 0.5


@dataclasses.dataclass(frozen=True)
class Curation:
    """Training on the pairs of larger batches that the model can learn most from, by a teacher.

    Source: Udandarao et al. 2024 (ACID), arXiv 2411.18674.

    Attributes:
      teacher: checkpoint of the teacher, with the tokenizer and the image size of the model: a Hub name, directory or
        file; None: all pairs are trained on.
      keep: share of the pairs that are trained on; a step reads `batch_size / keep` examples.

    Example:
      >>> from siglip_jax.training import Curation, Recipe
      >>> Recipe(curation=Curation(teacher="teacher/")).curation.keep
      0.5
    """

    teacher: str | None = None  # checkpoint that scores the pairs of larger batches; None: all pairs are trained on
    keep: float = 0.5  # share of the pairs that are trained on; a step reads batch-size / keep examples

    def __post_init__(self) -> None:
        _check_range("curation.keep", self.keep, 0.01, 1)


@dataclasses.dataclass(frozen=True)
class Late:
    """A change of the image tower near the end of a run, after which all losses go on.

    With `naflex` the model becomes one of variable resolution, trained on the lengths of the recipe's `naflex`; the
    losses with a teacher end, as in the paper.

    Attributes:
      start: when the change is made, a duration from the beginning of the run.
      resolution: width and height of images in pixels after the change; the position table is resized. None: that which
        keeps the number of patches.
      patch_size: width and height of a patch in pixels after the change; the patch embedding is resized by a
        pseudo-inverse. None: as before.
      naflex: whether images keep their proportions from then on; not with `resolution` or `patch_size`.
      stretch: factor of the steps from then on, over which the schedule is stretched; 3.75 in the paper for `naflex`.

    Example:
      >>> from siglip_jax.training import Late, Recipe
      >>> Recipe(late=Late(resolution=384)).late.start
      '95 percent'
    """

    start: str = "95 percent"  # when the change is made; steps, epochs, examples or percent of the run
    resolution: int | None = None  # width and height of images in pixels from then on; None: keeps the patches' number
    patch_size: int | None = None  # width and height of a patch in pixels from then on; None: as before
    naflex: bool = False  # whether images keep their proportions from then on (variable resolution)
    stretch: float = 1.0  # factor of the steps from then on, over which the schedule is stretched

    def __post_init__(self) -> None:
        for name in ("resolution", "patch_size"):
            if getattr(self, name) is not None:
                _check_range(f"late.{name}", getattr(self, name), 1, None)
                if self.naflex:
                    raise ValueError(f"late.{name} must be None with late.naflex, got {getattr(self, name)}")
        parse_duration(self.start)
        _check_range("late.stretch", self.stretch, 1, None)
        if self.stretch != 1 and not self.used:
            raise ValueError(f"late.stretch must be 1 where nothing changes, got {self.stretch}; set late.naflex")

    @property
    def used(self) -> bool:
        """Whether anything changes."""
        return self.naflex or self.resolution is not None or self.patch_size is not None


@dataclasses.dataclass(frozen=True)
class Growth:
    """Further stages of a run, each with larger images, and a size of steps, a rate and a schedule of its own.

    The schedule of a stage has the shape of the recipe's; the moments of the optimizer go on.

    Source: Li et al. 2025 (OpenVision), arXiv 2505.04601; Li et al. 2023 (CLIPA), arXiv 2305.07017.

    Attributes:
      resolutions: width and height of the images of each stage after the first in pixels; (): there is only the first.
      durations: length of each stage.
      batch_sizes: examples of a step of each stage, over all devices.
      rates: peak learning rate of each stage; the weight decay changes in proportion.
      warmups: warm-up of each stage.

    Example:
      >>> from siglip_jax.training import Growth, Recipe
      >>> growth = Growth((224,), durations=("1 epoch",), batch_sizes=(128,), rates=(1e-4,), warmups=("5 percent",))
      >>> [stage.resolution for stage in growth.recipes(Recipe(resolution=160))]
      [224]
    """

    resolutions: tuple[int, ...] = ()  # width and height of images of each stage after the first; (): only the first
    durations: tuple[str, ...] = ()  # length of each stage in steps, epochs or examples
    batch_sizes: tuple[int, ...] = ()  # examples of a step of each stage, over all devices
    rates: tuple[float, ...] = ()  # peak learning rate of each stage; the weight decay changes in proportion
    warmups: tuple[str, ...] = ()  # warm-up of each stage in steps, epochs, examples or percent of the stage

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            values = tuple(getattr(self, field.name))
            object.__setattr__(self, field.name, values)
            if len(values) != len(self.resolutions):
                raise ValueError(
                    f"growth.{field.name} must have a value for each of the {len(self.resolutions)} stages of"
                    f" growth.resolutions, got {values}; give as many of each"
                )
            if field.name in ("durations", "warmups"):
                for text in values:
                    parse_duration(text)
            for value in () if field.name in ("durations", "warmups") else values:
                if value <= 0:
                    raise ValueError(f"growth.{field.name} must be above 0, got {value}")

    @property
    def used(self) -> bool:
        """Whether there is a stage after the first."""
        return bool(self.resolutions)

    def recipes(self, recipe: Any) -> list[Any]:
        """Returns the recipes of the stages after the first, each complete in itself.

        Args:
          recipe: recipe of the run, a `Recipe`.
        """
        found = []
        values = (self.resolutions, self.durations, self.batch_sizes, self.rates, self.warmups)
        for resolution, duration, batch_size, rate, warmup in zip(*values, strict=True):
            decay = recipe.optimizer.weight_decay * rate / recipe.optimizer.rate
            stage = dataclasses.replace(
                recipe,
                growth=Growth(),
                resolution=resolution,
                duration=duration,
                batch_size=batch_size,
                optimizer=dataclasses.replace(recipe.optimizer, rate=rate, weight_decay=decay),
                schedule=dataclasses.replace(recipe.schedule, warmup=warmup),
            )
            found.append(stage)
        return found


def _check_range(name: str, value: float | int, least: float | int, most: float | int | None) -> None:
    if value < least or (most is not None and value > most):
        allowed = f"{least:g} or more" if most is None else f"from {least:g} to {most:g}"
        raise ValueError(f"{name} must be {allowed}, got {value}")

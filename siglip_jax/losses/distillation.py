"""Self-distillation: views of a part of an image predict what a teacher makes of the whole image."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from siglip_jax.losses.cross_entropy import sharpen, soft_cross_entropies
from siglip_jax.losses.tiles import common_dtype


def distillation_loss(
    student: Float[Array, "examples views prototypes"],
    teacher: Float[Array, "examples *globals prototypes"],
    center: Float[Array, " prototypes"],
    *,
    student_temperature: float | Float[Array, ""] = 0.1,
    teacher_temperature: float | Float[Array, ""] = 0.04,
) -> Float[Array, ""]:
    """Returns the mean over examples and views of the cross-entropy of the student's views with the teacher's.

    The teacher is a moving average of the student. Centring keeps it from always answering with one prototype, and
    sharpening, a temperature below the student's, from answering with all alike; it gets no gradient. Sums are float32.

    Source: Naeem et al. 2023, arXiv 2310.13355 (SILC); Caron et al. 2021, arXiv 2104.14294 (DINO).

    Args:
      student: logits of the local views of each image, (examples, views, prototypes).
      teacher: logits of the global view of each image, (examples, prototypes), or of several,
        (examples, global views, prototypes), with each of which every local view is compared.
      center: moving average of the teacher's logits, (prototypes,), as `update_center` makes it.
      student_temperature: temperature of the student's softmax.
      teacher_temperature: temperature of the teacher's softmax.

    Returns:
      A float32 scalar.

    Raises:
      ValueError: if shapes do not fit each other.

    Example:
      A student that agrees with its teacher, of one view each; what is left is the teacher's own uncertainty:

      >>> teacher, center = jnp.array([[0.04 * 3, 0.0]]), jnp.zeros(2)
      >>> student = jnp.array([[[0.1 * 3, 0.0]]])
      >>> round(float(distillation_loss(student, teacher, center)), 3)
      0.191
    """
    temperatures = {"student_temperature": student_temperature, "teacher_temperature": teacher_temperature}
    return jnp.mean(distillation_losses(student, teacher, center, **temperatures))


def distillation_losses(
    student: Float[Array, "examples views prototypes"],
    teacher: Float[Array, "examples *globals prototypes"],
    center: Float[Array, " prototypes"],
    *,
    student_temperature: float | Float[Array, ""] = 0.1,
    teacher_temperature: float | Float[Array, ""] = 0.04,
) -> Float[Array, " examples"]:
    """Returns the loss of each example, whose mean is `distillation_loss`, with the same arguments."""
    teacher = views_of(teacher, student, center)
    # A cross-entropy is linear in its target: the mean over the teacher's views is taken before.
    targets = jnp.mean(sharpen(teacher, center, teacher_temperature), axis=1, keepdims=True)
    return jnp.mean(soft_cross_entropies(student, targets, student_temperature), axis=1)


def update_center(
    center: Float[Array, " prototypes"],
    teacher_mean: Float[Array, " prototypes"],
    momentum: float | Float[Array, ""] = 0.9,
) -> Float[Array, " prototypes"]:
    """Returns the moving average of the teacher's logits after one more batch.

    Source: Caron et al. 2021, arXiv 2104.14294, equation 4.

    Args:
      center: moving average so far, (prototypes,).
      teacher_mean: mean of the teacher's logits over the global batch, (prototypes,).
      momentum: weight of the moving average so far.
    """
    dtype = common_dtype(center.dtype, jnp.float32)
    return momentum * center.astype(dtype) + (1 - momentum) * teacher_mean.astype(dtype)


def views_of(teacher: Array, student: Array, center: Array) -> Array:
    """Returns the logits of the teacher as (examples, views, prototypes).

    Raises:
      ValueError: if shapes do not fit each other.
    """
    views = teacher[:, None] if teacher.ndim == 2 else teacher
    fits = student.ndim == views.ndim == 3 and student.shape[::2] == views.shape[::2]
    if not fits or center.shape != student.shape[2:] or 0 in student.shape + views.shape:
        raise ValueError(
            "student, teacher and center must be (examples, views, prototypes), (examples, prototypes) or (examples,"
            f" views, prototypes), and (prototypes,), got {student.shape}, {teacher.shape} and {center.shape}"
        )
    return views

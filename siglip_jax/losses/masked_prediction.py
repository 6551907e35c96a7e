"""Masked prediction: of the patches that were hidden from it, a student predicts what a teacher makes of them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from siglip_jax.losses.cross_entropy import sharpen, soft_cross_entropies


def masked_prediction_loss(
    student: Float[Array, "images patches prototypes"],
    teacher: Float[Array, "images patches prototypes"],
    center: Float[Array, " prototypes"],
    mask: Bool[Array, "images patches"],
    *,
    student_temperature: float | Float[Array, ""] = 0.1,
    teacher_temperature: float | Float[Array, ""] = 0.04,
) -> Float[Array, ""]:
    """Returns the mean over images of the mean over masked patches of the cross-entropy of student and teacher.

    The teacher saw every patch, the student a mask token in the place of the masked ones. The teacher is centred and
    sharpened as in `distillation_loss`, and gets no gradient. Sums are float32.

    Source: Maninis et al. 2025, arXiv 2410.16512 (TIPS); Zhou et al. 2022, arXiv 2111.07832 (iBOT).

    Args:
      student: logits of each patch, (images, patches, prototypes).
      teacher: logits of each patch, (images, patches, prototypes).
      center: moving average of the teacher's logits, (prototypes,).
      mask: whether each patch was masked, (images, patches); an image without any counts as 0.
      student_temperature: temperature of the student's softmax.
      teacher_temperature: temperature of the teacher's softmax.

    Returns:
      A float32 scalar.

    Raises:
      ValueError: if shapes do not fit each other.

    Example:
      Of two patches the second was masked, and the student is wrong about the first alone:

      >>> teacher = jnp.array([[[0.12, 0.0], [0.12, 0.0]]])
      >>> student = jnp.array([[[0.0, 9.0], [0.3, 0.0]]])
      >>> round(float(masked_prediction_loss(student, teacher, jnp.zeros(2), jnp.array([[False, True]]))), 3)
      0.191
    """
    temperatures = {"student_temperature": student_temperature, "teacher_temperature": teacher_temperature}
    return jnp.mean(masked_prediction_losses(student, teacher, center, mask, **temperatures))


def masked_prediction_losses(
    student: Float[Array, "images patches prototypes"],
    teacher: Float[Array, "images patches prototypes"],
    center: Float[Array, " prototypes"],
    mask: Bool[Array, "images patches"],
    *,
    student_temperature: float | Float[Array, ""] = 0.1,
    teacher_temperature: float | Float[Array, ""] = 0.04,
) -> Float[Array, " images"]:
    """Returns the loss of each image, whose mean is `masked_prediction_loss`, with the same arguments."""
    check_shapes(student, teacher, center, mask)
    losses = soft_cross_entropies(student, sharpen(teacher, center, teacher_temperature), student_temperature)
    count = jnp.maximum(jnp.sum(mask, axis=1), 1)
    return jnp.sum(jnp.where(mask, losses, 0.0), axis=1) / count.astype(losses.dtype)


def check_shapes(student: Array, teacher: Array, center: Array, mask: Array) -> None:
    """Raises a `ValueError` if shapes do not fit each other."""
    if student.ndim != 3 or teacher.shape != student.shape or mask.shape != student.shape[:2]:
        raise ValueError(
            "student and teacher must be (images, patches, prototypes) and mask (images, patches), got"
            f" {student.shape}, {teacher.shape} and {mask.shape}"
        )
    if center.shape != student.shape[2:]:
        raise ValueError(f"center must be a number for each prototype, {student.shape[2:]}, got {center.shape}")


def random_patch_mask(key: jax.Array, n: int, rows: int, columns: int, share: float = 0.5) -> Bool[Array, "n r c"]:
    """Returns masks of images, each with exactly round(share * patches) random patches.

    Args:
      key: key of `jax.random`.
      n: number of images.
      rows: rows of patches of each image.
      columns: columns of patches of each image.
      share: share of the patches that are masked, from 0 to 1.

    Returns:
      (n, rows, columns), True for masked patches.

    Raises:
      ValueError: if the share is not from 0 to 1.

    Example:
      >>> mask = random_patch_mask(jax.random.key(0), 2, 4, 5)
      >>> mask.shape, mask.sum(axis=(1, 2)).tolist()
      ((2, 4, 5), [10, 10])
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be from 0 to 1, got {share}")
    order = jnp.argsort(jax.random.uniform(key, (n, rows * columns)), axis=1)
    return (order < round(share * rows * columns)).reshape(n, rows, columns)

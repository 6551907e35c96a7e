"""Linear classifiers of frozen embeddings: logistic regression, by L-BFGS to convergence, and ridge regression.

Logistic regression is multinomial: it minimises the mean cross-entropy plus strength / 2 times the sum of squared
weights. Ridge regression fits -1 and 1 for each class in closed form, as big_vision's few-shot evaluation does; it
differs from it in that the bias is left free exactly. Biases are never penalised. Features are shifted to mean zero.
Ridge regression also scales each feature to standard deviation one; logistic regression scales all features by one
number, which changes only the unit of the strength. The strength is chosen on a held-out part of the training set.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from siglip_jax._optional import import_optional
from siglip_jax.evaluation.accuracy import accuracy
from siglip_jax.evaluation.neighbours import check_finite

LOGISTIC_STRENGTHS = tuple(10.0**e for e in np.arange(1, -6.5, -0.5).tolist())
RIDGE_STRENGTHS = tuple(10.0**e for e in np.arange(5, -1.5, -0.5).tolist())
BLOCK = 2**22  # logits in memory at a time
TOLERANCE = 1e-5  # norm of the gradient, relative to its norm at zero weights
STEPS = 1000  # of L-BFGS, at most


class Linear(NamedTuple):
    """A linear classifier: features @ weights + bias.

    Attributes:
      weights: weights, (E, classes).
      bias: biases, (classes,).
      strength: strength of the penalty.
      gradient: norm of the gradient at the solution, relative to its norm at zero weights; 0 for a closed form.
    """

    weights: Float[np.ndarray, "embed classes"]
    bias: Float[np.ndarray, " classes"]
    strength: float
    gradient: float = 0.0

    def classify(self, features: Float[np.ndarray, "n embed"], top: int = 5) -> Int[np.ndarray, "n top"]:
        """Returns the classes of the largest scores.

        Args:
          features: embeddings, (n, E).
          top: number of classes to return for each row.

        Returns:
          Classes, (n, top), largest score first, -1 where there are no more; ties are broken by index.
        """
        classes = self.weights.shape[1]
        ranked = np.full((len(features), top), -1, np.int64)
        rows = max(1, BLOCK // classes)
        for start in range(0, len(features), rows):
            scores = features[start : start + rows] @ self.weights + self.bias
            ranked[start : start + rows, :classes] = np.argsort(-scores, axis=1, kind="stable")[:, :top]
        return ranked


Fit = Callable[[np.ndarray, np.ndarray, int, Sequence[float]], list[Linear]]


def fit_ridge(
    features: Float[np.ndarray, "n embed"],
    labels: Int[np.ndarray, " labels"],
    num_classes: int,
    strengths: Sequence[float],
) -> list[Linear]:
    """Returns the ridge regression of each strength, in float64 from one eigendecomposition.

    Args:
      features: embeddings, (n, E).
      labels: class of each row, (n,).
      num_classes: number of classes.
      strengths: strengths of the penalty, each above 0.

    Raises:
      ValueError: if a strength is not above 0, a label is not a class, or a feature is not finite.
    """
    _check(features, labels, num_classes, strengths)
    mean = features.mean(axis=0, dtype=np.float64)
    deviation = features.std(axis=0, dtype=np.float64) + 1e-5
    share = np.bincount(labels, minlength=num_classes) / len(labels)
    gram = np.zeros((features.shape[1],) * 2)
    product = np.zeros((features.shape[1], num_classes))
    rows = max(1, BLOCK // max(features.shape[1], num_classes))
    for start in range(0, len(features), rows):
        x = (features[start : start + rows] - mean) / deviation
        y = 2.0 * (labels[start : start + rows, None] == np.arange(num_classes)) - 1.0
        gram += x.T @ x
        product += x.T @ y
    values, vectors = np.linalg.eigh(gram)
    values, rotated = np.maximum(values, 0), vectors.T @ product
    found = []
    for strength in strengths:
        weights = vectors @ (rotated / (values[:, None] + strength)) / deviation[:, None]
        found.append(Linear(weights, 2 * share - 1 - mean @ weights, strength))
    return found


def fit_logistic(
    features: Float[np.ndarray, "n embed"],
    labels: Int[np.ndarray, " labels"],
    num_classes: int,
    strengths: Sequence[float],
) -> list[Linear]:
    """Returns the logistic regression of each strength; each solution is the initial value of the next.

    Strengths should descend: the first ones then converge quickly and lead to the others.

    Args:
      features: embeddings, (n, E).
      labels: class of each row, (n,).
      num_classes: number of classes.
      strengths: strengths of the penalty, each above 0.

    Raises:
      ValueError: if a strength is not above 0, a label is not a class, or a feature is not finite.
    """
    _check(features, labels, num_classes, strengths)
    mean = features.mean(axis=0, dtype=np.float64)
    scale = max(float(np.sqrt(features.var(axis=0, dtype=np.float64).mean())), 1e-12)
    rows = min(len(features), max(1, BLOCK // num_classes))
    blocks = -(-len(features) // rows)
    x = np.zeros((blocks * rows, features.shape[1]), np.float32)
    y = np.full(blocks * rows, -1, np.int32)  # -1: padding
    x[: len(features)], y[: len(features)] = (features - mean) / scale, labels
    data = jnp.asarray(x.reshape(blocks, rows, -1)), jnp.asarray(y.reshape(blocks, rows))
    params = jnp.zeros((features.shape[1], num_classes)), jnp.zeros(num_classes)
    found = []
    for strength in strengths:
        params, left = _minimize(params, *data, jnp.float32(strength), jnp.float32(len(features)))
        weights, bias = (np.asarray(x, np.float64) for x in params)
        weights = weights / scale
        found.append(Linear(weights, bias - mean @ weights, strength, float(left)))
    return found


def _objective(params: Any, x: Array, y: Array, strength: Array, count: Array) -> Array:
    """Returns mean cross-entropy plus penalty; `x` is (blocks, rows, E). The gradient recomputes the logits."""
    weights, bias = params

    @jax.checkpoint
    def step(total: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
        features, labels = block
        logits = jnp.matmul(features, weights, precision="highest") + bias[None]
        own = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[:, None], axis=1)[:, 0]
        losses = jax.nn.logsumexp(logits, axis=1) - own
        return total + jnp.sum(jnp.where(labels >= 0, losses, 0.0)), None

    total, _ = lax.scan(step, jnp.float32(0), (x, y))
    return total / count + strength / 2 * jnp.sum(weights**2)


@jax.jit
def _minimize(params: Any, x: Array, y: Array, strength: Array, count: Array) -> tuple[Any, Array]:
    """Returns the minimum, and the norm of the gradient there relative to its norm at zero weights."""
    objective = functools.partial(_objective, x=x, y=y, strength=strength, count=count)
    optax: Any = import_optional("optax", "a linear probe", "train")
    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)
    at_zero = optax.tree.norm(jax.grad(objective)(jax.tree.map(jnp.zeros_like, params)))
    enough = jnp.maximum(TOLERANCE * at_zero, jnp.finfo(jnp.float32).tiny)

    def step(carry: tuple[Any, Any, Array]) -> tuple[Any, Any, Array]:
        params, state, steps = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = solver.update(grad, state, params, value=value, grad=grad, value_fn=objective)
        return optax.apply_updates(params, updates), state, steps + 1

    def more(carry: tuple[Any, Any, Array]) -> Array:
        _, state, steps = carry
        norm = optax.tree.norm(optax.tree.get(state, "grad"))
        return (steps == 0) | ((steps < STEPS) & (norm > enough))

    params, _, steps = lax.while_loop(more, step, (params, solver.init(params), jnp.int32(0)))
    left = optax.tree.norm(jax.grad(objective)(params))
    return params, jnp.where(at_zero > 0, left / jnp.maximum(at_zero, 1e-30), 0.0)


class Chosen(NamedTuple):
    """A classifier fitted to the whole training set, and the choice of its strength.

    Attributes:
      classifier: the classifier.
      tried: strength to accuracy on the held-out images; {} if only one strength was given.
    """

    classifier: Linear
    tried: dict[float, float]


def choose(
    fit: Fit,
    features: Float[np.ndarray, "n embed"],
    labels: Int[np.ndarray, " n"],
    num_classes: int,
    strengths: Sequence[float],
    *,
    held_out: float = 0.2,
    seed: int = 0,
) -> Chosen:
    """Chooses the strength on a held-out part of the training set, then fits a classifier to all of it.

    Ties are broken by the larger strength.

    Args:
      fit: `fit_logistic` or `fit_ridge`.
      features: embeddings of the training set, (n, E).
      labels: class of each row, (n,).
      num_classes: number of classes.
      strengths: strengths to choose from, descending; if there is only one, nothing is held out.
      held_out: share of each class that is held out: at least one image and never all of a class.
      seed: seed of the choice of the held-out images.

    Raises:
      ValueError: if no class has two images, so that nothing can be held out.
    """
    if len(strengths) == 1:
        return Chosen(fit(features, labels, num_classes, strengths)[0], {})
    away = _part_of_each(labels, held_out, seed)
    if not away.any():
        raise ValueError(
            "a class must have two images or more to choose the strength of the penalty, got one of each class; "
            "pass one strength"
        )
    tried = {
        found.strength: accuracy(found.classify(features[away]), labels[away], num_classes).top1
        for found in fit(features[~away], labels[~away], num_classes, strengths)
    }
    best = max(tried, key=lambda strength: (tried[strength], strength))
    path = [strength for strength in strengths if strength >= best]
    return Chosen(fit(features, labels, num_classes, path)[-1], tried)


def few_shots(labels: Int[np.ndarray, " n"], shots: int, seed: int = 0) -> Int[np.ndarray, " found"]:
    """Returns the sorted indices of `shots` random examples of each class, or of all of a class that has fewer."""
    rng = np.random.default_rng(seed)
    parts = [rng.permutation(np.flatnonzero(labels == label))[:shots] for label in np.unique(labels)]
    return np.sort(np.concatenate(parts))


def _part_of_each(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Returns a mask, (n,), of a random share of each class: at least one example, never all."""
    rng = np.random.default_rng(seed)
    away = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        numbers = rng.permutation(np.flatnonzero(labels == label))
        away[numbers[: min(max(1, round(share * len(numbers))), len(numbers) - 1)]] = True
    return away


def _check(features: np.ndarray, labels: np.ndarray, num_classes: int, strengths: Sequence[float]) -> None:
    if not len(features) or len(features) != len(labels):
        raise ValueError(
            f"features must be one or more, with a label each, got {len(features)} features and {len(labels)} labels"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels must be from 0 to {num_classes - 1}, got {labels.min()} to {labels.max()}")
    if not strengths or min(strengths) <= 0:
        raise ValueError(f"strengths must be above 0, got {tuple(strengths)}")
    check_finite(features, "features")

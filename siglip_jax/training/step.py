"""The training step: gradient, exact accumulation, update, moving average, and what is worth logging, in one program.

Accumulation is that of GradCache (Gao et al. 2021, arXiv 2101.06983): embed all parts without gradients; take the
gradient of the loss of the whole batch with respect to the embeddings; then go through each part again and pull its
share back to the parameters. The sum is the gradient of the large batch, temperature and bias included.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int32, Key

from siglip_jax.parallel.mesh import BATCH_AXES, batch_shares
from siglip_jax.parallel.sharding import SHARDING_RULES, partition
from siglip_jax.params import flatten, group_of, path_of, unflatten
from siglip_jax.training._optax import optax
from siglip_jax.training.objective import Batch, Metrics, Objective


class TrainState(NamedTuple):
    """Everything a step changes, and the frozen parameters.

    Attributes:
      step: steps done, those that were skipped included.
      trained: the parameters that the rules let move, a nested dict.
      frozen: the others.
      average: the moving average of `trained`; empty if none is kept.
      optimizer: the optimizer's state.
      skipped: steps whose loss or gradient was not finite, and that changed nothing.
      skipped_in_a_row: those of them since the last good step.
    """

    step: Int32[Array, ""]
    trained: dict[str, Any]
    frozen: dict[str, Any]
    average: dict[str, Any]
    optimizer: Any
    skipped: Int32[Array, ""]
    skipped_in_a_row: Int32[Array, ""]

    @property
    def params(self) -> dict[str, Any]:
        """All parameters, as the module takes them."""
        return merge(self.trained, self.frozen)

    @property
    def average_params(self) -> dict[str, Any]:
        """All parameters, the trained ones averaged over time; those of now if no average is kept."""
        return merge(self.average or self.trained, self.frozen)


def merge(trained: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
    """Puts the two parts of a nested dict together again."""
    return unflatten(flatten(frozen) | flatten(trained))


def init_state(
    params: Mapping[str, Any],
    frozen: Callable[[str], bool],
    optimizer: optax.GradientTransformation,
    average: bool,
    mesh: Mesh | None = None,
) -> TrainState:
    """Returns the state before the first step; it takes `params` over, which the first step gives away.

    Args:
      params: on their devices already; what is trained must be float32.
      frozen: whether the parameter of a path never changes.
      average: whether to keep a moving average.
      mesh: lays the optimizer's state out like the parameters; None on one device.

    Raises:
      ValueError: if something that is trained is not float32: small steps would be lost.
    """
    flat = flatten(params)
    for path, x in flat.items():
        if not frozen(path) and x.dtype != jnp.float32:
            raise ValueError(f"expected float32 parameters to train, found {path} in {x.dtype}; convert them first")
    trained = unflatten({path: x for path, x in flat.items() if not frozen(path)})
    rest = unflatten({path: x for path, x in flat.items() if frozen(path)})

    def init(trained: Any) -> tuple[Any, ...]:
        zeros = [jnp.zeros((), jnp.int32) for _ in range(3)]
        return optimizer.init(trained), jax.tree.map(jnp.copy, trained) if average else {}, *zeros

    where = None if mesh is None else state_shardings(jax.eval_shape(init, trained), mesh)
    state, copy, step, skipped, in_a_row = jax.jit(init, out_shardings=where)(trained)
    return TrainState(step, trained, rest, copy, state, skipped, in_a_row)


def state_shardings(shapes: Any, mesh: Mesh) -> Any:
    """Returns where each array of a state lies: moments like their parameters, everything else on every device.

    Args:
      shapes: a tree whose dictionaries have the structure of the parameters.
    """

    def place(keys: tuple[Any, ...], leaf: Any) -> NamedSharding:
        path, shape = path_of(keys), tuple(leaf.shape)
        try:
            spec = partition(path, shape, mesh, SHARDING_RULES) if path else PartitionSpec()
        except ValueError:  # a factored moment has fewer dimensions than its parameter, and is small
            spec = PartitionSpec()
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, shapes)


@dataclasses.dataclass(frozen=True)
class Step:
    """A step; call it under `jax.jit` as `step(state, batch)`, or get it compiled from `make_step`.

    Attributes:
      objective: what is minimised.
      optimizer: as from `make_optimizer`.
      micro_batches: parts that the gradient is computed in.
      average: decay of the moving average per step, or None.
      seed: of the augmentation.
      mesh: over which the batch is cut; None on one device.
    """

    objective: Objective
    optimizer: optax.GradientTransformation
    micro_batches: int = 1
    average: float | None = None
    seed: int = 0
    mesh: Mesh | None = None

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Returns the next state and the step's figures; a step that is not finite changes nothing but the counts."""
        key = jax.random.fold_in(jax.random.key(self.seed), state.step)
        loss, metrics, gradients = self.gradients(state.trained, state.frozen, batch, key)
        updates, optimizer = self.optimizer.update(gradients, state.optimizer, state.trained)
        trained = optax.apply_updates(state.trained, updates)
        average = state.average
        if average:
            done = (state.step + 1).astype(jnp.float32)
            # The average of a young run must not remember its start.
            decay = jnp.minimum(jnp.float32(self.average), done / (done + 10))
            average = jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), average, trained)
        metrics |= {"loss": loss}
        for what, tree in (("gradient", gradients), ("update", updates), ("parameter", state.trained)):
            metrics |= {f"{what}_norm/{group}": norm for group, norm in _norms(tree).items()}

        finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(gradients)) & jnp.isfinite(optax.tree.norm(updates))
        new, old = (trained, average, optimizer), (state.trained, state.average, state.optimizer)
        trained, average, optimizer = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        bad = 1 - finite.astype(jnp.int32)
        counts = state.skipped + bad, (state.skipped_in_a_row + 1) * bad
        return TrainState(state.step + 1, trained, state.frozen, average, optimizer, *counts), metrics

    def gradients(
        self, trained: Any, frozen: Any, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics, Any]:
        """Returns the loss of the batch, its figures, and the gradient of what is trained."""

        def embed(trained: Any, part: Batch, number: Int32[Array, ""]) -> Any:
            return self.objective.embed(merge(trained, frozen), part, jax.random.fold_in(key, number))

        def loss_of(trained: Any, embeds: Any) -> tuple[Array, Metrics]:
            return self.objective.loss(merge(trained, frozen), embeds, batch)

        if self.micro_batches == 1:

            def whole(trained: Any) -> tuple[Array, Metrics]:
                return loss_of(trained, embed(trained, batch, jnp.int32(0)))

            (loss, metrics), gradients = jax.value_and_grad(whole, has_aux=True)(trained)
            return loss, metrics, gradients

        parts = jax.tree.map(self._cut, dict(batch)), jnp.arange(self.micro_batches, dtype=jnp.int32)
        embeds = jax.lax.map(lambda part: embed(trained, *part), parts)
        both = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)
        (loss, metrics), (direct, cotangents) = both(trained, jax.tree.map(self._join, embeds))

        def add(sum_so_far: Any, part: Any) -> tuple[Any, None]:
            (examples, number), cotangent = part
            _, pull_back = jax.vjp(lambda trained: embed(trained, examples, number), trained)
            return jax.tree.map(jnp.add, sum_so_far, pull_back(cotangent)[0]), None

        gradients, _ = jax.lax.scan(add, direct, (parts, jax.tree.map(self._cut, cotangents)))
        return loss, metrics, gradients

    def _cut(self, x: Array) -> Array:
        """From (rows, ...) to (parts, rows / parts, ...): of each device's rows the same share goes into each part."""
        devices, parts = self._devices, self.micro_batches
        if len(x) % (devices * parts):
            raise ValueError(
                f"a batch of {len(x)} rows cannot be cut into {parts} micro-batches over {devices} devices; change"
                " batch_size or micro_batches"
            )
        x = x.reshape(devices, parts, -1, *x.shape[1:]).swapaxes(0, 1)
        return self._kept(x.reshape(parts, -1, *x.shape[3:]), None, BATCH_AXES)

    def _join(self, x: Array) -> Array:
        """The inverse of `_cut`."""
        devices, parts = self._devices, self.micro_batches
        x = x.reshape(parts, devices, -1, *x.shape[2:]).swapaxes(0, 1)
        return self._kept(x.reshape(-1, *x.shape[3:]), BATCH_AXES)

    @property
    def _devices(self) -> int:
        return batch_shares(self.mesh)

    def _kept(self, x: Array, *spec: Any) -> Array:
        if self.mesh is None:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(*spec)))


def make_step(step: Step, state: TrainState) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns the step, compiled when first called; the state passed in is given away, the next lies where it lay.

    Args:
      state: one to say where its arrays lie.
    """
    where = None if step.mesh is None else (jax.tree.map(lambda x: x.sharding, state), None)
    return jax.jit(step.__call__, donate_argnums=0, out_shardings=where)


def _norms(tree: Any) -> dict[str, Float[Array, ""]]:
    """Returns the norm of each part of the model (see `group_of`)."""
    groups: dict[str, list[Array]] = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        groups.setdefault(group_of(path_of(keys)), []).append(leaf)
    return {group: optax.tree.norm(leaves) for group, leaves in groups.items()}

"""The training step: gradient, exact accumulation, update, moving average and metrics, in one program.

Accumulation is that of GradCache (Gao et al. 2021, arXiv 2101.06983): embed all micro-batches without gradients; take
the gradient of the loss of the whole batch with respect to the embeddings; then embed each micro-batch again and pull
its cotangents back to the parameters. The sum is the gradient of the whole batch, temperature and bias included.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int32, Key

from siglip_jax.parallel.sharding import SHARDING_RULES, partition
from siglip_jax.params import flatten, group_of, path_of, unflatten
from siglip_jax.training._optax import optax
from siglip_jax.training.curation import Curator
from siglip_jax.training.objective import Batch, Metrics, Objective
from siglip_jax.training.pieces import join, split


class TrainState(NamedTuple):
    """Everything that a step changes, and the frozen parameters.

    Attributes:
      step: number of steps done, skipped ones included, an int32 scalar.
      trained: parameters that the rules do not freeze, a nested dict of float32 arrays.
      frozen: parameters that no gradient changes: those that the rules freeze, and a teacher's; a nested dict.
      average: moving average of `trained`; empty if none is kept.
      optimizer: state of the optimizer.
      skipped: number of steps whose loss or gradient was not finite and that changed no parameter, an int32 scalar.
      skipped_in_a_row: number of skipped steps since the last finite one, an int32 scalar.
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
        """All parameters, a nested dict that the module takes."""
        return merge(self.trained, self.frozen)

    @property
    def average_params(self) -> dict[str, Any]:
        """All parameters, the trained ones as their moving average; the current ones if no average is kept."""
        return merge(self.average or self.trained, self.frozen)


def merge(trained: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
    """Returns one nested dict of the trained and the frozen parameters."""
    return unflatten(flatten(frozen) | flatten(trained))


def init_state(
    params: Mapping[str, Any],
    frozen: Callable[[str], bool],
    optimizer: optax.GradientTransformation,
    average: bool,
    mesh: Mesh | None = None,
) -> TrainState:
    """Returns the state before the first step.

    The state takes ownership of `params`, whose buffers the first step donates.

    Args:
      params: parameters, a nested dict of arrays on their devices; trained ones must be float32.
      frozen: function from the path of a parameter to whether it is frozen.
      optimizer: optimizer of the trained parameters, as from `make_optimizer`.
      average: whether to keep a moving average.
      mesh: mesh over which the parameters are sharded, and the optimizer's state with them; None: one device.

    Raises:
      ValueError: if a trained parameter is not float32, because small updates would be lost.
    """
    flat = flatten(params)
    for path, x in flat.items():
        if not frozen(path) and x.dtype != jnp.float32:
            raise ValueError(f"trained parameters must be float32, got {path} in {x.dtype}; convert them first")
    trained = unflatten({path: x for path, x in flat.items() if not frozen(path)})
    rest = unflatten({path: x for path, x in flat.items() if frozen(path)})

    def init(trained: Any) -> tuple[Any, ...]:
        zeros = [jnp.zeros((), jnp.int32) for _ in range(3)]
        return optimizer.init(trained), jax.tree.map(jnp.copy, trained) if average else {}, *zeros

    where = None if mesh is None else state_shardings(jax.eval_shape(init, trained), mesh)
    state, copy, step, skipped, in_a_row = jax.jit(init, out_shardings=where)(trained)
    return TrainState(step, trained, rest, copy, state, skipped, in_a_row)


def state_shardings(shapes: Any, mesh: Mesh) -> Any:
    """Returns the sharding of each array of a state: moments like their parameters, other arrays replicated.

    Args:
      shapes: tree of arrays or shapes, whose dictionaries have the structure of the parameters.
      mesh: mesh over which the parameters are sharded.
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
    """A training step, called under `jax.jit` as `step(state, batch)`; `make_step` compiles it.

    Attributes:
      objective: objective to minimise.
      optimizer: optimizer of the trained parameters, as from `make_optimizer`.
      micro_batches: number of micro-batches that the gradient is computed in, one after the other.
      average: decay of the moving average per step; None: no average is kept.
      seed: seed of the augmentation.
      mesh: mesh over whose `data` and `fsdp` axes the batch is sharded; None: one device.
      curator: chooses the rows of each batch that are trained on; None: all are.
    """

    objective: Objective
    optimizer: optax.GradientTransformation
    micro_batches: int = 1
    average: float | None = None
    seed: int = 0
    mesh: Mesh | None = None
    curator: Curator | None = None

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Returns the next state and the metrics of a step; a step that is not finite changes only the counts.

        Args:
          state: state before the step.
          batch: arrays by name, each with a row for an example.

        Returns:
          The state after the step, and scalar metrics by name: `loss`, those of the objective, and the norms of
          gradient, update and parameters of each part of the model.
        """
        key = jax.random.fold_in(jax.random.key(self.seed), state.step)
        chosen: Metrics = {}
        if self.curator is not None:
            batch, chosen = self.curator(state.params, batch, jax.random.fold_in(key, self.micro_batches))
        loss, metrics, gradients = self.gradients(state.trained, state.frozen, batch, key)
        updates, optimizer = self.optimizer.update(gradients, state.optimizer, state.trained)
        trained: Any = optax.apply_updates(state.trained, updates)
        average = state.average
        if average:
            done = (state.step + 1).astype(jnp.float32)
            # Early in a run the decay is smaller, so that the average forgets the initial weights.
            decay = jnp.minimum(jnp.float32(self.average), done / (done + 10))
            average = jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), average, trained)
        frozen, metrics = self.objective.follow(state.frozen, trained, metrics)
        metrics |= chosen | {"loss": loss}
        for what, tree in (("gradient", gradients), ("update", updates), ("parameter", state.trained)):
            metrics |= {f"{what}_norm/{group}": norm for group, norm in _norms(tree).items()}

        finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(gradients)) & jnp.isfinite(optax.tree.norm(updates))
        new, old = (trained, average, optimizer), (state.trained, state.average, state.optimizer)
        trained, average, optimizer = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        frozen = jax.tree.map(lambda n, o: o if n is o else jnp.where(finite, n, o), frozen, state.frozen)
        bad = 1 - finite.astype(jnp.int32)
        counts = state.skipped + bad, (state.skipped_in_a_row + 1) * bad
        return TrainState(state.step + 1, trained, frozen, average, optimizer, *counts), metrics

    def gradients(
        self, trained: Any, frozen: Any, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics, Any]:
        """Returns the loss of the whole batch, its metrics, and the gradient of the trained parameters.

        Args:
          trained: parameters to differentiate with respect to, a nested dict.
          frozen: the other parameters, a nested dict.
          batch: arrays by name, each with a row for an example.
          key: random key for augmentation; each micro-batch gets its own.
        """

        def embed(trained: Any, examples: Batch, number: Int32[Array, ""]) -> Any:
            return self.objective.embed(merge(trained, frozen), examples, jax.random.fold_in(key, number))

        def loss_of(trained: Any, embeds: Any) -> tuple[Array, Metrics]:
            return self.objective.loss(merge(trained, frozen), embeds, batch)

        if self.micro_batches == 1:

            def whole(trained: Any) -> tuple[Array, Metrics]:
                return loss_of(trained, embed(trained, batch, jnp.int32(0)))

            (loss, metrics), gradients = jax.value_and_grad(whole, has_aux=True)(trained)
            return loss, metrics, gradients

        micro = jax.tree.map(self._pieces, dict(batch)), jnp.arange(self.micro_batches, dtype=jnp.int32)
        embeds = jax.lax.map(lambda one: embed(trained, *one), micro)
        both = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)
        (loss, metrics), (direct, cotangents) = both(trained, jax.tree.map(lambda x: join(x, self.mesh), embeds))

        def add(sum_so_far: Any, one: Any) -> tuple[Any, None]:
            (examples, number), cotangent = one
            _, pull_back = jax.vjp(lambda trained: embed(trained, examples, number), trained)
            return jax.tree.map(jnp.add, sum_so_far, pull_back(cotangent)[0]), None

        gradients, _ = jax.lax.scan(add, direct, (micro, jax.tree.map(self._pieces, cotangents)))
        return loss, metrics, gradients

    def _pieces(self, x: Array) -> Array:
        return split(x, self.micro_batches, self.mesh)


def make_step(step: Step, state: TrainState) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns the step as a jitted function, which donates the input state and keeps its sharding.

    Args:
      step: step to compile.
      state: state whose arrays have the sharding that the function keeps.
    """
    where = None if step.mesh is None else (jax.tree.map(lambda x: x.sharding, state), None)
    return jax.jit(step.__call__, donate_argnums=0, out_shardings=where)


def _norms(tree: Any) -> dict[str, Float[Array, ""]]:
    """Returns the global norm of each part of the model, by the name that `group_of` gives it."""
    groups: dict[str, list[Array]] = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        groups.setdefault(group_of(path_of(keys)), []).append(leaf)
    return {group: optax.tree.norm(leaves) for group, leaves in groups.items()}

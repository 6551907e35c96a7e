"""Active curation: of each super-batch a step trains on the pairs that the model can learn most from, by a teacher.

A pair's score is the model's loss of it less the teacher's: high where the pair is hard for the model and easy for the
teacher. The super-batch is a function of the step, so a run resumes as without curation.

Source: Udandarao et al. 2024 (ACID), arXiv 2411.18674, with each pair scored within the whole super-batch at once.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from siglip_jax.losses.pair_losses import pair_losses
from siglip_jax.parallel.mesh import BATCH_AXES, batch_shards
from siglip_jax.training.objective import Batch, Metrics, Pairs
from siglip_jax.training.pieces import join, kept, split

CURATOR = "curator"  # group of the teacher's parameters


@dataclasses.dataclass(frozen=True)
class Curator:
    """Chooses the rows of a super-batch that a step trains on.

    On a mesh each device chooses among its own rows, so that no image is sent.

    Attributes:
      student: objective of pairs of the model.
      teacher: objective of pairs of the teacher, whose parameters are under "curator".
      keep: share of the rows that are trained on.
      pieces: number of pieces that the super-batch is embedded in, one after the other.
      mesh: mesh over whose `data` and `fsdp` axes the batch is sharded; None: one device.
    """

    student: Pairs
    teacher: Pairs
    keep: float
    pieces: int = 1
    mesh: Mesh | None = None

    def __call__(self, params: Mapping[str, Any], batch: Batch, key: Key[Array, ""]) -> tuple[Batch, Metrics]:
        """Returns the chosen rows, and metrics: the mean score of all rows and of the chosen ones.

        Args:
          params: parameters of the model, and of the teacher under "curator".
          batch: arrays of the super-batch by name, each with a row for an example.
          key: random key for augmentation.
        """
        scores = self.scores(params, batch, key)
        shards = batch_shards(self.mesh)
        count = round(len(scores) // shards * self.keep)
        by_shard = scores.reshape(shards, -1)
        rows = jnp.sort(jax.lax.top_k(by_shard, count)[1], axis=1)  # in their order

        def chosen(x: Array) -> Array:
            x = x.reshape(shards, -1, *x.shape[1:])
            at = rows.reshape(*rows.shape, *(1,) * (x.ndim - 2))
            return kept(jnp.take_along_axis(x, at, axis=1).reshape(-1, *x.shape[2:]), self.mesh, BATCH_AXES)

        metrics = {"score": jnp.mean(scores), "score_trained": jnp.mean(jnp.take_along_axis(by_shard, rows, axis=1))}
        return {name: chosen(jnp.asarray(x)) for name, x in batch.items()}, metrics

    def scores(self, params: Mapping[str, Any], batch: Batch, key: Key[Array, ""]) -> Float[Array, " rows"]:
        """Returns the score of each row: the model's loss less the teacher's.

        Args:
          params: parameters of the model, and of the teacher under "curator".
          batch: arrays of the super-batch by name.
          key: random key for augmentation.
        """
        teacher = params[CURATOR]
        over: dict[str, Any] = {"mesh": self.mesh, "axis": BATCH_AXES if self.mesh else "data"}

        pieces = {name: split(jnp.asarray(x), self.pieces, self.mesh) for name, x in batch.items()}

        def losses(objective: Pairs, params: Mapping[str, Any]) -> Array:
            embeds = jax.lax.map(lambda piece: objective.embed(params, piece, key), pieces)
            embeds = {name: join(x, self.mesh) for name, x in embeds.items()}
            return pair_losses(embeds["images"], embeds["texts"], params["logit_scale"], params["logit_bias"], **over)

        return jax.lax.stop_gradient(losses(self.student, params) - losses(self.teacher, teacher))

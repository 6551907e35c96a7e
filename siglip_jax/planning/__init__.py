"""Plans for machines that need not be there: memory, time and traffic of a program, by the machine's own compiler.

The extra `tpu` installs the compiler of TPUs, and the extra `train` what a training step needs.
"""

from typing import TYPE_CHECKING

from siglip_jax._lazy import make_lazy

if TYPE_CHECKING:
    from siglip_jax.planning.plan import Plan, plan
    from siglip_jax.planning.plot import plot_plan
    from siglip_jax.planning.program import Collective
    from siglip_jax.planning.search import largest_batches

__all__ = ["Collective", "Plan", "largest_batches", "plan", "plot_plan"]

make_lazy(
    __name__,
    {
        "Collective": "siglip_jax.planning.program",
        "Plan": "siglip_jax.planning.plan",
        "largest_batches": "siglip_jax.planning.search",
        "plan": "siglip_jax.planning.plan",
        "plot_plan": "siglip_jax.planning.plot",
    },
)

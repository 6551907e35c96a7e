"""Plots: a similarity heat map, a contact sheet, and the mistakes of an evaluation."""

from siglip_jax.plots.contact_sheet import contact_sheet, save_contact_sheet
from siglip_jax.plots.evaluation import plot_evaluation
from siglip_jax.plots.heatmap import plot_similarity

__all__ = ["contact_sheet", "plot_evaluation", "plot_similarity", "save_contact_sheet"]

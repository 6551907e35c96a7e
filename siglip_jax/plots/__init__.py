"""Plots: a similarity heat map, a contact sheet, the mistakes of an evaluation, and the quality of a calibration."""

from siglip_jax.plots.contact_sheet import contact_sheet, save_contact_sheet
from siglip_jax.plots.evaluation import plot_evaluation
from siglip_jax.plots.heatmap import plot_similarity
from siglip_jax.plots.reliability import plot_reliability

__all__ = ["contact_sheet", "plot_evaluation", "plot_reliability", "plot_similarity", "save_contact_sheet"]

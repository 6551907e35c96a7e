"""Plots: a similarity heat map, a contact sheet, evaluations, calibrations, explanations and diagnoses."""

from siglip_jax.plots.contact_sheet import contact_sheet, save_contact_sheet
from siglip_jax.plots.diagnosis import plot_diagnosis
from siglip_jax.plots.evaluation import plot_evaluation
from siglip_jax.plots.explanation import plot_explanation
from siglip_jax.plots.heatmap import plot_similarity
from siglip_jax.plots.reliability import plot_reliability

__all__ = [
    "contact_sheet",
    "plot_diagnosis",
    "plot_evaluation",
    "plot_explanation",
    "plot_reliability",
    "plot_similarity",
    "save_contact_sheet",
]

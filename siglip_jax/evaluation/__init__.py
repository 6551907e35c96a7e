"""How good a model is on a data set: zero-shot classification, retrieval, linear probe, nearest neighbours."""

from siglip_jax.evaluation.evaluate import evaluate_knn as evaluate_knn
from siglip_jax.evaluation.evaluate import evaluate_linear_probe as evaluate_linear_probe
from siglip_jax.evaluation.evaluate import evaluate_retrieval as evaluate_retrieval
from siglip_jax.evaluation.evaluate import evaluate_zero_shot as evaluate_zero_shot
from siglip_jax.evaluation.result import Options as Options
from siglip_jax.evaluation.result import Result as Result

"""SigLIP for JAX: linen modules, checkpoint interchange, processing without torch, training, evaluation and search.

Example:
  >>> import siglip_jax
  >>> siglip = siglip_jax.load()  # the bundled model
  >>> image = siglip_jax.assets.EXAMPLES / "horse.png"
  >>> siglip.classify(image, ["a horse", "a lemon"])[0]["label"]
  'a horse'

The names here are those that most programs need; help(siglip_jax.load) describes one of them:

Use a model:
  `load`, `Siglip`, `pipeline`, `Batcher`, `QueueFullError`, `explain`, `Explanation`, `load_image`

Modules of flax.linen:
  `SiglipModel`, `SiglipTextModel`, `SiglipVisionModel`, `SiglipForImageClassification`; with images of any size and
  aspect ratio (NaFlex): `Siglip2Model`, `Siglip2TextModel`, `Siglip2VisionModel`, `Siglip2ForImageClassification`

Their configurations:
  `SiglipConfig`, `SiglipTextConfig`, `SiglipVisionConfig`, `Siglip2Config`, `Siglip2TextConfig`, `Siglip2VisionConfig`

Images and texts to arrays:
  `SiglipProcessor`, `SiglipTokenizer`, `SiglipImageProcessor`, `SiglipImageProcessorPil`, `Siglip2Tokenizer`,
  `Siglip2ImageProcessor`

Checkpoints:
  `Checkpoint`, `read_checkpoint`, `write_checkpoint`

Losses:
  `sigmoid_loss`, `ring_sigmoid_loss`, `softmax_loss`

Many devices:
  `make_mesh`, `shard_params`, `global_batch`, `join_processes`, `pmap_forward`, `plan`

Everything else is in packages, and help(siglip_jax.training) describes one of them:
  `assets`: the bundled model and the example images
  `checkpoints`: reading, writing, converting and checking files of weights
  `configs`: configurations, and the released checkpoints
  `data`: data sets on disk
  `environment`: what this machine and installation have, and what is wrong with them
  `evaluation`: zero-shot classification, retrieval, segmentation, linear probe, nearest neighbours
  `inference`: loading, servers, explanations, export, quantized copies, speed
  `interop`: modules and trees of big_vision
  `losses`: the losses of SigLIP and SigLIP 2
  `models`: the modules, and what they cost
  `parallel`: meshes, sharding rules, processes
  `planning`: what a step takes on TPUs that are not there
  `plots`: images of results
  `processing`: tokenizers and image processors
  `quantization`: number formats of 4 and 8 bits
  `search`: directories of embeddings, and search in them
  `training`: recipes, and the function that runs them
"""

from typing import TYPE_CHECKING

from siglip_jax._lazy import make_lazy
from siglip_jax._version import __version__ as __version__

if TYPE_CHECKING:
    from siglip_jax import assets as assets
    from siglip_jax import checkpoints as checkpoints
    from siglip_jax import configs as configs
    from siglip_jax import data as data
    from siglip_jax import environment as environment
    from siglip_jax import evaluation as evaluation
    from siglip_jax import inference as inference
    from siglip_jax import interop as interop
    from siglip_jax import losses as losses
    from siglip_jax import models as models
    from siglip_jax import parallel as parallel
    from siglip_jax import planning as planning
    from siglip_jax import plots as plots
    from siglip_jax import processing as processing
    from siglip_jax import quantization as quantization
    from siglip_jax import search as search
    from siglip_jax import training as training
    from siglip_jax.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
    from siglip_jax.configs import (
        Siglip2Config,
        Siglip2TextConfig,
        Siglip2VisionConfig,
        SiglipConfig,
        SiglipTextConfig,
        SiglipVisionConfig,
    )
    from siglip_jax.inference import Batcher, Explanation, QueueFullError, Siglip, explain, load, pipeline
    from siglip_jax.losses import ring_sigmoid_loss, sigmoid_loss, softmax_loss
    from siglip_jax.models import (
        Siglip2ForImageClassification,
        Siglip2Model,
        Siglip2TextModel,
        Siglip2VisionModel,
        SiglipForImageClassification,
        SiglipModel,
        SiglipTextModel,
        SiglipVisionModel,
        pmap_forward,
    )
    from siglip_jax.parallel import global_batch, join_processes, make_mesh, shard_params
    from siglip_jax.planning import plan
    from siglip_jax.processing import (
        Siglip2ImageProcessor,
        Siglip2Tokenizer,
        SiglipImageProcessor,
        SiglipImageProcessorPil,
        SiglipProcessor,
        SiglipTokenizer,
        load_image,
    )

__all__ = [
    "Batcher",
    "Checkpoint",
    "Explanation",
    "QueueFullError",
    "Siglip",
    "Siglip2Config",
    "Siglip2ForImageClassification",
    "Siglip2ImageProcessor",
    "Siglip2Model",
    "Siglip2TextConfig",
    "Siglip2TextModel",
    "Siglip2Tokenizer",
    "Siglip2VisionConfig",
    "Siglip2VisionModel",
    "SiglipConfig",
    "SiglipForImageClassification",
    "SiglipImageProcessor",
    "SiglipImageProcessorPil",
    "SiglipModel",
    "SiglipProcessor",
    "SiglipTextConfig",
    "SiglipTextModel",
    "SiglipTokenizer",
    "SiglipVisionConfig",
    "SiglipVisionModel",
    "assets",
    "checkpoints",
    "configs",
    "data",
    "environment",
    "evaluation",
    "explain",
    "global_batch",
    "inference",
    "interop",
    "join_processes",
    "load",
    "load_image",
    "losses",
    "make_mesh",
    "models",
    "parallel",
    "pipeline",
    "plan",
    "planning",
    "plots",
    "pmap_forward",
    "processing",
    "quantization",
    "read_checkpoint",
    "ring_sigmoid_loss",
    "search",
    "shard_params",
    "sigmoid_loss",
    "softmax_loss",
    "training",
    "write_checkpoint",
]

# Everything is imported on first use, jax too: the command line handles Ctrl-C before that second has passed.
make_lazy(
    __name__,
    {"plan": "siglip_jax.planning.plan"},
    submodules=(
        "assets",
        "data",
        "environment",
        "evaluation",
        "interop",
        "planning",
        "plots",
        "quantization",
        "search",
        "training",
    ),
    packages=("configs", "losses", "parallel", "processing", "checkpoints", "models", "inference"),
)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

"""SigLIP for JAX: linen modules, checkpoint interchange, processing without torch, zero-shot classification."""

__version__ = "0.1.0"

from siglip_jax.checkpoints import Checkpoint as Checkpoint
from siglip_jax.checkpoints import read_checkpoint as read_checkpoint
from siglip_jax.checkpoints import write_checkpoint as write_checkpoint
from siglip_jax.configuration import Siglip2Config as Siglip2Config
from siglip_jax.configuration import Siglip2TextConfig as Siglip2TextConfig
from siglip_jax.configuration import Siglip2VisionConfig as Siglip2VisionConfig
from siglip_jax.configuration import SiglipConfig as SiglipConfig
from siglip_jax.configuration import SiglipTextConfig as SiglipTextConfig
from siglip_jax.configuration import SiglipVisionConfig as SiglipVisionConfig
from siglip_jax.inference import Batcher as Batcher
from siglip_jax.inference import QueueFullError as QueueFullError
from siglip_jax.inference import load as load
from siglip_jax.inference import pipeline as pipeline
from siglip_jax.losses import ring_sigmoid_loss as ring_sigmoid_loss
from siglip_jax.losses import sigmoid_loss as sigmoid_loss
from siglip_jax.models import Siglip2ForImageClassification as Siglip2ForImageClassification
from siglip_jax.models import Siglip2Model as Siglip2Model
from siglip_jax.models import Siglip2TextModel as Siglip2TextModel
from siglip_jax.models import Siglip2VisionModel as Siglip2VisionModel
from siglip_jax.models import SiglipForImageClassification as SiglipForImageClassification
from siglip_jax.models import SiglipModel as SiglipModel
from siglip_jax.models import SiglipTextModel as SiglipTextModel
from siglip_jax.models import SiglipVisionModel as SiglipVisionModel
from siglip_jax.models import pmap_forward as pmap_forward
from siglip_jax.parallel import make_mesh as make_mesh
from siglip_jax.parallel import shard_params as shard_params
from siglip_jax.processing import Siglip2ImageProcessor as Siglip2ImageProcessor
from siglip_jax.processing import Siglip2Tokenizer as Siglip2Tokenizer
from siglip_jax.processing import SiglipImageProcessor as SiglipImageProcessor
from siglip_jax.processing import SiglipImageProcessorPil as SiglipImageProcessorPil
from siglip_jax.processing import SiglipProcessor as SiglipProcessor
from siglip_jax.processing import SiglipTokenizer as SiglipTokenizer

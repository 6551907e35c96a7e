"""The linen modules."""

from siglip_jax.models.classifier import SiglipForImageClassification as SiglipForImageClassification
from siglip_jax.models.naflex import Siglip2ForImageClassification as Siglip2ForImageClassification
from siglip_jax.models.naflex import Siglip2Model as Siglip2Model
from siglip_jax.models.naflex import Siglip2TextModel as Siglip2TextModel
from siglip_jax.models.naflex import Siglip2VisionModel as Siglip2VisionModel
from siglip_jax.models.outputs import ImageClassifierOutput as ImageClassifierOutput
from siglip_jax.models.outputs import SiglipOutput as SiglipOutput
from siglip_jax.models.outputs import TowerOutput as TowerOutput
from siglip_jax.models.pmap import pmap_forward as pmap_forward
from siglip_jax.models.siglip import SiglipModel as SiglipModel
from siglip_jax.models.siglip import SiglipTextModel as SiglipTextModel
from siglip_jax.models.siglip import SiglipVisionModel as SiglipVisionModel

"""Texts and pictures to the arrays that the model takes, without torch and without TensorFlow."""

from siglip_jax.processing.batch import Batch as Batch
from siglip_jax.processing.gemma import Siglip2Tokenizer as Siglip2Tokenizer
from siglip_jax.processing.images import SiglipImageProcessor as SiglipImageProcessor
from siglip_jax.processing.images import SiglipImageProcessorPil as SiglipImageProcessorPil
from siglip_jax.processing.loading import load_image as load_image
from siglip_jax.processing.naflex import Siglip2ImageProcessor as Siglip2ImageProcessor
from siglip_jax.processing.processor import SiglipProcessor as SiglipProcessor
from siglip_jax.processing.resize import resize_and_normalize as resize_and_normalize
from siglip_jax.processing.tokenizers import SiglipTokenizer as SiglipTokenizer

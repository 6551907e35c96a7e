"""The released SigLIP checkpoints: 10 of SigLIP, 15 of SigLIP 2 with a fixed resolution, 2 of SigLIP 2 NaFlex.

Each entry records the Hub name, the file of big_vision, the fields of `config.json` that differ from the defaults, the
number of parameters and the published metrics. Nothing here reads a file or the network.
"""

import dataclasses
import difflib
import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from siglip_jax.configs.published import ANSWERS, TOKEN_IDS, Answer

OWNER = "google/"
FOLDER = "gs://big_vision/"  # public; https://storage.googleapis.com/big_vision/ serves the same files

# Both towers have the same sizes, except that the text tower of giant-opt is so400m. BASE equals the defaults.
BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
GIANT_OPT = {"hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 40, "num_attention_heads": 16}

VOCABULARIES = {"c4_en": 32_000, "mc4": 250_000, "gemma": 256_000}  # pieces

PAPERS = "arXiv 2303.15343, table 3; arXiv 2502.14786, table 1"
OPEN_CLIP = "open_clip, docs/openclip_results.csv; the authors publish none"
README = "big_vision, README_siglip2.md"


@dataclasses.dataclass(frozen=True)
class Variant:
    """A released checkpoint.

    Attributes:
      name: Hub name, as in "google/siglip-base-patch16-224".
      npz: file name of the original in big_vision's bucket.
      text: fields of `text_config`: all sizes of the tower, and other fields that differ from the defaults.
      vision: fields of `vision_config`: all sizes of the tower, and other fields that differ from the defaults.
      vocabulary: vocabulary of the tokenizer, a key of `VOCABULARIES`: "c4_en", "mc4" or "gemma".
      parameters: number of parameters on the Hub: both towers, temperature and bias.
      imagenet: zero-shot top-1 accuracy on ImageNet in %; None: not published.
      coco_text_to_image: recall at 1 on COCO from a caption to its image, in %; None: not published.
      coco_image_to_text: recall at 1 on COCO from an image to one of its captions, in %; None: not published.
      source: publication of the three metrics; None: not published.
      model_type: `model_type` of the configuration: "siglip", or "siglip2" for NaFlex, which takes images of any aspect
        ratio.
      text_head: whether the .npz holds the projection after the text tower; where it does not, the projection on the
        Hub is an identity.

    Example:
      >>> variant = find("siglip2-base-patch16-naflex")
      >>> variant.name, variant.tokenizer, variant.image_size
      ('google/siglip2-base-patch16-naflex', 'gemma', None)
    """

    name: str
    npz: str
    text: Mapping[str, int]
    vision: Mapping[str, int]
    vocabulary: str
    parameters: int
    imagenet: float | None
    coco_text_to_image: float | None
    coco_image_to_text: float | None
    source: str | None
    model_type: str = "siglip"
    text_head: bool = True

    @property
    def short_name(self) -> str:
        """Hub name without the owner, as in "siglip-base-patch16-224"."""
        return self.name.removeprefix(OWNER)

    @property
    def location(self) -> str:
        """Public address of the original in big_vision's bucket."""
        return f"{FOLDER}{'siglip2' if self.short_name.startswith('siglip2') else 'siglip'}/{self.npz}"

    @property
    def text_length(self) -> int:
        """Number of tokens that every text is padded and truncated to."""
        return self.text["max_position_embeddings"]

    @property
    def image_size(self) -> int | None:
        """Height and width of an image in pixels; None for NaFlex."""
        return self.vision.get("image_size")

    @property
    def tokenizer(self) -> str:
        """Kind of the tokenizer: "sentencepiece" (`spiece.model`) or "gemma" (`tokenizer.json`)."""
        return "gemma" if self.vocabulary == "gemma" else "sentencepiece"

    @property
    def resample(self) -> str:
        """Interpolation of the image processor on the Hub: "bicubic" or "bilinear"; big_vision's is always bilinear."""
        return "bilinear" if self.vocabulary == "gemma" else "bicubic"

    @property
    def answers(self) -> tuple[Answer, ...]:
        """Published logits or probabilities of the weights; () where none are published."""
        return ANSWERS.get(self.short_name, ())

    @property
    def token_ids(self) -> Mapping[str, tuple[int, ...]]:
        """Published token ids by text, without padding; {} where none are published."""
        return TOKEN_IDS.get(self.vocabulary, {})

    def to_dict(self) -> dict[str, Any]:
        """Converts the entry to types that JSON can hold.

        Returns:
          A dictionary of all fields and properties except `short_name`.
        """
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        derived = ("location", "tokenizer", "resample", "text_length", "image_size")
        return {
            **fields,
            **{name: getattr(self, name) for name in derived},
            "text": dict(self.text),
            "vision": dict(self.vision),
            "answers": [dataclasses.asdict(answer) for answer in self.answers],
            "token_ids": {text: list(ids) for text, ids in self.token_ids.items()},
        }


def _v1(
    name: str,
    npz: str,
    sizes: Mapping[str, int],
    patch: int,
    image: int | None,
    parameters: int,
    *metrics: float,
    vocabulary: str = "c4_en",
    source: str = PAPERS,
    text_length: int = 64,
    text_head: bool = True,
) -> Variant:
    text = {**sizes, "vocab_size": VOCABULARIES[vocabulary], "max_position_embeddings": text_length}
    if sizes is GIANT_OPT:
        text |= {**SO400M, "projection_size": GIANT_OPT["hidden_size"]}
    vision = {**sizes, "patch_size": patch, **({"num_patches": 256} if image is None else {"image_size": image})}
    return Variant(
        f"{OWNER}{name}",
        f"{npz}.npz",
        MappingProxyType(text),
        MappingProxyType(vision),
        vocabulary,
        parameters,
        *metrics,
        source=source,
        model_type="siglip2" if image is None else "siglip",
        text_head=text_head,
    )


_v2 = functools.partial(_v1, vocabulary="gemma", source=README)

# fmt: off
# Columns: Hub name, file of big_vision, sizes, patch size in pixels, image size in pixels, parameters; in %: ImageNet
# zero-shot accuracy, COCO text-to-image recall, COCO image-to-text recall.
SIGLIP = (
    _v1("siglip-base-patch16-224", "webli_en_b16_224_63724782", BASE, 16, 224, 203_155_970, 76.2, 47.2, 64.5),
    _v1("siglip-base-patch16-256", "webli_en_b16_256_60500360", BASE, 16, 256, 203_202_050, 76.7, 47.4, 65.1),
    _v1("siglip-base-patch16-384", "webli_en_b16_384_68578854", BASE, 16, 384, 203_447_810, 78.6, 49.7, 67.5),
    _v1("siglip-base-patch16-512", "webli_en_b16_512_68580893", BASE, 16, 512, 203_791_874, 79.2, 50.4, 67.6),
    _v1("siglip-large-patch16-256", "webli_en_l16_256_60552751", LARGE, 16, 256, 652_150_786, 80.5, 51.2, 69.6),
    _v1("siglip-large-patch16-384", "webli_en_l16_384_63634585", LARGE, 16, 384, 652_478_466, 82.1, 52.8, 70.5),
    _v1("siglip-so400m-patch14-224", "webli_en_so400m_224_57633886", SO400M, 14, 224, 877_360_306, 82.2, 50.8, 69.0,
        text_length=16),
    _v1("siglip-so400m-patch14-384", "webli_en_so400m_384_58765454", SO400M, 14, 384, 877_960_498, 83.2, 52.0, 70.2),
    _v1("siglip-base-patch16-256-multilingual", "webli_i18n_b16_256_66117334", BASE, 16, 256, 370_626_050,
        75.1, 44.9, 64.5, vocabulary="mc4", source=OPEN_CLIP),
    _v1("siglip-so400m-patch16-256-i18n", "webli_i18n_so400m_16_256_78061115", SO400M, 16, 256, 1_128_758_962,
        80.8, 49.4, 68.6, vocabulary="mc4", text_head=False),
)
SIGLIP2 = (
    _v2("siglip2-base-patch32-256", "siglip2_b32_256", BASE, 32, 256, 376_856_066, 74.0, 47.2, 63.7),
    _v2("siglip2-base-patch16-224", "siglip2_b16_224", BASE, 16, 224, 375_187_970, 78.2, 52.1, 68.9),
    _v2("siglip2-base-patch16-256", "siglip2_b16_256", BASE, 16, 256, 375_234_050, 79.1, 53.2, 69.7),
    _v2("siglip2-base-patch16-384", "siglip2_b16_384", BASE, 16, 384, 375_479_810, 80.6, 54.6, 71.4),
    _v2("siglip2-base-patch16-512", "siglip2_b16_512", BASE, 16, 512, 375_823_874, 81.2, 55.2, 71.2),
    _v2("siglip2-large-patch16-256", "siglip2_l16_256", LARGE, 16, 256, 881_526_786, 82.5, 54.7, 71.5),
    _v2("siglip2-large-patch16-384", "siglip2_l16_384", LARGE, 16, 384, 881_854_466, 83.1, 55.3, 71.4),
    _v2("siglip2-large-patch16-512", "siglip2_l16_512", LARGE, 16, 512, 882_313_218, 83.5, 55.2, 72.1),
    _v2("siglip2-so400m-patch14-224", "siglip2_so400m14_224", SO400M, 14, 224, 1_135_463_602, 83.2, 55.1, 71.5),
    _v2("siglip2-so400m-patch14-384", "siglip2_so400m14_384", SO400M, 14, 384, 1_136_008_498, 84.1, 55.8, 71.7),
    _v2("siglip2-so400m-patch16-256", "siglip2_so400m16_256", SO400M, 16, 256, 1_135_670_962, 83.4, 55.4, 71.5),
    _v2("siglip2-so400m-patch16-384", "siglip2_so400m16_384", SO400M, 16, 384, 1_136_039_602, 84.1, 56.0, 71.2),
    _v2("siglip2-so400m-patch16-512", "siglip2_so400m16_512", SO400M, 16, 512, 1_136_555_698, 84.3, 56.0, 71.3),
    _v2("siglip2-giant-opt-patch16-256", "siglip2_g-opt16_256", GIANT_OPT, 16, 256, 1_871_393_906, 84.5, 55.7, 72.5),
    _v2("siglip2-giant-opt-patch16-384", "siglip2_g-opt16_384", GIANT_OPT, 16, 384, 1_871_885_426, 85.0, 56.1, 72.8),
)
NAFLEX = (
    _v2("siglip2-base-patch16-naflex", "siglip2_b16_naflex", BASE, 16, None, 375_234_050, 78.5, 51.1, 67.3),
    _v2("siglip2-so400m-patch16-naflex", "siglip2_so400m16_naflex", SO400M, 16, None, 1_135_670_962, 83.5, 55.1, 71.2),
)
# fmt: on
VARIANTS = SIGLIP + SIGLIP2 + NAFLEX
"""All released checkpoints, in the order of their families."""

NAMES = {name: v for v in VARIANTS for name in (v.name, v.short_name, v.npz, v.npz.removesuffix(".npz"), v.location)}


def find(name: str) -> Variant:
    """Returns the released checkpoint of a name.

    Args:
      name: Hub name, with or without "google/", or file name of big_vision, with or without ".npz".

    Returns:
      The entry of `VARIANTS`.

    Raises:
      ValueError: if no released checkpoint has this name; the message names the closest.

    Example:
      >>> find("webli_en_b16_224_63724782.npz").name
      'google/siglip-base-patch16-224'
    """
    if name in NAMES:
        return NAMES[name]
    matches = difflib.get_close_matches(name.lower(), NAMES, n=12, cutoff=0.0)
    closest = list(dict.fromkeys(NAMES[match].name for match in matches))[:3]
    raise ValueError(f"name must be a released SigLIP checkpoint, got {name!r}; the closest are {', '.join(closest)}")

"""Published outputs of the released checkpoints: logits of images and texts, and token ids of their tokenizers.

Nothing here was computed with this library.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Answer:
    """Published logits or probabilities of a released checkpoint for some images and texts.

    Attributes:
      given: how the images are available: "drawn" if they can be drawn again, "image" if they are image files,
        "pixels" if only the `pixel_values` published with the logits determine them.
      images: description of each image.
      pixels: how the images were converted to `pixel_values`.
      texts: the texts, as passed to the tokenizer.
      kind: "logits", or "probabilities" (the sigmoid of the logits).
      values: one row per image, one column per text.
      tolerance: absolute error that the upstream test of the reference allows.
      source: file of the reference that publishes the values.
    """

    given: str
    images: tuple[str, ...]
    pixels: str
    texts: tuple[str, ...]
    kind: str
    values: tuple[tuple[float, ...], ...]
    tolerance: float
    source: str


_APPLES = {
    "siglip-base-patch16-224": ((-2.9621, -2.1672), (-0.2713, 0.2910)),
    "siglip-base-patch16-256": ((-3.1146, -1.9894), (-0.7312, 0.6387)),
    "siglip-base-patch16-384": ((-2.8098, -2.1891), (-0.4242, 0.4102)),
    "siglip-base-patch16-512": ((-2.7899, -2.2668), (-0.4295, -0.0735)),
    "siglip-large-patch16-256": ((-1.5827, -0.5801), (-0.9153, 0.1363)),
    "siglip-large-patch16-384": ((-2.1523, -0.2899), (-0.2959, 0.7884)),
    "siglip-so400m-patch14-224": ((-1.0864916, 1.1704235), (-0.71784306, 1.4354687)),
    "siglip-so400m-patch14-384": ((-1.2441, -0.6649), (-0.7060, 0.7374)),
    "siglip-base-patch16-256-multilingual": ((-0.9064, 0.1073), (-0.0299, 0.5304)),
    "siglip-so400m-patch16-256-i18n": ((-1.9432535, -0.05433846), (0.6222029, 2.2883186)),
}
DISC_SIZES = (224, 224), (1024, 1024), (1024, 224)  # pixels, width and height
DISC = "red, a blue disc of radius min(width // 2, height // 2) // 8 * 7 inside it, its outline green, width // 20 wide"
_DISCS = {
    "siglip2-base-patch16-naflex": (
        (1.0195, -4.5395, 4.1757, 9.4264, 2.4409, -12.3230, 1.1520),
        (-0.0280, -6.2269, 5.0358, 10.1879, 3.1058, -13.7355, 1.1687),
        (-1.4468, -1.5667, 3.5159, 6.3353, 4.5491, -13.4632, -1.9647),
    ),
    "siglip2-so400m-patch16-naflex": (
        (0.9422, -7.3522, 5.7852, 9.9881, 5.3660, -12.7218, 0.6384),
        (0.5540, -9.4931, 6.7288, 10.8136, 5.7746, -14.2631, 0.4278),
        (-2.4405, -6.3499, 7.7893, 9.2121, 8.4130, -13.6442, -0.9022),
    ),
}
_APPLE = Answer(
    given="pixels",
    images=("apple-ipod.jpg", "apple-blank.jpg"),
    pixels="as big_vision makes them: resized bilinearly without antialiasing (dataset nielsr/test-image)",
    texts=("an apple", "a picture of an apple"),
    kind="logits",
    values=(),
    tolerance=1e-4,
    source="transformers, convert_siglip_to_hf.py",
)
_DISC = Answer(
    given="drawn",
    images=tuple(f"{DISC}, {width} pixels wide and {height} high" for width, height in DISC_SIZES),
    pixels="256 patches at most, resized with antialiasing in floating point and rounded, as torchvision does on a GPU",
    texts=(
        "circle",
        "ellipsoid",
        "blue circle on red background",
        "blue circle with green border on red background",
        "green circle on red background",
        "a dog",
        "a blue dog with a green border on a red background",
    ),
    kind="logits",
    values=(),
    tolerance=1e-3,
    source="transformers, convert_siglip2_to_hf.py and test_modeling_siglip2.py",
)
_CATS = Answer(
    given="image",
    images=("COCO val2017 000000039769.jpg",),
    pixels="from the image processor of the checkpoint",
    texts=("a photo of 2 cats", "a photo of 2 dogs"),
    kind="logits",
    values=((-0.7567, -10.3354),),
    tolerance=1e-3,
    source="transformers, test_modeling_siglip.py",
)
_PIPELINE = dataclasses.replace(
    _CATS,
    images=("COCO val2017 000000039769, as .png",),
    texts=("This is a photo of 2 cats.", "This is a photo of a plane.", "This is a photo of a remote."),
    kind="probabilities",
    values=((0.198, 0.0, 0.0),),
    source="transformers, test_pipelines_zero_shot_image_classification.py",
)
ANSWERS: dict[str, tuple[Answer, ...]] = {
    **{name: (dataclasses.replace(_APPLE, values=values),) for name, values in _APPLES.items()},
    **{name: (dataclasses.replace(_DISC, values=values),) for name, values in _DISCS.items()},
}
ANSWERS["siglip-base-patch16-224"] += (
    _CATS,
    dataclasses.replace(_CATS, kind="probabilities", values=((3.1937e-01, 3.2463e-05),)),
    _PIPELINE,
)

_LAPTOP = (
    "a picture of a laptop with the lockscreen on, a cup of cappucino, salt and pepper grinders. The view through the"
    " window reveals lake Zürich and the Alps in the background of the city."
)
# By vocabulary and text; the ids end with </s> and are neither padded nor truncated. From transformers,
# test_tokenization_siglip.py.
# fmt: off
TOKEN_IDS: dict[str, dict[str, tuple[int, ...]]] = {
    "c4_en": {
        "the real mountain view": (260, 638, 3293, 870, 1),
        "Zürich": (262, 761, 5879, 5345, 1),
        "San Francisco": (262, 264, 452, 20563, 15949, 1),
        "A long paragraph for summarization.": (262, 266, 476, 8532, 270, 4460, 3949, 1682, 1),
        "Summary of the text. </s>": (6254, 267, 260, 1443, 1),
        _LAPTOP: (
            262, 266, 1357, 267, 262, 266, 4429, 275, 260, 3940, 6360, 277, 262, 266, 3064, 267, 3549, 388, 16538, 296,
            298, 2617, 263, 4869, 14998, 264, 260, 870, 393, 260, 1710, 7958, 4324, 262, 761, 5879, 5345, 263, 260,
            1518, 388, 264, 268, 260, 1970, 267, 260, 741, 1,
        ),
    }
}
# fmt: on

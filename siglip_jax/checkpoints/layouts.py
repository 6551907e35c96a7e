"""The table of layouts: who writes SigLIP's weights how, what is read of it, and what is written back.

`siglip-jax info --layouts` and docs/checkpoints.md show it. A new layout is one row here and one line there.
"""

from typing import NamedTuple


class Layout(NamedTuple):
    """A layout of weights on disk.

    Attributes:
      family: models that are saved so; "SigLIP" stands for both generations.
      layout: the program that saves them, and the form of its files.
      reads: what is read, "all" or the image "tower" alone.
      parity: largest difference of the outputs from those of the owning library, relative to the largest output, in
        float32; "bits" where the parameters are compared bit by bit.
      writes: what is written back: "bits" if the owning library reads what is written and finds every bit; with
        "by LoRA runs" training writes it, and not `convert`; ".npz": in that form only; "-": the layout is not written.
      checked: file of the repository that builds the layout and compares.

    Example:
      >>> import siglip_jax
      >>> layout = siglip_jax.checkpoints.LAYOUTS[0]
      >>> layout.family, layout.parity, layout.writes
      ('SigLIP', '1e-5', 'bits')
    """

    family: str
    layout: str
    reads: str
    parity: str
    writes: str
    checked: str


_TABLE = """
SigLIP          | transformers: whole model, one file or shards        | all   | 1e-5 | bits | layouts
SigLIP          | transformers >= 5.6: one tower, names without prefix | all   | 1e-5 | bits | layouts
SigLIP          | transformers: image classifier                       | all   | 1e-5 | bits | layouts
SigLIP 2 NaFlex | transformers: whole model, tower, classifier         | all   | 1e-5 | bits | layouts
SigLIP          | transformers < 5.6: one tower, names with prefix     | all   | bits | bits | formats/huggingface
SigLIP          | big_vision: .npz, layers apart or stacked            | all   | 1e-5 | bits | other_models
SigLIP          | big_vision: .npz of training, tensorstore, -LAST     | all   | bits | .npz | formats/jax_neighbours
SigLIP          | open_clip: directory                                 | all   | 1e-5 | bits | other_models
SigLIP          | timm: vit_*_siglip_*, gap, naflexvit, classifiers    | all   | 1e-5 | bits | formats/timm
SigLIP          | siglip_jax: orbax directory                          | all   | bits | bits | formats/orbax
SigLIP          | siglip_jax: quantized directory                      | all   | bits | bits | formats/all
SigLIP          | siglip_jax: parameters saved alone by orbax          | all   | bits | -    | formats/jax_neighbours
SigLIP          | a prefix before all names: DDP, torch.compile, Marqo | all   | bits | -    | prefix
SigLIP          | PEFT: LoRA adapter beside its base                   | all   | 1e-5 | bits, by LoRA runs | adapters
PaliGemma, pi0  | openpi: orbax params/PaliGemma/img                   | tower | 1e-5 | -    | formats/jax_neighbours
Gemma 3         | gemma: orbax vision_encoder, nested or flat          | tower | 1e-5 | -    | formats/jax_neighbours
PaliGemma, ColPali, PI0 | transformers: vision_config at any depth | tower | 1e-5 | bits | formats/towers
Gemma 3, ShieldGemma 2, T5Gemma 2 | transformers: vision_config at any depth | tower | 1e-5 | bits | formats/towers
LLaVA, LLaVA-NeXT, LLaVA-OneVision | transformers | tower | 1e-5 | bits | formats/towers
Aya Vision, Command A Vision | transformers | tower | 1e-5 | bits | formats/towers
Idefics 2, Idefics 3, SmolVLM | transformers: bucketed positions | tower | 1e-5 | bits | formats/towers
Phi-4-multimodal | transformers: bucketed positions, pooling head | tower | 1e-5 | bits | formats/towers
DeepSeek-VL, Janus | transformers | tower | 1e-5 | bits | formats/towers
ModernVBERT, Granite Docling | transformers | tower | 1e-5 | bits | formats/towers
LFM2-VL | transformers: NaFlex tower | tower | 1e-5 | bits | formats/towers
LLaVA and kin | their own code: no vision_config | tower | bits | bits | write_tower
pi0, SmolVLA | lerobot: no vision_config | tower | bits | bits | write_tower
GR00T, Phi-4-multimodal | their own code: no vision_config | tower | bits | bits | write_tower
Eagle, Ovis, TinyLLaVA, MiniCPM-V | their own code | tower | bits | bits | write_tower
nllb-clip | open_clip: image tower of SigLIP, text of NLLB | tower | bits | - | foreign
"""


def _layout(line: str) -> Layout:
    *cells, test = (cell.strip() for cell in line.split("|"))
    folder, _, name = f"tests/checkpoints/{test}".rpartition("/")
    return Layout._make([*cells, f"{folder}/test_{name}.py"])


LAYOUTS = tuple(map(_layout, _TABLE.strip().splitlines()))
"""All layouts, those of most people first."""

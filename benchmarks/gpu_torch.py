"""The side of torch in `benchmarks/gpu.py`: `transformers`, compiled layer by layer, and torch's fused attention."""

from collections.abc import Callable
from typing import Any

import attention
import torch
import transformers
from gpu_plan import Row, config_of
from gpu_worker import in_a_line, timed
from loss_sides import torch_loss
from torch.nn.attention import SDPBackend, sdpa_kernel

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
FUSED = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def wait(_: Any) -> None:
    """Waits for the device."""
    if CUDA:
        torch.cuda.synchronize()


def _config(model: str, **options: Any) -> Any:
    d = config_of(model).to_dict()
    parts = {name: d[f"{name}_config"] for name in ("text", "vision")}
    return transformers.SiglipConfig(text_config=parts["text"], vision_config=parts["vision"], **options)


def _compile_layers(*encoders: Any) -> None:
    """Compiles the layers, which share one graph: as fast as the whole, and compiled in seconds."""
    torch._dynamo.reset()
    for encoder in encoders:
        for layer in encoder.layers:
            layer.compile(dynamic=False)


def training(model: str, batch: int, compiled: bool, checkpoint: bool) -> Callable[[], Any]:
    """Returns a step under autocast with clipping and fused AdamW; weights are float32."""
    config = _config(model)
    with torch.device(DEVICE):
        module = transformers.SiglipModel(config).train()
        side = config.vision_config.image_size
        pixels = torch.rand(batch, 3, side, side) * 2 - 1
        ids = torch.randint(2, config.text_config.vocab_size, (batch, config.text_config.max_position_embeddings))
    if checkpoint:
        module.gradient_checkpointing_enable()
    if compiled:
        _compile_layers(module.text_model.encoder, module.vision_model.encoder)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5, fused=True)

    def step() -> Any:
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = module(input_ids=ids, pixel_values=pixels, return_loss=True).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def loss(kind: str, batch: int, width: int) -> Callable[[], Any]:
    """Returns the loss of bfloat16 embeddings with its four gradients."""
    function = torch_loss(kind)

    def embeds() -> Any:
        x = torch.nn.functional.normalize(torch.randn(batch, width, device=DEVICE))
        return x.to(torch.bfloat16).requires_grad_()

    scalars = [torch.tensor(x, device=DEVICE, dtype=torch.bfloat16, requires_grad=True) for x in (2.302585, -10.0)]
    given = [embeds(), embeds(), *scalars]

    def step() -> Any:
        found = function(*given)
        found.backward()
        for x in given:
            x.grad = None
        return found.detach()

    return step


def forward(model: str, batch: int, compiled: bool) -> Callable[[], Any]:
    """Returns the image tower in bfloat16: eager with sdpa, or compiled with flash attention in one CUDA graph."""
    config = _config(model).vision_config
    with torch.device(DEVICE):
        tower = transformers.SiglipVisionModel(config).to(torch.bfloat16).eval()
        pixels = torch.rand(batch, 3, config.image_size, config.image_size).to(torch.bfloat16)

    def eager() -> Any:
        with torch.no_grad():
            return torch.nn.functional.normalize(tower(pixel_values=pixels).pooler_output.float())

    if not compiled:
        return eager
    _compile_layers(getattr(tower, "vision_model", tower).encoder)

    def flash() -> Any:
        with sdpa_kernel([FUSED["flash"]] if CUDA else [SDPBackend.MATH]):
            return eager()

    return _in_a_graph(flash) if CUDA else flash


def _in_a_graph(function: Callable[[], Any]) -> Callable[[], Any]:
    """Returns the kernels of a function as one CUDA graph, without the time that Python takes to launch them."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = function()

    def replay() -> Any:
        graph.replay()
        return found

    return replay


def attention_alone(shape: str, batch: int, gradient: bool, implementation: str) -> Callable[[], Any]:
    """Returns torch's scaled dot-product attention by one of its fused kernels."""
    _, tokens, heads, width = next(found for found in attention.SHAPES if found.name == shape)
    given = [torch.randn(batch, tokens, heads, width, device=DEVICE, dtype=torch.bfloat16) for _ in range(3)]
    given = [x.transpose(1, 2).requires_grad_(gradient) for x in given]

    def step() -> Any:
        with sdpa_kernel([FUSED[implementation]]):
            found = torch.nn.functional.scaled_dot_product_attention(*given)
        return torch.autograd.grad(found, given, found.detach()) if gradient else found

    return step


def product(product: int) -> Callable[[], Any]:
    """Returns a product of two square matrices of bfloat16."""
    x, y = (torch.randn(product, product, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return lambda: x @ y


def facts() -> dict[str, Any]:
    """Returns the versions."""
    return {"torch": torch.__version__, "transformers": transformers.__version__}


def measure(rows: list[Row], seconds: float, answer: Callable[..., None]) -> None:
    """Measures the rows one by one."""
    torch.set_float32_matmul_precision("high")
    torch._dynamo.config.recompile_limit = 64
    makers = {"training": training, "loss": loss, "forward": forward, "attention": attention_alone}
    for i, row in enumerate(rows):
        step = None
        try:
            if CUDA:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            step = (product if "product" in row.settings else makers[row.section])(**row.settings)
            found = timed(step, wait, seconds)
            if CUDA:
                found["bytes"] = torch.cuda.max_memory_allocated()
            if row.section in ("training", "loss") and "product" not in row.settings:
                found["loss"] = float(step())
            answer(row=i, **found)
        except Exception as error:  # a row that fails is a result; libraries raise anything
            answer(row=i, why=in_a_line(error))

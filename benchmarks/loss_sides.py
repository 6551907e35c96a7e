"""The sides of `benchmarks/loss.py`: a process that times one form of the loss with its four gradients.

Arguments: "jax" or "torch", the form, dtype, batch, width and devices; each line of input is answered with seconds and
bytes as JSON. With "compiled" as the first, the form is only compiled, with the batch sharded over the devices, and its
temporaries on each device are printed in bytes, with the number of all-gathers.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def jax_loss(form: str, **options: Any) -> Callable[..., Any]:
    """Returns the loss of embeddings, `logit_scale` and `logit_bias`: this package's, or the formula of big_vision.

    Args:
      form: "dense", "blocked", "ring" or "formula".
      **options: further arguments of `sigmoid_loss`, such as `block_size` and `mesh`.
    """
    import jax
    import jax.numpy as jnp

    import siglip_jax

    def formula(images, texts, scale, bias):
        logits = jnp.exp(scale).astype(images.dtype) * (images @ texts.T) + bias.astype(images.dtype)
        signs = 2 * jnp.eye(len(images), dtype=logits.dtype) - 1
        return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(signs * logits), axis=-1))

    if form == "formula":
        return formula
    options = ({} if form == "dense" else {"block_size": "auto"}) | options
    return lambda *given: siglip_jax.sigmoid_loss(*given, **options)


def torch_loss(form: str) -> Callable[..., Any]:
    """Returns the loss of the same arguments in torch: "formula", "compiled formula" or "siglip_kernel"."""
    import torch

    def formula(images, texts, scale, bias):
        logits = images @ texts.t() * scale.exp() + bias
        signs = 2 * torch.eye(len(images), device=images.device, dtype=images.dtype) - torch.ones_like(logits)
        return -torch.nn.functional.logsigmoid(signs * logits).sum(-1).mean()

    if form == "siglip_kernel":
        import siglip_kernel

        return siglip_kernel.fused_siglip_loss
    return torch.compile(formula, dynamic=False) if form == "compiled formula" else formula


def jax_side(form: str, dtype: str, images: np.ndarray, texts: np.ndarray, devices: int) -> tuple[Any, Any]:
    """Returns a step of jax, and a function that returns the peak memory of the device or None."""
    import jax
    import jax.numpy as jnp

    if devices > 1:
        jax.config.update("jax_num_cpu_devices", devices)
    from jax.sharding import NamedSharding, PartitionSpec

    import siglip_jax

    given = [jnp.asarray(images, dtype), jnp.asarray(texts, dtype), jnp.float32(np.log(10)), jnp.float32(-10)]
    options = {}
    if form == "ring":
        options["mesh"] = mesh = siglip_jax.make_mesh(data=devices)
        given[:2] = jax.device_put(given[:2], NamedSharding(mesh, PartitionSpec("data")))
    step = jax.jit(jax.value_and_grad(jax_loss(form, **options), argnums=(0, 1, 2, 3))).lower(*given).compile()
    jax.block_until_ready(given)
    on_gpu = jax.default_backend() == "gpu"
    before = jax.local_devices()[0].memory_stats()["bytes_in_use"] if on_gpu else 0

    def peak_of_device():
        return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"] - before

    return lambda: jax.block_until_ready(step(*given)), peak_of_device if on_gpu else None


def compiled(form: str, dtype: str, batch: int, width: int, devices: int) -> None:
    """Prints the temporaries on each device of a form compiled for a sharded batch, and how often it gathers."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    jax.config.update("jax_num_cpu_devices", devices)
    import siglip_jax

    mesh = siglip_jax.make_mesh(data=devices)
    embeds = jax.ShapeDtypeStruct((batch, width), dtype, sharding=NamedSharding(mesh, PartitionSpec("data")))
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    loss = jax_loss(form, **({"mesh": mesh} if form == "ring" else {}))
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))
    program = step.lower(embeds, embeds, scalar, scalar).compile()
    print(program.memory_analysis().temp_size_in_bytes, program.as_text().count(" all-gather("))


def torch_side(form: str, dtype: str, images: np.ndarray, texts: np.ndarray, devices: int) -> tuple[Any, Any]:
    """Returns a step of torch, and a function that returns the peak memory of the device or None."""
    import torch

    device, kind = "cuda" if torch.cuda.is_available() else "cpu", getattr(torch, dtype)
    given = [torch.tensor(x, dtype=kind, device=device, requires_grad=True) for x in (images, texts, np.log(10), -10.0)]
    loss = torch_loss(form)

    def step():
        loss(*given).backward()
        for x in given:
            x.grad = None
        if device == "cuda":
            torch.cuda.synchronize()

    def peak_of_device():
        return torch.cuda.max_memory_allocated() - 2 * images.size * given[0].element_size()

    return step, peak_of_device if device == "cuda" else None


def status(field: str) -> int:
    """Returns a field of the process's status in bytes."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> None:
    """Makes the step and times it once for each line of input."""
    side, form, dtype = sys.argv[1:4]
    batch, width, devices = map(int, sys.argv[4:7])
    if side == "compiled":
        compiled(form, dtype, batch, width, devices)
        return
    random = np.random.default_rng(0)

    def unit():
        x = random.standard_normal((batch, width), np.float32)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    step, peak_of_device = {"jax": jax_side, "torch": torch_side}[side](form, dtype, unit(), unit(), devices)
    base = status("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets the peak
    step()
    peak = peak_of_device() if peak_of_device else status("VmHWM") - base
    for _ in sys.stdin:
        start = time.perf_counter()
        rounds = 0
        while not rounds or time.perf_counter() - start < 0.2:
            step()
            rounds += 1
        print(json.dumps([(time.perf_counter() - start) / rounds, peak]), flush=True)


if __name__ == "__main__":
    main()

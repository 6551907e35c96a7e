"""The peers of `benchmarks/inference.py`, each a process of its own.

A peer loads the model, reports the load time, and then embeds a batch as often as each input line requests: from arrays
in host memory, GPU memory, or JPEG files, to L2-normalised float32 embeddings in host memory.
"""

import argparse
import functools
import importlib
import importlib.metadata
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MODULES = {  # imported before the clock starts
    "siglip_jax": ("siglip_jax.inference", "jax", "jaxlib"),
    "torch": ("torch", "transformers.models.siglip.modeling_siglip"),
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
}
TOWERS = ("image", "text")
GPU = Path("/proc/driver/nvidia").exists()  # only peers that use a GPU are measured if there is one
FILES_BATCH = 8  # batch size of the reference when it reads files

Embed = Callable[[Any], np.ndarray]


class NotMeasured(Exception):
    """The reason why a peer is not measured."""


def check_gpu(used: bool) -> None:
    """Refuses to compare a CPU with a GPU."""
    if GPU and not used:
        raise NotMeasured("the machine has a GPU, which the installed version does not use")


def siglip_jax(folder: Path, dtype: str, threads: int) -> dict[str, Embed]:
    """Returns the public methods of this package."""
    import jax

    import siglip_jax

    check_gpu(jax.default_backend() == "gpu")
    how = {"quantization": dtype} if dtype == "int8" else {"dtype": dtype}
    siglip = siglip_jax.load(folder, **how)
    return {"image": siglip.embed_pixels, "text": siglip.embed_tokens, "files": siglip.encode_image}


def jax_facts(folder: Path, dtype: str) -> dict[str, Any]:
    """Returns operations per row by tower, and operations per second of a large matrix product, the best of many."""
    import jax
    import jax.numpy as jnp

    from siglip_jax.configs.configuration import SiglipConfig
    from siglip_jax.models.cost import image_flops, text_flops

    config = SiglipConfig.from_pretrained(folder)
    size = 8192 if GPU else 1536
    x = jnp.ones((size, size), dtype)
    sums = jnp.int32 if dtype == "int8" else None
    product = jax.jit(functools.partial(jnp.matmul, preferred_element_type=sums))
    product(x, x).block_until_ready()
    best, end = float("inf"), time.perf_counter() + 2
    while time.perf_counter() < end:
        start = time.perf_counter()
        product(x, x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    flops = {"image": image_flops(config.vision_config), "text": text_flops(config.text_config)}
    return {"flops": flops, "matmul": 2 * size**3 / best}


def torch_peer(kind: str) -> Callable[[Path, str, int], dict[str, Embed]]:
    """Returns the loader of `transformers` on torch, with "eager" or "sdpa" attention; "compile" is compiled sdpa."""

    def load(folder: Path, dtype: str, threads: int) -> dict[str, Embed]:
        import torch
        import transformers

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        device = "cuda" if GPU else "cpu"
        check_gpu(torch.cuda.is_available())
        if dtype == "int8" and (kind != "sdpa" or device != "cpu"):
            raise NotMeasured("torch quantizes dynamically on a CPU only, and is measured with sdpa")
        floating = torch.float32 if dtype == "int8" else getattr(torch, dtype)
        model = transformers.SiglipModel.from_pretrained(
            folder, dtype=floating, attn_implementation="eager" if kind == "eager" else "sdpa"
        )
        model = model.eval().to(device)
        if dtype == "int8":
            model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8)

        def embedded(tower: str) -> Embed:
            features = getattr(model, f"get_{tower}_features")

            def forward(array: Any) -> Any:
                return torch.nn.functional.normalize(features(array).pooler_output.float())

            if kind == "compile":
                mode = "max-autotune" if device == "cuda" else None
                forward = torch.compile(forward, dynamic=False, mode=mode)

            def embed(array: np.ndarray) -> np.ndarray:
                tensor = torch.as_tensor(array).to(device, floating if tower == "image" else None)
                return forward(tensor).cpu().numpy()

            return embed

        image = embedded("image")

        def from_files(paths: list[str]) -> np.ndarray:
            """Decodes in threads, ahead of the model."""
            from concurrent.futures import ThreadPoolExecutor

            from PIL import Image

            processor = transformers.SiglipImageProcessorPil.from_pretrained(folder)

            def pixels(path: str) -> np.ndarray:
                with Image.open(path) as opened:
                    return processor(opened.convert("RGB"), return_tensors="np")["pixel_values"][0]

            with ThreadPoolExecutor(threads) as pool:
                futures = [pool.submit(pixels, path) for path in paths]
                batches = [futures[i : i + FILES_BATCH] for i in range(0, len(futures), FILES_BATCH)]
                return np.concatenate([image(np.stack([row.result() for row in batch])) for batch in batches])

        return {"image": image, "text": embedded("text"), "files": from_files}

    return load


def onnxruntime(folder: Path, dtype: str, threads: int) -> dict[str, Embed]:
    """Returns ONNX Runtime on the exported towers; int8 is its dynamic quantization."""
    import onnxruntime

    if dtype == "bfloat16":
        raise NotMeasured("the export is float32, and the CPU provider has no bfloat16 products")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    providers = onnxruntime.get_available_providers()
    check_gpu("CUDAExecutionProvider" in providers)
    ending = ".int8.onnx" if dtype == "int8" else ".onnx"
    embeds = {}
    for tower in TOWERS:
        session = onnxruntime.InferenceSession(exported(folder, tower, ending), options, providers)
        embeds[tower] = lambda array, session=session: session.run(None, {"input": array})[0]
    return embeds


def openvino(folder: Path, dtype: str, threads: int) -> dict[str, Embed]:
    """Returns OpenVINO on the exported towers, compiled for each batch size."""
    import openvino

    check_gpu(False)
    if dtype == "int8":
        raise NotMeasured("its quantization needs nncf and images to calibrate on")
    core = openvino.Core()
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if dtype == "bfloat16" and "BF16" not in capabilities:
        raise NotMeasured(f"OpenVINO has no bfloat16 on this processor: {' '.join(sorted(capabilities))}")
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[dtype],
        "INFERENCE_NUM_THREADS": threads,
    }

    def embedded(tower: str) -> Embed:
        model = core.read_model(exported(folder, tower, ".onnx"))
        ready: dict[tuple[int, ...], Any] = {}

        def embed(array: np.ndarray) -> np.ndarray:
            if array.shape not in ready:
                ready.clear()
                model.reshape(array.shape)
                ready[array.shape] = core.compile_model(model, "CPU", settings)
            return ready[array.shape](array)[0]

        return embed

    return {tower: embedded(tower) for tower in TOWERS}


PEERS: dict[str, Callable[[Path, str, int], dict[str, Embed]]] = {
    "siglip_jax": siglip_jax,
    "siglip_jax other": siglip_jax,  # in another interpreter, so with another jax
    "torch eager": torch_peer("eager"),
    "torch sdpa": torch_peer("sdpa"),
    "torch compile": torch_peer("compile"),
    "onnxruntime": onnxruntime,
    "openvino": openvino,
}


def exported(folder: Path, tower: str, ending: str) -> str:
    """Returns the path of an exported tower."""
    path = folder / f"{tower}{ending}"
    if not path.is_file():
        raise NotMeasured(f"no {path.name}: {(folder / 'export.txt').read_text().strip()}")
    return str(path)


def work(peer: str, folder: Path, dtype: str, threads: int) -> None:
    """Loads the peer and answers each line of JSON with another; output of libraries goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**facts: Any) -> None:
        print(json.dumps(facts | {"memory": peak_memory()}), file=answers, flush=True)

    inputs: dict[str, Any] = {tower: np.load(folder / f"{tower}.npy", mmap_mode="r") for tower in TOWERS}
    if PEERS[peer] is not siglip_jax:
        inputs["image"] = np.ascontiguousarray(np.moveaxis(inputs["image"], -1, 1))  # NCHW
    inputs["files"] = sorted(map(str, folder.glob("images/*/*.jpg")))
    try:
        modules = MODULES[peer.split()[0]]
        for name in modules:
            importlib.import_module(name)
        start = time.perf_counter()
        embeds = PEERS[peer](folder, dtype, threads)
        loaded = time.perf_counter() - start
        embeds["image"](np.array(inputs["image"][:1]))
        packages = [name.split(".")[0] for name in modules]
        versions = {name: importlib.metadata.version(name) for name in packages}
        facts = {"load": loaded, "first": time.perf_counter() - start}
        facts |= jax_facts(folder, dtype) if PEERS[peer] is siglip_jax else {}
        answer(**facts, versions=versions | {"python": sys.version.split()[0]})
    except (ImportError, NotMeasured) as error:
        answer(why=str(error))
        return
    for line in sys.stdin:
        order = json.loads(line)
        embed = embeds.get(order["tower"])
        if embed is None:
            answer(why=f"{peer} reads no files")
            continue
        batch = inputs[order["tower"]][: order["batch"]]
        batch = batch if isinstance(batch, list) else on_device(peer, np.array(batch))
        seconds, cost, result = [], time.process_time(), None
        for _ in range(order["calls"]):
            start = time.perf_counter()
            result = embed(batch)
            seconds.append(time.perf_counter() - start)
        cost = time.process_time() - cost
        if "save" in order:
            np.save(order["save"], result)
        answer(seconds=seconds, busy=cost / sum(seconds))


def on_device(peer: str, batch: np.ndarray) -> Any:
    """Returns a batch on the device of its peer; ONNX Runtime copies by itself."""
    if not GPU or peer == "onnxruntime":
        return batch
    if PEERS[peer] is siglip_jax:
        import jax

        return jax.block_until_ready(jax.device_put(batch))
    import torch

    return torch.from_numpy(batch).cuda()


def peak_memory() -> dict[str, int]:
    """Returns the peak memory of the process, and of the GPU if there is one, in bytes."""
    status = Path("/proc/self/status").read_text().splitlines()
    memory = {"host": next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))}
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    if torch is not None and GPU:
        memory["device"] = torch.cuda.max_memory_allocated()
    elif jax is not None and (stats := jax.local_devices()[0].memory_stats()):
        memory["device"] = stats["peak_bytes_in_use"]
    return memory


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("dtype", choices=("float32", "bfloat16", "int8"))
    parser.add_argument("threads", type=int)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # only the answers are read
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    work(options.peer, options.folder, options.dtype, options.threads)

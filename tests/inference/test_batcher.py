"""The batcher: under load each call gets its own embeddings, and every kind of failure reaches the right calls."""

import concurrent.futures
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from siglip_jax import Batcher, QueueFullError
from siglip_jax.inference import Siglip
from tests.support.tiny_checkpoint import SENTENCES, picture

PICTURES = [picture(i) for i in range(16)]


@pytest.fixture
def siglip(shared_siglip: Siglip) -> Siglip:
    """A separate engine with the functions that other tests have compiled, which a test may replace."""
    return shared_siglip.with_params(shared_siglip.params)


class Device:
    """Wraps the model's jitted function: counts its calls, and can block or fail them."""

    def __init__(self, siglip: Siglip, name: str = "_encode_pixels") -> None:
        self.function: Callable = getattr(siglip, name)
        self.sizes: list[int] = []
        self.free = threading.Event()
        self.free.set()
        self.error: BaseException | None = None
        siglip.__dict__[name] = self

    def __call__(self, params: dict, *inputs: np.ndarray) -> object:
        self.sizes.append(len(inputs[0]))
        assert self.free.wait(30)
        if self.error is not None:
            raise self.error
        return self.function(params, *inputs)

    def entered(self, times: int = 1) -> None:
        """Returns when the device has been called that many times."""
        until(lambda: len(self.sizes) >= times)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def batcher_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("siglip-batcher")]


@pytest.mark.slow
def test_under_load_every_answer_belongs_to_its_question(siglip):
    images, texts = siglip.encode_image(PICTURES, batch_size=4), siglip.encode_text(SENTENCES, batch_size=4)
    device, text_device = Device(siglip), Device(siglip, "_encode_tokens")
    device.free.clear()
    text_device.free.clear()
    sent, wrong = [0] * 64, []

    with Batcher(siglip, max_batch_size=4) as batcher:

        def client(number: int) -> None:
            rng = np.random.default_rng(number)
            for _ in range(20):
                known, items, encode = (
                    (images, PICTURES, batcher.encode_image) if rng.random() < 0.7
                    else (texts, SENTENCES, batcher.encode_text)
                )  # fmt: skip
                chosen = rng.integers(0, len(items), rng.integers(1, 4))
                sent[number] += len(chosen)
                found = encode([items[i] for i in chosen], timeout=300.0)
                if found.shape != known[chosen].shape or np.abs(found - known[chosen]).max() > 1e-6:
                    wrong.append((number, chosen))

        threads = [threading.Thread(target=client, args=(i,)) for i in range(64)]
        for thread in threads:
            thread.start()
        lanes = ((batcher._images, device), (batcher._texts, text_device))
        until(lambda: all(sent) and all(len(lane.ready) > 8 for lane, _ in lanes))
        waiting = [(len(of_lane.sizes), len(lane.ready) // 4) for lane, of_lane in lanes]
        device.free.set()
        text_device.free.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert (batcher.waiting, batcher.rows) == (0, sum(sent))
    assert batcher.batches == len(device.sizes) + len(text_device.sizes)
    for (_, of_lane), (before, full) in zip(lanes, waiting, strict=True):  # what waited went in full batches
        assert of_lane.sizes[before : before + full] == [4] * full
    assert batcher_threads() == []


def test_images_do_not_starve_texts(siglip):
    device, text_device = Device(siglip), Device(siglip, "_encode_tokens")
    device.free.clear()
    with Batcher(siglip, max_batch_size=2) as batcher:
        futures = [batcher.submit_image(PICTURES[:1])]
        device.entered()
        text = batcher.submit_text("a cat")
        until(lambda: len(batcher._texts.ready) == 1)
        futures += [batcher.submit_image(PICTURES[:2]) for _ in range(20)]
        until(lambda: len(batcher._images.ready) == 40)
        text.add_done_callback(lambda _: sizes.append(len(device.sizes)))
        sizes: list[int] = []
        device.free.set()
        concurrent.futures.wait(futures, 30)
    assert text_device.sizes == [1] and sizes[0] <= 3 < len(device.sizes)


def test_a_batch_waits_for_more_items_but_no_longer_than_the_delay(siglip):
    device = Device(siglip)
    siglip.encode_image(PICTURES[:1])
    with Batcher(siglip, max_batch_size=4, max_delay=0.2) as batcher:
        start = time.monotonic()
        batcher.encode_image(PICTURES[0])
        assert time.monotonic() - start > 0.2
    device.sizes.clear()
    with Batcher(siglip, max_batch_size=4, max_delay=60.0) as batcher:
        futures = [batcher.submit_image(p) for p in PICTURES[:4]]  # a full batch: sent without the delay
        found = [future.result(30) for future in futures]
        last = batcher.submit_image(PICTURES[4])  # close() sends it without the delay
    assert device.sizes == [4, 1]
    np.testing.assert_allclose(
        np.concatenate([*found, last.result(0)]), siglip.encode_image(PICTURES[:5], batch_size=4), atol=1e-6
    )


def test_a_full_queue_refuses(siglip):
    device = Device(siglip)
    device.free.clear()
    with Batcher(siglip, max_batch_size=1, queue_size=3) as batcher:
        running = batcher.submit_image(PICTURES[0])
        device.entered()
        waiting = [batcher.submit_image(PICTURES[1]), batcher.submit_image(PICTURES[:2])]
        with pytest.raises(QueueFullError, match="must be at most queue_size=3, got 3 and 1 more; try again"):
            batcher.encode_image(PICTURES[0])
        with pytest.raises(QueueFullError):
            batcher.submit_text("a cat")
        with pytest.raises(ValueError, match="a call must bring at most queue_size=3 images, got 4; split it"):
            batcher.encode_image(PICTURES[:4])
        assert batcher.encode_image([]).shape == (0, 32)  # no items need no room
        device.free.set()
        assert [len(future.result(30)) for future in [running, *waiting]] == [1, 1, 2]
        assert len(batcher.encode_image(PICTURES[:3])) == 3


def test_a_call_that_gives_up_leaves_the_queue(siglip):
    device = Device(siglip)
    device.free.clear()
    with Batcher(siglip, max_batch_size=1) as batcher:
        running = batcher.submit_image(PICTURES[0])
        device.entered()
        with pytest.raises(TimeoutError, match="the result must be computed within 0.05 s, got none; raise timeout"):
            batcher.encode_image(PICTURES[1:4], timeout=0.05)
        device.free.set()
        assert len(running.result(30)) == 1
        until(lambda: batcher.waiting == 0)
        assert len(batcher.encode_image(PICTURES[5])) == 1
    assert len(device.sizes) == 2


def test_an_unreadable_image_fails_its_own_call(siglip, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    with Batcher(siglip, max_batch_size=4, max_delay=0.1) as batcher:
        bad = batcher.submit_image([PICTURES[0], tmp_path / "bad.png"])
        missing = batcher.submit_image(tmp_path / "missing.png")
        good = batcher.submit_image(PICTURES[1])
        np.testing.assert_allclose(good.result(30), siglip.encode_image(PICTURES[1]), atol=1e-6)
        with pytest.raises(ValueError, match="bad.png"):
            bad.result(30)
        with pytest.raises(FileNotFoundError, match="missing.png"):
            missing.result(30)
    assert batcher.waiting == 0


def test_a_failure_of_the_model_reaches_the_callers_of_that_batch(siglip):
    device = Device(siglip)
    with Batcher(siglip, max_batch_size=2, max_delay=60.0) as batcher:
        device.error = MemoryError("device out of memory")
        lost = [batcher.submit_image(p) for p in PICTURES[:2]]
        for future in lost:
            with pytest.raises(RuntimeError, match="failed on a batch of 2 images: MemoryError: device out") as caught:
                future.result(30)
            assert caught.value.__cause__ is device.error
        device.error = None
        kept = [batcher.submit_image(p) for p in PICTURES[:2]]
        np.testing.assert_allclose(
            np.concatenate([future.result(30) for future in kept]), siglip.encode_image(PICTURES[:2]), atol=1e-6
        )


def test_close_answers_what_was_accepted_and_refuses_the_rest(siglip):
    batcher = Batcher(siglip, max_batch_size=4, max_delay=60.0)
    futures = [batcher.submit_image(p) for p in PICTURES] + [batcher.submit_text(s) for s in SENTENCES]
    batcher.close()
    assert all(future.done() for future in futures)
    np.testing.assert_allclose(futures[-1].result(), siglip.encode_text(SENTENCES[-1]), atol=1e-6)
    for call in (lambda: batcher.encode_image(PICTURES[0]), lambda: batcher.encode_text([])):
        with pytest.raises(RuntimeError, match="must be open, got a closed one; create a new one"):
            call()
    batcher.close()
    assert batcher_threads() == []


def test_a_forgotten_batcher_leaves_no_threads(siglip):
    assert Batcher(siglip).encode_text("a cat").shape == (1, 32)
    until(lambda: batcher_threads() == [])


@pytest.mark.slow
def test_the_interpreter_ends_after_the_last_answer():
    """The batcher is not closed, and a thread keeps calling it at exit: each call gets an answer or an error."""
    code = """
import threading
import siglip_jax

batcher = siglip_jax.Batcher(siglip_jax.load(), max_delay=0.1)
batcher.submit_text("a cat").add_done_callback(lambda future: print(f"{future.result().shape}\\n", end=""))

def ask():
    try:
        while True:
            batcher.encode_text("a dog")
    except RuntimeError as error:
        print(f"{error}\\n", end="")

threading.Thread(target=ask).start()
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0 and ran.stderr == ""
    answer, refusal = sorted(ran.stdout.splitlines())
    assert answer == "(1, 192)" and refusal.startswith("cannot schedule new futures after")


def test_a_cancelled_call_is_waited_for_no_longer(siglip):
    device = Device(siglip)
    device.free.clear()
    with Batcher(siglip, max_batch_size=1) as batcher:
        running = batcher.submit_image(PICTURES[0])
        device.entered()
        dropped = [batcher.submit_image(PICTURES[1]), batcher.submit_image(PICTURES[2])]
        assert [future.cancel() for future in [*dropped, *dropped]] == [True] * 4
        assert concurrent.futures.wait(dropped, 30) == (set(dropped), set())
        assert list(concurrent.futures.as_completed(dropped, 30))
        device.free.set()
        assert len(running.result(30)) == 1
        assert not running.cancel()
        until(lambda: batcher.waiting == 0)


@pytest.mark.parametrize("which", ["siglip-batcher_", "siglip-batcher-device"])
def test_a_thread_that_cannot_be_started_fails_the_call_and_nothing_is_left_waiting(siglip, which, monkeypatch):
    start = threading.Thread.start

    def failing(thread):
        if thread.name.startswith(which):
            raise RuntimeError("can't start new thread")
        start(thread)

    with Batcher(siglip, max_batch_size=1) as batcher:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", failing)
            for _ in range(3):
                with pytest.raises(RuntimeError, match="can't start new thread"):
                    batcher.encode_image(PICTURES[:2], timeout=30.0)
            until(lambda: batcher.waiting == 0)
        assert len(batcher.encode_image(PICTURES[:3], timeout=30.0)) == 3
        assert batcher.waiting == 0


class PanicException(BaseException):
    """As the tokenizers written in Rust raise it."""


@pytest.mark.parametrize("error", [PanicException("called `Option::unwrap()`"), SystemExit(3)])
def test_what_is_raised_while_an_item_is_prepared_reaches_its_caller(siglip, error):
    def panicking(image):
        raise error

    siglip.__dict__["pixels"] = panicking
    with Batcher(siglip) as batcher:
        assert batcher.submit_image(PICTURES[0]).exception(30) is error
        assert batcher.encode_text("a cat", timeout=30.0).shape == (1, 32)
        assert batcher.waiting == 0


def test_what_the_device_raises_reaches_the_callers_even_if_it_is_no_exception(siglip):
    device = Device(siglip)
    device.error = PanicException("device")
    with Batcher(siglip, max_batch_size=1) as batcher:
        with pytest.raises(RuntimeError, match="the model failed on a batch of 1 images: PanicException: device"):
            batcher.encode_image(PICTURES[0], timeout=30.0)
        device.error = None
        assert len(batcher.encode_image(PICTURES[0], timeout=30.0)) == 1


def test_an_endless_iterable_is_read_no_further_than_the_queue_holds(siglip):
    for kind, item in (("image", PICTURES[0]), ("text", "a cat")):
        read = []
        endless = (read.append(i) or item for i in itertools.count())
        with Batcher(siglip, queue_size=3) as batcher:
            with pytest.raises(ValueError, match=f"at most queue_size=3 {kind}s, got at least 4; split it, or use Si"):
                getattr(batcher, f"submit_{kind}")(endless)
            with pytest.raises(ValueError, match=f"at most queue_size=3 {kind}s, got 9; split it"):
                getattr(batcher, f"submit_{kind}")([item] * 9)
        assert read == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_forked_child_is_refused_instead_of_waiting_for_ever(checkpoint):
    code = """
import os, sys
import siglip_jax

batcher = siglip_jax.Batcher(siglip_jax.load(sys.argv[1]))
batcher._changed.acquire()  # as another thread of the parent may hold it at any moment
if os.fork() == 0:
    for ask in (batcher.encode_text, batcher.submit_text):
        try:
            ask("a cat")
        except RuntimeError as error:
            print(error, flush=True)
    batcher.close()
    os._exit(0)
batcher._changed.release()
os.wait()
batcher.close()
"""
    ran = subprocess.run([sys.executable, "-c", code, checkpoint], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("the Batcher must be used by the process that made it, ")
        assert line.endswith(", a forked child; create a new one here")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch_size": 0}, "max_batch_size must be an integer of at least 1"),
        ({"queue_size": 0}, "queue_size must be an integer of at least 1"),
        ({"max_delay": -1.0}, "max_delay must be a finite number of seconds, at least 0, got -1.0"),
        ({"max_delay": float("nan")}, "max_delay"),
    ],
)
def test_numbers_without_sense_are_refused(siglip, options, message):
    with pytest.raises(ValueError, match=message):
        Batcher(siglip, **options)

"""Dynamic batching for servers: what many threads ask for at the same time goes through the device together.

    with Batcher(siglip) as batcher:      # shared by all threads of the server
        embeds = batcher.encode_image(image, timeout=1.0)

Images are decoded, and texts tokenised, by a pool of threads. One more thread hands what is ready to the device, in
batches of the sizes that the engine uses too, and the next full batch before the last is read. That thread exists only
while there is something to do, so a batcher that nobody closed neither leaks it nor keeps the interpreter from ending.
"""

import concurrent.futures
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from siglip_jax._checks import check_count
from siglip_jax.inference.encoder import Encoder
from siglip_jax.inference.engine import Images, Siglip, Texts
from siglip_jax.inference.stream import Arrays, as_images, as_texts, batches


class QueueFullError(RuntimeError):
    """Refuses a call for which a `Batcher` has no place; nothing of it was begun."""


class Batcher:
    """Answers calls of many threads in shared batches, with the embeddings of `Siglip.encode_image` and `encode_text`.

    A call brings one item or a few. Its items may go through the device in different batches, together with those of
    other calls. What is wrong with an item is raised in its own call; an error of the model is raised, as the cause of
    a `RuntimeError`, in the calls of the batch that it befell.

    The first batch of each size compiles a program: a server that calls `encode_image([image] * n)` for n = 1, 2, 4,
    ... up to `max_batch_size` before it opens has that behind it.

    Attributes:
      waiting: items that were accepted and are not on the device yet.
      batches: batches that the device was given so far.
      rows: items in them.
    """

    def __init__(
        self,
        siglip: Siglip,
        *,
        max_batch_size: int | None = None,
        max_delay: float = 0.005,
        queue_size: int = 256,
    ) -> None:
        """Starts nothing yet.

        Args:
          siglip: the model; `load` makes one.
          max_batch_size: items per batch; by default the engine's, `Siglip.choices`.
          max_delay: seconds that an idle device waits, after an item is ready, for others to fill the batch.
          queue_size: items that may wait; a decoded image takes the memory of its pixel values.

        Raises:
          ValueError: if a number makes no sense.
        """
        check_count("max_batch_size", max_batch_size)
        check_count("queue_size", queue_size)
        if not 0 <= max_delay < float("inf"):
            raise ValueError(f"max_delay must be a number of seconds, 0 or more, got {max_delay!r}")
        self.max_delay, self.queue_size = max_delay, queue_size
        self.waiting = self.batches = self.rows = 0
        self._images = _Lane("images", siglip.pixels, siglip.image_encoder, max_batch_size)
        self._texts = _Lane("texts", lambda text: (siglip.tokens([text])[0][0],), siglip.text_encoder, max_batch_size)
        self._changed = threading.Condition()  # guards all that follows, the counts above and the lanes
        self._closed = False
        self._runner: threading.Thread | None = None  # while there is something for the device
        self._pool = concurrent.futures.ThreadPoolExecutor(siglip.choices.threads, "siglip-batcher")

    def encode_image(self, images: Images, *, timeout: float | None = None) -> Float[np.ndarray, "images embed"]:
        """Returns L2-normalised image embeddings, as `Siglip.encode_image`; blocks until they are there.

        Args:
          images: one image or an iterable of a few, at most `queue_size`.
          timeout: seconds to wait for the answer; None waits as long as it takes. What is given up on is dropped from
            the queue.

        Raises:
          FileNotFoundError, ValueError: if an image is missing or cannot be read.
          QueueFullError: if too many items wait already.
          TimeoutError: if there is no answer in time.
          RuntimeError: if the batcher is closed, or the model failed.
        """
        return _answer(self.submit_image(images), timeout)

    def encode_text(self, texts: Texts, *, timeout: float | None = None) -> Float[np.ndarray, "texts embed"]:
        """Returns L2-normalised text embeddings, as `Siglip.encode_text`; see `encode_image` for the rest."""
        return _answer(self.submit_text(texts), timeout)

    def submit_image(self, images: Images) -> concurrent.futures.Future:
        """Returns at once, with a future of what `encode_image` returns or raises; in `asyncio`, use `wrap_future`.

        Raises:
          QueueFullError: if too many items wait already.
          RuntimeError: if the batcher is closed.
          ValueError: if these are no images, or more than `queue_size`.
        """
        return self._submit(self._images, as_images(images))

    def submit_text(self, texts: Texts) -> concurrent.futures.Future:
        """Returns at once, with a future of what `encode_text` returns or raises; see `submit_image` for the rest."""
        return self._submit(self._texts, as_texts(texts))

    def close(self) -> None:
        """Refuses further calls, and returns when all that were accepted are answered; a second time does nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._pool.shutdown()
        if runner := self._runner:
            runner.join()

    def __enter__(self) -> "Batcher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(self, lane: "_Lane", items: Iterable[Any]) -> concurrent.futures.Future:
        items = list(items)
        if len(items) > self.queue_size:
            raise ValueError(
                f"a call may bring at most queue_size={self.queue_size} {lane.what}, found {len(items)}; split it, or"
                f" use Siglip.encode_{lane.what[:-1]}"
            )
        call = _Call(len(items), lane.encoder.width)
        with self._changed:
            if self._closed:
                raise RuntimeError("this Batcher is closed; make a new one")
            if self.waiting + len(items) > self.queue_size:
                raise QueueFullError(
                    f"{self.waiting} items wait for the device, and {len(items)} more would exceed"
                    f" queue_size={self.queue_size}; try again later, or allow more"
                )
            for position, item in enumerate(items):
                self._pool.submit(self._prepare, lane, call, position, item)
                self.waiting += 1
        return call.future

    def _prepare(self, lane: "_Lane", call: "_Call", position: int, item: Any) -> None:
        """Does what can be done without the device; the pool's threads run it."""
        arrays = None
        if not call.future.done():
            try:
                arrays = lane.prepare(item)
            except Exception as error:
                call.fail(error)
        with self._changed:
            if arrays is None:
                self.waiting -= 1
                return
            lane.ready.append(_Row(call, position, arrays, time.monotonic()))
            if self._runner is None:
                runner = threading.Thread(target=self._run, name="siglip-batcher-device")
                runner.start()
                self._runner = runner
            else:
                self._changed.notify()

    def _run(self) -> None:
        """Keeps the device busy until nothing is ready any more."""
        on_device: deque[tuple[str, list[_Row], Any]] = deque()
        while (batch := self._next_batch(idle=not on_device)) or on_device:
            if batch:
                on_device.append(_started(*batch))
            if len(on_device) > 1 or not batch:
                _finish(*on_device.popleft())

    def _next_batch(self, idle: bool) -> "tuple[_Lane, list[_Row]] | None":
        """Returns rows for the device, or None if there are none now; an idle one waits for company at most."""
        with self._changed:
            while True:
                lanes = sorted((lane for lane in (self._images, self._texts) if lane.ready), key=_Lane.since)
                if idle and not lanes:
                    self._runner = None
                    return None
                now, due = time.monotonic(), 0.0 if self._closed else self.max_delay
                # Behind a batch that runs only a full one of what has waited longest, or images could starve texts.
                for lane in lanes if idle else lanes[:1]:
                    if len(lane.ready) >= lane.batch_size or (idle and now >= lane.since() + due):
                        rows = self._take(lane)
                        if rows:
                            return lane, rows
                        break  # all of them were given up: look again
                else:
                    if not idle:
                        return None
                    self._changed.wait(lanes[0].since() + due - now)

    def _take(self, lane: "_Lane") -> "list[_Row]":
        rows: list[_Row] = []
        while lane.ready and len(rows) < lane.batch_size:
            row = lane.ready.popleft()
            self.waiting -= 1
            if not row.call.future.done():
                rows.append(row)
        self.batches += bool(rows)
        self.rows += len(rows)
        return rows


class _Lane:
    """One of the two ways through the model, and what is ready to go it."""

    def __init__(self, what: str, prepare: Callable[..., Arrays], encoder: Encoder, batch_size: int | None) -> None:
        self.what, self.prepare, self.encoder = what, prepare, encoder
        self.batch_size = encoder.rows(batch_size)
        self.ready: deque[_Row] = deque()

    def since(self) -> float:
        """Says since when the first of them has been ready."""
        return self.ready[0].since


class _Call:
    """What one caller waits for. Only the device's thread fills it in."""

    def __init__(self, rows: int, width: int) -> None:
        self.future: concurrent.futures.Future = concurrent.futures.Future()
        self._embeds, self._missing = np.empty((rows, width), np.float32), rows
        if not rows:
            self.future.set_result(self._embeds)

    def put(self, position: int, embed: np.ndarray) -> None:
        self._embeds[position] = embed
        self._missing -= 1
        if not self._missing:
            with contextlib.suppress(concurrent.futures.InvalidStateError):  # cancelled
                self.future.set_result(self._embeds)

    def fail(self, error: Exception) -> None:
        with contextlib.suppress(concurrent.futures.InvalidStateError):  # cancelled, or failed already
            self.future.set_exception(error)


class _Row(NamedTuple):
    call: _Call
    position: int
    arrays: Arrays
    since: float  # when it became ready, on the monotonic clock


def _started(lane: _Lane, rows: list[_Row]) -> tuple[str, list[_Row], Any]:
    try:
        (batch,) = batches((row.arrays for row in rows), len(rows))
        return lane.what, rows, lane.encoder(batch, lane.batch_size)
    except Exception as error:
        _fail(lane.what, rows, error)
        return lane.what, [], ()


def _finish(what: str, rows: list[_Row], result: Any) -> None:
    try:
        embeds = np.asarray(result)[: len(rows)]
    except Exception as error:
        _fail(what, rows, error)
        return
    for row, embed in zip(rows, embeds, strict=True):
        row.call.put(row.position, embed)


def _fail(what: str, rows: list[_Row], error: Exception) -> None:
    for row in rows:
        failure = RuntimeError(f"the model failed on a batch of {len(rows)} {what}: {type(error).__name__}: {error}")
        failure.__cause__ = error
        row.call.fail(failure)


def _answer(future: concurrent.futures.Future, timeout: float | None) -> np.ndarray:
    try:
        return future.result(timeout)
    except TimeoutError:
        if future.cancel():
            raise TimeoutError(f"no answer within {timeout} s; wait longer, or send less at once") from None
        return future.result()  # it came after all, or an image's URL timed out

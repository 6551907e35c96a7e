"""Dynamic batching for servers: concurrent requests of many threads share the device's batches.

    with Batcher(siglip) as batcher:      # shared by all threads of the server
        embeds = batcher.encode_image(image, timeout=60.0)  # the first batch of each size compiles a program

A pool of threads decodes images and tokenises texts. One more thread sends the prepared items to the device, in batches
of the sizes that the engine uses, and sends the next full batch before it reads the result of the last. That thread
exists only while there is work, so a batcher that is never closed neither leaks it nor keeps the interpreter alive.
"""

import concurrent.futures
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence, Sized
from typing import Any

import numpy as np
from jaxtyping import Float

from siglip_jax._checks import check_count
from siglip_jax.inference.calls import Call, Row
from siglip_jax.inference.encoder import Encoder, NotFiniteError, not_finite
from siglip_jax.inference.engine import Images, Siglip, Texts
from siglip_jax.inference.stream import Arrays, as_texts, batches
from siglip_jax.processing.images.inputs import as_images


class QueueFullError(RuntimeError):
    """Raised by a `Batcher` whose queue has no room for a call; none of the call's items were accepted.

    A server may answer with HTTP status 503, so that the client retries later.

    Example:
      >>> import siglip_jax
      >>> with siglip_jax.Batcher(siglip_jax.load(), queue_size=2, max_delay=60.0) as batcher:
      ...     accepted = batcher.submit_text(["a horse", "a lemon"])  # waits for more texts to fill the batch
      ...     try:
      ...         batcher.encode_text("a church")
      ...     except siglip_jax.QueueFullError as error:
      ...         print(str(error).partition(";")[0])
      waiting items must be at most queue_size=2, got 2 and 1 more
    """


class Batcher:
    """Embeds images and texts for many threads in shared batches, with the results of `Siglip`.

    A call brings one item or a few. Its items may go through the device in different batches, together with those of
    other calls. An error of an item is raised in its own call only. An error of the model is raised in every call of
    the batch, as a `RuntimeError` whose cause it is. A child that was forked cannot use the batcher of its parent.

    The first batch of each size compiles a program. To compile before it accepts requests, a server calls
    `encode_image([image] * n)` for n = 1, 2, 4, ... up to `max_batch_size`, and `encode_text` likewise.

    Attributes:
      max_delay: seconds that an idle device waits for more items to fill a batch.
      queue_size: number of items that may wait.
      waiting: number of items accepted and not yet on the device.
      batches: number of batches sent to the device so far.
      rows: number of items in those batches, without padding.

    Example:
      >>> import siglip_jax
      >>> with siglip_jax.Batcher(siglip_jax.load()) as batcher:
      ...     batcher.encode_text(["a horse", "a lemon"], timeout=60.0).shape
      (2, 192)
    """

    def __init__(
        self,
        siglip: Siglip,
        *,
        max_batch_size: int | None = None,
        max_delay: float = 0.005,
        queue_size: int = 256,
    ) -> None:
        """Builds a batcher; threads start with the first call.

        Args:
          siglip: model with its processor, as `load` returns it.
          max_batch_size: largest number of items per batch; None: `siglip.choices.image_batch` and `text_batch`.
          max_delay: seconds that an idle device waits, after an item is ready, for more items to fill the batch.
          queue_size: largest number of items that wait for the device; each waiting image occupies the memory of its
            pixel values.

        Raises:
          ValueError: if `max_batch_size` or `queue_size` is below 1, or `max_delay` is negative or infinite.
        """
        check_count("max_batch_size", max_batch_size)
        check_count("queue_size", queue_size)
        if not 0 <= max_delay < float("inf"):
            raise ValueError(f"max_delay must be a finite number of seconds, at least 0, got {max_delay!r}")
        self.max_delay, self.queue_size = max_delay, queue_size
        self.waiting = self.batches = self.rows = 0
        self._images = _Lane("images", siglip.pixels, siglip.image_encoder, max_batch_size)
        self._texts = _Lane("texts", lambda text: (siglip.tokens([text])[0][0],), siglip.text_encoder, max_batch_size)
        self._changed = threading.Condition()  # guards all attributes below, the counts above and the lanes
        self._closed = False
        self._process = os.getpid()
        self._runner: threading.Thread | None = None  # set while items are ready for the device
        self._pool = concurrent.futures.ThreadPoolExecutor(siglip.choices.threads, "siglip-batcher")

    def encode_image(self, images: Images, *, timeout: float | None = None) -> Float[np.ndarray, "images embed"]:
        """Returns L2-normalised embeddings of images; blocks until they are computed.

        Args:
          images: one image, or an iterable of N images, N at most `queue_size`, each a path, URL, bytes, PIL image or
            array (height, width, channels).
          timeout: seconds to wait for the result; None: no limit. After a timeout, items that still wait are dropped
            from the queue.

        Returns:
          (N, width) float32 array in host memory, N = 1 for one image.

        Raises:
          FileNotFoundError: if an image does not exist.
          ValueError: if an image cannot be read, an embedding is not finite, or `images` has more than `queue_size`
            items.
          QueueFullError: if too many items wait already.
          TimeoutError: if the result is not computed in time.
          RuntimeError: if the batcher is closed, was made by another process, or the model failed.

        Example:
          >>> import siglip_jax
          >>> with siglip_jax.Batcher(siglip_jax.load()) as batcher:
          ...     batcher.encode_image(siglip_jax.assets.EXAMPLES / "horse.png", timeout=60.0).shape
          (1, 192)
        """
        return _answer(self.submit_image(images), timeout)

    def encode_text(self, texts: Texts, *, timeout: float | None = None) -> Float[np.ndarray, "texts embed"]:
        """Returns L2-normalised embeddings of texts; blocks until they are computed.

        Args:
          texts: one string, or an iterable of M strings, M at most `queue_size`.
          timeout: seconds to wait for the result; None: no limit. After a timeout, items that still wait are dropped
            from the queue.

        Returns:
          (M, width) float32 array in host memory, M = 1 for one string.

        Raises:
          ValueError: if `texts` is not a string or an iterable of strings, an embedding is not finite, or `texts` has
            more than `queue_size` items.
          QueueFullError: if too many items wait already.
          TimeoutError: if the result is not computed in time.
          RuntimeError: if the batcher is closed, was made by another process, or the model failed.

        Example:
          >>> import siglip_jax
          >>> with siglip_jax.Batcher(siglip_jax.load()) as batcher:
          ...     batcher.encode_text("a horse", timeout=60.0).shape
          (1, 192)
        """
        return _answer(self.submit_text(texts), timeout)

    def submit_image(self, images: Images) -> concurrent.futures.Future:
        """Returns immediately with a future of the embeddings that `encode_image` returns.

        In `asyncio`, wrap it in `asyncio.wrap_future`. Cancelling it drops the items that still wait from the queue.

        Args:
          images: one image, or an iterable of N images, N at most `queue_size`, each a path, URL, bytes, PIL image or
            array (height, width, channels).

        Returns:
          A future whose result is an (N, width) float32 array; errors of items and of the model are raised by its
          `result`.

        Raises:
          ValueError: if `images` is neither an image nor an iterable, or has more than `queue_size` items.
          QueueFullError: if too many items wait already.
          RuntimeError: if the batcher is closed, was made by another process, or no thread can be started.

        Example:
          >>> import siglip_jax
          >>> with siglip_jax.Batcher(siglip_jax.load()) as batcher:
          ...     future = batcher.submit_image(siglip_jax.assets.EXAMPLES / "horse.png")
          ...     future.result().shape
          (1, 192)
        """
        return self._submit(self._images, self._few(as_images(images), self._images))

    def submit_text(self, texts: Texts) -> concurrent.futures.Future:
        """Returns immediately with a future of the embeddings that `encode_text` returns.

        In `asyncio`, wrap it in `asyncio.wrap_future`. Cancelling it drops the items that still wait from the queue.

        Args:
          texts: one string, or an iterable of M strings, M at most `queue_size`.

        Returns:
          A future whose result is an (M, width) float32 array; errors of the tokenizer and of the model are raised by
          its `result`.

        Raises:
          ValueError: if `texts` is not a string or an iterable of strings, or has more than `queue_size` items.
          QueueFullError: if too many items wait already.
          RuntimeError: if the batcher is closed, was made by another process, or no thread can be started.

        Example:
          >>> import siglip_jax
          >>> with siglip_jax.Batcher(siglip_jax.load()) as batcher:
          ...     future = batcher.submit_text(["a horse", "a lemon"])
          ...     future.result().shape
          (2, 192)
        """
        several = isinstance(texts, Iterable) and not isinstance(texts, str)
        return self._submit(self._texts, as_texts(self._few(texts, self._texts) if several else texts))

    def close(self) -> None:
        """Refuses further calls and returns when all accepted ones are answered; closing twice is allowed.

        Example:
          >>> import siglip_jax
          >>> batcher = siglip_jax.Batcher(siglip_jax.load())
          >>> future = batcher.submit_text("a horse")
          >>> batcher.close()
          >>> future.done()
          True
        """
        if os.getpid() != self._process:
            return  # the parent closes it
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._pool.shutdown()
        if runner := self._runner:
            runner.join()

    def __enter__(self) -> "Batcher":
        """Returns the batcher itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the batcher."""
        self.close()

    def _few(self, items: Iterable[Any], lane: "_Lane") -> list[Any]:
        """Returns the items of a call; of an iterable that has too many, which may be endless, no more are read."""
        few = list(itertools.islice(items, self.queue_size + 1))
        if len(few) > self.queue_size:
            found = len(items) if isinstance(items, Sized) else f"at least {len(few)}"
            raise ValueError(
                f"a call must bring at most queue_size={self.queue_size} {lane.what}, got {found}; split it, or use"
                f" Siglip.encode_{lane.what[:-1]}"
            )
        return few

    def _submit(self, lane: "_Lane", items: Sequence[Any]) -> concurrent.futures.Future:
        """Queues the items of a call for preparation; returns the future of their embeddings."""
        if os.getpid() != self._process:  # its threads do not exist here, and its lock may be held for ever
            raise RuntimeError(
                f"the Batcher must be used by the process that made it, {self._process}, got {os.getpid()}, a forked"
                " child; create a new one here"
            )
        call = Call(len(items), lane.encoder.width)
        rows = [Row(call, position, item) for position, item in enumerate(items)]
        with self._changed:
            if self._closed:
                raise RuntimeError("the Batcher must be open, got a closed one; create a new one")
            if self.waiting + len(items) > self.queue_size:
                raise QueueFullError(
                    f"waiting items must be at most queue_size={self.queue_size}, got {self.waiting} and {len(items)}"
                    " more; try again later, or raise queue_size"
                )
            self.waiting += len(rows)
            try:
                for row in rows:
                    self._pool.submit(self._prepare, lane, row)
            except BaseException as error:  # no thread can be started; the pool may hold the item nevertheless
                call.fail(error)
                for row in rows:
                    self._leave(row)
                raise
        return call.future

    def _leave(self, row: Row) -> None:
        """Counts an item as no longer waiting."""
        self.waiting -= row.waits
        row.waits = False

    def _prepare(self, lane: "_Lane", row: Row) -> None:
        """Prepares an item in a thread of the pool and marks it as ready for the device."""
        ready = False
        if not row.call.future.done():
            try:
                row.arrays, ready = lane.prepare(row.item), True
            except BaseException as error:  # a tokenizer in Rust panics with one that is no Exception
                row.call.fail(error)
        row.item = None
        with self._changed:
            if not ready:
                self._leave(row)
                return
            row.since = time.monotonic()
            lane.ready.append(row)
            if self._runner is not None:
                self._changed.notify()
                return
            runner = threading.Thread(target=self._run, name="siglip-batcher-device")
            try:
                runner.start()
                self._runner = runner
                return
            except RuntimeError as error:  # no thread can be started
                failure, lost = error, [row for lane in (self._images, self._texts) for row in lane.ready]
            for row in lost:
                self._leave(row)
            self._images.ready.clear()
            self._texts.ready.clear()
        for row in lost:
            row.call.fail(failure)

    def _run(self) -> None:
        """Sends batches to the device until no item is ready; one batch is sent ahead of the one being read."""
        on_device: deque[tuple[str, list[Row], Any]] = deque()
        while (batch := self._next_batch(idle=not on_device)) or on_device:
            if batch:
                on_device.append(_started(*batch))
            if len(on_device) > 1 or not batch:
                _finish(*on_device.popleft())

    def _next_batch(self, idle: bool) -> "tuple[_Lane, list[Row]] | None":
        """Returns the next batch for the device, or None if none is ready; waits for `max_delay` only if it is idle."""
        with self._changed:
            while True:
                lanes = sorted((lane for lane in (self._images, self._texts) if lane.ready), key=_Lane.since)
                if idle and not lanes:
                    self._runner = None
                    return None
                now, due = time.monotonic(), 0.0 if self._closed else self.max_delay
                # Behind a running batch, only a full batch of the lane that has waited longest is sent: otherwise
                # images could starve texts.
                for lane in lanes if idle else lanes[:1]:
                    if len(lane.ready) >= lane.batch_size or (idle and now >= lane.since() + due):
                        rows = self._take(lane)
                        if rows:
                            return lane, rows
                        break  # every call was cancelled: look again
                else:
                    if not idle:
                        return None
                    self._changed.wait(lanes[0].since() + due - now)

    def _take(self, lane: "_Lane") -> "list[Row]":
        """Removes up to a batch of rows from a lane and returns those whose call still waits for an answer."""
        rows: list[Row] = []
        while lane.ready and len(rows) < lane.batch_size:
            row = lane.ready.popleft()
            self._leave(row)
            if not row.call.future.done():
                rows.append(row)
        self.batches += bool(rows)
        self.rows += len(rows)
        return rows


class _Lane:
    """One tower of the model with the rows that are ready for it."""

    def __init__(self, what: str, prepare: Callable[..., Arrays], encoder: Encoder, batch_size: int | None) -> None:
        self.what, self.prepare, self.encoder = what, prepare, encoder
        self.batch_size = encoder.rows(batch_size)
        self.ready: deque[Row] = deque()

    def since(self) -> float:
        """Returns the time at which the oldest row became ready."""
        return self.ready[0].since


def _started(lane: _Lane, rows: list[Row]) -> tuple[str, list[Row], Any]:
    """Sends rows to the device without waiting for the result; an error fails their calls and leaves no rows."""
    try:
        (batch,) = batches((row.arrays for row in rows), len(rows))
        return lane.what, rows, lane.encoder(batch, lane.batch_size)
    except BaseException as error:
        _fail(lane.what, rows, error)
        return lane.what, [], ()


def _finish(what: str, rows: list[Row], result: Any) -> None:
    """Waits for the result of a batch and distributes it to the calls."""
    if not rows:  # the batch has failed
        return
    try:
        embeds = np.asarray(result)[: len(rows)]
    except BaseException as error:
        _fail(what, rows, error)
        return
    bad = set(not_finite(embeds).tolist())
    for i, (row, embed) in enumerate(zip(rows, embeds, strict=True)):
        if i in bad:
            row.call.fail(NotFiniteError(f"{what}[{row.position}]"))
        else:
            row.call.put(row.position, embed)


def _fail(what: str, rows: list[Row], error: BaseException) -> None:
    """Fails the calls of a batch with an error of the model."""
    for row in rows:
        failure = RuntimeError(f"the model failed on a batch of {len(rows)} {what}: {type(error).__name__}: {error}")
        failure.__cause__ = error
        row.call.fail(failure)


def _answer(future: concurrent.futures.Future, timeout: float | None) -> np.ndarray:
    """Returns the result of a call; after a timeout it is cancelled."""
    try:
        return future.result(timeout)
    except TimeoutError:
        if future.cancel():
            raise TimeoutError(
                f"the result must be computed within {timeout} s, got none; raise timeout, or send fewer items"
            ) from None
        return future.result()  # the result arrived meanwhile, or the download of an image timed out

"""Who computes when: what is small in one thread, for torch's others, waiting for more to do, would hold the cores
that onnxruntime needs; and onnxruntime beside the caller where neither waits for the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

T = TypeVar("T")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes in the calling thread alone; what it was allowed before comes back."""
    count = torch.get_num_threads()
    if count == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)


def beside(work: Callable[[], T]) -> Future[T]:
    """`work`, which is not torch's, going on while the caller does."""
    return _worker().submit(work)


@cache
def _worker() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="l2caf")

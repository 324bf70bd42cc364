"""Threads that each compute on one core, so that results do not depend on how many there are."""

from concurrent.futures import ThreadPoolExecutor

import torch


def worker_pool(workers: int) -> ThreadPoolExecutor:
    """Return a pool of `workers` threads in which torch uses one thread each."""
    return ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))

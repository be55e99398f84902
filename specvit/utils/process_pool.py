"""Worker processes of one thread each that never outlive their parent."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Give a pool of fresh processes; on the way out, also by Ctrl-C, what has not begun is dropped.

    Raises `BrokenProcessPool` where one of them died, perhaps for lack of memory.
    """
    os.environ["PYTHONSAFEPATH"] = "1"  # before they get our path, they would import from the working folder
    context, others = multiprocessing.get_context("spawn"), multiprocessing.active_children()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        yield pool
    except BrokenProcessPool:  # a process that was being started meanwhile would be waited for without end
        for child in multiprocessing.active_children():
            if child not in others:
                child.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, which ends the pool, and end with it if it is killed; else it would wait for ever."""
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))  # in time: numpy comes with the first piece of work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()

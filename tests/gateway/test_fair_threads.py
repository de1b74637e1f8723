"""Accounts take turns for the threads that read bodies."""

from __future__ import annotations

import threading
from functools import partial

from gateway.dialects.parsing import FairThreads


def test_many_bodies_of_one_account_hold_up_anothers_by_one_of_them() -> None:
    threads_of_one, begun, goes_on, done = FairThreads(1), threading.Event(), threading.Event(), []
    futures = [threads_of_one.submit("many", lambda: (begun.set(), goes_on.wait(60)))]
    assert begun.wait(60)
    names = ("many 1", "many 2", "many 3", "few 1", "few 2")
    futures += [threads_of_one.submit(name.split()[0], partial(done.append, name)) for name in names]
    assert futures[2].cancel()
    goes_on.set()
    for future in futures[:2] + futures[3:]:
        future.result(60)
    assert done == ["many 1", "few 1", "few 2", "many 3"]


def test_what_work_raises_its_sender_is_told_and_the_next_is_done() -> None:
    threads = FairThreads(1)
    failed = threads.submit("one", lambda: 1 // 0)
    assert threads.submit("one", lambda: 5).result(60) == 5
    assert isinstance(failed.exception(60), ZeroDivisionError)

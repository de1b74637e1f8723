"""Turns and processes of a pool; the processes are played by coroutines."""

import asyncio

import pytest

from ipc.errors import Code, CortexError
from ipc.messages.replies import Failed
from neuron.preparation.jobs import Job, Outcome
from neuron.preparation.pool import OURS, ProcessPool
from neuron.preparation.process import ProcessDied
from tests.neuron.played_processes import Process, Started

PATIENCE = 150.0
JOB = Job(verb="generate")


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario, PATIENCE))


def test_one_account_never_has_all_processes():
    async def scenario():
        pool, done = ProcessPool(Started(), 3), asyncio.Event()
        dear = [asyncio.create_task(pool.run("dear", JOB, done.wait)) for _ in range(20)]
        await asyncio.sleep(0)
        for number in range(5):
            assert await pool.run(f"other {number}", JOB, lambda: b"served") == b"served"
        assert not any(task.done() for task in dear)
        done.set()
        assert await asyncio.gather(*dear) == [True] * 20
        await pool.close()

    run(scenario())


def test_what_waits_when_it_closes_never_begins():
    async def scenario():
        made, never = Started(), asyncio.Event()
        pool = ProcessPool(made, 2)
        jobs = [asyncio.create_task(pool.run("a", JOB, never.wait)) for _ in range(3)]
        await asyncio.sleep(0.01)
        await pool.close()
        await asyncio.wait(jobs)
        assert all(job.cancelled() for job in jobs)
        assert [process.ended for process in made] == [True]

    run(scenario())


def test_accounts_take_turns():
    async def scenario():
        pool, begin, order = ProcessPool(Started(), 2), asyncio.Event(), []
        blocked = [asyncio.create_task(pool.run(name, JOB, begin.wait)) for name in "xy"]
        await asyncio.sleep(0)
        waiting = [
            asyncio.create_task(pool.run(name, JOB, lambda name=name: order.append(name)))
            for name in "aaaabb"
        ]
        await asyncio.sleep(0)
        begin.set()
        await asyncio.gather(*blocked, *waiting)
        assert set(order[:2]) == {"a", "b"}
        assert set(order[2:4]) == {"a", "b"}
        await pool.close()

    run(scenario())


def test_what_is_cancelled_before_its_turn_never_runs_and_holds_nobody_up():
    async def scenario():
        pool, begin, order = ProcessPool(Started(), 2), asyncio.Event(), []
        blocked = [asyncio.create_task(pool.run(name, JOB, begin.wait)) for name in "xy"]
        await asyncio.sleep(0)
        gone = asyncio.create_task(pool.run("a", JOB, lambda: order.append("gone")))
        stays = asyncio.create_task(pool.run("a", JOB, lambda: order.append("stays")))
        await asyncio.sleep(0)
        gone.cancel()
        begin.set()
        await asyncio.gather(*blocked, stays)
        assert order == ["stays"]
        await pool.close()

    run(scenario())


def test_so_many_may_wait_and_an_account_half_of_them_and_who_leaves_makes_room():
    async def scenario():
        pool, done = ProcessPool(Started(), 2, most=4), asyncio.Event()

        async def ask(account, count):
            asked = [asyncio.create_task(pool.run(account, JOB, done.wait)) for _ in range(count)]
            await asyncio.sleep(0)
            return asked

        def refused(account):
            with pytest.raises(CortexError) as error:
                pool._check_room(account)
            return error.value.code == Code.QUEUE_FULL

        first = await ask("a", 3)  # one runs, for no account has all
        assert refused("a")
        pool._check_room("b")
        others = await ask("b", 3)
        assert refused("b")
        assert refused("c")
        with pytest.raises(CortexError, match="4 requests already wait"):
            await pool.run("c", JOB, done.wait)
        pool._check_room(OURS)
        first.pop().cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        pool._check_room("c")
        done.set()
        await asyncio.gather(*first, *others)
        await pool.close()

    run(scenario())


def test_idle_processes_hold_so_much_together_and_the_longest_idle_makes_way():
    async def scenario():
        made = Started()
        pool = ProcessPool(made, 4, idle_memory=250)

        async def work():
            await asyncio.sleep(0.01)
            return b""

        await asyncio.gather(*(pool.run(str(number), JOB, work) for number in range(4)))
        await asyncio.sleep(0)
        assert [process.ended for process in made] == [True, True, False, False]
        assert pool.memory == 200
        await pool.close()
        assert pool.memory == 0

    run(scenario())


def test_idle_processes_make_way_as_many_as_it_takes_and_the_longest_idle_first():
    async def scenario():
        made, together = Started(), asyncio.Barrier(3)
        pool, begun, done = ProcessPool(made, 4), asyncio.Event(), asyncio.Event()

        async def work():
            begun.set()
            return await done.wait()

        await asyncio.gather(*(pool.run(f"{number}", JOB, together.wait) for number in range(3)))
        longest, *others = [process for process, _ in pool._idle]
        working = asyncio.create_task(pool.run("busy", JOB, work))  # by the one that worked last
        await begun.wait()
        assert (pool.memory, pool.spare_memory) == (300, 200)
        assert await pool.end_idle(0) == 0
        assert await pool.end_idle(100) == 100
        assert longest.ended
        assert [process.ended for process in others] == [False, False]
        assert await pool.end_idle(101) == 100, "who works stays"
        assert [process.ended for process in others] == [True, False]
        done.set()
        await working
        await pool.close()

    run(scenario())


def test_work_whose_caller_left_counts_until_it_is_done():
    async def scenario():
        pool, done = ProcessPool(Started(), 2), asyncio.Event()
        left = asyncio.create_task(pool.run("a", JOB, done.wait))
        await asyncio.sleep(0.01)
        left.cancel()
        second = asyncio.create_task(pool.run("a", JOB, lambda: b"second"))
        await asyncio.sleep(0.05)
        assert not second.done()
        done.set()
        assert await second == b"second"
        await pool.close()

    run(scenario())


def test_a_process_serves_one_request_after_the_other_and_is_replaced_when_it_is_gone_or_leaves():
    async def scenario():
        started = Started()
        pool = ProcessPool(started, 2)
        for _ in range(3):
            await pool.run("a", JOB, lambda: b"")
        assert len(started) == 1
        started[0].is_there = False  # it died while it had nothing to do: nobody is told
        await pool.run("a", JOB, lambda: (Outcome(leaves=True), b""))
        await pool.run("a", JOB, lambda: b"")
        assert [process.ended for process in started] == [True, True, False]
        await pool.close()
        assert all(process.ended for process in started)

    run(scenario())


def died():
    raise ProcessDied("was killed by SIGKILL", killed=True)


def left():
    raise ProcessDied("ended with exit code 1", killed=False)


def test_a_job_whose_process_is_killed_is_done_by_another():
    async def scenario():
        started = Started()
        pool = ProcessPool(started, 2)
        assert await pool.run("a", JOB, lambda: died() if len(started) == 1 else b"served") == b"served"
        assert [process.ended for process in started] == [True, False]
        await pool.close()

    run(scenario())


def test_a_process_that_dies_while_it_has_nothing_to_do_is_forgotten_at_once():
    async def scenario():
        started = Started()
        pool = ProcessPool(started, 2)
        await pool.run("a", JOB, lambda: b"")
        started[0].on_gone(started[0])
        await asyncio.sleep(0)
        assert started[0].ended
        assert pool.memory == 0
        await pool.close()

    run(scenario())


@pytest.mark.parametrize(
    ("work", "code", "words"),
    [
        (died, Code.INTERNAL, "was killed by SIGKILL"),
        (left, Code.INTERNAL, "ended with exit code 1"),
        (asyncio.Event().wait, Code.NOT_SUPPORTED, "more than 0.05 seconds"),
        (lambda: (Outcome(Failed(id=0, code="bad_request", message="no")), b""), Code.BAD_REQUEST, "no"),
    ],
)
def test_what_goes_wrong_costs_one_request(work, code, words):
    async def scenario():
        started = Started()
        pool = ProcessPool(started, 2, seconds=0.05)
        with pytest.raises(CortexError, match=words) as raised:
            await pool.run("a", JOB, work)
        assert raised.value.code == code
        assert await pool.run("a", JOB, lambda: b"served") == b"served"
        assert started[0].ended == (code != Code.BAD_REQUEST)
        await pool.close()

    run(scenario())


async def endless():
    await asyncio.Event().wait()


def cannot_start():
    raise OSError(11, "Resource temporarily unavailable")


@pytest.mark.parametrize("verb", ["read", "try", "generate"])
@pytest.mark.parametrize(
    ("start", "work", "words"),
    [
        (Process, died, ("the process that read it was", "the process that prepared the request was")),
        (
            Process,
            endless,
            ("it takes more than 0.05 sec", "the request takes more than 0.05 sec"),
        ),
        (cannot_start, None, ("started to read it: .*unavail", "started to prepare the request: .*unavail")),
    ],
)
def test_what_goes_wrong_with_a_load_is_not_said_of_a_request(start, work, words, verb):
    async def scenario():
        pool = ProcessPool(start, 2, seconds=0.05)
        with pytest.raises(CortexError, match=words[verb == "generate"]) as raised:
            await pool.run("a", Job(verb=verb), work)
        assert ("request" in str(raised.value)) == (verb == "generate")
        await pool.close()

    run(scenario())

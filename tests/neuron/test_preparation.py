import asyncio
import threading

from neuron.requests.preparation import Preparation

PATIENCE = 60.0


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario, PATIENCE))


def test_one_account_never_has_all_threads():
    async def scenario():
        pool, done = Preparation("test", 3), threading.Event()
        dear = [asyncio.create_task(pool.run("dear", done.wait, PATIENCE)) for _ in range(20)]
        await asyncio.sleep(0)
        for number in range(5):
            assert await pool.run(f"other {number}", lambda: "served") == "served"
        assert not any(task.done() for task in dear)
        done.set()
        assert await asyncio.gather(*dear) == [True] * 20
        pool.close()

    run(scenario())


def test_accounts_take_turns():
    async def scenario():
        pool, begin, order = Preparation("test", 2), threading.Event(), []
        blocked = [asyncio.create_task(pool.run(name, begin.wait, PATIENCE)) for name in "xy"]
        await asyncio.sleep(0)
        waiting = [asyncio.create_task(pool.run(name, order.append, name)) for name in "aaaabb"]
        await asyncio.sleep(0)
        begin.set()
        await asyncio.gather(*blocked, *waiting)
        assert set(order[:2]) == {"a", "b"}
        assert set(order[2:4]) == {"a", "b"}
        pool.close()

    run(scenario())


def test_what_is_cancelled_before_its_turn_never_runs_and_holds_nobody_up():
    async def scenario():
        pool, begin, order = Preparation("test", 2), threading.Event(), []
        blocked = [asyncio.create_task(pool.run(name, begin.wait, PATIENCE)) for name in "xy"]
        await asyncio.sleep(0)
        gone = asyncio.create_task(pool.run("a", order.append, "gone"))
        stays = asyncio.create_task(pool.run("a", order.append, "stays"))
        await asyncio.sleep(0)
        gone.cancel()
        begin.set()
        await asyncio.gather(*blocked, stays)
        assert order == ["stays"]
        pool.close()

    run(scenario())


def test_a_thread_whose_caller_left_counts_until_it_is_done():
    async def scenario():
        pool, done = Preparation("test", 2), threading.Event()
        left = asyncio.create_task(pool.run("a", done.wait, PATIENCE))
        await asyncio.sleep(0.01)
        left.cancel()
        second = asyncio.create_task(pool.run("a", lambda: "second"))
        await asyncio.sleep(0.05)
        assert not second.done()
        done.set()
        assert await second == "second"
        pool.close()

    run(scenario())

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time

import pytest

from ipc.errors import Code
from ipc.worker_messages import CacheGroup, FailurePlan, SimulatedSpec
from tests.workers.harness import PATIENCE, Workers

ANSWER = [11, 12, 13]


def simulated(**changes) -> SimulatedSpec:
    return SimulatedSpec(answer=ANSWER, **changes)


def expected(tokens: int) -> list[int]:
    return [ANSWER[n % 3] for n in range(tokens)]


def test_a_request_streams_a_token_a_step_to_its_end():
    with Workers() as workers:
        workers.ready()
        answer = workers.generate(10, max_tokens=8)
        assert answer.token_ids == expected(8)
        assert answer.finish == "length"
        assert [len(step.sequences[0].token_ids) for step in workers.steps] == [1] * 8
        assert [step.step for step in workers.steps] == list(range(1, 9))
        assert (workers.steps[0].running, workers.steps[-1].running) == (1, 0)
        assert workers.steps[-1].pages_free == 4096


def test_the_stop_token_is_part_of_the_answer():
    with Workers() as workers:
        workers.ready()
        answer = workers.generate(10, stop_ids=[13])
        assert (answer.token_ids, answer.finish) == ([11, 12, 13], "stop")


def test_a_long_prompt_is_told_once_before_its_first_token():
    with Workers(max_step_tokens=16) as workers:
        workers.ready()
        answer = workers.generate(100, max_tokens=2)
        assert answer.token_ids == expected(2)
        assert answer.reports == 3


def test_many_requests_through_a_small_pool_get_whole_answers():
    with Workers(kv_pages=8, max_sequences=6) as workers:
        workers.ready()
        for request_id in range(30):
            workers.submit(request_id, 20 + request_id, 100)
        answers = workers.collect()
        assert all(answer.token_ids == expected(100) for answer in answers)
        assert workers.steps[-1].pages_free == 8


@pytest.mark.parametrize("world_size", [1, 2])
def test_all_kinds_of_cache_are_served_through_a_small_pool(world_size):
    caches = [
        CacheGroup(kind="full", layers=[0]),
        CacheGroup(kind="window", layers=[1], window=50),
        CacheGroup(kind="state", layers=[2]),
    ]
    hybrid = simulated(caches=caches, states=12)
    with Workers(kv_pages=24, max_sequences=6, simulated=hybrid, world_size=world_size) as workers:
        workers.ready()
        for request_id in range(20):
            workers.submit(request_id, 20 + 8 * request_id, 100)
        assert all(answer.token_ids == expected(100) for answer in workers.collect())
        assert workers.steps[-1].pages_free == 24


def test_an_impossible_request_is_answered_and_the_next_one_served():
    with Workers(context_length=50) as workers:
        workers.ready()
        assert workers.generate(0).finish == "error"
        refused = workers.generate(50)
        assert refused.finish == "error"
        assert "50 tokens" in refused.message
        assert workers.generate(49).token_ids == expected(1)


def test_abort_takes_effect_within_one_step():
    with Workers(simulated=simulated(step_seconds=0.05)) as workers:
        workers.ready()
        workers.submit(1, 40, 1_000)
        workers.submit(2, 40, 20)
        workers.next_step()
        before = len(workers.answers[1].token_ids)
        workers.abort(1)
        answer = workers.collect(1)[0]
        assert answer.finish == "aborted"
        assert len(answer.token_ids) <= before + 1, "only the step that was on its way"
        assert workers.steps[-1].running == 1
        assert workers.steps[-1].pages_free == 4096 - 2
        assert workers.collect(2)[0].token_ids == expected(20)


def test_a_load_tells_its_progress_and_its_size():
    with Workers(simulated=simulated(load_seconds=0.5, memory_bytes=1 << 30)) as workers:
        ready = workers.ready()[0]
        assert (ready.all_reduce, ready.memory.total) == (1, 1 << 30)
        fractions = [loading.fraction for loading in workers.loading]
        assert len(fractions) >= 2
        assert fractions == sorted(fractions)
        assert workers.beat(0).memory == 1 << 30


def test_a_load_that_fails_says_why_and_ends():
    with Workers(simulated=simulated(failure=FailurePlan(fail_load="shard 3 is gone"))) as workers:
        fatal = workers.fatal()
        assert (fatal.code, fatal.message) == (Code.MODEL_LOAD_FAILED, "shard 3 is gone")
        assert workers.processes[0].returncode == 1


def test_an_exception_in_a_step_is_fatal_with_its_type_and_one_traceback():
    with Workers(simulated=simulated(failure=FailurePlan(error_at_step=3))) as workers:
        workers.ready()
        workers.submit(1, 5)
        fatal = workers.fatal()
        assert fatal.code == Code.INTERNAL
        assert fatal.message == "RuntimeError: simulated failure in step 3"
        assert workers.answers[1].token_ids == expected(2)
        assert workers.processes[0].returncode == 1
        assert workers.processes[0].stderr.read().count(b"Traceback") == 1


def test_a_step_without_memory_costs_nothing_but_time_where_a_smaller_one_helps():
    with Workers(simulated=simulated(failure=FailurePlan(out_of_memory_at_step=3))) as workers:
        workers.ready()
        for request_id in range(4):
            workers.submit(request_id, 40, 20)
        answers = workers.collect()
        assert all(answer.token_ids == expected(20) for answer in answers)
        last = workers.steps[-1]
        assert (last.out_of_memory, last.preemptions, last.pages_free) == (1, 1, 4096)


def test_a_request_that_alone_needs_too_much_memory_fails_and_the_next_one_is_served():
    with Workers(simulated=simulated(failure=FailurePlan(out_of_memory_at_step=1))) as workers:
        workers.ready()
        failed = workers.generate(40)
        assert (failed.finish, failed.code, failed.token_ids) == ("error", Code.INSUFFICIENT_MEMORY, [])
        assert "memory" in failed.message
        assert workers.generate(40).token_ids == expected(8)


def test_a_rank_of_several_that_runs_out_of_memory_ends_its_group():
    failure = FailurePlan(rank=1, out_of_memory_at_step=2)
    with Workers(world_size=2, simulated=simulated(failure=failure)) as workers:
        workers.ready()
        workers.submit(1, 5)
        assert "memory" in workers.fatal(rank=1).message


def test_ranks_show_how_often_they_met_and_how_long_it_took():
    with Workers(world_size=2) as workers:
        workers.ready()
        workers.generate(5, max_tokens=7)
        for rank in (0, 1):
            workers.wait_for_beat(rank, "ready", step=7)
            assert workers.beat(rank).collectives == 1 + 7, "the proof of the group, and each step"
            assert workers.beat(rank).collective_seconds > 0


@pytest.mark.parametrize("record", [b"", b"garbage", b"\x91\x09", b"\x92\x02\xa1x"])
def test_garbage_in_the_command_ring_is_fatal(record):
    with Workers() as workers:
        workers.ready()
        workers.commands.write(record, PATIENCE)
        assert workers.fatal().code == Code.INTERNAL
        assert workers.processes[0].returncode == 1


def test_a_reader_that_pauses_loses_nothing():
    with Workers(ring_capacity=4096) as workers:
        workers.ready()
        for request_id in range(4):
            workers.submit(request_id, 5, 1_000)
        step = -1
        while step != workers.beat(0).step or not step:  # until back-pressure has stopped it
            step = workers.beat(0).step
            time.sleep(0.1)
        assert step < 1_000
        assert all(answer.token_ids == expected(1_000) for answer in workers.collect())
        assert [report.step for report in workers.steps] == list(range(1, len(workers.steps) + 1))


def test_stop_ends_every_rank_cleanly():
    with Workers(world_size=3) as workers:
        workers.ready()
        workers.generate(5)
        workers.stop()
        assert [process.wait(PATIENCE) for process in workers.processes] == [0, 0, 0]
        assert [workers.beat(rank).state for rank in range(3)] == ["stopping"] * 3
        assert [process.stderr.read() for process in workers.processes] == [b"", b"", b""]


@pytest.mark.parametrize("busy", [False, True])
def test_sigterm_ends_cleanly_idle_or_busy(busy):
    with Workers(simulated=simulated(step_seconds=0.01)) as workers:
        workers.ready()
        if busy:
            workers.submit(1, 5, 4_000)
            workers.next_step()
        workers.processes[0].send_signal(signal.SIGTERM)
        assert workers.processes[0].wait(PATIENCE) == 0
        assert workers.processes[0].stderr.read() == b""


def test_sigint_is_for_the_supervisor():
    with Workers() as workers:
        workers.ready()
        workers.processes[0].send_signal(signal.SIGINT)
        assert workers.generate(5).token_ids == expected(8)


# --- groups -------------------------------------------------------------------------------------------


def test_a_group_proves_itself_and_answers_as_one():
    with Workers(world_size=2, kv_pages=12) as workers:
        assert [ready.all_reduce for ready in workers.ready()] == [2, 2]
        for request_id in range(8):
            workers.submit(request_id, 30 + request_id, 60)
        assert all(answer.token_ids == expected(60) for answer in workers.collect())
        workers.wait_for_beat(1, "ready", workers.steps[-1].step)


def test_a_killed_rank_stalls_the_others_in_their_collective():
    failure = FailurePlan(rank=1, die_at_step=4)
    with Workers(world_size=2, simulated=simulated(failure=failure)) as workers:
        workers.ready()
        workers.submit(1, 5)
        assert workers.processes[1].wait(PATIENCE) == -signal.SIGKILL
        workers.wait_for_beat(0, "collective", 4)
        assert (workers.beat(1).state, workers.beat(1).step) == ("stepping", 4)
        for _ in range(3):
            workers.next_step()
        time.sleep(0.1)
        assert workers.reports[0].unread == 0, "a step went on without all ranks"
        assert workers.processes[0].poll() is None


def test_a_hanging_rank_is_told_from_those_that_wait_for_it():
    with Workers(world_size=3, simulated=simulated(failure=FailurePlan(rank=2, hang_at_step=2))) as workers:
        workers.ready()
        workers.submit(1, 5)
        workers.wait_for_beat(0, "collective", 2)
        workers.wait_for_beat(1, "collective", 2)
        workers.wait_for_beat(2, "stepping", 2)


def test_a_stopped_rank_stalls_the_group_until_it_continues():
    with Workers(world_size=2, simulated=simulated(step_seconds=0.002)) as workers:
        workers.ready()
        workers.submit(1, 5, 300)
        workers.next_step()
        workers.processes[1].send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, workers.processes[1].pid, os.WSTOPPED)
        stopped = workers.beat(1)
        workers.wait_for_beat(0, "collective", stopped.step + (stopped.state != "stepping"))
        workers.processes[1].send_signal(signal.SIGCONT)
        assert workers.collect(1)[0].token_ids == expected(300)


def test_ranks_die_with_their_supervisor():
    code = (
        "import time\n"
        "from tests.workers.harness import Workers\n"
        "with Workers(world_size=2) as workers:\n"
        "    workers.ready()\n"
        "    print(*(process.pid for process in workers.processes), flush=True)\n"
        "    time.sleep(60)\n"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    pidfds = [os.pidfd_open(int(pid)) for pid in supervisor.stdout.readline().split()]
    assert len(pidfds) == 2
    supervisor.kill()
    supervisor.wait()
    supervisor.stdout.close()
    for pidfd in pidfds:
        assert select.select([pidfd], [], [], PATIENCE)[0], "a rank outlived its supervisor"
        os.close(pidfd)


def test_a_simulated_rank_loads_no_torch():
    code = (
        "import sys, workers.process.rank, workers.process.simulated, workers.__main__; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

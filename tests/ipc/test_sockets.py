"""The pump: whatever happens, no message stays unread in the socket."""

import asyncio
import time

import zmq

from ipc.sockets import TURN_SECONDS, Pump


def pumped(messages, on_message):
    """Send `messages` through a pump into `on_message` until that has seen them all."""

    async def main():
        context = zmq.Context()
        source, sink = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
        for pair in (source, sink):
            pair.set_hwm(0)
        sink.bind("inproc://test")
        source.connect("inproc://test")
        seen = []
        done = asyncio.Event()

        def note(frames):
            seen.append(frames)
            if len(seen) == len(messages):
                done.set()
            on_message(frames)

        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        pump = Pump(sink, note)
        for message in messages:
            source.send_multipart(message)
        await asyncio.wait_for(done.wait(), 20)
        pump.close()
        context.destroy(linger=0)
        return seen

    return asyncio.run(main())


def test_more_messages_than_one_turn_takes_all_arrive_in_order():
    messages = [[b"%d" % number] for number in range(20)]
    assert pumped(messages, lambda frames: time.sleep(TURN_SECONDS / 4)) == messages


def test_a_message_that_makes_its_handler_fail_does_not_hold_up_the_next():
    def fail(frames):
        raise KeyError("bug")

    assert len(pumped([[b"1"], [b"2"], [b"3", b"4"]], fail)) == 3


def test_only_so_many_frames_of_a_message_are_kept():
    (frames,) = pumped([[b"x"] * 1000], lambda frames: None)
    assert 3 < len(frames) < 100

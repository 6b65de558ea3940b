"""Channels: whole messages, or a reason within the time that was given."""

import struct
import threading
import time
from collections.abc import Iterator

import pytest

from kwbench.evaluation.execution.channel import Channel, NoAnswer

LIMIT = 0.3


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    pair = Channel.pair()
    yield pair
    for end in pair:
        end.close()


def test_messages_of_any_size_arrive_in_order(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    messages = [None, ("row", 1), b"", b"x" * (3 << 20), {"last": 0.5}]

    def send() -> None:
        for message in messages:
            there.send(message)

    sender = threading.Thread(target=send)
    sender.start()
    assert [here.recv(limit=30) for _ in messages] == messages
    sender.join()
    there.send_bytes(b"12345")
    assert here.recv_bytes(most=5) == b"12345"


@pytest.mark.parametrize(
    "part", [b"\0\0", struct.pack("!Q", 10), struct.pack("!Q", 10) + b"half"], ids=["length", "none", "half"]
)
def test_a_message_that_does_not_end_is_given_up(ends: tuple[Channel, Channel], part: bytes) -> None:
    here, there = ends
    there._end.sendall(part)
    here.patience = LIMIT
    with pytest.raises(NoAnswer, match=r"began an answer, and sent no more of it for 0.3 s"):
        here.recv()


def test_a_limit_is_one_for_the_whole_message(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    with pytest.raises(NoAnswer, match=r"no answer within 0.1 s"):
        here.recv(limit=0.1)
    ended = threading.Event()

    def drip() -> None:
        there._end.sendall(struct.pack("!Q", 1 << 62))
        while not ended.wait(LIMIT / 10):
            there._end.sendall(b"x")

    dripping = threading.Thread(target=drip)
    dripping.start()
    here.patience = 10.0
    started = time.monotonic()
    with pytest.raises(NoAnswer, match=r"no answer within 0.3 s"):
        here.recv(limit=LIMIT)
    assert time.monotonic() - started < here.patience
    ended.set()
    dripping.join()


def test_a_message_that_is_not_taken_is_given_up(ends: tuple[Channel, Channel]) -> None:
    here, _ = ends
    here.patience = LIMIT
    with pytest.raises(NoAnswer, match=r"took nothing of a message for 0.3 s"):
        here.send_bytes(b"x" * (16 << 20))


def test_longer_messages_and_the_end_of_the_other_process_are_told_apart(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    there.send_bytes(b"123456")
    with pytest.raises(OSError, match="a message of 6 bytes"):
        here.recv_bytes(most=5)
    here, there = Channel.pair()
    there._end.sendall(struct.pack("!Q", 10) + b"half")
    there.close()
    with pytest.raises(EOFError):
        here.recv()
    with pytest.raises(OSError, match="pipe"):
        here.send("anything")
    here.close()

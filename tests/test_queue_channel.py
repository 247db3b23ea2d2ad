"""What one thread hands to another: nothing lost, in order, and nobody sleeps on an item."""

import asyncio
import threading

from open_llm_proxy.queue.channel import Channel

ITEMS = 5000


def test_a_thread_gets_what_others_put_in_the_order_of_each() -> None:
    channel: Channel[tuple[int, int]] = Channel()
    taken: list[tuple[int, int]] = []

    def read() -> None:
        while len(taken) < 2 * ITEMS:
            channel.wait()
            while channel.items:
                taken.append(channel.items.popleft())

    def put(sender: int) -> None:
        for number in range(ITEMS):
            channel.put((sender, number))

    threads = [threading.Thread(target=read, daemon=True)]
    threads += [threading.Thread(target=put, args=(sender,)) for sender in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for sender in (0, 1):
        assert [n for s, n in taken if s == sender] == list(range(ITEMS))


async def test_an_event_loop_is_woken_by_what_a_thread_puts() -> None:
    channel: Channel[int] = Channel()
    taken: list[int] = []
    done = asyncio.Event()

    def read() -> None:
        channel.clear()
        while channel.items:
            taken.append(channel.items.popleft())
        if len(taken) == ITEMS:
            done.set()

    loop = asyncio.get_running_loop()
    loop.add_reader(channel.descriptor, read)
    await asyncio.to_thread(lambda: [channel.put(number) for number in range(ITEMS)])
    await asyncio.wait_for(done.wait(), 20)
    loop.remove_reader(channel.descriptor)
    assert taken == list(range(ITEMS))


def test_a_wait_with_a_limit_ends_without_an_item_and_takes_none_away() -> None:
    channel: Channel[int] = Channel()
    channel.wait(0.01)
    assert not channel.items
    channel.put(1)
    channel.wait(20)
    assert list(channel.items) == [1]
    channel.wait()  # returns for what is left, however often
    assert list(channel.items) == [1]


def test_nobody_waits_for_a_reader_who_does_not_come() -> None:
    channel: Channel[int] = Channel()
    for number in range(100_000):  # more than a pipe holds
        channel.put(number)
    channel.clear()
    channel.wait(20)
    assert len(channel.items) == 100_000

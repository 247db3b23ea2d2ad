"""What one thread hands to another: nothing lost, in order, and nobody sleeps on a letter."""

import asyncio
import select
import threading

from open_llm_proxy.queue.mailbox import Mailbox

LETTERS = 5000


def is_readable(mailbox: Mailbox[int]) -> bool:
    return bool(select.select([mailbox.descriptor], [], [], 0)[0])


def test_a_thread_gets_what_others_put_in_the_order_of_each() -> None:
    mailbox: Mailbox[tuple[int, int]] = Mailbox()
    taken: list[tuple[int, int]] = []

    def read() -> None:
        while len(taken) < 2 * LETTERS:
            mailbox.wait()
            while mailbox.letters:
                taken.append(mailbox.letters.popleft())

    def put(sender: int) -> None:
        for number in range(LETTERS):
            mailbox.put((sender, number))

    threads = [threading.Thread(target=read, daemon=True)]
    threads += [threading.Thread(target=put, args=(sender,)) for sender in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for sender in (0, 1):
        assert [n for s, n in taken if s == sender] == list(range(LETTERS))


async def test_an_event_loop_is_woken_by_what_a_thread_puts() -> None:
    mailbox: Mailbox[int] = Mailbox()
    taken: list[int] = []
    done = asyncio.Event()

    def read() -> None:
        mailbox.clear()
        while mailbox.letters:
            taken.append(mailbox.letters.popleft())
        if len(taken) == LETTERS:
            done.set()

    loop = asyncio.get_running_loop()
    loop.add_reader(mailbox.descriptor, read)
    await asyncio.to_thread(lambda: [mailbox.put(number) for number in range(LETTERS)])
    await asyncio.wait_for(done.wait(), 20)
    loop.remove_reader(mailbox.descriptor)
    assert taken == list(range(LETTERS))
    assert not is_readable(mailbox)


def test_a_wait_with_a_limit_ends_without_a_letter_and_takes_none_away() -> None:
    mailbox: Mailbox[int] = Mailbox()
    mailbox.wait(0.01)
    assert not mailbox.letters
    mailbox.put(1)
    mailbox.wait(20)
    assert list(mailbox.letters) == [1]
    mailbox.wait()  # returns for what is left, however often
    assert list(mailbox.letters) == [1]

"""Handing over between threads: order, policy, closing."""

from __future__ import annotations

import threading
import time

from edgeferry_runtime.mailbox import Mailbox


def test_items_come_in_order_and_time_outs_give_none():
    box = Mailbox(3)
    assert all(box.put(i) for i in range(3))
    assert [box.get(), box.get(), box.get()] == [0, 1, 2]
    assert box.get(timeout_s=0.01) is None
    assert not box.closed


def test_the_newest_stay_where_the_oldest_are_dropped():
    box = Mailbox(2, drop_oldest=True)
    for i in range(10):
        box.put(i)
    assert (box.get(), box.get(), box.dropped, len(box)) == (8, 9, 8, 0)


def test_a_full_mailbox_holds_its_giver_until_there_is_room():
    box = Mailbox(1)
    box.put(0)
    done = []
    giver = threading.Thread(target=lambda: done.append(box.put(1)))
    giver.start()
    time.sleep(0.05)
    assert not done
    assert box.get() == 0
    giver.join(5)
    assert done == [True]
    assert box.dropped == 0


def test_closing_frees_both_sides_and_loses_nothing():
    full, empty = Mailbox(1), Mailbox(1)
    full.put("kept")
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(("put", full.put("late")))),
        threading.Thread(target=lambda: results.append(("get", empty.get()))),
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    full.close()
    empty.close()
    for thread in threads:
        thread.join(5)
    assert sorted(results) == [("get", None), ("put", False)]
    assert full.get() == "kept"
    assert full.get() is None


def test_a_giver_can_wait_until_it_is_wanted():
    box = Mailbox(1)
    assert not box.wait_until_wanted(0.01)
    taken = []
    taker = threading.Thread(target=lambda: taken.append(box.get()))
    taker.start()
    assert box.wait_until_wanted(5)
    box.put(7)
    taker.join(5)
    assert taken == [7]
    assert not box.wait_until_wanted(0.01)


def test_thousands_of_items_between_threads_arrive_once_and_in_order():
    box = Mailbox(4)
    giver = threading.Thread(target=lambda: ([box.put(i) for i in range(5000)], box.close()))
    giver.start()
    received = []
    while (item := box.get()) is not None:
        received.append(item)
    giver.join(5)
    assert received == list(range(5000))

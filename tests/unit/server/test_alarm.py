"""A timer that can be moved."""

from penstock.server.alarm import Alarm


def test_it_rings_once_at_the_time_that_was_set_last(puppet, clock):
    rung = []
    alarm = Alarm(puppet, lambda: rung.append(clock()))
    start = clock()
    alarm.set(start + 5_000_000, start)
    alarm.set(start + 2_000_000, start)
    assert alarm.at_ns == start + 2_000_000
    puppet.pass_us(1999)
    assert rung == []
    puppet.pass_us(1)
    assert rung == [start + 2_000_000]
    assert alarm.at_ns == 0
    puppet.pass_us(10_000)
    assert len(rung) == 1


def test_it_may_be_set_while_it_rings(puppet, clock):
    rung = []

    def ring():
        rung.append(clock())
        if len(rung) < 3:
            alarm.set(clock() + 1000, clock())

    alarm = Alarm(puppet, ring)
    alarm.set(clock() + 1000, clock())
    for _ in range(5):
        puppet.pass_us(1)
    assert len(rung) == 3


def test_times_in_the_past_and_far_away(puppet, clock):
    rung = []
    alarm = Alarm(puppet, lambda: rung.append(clock()))
    start = clock()
    alarm.set(start - 1, start)
    assert puppet.next_timer_ns == start
    alarm.set(start + 10**18, start)
    assert puppet.next_timer_ns == start + 3600 * 10**9


def test_cancelled_it_does_not_ring(puppet, clock):
    rung = []
    alarm = Alarm(puppet, lambda: rung.append(1))
    alarm.cancel()
    alarm.set(clock() + 1000, clock())
    alarm.cancel()
    assert alarm.at_ns == 0
    puppet.pass_us(10)
    assert rung == []


def test_it_is_set_by_a_time_and_never_moved_back(puppet, clock):
    alarm = Alarm(puppet, lambda: None)
    start = clock()
    for at, rings in ((5000, 5000), (9000, 5000), (2000, 2000), (2000, 2000)):
        alarm.set_by(start + at, start)
        assert alarm.at_ns == start + rings

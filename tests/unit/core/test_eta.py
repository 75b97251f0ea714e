"""Times that are foretold, on clocks that are turned by hand."""

import random

import pytest

from cmrfed.core.eta import Job, Pace, Queue, spoken


class Hand:
    """A clock that is turned by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def told(seconds_of_steps, chunk=1):
    """After each ``chunk`` of steps: (share of the work, seconds told, seconds really left)."""
    hand = Hand()
    pace, end = Pace(len(seconds_of_steps), clock=hand), 100.0 + sum(seconds_of_steps)
    for first in range(0, len(seconds_of_steps), chunk):
        steps = seconds_of_steps[first : first + chunk]
        hand.now += sum(steps)
        pace.advance(len(steps))
        yield pace.done / pace.total, pace.left, end - hand.now


@pytest.mark.parametrize("total", [5, 10, 30, 1000])
@pytest.mark.parametrize("slow", [1, 40])
@pytest.mark.parametrize("seed", range(3))
def test_a_slow_first_step_does_not_spoil_what_is_told_of_a_steady_task(total, slow, seed):
    draw = random.Random(seed)
    steps = [draw.uniform(0.85, 1.15) for _ in range(total)]
    steps[0] *= slow
    found = [(left, really) for share, left, really in told(steps) if share >= 0.2 and left is not None]
    assert len(found) >= total - 2 - total // 5
    assert all(abs(left - really) <= 0.25 * really + 1e-9 for left, really in found)


@pytest.mark.parametrize("before", [0.1, 5.0])
@pytest.mark.parametrize("chunk", [1, 7])
def test_a_pace_that_is_steady_from_a_fifth_on_is_told_from_two_fifths_on(before, chunk):
    steps = [before] * 40 + [1.0] * 160
    found = [(left, really) for share, left, really in told(steps, chunk) if 0.46 <= share < 1]
    assert found
    assert all(abs(left - really) <= 0.25 * really for left, really in found)


def test_without_evidence_nothing_is_told():
    assert [left is None for _, left, _ in told([1.0] * 5)] == [True, True, False, False, False]
    assert next(left for _, left, _ in told([1.0])) == 0


def test_what_was_done_before_does_not_count_for_the_pace():
    hand = Hand()
    pace = Pace(10, done=5, clock=hand)
    for _ in range(3):
        hand.now += 2
        pace.advance(1)
    assert pace.left == pytest.approx(4)
    hand.now += 1.5
    assert pace.left == pytest.approx(2.5), "it counts down between steps"
    hand.now += 30
    assert pace.left == 0


def test_a_job_corrects_what_was_expected_by_what_is_seen():
    hand = Hand()
    job = Job({"mask": 10.0, "image": 20.0, "audit": 0.0, "evaluation": 5.0}, hand)
    job.begin("mask")
    assert job.words(None, whole=True) == "step 1 of 4"
    hand.now += 10
    assert job.words(10.0, whole=True) == "step 1 of 4, about 70 s in all"  # twice as slow as expected
    hand.now += 10
    job.end("mask")
    job.begin("image")
    assert job.words(None, whole=True) == "step 2 of 4, about 70 s in all"
    hand.now += 40
    job.end("image")
    job.begin("audit")
    hand.now += 1
    job.end("audit")
    job.begin("evaluation")
    assert job.words(3.0, whole=False) == "step 4 of 4, about 71 s in all"
    assert job.words(39.0, whole=False) == "step 4 of 4, about 1 min 40 s in all", "or longer, if a task of it says so"
    job.begin("report")
    assert job.words(3.0, whole=False) == ""


@pytest.mark.parametrize("slower", [0.3, 1.0, 3.0])
def test_a_job_is_told_within_a_quarter_once_its_first_step_has_a_pace(slower):
    """However wrong the expected seconds are, if they are wrong alike (within a tenth)."""
    hand, draw = Hand(), random.Random(0)
    expected = {"mask": 200.0, "image": 180.0, "synthesis": 30.0}
    real = {name: seconds * slower * draw.uniform(0.9, 1.1) for name, seconds in expected.items()}
    job, all_of_it, count = Job(expected, hand), sum(real.values()), 0
    for name, seconds in real.items():
        job.begin(name)
        pace = Pace(10, clock=hand)
        for _ in range(10):
            hand.now += seconds / 10
            pace.advance(1)
            if pace.left is not None:
                at = list(expected).index(name)
                assert hand.now - 100 + job._left(at, pace.left, True) == pytest.approx(all_of_it, rel=0.25)
                count += 1
        job.end(name)
    assert count == 24


def test_what_went_before_the_first_step_is_part_of_the_whole():
    hand = Hand()
    hand.now += 20
    job = Job({"mask": 10.0, "image": 10.0}, hand, begun=100.0)
    job.begin("mask")
    hand.now += 5
    assert job.words(5.0, whole=True) == "step 1 of 2, about 40 s in all"


def worked_off(seconds, workers, queue, hand):
    """Work a queue off as processes do: (seconds told, seconds really left) after each task."""
    ends, waiting, found = [], list(seconds), []
    while waiting or ends:
        while waiting and len(ends) < workers:
            task = waiting.pop(0)
            queue.begin(task)
            ends.append((hand.now + seconds[task], task))
        hand.now, task = min(ends)
        ends.remove((hand.now, task))
        queue.end(task)
        found.append((queue.left, hand.now))
    return [(left, hand.now - at) for left, at in found]


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("slower", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_queue_is_told_within_a_quarter_from_the_first_end_on(workers, slower, seed):
    """However wrong the expected seconds are, if they are wrong alike (within a tenth)."""
    hand, draw = Hand(), random.Random(seed)
    expected = {f"point {i}": draw.uniform(50, 400) for i in range(12)}
    real = {task: seconds * slower * draw.uniform(0.9, 1.1) for task, seconds in expected.items()}
    queue, whole = Queue(expected, workers, hand), sum(real.values())
    found = worked_off(real, workers, queue, hand)
    assert len(found) == 12
    assert all(abs(left - really) <= 0.25 * really + 0.05 * whole / workers for left, really in found)
    assert found[-1][0] == 0


def test_a_queue_before_it_begins_and_a_task_that_failed():
    hand = Hand()
    queue = Queue({"a": 10.0, "b": 20.0, "c": 5.0}, 2, hand)
    assert queue.left == 20
    queue.begin("a")
    queue.begin("b")
    hand.now += 1
    queue.end("a", counts=False)
    assert queue.left == 19, "what failed at once says nothing of the pace"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "1 s"),
        (40, "40 s"),
        (96, "1 min 40 s"),
        (178, "3 min"),
        (596, "10 min"),
        (4000, "67 min"),
        (5800, "1 h 40 min"),
        (7200, "2 h"),
        (100000.0, "27 h 50 min"),
    ],
)
def test_times_are_said_no_finer_than_they_are_known(seconds, text):
    assert spoken(seconds) == text

"""How many workers a model gets, where, and how many cores each."""

import os

import pytest

from penstock.server import placement
from penstock.server.model_config import InstanceGroup
from penstock.server.placement import Placement, place, usable_cores


def cpu(count, threads):
    return Placement("cpu", count, threads)


@pytest.mark.parametrize(
    ("cores", "expected"),
    [(1, cpu(1, 1)), (2, cpu(2, 1)), (3, cpu(2, 1)), (4, cpu(2, 2)), (64, cpu(2, 32))],
)
def test_without_groups_up_to_two_workers_share_the_cores(cores, expected):
    assert place((), cores) == [expected]


@pytest.mark.parametrize(
    ("counts", "cores", "expected"),
    [
        ([1], 8, [cpu(1, 8)]),
        ([4], 8, [cpu(4, 2)]),
        ([3], 8, [cpu(3, 2)]),
        ([16], 8, [cpu(16, 1)]),
        ([1, 3], 8, [cpu(1, 2), cpu(3, 2)]),
    ],
)
@pytest.mark.parametrize("kind", ["CPU", "AUTO", "MODEL"])
def test_groups_on_the_cpu_share_the_cores(kind, counts, cores, expected):
    groups = [InstanceGroup(f"g{i}", kind, count) for i, count in enumerate(counts)]
    assert place(groups, cores) == expected


def test_groups_on_gpus():
    groups = [InstanceGroup("g", "GPU", 2, (0, 3)), InstanceGroup("h", "GPU", 1)]
    assert place(groups, 8) == [
        Placement("cuda:0", 2, 1),
        Placement("cuda:3", 2, 1),
        Placement("cuda:0", 1, 1),
    ]


def test_backends_that_run_on_gpus_only():
    def on_gpu(*groups):
        return place(groups, 8, "cuda:0")

    assert on_gpu() == [Placement("cuda:0", 2, 1)]
    assert on_gpu(InstanceGroup("g", "AUTO", 3)) == [Placement("cuda:0", 3, 1)]
    assert on_gpu(InstanceGroup("g", "GPU", 1, (2,))) == [Placement("cuda:2", 1, 1)]
    assert on_gpu(InstanceGroup("g", "CPU", 2)) == [cpu(2, 4)]


def test_gpu_workers_take_no_cores_from_the_cpu():
    groups = [InstanceGroup("g", "GPU", 4), InstanceGroup("c", "CPU", 2)]
    assert place(groups, 8) == [Placement("cuda:0", 4, 1), cpu(2, 4)]


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("250000 100000\n", 2),
        ("50000 100000\n", 1),
        ("1600000 100000\n", 8),
        ("nonsense", 8),
        (None, 8),
    ],
)
def test_usable_cores(monkeypatch, tmp_path, quota, expected):
    path = tmp_path / "cpu.max"
    if quota is not None:
        path.write_text(quota)
    monkeypatch.setattr(placement, "Path", lambda _: path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert usable_cores() == expected

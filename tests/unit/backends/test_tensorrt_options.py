"""Options by name and value, and the sizes that a plan is built for."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.backends.base import LoadError
from penstock.backends.tensorrt.options import (
    KINDS,
    NAMES,
    Options,
    Recipe,
    check_engine,
    default_cache,
    read,
)
from penstock.backends.tensorrt.profiles import Range, profiles, rows_limit
from penstock.protocol import dtype as dt
from penstock.protocol.message import TensorSpec

GOOD = {
    "engine": ("tensorrt_rtx", "tensorrt_rtx"),
    "cache_dir": ("/var/plans", Path("/var/plans")),
    "cache_bytes_max": ("5", 5),
    "build_s_max": ("60", 60),
    "host_code": ("true", True),
    "staging_bytes": ("65536", 65536),
    "blocking_wait": ("1", True),
    "buckets": ("1, 8,64", (1, 8, 64)),
    "workspace_bytes_max": ("1048576", 1 << 20),
    "builder_optimization_level": ("5", 5),
    "tf32": ("0", False),
    "hardware_compatibility": ("AMPERE_PLUS", "ampere_plus"),
    "version_compatible": ("1", True),
    "compute_capabilities": ("8.6, 12.0", ("8.6", "12.0")),
}
SHAPES = {"min_shapes": "x:1x1", "opt_shapes": "x:2x8", "max_shapes": "x:4x16"}


def test_every_option_is_tried_here() -> None:
    assert set(GOOD) | set(SHAPES) == NAMES


@pytest.mark.parametrize("name", list(GOOD))
def test_values(name: str) -> None:
    text, value = GOOD[name]
    options = read({name: text}, "tensorrt")
    assert getattr(options, name, None) == value or getattr(options.recipe, name) == value
    assert options != Options(Recipe())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("engine", "trt"),
        ("cache_dir", "plans"),
        ("cache_bytes_max", "-1"),
        ("build_s_max", "0"),
        ("staging_bytes", "100"),
        ("buckets", "8,1"),
        ("buckets", "1,1"),
        ("buckets", "0,1"),
        ("buckets", ""),
        ("buckets", ",".join(map(str, range(1, 30)))),
        ("builder_optimization_level", "6"),
        ("tf32", "yes"),
        ("hardware_compatibility", "hopper"),
        ("compute_capabilities", "sm_90"),
        ("min_shapes", "x"),
        ("min_shapes", "x:1,y"),
        ("min_shapes", "x:ax2"),
    ],
)
def test_bad_values(name: str, text: str) -> None:
    with pytest.raises(LoadError, match=f"'{name}' is "):
        read({name: text}, "tensorrt")


def test_unknown_options() -> None:
    with pytest.raises(LoadError, match=r"'bucket' is not known .* did you mean buckets"):
        read({"bucket": "1"}, "tensorrt")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("tensorrt", "compute_capabilities"),
        ("tensorrt_rtx", "hardware_compatibility"),
        ("tensorrt_rtx", "host_code"),
        ("tensorrt_rtx", "version_compatible"),
    ],
)
def test_options_of_the_other_engine(kind: str, name: str) -> None:
    with pytest.raises(LoadError, match=f"'{name}' is not for engine '{kind}': "):
        check_engine({name: "1"}, kind)
    other = next(other for other in KINDS if other != kind)
    check_engine({name: "1"}, other)


def test_where_plans_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/someone")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("PENSTOCK_TENSORRT_CACHE", raising=False)
    assert default_cache() == Path("/someone/.cache/penstock/tensorrt")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert default_cache() == Path("/cache/penstock/tensorrt")
    monkeypatch.setenv("PENSTOCK_TENSORRT_CACHE", "/plans")
    assert default_cache() == Path("/plans")


def test_shapes_belong_together() -> None:
    with pytest.raises(LoadError, match="belong together"):
        read({"min_shapes": "x:1"}, "tensorrt")
    with pytest.raises(LoadError, match="exclude each other"):
        read({**SHAPES, "buckets": "1"}, "tensorrt")


X = TensorSpec("x", dt.FP32, (-1, 16))
FIXED = TensorSpec("fixed", dt.FP32, (1, 16))


def rows(*sizes: tuple[int, int]) -> list[dict[str, Range]]:
    return [{"x": Range((low, 16), (high, 16), (high, 16))} for low, high in sizes]


@pytest.mark.parametrize(
    ("kind", "rows_max", "buckets", "wanted"),
    [
        ("tensorrt", 8, (), rows((1, 1), (2, 8))),
        ("tensorrt", 1, (), rows((1, 1))),
        ("tensorrt", 0, (), rows((1, 1), (2, 64))),
        ("tensorrt_rtx", 8, (), rows((1, 8))),
        ("tensorrt_rtx", 0, (), rows((1, 64))),
        ("tensorrt", 8, (1, 4, 8), rows((1, 1), (2, 4), (5, 8))),
        ("tensorrt_rtx", 8, (16,), rows((1, 16))),
    ],
)
def test_profiles(kind: str, rows_max: int, buckets: tuple[int, ...], wanted: object) -> None:
    found = profiles([X, FIXED], Recipe(buckets=buckets), rows_max, kind)
    assert found == wanted
    assert rows_limit([X, FIXED], found) == (buckets[-1] if buckets else rows_max or 64)


def test_every_size_has_exactly_one_profile() -> None:
    found = profiles([X], Recipe(buckets=(1, 3, 8)), 8, "tensorrt")
    for size in range(1, 9):
        assert sum(profile["x"].holds((size, 16)) for profile in found) == 1
    assert not any(profile["x"].holds((9, 16)) for profile in found)


def test_without_free_sizes() -> None:
    assert profiles([FIXED], Recipe(), 0, "tensorrt") == []
    assert rows_limit([FIXED], []) == 0
    assert rows_limit([FIXED], [{"fixed": Range((1, 16), (1, 16), (1, 16))}]) == 0
    assert rows_limit([TensorSpec("scalar", dt.FP32, ())], [{"scalar": Range((), (), ())}]) == 0
    with pytest.raises(LoadError, match="no free dimension to batch over"):
        profiles([FIXED], Recipe(buckets=(1,)), 0, "tensorrt")


def test_buckets_that_end_too_early() -> None:
    with pytest.raises(LoadError, match="ends at 4 rows where max_batch_size is 8"):
        profiles([X], Recipe(buckets=(1, 4)), 8, "tensorrt")


def test_stated_shapes() -> None:
    free = TensorSpec("x", dt.FP32, (-1, -1))
    recipe = read(SHAPES, "tensorrt").recipe
    assert profiles([free, FIXED], recipe, 4, "tensorrt") == [{"x": Range((1, 1), (2, 8), (4, 16))}]
    with pytest.raises(LoadError, match="'x' has free dimensions behind the first"):
        profiles([free], Recipe(), 4, "tensorrt")


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"max_shapes": "y:1x1"}, "'max_shapes' names 'y'; the model's inputs are x, fixed"),
        ({"max_shapes": "fixed:1x16"}, "'max_shapes' lacks x, whose shapes are free"),
        ({"max_shapes": "x:4"}, r"gives 'x' the shape \[4\]; the model has \[-1, -1\]"),
        ({"max_shapes": "x:1x1"}, "must not fall in any dimension"),
        ({"opt_shapes": "x:2x8,fixed:2x16"}, r"gives 'fixed' the shape \[2, 16\]"),
    ],
)
def test_stated_shapes_that_do_not_fit(shapes: dict[str, str], said: str) -> None:
    free = TensorSpec("x", dt.FP32, (-1, -1))
    recipe = read({**SHAPES, **shapes}, "tensorrt").recipe
    with pytest.raises(LoadError, match=said):
        profiles([free, FIXED], recipe, 4, "tensorrt")


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", unknown)
    for name in ("XDG_CACHE_HOME", "PENSTOCK_TENSORRT_CACHE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(LoadError, match=r"kept in ~/\.cache: .* Set option 'cache_dir'"):
        default_cache()
    with pytest.raises(LoadError, match="kept in ~nobody/plans: "):
        read({"cache_dir": "~nobody/plans"}, "tensorrt")

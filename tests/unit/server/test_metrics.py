"""The Prometheus page: its grammar, and every number on it."""

import re

import pytest

from penstock.protocol.message import ModelMetadata
from penstock.server.metrics import CONTENT_TYPE, exposition
from penstock.server.model_config import ConfigError
from penstock.server.model_config_parse import parse_pbtxt
from penstock.server.models import Loaded, ModelState, ModelTable, ModelVersion
from penstock.server.stats import (
    BATCH_BOUNDS_ROWS,
    LATENCY_BOUNDS_NS,
    FailReason,
    Histogram,
    LaneStats,
)

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(,|$)')
_SAMPLE = re.compile(rf"({_NAME})(?:\{{(.*)\}})? ([^ ]+)")
_ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


def parse_labels(text):
    labels, at = {}, 0
    while at < len(text):
        match = _LABEL.match(text, at)
        assert match, f"no label at {text[at:]!r}"
        assert match[1] not in labels, f"label {match[1]} twice"
        labels[match[1]] = re.sub(r"\\.", lambda e: _ESCAPES[e[0]], match[2])
        at = match.end()
    assert not text.endswith(",")
    return frozenset(labels.items())


def parse(page):
    """{family: (type, {(sample name, labels): value})}, strictly by the text format 0.0.4."""
    text = page.decode()
    assert text.endswith("\n")
    families, name, lines = {}, "", text.removesuffix("\n").split("\n")
    helped = ""
    for line in lines:
        if match := re.fullmatch(rf"# HELP ({_NAME}) (\S.*)", line):
            assert match[1] not in families, "a family in two places"
            helped = match[1]
        elif match := re.fullmatch(rf"# TYPE ({_NAME}) (counter|gauge|histogram)", line):
            assert match[1] == helped, "TYPE without its HELP"
            name = match[1]
            families[name] = (match[2], {})
        else:
            match = _SAMPLE.fullmatch(line)
            assert match, f"not a sample: {line!r}"
            suffixes = ("_bucket", "_sum", "_count") if families[name][0] == "histogram" else ("",)
            assert match[1] in [name + suffix for suffix in suffixes]
            key = match[1], parse_labels(match[2] or "")
            samples = families[name][1]
            assert key not in samples, f"sample {key} twice"
            samples[key] = float(match[3])
    return families


class StatsOnly:
    """The part of a lane that the page shows."""

    def __init__(self, stats, waiting=0):
        self.stats = stats
        self.waiting = waiting


def version(name="m", number="1", stats=None, waiting=0, load_s=0.0, tags=""):
    config = parse_pbtxt(tags, "test", name=name)
    lane = StatsOnly(stats or LaneStats(), waiting)
    metadata = ModelMetadata(name, number, (), "", (), ())
    loaded = Loaded(lane, config, metadata, load_s=load_s)
    return ModelVersion(name, number, ModelState.READY, loaded=loaded)


def page(*entries, connections=None):
    models = ModelTable()
    for entry in entries:
        models.set(entry)
    return exposition(models, connections or {})


def labels(model="m", version="1", **more):
    return frozenset({"model": model, "version": version, **more}.items())


def values(families, name, suffix=""):
    return {key: value for (n, key), value in families[name][1].items() if n == name + suffix}


def counted():
    stats = LaneStats()
    stats.success_count, stats.success_ns = 11, 5_500_999
    stats.response_count = 17
    stats.inference_count, stats.execution_count = 30, 4
    stats.queue_ns, stats.compute_input_ns = 1_000_000, 2_000
    stats.compute_infer_ns, stats.compute_output_ns = 3_000_000_000, 999
    for i, reason in enumerate(FailReason):
        stats.fail_count[reason] = i + 1
    return stats


def test_the_format_is_announced():
    assert CONTENT_TYPE == "text/plain; version=0.0.4; charset=utf-8"


def test_an_empty_server():
    families = parse(page(connections={"http": 3, "grpc": 2}))
    assert families["penstock_connections"][0] == "gauge"
    assert values(families, "penstock_connections") == {
        frozenset({("port", "http")}): 3,
        frozenset({("port", "grpc")}): 2,
    }
    loads = "penstock_model_loads_succeeded", "penstock_model_loads_failed"
    own = {"penstock_connections", *loads}
    assert all(not samples for n, (_, samples) in families.items() if n not in own)


def test_loads_are_counted():
    models = ModelTable()
    for failed in (False, True, False):
        models.loads.count(failed=failed)
    families = parse(exposition(models, {}))
    for name, count in (("succeeded", 2), ("failed", 1)):
        metric = f"penstock_model_loads_{name}"
        assert families[metric] == ("counter", {(metric, frozenset()): count})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nv_inference_request_success", 11),
        ("nv_inference_count", 30),
        ("nv_inference_exec_count", 4),
        ("nv_inference_request_duration_us", 5500),
        ("nv_inference_queue_duration_us", 1000),
        ("nv_inference_compute_input_duration_us", 2),
        ("nv_inference_compute_infer_duration_us", 3_000_000),
        ("nv_inference_compute_output_duration_us", 0),
        ("penstock_stream_responses", 17),
    ],
)
def test_counters(name, value):
    families = parse(page(version(stats=counted()), version("other")))
    assert families[name][0] == "counter"
    assert values(families, name) == {labels(): value, labels("other"): 0}


def test_failures_by_reason():
    families = parse(page(version(stats=counted())))
    assert families["nv_inference_request_failure"][0] == "counter"
    assert values(families, "nv_inference_request_failure") == {
        labels(reason="REJECTED"): 1,
        labels(reason="CANCELED"): 2,
        labels(reason="BACKEND"): 3,
        labels(reason="OTHER"): 4,
    }


def test_gauges_and_models_that_are_not_ready():
    families = parse(
        page(
            version(waiting=5, load_s=1.25),
            version(number="2"),
            ModelVersion("m", "3"),
            ModelVersion("bad", "", ModelState.UNAVAILABLE, 'reason "x"\n'),
        )
    )
    assert values(families, "nv_inference_pending_request_count") == {
        labels(): 5,
        labels(version="2"): 0,
    }
    assert values(families, "nv_model_load_duration_secs")[labels()] == 1.25
    assert values(families, "penstock_model_ready") == {
        labels(): 1,
        labels(version="2"): 1,
        labels(version="3"): 0,
        labels("bad", ""): 0,
    }


def test_buckets_are_cumulative():
    stats = LaneStats()
    for ns in (1, 100_000, 100_001, 3_000_000, 10_000_000_000, 10_000_000_001):
        stats.latency.add(ns)
    stats.queue.add_all([50_000, 400_000])
    for rows in (1, 2, 3, 64, 1024, 5000):
        stats.batch_rows.add(rows)
    families = parse(page(version(stats=stats)))

    def buckets(name):
        assert families[name][0] == "histogram"
        found = {}
        for key, value in values(families, name, "_bucket").items():
            (le,) = [v for k, v in key if k == "le"]
            assert key - {("le", le)} == labels()
            found[le] = value
        counts = list(found.values())
        assert counts == sorted(counts)
        assert list(found)[-1] == "+Inf"
        assert list(map(float, found)) == sorted(map(float, found))
        assert values(families, name, "_count") == {labels(): found["+Inf"]}
        return found

    latency = buckets("penstock_request_duration_seconds")
    assert [float(le) for le in latency][:-1] == [ns / 1e9 for ns in LATENCY_BOUNDS_NS]
    assert latency["0.0001"] == 2
    assert latency["0.0002"] == 3
    assert latency["0.002"] == 3
    assert latency["0.005"] == 4
    assert latency["10"] == 5
    assert latency["+Inf"] == 6
    total = sum((1, 100_000, 100_001, 3_000_000, 10_000_000_000, 10_000_000_001)) / 1e9
    assert values(families, "penstock_request_duration_seconds", "_sum")[labels()] == (
        pytest.approx(total, rel=1e-8)
    )

    queue = buckets("penstock_queue_duration_seconds")
    assert (queue["0.0001"], queue["0.0005"], queue["+Inf"]) == (1, 2, 2)

    rows = buckets("penstock_batch_rows")
    assert [float(le) for le in rows][:-1] == list(BATCH_BOUNDS_ROWS)
    assert (rows["1"], rows["2"], rows["4"], rows["64"]) == (1, 2, 3, 4)
    assert (rows["1024"], rows["+Inf"]) == (5, 6)
    assert values(families, "penstock_batch_rows", "_sum") == {labels(): 6094}


@pytest.mark.parametrize(
    "name", ['quo"te', "back\\slash", "new\nline", "\\n", 'all\\"\n\\', "päron", "a,b={}", "x "]
)
def test_label_values_are_escaped(name):
    models = ModelTable()
    entry = version(stats=counted())
    entry.name = name
    models.set(entry)
    families = parse(exposition(models, {}))
    assert values(families, "nv_inference_count") == {labels(name): 30}
    assert values(families, "penstock_model_ready") == {labels(name): 1}


def test_metric_tags_become_labels():
    tags = 'metric_tags { key: "team" value: "a \\"b\\"" } metric_tags { key: "tier" value: "1" }'
    families = parse(page(version(tags=tags)))
    expected = labels(team='a "b"', tier="1")
    assert set(values(families, "nv_inference_count")) == {expected}
    assert set(values(families, "penstock_model_ready")) == {expected}
    assert expected | {("reason", "OTHER")} in values(families, "nv_inference_request_failure")


@pytest.mark.parametrize("key", ["my-tag", "1st", "", "a b", "ä", 'x="1",y', "__reserved"])
def test_a_tag_that_would_break_the_page_is_refused(key):
    with pytest.raises(ConfigError, match="metric_tags"):
        parse_pbtxt(f'metric_tags {{ key: "{_quoted(key)}" value: "v" }}', "test", name="m")


@pytest.mark.parametrize("key", ["model", "version", "reason", "le"])
def test_a_tag_does_not_take_the_place_of_our_labels(key):
    with pytest.raises(ConfigError, match="metric_tags"):
        parse_pbtxt(f'metric_tags {{ key: "{key}" value: "v" }}', "test", name="m")


def _quoted(text):
    return text.replace('"', '\\"')


def test_prometheus_own_parser_reads_the_page():
    reason = "NOT TESTED: reading the page with prometheus_client, which is not installed"
    parser = pytest.importorskip("prometheus_client.parser", reason=reason)
    text = page(version(stats=counted()), connections={"grpc": 2}).decode()
    names = {family.name for family in parser.text_string_to_metric_families(text)}
    assert {"nv_inference_count", "penstock_batch_rows", "penstock_connections"} <= names


# --- the counters' parts


def test_a_histogram_counts_up_to_and_with_the_bound():
    histogram = Histogram((10, 20))
    for value in (0, 10, 11, 20, 21, 1000):
        histogram.add(value)
    assert (histogram.counts, histogram.total) == ([2, 2, 2], 1062)
    many = Histogram((10, 20))
    many.add_all([0, 10, 11, 20, 21, 1000])
    many.add_all([])
    assert (many.counts, many.total) == (histogram.counts, histogram.total)


def test_bounds_ascend():
    assert list(LATENCY_BOUNDS_NS) == sorted(set(LATENCY_BOUNDS_NS))
    assert (LATENCY_BOUNDS_NS[0], LATENCY_BOUNDS_NS[-1]) == (100_000, 10_000_000_000)
    assert (BATCH_BOUNDS_ROWS[0], BATCH_BOUNDS_ROWS[-1]) == (1, 1024)

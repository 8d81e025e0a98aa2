"""gRPC methods that run no model, health and reflection, on the seam."""

import asyncio

import pytest
from google.protobuf import descriptor_pb2

from penstock.protocol.errors import Code, InferError, PenstockError
from penstock.server import grpc_schema
from penstock.server.front import grpc_health
from penstock.server.front.grpc_admin import GrpcAdminFront
from penstock.server.front.grpc_health import CHECK, WATCH, GrpcHealthFront
from penstock.server.front.grpc_methods import GROUPS, table
from penstock.server.front.grpc_oip import GrpcOipFront
from penstock.server.front.grpc_reflection import PATHS, Described, GrpcReflectionFront
from penstock.server.front.grpc_repository import GrpcRepositoryFront
from penstock.server.front.grpc_settings import GrpcSettingsFront
from penstock.server.front.grpc_shared_memory import GrpcSharedMemoryFront
from penstock.server.front.grpc_unary import answering, awaiting
from penstock.server.front.restriction import GROUPS as GROUP_NAMES
from penstock.server.front.restriction import parse_rules
from penstock.server.grpc_schema import HEALTH, INFERENCE, METHODS, POOL, SERVICES
from penstock.server.grpc_seam import Method
from penstock.server.log_settings import LogSettings
from penstock.server.model_control import IndexEntry
from penstock.server.models import ModelState, ModelVersion
from penstock.server.shared_memory import SharedMemory
from penstock.server.trace_settings import TraceBook

MODELS = {
    "add/1": ({"kind": "add_sub", "shape": "2"}, ""),
    "add/3": ({"kind": "add_sub", "shape": "2"}, "version_policy { all {} } dynamic_batching {}"),
    "gone/1": ({"load_error": "no luck"}, ""),
}  # fmt: skip


def path(name):
    return f"/{INFERENCE}/{name}"


@pytest.fixture
async def gateway(repository):
    return await repository(MODELS)


@pytest.fixture
def control():
    return Control()


class Control:
    """Stands for ``ModelControl``: records what it is asked for."""

    def __init__(self):
        self.asked = []

    async def load(self, *given, **named):
        self.asked.append(("load", given, named))
        if given[0] == "bad":
            raise InferError(Code.INTERNAL, "failed to load 'bad'")

    async def unload(self, *given, **named):
        self.asked.append(("unload", given, named))

    async def index(self, *, ready_only):
        entries = [
            IndexEntry("a", "1", ModelState.READY),
            IndexEntry("b", "2", ModelState.UNAVAILABLE, "no luck"),
            IndexEntry("c"),
        ]
        return entries[:1] if ready_only else entries


@pytest.fixture
def server(gateway, rpc, control):
    described = [Described(SERVICES, POOL, grpc_schema.FILES)]
    logs = LogSettings([])
    fronts = (
        GrpcOipFront(gateway),
        GrpcAdminFront(gateway, "1.2.3", ("statistics", "trace")),
        GrpcSettingsFront(gateway, TraceBook(), logs),
        GrpcSharedMemoryFront(SharedMemory(allowed=True)),
        GrpcRepositoryFront(control),
        GrpcHealthFront(gateway, SERVICES),
        GrpcReflectionFront(described),
    )
    return rpc(table(method for front in fronts for method in front.methods()))


async def test_every_method_is_served_with_its_own_kind(server):
    assert METHODS.keys() == server.methods.keys()
    for where, method in server.methods.items():
        assert (method.stream is not None) == METHODS[where].server_streaming, where


async def test_health(server, gateway):
    assert (await server.unary(path("ServerLive"))).live
    assert (await server.unary(path("ServerReady"))).ready
    assert (await server.unary(path("ModelReady"), name="add")).ready
    assert (await server.unary(path("ModelReady"), name="add", version="1")).ready
    for name, version in (("add", "2"), ("gone", ""), ("nope", "")):
        assert not (await server.unary(path("ModelReady"), name=name, version=version)).ready
    gateway.draining = True
    assert not (await server.unary(path("ServerReady"))).ready
    assert (await server.unary(path("ServerLive"))).live


async def test_metadata(server):
    told = await server.unary(path("ServerMetadata"))
    assert (told.name, told.version, list(told.extensions)) == (
        "triton", "1.2.3", ["statistics", "trace"]
    )  # fmt: skip
    model = await server.unary(path("ModelMetadata"), name="add")
    assert (model.name, list(model.versions), model.platform) == ("add", ["1", "3"], "fake")
    assert [(t.name, t.datatype, list(t.shape)) for t in model.inputs] == [
        ("INPUT0", "INT32", [-1, 2]),
        ("INPUT1", "INT32", [-1, 2]),
    ]
    with pytest.raises(PenstockError, match="'nope' is not found"):
        await server.unary(path("ModelMetadata"), name="nope")


async def test_properties_are_the_parameters_of_the_configuration(repository, rpc):
    gateway = await repository(
        {"m/1": ({}, 'parameters { key: "shape" value { string_value: "4" } }')}
    )
    server = rpc(table(GrpcAdminFront(gateway, "1", ()).methods()))
    told = await server.unary(path("ModelMetadata"), name="m")
    assert dict(told.properties) == {"shape": "4"}


async def test_configuration(server):
    told = await server.unary(path("ModelConfig"), name="add", version="3")
    assert (told.config.name, told.config.backend) == ("add", "fake")
    assert told.config.HasField("dynamic_batching")
    assert [t.name for t in told.config.input] == ["INPUT0", "INPUT1"]


async def test_statistics_of_one_of_some_and_of_all(server, gateway):
    for fields, versions in (
        ({"name": "add", "version": "3"}, "3"),
        ({"name": "add"}, "13"),
        ({}, "13"),
    ):
        told = await server.unary(path("ModelStatistics"), **fields)
        assert [s.version for s in told.model_stats] == list(versions)
    stats = gateway.models.find("add", "3").lane.stats
    stats.ran(2, 5, 10, 20, 30, 1234)
    stats.succeeded([100, 200], [1, 2])
    (one,) = (await server.unary(path("ModelStatistics"), name="add", version="3")).model_stats
    assert (one.inference_count, one.execution_count, one.last_inference) == (5, 1, 1234)
    assert (one.inference_stats.success.count, one.inference_stats.success.ns) == (2, 300)
    assert [(b.batch_size, b.compute_infer.ns) for b in one.batch_stats] == [(5, 20)]
    for fields, text in (
        ({"name": "nope"}, "requested model 'nope' is not available"),
        (
            {"name": "add", "version": "9"},
            "requested model version is not available for model 'add'",
        ),
    ):
        with pytest.raises(PenstockError, match=text) as caught:
            await server.unary(path("ModelStatistics"), **fields)
        assert caught.value.code is Code.INVALID_ARGUMENT


async def test_index(server):
    models = (await server.unary(path("RepositoryIndex"))).models
    assert [(m.name, m.version, m.state, m.reason) for m in models] == [
        ("a", "1", "READY", ""), ("b", "2", "UNAVAILABLE", "no luck"), ("c", "", "", "")
    ]  # fmt: skip
    assert len((await server.unary(path("RepositoryIndex"), ready=True)).models) == 1
    with pytest.raises(PenstockError, match="'repository_name' specification is not") as caught:
        await server.unary(path("RepositoryIndex"), repository_name="first")
    assert caught.value.code is Code.UNIMPLEMENTED


async def test_load_and_unload(server, control):
    await server.unary(path("RepositoryModelLoad"), model_name="m")
    await server.unary(
        path("RepositoryModelLoad"),
        model_name="m",
        parameters={
            "config": {"string_param": "{}"},
            "file:1/model.onnx": {"bytes_param": b"\x00\xff"},
        },
    )
    await server.unary(path("RepositoryModelUnload"), model_name="m", repository_name="r")
    await server.unary(
        path("RepositoryModelUnload"),
        model_name="m",
        parameters={"unload_dependents": {"bool_param": True}},
    )
    assert control.asked == [
        ("load", ("m", None, {}), {"repository_name": ""}),
        ("load", ("m", "{}", {"1/model.onnx": b"\x00\xff"}), {"repository_name": ""}),
        ("unload", ("m", False), {"repository_name": "r"}),
        ("unload", ("m", True), {"repository_name": ""}),
    ]
    with pytest.raises(PenstockError, match="failed to load 'bad'"):
        await server.unary(path("RepositoryModelLoad"), model_name="bad")


@pytest.mark.parametrize(
    ("method", "name", "value", "text"),
    [
        ("Load", "config", {"bytes_param": b""}, "load parameter 'config', expected string_param."),
        (
            "Load",
            "file:1/a",
            {"string_param": ""},
            "load parameter 'file:1/a', expected bytes_param.",
        ),
        ("Load", "what", {"string_param": ""}, "unrecognized load parameter 'what'"),
        ("Unload", "unload_dependents", {}, "'unload_dependents' parameter, expected bool_param."),
    ],
)
async def test_parameters_of_the_wrong_kind(server, control, method, name, value, text):
    with pytest.raises(PenstockError, match=text) as caught:
        await server.unary(
            path(f"RepositoryModel{method}"), model_name="m", parameters={name: value}
        )
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert control.asked == []


async def test_trace_settings(server):
    told = await server.unary(path("TraceSetting"))
    assert list(told.settings["trace_level"].value) == ["OFF"]
    changed = await server.unary(
        path("TraceSetting"),
        settings={"trace_level": {"value": ["TIMESTAMPS"]}, "trace_rate": {"value": ["7"]}},
    )
    assert list(changed.settings["trace_rate"].value) == ["7"]
    own = await server.unary(
        path("TraceSetting"), model_name="add", settings={"trace_rate": {"value": ["3"]}}
    )
    assert list(own.settings["trace_rate"].value) == ["3"]
    cleared = await server.unary(
        path("TraceSetting"), model_name="add", settings={"trace_rate": {}}
    )
    assert list(cleared.settings["trace_rate"].value) == ["7"]
    with pytest.raises(PenstockError, match="Request for unknown model : nope"):
        await server.unary(path("TraceSetting"), model_name="nope")


async def test_log_settings(server):
    told = (await server.unary(path("LogSettings"))).settings
    assert {"log_file", "log_info", "log_verbose_level", "log_format"} <= set(told)
    changed = await server.unary(
        path("LogSettings"),
        settings={
            "log_info": {"bool_param": False},
            "log_verbose_level": {"uint32_param": 2},
            "log_format": {"string_param": "ISO8601"},
        },
    )
    assert not changed.settings["log_info"].bool_param
    assert changed.settings["log_verbose_level"].uint32_param == 2
    assert changed.settings["log_format"].string_param == "ISO8601"
    for wrong in ({"log_info": {}}, {"log_info": {"uint32_param": 1}}, {"nope": {"bool_param": 1}}):
        with pytest.raises(PenstockError) as caught:
            await server.unary(path("LogSettings"), settings=wrong)
        assert caught.value.code is Code.INVALID_ARGUMENT


async def test_shared_memory_regions(server, tmp_path):
    from multiprocessing.shared_memory import SharedMemory as Block

    block = Block(create=True, size=64)
    try:
        await server.unary(
            path("SystemSharedMemoryRegister"), name="r", key=block.name, offset=8, byte_size=16
        )
        (told,) = (await server.unary(path("SystemSharedMemoryStatus"))).regions.values()
        assert (told.name, told.key, told.offset, told.byte_size) == ("r", block.name, 8, 16)
        with pytest.raises(PenstockError, match="'r' already in manager"):
            await server.unary(
                path("SystemSharedMemoryRegister"), name="r", key=block.name, byte_size=8
            )
        with pytest.raises(PenstockError, match="registered as system"):
            await server.unary(path("CudaSharedMemoryStatus"), name="r")
        await server.unary(path("SystemSharedMemoryUnregister"), name="r")
        assert not (await server.unary(path("SystemSharedMemoryStatus"))).regions
    finally:
        block.close()
        block.unlink()
    with pytest.raises(PenstockError, match="nope"):
        await server.unary(path("CudaSharedMemoryStatus"), name="nope")
    await server.unary(path("CudaSharedMemoryUnregister"))
    with pytest.raises(PenstockError, match="failed to register"):
        await server.unary(
            path("CudaSharedMemoryRegister"), name="c", raw_handle=b"short", byte_size=8
        )


async def test_bytes_that_are_no_message(server, fake_call, fake_head):
    for method in (path("ModelReady"), CHECK):
        call = fake_call()
        server.methods[method].unary(call, fake_head(method), b"\x0a\xff")
        assert call.error.code is Code.INVALID_ARGUMENT


async def test_what_takes_its_time_is_not_stopped_half_way(rpc):
    gate = asyncio.Event()

    async def slow(request):
        await gate.wait()
        if request.name == "bad":
            raise InferError(Code.NOT_FOUND, "no such")
        return METHODS[path("ModelReady")].reply(ready=True)

    server = rpc({path("ModelReady"): awaiting(path("ModelReady"), slow)})
    asking = [asyncio.ensure_future(server.unary(path("ModelReady"), name=n)) for n in ("", "bad")]
    await asyncio.sleep(0.01)
    gate.set()
    assert (await asking[0]).ready
    with pytest.raises(InferError, match="no such"):
        await asking[1]


async def test_a_fault_of_ours_is_not_shown(rpc, caplog):
    server = rpc({path("ServerLive"): answering(path("ServerLive"), lambda request: 1 / 0)})
    with pytest.raises(PenstockError, match="internal error") as caught:
        await server.unary(path("ServerLive"))
    assert caught.value.code is Code.INTERNAL
    assert "ZeroDivisionError" in caplog.text


# --- restrictions


async def test_every_group_can_be_restricted_and_every_method_is_in_one(server):
    assert set(GROUPS.values()) == set(GROUP_NAMES)
    open_to_all = set(server.methods) - set(GROUPS)
    assert open_to_all == set(PATHS)


async def test_restricted_methods_want_their_header(gateway, rpc, fake_head):
    rules = parse_rules(["health,inference:Key=secret"])
    methods = [*GrpcAdminFront(gateway, "1", ()).methods(), *GrpcOipFront(gateway).methods()]
    server = rpc(table(methods, rules))
    assert (await server.unary(path("ServerMetadata"))).name == "triton"
    text = "This protocol is restricted, expecting header 'triton-grpc-protocol-Key'"
    for metadata in ({}, {"triton-grpc-protocol-key": "wrong"}, {"key": "secret"}):
        head = fake_head("", metadata)
        with pytest.raises(PenstockError) as caught:
            await server.unary(path("ServerLive"), head)
        assert (caught.value.code, caught.value.message) == (Code.UNAVAILABLE, text)
        talk = server.stream(path("ModelStreamInfer"), head)
        talk.say()
        talk.stream.half_closed()
        assert talk.call.error.message == text
    head = fake_head("", {"triton-grpc-protocol-key": "secret"})
    assert (await server.unary(path("ServerLive"), head)).live
    talk = server.stream(path("ModelStreamInfer"), head)
    talk.stream.half_closed()
    assert talk.call.error is None


def test_two_methods_at_one_path():
    method = Method("/a.B/C", unary=lambda call, head, message: None)
    with pytest.raises(ValueError, match="two methods"):
        table([method, method])


# --- grpc.health.v1


SERVING, NOT_SERVING, UNKNOWN = 1, 2, 3


async def test_check(server, gateway):
    for service, status in (("", SERVING), (INFERENCE, SERVING), (HEALTH, SERVING),
                            ("add", SERVING), ("gone", NOT_SERVING)):  # fmt: skip
        assert (await server.unary(CHECK, service=service)).status == status
    with pytest.raises(PenstockError) as caught:
        await server.unary(CHECK, service="nope")
    assert caught.value.code is Code.NOT_FOUND
    gateway.leaving = True
    assert (await server.unary(CHECK)).status == NOT_SERVING


async def test_watch_tells_of_changes(server, gateway, monkeypatch):
    monkeypatch.setattr(grpc_health, "PERIOD_S", 0.001)
    whole, model, late = (server.stream(WATCH) for _ in range(3))
    whole.say(service="")
    model.say(service="add")
    late.say(service="new")
    assert [t.heard[0].status for t in (whole, model, late)] == [SERVING, SERVING, UNKNOWN]
    for version in ("1", "3"):
        gateway.models.set(ModelVersion("add", version, ModelState.UNAVAILABLE))
    assert (await model.until(2))[1].status == NOT_SERVING
    gateway.models.set(ModelVersion("new", "1"))
    assert (await late.until(2))[1].status == NOT_SERVING
    assert [m.status for m in await whole.until(2)] == [SERVING, NOT_SERVING]
    model.stream.cancel()
    await asyncio.sleep(0.01)
    assert len(model.heard) == 2
    gateway.draining = True
    await server.until(lambda: whole.call.ended and late.call.ended)
    assert whole.call.error.code is Code.UNAVAILABLE
    assert not model.call.ended


async def test_a_watcher_that_does_not_keep_up_is_told_the_last(
    server, gateway, monkeypatch, fake_call
):
    monkeypatch.setattr(grpc_health, "PERIOD_S", 0.001)
    call = fake_call()
    talk = server.stream(WATCH, call=call)
    talk.say()
    call.congested = True
    gateway.leaving = True
    await asyncio.sleep(0.01)
    assert len(talk.heard) == 1
    call.congested = False
    talk.stream.drained()
    assert [m.status for m in talk.heard] == [SERVING, NOT_SERVING]
    talk.stream.cancel()


async def test_watch_takes_one_message(server, monkeypatch):
    monkeypatch.setattr(grpc_health, "WATCHERS_MAX", 1)
    none, two, garbage, first, beyond = (server.stream(WATCH) for _ in range(5))
    none.stream.half_closed()
    two.say()
    two.say()
    garbage.say(b"\xff")
    for talk in (none, two, garbage):
        assert talk.call.error.code is Code.INVALID_ARGUMENT
    first.say()
    beyond.say()
    assert beyond.call.error.code is Code.RESOURCE_EXHAUSTED
    first.stream.cancel()


# --- reflection


@pytest.mark.parametrize("where", PATHS)
async def test_reflection(server, where):
    talk = server.stream(where)
    talk.say(list_services="*")
    talk.say(file_containing_symbol=INFERENCE, host="me")
    talk.say(file_containing_symbol=f"{INFERENCE}.ModelInfer")
    talk.say(file_by_filename="model_config.proto")
    talk.say(all_extension_numbers_of_type="inference.ModelConfig")
    talk.stream.half_closed()
    services, symbol, method, file, extensions = talk.heard
    assert [s.name for s in services.list_services_response.service] == sorted(SERVICES)
    assert symbol.valid_host == symbol.original_request.host == "me"
    for reply in (symbol, method):
        files = reply.file_descriptor_response.file_descriptor_proto
        assert [descriptor_pb2.FileDescriptorProto.FromString(f).name for f in files] == [
            "grpc_service.proto", "model_config.proto"
        ]  # fmt: skip
    assert len(file.file_descriptor_response.file_descriptor_proto) == 1
    assert extensions.all_extension_numbers_response.base_type_name == "inference.ModelConfig"
    assert talk.call.ended
    assert talk.call.error is None


async def test_what_reflection_does_not_know(server):
    talk = server.stream(PATHS[0])
    talk.say(file_containing_symbol="no.Such")
    talk.say(file_by_filename="no.proto")
    talk.say(file_containing_extension={"containing_type": "inference.ModelConfig"})
    talk.say(all_extension_numbers_of_type="no.Such")
    assert [m.error_response.error_code for m in talk.heard] == [5, 5, 5, 5]
    talk.say()
    assert talk.call.error.code is Code.INVALID_ARGUMENT

"""What counts as a model on disk, what is wrong with it, and where its artefact lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from penstock.server.model_config import All, Latest, Specific, VersionPolicy
from penstock.server.repository_layout import (
    CONFIG_BYTES_MAX,
    LayoutError,
    ModelDirectory,
    artefact,
    is_temporary,
    model_names,
    scan,
    versions_to_serve,
)


def put(path: Path, content: str | bytes = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def only(root: Path, **more: str) -> ModelDirectory:
    (model,) = scan([root], **more)
    return model


class TestScan:
    def test_model(self, root: Path) -> None:
        for version in ("1", "3", "10", "02", "v4", ".5", "0"):
            put(root / "m" / version / "model.onnx")
        put(root / "m" / "7")  # a file is no version
        put(root / "m" / "config.pbtxt", 'name: "m"')
        model = only(root)
        assert (model.name, model.path, model.versions) == ("m", root / "m", (1, 3, 10))
        assert model.config_text == 'name: "m"'
        assert model.config_path == root / "m" / "config.pbtxt"
        assert (model.problems, model.file, model.directory) == ((), False, root / "m")
        assert model.artefact(3, "model.onnx") == root / "m" / "3" / "model.onnx"

    def test_ordered_by_name_and_only_directories(self, root: Path) -> None:
        for name in ("b", "a", ".git", "c"):
            put(root / name / "1" / "model.onnx")
        put(root / "README.md")
        assert [model.name for model in scan([root])] == ["a", "b", "c"]

    def test_empty_repository(self, root: Path) -> None:
        assert scan([root]) == []
        assert scan([]) == []

    def test_loose_model_files(self, root: Path) -> None:
        for name in ("b.onnx", "a.ort", "notes.txt", ".c.onnx", "my net.onnx"):
            put(root / name)
        models = scan([root])
        assert [(m.name, m.path, m.versions, m.file, m.problems) for m in models] == [
            ("a", root / "a.ort", (1,), True, ()),
            ("b", root / "b.onnx", (1,), True, ()),
            ("my_net", root / "my net.onnx", (1,), True, ()),
        ]
        put(root / "m" / "1" / "model.onnx")
        assert [model.name for model in scan([root])] == ["a", "b", "m", "my_net"]
        put(root / "a.onnx")
        assert "more than one place" in scan([root])[0].problems[0]
        with pytest.raises(LayoutError, match=rf"1 is one version of a model.*: {root}$"):
            scan([root / "m" / "1"])

    def test_only_one(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        put(root / "a" / "1" / "model.onnx")
        put(root / "b" / "1" / "model.onnx")
        put(root / "c.onnx")
        assert [model.name for model in scan([root], only="b")] == ["b"]
        assert [model.name for model in scan([root], only="c")] == ["c"]
        assert scan([root], only="nobody") == []
        monkeypatch.setattr("penstock.server.repository_layout._scan_model", None)
        assert model_names([root]) == ["a", "b", "c"]  # without a look into the models

    def test_without_configuration(self, root: Path) -> None:
        put(root / "m" / "1" / "model.onnx")
        model = only(root)
        assert (model.config_text, model.config_path, model.problems) == (None, None, ())

    def test_no_version_directory(self, root: Path) -> None:
        put(root / "m" / "model.onnx")
        put(root / "good" / "1" / "model.onnx")
        good, bad = scan([root])
        assert good.problems == ()
        assert bad.problems == (
            f"no version directory in {root}/m: put the model file into {root}/m/1",
        )

    @pytest.mark.parametrize(
        ("content", "words"),
        [(b"\xff\xfe\x00", "utf-8"), (b" " * (CONFIG_BYTES_MAX + 1), "more than 1048576")],
    )
    def test_configuration_that_is_no_text(self, root: Path, content: bytes, words: str) -> None:
        put(root / "m" / "1" / "model.onnx")
        put(root / "m" / "config.pbtxt", content)
        (problem,) = only(root).problems
        assert f"cannot read the configuration of {root}/m" in problem
        assert words in problem

    def test_configuration_that_is_a_directory_or_a_broken_link(self, root: Path) -> None:
        (root / "a" / "1").mkdir(parents=True)
        (root / "a" / "config.pbtxt").mkdir()
        (root / "b" / "1").mkdir(parents=True)
        (root / "b" / "config.pbtxt").symlink_to("nowhere")
        assert ["cannot read the configuration" in m.problems[0] for m in scan([root])] == [
            True
        ] * 2

    def test_byte_order_mark(self, root: Path) -> None:
        put(root / "m" / "1" / "model.onnx")
        put(root / "m" / "config.pbtxt", b"\xef\xbb\xbfmax_batch_size: 1")
        assert only(root).config_text == "max_batch_size: 1"

    def test_named_configuration(self, root: Path) -> None:
        put(root / "m" / "1" / "model.onnx")
        put(root / "m" / "config.pbtxt", "plain")
        put(root / "m" / "configs" / "h100.pbtxt", "special")
        assert only(root, config_name="h100").config_text == "special"
        assert only(root, config_name="a100").config_text == "plain"
        assert only(root, config_name="../../m/config").config_text == "plain"

    def test_links_are_followed(self, root: Path, tmp_path: Path) -> None:
        put(tmp_path / "store" / "1" / "blob")
        (tmp_path / "store" / "1" / "model.onnx").symlink_to("blob")
        (root / "m").symlink_to(tmp_path / "store")
        assert only(root).artefact(1, "model.onnx") == root / "m" / "1" / "model.onnx"

    def test_broken_link_is_a_problem_of_that_model(self, root: Path) -> None:
        (root / "m").symlink_to("nowhere")
        assert "cannot read" in only(root).problems[0]

    @pytest.mark.skipif(os.geteuid() == 0, reason="SKIPPED LOUDLY: root reads everything")
    def test_unreadable_by_mode(self, root: Path) -> None:
        put(root / "m" / "1" / "model.onnx")
        (root / "m").chmod(0)
        try:
            assert "cannot read" in only(root).problems[0]
        finally:
            (root / "m").chmod(0o700)

    def test_unreadable(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        put(root / "m" / "1" / "model.onnx")
        put(root / "n" / "1" / "model.onnx")
        real = Path.iterdir

        def iterdir(path: Path) -> object:
            if path.name in ("m", "secret"):
                raise PermissionError(13, "Permission denied")
            return real(path)

        monkeypatch.setattr(Path, "iterdir", iterdir)
        bad, good = scan([root])
        assert bad.problems == (f"cannot read {root}/m: Permission denied",)
        assert good.problems == ()
        (root / "secret").mkdir()
        with pytest.raises(LayoutError, match="secret: Permission denied"):
            scan([root / "secret"])

    def test_unprintable_name(self, root: Path) -> None:
        put(root / "a\nb" / "1" / "model.onnx")
        assert "no usable model name" in only(root).problems[0]


class TestRoots:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(LayoutError, match=f"model repository {tmp_path}/nope does not exist"):
            scan([tmp_path / "nope"])

    def test_same_model_in_two_roots(self, tmp_path: Path) -> None:
        for root in ("r1", "r2"):
            put(tmp_path / root / "m" / "1" / "model.onnx")
        put(tmp_path / "r2" / "n" / "1" / "model.onnx")
        first, second, other = scan([tmp_path / "r1", tmp_path / "r2"])
        assert first.problems == second.problems
        (problem,) = first.problems
        assert f"{tmp_path}/r1/m, {tmp_path}/r2/m" in problem
        assert other.problems == ()

    def test_same_root_twice(self, root: Path, tmp_path: Path) -> None:
        put(root / "m" / "1" / "model.onnx")
        (tmp_path / "link").symlink_to(root)
        assert len(scan([root, root / "m" / "..", tmp_path / "link"])) == 1

    @pytest.mark.parametrize("configured", [True, False])
    def test_a_model_s_own_directory(self, root: Path, configured: bool) -> None:
        put(root / "1" / "model.onnx")
        if configured:
            put(root / "config.pbtxt")
        with pytest.raises(LayoutError, match="name the directory that holds it"):
            scan([root])

    def test_models_with_numbers_for_names(self, root: Path) -> None:
        put(root / "7" / "1" / "model.onnx")
        assert only(root).name == "7"

    @pytest.mark.parametrize(
        ("filename", "name"),
        [
            ("resnet50.onnx", "resnet50"),
            ("my model (v2).onnx", "my_model_v2"),
            ("yolo-v8.int8.onnx", "yolo-v8.int8"),
            ("模型.onnx", "model"),
        ],
    )
    def test_single_file(self, tmp_path: Path, filename: str, name: str) -> None:
        path = put(tmp_path / filename)
        model = only(path)
        assert (model.name, model.versions, model.problems) == (name, (1,), ())
        assert (model.file, model.directory) == (True, tmp_path)
        assert model.artefact(1, "model.onnx") == path

    def test_single_file_is_named_as_given(self, tmp_path: Path) -> None:
        put(tmp_path / "sha256-abc")
        link = tmp_path / "bert.onnx"
        link.symlink_to("sha256-abc")
        assert (only(link).name, only(link).path) == ("bert", link)

    def test_single_file_beside_a_repository(self, root: Path, tmp_path: Path) -> None:
        put(root / "m" / "1" / "model.onnx")
        assert [m.name for m in scan([root, put(tmp_path / "a.onnx")])] == ["a", "m"]
        doubled = scan([root, put(tmp_path / "m.onnx")])
        assert all("more than one place" in m.problems[0] for m in doubled)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Latest(), (10,)),
        (Latest(2), (2, 10)),
        (Latest(9), (1, 2, 10)),
        (All(), (1, 2, 10)),
        (Specific((1, 10, 11)), (1, 10)),
    ],
)
def test_versions_to_serve(policy: VersionPolicy, expected: tuple[int, ...]) -> None:
    assert versions_to_serve(policy, (10, 1, 2)) == expected
    assert versions_to_serve(policy, ()) == ()


@pytest.mark.parametrize(
    ("name", "temporary"),
    [
        ("model.onnx", False), ("m", False), ("tmp", False), ("a.temperature", False),
        (".model.onnx.Xa3", True), ("model.onnx.tmp", True), ("model.onnx~", True),
        ("model.onnx.PART", True), ("x.crdownload", True),
    ],
)  # fmt: skip
def test_names_of_unfinished_files(name: str, temporary: bool) -> None:
    assert is_temporary(name) is temporary


class TestArtefact:
    def test_file_directory_and_below(self, tmp_path: Path) -> None:
        put(tmp_path / "model.onnx")
        put(tmp_path / "saved" / "model.onnx")
        for name in ("model.onnx", "saved", "saved/model.onnx"):
            assert artefact(tmp_path, name) == tmp_path / name

    @pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/../../x", "/etc/passwd", "a\0b"])
    def test_names_that_lead_elsewhere(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(LayoutError, match="is not the name of a file inside"):
            artefact(tmp_path, name)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(LayoutError, match=r"no model\.onnx in .*; it is empty"):
            artefact(tmp_path, "model.onnx")
        put(tmp_path / "resnet.onnx")
        put(tmp_path / ".hidden")
        with pytest.raises(LayoutError, match=r"it holds resnet\.onnx\. Rename") as caught:
            artefact(tmp_path, "model.onnx")
        assert "default_model_filename" in str(caught.value)
        with pytest.raises(LayoutError, match="cannot read"):
            artefact(tmp_path / "gone", "model.onnx")

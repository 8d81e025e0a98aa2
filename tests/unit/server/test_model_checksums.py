"""Files that are not the ones that were meant are told from those that are, before a load."""

import hashlib
import os
import subprocess

import pytest

from penstock.backends.base import LoadError
from penstock.server.model_checksums import SUMS_FILENAME, verify, write_sums
from penstock.server.model_config import Checksum


@pytest.fixture
def version(tmp_path):
    """A version of two files, and what ``sha256sum`` says of them."""
    folder = tmp_path / "m" / "1"
    (folder / "more").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"graph")
    (folder / "more" / "weights.bin").write_bytes(b"weights" * 1000)
    sums(folder)
    return folder


def sums(folder):
    """Exactly the command that the error recommends."""
    subprocess.run(
        f"find -L . -type f ! -name {SUMS_FILENAME} -exec sha256sum {{}} + > {SUMS_FILENAME}",
        shell=True, check=True, cwd=folder,
    )  # fmt: skip


def check(version, **more):
    verify(version / "model.onnx", folder=version.parent, **more)


def test_whole_files_pass(version):
    check(version, required=True)


@pytest.mark.parametrize("file", ["model.onnx", "more/weights.bin"])
def test_another_file_is_refused_by_name(version, file):
    (version / file).write_bytes(b"other")
    with pytest.raises(LoadError, match=rf"{file} is not the file that SHA256SUMS lists"):
        check(version)


def test_a_file_that_is_not_listed_is_refused(version):
    (version / "more" / "extra.bin").write_bytes(b"x")
    with pytest.raises(LoadError, match=r"more/extra\.bin is not listed"):
        check(version)


def test_caches_of_python_do_not_count(version):
    (version / "__pycache__").mkdir()
    (version / "__pycache__" / "model.cpython-311.pyc").write_bytes(b"x")
    check(version)


def test_a_listed_file_that_is_missing_is_refused(version):
    (version / "more" / "weights.bin").unlink()
    with pytest.raises(LoadError, match=r"more/weights\.bin, which cannot be read"):
        check(version)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"no sum\n", "line 1 is not a line of sha256sum"),
        (b"\xff\xfe", "is not text"),
        (b"#" * (1 << 20) + b"\n", "larger than 1 MiB"),
        (b"a" * 64 + b"  ../../etc/passwd\n", "not listed|not a file inside"),
        (b"\\" + b"a" * 64 + b"  odd\\nname\n", "line 1"),
        (b"a" * 64 + b"  f\n" + b"b" * 64 + b"  f\n", "line 2 lists f again"),
    ],
)
def test_bad_lists(version, text, said):
    (version / SUMS_FILENAME).write_bytes(text)
    with pytest.raises(LoadError, match=said):
        check(version)


def test_a_name_outside_of_the_version_is_refused(version):
    with (version / SUMS_FILENAME).open("a") as file:
        file.write("a" * 64 + "  ../2/model.onnx\n")
    with pytest.raises(LoadError, match="not a file inside"):
        check(version)


def test_binary_marks_and_capitals_are_read(version):
    text = (version / SUMS_FILENAME).read_text()
    lines = [line.split(None, 1) for line in text.splitlines()]
    (version / SUMS_FILENAME).write_text(
        "# made by hand\n\n" + "".join(f"{digest.upper()} *{name}\n" for digest, name in lines)
    )
    check(version)


def test_without_a_list_nothing_is_checked_unless_one_is_wanted(version):
    (version / SUMS_FILENAME).unlink()
    check(version)
    with pytest.raises(LoadError, match=r"this server wants one; in .* run: find"):
        check(version, required=True)
    sums(version)
    check(version, required=True)


def test_a_model_that_is_one_file_needs_only_its_own_line(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"a")
    (tmp_path / "b.onnx").write_bytes(b"b")
    digest = hashlib.sha256(b"a").hexdigest()
    (tmp_path / SUMS_FILENAME).write_text(f"{digest}  a.onnx\n")
    verify(tmp_path / "a.onnx", folder=tmp_path)
    with pytest.raises(LoadError, match=r"b\.onnx is not listed"):
        verify(tmp_path / "b.onnx", folder=tmp_path)


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_what_the_configuration_states_is_checked_too(version, algorithm):
    (version / SUMS_FILENAME).unlink()
    right = hashlib.new(algorithm, b"graph").hexdigest()
    check(version, stated=[Checksum(algorithm, "1/model.onnx", right.upper())])
    wrong = hashlib.new(algorithm, b"grave").hexdigest()
    with pytest.raises(LoadError, match=rf"its {algorithm.upper()} is {right}, not {wrong}"):
        check(version, stated=[Checksum(algorithm, "1/model.onnx", wrong)])


@pytest.mark.parametrize("instead", ["link", "folder"])
def test_a_list_that_cannot_be_read_is_no_leave_to_go_without(version, instead):
    (version / SUMS_FILENAME).unlink()
    if instead == "link":
        (version / SUMS_FILENAME).symlink_to("nowhere")
    else:
        (version / SUMS_FILENAME).mkdir()
    with pytest.raises(LoadError, match="cannot read"):
        check(version)


def test_the_list_of_a_version_holds_for_an_artefact_in_a_folder_of_it(version):
    (version / "more" / "model.onnx").write_bytes(b"x")
    with pytest.raises(LoadError, match=r"more/model\.onnx is not listed"):
        verify(version / "more" / "model.onnx", folder=version.parent)


def test_links_of_a_model_store_are_listed_by_the_recommended_command(version):
    (version / "model.onnx").rename(version.parent / "blob")
    (version / "model.onnx").symlink_to("../blob")
    sums(version)
    check(version, required=True)


def test_links_without_an_end_are_given_up(version):
    for name in ("a", "b"):
        (version / name).symlink_to(".")
    with pytest.raises(LoadError, match="holds more than 10000 files"):
        check(version)


def test_a_pipe_is_not_waited_for(version):
    (version / "model.onnx").unlink()
    os.mkfifo(version / "model.onnx")
    with pytest.raises(LoadError, match=r"lists model\.onnx, which is not a file"):
        check(version)


def test_lists_of_windows_and_names_with_odd_spaces(version):
    (version / "two\u2028words").write_bytes(b"x")
    sums(version)
    text = (version / SUMS_FILENAME).read_bytes()
    (version / SUMS_FILENAME).write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
    check(version)


def test_checksums_of_another_version_are_not_those_that_are_wanted(version):
    (version / SUMS_FILENAME).unlink()
    files = {"1/model.onnx": b"graph", "1/more/weights.bin": b"weights" * 1000}
    stated = [Checksum("sha256", n, hashlib.sha256(data).hexdigest()) for n, data in files.items()]
    check(version, stated=stated, required=True)
    other = version.parent / "2"
    other.mkdir()
    (other / "model.onnx").write_bytes(b"swapped")
    check(other, stated=stated)
    with pytest.raises(LoadError, match="this server wants one"):
        check(other, stated=stated, required=True)


def test_a_list_that_was_written_here_is_what_sha256sum_checks(version):
    (version / SUMS_FILENAME).unlink()
    write_sums(version)
    subprocess.run(["sha256sum", "--check", "--strict", SUMS_FILENAME], cwd=version, check=True)
    check(version, required=True)

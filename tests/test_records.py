"""Nothing in a file of another package is ever run, and one that is not what it should be is refused by a sentence."""

import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from ase.calculators.calculator import InputError

from ase_equivariant import importers, load_potential
from ase_equivariant.importers.records import Content, ForeignFileError, read_records

FILES = Path(__file__).parents[2] / "shared" / "checkpoints" / "mace"
needs_files = pytest.mark.skipif(not FILES.is_dir(), reason=f"needs the model files in {FILES}")


@needs_files
@pytest.mark.parametrize(("key", "value"), [("heads", []), ("r_max", {}), ("r_max", 0.0), ("interactions", None)])
def test_a_model_without_its_usual_layout_is_refused(key, value, monkeypatch):
    root = read_records((FILES / "trained.model").read_bytes())
    monkeypatch.setattr(importers, "read_content", lambda data: Content(root))
    assert importers.import_model(b"").heads
    table = next(table for table in (root.state["_modules"], root.state["_buffers"], root.state) if key in table)
    monkeypatch.setitem(table, key, value)
    with pytest.raises(ForeignFileError):
        importers.import_model(b"")


def archive(program: bytes, **files: bytes) -> bytes:
    """A zip as torch.save writes it, around any pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in {"data.pkl": program, "byteorder": b"little", **files}.items():
            file.writestr(f"model/{name}", content)
    return buffer.getvalue()


def program(module: str, name: str, *arguments) -> bytes:
    """A pickle that calls module.name(*arguments)."""
    call = f"c{module}\n{name}\n".encode()
    return b"\x80\x02" + call + pickle.dumps(arguments, 2)[2:-1] + b"R."


class Touch:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize(
    ("malicious", "message"),
    [
        (pickle.dumps(Touch(), 2), "it names pathlib"),
        (program("os", "system", "touch executed"), "it names os.system"),
        (program("posix", "system", "touch executed"), "it names posix.system"),
        (program("__builtin__", "eval", "open('executed', 'w')"), "it names __builtin__.eval"),
        (program("builtins", "exec", "open('executed', 'w')"), "it names builtins.exec"),
        (program("__builtin__", "getattr", {}, "clear"), "it asks for the attribute 'clear'"),
        (program("torch", "load", "executed"), "it names torch.load"),
        (program("torch.jit", "load", "executed"), "it names torch.jit.load"),
        (program("_codecs", "encode", "text", "rot13"), "it encodes text as 'rot13'"),
        (program("torch._utils", "_rebuild_tensor_v2", torch.float32, 0, (10**12,), (0,)), "a tensor has no storage"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "an enormous table"),
        (b"\x80\x02ctorch._utils\n_rebuild_parameter\n}X\x0c\x00\x00\x00__defaults__)sb.", "it changes a function"),
        (program("collections", "OrderedDict"), "a checkpoint without the arguments of a model"),
        (b"\x80\x02}q", "it is damaged"),
        (b"", "it is damaged"),
    ],
)
def test_malicious_pickles_are_refused_by_name_and_do_nothing(malicious, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.model").write_bytes(archive(malicious))
    with pytest.raises(InputError, match="cannot import bad.model") as error:
        load_potential("bad.model")
    assert message in str(error.value)
    assert "nothing in it was executed" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.model"]


def test_control_the_same_pickle_runs_code_when_it_is_simply_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(program("os", "system", "touch executed"))
    assert (tmp_path / "executed").exists()


def test_classes_of_the_file_become_inert_records():
    build = b"cmace.modules.models\nMACE\n)\x81}q\x00(X\x01\x00\x00\x00aK\x01ub."
    record = read_records(archive(b"\x80\x02" + build))
    assert record.name == "mace.modules.models.MACE"
    assert record.get("a") == 1
    with pytest.raises(ForeignFileError, match="sets an attribute"):
        record.a = 2


def test_zip_bombs_are_refused():
    with pytest.raises(ForeignFileError, match="unpacks to far more than its size"):
        read_records(archive(program("collections", "OrderedDict"), **{"data/0": bytes(10**7)}))


@needs_files
@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9, 0.999])
def test_truncated_files_are_named(keep, tmp_path):
    data = (FILES / "trained.model").read_bytes()
    (tmp_path / "half.model").write_bytes(data[: int(keep * len(data))])
    with pytest.raises(InputError, match=r"cannot import .*half\.model: it is damaged"):
        load_potential(tmp_path / "half.model")

"""Nothing in a file of another package is ever run, and one that is not what it should be is refused by a sentence."""

import io
import pickle
import tracemalloc
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from ase.calculators.calculator import InputError

from ase_equivariant import importers, load_potential
from ase_equivariant.importers import _rebuild, recognises
from ase_equivariant.importers.records import LEGACY, Content, ForeignFileError, read_content
from ase_equivariant.importers.unpickling import record, tensors_out
from ase_equivariant.text import said, shown

FILES = Path(__file__).parents[2] / "shared" / "checkpoints" / "mace"
needs_files = pytest.mark.skipif(not FILES.is_dir(), reason=f"needs the model files in {FILES}")


@needs_files
@pytest.mark.parametrize(("key", "value"), [("heads", []), ("r_max", {}), ("r_max", 0.0), ("interactions", None)])
def test_a_model_without_its_usual_layout_is_refused(key, value, monkeypatch):
    root = read_content((FILES / "trained.model").read_bytes()).root
    monkeypatch.setattr(importers, "read_content", lambda data: Content(root))
    assert importers.import_model(b"").heads
    table = next(table for table in (root.state["_modules"], root.state["_buffers"], root.state) if key in table)
    monkeypatch.setitem(table, key, value)
    with pytest.raises(ForeignFileError):
        importers.import_model(b"")


def archive(program: bytes, compression: int = zipfile.ZIP_STORED, **files: bytes) -> bytes:
    """A zip as torch.save writes it, around any pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in {"data.pkl": program, "byteorder": b"little", **files}.items():
            file.writestr(f"model/{name}", content)
    return buffer.getvalue()


def program(module: str, name: str, *arguments) -> bytes:
    """A pickle that calls module.name(*arguments)."""
    call = f"c{module}\n{name}\n".encode()
    return b"\x80\x02" + call + pickle.dumps(arguments, 2)[2:-1] + b"R."


NESTED = []  # a million entries, were it written out
for _ in range(20):
    NESTED = [NESTED, NESTED]


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
        (program("types", "CodeType", 0), "it names types.CodeType"),
        (program("types", "FunctionType", 0), "it names types.FunctionType"),
        (program("marshal", "loads", b""), "it names marshal.loads"),
        (program("functools", "partial", 0), "it names functools.partial"),
        (program("operator", "attrgetter", "system"), "it names operator.attrgetter"),
        (program("importlib", "import_module", "os"), "it names importlib.import_module"),
        (program("__main__", "<lambda>"), "it names __main__.<lambda>"),
        (program("torch._utils", "_rebuild_tensor", 0), "it names torch._utils._rebuild_tensor"),
        (program("torch.storage", "_load_from_bytes", b""), "it names torch.storage._load_from_bytes"),
        (program("os\x1b[2J", "system"), "it names os\\x1b[2J.system"),
        (program("__builtin__", "getattr", {}, NESTED), "it asks for the attribute [[[...], [...]]"),
        (program("_codecs", "encode", "text", NESTED), "it encodes text as [[[...], [...]]"),
        (program("mace." + 999 * "a", "A"), "a class with more than 1000 characters"),
        (b"\x80\x02\x82\x01.", "names an extension"),
        (b"\x80\x02X\x01\x00\x00\x00aQ.", "not a tensor's storage"),
        (b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00asb.", "it is damaged"),
        (b"\x80\x02}(" + b")" + b"\x85" * 20_000 + b"K\x01u.", "nests more than 10000 entries"),
        (b"\x80\x02}()" + b"q\x00h\x00\x86" * 40 + b"K\x01u.", "nests more than 10000 entries"),
        (b"\x80\x02\x8a\xff" + b"\x01" * 10, "it is damaged"),
        (b"\x80\x04\x96" + (2**40).to_bytes(8, "little") + b".", "it is damaged"),
        (b"\x80\x02\x8a\x0a" + (2**70).to_bytes(10, "little") + b".", "an enormous table or number"),
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
    record = read_content(archive(b"\x80\x02" + build)).root
    assert record.name == "mace.modules.models.MACE"
    assert record.get("a") == 1
    with pytest.raises(ForeignFileError, match="sets an attribute"):
        record.a = 2


def test_compressions_that_torch_does_not_use_are_refused():
    """Some of them take gigabytes before the first byte comes."""
    with pytest.raises(ForeignFileError, match="compressed in a way that torch does not use"):
        read_content(archive(program("collections", "OrderedDict"), zipfile.ZIP_LZMA))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_frozen_module_is_refused_with_the_reason():
    """Freezing makes constants of the weights, under no name."""
    module = torch.jit.script(torch.nn.Sequential(torch.nn.Linear(2, 3)).eval())
    for made, reason in {module: "it holds torch.nn.modules.container.Seq", torch.jit.freeze(module): "frozen"}.items():
        buffer = io.BytesIO()
        torch.jit.save(made, buffer)
        with pytest.raises(ForeignFileError, match=reason):
            importers.import_model(buffer.getvalue())


def test_zip_bombs_are_refused():
    with pytest.raises(ForeignFileError, match="unpacks to far more than its size"):
        read_content(archive(program("collections", "OrderedDict"), zipfile.ZIP_DEFLATED, **{"data/0": bytes(10**7)}))


@needs_files
@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9, 0.999])
def test_truncated_files_are_named(keep, tmp_path):
    data = (FILES / "trained.model").read_bytes()
    (tmp_path / "half.model").write_bytes(data[: int(keep * len(data))])
    with pytest.raises(InputError, match=r"cannot import .*half\.model: it is damaged"):
        load_potential(tmp_path / "half.model")


def tensor(storage: str, count: int, size: tuple, stride: tuple, offset: int = 0) -> bytes:
    """A pickle of one tensor in storage 0."""
    key = pickle.dumps(("storage", None, "0", "cpu", count), 2)[2:-1].replace(b"N", f"ctorch\n{storage}\n".encode())
    pieces = b"".join(pickle.dumps(item, 2)[2:-1] for item in (offset, size, stride))
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + key + b"Q" + pieces + b"tR."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tensor("DoubleStorage", 10**12, (2,), (1,)), "storage 0 has 16 bytes instead of 8000000000000"),
        (tensor("DoubleStorage", -2, (2,), (1,)), "storage 0 has 16 bytes instead of -16"),
        (tensor("FloatStorage", 2, (2,), (1,)), "storage 0 has 16 bytes instead of 8"),
        (tensor("DoubleStorage", 2, (10**6, 10**6), (0, 0)), "larger than its storage"),
        (tensor("DoubleStorage", 2, (2,), (1,), 1), "it is damaged"),
        (tensor("DoubleStorage", 2, (), ([0],), [1]), "a tensor's size is not of whole numbers"),
        (tensor("DoubleStorage", [2], (2,), (1,)), "not a tensor's storage"),
        (tensor("DoubleStorage", 2, (2,), (1,), -1), "larger than its storage"),
        (tensor("DoubleStorage", 2, (-1, -2), (1, 1)), "larger than its storage"),
    ],
)
def test_tensors_of_the_wrong_size_are_refused(content, message):
    with pytest.raises(ForeignFileError, match=message):
        read_content(archive(content, **{"data/0": bytes(16)}))
    assert read_content(archive(tensor("DoubleStorage", 2, (2,), (1,)), **{"data/0": bytes(16)})).root.tolist() == [
        0,
        0,
    ]


def test_entries_that_are_not_added_up_are_not_read():
    """What torch notes for debugging packs so well that files have more of it than twice their size."""
    content = tensor("DoubleStorage", 2, (2,), (1,))
    other = content.replace(b"X\x01\x00\x00\x000", b"X\x0b\x00\x00\x000.debug_pkl")
    assert other != content
    entries = {"data/0": bytes(16), "data/0.debug_pkl": bytes(16), "code/a.py.debug_pkl": bytes(10**6)}
    assert read_content(archive(content, zipfile.ZIP_DEFLATED, **entries)).root.tolist() == [0, 0]
    with pytest.raises(ForeignFileError, match=r"it lacks 'data/0\.debug_pkl'"):
        read_content(archive(other, zipfile.ZIP_DEFLATED, **entries))


@pytest.mark.parametrize(
    ("usual", "other"),
    [
        (b"\x80\x02(K\x01t.", b"\x80\x04(K\x01\x91."),  # a tuple, a frozen set
        (b"\x80\x02ccollections\nOrderedDict\n)R.", b"(icollections\nOrderedDict\n."),
        (b"\x80\x02ccollections\nOrderedDict\n)R.", b"\x80\x02(ccollections\nOrderedDict\no."),
        (b"\x80\x02cmace.a\nA\n)\x81.", b"\x80\x04cmace.a\nA\n)}\x92."),
    ],
    ids=["frozenset", "INST", "OBJ", "NEWOBJ_EX"],
)
def test_instructions_that_torch_does_not_write_are_refused(usual, other):
    read_content(archive(usual))
    with pytest.raises(ForeignFileError, match="a frozen set or an instruction that torch does not write"):
        read_content(archive(other))


@pytest.mark.parametrize(
    ("call", "given"),
    [
        (b"c_codecs\nencode\n", b"q\x00X\x06\x00\x00\x00latin1\x86R0"),
        (b"cmace.a\nA\n", b"q\x00\x85R0"),
        (b"cmace.a\nA\n", b"q\x00\x85\x810"),
        (b"cmace.a\nA\n)\x81", b"q\x00b0"),
    ],
    ids=["encode", "REDUCE", "NEWOBJ", "BUILD"],
)
def test_one_long_text_given_to_many_calls_is_refused(call, given):
    """A program of a megabyte could make terabytes of copies."""

    def calls(count: int) -> bytes:
        text = b"X" + (10**5).to_bytes(4, "little") + bytes(10**5)
        return archive(b"\x80\x02" + call + text + given + count * (call + given.replace(b"q", b"h")) + b"N.")

    assert read_content(calls(10)).root is None
    with pytest.raises(ForeignFileError, match="its calls are given more than 8388608 entries and characters"):
        read_content(calls(100))


def test_values_in_messages_are_cut_while_they_are_made():
    tables = OrderedDict()
    for _ in range(20):
        tables = OrderedDict(a=tables, b=tables)
    assert shown(tables) == "{'a': {'a': {...}, 'b': {...}}, 'b': {'a': {...}, 'b': {...}}}"
    assert shown(NESTED) == "[[[...], [...]], [[...], [...]]]"
    assert shown("a" * 10**6) == f"'{'a' * 47}...{'a' * 48}'"
    assert (said("a"), said(["a"]), said("a" * 10**6)) == ("a", "['a']", "a" * 100)


def test_a_thousand_tensors_of_one_storage_share_its_memory():
    buffer = io.BytesIO()
    whole = torch.zeros(1000, dtype=torch.float64)
    torch.save([whole.view(1000) for _ in range(1000)], buffer)
    tensors = [tensors_out(entry) for entry in read_content(buffer.getvalue()).root]
    assert len({tensor.data_ptr() for tensor in tensors}) == 1


def test_a_zip_entry_that_lies_about_its_size_is_read_no_further():
    honest = archive(tensor("DoubleStorage", 1, (1,), (1,)), zipfile.ZIP_DEFLATED, **{"data/0": bytes(10**8)})
    data = honest.replace((10**8).to_bytes(4, "little"), (8).to_bytes(4, "little"))
    assert data != honest
    tracemalloc.start()
    with pytest.raises(ForeignFileError, match="it is damaged"):
        read_content(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**7


def test_files_from_before_zip_archives_are_read():
    content = {"a": torch.arange(6.0).reshape(2, 3).T, "b": [torch.arange(3), torch.zeros(0)], "c": "text"}
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    root = read_content(buffer.getvalue()).root
    assert (tensors_out(root["a"]) == content["a"]).all()
    assert tensors_out(root["b"][0]).tolist() == [0, 1, 2]
    assert root["c"] == "text"


def test_modules_from_before_zip_archives_become_records():
    module = torch.nn.Sequential(torch.nn.Linear(2, 3))
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(module, buffer, _use_new_zipfile_serialization=False)
    root = read_content(buffer.getvalue()).root
    assert root.name == "torch.nn.modules.container.Sequential"
    assert (root.get("0.weight") == module[0].weight).all()


def legacy(content: bytes, keys: tuple = ()) -> bytes:
    """A file as torch.save wrote it before zip archives, around any pickle."""
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    return LEGACY + pickle.dumps(1001, 2) + pickle.dumps(machine, 2) + content + pickle.dumps(list(keys), 2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (legacy(program("os", "system", "touch executed")), "it names os.system"),
        (LEGACY + program("os", "system", "touch executed"), "it"),
        (legacy(tensor("DoubleStorage", 10**12, (2,), (1,)), ("0",)), "it is damaged|larger than the file"),
        (legacy(tensor("DoubleStorage", 2, (2,), (1,)), ("0",)) + bytes(24), "has 0 elements instead of 2"),
        (legacy(tensor("DoubleStorage", 2, (2,), (1,))) + bytes(24), "it lacks the storages 0"),
        (legacy(tensor("DoubleStorage", 2, (2,), (1,)), ("1",)) + bytes(24), "it lacks '1'"),
        (LEGACY, "it is damaged"),
        (bytes(257) + b"ustar" + bytes(300), "a tar file"),
    ],
)
def test_old_files_that_are_not_data_are_refused(data, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ForeignFileError, match=message):
        read_content(data)
    assert list(tmp_path.iterdir()) == []
    assert recognises(data)


@pytest.mark.parametrize("levels", [1, 18])
def test_modules_within_themselves_or_multiplied_are_refused(levels):
    """A pickle of a few bytes can share a module at each level, or put it into itself."""
    modules = [record("mace.modules.models.MACE", {}) for _ in range(levels)]
    for module, inner in zip(modules, [*modules[1:], modules[0] if levels == 1 else record("mace.A", {})]):
        module.state["_modules"] = {"a": inner, "b": inner}
    with pytest.raises(ForeignFileError, match="modules hold each other"):
        _rebuild(Content(modules[0]))


def test_inert_parts_of_genuine_files_stay_closed():
    """`reduce_graph_module` holds source text, `__codegen__` compiled code: both are kept as they are."""
    source = {"_code": "import os; os.system('touch executed')"}
    record = read_content(archive(program("torch.fx.graph_module", "reduce_graph_module", source, "import os"))).root
    assert record.name == "torch.fx.graph_module.reduce_graph_module"
    assert record.args == (source, "import os")
    tanh = read_content(
        archive(b"\x80\x02c__builtin__\ngetattr\n(ctorch._C\n_VariableFunctionsClass\nX\x04\x00\x00\x00tanhtR.")
    ).root
    assert tanh.name == "torch.tanh"


@needs_files
def test_a_compiled_mace_is_the_model_it_was_made_from(monkeypatch):
    def forbidden(*arguments, **options):
        raise AssertionError("the file was given to torch")

    monkeypatch.setattr("torch.jit.load", forbidden)
    compiled, plain = (
        importers.import_model((FILES / f"{name}.model").read_bytes()) for name in ("trained_compiled", "trained")
    )
    assert compiled.architecture.config == plain.architecture.config
    ours, theirs = compiled.state_dict(), plain.state_dict()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    assert len(theirs) > 10

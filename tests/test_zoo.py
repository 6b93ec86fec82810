"""Published models: named, licensed, downloaded once, and never half or wrong, whatever the network does."""

import errno
import hashlib
import io
import os
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ase import Atoms
from ase.calculators.calculator import InputError
from ase.data import atomic_numbers
from tiny import tiny_potential

from ase_equivariant import EquivariantCalculator, available_models, download, load_potential, published, zoo
from ase_equivariant.checkpoint import to_bytes

CONTENT = to_bytes(tiny_potential())
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NEQUIX = Path(__file__).parents[2] / "shared" / "checkpoints" / "nequix"


class Site(BaseHTTPRequestHandler):
    """A site with one file that can be told to misbehave; it remembers the ranges that it was asked for."""

    def __init__(self, state, *args):
        self.state = state
        super().__init__(*args)

    def do_GET(self):  # noqa: N802
        self.state["asked"].append(self.headers.get("Range"))
        answer = self.state["answers"].pop(0) if self.state["answers"] else "all"
        getattr(self, f"answer_{answer}")()

    def answer_all(self, cut=None, kind="application/octet-stream"):
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        rest = self.state["content"][start:]
        if not rest:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[:cut])

    def answer_cut(self):
        self.answer_all(cut=1000)

    def answer_nothing(self):
        self.answer_all(cut=0)

    def answer_page(self):
        self.answer_all(kind="text/html; charset=utf-8")

    def answer_missing(self):
        self.send_error(404)

    def answer_silence(self):
        self.state["reached"].set()
        self.state["end"].wait(20)

    def answer_from_the_start(self):
        del self.headers["Range"]
        self.answer_all()

    def log_message(self, *args):
        pass


@pytest.fixture
def site():
    state = {"content": CONTENT, "asked": [], "answers": [], "reached": threading.Event(), "end": threading.Event()}
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Site, state))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    state["url"] = f"http://127.0.0.1:{server.server_address[1]}/published.safetensors"
    yield state
    state["end"].set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ASE_EQUIVARIANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ASE_EQUIVARIANT_ACCEPT", raising=False)
    monkeypatch.delenv("ASE_EQUIVARIANT_MIRROR", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def model(site, cache, monkeypatch):
    """The table with one model in it, called `tiny`."""
    entry = {"url": site["url"], "size": len(CONTENT), "sha256": SHA256, "license": "MIT", "elements": ["H"]}
    entry |= {"level_of_theory": "none", "training_data": "none", "citation": "Nobody 2026"}
    monkeypatch.setattr(published, "_table", lambda: {"licenses": REAL["licenses"], "models": {"tiny": entry}})
    return entry


REAL = published._table()


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_the_table_is_complete():
    assert len(REAL["models"]) >= 26
    for name, entry in REAL["models"].items():
        assert entry["url"].startswith("https://")
        assert Path(entry["url"]).suffix in (".model", ".nqx"), name
        assert len(bytes.fromhex(entry["sha256"])) == 32
        assert entry["license"] in REAL["licenses"]
        assert entry["elements"] == 89 or all(symbol in atomic_numbers for symbol in entry["elements"])
        assert all(entry[key] for key in published.FACTS)
        assert name == name.lower()
    assert not REAL["licenses"]["ASL"]["open"]


@pytest.mark.skipif(not NEQUIX.is_dir(), reason=f"needs the model files in {NEQUIX}")
@pytest.mark.parametrize("name", ["nequix-mp-1", "nequix-omat-1"])
def test_hashes_and_sizes_are_those_of_the_published_files(name):
    content = (NEQUIX / f"{name}.nqx").read_bytes()
    entry = REAL["models"][name]
    assert (hashlib.sha256(content).hexdigest(), len(content)) == (entry["sha256"], entry["size"])


def test_published_models_are_listed_beside_the_shipped_ones():
    assert available_models(published=True) == available_models() + published.published_models()
    assert "nequix-mp-1" not in available_models()


def test_a_name_is_downloaded_once_and_then_works_without_a_network(model, site, cache, capfd):
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.8]])
    atoms.calc = EquivariantCalculator("tiny", backend="eager")
    assert atoms.get_forces().any()
    assert atoms.calc.parameters["model"] == "tiny"
    assert atoms.calc.parameters["sha256"] == SHA256
    assert "downloading tiny from http://" in capfd.readouterr().err
    assert files(cache) == ["tiny.safetensors"]
    metadata = load_potential("tiny").metadata
    assert (metadata["name"], metadata["citation"]) == ("tiny", "Nobody 2026")
    assert "citation" not in load_potential(published.cached_file("tiny")).metadata
    assert site["asked"] == [None]


def test_what_was_cut_is_continued_where_it_ended(model, site):
    site["answers"] = ["cut", "cut"]
    assert published.obtain("tiny").read_bytes() == CONTENT
    assert site["asked"] == [None, "bytes=1000-", "bytes=2000-"]


def test_a_server_that_cannot_continue_gives_the_whole_file(model, site):
    site["answers"] = ["cut", "from_the_start"]
    assert published.obtain("tiny").read_bytes() == CONTENT


def test_a_dead_connection_is_given_up_and_continued_when_asked_again(model, site, cache):
    site["answers"] = ["cut", "nothing", "nothing", "nothing"]
    with pytest.raises(InputError, match="connection was cut; 1000 bytes are kept, ask again to continue"):
        published.obtain("tiny")
    assert files(cache) == ["tiny.safetensors.part"]
    assert published.obtain("tiny").read_bytes() == CONTENT
    assert site["asked"][-1] == "bytes=1000-"
    assert files(cache) == ["tiny.safetensors"]


def test_a_server_that_says_nothing_is_given_up(model, site, cache, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.05)
    site["answers"] = ["silence"] * download.ATTEMPTS
    with pytest.raises(InputError, match="timed out"):
        published.obtain("tiny")
    assert len(site["asked"]) == download.ATTEMPTS
    assert files(cache) == []


def put_part(cache, content):
    (cache / "models").mkdir(parents=True)
    (cache / "models" / "tiny.safetensors.part").write_bytes(content)


def test_a_part_that_is_complete_is_only_renamed(model, site, cache):
    put_part(cache, CONTENT)
    assert published.obtain("tiny").read_bytes() == CONTENT
    assert site["asked"] == []
    assert files(cache) == ["tiny.safetensors"]


def test_a_part_of_another_file_is_thrown_away(model, site, cache):
    put_part(cache, b"another" + CONTENT[7:1000])
    assert published.obtain("tiny").read_bytes() == CONTENT
    assert site["asked"] == ["bytes=1000-", None]


def test_a_part_that_is_longer_than_the_file_is_thrown_away(model, cache):
    put_part(cache, CONTENT + b"more")
    assert published.obtain("tiny").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("answer", "message"), [("missing", "the server says 404"), ("page", "is a web page, not a model")]
)
def test_what_is_not_there_is_said_and_leaves_nothing(answer, message, model, site, cache):
    site["answers"] = [answer]
    with pytest.raises(InputError, match=message):
        published.obtain("tiny")
    assert files(cache) == []
    assert published.obtain("tiny").read_bytes() == CONTENT


def test_a_file_with_another_hash_is_not_kept(model, site, cache):
    site["content"] = CONTENT[:-1] + b"x"
    with pytest.raises(InputError, match=f"instead of {SHA256}; it was not kept"):
        published.obtain("tiny")
    assert files(cache) == []
    site["content"] = CONTENT
    assert published.obtain("tiny").read_bytes() == CONTENT


def test_a_copy_that_was_damaged_is_fetched_again(model, site):
    published.obtain("tiny").write_bytes(b"damaged")
    assert published.obtain("tiny").read_bytes() == CONTENT
    assert len(site["asked"]) == 2


class FullDisk(io.FileIO):
    def write(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_said_and_leaves_nothing(model, cache, monkeypatch):
    monkeypatch.setattr(download, "open", FullDisk, raising=False)
    with pytest.raises(InputError, match="No space left on device; make room there, or set ASE_EQUIVARIANT_CACHE"):
        published.obtain("tiny")
    assert files(cache) == []
    monkeypatch.undo()


def test_a_cache_that_cannot_be_written_is_said(model, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ASE_EQUIVARIANT_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot keep tiny.safetensors in .*; make room there, or set ASE_EQUIVARIANT"):
        published.obtain("tiny")


def test_without_a_network_the_reason_is_given(model, cache):
    model["url"] = "http://127.0.0.1:9/published.safetensors"
    with pytest.raises(InputError, match="cannot download .*Connection refused.*is there a network"):
        published.obtain("tiny")
    assert files(cache) == []


def test_without_a_network_a_mirror_serves(model, site, tmp_path, monkeypatch):
    monkeypatch.setenv("ASE_EQUIVARIANT_MIRROR", str(tmp_path))
    (tmp_path / "published.safetensors").write_bytes(CONTENT)
    assert zoo.resolve("tiny") == tmp_path / "published.safetensors"
    assert site["asked"] == []
    (tmp_path / "published.safetensors").write_bytes(b"other")
    with pytest.raises(InputError, match="it is not the file that was published"):
        zoo.resolve("tiny")
    (tmp_path / "published.safetensors").unlink()
    assert zoo.resolve("tiny").read_bytes() == CONTENT


def two_downloads(site, cache):
    """Processes that are ready to fetch the same file."""
    code = f"""
import sys
from pathlib import Path
from ase_equivariant.download import download
print("ready", flush=True)
sys.stdin.readline()
download({site["url"]!r}, Path({str(cache)!r}) / "models" / "a.safetensors", {SHA256!r})
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[1], **pipes) for _ in range(2)]
    assert [process.stdout.readline() for process in both] == ["ready\n"] * 2
    return both


def test_two_processes_at_once_download_once(site, cache):
    both = two_downloads(site, cache)
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate()[0] for process in both] == ["", ""]
    assert [process.returncode for process in both] == [0, 0]
    assert (cache / "models" / "a.safetensors").read_bytes() == CONTENT
    assert site["asked"] == [None]


def test_a_process_that_is_killed_does_not_hinder_the_other(site, cache):
    site["answers"] = ["silence"]
    first, second = two_downloads(site, cache)
    first.stdin.write("go\n")
    first.stdin.flush()
    assert site["reached"].wait(20)
    second.stdin.write("go\n")
    second.stdin.flush()
    first.kill()
    first.communicate()
    assert second.communicate()[0] == ""
    assert second.returncode == 0
    assert files(cache) == ["a.safetensors"]
    assert site["asked"] == [None, None]


def test_progress_counts_the_bytes_of_the_whole_file(site, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "CHUNK", 4096)
    site["answers"] = ["cut"]
    seen = []
    download.download(site["url"], tmp_path / "a", SHA256, lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(seen) > 2
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert {total for _, total in seen} == {len(CONTENT)}


def test_a_licence_that_is_not_open_is_accepted_once(model, site, cache):
    model["license"] = "ASL"
    with pytest.raises(InputError, match=r"Academic Software License \(https.*--accept ASL"):
        published.obtain("tiny")
    assert site["asked"] == []
    assert published.accept("tiny") == "ASL"
    assert published.obtain("tiny").read_bytes() == CONTENT
    assert (cache / "accepted" / "ASL").is_file()


def test_a_licence_can_be_accepted_in_the_environment(model, monkeypatch):
    model["license"] = "ASL"
    monkeypatch.setenv("ASE_EQUIVARIANT_ACCEPT", "other,ASL")
    assert published.obtain("tiny").read_bytes() == CONTENT
    monkeypatch.delenv("ASE_EQUIVARIANT_ACCEPT")
    with pytest.raises(InputError, match="is not open"):
        published.obtain("tiny")


def test_only_licences_of_the_table_can_be_accepted(model, cache):
    with pytest.raises(InputError, match="'BSD' is neither a published model nor a licence; licences are ASL"):
        published.accept("BSD")
    assert published.accept("tiny") == "MIT"
    assert files(cache) == []


def test_a_published_name_with_a_typo_gets_a_hint():
    with pytest.raises(InputError, match="unknown model 'nequix-mp1'; did you mean nequix-mp-1 or"):
        zoo.resolve("nequix-mp1")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mace_mlearn", "did you mean mace-mlearn\\?"),
        ("MACE-MP-0", "did you mean mace-mp-0-large or mace-mp-0-medium or mace-mp-0-small"),
        ("mace-off23", "did you mean mace-off23-large or"),
        ("omat", "did you mean .*-omat-"),
    ],
)
def test_a_part_of_names_brings_up_those_that_contain_it(name, hint):
    with pytest.raises(InputError, match=hint):
        zoo.resolve(name)


def test_a_name_may_be_a_path_object():
    shipped = available_models()[0]
    assert zoo.resolve(Path(shipped)) == zoo.resolve(shipped)
    assert EquivariantCalculator(Path(shipped), "cpu").parameters["model"] == shipped
    with pytest.raises(InputError, match="there is no model file"):
        zoo.resolve(f"./{shipped}")


def test_what_is_neither_a_name_nor_a_path_is_not_printed_at_length():
    with pytest.raises(InputError, match="by the path of its file, not by {0: 0") as caught:
        EquivariantCalculator(dict(enumerate(range(10_000))), "cpu")
    assert len(str(caught.value)) < 200


def test_a_calculator_and_load_potential_know_the_facts_of_the_table(model, tmp_path, monkeypatch):
    data = to_bytes(tiny_potential())
    monkeypatch.setenv("ASE_EQUIVARIANT_MIRROR", str(tmp_path))
    (tmp_path / "published.safetensors").write_bytes(data)
    model |= {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    calc, loaded = EquivariantCalculator("tiny", "cpu"), load_potential("tiny")
    expected = {"name": "tiny", "license": "MIT", "citation": "Nobody 2026"}
    for potential in (calc.potential, loaded):
        assert {key: potential.metadata[key] for key in expected} == expected
    assert calc.parameters["sha256"] == model["sha256"]


def test_an_empty_name_is_no_folder():
    with pytest.raises(InputError, match="by its name or by the path of its file, not by ''"):
        zoo.resolve("")


def test_the_cache_is_where_xdg_says(monkeypatch, tmp_path):
    monkeypatch.delenv("ASE_EQUIVARIANT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert published.cached_file("nequix-mp-1") == tmp_path / "ase-equivariant" / "models" / "nequix-mp-1.nqx"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert published.cached_file("nequix-mp-1").parents[2] == tmp_path / ".cache"
    assert list(tmp_path.iterdir()) == []

"""Numbered checkpoints: the newest complete one is found, whatever was damaged and wherever a writer was killed."""

import builtins
import io
import json
import os
import posixpath
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.registry import known_implementations

from dasktrain.checkpoint import MANIFEST, Store, load_state
from dasktrain.errors import BadInput

ROOT = Path(__file__).parent.parent


def write(store: Store, number: int, value: float | None = None) -> None:
    """Write a checkpoint that holds its number, or another value."""
    value = number if value is None else value
    store.write(number, {"x": torch.full((3,), float(value)), "y": torch.tensor(1)}, {"value": value, "tree": [{}]})


def newest(store: Store) -> float:
    """Return the value of the newest checkpoint, after a look at all it holds."""
    tensors, facts = store.newest()
    assert torch.equal(tensors["x"], torch.full((3,), float(facts["value"])))
    assert (tensors["y"], facts["tree"]) == (torch.tensor(1), [{}])
    return float(facts["value"])


@cache
def outsider(protocol: str) -> Any:
    """Return a file system that knows nothing of what other instances see or do."""
    return fsspec.filesystem(protocol, skip_instance_cache=True)


class Folder:
    """A store's directory, or that of one checkpoint, as somebody else sees it."""

    def __init__(self, url: str, number: int | None = None) -> None:
        self.fs: Any = outsider(fsspec.utils.get_protocol(url))
        self.path = self.fs._strip_protocol(url)
        if number is not None:
            self.path = f"{self.path}/round-{number:012d}"

    def names(self) -> list[str]:
        self.fs.invalidate_cache()
        paths = set(self.fs.find(self.path, withdirs=True)) - {self.path}
        return sorted(path.removeprefix(f"{self.path}/") for path in paths)

    def read(self, name: str) -> bytes:
        return bytes(self.fs.cat_file(f"{self.path}/{name}"))

    def put(self, name: str, content: bytes) -> None:
        if self.fs.protocol[0] == "file":
            os.makedirs(os.path.dirname(f"{self.path}/{name}"), exist_ok=True)
        self.fs.pipe_file(f"{self.path}/{name}", content)

    def drop(self, name: str) -> None:
        self.fs.rm(f"{self.path}/{name}")

    @property
    def tensors(self) -> str:
        [name] = [name for name in self.names() if name.endswith(".safetensors")]
        return name


# -- damage -------------------------------------------------------------------------------------------------------


def flip(name: Callable[[Folder], str], place: int) -> Callable[[Folder], None]:
    def damage(folder: Folder) -> None:
        content = bytearray(folder.read(name(folder)))
        content[place] ^= 1
        folder.put(name(folder), bytes(content))

    return damage


def cut(folder: Folder) -> None:
    folder.put(folder.tensors, folder.read(folder.tensors)[:-4])


def say(**changes: Any) -> Callable[[Folder], None]:
    def damage(folder: Folder) -> None:
        folder.put(MANIFEST, json.dumps(json.loads(folder.read(MANIFEST)) | changes).encode())

    return damage


DAMAGE: dict[str, Callable[[Folder], None]] = {
    "a byte of the tensors": flip(lambda folder: folder.tensors, -2),
    "a byte of the manifest": lambda folder: folder.put(MANIFEST, folder.read(MANIFEST).replace(b"tree", b"trie")),
    "another number": say(value=7),
    "tensors cut short": cut,
    "tensors empty": lambda folder: folder.put(folder.tensors, b""),
    "tensors lost": lambda folder: folder.drop(folder.tensors),
    "manifest cut short": lambda folder: folder.put(MANIFEST, folder.read(MANIFEST)[:-9]),
    "manifest empty": lambda folder: folder.put(MANIFEST, b""),
    "manifest lost": lambda folder: folder.drop(MANIFEST),
    "another format": say(format=99),
    "no JSON object": lambda folder: folder.put(MANIFEST, b"[]"),
}


class Contract:
    """What a store does, on any file system; a subclass has the fixture `url`."""

    @pytest.fixture
    def store(self, url: str) -> Store:
        return Store(url)

    def test_nothing_is_there_at_first(self, url: str, store: Store) -> None:
        assert store.numbers() == []
        with pytest.raises(BadInput, match=f"at {re.escape(url)}, however there is none"):
            store.newest()
        store.prune(1)
        assert Folder(url).names() == []

    def test_newest_is_that_of_the_highest_number(self, url: str, store: Store) -> None:
        for number in (1, 10, 2, 9):
            write(store, number)
        assert Store(url).numbers() == store.numbers() == [1, 2, 9, 10]
        assert newest(store) == newest(Store(url)) == 10

    def test_number_that_is_written_twice_is_replaced(self, url: str, store: Store) -> None:
        for value in (1, 2):
            write(store, 5, value)
        assert newest(store) == 2
        assert len(Folder(url, 5).names()) == 2

    def test_url_may_end_with_a_slash(self, url: str, store: Store) -> None:
        write(Store(f"{url}/"), 3)
        assert store.numbers() == Store(f"{url}/").numbers() == [3]

    def test_what_others_wrote_and_deleted_is_seen(self, url: str, store: Store) -> None:
        write(store, 1)
        assert store.numbers() == [1]
        one, two = Folder(url, 1), Folder(url, 2)
        for name in one.names():
            two.put(name, one.read(name))
        assert store.numbers() == [1, 2]
        one.drop(MANIFEST)
        assert store.numbers() == [2]
        assert newest(store) == 1

    @pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
    def test_damaged_one_is_passed_over_with_a_warning(
        self, url: str, store: Store, damage: Callable[[Folder], None]
    ) -> None:
        write(store, 1)
        write(store, 2)
        damage(Folder(url, 2))
        with pytest.warns(UserWarning, match=r"The checkpoint after 2 rounds is passed over: .*round-000000000002"):
            assert newest(store) == 1
        damage(Folder(url, 1))
        with pytest.warns(UserWarning, match="passed over"), pytest.raises(BadInput, match="there is none"):
            store.newest()
        write(store, 2)
        assert newest(store) == 2

    @pytest.mark.parametrize(("keep", "left"), [(1, [5]), (2, [3, 5]), (3, [2, 3, 5]), (9, [1, 2, 3, 5])])
    def test_prune_keeps_the_newest(self, url: str, store: Store, keep: int, left: list[int]) -> None:
        for number in (1, 2, 3, 5):
            write(store, number)
        store.prune(keep)
        assert store.numbers() == left
        assert {name.split("/")[0] for name in Folder(url).names()} == {f"round-{number:012d}" for number in left}
        assert newest(store) == 5

    def test_prune_must_keep_one(self, store: Store) -> None:
        with pytest.raises(BadInput, match="keep must be at least 1, however it is 0"):
            store.prune(0)

    def test_prune_takes_what_killed_writers_left_and_nothing_else(self, url: str, store: Store) -> None:
        for number in (2, 4):
            write(store, number)
        folder = Folder(url)
        before = folder.names()
        ours = ["round-000000000001/state-0.safetensors", "round-000000000003/dasktrain.json.7.tmp"]
        ours += ["round-000000000004/dasktrain.json.7.tmp", "round-000000000005/state-0.safetensors.7.tmp"]
        theirs = ["notes.txt", "rounds/1.tmp", "round-1/x", "round-000000000005/state-0.safetensors"]
        for name in (*ours, *theirs):
            folder.put(name, b"1")
        store.prune(2)
        assert [name for name in folder.names() if folder.fs.isfile(f"{folder.path}/{name}")] == sorted(
            {name for name in before if "." in name} | set(theirs)
        )
        assert not [name for name in folder.names() if name.endswith(("01", "03"))]

    @pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
    def test_prune_never_takes_the_newest_complete_one(
        self, url: str, store: Store, damage: Callable[[Folder], None]
    ) -> None:
        for number in (1, 2, 3, 4):
            write(store, number)
        for number in (3, 4):
            damage(Folder(url, number))
        store.prune(1)
        assert set(store.numbers()) - {4} == {2}
        with pytest.warns(UserWarning, match="passed over"):
            assert newest(store) == 2

    def test_prune_reads_no_checkpoint_that_was_just_written(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for number in (1, 2):
            write(store, number)
        monkeypatch.setattr("dasktrain.checkpoint.load_state", None)
        store.prune(1)
        assert store.numbers() == [2]

    def test_check_leaves_nothing_behind(self, url: str, store: Store) -> None:
        parent = Folder(posixpath.dirname(url))
        before = parent.names()
        store.check()
        assert parent.names() == before
        write(store, 1)
        before = parent.names()
        store.check()
        assert parent.names() == before

    def test_check_refuses_a_file(self, url: str) -> None:
        Folder(url).put("taken", b"1")
        with pytest.raises(BadInput, match=rf"written to {re.escape(url)}/taken, however .*taken is a file"):
            Store(f"{url}/taken").check()


class TestOnDiskAndInMemory(Contract):
    @pytest.fixture(params=["file", "file URL", "memory"])
    def url(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
        """A place that does not exist yet."""
        if request.param != "memory":
            yield str(tmp_path / "deep" / "er") if request.param == "file" else f"file://{tmp_path}/deep/er"
            return
        yield "memory://dasktrain/store"
        fs = fsspec.filesystem("memory")
        fs.store.clear()
        fs.pseudo_dirs[:] = [""]


def test_any_byte_that_changes_is_noticed_or_does_not_matter(tmp_path: Path) -> None:
    store, folder = Store(str(tmp_path)), Folder(str(tmp_path), 2)
    write(store, 1)
    write(store, 2)
    for name in folder.names():
        whole = folder.read(name)
        for place in range(len(whole)):
            flip(lambda _, name=name: name, place)(folder)  # type: ignore[misc]
            with warnings.catch_warnings(action="ignore"):
                assert newest(store) in (1, 2)
            folder.put(name, whole)
    assert newest(store) == 2


def test_checkpoint_without_a_seal_is_passed_over(tmp_path: Path) -> None:
    store, folder = Store(str(tmp_path)), Folder(str(tmp_path), 1)
    write(store, 1)
    manifest = json.loads(folder.read(MANIFEST))
    del manifest["seal"]
    folder.put(MANIFEST, json.dumps(manifest).encode())
    with pytest.warns(UserWarning, match="passed over"), pytest.raises(BadInput, match="there is none"):
        store.newest()


# -- before a run ---------------------------------------------------------------------------------------------------


def test_check_names_a_protocol_that_does_not_exist() -> None:
    for use in (Store.check, Store.newest, Store.numbers):
        with pytest.raises(BadInput, match=r"however nowhere://x: Protocol not known: nowhere; "):
            use(Store("nowhere://x"))


def test_check_names_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"class": "no_such_package.FileSystem", "err": "Install no_such_package to access far away"}
    monkeypatch.setitem(known_implementations, "faraway", known)
    with pytest.raises(BadInput, match=r"however faraway://x: Install no_such_package to access far away"):
        Store("faraway://x").check()


def test_check_refuses_a_directory_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="NotADirectoryError"):
        Store(str(tmp_path / "file" / "deep" / "store")).check()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("function", ["makedirs", "pipe_file"])
def test_check_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    def refused(*arguments: Any, **settings: Any) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(fsspec.get_filesystem_class("file"), function, refused)
    with pytest.raises(BadInput, match="however PermissionError: read-only; "):
        Store(str(tmp_path / "deep" / "store")).check()
    assert list(tmp_path.iterdir()) == []


# -- crashes and power cuts ----------------------------------------------------------------------------------------

#: what was there before the writer was killed, what it does, and the values that the newest may have after
SCENARIOS: dict[str, tuple[dict[int, float], Callable[[Store], None], set[float | None]]] = {
    "first": ({}, lambda store: write(store, 1), {None, 1}),
    "next": ({1: 1}, lambda store: (write(store, 2), store.prune(1))[0], {1, 2}),
    "again": ({1: 1, 2: 2}, lambda store: (write(store, 2, 5), store.prune(1))[0], {2, 5}),
    "only one again": ({1: 1}, lambda store: (write(store, 1, 5), store.prune(1))[0], {1, 5}),
    "prune": ({1: 1, 2: 2, 3: 3, 4: 4}, lambda store: store.prune(2), {4}),
}
STEPS = ("fsync", "replace", "rename", "mkdir", "remove", "unlink", "rmdir")


class Killer:
    """Kills this process before its n-th step: a call of os that changes something, or half of a write."""

    def __init__(self, at: int) -> None:
        self.at, self.steps = at, 0
        for name in STEPS:
            setattr(os, name, self._counted(getattr(os, name)))
        self._open = builtins.open
        builtins.open = self._halting  # type: ignore[assignment]

    def step(self) -> None:
        self.steps += 1
        if self.steps == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **settings: Any) -> Any:
            self.step()
            return function(*arguments, **settings)

        return counted

    def _halting(self, path: str, mode: str = "r", **settings: Any) -> Any:
        if mode != "wb":
            return self._open(path, mode, **settings)
        self.step()
        killer = self

        class Halting(io.FileIO):
            def write(self, content: Any) -> int:
                killer.step()
                half = super().write(content[: len(content) // 2])
                killer.step()
                return half + super().write(content[half:])

        return Halting(path, "w")


def crash_everywhere(folder: str) -> None:
    """Kill writers at each of their steps in turn, each in a fork of its own; print what was newest then."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found: dict[str, list[float | None]] = {}
    for scenario, (before, act, _) in SCENARIOS.items():
        found[scenario], killed = [], True
        while killed:
            step = len(found[scenario]) + 1
            url = f"{folder}/{scenario}/{step}"
            for number, value in before.items():
                write(Store(url), number, value)
            killed = killed_at(step, partial(act, Store(url)))
            found[scenario].append(survivor(url))
            assert_next_writer_cleans_up(url)
    print(json.dumps(found))


def killed_at(step: int, act: Callable[[], None]) -> bool:
    """Act in a fork that is killed at a step; return False if it ended before."""
    child = os.fork()
    if not child:
        Killer(step)
        act()
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def survivor(url: str) -> float | None:
    """Return the value of the newest checkpoint, or None if there is none; every manifest there tells the truth."""
    store = Store(url)
    for number in store.numbers():
        load_state(f"{url}/round-{number:012d}")
    try:
        return newest(store)
    except BadInput:
        return None


def assert_next_writer_cleans_up(url: str) -> None:
    write(Store(url), 9)
    Store(url).prune(1)
    names = Folder(url).names()
    assert len(names) == 3, names
    assert all(name.startswith("round-000000000009") for name in names)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is forked for each step")
def test_writer_may_be_killed_at_any_step(tmp_path: Path) -> None:
    call = f"from tests.test_checkpoint_store import crash_everywhere; crash_everywhere({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", call], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {scenario: set(values) for scenario, values in found.items()} == {
        scenario: allowed for scenario, (_, _, allowed) in SCENARIOS.items()
    }
    assert all(len(values) > 6 for values in found.values())


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="the path of an open file is read there")
def test_power_cut_takes_nothing_that_the_manifest_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes are on the disk before their name, names before the manifest that vouches for them, all before the end."""
    safe: set[str] = set()
    loose: set[str] = set()
    sync, replace, mkdir = os.fsync, os.replace, os.mkdir

    def synced(descriptor: int) -> None:
        sync(descriptor)
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        safe.add(path)
        loose.difference_update([each for each in loose if os.path.dirname(each) == path])

    def replaced(source: str, target: str) -> None:
        assert source in safe
        assert not (target.endswith(MANIFEST) and loose)
        replace(source, target)
        loose.add(target)

    def made(path: str, *arguments: Any) -> None:
        mkdir(path, *arguments)
        loose.add(path)

    for function, name in ((synced, "fsync"), (replaced, "replace"), (made, "mkdir")):
        monkeypatch.setattr(os, name, function)
    write(Store(str(tmp_path / "deep" / "store")), 1)
    assert loose == set()

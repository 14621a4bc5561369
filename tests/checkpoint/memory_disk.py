"""A disk in memory that knows what would outlive a power cut."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from surgery.checkpoint import Disk


@dataclass(eq=False)
class Node:
    """A file or folder of a MemoryDisk."""

    is_folder: bool
    entries: dict[str, Node] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)
    target: str | None = None


@dataclass(eq=False)
class Pending:
    """What has been done and is not durable. `pair` holds the two halves of a rename together."""

    node: Node
    kind: str  # write | size | link | unlink
    name: str = ""
    child: Node | None = None
    offset: int = 0
    data: bytes = b""
    pair: int = -1


SECTOR = 16
"""Writes tear at this many bytes: small, so that small files tear."""


class MemoryDisk(Disk):
    """A disk in memory that knows what would outlive a power cut.

    `ordered`: changes of folders become durable in the order in which they were made, as with a journaling file
    system; else each folder's by its own sync, in any order, a rename's two halves one by one (never only the removal).
    """

    def __init__(self, ordered: bool = True) -> None:
        self.ordered = ordered
        self.root = Node(True)
        self.kept = Node(True)  # the durable twin of `root`
        self.twins: dict[Node, Node] = {self.root: self.kept}
        self.pending: list[Pending] = []
        self.files: dict[int, Node] = {}
        self.locks: dict[Node, dict[int, bool]] = {}
        self.next = 1000
        self.pairs = 0
        self.tokens = 0
        self.room = 1 << 40

    # Opening and looking

    def _walk(self, path: Path) -> Node:
        node = self.root
        for part in path.parts[1:]:
            node = self._entry(node, part)
        return node

    def _entry(self, folder: Node, name: str) -> Node:
        if not folder.is_folder:
            raise NotADirectoryError(errno.ENOTDIR, "not a folder", name)
        if name not in folder.entries:
            raise FileNotFoundError(errno.ENOENT, "no such file", name)
        return folder.entries[name]

    def _open(self, node: Node) -> int:
        self.next += 1
        self.files[self.next] = node
        return self.next

    def open_path(self, path):
        return self.do("open_path", lambda: self._open(self._folder(self._walk(path))))

    def _folder(self, node: Node) -> Node:
        if not node.is_folder:
            raise NotADirectoryError(errno.ENOTDIR, "not a folder")
        return node

    def open_folder(self, folder, name):
        return self.do("open_folder", lambda: self._open(self._folder(self._entry(self.files[folder], name))))

    def open(self, folder, name):
        return self.do("open", lambda: self._open(self._entry(self.files[folder], name)))

    def close(self, file):
        node = self.files.pop(file)
        self.locks.get(node, {}).pop(file, None)

    def begin_sync(self, file: int, offset: int, length: int) -> None:
        """A hint changes nothing."""

    def list(self, folder):
        return self.do("list", lambda: sorted(self.files[folder].entries))

    def _told(self, node: Node) -> os.stat_result:
        mode = stat.S_IFDIR | 0o755 if node.is_folder else stat.S_IFREG | 0o644
        return os.stat_result((mode, id(node), 1, 1, 0, 0, len(node.data), 0, 0, 0))

    def look(self, folder, name):
        node = self.do("look", lambda: self.files[folder].entries.get(name))
        return None if node is None else self._told(node)

    def look_at(self, file):
        return self.do("look_at", lambda: self._told(self.files[file]))

    def read(self, file, offset, length):
        return self.do("read", lambda: bytes(self.files[file].data[offset : offset + length]))

    def free(self, folder):
        return self.do("free", lambda: self.room)

    def lock(self, file, *, shared=False):
        def act() -> bool:
            held = self.locks.setdefault(self.files[file], {})
            if any(other != file and not (shared and theirs) for other, theirs in held.items()):
                return False
            held[file] = shared
            return True

        return self.do("lock", act)

    def unlock(self, file):
        self.do("unlock", lambda: self.locks.get(self.files[file], {}).pop(file, None))

    def token(self):
        self.tokens += 1
        return f"{self.tokens:016x}"

    def now(self):
        return 0.0

    def wait(self):
        raise AssertionError("nobody else is here to wait for")

    # Changing

    def _link(self, folder: Node, name: str, child: Node, pair: int = -1) -> None:
        folder.entries[name] = child
        self.pending.append(Pending(folder, "link", name, child, pair=pair))

    def _unlink(self, folder: Node, name: str, pair: int = -1) -> None:
        del folder.entries[name]
        self.pending.append(Pending(folder, "unlink", name, pair=pair))

    def modify(self, folder, name):
        return self.do("modify", lambda: self._open(self._entry(self.files[folder], name)))

    def create(self, folder, name):
        def act() -> int:
            if name in self.files[folder].entries:
                raise FileExistsError(errno.EEXIST, "exists", name)
            node = Node(False)
            self._link(self.files[folder], name, node)
            return self._open(node)

        return self.do("create", act)

    def make_folder(self, folder, name):
        def act() -> None:
            if name in self.files[folder].entries:
                raise FileExistsError(errno.EEXIST, "exists", name)
            self._link(self.files[folder], name, Node(True))

        self.do("make_folder", act)

    def remove_folder(self, folder, name):
        def act() -> None:
            if self._folder(self._entry(self.files[folder], name)).entries:
                raise OSError(errno.ENOTEMPTY, "not empty", name)
            self._unlink(self.files[folder], name)

        self.do("remove_folder", act)

    def unlink(self, folder, name):
        def act() -> None:
            if self._entry(self.files[folder], name).is_folder:
                raise IsADirectoryError(errno.EISDIR, "a folder", name)
            self._unlink(self.files[folder], name)

        self.do("unlink", act)

    def rename(self, folder, name, to_folder, to_name):
        def act() -> None:
            child = self._entry(self.files[folder], name)
            over = self.files[to_folder].entries.get(to_name)
            if over is not None and over.is_folder and over.entries:
                raise OSError(errno.ENOTEMPTY, "not empty", to_name)
            self.pairs += 1
            self._link(self.files[to_folder], to_name, child, self.pairs)
            self._unlink(self.files[folder], name, self.pairs)

        self.do("rename", act)

    def _put(self, node: Node, offset: int, data: bytes) -> None:
        node.data.extend(bytes(max(0, offset + len(data) - len(node.data))))
        node.data[offset : offset + len(data)] = data
        self.pending.append(Pending(node, "write", offset=offset, data=data))

    def write(self, file, offset, data):
        def act() -> int:
            self._put(self.files[file], offset, bytes(data))
            return len(data)

        return self.do("write", act)

    def copy(self, source, offset, file, to, length):
        def act() -> int:
            data = bytes(self.files[source].data[offset : offset + length])
            self._put(self.files[file], to, data)
            return len(data)

        return self.do("copy", act)

    def _size(self, node: Node, length: int) -> None:
        del node.data[length:]
        node.data.extend(bytes(length - len(node.data)))
        self.pending.append(Pending(node, "size", offset=length))

    def allocate(self, file, length):
        self.do("allocate", lambda: self._size(self.files[file], max(length, len(self.files[file].data))))

    def truncate(self, file, length):
        self.do("truncate", lambda: self._size(self.files[file], length))

    def chmod(self, file, mode):
        self.do("chmod", lambda: None)

    def sync(self, file):
        self.do("sync", lambda: self.settle(self.files[file]))

    # What a power cut leaves

    def settle(self, node: Node) -> None:
        """Make durable what a sync of `node` makes so."""
        if not node.is_folder:
            chosen = [one for one in self.pending if one.node is node]
        elif self.ordered:
            chosen = [one for one in self.pending if one.node.is_folder]
        else:
            pairs = {one.pair for one in self.pending if one.node is node and one.kind == "unlink"} - {-1}
            chosen = [one for one in self.pending if one.node is node or (one.kind == "link" and one.pair in pairs)]
        for one in chosen:
            apply(one, self.twins)
        taken = set(map(id, chosen))
        self.pending = [one for one in self.pending if id(one) not in taken]

    def all_durable(self) -> MemoryDisk:
        """Take everything so far as durable."""
        for one in self.pending:
            apply(one, self.twins)
        self.pending = []
        return self

    def after_power_cut(self, dice: random.Random, samples: int) -> Iterator[MemoryDisk]:
        """The disks that a power cut at this moment may leave: the extremes, each change alone, and random ones."""
        for chosen in self._choices(dice, samples):
            twins = copy_twins(self.twins)
            for one in chosen:
                apply(one, twins)
            yield reborn(twins[self.root], self)

    def _choices(self, dice: random.Random, samples: int) -> Iterator[list[Pending]]:
        moves = [one for one in self.pending if one.node.is_folder]
        writes = [one for one in self.pending if not one.node.is_folder]
        groups: list[list[Pending]] = []
        for one in moves:
            if self.ordered and groups and one.pair >= 0 and groups[-1][-1].pair == one.pair:
                groups[-1].append(one)
            else:
                groups.append([one])
        picks: list[list[list[Pending]]] = [[], groups]
        if self.ordered:
            picks += [groups[:k] for k in range(1, len(groups))]
        else:
            picks += [[group for group in groups if group is not left] for left in groups]
            picks += [[group] for group in groups]
            picks += [[group for group in groups if dice.random() < 0.5] for _ in range(samples)]
        for pick in picks:
            kept = [one for group in pick for one in group]
            links = {one.pair for one in kept if one.kind == "link"} | {-1}
            durable = {id(one) for one in kept if one.kind == "link" or one.pair in links or self._is_linked(one)}
            data = [[], writes]
            if writes:
                data += [torn(writes, dice) for _ in range(samples)]
                data += [[first_sector(one)] for one in writes[-4:] if one.kind == "write"]
            for some in data:
                yield [one for one in moves if id(one) in durable] + some

    def _is_linked(self, one: Pending) -> bool:
        """The other half of the rename is durable already."""
        return not any(other.pair == one.pair and other.kind == "link" for other in self.pending)


def first_sector(one: Pending) -> Pending:
    """The beginning of a write without its end: the tear that joins a new head to an old body."""
    return Pending(one.node, "write", offset=one.offset, data=one.data[:SECTOR])


def torn(writes: list[Pending], dice: random.Random) -> list[Pending]:
    """Some of the writes, some of them in part."""
    parts: list[Pending] = []
    for one in writes:
        if one.kind == "size":
            parts += [one] if dice.random() < 0.7 else []
            continue
        for start in range(0, len(one.data), SECTOR):
            if dice.random() < 0.6:
                piece = one.data[start : start + SECTOR]
                parts.append(Pending(one.node, "write", offset=one.offset + start, data=piece))
    return parts


def twin_of(node: Node, twins: dict[Node, Node]) -> Node:
    if node not in twins:
        twins[node] = Node(node.is_folder)
    return twins[node]


def apply(one: Pending, twins: dict[Node, Node]) -> None:
    twin = twin_of(one.node, twins)
    if one.kind == "link":
        twin.entries[one.name] = twin_of(one.child, twins)  # type: ignore[arg-type]
    elif one.kind == "unlink":
        twin.entries.pop(one.name, None)
    elif one.kind == "size":
        del twin.data[one.offset :]
        twin.data.extend(bytes(one.offset - len(twin.data)))
    else:
        twin.data.extend(bytes(max(0, one.offset + len(one.data) - len(twin.data))))
        twin.data[one.offset : one.offset + len(one.data)] = one.data


def copy_twins(twins: dict[Node, Node]) -> dict[Node, Node]:
    fresh = {twin: Node(twin.is_folder, data=bytearray(twin.data)) for twin in twins.values()}
    for twin, copy in fresh.items():
        copy.entries = {name: fresh[child] for name, child in twin.entries.items()}
    return {node: fresh[twin] for node, twin in twins.items()}


def reborn(root: Node, like: MemoryDisk, kind: type[MemoryDisk] = MemoryDisk) -> MemoryDisk:
    """A disk that holds a copy of `root`, all of it durable."""
    disk = kind(like.ordered)
    disk.tokens = like.tokens + 100
    disk.twins = {}

    def copied(node: Node) -> Node:
        fresh, twin = (Node(node.is_folder, data=bytearray(node.data)) for _ in range(2))
        disk.twins[fresh] = twin
        for name, child in node.entries.items():
            fresh.entries[name] = copied(child)
            twin.entries[name] = disk.twins[fresh.entries[name]]
        return fresh

    disk.root = copied(root)
    disk.kept = disk.twins[disk.root]
    return disk


def tree(node: Node, at: str = "") -> dict[str, bytes]:
    """Every file below `node` with its bytes; an empty folder is `name/`."""
    found: dict[str, bytes] = {}
    for name, child in sorted(node.entries.items()):
        if child.is_folder:
            found |= tree(child, f"{at}{name}/") or {f"{at}{name}/": b""}
        else:
            found[at + name] = bytes(child.data)
    return found

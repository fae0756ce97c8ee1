#!/usr/bin/python3
"""Reads a repository of format version 1 in a local folder. Written from docs/FORMAT.md alone, with the
standard library, `zstandard` and `cryptography`: it shares nothing with the program that writes
repositories, so it judges the document and the program alike. Opens key slots of kind 1 (key file).

usage: reader.py FOLDER KEY-FILE points                        restore points that are listed
       reader.py FOLDER KEY-FILE files POINT                   paths of its entries
       reader.py FOLDER KEY-FILE extract POINT PATH OUT        one file, `-` for standard output
       reader.py FOLDER KEY-FILE restore POINT FOLDER          all files, folders and links;
                                                               files in parts are put together
       reader.py FOLDER KEY-FILE wal WORKLOAD                  names of WAL files
       reader.py FOLDER KEY-FILE wal-extract WORKLOAD FILE OUT
       reader.py FOLDER KEY-FILE records                       names of records
       reader.py FOLDER KEY-FILE verify [objects]              reads and verifies every object and, unless
                                                               `objects` is given, every listed file

Exit 0: done. Exit 1: `error: <object>: <what>` on standard error, one line for each problem found.
"""
import hashlib, hmac, json, os, re, shutil, struct, sys
import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SLOT, WORKLOAD_KEY, PACK, INDEX, POINT, WAL, RECORD, TENANT_KEY, CHAIN, SESSION, CONDEMNED, LOCK = range(1, 13)
BODY_MAX, CHUNK_MAX, SLOT_MAX, REFERENCES_MAX, DEPTH_MAX = 1 << 30, 16 << 20, 64 << 10, 1024, 4


class Damaged(Exception):
    def __init__(self, name, what):
        super().__init__(f"{name}: {what}")


def need(condition, name, what):
    if not condition:
        raise Damaged(name, what)


def crc_steps(value, steps):
    for _ in range(steps):
        value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value


CRC_TABLE = [crc_steps(value, 8) for value in range(256)]
# Two bytes at a time, because one by one takes long here.
CRC_TABLE_2 = [CRC_TABLE[CRC_TABLE[v & 255] & 255 ^ v >> 8] ^ CRC_TABLE[v & 255] >> 8 for v in range(65536)]


def crc32c(data, crc=0):
    crc ^= 0xFFFFFFFF
    even = len(data) & ~1
    for pair in struct.unpack(f"<{even // 2}H", data[:even]):
        crc = CRC_TABLE_2[(crc ^ pair) & 65535] ^ crc >> 16
    for byte in data[even:]:
        crc = CRC_TABLE[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def hkdf(key, salt, info, length):
    pseudo = hmac.digest(salt or bytes(32), key, "sha256")
    return hmac.digest(pseudo, info + b"\1", "sha256")[:length]


class Fields:
    """Takes fields from the front of bytes."""

    def __init__(self, name, data):
        self.name, self.data, self.at = name, data, 0

    def take(self, length):
        need(self.at + length <= len(self.data), self.name, "it is cut short")
        self.at += length
        return self.data[self.at - length : self.at]

    def numbers(self, form):
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))

    def text(self):
        try:
            return self.take(self.numbers("I")[0]).decode()
        except UnicodeDecodeError:
            raise Damaged(self.name, "a text in it is not UTF-8")

    def ended(self):
        return self.at == len(self.data)

    def end(self):
        need(self.ended(), self.name, "there is something behind its end")


def unpack(name, data, length):
    need(data[:1] in (b"\0", b"\1"), name, "a frame has an unknown coding")
    if data[0] == 0:
        plain = data[1:]
    else:
        try:
            stream = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
            plain = bytearray()
            # Little by little, so that no more is unpacked than what is awaited.
            for start in range(1, len(data), 4096):
                need(not stream.eof, name, "there is something behind a zstd frame")
                plain += stream.decompress(data[start : start + 4096])
                need(len(plain) <= length, name, "a frame unpacks to more than it should")
            need(stream.eof and not stream.unused_data, name, "a zstd frame does not end where it should")
        except (zstandard.ZstdError, EOFError) as error:
            raise Damaged(name, f"a frame cannot be unpacked: {error}")
    need(len(plain) == length, name, "a frame has a wrong length")
    return bytes(plain)


def no_twice(pairs):
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member occurs twice")
    return members


def parse(name, data, members=None, optional=()):
    try:
        value = json.loads(data, object_pairs_hook=no_twice)
    except ValueError as error:
        raise Damaged(name, f"it is not the JSON it should be: {error}")
    if members is not None:
        strict(name, value, members, optional)
    return value


def strict(name, value, members, optional=()):
    need(isinstance(value, dict), name, "something in it is no JSON object")
    found = set(value) - set(optional)
    need(found == set(members), name, f"its members are {sorted(value)} instead of {sorted(members)}")


class Key:
    """A 32-byte key and what is derived from it."""

    def __init__(self, secret):
        self.secret = secret
        self.id = hkdf(secret, b"", b"dr-store/1 key id", 16)
        self.naming = hkdf(secret, b"", b"dr-store/1 chunk name", 32)
        self.wal = hkdf(secret, b"", b"dr-store/1 wal mac", 32)
        self.tenant = hkdf(secret, b"", b"dr-store/1 tenant name", 32)

    def object_key(self, kind, salt):
        return AESGCM(hkdf(self.secret, salt, b"dr-store/1 object " + bytes([kind]), 32))


def read_key_file(path):
    text = open(path, encoding="utf-8", newline="").read()
    found = re.fullmatch(r"dr-repository-key-1:([0-9a-f]{64}):([0-9a-f]{16})(\r?\n)?", text)
    need(found, path, "it is not the text of a key file")
    secret = bytes.fromhex(found[1])
    need(hashlib.sha256(secret).hexdigest()[:16] == found[2], path, "its checksum does not fit")
    return secret


class Repository:
    def __init__(self, folder, key_file):
        self.folder, self.data_keys, self.packs, self.where = folder, {}, {}, {}
        line = self.read("repository")
        stated = parse("repository", line)
        need(isinstance(stated, dict) and stated.get("format") == "dr-store", "repository", "it describes something else")
        version = stated.get("version")
        need(version == 1, "repository", f"it has format version {version}; this reader knows version 1")
        tail = b',"sha256":"' + hashlib.sha256(line[:-78]).hexdigest().encode() + b'"}\n'
        need(line[-78:] == tail, "repository", "its checksum does not fit")
        strict("repository", stated, ["format", "version", "id", "capabilities", "sha256"])
        need(re.fullmatch("[0-9a-f]{32}", stated["id"]), "repository", "its id is none")
        self.id = bytes.fromhex(stated["id"])
        self.master = self.open_slots(read_key_file(key_file))

    # Objects and frames

    def read(self, name):
        try:
            with open(os.path.join(self.folder, name), "rb") as file:
                return file.read()
        except FileNotFoundError:
            raise Damaged(name, "it is missing")

    def exists(self, name):
        return os.path.isfile(os.path.join(self.folder, name))

    def list(self, prefix):
        names = []
        for folder, _, files in os.walk(os.path.join(self.folder, prefix)):
            below = os.path.relpath(folder, self.folder)
            names += [os.path.join(below, file) for file in files if not file.startswith(".")]
        return sorted(names)

    def header(self, name, data, kind):
        need(data[:8] == b"dr-store" and len(data) >= 64, name, "it does not begin as an object does")
        need(data[8] == 1, name, f"it has format version {data[8]}; this reader knows version 1")
        need(data[9] == kind and data[10:16] == bytes(6), name, "it is of another kind or changed")
        return data[16:32], data[32:64]

    def open(self, name, key, kind, key_id, salt, frame, offset, binding, sealed):
        associated = b"dr-store\1" + bytes([kind]) + self.id + key_id + struct.pack("<QQ", frame, offset)
        for part in (name.encode(), binding):
            associated += struct.pack("<Q", len(part)) + part
        try:
            return key.object_key(kind, salt).decrypt(struct.pack(">IQ", 0, frame), sealed, associated)
        except (InvalidTag, ValueError):
            raise Damaged(name, f"frame {frame} does not open: it was changed or belongs elsewhere")

    def sealed(self, name, kind, key, data=None):
        data = self.read(name) if data is None else data
        key_id, salt = self.header(name, data, kind)
        need(key_id == key.id, name, "it names another key than it should")
        frame = Fields(name, self.open(name, key, kind, key_id, salt, 0, 64, data[:64], data[64:]))
        (length,) = frame.numbers("Q")
        need(length <= BODY_MAX, name, "its body is longer than any is")
        return unpack(name, frame.data[8:], length)

    # Keys

    def slot(self, name, secret):
        """The master key's id and, if the slot is for this secret, the key; `note` checks the rest."""
        data = self.read(name)
        need(len(data) <= SLOT_MAX, name, "it is longer than any slot")
        key_id, salt = self.header(name, data, SLOT)
        need(hashlib.sha256(data[:-32]).digest() == data[-32:], name, "its checksum does not fit")
        fields = Fields(name, data[:-32])
        fields.take(64)
        kind, zero, length = fields.numbers("B3sI")
        need(kind in (1, 2, 3, 4) and zero == bytes(3), name, "it is of an unknown kind")
        need(kind != 1 or length == 0, name, "a key file's slot has data")
        fields.take(length)
        bound = fields.data[: 104 + length]
        commitment, frame = fields.take(32), fields.take(48)
        note_bound = fields.data[: 156 + length]
        note = fields.take(fields.numbers("I")[0])
        fields.end()
        master = None
        if kind == 1 and commitment == hkdf(secret, salt, b"dr-store/1 commitment", 32):
            master = Key(self.open(name, Key(secret), SLOT, key_id, salt, 0, len(bound), bound, frame))
            need(master.id == key_id, name, "it holds another key than it names")

        def check_note(master):
            need(master.id == key_id, name, "it holds the key of something else")
            opened = Fields(name, self.open(name, master, SLOT, key_id, salt, 1, len(note_bound), note_bound, note))
            opened.numbers("q")
            opened.text()
            opened.end()

        return master, check_note

    def open_slots(self, secret):
        problem = Damaged("keys/slot/", "there is no slot that this key opens")
        for name in self.list("keys/slot"):
            try:
                master, check_note = self.slot(name, secret)
                if master:
                    check_note(master)
                    return master
            except Damaged as error:
                problem = error
        raise problem

    def keys_of(self, workload):
        """The data keys of a workload by id: (key, tenant)."""
        if workload in self.data_keys:
            return self.data_keys[workload]
        found = {}
        name = f"keys/workload/{workload}"
        body = self.sealed(name, WORKLOAD_KEY, self.master)
        need(len(body) == 32, name, "the key in it has a wrong length")
        own = Key(body)
        found[own.id] = (own, None)
        for name in self.list(f"keys/tenant/{workload}"):
            code = name.split("/")[-1]
            if self.exists(f"records/shred/{workload}/{code}"):
                continue
            fields = Fields(name, self.sealed(name, TENANT_KEY, self.master))
            key, tenant = Key(fields.take(32)), fields.text()
            fields.end()
            codes = (self.tenant_code(workload, tenant, generation) for generation in range(10000))
            need(code in codes, name, "it is the key of another tenant")
            found[key.id] = (key, tenant)
        self.data_keys[workload] = found
        return found

    def tenant_code(self, workload, tenant, generation):
        text = struct.pack("<Q", generation) + workload.encode() + b"\0" + tenant.encode()
        return hmac.digest(self.master.tenant, text, "sha256")[:16].hex()

    def destroyed(self, workload):
        names = self.list(f"records/shred/{workload}")
        return {id for name in names for id in parse(name, self.sealed(name, RECORD, self.master))["key_ids"]}

    def key_for(self, name, workload, key_id):
        keys = self.keys_of(workload)
        if key_id in keys:
            return keys[key_id][0]
        need(key_id.hex() not in self.destroyed(workload), name, "its data key was destroyed")
        raise Damaged(name, f"it names data key {key_id.hex()}, which is not there")

    # Packs and indexes

    def table(self, name, fields, count):
        chunks = []
        for _ in range(count):
            chunk, stored, length = fields.numbers("32sII")
            need(length <= CHUNK_MAX and 17 <= stored <= length + 17, name, "a chunk has no possible length")
            chunks.append((chunk, stored, length))
        return chunks

    def index(self, workload, name):
        data = self.read(name)
        key_id, _ = self.header(name, data, INDEX)
        fields = Fields(name, self.sealed(name, INDEX, self.key_for(name, workload, key_id), data))
        while not fields.ended():
            id, count = fields.numbers("16sI")
            yield f"data/{workload}/{id[:1].hex()}/{id.hex()}", self.table(name, fields, count)

    def load_indexes(self, workload):
        """Where each chunk is: name -> [(pack, frame, offset, stored, length)]."""
        if workload not in self.where:
            where = self.where[workload] = {}
            for name in self.list(f"index/{workload}"):
                data = self.read(name)
                if self.header(name, data, INDEX)[0].hex() in self.destroyed(workload):
                    continue
                for pack, chunks in self.index(workload, name):
                    offset = 64
                    for frame, (chunk, stored, length) in enumerate(chunks):
                        where.setdefault(chunk, []).append((pack, frame, offset, stored, length))
                        offset += stored
        return self.where[workload]

    def pack_chunk(self, workload, key, place, chunk):
        pack, frame, offset, stored, length = place
        if pack not in self.packs:
            if len(self.packs) > 8:
                self.packs.clear()
            self.packs[pack] = self.read(pack)
        data = self.packs[pack]
        key_id, salt = self.header(pack, data, PACK)
        need(key_id == key.id, pack, "it is under another key than what needs it")
        sealed = data[offset : offset + stored]
        plain = unpack(pack, self.open(pack, key, PACK, key_id, salt, frame, offset, chunk, sealed), length)
        need(hmac.digest(key.naming, plain, "sha256") == chunk, pack, "a chunk has not the content of its name")
        return plain

    def chunk(self, name, workload, key, chunk):
        problem = f"no pack has chunk {chunk.hex()}"
        for place in self.load_indexes(workload).get(chunk, []):
            try:
                return self.pack_chunk(workload, key, place, chunk)
            except Damaged as error:
                problem = error
        # Both are named: what is damaged, and what needs it.
        raise Damaged(name, problem)

    def verify_pack(self, workload, pack, indexed):
        data = self.read(pack)
        key_id, salt = self.header(pack, data, PACK)
        if key_id.hex() in self.destroyed(workload):
            return
        key = self.key_for(pack, workload, key_id)
        need(len(data) >= 96 and data[-8:] == b"dr-pack\0", pack, "it does not end as a pack does")
        (start,) = struct.unpack("<Q", data[-16:-8])
        bytes_of_table = len(data) - 16 - start - 16
        need(start >= 64 and bytes_of_table >= 0 and bytes_of_table % 40 == 0, pack, "its table has no place")
        count = bytes_of_table // 40
        table = self.open(pack, key, PACK, key_id, salt, count, start, b"contents", data[start:-16])
        chunks = self.table(pack, Fields(pack, table), count)
        need(64 + sum(stored for _, stored, _ in chunks) == start, pack, "its size does not fit its contents")
        need(indexed in (None, chunks), pack, "the index says otherwise what is in it")
        offset = 64
        for frame, (chunk, stored, length) in enumerate(chunks):
            self.pack_chunk(workload, key, (pack, frame, offset, stored, length), chunk)
            offset += stored

    # Contents and restore points

    def references(self, name, fields, count, total):
        found = [fields.numbers("32sQ") for _ in range(count)]
        need(all(size > 0 for _, size in found), name, "a reference stands for nothing")
        need(sum(size for _, size in found) == total, name, "references do not come to their size")
        return found

    def content(self, name, workload, key, content):
        size, crc, depth, references = content
        need(depth <= DEPTH_MAX and len(references) <= REFERENCES_MAX, name, "a content is too deep or wide")
        read, found = 0, 0
        for plain in self.below(name, workload, key, depth, references):
            found = crc32c(plain, found)
            read += len(plain)
            yield plain
        need(read == size and found == crc, name, "a content is not what was captured")

    def below(self, name, workload, key, depth, references):
        for chunk, size in references:
            plain = self.chunk(name, workload, key, chunk)
            if depth == 0:
                need(len(plain) == size, name, "a chunk is not as long as its reference says")
                yield plain
            else:
                need(len(plain) % 40 == 0, name, "a list of references has a wrong length")
                below = self.references(name, Fields(name, plain), len(plain) // 40, size)
                yield from self.below(name, workload, key, depth - 1, below)

    def point(self, name, data=None):
        members = ["point", "details", "session", "data_keys", "listing"]
        stored = parse(name, self.sealed(name, POINT, self.master, data), members)
        need(name == f"points/{stored['point']['id']}", name, "it is another restore point")
        strict(name, stored["listing"], ["bytes", "crc32c", "depth", "references"])
        need(1 <= len(stored["data_keys"]) <= 65536, name, "it has no data key, or too many")
        return stored

    def key_number(self, name, stored, number):
        need(number < len(stored["data_keys"]), name, "an entry names a data key it does not have")
        return self.key_for(name, stored["point"]["workload"], bytes.fromhex(stored["data_keys"][number]))

    def entries(self, name, stored):
        listing, workload = stored["listing"], stored["point"]["workload"]
        for reference in listing["references"]:
            strict(name, reference, ["name", "bytes"])
        given = b"".join(struct.pack("<32sQ", bytes.fromhex(r["name"]), r["bytes"]) for r in listing["references"])
        references = self.references(name, Fields(name, given), len(given) // 40, listing["bytes"])
        content = (listing["bytes"], listing["crc32c"], listing["depth"], references)
        body = b"".join(self.content(name, workload, self.key_number(name, stored, 0), content))
        fields, before = Fields(name, body), b""
        while not fields.ended():
            kind, mode, owner, group, modified, changed, inode = fields.numbers("BIIIqqQ")
            path, key, content, target = fields.text(), None, None, None
            parts, encoded = path.split("/"), path.encode()
            good = len(encoded) <= 65536 and "\0" not in path and not {"", ".", ".."} & set(parts)
            need(good and encoded > before, name, f"path {path!r} cannot be, or is out of order")
            before = encoded
            need(kind in (0, 1, 2), name, "an entry is of an unknown kind")
            if kind == 0:
                key, size, crc, depth, count = fields.numbers("HQIBI")
                need(count <= REFERENCES_MAX, name, "a content has too many references")
                content = (size, crc, depth, self.references(name, fields, count, size))
            elif kind == 2:
                target = fields.text()
            extensions = Fields(name, fields.take(fields.numbers("I")[0]))
            while not extensions.ended():
                number, length = extensions.numbers("BI")
                extensions.take(length)
                need(number < 128, name, "an entry needs a newer reader")
            yield path, kind, mode, (modified, changed, inode, owner, group), key, content, target

    # The chain

    def workloads(self):
        return sorted({name.split("/")[1] for name in self.list("chain")})

    def chain(self, workload, verify=False):
        """The newest entry; with `verify` every entry that is there is read."""
        names = self.list(f"chain/{workload}")
        numbers = [int(name.split("/")[-1], 16) for name in names]
        for name, number in zip(names, numbers):
            need(name == f"chain/{workload}/{number:016x}", name, "its name is not that of an entry")
        need(numbers, f"chain/{workload}/", "there is no entry")
        first = numbers[0] if verify else numbers[-1]
        entry, before, number = None, None, first
        while self.exists(f"chain/{workload}/{number:016x}") or number <= numbers[-1]:
            name = f"chain/{workload}/{number:016x}"
            data = self.read(name)
            members = ["sequence", "previous_sha256", "at", "event", "points"]
            entry = parse(name, self.sealed(name, CHAIN, self.master, data), members)
            need(entry["sequence"] == number, name, "it is another entry")
            need((entry["previous_sha256"] is None) == (number == 1), name, "it is first or not, against its number")
            need(before in (None, entry["previous_sha256"]), name, "it does not follow the entry before it")
            for listed in entry["points"]:
                strict(name, listed, ["point", "object_sha256"])
            before, number = hashlib.sha256(data).hexdigest(), number + 1
        return entry

    def listed(self, workload):
        return {listed["point"]["id"]: listed for listed in self.chain(workload)["points"]}

    def listed_point(self, id):
        for workload in self.workloads():
            listed = self.listed(workload).get(id)
            if listed:
                return self.check_listed(listed)
        raise Damaged(id, "no restore point of this id is listed")

    def check_listed(self, listed):
        name = f"points/{listed['point']['id']}"
        data = self.read(name)
        need(hashlib.sha256(data).hexdigest() == listed["object_sha256"], name, "it is not the one that was listed")
        return name, self.point(name, data)

    # WAL

    def wal(self, workload, name):
        data = self.read(name)
        key_id, salt = self.header(name, data, WAL)
        key = next(key for key, tenant in self.keys_of(workload).values() if tenant is None)
        need(key_id == key.id, name, "it names another key than it should")
        head = self.open(name, key, WAL, key_id, salt, 0, 96, data[:96], data[96:136])
        _, length, stored = struct.unpack("<qQQ", head)
        need(length <= BODY_MAX and len(data) == 136 + stored, name, "its length is not what it says")
        content = unpack(name, self.open(name, key, WAL, key_id, salt, 1, 136, data[:96], data[136:]), length)
        code = hmac.digest(key.wal, name.encode() + b"\0" + content, "sha256")
        need(code == data[64:96], name, "its content is not what its code stands for")
        return content

    # Everything

    def verify(self, contents):
        """Every problem there is; each object is looked at by itself, then what it says together."""
        problems, counts, indexed = [], {}, {}

        def attempt(work, *arguments):
            try:
                result = work(*arguments)
                return list(result) if hasattr(result, "__next__") else result
            except Damaged as error:
                if str(error) not in problems:
                    problems.append(str(error))

        def one(name):
            kind, workload = name.split("/")[0], (name.split("/") + [""])[1]
            counts[kind] = counts.get(kind, 0) + 1
            if name.startswith("keys/slot/"):
                self.slot(name, b"")[1](self.master)
            elif kind == "keys":
                self.sealed(name, WORKLOAD_KEY if workload == "workload" else TENANT_KEY, self.master)
                self.keys_of(name.split("/")[2])
            elif kind == "data":
                self.verify_pack(workload, name, indexed.get(name))
            elif kind == "points":
                self.point(name)
            elif kind == "wal":
                self.wal(workload, name)
            elif kind == "records":
                self.sealed(name, RECORD, self.master)
            elif kind == "sessions":
                members = ["host", "pid", "boot", "began"]
                parse(name, self.sealed(name, SESSION, self.master), members, ["purpose"])
            elif kind == "condemned":
                condemned = self.sealed(name, CONDEMNED, self.master)
                parse(name, condemned, ["packs"], ["confirms"])
            elif kind == "locks":
                parse(name, self.sealed(name, LOCK, self.master), ["until", "objects"])
            elif kind == "index":
                key_id, _ = self.header(name, self.read(name), INDEX)
                if key_id.hex() not in self.destroyed(workload):
                    indexed.update(self.index(workload, name))

        names = self.list(".")
        names = [os.path.normpath(name) for name in names]
        for name in sorted(names, key=lambda name: (name.startswith("data/"), name)):
            attempt(one, name)
        for workload in self.workloads():
            entry = attempt(self.chain, workload, True)
            for listed in entry["points"] if entry else []:
                self.verify_point(attempt, listed, contents)
        return problems, counts

    def verify_point(self, attempt, listed, contents):
        found = attempt(self.check_listed, listed)
        if not found:
            return
        name, stored = found
        workload = stored["point"]["workload"]
        for path, kind, _, _, key, content, _ in attempt(self.entries, name, stored) or []:
            if contents and kind == 0 and stored["data_keys"][key] not in self.destroyed(workload):
                attempt(lambda: list(self.content(f"{name} {path}", workload, self.key_number(name, stored, key), content)))


def put_together(folder):
    """Makes files in parts whole: parts/0000/<path> becomes <path>, with the pages of the later parts."""
    try:
        with open(os.path.join(folder, "parts/index"), "rb") as file:
            index = parse("parts/index", file.read())
    except FileNotFoundError:
        need(not os.path.exists(os.path.join(folder, "parts")), "parts/index", "it is missing")
        return
    need(index["version"] == 1, "parts/index", "it is of another version")
    known = {"index"}
    for path, told in index["files"].items():
        names = [f"{number:04}/{path}" for number in range(told["parts"])]
        known.update(names)
        whole = os.path.join(folder, path)
        os.makedirs(os.path.dirname(whole), exist_ok=True)
        need(not os.path.exists(whole), path, "it is there whole and in parts")
        os.rename(os.path.join(folder, "parts", names[0]), whole)
        with open(whole, "r+b") as file:
            for name in names[1:]:
                with open(os.path.join(folder, "parts", name), "rb") as part:
                    magic, version, page, length, count, zero = struct.unpack("<8sIIQII", part.read(32))
                    need((magic, version, zero) == (b"dr-pages", 1, 0), name, "it is no part of a file")
                    numbers = struct.unpack(f"<{count}I", part.read(4 * count))
                    need(list(numbers) == sorted(set(numbers)), name, "its pages do not ascend")
                    file.truncate(length)
                    for number in numbers:
                        body = part.read(page)
                        need(len(body) == page and (number + 1) * page <= length, name, "it is cut short")
                        file.seek(number * page)
                        file.write(body)
                    need(part.read(1) == b"", name, "it goes on behind its end")
            need(os.stat(whole).st_size == told["bytes"], path, "it came to another length")
    parts = os.path.join(folder, "parts")
    found = {os.path.relpath(os.path.join(path, name), parts) for path, _, names in os.walk(parts) for name in names}
    need(found <= known, "parts/index", "it does not name all parts")
    shutil.rmtree(parts)


def write(out, parts):
    file = sys.stdout.buffer if out == "-" else open(out, "wb")
    for part in parts:
        file.write(part)
    file.flush()


def run(folder, key_file, command, *arguments):
    repository = Repository(folder, key_file)
    if command == "points":
        for workload in repository.workloads():
            for id in repository.listed(workload):
                print(id)
    elif command in ("files", "extract", "restore"):
        name, stored = repository.listed_point(arguments[0])
        workload = stored["point"]["workload"]
        for path, kind, mode, _, key, content, target in repository.entries(name, stored):
            out = os.path.join(arguments[1], path) if command == "restore" else arguments[-1]
            if command == "files":
                print(path)
            elif kind == 0 and (command == "restore" or path == arguments[1]):
                key = repository.key_number(name, stored, key)
                if command == "restore":
                    os.makedirs(os.path.dirname(out), exist_ok=True)
                write(out, repository.content(f"{name} {path}", workload, key, content))
                if command == "extract":
                    return
            elif kind == 1 and command == "restore":
                os.makedirs(out, exist_ok=True)
            elif kind == 2 and command == "restore":
                os.symlink(target, out)
        if command == "restore":
            put_together(arguments[1])
        need(command != "extract", name, f"it has no file {arguments[1:2]}")
    elif command == "wal":
        for name in repository.list(f"wal/{arguments[0]}"):
            print(name.split("/")[-1])
    elif command == "wal-extract":
        workload, file, out = arguments
        write(out, [repository.wal(workload, f"wal/{workload}/{file[:8]}/{file}")])
    elif command == "records":
        print("\n".join(repository.list("records")))
    elif command == "verify":
        problems, counts = repository.verify(contents=arguments != ("objects",))
        for problem in problems:
            print(f"error: {problem}", file=sys.stderr)
        print(json.dumps(counts, sort_keys=True))
        return bool(problems)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    try:
        sys.exit(run(*sys.argv[1:]))
    except Damaged as error:
        sys.exit(f"error: {error}")

"""A client of NBD for tests, one request at a time: what drover-vmm serves for backups, looked at from outside."""
import socket
import struct

READ, TRIM, BLOCK_STATUS, DISCONNECT = 0, 4, 7, 2
ALLOCATION = 'base:allocation'


class NbdError(Exception):
    pass


class Nbd:
    """@export of the server at the Unix socket @path; `size`, and `contexts` {id: name} of those of @contexts that it has."""

    def __init__(self, path, export='', contexts=(ALLOCATION,), limit_s=20):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(limit_s)
        self.socket.connect(str(path))
        magic, option, flags = struct.unpack('>8sQH', self.take(18))
        assert magic == b'NBDMAGIC' and option == 0x49484156454F5054 and flags & 1
        self.socket.sendall(struct.pack('>I', 3))
        self.option(8, b'')
        name = struct.pack('>I', len(export)) + export.encode()
        queries = b''.join(struct.pack('>I', len(c)) + c.encode() for c in contexts)
        self.contexts = {struct.unpack('>I', data[:4])[0]: data[4:].decode()
                         for kind, data in self.option(10, name + struct.pack('>I', len(contexts)) + queries) if kind == 4}
        info = [data for kind, data in self.option(7, name + struct.pack('>H', 0)) if kind == 3 and data[:2] == b'\0\0']
        self.size, self.flags = struct.unpack('>QH', info[0][2:])
        self.cookie = 0

    def take(self, size):
        data = b''
        while len(data) < size:
            piece = self.socket.recv(size - len(data))
            if not piece:
                raise ConnectionError('the server has hung up')
            data += piece
        return data

    def option(self, number, data):
        """All replies to an option: [(type, data)]."""
        self.socket.sendall(struct.pack('>QII', 0x49484156454F5054, number, len(data)) + data)
        replies = []
        while True:
            magic, of, kind, size = struct.unpack('>QIII', self.take(20))
            assert magic == 0x3e889045565a9 and of == number
            replies.append((kind, self.take(size)))
            if kind & 0x80000000:
                raise NbdError(f'option {number}: {kind:#x} {replies[-1][1]}')
            if kind == 1:
                return replies

    def ask(self, command, offset, size, flags=0):
        """The chunks of the answer: [(type, data)]."""
        self.cookie += 1
        self.socket.sendall(struct.pack('>IHHQQI', 0x25609513, flags, command, self.cookie, offset, size))
        chunks = []
        while True:
            magic, = struct.unpack('>I', self.take(4))
            if magic == 0x67446698:
                code, cookie = struct.unpack('>IQ', self.take(12))
                assert cookie == self.cookie
                if code:
                    raise NbdError(f'error {code}')
                return chunks
            assert magic == 0x668e33ef
            done, kind, cookie, length = struct.unpack('>HHQI', self.take(16))
            assert cookie == self.cookie
            chunks.append((kind, self.take(length)))
            if kind & 0x8000:
                raise NbdError('error %d' % struct.unpack('>I', chunks[-1][1][:4]))
            if done & 1:
                return chunks

    def read(self, offset, size):
        data = bytearray(size)
        for kind, chunk in self.ask(READ, offset, size):
            assert kind == 1
            at, = struct.unpack('>Q', chunk[:8])
            data[at - offset:at - offset + len(chunk) - 8] = chunk[8:]
        return bytes(data)

    def read_all(self, piece=1 << 20):
        return b''.join(self.read(at, min(piece, self.size - at)) for at in range(0, self.size, piece))

    def trim(self, offset, size):
        self.ask(TRIM, offset, size)

    def extents(self, context):
        """[(offset, size, flags)] of the whole export."""
        found, at = [], 0
        while at < self.size:
            for kind, chunk in self.ask(BLOCK_STATUS, at, self.size - at):
                assert kind == 5
                if self.contexts[struct.unpack('>I', chunk[:4])[0]] != context:
                    continue
                for size, flags in struct.iter_unpack('>II', chunk[4:]):
                    found.append((at, size, flags))
                    at += size
        return found

    def close(self):
        self.socket.sendall(struct.pack('>IHHQQI', 0x25609513, 0, DISCONNECT, 0, 0, 0))
        self.socket.close()

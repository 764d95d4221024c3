"""A plain gRPC client of ShardKV, to read and to copy.

It knows nothing of shards, groups and leaders: it speaks to one node, any of the cluster's, and that node passes on
what isn't its own. It needs grpcio and the stub that `stub.sh` generates from the protobuf file, and nothing else.

What it does have is what makes a write happen exactly once: it opens a session, numbers its writes, and repeats a write
whose answer didn't come under the same number, which the servers recognise.
"""

import random
import time

import grpc
from shardkv.v1 import kv_pb2 as pb
from shardkv.v1 import kv_pb2_grpc as rpc

# The channel notices a lost node, whose machine failed without closing its connections, within seconds. It then connects again: to
# another node if the address is a service of Kubernetes.
CHANNEL = [
    ("grpc.keepalive_time_ms", 5000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_reconnect_backoff_ms", 1000),
]

# After these errors the client may send the same request again, with the same sequence number.
PASSING = {"not_leader", "wrong_group", "shard_not_ready", "overloaded", "outcome_unknown", "unavailable"}


class ShardKvError(Exception):
    """A request that was refused. `kind` is a field of `ErrorDetail.kind`, such as `too_large`."""

    def __init__(self, kind, message):
        super().__init__(f"{kind}: {message}")
        self.kind = kind


class ShardKv:
    """One session over one connection. Not for several threads at once: writes are numbered in order."""

    def __init__(self, address, timeout=30.0):
        self._channel = grpc.insecure_channel(address, options=CHANNEL)
        self._kv = rpc.KvStub(self._channel)
        self._timeout = timeout
        self._client_id = self._call(self._kv.OpenSession, pb.OpenSessionRequest()).client_id
        self._sequence = 0

    def close(self):
        self._channel.close()

    def get(self, key):
        """The key's value, or None."""
        answer = self._call(self._kv.Get, pb.GetRequest(key=key))
        return answer.value if answer.found else None

    def put(self, key, value):
        self._call(self._kv.Put, pb.PutRequest(key=key, value=value, session=self._next()))

    def append(self, key, suffix):
        """Adds to the value's end; returns its length afterwards."""
        return self._call(self._kv.Append, pb.AppendRequest(key=key, suffix=suffix, session=self._next())).length

    def delete(self, key):
        """Whether the key existed."""
        return self._call(self._kv.Delete, pb.DeleteRequest(key=key, session=self._next())).existed

    def compare_and_swap(self, key, expected, new):
        """Sets the value if it is `expected`; None means no such key. Whether it was."""
        request = pb.CompareAndSwapRequest(key=key, expected=expected, new=new, session=self._next())
        return self._call(self._kv.CompareAndSwap, request).swapped

    def scan(self, prefix=b""):
        """All pairs whose keys begin with `prefix`, over all shards, in key order."""
        start, end = prefix, _after(prefix)
        deadline = time.monotonic() + self._timeout
        while True:
            # An interrupted scan continues after the last received key.
            try:
                for page in self._kv.Scan(pb.ScanRequest(start=start, end=end), timeout=self._timeout):
                    for pair in page.pairs:
                        yield pair.key, pair.value
                        start = pair.key + b"\0"
                        deadline = time.monotonic() + self._timeout
                return
            except grpc.RpcError as error:
                _raise_unless_passing(error)
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.05)

    def _next(self):
        self._sequence += 1
        # Only one write is in flight, so all earlier writes were answered.
        return pb.Session(client_id=self._client_id, sequence=self._sequence, acked_below=self._sequence)

    def _call(self, method, request):
        """Sends the request until it is answered. It carries its number, so a write that took effect already is
        answered again and not applied again."""
        deadline = time.monotonic() + self._timeout
        pause = 0.01
        while True:
            left = deadline - time.monotonic()
            try:
                return method(request, timeout=max(left, 0.001))
            except grpc.RpcError as error:
                _raise_unless_passing(error)
                if time.monotonic() + pause >= deadline:
                    raise
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, 0.5)


def _raise_unless_passing(error):
    for name, value in error.trailing_metadata() or ():
        if name == "shardkv-error-bin":
            detail = pb.ErrorDetail.FromString(value)
            kind = detail.WhichOneof("kind")
            if kind not in PASSING:
                raise ShardKvError(kind, detail.message) from error
            return
    # The error doesn't come from a node: the connection broke, or the deadline passed.
    if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
        raise error


def _after(prefix):
    """The first key behind all that begin with `prefix`; empty for no bound."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else b""


def shard_of(key, shards):
    """The shard of a key, for clients that want to route by themselves: 64-bit FNV-1a of the key, or of its `{tag}`."""
    opened = key.find(b"{")
    closed = key.find(b"}", opened + 1) if opened >= 0 else -1
    part = key[opened + 1 : closed] if closed > opened + 1 else key
    value = 0xCBF29CE484222325
    for byte in part:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return (value ^ (value >> 32)) % shards

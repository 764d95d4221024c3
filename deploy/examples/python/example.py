"""Shows the client of `client.py` against the cluster at SHARDKV_ENDPOINTS: one or more HOST:PORT, with commas between.

Each address is used alone, and each must answer every key. In Kubernetes one is enough: the client service, such as
`demo-client:7400`. `make example-python` runs this against each node of a playground.
"""

import os
import pathlib
import socket
import sys

from client import ShardKv, ShardKvError, shard_of


def check(found, expected):
    if found != expected:
        raise SystemExit(f"example: found {found!r}, not {expected!r}")


def tour(address):
    kv = ShardKv(address)
    prefix = f"example-python/{socket.gethostname()}/{address}/".encode()
    keys = [prefix + name for name in (b"ada", b"alan", b"edsger", b"grace", b"tony")]
    for key in keys:
        kv.put(key, b"hello")
    check(kv.get(keys[0]), b"hello")
    check(kv.append(keys[0], b", world"), 12)
    check(kv.get(keys[0]), b"hello, world")
    check(kv.compare_and_swap(keys[1], b"hello", b"swapped"), True)
    check(kv.compare_and_swap(keys[1], b"hello", b"again"), False)
    check(kv.delete(keys[2]), True)
    check(kv.get(keys[2]), None)
    expected = [(keys[0], b"hello, world"), (keys[1], b"swapped"), (keys[3], b"hello"), (keys[4], b"hello")]
    check(list(kv.scan(prefix)), expected)
    try:
        kv.put(b"", b"a key has at least one byte")
        raise SystemExit("example: an empty key was taken")
    except ShardKvError as error:
        check(error.kind, "bad_request")
    for key in keys:
        kv.delete(key)
    kv.close()
    print(f"{address}: put, get, append, compare-and-swap, delete and scan work")


def vectors(file):
    lines = [line for line in pathlib.Path(file).read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    for line in lines:
        key, _, of_10, of_256 = line.split("\t")
        check([shard_of(key.encode(), shards) for shards in (10, 256)], [int(of_10), int(of_256)])
    print(f"the key's hash agrees with all {len(lines)} published vectors")


for each in sys.argv[1:]:
    vectors(each)
endpoints = os.environ.get("SHARDKV_ENDPOINTS")
if not endpoints:
    raise SystemExit(__doc__)
for each in endpoints.split(","):
    tour(each.strip())

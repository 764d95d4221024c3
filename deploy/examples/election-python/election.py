"""An application with leader election: several copies run, one leads and works, and another one takes over when it dies.

    election.py work NAME    runs a copy until all steps are done
    election.py report       prints each step with the copy that did it

It uses etcd3gw, which speaks JSON over HTTP (etcd's gateway). ENDPOINTS has the addresses of the keyspace. On Kubernetes that is the
name and namespace of a ShardKvKeyspace: orders.default:2379.
"""

import base64
import os
import sys
import threading
import time

from etcd3gw.client import Etcd3Client
from etcd3gw.exceptions import Etcd3Exception, WatchTimedOut

STEPS = 30
LEADER = "election-python/leader"
DONE = "election-python/done"
STEP = "election-python/step/"
TTL = 2  # A leader that dies is replaced after this many seconds.


def connect(number):
    """Returns a client of one of the endpoints: another one at each attempt."""
    endpoints = os.environ["ENDPOINTS"].split(",")
    host, port = endpoints[number % len(endpoints)].rsplit(":", 1)
    return Etcd3Client(host=host, port=int(port), api_path="/v3/", timeout=5)


class Session:
    """A lease that a thread renews. The session is over when the lease may have ended."""

    def __init__(self, client):
        self.lease = client.lease(TTL)
        self.until = time.monotonic() + TTL
        self.closed = threading.Event()
        threading.Thread(target=self._renew, daemon=True).start()

    def _renew(self):
        while not self.closed.wait(TTL / 4):
            asked = time.monotonic()
            try:
                if self.lease.refresh() > 0:
                    self.until = asked + TTL
            except (Etcd3Exception, KeyError):
                pass  # The next attempt may succeed before the lease ends.

    def lives(self):
        return time.monotonic() < self.until

    def close(self):
        """Revokes the lease, so that the next copy need not wait for its end."""
        self.closed.set()
        try:
            self.lease.revoke()
        except Etcd3Exception:
            pass


def campaign(client, session, name):
    """Waits until this copy leads: it has made the key of the leader, which goes with its lease."""
    while session.lives():
        if client.create(LEADER, name, lease=session.lease):
            return True
        try:
            client.watch_once(LEADER, timeout=TTL, filters=["NOPUT"])
        except WatchTimedOut:
            pass
    return False


def encoded(text):
    return base64.b64encode(text.encode()).decode()


def work(client, session, name):
    """Does the next step. Its transaction changes nothing if another copy leads by now, so no step is done twice."""
    done = client.get(DONE)
    number = int(done[0]) + 1 if done else 1
    if number > STEPS:
        return False
    time.sleep(0.1)  # The work.
    step = f"{STEP}{number:03}"

    def put(key, value):
        return {"request_put": {"key": encoded(key), "value": encoded(value)}}

    answer = client.transaction({
        "compare": [
            {"key": encoded(LEADER), "target": "LEASE", "lease": session.lease.id},
            {"key": encoded(step), "target": "VERSION", "version": 0},
        ],
        "success": [put(step, name), put(DONE, str(number))],
    })
    if not answer.get("succeeded"):
        raise Etcd3Exception("another copy leads")
    print(f"{name} did step {number}", flush=True)
    return True


def lead(client, name):
    """Waits to be the leader, and works as long as the session lasts. Returns true once all steps are done."""
    session = Session(client)
    try:
        if campaign(client, session, name):
            print(f"{name} leads", flush=True)
            while session.lives():
                if not work(client, session, name):
                    return True
        return False
    finally:
        session.close()


def run(name):
    attempt = 0
    while True:
        try:
            if lead(connect(attempt), name):
                return
        except Etcd3Exception as error:
            # The outcome of a step may be unknown. The next leader reads what was done.
            print(f"{name}: {error}; candidate again", flush=True)
            time.sleep(0.2)
        attempt += 1


def report():
    for value, meta in connect(0).get_prefix(STEP):
        print(meta["key"].decode().removeprefix(STEP), value.decode())


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["work", name]:
            run(name)
        case ["report"]:
            report()
        case _:
            sys.exit("usage: election.py work NAME | election.py report")

"""A ring of TensorFlow's own collective operations: nothing but TensorFlow is needed.

TF_CONFIG tells a process who the ranks are. The constructor of `tf.distribute.MultiWorkerMirroredStrategy` starts
TensorFlow's gRPC server and its coordination service; the strategy itself is not used, so step, loop and optimizer are
those of every other backend.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import importlib.util
import json
import logging
import os
import re
import socket
import struct
import sys
import weakref
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from ivis_spark.config import TrainConfig
from ivis_spark.errors import DependencyError
from ivis_spark.nn.reducer import Tensor
from ivis_spark.train.backends import Backend, Meeting, local_address

log = logging.getLogger(__name__)

_GROUP = 7001
# Seconds: TensorFlow's own, which a busy machine needs; and well below what the driver waits for the other ranks.
_LEAST_SILENCE, _MOST_SILENCE = 10.0, 20.0
_JOB = "worker"
# linux/filter.h, linux/socket.h
_SO_ATTACH_FILTER = 26
_LOAD_INTERFACE = (0x20, 0, 0, 0xFFFFF000 + 8)
_REFUSE, _ACCEPT = (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF)


class Ranks(Backend):
    """One rank. Messages are sums by `CollectiveReduceV2`, the gradients of a step as one.

    Args:
        config: `gradient_compression`, `stall_timeout_seconds` and `start_timeout_seconds` are read here.
    """

    preference = 1

    def __init__(self, config: TrainConfig) -> None:
        import tensorflow as tf

        cluster = json.loads(os.environ["TF_CONFIG"])
        self.rank, self.n_ranks = cluster["task"]["index"], len(cluster["cluster"][_JOB])
        self._half = config.gradient_compression == "fp16"
        self.exact_gradients = not self._half
        self._timeout = config.stall_timeout_seconds
        # How often a function being compiled sends a message of one name; see _key.
        self._sent: weakref.WeakKeyDictionary[Any, collections.Counter[str]] = weakref.WeakKeyDictionary()
        ring = tf.distribute.experimental.CommunicationImplementation.RING
        options = tf.distribute.experimental.CommunicationOptions(implementation=ring)
        _set_heartbeat(self.n_ranks, config)
        self._strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
        _listen_to_ranks_only(cluster["cluster"][_JOB], self.rank)

    @classmethod
    def check(cls) -> None:
        """Check that TensorFlow is installed."""
        if importlib.util.find_spec("tensorflow") is None:
            raise DependencyError("TensorFlow is not installed here: pip install 'ivis_spark[fit]'")

    @classmethod
    @contextlib.contextmanager
    def meet(cls, meeting: Meeting) -> Iterator[dict[str, str]]:
        """Share an address of each host: that of the interface which leads to rank 0, and of rank 0's to the last."""
        other = meeting.hosts[0] if meeting.rank else meeting.hosts[-1]
        address = local_address(other)
        # TensorFlow binds the port itself, without SO_REUSEPORT, so it cannot be held until then. Should another
        # process take it first, this rank is lost, and all start again with fresh ports.
        addresses = meeting.share(f"{address}:{_free_port()}")
        task = {"type": _JOB, "index": meeting.rank}
        yield {
            "TF_CONFIG": json.dumps({"cluster": {_JOB: addresses}, "task": task}),
            # A message to a rank that has gone fails at once, where it would wait for the rank to come back.
            "GRPC_FAIL_FAST": "true",
        }

    @classmethod
    def is_lost_peer(cls, err: BaseException) -> bool:
        """Tell whether an error says that another rank is gone or stalled, or this one could not join."""
        import tensorflow as tf

        names = ("Unavailable", "DeadlineExceeded", "Cancelled", "Aborted")
        kinds = tuple(getattr(tf.errors, f"{name}Error") for name in names)
        return isinstance(err, kinds) or "Could not start gRPC server" in str(err)

    def sum_gradients(self, gradients: list[Tensor]) -> list[Tensor]:
        """Return the sums over the ranks; what has no gradient stays without."""
        import tensorflow as tf

        given = [tf.convert_to_tensor(each) for each in gradients if each is not None]
        flat = tf.concat([tf.reshape(each, [-1]) for each in given], axis=0)
        joined = self._sum("gradients", tf.cast(flat, tf.float16) if self._half else flat)
        sizes = [each.shape.num_elements() for each in given]
        parts = iter(tf.split(tf.cast(joined, flat.dtype), sizes))
        shapes = iter([each.shape for each in given])
        return [None if each is None else tf.reshape(next(parts), next(shapes)) for each in gradients]

    def sum_values(self, values: list[Tensor]) -> list[Tensor]:
        """Return the sums over the ranks of scalars, as one message."""
        import tensorflow as tf

        return tf.unstack(self._sum("values", tf.stack(values)), num=len(values))

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all ranks, this rank's first; gradients go back to the rank that a row is of."""
        import tensorflow as tf

        # Ranks may have unequal numbers of rows, since padding is cut: rows go into zeros, which are summed.
        mine = tf.one_hot(self.rank, self.n_ranks, dtype=tf.int32) * tf.shape(rows)[0]
        counts = self._sum("counts", mine)
        first, total = tf.cumsum(counts, exclusive=True)[self.rank], tf.reduce_sum(counts)

        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def joined(rows: Tensor) -> tuple[Tensor, Any]:
            count = tf.shape(rows)[0]
            padded = tf.pad(rows, [[first, total - first - count], [0, 0]])

            def back(upstream: Tensor) -> Tensor:
                return self._sum("gathered gradient", upstream, size=total)[first : first + count]

            return self._sum("gathered", padded, size=total), back

        return tf.roll(joined(rows), -first, axis=0)

    def broadcast_object(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        import tensorflow as tf

        text = json.dumps(value).encode() if self.rank == 0 else b""
        size = int(self._sum("object size", tf.constant([len(text)]))[0])
        codes = tf.constant(list(text) if self.rank == 0 else [0] * size, tf.int32)
        return json.loads(bytes(self._sum("object", codes, size=size).numpy().astype("u1")))

    def broadcast_variables(self, variables: Sequence[Any]) -> None:
        """Give every rank the values that rank 0's variables have."""
        import tensorflow as tf

        for number, variable in enumerate(variables):
            value = tf.convert_to_tensor(variable)
            sent = tf.cast(value, tf.int64) if value.dtype.is_integer else value
            sent = sent if self.rank == 0 else tf.zeros_like(sent)
            variable.assign(tf.cast(self._sum(f"variable {number}", sent), value.dtype))

    def leave(self) -> None:
        """Wait until every rank has come this far."""
        import tensorflow as tf

        self.sum_values([tf.constant(0.0)])

    def _sum(self, name: str, value: Tensor, *, size: Tensor | int = 0) -> Tensor:
        """Return the sum over the ranks of a tensor, whose first dimension is `size` where that may vary."""
        import tensorflow as tf

        with tf.device("/CPU:0"):
            return tf.raw_ops.CollectiveReduceV2(
                input=value,
                group_size=self.n_ranks,
                group_key=_GROUP,
                instance_key=self._key(name, value) + size,
                ordering_token=[],
                merge_op="Add",
                final_op="Id",
                communication_hint="ring",
                timeout_seconds=self._timeout,
                max_subdivs_per_device=-1,
            )

    def _key(self, name: str, value: Tensor) -> int:
        """Return the key of a message, by which the ranks find each other's part of it.

        It is the same on all ranks, whichever of them compiled what before; messages that a function sends at the same
        time have different ones; and TensorFlow wants one key to mean one shape.
        """
        import tensorflow as tf

        number = 0
        if not tf.executing_eagerly():
            sent = self._sent.setdefault(tf.compat.v1.get_default_graph(), collections.Counter())
            number, sent[name] = sent[name], sent[name] + 1
        return zlib.crc32(f"{name} {number} {value.shape} {value.dtype.name}".encode()) & 0x3FFFFFFF


def _set_heartbeat(n_ranks: int, config: TrainConfig) -> None:
    """Let the coordination service lose a rank that is silent after our time, where its own is 10 s.

    A rank that has died is silent too, and the driver, which ends all if they do not end soon after one that failed,
    should not have to. The strategy's constructor configures the service only if nobody has; TensorFlow has no public
    name for this.
    """
    from tensorflow.python.eager import context

    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader=f"/job:{_JOB}/replica:0/task:0",
        cluster_register_timeout_in_ms=round(1000 * config.start_timeout_seconds),
        heartbeat_timeout_in_ms=round(1000 * max(_LEAST_SILENCE, min(config.stall_timeout_seconds, _MOST_SILENCE))),
        coordinated_jobs=[context.coordination_config_pb2.CoordinatedJob(name=_JOB, num_tasks=n_ranks)],
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _listen_to_ranks_only(addresses: Sequence[str], rank: int) -> None:
    """Let the server, which TensorFlow binds to all interfaces, hear only the one that leads to the other ranks.

    The server knows neither authentication nor encryption. Linux drops what comes in elsewhere, by a filter on the
    listening socket; this machine's own ranks come by the loopback.
    """
    if sys.platform != "linux":
        log.warning("TensorFlow's server listens on all interfaces of this machine: the network must be private")
        return
    port = int(addresses[rank].rpartition(":")[2])
    allowed = {"lo"}
    for address in addresses:
        allowed |= _interfaces_of(local_address(address.rpartition(":")[0]))
    with contextlib.ExitStack() as stack:
        listening = [stack.enter_context(each) for each in _listening_sockets(port)]
        for each in listening:
            _accept_from(each, [socket.if_nametoindex(name) for name in sorted(allowed)])
    if not listening:
        log.warning("TensorFlow's server on port %d was not found: it listens on all interfaces", port)


def _interfaces_of(address: str) -> set[str]:
    """Return the names of the interfaces that have an address."""
    import fcntl

    names = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # without an address
                entry = fcntl.ioctl(probe, 0x8915, struct.pack("256s", name.encode()[:15]))  # SIOCGIFADDR
                if socket.inet_ntoa(entry[20:24]) == address:
                    names.add(name)
    return names


def _listening_sockets(port: int) -> Iterator[socket.socket]:
    """Yield copies of this process's sockets that listen on a port."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), open(f"/proc/self/net/{table}", encoding="ascii") as file:
            for line in list(file)[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(fields[9])
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(f"/proc/self/fd/{name}"))
            if found and found.group(1) in inodes:
                yield socket.socket(fileno=os.dup(int(name)))


def _accept_from(listening: socket.socket, interfaces: list[int]) -> None:
    """Have a socket drop all packets but those that come by some interfaces."""
    jumps = [(0x15, len(interfaces) - i, 0, number) for i, number in enumerate(interfaces)]
    program = [_LOAD_INTERFACE, *jumps, _REFUSE, _ACCEPT]
    code = b"".join(struct.pack("HBBI", *each) for each in program)
    kept = ctypes.create_string_buffer(code, len(code))
    listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(program), ctypes.addressof(kept)))

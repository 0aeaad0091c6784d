"""A ring of Horovod: the only file that knows it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ivis_spark.config import TrainConfig
from ivis_spark.errors import DependencyError
from ivis_spark.nn.reducer import Tensor
from ivis_spark.train.backends import Backend, Meeting, local_address

BUILD = (
    "Build it for the TensorFlow that is installed: "
    "pip install --no-build-isolation --no-cache-dir 'horovod==0.28.*' with cmake below 4, setuptools below 70 and "
    "HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITH_GLOO=1; or train with train.backend=tensorflow"
)


class Ranks(Backend):
    """One rank of a Horovod ring.

    Args:
        config: `gradient_compression` is read here.

    Raises:
        DependencyError: if Horovod is missing or was built for another TensorFlow.
    """

    preference = 2

    def __init__(self, config: TrainConfig) -> None:
        self._hvd = _horovod()
        self._hvd.init()
        self.rank, self.n_ranks = self._hvd.rank(), self._hvd.size()
        self._compression = getattr(self._hvd.Compression, config.gradient_compression)
        self.exact_gradients = config.gradient_compression == "none"

    @classmethod
    def check(cls) -> None:
        """Check that Horovod is installed; whether it fits TensorFlow is seen where it is used."""
        if importlib.util.find_spec("horovod") is None:
            raise DependencyError(f"Horovod is not installed here. {BUILD}")

    @classmethod
    @contextlib.contextmanager
    def meet(cls, meeting: Meeting) -> Iterator[dict[str, str]]:
        """Serve the meeting point on rank 0's host."""
        with contextlib.ExitStack() as stack:
            port = ""
            try:
                if meeting.rank == 0:
                    port = str(stack.enter_context(_rendezvous()))
            finally:  # others wait for it
                port = meeting.share(port)[0]
            if not port:
                raise ConnectionError("rank 0 did not open the ring")
            yield ring_environment(
                meeting.rank, meeting.hosts, int(port), stall_timeout_seconds=meeting.stall_timeout_seconds
            )

    @classmethod
    def is_lost_peer(cls, err: BaseException) -> bool:
        """Tell whether an error says that another rank left the ring, or stalled."""
        import tensorflow as tf

        return isinstance(err, (tf.errors.OpError, RuntimeError)) and any(
            text in str(err) for text in ("Horovod", "HorovodInternalError", "gloo")
        )

    def sum_gradients(self, gradients: list[Tensor]) -> list[Tensor]:
        """Return the sums over the ranks; what has no gradient stays without."""
        present = [each for each in gradients if each is not None]
        joined = iter(self._hvd.grouped_allreduce(present, op=self._hvd.Sum, compression=self._compression))
        return [None if each is None else next(joined) for each in gradients]

    def sum_values(self, values: list[Tensor]) -> list[Tensor]:
        """Return the sums over the ranks of scalars, as one message."""
        import tensorflow as tf

        return tf.unstack(self._hvd.allreduce(tf.stack(values), op=self._hvd.Sum), num=len(values))

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all ranks, this rank's first; gradients go back to the rank that a row is of."""
        import tensorflow as tf

        counts = self._hvd.allgather(tf.shape(rows)[:1])
        return tf.roll(self._hvd.allgather(rows), -tf.reduce_sum(counts[: self.rank]), axis=0)

    def broadcast_object(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        return self._hvd.broadcast_object(value, root_rank=0)

    def broadcast_variables(self, variables: Sequence[Any]) -> None:
        """Give every rank the values that rank 0's variables have."""
        import tensorflow as tf

        for variable in variables:
            value = tf.convert_to_tensor(variable)
            # Horovod has no unsigned 32-bit integers, of which Keras's random states are.
            sent = tf.cast(value, tf.int64) if value.dtype == tf.uint32 else value
            variable.assign(tf.cast(self._hvd.broadcast(sent, root_rank=0), value.dtype))

    def leave(self) -> None:
        """Wait until every rank has come this far, then part."""
        self.sum_values([0.0])
        self._hvd.shutdown()


def _horovod() -> Any:
    import tensorflow as tf

    try:
        import horovod.tensorflow as hvd

        hvd.gloo_built()
    except (ImportError, AttributeError, OSError, tf.errors.NotFoundError) as err:
        raise DependencyError(
            f"Horovod cannot be used with TensorFlow {tf.__version__}: {' '.join(str(err).split())[:300]}. {BUILD}"
        ) from err
    return hvd


@contextlib.contextmanager
def _rendezvous() -> Iterator[int]:
    """Serve the meeting point of a ring, yield its port. Runs on: the machine of rank 0.

    Raises:
        DependencyError: if Horovod is missing.
    """
    try:
        from horovod.runner.http.http_server import RendezvousServer
    except ImportError as err:
        raise DependencyError(f"Horovod is missing on {socket.gethostname()}: {err}. {BUILD}") from err
    server = RendezvousServer()
    port = server.start()
    try:
        yield port
    finally:
        server.stop()


def ring_environment(
    rank: int, hosts: Sequence[str], port: int, *, stall_timeout_seconds: float, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return the environment variables that tell a process its rank.

    Args:
        rank: Of this process.
        hosts: The host of each rank.
        port: Of the rendezvous on rank 0's host.
        stall_timeout_seconds: After which a rank that others wait for counts as lost.
        environ: What is set already: HOROVOD_GLOO_IFACE in it wins over the network card found here.
    """
    host = hosts[rank]
    local_rank = hosts[:rank].count(host)
    # Horovod's cross communicator: the ranks with the same local rank, one a host.
    peers = [name for name in dict.fromkeys(hosts) if hosts.count(name) > local_rank]
    return {
        "HOROVOD_RANK": str(rank),
        "HOROVOD_SIZE": str(len(hosts)),
        "HOROVOD_LOCAL_RANK": str(local_rank),
        "HOROVOD_LOCAL_SIZE": str(hosts.count(host)),
        "HOROVOD_CROSS_RANK": str(peers.index(host)),
        "HOROVOD_CROSS_SIZE": str(len(peers)),
        "HOROVOD_HOSTNAME": host,
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": socket.gethostbyname(hosts[0]),
        "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
        "HOROVOD_GLOO_IFACE": environ.get("HOROVOD_GLOO_IFACE") or _network_card(hosts[0]),
        "HOROVOD_GLOO_TIMEOUT_SECONDS": str(max(30, round(stall_timeout_seconds))),
        "HOROVOD_STALL_CHECK_TIME_SECONDS": str(max(1, round(stall_timeout_seconds / 2))),
        "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": str(max(2, round(stall_timeout_seconds))),
    }


def _network_card(host: str) -> str:
    """Return the name of the network interface that leads to a host."""
    import psutil  # one of Horovod's own needs

    address, cards = local_address(host), psutil.net_if_addrs()
    return next((name for name, entries in cards.items() if any(entry.address == address for entry in entries)), "")

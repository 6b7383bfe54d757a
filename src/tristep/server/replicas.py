"""The same app on Ray Serve: replicas of it on one machine or several, and a proxy on each machine.

A replica is what `tristep serve` is without its socket: the app, an engine and a decoder. The proxies pass a request to
a replica that has few; a WebSocket is one request, so a session stays where it began. A replica that dies takes what it
was answering with it, and another one takes its place. All of them know the ephemeral keys, which one actor keeps, and
the voices, which lie in a folder; every limit holds for each of them by itself.

Ray is imported only when replicas are asked for.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prometheus_client import Metric
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tristep.backbone.checkpoints import find_weights
from tristep.server.app import address, create_app, listen
from tristep.server.metrics import Gathered, exposition
from tristep.server.realtime_secrets import Secrets
from tristep.server.service import Service
from tristep.server.settings import Settings
from tristep.server.worker import WorkerError

NAME = "tristep"
RAY_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
"""Unless the environment says otherwise nothing is reported to anybody, and replicas are as urgent as others."""
LOGGING = {"log_level": "WARNING", "enable_access_log": False}
"""Of Ray Serve; the app logs its requests itself."""
LOG_FORMAT = "%(asctime)s %(message)s"
MANY = 10_000
"""Requests that a replica may be passed at once. It refuses itself what is too much, and says when to come back."""
HEALTH_S = 1.0
"""Time between looks at whether a replica lives."""
ASKED_S = 5.0
"""Longest time that replicas may take to answer one another."""
NUM_ATTEMPTS = 2
"""How often a replica that doesn't start is tried."""


@dataclass(frozen=True)
class Scale:
    """How many replicas there are."""

    replicas: int = 1
    max_replicas: int | None = None
    """So many while they have more than two requests or sessions each; no more than `replicas` if not given."""

    def __post_init__(self) -> None:
        if not 1 <= self.replicas <= self.most:
            raise ValueError(
                f"there are to be {self.replicas} replicas and at most {self.most}: expected at least 1, and no fewer "
                "at most"
            )

    @property
    def most(self) -> int:
        """The number of replicas that there may be."""
        return self.replicas if self.max_replicas is None else self.max_replicas

    @property
    def options(self) -> dict[str, Any]:
        """What Ray Serve calls it."""
        if self.max_replicas is None:
            return {"num_replicas": self.replicas}
        return {"autoscaling_config": {"min_replicas": self.replicas, "max_replicas": self.max_replicas}}


class SharedSecrets(Secrets):
    """The ephemeral keys of all replicas."""

    def __init__(self, keeper: Any) -> None:
        """Know who keeps them.

        Args:
            keeper: A handle to an actor that is `Secrets`.
        """
        self.keeper = keeper

    async def mint(self, session: dict[str, Any], seconds: int) -> tuple[str, int]:
        made: tuple[str, int] = await self.keeper.mint.remote(session, seconds)
        return made

    async def find(self, value: str) -> dict[str, Any] | None:
        session: dict[str, Any] | None = await self.keeper.find.remote(value)
        return session


class ReplicaService(Service):
    """The state of one replica, which asks all of them where it can't know."""

    async def exposition(self) -> bytes:
        return exposition(Gathered(await asked_all("metrics")))

    async def hang_up(self, name: str) -> bool:
        return any(await asked_all("hang_up", name))


class Replica:
    """One of the servers."""

    def __init__(self, settings: Settings, keeper: Any) -> None:
        from ray import serve

        logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
        name = serve.get_replica_context().replica_id.unique_id
        self.service = ReplicaService(settings, SharedSecrets(keeper), name)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Build the app; Ray Serve starts and ends it."""
        return behind_proxy(create_app(self.service))

    async def check_health(self) -> None:
        """Say that it can answer; the first time this is how its start is waited for.

        Raises:
            WorkerError: If it never will.
        """
        await self.service.loaded()

    async def metrics(self) -> list[Metric]:
        """Return what this replica has counted."""
        return list(self.service.metrics.collect())

    async def hang_up(self, name: str) -> bool:
        """End a call if this replica holds it."""
        return await Service.hang_up(self.service, name)


async def asked_all(method: str, *arguments: Any) -> list[Any]:
    """Call a method of all replicas, and return what those say that live."""
    from ray import serve

    handle = serve.get_deployment_handle(Replica.__name__, NAME)
    answers = handle.broadcast(method, *arguments).results_async(timeout_s=ASKED_S, return_exceptions=True)
    return [answer for answer in await answers if not isinstance(answer, Exception)]


def behind_proxy(app: ASGIApp) -> ASGIApp:
    """Leave it to the proxy to sign an answer with the request's id, which the proxy has chosen."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def unsigned(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["x-request-id"]
            await send(message)

        await app(scope, receive, unsigned)

    return answer


def run(settings: Settings, scale: Scale, announce: Callable[[str], None] = lambda address: None) -> None:
    """Serve by replicas until a signal says to stop; what is being answered then is answered first.

    They run on the cluster that `RAY_ADDRESS` names, or else on one of this machine's own.

    Args:
        settings: What each replica serves, and to whom. The folders have to be the same on every machine.
        scale: How many replicas there are.
        announce: Is told the address of this machine's proxy once all of them are ready.

    Raises:
        ValueError: If the address can't be listened on, or a replica can't be started.
    """
    settings = for_replicas(settings)
    with listen(settings) as listener:
        place, port = address(listener), listener.getsockname()[1]
    with cluster(scale.most * (settings.threads or 1)) as keeper, deployed(replace(settings, port=port), scale, keeper):
        announce(place)
        wait_for_signal()


def for_replicas(settings: Settings) -> Settings:
    """Make sure of what each replica would fail at, and write it so that it means the same in any process.

    Raises:
        ValueError: If there are no such weights.
    """
    weights, named = find_weights(settings.model), Path(settings.model)
    model = str(weights.resolve()) if weights == named else settings.model
    voices = settings.voices.resolve() if settings.voices else None
    threads = settings.threads or 1
    name = settings.model_id
    return replace(settings, model=model, served_name=name, voices=voices, threads=threads)


@contextmanager
def cluster(num_cpus: int) -> Iterator[Any]:
    """Join the cluster that is named, or make one on this machine with room for so many processors' work.

    Yields:
        A handle to the actor that keeps the ephemeral keys. It lives as long as this process holds it; one that had to
        be started again has forgotten them.

    Raises:
        ValueError: If nothing is at the address.
    """
    import ray
    import ray.serve  # fails here if it is not installed

    for name, value in RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    named = os.environ.get("RAY_ADDRESS")
    local: dict[str, Any] = {"num_cpus": max(num_cpus, os.cpu_count() or 1), "include_dashboard": False}
    try:
        ray.init(address=named or "local", **({} if named else local))
    except ConnectionError as error:
        raise ValueError(f"no Ray cluster is at RAY_ADDRESS={named}: start it, or leave that unset") from error
    try:
        yield ray.remote(Secrets).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
    finally:
        ray.shutdown()


@contextmanager
def deployed(settings: Settings, scale: Scale, keeper: Any) -> Iterator[None]:
    """Start the proxies and the replicas, and in the end let these finish what they are answering.

    Raises:
        ValueError: If a replica can't be started.
    """
    from ray import serve

    options = {"host": settings.host, "port": settings.port}
    serve.start(proxy_location="EveryNode", http_options=options, logging_config=LOGGING)
    try:
        serve.run(application(settings, scale, keeper), name=NAME)
        yield
    except RuntimeError as error:
        raise ValueError(f"the replicas can't be started: {reason()}") from error
    finally:
        serve.delete(NAME)


def application(settings: Settings, scale: Scale, keeper: Any) -> Any:
    """Describe the replicas to Ray Serve."""
    from ray import serve

    deployment: Any = serve.deployment(
        serve.ingress()(Replica),
        name=Replica.__name__,
        ray_actor_options={"num_cpus": settings.threads},
        max_ongoing_requests=MANY,
        graceful_shutdown_timeout_s=settings.drain_s,
        health_check_period_s=HEALTH_S,
        max_constructor_retry_count=NUM_ATTEMPTS,
        logging_config=LOGGING,
        **scale.options,
    )
    return deployment.bind(settings, keeper)


def reason() -> str:
    """Find in Ray's account of the replicas the sentence that one failed with."""
    from ray import serve

    account = serve.status().applications[NAME].deployments[Replica.__name__].message
    _, found, sentence = account.rpartition(f"{WorkerError.__name__}: ")
    return sentence.splitlines()[0] if found else "Ray's log above says why"


def wait_for_signal() -> None:
    """Wait until this process is told to stop."""
    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told.set())
    told.wait()

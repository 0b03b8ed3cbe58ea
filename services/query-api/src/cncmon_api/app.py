"""Wiring: the application from its parts."""

from fastapi import APIRouter, FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest
from starlette.middleware.cors import CORSMiddleware

from cncmon_api import __version__, openapi, page, problems, routes
from cncmon_api.database import Database
from cncmon_api.hosts import KnownHosts
from cncmon_api.live import Hub
from cncmon_api.methods import Head
from cncmon_api.middleware import BoundedWork, Measured, SecurityHeaders
from cncmon_api.poller import Poller
from cncmon_api.settings import ApiSettings
from cncmon_core.monitor import Health

DESCRIPTION = (
    "Reads what CNC Monitor stored. Times are RFC 3339 in UTC. Every error is an RFC 9457 problem whose `detail` says "
    "what is wrong and what is allowed."
)

_probes = APIRouter(include_in_schema=False)


@_probes.get("/healthz")
async def healthz(request: Request) -> Response:
    """Whether only a restart would help."""
    return _report(request, ready=False)


@_probes.get("/readyz")
async def readyz(request: Request) -> Response:
    """Whether requests can be answered now."""
    return _report(request, ready=True)


@_probes.get("/metrics")
async def metrics() -> Response:
    """Return Prometheus metrics in text."""
    return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)


def _report(request: Request, *, ready: bool) -> Response:
    health: Health = request.app.state.health
    passed, report = health.report(ready=ready)
    return Response(report, 200 if passed else 503, {"Cache-Control": "no-store"}, "application/json")


def build(settings: ApiSettings, health: Health, database: Database, hub: Hub, poller: Poller) -> FastAPI:
    """Return the application. It owns no tasks: `main` runs the poller and opens the database."""
    app = FastAPI(
        title="CNC Monitor query API",
        version=__version__,
        description=DESCRIPTION,
        # Swagger UI and ReDoc come from a CDN, which a plant's network does not reach and our CSP forbids.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    state = app.state
    state.settings, state.health, state.database, state.hub, state.poller = settings, health, database, hub, poller
    state.site = page.Site(page.STATIC)
    health.ready_when("database", lambda: poller.trouble)
    problems.install(app)
    openapi.install(app)
    for router in (routes.router, _probes, page.router):
        app.include_router(router)
    # The last one added sees a request first.
    app.add_middleware(Head)
    app.add_middleware(BoundedWork, requests_max=settings.concurrent_requests_max)
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["GET"])
    app.add_middleware(KnownHosts, names=settings.hosts)
    app.add_middleware(Measured)
    app.add_middleware(SecurityHeaders)
    return app

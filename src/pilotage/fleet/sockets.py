"""Control over Unix sockets that only their owner may use."""

from pathlib import Path

from aiohttp import web


async def serve_on_socket(app: web.Application, path: Path) -> web.AppRunner:
    """Serve `app` at `path`, in place of what a process before this one left there. The runner's `cleanup` ends it."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    path.unlink(missing_ok=True)
    await web.UnixSite(runner, str(path)).start()
    path.chmod(0o600)
    return runner

"""The clients inside applications: WSGI servers with threads, Flask and Django where they are installed, scripts."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import flask
import pytest
from tests.helpers.running_server import RunningServer, running_server

import zaptasks

REQUESTS = 40


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server() as running:
        yield running


class ThreadingServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class QuietHandler(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None: ...


@contextmanager
def serving(application: Callable[..., Any]) -> Iterator[str]:
    """Serve a WSGI application, each request in a thread of its own, and give its URL."""
    with make_server("127.0.0.1", 0, application, ThreadingServer, QuietHandler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}/"
        finally:
            http.shutdown()
            thread.join()


def mail_all(application: Callable[..., Any]) -> set[str]:
    """Ask for many mails at once, and give the runs that the application has started on the server."""
    with serving(application) as url, ThreadPoolExecutor(8) as pool:

        def ask(number: int) -> Any:
            with urllib.request.urlopen(f"{url}?to=user-{number}", timeout=20) as response:
                return json.load(response)

        answers = list(pool.map(ask, range(REQUESTS)))
    assert {answer["placement"] for answer in answers} == {"zap"}
    return {answer["run_id"] for answer in answers}


def answer(submission: zaptasks.Submission) -> dict[str, str]:
    return {"placement": submission.placement.value, "run_id": submission.run_id}


def test_a_wsgi_application_with_threads(server: RunningServer) -> None:
    with zaptasks.Client(zap=server.zap) as client:

        def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
            submission = client.now("email.send", environ["QUERY_STRING"])
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(answer(submission)).encode()]

        assert len(mail_all(application)) == REQUESTS


def test_flask(server: RunningServer) -> None:
    application = flask.Flask("shop")
    with zaptasks.Client(zap=server.zap) as client:

        @application.get("/")
        def mail() -> dict[str, str]:
            return answer(client.now("email.send", {"to": flask.request.args["to"]}))

        assert len(mail_all(application)) == REQUESTS


def test_django_with_a_plain_and_an_async_view(server: RunningServer) -> None:
    """In a process of its own, for Django's settings belong to the process."""
    program = """
        import sys
        import django
        from django.conf import settings
        from django.core.wsgi import get_wsgi_application
        from django.http import JsonResponse
        from django.urls import path
        import zaptasks
        from zaptasks import aio
        from tests.test_applications import REQUESTS, answer, mail_all

        client = zaptasks.Client(zap=sys.argv[1])

        def mail(request):
            return JsonResponse(answer(client.now("email.send", {"to": request.GET["to"]})))

        async def mail_async(request):
            async with aio.open_client(sys.argv[1]) as client:
                handle = await client.now("email.send", {"to": request.GET["to"]})
            return JsonResponse({"placement": "zap", "run_id": handle.run_id})

        urlpatterns = [path("", sys.argv[2] == "plain" and mail or mail_async)]
        settings.configure(ROOT_URLCONF="__main__", ALLOWED_HOSTS=["*"], SECRET_KEY="for tests")
        django.setup()
        assert len(mail_all(get_wsgi_application())) == REQUESTS
        client.stop()
        print("done")
        """
    for view in ("plain", "async"):
        done = run_script(program, server.zap, view)
        assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_a_plain_script_without_a_word_about_loops(server: RunningServer) -> None:
    done = run_script(
        """
        import sys, zaptasks
        client = zaptasks.Client(zap=sys.argv[1])
        for number in range(3):
            print(client.now("email.send", {"to": number}).placement.value)
        """,
        server.zap,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "zap\n" * 3, "")


def run_script(source: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source), *args], capture_output=True, text=True, timeout=40, check=False
    )

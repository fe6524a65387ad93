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
from tests.helpers.workers import worker_in_a_thread

import zaptasks
from zaptasks import workflow

REQUESTS = 40
ORDERS = 12
QUEUE = "shop"


@workflow.defn(name="shop.order")
async def order(item: str) -> str:
    who = await workflow.wait_signal("approve", str)
    return f"{item} for {who}"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server() as running, worker_in_a_thread(running.zap, QUEUE, workflows=[order]):
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


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=20) as response:
        return json.load(response)


def mail_all(application: Callable[..., Any]) -> set[str]:
    """Ask for many mails at once, and give the runs that the application has started on the server."""
    with serving(application) as url, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: get(f"{url}?to=user-{number}"), range(REQUESTS)))
    assert {answer["placement"] for answer in answers} == {"zap"}
    return {answer["run_id"] for answer in answers}


def order_all(application: Callable[..., Any]) -> list[str]:
    """Order, approve and fetch many things at once, each in three requests, and give what came."""
    with serving(application) as url, ThreadPoolExecutor(8) as pool:

        def one(number: int) -> str:
            id = get(f"{url}order?item=item-{number}")["id"]
            get(f"{url}approve?id={id}&who=ada")
            result: str = get(f"{url}result?id={id}")["result"]
            return result

        return list(pool.map(one, range(ORDERS)))


ORDERED = [f"item-{number} for ada" for number in range(ORDERS)]


class Shop:
    """What the views of a shop do, whatever they are written with."""

    def __init__(self, client: zaptasks.Client) -> None:
        self.client = client

    def order(self, item: str) -> dict[str, str]:
        return {"id": self.client.start_workflow("shop.order", item, task_queue=QUEUE).workflow_id}

    def approve(self, id: str, who: str) -> dict[str, str]:
        handle = self.client.get_handle(id)
        handle.signal("approve", who)
        return {"type": handle.describe().type}

    def result(self, id: str) -> dict[str, str]:
        return {"result": self.client.get_handle(id).result(str, timeout=10)}


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


def test_flask_with_workflows(server: RunningServer) -> None:
    application = flask.Flask("shop")
    with zaptasks.Client(zap=server.zap) as client:
        shop = Shop(client)

        @application.get("/<name>")
        def view(name: str) -> Any:
            return getattr(shop, name)(**flask.request.args)

        assert order_all(application) == ORDERED


def test_django_with_workflows(server: RunningServer) -> None:
    program = """
        import sys
        import django
        from django.conf import settings
        from django.core.wsgi import get_wsgi_application
        from django.http import JsonResponse
        from django.urls import path
        import zaptasks
        from tests.test_applications import ORDERED, Shop, order_all

        shop = Shop(zaptasks.Client(zap=sys.argv[1]))

        def view(request, name):
            return JsonResponse(getattr(shop, name)(**request.GET.dict()))

        urlpatterns = [path("<name>", view)]
        settings.configure(ROOT_URLCONF="__main__", ALLOWED_HOSTS=["*"], SECRET_KEY="for tests")
        django.setup()
        assert order_all(get_wsgi_application()) == ORDERED
        shop.client.stop()
        print("done")
        """
    done = run_script(program, server.zap)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


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


def test_a_plain_script_with_a_workflow(server: RunningServer) -> None:
    done = run_script(
        """
        import sys, zaptasks
        client = zaptasks.Client(zap=sys.argv[1])
        handle = client.start_workflow("shop.order", "tea", task_queue="shop")
        handle.signal("approve", "ada")
        print(handle.result(timeout=10))
        """,
        server.zap,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "tea for ada\n", "")


def run_script(source: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source), *args], capture_output=True, text=True, timeout=40, check=False
    )

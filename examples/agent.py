"""An agent: a model that answers, or asks for a tool, until it knows enough. Its words are seen as they come.

    zaptasks serve                  # in another terminal
    python examples/agent.py

The conversation is the workflow's: if the worker is killed in the middle, another one goes on with everything that was
said and found, and asks again only what had no answer yet. The stream of words is for the eyes of whoever watches, and
is not kept: what counts is the reply that the activity returns.
"""

from __future__ import annotations

from dataclasses import dataclass

import trio

import zaptasks
from zaptasks import TaskError, activity, workflow

TURNS_MAX = 10


@dataclass
class Message:
    role: str
    text: str


@dataclass
class Reply:
    text: str
    tool: str = ""
    argument: str = ""


@activity.defn
async def ask_model(messages: list[Message]) -> Reply:
    """In earnest a request to a model that streams. This one looks up the weather, and then knows the answer."""
    found = [message.text for message in messages if message.role == "tool"]
    if found:
        reply = Reply(f"Take an umbrella: {found[-1]}.")
    else:
        reply = Reply("Let me look at the weather.", tool="weather", argument="Berlin")
    for word in reply.text.split():
        activity.emit(word)
        await trio.sleep(0.02)
    return reply


@activity.defn
async def weather(city: str) -> str:
    return f"it rains in {city}"


TOOLS = {"weather": weather}


@workflow.defn
async def agent(question: str) -> str:
    messages = [Message("user", question)]
    for _ in range(TURNS_MAX):
        # A model that is overloaded is asked again, with growing pauses.
        reply = await workflow.execute_activity(ask_model, messages, start_to_close=120)
        messages.append(Message("assistant", reply.text))
        if not reply.tool:
            return reply.text
        messages.append(Message("tool", await use(reply)))
    raise TaskError(f"no answer after {TURNS_MAX} turns")


async def use(reply: Reply) -> str:
    """What the tool found. That there is no such tool, or that it failed, is something that the model can work with."""
    tool = TOOLS.get(reply.tool)
    if tool is None:
        return f"there is no tool {reply.tool!r}, only: {', '.join(TOOLS)}"
    try:
        return await workflow.execute_activity(tool, reply.argument, start_to_close=30)
    except workflow.ActivityFailed as error:
        return f"failed: {error.message}"


async def main() -> None:
    async with (
        zaptasks.open_client() as client,
        zaptasks.open_worker(client, "agents", workflows=[agent], activities=[ask_model, weather]),
    ):
        handle = await client.start_workflow(agent, "What shall I wear?", task_queue="agents")
        async for word in handle.output(str):
            print(word.value, end=" ", flush=True)
        print()
        print("=>", await handle.result())


if __name__ == "__main__":
    trio.run(main)
